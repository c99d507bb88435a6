// Package servers starts database servers for tests, benchmarks and examples: as
// ordinary processes, on loopback, in temporary folders and on free ports.
// They are stopped when the process that started them ends, however that happens. It
// uses no database driver: what says that a server is ready is a program of its package.
//
// Start… returns a server or an error. Shared… is for tests that leave a server as
// it is: the first of them starts it, and [Run] stops it. New… starts one of the
// test's own, which ends with the test.
//
// A file with one setting a line configures every server. Settings that are given
// come last in it and win over those of this package.
//
// Servers are started on Linux only. Elsewhere the DSNs of the environment can be used.
package servers

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// Variables of the environment.
const (
	// Require turns the skip of a test whose server is not installed into a failure, when it is not empty.
	Require = "SQLREQ_REQUIRE_SERVERS"
	// PostgresDSN, StandbyDSN and MariaDBDSN replace a server that would be started.
	PostgresDSN = "SQLREQ_POSTGRES_DSN"
	StandbyDSN  = "SQLREQ_STANDBY_DSN"
	MariaDBDSN  = "SQLREQ_MARIADB_DSN"
	// GaleraDSNs are those of the nodes, with spaces between them.
	GaleraDSNs = "SQLREQ_GALERA_DSNS"
)

// Run runs the tests and stops what they have started.
func Run(m *testing.M) int {
	code := m.Run()
	if err := Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "servers:", err)
		return max(code, 1)
	}
	return code
}

// errMissing says what is not installed.
type errMissing struct{ what, packages string }

func (e *errMissing) Error() string {
	return fmt.Sprintf("%s is not installed: apt-get install %s", e.what, e.packages)
}

// need ends the test if the server is not there: it is skipped if all that is
// missing is a package, and [Require] does not forbid that.
func need(t testing.TB, err error) {
	t.Helper()
	var missing *errMissing
	switch {
	case err == nil:
	case errors.As(err, &missing) && os.Getenv(Require) == "":
		t.Skip(err)
	default:
		t.Fatal(err)
	}
}

// once starts something once for all tests.
type once[T any] struct {
	sync.Once
	value T
	err   error
}

func (o *once[T]) get(t testing.TB, start func() (T, error)) T {
	t.Helper()
	o.Do(func() { o.value, o.err = start() })
	need(t, o.err)
	return o.value
}

// The ports of servers are below those that the system gives to clients, on Linux from
// 32768 on: the port of a stopped server must not be taken by a client before the
// server is started again.
const firstPort, endPort = 10000, 32768

// claims are the ports that this process has given to its servers: no process is given them again while it lives.
var claims struct {
	sync.Mutex
	held []io.Closer
}

// ports returns n free ports. They are free when it returns; nothing listens on them.
func ports(n int) ([]int, error) {
	claims.Lock()
	defer claims.Unlock()
	var found []int
	var err error
	for tries := 0; len(found) < n; tries++ {
		if tries == 1000+n {
			return nil, fmt.Errorf("no free port found: %w", err)
		}
		port := firstPort + rand.IntN(endPort-firstPort)
		var held io.Closer
		if held, err = claim(port); err != nil {
			continue
		}
		claims.held = append(claims.held, held)
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
			continue
		}
		defer l.Close()
		found = append(found, port)
	}
	return found, nil
}

// program returns the path of a program in one of the folders, in /usr/sbin or in
// PATH, of the highest version where a pattern matches several.
func program(name string, folders ...string) (string, error) {
	for _, pattern := range append(folders, "/usr/sbin") {
		matches, err := filepath.Glob(filepath.Join(pattern, name))
		if err != nil {
			return "", err
		}
		if len(matches) > 0 {
			return slices.Max(matches), nil
		}
	}
	return exec.LookPath(name)
}
