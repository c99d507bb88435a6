// G12 Before COMMIT. BeforeCommit functions run in order, once, in the open
// transaction, right before its COMMIT: at the end of the request or Do, at an
// explicit Commit of that database, at Hijack; when nothing has failed and CommitIf
// has agreed; not without an open transaction. Those of all keys on that pool run,
// also those that earlier ones register, until none is left. Rollback drops them, and
// so does a Savepoint that is rolled back.

package guarantees

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

const mainKey = sqlreqtest.Main

func TestG12RunsInOrderOnceRightBeforeCommit(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		j, bindings := newJournal(t, mainKey)
		bindings = append(bindings, sqlreq.Binding{Key: "same", DB: bindings[0].DB})
		reg := sqlreqtest.NewRegistry(t, bindings...)
		run(reg, func(ctx context.Context) error {
			before(t, ctx, mainKey, j.Func("1", nil)) // no transaction is open yet
			sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
			before(t, ctx, "same", func(ctx context.Context) error {
				j.Add("2")
				before(t, ctx, mainKey, j.Func("4", nil))
				before(t, ctx, "same", j.Func("5", nil))
				sqlreqtest.Exec(t, ctx, mainKey, "OUTBOX")
				return nil
			})
			before(t, ctx, mainKey, j.Func("3", nil))
			j.Add("return")
			return nil
		}).ok(t)
		j.Check(t, "main BEGIN", "main INSERT", "return", "1", "2", "main OUTBOX", "3", "4", "5", "main COMMIT")
	})
}

func TestG12RunsAtAnExplicitCommit(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		j, bindings := newJournal(t, mainKey, "other")
		reg := sqlreqtest.NewRegistry(t, bindings...)
		run(reg, func(ctx context.Context) error {
			before(t, ctx, mainKey, j.Func("main 1", nil))
			before(t, ctx, "other", j.Func("other", nil))
			if err := sqlreq.Commit(ctx); err != nil { // with nothing open they stay
				t.Error(err)
			}
			sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
			sqlreqtest.Exec(t, ctx, "other", "INSERT")
			before(t, ctx, mainKey, func(ctx context.Context) error {
				j.Add("main 2")
				return mainKey.BeforeCommit(ctx, j.Func("main 3", nil))
			})
			if err := sqlreq.Commit(ctx); err != nil {
				t.Error(err)
			}
			sqlreqtest.Exec(t, ctx, mainKey, "AGAIN")
			return nil
		}).ok(t)
		j.Check(t, "main BEGIN", "main INSERT", "other BEGIN", "other INSERT", "main 1", "main 2", "main 3", "main COMMIT",
			"main BEGIN", "main AGAIN", "other", "main COMMIT", "other COMMIT")
	})
}

// What is registered is run for the COMMIT of the transaction that was open, or next
// to begin, and for no other.
func TestG12NotRun(t *testing.T) {
	insert := func(t *testing.T, ctx context.Context) { sqlreqtest.Exec(t, ctx, mainKey, "INSERT") }
	cases := map[string]func(t *testing.T, ctx context.Context) error{
		"nothing open": func(*testing.T, context.Context) error { return nil },
		"an error": func(t *testing.T, ctx context.Context) error {
			insert(t, ctx)
			return sqlreqtest.ErrTest
		},
		"Fail": func(t *testing.T, ctx context.Context) error {
			insert(t, ctx)
			return sqlreq.Fail(ctx, sqlreqtest.ErrTest)
		},
		"RollbackOnly": func(t *testing.T, ctx context.Context) error {
			insert(t, ctx)
			return sqlreq.RollbackOnly(ctx, nil)
		},
		"a panic": func(t *testing.T, ctx context.Context) error {
			insert(t, ctx)
			panic(http.ErrAbortHandler)
		},
		"Rollback": func(t *testing.T, ctx context.Context) error {
			insert(t, ctx)
			err := sqlreq.Rollback(ctx)
			insert(t, ctx)
			return err
		},
		"ended through *sql.Tx": func(t *testing.T, ctx context.Context) error {
			tx, err := sqlreq.Tx(ctx)
			if err != nil {
				return err
			}
			return tx.Rollback()
		},
		"an explicit Commit of what was ended through *sql.Tx": func(t *testing.T, ctx context.Context) error {
			tx, err := sqlreq.Tx(ctx)
			if err != nil {
				return err
			}
			err = tx.Rollback()
			if committed := sqlreq.Commit(ctx); !errors.Is(committed, sqlreq.ErrTxEnded) {
				t.Errorf("got %v, want ErrTxEnded", committed)
			}
			return err
		},
		"a Commit after a failure": func(t *testing.T, ctx context.Context) error {
			insert(t, ctx)
			_ = sqlreq.Fail(ctx, sqlreqtest.ErrTest)
			refused(t, "Commit", sqlreq.Commit(ctx), "refused")
			return nil
		},
		"a Commit inside of a Savepoint": func(t *testing.T, ctx context.Context) error {
			return errors.Join(sqlreq.Savepoint(ctx, func(ctx context.Context) error {
				refused(t, "Commit", sqlreq.Commit(ctx), "inside a Savepoint")
				return nil
			}), sqlreq.Rollback(ctx))
		},
	}
	for name, fn := range cases {
		t.Run(name, func(t *testing.T) {
			asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
				_, bindings := newJournal(t, mainKey)
				reg := sqlreqtest.NewRegistry(t, bindings...)
				run(reg, func(ctx context.Context) error {
					before(t, ctx, mainKey, func(context.Context) error { t.Error("the function has run"); return nil })
					return fn(t, ctx)
				})
			})
		})
	}
}

