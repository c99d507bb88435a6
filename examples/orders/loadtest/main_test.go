//go:build linux

package loadtest

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq/internal/servers"
)

var (
	long = flag.Bool("long", false, "the load test's long round, and what a service with transactions by hand makes of it")
	cost = flag.Bool("cost", false, "measures the service beside one with transactions by hand")
)

func TestMain(m *testing.M) {
	if os.Getenv(byHandVariable) != "" {
		os.Exit(runByHand())
	}
	flag.Parse()
	var err error
	if folder, err = os.MkdirTemp("", "orders-load-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := servers.Run(m)
	if err := os.RemoveAll(folder); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// folder is for the service's program. It is removed after the tests.
var folder string

// build builds the service once. For the long round it has the race detector if this test has it: SQLite is some ten
// times slower with it.
var build = sync.OnceValues(func() (bin string, err error) {
	bin = filepath.Join(folder, "orders")
	cmd := exec.Command("go", "build", "-race="+strconv.FormatBool(race && *long), "-o", bin, ".")
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return bin, nil
})

// orders returns the command that starts the service.
func orders(t testing.TB, stock int, args ...string) *exec.Cmd {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"-addr", "127.0.0.1:0", "-processes", strconv.Itoa(processCount), "-stock", strconv.Itoa(stock)}, args...)
	return exec.Command(bin, args...)
}
