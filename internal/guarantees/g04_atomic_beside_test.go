// G4 No success by accident: an Atomic counts as an open Savepoint of every database
// of the unit. With another context statements, Savepoint, BeginTx and Atomic are
// refused, Commit, Rollback and Hijack with any; its end waits for the statements under way.

package guarantees

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// refusedUses fails the test if a use with ctx, which is not that of the innermost
// Atomic, is not refused.
func refusedUses(t testing.TB, ctx context.Context, reg *sqlreq.Registry) {
	t.Helper()
	uses := sqlreqtest.Uses()
	uses["Atomic"] = func(ctx context.Context) error {
		return reg.Atomic(ctx, func(context.Context) error { return nil })
	}
	uses["another key"] = func(ctx context.Context) error { _, err := sqlreq.Key("other").Tx(ctx); return err }
	for name, use := range uses {
		refused(t, name, use(ctx), "an Atomic is open, and this context is not that of the innermost one")
	}
}

// refusedEnds fails the test if an end of what is open is not refused.
func refusedEnds(t testing.TB, ctx context.Context, w http.ResponseWriter) {
	t.Helper()
	for _, k := range []sqlreq.Key{mainKey, "other"} {
		if !k.Begun(ctx) {
			continue
		}
		for what, err := range ends(ctx, k) {
			refused(t, what+" of "+string(k), err, "inside of a")
		}
	}
	if _, _, err := http.NewResponseController(w).Hijack(); err == nil || errors.Is(err, sqlreqtest.ErrTest) {
		t.Errorf("Hijack: got %v", err)
	}
}

// While one is open every other context of the unit is refused, and no context
// ends a transaction.
func TestG4AtomicOtherContexts(t *testing.T) {
	for _, used := range []bool{false, true} {
		t.Run(fmt.Sprint("open: ", used), func(t *testing.T) {
			db, otherDB := sqlreqtest.OpenDB(t), sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "other", DB: otherDB})
			rec := httptest.NewRecorder()
			reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				ctx := r.Context()
				if used {
					sqlreqtest.Note(t, ctx, mainKey, "1")
				}
				inAtomic(t, ctx, reg, nil, func(one context.Context) error {
					refusedUses(t, ctx, reg)
					refusedEnds(t, ctx, w)
					refusedEnds(t, one, w)
					sqlreqtest.Note(t, one, mainKey, "2")
					inAtomic(t, one, reg, nil, func(two context.Context) error {
						refusedUses(t, ctx, reg)
						refusedUses(t, one, reg)
						refusedEnds(t, two, w)
						sqlreqtest.Note(t, two, "other", "3")
						refusedEnds(t, two, w)
						// These are not refused.
						if _, err := sqlreq.DB(ctx); err != nil || !sqlreq.Begun(ctx) {
							t.Errorf("DB: %v, Begun: %t", err, sqlreq.Begun(ctx))
						}
						return sqlreq.AfterCommit(ctx, func(context.Context) {})
					})
					refusedUses(t, ctx, reg)
					sqlreqtest.Note(t, one, "other", "4")
					return nil
				})
				sqlreqtest.Note(t, ctx, mainKey, "5")
				return errors.Join(sqlreq.Commit(ctx), sqlreq.Key("other").Commit(ctx))
			})).ServeHTTP(hijackable{rec}, httptest.NewRequest("POST", "/", nil))
			want := map[bool]string{false: "2 5", true: "1 2 5"}[used]
			if a, b := sqlreqtest.Notes(t, db), sqlreqtest.Notes(t, otherDB); rec.Code != 200 || a != want || b != "3 4" {
				t.Errorf("got %d, %q, %q", rec.Code, a, b)
			}
		})
	}
}

