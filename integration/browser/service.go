package browser

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
)

// Build builds an example, the folder examples/name of a checkout at repo, and returns the program.
func Build(repo, name, folder string) (program string, err error) {
	program, err = filepath.Abs(filepath.Join(folder, name))
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", program, ".")
	cmd.Dir = filepath.Join(repo, "examples", name)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build of examples/%s: %w\n%s", name, err, out)
	}
	return program, nil
}

// Service is an example that runs.
type Service struct {
	URL string

	cmd *exec.Cmd
	log lockedText // what it has written to standard error
}

// Run starts a program with a port of its own, in a folder of its own, and returns when it says where it listens.
func Run(program, folder string, args ...string) (*Service, error) {
	s := &Service{cmd: exec.Command(program, append([]string{"-addr", "127.0.0.1:0"}, args...)...)}
	s.cmd.Dir = folder
	s.cmd.Stderr = &s.log
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(stdout)
	for s.URL == "" && lines.Scan() {
		s.URL = regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindString(lines.Text())
	}
	if s.URL == "" {
		err := fmt.Errorf("%s has not said where it listens: %s", filepath.Base(program), s.log.String())
		return nil, errors.Join(err, s.cmd.Process.Kill(), s.cmd.Wait())
	}
	go func() { _, _ = io.Copy(io.Discard, stdout) }()
	return s, nil
}

// Stop ends it as somebody in front of a terminal does.
func (s *Service) Stop() error {
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	if err := s.cmd.Wait(); err != nil {
		return fmt.Errorf("%s, after an interrupt: %w: %s", filepath.Base(s.cmd.Path), err, s.log.String())
	}
	return nil
}

// lockedText may be written and read at the same time.
type lockedText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
