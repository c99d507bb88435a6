package doctest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// guides are the papers for users, whose code has to work.
var guides = []string{"README.md", "docs/*.md"}

// block is a fenced block of a paper.
type block struct {
	file, language, text string
	line                 int
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.file, b.line) }

// TestBlocksAreCompiled: each block of Go in the papers for users is a part of a Go
// file of the repository, token by token, so that it is compiled, looked at by vet
// and, where the file's tests say so, run. Comments and spaces may differ. A block
// that needs a framework is a part of a file of the module that has the framework.
func TestBlocksAreCompiled(t *testing.T) {
	repo := os.DirFS(root)
	sources := goSources(t, repo)
	n := 0
	for _, b := range blocksOf(t, repo, guides) {
		switch {
		case b.file == "docs/contract.md": // the list of names: TestContractListsThePackage
		case b.language == "go":
			n++
			if fault := findBlock(b, sources); fault != nil {
				t.Error(fault)
			}
		case b.language == "console" && b.file != "README.md":
			t.Errorf("%v: what a console shows is tested for README.md only, in examples/quickstart", b)
		case !slices.Contains([]string{"", "sh", "sql", "console"}, b.language):
			t.Errorf("%v: nobody tests blocks of %q", b, b.language)
		}
	}
	if n < 15 {
		t.Errorf("found %d blocks of Go: the test reads them wrongly", n)
	}
}

// TestBlocksThatAreNotCompiledAreFound shows that check red, and where it is not.
func TestBlocksThatAreNotCompiledAreFound(t *testing.T) {
	repo := fstest.MapFS{
		"a/a.go":          {Data: []byte("package a\n\nfunc f() {\n\tx := 1 // one\n\ty := \"z := 3\"\n\t// w := 4\n\t_, _ = x, y\n}\n")},
		"a/testdata/b.go": {Data: []byte("package b\n\nvar v = 5\n")},
		"ignored.go":      {Data: []byte("//go:build ignore\n\npackage c\n\nvar u = 6\n")},
	}
	sources := goSources(t, repo)
	for text, want := range map[string]bool{
		"x := 1":                    true,
		"x  :=  1 // another":       true,
		"x := 1\ny := \"z := 3\"\n": true,
		"x := 2":                    false,
		"z := 3":                    false, // in a string
		"w := 4":                    false, // in a comment
		"var v = 5":                 false, // not compiled
		"var u = 6":                 false,
		":= 1":                      true,
		"x":                         true,
		"":                          false,
	} {
		if fault := findBlock(block{file: "x.md", text: text, language: "go"}, sources); (fault == nil) != want {
			t.Errorf("%q: %v", text, fault)
		}
	}
}

// TestLinesAreCompiled: each call, literal and assignment in a sentence, list item or
// cell of README.md is a part of a Go file as well, of an adapter's example for instance.
func TestLinesAreCompiled(t *testing.T) {
	repo := os.DirFS(root)
	text, err := read(repo, "README.md")
	if err != nil {
		t.Fatal(err)
	}
	sources := goSources(t, repo)
	n := 0
	for _, b := range codeInLines("README.md", text) {
		n++
		if fault := findBlock(b, sources); fault != nil {
			t.Error(fault)
		}
	}
	if n < 15 {
		t.Errorf("found %d pieces of code in lines: the test reads them wrongly", n)
	}
}

// codeInLines returns the inline code of a paper that is more than a name.
func codeInLines(file, text string) (all []block) {
	for line := range strings.Lines(withoutBlocks(text)) {
		for _, code := range inlineCode.FindAllString(line, -1) {
			if code = strings.Trim(code, "`"); strings.ContainsAny(code, "({=") && !strings.HasPrefix(code, "go ") {
				all = append(all, block{file: file, language: "go", text: code})
			}
		}
	}
	return all
}

func TestCodeInLinesIsFound(t *testing.T) {
	got := codeInLines("x.md", "A `name`, `f(x)` and `go run -C x=y`.\n```go\n`g(x)`\n```\n| `T{}` | `a := b` |\n")
	if fmt.Sprint(got) != "[x.md:0 x.md:0 x.md:0]" || got[0].text != "f(x)" || got[1].text != "T{}" || got[2].text != "a := b" {
		t.Errorf("got %+v", got)
	}
}

// blocksOf returns the fenced blocks of the papers that the patterns match.
func blocksOf(t *testing.T, repo fs.FS, patterns []string) (all []block) {
	t.Helper()
	for _, pattern := range patterns {
		files, err := fs.Glob(repo, pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := read(repo, file)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, blocksIn(file, text)...)
		}
	}
	return all
}

func blocksIn(file, text string) (all []block) {
	var b *block
	n := 0
	for line := range strings.Lines(text) {
		n++
		info, fence := strings.CutPrefix(strings.TrimRight(line, "\n"), "```")
		switch {
		case fence && b == nil:
			b = &block{file: file, language: info, line: n}
		case fence:
			all, b = append(all, *b), nil
		case b != nil:
			b.text += line
		}
	}
	return all
}

