// G4 No success by accident, wherever the code is called: Registry.Atomic. If the unit
// of its context has entered the registry, fn is a part of it: a savepoint on every
// transaction that is open (none open: no statement); an error or panic of fn undoes
// all that fn did, drops its hooks and leaves the rest as it was; what fn began is rolled
// back, or is open in the unit afterwards. It counts as an open Savepoint of every
// database of the unit. Otherwise, and in hooks, Atomic is Do.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// inAtomic runs fn in an Atomic whose error must be want.
func inAtomic(t testing.TB, ctx context.Context, reg *sqlreq.Registry, want error, fn func(context.Context) error) {
	t.Helper()
	if err := reg.Atomic(ctx, fn); !errors.Is(err, want) {
		t.Errorf("Atomic: got %v, want %v", err, want)
	}
}

// exec returns a function that runs a statement on each key and returns err.
func exec(t testing.TB, err error, stmt string, keys ...sqlreq.Key) func(context.Context) error {
	return func(ctx context.Context) error {
		for _, k := range keys {
			sqlreqtest.Exec(t, ctx, k, stmt)
		}
		return err
	}
}

// atomicStatements are what an Atomic sends to the databases a, b and c.
var atomicStatements = map[string]struct {
	open []sqlreq.Key // before
	fn   func(t *testing.T, reg *sqlreq.Registry, ctx context.Context) error
	want []string
	ends []string
}{
	"nothing open, nothing used": {nil, func(*testing.T, *sqlreq.Registry, context.Context) error { return nil }, nil, nil},
	"nothing open, an error":     {nil, func(*testing.T, *sqlreq.Registry, context.Context) error { return sqlreqtest.ErrTest }, nil, nil},
	"one open, nothing used": {[]sqlreq.Key{"a"}, func(*testing.T, *sqlreq.Registry, context.Context) error { return nil },
		[]string{"a SAVEPOINT sqlreq_1", "a RELEASE SAVEPOINT sqlreq_1"}, []string{"a COMMIT"}},
	"two open": {[]sqlreq.Key{"a", "b"}, func(t *testing.T, _ *sqlreq.Registry, ctx context.Context) error {
		return exec(t, nil, "X", "a", "b")(ctx)
	},
		[]string{"a SAVEPOINT sqlreq_1", "b SAVEPOINT sqlreq_1", "a X", "b X", "b RELEASE SAVEPOINT sqlreq_1", "a RELEASE SAVEPOINT sqlreq_1"},
		[]string{"a COMMIT", "b COMMIT"}},
	"two open, an error": {[]sqlreq.Key{"a", "b"}, func(t *testing.T, _ *sqlreq.Registry, ctx context.Context) error {
		return exec(t, sqlreqtest.ErrTest, "X", "a", "b")(ctx)
	},
		[]string{"a SAVEPOINT sqlreq_1", "b SAVEPOINT sqlreq_1", "a X", "b X", "b ROLLBACK TO SAVEPOINT sqlreq_1", "b RELEASE SAVEPOINT sqlreq_1",
			"a ROLLBACK TO SAVEPOINT sqlreq_1", "a RELEASE SAVEPOINT sqlreq_1"},
		[]string{"a COMMIT", "b COMMIT"}},
	"begun in it": {[]sqlreq.Key{"a"}, func(t *testing.T, _ *sqlreq.Registry, ctx context.Context) error {
		return exec(t, nil, "X", "b", "b")(ctx)
	},
		[]string{"a SAVEPOINT sqlreq_1", "b BEGIN", "b X", "b X", "a RELEASE SAVEPOINT sqlreq_1"}, []string{"a COMMIT", "b COMMIT"}},
	"begun in it, an error": {[]sqlreq.Key{"a"}, func(t *testing.T, _ *sqlreq.Registry, ctx context.Context) error {
		return exec(t, sqlreqtest.ErrTest, "X", "b")(ctx)
	},
		[]string{"a SAVEPOINT sqlreq_1", "b BEGIN", "b X", "b ROLLBACK", "a ROLLBACK TO SAVEPOINT sqlreq_1", "a RELEASE SAVEPOINT sqlreq_1"}, []string{"a COMMIT"}},
	"BeginTx in it": {[]sqlreq.Key{"a"}, func(t *testing.T, _ *sqlreq.Registry, ctx context.Context) error {
		if _, err := sqlreq.Key("a").BeginTx(ctx, nil); !errors.Is(err, sqlreq.ErrBegun) {
			t.Errorf("got %v, want ErrBegun", err)
		}
		_, err := sqlreq.Key("b").BeginTx(ctx, sqlreqtest.ReadOnlySerializable)
		return err
	}, []string{"a SAVEPOINT sqlreq_1", "b BEGIN Serializable READ ONLY", "a RELEASE SAVEPOINT sqlreq_1"}, []string{"a COMMIT", "b COMMIT"}},
	"a Savepoint in it": {[]sqlreq.Key{"a"}, func(t *testing.T, _ *sqlreq.Registry, ctx context.Context) error {
		for _, k := range []sqlreq.Key{"a", "b"} {
			err := k.Savepoint(ctx, func(ctx context.Context) error { return exec(t, sqlreqtest.ErrTest, "X", k)(ctx) })
			if !errors.Is(err, sqlreqtest.ErrTest) {
				t.Errorf("got %v", err)
			}
		}
		return nil
	}, []string{"a SAVEPOINT sqlreq_1", "a SAVEPOINT sqlreq_2", "a X", "a ROLLBACK TO SAVEPOINT sqlreq_2", "a RELEASE SAVEPOINT sqlreq_2",
		"b BEGIN", "b SAVEPOINT sqlreq_2", "b X", "b ROLLBACK TO SAVEPOINT sqlreq_2", "b RELEASE SAVEPOINT sqlreq_2", "a RELEASE SAVEPOINT sqlreq_1"},
		[]string{"a COMMIT", "b COMMIT"}},
	"nested, the inner one sqlreqtest.ErrTest": {[]sqlreq.Key{"a"}, func(t *testing.T, reg *sqlreq.Registry, ctx context.Context) error {
		exec(t, nil, "1", "b")(ctx)
		inAtomic(t, ctx, reg, sqlreqtest.ErrTest, exec(t, sqlreqtest.ErrTest, "2", "a", "b", "c"))
		return exec(t, nil, "3", "a", "b")(ctx)
	}, []string{"a SAVEPOINT sqlreq_1", "b BEGIN", "b 1", "a SAVEPOINT sqlreq_2", "b SAVEPOINT sqlreq_2", "a 2", "b 2", "c BEGIN", "c 2",
		"c ROLLBACK", "b ROLLBACK TO SAVEPOINT sqlreq_2", "b RELEASE SAVEPOINT sqlreq_2", "a ROLLBACK TO SAVEPOINT sqlreq_2", "a RELEASE SAVEPOINT sqlreq_2",
		"a 3", "b 3", "a RELEASE SAVEPOINT sqlreq_1"}, []string{"a COMMIT", "b COMMIT"}},
	"nested, the outer one sqlreqtest.ErrTest later": {[]sqlreq.Key{"a"}, func(t *testing.T, reg *sqlreq.Registry, ctx context.Context) error {
		inAtomic(t, ctx, reg, nil, exec(t, nil, "1", "b"))
		exec(t, nil, "2", "b")(ctx)
		inAtomic(t, ctx, reg, nil, exec(t, nil, "3", "b"))
		return sqlreqtest.ErrTest
	}, []string{"a SAVEPOINT sqlreq_1", "a SAVEPOINT sqlreq_2", "b BEGIN", "b 1", "a RELEASE SAVEPOINT sqlreq_2", "b 2",
		"a SAVEPOINT sqlreq_3", "b SAVEPOINT sqlreq_2", "b 3", "b RELEASE SAVEPOINT sqlreq_2", "a RELEASE SAVEPOINT sqlreq_3",
		"b ROLLBACK", "a ROLLBACK TO SAVEPOINT sqlreq_1", "a RELEASE SAVEPOINT sqlreq_1"}, []string{"a COMMIT"}},
}

