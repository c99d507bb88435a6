//go:build linux

package processes

import (
	"net"
	"syscall"
	"testing"
)

// To hand the listener to a child leaves it as it is for the others: accept must not block a thread in any of them.
func TestSharedListenerStaysNonblocking(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	file, err := share(listener.(*net.TCPListener))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd := file.Fd() // what package os does to start a process
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	if flags&syscall.O_NONBLOCK == 0 {
		t.Error("the listener is a blocking one now, for every process that has it")
	}
	onExec, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFD, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	if onExec&syscall.FD_CLOEXEC == 0 {
		t.Error("every process that is started gets the listener")
	}
}
