package integration

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"strings"
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
	binding := sqlreq.Binding{DB: db, Guard: guard}
	release := heavy.Commit // of the row that the request has not seen changed
	if d.driver == "mysql" {
		if _, err := heavy.Exec("INSERT INTO ballast SELECT seq FROM seq_1_to_100"); err != nil {
			t.Fatal(err)
		}
		release = func() error {
			_, err := heavy.Exec("UPDATE account SET n = n + 1 WHERE id = 1") // a deadlock
			return err
		}
	} else {
		binding.TxOptions = func(context.Context, *http.Request) *sql.TxOptions {
			return &sql.TxOptions{Isolation: sql.LevelRepeatableRead}
		}
	}
	if _, err := heavy.Exec("UPDATE account SET n = n + 1 WHERE id = 2"); err != nil {
		t.Fatal(err)
	}

	returning := make(chan struct{}) // closed when the handler has nothing left to do but to return, or to commit
	statement := make(chan error, 1)
	var attempts atomic.Int32
	again := sqlreq.Retry{}
	if retry {
		again.Attempts = 3
	}
	s := newService(t, binding, again, func(w http.ResponseWriter, r *http.Request) error {
		ctx := r.Context()
		for _, query := range []string{"INSERT INTO orders VALUES ('order')", "UPDATE account SET n = n + 1 WHERE id = 1"} {
			if _, err := key.ExecContext(ctx, query); err != nil {
				return err
			}
		}
		if attempts.Add(1) > 1 {
			return nil
		}
		go func() {
			_, err := key.ExecContext(ctx, "UPDATE account SET n = n + 1 WHERE id = 2")
			statement <- err
		}()
		if err := until("the statement waits", func() bool { return waitsForRow(d, second) }); err != nil {
			t.Error(err)
		}
		close(returning)
		if commit {
			if err := sqlreq.Commit(ctx); err == nil {
				t.Error("Commit has succeeded, though the transaction was lost")
			} else {
				return err
			}
		}
		return nil
	})
	go func() {
		<-returning
		if err := release(); err != nil {
			t.Error(err)
		}
	}()
	status, events, hooks, rows := http.StatusServiceUnavailable, "RolledBack", "r", 0
	if d.driver != "mysql" { // COMMIT is sent, and answered with ROLLBACK; or Guard's RELEASE, and refused
		status, events = http.StatusInternalServerError, "CommitFailed"
	}
	if retry {
		status, events, hooks, rows = http.StatusOK, events+" Committed", "rc", 1
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := <-statement; !sqlreq.IsRetryable(err) {
			t.Errorf("the statement: got %v, want a conflict", err)
		}
		_ = heavy.Rollback() // so that a second attempt finds no lock
	}()
	s.want("/", status)
	<-done
	if r := s.of("/"); outcomesOf(r) != events || r.hooks != hooks {
		t.Errorf("got %s, hooks %q (%v), want %s, hooks %q", outcomesOf(r), r.hooks, r.last().Err, events, hooks)
	}
	if got := number(t, second, "SELECT count(*) FROM orders"); got != rows {
		t.Errorf("%d orders, want %d", got, rows)
	}
	idle(t, db)
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
