package enginetable

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq/integration/conformance"
)

// What is not run has a cell for each capability, of the three words, and a source.
func TestNotRun(t *testing.T) {
	for _, e := range NotRun {
		if len(e.Cells) != len(conformance.Capabilities) || !strings.HasPrefix(e.Source, "https://") {
			t.Errorf("%+v", e)
		}
		for _, cell := range e.Cells {
			if !slices.Contains([]string{once, read, none}, cell) {
				t.Errorf("%s: the cell %q", e.Name, cell)
			}
		}
	}
}

// A line that is wrong, missing or too many is found, and update writes what is right, nothing else.
func TestCompare(t *testing.T) {
	file := filepath.Join(t.TempDir(), "databases.md")
	write := func(table string) {
		t.Helper()
		if err := os.WriteFile(file, []byte("# Head\n"+begin+table+end+"Foot\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	all := func(update bool) error {
		for _, name := range run {
			if err := Compare(file, name, conformance.Report{}, update); err != nil {
				return err
			}
		}
		return CompareNotRun(file, update)
	}
	write("")
	if err := all(false); err == nil {
		t.Error("an empty table is no error")
	}
	if err := all(true); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(file)
	_, table, _, err := cut(file)
	if err != nil || !strings.HasPrefix(string(text), "# Head\n"+begin) || !strings.HasSuffix(string(text), end+"Foot\n") {
		t.Fatalf("%v: written was\n%s", err, text)
	}
	if err := all(false); err != nil {
		t.Errorf("what was written is another: %v", err)
	}
	lines := slices.Collect(strings.Lines(table))
	for name, broken := range map[string]string{
		"a line less":     strings.Replace(table, lines[5], "", 1),
		"a line twice":    table + lines[5],
		"another cell":    strings.Replace(table, "failed", "run in CI", 1),
		"another order":   strings.Join(append(slices.Clone(lines[:2]), lines[3], lines[2])[0:], "") + strings.Join(lines[4:], ""),
		"another head":    strings.Replace(table, "savepoints", "points", 1),
		"an engine more":  table + conformance.Line("Access", "yes"),
		"another of read": strings.Replace(table, "[read]", "[guessed]", 1),
	} {
		write(broken)
		if err := all(false); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := Compare(file, "Access", conformance.Report{}, true); err == nil {
		t.Error("an engine that has no place: no error")
	}
	if err := os.WriteFile(file, []byte("nothing"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := all(true); err == nil {
		t.Error("no markers: no error")
	}
	dir := t.TempDir()
	for _, c := range []struct{ update, fails bool }{{false, true}, {true, false}, {false, false}} {
		if err := CompareFound(dir, "A, b/c", conformance.Report{}, c.update); (err != nil) != c.fails {
			t.Errorf("%+v: got %v", c, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "A-b-c.md"), []byte("other"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := CompareFound(dir, "A, b/c", conformance.Report{}, false); err == nil {
		t.Error("another print: no error")
	}
	if err := Compare(filepath.Join(t.TempDir(), "none"), run[0], conformance.Report{}, false); err == nil {
		t.Error("no file: no error")
	}
}
