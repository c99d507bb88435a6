// G8 Hooks tell the truth: a begin that AfterBegin refused is no transaction to the
// hooks, and has an Event. AfterBegin runs in the transaction right after each BEGIN
// (each attempt, again after an explicit Commit, in Do, in read-only transactions,
// under Binding.Tx after its savepoint), before anybody gets it, after Guard's
// savepoint, with the context of the call that began. Its wait is a part of the begin.
// Using the key itself from it, also in a circle over other keys, is an error, not a
// wait for oneself. Its error rolls back and is the error of the use; a panic or Goexit
// of it rolls back and goes on.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// afterBegin is the type of Binding.AfterBegin.
type afterBegin = func(context.Context, *http.Request, *sql.Tx) error

// set is an AfterBegin that runs a statement.
func set(ctx context.Context, _ *http.Request, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, "SET")
	return err
}

func TestG8AfterBeginOfEveryTransaction(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		for name, use := range sqlreqtest.Uses() {
			t.Run(name, func(t *testing.T) {
				f := &fakedb.DB{}
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t), AfterBegin: set})
				reg.Retry = sqlreqtest.Retries(2)
				attempts := 0
				run(reg, func(ctx context.Context) error {
					if attempts++; attempts == 1 {
						return errors.Join(use(ctx), error(sqlreqtest.Conflict{}))
					}
					err := errors.Join(use(ctx), sqlreq.Commit(ctx), use(ctx), sqlreq.Rollback(ctx), use(ctx))
					return errors.Join(err, reg.Do(ctx, use))
				}).ok(t)
				log, sets := f.Log(), 0
				for i, stmt := range log {
					if stmt != "BEGIN" {
						continue
					}
					if sets++; log[i+1] != "SET" {
						t.Errorf("after BEGIN came %s", log[i+1])
					}
				}
				if f.Count("SET") != 5 || sets != 5 {
					t.Errorf("got %q, want 5 times BEGIN, SET", log)
				}
				f.CheckClean(t)
			})
		}
	})
}

func TestG8AfterBeginPlace(t *testing.T) {
	cases := map[string]struct {
		bind func(*sqlreq.Binding)
		use  func(context.Context) error
		want []string
	}{
		"Guard": {func(b *sqlreq.Binding) { b.Guard = true }, nil,
			[]string{"BEGIN", "SAVEPOINT sqlreq_guard", "SET", "WORK", "RELEASE SAVEPOINT sqlreq_guard", "COMMIT"}},
		"read-only": {func(b *sqlreq.Binding) { b.TxOptions = sqlreqtest.Options(sqlreqtest.ReadOnly) }, nil,
			[]string{"BEGIN READ ONLY", "SET", "WORK", "ROLLBACK"}},
		"BeginTx": {func(*sqlreq.Binding) {}, func(ctx context.Context) error {
			_, err := sqlreq.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelSerializable})
			return err
		}, []string{"BEGIN Serializable", "SET", "WORK", "COMMIT"}},
	}
	for name, tt := range cases {
		t.Run(name, func(t *testing.T) {
			asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
				f := &fakedb.DB{}
				b := sqlreq.Binding{DB: f.Open(t), AfterBegin: set}
				tt.bind(&b)
				run(sqlreqtest.NewRegistry(t, b), func(ctx context.Context) error {
					if tt.use != nil {
						if err := tt.use(ctx); err != nil {
							return err
						}
					}
					_, err := mainKey.ExecContext(ctx, "WORK")
					return err
				}).ok(t)
				f.Check(t, tt.want...)
			})
		})
	}
}

// Under Binding.Tx it runs after the savepoint: what it has written goes with it.
func TestG8AfterBeginBindingTx(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		test := testTx(t, sqlreqtest.OpenDB(t))
		var fails error
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test, AfterBegin: func(ctx context.Context, _ *http.Request, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "INSERT INTO work (note) VALUES ('set')")
			return errors.Join(err, fails)
		}})
		for _, use := range []error{nil, sqlreqtest.ErrTest} {
			for _, fails = range []error{nil, sqlreqtest.ErrTest} {
				run(reg, func(ctx context.Context) error {
					_, err := mainKey.ExecContext(ctx, "INSERT INTO work (note) VALUES ('work')")
					if !errors.Is(err, fails) {
						t.Errorf("got %v, want %v", err, fails)
					}
					return errors.Join(err, use)
				})
			}
		}
		if got := sqlreqtest.Notes(t, test); got != "set work" {
			t.Errorf("got %q", got)
		}
	})
}

