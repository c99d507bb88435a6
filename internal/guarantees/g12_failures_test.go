// G12 Before COMMIT. An error, Fail or panic of a BeforeCommit function is as the
// handler's: an error is rendered by the registry of the registration, a conflict is
// retried. After one the request cannot commit any more.

package guarantees

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// failures are the ways in which a BeforeCommit function fails.
var failures = map[string]struct {
	fn     func(context.Context) error
	status int  // of the request
	err    bool // the unit fails with ErrTest
	leaves bool // it does not return
}{
	"error":        {func(context.Context) error { return sqlreqtest.ErrTest }, 500, true, false},
	"StatusError":  {func(context.Context) error { return sqlreq.Errorf(409, "taken: %w", sqlreqtest.ErrTest) }, 409, true, false},
	"Fail":         {func(ctx context.Context) error { return sqlreq.Fail(ctx, sqlreqtest.ErrTest) }, 500, true, false},
	"RollbackOnly": {func(ctx context.Context) error { return sqlreq.RollbackOnly(ctx, sqlreqtest.ErrTest) }, 200, true, false},
	"panic":        {func(context.Context) error { panic(sqlreqtest.ErrTest) }, 200, false, true},
	"Goexit":       {func(context.Context) error { runtime.Goexit(); return nil }, 200, false, true},
}

func TestG12FailureOfOne(t *testing.T) {
	for name, tt := range failures {
		t.Run(name, func(t *testing.T) {
			asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
				j, bindings := newJournal(t, mainKey, "other")
				reg := sqlreqtest.NewRegistry(t, bindings...)
				var events sqlreqtest.Recorder
				reg.Observe = events.Observe
				u := run(reg, func(ctx context.Context) error {
					sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
					sqlreqtest.Exec(t, ctx, "other", "INSERT")
					events.Hooks(t, ctx, mainKey, "")
					before(t, ctx, mainKey, j.Func("first", nil))
					before(t, ctx, mainKey, tt.fn)
					before(t, ctx, mainKey, j.Func("never", nil))
					before(t, ctx, "other", j.Func("never", nil))
					return nil
				})
				j.Check(t, "main BEGIN", "main INSERT", "other BEGIN", "other INSERT", "first", "other ROLLBACK", "main ROLLBACK")
				if got := events.String(); got != "other RolledBack 1, main RolledBack 1, rollback" {
					t.Errorf("got %s", got)
				}
				if u.done == tt.leaves || (name == "panic") != (u.panics == error(sqlreqtest.ErrTest)) {
					t.Errorf("got %+v", u)
				}
				if u.status != 0 { // a request
					if u.status != tt.status || tt.err && name != "RollbackOnly" && !errors.Is(u.err, sqlreqtest.ErrTest) {
						t.Errorf("got %d, %v, want %d", u.status, u.err, tt.status)
					}
				} else if tt.err != errors.Is(u.err, sqlreqtest.ErrTest) {
					t.Errorf("got %v", u.err)
				}
			})
		})
	}
}

// After a function has failed at an explicit Commit nothing is committed any more,
// whatever the handler makes of it.
func TestG12FailureAtAnExplicitCommit(t *testing.T) {
	for name, tt := range failures {
		t.Run(name, func(t *testing.T) {
			asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
				j, bindings := newJournal(t, mainKey)
				reg := sqlreqtest.NewRegistry(t, bindings...)
				u := run(reg, func(ctx context.Context) error {
					sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
					before(t, ctx, mainKey, tt.fn)
					before(t, ctx, mainKey, j.Func("never", nil))
					var err error
					sqlreqtest.Panicked(func() { err = sqlreq.Commit(ctx) })
					if tt.err && !errors.Is(err, sqlreqtest.ErrTest) {
						t.Errorf("Commit: got %v, want the function's error", err)
					}
					refused(t, "another Commit", sqlreq.Commit(ctx), "refused")
					return nil
				})
				j.Check(t, "main BEGIN", "main INSERT", "main ROLLBACK")
				if want := max(tt.status, 500); name != "StatusError" && name != "RollbackOnly" && u.status != 0 && u.status != want {
					t.Errorf("got %d, want %d", u.status, want)
				}
				if u.status == 0 && u.err == nil {
					t.Error("Do has succeeded")
				}
			})
		})
	}
}

// The error of a function is rendered by the registry of the registration.
func TestG12ErrorOfANestedApplication(t *testing.T) {
	j, bindings := newJournal(t, mainKey)
	outer, inner := sqlreqtest.NewRegistry(t, bindings...), sqlreqtest.NewRegistry(t)
	answer := func(code int) func(http.ResponseWriter, *http.Request, error) {
		return func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(code) }
	}
	outer.ErrorHandler, inner.ErrorHandler = answer(501), answer(502)
	for _, in := range []bool{false, true} {
		leaf := inner.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			sqlreqtest.Exec(t, r.Context(), mainKey, "INSERT")
			if in {
				before(t, r.Context(), mainKey, j.Func("", sqlreqtest.ErrTest))
			}
		}))
		rec := sqlreqtest.Do(outer.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			leaf.ServeHTTP(w, r)
			if !in {
				before(t, r.Context(), mainKey, j.Func("", sqlreqtest.ErrTest))
			}
		})))
		if want := map[bool]int{false: 501, true: 502}[in]; rec.Code != want {
			t.Errorf("registered in the inner one: %t: got %d, want %d", in, rec.Code, want)
		}
		j.Check(t, "main BEGIN", "main INSERT", "", "main ROLLBACK")
	}
}

