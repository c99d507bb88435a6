// G4 RollbackOnly is for interceptors of protocols whose errors have the status 200:
// whatever is open is rolled back at the end, of every key; AfterRollback runs,
// AfterCommit does not, also where nothing was begun; a retryable cause is run again as
// long as the response is held; the response stands, held or streaming, without an
// abort; the line is at debug level. What an explicit Commit had committed stays. The
// first of it and Fail counts.

package guarantees

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

func rollbackOnly(t *testing.T, ctx context.Context) {
	t.Helper()
	if err := sqlreq.RollbackOnly(ctx, sqlreqtest.ErrTest); err != nil {
		t.Errorf("RollbackOnly: %v", err)
	}
}

func TestG4RollbackOnly(t *testing.T) {
	const large = 20 // more than HoldLimit
	type w = http.ResponseWriter
	tests := map[string]struct {
		work   func(t *testing.T, w w, ctx context.Context) error
		code   int
		body   string
		events string
		hooks  string
		commit int // how often COMMIT is sent, to both databases
	}{
		"held": {func(t *testing.T, w w, ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			rollbackOnly(t, ctx)
			_, _ = io.WriteString(w, "error")
			return nil
		}, 200, "error", back, "rollback rollback-other", 0},
		"streaming": {func(t *testing.T, w w, ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			_, _ = io.WriteString(w, strings.Repeat("x", large))
			rollbackOnly(t, ctx)
			return nil
		}, 200, strings.Repeat("x", large), back, "rollback rollback-other", 0},
		"streaming with a length": {func(t *testing.T, w w, ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			w.Header().Set("Content-Length", fmt.Sprint(large))
			_, _ = io.WriteString(w, strings.Repeat("x", large))
			rollbackOnly(t, ctx)
			return nil
		}, 200, strings.Repeat("x", large), back, "rollback rollback-other", 0},
		"two keys": {func(t *testing.T, w w, ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			rollbackOnly(t, ctx)
			sqlreqtest.Exec(t, ctx, "other", "INSERT")
			return nil
		}, 200, "", back + ", other RolledBack 1", "rollback rollback-other", 0},
		"nothing begun": {func(t *testing.T, w w, ctx context.Context) error {
			rollbackOnly(t, ctx)
			return nil
		}, 200, "", "", "rollback rollback-other", 0},
		"a status of its own": {func(t *testing.T, w w, ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			rollbackOnly(t, ctx)
			w.WriteHeader(409)
			return nil
		}, 409, "", back, "rollback rollback-other", 0},
		"before Fail": {func(t *testing.T, w w, ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			rollbackOnly(t, ctx)
			return sqlreq.Fail(ctx, sqlreq.Errorf(418, "later"))
		}, 200, "", back, "rollback rollback-other", 0},
		"before a returned error": {func(t *testing.T, w w, ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			rollbackOnly(t, ctx)
			return sqlreq.Errorf(418, "later")
		}, 200, "", back, "rollback rollback-other", 0},
		"after Fail": {func(t *testing.T, w w, ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			_ = sqlreq.Fail(ctx, sqlreq.Errorf(418, "first"))
			rollbackOnly(t, ctx)
			return nil
		}, http.StatusTeapot, http.StatusText(http.StatusTeapot) + "\n", back, "rollback rollback-other", 0},
		"after Commit": {func(t *testing.T, w w, ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			if err := sqlreq.Commit(ctx); err != nil {
				t.Error(err)
			}
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			rollbackOnly(t, ctx)
			return nil
		}, 200, "", "main Committed 1, main RolledBack 1", "commit rollback-other", 1},
		"and then Commit": {func(t *testing.T, w w, ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			rollbackOnly(t, ctx)
			if err := sqlreq.Commit(ctx); !errors.Is(err, sqlreqtest.ErrTest) {
				t.Errorf("Commit returned %v, want that it is refused because of the cause", err)
			}
			return nil
		}, 200, "", back, "rollback rollback-other", 0},
		"and then Rollback": {func(t *testing.T, w w, ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			rollbackOnly(t, ctx)
			return sqlreq.Rollback(ctx)
		}, 200, "", back, "rollback rollback-other", 0},
		"in a Savepoint": {func(t *testing.T, w w, ctx context.Context) error {
			return sqlreq.Savepoint(ctx, func(ctx context.Context) error { rollbackOnly(t, ctx); return nil })
		}, 200, "", back, "rollback rollback-other", 0},
		"without a cause": {func(t *testing.T, w w, ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			return sqlreq.RollbackOnly(ctx, nil)
		}, 200, "", back, "rollback rollback-other", 0},
		"in a Do": {func(t *testing.T, w w, ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "inside", DB: (&fakedb.DB{}).Open(t)})
			if err := reg.Do(ctx, func(ctx context.Context) error { rollbackOnly(t, ctx); return nil }); !errors.Is(err, sqlreqtest.ErrTest) {
				t.Errorf("Do returned %v, want the cause", err)
			}
			return nil
		}, 200, "", "main Committed 1", "commit commit-other", 1},
	}
	for name, tt := range tests {
		for _, nested := range []bool{false, true} {
			for _, commitIf := range []bool{false, true} {
				for _, guard := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/nested %t/CommitIf %t/Guard %t", name, nested, commitIf, guard), func(t *testing.T) {
						d, other := &fakedb.DB{}, &fakedb.DB{}
						reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: guard}, sqlreq.Binding{Key: "other", DB: other.Open(t)})
						var log sqlreqtest.Recorder
						log.Watch(reg)
						reg.HoldLimit = 10
						if commitIf {
							reg.CommitIf = func(int, http.Header) bool { return true }
						}
						h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
							log.Hooks(t, r.Context(), sqlreqtest.Main, "")
							log.Hooks(t, r.Context(), "other", "-other")
							return tt.work(t, w, r.Context())
						}))
						if nested {
							outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "outer", DB: (&fakedb.DB{}).Open(t)})
							outer.HoldLimit = 10
							h = outer.Middleware(h)
						}
						a := sqlreqtest.AskGet(h, "/")
						if a.Panicked != nil || a.Code != tt.code || a.Body.String() != tt.body {
							t.Errorf("got %d %q, panic %v; want %d %q", a.Code, a.Body, a.Panicked, tt.code, tt.body)
						}
						if log.Events() != tt.events || log.Words() != tt.hooks {
							t.Errorf("got events %q, hooks %q; want %q, %q", log.Events(), log.Words(), tt.events, tt.hooks)
						}
						if n := d.Count("COMMIT") + other.Count("COMMIT"); n != tt.commit {
							t.Errorf("%d times COMMIT, want %d", n, tt.commit)
						}
						for _, rec := range log.Records() {
							if rec["level"] != "DEBUG" {
								t.Errorf("logged %v, want nothing above debug", rec)
							}
						}
						d.CheckClean(t)
					})
				}
			}
		}
	}
}

