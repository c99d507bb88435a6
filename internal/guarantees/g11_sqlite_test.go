// G11 A transaction the server ended is found out, on a real SQLite: INSERT OR ROLLBACK
// that fails, and an INSERT that is interrupted, end the transaction, and what follows
// commits by itself. A rollback that turns out to have been none is no rollback: the
// work that stayed is not done again, and no hook says that it is gone.

package guarantees

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

const (
	insertOrder = "INSERT INTO work (note) VALUES ('order')"
	orRollback  = "INSERT OR ROLLBACK INTO work (id, note) VALUES (1, 'again')"
)

// interrupt runs an INSERT through a Key whose context ends meanwhile.
func interrupt(t *testing.T, ctx context.Context) {
	t.Helper()
	ended, cancel := context.WithCancel(ctx)
	defer cancel()
	if _, err := sqlreqtest.Main.ExecContext(ended, "INSERT INTO work (note) "+endless(cancel)); err == nil {
		t.Error("the INSERT was not interrupted")
	}
}

// endedBySQLite are the ways in which SQLite ends the transaction, each followed by
// an order.
var endedBySQLite = []struct {
	name    string
	work    func(t *testing.T, ctx context.Context)
	unknown bool // the order has stayed
	aborted bool // a Key's statement has met the error: COMMIT is not tried
}{
	{"OR ROLLBACK by a Key", func(t *testing.T, ctx context.Context) {
		if _, err := sqlreqtest.Main.ExecContext(ctx, orRollback); err == nil {
			t.Error("no conflict")
		}
		sqlreqtest.Exec(t, ctx, sqlreqtest.Main, insertOrder)
	}, true, false},
	{"OR ROLLBACK by *sql.Tx", func(t *testing.T, ctx context.Context) {
		tx, err := sqlreq.Tx(ctx)
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := tx.ExecContext(ctx, orRollback); err == nil {
			t.Error("no conflict")
		}
		if _, err := tx.ExecContext(ctx, insertOrder); err != nil {
			t.Error(err)
		}
	}, true, false},
	{"interrupted by a Key", func(t *testing.T, ctx context.Context) {
		interrupt(t, ctx)
		if _, err := sqlreqtest.Main.ExecContext(ctx, insertOrder); err == nil {
			t.Error("a statement ran after one that may have ended the transaction")
		}
	}, false, true},
	{"interrupted by a Key, the order by *sql.Tx", func(t *testing.T, ctx context.Context) {
		tx, err := sqlreq.Tx(ctx)
		if err != nil {
			t.Error(err)
			return
		}
		interrupt(t, ctx)
		if _, err := tx.ExecContext(ctx, insertOrder); err != nil {
			t.Error(err)
		}
	}, true, true},
}

