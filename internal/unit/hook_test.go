package unit

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq/internal/txn"
)

// Hooks of a database where nothing was open have the fate of the unit.
func TestUnitHooksOfNothing(t *testing.T) {
	for _, row := range []struct {
		do   func(*world)
		saw  string
		keep bool
	}{
		{func(w *world) { w.Finish(200) }, "a +", true},
		{func(w *world) { w.Abandon() }, "a -", false},
		{func(w *world) { w.Fail(background, errPlain); w.Finish(200) }, "a -", false},
		{func(w *world) { w.commits = func(int, []any) bool { return false }; w.Finish(200) }, "a -", false},
	} {
		w := newWorld(t)
		w.hooks(background, w.bind("a"))
		row.do(w)
		w.check(row.saw)
		if w.Committed() != row.keep {
			t.Errorf("committed %v, want %v", w.Committed(), row.keep)
		}
	}
}

// Beside a database that was committed, one whose COMMIT failed decides for those
// where nothing was open.
func TestUnitHooksBesideAFailure(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.bind("a"), w.bind("b"), w.bind("c")
	w.hooks(background, c)
	w.begin(a, b)
	w.hooks(background, a)
	w.hooks(background, b)
	w.saw()
	w.at("b: COMMIT", fails(io.ErrUnexpectedEOF))
	w.Finish(200)
	w.check("a: COMMIT; b: COMMIT; a was committed; b was unknown; c -; a +")
}

// A hook is one of the transaction that is open, or of the next one; it runs once.
func TestUnitHooksOfTheNext(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	w.hook(background, a, true, "before")
	w.begin(a)
	w.hook(background, a, true, "first")
	must(0, w.commit(a))(t)
	w.hook(background, a, true, "between")
	w.hook(background, a, false, "between, not")
	w.begin(a)
	must(0, w.rollback(a))(t)
	w.hook(background, a, true, "last")
	w.Finish(200)
	w.check("a: BEGIN; a: COMMIT; a was committed; before; first; a: BEGIN; a: ROLLBACK; a was rolled back; between, not; last")
}

// The hooks of one database do not run at the end of another's transaction.
func TestUnitHooksOfAnother(t *testing.T) {
	w := newWorld(t)
	a, b := w.bind("a"), w.bind("b")
	w.begin(a, b)
	w.hooks(background, b)
	w.hooks(background, a)
	must(0, w.commit(a))(t)
	w.check("a: BEGIN; b: BEGIN; a: COMMIT; a was committed; a +")
	w.Abandon()
	w.check("b: ROLLBACK; b was rolled back; b -")
}

// An AfterCommit function that ran forbids a retry, also for the units around,
// though nothing was stored.
func TestUnitHooksKeep(t *testing.T) {
	for _, commit := range []bool{true, false} {
		outer := newWorld(t)
		w := outer.inside()
		a := w.bind("a")
		a.options = readOnly
		w.begin(a)
		w.hook(background, a, commit, "hook")
		if err := w.commit(a); err != nil {
			t.Error(err)
		}
		if w.Committed() != commit || outer.Committed() != commit {
			t.Errorf("committed %v, around %v, want %v", w.Committed(), outer.Committed(), commit)
		}
		w.Abandon()
	}
}

// A hook that runs finds that nothing is held: it can use the unit, and register more.
func TestUnitHookUsesTheUnit(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	w.begin(a)
	ctx := context.WithValue(background, t, t)
	hook := func(c context.Context) {
		if c != ctx || a.hookCtx != ctx {
			t.Error("the context is another")
		}
		w.begin(a)
		w.hooks(background, a)
		must(0, w.rollback(a))(t)
	}
	must(0, w.AddHook(background, ctx, background, a, true, hook))(t)
	must(0, w.commit(a))(t)
	w.check("a: BEGIN; a: COMMIT; a was committed; a: BEGIN; a: ROLLBACK; a was rolled back; a -")
	late := error(nil)
	hook = func(context.Context) {
		late = w.AddHook(background, background, background, a, true, nil)
		_, begin := w.use(background, a)
		if begin != txn.ErrFinished {
			t.Errorf("after the end: got %v", begin)
		}
	}
	must(0, w.AddHook(background, background, background, a, true, hook))(t)
	w.Finish(200)
	if late != txn.ErrFinished {
		t.Errorf("after the end: got %v", late)
	}
}

