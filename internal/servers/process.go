package servers

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// readyWithin bounds the wait for one server. Only one that never comes takes as long.
const readyWithin = 3 * time.Minute

// server is what all servers have in common. Its methods are not to be called by
// several goroutines at once.
type server struct {
	account *account
	dir     string // belongs to the account
	port    int
	argv    []string
	quit    syscall.Signal // asks the server to end in good order
	cleanup syscall.Signal // ends it when the tests have ended: SIGQUIT, or SIGKILL to its session

	ready   func(context.Context) error // succeeds when it answers
	process *process                    // nil before the first start
}

// newServer returns a server that has a folder and a port, and still has to be
// configured and started.
func newServer(name, account string) (*server, error) {
	u, err := accountOf(account)
	if err != nil {
		return nil, err
	}
	dir, err := u.folder(name)
	if err != nil {
		return nil, err
	}
	free, err := ports(1)
	if err != nil {
		return nil, err
	}
	return &server{account: u, dir: dir, port: free[0], quit: syscall.SIGTERM, cleanup: syscall.SIGKILL}, nil
}

// Own reports whether the server was started here, so that it may be stopped.
func (s *server) Own() bool { return s != nil }

// Start starts a server again that was stopped or killed, on the port that it had,
// and waits until it answers.
func (s *server) Start() error {
	p, err := startProcess(s.account, s.cleanup, filepath.Join(s.dir, "log"), s.argv...)
	if err != nil {
		return err
	}
	s.process = p
	if err := p.waitReady(s.ready); err != nil {
		p.kill()
		return err
	}
	return nil
}

// Stop stops the server in good order and waits for its end.
func (s *server) Stop() error {
	if err := s.process.cmd.Process.Signal(s.quit); err != nil {
		return err
	}
	timeout := time.NewTimer(readyWithin)
	defer timeout.Stop()
	select {
	case <-s.process.done:
		return nil
	case <-timeout.C:
		s.process.kill()
		return fmt.Errorf("%s had to be killed\n%s", s.argv[0], s.process.tail())
	}
}

// Kill kills all processes of the server (SIGKILL) and waits for their end.
func (s *server) Kill() { s.process.kill() }

// remove kills the server and removes its folder.
func (s *server) remove() error {
	if s.process != nil {
		s.process.kill()
	}
	return os.RemoveAll(s.dir)
}

// process is a running server.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
}

// startProcess starts a program as the account, in a session of its own. It ends with the tests.
func startProcess(u *account, cleanup syscall.Signal, log string, argv ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = filepath.Dir(log)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = environ(cmd.Dir)
	cmd.SysProcAttr = u.session()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	// Before its status is asked for: until then no other process can have its id.
	err = endsWithTests(cmd.Process.Pid, cleanup)
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	if err != nil {
		p.kill()
		return nil, err
	}
	return p, nil
}

// environ returns the environment of a server's programs. What they store for a while is
// in its folder: that of the tests may be one where the account may not.
func environ(dir string) []string { return append(os.Environ(), "TMPDIR="+dir) }

// waitReady polls check until it succeeds.
func (p *process) waitReady(check func(context.Context) error) error {
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
			return fmt.Errorf("%s ended: %w\n%s", p.cmd.Path, err, p.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w\n%s", p.cmd.Path, err, p.tail())
		}
	}
}

// tail returns the end of what the server has logged.
func (p *process) tail() string {
	b, _ := os.ReadFile(p.log)
	return string(b[max(0, len(b)-4000):])
}

// client runs a client program and returns what it printed.
func client(ctx context.Context, argv ...string) (string, error) {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, text)
	}
	return text, nil
}
