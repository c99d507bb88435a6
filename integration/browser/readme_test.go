package browser

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of the checks in README.md")

// TestReadme compares the table of README.md with the checks and with the pages that show them red.
func TestReadme(t *testing.T) {
	const head = "| check | what holds | pages that show it red |\n| --- | --- | --- |\n"
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), head)
	if !ok {
		t.Fatalf("README.md has no table that begins with\n%s", head)
	}
	_, after, _ := strings.Cut(rest, "\n\n")
	var table strings.Builder
	for _, check := range Checks {
		var pages []string
		for _, b := range brokenPages {
			if b.check == check.Name {
				pages = append(pages, b.name)
			}
		}
		fmt.Fprintf(&table, "| %s | %s | %s |\n", check.Name, check.Says, strings.Join(pages, ", "))
	}
	want := before + head + table.String() + "\n" + after
	if *update {
		if err := os.WriteFile("README.md", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(text) != want {
		t.Error("README.md has another table: go test -run TestReadme . -update")
	}
}