// The context is that of the call that began, and the request has it; in a Do
// there is none.
func TestG8AfterBeginContextAndRequest(t *testing.T) {
	type valueKey struct{}
	var got []string
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t), AfterBegin: func(ctx context.Context, r *http.Request, _ *sql.Tx) error {
		path := "nil"
		if r != nil {
			path = r.URL.Path
			if r.Context() != ctx {
				t.Error("r.Context() is another context")
			}
		}
		got = append(got, fmt.Sprint(path, " ", ctx.Value(valueKey{})))
		return nil
	}})
	srv := sqlreqtest.Serve(t, http.StripPrefix("/app", reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, context.WithValue(r.Context(), valueKey{}, "first"), mainKey, sqlreqtest.InsertWork)
		sqlreqtest.Exec(t, context.WithValue(r.Context(), valueKey{}, "second"), mainKey, sqlreqtest.InsertWork)
		if err := sqlreq.Commit(r.Context()); err != nil {
			t.Error(err)
		}
		err := reg.Do(r.Context(), func(ctx context.Context) error {
			_, err := sqlreq.Tx(context.WithValue(ctx, valueKey{}, "do"))
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}))))
	if status, _, err := sqlreqtest.Get(t, srv.URL+"/app/path"); status != 200 || err != nil {
		t.Errorf("got %d, %v", status, err)
	}
	if all := strings.Join(got, ", "); all != "/path first, nil do" {
		t.Errorf("got %s", all)
	}
}

// Of two keys of one pool that both have one, that of the key that began has run
// and counts for both; of which only one has, they cannot share a transaction.
func TestG8AfterBeginKeysOfOnePool(t *testing.T) {
	f := &fakedb.DB{}
	db := f.Open(t)
	by := func(stmt string) afterBegin {
		return func(ctx context.Context, _ *http.Request, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, stmt)
			return err
		}
	}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, AfterBegin: by("MAIN")}, sqlreq.Binding{Key: "both", DB: db, AfterBegin: by("BOTH")},
		sqlreq.Binding{Key: "none", DB: db}, sqlreq.Binding{Key: "neither", DB: db})
	asRequest(reg, func(ctx context.Context) error {
		sqlreqtest.Exec(t, ctx, "both", "1")
		sqlreqtest.Exec(t, ctx, mainKey, "2")
		for name, use := range map[string]func(sqlreq.Key, context.Context) (*sql.Tx, error){
			"Tx": sqlreq.Key.Tx,
			"Exec": func(k sqlreq.Key, ctx context.Context) (*sql.Tx, error) {
				_, err := k.ExecContext(ctx, "X")
				return nil, err
			},
		} {
			_, err := use("none", ctx)
			refused(t, name, err, "only one of the two has an AfterBegin")
			if !errors.Is(err, sqlreq.ErrBegun) {
				t.Errorf("got %v, want ErrBegun", err)
			}
		}
		if err := sqlreq.Key("none").Commit(ctx); err != nil { // of the pool's transaction, whoever has begun it
			t.Error(err)
		}
		sqlreqtest.Exec(t, ctx, "none", "3")
		sqlreqtest.Exec(t, ctx, "neither", "4")
		if _, err := mainKey.Tx(ctx); !errors.Is(err, sqlreq.ErrBegun) {
			t.Errorf("got %v, want ErrBegun", err)
		}
		return nil
	}).ok(t)
	f.Check(t, "BEGIN", "BOTH", "1", "2", "COMMIT", "BEGIN", "3", "4", "COMMIT")
}

