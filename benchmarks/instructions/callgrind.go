package main

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// selfCosts reads callgrind's format (https://valgrind.org/docs/manual/cl-format.html): the costs of each function at
// each address, without those of what it calls.
func selfCosts(r io.Reader) (map[string]map[uint64]int64, error) {
	costs := make(map[string]map[uint64]int64)
	names := make(map[string]string) // a name is written once, with a number; from then on as the number
	nameOf := func(s string) string {
		id, name, defines := strings.Cut(s, " ")
		if defines {
			names[id] = name
		}
		return names[id]
	}
	function, called, address := "", false, uint64(0)
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
		default:
			position, cost, _ := strings.Cut(line, " ")
			var err error
			if address, err = moved(address, position); err != nil {
				return nil, fmt.Errorf("a line of costs: %q", line)
			}
			if called {
				called = false
				continue
			}
			n, err := strconv.ParseInt(cost, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("a line of costs: %q", line)
			}
			if costs[function] == nil {
				costs[function] = make(map[uint64]int64)
			}
			costs[function][address] += n
		}
	}
	return costs, lines.Err()
}

// moved returns the address of a position, which is an address or says how far it is from the last one.
func moved(last uint64, position string) (uint64, error) {
	switch position[0] {
	case '*':
		return last, nil
	case '+':
		n, err := strconv.ParseUint(position[1:], 10, 64)
		return last + n, err
	case '-':
		n, err := strconv.ParseUint(position[1:], 10, 64)
		return last - n, err
	}
	return strconv.ParseUint(position, 0, 64)
}

// ofParts are the costs of a request by part.
type ofParts struct {
	instructions map[string]float64
	lines        map[string]map[uint64]bool // of code, each of lineBytes
}

// lineBytes is the size in bytes of the pieces in which processors fetch code and keep it.
const lineBytes = 64

// difference returns the costs of a request: b is of n requests more than a. A line counts if most requests go through it.
func difference(a, b map[string]map[uint64]int64, n int) ofParts {
	all := ofParts{make(map[string]float64), make(map[string]map[uint64]bool)}
	for function, costs := range b {
		part := partOf(function)
		if all.lines[part] == nil {
			all.lines[part] = make(map[uint64]bool)
		}
		for address, cost := range costs {
			cost -= a[function][address]
			all.instructions[part] += float64(cost) / float64(n)
			if 2*cost > int64(n) {
				all.lines[part][address/lineBytes] = true
			}
		}
	}
	return all
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
