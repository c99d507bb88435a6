// G4 No success by accident. A panic (same value, original stack, no recover in
// between), http.ErrAbortHandler, runtime.Goexit, of the handler, of a function of
// the program or of the driver: none of them commits what is still open, all give the
// connection back to the pool clean and, where the driver lets us, alive.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// TestG4Panic: the panic goes through with its value, and the stack where it is
// recovered outside is that of the handler.
func TestG4Panic(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	values := map[string]any{"error": sqlreqtest.ErrTest, "abort": http.ErrAbortHandler, "value": &struct{ n int }{1}}
	for name, value := range values {
		for _, inner := range []string{"plain", "HandlerFunc", "TxFunc", "nested"} {
			t.Run(name+"/"+inner, func(t *testing.T) {
				h := panicking(t, inner, value)
				var got any
				var stack string
				outside := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("X-Outside", "1")
					defer func() {
						got, stack = recover(), string(debug.Stack())
						http.Error(w, "recovered", 500)
					}()
					reg.Middleware(h).ServeHTTP(w, r)
				})
				res, err := http.Get(sqlreqtest.Serve(t, outside).URL)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				if got != value || !strings.Contains(stack, "throwInHandler") {
					t.Errorf("got %v, want %v, and the handler's frame in\n%s", got, value, stack)
				}
				if res.StatusCode != 500 || res.Header.Get("X-Inside") != "" || res.Header.Get("X-Outside") != "1" {
					t.Errorf("got %d %v, want 500 without the handler's header", res.StatusCode, res.Header)
				}
				if n := sqlreqtest.Count(t, db, "work"); n != 0 {
					t.Errorf("got %d rows, want none", n)
				}
				sqlreqtest.Idle(t, db)
			})
		}
	}
}

func throwInHandler(v any) { panic(v) }

func panicking(t *testing.T, kind string, value any) http.Handler {
	work := func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		w.Header().Set("X-Inside", "1")
		w.WriteHeader(201)
		throwInHandler(value)
	}
	switch kind {
	case "HandlerFunc":
		return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { work(w, r); return nil })
	case "TxFunc":
		return sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, _ *sql.Tx) error { work(w, r); return nil })
	case "nested":
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "inner", DB: (&fakedb.DB{}).Open(t)})
		return reg.Middleware(http.HandlerFunc(work))
	}
	return http.HandlerFunc(work)
}

// TestG4PanicOnTheWire: without anybody who recovers the client sees no response at all.
func TestG4PanicOnTheWire(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	for name, end := range map[string]func(){
		"panic":           func() { panic(sqlreqtest.ErrTest) },
		"ErrAbortHandler": func() { panic(http.ErrAbortHandler) },
		"Goexit":          runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				w.WriteHeader(201)
				end()
			})))
			if status, _, err := sqlreqtest.Get(t, srv.URL); err == nil {
				t.Errorf("got %d, want no response", status)
			}
			if n := sqlreqtest.Count(t, db, "work"); n != 0 {
				t.Errorf("got %d rows, want none", n)
			}
			sqlreqtest.Idle(t, db)
		})
	}
}

func TestG4DoPanicAndGoexit(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic(sqlreqtest.ErrTest) }, "Goexit": runtime.Goexit} {
		f := &fakedb.DB{}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
		recovered := make(chan any)
		go func() {
			defer func() { recovered <- recover() }()
			_ = reg.Do(t.Context(), func(ctx context.Context) error {
				sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
				end()
				return nil
			})
		}()
		if got := <-recovered; (got == sqlreqtest.ErrTest) != (name == "panic") {
			t.Errorf("%s: recovered %v", name, got)
		}
		f.Check(t, "BEGIN", "INSERT", "ROLLBACK")
	}
}

// FailNow in an Observe of a test is a Goexit.
func TestG4ObserveExitsDuringCommit(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	reg.Observe = func(context.Context, sqlreq.Event) { runtime.Goexit() }
	sqlreqtest.Panicked(func() {
		sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			_ = sqlreq.Commit(r.Context())
			t.Error("Commit returned")
		})))
	})
	if n := sqlreqtest.Count(t, db, "work"); n != 1 {
		t.Errorf("%d rows, want the committed one", n)
	}
	sqlreqtest.Idle(t, db)
}

func TestG4ObserveExitsAtTheEndOfTwoKeys(t *testing.T) {
	a, b := sqlreqtest.OpenDB(t), sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "a", DB: a}, sqlreq.Binding{Key: "b", DB: b})
	reg.Observe = func(context.Context, sqlreq.Event) { runtime.Goexit() }
	sqlreqtest.Panicked(func() {
		sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			sqlreqtest.Exec(t, r.Context(), "a", sqlreqtest.InsertWork)
			sqlreqtest.Exec(t, r.Context(), "b", sqlreqtest.InsertWork)
		})))
	})
	sqlreqtest.Idle(t, a)
	sqlreqtest.Idle(t, b)
	if n, m := sqlreqtest.Count(t, a, "work"), sqlreqtest.Count(t, b, "work"); n != 1 || m != 1 {
		t.Errorf("%d rows in the first, %d in the second; want one each: both had ended before", n, m)
	}
}