// Hooks of a savepoint: kept when it is released, dropped when it, or one around
// it, is rolled back. They count for the transaction of their own database only.
func TestUnitHooksInSavepoints(t *testing.T) {
	w := newWorld(t)
	a, b := w.bind("a"), w.bind("b")
	w.begin(a, b)
	in := func(ctx context.Context, back error, name string, then func(context.Context)) {
		t.Helper()
		err := w.Savepoint(ctx, background, a, func(ctx context.Context) error {
			w.hook(ctx, a, true, name)
			w.hook(ctx, a, false, name+", not")
			w.hook(ctx, b, true, name+" of b")
			if then != nil {
				then(ctx)
			}
			return back
		})
		if !errors.Is(err, back) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	in(background, nil, "released", nil)
	in(background, errPlain, "rolled back", nil)
	in(background, errPlain, "outer rolled back", func(ctx context.Context) { in(ctx, nil, "inner released", nil) })
	in(background, nil, "outer released", func(ctx context.Context) { in(ctx, errPlain, "inner rolled back", nil) })
	w.saw()
	must(0, w.commit(a))(t)
	w.check("a: COMMIT; a was committed; released; outer released")
	w.Finish(200)
	w.check("b: COMMIT; b was committed; released of b; rolled back of b; outer rolled back of b; inner released of b; outer released of b; inner rolled back of b")
}

// At the end of the unit it is the same.
func TestUnitLastHooksInSavepoints(t *testing.T) {
	for _, commit := range []bool{true, false} {
		w := newWorld(t)
		a := w.bind("a")
		for _, back := range []error{nil, errPlain} {
			_ = w.Savepoint(background, background, a, func(ctx context.Context) error {
				w.hook(ctx, a, commit, "in "+errText(back))
				return back
			})
		}
		w.saw()
		w.commits = func(int, []any) bool { return commit }
		w.Finish(200)
		w.check(map[bool]string{true: "a: COMMIT; a was committed; in ", false: "a: ROLLBACK; a was rolled back; in "}[commit])
	}
}

// With the context of a savepoint that was rolled back nothing can be registered
// for its database any more.
func TestUnitHookInWhatWasRolledBack(t *testing.T) {
	w := newWorld(t)
	a, b := w.bind("a"), w.bind("b")
	var inside context.Context
	_ = w.Savepoint(background, background, a, func(ctx context.Context) error { inside = ctx; return errPlain })
	add := func(b *binding) error { return w.AddHook(inside, background, background, b, true, nil) }
	if err := add(a); errText(err) != `sqlreq: key "a": the Savepoint of this context was rolled back; use the context around it` {
		t.Errorf("got %v", err)
	}
	if err := add(b); err != nil {
		t.Errorf("another database: got %v", err)
	}
	w.Abandon()
}

// A hook of a key whose Route was not asked yet waits for what Route will say.
func TestUnitHookBeforeRoute(t *testing.T) {
	w := newWorld(t)
	a, b := w.routed("a"), w.routed("b")
	w.hooks(background, a)
	w.hooks(background, b) // whose Route is not asked
	w.check("")
	w.begin(a)
	must(0, w.rollback(a))(t)
	w.check("a: Route; a: BEGIN; a: ROLLBACK; a was rolled back; a -")
	w.Finish(200)
	w.check("b +")
}

// What begins too late, and is rolled back at once, is no transaction to the hooks.
func TestUnitHooksOfATransactionThatCameTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.bind("a")
		a.observed = false
		w.hooks(background, a)
		ctx, end := context.WithCancel(background)
		w.at("a: BEGIN", func(context.Context) error { end(); return nil })
		if _, err := w.use(ctx, a); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		synctest.Wait() // database/sql rolls it back too
		w.check("a: BEGIN; a: ROLLBACK")
		w.at("a: BEGIN", nil)
		w.begin(a)
		w.Finish(200)
		w.check("a: BEGIN; a: COMMIT; a +")
	})
}
