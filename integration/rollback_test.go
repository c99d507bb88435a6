package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/integration/conformance"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// What a database ends by itself is found out before anything is rolled back and
// run again. Rows are read through a pool of their own.

// runner runs a statement of a handler.
type runner func(ctx context.Context, query string) error

func throughKey(ctx context.Context, query string) error {
	_, err := key.ExecContext(ctx, query)
	return err
}

func throughTx(ctx context.Context, query string) error {
	tx, err := sqlreq.Tx(ctx)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, query)
	return err
}

// cell is a case of a table: what a request does, and what must come of it.
type cell struct {
	name  string
	guard bool
	run   runner
	// swallowed: the handler goes on when its transaction was ended, and inserts "after".
	swallowed bool
	// result is what the handler returns at last; nil: the error with which its
	// transaction was ended, or a conflict if there was none.
	result error

	status        int
	outcomes      string // of the transactions, in order
	hooks         string
	before, after int // rows
}

// errNil stands for the result nil of a handler.
var errNil = errors.New("nil")

// errTeapot is a failure that is no conflict, with a status of its own.
var errTeapot = sqlreq.Errorf(http.StatusTeapot, "no")

// conflict is what nobody's statement has met.
type conflict struct{}

func (conflict) Error() string    { return "could not serialize access" }
func (conflict) SQLState() string { return "40001" }

// check sends one request, which inserts "before", has its transaction ended by end
// (in the first attempt only), and goes on as the cell says.
func (c cell) check(t *testing.T, db, second *sql.DB, end func(context.Context, runner) error) {
	t.Helper()
	tables(t, db, "orders (what VARCHAR(10) NOT NULL)")
	attempts := 0
	s := newService(t, sqlreq.Binding{DB: db, Guard: c.guard}, sqlreq.Retry{Attempts: 3}, func(w http.ResponseWriter, r *http.Request) error {
		ctx := r.Context()
		if err := c.run(ctx, "INSERT INTO orders VALUES ('before')"); err != nil {
			return err
		}
		if attempts++; attempts > 1 {
			return c.run(ctx, "INSERT INTO orders VALUES ('after')")
		}
		err := end(ctx, c.run)
		if c.swallowed {
			_ = c.run(ctx, "INSERT INTO orders VALUES ('after')")
		}
		switch {
		case c.result == errNil:
			return nil
		case c.result != nil:
			return c.result
		case err != nil:
			return err
		}
		return conflict{}
	})
	got, err := s.ask(context.Background(), "/")
	if err != nil || got.status != c.status || got.retryAfter != (c.status == http.StatusServiceUnavailable) {
		t.Errorf("answer: got %+v, %v, want status %d, Retry-After with a 503 only", got, err, c.status)
	}
	r := s.of("/")
	if outcomes := outcomesOf(r); outcomes != c.outcomes || r.hooks != c.hooks {
		t.Errorf("got %s, hooks %q (%v), want %s, hooks %q", outcomes, r.hooks, r.last().Err, c.outcomes, c.hooks)
	}
	for what, want := range map[string]int{"before": c.before, "after": c.after} {
		if got := number(t, second, "SELECT count(*) FROM orders WHERE what = '"+what+"'"); got != want {
			t.Errorf("%d rows %q, want %d", got, what, want)
		}
	}
	idle(t, db)
}

// outcomesOf are the outcomes of a request's transactions, with "?" for one that is unknown.
func outcomesOf(r record) string {
	var all []string
	for _, e := range r.events {
		outcome := e.Outcome.String()
		if (record{events: []sqlreq.Event{e}}).ambiguous() {
			outcome += "?"
		}
		all = append(all, outcome)
	}
	return strings.Join(all, " ")
}

