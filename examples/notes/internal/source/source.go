// Package source cuts declarations out of Go files, so that a page shows the code that is compiled.
package source

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"slices"
	"strings"
)

// Line is one line of code on the page.
type Line struct {
	Text   string
	Guilty bool // it is what goes wrong
}

// Code is a piece of source.
type Code struct {
	Lines []Line
	Count int // lines of code in bodies of functions: without comments, signatures and types
}

// Text is the code as it is in the file.
func (c Code) Text() string {
	var b strings.Builder
	for _, l := range c.Lines {
		b.WriteString(l.Text + "\n")
	}
	return b.String()
}

// Cut returns the declarations of a file that are named, without their comments, in the order of the file. A method
// is named like "statusWriter.WriteHeader". What is not there is a panic: the files are part of the program.
func Cut(files fs.FS, file string, guilty func(line string) bool, names ...string) Code {
	src, err := fs.ReadFile(files, file)
	if err != nil {
		panic(err)
	}
	set := token.NewFileSet()
	parsed, err := parser.ParseFile(set, file, src, 0)
	if err != nil {
		panic(err)
	}
	at := func(p token.Pos) int { return set.Position(p).Offset }
	var c Code
	missing := len(names)
	for _, decl := range parsed.Decls {
		name, body := declared(decl)
		if !slices.Contains(names, name) {
			continue
		}
		missing--
		if len(c.Lines) > 0 {
			c.Lines = append(c.Lines, Line{})
		}
		for text := range strings.Lines(string(src[at(decl.Pos()):at(decl.End())])) {
			text = strings.TrimRight(text, "\n")
			c.Lines = append(c.Lines, Line{Text: text, Guilty: guilty != nil && guilty(text)})
		}
		if body != nil {
			c.Count += countLines(string(src[at(body.Lbrace)+1 : at(body.Rbrace)]))
		}
	}
	if missing != 0 {
		panic(file + ": not all of " + strings.Join(names, ", ") + " are there")
	}
	return c
}

func declared(decl ast.Decl) (name string, body *ast.BlockStmt) {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		name = d.Name.Name
		if d.Recv != nil {
			t := d.Recv.List[0].Type
			if star, ok := t.(*ast.StarExpr); ok {
				t = star.X
			}
			name = t.(*ast.Ident).Name + "." + name
		}
		return name, d.Body
	case *ast.GenDecl:
		if spec, ok := d.Specs[0].(*ast.TypeSpec); ok {
			return spec.Name.Name, nil
		}
	}
	return "", nil
}

func countLines(body string) (n int) {
	for text := range strings.Lines(body) {
		if text = strings.TrimSpace(text); text != "" && !strings.HasPrefix(text, "//") {
			n++
		}
	}
	return n
}
