// G6 Do. Inside a request it is independent of the request's transaction: it takes a
// second connection. Where a use in a Do needs the only connection of a pool that a
// unit around it holds, and the Do's context is that unit's own, or that of a Savepoint,
// an Atomic, or a hook, BeforeCommit, Route, TxOptions or Observe function that runs, that use is an error at once
// that says what to do: it could never be served. With another context it waits, and
// if it waits in vain the error says the same.

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

// neverServed reports whether err says that the connection could never be had.
func neverServed(err error) bool {
	return err != nil && strings.Contains(err.Error(), "MaxOpenConnections is 1") && strings.Contains(err.Error(), "context.WithoutCancel")
}

// poolOfOne is a pool of one connection.
func poolOfOne(t *testing.T) *sql.DB {
	db := (&fakedb.DB{}).Open(t)
	db.SetMaxOpenConns(1)
	return db
}

type poolKey struct{}

// In each row a Do needs the connection that a unit around it holds. The bubble
// tells if one waits for ever.
func TestG6DoThatNeedsTheOnlyConnection(t *testing.T) {
	places := map[string]func(t *testing.T, reg *sqlreq.Registry, ctx context.Context, use func(context.Context) error) error{
		"in the handler": func(_ *testing.T, reg *sqlreq.Registry, ctx context.Context, use func(context.Context) error) error {
			return reg.Do(ctx, use)
		},
		"with a context made of the request's": func(_ *testing.T, reg *sqlreq.Registry, ctx context.Context, use func(context.Context) error) error {
			return reg.Do(context.WithValue(ctx, poolKey{}, 1), use)
		},
		"in a goroutine": func(_ *testing.T, reg *sqlreq.Registry, ctx context.Context, use func(context.Context) error) error {
			err := make(chan error)
			go func() { err <- reg.Do(ctx, use) }()
			return <-err
		},
		"in a Do in the handler": func(_ *testing.T, reg *sqlreq.Registry, ctx context.Context, use func(context.Context) error) error {
			return reg.Do(ctx, func(ctx context.Context) error { return reg.Do(ctx, use) })
		},
		"in a Savepoint": func(_ *testing.T, reg *sqlreq.Registry, ctx context.Context, use func(context.Context) error) error {
			return sqlreq.Savepoint(ctx, func(ctx context.Context) error { return reg.Do(ctx, use) })
		},
		"in an Atomic": func(_ *testing.T, reg *sqlreq.Registry, ctx context.Context, use func(context.Context) error) error {
			return reg.Atomic(ctx, func(ctx context.Context) error { return reg.Do(ctx, use) })
		},
		"in an AfterCommit function of another key": func(t *testing.T, reg *sqlreq.Registry, ctx context.Context, use func(context.Context) error) error {
			return inHook(t, ctx, sqlreq.Key.AfterCommit, sqlreq.Key.Commit, func(ctx context.Context) error { return reg.Do(ctx, use) })
		},
		"in an AfterRollback function of another key": func(t *testing.T, reg *sqlreq.Registry, ctx context.Context, use func(context.Context) error) error {
			return inHook(t, ctx, sqlreq.Key.AfterRollback, sqlreq.Key.Rollback, func(ctx context.Context) error { return reg.Do(ctx, use) })
		},
	}
	for place, do := range places {
		for name, use := range sqlreqtest.Uses() {
			for _, guard := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/Guard %t", place, name, guard), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: poolOfOne(t), Guard: guard}, sqlreq.Binding{Key: "other", DB: (&fakedb.DB{}).Open(t)})
						ctx, cancel := context.WithCancel(t.Context()) // as that of a request over a connection
						defer cancel()
						rec := sqlreqtest.Ask(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
							sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
							if err := do(t, reg, r.Context(), use); !neverServed(err) {
								t.Errorf("got %v, want an error that says what to do", err)
							}
							sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
						})), httptest.NewRequestWithContext(ctx, "GET", "/", nil))
						if rec.Code != 200 {
							t.Errorf("got %d, want that the request is none the worse", rec.Code)
						}
						// With nothing open around it, the same use is served.
						if err := reg.Do(ctx, func(ctx context.Context) error { return reg.Do(ctx, use) }); err != nil {
							t.Errorf("with nothing open: got %v", err)
						}
					})
				})
			}
		}
	}
}

// inHook runs fn in a hook of the key "other", which is ended while DefaultKey's
// transaction is open.
func inHook(t *testing.T, ctx context.Context, after func(sqlreq.Key, context.Context, func(context.Context)) error, end func(sqlreq.Key, context.Context) error, fn func(context.Context) error) (result error) {
	sqlreqtest.Exec(t, ctx, "other", "INSERT")
	if err := after("other", ctx, func(ctx context.Context) { result = fn(ctx) }); err != nil {
		t.Error(err)
	}
	if err := end("other", ctx); err != nil {
		t.Error(err)
	}
	return result
}

