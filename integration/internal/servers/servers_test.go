package servers

import (
	"database/sql"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if os.Getenv("SQLREQ_TEST_DIE") != "" {
		die()
	}
	os.Exit(Run(m))
}

// die starts a process and a folder, and then panics as a test might.
func die() {
	u, err := accountOf("nobody")
	if err != nil {
		panic(err)
	}
	dir, err := u.folder("die")
	if err != nil {
		panic(err)
	}
	p, err := start(u, "kill", filepath.Join(os.TempDir(), filepath.Base(dir)+".log"), "/bin/sleep", "1000")
	if err != nil {
		panic(err)
	}
	os.Remove(p.log)
	println(dir, p.cmd.Process.Pid)
	go panic("a test that fails badly")
	select {}
}

// What was started must be gone also when the tests end by a panic.
func TestPanicLeavesNothing(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SQLREQ_TEST_DIE=1")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "a test that fails badly") {
		t.Fatalf("got %v\n%s\nwant a panic", err, out)
	}
	words := strings.Fields(string(out))
	gone(t, words[0])
	gone(t, "/proc/"+words[1])
}

func gone(t *testing.T, path string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(10 * time.Second)
	for {
		if _, err := os.Stat(path); os.IsNotExist(err) {
			return
		}
		if b, err := os.ReadFile(path + "/stat"); err == nil && strings.Contains(string(b), ") Z ") {
			return // dead, and nobody has asked for its status: a container may have no init
		}
		select {
		case <-tick.C:
		case <-timeout:
			t.Errorf("%s is still there", path)
			return
		}
	}
}

// A missing program must skip with the package's name, or fail where that is not allowed.
func TestMissingNamesThePackage(t *testing.T) {
	err := &errMissing{"PostgreSQL", "postgresql"}
	if got, want := err.Error(), "PostgreSQL is not installed: apt-get install postgresql"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for require, want := range map[string]string{"": "skip", "1": "fatal"} {
		t.Setenv(Require, require)
		r := &recorder{TB: t}
		need(r, err)
		if r.what != want {
			t.Errorf("%s=%q: got %q, want %q", Require, require, r.what, want)
		}
	}
}

// recorder is a test that only notes how it would have ended.
type recorder struct {
	testing.TB
	what string
}

func (r *recorder) Skip(...any)  { r.what = "skip" }
func (r *recorder) Fatal(...any) { r.what = "fatal" }

// The account that a server runs as is given the groups of folders that are closed to others, and no more.
func TestGroupsOfClosedFolders(t *testing.T) {
	usual, err := groupsFor(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	gid := uint32(os.Getgid())
	for _, c := range []struct {
		mode os.FileMode
		want bool
	}{{0o755, false}, {0o750, true}, {0o710, true}, {0o711, false}, {0o701, false}, {0o700, false}} {
		dir := filepath.Join(t.TempDir(), "closed")
		inner := filepath.Join(dir, "inner")
		if err := os.MkdirAll(inner, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, c.mode); err != nil {
			t.Fatal(err)
		}
		got, err := groupsFor(inner)
		if err != nil {
			t.Fatal(err)
		}
		want := slices.Clone(usual)
		if c.want && !slices.Contains(want, gid) {
			want = append([]uint32{gid}, want...)
		}
		if !slices.Equal(got, want) {
			t.Errorf("mode %v: got groups %d, want %d", c.mode, got, want)
		}
	}
}

func TestServersAnswer(t *testing.T) {
	primary, standby := SharedPair(t)
	for name, dsn := range map[string]string{"primary": primary.DSN, "standby": standby.DSN} {
		var recovering bool
		query(t, "pgx", dsn, "SELECT pg_is_in_recovery()", &recovering)
		if want := name == "standby"; recovering != want {
			t.Errorf("%s: in recovery: got %v, want %v", name, recovering, want)
		}
	}
}

func query(t *testing.T, driver, dsn, query string, into ...any) {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(query).Scan(into...); err != nil {
		t.Fatal(err)
	}
}