// An error of it is the error of the use, whoever asks; nothing is open then, and the
// next use begins anew. Its hooks wait for that.
func TestG8AfterBeginError(t *testing.T) {
	for name, use := range sqlreqtest.Uses() {
		t.Run(name, func(t *testing.T) {
			asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
				f := &fakedb.DB{}
				fails := true
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t), Guard: true, AfterBegin: func(ctx context.Context, r *http.Request, tx *sql.Tx) error {
					if fails {
						return sqlreqtest.ErrTest
					}
					return nil
				}})
				var told sqlreqtest.Recorder
				reg.Observe = told.Observe
				run(reg, func(ctx context.Context) error {
					told.Hooks(t, ctx, mainKey, "")
					before(t, ctx, mainKey, func(context.Context) error { told.Add("before"); return nil })
					if err := use(ctx); !errors.Is(err, sqlreqtest.ErrTest) {
						t.Errorf("got %v, want the error of AfterBegin", err)
					}
					begun(t, ctx, false, mainKey)
					if err := sqlreq.Commit(ctx); err != nil { // with nothing open
						t.Error(err)
					}
					fails = false
					_, err := sqlreq.Tx(ctx)
					return err
				}).ok(t)
				f.Check(t, "BEGIN", "SAVEPOINT sqlreq_guard", "ROLLBACK", "BEGIN", "SAVEPOINT sqlreq_guard", "RELEASE SAVEPOINT sqlreq_guard", "COMMIT")
				if got := told.String(); got != "main RolledBack 1, before, main Committed 1, commit" {
					t.Errorf("got %s", got)
				}
				if events := told.Told(); !errors.Is(events[0].Err, sqlreqtest.ErrTest) || events[0].Began.IsZero() {
					t.Errorf("the event has %v", events[0].Err)
				}
			})
		})
	}
}

// With nothing begun but what was refused the end of the request decides for the hooks.
func TestG8AfterBeginRefusedIsNoTransaction(t *testing.T) {
	for _, err := range []error{nil, sqlreqtest.ErrTest} {
		asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t), AfterBegin: func(context.Context, *http.Request, *sql.Tx) error { return sqlreqtest.ErrTest }})
			var told sqlreqtest.Recorder
			run(reg, func(ctx context.Context) error {
				told.Hooks(t, ctx, mainKey, "")
				_, _ = sqlreq.Tx(ctx)
				return err
			})
			if want := map[bool]string{true: "commit", false: "rollback"}[err == nil]; told.Words() != want {
				t.Errorf("got %q, want %q", told.Words(), want)
			}
		})
	}
}

// The wait is a part of the begin: the statuses are those of a BEGIN that fails so.
func TestG8AfterBeginStatus(t *testing.T) {
	tests := map[string]struct {
		err    error
		status int
	}{
		"any error":            {sqlreqtest.ErrTest, 500},
		"a StatusError":        {sqlreq.Errorf(403, "no tenant"), 403},
		"a deadline":           {context.DeadlineExceeded, 503},
		"it cannot be reached": {syscall.ECONNREFUSED, 503},
		"a conflict":           {sqlreqtest.Conflict{}, 503},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t), AfterBegin: func(context.Context, *http.Request, *sql.Tx) error { return tt.err }})
			rec := sqlreqtest.Do(reg.Middleware(sqlreq.TxFunc(func(http.ResponseWriter, *http.Request, *sql.Tx) error { return nil })))
			if rec.Code != tt.status || (rec.Header().Get("Retry-After") != "") != (tt.status == 503) {
				t.Errorf("got %d %v, want %d", rec.Code, rec.Header(), tt.status)
			}
		})
	}
}

func TestG8AfterBeginConflictIsRetried(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		attempts := 0
		db := sqlreqtest.OpenDB(t)
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, AfterBegin: func(ctx context.Context, _ *http.Request, tx *sql.Tx) error {
			if attempts++; attempts < 3 {
				return sqlreqtest.Conflict{}
			}
			return nil
		}})
		reg.Retry = sqlreqtest.Retries(3)
		var told sqlreqtest.Recorder
		reg.Observe = told.Observe
		run(reg, func(ctx context.Context) error {
			_, err := mainKey.ExecContext(ctx, sqlreqtest.InsertWork)
			return err
		}).ok(t)
		if n := sqlreqtest.Count(t, db, "work"); n != 1 || told.Events() != "main RolledBack 1, main RolledBack 2, main Committed 3" {
			t.Errorf("got %d rows, %s", n, told.Events())
		}
	})
}

