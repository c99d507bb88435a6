package drivers

import (
	"context"
	"database/sql"

	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// What a request's end is on an engine: what the client was told, which hooks ran, and what is stored, over Key ×
// *sql.Tx × Guard × Savepoint × Retry. Each cell is held against what is stored, and against testdata, which has been
// read line by line.

// run runs a statement.
type run func(ctx context.Context, query string) error

func byKey(ctx context.Context, query string) error {
	_, err := sqlreqtest.Main.ExecContext(ctx, query)
	return err
}

func byTx(ctx context.Context, query string) error {
	tx, err := sqlreqtest.Main.Tx(ctx)
	if err == nil {
		_, err = tx.ExecContext(ctx, query)
	}
	return err
}

// world is a database of a cell's own.
type world struct {
	db     *sql.DB
	insert func(n int) string
	stored func() string // what was inserted, with spaces between
	events []event
}

// event is what happens in the first attempt, after an INSERT.
type event struct {
	name   string
	happen func(ctx context.Context, run run) error
	fails  bool // the error is tried in two ways: returned, or dealt with
}

// statement is an event of one statement.
func statement(name, query string, fails bool) event {
	return event{name, func(ctx context.Context, run run) error { return run(ctx, query) }, fails}
}

// quiet is an event that is no statement.
func quiet(name string, f func()) event {
	return event{name, func(context.Context, run) error { f(); return nil }, false}
}

// common are the events of every engine.
func common() []event {
	return []event{
		quiet("nothing", func() {}),
		{"a 422", func(context.Context, run) error { return sqlreq.Errorf(422, "no") }, true},
	}
}

// engine is what cells are run on.
type engine struct {
	name       string
	file       string // of testdata
	open       func(t *testing.T) world
	guards     bool
	savepoints bool
	cells      int            // how many there are
	lies       map[string]int // cells in which a hook or a status says what is not so, by event: what only Guard can tell, or nothing
}

// result is what became of a request.
type result struct {
	code   int
	hooks  string // of each attempt
	stored string
}

func (r result) String() string {
	return fmt.Sprintf("%d %s [%s]", r.code, cmpOr(r.hooks, "-"), r.stored)
}

func cmpOr(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// cell is one of the combinations.
type cell struct {
	way                     string
	guard, savepoint, retry bool
	dealtWith               bool
}

// flags are the cell's, as they stand in testdata.
func (c cell) flags() string {
	s := ""
	for _, f := range []struct {
		on     bool
		letter string
	}{{c.guard, "G"}, {c.savepoint, "S"}, {c.retry, "R"}} {
		if f.on {
			s += f.letter
		} else {
			s += "."
		}
	}
	return s
}

func (c cell) run() run {
	if c.way == "Key" {
		return byKey
	}
	return byTx
}

// ask serves a request in the cell, in which the n-th event happens.
func (c cell) ask(t *testing.T, e engine, n int) result {
	w := e.open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: w.db, Guard: c.guard})
	if c.retry {
		reg.Retry = sqlreqtest.Retries(3)
	}
	var log sqlreqtest.Recorder
	log.Watch(reg)
	attempt := 0
	a := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) error {
		attempt++
		log.Hooks(t, r.Context(), sqlreqtest.Main, fmt.Sprint(attempt))
		err := c.run()(r.Context(), w.insert(attempt))
		if err == nil && attempt == 1 {
			err = c.happen(t, r.Context(), e, w, w.events[n])
		}
		if err == nil {
			rw.WriteHeader(201)
		}
		return err
	})), httptest.NewRequest("POST", "/", nil))
	sqlreqtest.Until(func() bool { return w.db.Stats().InUse == 0 })
	return result{a.Code, log.Words(), w.stored()}
}

// happen lets the event happen, in a Savepoint perhaps, and deals with its error, perhaps.
func (c cell) happen(t *testing.T, ctx context.Context, e engine, w world, ev event) error {
	happen := func(ctx context.Context) error { return ev.happen(ctx, c.run()) }
	var err error
	if c.savepoint {
		inside := false
		err = sqlreqtest.Main.Savepoint(ctx, func(ctx context.Context) error {
			inside = true
			return happen(ctx)
		})
		if !inside && e.savepoints {
			t.Errorf("no savepoint: %v", err)
		}
		if !e.savepoints {
			if inside || err == nil || !strings.Contains(err.Error(), "has no savepoints") {
				t.Errorf("a savepoint: %v", err)
			}
			err = happen(ctx) // the transaction lives
		}
	} else {
		err = happen(ctx)
	}
	if ev.fails && err == nil {
		t.Errorf("%s: no error", ev.name)
	}
	if !c.dealtWith {
		return err
	}
	_ = c.run()(ctx, w.insert(50)) // its error is dealt with as well
	return nil
}

