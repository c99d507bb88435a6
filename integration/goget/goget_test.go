package goget

import (
	"archive/zip"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	module  = "github.com/sqlreq/sqlreq"
	version = "v0.1.0"
	goLine  = "1.25.0"
)

// adapters are all of adapters/: how a program uses one, and what it requires directly
// beside sqlreq and the driver of its tests.
var adapters = map[string]struct {
	requires []string
	program  string // the body of a func(reg *sqlreq.Registry)
}{
	"gin":     {[]string{"github.com/gin-gonic/gin"}, `_ = sqlreqgin.Wrap(reg.Middleware)`},
	"echo4":   {[]string{"github.com/labstack/echo/v4"}, `_ = sqlreqecho4.Wrap(reg.Middleware)`},
	"echo5":   {[]string{"github.com/labstack/echo/v5"}, `_ = sqlreqecho5.Wrap(reg.Middleware)`},
	"gorm":    {[]string{"gorm.io/gorm"}, `_ = sqlreqgorm.DB`},
	"sqlx":    {[]string{"github.com/jmoiron/sqlx"}, `_ = sqlreqsqlx.New`},
	"connect": {[]string{"connectrpc.com/connect"}, `_ = sqlreqconnect.Interceptor()`},
	"grpc":    {[]string{"google.golang.org/grpc"}, `_, _ = sqlreqgrpc.UnaryServerInterceptor(reg), sqlreqgrpc.StreamServerInterceptor(reg)`},
	"otel": {[]string{"go.opentelemetry.io/otel", "go.opentelemetry.io/otel/metric", "go.opentelemetry.io/otel/sdk",
		"go.opentelemetry.io/otel/sdk/metric", "go.opentelemetry.io/otel/trace"}, `reg.Observe = sqlreqotel.Observe(nil, nil)`},
	withItsDriver: {[]string{"github.com/jackc/pgx/v5"}, `_, _ = sqlreqpgx.DefaultKey, reg`},
}

const (
	driver        = "modernc.org/sqlite" // of the tests
	withItsDriver = "pgx"                // which is one itself
)

const root = "../.."

// names returns the folders of adapters/ that are modules.
func names(t *testing.T) (all []string) {
	mods, err := filepath.Glob(filepath.Join(root, "adapters", "*", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for _, mod := range mods {
		all = append(all, filepath.Base(filepath.Dir(mod)))
	}
	return all
}

func run(t *testing.T, dir string, env []string, command ...string) string {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v in %s: %v\n%s", command, dir, err, out)
	}
	return string(out)
}

// TestRequirements compares what the adapters require directly, and their version of Go.
func TestRequirements(t *testing.T) {
	for _, name := range names(t) {
		adapter, ok := adapters[name]
		if !ok {
			t.Errorf("adapters/%s is not in the table of this test", name)
			continue
		}
		var mod struct {
			Module  struct{ Path string }
			Go      string
			Require []struct {
				Path, Version string
				Indirect      bool
			}
			Replace []struct{ Old, New struct{ Path string } }
		}
		if err := json.Unmarshal([]byte(run(t, filepath.Join(root, "adapters", name), nil, "go", "mod", "edit", "-json")), &mod); err != nil {
			t.Fatal(err)
		}
		var direct []string
		for _, r := range mod.Require {
			if !r.Indirect {
				direct = append(direct, r.Path)
			}
			if r.Path == module && r.Version != version {
				t.Errorf("%s requires sqlreq %s, want %s", name, r.Version, version)
			}
		}
		want := append([]string{module}, adapter.requires...)
		if name != withItsDriver {
			want = append(want, driver)
		}
		slices.Sort(want)
		slices.Sort(direct)
		if !slices.Equal(direct, want) || mod.Go != goLine || mod.Module.Path != module+"/adapters/"+name {
			t.Errorf("%s: got go %s, module %s, requirements %q, want %q", name, mod.Go, mod.Module.Path, direct, want)
		}
		if len(mod.Replace) != 1 || mod.Replace[0].Old.Path != module || mod.Replace[0].New.Path != "../.." {
			t.Errorf("%s: got replace %v, want sqlreq by the tree alone", name, mod.Replace)
		}
	}
	for name := range adapters {
		if !slices.Contains(names(t), name) {
			t.Errorf("adapters/%s is missing", name)
		}
	}
}

// TestGoGet makes of the tree what a module proxy serves after a release, and builds for
// each adapter a new program that has nothing but that: go mod tidy, go build.
func TestGoGet(t *testing.T) {
	proxy := t.TempDir()
	publish(t, proxy, module, root)
	for _, name := range names(t) {
		publish(t, proxy, module+"/adapters/"+name, filepath.Join(root, "adapters", name))
	}
	cache := strings.TrimSpace(run(t, ".", nil, "go", "env", "GOMODCACHE"))
	further := strings.TrimSpace(run(t, ".", nil, "go", "env", "GOPROXY"))
	env := []string{
		"GOPROXY=" + fileURL(proxy) + "," + fileURL(filepath.Join(cache, "cache", "download")) + "," + further,
		"GOMODCACHE=" + t.TempDir(), // the real one must not keep this release
		"GOSUMDB=off", "GOWORK=off", "GOFLAGS=-modcacherw -buildvcs=false", "GOTOOLCHAIN=local",
	}
	for name, adapter := range adapters {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "go.mod"), "module example.org/program\n\ngo "+goLine+"\n")
			write(t, filepath.Join(dir, "main.go"), fmt.Sprintf("package main\n\nimport (\n\t%q\n\t%q\n)\n\nfunc main() { use(nil) }\n\nfunc use(reg *sqlreq.Registry) {\n\tif reg == nil {\n\t\treturn\n\t}\n\t%s\n}\n",
				module, module+"/adapters/"+name, adapter.program))
			run(t, dir, env, "go", "mod", "tidy")
			run(t, dir, env, "go", "build", "-o", os.DevNull, ".")
			mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{module + " " + version, module + "/adapters/" + name + " " + version, "\ngo " + goLine + "\n"} {
				if !strings.Contains(string(mod), want) {
					t.Errorf("go.mod has no %q:\n%s", want, mod)
				}
			}
		})
	}
}

func fileURL(path string) string { return "file://" + filepath.ToSlash(path) }

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
}

// publish writes the files that the GOPROXY protocol asks for (go.dev/ref/mod#goproxy-protocol).
func publish(t *testing.T, proxy, path, dir string) {
	t.Helper()
	at := filepath.Join(proxy, filepath.FromSlash(path), "@v")
	if err := os.MkdirAll(at, 0o777); err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(at, "list"), version+"\n")
	write(t, filepath.Join(at, version+".info"), `{"Version":"`+version+`","Time":"2026-01-01T00:00:00Z"}`)
	write(t, filepath.Join(at, version+".mod"), string(mod))
	archive, err := os.Create(filepath.Join(at, version+".zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	z := zip.NewWriter(archive)
	err = filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || file == dir {
			return err
		}
		if d.IsDir() {
			_, nested := os.Stat(filepath.Join(file, "go.mod"))
			if nested == nil || d.Name()[0] == '.' {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || d.Name()[0] == '.' {
			return nil
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		src, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		w, err := z.Create(path + "@" + version + "/" + filepath.ToSlash(rel))
		if err != nil {
			return err
		}
		_, err = w.Write(src)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
}
