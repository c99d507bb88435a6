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
28 10
+3 5
cfi=(2) b.go
cfn=(2) runtime.mallocgc
calls=2 +40
* 600
-1 1
fn=(2)
7 70
fi=(3) c.go
* 3
fn=(1)
30 4
fn=(3) modernc.org/sqlite/lib._sqlite3Step
1 1000
`
	got, err := selfCosts(strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int64{"context.WithCancel": 20, "runtime.mallocgc": 73, "modernc.org/sqlite/lib._sqlite3Step": 1000}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := selfCosts(strings.NewReader("fn=(1) f\n1 x\n")); err == nil {
		t.Error("a line without a number was read")
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