// CommitIf and the status are asked first, once; a function cannot change what
// they have said.
func TestG12CommitIfIsAskedFirst(t *testing.T) {
	for _, status := range []int{201, 409} {
		for _, says := range []string{"", "yes", "no"} {
			j, bindings := newJournal(t, mainKey)
			reg := sqlreqtest.NewRegistry(t, bindings...)
			if says != "" {
				reg.CommitIf = func(int, http.Header) bool { j.Add("CommitIf"); return says == "yes" }
			}
			rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				before(t, r.Context(), mainKey, j.Func("function", nil))
				sqlreqtest.Exec(t, r.Context(), mainKey, "INSERT")
				w.WriteHeader(status)
			})))
			want := []string{"main BEGIN", "main INSERT"}
			if says != "" {
				want = append(want, "CommitIf")
			}
			if says == "yes" || says == "" && status < 400 {
				want = append(want, "function", "main COMMIT")
			} else {
				want = append(want, "main ROLLBACK")
			}
			j.Check(t, want...)
			if rec.Code != status {
				t.Errorf("CommitIf %q: got %d, want %d", says, rec.Code, status)
			}
		}
	}
}

// A Route that was not asked has no transaction; one that is asked by then has.
func TestG12RoutedKeys(t *testing.T) {
	for _, asked := range []bool{false, true} {
		j, bindings := newJournal(t, mainKey, "routed")
		db := bindings[1].DB
		bindings[1].DB = nil
		bindings[1].Route = func(context.Context, *http.Request) (*sql.DB, error) { j.Add("Route"); return db, nil }
		reg := sqlreqtest.NewRegistry(t, bindings...)
		asRequest(reg, func(ctx context.Context) error {
			before(t, ctx, "routed", j.Func("function", nil))
			sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
			if asked {
				sqlreqtest.Exec(t, ctx, "routed", "INSERT")
			}
			return nil
		}).ok(t)
		if asked {
			j.Check(t, "main BEGIN", "main INSERT", "Route", "routed BEGIN", "routed INSERT", "function", "main COMMIT", "routed COMMIT")
		} else {
			j.Check(t, "main BEGIN", "main INSERT", "main COMMIT")
		}
	}
}

