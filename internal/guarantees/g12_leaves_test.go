package guarantees

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// endings are how a request ends its transaction before its end.
var endings = map[string]func(http.ResponseWriter, context.Context){
	"Commit": func(_ http.ResponseWriter, ctx context.Context) { _ = sqlreq.Commit(ctx) },
	"Hijack": func(w http.ResponseWriter, _ context.Context) { _, _, _ = w.(http.Hijacker).Hijack() },
}

// TestG12OneThatDoesNotReturn: a BeforeCommit function that panics, or exits its
// goroutine, in an explicit Commit or in Hijack fails the request, though the handler
// has recovered.
func TestG12OneThatDoesNotReturn(t *testing.T) {
	for name, leave := range map[string]func(){"panic": func() { panic("invariant") }, "Goexit": runtime.Goexit} {
		for how, end := range endings {
			t.Run(name+" in "+how, func(t *testing.T) {
				f := &fakedb.DB{}
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
				rec := httptest.NewRecorder()
				reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
					before(t, r.Context(), sqlreqtest.Main, func(context.Context) error { leave(); return nil })
					over := make(chan bool)
					go func() {
						defer close(over)
						defer func() { _ = recover() }()
						end(w, r.Context())
					}()
					<-over
				})).ServeHTTP(hijackable{rec}, httptest.NewRequest("GET", "/", nil))
				f.CheckLog(t, "BEGIN", "INSERT", "ROLLBACK")
				if rec.Code != 500 {
					t.Errorf("got %d, want 500", rec.Code)
				}
			})
		}
	}
}

// TestG12HandlerReturnsWhileHijackRunsOne: the end waits for a function that a Hijack
// in another goroutine has begun; nothing is committed without it.
func TestG12HandlerReturnsWhileHijackRunsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		db := f.Open(t)
		defer db.Close()
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
		over := make(chan bool)
		h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			running, goOn := make(chan bool), make(chan bool)
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
			before(t, r.Context(), sqlreqtest.Main, func(ctx context.Context) error {
				close(running)
				<-goOn
				_, err := sqlreqtest.Main.ExecContext(ctx, "OUTBOX")
				return err
			})
			go func() { defer close(over); _, _, _ = w.(http.Hijacker).Hijack() }()
			<-running
			go func() { synctest.Wait(); close(goOn) }() // the end of the request waits
		}))
		h.ServeHTTP(hijackable{httptest.NewRecorder()}, httptest.NewRequest("GET", "/", nil).WithContext(t.Context()))
		<-over
		f.CheckLog(t, "BEGIN", "INSERT", "OUTBOX", "COMMIT")
	})
}

// TestG12HijackRunsThoseOfWhatOnesBegin: at Hijack a function may begin on another
// database and register one there, which runs too.
func TestG12HijackRunsThoseOfWhatOnesBegin(t *testing.T) {
	const other sqlreq.Key = "other"
	a, b := &fakedb.DB{}, &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: a.Open(t)}, sqlreq.Binding{Key: other, DB: b.Open(t)})
	ran := 0
	reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
		before(t, r.Context(), sqlreqtest.Main, func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, other, "OUTBOX")
			before(t, ctx, other, func(context.Context) error { ran++; return nil })
			return nil
		})
		_, _, _ = w.(http.Hijacker).Hijack()
		if ran != 1 {
			t.Errorf("it ran %d times, want once", ran)
		}
	})).ServeHTTP(hijackable{httptest.NewRecorder()}, httptest.NewRequest("GET", "/", nil).WithContext(t.Context()))
	a.CheckLog(t, "BEGIN", "INSERT", "COMMIT")
	b.CheckLog(t, "BEGIN", "OUTBOX", "COMMIT")
}

// TestG12NotForADoomedTransaction: none runs for a transaction that a statement has
// told that it cannot be committed.
func TestG12NotForADoomedTransaction(t *testing.T) {
	f := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
	err := reg.Do(t.Context(), func(ctx context.Context) error {
		sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
		before(t, ctx, sqlreqtest.Main, func(context.Context) error { t.Error("it runs"); return nil })
		f.Change(func(d *fakedb.DB) { d.Stmt = func(context.Context, string) error { return io.ErrUnexpectedEOF } })
		_, _ = sqlreqtest.Main.ExecContext(ctx, "INSERT")
		return nil
	})
	if err == nil || f.Count("COMMIT") != 0 {
		t.Errorf("got %v and %q", err, f.Log())
	}
}

// hollow is an error whose methods panic when it is a nil pointer.
type hollow struct{ inner error }

func (e *hollow) Error() string { return "hollow: " + e.inner.Error() }
func (e *hollow) Unwrap() error { return e.inner }

// TestG12ErrorWhoseMethodsPanic: a function that returns a typed nil fails the unit,
// and harms nobody who looks at the error.
func TestG12ErrorWhoseMethodsPanic(t *testing.T) {
	for _, explicit := range []bool{false, true} {
		f := &fakedb.DB{}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
		work := func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			before(t, ctx, sqlreqtest.Main, func(context.Context) error { var e *hollow; return e })
			if explicit {
				return sqlreq.Commit(ctx)
			}
			return nil
		}
		h := reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error { return work(r.Context()) }))
		if ans := sqlreqtest.AskGet(h, "/"); ans.Panicked != nil || ans.Code != 500 {
			t.Errorf("explicit %v: panicked %v, got %d, want 500", explicit, ans.Panicked, ans.Code)
		}
		err := reg.Do(t.Context(), work)
		if v := sqlreqtest.Panicked(func() { _ = err.Error() }); v != nil || err == nil {
			t.Errorf("explicit %v: got %T, whose Error panics: %v", explicit, err, v)
		}
		if f.Count("COMMIT") != 0 {
			t.Errorf("explicit %v: %q", explicit, f.Log())
		}
	}
}
