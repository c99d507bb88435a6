package servers

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// session returns what makes a program run as the account, in a session of its own.
func (u *account) session() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true}
	if u.other {
		attr.Credential = &syscall.Credential{Uid: uint32(u.uid), Gid: uint32(u.gid), Groups: u.groups}
	}
	return attr
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
		parent := filepath.Dir(folder)
		if parent == folder {
			return groups, nil
		}
		folder = parent
	}
}

// lockFile locks a file until it is closed in all processes that have it; not if another has locked it.
func lockFile(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

// claim takes a port for the servers of this process, if no process on the same network has it. A server that is
// stopped, or not started yet, does not listen: the name of a socket holds its port meanwhile.
func claim(port int) (io.Closer, error) {
	return net.Listen("unix", fmt.Sprintf("@sqlreq-servers-%d", port))
}

// kill kills the server and everything it has started, and waits for its end. Its
// group is not enough: the processes of PostgreSQL have sessions of their own, those of
// a state transfer of Galera have groups of their own.
func (p *process) kill() {
	pid := p.cmd.Process.Pid
	_ = syscall.Kill(pid, syscall.SIGSTOP) // so that it starts no more
	started := startedBy(pid)
	_ = syscall.Kill(pid, syscall.SIGKILL)
	for child := range started {
		_ = syscall.Kill(child, syscall.SIGKILL)
	}
	<-p.done
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for child, began := range started {
		for running(child, began) {
			<-tick.C
		}
	}
}

// startedBy returns the children of a process and the others in its session, with
// their start times.
func startedBy(pid int) map[int]string {
	started := make(map[int]string)
	id := strconv.Itoa(pid)
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		other, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || other == pid {
			continue
		}
		if fields, err := statOf(other); err == nil && (fields[parentField] == id || fields[sessionField] == id) {
			started[other] = fields[startField]
		}
	}
	return started
}

// running reports whether a process has not ended, nor has another one its id. A zombie
// has ended, though nobody may be there to ask for its status.
func running(pid int, began string) bool {
	fields, err := statOf(pid)
	return err == nil && fields[stateField] != "Z" && fields[startField] == began
}

// Fields behind the name of the program, which may have spaces in it. In proc(5) they
// are the fields 3, 4, 6 and 22.
const (
	stateField   = 0
	parentField  = 1
	sessionField = 3
	startField   = 19
)

// statOf returns what /proc/…/stat has behind the name.
func statOf(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	text := string(b)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) <= startField {
		return nil, fmt.Errorf("/proc/%d/stat: %q", pid, text)
	}
	return fields, nil
}

// startTime returns when a process began, in the system's own unit.
func startTime(pid int) (string, error) {
	fields, err := statOf(pid)
	if err != nil {
		return "", err
	}
	return fields[startField], nil
}