// Of many goroutines with the same context one at a time is inside: the others are
// refused. Afterwards the unit works as before.
func TestG4AtomicOfManyGoroutines(t *testing.T) {
	for _, open := range []bool{false, true} {
		j, bindings := newJournal(t, "a", "b")
		reg := sqlreqtest.NewRegistry(t, bindings...)
		asRequest(reg, func(ctx context.Context) error {
			if open {
				exec(t, nil, "1", "a")(ctx)
			}
			const n = 50
			errs := make(chan error, n)
			for range n {
				go func() {
					errs <- reg.Atomic(ctx, func(ctx context.Context) error {
						return errors.Join(exec(t, nil, "X", "a", "b")(ctx), reg.Atomic(ctx, exec(t, nil, "Y", "b")))
					})
				}()
			}
			served := 0
			for range n {
				err := <-errs
				if err == nil {
					served++
				} else {
					refused(t, "Atomic", err, "innermost")
				}
			}
			if served == 0 {
				t.Error("none was inside")
			}
			return errors.Join(exec(t, nil, "2", "a", "b")(ctx), sqlreq.Key("a").Commit(ctx))
		}).ok(t)
		j.Take()
		j.Check(t)
	}
}

// An inner one that has not returned when the outer one does: nobody can tell any
// more what belongs to whom, so the unit can only roll back; but it is not stuck.
func TestG4AtomicReturnsBeforeTheInnerOne(t *testing.T) {
	for _, open := range []bool{false, true} {
		j, bindings := newJournal(t, "a")
		reg := sqlreqtest.NewRegistry(t, bindings...)
		u := asRequest(reg, func(ctx context.Context) error {
			if open {
				exec(t, nil, "1", "a")(ctx)
			}
			inside, goOn, over := make(chan bool), make(chan bool), make(chan error, 1)
			err := reg.Atomic(ctx, func(ctx context.Context) error {
				go func() {
					over <- reg.Atomic(ctx, func(ctx context.Context) error { close(inside); <-goOn; return nil })
				}()
				<-inside
				return nil
			})
			refused(t, "the outer one", err, "has not returned yet")
			close(goOn)
			<-over
			if !open { // nothing of it is left
				if err := reg.Atomic(ctx, func(context.Context) error { return nil }); err != nil {
					t.Error(err)
				}
				exec(t, nil, "2", "a")(ctx)
			}
			return nil
		})
		if u.err == nil {
			t.Error("the request has succeeded")
		}
		lines := j.Take()
		if slices.Contains(lines, "a COMMIT") {
			t.Errorf("got %q", lines)
		}
		j.Check(t)
	}
}

// The end of an Atomic waits for the statements under way; what they say counts.
func TestG4AtomicWaitsForStatements(t *testing.T) {
	for _, begins := range []bool{false, true} {
		for _, fails := range []bool{false, true} {
			t.Run(fmt.Sprint("begins ", begins, ", fails ", fails), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					j, bindings := newJournal(t, "a")
					statement := fakedb.NewPoint()
					ended, cancel := context.WithCancel(context.Background())
					j.On = func(ctx context.Context, line string) error {
						if line != "a SLOW" {
							return nil
						}
						statement.Wait()
						if fails {
							cancel() // during the statement: it may have ended the transaction
							return ctx.Err()
						}
						return nil
					}
					reg := sqlreqtest.NewRegistry(t, bindings...)
					asRequest(reg, func(ctx context.Context) error {
						if !begins {
							exec(t, nil, "1", "a")(ctx)
						}
						over := make(chan error, 1)
						go func() {
							over <- reg.Atomic(ctx, func(ctx context.Context) error {
								go func() { _, _ = sqlreq.Key("a").ExecContext(joined{ctx, ended}, "SLOW") }()
								statement.Reached()
								return nil
							})
						}()
						statement.Reached()
						synctest.Wait()
						select {
						case err := <-over:
							t.Errorf("it has not waited: %v", err)
						default:
						}
						statement.Release()
						if err := <-over; (err != nil) != fails {
							t.Errorf("got %v", err)
						}
						return exec(t, nil, "2", "a")(ctx) // a failure was undone, and the transaction is sound or a new one
					}).ok(t)
					cancel()
					j.Take()
					j.Check(t)
				})
			})
		}
	}
}