func TestG12Savepoints(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		j, bindings := newJournal(t, mainKey, "other")
		reg := sqlreqtest.NewRegistry(t, bindings...)
		run(reg, func(ctx context.Context) error {
			err := sqlreq.Savepoint(ctx, func(ctx context.Context) error {
				before(t, ctx, mainKey, func(ctx context.Context) error {
					sqlreqtest.Exec(t, ctx, mainKey, "BY RELEASED")
					return sqlreq.Savepoint(ctx, func(ctx context.Context) error { return nil })
				})
				_ = sqlreq.Savepoint(ctx, func(ctx context.Context) error {
					before(t, ctx, mainKey, j.Func("never", nil))
					// Another database's transaction is not rolled back with it.
					before(t, ctx, "other", j.Func("other", nil))
					sqlreqtest.Exec(t, ctx, "other", "INSERT")
					return sqlreqtest.ErrTest
				})
				return nil
			})
			_ = sqlreq.Savepoint(ctx, func(ctx context.Context) error {
				_ = sqlreq.Savepoint(ctx, func(ctx context.Context) error {
					before(t, ctx, mainKey, j.Func("never either", nil))
					return nil
				})
				return sqlreqtest.ErrTest
			})
			j.Add("return")
			return err
		}).ok(t)
		j.Check(t, "main BEGIN", "main SAVEPOINT sqlreq_1", "main SAVEPOINT sqlreq_2", "other BEGIN", "other INSERT",
			"main ROLLBACK TO SAVEPOINT sqlreq_2", "main RELEASE SAVEPOINT sqlreq_2", "main RELEASE SAVEPOINT sqlreq_1",
			"main SAVEPOINT sqlreq_3", "main SAVEPOINT sqlreq_4", "main RELEASE SAVEPOINT sqlreq_4",
			"main ROLLBACK TO SAVEPOINT sqlreq_3", "main RELEASE SAVEPOINT sqlreq_3", "return",
			"main BY RELEASED", "main SAVEPOINT sqlreq_5", "main RELEASE SAVEPOINT sqlreq_5", "other", "main COMMIT", "other COMMIT")
	})
}

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

// ends are the calls that are refused while functions run.
func ends(ctx context.Context, k sqlreq.Key) map[string]error {
	return map[string]error{"Commit": k.Commit(ctx), "Rollback": k.Rollback(ctx)}
}

const whileFunctionsRun = "while BeforeCommit functions run"

func TestG12EndsAreRefusedMeanwhile(t *testing.T) {
	for _, at := range []string{"end", "Commit", "Hijack"} {
		t.Run(at, func(t *testing.T) {
			j, bindings := newJournal(t, mainKey, "other", "third")
			reg := sqlreqtest.NewRegistry(t, bindings...)
			rec := httptest.NewRecorder()
			reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				for _, k := range []sqlreq.Key{mainKey, "other"} {
					sqlreqtest.Exec(t, r.Context(), k, "INSERT")
				}
				before(t, r.Context(), mainKey, func(ctx context.Context) error {
					for _, k := range []sqlreq.Key{mainKey, "other"} {
						for what, err := range ends(ctx, k) {
							refused(t, what+" of "+string(k), err, whileFunctionsRun)
						}
					}
					over := make(chan bool)
					go func() { // another goroutine, with the handler's context
						defer close(over)
						for what, err := range ends(r.Context(), mainKey) {
							refused(t, what+" by another goroutine", err, whileFunctionsRun)
						}
						if at == "Commit" { // the other database's is not under way
							if err := sqlreq.Key("other").Commit(r.Context()); err != nil {
								t.Error(err)
							}
						}
						_, _, err := http.NewResponseController(w).Hijack()
						if err == nil {
							t.Error("Hijack has succeeded")
						}
					}()
					<-over
					sqlreqtest.Exec(t, ctx, mainKey, "OUTBOX")
					return nil
				})
				switch at {
				case "Commit":
					return sqlreq.Commit(r.Context())
				case "Hijack":
					_, _, err := http.NewResponseController(w).Hijack()
					if !errors.Is(err, sqlreqtest.ErrTest) {
						t.Errorf("Hijack: got %v, want the writer's own error", err)
					}
				}
				return nil
			})).ServeHTTP(hijackable{rec}, httptest.NewRequest("POST", "/", nil))
			begin := []string{"main BEGIN", "main INSERT", "other BEGIN", "other INSERT"}
			if at == "Commit" {
				j.Check(t, append(begin, "other COMMIT", "main OUTBOX", "main COMMIT")...)
			} else {
				j.Check(t, append(begin, "main OUTBOX", "other COMMIT", "main COMMIT")...)
			}
			if rec.Code != 200 {
				t.Errorf("got %d, want 200: what was refused does not fail the request", rec.Code)
			}
		})
	}
}

