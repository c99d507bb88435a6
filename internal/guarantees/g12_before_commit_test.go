// G12 Before COMMIT. BeforeCommit functions run in order, once, in the open
// transaction, right before its COMMIT: at the end of the request or Do, at an
// explicit Commit of that database, at Hijack; when nothing has failed and CommitIf
// has agreed; not without an open transaction. Those of all keys on that pool run,
// also those that earlier ones register, until none is left. Rollback drops them, and
// so does a Savepoint that is rolled back.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
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

// notRun are the ends before which no function runs.
var notRun = map[string]func(t *testing.T, ctx context.Context) error{
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

func insert(t *testing.T, ctx context.Context) { sqlreqtest.Exec(t, ctx, mainKey, "INSERT") }

// What is registered is run for the COMMIT of the transaction that was open, or next
// to begin, and for no other.
func TestG12NotRun(t *testing.T) {
	for name, fn := range notRun {
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