// Where no context ends there is no channel to compare: the very contexts that the
// program was given are known all the same, and one made by context.WithoutCancel is
// for later.
func TestG6DoThatNeedsTheOnlyConnectionWithoutAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: poolOfOne(t)})
		use := sqlreqtest.Uses()["Exec"]
		later := make(chan error, 1)
		err := reg.Do(context.Background(), func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			if err := reg.Do(ctx, use); !neverServed(err) {
				t.Errorf("in a Do: got %v, want an error that says what to do", err)
			}
			go func() { later <- reg.Do(context.WithoutCancel(ctx), use) }()
			inAtomic(t, ctx, reg, nil, func(ctx context.Context) error {
				if err := reg.Do(ctx, use); !neverServed(err) {
					t.Errorf("in an Atomic: got %v, want an error that says what to do", err)
				}
				return nil
			})
			before(t, ctx, mainKey, func(ctx context.Context) error {
				if err := reg.Do(ctx, use); !neverServed(err) {
					t.Errorf("in a BeforeCommit function: got %v, want an error that says what to do", err)
				}
				return nil
			})
			return sqlreq.Savepoint(ctx, func(ctx context.Context) error {
				if err := reg.Do(ctx, use); !neverServed(err) {
					t.Errorf("in a Savepoint: got %v, want an error that says what to do", err)
				}
				return nil
			})
		})
		if err := errors.Join(err, <-later); err != nil {
			t.Error(err)
		}
	})
}

// A Route, TxOptions and Observe function that run are waited for by the request too.
func TestG6DoThatNeedsTheOnlyConnectionWhileAsked(t *testing.T) {
	for _, where := range []string{"Route", "TxOptions", "Observe"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var reg *sqlreq.Registry
				var got error
				do := func(ctx context.Context) { got = reg.Do(ctx, sqlreqtest.Uses()["Exec"]) }
				other := (&fakedb.DB{}).Open(t)
				b := sqlreq.Binding{Key: "other", DB: other}
				switch where {
				case "Route":
					b.DB = nil
					b.Route = func(ctx context.Context, _ *http.Request) (*sql.DB, error) { do(ctx); return other, nil }
				case "TxOptions":
					b.TxOptions = func(ctx context.Context, _ *http.Request) *sql.TxOptions { do(ctx); return nil }
				}
				reg = sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: poolOfOne(t)}, b)
				if where == "Observe" {
					reg.Observe = func(ctx context.Context, e sqlreq.Event) {
						if e.Key == "other" {
							do(ctx)
						}
					}
				}
				rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
					sqlreqtest.Exec(t, r.Context(), "other", "INSERT")
					if err := sqlreq.Key("other").Commit(r.Context()); err != nil {
						t.Error(err)
					}
				})))
				if rec.Code != 200 || !neverServed(got) {
					t.Errorf("got %d, %v; want 200 and an error that says what to do", rec.Code, got)
				}
			})
		})
	}
}

// Later, when the connection is free again, the same is served.
func TestG6DoForLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := poolOfOne(t)
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
		done := make(chan error, 1)
		rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
			go func() { done <- reg.Do(context.WithoutCancel(r.Context()), sqlreqtest.Uses()["Exec"]) }()
			synctest.Wait()
			if n := db.Stats().WaitCount; n != 1 {
				t.Errorf("%d wait for the pool, want the Do", n)
			}
		})))
		if err := <-done; rec.Code != 200 || err != nil {
			t.Errorf("got %d, %v; want 200, and that the Do was served", rec.Code, err)
		}
	})
}

// One that waits in vain is told why, and it is a 503 as any wait in vain.
func TestG6DoThatWaitsInVain(t *testing.T) {
	ends := map[string]struct {
		context func(context.Context) (context.Context, func())
		is      error
		code    int
	}{
		"deadline":  {func(ctx context.Context) (context.Context, func()) { return sqlreqtest.Deadline(ctx) }, context.DeadlineExceeded, 503},
		"cancelled": {func(ctx context.Context) (context.Context, func()) { return context.WithCancel(ctx) }, context.Canceled, 503},
	}
	for name, tt := range ends {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: poolOfOne(t)})
				sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
					ctx, end := tt.context(r.Context())
					go func() { synctest.Wait(); end() }()
					err := reg.Do(ctx, sqlreqtest.Uses()["Exec"])
					if !errors.Is(err, tt.is) || !neverServed(err) || sqlreq.StatusCode(err) != tt.code {
						t.Errorf("got %v (%d), want %v with the reason, and %d", err, sqlreq.StatusCode(err), tt.is, tt.code)
					}
				})))
			})
		})
	}
}

// A pool of two is enough for a Do, and of one for what has another pool.
func TestG6DoThatIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, two := poolOfOne(t), poolOfOne(t)
		two.SetMaxOpenConns(2)
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "two", DB: two})
		rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), "two", "INSERT")
			return reg.Do(r.Context(), func(ctx context.Context) error {
				sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
				sqlreqtest.Exec(t, ctx, "two", "INSERT")
				return nil
			})
		})))
		if rec.Code != 200 {
			t.Errorf("got %d", rec.Code)
		}
	})
}
