package servers

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// sleeper starts a program that does not end by itself, in the place of a server,
// and which has started another one.
func sleeper(name string) (*server, error) {
	s, err := newServer(name, "nobody")
	if err != nil {
		return nil, err
	}
	s.argv = []string{"/bin/sh", "-c", "sleep 1000 & echo started; wait"}
	s.ready = func(context.Context) error {
		if text := s.process.tail(); text != "started\n" {
			return fmt.Errorf("its log is %q", text)
		}
		return nil
	}
	return s, s.Start()
}

// die starts a server, and panics as a test might when its standard input ends.
func die() {
	s, err := sleeper("die")
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(os.Stderr, filepath.Dir(s.dir), s.process.cmd.Process.Pid)
	_, _ = io.Copy(io.Discard, os.Stdin)
	go panic("a test that fails badly")
	select {}
}

// dying is a test process that has started a server.
type dying struct {
	cmd  *exec.Cmd
	in   io.Closer
	out  *bufio.Reader
	dir  string // of its run
	lock *os.File
	pids map[int]string // of the server, with the start times
}

func startDying(t *testing.T, tmp string) *dying {
	t.Helper()
	d := &dying{cmd: exec.Command(os.Args[0])}
	d.cmd.Env = append(os.Environ(), "SQLREQ_TEST_DIE=1", "TMPDIR="+tmp)
	in, err := d.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := d.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.cmd.Process.Kill() })
	d.in, d.out = in, bufio.NewReader(out)
	var pid int
	if _, err := fmt.Fscanln(d.out, &d.dir, &pid); err != nil {
		t.Fatal(err)
	}
	if d.lock, err = os.Open(filepath.Join(d.dir, "lock")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.lock.Close() })
	d.pids = startedBy(pid)
	if d.pids[pid], err = startTime(pid); err != nil {
		t.Fatal(err)
	}
	if len(d.pids) != 2 {
		t.Fatalf("processes %v, want two", d.pids)
	}
	return d
}