// What is begun by another goroutine while an Atomic is entered is not undone with
// it behind its back: the Atomic waits and lays its savepoint after it.
func TestG4AtomicBesideABegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, bindings := newJournal(t, "a")
		begin := fakedb.NewPoint()
		j.On = func(_ context.Context, line string) error {
			if line == "a BEGIN" {
				begin.Wait()
			}
			return nil
		}
		reg := sqlreqtest.NewRegistry(t, bindings...)
		asRequest(reg, func(ctx context.Context) error {
			used, over := make(chan error, 1), make(chan error, 1)
			go func() { _, err := sqlreq.Key("a").ExecContext(ctx, "OTHER"); used <- err }()
			begin.Reached()
			go func() { over <- reg.Atomic(ctx, exec(t, sqlreqtest.ErrTest, "X", "a")) }()
			synctest.Wait()
			begin.Release()
			if err := errors.Join(<-used); err != nil {
				t.Error(err)
			}
			if err := <-over; !errors.Is(err, sqlreqtest.ErrTest) {
				t.Error(err)
			}
			return nil
		}).ok(t)
		j.Check(t, "a BEGIN", "a OTHER", "a SAVEPOINT sqlreq_1", "a X", "a ROLLBACK TO SAVEPOINT sqlreq_1", "a RELEASE SAVEPOINT sqlreq_1", "a COMMIT")
	})
}

// A use that waited for its turn while an Atomic was entered looks again.
func TestG4AtomicBesideAWaitForTheTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, bindings := newJournal(t, "a")
		begin := fakedb.NewPoint()
		fails := true
		j.On = func(_ context.Context, line string) error {
			if line == "a BEGIN" && fails {
				fails = false
				begin.Wait()
				return sqlreqtest.ErrTest
			}
			return nil
		}
		reg := sqlreqtest.NewRegistry(t, bindings...)
		asRequest(reg, func(ctx context.Context) error {
			for range 2 { // the first of them is at BEGIN, the second waits for its turn
				go func() { _, _ = sqlreq.Key("a").ExecContext(ctx, "OTHER") }()
				synctest.Wait()
			}
			begin.Reached()
			over := make(chan error, 1)
			go func() {
				over <- reg.Atomic(ctx, func(ctx context.Context) error {
					synctest.Wait()
					return exec(t, sqlreqtest.ErrTest, "X", "a")(ctx)
				})
			}()
			synctest.Wait()
			begin.Release()
			<-over
			return nil
		}).ok(t)
		got := j.Take()
		if other := slices.Index(got, "a OTHER"); other >= 0 && other > slices.Index(got, "a X") {
			t.Errorf("got %q: the other's statement is inside of the Atomic", got)
		}
		if x := slices.Index(got, "a X"); got[x+1] != "a ROLLBACK" && got[x+1] != "a ROLLBACK TO SAVEPOINT sqlreq_1" {
			t.Errorf("got %q: the Atomic's statement was not undone", got)
		}
		j.Check(t)
	})
}

// A Do inside is a unit of its own: what undoes the Atomic does not reach its
// transaction nor its hooks, then or later.
func TestG4AtomicDoInside(t *testing.T) {
	j, bindings := newJournal(t, "a")
	reg := sqlreqtest.NewRegistry(t, bindings...)
	audit := func(ctx context.Context) error {
		return reg.Do(ctx, func(ctx context.Context) error {
			before(t, ctx, "a", j.Func("function", nil))
			if err := sqlreq.Key("a").AfterCommit(ctx, j.Hook("hook")); err != nil {
				t.Error(err)
			}
			return exec(t, nil, "AUDIT", "a")(ctx)
		})
	}
	audited := []string{"a BEGIN", "a AUDIT", "function", "a COMMIT", "hook"}
	asRequest(reg, func(ctx context.Context) error {
		var in context.Context
		inAtomic(t, ctx, reg, sqlreqtest.ErrTest, func(ctx context.Context) error {
			in = ctx
			return errors.Join(audit(ctx), sqlreqtest.ErrTest)
		})
		j.CheckLines(t, audited...)
		return audit(context.WithoutCancel(in))
	}).ok(t)
	j.Check(t, audited...)
}