func TestG4AtomicStatements(t *testing.T) {
	for name, tt := range atomicStatements {
		t.Run(name, func(t *testing.T) {
			asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
				j, bindings := newJournal(t, "a", "b", "c")
				reg := sqlreqtest.NewRegistry(t, bindings...)
				run(reg, func(ctx context.Context) error {
					for _, k := range tt.open {
						if _, err := k.Tx(ctx); err != nil {
							t.Error(err)
						}
					}
					j.Take()
					err := reg.Atomic(ctx, func(ctx context.Context) error { return tt.fn(t, reg, ctx) })
					if err != nil && err != sqlreqtest.ErrTest {
						t.Errorf("got %v", err)
					}
					j.CheckLines(t, tt.want...)
					return nil
				}).ok(t)
				j.Check(t, tt.ends...)
			})
		})
	}
}

// What is undone is undone in the database, and the rest stays; after it the keys
// are used as before.
func TestG4AtomicOnSQLite(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		a, b := sqlreqtest.OpenDB(t), sqlreqtest.OpenDB(t)
		for _, db := range []*sql.DB{a, b} {
			db.SetMaxOpenConns(1) // it takes no second connection
		}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "a", DB: a}, sqlreq.Binding{Key: "b", DB: b, Guard: true, OnDemand: true})
		note := func(ctx context.Context, what string) {
			sqlreqtest.Note(t, ctx, "a", what)
			sqlreqtest.Note(t, ctx, "b", what)
		}
		run(reg, func(ctx context.Context) error {
			sqlreqtest.Note(t, ctx, "a", "1")
			inAtomic(t, ctx, reg, sqlreqtest.ErrTest, func(ctx context.Context) error {
				note(ctx, "never")
				return sqlreqtest.ErrTest
			})
			sqlreqtest.Note(t, ctx, "a", "2")
			inAtomic(t, ctx, reg, nil, func(ctx context.Context) error {
				note(ctx, "3")
				inAtomic(t, ctx, reg, sqlreqtest.ErrTest, func(ctx context.Context) error {
					note(ctx, "nor this")
					return sqlreqtest.ErrTest
				})
				note(ctx, "4")
				return nil
			})
			return nil
		}).ok(t)
		if gotA, gotB := sqlreqtest.Notes(t, a), sqlreqtest.Notes(t, b); gotA != "1 2 3 4" || gotB != "3 4" {
			t.Errorf("got %q and %q", gotA, gotB)
		}
	})
}

