// G11 A begin that AfterBegin refuses after it has ended the transaction itself: nobody
// knows what stayed. G8: no hook runs for it. G4: an error whose methods panic harms nobody.

package guarantees

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// endsItself are AfterBegin functions that end the transaction, store something and fail
// with a conflict, which alone would be a reason to run again.
var endsItself = map[string]func(context.Context, *sql.Tx) error{
	"OR ROLLBACK": func(ctx context.Context, tx *sql.Tx) error {
		_, _ = tx.ExecContext(ctx, "INSERT OR ROLLBACK INTO parent VALUES (1)") // it is there already
		if _, err := tx.ExecContext(ctx, sqlreqtest.InsertWork); err != nil {
			return err
		}
		return sqlreqtest.Conflict{}
	},
	"Commit": func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, sqlreqtest.InsertWork); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		return sqlreqtest.Conflict{}
	},
}

// endsItselfIn returns a registry on a database with such a function, and the database.
func endsItselfIn(t *testing.T, guard bool, f func(context.Context, *sql.Tx) error) (*sqlreq.Registry, *sql.DB) {
	db := sqlreqtest.OpenDB(t)
	if _, err := db.Exec("INSERT INTO parent VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, Guard: guard, AfterBegin: func(ctx context.Context, _ *http.Request, tx *sql.Tx) error {
		return f(ctx, tx)
	}})
	reg.Retry = sqlreqtest.Retries(3)
	return reg, db
}

func TestG11AfterBeginThatEndedTheTransaction(t *testing.T) {
	for name, f := range endsItself {
		for _, guard := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " guard ", guard), func(t *testing.T) {
				reg, db := endsItselfIn(t, guard, f)
				var log sqlreqtest.Recorder
				log.Watch(reg)
				h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
					log.Hooks(t, r.Context(), sqlreqtest.Main, "")
					_, err := sqlreqtest.Main.ExecContext(r.Context(), "SELECT 1")
					return err
				}))
				rec := sqlreqtest.Do(h)
				if n := sqlreqtest.Count(t, db, "work"); n != 1 {
					t.Errorf("%d rows are stored: it ran not once", n)
				}
				if rec.Code != 500 || rec.Header().Get("Retry-After") != "" {
					t.Errorf("answered %d, Retry-After %q", rec.Code, rec.Header().Get("Retry-After"))
				}
				if log.Events() != "main Ended 1" || log.Words() != "" {
					t.Errorf("events %q, hooks %q; want one that Ended, and neither kind of hook", log.Events(), log.Words())
				}
			})
		}
	}
}

func TestG11AfterBeginThatEndedTheTransactionInDo(t *testing.T) {
	for name, f := range endsItself {
		t.Run(name, func(t *testing.T) {
			reg, _ := endsItselfIn(t, false, f)
			var log sqlreqtest.Recorder
			log.Watch(reg)
			runs := 0
			err := reg.Do(t.Context(), func(ctx context.Context) error {
				runs++
				log.Hooks(t, ctx, sqlreqtest.Main, "")
				_, _ = sqlreqtest.Main.ExecContext(ctx, "SELECT 1")
				return nil // it makes nothing of the error
			})
			if !sqlreq.MayHaveCommitted(err) || runs != 1 || log.Words() != "" {
				t.Errorf("Do returned %v, MayHaveCommitted %v, ran %d times, hooks %q", err, sqlreq.MayHaveCommitted(err), runs, log.Words())
			}
		})
	}
}

// noReason is an error whose methods panic where it is a nil pointer.
type noReason struct{ inner error }

func (e *noReason) Error() string { return "bad: " + e.inner.Error() }
func (e *noReason) Unwrap() error { return e.inner }

func TestG4AfterBeginReturnsATypedNil(t *testing.T) {
	a := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: a.Open(t), AfterBegin: func(context.Context, *http.Request, *sql.Tx) error {
		var e *noReason
		return e
	}})
	h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		_, err := sqlreqtest.Main.ExecContext(r.Context(), "INSERT")
		return err
	}))
	ans := sqlreqtest.AskGet(h, "/")
	if ans.Panicked != nil || ans.Code != 500 || a.Count("ROLLBACK") != 1 || a.Counts().Open != 0 {
		t.Errorf("panicked with %v, answered %d; %q", ans.Panicked, ans.Code, a.Log())
	}
	err := reg.Do(t.Context(), func(ctx context.Context) error {
		_, err := sqlreqtest.Main.ExecContext(ctx, "INSERT")
		return err
	})
	if v := sqlreqtest.Panicked(func() { _ = err.Error() }); err == nil || v != nil {
		t.Errorf("the error of Do panics: %v", v)
	}
}