// A panic or Goexit goes on; the transaction is rolled back and has an Event.
func TestG8AfterBeginDoesNotReturn(t *testing.T) {
	leaves := map[string]func(){"panic": func() { panic(sqlreqtest.ErrTest) }, "Goexit": runtime.Goexit}
	for name, leave := range leaves {
		t.Run(name, func(t *testing.T) {
			asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
				f := &fakedb.DB{}
				db := f.Open(t)
				db.SetMaxOpenConns(1)
				again := false
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, AfterBegin: func(context.Context, *http.Request, *sql.Tx) error {
					if !again {
						leave()
					}
					return nil
				}})
				var told sqlreqtest.Recorder
				reg.Observe = told.Observe
				u := run(reg, func(ctx context.Context) error {
					_, err := sqlreq.Tx(ctx)
					t.Errorf("Tx has returned %v", err)
					return err
				})
				if u.done || (name == "panic") != (u.panics == error(sqlreqtest.ErrTest)) {
					t.Errorf("got %+v", u)
				}
				f.Check(t, "BEGIN", "ROLLBACK")
				if events := told.Told(); told.Events() != "main RolledBack 1" || events[0].Err == nil {
					t.Errorf("got %s", told.Events())
				}
				// Recovered, the next use begins anew.
				again = false
				run(reg, func(ctx context.Context) error {
					sqlreqtest.Panicked(func() { _, _ = sqlreq.Tx(ctx) })
					begun(t, ctx, false, mainKey)
					again = true
					_, err := sqlreq.Tx(ctx)
					return err
				}).ok(t)
				f.Check(t, "BEGIN", "ROLLBACK", "BEGIN", "ROLLBACK", "BEGIN", "COMMIT")
			})
		})
	}
}

// A client that leaves in it ends the wait: nobody gets the transaction, also if the
// function takes no notice.
func TestG8AfterBeginClientLeaves(t *testing.T) {
	for _, heeds := range []bool{true, false} {
		for _, own := range []bool{true, false} { // the context of the use, or the request's
			t.Run(fmt.Sprint("heeds ", heeds, ", own ", own), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := &fakedb.DB{}
					client, leave := context.WithCancel(context.Background())
					reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t), AfterBegin: func(ctx context.Context, r *http.Request, tx *sql.Tx) error {
						leave()
						synctest.Wait()
						if own {
							<-ctx.Done()
						}
						if !heeds {
							return nil
						}
						_, err := tx.ExecContext(ctx, "SET")
						return err
					}})
					var told sqlreqtest.Recorder
					reg.Observe = told.Observe
					request, used := client, client
					if own {
						request = context.Background()
					} else {
						used = context.Background()
					}
					a := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
						ctx := joined{r.Context(), used}
						_, err := mainKey.ExecContext(ctx, "WORK")
						if !errors.Is(err, context.Canceled) {
							t.Errorf("got %v, want context.Canceled", err)
						}
						return err
					})), httptest.NewRequest("GET", "/", nil).WithContext(request))
					if want := map[bool]int{true: 500, false: 503}[own]; a.Code != want {
						t.Errorf("got %d, want %d", a.Code, want)
					}
					if n := f.Count("WORK"); n != 0 || told.Events() != "main RolledBack 1" {
						t.Errorf("got %q, %s", f.Log(), told.Events())
					}
					f.CheckClean(t)
				})
			})
		}
	}
}

// joined is a context with the values of one and the life of another.
type joined struct {
	context.Context
	life context.Context
}

func (j joined) Done() <-chan struct{} { return j.life.Done() }
func (j joined) Err() error            { return j.life.Err() }

