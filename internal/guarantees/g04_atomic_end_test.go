// G4 No success by accident: an Atomic beside a Hijack, and one that is still open
// when its unit ends.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// One in a Route waits for the turn of a database where nothing was ever begun, while
// a Hijack has it; it does not panic.
func TestG4AtomicInARouteBesideAHijack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, bindings := newJournal(t, "a", "b")
		commit := fakedb.NewPoint()
		j.On = func(_ context.Context, line string) error {
			if line == "a COMMIT" {
				commit.Wait()
			}
			return nil
		}
		var reg *sqlreq.Registry
		routed := make(chan any, 1)
		reg = sqlreqtest.NewRegistry(t, append(bindings, sqlreq.Binding{Key: "c", Route: func(ctx context.Context, _ *http.Request) (*sql.DB, error) {
			routed <- sqlreqtest.Panicked(func() { _ = reg.Atomic(ctx, func(context.Context) error { return nil }) })
			return bindings[1].DB, nil
		}})...)
		h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx := r.Context()
			if err := sqlreq.Key("b").AfterCommit(ctx, func(context.Context) {}); err != nil { // b is known, nothing is begun
				t.Error(err)
			}
			exec(t, nil, "X", "a")(ctx)
			hijacked := make(chan bool)
			go func() {
				defer close(hijacked)
				_, _, _ = w.(http.Hijacker).Hijack()
			}()
			commit.Reached()
			go func() { _, _ = sqlreq.Key("c").DB(ctx) }()
			synctest.Wait()
			commit.Release()
			<-hijacked
			if v := <-routed; v != nil {
				t.Errorf("Atomic panicked: %v", v)
			}
		}))
		h.ServeHTTP(hijackable{httptest.NewRecorder()}, httptest.NewRequest("GET", "/", nil))
		j.Check(t, "a BEGIN", "a X", "a COMMIT")
	})
}

// One in which nothing is begun, and that is open when its unit ends, fails that as an
// open Savepoint does: what becomes of it nobody knows, and its AfterCommit functions
// do not run.
func TestG4AtomicOpenAtTheEnd(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		for _, fails := range []error{nil, sqlreqtest.ErrTest} {
			j, bindings := newJournal(t, "a")
			reg := sqlreqtest.NewRegistry(t, bindings...)
			goOn, over := make(chan bool), make(chan error, 1)
			u := run(reg, func(ctx context.Context) error {
				inside := make(chan bool)
				go func() {
					over <- reg.Atomic(ctx, func(ctx context.Context) error {
						if err := sqlreq.Key("a").AfterCommit(ctx, j.Hook("after COMMIT")); err != nil {
							t.Error(err)
						}
						close(inside)
						<-goOn
						return fails
					})
				}()
				<-inside
				return nil
			})
			close(goOn)
			refused(t, "the unit", u.err, "an Atomic is still open")
			if err := <-over; fails == nil && err != sqlreq.ErrFinished || fails != nil && !errors.Is(err, fails) {
				t.Errorf("Atomic: got %v", err)
			}
			j.Check(t)
		}
	})
}
