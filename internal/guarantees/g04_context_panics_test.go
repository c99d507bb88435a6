// G4 A context of the request whose Err or Done panics keeps no transaction open and no
// connection: what is open is rolled back all the same.

package guarantees

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

func TestG4ContextThatPanics(t *testing.T) {
	for _, method := range []string{"Err", "Done"} {
		for _, end := range []string{"returns", "answers 500", "panics", "Rollback"} {
			t.Run(method+", the handler "+end, func(t *testing.T) {
				a := &fakedb.DB{}
				db := a.Open(t)
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
				var broken atomic.Bool
				breaks := func() {
					if broken.Load() {
						panic(method)
					}
				}
				ctx := sqlreqtest.Asked{Context: t.Context(), OnErr: breaks}
				if method == "Done" {
					ctx = sqlreqtest.Asked{Context: t.Context(), OnDone: breaks}
				}
				h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
					broken.Store(true)
					switch end {
					case "answers 500":
						w.WriteHeader(500)
					case "panics":
						panic("x")
					case "Rollback":
						_ = sqlreq.Rollback(r.Context())
					}
				}))
				ans := sqlreqtest.Ask(h, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
				if open, inUse := a.Counts().Open, db.Stats().InUse; open != 0 || inUse != 0 {
					t.Errorf("%d transactions are open, %d connections in use; answered %d, panicked with %v", open, inUse, ans.Code, ans.Panicked)
				}
				if method == "Err" && a.Count("COMMIT") != 0 {
					t.Errorf("committed, though nobody knows whether the context has ended: %q", a.Log())
				}
			})
		}
	}
}

// One that panics at any of its calls while a transaction is begun leaves none behind: that
// of the request, or the context of the use, as it is or with a life of its own.
func TestG4ContextPanicsInBegin(t *testing.T) {
	nth := func(n int, what string) func() {
		return func() {
			if n--; n == 0 {
				panic(what)
			}
		}
	}
	for _, whose := range []string{"request's", "use's", "narrower", "without end"} {
		met := 0
		for done := range 9 {
			for errs := range 6 {
				a := &fakedb.DB{}
				db := a.Open(t)
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
				breaks := func(ctx context.Context) context.Context {
					return sqlreqtest.Asked{Context: ctx, OnDone: nth(done, "Done"), OnErr: nth(errs, "Err")}
				}
				h := reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					ctx := r.Context()
					narrower, cancel := context.WithCancel(ctx)
					defer cancel()
					switch whose {
					case "use's":
						ctx = breaks(ctx)
					case "narrower":
						ctx = breaks(narrower)
					case "without end":
						ctx = breaks(context.WithoutCancel(ctx))
					}
					defer func() {
						if recover() != nil {
							met++
						}
					}()
					_, _ = sqlreq.Tx(ctx)
				}))
				ctx, cancel := context.WithCancel(t.Context())
				if whose == "request's" {
					ctx = breaks(ctx)
				}
				ans := sqlreqtest.Ask(h, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
				cancel()
				if open, inUse := a.Counts().Open, db.Stats().InUse; open != 0 || inUse != 0 {
					t.Errorf("%s, call %d of Done, %d of Err: %d transactions are open, %d connections in use; answered %d, panicked with %v; %q", whose, done, errs, open, inUse, ans.Code, ans.Panicked, a.Log())
				}
			}
		}
		if met == 0 {
			t.Errorf("%s: no call has panicked", whose)
		}
	}
}