// A Commit waits for no function of another Commit: it is refused, and no COMMIT
// is sent before the function has returned.
func TestG12TwoCommitsAtOnce(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		j, bindings := newJournal(t, mainKey)
		reg := sqlreqtest.NewRegistry(t, bindings...)
		run(reg, func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
			running, goOn := make(chan bool), make(chan bool)
			before(t, ctx, mainKey, func(context.Context) error {
				close(running)
				<-goOn
				j.Add("function")
				return nil
			})
			first := make(chan error)
			go func() { first <- sqlreq.Commit(ctx) }()
			<-running
			refused(t, "Commit", sqlreq.Commit(ctx), whileFunctionsRun)
			refused(t, "Rollback", sqlreq.Rollback(ctx), whileFunctionsRun)
			close(goOn)
			return <-first
		}).ok(t)
		j.Check(t, "main BEGIN", "main INSERT", "function", "main COMMIT")
	})
}

// A Rollback that waits for its turn while functions begin to run does not end the
// transaction under them: it looks again when it has the turn.
func TestG12RollbackThatWaitsForItsTurn(t *testing.T) {
	j, bindings := newJournal(t, mainKey)
	reg := sqlreqtest.NewRegistry(t, bindings...)
	asRequest(reg, func(ctx context.Context) error {
		sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
		statement := fakedb.NewPoint()
		j.On = func(_ context.Context, line string) error {
			if line == "main SLOW" {
				statement.Wait()
			}
			return nil
		}
		slow, committed, rolledBack := make(chan bool), make(chan error), make(chan error)
		go func() { sqlreqtest.Exec(t, ctx, mainKey, "SLOW"); close(slow) }()
		statement.Reached()
		before(t, ctx, mainKey, func(ctx context.Context) error {
			refused(t, "Rollback", <-rolledBack, whileFunctionsRun)
			sqlreqtest.Exec(t, ctx, mainKey, "OUTBOX")
			return nil
		})
		commits, quiet := sqlreqtest.Watch(ctx)
		go func() { committed <- sqlreq.Commit(commits) }()
		<-quiet // it has the turn, and waits for the statement
		rolls, waits := sqlreqtest.Watch(ctx)
		go func() { rolledBack <- sqlreq.Rollback(rolls) }()
		<-waits // for the turn
		statement.Release()
		err := <-committed
		<-slow
		return err
	}).ok(t)
	j.Check(t, "main BEGIN", "main INSERT", "main SLOW", "main OUTBOX", "main COMMIT")
}

func TestG12BeginsAndRegistersOnOtherDatabases(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		j, bindings := newJournal(t, mainKey, "other", "third")
		reg := sqlreqtest.NewRegistry(t, bindings...)
		run(reg, func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
			before(t, ctx, "third", j.Func("third", nil))
			before(t, ctx, mainKey, func(ctx context.Context) error {
				sqlreqtest.Exec(t, ctx, "other", "INSERT")
				before(t, ctx, "other", func(ctx context.Context) error {
					j.Add("other")
					_, err := sqlreq.Key("third").BeginTx(ctx, nil)
					return err
				})
				return nil
			})
			return nil
		}).ok(t)
		j.Check(t, "main BEGIN", "main INSERT", "other BEGIN", "other INSERT", "other", "third BEGIN", "third",
			"main COMMIT", "other COMMIT", "third COMMIT")
	})
}

// A function for a key whose Route is asked by another function runs too.
func TestG12HijackRunsThem(t *testing.T) {
	j, bindings := newJournal(t, mainKey, "routed")
	db := bindings[1].DB
	bindings[1].DB = nil
	bindings[1].Route = func(context.Context, *http.Request) (*sql.DB, error) { return db, nil }
	reg := sqlreqtest.NewRegistry(t, bindings...)
	hijacked := func(t *testing.T, fn func(context.Context) error) (int, error) {
		var err error
		rec := httptest.NewRecorder()
		reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			sqlreqtest.Exec(t, r.Context(), mainKey, "INSERT")
			before(t, r.Context(), "routed", j.Func("routed", nil))
			before(t, r.Context(), mainKey, fn)
			_, _, err = http.NewResponseController(w).Hijack()
			j.Add("hijacked")
		})).ServeHTTP(hijackable{rec}, httptest.NewRequest("GET", "/", nil))
		return rec.Code, err
	}
	_, err := hijacked(t, func(ctx context.Context) error {
		sqlreqtest.Exec(t, ctx, "routed", "OUTBOX")
		return nil
	})
	if !errors.Is(err, sqlreqtest.ErrTest) { // hijackable's own
		t.Errorf("got %v", err)
	}
	j.Check(t, "main BEGIN", "main INSERT", "routed BEGIN", "routed OUTBOX", "routed", "main COMMIT", "routed COMMIT", "hijacked")

	no := errors.New("no")
	code, err := hijacked(t, j.Func("fails", no))
	if !errors.Is(err, no) || code != 500 {
		t.Errorf("got %d and %v, want 500 and the function's error", code, err)
	}
	j.Check(t, "main BEGIN", "main INSERT", "fails", "hijacked", "main ROLLBACK")
}