// DDL commits on MariaDB, and what follows commits by itself.
func TestG11DDLCommits(t *testing.T) {
	db := openDSN(t, "mysql", servers.SharedMariaDB(t).DSN)
	second := openDSN(t, "mysql", servers.SharedMariaDB(t).DSN)
	tables(t, db, "scratch (n INTEGER)", "account (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)")
	exec(t, db, "INSERT INTO account VALUES (1, 0)")
	truncate := func(ctx context.Context, run runner) error {
		if err := run(ctx, "TRUNCATE TABLE scratch"); err != nil {
			t.Error(err)
		}
		return nil
	}
	for _, c := range []cell{
		{name: "Key, Guard, a conflict", guard: true, run: throughKey, swallowed: true, status: 500, outcomes: "Ended", before: 1, after: 1},
		{name: "Tx, Guard, a conflict", guard: true, run: throughTx, swallowed: true, status: 500, outcomes: "Ended", before: 1, after: 1},
		{name: "Key, Guard, an error", guard: true, run: throughKey, swallowed: true, result: errTeapot, status: 418, outcomes: "Ended", before: 1, after: 1},
		{name: "Tx, Guard, an error", guard: true, run: throughTx, swallowed: true, result: errTeapot, status: 418, outcomes: "Ended", before: 1, after: 1},
		{name: "Key, Guard, success", guard: true, run: throughKey, swallowed: true, result: errNil, status: 500, outcomes: "CommitFailed?", before: 1, after: 1},
		{name: "Tx, Guard, success", guard: true, run: throughTx, swallowed: true, result: errNil, status: 500, outcomes: "CommitFailed?", before: 1, after: 1},
		// What the documentation warns of: this driver does not tell that there was nothing to roll back.
		{name: "Key, a conflict", run: throughKey, swallowed: true, status: 200, outcomes: "RolledBack Committed", hooks: "rc", before: 2, after: 2},
	} {
		t.Run(c.name, func(t *testing.T) { c.check(t, db, second, truncate) })
	}
	// Without Guard too a Savepoint that is not there any more tells.
	t.Run("Key, in a Savepoint that fails", func(t *testing.T) {
		c := cell{run: throughKey, status: 500, outcomes: "Ended", before: 1, after: 0}
		c.check(t, db, second, func(ctx context.Context, run runner) error {
			return sqlreq.Savepoint(ctx, func(ctx context.Context) error {
				return errors.Join(truncate(ctx, run), conflict{})
			})
		})
	})
	// A conflict of a statement after it.
	for _, c := range []cell{
		{name: "Tx, Guard, a real conflict", guard: true, run: throughTx, status: 500, outcomes: "Ended", before: 1, after: 0},
		{name: "Key, Guard, a real conflict", guard: true, run: throughKey, status: 500, outcomes: "Ended", before: 1, after: 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.check(t, db, second, func(ctx context.Context, run runner) error {
				_ = truncate(ctx, run)
				return locked(t, second, func() error { return run(ctx, "SELECT n FROM account WHERE id = 1 FOR UPDATE NOWAIT") })
			})
		})
	}
}

// locked runs a statement while another transaction has locked the account 1. Its error must be a conflict.
func locked(t *testing.T, other *sql.DB, statement func() error) error {
	t.Helper()
	tx, err := other.Begin()
	if err != nil {
		t.Error(err)
		return nil
	}
	defer tx.Rollback()
	if _, err := tx.Exec("UPDATE account SET n = n + 1 WHERE id = 1"); err != nil {
		t.Error(err)
	}
	err = statement()
	if !sqlreq.IsRetryable(err) {
		t.Errorf("got %v, want a conflict", err)
	}
	return err
}

// The victim of a deadlock on MariaDB has no transaction any more.
func TestG11Deadlock(t *testing.T) {
	db := openDSN(t, "mysql", servers.SharedMariaDB(t).DSN)
	second := openDSN(t, "mysql", servers.SharedMariaDB(t).DSN)
	tables(t, db, "account (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)", "ballast (n INTEGER)")
	exec(t, db, "INSERT INTO account VALUES (1, 0), (2, 0)")
	const again = "RolledBack Committed"
	for _, c := range []cell{
		{name: "Key", run: throughKey, status: 200, outcomes: again, hooks: "rc", before: 1, after: 1},
		{name: "Key, Guard", guard: true, run: throughKey, status: 200, outcomes: again, hooks: "rc", before: 1, after: 1},
		{name: "Key, swallowed", run: throughKey, swallowed: true, status: 200, outcomes: again, hooks: "rc", before: 1, after: 1},
		{name: "Key, Guard, swallowed", guard: true, run: throughKey, swallowed: true, status: 200, outcomes: again, hooks: "rc", before: 1, after: 1},
		{name: "Key, an error", run: throughKey, swallowed: true, result: errTeapot, status: 418, outcomes: "RolledBack", hooks: "r"},
		{name: "Key, Guard, an error", guard: true, run: throughKey, swallowed: true, result: errTeapot, status: 418, outcomes: "RolledBack", hooks: "r"},
		{name: "Tx, Guard", guard: true, run: throughTx, status: 500, outcomes: "Ended"},
		{name: "Tx, Guard, swallowed", guard: true, run: throughTx, swallowed: true, status: 500, outcomes: "Ended", after: 1},
		{name: "Tx, Guard, an error", guard: true, run: throughTx, swallowed: true, result: errTeapot, status: 418, outcomes: "Ended", after: 1},
		{name: "Tx, Guard, success", guard: true, run: throughTx, swallowed: true, result: errNil, status: 500, outcomes: "CommitFailed?", after: 1},
		{name: "Tx", run: throughTx, status: 200, outcomes: again, hooks: "rc", before: 1, after: 1},
		// What the documentation warns of: this driver does not tell that there was nothing to roll back.
		{name: "Tx, swallowed", run: throughTx, swallowed: true, status: 200, outcomes: again, hooks: "rc", before: 1, after: 2},
		// Met by a Key, and then work by *sql.Tx.
		{name: "Key, Guard, then Tx", guard: true, run: keyThenTx(), swallowed: true, status: 500, outcomes: "Ended", after: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.check(t, db, second, func(ctx context.Context, run runner) error { return deadlocked(ctx, t, second, run) })
		})
	}
}

