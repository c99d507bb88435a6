// Package structure checks that the code is laid out as ARCHITECTURE.md says:
// who imports whom, where locks are taken, how long files and functions are.
// The rules are the tables at the top of this file; the tests apply them to the
// module, so that go test ./... says what is out of place and what to do about it.
package structure

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

const (
	fileLines     = 650 // of a file that is no test
	testFileLines = 900
	funcLines     = 60 // from func to the closing brace
)

// rootFiles are all Go files of the root package.
var rootFiles = []string{"doc.go", "sqlreq.go", "keys.go", "nested.go", "handlers.go", "example_test.go", "sqlreq_test.go"}

// layers says what of the module a package may import, besides the packages
// below itself. A package that is not in the table may import any but the root.
var layers = map[string][]string{
	"internal/turn":    {},
	"internal/sqlerr":  {},
	"internal/dialect": {},
	"internal/reason":  {},
	"internal/repeat":  {"internal/dialect"},
	"internal/replay":  {},
	"internal/held":    {},
	"internal/txn":     {"internal/turn", "internal/sqlerr", "internal/dialect", "internal/reason"},
	"internal/unit":    {"internal/txn", "internal/turn", "internal/sqlerr", "internal/reason", "internal/repeat"},
	"internal/retry":   {"internal/replay", "internal/sqlerr"},
	"idempotency":      {"internal/repeat"},
}

// withoutHTTP are the packages that know no requests and no responses.
var withoutHTTP = []string{"internal/unit", "internal/txn", "internal/turn", "internal/sqlerr", "internal/dialect", "internal/reason", "internal/repeat", "internal/retry"}

// testSupport are the packages below internal that only tests use; they may import the root.
var testSupport = []string{"internal/sqlreqtest", "internal/guarantees", "internal/modeltest"}

// lockMethods are those of sync.Mutex, sync.RWMutex and turn.Turn.
var lockMethods = []string{"Lock", "Unlock", "TryLock", "RLock", "RUnlock", "TryRLock"}

// Check returns what is out of place in a module, each with what to do about it.
// Modules below this one, testdata and hidden folders are not looked at.
func Check(module fs.FS) ([]string, error) {
	name, err := modulePath(module)
	if err != nil {
		return nil, err
	}
	c := checker{module: name, files: token.NewFileSet()}
	err = fs.WalkDir(module, ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skip(module, file)
		}
		if path.Ext(file) != ".go" {
			return nil
		}
		src, err := fs.ReadFile(module, file)
		if err != nil {
			return err
		}
		return c.check(file, src)
	})
	return c.found, err
}

func modulePath(module fs.FS) (string, error) {
	mod, err := fs.ReadFile(module, "go.mod")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mod)) {
		if name, ok := strings.CutPrefix(line, "module "); ok {
			return strings.TrimSpace(name), nil
		}
	}
	return "", fmt.Errorf("go.mod has no line that begins with module")
}

// skip returns fs.SkipDir for a folder that is none of the module's.
func skip(module fs.FS, dir string) error {
	if dir == "." {
		return nil
	}
	base := path.Base(dir)
	_, err := fs.Stat(module, path.Join(dir, "go.mod"))
	if err == nil || base == "testdata" || base[0] == '.' || base[0] == '_' {
		return fs.SkipDir
	}
	return nil
}

type checker struct {
	module string
	files  *token.FileSet
	found  []string
}

// report takes down what is out of place; pos is token.NoPos for a whole file.
func (c *checker) report(file string, pos token.Pos, format string, args ...any) {
	if pos != token.NoPos {
		file += ":" + strconv.Itoa(c.files.Position(pos).Line)
	}
	c.found = append(c.found, file+" "+fmt.Sprintf(format, args...))
}