func TestG4AtomicIsDo(t *testing.T) {
	j, bindings := newJournal(t, mainKey)
	reg := sqlreqtest.NewRegistry(t, bindings...)
	other := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "x", DB: bindings[0].DB})
	work := exec(t, nil, "ATOMIC", mainKey)
	own := []string{"main BEGIN", "main ATOMIC", "main COMMIT"}

	t.Run("a job", func(t *testing.T) {
		inAtomic(t, context.Background(), reg, nil, work)
		j.Check(t, own...)
	})
	t.Run("retried", func(t *testing.T) {
		reg := sqlreqtest.NewRegistry(t, bindings...)
		reg.Retry = sqlreqtest.Retries(2)
		attempts := 0
		inAtomic(t, context.Background(), reg, nil, func(ctx context.Context) error {
			if attempts++; attempts == 1 {
				return sqlreqtest.Conflict{}
			}
			return work(ctx)
		})
		j.Check(t, own...)
	})
	t.Run("in hooks", func(t *testing.T) {
		for _, err := range []error{nil, sqlreqtest.ErrTest} {
			asRequest(reg, func(ctx context.Context) error {
				sqlreqtest.Exec(t, ctx, mainKey, "WORK")
				hook := func(ctx context.Context) { inAtomic(t, ctx, reg, nil, work) }
				return errors.Join(err, sqlreq.AfterCommit(ctx, hook), sqlreq.AfterRollback(ctx, hook))
			})
			end := map[bool]string{true: "main COMMIT", false: "main ROLLBACK"}[err == nil]
			j.Check(t, slices.Concat([]string{"main BEGIN", "main WORK", end}, own)...)
		}
	})
	t.Run("after the end", func(t *testing.T) {
		var late context.Context
		asRequest(reg, func(ctx context.Context) error { late = context.WithoutCancel(ctx); return nil }).ok(t)
		inAtomic(t, late, reg, sqlreq.ErrFinished, work)
		inAtomic(t, late, other, nil, exec(t, nil, "OTHER", "x")) // which that has not entered
		j.Check(t, "main BEGIN", "main OTHER", "main COMMIT")
	})
	t.Run("a registry that the unit has not entered", func(t *testing.T) {
		asRequest(other, func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, "x", "WORK")
			inAtomic(t, ctx, reg, nil, work)
			return nil
		}).ok(t)
		j.Check(t, slices.Concat([]string{"main BEGIN", "main WORK"}, own, []string{"main COMMIT"})...)
	})
	t.Run("in a Do of another registry", func(t *testing.T) {
		asRequest(reg, func(ctx context.Context) error {
			return other.Do(ctx, func(ctx context.Context) error { inAtomic(t, ctx, reg, nil, work); return nil })
		}).ok(t)
		j.Check(t, own...)
	})
}