// Over a real connection the function runs before the connection is taken.
func TestG12HijackOverTCP(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Note(t, r.Context(), mainKey, "work")
		before(t, r.Context(), mainKey, func(ctx context.Context) error {
			sqlreqtest.Note(t, ctx, mainKey, "outbox")
			return nil
		})
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})))
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || res.StatusCode != 200 || sqlreqtest.Notes(t, db) != "work outbox" {
		t.Errorf("got %v and %q", err, sqlreqtest.Notes(t, db))
	}
}

// http.TimeoutHandler, like every middleware with a defer cancel(), has ended the
// context of the registration by then.
func TestG12ContextOfTheRegistrationHasEnded(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	type valueKey struct{}
	h := reg.Middleware(http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(context.WithValue(r.Context(), valueKey{}, "value"))
		defer cancel()
		sqlreqtest.Note(t, ctx, mainKey, "work")
		before(t, ctx, mainKey, func(in context.Context) error {
			if ctx.Err() == nil || in.Err() != nil || in.Value(valueKey{}) != "value" {
				t.Errorf("ended: %v, that of the function: %v, its value %v", ctx.Err(), in.Err(), in.Value(valueKey{}))
			}
			if _, has := in.Deadline(); has {
				t.Error("it has the deadline of the middleware in between")
			}
			sqlreqtest.Note(t, in, mainKey, "outbox")
			return sqlreq.Savepoint(in, func(in context.Context) error {
				sqlreqtest.Note(t, in, mainKey, "savepoint")
				return nil
			})
		})
	}), time.Hour, ""))
	status, _, err := sqlreqtest.Get(t, sqlreqtest.Serve(t, h).URL)
	if got := sqlreqtest.Notes(t, db); status != 200 || err != nil || got != "work outbox savepoint" {
		t.Errorf("got %d, %v, %q", status, err, got)
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

// A read-only transaction counts as committed; what is written shares the fate of
// all writes there.
func TestG12ReadOnly(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		j, bindings := newJournal(t, mainKey)
		bindings[0].TxOptions = sqlreqtest.Options(sqlreqtest.ReadOnly)
		reg := sqlreqtest.NewRegistry(t, bindings...)
		run(reg, func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, mainKey, "SELECT")
			before(t, ctx, mainKey, func(ctx context.Context) error {
				sqlreqtest.Exec(t, ctx, mainKey, "WRITE")
				return sqlreq.AfterCommit(ctx, j.Hook("committed"))
			})
			return nil
		}).ok(t)
		j.Check(t, "main BEGIN READ ONLY", "main SELECT", "main WRITE", "main ROLLBACK", "committed")
	})
}

// One that an error may have ended is rolled back without a failure of the request,
// and so does not count as committed: nothing runs.
func TestG12ReadOnlyThatMayHaveEnded(t *testing.T) {
	j, bindings := newJournal(t, mainKey)
	bindings[0].TxOptions = sqlreqtest.Options(sqlreqtest.ReadOnly)
	asRequest(sqlreqtest.NewRegistry(t, bindings...), func(ctx context.Context) error {
		before(t, ctx, mainKey, j.Func("never", nil))
		own, cancel := context.WithCancel(ctx)
		j.On = func(ctx context.Context, line string) error {
			if line == "main SELECT" {
				cancel() // during the statement
			}
			return ctx.Err()
		}
		if _, err := mainKey.ExecContext(own, "SELECT"); err == nil {
			t.Error("the statement has succeeded")
		}
		return nil
	}).ok(t)
	j.Check(t, "main BEGIN READ ONLY", "main SELECT", "main ROLLBACK")
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

// A Commit whose functions run in another goroutine when the handler returns is
// waited for: no COMMIT gets ahead of a function, and what one says counts.
func TestG12CommitUnderWayAtTheEnd(t *testing.T) {
	for _, fails := range []error{nil, sqlreqtest.ErrTest} {
		asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
			synctest.Test(t, func(t *testing.T) {
				j, bindings := newJournal(t, mainKey)
				goOn, committed := make(chan bool), make(chan bool)
				u := run(sqlreqtest.NewRegistry(t, bindings...), func(ctx context.Context) error {
					sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
					running := make(chan bool)
					before(t, ctx, mainKey, func(ctx context.Context) error {
						close(running)
						<-goOn
						sqlreqtest.Exec(t, ctx, mainKey, "OUTBOX")
						return fails
					})
					go func() { _ = sqlreq.Commit(ctx); close(committed) }()
					<-running
					go func() {
						synctest.Wait() // the end of the unit waits
						close(goOn)
					}()
					return nil
				})
				<-committed
				end := "main COMMIT"
				if fails != nil {
					end = "main ROLLBACK"
				}
				if (u.err == nil) != (fails == nil) {
					t.Errorf("got %v", u.err)
				}
				j.Check(t, "main BEGIN", "main INSERT", "main OUTBOX", end)
			})
		})
	}
}

