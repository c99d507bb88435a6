//go:build unix

package benchmarks

import "syscall"

// smallWindow is a net.Dialer.Control: the receive buffer bounds the window
// only if it is set before the connection is made.
func smallWindow(_, _ string, c syscall.RawConn) error {
	var set error
	err := c.Control(func(fd uintptr) {
		set = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, socketBuffer)
	})
	if err != nil {
		return err
	}
	return set
}