// In a nested application's handler the parent's registry is entered, and finds its
// own keys first; the child's is entered only inside of the child.
func TestG4AtomicNestedApplications(t *testing.T) {
	j, bindings := newJournal(t, mainKey, "parent", "child")
	child := bindings[2]
	childMain := child
	childMain.Key = mainKey
	parent := sqlreqtest.NewRegistry(t, bindings[:2]...)
	inner := sqlreqtest.NewRegistry(t, child, childMain)
	leaf := inner.With("child")(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		sqlreqtest.Exec(t, ctx, "child", "WORK")
		inAtomic(t, ctx, parent, sqlreqtest.ErrTest, exec(t, sqlreqtest.ErrTest, "BY PARENT", mainKey, "parent", "child"))
		inAtomic(t, ctx, inner, nil, func(ctx context.Context) error {
			exec(t, nil, "BY CHILD", mainKey, "child", "parent")(ctx) // main is the child's here
			inAtomic(t, ctx, parent, nil, exec(t, nil, "BOTH", mainKey))
			return nil
		})
	}))
	sqlreqtest.Do(parent.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leaf.ServeHTTP(w, r)
		j.CheckLines(t, "child BEGIN", "child WORK", "child SAVEPOINT sqlreq_1", "main BEGIN", "main BY PARENT", "parent BEGIN", "parent BY PARENT", "child BY PARENT",
			"parent ROLLBACK", "main ROLLBACK", "child ROLLBACK TO SAVEPOINT sqlreq_1", "child RELEASE SAVEPOINT sqlreq_1",
			"child SAVEPOINT sqlreq_2", "child BY CHILD", "child BY CHILD", "parent BEGIN", "parent BY CHILD",
			"child SAVEPOINT sqlreq_3", "parent SAVEPOINT sqlreq_2", "main BEGIN", "main BOTH", "parent RELEASE SAVEPOINT sqlreq_2", "child RELEASE SAVEPOINT sqlreq_3",
			"child RELEASE SAVEPOINT sqlreq_2")
		inAtomic(t, r.Context(), inner, nil, exec(t, nil, "DO", "child")) // outside of the child it is a Do
		j.CheckLines(t, "child BEGIN", "child DO", "child COMMIT")
	})))
	j.Check(t, "child COMMIT", "parent COMMIT", "main COMMIT")
}