func TestG4DriverPanicsInCommit(t *testing.T) {
	db := sqlreqtest.OpenFaulty(t, &fakedb.DB{Commit: func() error { panic("driver") }})
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	panicked := sqlreqtest.Panicked(func() {
		sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			_ = sqlreq.Commit(r.Context())
		})))
	})
	// database/sql has lost the connection, there is nothing to give back.
	if n := sqlreqtest.Count(t, db, "work"); panicked != "driver" || n != 0 {
		t.Errorf("got panic %v and %d rows, want the driver's and none", panicked, n)
	}
}

// once returns f for the first call, and nothing for those after it.
func once(f func()) func() {
	var once sync.Once
	return func() { once.Do(f) }
}

// What was begun is ended also if what belongs to the BEGIN does not return.
func TestG4DriverPanicsAfterBegin(t *testing.T) {
	t.Run("Guard", func(t *testing.T) {
		d := &fakedb.DB{}
		d.Stmt = func(context.Context, string) error { panic("driver") }
		db := d.Open(t)
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, Guard: true})
		sqlreqtest.Panicked(func() {
			sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = sqlreq.Tx(r.Context()) })))
		})
		d.CheckLog(t, "BEGIN", "SAVEPOINT sqlreq_guard", "ROLLBACK")
		sqlreqtest.Idle(t, db)
	})
	t.Run("Binding.Tx", func(t *testing.T) {
		d := &fakedb.DB{}
		tx, err := d.Open(t).Begin()
		if err != nil {
			t.Fatal(err)
		}
		first := once(func() { panic("driver") })
		d.Stmt = func(context.Context, string) error { first(); return nil }
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: tx})
		use := func(ctx context.Context) error {
			_, err := sqlreq.Tx(ctx)
			return err
		}
		sqlreqtest.Panicked(func() { _ = reg.Do(context.Background(), use) })
		if err := reg.Do(context.Background(), use); err != nil { // the turn was given back
			t.Errorf("the next one got %v", err)
		}
	})
}

// A BEGIN that comes too late is rolled back. If that, or Observe, does not
// return, the next use of the database begins anew all the same.
func TestG4LateBeginWhoseEndDoesNotReturn(t *testing.T) {
	t.Run("ROLLBACK panics", func(t *testing.T) {
		// database/sql rolls a late transaction back as well, and the first of the two
		// sends the ROLLBACK: it is tried until that is the request.
		for tries := 1; ; tries++ {
			var panicked atomic.Bool
			d := &fakedb.DB{}
			first := once(func() {
				if !fakedb.ByDatabaseSQL() {
					panicked.Store(true)
					panic("driver")
				}
			})
			lateBegin(t, d, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)}), first)
			if panicked.Load() {
				return
			}
			if tries == 10_000 {
				t.Fatalf("the request sent no ROLLBACK in %d tries", tries)
			}
		}
	})
	t.Run("Observe exits", func(t *testing.T) {
		d := &fakedb.DB{}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
		exit := once(runtime.Goexit)
		reg.Observe = func(context.Context, sqlreq.Event) { exit() }
		lateBegin(t, d, reg, func() {})
	})
}

// lateBegin serves a request whose first BEGIN succeeds when its context has
// ended, and which uses the database again. rollback is called by each ROLLBACK.
func lateBegin(t *testing.T, d *fakedb.DB, reg *sqlreq.Registry, rollback func()) {
	t.Helper()
	rolledBack := make(chan struct{})
	told := sync.OnceFunc(func() { close(rolledBack) })
	d.Rollback = func() error { told(); rollback(); return nil }
	sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		d.Begin = func(wait context.Context) error {
			if ctx.Err() == nil { // the first one
				cancel()
				<-wait.Done()
			}
			return nil
		}
		sqlreqtest.Panicked(func() { _, _ = sqlreq.Tx(ctx) })
		<-rolledBack
		if _, err := sqlreq.Tx(r.Context()); err != nil {
			t.Errorf("the next use got %v", err)
		}
	})))
	d.CheckLog(t, "BEGIN", "ROLLBACK", "BEGIN", "COMMIT")
}

// A transaction whose end panics fails the request, though the handler recovers;
// what is known of it goes with it, and the next use begins anew.
func TestG4BrokenTransactionWhoseRollbackPanics(t *testing.T) {
	d := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		d.Stmt = func(context.Context, string) error {
			if ctx.Err() == nil {
				cancel()
				return sqlreqtest.ErrTest
			}
			return nil
		}
		if _, err := sqlreqtest.Main.ExecContext(ctx, "INSERT"); !errors.Is(err, sqlreqtest.ErrTest) {
			t.Errorf("got %v", err)
		}
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), "INSERT"); err == nil {
			t.Error("a statement ran on a transaction that may have ended")
		}
		first := once(func() { panic("driver") })
		d.Change(func(d *fakedb.DB) { d.Rollback = func() error { first(); return nil } })
		sqlreqtest.Panicked(func() { _ = sqlreq.Rollback(r.Context()) })
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "UPDATE")
	})))
	if rec.Code != 500 {
		t.Errorf("got %d, want 500", rec.Code)
	}
	d.CheckLog(t, "BEGIN", "INSERT", "ROLLBACK", "BEGIN", "UPDATE", "ROLLBACK")
}
