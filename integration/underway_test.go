package integration

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sqlreq/sqlreq"
)

// A statement of a Key is under way, in a goroutine of its own, when the handler
// returns or calls Commit. It meets a conflict: MariaDB has ended the transaction by
// then, and would answer COMMIT with success.
func TestG4StatementUnderWay(t *testing.T) {
	for _, d := range databases {
		if strings.HasPrefix(d.driver, "sqlite") {
			continue // no statement there waits for a row and then meets a conflict that ends the transaction
		}
		for _, guard := range []bool{false, true} {
			for _, retry := range []bool{false, true} {
				for _, commit := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/Guard %t/Retry %t/Commit %t", d.driver, guard, retry, commit), func(t *testing.T) {
						statementUnderWay(t, d, guard, retry, commit)
					})
				}
			}
		}
	}
}

func statementUnderWay(t *testing.T, d database, guard, retry, commit bool) {
	db, second := d.open(t), d.open(t)
	tables(t, db, "orders (what VARCHAR(10) NOT NULL)", "account (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)", "ballast (n INTEGER)")
	exec(t, db, "INSERT INTO account VALUES (1, 0), (2, 0)")
	heavy, err := second.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer heavy.Rollback()
	binding, conflict := conflicting(t, d, heavy)
	binding.DB, binding.Guard = db, guard
	u := &underWay{t: t, d: d, second: second, commit: commit, returning: make(chan struct{}), statement: make(chan error, 1)}
	status, events, hooks, rows := http.StatusServiceUnavailable, "RolledBack", "r", 0
	if d.driver != "mysql" { // COMMIT is sent, and answered with ROLLBACK; or Guard's RELEASE, and refused
		status, events = http.StatusInternalServerError, "CommitFailed"
	}
	again := sqlreq.Retry{}
	if retry {
		again.Attempts = 3
		status, events, hooks, rows = http.StatusOK, events+" Committed", "rc", 1
	}
	s := newService(t, binding, again, u.serve)
	var wg sync.WaitGroup
	wg.Go(func() {
		<-u.returning
		if err := conflict(); err != nil {
			t.Error(err)
		}
		if err := <-u.statement; !sqlreq.IsRetryable(err) {
			t.Errorf("the statement: got %v, want a conflict", err)
		}
		_ = heavy.Rollback() // so that a second attempt finds no lock
	})
	s.want("/", status)
	wg.Wait()
	if r := s.of("/"); outcomesOf(r) != events || r.hooks != hooks {
		t.Errorf("got %s, hooks %q (%v), want %s, hooks %q", outcomesOf(r), r.hooks, r.last().Err, events, hooks)
	}
	if got := number(t, second, "SELECT count(*) FROM orders"); got != rows {
		t.Errorf("%d orders, want %d", got, rows)
	}
	idle(t, db)
}

// conflicting makes another transaction lock the account 2, and returns what lets the
// statement that waits for it meet a conflict: a deadlock on MariaDB, a change that it has not
// seen on PostgreSQL.
func conflicting(t *testing.T, d database, heavy *sql.Tx) (b sqlreq.Binding, conflict func() error) {
	t.Helper()
	queries := []string{"UPDATE account SET n = n + 1 WHERE id = 2"}
	conflict = heavy.Commit
	b.TxOptions = func(context.Context, *http.Request) *sql.TxOptions {
		return &sql.TxOptions{Isolation: sql.LevelRepeatableRead}
	}
	if d.driver == "mysql" {
		queries = append(queries, "INSERT INTO ballast SELECT seq FROM seq_1_to_100")
		conflict = func() error {
			_, err := heavy.Exec("UPDATE account SET n = n + 1 WHERE id = 1")
			return err
		}
	}
	for _, query := range queries {
		if _, err := heavy.Exec(query); err != nil {
			t.Fatal(err)
		}
	}
	return b, conflict
}

// underWay is a handler that leaves a statement under way in its first attempt.
type underWay struct {
	t         *testing.T
	d         database
	second    *sql.DB
	commit    bool          // it calls Commit
	returning chan struct{} // closed when it has nothing left to do but to return, or to commit
	statement chan error    // what the statement has returned
	attempts  atomic.Int32
}

func (u *underWay) serve(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	for _, query := range []string{"INSERT INTO orders VALUES ('order')", "UPDATE account SET n = n + 1 WHERE id = 1"} {
		if _, err := key.ExecContext(ctx, query); err != nil {
			return err
		}
	}
	if u.attempts.Add(1) > 1 {
		return nil
	}
	go func() {
		_, err := key.ExecContext(ctx, "UPDATE account SET n = n + 1 WHERE id = 2")
		u.statement <- err
	}()
	if err := until("the statement waits", func() bool { return waitsForRow(u.d, u.second) }); err != nil {
		u.t.Error(err)
	}
	close(u.returning)
	if !u.commit {
		return nil
	}
	err := sqlreq.Commit(ctx)
	if err == nil {
		u.t.Error("Commit has succeeded, though the transaction was lost")
	}
	return err
}

// waitsForRow reports whether a transaction waits for another's row.
func waitsForRow(d database, db *sql.DB) bool {
	if d.driver == "mysql" {
		return waitsForLock(db)
	}
	var n int
	err := db.QueryRow("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'UPDATE account%'").Scan(&n)
	return err == nil && n == 1
}
