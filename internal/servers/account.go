package servers

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"strings"
)

// account is whom a server runs as: itself a user, unless the tests run as root,
// which PostgreSQL refuses.
type account struct {
	uid, gid int
	groups   []uint32 // beside gid
	other    bool     // it is not the account of the tests
}

func accountOf(name string) (*account, error) {
	if runtime.GOOS != "linux" {
		return nil, &errMissing{"what this needs on " + runtime.GOOS, "(on Debian, or set the DSNs)"}
	}
	if os.Geteuid() != 0 {
		return &account{uid: os.Getuid(), gid: os.Getgid()}, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return nil, err
	}
	groups, err := groupsFor(os.TempDir())
	if err != nil {
		return nil, err
	}
	return &account{uid: uid, gid: gid, groups: groups, other: true}, nil
}

// folder returns a new folder that belongs to the account and is removed after the tests.
func (u *account) folder(name string) (string, error) {
	parent, err := runFolder()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(parent, name+"-")
	if err != nil {
		return "", err
	}
	return dir, os.Chown(dir, u.uid, u.gid)
}

// write writes a file that belongs to the account.
func (u *account) write(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Chown(path, u.uid, u.gid)
}

// run runs a program as the account to its end.
func (u *account) run(dir string, argv ...string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = environ(dir)
	cmd.SysProcAttr = u.session()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	return nil
}
