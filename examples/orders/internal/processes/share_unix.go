//go:build unix

package processes

import (
	"errors"
	"net"
	"os"
	"syscall"
)

// share makes a file of a listener that children can inherit.
//
// The one that listener.File makes does not do: it is turned into a blocking one whenever a child gets it, and all
// processes share that flag. Each start would make the others wait inside of accept, where closing the listener does not
// reach them. A file that os.NewFile makes of a descriptor stays as it is.
func share(listener *net.TCPListener) (*os.File, error) {
	raw, err := listener.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if e := raw.Control(func(of uintptr) {
		syscall.ForkLock.RLock() // no child that is started right now gets it by chance
		defer syscall.ForkLock.RUnlock()
		if fd, err = syscall.Dup(int(of)); err == nil {
			syscall.CloseOnExec(fd)
		}
	}); e != nil || err != nil {
		return nil, errors.Join(e, os.NewSyscallError("dup", err))
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}