func TestG4AtomicBindingTx(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		test, other := testTx(t, sqlreqtest.OpenDB(t)), testTx(t, sqlreqtest.OpenDB(t))
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test}, sqlreq.Binding{Key: "other", Tx: other})
		note := func(ctx context.Context, what string, err error) error {
			sqlreqtest.Note(t, ctx, mainKey, what)
			sqlreqtest.Note(t, ctx, "other", what)
			return err
		}
		for range 2 {
			run(reg, func(ctx context.Context) error {
				sqlreqtest.Note(t, ctx, mainKey, "1")
				inAtomic(t, ctx, reg, sqlreqtest.ErrTest, func(ctx context.Context) error { return note(ctx, "never", sqlreqtest.ErrTest) })
				inAtomic(t, ctx, reg, nil, func(ctx context.Context) error {
					err := reg.Do(ctx, func(ctx context.Context) error { return note(ctx, "2", nil) })
					return note(ctx, "3", err)
				})
				return nil
			}).ok(t)
		}
		inAtomic(t, context.Background(), reg, nil, func(ctx context.Context) error { return note(ctx, "job", nil) })
		if a, b := sqlreqtest.Notes(t, test), sqlreqtest.Notes(t, other); a != "1 2 3 1 2 3 job" || b != "2 3 2 3 job" {
			t.Errorf("got %q and %q", a, b)
		}
	})
}

// A savepoint that cannot be laid: what was laid is released, fn does not run, and
// the unit goes on.
func TestG4AtomicSaveFails(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		j, bindings := newJournal(t, "a", "b", "c")
		j.Fails("b SAVEPOINT sqlreq_1", sqlreqtest.ErrTest)
		reg := sqlreqtest.NewRegistry(t, bindings...)
		run(reg, func(ctx context.Context) error {
			exec(t, nil, "1", "a", "c", "b")(ctx)
			j.Take()
			err := reg.Atomic(ctx, func(context.Context) error { t.Error("fn runs"); return nil })
			refused(t, "Atomic", err, `savepoint on key "b"`)
			if !errors.Is(err, sqlreqtest.ErrTest) {
				t.Errorf("got %v", err)
			}
			return exec(t, nil, "2", "a", "b", "c")(ctx)
		}).ok(t)
		j.Check(t, "a SAVEPOINT sqlreq_1", "b SAVEPOINT sqlreq_1", "a RELEASE SAVEPOINT sqlreq_1", "a 2", "b 2", "c 2", "a COMMIT", "c COMMIT", "b COMMIT")
	})
}

// A release that fails: everything is undone, and the unit goes on. After another
// one has succeeded it can only roll back.
func TestG4AtomicReleaseFails(t *testing.T) {
	for _, fails := range []string{"b", "a"} { // b is the first to be released
		t.Run(fails, func(t *testing.T) {
			asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
				j, bindings := newJournal(t, "a", "b", "c")
				reg := sqlreqtest.NewRegistry(t, bindings...)
				u := run(reg, func(ctx context.Context) error {
					exec(t, nil, "1", "a", "b")(ctx)
					j.Take()
					j.Fails(fails+" RELEASE SAVEPOINT sqlreq_1", sqlreqtest.ErrTest)
					inAtomic(t, ctx, reg, sqlreqtest.ErrTest, func(ctx context.Context) error {
						err := exec(t, nil, "X", "c")(ctx)
						before(t, ctx, "a", j.Func("never", nil))
						return err
					})
					return nil
				})
				begin := []string{"a SAVEPOINT sqlreq_1", "b SAVEPOINT sqlreq_1", "c BEGIN", "c X", "b RELEASE SAVEPOINT sqlreq_1"}
				if fails == "b" { // its ROLLBACK TO succeeds, and the RELEASE after it is another line of the same text
					if got := j.Take(); !slices.Equal(got[:5], begin) || !slices.Contains(got, "c ROLLBACK") || !slices.Contains(got, "a ROLLBACK TO SAVEPOINT sqlreq_1") || slices.Contains(got, "never") {
						t.Errorf("got %q", got)
					}
					j.Check(t)
					return
				}
				if u.err == nil || !errors.Is(u.err, sqlreqtest.ErrTest) {
					t.Errorf("got %v, want a failure", u.err)
				}
				got := j.Take()
				if !slices.Equal(got[:6], append(begin, "a RELEASE SAVEPOINT sqlreq_1")) || slices.ContainsFunc(got, func(s string) bool { return s == "a COMMIT" || s == "b COMMIT" || s == "c COMMIT" }) {
					t.Errorf("got %q, want no COMMIT", got)
				}
				j.Check(t)
			})
		})
	}
}