// lies says what a result says that is not so; "" if it is true. Of an attempt that ended well all is stored, of others
// nothing, and no more than one attempt is.
func (r result) lies(dealtWith bool) string {
	rows := strings.Fields(r.stored)
	has := func(row string) bool { return slices.Contains(rows, row) }
	switch {
	case r.code < 300 && !has("1") && !has("2"):
		return "a success, and nothing is stored"
	case has("1") && has("2"):
		return "two attempts are stored"
	case strings.Contains(r.hooks, "commit1") && !has("1"), strings.Contains(r.hooks, "commit2") && !has("2"):
		return "AfterCommit ran, and nothing is stored"
	case strings.Contains(r.hooks, "rollback1") && (has("1") || has("50")), strings.Contains(r.hooks, "rollback2") && has("2"):
		return "AfterRollback ran, and something is stored"
	case r.code >= 300 && strings.Contains(r.hooks, "commit"):
		return "AfterCommit ran after a failure"
	case r.code < 300 && strings.Count(r.hooks, "commit") != 1:
		return "a success without AfterCommit"
	}
	return ""
}

// run runs all cells of an engine.
func (e engine) run(t *testing.T) {
	var lines []string
	cells, lies := 0, map[string]int{}
	bools := []bool{false, true}
	for n, ev := range e.open(t).events {
		for _, dealtWith := range bools[:1+btoi(ev.fails)] {
			for _, way := range []string{"Key", "Tx"} {
				byResult := map[string][]string{}
				for _, guard := range bools[:1+btoi(e.guards)] {
					for _, savepoint := range bools {
						for _, retry := range bools {
							c := cell{way, guard, savepoint, retry, dealtWith}
							r := c.ask(t, e, n)
							cells++
							if lie := r.lies(dealtWith); lie != "" {
								lies[ev.name]++
								t.Logf("%s, %+v: %s: %s", ev.name, c, r, lie)
							}
							byResult[r.String()] = append(byResult[r.String()], c.flags())
						}
					}
				}
				name := ev.name
				if dealtWith {
					name += ", dealt with"
				}
				lines = append(lines, name+", "+way+":")
				for _, r := range slices.SortedFunc(maps.Keys(byResult), func(a, b string) int {
					return strings.Compare(byResult[a][0], byResult[b][0])
				}) {
					lines = append(lines, "    "+r+"  "+strings.Join(byResult[r], " "))
				}
			}
		}
	}
	if cells != e.cells {
		t.Errorf("%d cells were run, want %d", cells, e.cells)
	}
	if !maps.Equal(lies, e.lies) {
		t.Errorf("not true: %v, want %v", lies, e.lies)
	}
	want, err := os.ReadFile(filepath.Join("testdata", e.file))
	if got := strings.Join(lines, "\n") + "\n"; err != nil || got != string(want) {
		t.Errorf("%s: %v; got\n%s", e.file, err, got)
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestCells runs the cells of each engine.
func TestCells(t *testing.T) {
	for _, e := range []engine{
		sqlServerEngine("SQL Server", "sqlserver.txt", false),
		sqlServerEngine("SQL Server, XACT_ABORT", "sqlserver_xact_abort.txt", true),
		oracleEngine("Oracle, go-ora", goOraDriver, goOra),
		oracleEngine("Oracle, godror", godrorDriver, func(code int) error { return godrorError(code) }),
		duckDBEngine(),
		sqliteEngine("libSQL", "libsql.txt", "libsql", ""),
		sqliteEngine("SQLite, ncruces", "sqlite.txt", "sqlite3", "?_pragma=synchronous(0)"),
		sqliteEngine("SQLite, glebarez", "sqlite.txt", "sqlite", "?_pragma=synchronous(0)"),
	} {
		t.Run(e.name, e.run)
	}
}
