// G7 Nothing is done in a request that has ended: Atomic is ErrFinished then.

package guarantees

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// One that is called when its unit has ended, outside of hooks, is no Do: what an
// attempt has left running does not commit beside the next one.
func TestG7AtomicAfterTheEnd(t *testing.T) {
	j, bindings := newJournal(t, "a")
	reg := sqlreqtest.NewRegistry(t, bindings...)
	reg.Retry = sqlreqtest.Retries(2)
	goOn, late, attempts := make(chan bool), make(chan error, 1), 0
	asRequest(reg, func(ctx context.Context) error {
		if attempts++; attempts == 1 {
			go func() { <-goOn; late <- reg.Atomic(ctx, exec(t, nil, "LATE", "a")) }()
			return sqlreqtest.Conflict{}
		}
		close(goOn)
		if err := <-late; err != sqlreq.ErrFinished {
			t.Errorf("got %v, want ErrFinished", err)
		}
		return reg.Atomic(ctx, exec(t, nil, "X", "a"))
	}).ok(t)
	j.Check(t, "a BEGIN", "a X", "a COMMIT")
}

// After the end, or after Hijack, a use is ErrFinished also where an Atomic is why it would be
// refused before that: with the context of one that was undone, and outside of one that is open.
func TestG7AtomicsContexts(t *testing.T) {
	for _, end := range []string{"the end", "Hijack"} {
		for _, whose := range []string{"undone", "outside"} {
			if end == "Hijack" && whose == "outside" {
				continue // Hijack is refused while an Atomic is open
			}
			a := &fakedb.DB{}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: a.Open(t)})
			open, goOn, over := make(chan bool), make(chan bool), make(chan bool)
			look := func(ctx context.Context) {
				for name, use := range sqlreqtest.Uses() {
					if err := use(ctx); !errors.Is(err, sqlreq.ErrFinished) {
						t.Errorf("after %s, %s: %s: got %v, want ErrFinished", end, whose, name, err)
					}
				}
			}
			var ctx context.Context
			srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(over)
				defer func() {
					if ctx != nil && end == "the end" {
						look(context.WithoutCancel(ctx))
					}
					close(goOn)
				}()
				reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					ctx = r.Context()
					sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
					if whose == "outside" {
						go func(ctx context.Context) {
							_ = reg.Atomic(ctx, func(context.Context) error { close(open); <-goOn; return nil })
						}(ctx)
						<-open
						return
					}
					_ = reg.Atomic(ctx, func(inner context.Context) error { ctx = inner; return sqlreqtest.ErrTest })
					if end == "Hijack" {
						conn, _, err := http.NewResponseController(w).Hijack()
						if err != nil {
							t.Errorf("Hijack: %v", err)
							return
						}
						defer conn.Close()
						look(ctx)
					}
				})).ServeHTTP(w, r)
			}))
			if res, err := http.Get(srv.URL); err == nil {
				res.Body.Close()
			}
			<-over
		}
	}
}
