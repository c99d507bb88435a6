// G6 Route and TxOptions are asked once per attempt and key, with no lock held, and may
// use other keys. Using the key itself from them, also in a circle over other keys,
// also when two goroutines close the circle, is an error that names the mistake, not a
// wait for oneself. The request that they are given carries the context that they are
// given.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// asks returns a binding whose Route, or TxOptions, calls ask and returns its error
// where it can.
func asks(where string, k sqlreq.Key, db *sql.DB, ask func(context.Context, *http.Request) error) sqlreq.Binding {
	if where == "Route" {
		return sqlreq.Binding{Key: k, Route: func(ctx context.Context, r *http.Request) (*sql.DB, error) { return db, ask(ctx, r) }}
	}
	return sqlreq.Binding{Key: k, DB: db, TxOptions: func(ctx context.Context, r *http.Request) *sql.TxOptions {
		_ = ask(ctx, r)
		return nil
	}}
}

// The bubble tells of a wait that nothing ends.
func TestG6RouteThatUsesItsOwnKey(t *testing.T) {
	contexts := map[string]func(context.Context, *http.Request) context.Context{
		"ctx":               func(ctx context.Context, _ *http.Request) context.Context { return ctx },
		"the request's":     func(_ context.Context, r *http.Request) context.Context { return r.Context() },
		"made of ctx":       func(ctx context.Context, _ *http.Request) context.Context { return context.WithoutCancel(ctx) },
		"in a Do around it": nil,
	}
	for _, where := range []string{"Route", "TxOptions"} {
		for which, pick := range contexts {
			for name, use := range sqlreqtest.Uses() {
				if where == "TxOptions" && name == "BeginTx" {
					continue // which has options of its own: TestG6BeginTxWhileTxOptionsIsAsked
				}
				for _, goroutine := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/%s/%s/goroutine %t", where, which, name, goroutine), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							var got error
							ask := func(ctx context.Context, r *http.Request) error {
								if pick != nil {
									ctx = pick(ctx, r)
								}
								result := make(chan error, 1)
								if goroutine {
									go func() { result <- use(ctx) }()
								} else {
									result <- use(ctx)
								}
								got = <-result
								return got
							}
							reg := sqlreqtest.NewRegistry(t, asks(where, sqlreqtest.Main, (&fakedb.DB{}).Open(t), ask))
							work := func(ctx context.Context) error { return sqlreqtest.Uses()["Exec"](ctx) }
							if pick == nil {
								_ = reg.Do(t.Context(), work)
							} else {
								sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error { return work(r.Context()) })))
							}
							if got == nil || !strings.Contains(got.Error(), `the Route or TxOptions of key "main" uses the key "main" and would wait for itself`) {
								t.Errorf("got %v, want an error that names the mistake", got)
							}
						})
					})
				}
			}
		}
	}
}

// The circle goes over two, or three, keys, in one goroutine.
func TestG6RoutesInACircle(t *testing.T) {
	for _, where := range []string{"Route", "TxOptions"} {
		for _, n := range []int{2, 3} {
			for _, byRequest := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%d keys/by the request's context %t", where, n, byRequest), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						var innermost error
						var bindings []sqlreq.Binding
						for i := range n {
							next := sqlreq.Key(fmt.Sprint((i + 1) % n))
							bindings = append(bindings, asks(where, sqlreq.Key(fmt.Sprint(i)), (&fakedb.DB{}).Open(t), func(ctx context.Context, r *http.Request) error {
								if byRequest {
									ctx = r.Context()
								}
								_, err := next.Tx(ctx)
								if innermost == nil {
									innermost = err
								}
								return err
							}))
						}
						reg := sqlreqtest.NewRegistry(t, bindings...)
						rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
							_, err := sqlreq.Key("0").Tx(r.Context())
							return err
						})))
						if innermost == nil || !strings.Contains(innermost.Error(), `uses the key "0"`) {
							t.Errorf("got %v, want an error that names the key", innermost)
						}
						if want := map[string]int{"Route": 500, "TxOptions": 200}[where]; rec.Code != want {
							t.Errorf("got %d, want %d", rec.Code, want)
						}
					})
				})
			}
		}
	}
}

