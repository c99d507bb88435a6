package source

import (
	"strings"
	"testing"
	"testing/fstest"
)

const file = `package p

// A comment is left out.
type T struct{}

func (t *T) M() int {
	// This too is no line of code.

	return 1
}

func F() { println() }

func G() {
	F()
	F()
}
`

var files = fstest.MapFS{"p.go": &fstest.MapFile{Data: []byte(file)}}

func TestCut(t *testing.T) {
	c := Cut(files, "p.go", func(line string) bool { return strings.Contains(line, "return") }, "T", "T.M", "G")
	want := "type T struct{}\n\nfunc (t *T) M() int {\n\t// This too is no line of code.\n\n\treturn 1\n}\n\nfunc G() {\n\tF()\n\tF()\n}\n"
	if c.Text() != want || c.Count != 3 {
		t.Errorf("got %d lines of code, want 3, in\n%s\nwant\n%s", c.Count, c.Text(), want)
	}
	for _, line := range c.Lines {
		if line.Guilty != (line.Text == "\treturn 1") {
			t.Errorf("%q is guilty: %v", line.Text, line.Guilty)
		}
	}
}

func TestWhatIsNotThereIsAPanic(t *testing.T) {
	for name, cut := range map[string]func(){
		"a function": func() { Cut(files, "p.go", nil, "F", "Missing") },
		"a file":     func() { Cut(files, "q.go", nil, "F") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s that is not there was cut out", name)
				}
			}()
			cut()
		}()
	}
}