// The response cannot be changed any more: it is that of the decision.
func TestG12ResponseIsDone(t *testing.T) {
	answers := map[string]func(http.ResponseWriter){
		"nothing":        func(http.ResponseWriter) {},
		"a header":       func(w http.ResponseWriter) { w.Header().Set("X-Handler", "1") },
		"a status":       func(w http.ResponseWriter) { w.WriteHeader(201) },
		"a header, body": func(w http.ResponseWriter) { w.Header().Set("X-Handler", "1"); _, _ = io.WriteString(w, "body") },
		"flushed": func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, "body")
			_ = http.NewResponseController(w).Flush()
		},
	}
	for name, answer := range answers {
		for _, retry := range []int{1, 2} {
			t.Run(fmt.Sprint(name, ", attempts: ", retry), func(t *testing.T) {
				get := func(fn func(http.ResponseWriter, *http.Request)) (int, http.Header, string) {
					db := sqlreqtest.OpenDB(t)
					reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
					reg.Retry = sqlreqtest.Retries(retry)
					srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						sqlreqtest.Note(t, r.Context(), mainKey, "x")
						fn(w, r)
						answer(w)
					})))
					res, err := http.Get(srv.URL)
					if err != nil {
						t.Fatal(err)
					}
					defer res.Body.Close()
					body, _ := io.ReadAll(res.Body)
					res.Header.Del("Date")
					return res.StatusCode, res.Header, string(body)
				}
				status, header, body := get(func(http.ResponseWriter, *http.Request) {})
				gotStatus, gotHeader, gotBody := get(func(w http.ResponseWriter, r *http.Request) {
					before(t, r.Context(), mainKey, func(context.Context) error {
						w.Header().Set("X-Function", "1")
						w.WriteHeader(202)
						if _, err := io.WriteString(w, "function"); err == nil {
							t.Error("the Write of a function has succeeded")
						}
						return nil
					})
				})
				if gotStatus != status || gotBody != body || len(gotHeader) != len(header) || gotHeader.Get("X-Function") != "" {
					t.Errorf("got %d %v %q, want %d %v %q", gotStatus, gotHeader, gotBody, status, header, body)
				}
			})
		}
	}
}

// No lock is held: statements of other goroutines go on, with every context that
// the unit gave out.
func TestG12StatementsOfOthersMeanwhile(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		j, bindings := newJournal(t, mainKey)
		reg := sqlreqtest.NewRegistry(t, bindings...)
		run(reg, func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
			before(t, ctx, mainKey, func(context.Context) error {
				over := make(chan bool)
				go func() {
					defer close(over)
					sqlreqtest.Exec(t, ctx, mainKey, "OTHER")
					if !sqlreq.Begun(ctx) {
						t.Error("Begun is false")
					}
					if err := sqlreq.AfterCommit(ctx, j.Hook("hook")); err != nil {
						t.Error(err)
					}
				}()
				<-over
				return nil
			})
			return nil
		}).ok(t)
		j.Check(t, "main BEGIN", "main INSERT", "main OTHER", "main COMMIT", "hook")
	})
}