// afterSQLiteEnded is how a unit of work goes on. The work is done by do.
var afterSQLiteEnded = []struct {
	name                string
	attempts            int
	end                 func(t *testing.T, w http.ResponseWriter, ctx context.Context, do func(context.Context)) error
	rolledBack, unknown seen
}{
	{name: "end", end: func(_ *testing.T, _ http.ResponseWriter, ctx context.Context, do func(context.Context)) error {
		do(ctx)
		return nil
	}, rolledBack: seen{500, back, "rollback"}, unknown: seen{500, "main CommitFailed 1", ""}},

	{name: "returned error", end: func(_ *testing.T, _ http.ResponseWriter, ctx context.Context, do func(context.Context)) error {
		do(ctx)
		return sqlreqtest.ErrTest
	}, rolledBack: seen{500, back, "rollback"}, unknown: seen{500, ended, ""}},

	{name: "status", end: func(_ *testing.T, w http.ResponseWriter, ctx context.Context, do func(context.Context)) error {
		do(ctx)
		w.WriteHeader(422)
		return nil
	}, rolledBack: seen{422, back, "rollback"}, unknown: seen{422, ended, ""}},

	{name: "Commit", end: func(t *testing.T, _ http.ResponseWriter, ctx context.Context, do func(context.Context)) error {
		do(ctx)
		if err := sqlreq.Commit(ctx); err == nil {
			t.Error("Commit returned nil")
		}
		return nil
	}, rolledBack: seen{500, back, "rollback"}, unknown: seen{500, "main CommitFailed 1", ""}},

	{name: "Rollback", end: func(t *testing.T, _ http.ResponseWriter, ctx context.Context, do func(context.Context)) error {
		do(ctx)
		_ = sqlreq.Rollback(ctx)
		return nil
	}, rolledBack: seen{200, back, "rollback"}, unknown: seen{500, ended, ""}},

	{name: "Savepoint that fails", end: func(t *testing.T, _ http.ResponseWriter, ctx context.Context, do func(context.Context)) error {
		if err := sqlreq.Savepoint(ctx, func(ctx context.Context) error { do(ctx); return sqlreqtest.ErrTest }); !errors.Is(err, sqlreqtest.ErrTest) {
			t.Errorf("Savepoint returned %v, want the error of its function", err)
		}
		return nil
	}, rolledBack: seen{500, back, "rollback"}, unknown: seen{500, ended, ""}},

	{name: "Savepoint that goes well", end: func(t *testing.T, _ http.ResponseWriter, ctx context.Context, do func(context.Context)) error {
		if err := sqlreq.Savepoint(ctx, func(ctx context.Context) error { do(ctx); return nil }); err == nil {
			t.Error("Savepoint returned nil")
		}
		return nil
	}, rolledBack: seen{500, back, "rollback"}, unknown: seen{500, ended, ""}},

	{name: "Hijack", end: func(t *testing.T, w http.ResponseWriter, ctx context.Context, do func(context.Context)) error {
		do(ctx)
		if _, _, err := http.NewResponseController(w).Hijack(); err == nil {
			t.Error("Hijack returned nil")
		}
		return nil
	}, rolledBack: seen{500, back, "rollback"}, unknown: seen{500, "main CommitFailed 1", ""}},

	{name: "Retry", attempts: 3, end: func(_ *testing.T, _ http.ResponseWriter, ctx context.Context, do func(context.Context)) error {
		do(ctx)
		return sqlreqtest.Conflict{} // of the next statement
	}, rolledBack: seen{200, back + ", main Committed 2", "rollback commit"}, unknown: seen{500, ended, ""}},
}

func TestG11EndedBySQLite(t *testing.T) {
	units := []struct {
		name string
		// run serves the handler, and returns the status; in a Do that of its error.
		run func(t *testing.T, reg *sqlreq.Registry, h func(http.ResponseWriter, context.Context) error) int
	}{
		{"request", func(t *testing.T, reg *sqlreq.Registry, h func(http.ResponseWriter, context.Context) error) int {
			rec := httptest.NewRecorder()
			reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { return h(w, r.Context()) })).
				ServeHTTP(pipe{rec}, httptest.NewRequest("POST", "/", nil))
			return rec.Code
		}},
		{"Do", func(t *testing.T, reg *sqlreq.Registry, h func(http.ResponseWriter, context.Context) error) int {
			return sqlreq.StatusCode(reg.Do(t.Context(), func(ctx context.Context) error { return h(nil, ctx) }))
		}},
		{"nested", func(t *testing.T, reg *sqlreq.Registry, h func(http.ResponseWriter, context.Context) error) int {
			rec := httptest.NewRecorder()
			outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "other", DB: sqlreqtest.OpenDB(t)})
			outer.Retry = reg.Retry
			outer.Middleware(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { return h(w, r.Context()) }))).
				ServeHTTP(pipe{rec}, httptest.NewRequest("POST", "/", nil))
			return rec.Code
		}},
		{"two keys", func(t *testing.T, reg *sqlreq.Registry, h func(http.ResponseWriter, context.Context) error) int {
			rec := httptest.NewRecorder()
			db := sqlreqtest.OpenDB(t)
			outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "other", DB: db})
			outer.Retry = reg.Retry
			outer.Middleware(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				err := h(w, r.Context())
				sqlreqtest.Exec(t, r.Context(), "other", sqlreqtest.InsertWork) // after main: it ends after it
				return err
			}))).ServeHTTP(pipe{rec}, httptest.NewRequest("POST", "/", nil))
			if n := sqlreqtest.Count(t, db, "work"); n != 0 != (rec.Code == 200) {
				t.Errorf("%d rows of the other database with %d", n, rec.Code)
			}
			return rec.Code
		}},
	}
	for _, u := range units {
		for _, after := range afterSQLiteEnded {
			if u.name == "Do" && (after.name == "status" || after.name == "Hijack") {
				continue // a Do has no response
			}
			for _, kind := range endedBySQLite {
				for _, guard := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/%s/%s/Guard %t", u.name, after.name, kind.name, guard), func(t *testing.T) {
						db := sqlreqtest.OpenDB(t)
						if _, err := db.Exec(sqlreqtest.InsertWork); err != nil { // the row with the id 1
							t.Fatal(err)
						}
						reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, Guard: guard})
						reg.Retry = sqlreqtest.Retries(after.attempts)
						var log sqlreqtest.Recorder
						log.Watch(reg)
						attempts := 0
						code := u.run(t, reg, func(w http.ResponseWriter, ctx context.Context) error {
							log.Hooks(t, ctx, sqlreqtest.Main, "")
							if attempts++; attempts > 1 {
								sqlreqtest.Exec(t, ctx, sqlreqtest.Main, insertOrder)
								return nil
							}
							sqlreqtest.Note(t, ctx, sqlreqtest.Main, "before")
							return after.end(t, w, ctx, func(ctx context.Context) { kind.work(t, ctx) })
						})
						want, notes := after.rolledBack, "x"
						switch {
						case kind.unknown && kind.aborted:
							want, notes = seen{after.unknown.code, ended, ""}, "x order"
						case kind.unknown:
							want, notes = after.unknown, "x order"
						case after.name == "Retry":
							notes = "x order"
						}
						if got := (seen{code, log.Events(), log.Words()}); got != want {
							t.Errorf("got %+v, want %+v", got, want)
						}
						if got := sqlreqtest.Notes(t, db); got != notes {
							t.Errorf("got rows %q, want %q", got, notes)
						}
						sqlreqtest.Idle(t, db)
					})
				}
			}
		}
	}
}

