// Package processes runs several processes of one program behind one port. The parent opens the listener, and starts
// children that inherit it: the kernel hands each connection to one of those that accept. One that dies is started
// again, and its connections are all that is lost. It works on Unix; elsewhere a process cannot inherit a listener.
package processes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"time"
)

// inherited is set in a child, where the listener is the file after stdin, stdout and stderr.
const (
	inherited   = "ORDERS_INHERITED_LISTENER"
	inheritedFD = 3
)

// IsChild says whether this process was started by Run.
func IsChild() bool { return os.Getenv(inherited) != "" }

// Inherit returns a child's listener, and a context that ends when the parent wants the child to end, or has died itself:
// its end of a pipe, the child's stdin, is closed then.
//
// A terminal sends an interrupt to all processes of a program. Children leave it to their parent.
func Inherit(ctx context.Context) (context.Context, net.Listener, error) {
	signal.Ignore(os.Interrupt)
	file := os.NewFile(inheritedFD, "listener")
	listener, err := net.FileListener(file)
	if err != nil {
		return ctx, nil, fmt.Errorf("the inherited listener: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		io.Copy(io.Discard, os.Stdin)
	}()
	return ctx, listener, file.Close()
}

// Run keeps n children running until ctx ends, and returns when the last one has ended.
func Run(ctx context.Context, n int, listener *net.TCPListener) error {
	file, err := share(listener)
	if err != nil {
		return err
	}
	defer file.Close()
	// Each child accepts on a descriptor of its own. With the parent's open as well, connections that no child takes any
	// more would wait for ever after the end, instead of being refused.
	if err := listener.Close(); err != nil {
		return err
	}
	path, err := os.Executable()
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			for pause := restart; ctx.Err() == nil; {
				began := time.Now()
				err := run(ctx, path, file)
				if ctx.Err() != nil {
					return
				}
				slog.Error("orders: a process has ended, and is started again", "error", err)
				if pause = min(2*pause, restartMost); time.Since(began) > restartMost {
					pause = restart
				}
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
		})
	}
	all.Wait()
	return nil
}

// One that dies again and again is started less and less often.
const (
	restart     = 50 * time.Millisecond
	restartMost = 5 * time.Second
)

// run runs one child. It asks it to end when ctx ends, and waits for it.
func run(ctx context.Context, path string, listener *os.File) error {
	cmd := exec.Command(path, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inherited+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{listener}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, pipe.Close())
	}
	slog.Info("orders: a process has started", "pid", cmd.Process.Pid)
	defer context.AfterFunc(ctx, func() { pipe.Close() })()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("process %d: %w", cmd.Process.Pid, err)
	}
	return fmt.Errorf("process %d: it ended by itself", cmd.Process.Pid)
}