func TestG4AtomicDoesNotReturn(t *testing.T) {
	for name, leave := range map[string]func(){"panic": func() { panic(sqlreqtest.ErrTest) }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
				j, bindings := newJournal(t, "a", "b")
				reg := sqlreqtest.NewRegistry(t, bindings...)
				run(reg, func(ctx context.Context) error {
					exec(t, nil, "1", "a")(ctx)
					v := sqlreqtest.Panicked(func() {
						_ = reg.Atomic(ctx, func(ctx context.Context) error {
							exec(t, nil, "X", "a", "b")(ctx)
							leave()
							return nil
						})
					})
					if (name == "panic") != (v == error(sqlreqtest.ErrTest)) {
						t.Errorf("got %v", v)
					}
					return exec(t, nil, "2", "a", "b")(ctx)
				}).ok(t)
				j.Check(t, "a BEGIN", "a 1", "a SAVEPOINT sqlreq_1", "a X", "b BEGIN", "b X", "b ROLLBACK",
					"a ROLLBACK TO SAVEPOINT sqlreq_1", "a RELEASE SAVEPOINT sqlreq_1", "a 2", "b BEGIN", "b 2", "a COMMIT", "b COMMIT")
			})
		})
	}
}

// Hooks registered before an Atomic that fails wait for the next transaction of their
// database; those registered inside are dropped. After one that succeeds all run.
func TestG4AtomicHooks(t *testing.T) {
	for _, fails := range []error{nil, sqlreqtest.ErrTest} {
		for _, again := range []bool{false, true} { // b is begun once more afterwards
			t.Run(fmt.Sprint(fails, again), func(t *testing.T) {
				asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
					_, bindings := newJournal(t, "a", "b")
					reg := sqlreqtest.NewRegistry(t, bindings...)
					var told sqlreqtest.Recorder
					all := func(ctx context.Context, name string) {
						for _, k := range []sqlreq.Key{"a", "b"} {
							told.Hooks(t, ctx, k, " "+string(k)+" "+name)
							before(t, ctx, k, func(context.Context) error { told.Add("function " + string(k) + " " + name); return nil })
						}
					}
					run(reg, func(ctx context.Context) error {
						exec(t, nil, "1", "a")(ctx)
						all(ctx, "1")
						inAtomic(t, ctx, reg, fails, func(in context.Context) error {
							exec(t, nil, "X", "b")(in)
							all(in, "2")
							all(ctx, "3") // hooks with another context are not refused
							return fails
						})
						told.Add("-")
						if again {
							exec(t, nil, "2", "b")(ctx)
						}
						return nil
					}).ok(t)
					want := "- function a 1 function b 1 function a 2 function b 2 function a 3 function b 3 commit a 1 commit b 1 commit a 2 commit b 2 commit a 3 commit b 3"
					switch {
					case fails != nil && again:
						want = "- function a 1 function b 1 function a 3 function b 3 commit a 1 commit b 1 commit a 3 commit b 3"
					case fails != nil: // on b nothing is open: the end of the unit decides
						want = "- function a 1 function a 3 commit a 1 commit b 1 commit a 3 commit b 3"
					}
					if got := told.Words(); got != want {
						t.Errorf("got\n%s\nwant\n%s", got, want)
					}
				})
			})
		}
	}
}