func (c *checker) check(file string, src []byte) error {
	dir, base := path.Split(file)
	if dir == "" && !slices.Contains(rootFiles, base) {
		c.report(file, token.NoPos, "is a Go file of the root, which has only %s; put it into one of these, or into a package below internal/", strings.Join(rootFiles, ", "))
	}
	test := strings.HasSuffix(file, "_test.go")
	c.checkFileLength(file, bytes.Count(src, []byte("\n")), test)
	if test {
		return nil
	}
	parsed, err := parser.ParseFile(c.files, file, src, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	c.checkImports(file, parsed)
	c.checkFuncs(file, parsed)
	if dir == "" {
		c.checkLocks(file, parsed)
	}
	return nil
}

func (c *checker) checkFileLength(file string, lines int, test bool) {
	if !test && lines > fileLines {
		c.report(file, token.NoPos, "has %d lines, at most %d are allowed; split it by job into files that are named after the job", lines, fileLines)
	}
	if test && lines > testFileLines && path.Base(file) != "example_test.go" {
		c.report(file, token.NoPos, "has %d lines, at most %d are allowed; move tests into a file that is named after what they guard", lines, testFileLines)
	}
}

func (c *checker) checkFuncs(file string, parsed *ast.File) {
	ast.Inspect(parsed, func(n ast.Node) bool {
		name := "a function"
		switch f := n.(type) {
		case *ast.FuncDecl:
			name = f.Name.Name
		case *ast.FuncLit:
		default:
			return true
		}
		lines := c.files.Position(n.End()).Line - c.files.Position(n.Pos()).Line + 1
		if lines > funcLines {
			c.report(file, n.Pos(), "has %s of %d lines, at most %d are allowed; make a part of it a function with a name of its own", name, lines, funcLines)
		}
		return lines > funcLines // a function inside is no longer than the one around it
	})
}

func (c *checker) checkImports(file string, parsed *ast.File) {
	pkg := path.Dir(file)
	for _, spec := range parsed.Imports {
		name, _ := strconv.Unquote(spec.Path.Value) // it has been parsed
		if (name == "net/http" || strings.HasPrefix(name, "net/http/")) && isOf(withoutHTTP, pkg) {
			c.report(file, spec.Pos(), "imports %s, but %s knows no requests; let the root tell it what it needs, by an argument or a small interface", name, pkg)
		}
		if name == c.module && strings.HasPrefix(pkg, "internal/") && !isOf(testSupport, pkg) {
			c.report(file, spec.Pos(), "imports the root, but imports go downward only; take what it needs as an argument or a small interface (a package for tests only is to be named in testSupport, in internal/structure)")
		}
		if below, ok := strings.CutPrefix(name, c.module+"/"); ok {
			c.checkLayer(file, pkg, spec.Pos(), below)
		}
	}
}

// checkLayer checks that pkg may import the package of the module named imported.
func (c *checker) checkLayer(file, pkg string, pos token.Pos, imported string) {
	for layer, allowed := range layers {
		if !isOf([]string{layer}, pkg) || isOf([]string{layer}, imported) || slices.Contains(allowed, imported) {
			continue
		}
		may := "nothing of the module"
		if len(allowed) > 0 {
			may = "only " + strings.Join(allowed, ", ") + " of the module"
		}
		c.report(file, pos, "imports %s, but imports go downward only and %s may import %s; move what it needs down, or take it as an argument or a small interface", imported, layer, may)
	}
}

// isOf reports whether pkg is one of the packages, or below one.
func isOf(packages []string, pkg string) bool {
	return slices.ContainsFunc(packages, func(p string) bool { return pkg == p || strings.HasPrefix(pkg, p+"/") })
}

// checkLocks reports each lock that is taken or given back, or is a field, in a file of the root.
func (c *checker) checkLocks(file string, parsed *ast.File) {
	ast.Inspect(parsed, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, _ := s.X.(*ast.Ident)
		switch {
		case slices.Contains(lockMethods, s.Sel.Name):
			c.report(file, s.Sel.Pos(), "takes or gives back a lock (%s); put the state that it guards into internal/unit or internal/txn", s.Sel.Name)
		case x != nil && x.Name == syncName(parsed) && (s.Sel.Name == "Mutex" || s.Sel.Name == "RWMutex"):
			c.report(file, s.Pos(), "has a sync.%s; put the state that it guards into internal/unit or internal/txn", s.Sel.Name)
		}
		return true
	})
}

// syncName returns by which name a file knows the package sync, "" if it doesn't.
func syncName(parsed *ast.File) string {
	for _, spec := range parsed.Imports {
		switch {
		case spec.Path.Value != `"sync"`:
		case spec.Name != nil:
			return spec.Name.Name
		default:
			return "sync"
		}
	}
	return ""
}
