// G4 Savepoints nest by context: one begun with a context that is not the innermost
// open one's is an error, and so are, with such a context, statements of a Key,
// PrepareContext, Tx: another goroutine's work would be rolled back with it, and told
// nil. The functions that register hooks, DB, Fail are not refused. What was rolled
// back to is also released; if that RELEASE fails, so has the going back. Binding.Tx
// likewise.

package guarantees

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// usesInASavepoint are the uses that are refused with a wrong context, and do
// something with a right one.
func usesInASavepoint() map[string]func(context.Context) error {
	uses := sqlreqtest.Uses()
	delete(uses, "BeginTx") // is refused with any context: TestG4SavepointMisuse
	uses["TxFunc"] = func(ctx context.Context) error {
		_, err := sqlreqtest.Main.Tx(ctx)
		return err
	}
	uses["Exec of a key of the same pool"] = func(ctx context.Context) error {
		_, err := sqlreq.Key("same").ExecContext(ctx, "INSERT")
		return err
	}
	return uses
}

func TestG4SavepointRefusesAnotherContext(t *testing.T) {
	type contexts struct{ request, outer, inner context.Context }
	places := map[string]struct {
		pick    func(contexts) context.Context
		refused bool
	}{
		"the request's":       {func(c contexts) context.Context { return c.request }, true},
		"the outer one's":     {func(c contexts) context.Context { return c.outer }, true},
		"the innermost one's": {func(c contexts) context.Context { return c.inner }, false},
		"one made of the innermost one's": {func(c contexts) context.Context {
			return context.WithValue(c.inner, contexts{}, 1)
		}, false},
		"one made of the request's": {func(c contexts) context.Context {
			return context.WithoutCancel(c.request)
		}, true},
		"one that was released in it": {func(c contexts) context.Context {
			var old context.Context
			_ = sqlreq.Savepoint(c.inner, func(ctx context.Context) error { old = ctx; return nil })
			return old
		}, true},
		"one that was rolled back in it": {func(c contexts) context.Context {
			var old context.Context
			_ = sqlreq.Savepoint(c.inner, func(ctx context.Context) error { old = ctx; return sqlreqtest.ErrTest })
			return old
		}, true},
	}
	for place, p := range places {
		for name, use := range usesInASavepoint() {
			for _, goroutine := range []bool{false, true} {
				for _, guard := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/%s/goroutine %t/Guard %t", place, name, goroutine, guard), func(t *testing.T) {
						d := &fakedb.DB{}
						db := d.Open(t)
						reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, Guard: guard}, sqlreq.Binding{Key: "same", DB: db, Guard: guard})
						rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
							return sqlreq.Savepoint(r.Context(), func(outer context.Context) error {
								return sqlreq.Savepoint(outer, func(inner context.Context) error {
									ctx := p.pick(contexts{r.Context(), outer, inner})
									before := len(d.Log())
									result := make(chan error, 1)
									if goroutine {
										go func() { result <- use(ctx) }()
									} else {
										result <- use(ctx)
									}
									err := <-result
									if (err != nil) != p.refused || err != nil && !strings.Contains(err.Error(), "pass on the context") {
										t.Errorf("got %v, want an error that says what to do: %t", err, p.refused)
									}
									if sent := d.Log()[before:]; p.refused && len(sent) > 0 {
										t.Errorf("refused, and sent %q", sent)
									}
									return nil
								})
							})
						})))
						if rec.Code != 200 {
							t.Errorf("got %d, want that a misuse harms nothing else", rec.Code)
						}
					})
				}
			}
		}
	}
}

// Of two keys each has its own Savepoints: what matters is the innermost one of the
// key's own transaction that the context is inside of.
func TestG4SavepointContextsOfTwoKeys(t *testing.T) {
	one, two := &fakedb.DB{}, &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "one", DB: one.Open(t)}, sqlreq.Binding{Key: "two", DB: two.Open(t)})
	check := func(where string, ctx context.Context, k sqlreq.Key, refused bool) {
		t.Helper()
		if _, err := k.ExecContext(ctx, "INSERT"); (err != nil) != refused {
			t.Errorf("%s, key %q: got %v, want that it is refused: %t", where, k, err, refused)
		}
	}
	err := reg.Do(t.Context(), func(ctx context.Context) error {
		return sqlreq.Key("one").Savepoint(ctx, func(inOne context.Context) error {
			check("around, a Savepoint of the other key is open", ctx, "two", false)
			check("around", ctx, "one", true)
			return sqlreq.Key("two").Savepoint(inOne, func(inTwo context.Context) error {
				check("the innermost of both", inTwo, "one", false)
				check("the innermost of both", inTwo, "two", false)
				check("between", inOne, "one", false)
				check("between", inOne, "two", true)
				check("around", ctx, "two", true)
				return nil
			})
		})
	})
	if err != nil {
		t.Error(err)
	}
}