// The context of an Atomic that has returned: after a success it is as that around,
// after a failure nothing begins with it.
func TestG4AtomicContextAfterwards(t *testing.T) {
	for _, fails := range []error{nil, sqlreqtest.ErrTest} {
		j, bindings := newJournal(t, "a", "b")
		reg := sqlreqtest.NewRegistry(t, bindings...)
		asRequest(reg, func(ctx context.Context) error {
			exec(t, nil, "1", "a")(ctx)
			var in context.Context
			inAtomic(t, ctx, reg, fails, func(ctx context.Context) error { in = ctx; return fails })
			for _, k := range []sqlreq.Key{"a", "b"} {
				_, err := k.ExecContext(in, "LATE")
				if (err != nil) != (fails != nil) {
					t.Errorf("key %q: got %v", k, err)
				}
			}
			if err := sqlreq.Key("b").AfterCommit(in, func(context.Context) {}); (err != nil) != (fails != nil) {
				t.Errorf("AfterCommit: got %v", err)
			}
			if err := sqlreq.Key("a").BeforeCommit(in, j.Func("late", nil)); (err != nil) != (fails != nil) {
				t.Errorf("BeforeCommit: got %v", err)
			}
			return nil
		}).ok(t)
		j.Take()
		j.Check(t)
	}
}

// watched is a context that tells when it is asked for a value.
type watched struct {
	context.Context
	onValue func(key any)
}

func (w watched) Value(key any) any {
	w.onValue(key)
	return w.Context.Value(key)
}

// One that is entered while another goroutine enters one is refused, whenever that
// comes: here at each moment at which its context is asked for something.
func TestG4AtomicEnteredBesideAnother(t *testing.T) {
	for moment := 1; moment <= 8; moment++ {
		j, bindings := newJournal(t, "a")
		reg := sqlreqtest.NewRegistry(t, bindings...)
		asRequest(reg, func(ctx context.Context) error {
			inAtomic(t, ctx, reg, nil, func(in context.Context) error {
				goOn, over, asked, entered := make(chan bool), make(chan error, 1), 0, false
				other := func() {
					inside := make(chan bool)
					go func() {
						over <- reg.Atomic(in, func(ctx context.Context) error {
							close(inside)
							<-goOn
							return exec(t, nil, "OTHER", "a")(ctx)
						})
					}()
					select {
					case <-inside:
						entered = true
					case err := <-over: // this one is inside already
						refused(t, "the other", err, "innermost")
					}
				}
				at := watched{in, func(any) {
					if asked++; asked == moment {
						other()
					}
				}}
				err := reg.Atomic(at, func(context.Context) error { return nil })
				if !entered {
					return err
				}
				refused(t, "Atomic", err, "innermost")
				close(goOn)
				return <-over
			})
			return exec(t, nil, "AFTER", "a")(ctx)
		}).ok(t)
		j.Take()
		j.Check(t)
	}
}

// A BEGIN that is under way when the Atomic ends is no part of it any more: it
// belongs to what is around, and does not keep the unit from its COMMIT.
func TestG4AtomicEndsDuringABegin(t *testing.T) {
	j, bindings := newJournal(t, "a")
	begin := fakedb.NewPoint()
	j.On = func(_ context.Context, line string) error {
		if line == "a BEGIN" {
			begin.Wait()
		}
		return nil
	}
	reg := sqlreqtest.NewRegistry(t, bindings...)
	asRequest(reg, func(ctx context.Context) error {
		used := make(chan error, 1)
		inAtomic(t, ctx, reg, nil, func(ctx context.Context) error {
			go func() { _, err := sqlreq.Key("a").ExecContext(ctx, "LATE"); used <- err }()
			begin.Reached()
			return nil
		})
		begin.Release()
		return errors.Join(<-used, exec(t, nil, "AFTER", "a")(ctx))
	}).ok(t)
	j.Check(t, "a BEGIN", "a LATE", "a AFTER", "a COMMIT")
}
