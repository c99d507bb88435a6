// G11 A transaction the server ended is found out. MariaDB rolls a transaction back on
// a deadlock and commits it on DDL, SQLite rolls back on an interrupted or failed
// statement, and what follows commits by itself while *sql.Tx looks healthy and its
// Commit may even return nil. Statements run through a Key are seen: after an error
// that may have ended the transaction no further one runs, and the request can only
// roll back, unless a savepoint is rolled back to with success. Not seen: errors that
// come later, out of rows.Next or a prepared *sql.Stmt, and constraint errors under OR
// ROLLBACK. For those and for statements run on *sql.Tx directly, Guard on the binding
// lays a savepoint after BEGIN and releases it before COMMIT; if there is no such
// savepoint any more, the request fails with Ambiguous true, for what ran in between
// may have stayed. (Which errors, and what else Guard is answered: g11_lost_test.go; a
// rollback that was none: g11_table_test.go.)

package guarantees

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"modernc.org/sqlite"
)

// TestG11BrokenCommitsNothing: of two databases the second can only roll back;
// the first must not be committed either.
func TestG11BrokenCommitsNothing(t *testing.T) {
	one := &fakedb.DB{}
	var cancel context.CancelFunc
	two := &fakedb.DB{Step: func(ctx context.Context, stmt string) error {
		if stmt == "UPDATE" {
			cancel() // the statement is under way
			return fakedb.UntilDone(ctx)
		}
		return nil
	}}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "one", DB: one.Open(t)}, sqlreq.Binding{Key: "two", DB: two.Open(t)})
	o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), "one", "INSERT")
		sqlreqtest.Exec(t, r.Context(), "two", "INSERT")
		var ctx context.Context
		ctx, cancel = context.WithCancel(r.Context())
		defer cancel()
		if _, err := sqlreq.Key("two").ExecContext(ctx, "UPDATE"); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want the context's error", err)
		}
	})), "/")
	if o.Code != 500 {
		t.Errorf("got %d, want 500", o.Code)
	}
	two.Check(t, "BEGIN", "INSERT", "UPDATE", "ROLLBACK")
	one.Check(t, "BEGIN", "INSERT", "ROLLBACK")
}

// checkRefused checks that no statement of a Key runs any more.
func checkRefused(t testing.TB, ctx context.Context, cause func(error) bool) {
	t.Helper()
	_, exec := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
	_, query := sqlreqtest.Main.QueryContext(ctx, "SELECT 1") //nolint:sqlclosecheck,rowserrcheck
	_, prepare := sqlreqtest.Main.PrepareContext(ctx, sqlreqtest.InsertWork)
	_, tx := sqlreq.Tx(ctx)
	row := sqlreqtest.Main.QueryRowContext(ctx, "SELECT 1").Err()
	savepoint := sqlreq.Savepoint(ctx, func(context.Context) error { t.Error("the Savepoint ran"); return nil })
	for name, err := range map[string]error{
		"ExecContext": exec, "QueryContext": query, "PrepareContext": prepare, "QueryRowContext": row, "Tx": tx, "Savepoint": savepoint,
	} {
		if err == nil || !cause(err) {
			t.Errorf("%s: got %v, want the cause", name, err)
		}
	}
}

func sqliteCode(code int) func(error) bool {
	return func(err error) bool {
		var e *sqlite.Error
		return errors.As(err, &e) && e.Code() == code
	}
}

// An INSERT that is interrupted ends SQLite's whole transaction: what follows would commit by itself.
func TestG11ContextEndsDuringAStatement(t *testing.T) {
	ways := map[string]func(ctx context.Context, insert string) error{
		"ExecContext": func(ctx context.Context, insert string) error {
			_, err := sqlreqtest.Main.ExecContext(ctx, insert)
			return err
		},
		"QueryContext": func(ctx context.Context, insert string) error {
			_, err := sqlreqtest.Main.QueryContext(ctx, insert+" RETURNING id")
			return err
		}, //nolint:sqlclosecheck,rowserrcheck
		"QueryRowContext": func(ctx context.Context, insert string) error {
			var id int
			return sqlreqtest.Main.QueryRowContext(ctx, insert+" RETURNING id").Scan(&id)
		},
		"in a Savepoint": func(ctx context.Context, insert string) error {
			return sqlreq.Savepoint(ctx, func(ctx context.Context) error {
				_, err := sqlreqtest.Main.ExecContext(ctx, insert)
				return err
			})
		},
		"in a Savepoint that hides it": func(ctx context.Context, insert string) (err error) {
			return errors.Join(sqlreq.Savepoint(ctx, func(ctx context.Context) error {
				_, err = sqlreqtest.Main.ExecContext(ctx, insert)
				return nil
			}), err)
		},
	}
	for name, run := range ways {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			var events sqlreqtest.Recorder
			reg.Observe = events.Observe
			var log sqlreqtest.Recorder
			rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				log.Hooks(t, r.Context(), sqlreqtest.Main, "")
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				if err := run(ctx, "INSERT INTO work (note) "+endless(cancel)); err == nil {
					t.Error("the statement was not interrupted")
				}
				checkRefused(t, r.Context(), func(error) bool { return true })
				w.WriteHeader(201)
			})))
			if n := sqlreqtest.Count(t, db, "work"); rec.Code != 500 || n != 0 || log.Words() != "rollback" || events.Events() != "main RolledBack 1" {
				t.Errorf("got %d, %d rows, hooks %q, events %q; want 500 and nothing", rec.Code, n, log.Words(), events.Events())
			}
			sqlreqtest.Idle(t, db)
		})
	}
}