// Two goroutines close the circle: each is asked for one key, and then uses the other.
func TestG6RoutesInACircleOfTwoGoroutines(t *testing.T) {
	for _, where := range []string{"Route", "TxOptions"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				both := make(chan struct{})
				asked := make(chan struct{}, 2)
				var bindings []sqlreq.Binding
				for i := range 2 {
					other := sqlreq.Key(fmt.Sprint(1 - i))
					bindings = append(bindings, asks(where, sqlreq.Key(fmt.Sprint(i)), (&fakedb.DB{}).Open(t), func(ctx context.Context, _ *http.Request) error {
						asked <- struct{}{}
						<-both
						_, err := other.Tx(ctx)
						if where == "TxOptions" {
							asked <- struct{}{}
							if err != nil && !strings.Contains(err.Error(), "they would wait for each other") {
								t.Errorf("got %v, want an error that names the mistake", err)
							}
						}
						return err
					}))
				}
				reg := sqlreqtest.NewRegistry(t, bindings...)
				err := reg.Do(t.Context(), func(ctx context.Context) error {
					results := make(chan error, 2)
					for _, k := range []sqlreq.Key{"0", "1"} {
						go func() { _, err := k.Tx(ctx); results <- err }()
					}
					<-asked
					<-asked
					close(both)
					return errors.Join(<-results, <-results)
				})
				if where == "Route" && (err == nil || !strings.Contains(err.Error(), "they would wait for each other")) {
					t.Errorf("got %v, want an error that names the mistake", err)
				}
			})
		})
	}
}

// What is no circle is served: a directory of tenants, asked by several at once.
func TestG6RouteThatUsesAnotherKey(t *testing.T) {
	for _, where := range []string{"Route", "TxOptions"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				directory := &fakedb.DB{}
				var bindings []sqlreq.Binding
				for i := range 4 {
					bindings = append(bindings, asks(where, sqlreq.Key(fmt.Sprint(i)), (&fakedb.DB{}).Open(t), func(ctx context.Context, r *http.Request) error {
						if r.Context() != ctx {
							t.Errorf("%s is given a request with another context", where)
						}
						_, err := sqlreq.Key("directory").ExecContext(r.Context(), "SELECT")
						return err
					}))
				}
				bindings = append(bindings, asks(where, "directory", directory.Open(t), func(context.Context, *http.Request) error { return nil }))
				reg := sqlreqtest.NewRegistry(t, bindings...)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				a := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
					results := make(chan error)
					for i := range 8 {
						go func() { _, err := sqlreq.Key(fmt.Sprint(i % 4)).Tx(r.Context()); results <- err }()
					}
					var errs []error
					for range 8 {
						errs = append(errs, <-results)
					}
					return errors.Join(errs...)
				})), httptest.NewRequestWithContext(ctx, "GET", "/", nil))
				if a.Code != 200 {
					t.Errorf("got %d, want 200", a.Code)
				}
				if n := directory.Count("SELECT"); n != 4 {
					t.Errorf("the directory was asked %d times, want 4: once for each key", n)
				}
			})
		})
	}
}

// A wait for who is being asked, from outside of it, is no circle: it ends.
func TestG6RouteIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		db := (&fakedb.DB{}).Open(t)
		reg := sqlreqtest.NewRegistry(t, asks("Route", sqlreqtest.Main, db, func(context.Context, *http.Request) error { <-goOn; return nil }))
		err := reg.Do(t.Context(), func(ctx context.Context) error {
			results := make(chan error, 2)
			for range 2 {
				go func() { _, err := sqlreq.Tx(ctx); results <- err }()
			}
			synctest.Wait()
			close(goOn)
			return errors.Join(<-results, <-results)
		})
		if err != nil {
			t.Error(err)
		}
	})
}
