package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// all sends requests at the same time and fails the test for each that is not answered with 200.
func (s *service) all(paths ...string) {
	s.t.Helper()
	var wg sync.WaitGroup
	for _, path := range paths {
		wg.Go(func() { s.want(path, http.StatusOK) })
	}
	wg.Wait()
}

// Of two doctors on call either may leave while the other stays. Under
// SERIALIZABLE, with retries, both are answered and one stays; under READ
// COMMITTED, which is there to show that the test shows something, both leave.
func TestG9WriteSkew(t *testing.T) {
	for _, driver := range postgresDrivers {
		for level, want := range map[sql.IsolationLevel]int{sql.LevelSerializable: 1, sql.LevelReadCommitted: 0} {
			t.Run(driver+"/"+strings.ReplaceAll(level.String(), " ", ""), func(t *testing.T) { writeSkew(t, driver, level, want) })
		}
	}
}

func writeSkew(t *testing.T, driver string, level sql.IsolationLevel, want int) {
	const rounds = 10
	db := openDSN(t, driver, servers.SharedPostgres(t).DSN)
	tables(t, db, "doctor (name VARCHAR(10) PRIMARY KEY, on_call BOOLEAN NOT NULL)")
	exec(t, db, "INSERT INTO doctor VALUES ('/anna', true), ('/bert', true)")
	var m *meeting
	s := newService(t, sqlreq.Binding{DB: db, TxOptions: func(context.Context, *http.Request) *sql.TxOptions {
		return &sql.TxOptions{Isolation: level}
	}}, sqlreq.Retry{Attempts: 100}, func(w http.ResponseWriter, r *http.Request) error {
		var n int
		if err := key.QueryRowContext(r.Context(), "SELECT count(*) FROM doctor WHERE on_call").Scan(&n); err != nil {
			return err
		}
		if err := m.wait(r.Context(), r.URL.Path); err != nil {
			return err
		}
		if n < 2 {
			return nil // somebody has to stay
		}
		_, err := key.ExecContext(r.Context(), "UPDATE doctor SET on_call = false WHERE name = $1", r.URL.Path)
		return err
	})
	for range rounds {
		m = newMeeting(2)
		exec(t, db, "UPDATE doctor SET on_call = true")
		s.all("/anna", "/bert")
		if got := number(t, db, "SELECT count(*) FROM doctor WHERE on_call"); got != want {
			t.Errorf("%d on call, want %d", got, want)
		}
	}
	if got := s.transactions(); level == sql.LevelSerializable && got < 3*rounds {
		t.Errorf("%d transactions, want at least %d: there was no conflict", got, 3*rounds)
	}
	idle(t, db)
}

// Two requests take the same rows in crossed order. Both succeed, with retries.
func TestG9Deadlock(t *testing.T) {
	for _, d := range databases {
		if d.driver != "sqlite" && d.driver != "sqlite3" {
			t.Run(d.driver, func(t *testing.T) { deadlock(t, d) })
		}
	}
}

func deadlock(t *testing.T, d database) {
	const rounds = 10
	db := d.open(t)
	tables(t, db, "account (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)")
	exec(t, db, "INSERT INTO account VALUES (1, 0), (2, 0)")
	var m *meeting
	s := newService(t, sqlreq.Binding{DB: db}, sqlreq.Retry{Attempts: 100}, func(w http.ResponseWriter, r *http.Request) error {
		order := []int{1, 2}
		if r.URL.Path == "/down" {
			order = []int{2, 1}
		}
		for i, id := range order {
			if _, err := key.ExecContext(r.Context(), fmt.Sprint("UPDATE account SET n = n + 1 WHERE id = ", id)); err != nil {
				return err
			}
			if i > 0 {
				break
			}
			if err := m.wait(r.Context(), r.URL.Path); err != nil {
				return err
			}
		}
		return nil
	})
	for range rounds {
		m = newMeeting(2)
		s.all("/up", "/down")
	}
	for id := range 2 {
		if got, want := number(t, db, fmt.Sprint("SELECT n FROM account WHERE id = ", id+1)), 2*rounds; got != want {
			t.Errorf("account %d has %d, want %d", id+1, got, want)
		}
	}
	if got := s.transactions(); got < 3*rounds {
		t.Errorf("%d transactions, want at least %d: there was no deadlock", got, 3*rounds)
	}
	idle(t, db)
}