func TestG11UsableAgainAfterASavepoint(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "before")
		err := sqlreq.Savepoint(r.Context(), func(outer context.Context) error {
			ctx, cancel := context.WithCancel(outer)
			defer cancel()
			sqlreqtest.Note(t, ctx, sqlreqtest.Main, "inside")
			// An interrupted read leaves SQLite's transaction alone.
			var n int
			err := sqlreqtest.Main.QueryRowContext(ctx, "SELECT count(v) FROM ("+endless(cancel)+")").Scan(&n)
			if err == nil {
				t.Error("the query was not interrupted")
			}
			checkRefused(t, outer, func(error) bool { return true })
			return err
		})
		if err == nil {
			t.Error("Savepoint returned no error")
		}
		sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "after")
	})))
	if got := sqlreqtest.Notes(t, db); rec.Code != 200 || got != "before after" {
		t.Errorf("got %d and %q, want 200 and what was outside", rec.Code, got)
	}
}

func TestG11RollbackBeginsAnew(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "before")
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		_, _ = sqlreqtest.Main.ExecContext(ctx, "INSERT INTO work (note) "+endless(cancel))
		if err := sqlreq.Rollback(r.Context()); err != nil {
			t.Error(err)
		}
		sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "after")
	})))
	if got := sqlreqtest.Notes(t, db); rec.Code != 200 || got != "after" {
		t.Errorf("got %d and %q", rec.Code, got)
	}
}

func TestG11CommitOfABrokenTransactionFails(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		_, _ = sqlreqtest.Main.ExecContext(ctx, "INSERT INTO work (note) "+endless(cancel))
		if err := sqlreq.Commit(r.Context()); err == nil {
			t.Error("an explicit Commit succeeded")
		}
	})))
	if n := sqlreqtest.Count(t, db, "work"); rec.Code != 500 || n != 0 {
		t.Errorf("got %d and %d rows", rec.Code, n)
	}
}

// A context that had ended before the statement, or a statement refused for what it says, ends nothing.
func TestG11HarmlessErrors(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "before")
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		if _, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		for _, query := range []string{"nonsense", "INSERT INTO work (id) VALUES (1)", "INSERT INTO work (note) VALUES (NULL)"} {
			if _, err := sqlreqtest.Main.ExecContext(r.Context(), query); err == nil {
				t.Errorf("%s: no error", query)
			}
		}
		sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "after")
	})))
	if got := sqlreqtest.Notes(t, db); rec.Code != 200 || got != "before after" {
		t.Errorf("got %d and %q", rec.Code, got)
	}
}

func TestG11DatabaseFull(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	db.SetMaxOpenConns(1) // the limit is the connection's
	if _, err := db.Exec("PRAGMA max_page_count = 20"); err != nil {
		t.Fatal(err)
	}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	const fill = "INSERT INTO work (note) VALUES (zeroblob(1000000))"
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), fill); !sqliteCode(13)(err) {
			t.Errorf("got %v, want SQLITE_FULL", err)
		}
		checkRefused(t, r.Context(), sqliteCode(13))
		w.WriteHeader(201)
	})))
	if n := sqlreqtest.Count(t, db, "work"); rec.Code != 500 || n != 0 {
		t.Errorf("got %d and %d rows, want 500 and none", rec.Code, n)
	}
	sqlreqtest.Idle(t, db)
}