// Inside of a Savepoint an Atomic nests by its context, and not by another.
func TestG4AtomicInASavepoint(t *testing.T) {
	j, bindings := newJournal(t, "a", "b")
	reg := sqlreqtest.NewRegistry(t, bindings...)
	asRequest(reg, func(ctx context.Context) error {
		exec(t, nil, "1", "b")(ctx)
		return sqlreq.Key("a").Savepoint(ctx, func(in context.Context) error {
			j.Take()
			err := reg.Atomic(ctx, func(context.Context) error { t.Error("fn runs"); return nil })
			refused(t, "Atomic", err, `savepoint on key "a"`)
			j.CheckLines(t, "b SAVEPOINT sqlreq_1", "b RELEASE SAVEPOINT sqlreq_1")
			inAtomic(t, in, reg, sqlreqtest.ErrTest, exec(t, sqlreqtest.ErrTest, "2", "a", "b"))
			return exec(t, nil, "3", "a", "b")(in)
		})
	}).ok(t)
	j.Check(t, "b SAVEPOINT sqlreq_2", "a SAVEPOINT sqlreq_3", "a 2", "b 2", "a ROLLBACK TO SAVEPOINT sqlreq_3", "a RELEASE SAVEPOINT sqlreq_3",
		"b ROLLBACK TO SAVEPOINT sqlreq_2", "b RELEASE SAVEPOINT sqlreq_2", "a 3", "b 3", "a RELEASE SAVEPOINT sqlreq_1", "b COMMIT", "a COMMIT")
}

// Where fn is a part it is not run again by itself: the unit is.
func TestG4AtomicRetry(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		db := sqlreqtest.OpenDB(t)
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
		reg.Retry = sqlreqtest.Retries(3)
		units, parts := 0, 0
		run(reg, func(ctx context.Context) error {
			units++
			sqlreqtest.Note(t, ctx, mainKey, "unit")
			return reg.Atomic(ctx, func(ctx context.Context) error {
				sqlreqtest.Note(t, ctx, mainKey, "part")
				if parts++; parts < 3 {
					return sqlreqtest.Conflict{}
				}
				return nil
			})
		}).ok(t)
		if got := sqlreqtest.Notes(t, db); units != 3 || parts != 3 || got != "unit part" {
			t.Errorf("got %d units, %d parts, %q", units, parts, got)
		}
	})
}

func TestG4AtomicInFunctionsOfTheProgram(t *testing.T) {
	var reg *sqlreq.Registry
	part := func(t *testing.T, ctx context.Context) {
		inAtomic(t, ctx, reg, sqlreqtest.ErrTest, exec(t, sqlreqtest.ErrTest, "PART", "b", "c"))
		inAtomic(t, ctx, reg, nil, exec(t, nil, "PART", "b"))
	}
	want := []string{"b SAVEPOINT sqlreq_1", "b PART", "c BEGIN", "c PART", "c ROLLBACK", "b ROLLBACK TO SAVEPOINT sqlreq_1", "b RELEASE SAVEPOINT sqlreq_1",
		"b SAVEPOINT sqlreq_2", "b PART", "b RELEASE SAVEPOINT sqlreq_2"}
	places := map[string]struct {
		set   func(t *testing.T, b *sqlreq.Binding)
		begin []string // on a, around want
		rest  []string
	}{
		"Route": {func(t *testing.T, b *sqlreq.Binding) {
			db := b.DB
			b.DB, b.Route = nil, func(ctx context.Context, r *http.Request) (*sql.DB, error) { part(t, r.Context()); return db, nil }
		}, nil, []string{"a BEGIN", "a WORK", "b COMMIT", "a COMMIT"}},
		"TxOptions": {func(t *testing.T, b *sqlreq.Binding) {
			b.TxOptions = func(ctx context.Context, _ *http.Request) *sql.TxOptions { part(t, ctx); return nil }
		}, nil, []string{"a BEGIN", "a WORK", "b COMMIT", "a COMMIT"}},
		"BeforeCommit": {nil, []string{"a BEGIN", "a WORK"}, []string{"a COMMIT", "b COMMIT"}},
	}
	for name, tt := range places {
		t.Run(name, func(t *testing.T) {
			j, bindings := newJournal(t, "a", "b", "c")
			if tt.set != nil {
				tt.set(t, &bindings[0])
			}
			reg = sqlreqtest.NewRegistry(t, bindings...)
			asRequest(reg, func(ctx context.Context) error {
				exec(t, nil, "1", "b")(ctx)
				if tt.set == nil {
					before(t, ctx, "b", func(ctx context.Context) error {
						exec(t, nil, "WORK", "a")(ctx)
						part(t, ctx)
						return nil
					})
					return nil
				}
				return exec(t, nil, "WORK", "a")(ctx)
			}).ok(t)
			got := j.Take()[2:]
			if tt.set == nil { // a is open as well
				if n := slices.Index(got, "c ROLLBACK"); n < 0 || !slices.Contains(got, "a ROLLBACK TO SAVEPOINT sqlreq_1") {
					t.Errorf("got %q", got)
				}
				return
			}
			if all := slices.Concat(tt.begin, want, tt.rest); !slices.Equal(got, all) {
				t.Errorf("got %q, want %q", got, all)
			}
		})
	}
}

