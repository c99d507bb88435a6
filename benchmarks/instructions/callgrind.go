package main

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// selfCosts reads callgrind's format (https://valgrind.org/docs/manual/cl-format.html): the costs of each function
// without those that it calls.
func selfCosts(r io.Reader) (map[string]int64, error) {
	costs := make(map[string]int64)
	names := make(map[string]string) // a name is written once, with a number; from then on as the number
	nameOf := func(s string) string {
		id, name, defines := strings.Cut(s, " ")
		if defines {
			names[id] = name
		}
		return names[id]
	}
	function, called := "", false
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "fn="):
			function = nameOf(line[len("fn="):])
		case strings.HasPrefix(line, "cfn="):
			nameOf(line[len("cfn="):])
		case strings.HasPrefix(line, "calls="):
			called = true // the next line has the costs of what is called
		case line == "" || strings.IndexByte("0123456789+-*", line[0]) < 0:
		case called:
			called = false
		default:
			_, cost, _ := strings.Cut(line, " ")
			n, err := strconv.ParseInt(cost, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("a line of costs: %q", line)
			}
			costs[function] += n
		}
	}
	return costs, lines.Err()
}

// parts are where the instructions of a request go; a function belongs to the first part that has a beginning of its name.
var parts = []struct {
	title  string
	begins []string
}{
	{"the handler, and the promises that it keeps by hand", []string{"github.com/sqlreq/sqlreq/benchmarks."}},
	{"sqlreq: what is held of the answer", []string{"github.com/sqlreq/sqlreq/internal/held."}},
	{"sqlreq: the transaction", []string{"github.com/sqlreq/sqlreq/internal/txn.", "github.com/sqlreq/sqlreq/internal/turn."}},
	{"sqlreq: the unit of work, its end and its hooks", []string{"github.com/sqlreq/sqlreq/internal/unit."}},
	{"sqlreq: the middleware, and the look-up of a key", []string{"github.com/sqlreq/sqlreq"}},
	{"contexts", []string{"context."}},
	{"database/sql and sync", []string{"database/sql.", "sync.", "sync/"}},
	{"memory", []string{"runtime.malloc", "runtime.newobject", "runtime.newarray", "runtime.make", "runtime.memclr", "runtime.nextFree", "runtime.(*mspan)", "runtime.(*mcache)", "runtime.(*mcentral)", "runtime.(*mheap)", "runtime.(*page", "runtime.heap", "runtime.publicationBarrier"}},
	{"the rest of the runtime: goroutines, maps, channels", []string{"runtime.", "internal/runtime"}},
	{rest, nil},
}

const rest = "the driver and SQLite"

func partOf(function string) string {
	for _, p := range parts {
		for _, begin := range p.begins {
			if strings.HasPrefix(function, begin) {
				return p.title
			}
		}
	}
	return rest
}
