//go:build !linux

package servers

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// accountOf says that no server is started here, before any of these is called.

func (u *account) session() *syscall.SysProcAttr { return nil }

func groupsFor(string) ([]uint32, error) { return nil, errors.ErrUnsupported }

func claim(int) (io.Closer, error) { return io.NopCloser(nil), nil }

func lockFile(*os.File) error { return errors.ErrUnsupported }

func startTime(int) (string, error) { return "", errors.ErrUnsupported }

func (p *process) kill() {}