func TestG12ConflictIsRetried(t *testing.T) {
	conflicts := map[string]func(context.Context) error{
		"returned": func(context.Context) error { return sqlreqtest.Conflict{} },
		"by a statement": func(ctx context.Context) error {
			_, err := mainKey.ExecContext(ctx, "CONFLICT")
			return err
		},
	}
	for name, fn := range conflicts {
		t.Run(name, func(t *testing.T) {
			asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
				db := sqlreqtest.OpenFaulty(t, &fakedb.DB{Stmt: func(_ context.Context, q string) error {
					if q == "CONFLICT" {
						return sqlreqtest.Conflict{}
					}
					return nil
				}})
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
				reg.Retry = sqlreqtest.Retries(3)
				attempts := 0
				run(reg, func(ctx context.Context) error {
					attempts++
					sqlreqtest.Exec(t, ctx, mainKey, sqlreqtest.InsertWork)
					if attempts < 3 {
						before(t, ctx, mainKey, fn)
					} else {
						before(t, ctx, mainKey, func(ctx context.Context) error {
							sqlreqtest.Note(t, ctx, mainKey, "outbox")
							return nil
						})
					}
					return nil
				}).ok(t)
				if got := sqlreqtest.Notes(t, db); attempts != 3 || got != "x outbox" {
					t.Errorf("got %d attempts and %q, want 3 and what one of them wrote", attempts, got)
				}
			})
		})
	}
}

// The life of a function's context is that of the request: it ends with the client.
func TestG12ClientLeavesInOne(t *testing.T) {
	asUnits := map[string]func(*sqlreq.Registry, context.Context, func(context.Context) error) int{
		"request": func(reg *sqlreq.Registry, ctx context.Context, fn func(context.Context) error) int {
			return sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				return fn(r.Context())
			})), httptest.NewRequest("GET", "/", nil).WithContext(ctx)).Code
		},
		"Do": func(reg *sqlreq.Registry, ctx context.Context, fn func(context.Context) error) int {
			return sqlreq.StatusCode(reg.Do(ctx, fn))
		},
	}
	for name, run := range asUnits {
		t.Run(name, func(t *testing.T) {
			j, bindings := newJournal(t, mainKey)
			reg := sqlreqtest.NewRegistry(t, bindings...)
			client, leave := context.WithCancel(context.Background())
			code := run(reg, client, func(ctx context.Context) error {
				sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
				before(t, context.WithoutCancel(ctx), mainKey, func(ctx context.Context) error {
					leave()
					<-ctx.Done()
					j.Add("left")
					return nil
				})
				before(t, ctx, mainKey, j.Func("never", nil))
				return nil
			})
			if code != 503 {
				t.Errorf("got %d, want 503", code)
			}
			j.Check(t, "main BEGIN", "main INSERT", "left", "main ROLLBACK")
		})
	}
	t.Run("at an explicit Commit with a context of its own", func(t *testing.T) {
		j, bindings := newJournal(t, mainKey)
		client, leave := context.WithCancel(context.Background())
		asUnits["request"](sqlreqtest.NewRegistry(t, bindings...), client, func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
			before(t, ctx, mainKey, func(context.Context) error { j.Add("left"); leave(); return nil })
			before(t, ctx, mainKey, j.Func("never", nil))
			if err := sqlreq.Commit(context.WithoutCancel(ctx)); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want context.Canceled", err)
			}
			return nil
		})
		j.Check(t, "main BEGIN", "main INSERT", "left", "main ROLLBACK")
	})
	t.Run("before", func(t *testing.T) {
		j, bindings := newJournal(t, mainKey)
		reg := sqlreqtest.NewRegistry(t, bindings...)
		client, leave := context.WithCancel(context.Background())
		asUnits["request"](reg, client, func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
			before(t, ctx, mainKey, j.Func("never", nil))
			leave()
			return nil
		})
		j.Check(t, "main BEGIN", "main INSERT", "main ROLLBACK")
	})
}

// A response that streams cannot be taken back: it is broken off.
func TestG12FailureWhileStreaming(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	reg.HoldLimit = 8
	reg.Retry = sqlreqtest.Retries(3)
	runs := 0
	srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Note(t, r.Context(), mainKey, "work")
		before(t, r.Context(), mainKey, func(context.Context) error { runs++; return sqlreqtest.Conflict{} })
		_, _ = io.WriteString(w, "more than eight bytes")
	})))
	if status, body, err := sqlreqtest.Get(t, srv.URL); err == nil {
		t.Errorf("got %d %q, want a broken transfer", status, body)
	}
	if n := sqlreqtest.Count(t, db, "work"); n != 0 || runs != 1 {
		t.Errorf("got %d rows and %d runs, want 0 and 1", n, runs)
	}
}
