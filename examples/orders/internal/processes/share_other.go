//go:build !unix

package processes

import (
	"errors"
	"net"
	"os"
)

func share(*net.TCPListener) (*os.File, error) {
	return nil, errors.New("-processes: a process of this system cannot inherit a listener")
}