// keyThenTx runs through the Key everything but the row "after", which goes through a *sql.Tx taken before.
func keyThenTx() runner {
	var tx *sql.Tx
	return func(ctx context.Context, query string) (err error) {
		if tx == nil {
			if tx, err = sqlreq.Tx(ctx); err != nil {
				return err
			}
		}
		if strings.Contains(query, "'after'") {
			_, err = tx.ExecContext(ctx, query)
			return err
		}
		return throughKey(ctx, query)
	}
}

// deadlocked makes the caller's transaction the victim of a deadlock and returns its error.
func deadlocked(ctx context.Context, t *testing.T, other *sql.DB, run runner) error {
	heavy, err := other.Begin()
	if err != nil {
		t.Error(err)
		return nil
	}
	defer heavy.Rollback()
	for _, query := range []string{
		"INSERT INTO ballast SELECT seq FROM seq_1_to_100", // InnoDB's victim is whoever has changed less
		"UPDATE account SET n = n + 1 WHERE id = 2",
	} {
		if _, err := heavy.Exec(query); err != nil {
			t.Error(err)
		}
	}
	if err := run(ctx, "UPDATE account SET n = n + 1 WHERE id = 1"); err != nil {
		t.Error(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := heavy.Exec("UPDATE account SET n = n + 1 WHERE id = 1")
		done <- err
	}()
	if err := until("the other transaction waits", func() bool { return waitsForLock(other) }); err != nil {
		t.Error(err)
	}
	err = run(ctx, "UPDATE account SET n = n + 1 WHERE id = 2")
	if !sqlreq.IsRetryable(err) || !strings.Contains(fmt.Sprint(err), "1213") {
		t.Errorf("got %v, want a deadlock", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	return err
}

// waitsForLock reports whether a transaction of a MariaDB waits for a row. The tables of InnoDB's transactions and locks
// do not tell a poll loop: they show an old state until nobody has read them for 0.1 s.
func waitsForLock(db *sql.DB) bool {
	var name string
	var n int
	err := db.QueryRow("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'").Scan(&name, &n)
	return err == nil && n == 1
}

// sqliteDrivers are the drivers of SQLite whose connections have the function sqlreq_leave, with the data source
// name for a file.
var sqliteDrivers = make(map[string]func(path string) string)

// leave is what the SQL function sqlreq_leave calls: it is how a context ends while a statement runs.
var leave atomic.Pointer[context.CancelFunc]

// leavingSQLite is the dialect for those drivers.
func leavingSQLite() conformance.Dialect {
	d := conformance.SQLite
	d.Sleep = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n WHERE sqlreq_leave() = 1"
	d.Leaves = func(fn func()) {
		cancel := context.CancelFunc(fn)
		leave.Store(&cancel)
	}
	return d
}

func callLeave() int64 {
	if cancel := leave.Load(); cancel != nil {
		(*cancel)()
	}
	return 0
}

// SQLite ends a transaction on an interrupted INSERT and under OR ROLLBACK, and what follows commits by itself.
func TestG11SQLiteRolledBack(t *testing.T) {
	for driver, dsn := range sqliteDrivers {
		t.Run(driver, func(t *testing.T) { sqliteRolledBack(t, driver, dsn) })
	}
}

// endsSQLite returns two ways in which SQLite ends a transaction.
func endsSQLite(t *testing.T) (orRollback, interrupted func(context.Context, runner) error) {
	orRollback = func(ctx context.Context, run runner) error {
		if err := run(ctx, "INSERT OR ROLLBACK INTO ids VALUES (1)"); err == nil {
			t.Error("a second row with this id was taken")
		}
		return nil
	}
	interrupted = func(ctx context.Context, run runner) error {
		ctx, cancel := context.WithCancel(ctx)
		leave.Store(&cancel)
		if err := run(ctx, "INSERT INTO orders WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT 'endless' FROM n WHERE sqlreq_leave() = 1"); err == nil {
			t.Error("an endless statement has ended")
		}
		return nil
	}
	return orRollback, interrupted
}

func sqliteRolledBack(t *testing.T, driver string, dsn func(string) string) {
	path := file(t)
	db, second := openDSN(t, driver, dsn(path)), openDSN(t, driver, dsn(path))
	tables(t, db, "account (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)", "ids (id INTEGER UNIQUE)")
	exec(t, db, "INSERT INTO account VALUES (1, 0)", "INSERT INTO ids VALUES (1)")
	orRollback, interrupted := endsSQLite(t)
	const again, success = "RolledBack Committed", "CommitFailed?"
	for _, guard := range []bool{false, true} {
		for _, c := range []cell{
			{name: "Key, a conflict", run: throughKey, swallowed: true, status: 500, outcomes: "Ended", after: 1},
			{name: "Tx, a conflict", run: throughTx, swallowed: true, status: 500, outcomes: "Ended", after: 1},
			{name: "Key, an error", run: throughKey, swallowed: true, result: errTeapot, status: 418, outcomes: "Ended", after: 1},
			{name: "Tx, an error", run: throughTx, swallowed: true, result: errTeapot, status: 418, outcomes: "Ended", after: 1},
			{name: "Key, success", run: throughKey, swallowed: true, result: errNil, status: 500, outcomes: success, after: 1},
			{name: "Tx, success", run: throughTx, swallowed: true, result: errNil, status: 500, outcomes: success, after: 1},
		} {
			c.guard = guard
			t.Run(fmt.Sprintf("OR ROLLBACK/Guard %t/%s", guard, c.name), func(t *testing.T) { c.check(t, db, second, orRollback) })
		}
		for _, c := range []cell{
			{name: "Key, a conflict", run: throughKey, swallowed: true, status: 200, outcomes: again, hooks: "rc", before: 1, after: 1},
			{name: "Tx, a conflict", run: throughTx, swallowed: true, status: 500, outcomes: "Ended", after: 1},
			{name: "Key, an error", run: throughKey, swallowed: true, result: errTeapot, status: 418, outcomes: "RolledBack", hooks: "r"},
			{name: "Tx, an error", run: throughTx, swallowed: true, result: errTeapot, status: 418, outcomes: "Ended", after: 1},
			{name: "Key, success", run: throughKey, swallowed: true, result: errNil, status: 500, outcomes: "RolledBack", hooks: "r"},
			{name: "Tx, success", run: throughTx, swallowed: true, result: errNil, status: 500, outcomes: success, after: 1},
			{name: "first by the Key, then work by Tx", run: keyThenTx(), swallowed: true, status: 500, outcomes: "Ended", after: 1},
		} {
			c.guard = guard
			t.Run(fmt.Sprintf("interrupted/Guard %t/%s", guard, c.name), func(t *testing.T) { c.check(t, db, second, interrupted) })
		}
		// Both: what the interrupt ended was not the transaction any more.
		c := cell{guard: guard, run: throughKey, status: 500, outcomes: "Ended", after: 1}
		t.Run(fmt.Sprintf("OR ROLLBACK, work, interrupted/Guard %t", guard), func(t *testing.T) {
			c.check(t, db, second, func(ctx context.Context, run runner) error {
				_ = orRollback(ctx, run)
				if err := run(ctx, "INSERT INTO orders VALUES ('after')"); err != nil {
					t.Error(err)
				}
				return interrupted(ctx, run)
			})
		})
	}
}
