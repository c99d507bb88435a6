package main

import (
	"maps"
	"strings"
	"testing"
)

func TestSelfCosts(t *testing.T) {
	const file = `# callgrind format
events: Ir
summary: 999

fl=(1) a.go
fn=(1) context.WithCancel
0x10 10
+3 5
cfi=(2) b.go
cfn=(2) runtime.mallocgc
calls=2 +40
* 600
-1 1
fn=(2)
0x7 70
fi=(3) c.go
* 3
fn=(1)
0x40 4
fn=(3) modernc.org/sqlite/lib._sqlite3Step
0x1 1000
`
	got, err := selfCosts(strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[uint64]int64{"context.WithCancel": {0x10: 10, 0x13: 5, 0x12: 1, 0x40: 4}, "runtime.mallocgc": {7: 73}, "modernc.org/sqlite/lib._sqlite3Step": {1: 1000}}
	if !maps.EqualFunc(got, want, maps.Equal) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, line := range []string{"1 x", "+y 1", "-y 1", "0xz 1"} {
		if _, err := selfCosts(strings.NewReader("fn=(1) f\n" + line + "\n")); err == nil {
			t.Errorf("%q was read", line)
		}
	}
}

func TestDifference(t *testing.T) {
	few := map[string]map[uint64]int64{"context.WithCancel": {0x40: 2, 0x44: 2, 0x80: 1}}
	many := map[string]map[uint64]int64{"context.WithCancel": {0x40: 12, 0x44: 12, 0x80: 6, 0xc0: 6}, "runtime.init": {0x100: 5}, "sync.x": {0x100: 10}, "sync.y": {0x13f: 10}}
	got := difference(few, many, 10)
	for part, want := range map[string]struct {
		instructions float64
		lines        int
	}{"contexts": {3.1, 2}, "database/sql and sync": {2, 1}, "the rest of the runtime: goroutines, maps, channels": {0.5, 0}} {
		if n := len(got.lines[part]); n != want.lines || got.instructions[part] != want.instructions {
			t.Errorf("%s: got %v instructions and %d lines, want %v", part, got.instructions[part], n, want)
		}
	}
}

func TestPartOf(t *testing.T) {
	for function, want := range map[string]string{
		"github.com/sqlreq/sqlreq/benchmarks.(*handmade).begin":   "the handler, and the promises that it keeps by hand",
		"github.com/sqlreq/sqlreq/internal/held.(*Writer).accept": "sqlreq: what is held of the answer",
		"github.com/sqlreq/sqlreq.(*middleware).ServeHTTP":        "sqlreq: the middleware, and the look-up of a key",
		"github.com/sqlreq/sqlreq/internal/dialect.MayCommit":     "sqlreq: the middleware, and the look-up of a key",
		"context.(*cancelCtx).Done":                               "contexts",
		"runtime.mallocgcSmallScanNoHeader":                       "memory",
		"internal/runtime/maps.(*Map).putSlotSmall":               "the rest of the runtime: goroutines, maps, channels",
		"modernc.org/sqlite/lib._sqlite3Step":                     rest,
		"sync/atomic.(*Value).Store":                              "database/sql and sync",
	} {
		if got := partOf(function); got != want {
			t.Errorf("%s: got %q, want %q", function, got, want)
		}
	}
}