func TestG12BindingTxAndGuard(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		db := sqlreqtest.OpenDB(t)
		test := testTx(t, db)
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test})
		for _, fails := range []error{nil, sqlreqtest.ErrTest, nil} {
			run(reg, func(ctx context.Context) error {
				sqlreqtest.Note(t, ctx, mainKey, "work")
				before(t, ctx, mainKey, func(ctx context.Context) error {
					sqlreqtest.Note(t, ctx, mainKey, "outbox")
					return fails
				})
				return nil
			})
		}
		if got := sqlreqtest.Notes(t, test); got != "work outbox work outbox" {
			t.Errorf("got %q", got)
		}
	})
	j, bindings := newJournal(t, mainKey)
	bindings[0].Guard = true
	asRequest(sqlreqtest.NewRegistry(t, bindings...), func(ctx context.Context) error {
		before(t, ctx, mainKey, j.Func("function", nil))
		sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
		return nil
	}).ok(t)
	j.Check(t, "main BEGIN", "main SAVEPOINT sqlreq_guard", "main INSERT", "function", "main RELEASE SAVEPOINT sqlreq_guard", "main COMMIT")
}

// A Do in a function is a unit of its own. One that needs the only connection is told so.
func TestG12DoInOne(t *testing.T) {
	for _, most := range []int{1, 2} {
		asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
			j, bindings := newJournal(t, mainKey)
			bindings[0].DB.SetMaxOpenConns(most)
			reg := sqlreqtest.NewRegistry(t, bindings...)
			run(reg, func(ctx context.Context) error {
				sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
				before(t, ctx, mainKey, func(ctx context.Context) error {
					err := reg.Do(ctx, func(ctx context.Context) error {
						before(t, ctx, mainKey, j.Func("inner", nil))
						_, err := mainKey.ExecContext(ctx, "AUDIT")
						return errors.Join(err, mainKey.Commit(ctx))
					})
					if most == 1 {
						refused(t, "Do", err, "one connection")
						return nil
					}
					return err
				})
				return nil
			}).ok(t)
			if most == 1 {
				j.Check(t, "main BEGIN", "main INSERT", "main COMMIT")
			} else {
				j.Check(t, "main BEGIN", "main INSERT", "main BEGIN", "main AUDIT", "inner", "main COMMIT", "main COMMIT")
			}
		})
	}
}

// With a context that has ended a Commit is refused, and one that ends in a function
// refuses it: nothing more runs.
func TestG12ContextOfACommitEndsInOne(t *testing.T) {
	j, bindings := newJournal(t, mainKey)
	u := asRequest(sqlreqtest.NewRegistry(t, bindings...), func(ctx context.Context) error {
		sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
		own, cancel := context.WithCancel(ctx)
		before(t, ctx, mainKey, func(context.Context) error { j.Add("first"); cancel(); return nil })
		before(t, ctx, mainKey, j.Func("never", nil))
		if err := sqlreq.Commit(own); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		return nil
	})
	if u.status != 500 {
		t.Errorf("got %d, want 500", u.status)
	}
	j.Check(t, "main BEGIN", "main INSERT", "first", "main ROLLBACK")
}

// Functions are refused where no transaction is to come.
func TestG12Refused(t *testing.T) {
	if err := sqlreq.BeforeCommit(context.Background(), func(context.Context) error { return nil }); !errors.Is(err, sqlreq.ErrNoRegistry) {
		t.Errorf("got %v, want ErrNoRegistry", err)
	}
	_, bindings := newJournal(t, mainKey)
	reg := sqlreqtest.NewRegistry(t, bindings...)
	var late context.Context
	never := func(context.Context) error { t.Error("it runs"); return nil }
	asRequest(reg, func(ctx context.Context) error {
		late = ctx
		refused(t, "nil", sqlreq.BeforeCommit(ctx, nil), "nil")
		if err := sqlreq.Key("nobody").BeforeCommit(ctx, never); !errors.Is(err, sqlreq.ErrUnknownKey) {
			t.Errorf("got %v, want ErrUnknownKey", err)
		}
		return sqlreq.AfterCommit(ctx, func(ctx context.Context) {
			if err := sqlreq.BeforeCommit(ctx, never); !errors.Is(err, sqlreq.ErrFinished) {
				t.Errorf("in a hook: got %v, want ErrFinished", err)
			}
		})
	}).ok(t)
	if err := sqlreq.BeforeCommit(late, never); !errors.Is(err, sqlreq.ErrFinished) {
		t.Errorf("after the end: got %v, want ErrFinished", err)
	}
}