// In a test's transaction the same, without Guard, of which there is no need. What
// ran after the end has been committed, which nobody can undo; what later requests
// and Dos would do is refused, so that nothing of it stays.
func TestG11EndedBySQLiteInATestsTransaction(t *testing.T) {
	for _, after := range afterSQLiteEnded {
		if after.name == "Retry" {
			continue // a second attempt could do nothing in a transaction that has ended: below
		}
		for _, kind := range endedBySQLite {
			t.Run(after.name+"/"+kind.name, func(t *testing.T) {
				db := sqlreqtest.OpenDB(t)
				if _, err := db.Exec(sqlreqtest.InsertWork); err != nil {
					t.Fatal(err)
				}
				test := testTx(t, db)
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test})
				other := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "other", Tx: test})
				var log sqlreqtest.Recorder
				log.Watch(reg)
				rec := httptest.NewRecorder()
				reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
					log.Hooks(t, r.Context(), sqlreqtest.Main, "")
					sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "before")
					return after.end(t, w, r.Context(), func(ctx context.Context) { kind.work(t, ctx) })
				})).ServeHTTP(pipe{rec}, httptest.NewRequest("POST", "/", nil))
				want, notes := after.rolledBack, "x"
				switch {
				case kind.unknown && kind.aborted:
					want, notes = seen{after.unknown.code, ended, ""}, "x order"
				case kind.unknown:
					want, notes = after.unknown, "x order"
				}
				if got := (seen{rec.Code, log.Events(), log.Words()}); got != want {
					t.Errorf("got %+v, want %+v", got, want)
				}
				dead := func(err error) bool { return err != nil && strings.Contains(err.Error(), "Binding.Tx") }
				for name, use := range sqlreqtest.Uses() {
					if err := reg.Do(t.Context(), use); !dead(err) {
						t.Errorf("%s, later: got %v, want that the test's transaction has ended", name, err)
					}
				}
				later := sqlreqtest.Do(other.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
					_, err := sqlreq.Key("other").ExecContext(r.Context(), insertOrder)
					if !dead(err) {
						t.Errorf("another registry, later: got %v, want that the test's transaction has ended", err)
					}
					return err
				})))
				if later.Code != 500 {
					t.Errorf("a later request: got %d, want 500", later.Code)
				}
				_ = test.Rollback()
				if got := sqlreqtest.Notes(t, db); got != notes {
					t.Errorf("got rows %q, want %q", got, notes)
				}
			})
		}
	}
}