// Uses of the key itself are errors that name the mistake, and no wait.
func TestG8AfterBeginUsesItsOwnKey(t *testing.T) {
	uses := sqlreqtest.Uses()
	uses["Commit"], uses["Rollback"] = sqlreq.Commit, sqlreq.Rollback
	var reg *sqlreq.Registry
	uses["Atomic"] = func(ctx context.Context) error {
		return reg.Atomic(ctx, func(context.Context) error { return nil })
	}
	uses["the other key of the pool"] = func(ctx context.Context) error {
		_, err := sqlreq.Key("same").ExecContext(ctx, "X")
		return err
	}
	for name, use := range uses {
		for _, byRequest := range []bool{false, true} {
			t.Run(fmt.Sprint(name, byRequest), func(t *testing.T) {
				f := &fakedb.DB{}
				var got error
				b := sqlreq.Binding{DB: f.Open(t), AfterBegin: func(ctx context.Context, r *http.Request, _ *sql.Tx) error {
					if byRequest {
						ctx = r.Context()
					}
					got = use(ctx)
					return nil
				}}
				same := b
				same.Key = "same"
				reg = sqlreqtest.NewRegistry(t, b, same)
				asRequest(reg, func(ctx context.Context) error {
					_, err := mainKey.ExecContext(ctx, "WORK")
					return err
				}).ok(t)
				refused(t, name, got, `the AfterBegin of key "main" uses the key "main" and would wait for itself`)
				f.Check(t, "BEGIN", "WORK", "COMMIT")
			})
		}
	}
}

// It may use other keys, register functions and look.
func TestG8AfterBeginUsesOthers(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		j, bindings := newJournal(t, mainKey, "tenants")
		var reg *sqlreq.Registry
		bindings[0].AfterBegin = func(ctx context.Context, r *http.Request, tx *sql.Tx) error {
			begun(t, ctx, true, mainKey)
			before(t, ctx, mainKey, j.Func("function", nil))
			if err := mainKey.AfterCommit(ctx, j.Hook("hook")); err != nil {
				t.Error(err)
			}
			if _, err := sqlreq.DB(ctx); err != nil {
				t.Error(err)
			}
			err := sqlreq.Key("tenants").Savepoint(ctx, func(ctx context.Context) error {
				_, err := sqlreq.Key("tenants").ExecContext(ctx, "WHO")
				return err
			})
			return errors.Join(err, sqlreq.Key("tenants").Commit(ctx), reg.Do(ctx, func(ctx context.Context) error {
				_, err := sqlreq.Key("tenants").ExecContext(ctx, "DO")
				return err
			}))
		}
		reg = sqlreqtest.NewRegistry(t, bindings...)
		run(reg, func(ctx context.Context) error {
			_, err := mainKey.ExecContext(ctx, "WORK")
			return err
		}).ok(t)
		j.Check(t, "main BEGIN", "tenants BEGIN", "tenants SAVEPOINT sqlreq_1", "tenants WHO", "tenants RELEASE SAVEPOINT sqlreq_1", "tenants COMMIT",
			"tenants BEGIN", "tenants DO", "tenants COMMIT", "main WORK", "function", "main COMMIT", "hook")
	})
}

// A Do in it does not forbid a retry: it runs for each attempt by its nature.
func TestG8AfterBeginDoForbidsNoRetry(t *testing.T) {
	_, bindings := newJournal(t, mainKey, "audit")
	var reg *sqlreq.Registry
	bindings[0].AfterBegin = func(ctx context.Context, _ *http.Request, _ *sql.Tx) error {
		return reg.Do(ctx, func(ctx context.Context) error {
			_, err := sqlreq.Key("audit").ExecContext(ctx, "AUDIT")
			return err
		})
	}
	reg = sqlreqtest.NewRegistry(t, bindings...)
	reg.Retry = sqlreqtest.Retries(2)
	attempts := 0
	asRequest(reg, func(ctx context.Context) error {
		sqlreqtest.Exec(t, ctx, mainKey, "WORK")
		if attempts++; attempts == 1 {
			return sqlreqtest.Conflict{}
		}
		return nil
	}).ok(t)
	if attempts != 2 {
		t.Errorf("got %d attempts, want 2", attempts)
	}
}

