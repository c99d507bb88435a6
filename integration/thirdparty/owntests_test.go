package thirdparty

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// ownTests are libraries whose own tests run behind Middleware, with a transaction open (testdata/behind.go.txt).
var ownTests = []struct {
	module string
	behind string // the file that testdata/behind.go.txt becomes
	name   string // of its package
	edits  []edit
	skip   []string // tests that cannot pass, or have no handler in Middleware and take long
}{
	{
		module: "connectrpc.com/connect", behind: "internal/memhttp/behind.go", name: "memhttp",
		edits: []edit{
			{"internal/memhttp/memhttp.go", `(Handler: +)handler,`, "${1}behind(handler),"},
			// How long they wait for what should come at once. A busy machine may need longer than their own.
			{"internal/memhttp/memhttp.go", `5 \* time\.Second`, "time.Minute"},
			{"*_test.go", `time\.After\(time\.Second\)`, "time.After(time.Minute)"},
			{"internal/memhttp/memhttp.go", `if err := s\.server\.Shutdown\(ctx\)`, closesIdle + "$0"},
		},
		skip: []string{
			"TestClientDeadlineHandling",                 // its server is not that of the file above; it gives all processors work for 20 s
			"TestBlockUntilResponseReadyRespectsContext", // it has no server, and must end within 200 ms beside all the others
		},
	},
	{
		module: "github.com/gorilla/handlers", behind: "behind_test.go", name: "handlers",
		edits: []edit{{"*_test.go", `([A-Za-z_.]+(\([a-z]*\))?)\.ServeHTTP\(`, "behind($1).ServeHTTP("}},
		skip: []string{
			"TestHeaderWrites",                          // asks a server in the internet
			"TestCompressHandlerDoesntInventInterfaces", // the writer always has Hijack, which says if it is not supported
			"TestHTTPMethodOverride",                    // what a handler assigns to fields of its request is not seen outside
		},
	},
}

// closesIdle is what Shutdown does meanwhile. Net/http's waits for ever for an HTTP/2 connection without TLS that the
// server takes up a moment later: nobody uses it, and the client has closed those that are idle before.
const closesIdle = `over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(10 * time.Millisecond):
				s.Client().CloseIdleConnections()
			}
		}
	}()
	`

// edit is a change of the copy: the first one of a library puts its handlers in Middleware.
type edit struct{ files, find, with string }

// TestOwnTests runs them in a copy of the module.
func TestOwnTests(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	behind, err := os.ReadFile(filepath.Join("testdata", "behind.go.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, own := range ownTests {
		t.Run(own.module, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "copy")
			if err := os.CopyFS(dir, os.DirFS(strings.TrimSpace(goCommand(t, ".", "list", "-m", "-f", "{{.Dir}}", own.module)))); err != nil {
				t.Fatal(err)
			}
			for _, e := range own.edits {
				files, err := filepath.Glob(filepath.Join(dir, filepath.FromSlash(e.files)))
				if err != nil {
					t.Fatal(err)
				}
				changes := 0
				for _, file := range files {
					changes += change(t, file, regexp.MustCompile(e.find), e.with)
				}
				if changes == 0 {
					t.Fatalf("nothing to be changed in %s: %s", e.files, e.find)
				}
			}
			src := strings.Replace(string(behind), "package PACKAGE", "package "+own.name, 1)
			if err := os.WriteFile(filepath.Join(dir, filepath.FromSlash(own.behind)), []byte(src), 0o600); err != nil {
				t.Fatal(err)
			}
			goCommand(t, dir, "mod", "edit", "-go=1.25.0", "-require=github.com/sqlreq/sqlreq@v0.0.0", "-replace=github.com/sqlreq/sqlreq="+root)
			args := []string{"test", "-mod=mod", "-vet=off", "-count=1", "-v", "."} // with -race connect's take minutes
			if len(own.skip) > 0 {
				args = append(args, "-skip", "^("+strings.Join(own.skip, "|")+")$")
			}
			passed := strings.Count(goCommand(t, dir, args...), "\n--- PASS")
			t.Logf("%d tests passed, Attempts %d", passed, retry.Attempts)
			if passed < 10 {
				t.Errorf("%d tests passed, want more", passed)
			}
		})
	}
}

func change(t *testing.T, file string, find *regexp.Regexp, with string) (changes int) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, find.ReplaceAll(b, []byte(with)), 0o600); err != nil {
		t.Fatal(err)
	}
	return len(find.FindAll(b, -1))
}

func goCommand(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "SQLREQ_ATTEMPTS="+fmt.Sprint(retry.Attempts))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