// What was rolled back to is released, so that nothing is left on the stack of the
// server: of many lines that fail each one has one savepoint, and no more.
func TestG4SavepointLeavesNothing(t *testing.T) {
	const lines = 500
	for name, bind := range map[string]func(t *testing.T, d *fakedb.DB) sqlreq.Binding{
		"DB":         func(t *testing.T, d *fakedb.DB) sqlreq.Binding { return sqlreq.Binding{DB: d.Open(t)} },
		"Guard":      func(t *testing.T, d *fakedb.DB) sqlreq.Binding { return sqlreq.Binding{DB: d.Open(t), Guard: true} },
		"Binding.Tx": func(t *testing.T, d *fakedb.DB) sqlreq.Binding { return sqlreq.Binding{Tx: testTx(t, d.Open(t))} },
	} {
		t.Run(name, func(t *testing.T) {
			stack, most := []string{}, 0
			d := &fakedb.DB{Stmt: func(_ context.Context, q string) error {
				switch verb, name, _ := strings.Cut(q, "SAVEPOINT "); verb {
				case "":
					stack = append(stack, name)
					most = max(most, len(stack))
				case "RELEASE ":
					if last := stack[len(stack)-1]; last != name {
						t.Errorf("%s is released, on top is %s", name, last)
					}
					stack = stack[:len(stack)-1]
				}
				return nil
			}}
			reg := sqlreqtest.NewRegistry(t, bind(t, d))
			err := reg.Do(t.Context(), func(ctx context.Context) error {
				for i := range lines {
					if got := failedLine(ctx, i%3 == 0); got != sqlreqtest.ErrTest {
						return fmt.Errorf("line %d: got %v, want its error", i, got)
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if most > 3 || len(stack) > 0 {
				t.Errorf("%d savepoints were on the stack at most, %q are left; want 3 at most and none", most, stack)
			}
		})
	}
}

// failedLine fails in a Savepoint in which another one has failed, and returns its
// error, or what it has panicked with.
func failedLine(ctx context.Context, panics bool) (failure any) {
	defer func() {
		if v := recover(); v != nil {
			failure = v
		}
	}()
	return sqlreq.Savepoint(ctx, func(ctx context.Context) error {
		_ = sqlreq.Savepoint(ctx, func(context.Context) error { return sqlreqtest.ErrTest })
		if panics {
			panic(sqlreqtest.ErrTest)
		}
		return sqlreqtest.ErrTest
	})
}

// The RELEASE of what was rolled back to fails: the request can only roll back.
func TestG4SavepointReleaseAfterGoingBackFails(t *testing.T) {
	for _, nested := range []bool{false, true} {
		for _, guard := range []bool{false, true} {
			t.Run(fmt.Sprintf("nested %t, Guard %t", nested, guard), func(t *testing.T) {
				var back bool
				d := &fakedb.DB{Stmt: func(_ context.Context, q string) error {
					if strings.HasPrefix(q, "ROLLBACK TO SAVEPOINT sqlreq_1") || strings.HasPrefix(q, "ROLLBACK TO SAVEPOINT sqlreq_2") {
						back = true
					}
					if back && strings.HasPrefix(q, "RELEASE SAVEPOINT sqlreq_") {
						return sqlreqtest.ErrTest
					}
					return nil
				}}
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: guard})
				var log sqlreqtest.Recorder
				log.Watch(reg)
				errInside := errors.New("inside")
				err := reg.Do(t.Context(), func(ctx context.Context) error {
					log.Hooks(t, ctx, sqlreqtest.Main, "")
					fails := func(ctx context.Context) error {
						err := sqlreq.Savepoint(ctx, func(context.Context) error { return errInside })
						if !errors.Is(err, errInside) || !errors.Is(err, sqlreqtest.ErrTest) || !strings.Contains(err.Error(), "can only roll back") {
							t.Errorf("got %v, want both errors, and what follows", err)
						}
						return nil
					}
					if nested {
						_ = sqlreq.Savepoint(ctx, fails)
					} else {
						_ = fails(ctx)
					}
					if _, err := sqlreqtest.Main.ExecContext(ctx, "INSERT"); err == nil {
						t.Error("a statement ran in a transaction that can only be rolled back")
					}
					return nil
				})
				if !errors.Is(err, sqlreqtest.ErrTest) || log.Events() != "main RolledBack 1" || log.Words() != "rollback" || d.Count("COMMIT") > 0 {
					t.Errorf("got %v, events %q, hooks %q, log %q; want a rollback", err, log.Events(), log.Words(), d.Log())
				}
			})
		}
	}
}

// In a test's transaction a request that goes back to its own savepoint releases it,
// and if that RELEASE says that there is none, the test's transaction has ended.
func TestG4SavepointOfARequestInATestsTransaction(t *testing.T) {
	d := &fakedb.DB{}
	test := testTx(t, d.Open(t))
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test})
	for range 3 {
		_ = reg.Do(t.Context(), func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			return sqlreqtest.ErrTest
		})
	}
	if save, back, release := d.Count("SAVEPOINT"), d.Count("ROLLBACK TO"), d.Count("RELEASE"); save != 3 || back != 3 || release != 3 {
		t.Errorf("got %d savepoints, %d gone back to, %d released; want 3 of each: %q", save, back, release, d.Log())
	}
}