// goSources returns the tokens of each Go file that the go command compiles.
func goSources(t *testing.T, repo fs.FS) map[string]string {
	t.Helper()
	sources := make(map[string]string)
	err := fs.WalkDir(repo, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (name != "." && strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		case path.Ext(name) != ".go":
			return nil
		}
		text, err := read(repo, name)
		if err == nil && !strings.HasPrefix(text, "//go:build ignore") {
			sources[name] = tokens(text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sources
}

// tokens returns the tokens of Go code, without comments, one a line.
func tokens(text string) string {
	var s scanner.Scanner
	files := token.NewFileSet()
	s.Init(files.AddFile("", -1, len(text)), []byte(text), nil, 0)
	var b strings.Builder
	b.WriteByte('\x00')
	for {
		_, tok, literal := s.Scan()
		switch {
		case tok == token.EOF:
			return b.String()
		case tok == token.SEMICOLON || literal == "":
			literal = tok.String()
		}
		b.WriteString(literal + "\x00")
	}
}

func findBlock(b block, sources map[string]string) error {
	want := strings.TrimSuffix(tokens(b.text), ";\x00")
	if len(want) > 1 {
		for _, source := range sources {
			if strings.Contains(source, want) {
				return nil
			}
		}
	}
	return fmt.Errorf("%v: no Go file has this block, so that nobody compiles it; put it into internal/doctest/snippets_test.go, or into the module that has its imports:\n%s", b, b.text)
}

// TestContractListsThePackage: the names and signatures in docs/contract.md are those
// of the package, all of them.
func TestContractListsThePackage(t *testing.T) {
	repo := os.DirFS(root)
	listed := make(map[string]string)
	for _, b := range blocksOf(t, repo, []string{"docs/contract.md"}) {
		if b.language == "go" {
			declarations(t, "package p\n"+b.text, listed)
		}
	}
	real := make(map[string]string)
	files, err := fs.Glob(repo, "*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := read(repo, file)
		if err != nil {
			t.Fatal(err)
		}
		declarations(t, text, real)
	}
	// The contract says what these are of in a comment, or in a sentence: "Each is also a method of Key".
	again := regexp.MustCompile(`^(Key\.(Tx|BeginTx|DB|Commit|Rollback|Savepoint|Begun|BeforeCommit|AfterCommit|AfterRollback)|(StatusError|CommitError)\.(Error|Unwrap)|\w+Func\.ServeHTTP|Outcome\.String)$`)
	for name, want := range real {
		if got, ok := listed[name]; got != want && (ok || !again.MatchString(name)) {
			t.Errorf("%s: docs/contract.md has %q, the package %q", name, got, want)
		}
	}
	for name := range listed {
		if real[name] == "" {
			t.Errorf("docs/contract.md has %s, the package has not", name)
		}
	}
	if len(listed) < 50 {
		t.Errorf("%d names in docs/contract.md: the test reads them wrongly", len(listed))
	}
}

// declarations notes what a source text exports: a function by its type, a struct by
// its fields, a variable or constant by its name.
func declarations(t *testing.T, text string, into map[string]string) {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, "", text, 0)
	if err != nil {
		t.Fatal(err)
	}
	show := func(n any) string {
		var b strings.Builder
		if err := printer.Fprint(&b, files, n); err != nil {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(b.String()), " ")
	}
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			name := d.Name.Name
			if d.Recv != nil {
				name = strings.TrimPrefix(show(d.Recv.List[0].Type), "*") + "." + name
			}
			if ast.IsExported(d.Name.Name) && ast.IsExported(name) {
				into[name] = show(withoutNames(d.Type))
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.ValueSpec:
					for _, name := range spec.Names {
						if name.IsExported() {
							into[name.Name] = d.Tok.String()
						}
					}
				case *ast.TypeSpec:
					structure, ok := spec.Type.(*ast.StructType)
					switch {
					case !spec.Name.IsExported():
					case !ok:
						into[spec.Name.Name] = show(spec.Type)
					default:
						into[spec.Name.Name] = "struct"
						for _, field := range structure.Fields.List {
							for _, name := range field.Names {
								if name.IsExported() {
									into[spec.Name.Name+"."+name.Name] = show(field.Type)
								}
							}
						}
					}
				}
			}
		}
	}
}

// withoutNames is a signature whose parameters have types only: their names are not a
// promise.
func withoutNames(f *ast.FuncType) *ast.FuncType {
	types := func(list *ast.FieldList) *ast.FieldList {
		short := &ast.FieldList{}
		if list == nil {
			return short
		}
		for _, field := range list.List {
			for range max(len(field.Names), 1) {
				short.List = append(short.List, &ast.Field{Type: field.Type})
			}
		}
		return short
	}
	return &ast.FuncType{Params: types(f.Params), Results: types(f.Results)}
}