// What a handler does to the transaction through *sql.Tx itself is found out by Guard only.
func TestG11Guard(t *testing.T) {
	tests := map[string]struct {
		guard     bool
		stmts     []string
		code      int
		notes     string
		outcome   sqlreq.Outcome
		ambiguous bool
		hooks     string
	}{
		"guard":                          {true, nil, 200, "before after", sqlreq.Committed, false, "commit"},
		"guard, ROLLBACK":                {true, []string{"ROLLBACK"}, 500, "after", sqlreq.CommitFailed, true, ""},
		"guard, COMMIT":                  {true, []string{"COMMIT"}, 500, "before after", sqlreq.CommitFailed, true, ""},
		"guard, another transaction":     {true, []string{"COMMIT", "BEGIN"}, 500, "before", sqlreq.CommitFailed, true, ""},
		"no guard, ROLLBACK":             {false, []string{"ROLLBACK"}, 500, "after", sqlreq.CommitFailed, true, ""},
		"no guard, another transaction":  {false, []string{"ROLLBACK", "BEGIN"}, 200, "after", sqlreq.Committed, false, "commit"},
		"guard, its own savepoints live": {true, []string{"SAVEPOINT a", "ROLLBACK TO a", "RELEASE a"}, 200, "before after", sqlreq.Committed, false, "commit"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, Guard: tt.guard})
			var events sqlreqtest.Recorder
			reg.Observe = events.Observe
			var failure *sqlreq.CommitError
			reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
				errors.As(err, &failure)
				w.WriteHeader(sqlreq.StatusCode(err))
			}
			var log sqlreqtest.Recorder
			rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				log.Hooks(t, r.Context(), sqlreqtest.Main, "")
				tx, err := sqlreq.Tx(r.Context())
				if err != nil {
					t.Error(err)
					return
				}
				for _, stmt := range slices.Concat([]string{"INSERT INTO work (note) VALUES ('before')"}, tt.stmts, []string{"INSERT INTO work (note) VALUES ('after')"}) {
					if _, err := tx.ExecContext(r.Context(), stmt); err != nil {
						t.Errorf("%s: %v", stmt, err)
					}
				}
			})))
			if notes := sqlreqtest.Notes(t, db); rec.Code != tt.code || notes != tt.notes || log.Words() != tt.hooks {
				t.Errorf("got %d, %q, hooks %q; want %d, %q, %q", rec.Code, notes, log.Words(), tt.code, tt.notes, tt.hooks)
			}
			if want := fmt.Sprintf("main %v 1", tt.outcome); events.Events() != want {
				t.Errorf("got events %q, want %q", events.Events(), want)
			}
			if (failure != nil) != (tt.code != 200) || failure != nil && failure.Ambiguous != tt.ambiguous {
				t.Errorf("got %+v, want ambiguous: %t", failure, tt.ambiguous)
			}
			sqlreqtest.Idle(t, db)
		})
	}
}

// errorList cannot be compared, as the error lists of some drivers.
type errorList []error

func (e errorList) Error() string { return fmt.Sprint([]error(e)) }

func TestG11StatementFailsWithAnUncomparableError(t *testing.T) {
	db, mock, err := sqlmock.New()
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	mock.ExpectBegin()
	mock.ExpectQuery("SELECT 1").WillReturnError(errorList{sqlreqtest.ErrTest})
	mock.ExpectQuery("SELECT 2").WillReturnError(errorList{sqlreqtest.ErrTest})
	mock.ExpectExec("UPDATE").WillReturnError(errorList{sqlreqtest.ErrTest})
	mock.ExpectPrepare("DELETE").WillReturnError(errorList{sqlreqtest.ErrTest})
	mock.ExpectRollback()
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		var n int
		row := sqlreqtest.Main.QueryRowContext(r.Context(), "SELECT 1").Scan(&n)
		_, query := sqlreqtest.Main.QueryContext(r.Context(), "SELECT 2") //nolint:sqlclosecheck,rowserrcheck
		_, exec := sqlreqtest.Main.ExecContext(r.Context(), "UPDATE")
		_, prepare := sqlreqtest.Main.PrepareContext(r.Context(), "DELETE") //nolint:sqlclosecheck
		for i, err := range []error{row, query, exec, prepare} {
			if e := (errorList)(nil); !errors.As(err, &e) {
				t.Errorf("statement %d: got %v, want the driver's error", i, err)
			}
		}
		return row
	})))
	if err := mock.ExpectationsWereMet(); rec.Code != 500 || err != nil {
		t.Errorf("got %d, %v", rec.Code, err)
	}
}

// lateError is an error of a statement which, when sqlreq looks at it for the
// first time, lets another goroutine act.
type lateError struct{ act func() }

func (e *lateError) Error() string { return "interrupted" }

func (e *lateError) Is(error) bool {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs)])
	for frame, more := frames.Next(); more; frame, more = frames.Next() {
		if strings.HasPrefix(frame.Function, "database/sql.") {
			return false // the statement has not returned yet
		}
	}
	e.act()
	return false
}

// The context of a statement has ended, and with it perhaps the transaction. What
// is known of it concerns that transaction, not the one which is open by then.
func TestG11LateErrorOfTheTransactionBefore(t *testing.T) {
	var cancel context.CancelFunc
	late := &lateError{}
	d := &fakedb.DB{Stmt: func(_ context.Context, q string) error {
		if q == "UPDATE" {
			cancel()
			return late
		}
		return nil
	}}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var ctx context.Context
		ctx, cancel = context.WithCancel(r.Context())
		late.act = sync.OnceFunc(func() {
			done := make(chan struct{})
			go func() {
				defer close(done)
				if err := sqlreq.Rollback(r.Context()); err != nil {
					t.Errorf("Rollback: %v", err)
				}
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
			}()
			<-done
		})
		if _, err := sqlreqtest.Main.ExecContext(ctx, "UPDATE"); !errors.As(err, new(*lateError)) {
			t.Errorf("UPDATE: got %v, want the driver's error", err)
		}
		late.act() // if nobody has looked
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "DELETE")
	})))
	if rec.Code != 200 {
		t.Errorf("got %d, want 200", rec.Code)
	}
	d.Check(t, "BEGIN", "UPDATE", "ROLLBACK", "BEGIN", "INSERT", "DELETE", "COMMIT")
}
