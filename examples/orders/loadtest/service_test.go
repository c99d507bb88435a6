//go:build linux

package loadtest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait.
const patience = 60 * time.Second

// processCount is how many of them serve behind one port.
const processCount = 3

// service is a running service: a process that starts others, which serve, and replaces those that end.
type service struct {
	t    testing.TB
	url  string
	cmd  *exec.Cmd
	log  *output       // of all its processes
	done chan struct{} // closed when the first process has ended
}

// output keeps what is written, by several goroutines.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

// tail returns the last part of it.
func (o *output) tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	b := o.b.Bytes()
	return string(b[max(0, len(b)-8000):])
}

func (o *output) contains(text string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Contains(o.b.Bytes(), []byte(text))
}

// startService starts a service and returns when all its processes are there and one answers. It ends with the test.
func startService(t testing.TB, cmd *exec.Cmd) *service {
	t.Helper()
	s := &service{t: t, cmd: cmd, log: new(output), done: make(chan struct{})}
	cmd.Stderr = s.log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for s.url == "" && lines.Scan() {
		s.url = regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindString(lines.Text())
	}
	go func() {
		defer close(s.done)
		_, _ = io.Copy(io.Discard, stdout)
		_ = cmd.Wait() // after the last read of its output
	}()
	t.Cleanup(s.end)
	if s.url == "" {
		s.end()
		t.Fatalf("no URL was printed\n%s", s.log.tail())
	}
	s.eventually("all processes are there, and one answers", func() bool {
		res, err := http.Get(s.url + "/healthz")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK && len(s.children()) == processCount
	})
	return s
}

// eventually polls what only other processes know.
func (s *service) eventually(what string, ok func() bool) {
	s.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: not within %v\n%s", what, patience, s.log.tail())
		}
	}
}

// stop ends the service as its user does, and fails the test if that is no clean end.
func (s *service) stop() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		s.t.Errorf("the service has ended before: %v\n%s", err, s.log.tail())
		return
	}
	select {
	case <-s.done:
		if !s.cmd.ProcessState.Success() {
			s.t.Errorf("after an interrupt: %v\n%s", s.cmd.ProcessState, s.log.tail())
		}
	case <-time.After(patience):
		s.t.Errorf("it still runs %v after an interrupt\n%s", patience, s.log.tail())
	}
	if s.log.contains("DATA RACE") || s.log.contains("panic: ") {
		s.t.Errorf("a race or a panic in the service\n%s", s.log.tail())
	}
}

// end kills all processes.
func (s *service) end() {
	_ = s.cmd.Process.Signal(syscall.SIGSTOP) // so that it starts no more
	children := s.children()
	_ = s.cmd.Process.Kill()
	for _, c := range children {
		c.kill()
	}
	<-s.done
}

// child is a process that serves. Its id may belong to another one when it has ended, which handle tells.
type child struct {
	pid    int
	handle *os.Process
}

// kill kills it (SIGKILL).
func (c child) kill() { _ = c.handle.Kill() }

// children returns the processes that serve.
func (s *service) children() (children []child) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		handle, err := os.FindProcess(pid) // before it is asked whose child it is
		if err != nil {
			continue
		}
		if parent, err := parentOf(pid); err == nil && parent == s.cmd.Process.Pid {
			children = append(children, child{pid, handle})
		} else {
			_ = handle.Release()
		}
	}
	slices.SortFunc(children, func(a, b child) int { return a.pid - b.pid })
	return children
}

// parentOf returns the id of the parent of a process that runs.
func parentOf(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	text := string(b)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // behind the name, which may have spaces in it
	if len(fields) < 2 || fields[0] == "Z" {
		return 0, fmt.Errorf("process %d has ended", pid)
	}
	return strconv.Atoi(fields[1])
}