// The cause is in the log, at debug level.
func TestG4RollbackOnlyIsLogged(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	var log sqlreqtest.Recorder
	log.Watch(reg)
	sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
		rollbackOnly(t, r.Context())
	})))
	if recs := log.Records(); len(recs) != 1 || recs[0]["level"] != "DEBUG" || recs[0]["err"] != "test" || recs[0]["method"] != "POST" || recs[0]["path"] != "/path" {
		t.Errorf("got %v, want the cause at debug level", recs)
	}
}

func TestG4RollbackOnlyIsRunAgain(t *testing.T) {
	tests := map[string]struct {
		cause error
		write int
		runs  int
	}{
		"a conflict":                      {sqlreqtest.Conflict{}, 5, 3},
		"a conflict, wrapped":             {fmt.Errorf("in vain: %w", sqlreqtest.Conflict{}), 5, 3},
		"another cause":                   {sqlreqtest.ErrTest, 5, 1},
		"a conflict, and it is streaming": {sqlreqtest.Conflict{}, 20, 1},
	}
	for name, tt := range tests {
		for _, unit := range []string{"request", "Do"} {
			t.Run(name+"/"+unit, func(t *testing.T) {
				d := &fakedb.DB{}
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
				reg.Retry, reg.HoldLimit = sqlreqtest.Retries(3), 10
				runs, want := 0, tt.runs
				work := func(ctx context.Context) {
					runs++
					sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
					if err := sqlreq.RollbackOnly(ctx, tt.cause); err != nil {
						t.Error(err)
					}
				}
				if unit == "Do" {
					if errors.Is(tt.cause, sqlreqtest.Conflict{}) {
						want = 3 // there is no response
					}
					if err := reg.Do(t.Context(), func(ctx context.Context) error { work(ctx); return nil }); !errors.Is(err, tt.cause) {
						t.Errorf("Do returned %v, want the cause", err)
					}
				} else if a := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.WriteString(w, strings.Repeat("x", tt.write))
					work(r.Context())
				})), "/"); a.Code != 200 || a.Body.Len() != tt.write || a.Header().Get("Retry-After") != "" {
					t.Errorf("got %d %q %v, want that the last answer stands", a.Code, a.Body, a.Header())
				}
				if runs != want || d.Count("COMMIT") > 0 {
					t.Errorf("%d runs, want %d; the driver was asked %q", runs, want, d.Log())
				}
			})
		}
	}
}

