// Package adaptertest holds what the adapters' tests share: the list of situations that
// each of them has a test for, and, for web frameworks, these tests themselves.
package adaptertest

import (
	"os"
	"strings"
	"testing"
)

// Cells are the situations that every adapter has a test for.
var Cells = []string{
	"ok", "4xx returned", "4xx written", "5xx", "late error", "panic", "failed COMMIT", "client gone",
	"stream over HoldLimit", "Retry", "nested", "once",
}

// mayMiss is how many of them may have no test.
const mayMiss = 2

// Run runs a test for each cell, and fails if one is missing. A cell that cannot exist
// has no test but a reason, which the README.md of the adapter has word by word.
func Run(t *testing.T, tests map[string]func(*testing.T), missing map[string]string) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, cell := range Cells {
		test, ok := tests[cell]
		reason := missing[cell]
		switch {
		case ok && reason == "":
			found++
			t.Run(cell, test)
		case ok || reason == "":
			t.Errorf("cell %q: got a test %t and the reason %q, want one of them", cell, ok, reason)
		case !strings.Contains(string(readme), reason):
			t.Errorf("cell %q is missing; README.md does not say %q", cell, reason)
		}
	}
	if found != len(tests) || found < len(Cells)-mayMiss {
		t.Errorf("got %d tests, %d of them of cells, want at least %d of cells and no other", len(tests), found, len(Cells)-mayMiss)
	}
}