// cleanedUp waits until the keeper has ended and fails the test if something is left.
func (d *dying) cleanedUp(t *testing.T) {
	t.Helper()
	if err := syscall.Flock(int(d.lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	d.nothingLeft(t)
}

func (d *dying) nothingLeft(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(d.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder: got %v, want that it does not exist", err)
	}
	for pid, began := range d.pids {
		if running(pid, began) {
			t.Errorf("process %d is still there", pid)
		}
	}
}

// openTemp returns a temporary folder that every account can enter, as the system's.
func openTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sqlreq-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// What was started must be gone also when the tests end by a panic.
func TestPanicLeavesNothing(t *testing.T) {
	d := startDying(t, openTemp(t))
	d.in.Close()
	out, err := io.ReadAll(d.out)
	if err != nil || !strings.Contains(string(out), "a test that fails badly") {
		t.Fatalf("got %v\n%s\nwant a panic", err, out)
	}
	if err := d.cmd.Wait(); err == nil {
		t.Error("a process that panicked has ended well")
	}
	d.cleanedUp(t)
}

// What a run has left whose keeper was killed with it is removed by the next one, but
// nothing of a run that lives.
func TestLeftoversAreRemoved(t *testing.T) {
	tmp := openTemp(t)
	living, dead := startDying(t, tmp), startDying(t, tmp)
	for keeper := range startedBy(dead.cmd.Process.Pid) {
		if _, server := dead.pids[keeper]; !server {
			_ = syscall.Kill(keeper, syscall.SIGKILL)
		}
	}
	_ = dead.cmd.Process.Kill()
	_ = dead.cmd.Wait()
	if err := syscall.Flock(int(dead.lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(dead.lock.Fd()), syscall.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead.dir); err != nil {
		t.Fatalf("nothing is left: %v", err)
	}

	next := startDying(t, tmp)
	dead.nothingLeft(t)
	if _, err := os.Stat(living.dir); err != nil {
		t.Errorf("the folder of a run that lives: %v", err)
	}
	for pid, began := range living.pids {
		if !running(pid, began) {
			t.Errorf("process %d of a run that lives is gone", pid)
		}
	}
	for _, d := range []*dying{living, next} {
		d.in.Close()
		_, _ = io.Copy(io.Discard, d.out)
		_ = d.cmd.Wait()
		d.cleanedUp(t)
	}
}

// The processes of a leftover run whose ids other processes have by now are not touched.
func TestLeftoversOfOthersAreNot(t *testing.T) {
	for _, c := range []struct{ name, boot, began string }{
		{"another start time", "", "1"},
		{"another boot", "another", ""},
	} {
		s, err := sleeper("other")
		if err != nil {
			t.Fatal(err)
		}
		tmp := openTemp(t)
		dir, lock, err := newRun(tmp)
		if err != nil {
			t.Fatal(err)
		}
		lock.Close()
		pid := s.process.cmd.Process.Pid
		began, err := startTime(pid)
		if err != nil {
			t.Fatal(err)
		}
		line := began
		if c.began != "" {
			line = c.began
		}
		if err := os.WriteFile(filepath.Join(dir, "processes"), fmt.Appendln(nil, "KILL", pid, line), 0o600); err != nil {
			t.Fatal(err)
		}
		if c.boot != "" {
			if err := os.WriteFile(filepath.Join(dir, "boot"), []byte(c.boot), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		removeLeftovers(tmp)
		if !running(pid, began) {
			t.Errorf("%s: its process was killed", c.name)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the folder: got %v, want that it does not exist", c.name, err)
		}
		if err := s.remove(); err != nil {
			t.Error(err)
		}
	}
}

// A server is stopped, or killed with all it has started, and starts again on its port.
func TestStopKillStart(t *testing.T) {
	s, err := sleeper("sleeper")
	if err != nil {
		t.Fatal(err)
	}
	port := s.port
	pid := s.process.cmd.Process.Pid
	started := startedBy(pid)
	if len(started) != 1 {
		t.Fatalf("it has started %v, want one", started)
	}
	s.Kill()
	for child, began := range started {
		if running(child, began) {
			t.Errorf("process %d was not killed", child)
		}
	}
	select {
	case <-s.process.done:
	default:
		t.Error("Kill has not waited for the end")
	}
	if err := os.Remove(filepath.Join(s.dir, "log")); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	if s.port != port || s.process.cmd.Process.Pid == pid {
		t.Errorf("port %d, process %d, want port %d and another process than %d", s.port, s.process.cmd.Process.Pid, port, pid)
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	if status := s.process.cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGTERM {
		t.Errorf("after Stop: %v, want an end by SIGTERM", s.process.cmd.ProcessState)
	}
	if err := s.remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder: got %v, want that it does not exist", err)
	}
}

// What a server says before it ends too early is in the error.
func TestEndsTooEarly(t *testing.T) {
	s, err := newServer("failing", "nobody")
	if err != nil {
		t.Fatal(err)
	}
	s.argv = []string{"/bin/sh", "-c", "echo out of order; exit 3"}
	s.ready = func(context.Context) error { return errors.New("no answer") }
	err = s.Start()
	if err == nil || !strings.Contains(err.Error(), "ended: no answer") || !strings.Contains(err.Error(), "out of order") {
		t.Errorf("got %v, want that it ended, with its log", err)
	}
	if err := s.remove(); err != nil {
		t.Error(err)
	}
}

// A port that was given to a server, which does not listen, is given to no other one, of this process or of another.
func TestPortsAreGivenOnce(t *testing.T) {
	found, err := ports(3)
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC() // which closes what nobody holds
	runtime.GC()
	for _, port := range found {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if c, err := claim(port); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("port %d: got %v, want that it is taken", port, err)
			if err == nil {
				c.Close()
			}
		}
	}
}

// The account that a server runs as is given the groups of folders that are closed to others, and no more.
func TestGroupsOfClosedFolders(t *testing.T) {
	parent := openTemp(t)
	usual, err := groupsFor(parent)
	if err != nil {
		t.Fatal(err)
	}
	gid := uint32(os.Getgid())
	for _, c := range []struct {
		mode os.FileMode
		want bool
	}{{0o755, false}, {0o750, true}, {0o710, true}, {0o711, false}, {0o701, false}, {0o700, false}} {
		dir := filepath.Join(parent, c.mode.String())
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

// The account has the groups of a closed folder, and owns what is made for it.
func TestAccount(t *testing.T) {
	closed := openTemp(t)
	if err := os.Chmod(closed, 0o750); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", closed)
	u, err := accountOf("nobody")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := u.folder("account")
	if err != nil {
		t.Fatal(err)
	}
	if err := u.write(filepath.Join(dir, "file"), "text"); err != nil {
		t.Fatal(err)
	}
	if err := u.run(dir, "/bin/sh", "-c", `cat file && id -G >"$TMPDIR/groups"`); err != nil {
		t.Error(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "groups"))
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, gid := range append([]uint32{uint32(u.gid)}, u.groups...) {
		want = append(want, fmt.Sprint(gid))
	}
	if !u.other {
		all, err := os.Getgroups()
		if err != nil {
			t.Fatal(err)
		}
		want = want[:1]
		for _, gid := range all {
			if gid != u.gid {
				want = append(want, fmt.Sprint(gid))
			}
		}
	}
	found := strings.Fields(string(got))
	slices.Sort(found)
	slices.Sort(want)
	if !slices.Equal(found, want) {
		t.Errorf("groups %q, want %q", found, want)
	}
	if err := u.run(dir, "/bin/sh", "-c", "echo what it says; exit 3"); err == nil || !strings.Contains(err.Error(), "what it says") {
		t.Errorf("got %v, want an error with the output", err)
	}
}