func TestG4RollbackOnlyTooLate(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	if err := sqlreq.RollbackOnly(t.Context(), sqlreqtest.ErrTest); !errors.Is(err, sqlreq.ErrNoRegistry) {
		t.Errorf("without a registry: got %v, want ErrNoRegistry", err)
	}
	var late context.Context
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		late = r.Context()
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
		hook := func(ctx context.Context) {
			if err := sqlreq.RollbackOnly(ctx, sqlreqtest.ErrTest); !errors.Is(err, sqlreq.ErrFinished) {
				t.Errorf("in a hook: got %v, want ErrFinished", err)
			}
		}
		err := errors.Join(sqlreq.AfterCommit(r.Context(), hook), sqlreq.Commit(r.Context()), sqlreq.AfterCommit(r.Context(), hook))
		if err != nil {
			t.Error(err)
		}
	})))
	if err := sqlreq.RollbackOnly(late, sqlreqtest.ErrTest); rec.Code != 200 || !errors.Is(err, sqlreq.ErrFinished) {
		t.Errorf("after the request (%d): got %v, want ErrFinished", rec.Code, err)
	}
}

// A panic, and a status of 400 or more, are no matter of RollbackOnly.
func TestG4RollbackOnlyAndAPanic(t *testing.T) {
	d := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
	a := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
		rollbackOnly(t, r.Context())
		panic(sqlreqtest.ErrTest)
	})), "/")
	if a.Panicked != sqlreqtest.ErrTest || a.Body.Len() > 0 {
		t.Errorf("got panic %v, body %q; want the panic and nothing else", a.Panicked, a.Body)
	}
	d.Check(t, "BEGIN", "INSERT", "ROLLBACK")
}

// A RollbackOnly that comes while Hijack waits for a statement counts: what is open is
// rolled back, and the connection is the program's.
func TestG4RollbackOnlyWhileHijackWaits(t *testing.T) {
	for _, guard := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			point := fakedb.NewPoint()
			d := slow(point, nil)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: guard})
			var log sqlreqtest.Recorder
			log.Watch(reg)
			reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				log.Hooks(t, r.Context(), sqlreqtest.Main, "")
				statement, hijack := make(chan error, 1), make(chan error, 1)
				go func() { statement <- slowStatements["ExecContext"](r.Context()) }()
				point.Reached()
				go func() {
					conn, _, err := http.NewResponseController(w).Hijack()
					if err == nil {
						conn.Close()
					}
					hijack <- err
				}()
				synctest.Wait()
				rollbackOnly(t, r.Context())
				point.Release()
				if err := errors.Join(<-statement, <-hijack); err != nil {
					t.Errorf("Guard %t: got %v, want that the connection is hijacked", guard, err)
				}
			})).ServeHTTP(pipe{httptest.NewRecorder()}, httptest.NewRequest("GET", "/", nil))
			if log.Events() != back || log.Words() != "rollback" || d.Count("COMMIT") > 0 {
				t.Errorf("Guard %t: events %q, hooks %q, log %q; want a rollback", guard, log.Events(), log.Words(), d.Log())
			}
		})
	}
}
