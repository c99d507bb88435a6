package browser

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq/internal/servers"
)

// chromium is one browser for all tests. Each test has windows of its own in it.
var chromium struct {
	sync.Once
	browser *Browser
	err     error
}

func TestMain(m *testing.M) {
	code := servers.Run(m)
	if chromium.browser != nil {
		chromium.browser.Close()
	}
	for _, program := range programs.built {
		_ = os.RemoveAll(filepath.Dir(program))
	}
	os.Exit(code)
}

// open opens a window, which is closed at the end of the test.
func open(t *testing.T, v View) *Page {
	t.Helper()
	chromium.Do(func() { chromium.browser, chromium.err = Start(context.Background()) })
	if errors.Is(chromium.err, ErrNotInstalled) && os.Getenv(servers.Require) == "" {
		t.Skip(chromium.err)
	}
	if chromium.err != nil {
		t.Fatal(chromium.err)
	}
	p, err := chromium.browser.NewPage(v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// programs are the examples that are built, once for all tests.
var programs struct {
	sync.Mutex
	built map[string]string
}

// start builds an example, if no other test has, and runs it until the end of the test.
func start(t *testing.T, name string, args ...string) *Service {
	t.Helper()
	programs.Lock()
	program := programs.built[name]
	if program == "" {
		folder, err := os.MkdirTemp("", "sqlreq-browser-")
		if err == nil {
			program, err = Build("../..", name, folder)
		}
		if err != nil {
			programs.Unlock()
			t.Fatal(err)
		}
		if programs.built == nil {
			programs.built = map[string]string{}
		}
		programs.built[name] = program
	}
	programs.Unlock()
	s, err := Run(program, t.TempDir(), args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// crawl checks every page of a service. Those that are named must be among them.
func crawl(t *testing.T, s *Service, named ...string) {
	t.Helper()
	paths, found, err := Crawl(open(t, Views[0]), s.URL, "../..")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d pages: %q", len(paths), paths)
	for _, path := range named {
		if !slices.Contains(paths, path) {
			t.Errorf("no link leads to %s", path)
		}
	}
	for path, problems := range found {
		for _, problem := range problems {
			t.Errorf("%s: %s", path, problem)
		}
	}
	if log := s.log.String(); strings.Contains(log, "ERROR") || strings.Contains(log, "panic") {
		t.Errorf("the service was only looked at, and has logged\n%s", log)
	}
}
