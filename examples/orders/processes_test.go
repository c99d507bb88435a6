//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sqlreq/sqlreq/internal/servers"
)

// build builds the program once for all tests.
var build = sync.OnceValues(func() (_ string, err error) {
	if buildDir, err = os.MkdirTemp("", "orders"); err != nil {
		return "", err
	}
	bin := filepath.Join(buildDir, "orders")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return bin, nil
})

// program is the program as a user starts it.
type program struct {
	*service
	cmd    *exec.Cmd
	stderr *output
}

// output is what a program writes, while it runs.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func start(t *testing.T, args ...string) *program {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{service: &service{t: t}, stderr: &output{}}
	p.cmd = exec.Command(bin, append([]string{"-addr", "127.0.0.1:0"}, args...)...)
	p.cmd.Dir, p.cmd.Stderr = t.TempDir(), p.stderr
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if p.url = regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindString(line); p.url == "" {
		t.Fatalf("the first line names no URL: %q, %v\n%s", line, err, p.stderr)
	}
	go io.Copy(io.Discard, stdout)
	return p
}

// children are the processes that the program has started and that run.
func (p *program) children() (pids []int) {
	p.t.Helper()
	// Each thread has a list of those that it has started.
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.cmd.Process.Pid))
	if err != nil || len(tasks) == 0 {
		p.t.Fatalf("no lists of children: %v", err)
	}
	for _, task := range tasks {
		out, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range strings.Fields(string(out)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				p.t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// interrupt ends the program like a terminal does, by a signal to each of its processes.
func (p *program) interrupt() {
	p.t.Helper()
	for _, pid := range append(p.children(), p.cmd.Process.Pid) {
		if err := syscall.Kill(pid, syscall.SIGINT); err != nil {
			p.t.Error(err)
		}
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("after an interrupt: %v, want exit code 0\n%s", err, p.stderr)
	}
	if _, err := http.Get(p.url); err == nil {
		p.t.Error("somebody still answers")
	}
}

// try sends an order until it has an answer: a process may be killed meanwhile.
func (p *program) try(key string) error {
	req, err := http.NewRequest("POST", p.url+"/acme/api/orders", strings.NewReader(`{"product": 1, "quantity": 1}`))
	if err != nil {
		return err
	}
	req.Header.Set("Idempotency-Key", key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusCreated {
		return fmt.Errorf("%d %s", res.StatusCode, body)
	}
	return nil
}

// done waits until that many jobs are done.
func (p *program) done(jobs int) {
	p.t.Helper()
	eventually(p.t, "all jobs done", func() bool { return strings.Count(p.get("/admin/").body, ">completed<") == jobs })
}

// Three processes serve behind one port. One is killed, others go on, and a new one takes its place; an interrupt ends all.
func TestProcesses(t *testing.T) {
	for _, database := range []string{"SQLite", "PostgreSQL"} {
		t.Run(database, func(t *testing.T) {
			args := []string{"-processes", "3", "-stock", "1000"}
			if database == "PostgreSQL" {
				args = append(args, "-dsn", newDatabase(t, servers.SharedPostgres(t).DSN))
			}
			p := start(t, args...)
			eventually(t, "an order", func() bool { return p.try("first") == nil })
			eventually(t, "three processes", func() bool { return len(p.children()) == 3 })
			for i := range 2 {
				// A job of a process that is killed is given to another one after 20 s and more: that is not waited for here.
				p.done(1 + 20*i)
				victim := p.children()[i]
				if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				for j := range 20 {
					key := fmt.Sprint("k-", i, "-", j)
					eventually(t, "an order", func() bool { return p.try(key) == nil })
				}
				eventually(t, "a new process", func() bool {
					now := p.children()
					return len(now) == 3 && now[0] != victim && now[1] != victim && now[2] != victim
				})
			}
			stats := p.stats()
			equal(t, "orders", stats.Orders, 41)
			equal(t, "jobs", stats.Jobs, 41)
			equal(t, "stock and sold", stats.Stock+stats.Sold, stats.Initial)
			p.done(41)
			children := p.children()
			p.interrupt()
			for _, pid := range children {
				if err := syscall.Kill(pid, 0); err == nil {
					t.Errorf("process %d has survived its parent", pid)
				}
			}
		})
	}
}

// Children end with a parent that was killed.
func TestProcessesWithoutParent(t *testing.T) {
	p := start(t, "-processes", "2")
	eventually(t, "an order", func() bool { return p.try("first") == nil })
	eventually(t, "two processes", func() bool { return len(p.children()) == 2 }) // one may answer before the other is there
	p.cmd.Process.Kill()
	p.cmd.Wait()
	eventually(t, "the end of the children", func() bool {
		_, err := http.Get(p.url)
		return err != nil
	})
}

// The errors of a start say which flag helps.
func TestStartErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	missing := filepath.Join(t.TempDir(), "no", "such", "folder.db")
	for name, c := range map[string]struct {
		config config
		want   string
	}{
		"port taken":        {config{addr: taken.Addr().String(), db: ":memory:", processes: 1}, "another address by -addr"},
		"memory":            {config{addr: "127.0.0.1:0", db: ":memory:", processes: 3}, "-db"},
		"no process":        {config{addr: "127.0.0.1:0", db: ":memory:"}, "-processes"},
		"reader":            {config{addr: "127.0.0.1:0", db: ":memory:", processes: 1, reader: "postgres://"}, "-dsn"},
		"no folder":         {config{addr: "127.0.0.1:0", db: missing, processes: 1}, missing},
		"no folder, parent": {config{addr: "127.0.0.1:0", db: missing, processes: 2}, missing},
		"traces":            {config{addr: "127.0.0.1:0", db: ":memory:", processes: 1, otel: "nowhere"}, "-otel"},
	} {
		if err := run(context.Background(), io.Discard, c.config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want an error that names %s", name, err, c.want)
		}
	}
}
