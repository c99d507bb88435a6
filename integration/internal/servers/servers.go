// Package servers starts database servers for tests: as ordinary processes, on
// loopback, in temporary folders. Each is started by the first test that asks
// for it and stopped with the test process, however that ends.
package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Variables of the environment.
const (
	// Require turns the skip of a test whose server is not installed into a failure, when it is not empty.
	Require = "SQLREQ_REQUIRE_SERVERS"
	// PostgresDSN, StandbyDSN and MariaDBDSN replace a server that would be started.
	PostgresDSN = "SQLREQ_POSTGRES_DSN"
	StandbyDSN  = "SQLREQ_STANDBY_DSN"
	MariaDBDSN  = "SQLREQ_MARIADB_DSN"
	// GaleraDSNs are those of the nodes, with spaces between them.
	GaleraDSNs = "SQLREQ_GALERA_DSNS"
)

// readyWithin bounds the wait for one server.
const readyWithin = 60 * time.Second

// Run runs the tests and stops what they have started.
func Run(m *testing.M) int {
	code := m.Run()
	if err := Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "servers:", err)
		return max(code, 1)
	}
	return code
}

// The keeper is a shell that reads what there is to stop and to remove from a
// pipe, and does so when the pipe is closed. That is when this process ends: well, by
// a panic in any goroutine, by os.Exit, by an interrupt, or killed.
const keeperScript = `
exec 2>/dev/null
quit= kill= dirs=
while read -r what value; do
	case $what in
	quit) quit="$quit $value" ;;
	kill) kill="$kill $value" ;;
	dir) dirs="$dirs $value" ;;
	esac
done
for pid in $quit; do kill -s QUIT "$pid"; done
for pid in $kill; do kill -s KILL -- "-$pid"; done
tries=0
for pid in $quit $kill; do
	# A zombie has ended, though nobody may be there to ask for its status.
	while [ -r "/proc/$pid/stat" ] && ! grep -q ') Z ' "/proc/$pid/stat" && [ $tries -lt 100 ]; do
		tries=$((tries + 1))
		sleep 0.05
	done
	kill -s KILL -- "-$pid"
done
[ -z "$dirs" ] || rm -rf $dirs
`

var keeper struct {
	sync.Mutex
	cmd *exec.Cmd
	in  io.WriteCloser
}

func keep(what, value string) error {
	keeper.Lock()
	defer keeper.Unlock()
	if keeper.cmd == nil {
		cmd := exec.Command("/bin/sh", "-c", keeperScript)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // an interrupt at the terminal is not for it
		in, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		keeper.cmd, keeper.in = cmd, in
	}
	_, err := fmt.Fprintln(keeper.in, what, value)
	return err
}

// Stop stops every server that was started and removes the folders.
func Stop() error {
	keeper.Lock()
	defer keeper.Unlock()
	if keeper.cmd == nil {
		return nil
	}
	err := keeper.in.Close()
	_ = keeper.cmd.Wait() // its status is that of its last kill
	keeper.cmd = nil
	return err
}

// process is a running server.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
}

// start starts a program as the given user, in a session of its own. stop is how
// the keeper ends it: "quit" for SIGQUIT, "kill" for SIGKILL to its group.
func start(u *account, stop, log string, argv ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o666)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = filepath.Dir(log)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: u.credential}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, keep(stop, strconv.Itoa(cmd.Process.Pid))
}

// kill kills the server and everything it has started, and waits for its end.
func (p *process) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// ready polls check until it succeeds.
func (p *process) ready(check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), readyWithin)
	defer cancel()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.done:
			return fmt.Errorf("%s ended: %w\n%s", p.cmd.Path, err, tail(p.log))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w\n%s", p.cmd.Path, err, tail(p.log))
		}
	}
}

func tail(path string) string {
	b, _ := os.ReadFile(path)
	return string(b[max(0, len(b)-4000):])
}

// account is whom a server runs as: itself a user, unless the tests run as root,
// which PostgreSQL refuses.
type account struct {
	uid, gid   int
	credential *syscall.Credential
}

func accountOf(name string) (*account, error) {
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
	return &account{uid, gid, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: groups}}, nil
}

// groupsFor returns the groups that an account needs beside its own to get to a
// folder: those of the folders on the way, "/" first, that are closed to everybody
// else. On some machines "/" has mode 0750, and without its group no program can be
// run. A server must be started as the account: mariadbd --user=mysql, which takes
// the account itself, gives these groups up.
func groupsFor(folder string) (groups []uint32, err error) {
	for {
		info, err := os.Stat(folder)
		if err != nil {
			return nil, err
		}
		gid := info.Sys().(*syscall.Stat_t).Gid
		if info.Mode().Perm()&0o011 == 0o010 && !slices.Contains(groups, gid) {
			groups = append(groups, gid)
		}
		if parent := filepath.Dir(folder); parent != folder {
			folder = parent
			continue
		}
		return groups, nil
	}
}

// folder returns a new folder that belongs to the account.
func (u *account) folder(name string) (string, error) {
	dir, err := os.MkdirTemp("", "sqlreq-"+name+"-")
	if err != nil {
		return "", err
	}
	if err := keep("dir", dir); err != nil {
		return "", err
	}
	return dir, os.Chown(dir, u.uid, u.gid)
}

// write writes a file that belongs to the account.
func (u *account) write(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Chown(path, u.uid, u.gid)
}

// run runs a program to its end.
func (u *account) run(dir string, argv ...string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: u.credential}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	return nil
}

// ports returns n free ports. They are free when it returns; nothing else holds them.
func ports(n int) ([]int, error) {
	var found []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		found = append(found, l.Addr().(*net.TCPAddr).Port)
	}
	return found, nil
}

// program returns the path of a program in one of the folders or in PATH, of the
// highest version where a pattern matches several.
func program(name string, folders ...string) (string, error) {
	for _, pattern := range append(folders, "/usr/sbin") {
		matches, err := filepath.Glob(filepath.Join(pattern, name))
		if err != nil {
			return "", err
		}
		if len(matches) > 0 {
			return slices.Max(matches), nil
		}
	}
	return exec.LookPath(name)
}

// errMissing: something is not installed.
type errMissing struct{ what, packages string }

func (e *errMissing) Error() string {
	return fmt.Sprintf("%s is not installed: apt-get install %s", e.what, e.packages)
}

// need ends the test if the server is not there: it is skipped if all that is
// missing is a package, and [Require] does not forbid that.
func need(t testing.TB, err error) {
	t.Helper()
	var missing *errMissing
	switch {
	case err == nil:
	case errors.As(err, &missing) && os.Getenv(Require) == "":
		t.Skip(err)
	default:
		t.Fatal(err)
	}
}

// once starts something once for all tests.
type once[T any] struct {
	sync.Once
	value T
	err   error
}

func (o *once[T]) get(t testing.TB, start func() (T, error)) T {
	t.Helper()
	o.Do(func() {
		if runtime.GOOS != "linux" {
			o.err = &errMissing{"this on " + runtime.GOOS, "(Debian, or set the DSNs)"}
			return
		}
		o.value, o.err = start()
	})
	need(t, o.err)
	return o.value
}