// Circles over other keys, and over Route and TxOptions, are errors.
func TestG8AfterBeginCircles(t *testing.T) {
	use := func(k sqlreq.Key) afterBegin {
		return func(ctx context.Context, _ *http.Request, _ *sql.Tx) error {
			_, err := k.ExecContext(ctx, "X")
			return err
		}
	}
	bind := map[string]func([]sqlreq.Binding){
		"AfterBegin of another key": func(b []sqlreq.Binding) { b[1].AfterBegin = use("a") },
		"a circle of three":         func(b []sqlreq.Binding) { b[1].AfterBegin, b[2].AfterBegin = use("c"), use("a") },
		"Route of another key": func(b []sqlreq.Binding) {
			db := b[1].DB
			b[1].DB, b[1].Route = nil, func(ctx context.Context, _ *http.Request) (*sql.DB, error) { return db, use("a")(ctx, nil, nil) }
		},
		"TxOptions of another key": func(b []sqlreq.Binding) {
			b[1].TxOptions = func(ctx context.Context, _ *http.Request) *sql.TxOptions {
				refused(t, "TxOptions", use("a")(ctx, nil, nil), `uses the key "a" and would wait for itself`)
				return nil
			}
		},
	}
	for name, set := range bind {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j, bindings := newJournal(t, "a", "b", "c")
				bindings[0].AfterBegin = use("b")
				set(bindings)
				asRequest(sqlreqtest.NewRegistry(t, bindings...), func(ctx context.Context) error {
					_, err := sqlreq.Key("a").ExecContext(ctx, "WORK")
					if name != "TxOptions of another key" {
						refused(t, "the use", err, "wait for")
					}
					begun(t, ctx, name == "TxOptions of another key", "a")
					return nil
				}).ok(t)
				j.Take()
				j.Check(t)
			})
		})
	}
}

// Two goroutines close the circle: each AfterBegin waits for the other's key.
func TestG8AfterBeginCircleOfTwoGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, bindings := newJournal(t, "a", "b")
		asked := map[sqlreq.Key]chan bool{"a": make(chan bool), "b": make(chan bool)}
		use := func(k sqlreq.Key) afterBegin {
			other := asked[k]
			ask := sync.OnceFunc(func() { close(asked[map[sqlreq.Key]sqlreq.Key{"a": "b", "b": "a"}[k]]) })
			return func(ctx context.Context, _ *http.Request, _ *sql.Tx) error {
				ask()
				<-other // is being asked too
				_, err := k.ExecContext(ctx, "X")
				return err
			}
		}
		bindings[0].AfterBegin, bindings[1].AfterBegin = use("b"), use("a")
		asRequest(sqlreqtest.NewRegistry(t, bindings...), func(ctx context.Context) error {
			errs := make(chan error, 2) // neither may wait for ever: synctest ends that
			for _, k := range []sqlreq.Key{"a", "b"} {
				go func() { _, err := k.ExecContext(ctx, "WORK"); errs <- err }()
			}
			one, two := <-errs, <-errs
			refused(t, "one of the two", errors.Join(one, two), "wait")
			begun(t, ctx, false, "a", "b")
			return nil
		})
		j.Take()
		j.Check(t)
	})
}

// A Hijack beside an AfterBegin that uses another key waits for it, and not in a circle.
func TestG8AfterBeginBesideHijack(t *testing.T) {
	for _, first := range []sqlreq.Key{"a", "b"} {
		synctest.Test(t, func(t *testing.T) {
			j, bindings := newJournal(t, "a", "b")
			goOn := make(chan bool)
			bindings[0].AfterBegin = func(ctx context.Context, _ *http.Request, _ *sql.Tx) error {
				<-goOn
				_, err := sqlreq.Key("b").ExecContext(ctx, "X")
				return err
			}
			reg := sqlreqtest.NewRegistry(t, bindings...)
			reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ctx := r.Context()
				for _, k := range []sqlreq.Key{first, "a", "b"} { // in the unit's list in that order
					before(t, ctx, k, func(context.Context) error { return nil })
				}
				used := make(chan error)
				go func() { _, err := sqlreq.Key("a").ExecContext(ctx, "WORK"); used <- err }()
				synctest.Wait()
				hijacked := make(chan error)
				go func() { _, _, err := http.NewResponseController(w).Hijack(); hijacked <- err }()
				synctest.Wait()
				close(goOn)
				if err := <-used; err != nil {
					t.Error(err)
				}
				if err := <-hijacked; !errors.Is(err, sqlreqtest.ErrTest) {
					t.Errorf("got %v", err)
				}
			})).ServeHTTP(hijackable{httptest.NewRecorder()}, httptest.NewRequest("GET", "/", nil))
			j.Take()
			j.Check(t)
		})
	}
}