// In an AfterBegin it is a part for the other keys, and an error while its own
// transaction is being begun.
func TestG4AtomicInAfterBegin(t *testing.T) {
	j, bindings := newJournal(t, "a", "b")
	var reg *sqlreq.Registry
	bindings[0].AfterBegin = func(ctx context.Context, _ *http.Request, _ *sql.Tx) error {
		refused(t, "Atomic", reg.Atomic(ctx, func(context.Context) error { t.Error("fn runs"); return nil }), "uses the key")
		return nil
	}
	reg = sqlreqtest.NewRegistry(t, bindings...)
	asRequest(reg, func(ctx context.Context) error {
		exec(t, nil, "1", "b")(ctx)
		// AfterBegin runs for what an Atomic begins, as for everything.
		inAtomic(t, ctx, reg, sqlreqtest.ErrTest, exec(t, sqlreqtest.ErrTest, "2", "a"))
		return exec(t, nil, "3", "a")(ctx)
	}).ok(t)
	if got := j.Take(); !slices.Equal(got[len(got)-2:], []string{"b COMMIT", "a COMMIT"}) {
		t.Errorf("got %q", got)
	}
	j.Check(t)
}

func TestG4AtomicFail(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		j, bindings := newJournal(t, "a")
		reg := sqlreqtest.NewRegistry(t, bindings...)
		u := run(reg, func(ctx context.Context) error {
			exec(t, nil, "1", "a")(ctx)
			inAtomic(t, ctx, reg, nil, func(ctx context.Context) error { return sqlreq.Fail(ctx, sqlreqtest.ErrTest) })
			return nil
		})
		if !errors.Is(u.err, sqlreqtest.ErrTest) {
			t.Errorf("got %v", u.err)
		}
		j.Check(t, "a BEGIN", "a 1", "a SAVEPOINT sqlreq_1", "a RELEASE SAVEPOINT sqlreq_1", "a ROLLBACK")
	})
}

// An Event for what an Atomic began and rolled back.
func TestG4AtomicEvents(t *testing.T) {
	_, bindings := newJournal(t, "a", "b")
	reg := sqlreqtest.NewRegistry(t, bindings...)
	var told sqlreqtest.Recorder
	reg.Observe = told.Observe
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		exec(t, nil, "1", "a")(r.Context())
		inAtomic(t, r.Context(), reg, sqlreqtest.ErrTest, exec(t, sqlreqtest.ErrTest, "X", "b"))
		told.Add("returned")
	})))
	if got := told.String(); rec.Code != 200 || got != "b RolledBack 1, returned, a Committed 1" {
		t.Errorf("got %d, %s", rec.Code, got)
	}
}