// MariaDB ends the transaction of a deadlock's victim. A handler that swallows
// the error and goes on would commit its second half by itself.
func TestG11SwallowedDeadlock(t *testing.T) {
	runKey := func(ctx context.Context, query string) error {
		_, err := key.ExecContext(ctx, query)
		return err
	}
	runTx := func(ctx context.Context, query string) error {
		tx, err := sqlreq.Tx(ctx)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, query)
		return err
	}
	for _, c := range []struct {
		name   string
		guard  bool
		run    func(context.Context, string) error
		status int
		rows   int // of the victim, of two
	}{
		// A deadlock that nobody retries is a 503: come again.
		{"through the Key", false, runKey, 503, 0},
		{"through the Key, with Guard", true, runKey, 503, 0},
		{"through Tx, with Guard", true, runTx, 500, 1},
		// What the documentation warns of: half of the work is committed, and called a success.
		{"through Tx, without Guard", false, runTx, 200, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			db := openDSN(t, "mysql", servers.SharedMariaDB(t).DSN)
			tables(t, db, "account (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)", "half (who VARCHAR(20), n INTEGER)")
			exec(t, db, "INSERT INTO account VALUES (1, 0), (2, 0)")
			m := newMeeting(2)
			s := newService(t, sqlreq.Binding{DB: db, Guard: c.guard}, sqlreq.Retry{}, swallow(t, m, c.run))
			var wg sync.WaitGroup
			wg.Go(func() { s.want("/heavy", http.StatusOK) })
			wg.Go(func() { s.want("/victim", c.status) })
			wg.Wait()
			if got := number(t, db, "SELECT count(*) FROM half WHERE who = '/victim'"); got != c.rows {
				t.Errorf("%d of the victim's two rows are there, want %d", got, c.rows)
			}
			if r := s.of("/victim"); c.status != http.StatusOK && strings.Contains(r.hooks, "c") {
				t.Errorf("AfterCommit ran: hooks %q", r.hooks)
			}
			if got, want := s.of("/victim"), c.status != http.StatusOK && c.rows > 0; got.ambiguous() != want {
				t.Errorf("ambiguous: got %v, want %v (%v)", got.ambiguous(), want, got.last().Err)
			}
			idle(t, db)
		})
	}
}

// swallow is a handler that runs into a deadlock on /victim, and goes on all the same.
func swallow(t *testing.T, m *meeting, run func(context.Context, string) error) sqlreq.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		ctx, who := r.Context(), r.URL.Path
		if who == "/heavy" { // InnoDB's victim is whoever has changed less
			if err := run(ctx, "INSERT INTO half SELECT 'ballast', seq FROM seq_1_to_100"); err != nil {
				return err
			}
		}
		first, second := 1, 2
		if who == "/victim" {
			first, second = 2, 1
		}
		insert := "INSERT INTO half VALUES ('" + who + "', "
		if err := run(ctx, insert+"1)"); err != nil {
			return err
		}
		if err := run(ctx, fmt.Sprint("UPDATE account SET n = n + 1 WHERE id = ", first)); err != nil {
			return err
		}
		if err := m.wait(ctx, who); err != nil {
			return err
		}
		err := run(ctx, fmt.Sprint("UPDATE account SET n = n + 1 WHERE id = ", second))
		if who == "/heavy" {
			return err
		}
		if !sqlreq.IsRetryable(err) {
			t.Errorf("the victim's error: got %v, want a deadlock", err)
		}
		_ = run(ctx, insert+"2)")
		return nil
	}
}

// A statement fails, the handler ignores it, PostgreSQL answers COMMIT with
// ROLLBACK: an error answer, wherever the error was to be seen, and one that knows the outcome.
func TestG4AbortedTransaction(t *testing.T) {
	breaks := map[string]func(context.Context) error{
		"a statement of the Key": func(ctx context.Context) error {
			_, err := key.ExecContext(ctx, "INSERT INTO aborted VALUES (0)")
			return err
		},
		"a statement of the transaction": func(ctx context.Context) error {
			tx, err := sqlreq.Tx(ctx)
			if err != nil {
				return nil
			}
			_, err = tx.ExecContext(ctx, "INSERT INTO aborted VALUES (0)")
			return err
		},
		"a prepared statement": func(ctx context.Context) error {
			stmt, err := key.PrepareContext(ctx, "INSERT INTO aborted VALUES ($1)")
			if err != nil {
				return nil
			}
			_, err = stmt.ExecContext(ctx, 0)
			return err
		},
		"the third row": func(ctx context.Context) error {
			rows, err := key.QueryContext(ctx, "SELECT 1 / (3 - n) FROM generate_series(1, 5) n")
			if err != nil {
				return err // lib/pq and pgx differ in when they tell
			}
			defer rows.Close()
			for rows.Next() {
			}
			return rows.Err()
		},
		"a serialization failure": func(ctx context.Context) error {
			_, err := key.ExecContext(ctx, "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$")
			return err
		},
	}
	for _, driver := range postgresDrivers {
		for name, fails := range breaks {
			t.Run(driver+"/"+name, func(t *testing.T) {
				db := openDSN(t, driver, servers.SharedPostgres(t).DSN)
				tables(t, db, "aborted (id INTEGER PRIMARY KEY CHECK (id > 0))")
				s := newService(t, sqlreq.Binding{DB: db}, sqlreq.Retry{}, func(w http.ResponseWriter, r *http.Request) error {
					if _, err := key.ExecContext(r.Context(), "INSERT INTO aborted VALUES (1)"); err != nil {
						return err
					}
					if fails(r.Context()) == nil {
						return errors.New("nothing failed")
					}
					_, err := w.Write([]byte("done"))
					return err
				})
				s.want("/", http.StatusInternalServerError)
				r := s.of("/")
				if r.last().Outcome != sqlreq.CommitFailed || r.ambiguous() || r.hooks != "r" {
					t.Errorf("got %v, ambiguous %v, hooks %q (%v), want CommitFailed, not ambiguous, hooks r", r.last().Outcome, r.ambiguous(), r.hooks, r.last().Err)
				}
				if n := number(t, db, "SELECT count(*) FROM aborted"); n != 0 {
					t.Errorf("%d rows, want none", n)
				}
				idle(t, db)
			})
		}
	}
}
