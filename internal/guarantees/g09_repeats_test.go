// G9 A request is never run again after anything was committed, a Do under this request
// included; not one in Route, TxOptions, AfterBegin, AfterRollback or Observe, which run
// for each attempt by their nature.

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

func TestG9DoThatCommits(t *testing.T) {
	tests := map[string]int{ // the runs of 3 attempts
		"handler":               1,
		"goroutine":             1,
		"Savepoint":             1,
		"AfterCommit":           1,
		"Route":                 3,
		"TxOptions":             3,
		"AfterRollback":         3,
		"Observe":               3,
		"Do in Route":           3,
		"Do in AfterRollback":   3,
		"goroutine of Route":    3,
		"handler, Do in a Do":   1,
		"Route, by r.Context()": 3,
	}
	for where, want := range tests {
		for _, unit := range []string{"request", "Do", "nested"} {
			for _, guard := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/Guard %t", where, unit, guard), func(t *testing.T) {
					d := &fakedb.DB{}
					db := d.Open(t)
					var audit *sqlreq.Registry
					commits := func(ctx context.Context) {
						if err := audit.Do(ctx, func(ctx context.Context) error {
							sqlreqtest.Exec(t, ctx, "audit", "AUDIT")
							return nil
						}); err != nil {
							t.Errorf("Do: %v", err)
						}
					}
					deeper := func(ctx context.Context) {
						_ = audit.Do(ctx, func(ctx context.Context) error { commits(ctx); return nil })
					}
					inGoroutine := func(ctx context.Context) {
						done := make(chan struct{})
						go func() { defer close(done); commits(ctx) }()
						<-done
					}
					audit = sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "audit", DB: (&fakedb.DB{}).Open(t)})
					asked := map[string]func(context.Context){"Route": commits, "Do in Route": deeper, "goroutine of Route": inGoroutine, "Route, by r.Context()": commits}
					b := sqlreq.Binding{DB: db, Guard: guard}
					switch {
					case asked[where] != nil:
						b.DB, b.Route = nil, func(ctx context.Context, r *http.Request) (*sql.DB, error) {
							if where == "Route, by r.Context()" && r != nil {
								ctx = r.Context()
							}
							asked[where](ctx)
							return db, nil
						}
					case where == "TxOptions":
						b.TxOptions = func(ctx context.Context, _ *http.Request) *sql.TxOptions { commits(ctx); return nil }
					}
					reg := sqlreqtest.NewRegistry(t, b)
					reg.Retry = sqlreqtest.Retries(3)
					if where == "Observe" {
						reg.Observe = func(ctx context.Context, _ sqlreq.Event) { commits(ctx) }
					}
					runs := 0
					work := func(ctx context.Context) error {
						runs++
						hooks := map[string]func(context.Context){"AfterRollback": commits, "Do in AfterRollback": deeper}
						if fn := hooks[where]; fn != nil {
							if err := sqlreq.AfterRollback(ctx, fn); err != nil {
								t.Error(err)
							}
						}
						if where == "AfterCommit" {
							if err := sqlreq.AfterCommit(ctx, commits); err != nil {
								t.Error(err)
							}
						}
						sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
						switch where {
						case "handler":
							commits(ctx)
						case "handler, Do in a Do":
							deeper(ctx)
						case "goroutine":
							inGoroutine(ctx)
						case "Savepoint":
							_ = sqlreq.Savepoint(ctx, func(ctx context.Context) error { commits(ctx); return nil })
						case "AfterCommit":
							if err := sqlreq.Commit(ctx); err != nil {
								t.Error(err)
							}
						}
						return sqlreqtest.Conflict{}
					}
					handler := sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error { return work(r.Context()) })
					switch unit {
					case "request":
						sqlreqtest.Do(reg.Middleware(handler))
					case "Do":
						_ = reg.Do(t.Context(), work)
					case "nested":
						outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "other", DB: (&fakedb.DB{}).Open(t)})
						outer.Retry = reg.Retry
						sqlreqtest.Do(outer.Middleware(reg.Middleware(handler)))
					}
					if runs != want {
						t.Errorf("%d runs, want %d", runs, want)
					}
				})
			}
		}
	}
}

// What such a function has kept and handed on is no part of it any more: a Do with its
// context that commits when it has returned is the handler's, and the request is not run
// again.
func TestG9DoWithAContextThatWasHandedOn(t *testing.T) {
	for _, of := range []string{"Route", "TxOptions", "AfterBegin", "AfterRollback", "Observe"} {
		for _, guard := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/Guard %t", of, guard), func(t *testing.T) {
				db := (&fakedb.DB{}).Open(t)
				var kept context.Context
				b := sqlreq.Binding{DB: db, Guard: guard}
				switch of {
				case "Route":
					b.DB, b.Route = nil, func(ctx context.Context, _ *http.Request) (*sql.DB, error) { kept = ctx; return db, nil }
				case "TxOptions":
					b.TxOptions = func(ctx context.Context, _ *http.Request) *sql.TxOptions { kept = ctx; return nil }
				case "AfterBegin":
					b.AfterBegin = func(ctx context.Context, _ *http.Request, _ *sql.Tx) error { kept = ctx; return nil }
				}
				reg := sqlreqtest.NewRegistry(t, b)
				reg.Retry = sqlreqtest.Retries(3)
				if of == "Observe" {
					reg.Observe = func(ctx context.Context, _ sqlreq.Event) { kept = ctx }
				}
				audit := &fakedb.DB{}
				audits := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "audit", DB: audit.Open(t)})
				sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
					if of == "AfterRollback" {
						if err := sqlreq.AfterRollback(r.Context(), func(ctx context.Context) { kept = ctx }); err != nil {
							t.Error(err)
						}
					}
					sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
					if err := sqlreq.Rollback(r.Context()); err != nil {
						t.Error(err)
					}
					if err := audits.Do(kept, func(ctx context.Context) error {
						sqlreqtest.Exec(t, ctx, "audit", "AUDIT")
						return nil
					}); err != nil {
						t.Error(err)
					}
					return sqlreqtest.Conflict{}
				})))
				if n := audit.Count("COMMIT"); n != 1 {
					t.Errorf("the Do was committed %d times, want once", n)
				}
			})
		}
	}
}