// A transaction that has ended in it is found out: nobody knows what stayed.
func TestG8AfterBeginEndsTheTransaction(t *testing.T) {
	endings := map[string]func(context.Context, *sql.Tx) error{
		"Commit":       func(_ context.Context, tx *sql.Tx) error { return tx.Commit() },
		"a statement":  func(ctx context.Context, tx *sql.Tx) error { _, err := tx.ExecContext(ctx, "COMMIT"); return err },
		"OR ROLLBACK!": func(ctx context.Context, tx *sql.Tx) error { _, _ = tx.ExecContext(ctx, "ROLLBACK"); return nil },
	}
	for name, end := range endings {
		for _, fails := range []error{nil, sqlreqtest.ErrTest} {
			t.Run(fmt.Sprint(name, fails), func(t *testing.T) {
				asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
					reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t), AfterBegin: func(ctx context.Context, _ *http.Request, tx *sql.Tx) error {
						return errors.Join(end(ctx, tx), fails)
					}})
					reg.Retry = sqlreqtest.Retries(3)
					var told sqlreqtest.Recorder
					reg.Observe = told.Observe
					u := run(reg, func(ctx context.Context) error {
						_, err := mainKey.ExecContext(ctx, sqlreqtest.InsertWork)
						if fails != nil && !errors.Is(err, fails) {
							t.Errorf("got %v", err)
						}
						if fails != nil {
							return sqlreqtest.Conflict{}
						}
						return nil
					})
					if fails == nil && name != "Commit" {
						if u.err == nil { // COMMIT itself finds it out
							t.Error("the unit has succeeded")
						}
						return
					}
					if !sqlreq.MayHaveCommitted(u.err) || told.Events() != "main Ended 1" {
						t.Errorf("got %v, %s", u.err, told.Events())
					}
				})
			})
		}
	}
}

// A handler that returns while another goroutine is in it: nobody gets the transaction.
func TestG8AfterBeginBesideTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, bindings := newJournal(t, mainKey)
		goOn := make(chan bool)
		bindings[0].AfterBegin = func(context.Context, *http.Request, *sql.Tx) error { <-goOn; return nil }
		used := make(chan error, 1)
		asRequest(sqlreqtest.NewRegistry(t, bindings...), func(ctx context.Context) error {
			go func() { _, err := mainKey.ExecContext(ctx, "WORK"); used <- err }()
			synctest.Wait()
			return nil
		}).ok(t)
		close(goOn)
		if err := <-used; !errors.Is(err, sqlreq.ErrFinished) {
			t.Errorf("got %v, want ErrFinished", err)
		}
		synctest.Wait()
		j.Check(t, "main BEGIN", "main ROLLBACK")
	})
}

// A rollback of a status that is asked for gives its context's transaction back: what
// is set by it is per transaction (row-level security), so each one has it.
func TestG8AfterBeginOnSQLite(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, AfterBegin: func(ctx context.Context, r *http.Request, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO work (note) VALUES (?)", r.Header.Get("Tenant"))
		return err
	}})
	srv := sqlreqtest.Serve(t, reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		sqlreqtest.Note(t, r.Context(), mainKey, "work")
		err := sqlreq.Commit(r.Context())
		sqlreqtest.Note(t, r.Context(), mainKey, "more")
		return err
	})))
	for _, tenant := range []string{"a", "b"} {
		req, _ := http.NewRequest("POST", srv.URL, nil)
		req.Header.Set("Tenant", tenant)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	if got := sqlreqtest.Notes(t, db); got != "a work a more b work b more" {
		t.Errorf("got %q", got)
	}
}
