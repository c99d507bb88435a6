package unit

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq/internal/txn"
)

// twoOpen returns a unit with three keys: a and b are open, begun in this order.
func twoOpen(t *testing.T) (w *world, a, b, c *binding) {
	w = newWorld(t)
	a, b, c = w.bind("a"), w.bind("b"), w.bind("c")
	w.begin(a, b)
	w.saw()
	return w, a, b, c
}

const (
	backA = "a: ROLLBACK TO SAVEPOINT sqlreq_1; a: RELEASE SAVEPOINT sqlreq_1"
	backB = "b: ROLLBACK TO SAVEPOINT sqlreq_1; b: RELEASE SAVEPOINT sqlreq_1"
)

// atomic runs fn in an Atomic, noted as "fn".
func (w *world) atomic(ctx context.Context, fn func(context.Context) error) error {
	return w.Atomic(ctx, background, func(ctx context.Context) error {
		if err := w.note(ctx, "fn"); err != nil || fn == nil {
			return err
		}
		return fn(ctx)
	})
}

// Every open transaction gets a savepoint, and they are released in the other order.
func TestUnitAtomic(t *testing.T) {
	w, _, _, _ := twoOpen(t)
	if err := w.atomic(background, nil); err != nil {
		t.Error(err)
	}
	w.check("a: SAVEPOINT sqlreq_1; b: SAVEPOINT sqlreq_1; fn; b: RELEASE SAVEPOINT sqlreq_1; a: RELEASE SAVEPOINT sqlreq_1")
	w.Finish(200)
	w.check("a: COMMIT; b: COMMIT; a was committed; b was committed")
}

// With nothing open there is no statement; what fn begins stays.
func TestUnitAtomicOfNothing(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	if err := w.atomic(background, nil); err != nil {
		t.Error(err)
	}
	w.check("fn")
	if err := w.atomic(background, func(ctx context.Context) error {
		_, err := w.use(ctx, a)
		w.hooks(ctx, a)
		w.before(ctx, a, "before", nil)
		return err
	}); err != nil {
		t.Error(err)
	}
	w.begin(a) // with the context around
	w.check("fn; a: BEGIN")
	w.Finish(200)
	w.check("before; a: COMMIT; a was committed; a +")
}

// An error, a panic or an exit undoes what fn did in every database and nothing
// else: what was open before is gone back to, what fn began is rolled back, hooks of
// fn are dropped, and those from before wait.
func TestUnitAtomicUndone(t *testing.T) {
	for _, row := range []struct {
		fault func(context.Context) error
		came  string
		err   error
	}{{fails(errPlain), "returned", errPlain}, {panics, "panicked", nil}, {exits, "exited", nil}} {
		w, a, b, c := twoOpen(t)
		for _, key := range []*binding{a, c} {
			w.hook(background, key, true, key.name+" + around")
			w.hook(background, key, false, key.name+" - around")
			w.before(background, key, key.name+" before, around", nil)
		}
		var err error
		came := called(func() {
			err = w.atomic(background, func(ctx context.Context) error {
				must(w.use(ctx, c))(t)
				for _, key := range []*binding{a, b, c, w.bind("d")} {
					w.hooks(ctx, key)
					w.before(ctx, key, "before", nil)
				}
				return row.fault(ctx)
			})
		})
		if came != row.came || err != row.err || w.Err() != nil {
			t.Errorf("it %s with %v, the unit failed with %v", came, err, w.Err())
		}
		w.check("a: SAVEPOINT sqlreq_1; b: SAVEPOINT sqlreq_1; fn; c: BEGIN; c: ROLLBACK; c was rolled back; " + backB + "; " + backA)
		w.begin(a, b, c)
		w.Finish(200)
		w.check("c: BEGIN; a before, around; c before, around; b: COMMIT; a: COMMIT; c: COMMIT; " +
			"b was committed; a was committed; c was committed; a + around; c + around")
	}
}

// With nothing begun any more the end of the unit decides for the hooks from before.
func TestUnitAtomicUndoneAndNoMore(t *testing.T) {
	w := newWorld(t)
	c := w.bind("c")
	w.hook(background, c, true, "around")
	_ = w.atomic(background, func(ctx context.Context) error {
		must(w.use(ctx, c))(t)
		return errPlain
	})
	w.saw()
	w.Finish(200)
	w.check("around")
}

// Atomics nest, and what the inner one began belongs to the outer one.
func TestUnitAtomicNests(t *testing.T) {
	for _, outer := range []error{nil, errPlain} {
		for _, inner := range []error{nil, errConflict} {
			w := newWorld(t)
			a, c := w.bind("a"), w.bind("c")
			w.begin(a)
			w.saw()
			err := w.atomic(background, func(in context.Context) error {
				got := w.atomic(in, func(ctx context.Context) error {
					must(w.use(ctx, c))(t)
					w.hook(ctx, c, true, "of the inner one")
					if _, err := w.use(in, c); err == nil {
						t.Error("the context around was not refused")
					}
					if err := w.atomic(in, nil); err == nil {
						t.Error("an Atomic with the context around was not refused")
					}
					return inner
				})
				if got != inner {
					t.Errorf("the inner one: got %v", got)
				}
				must(w.use(in, c))(t)
				w.hook(in, c, true, "of the outer one")
				return outer
			})
			if err != outer {
				t.Errorf("the outer one: got %v", err)
			}
			got := w.saw()
			want := "a: SAVEPOINT sqlreq_1; fn; a: SAVEPOINT sqlreq_2; fn; c: BEGIN; "
			if inner == nil {
				want += "a: RELEASE SAVEPOINT sqlreq_2; "
			} else {
				want += "c: ROLLBACK; c was rolled back; a: ROLLBACK TO SAVEPOINT sqlreq_2; a: RELEASE SAVEPOINT sqlreq_2; c: BEGIN; "
			}
			if outer == nil {
				want += "a: RELEASE SAVEPOINT sqlreq_1"
			} else {
				want += "c: ROLLBACK; c was rolled back; " + backA
			}
			if got != want {
				t.Errorf("outer %v, inner %v: got  %s\nwant %s", outer, inner, got, want)
			}
			must(w.use(background, c))(t)
			w.saw()
			w.Finish(200)
			want = "a: COMMIT; c: COMMIT; a was committed; c was committed"
			if outer == nil && inner == nil {
				want += "; of the inner one"
			}
			if outer == nil {
				want += "; of the outer one"
			}
			w.check(want)
		}
	}
}

// A savepoint that cannot be laid: fn does not run, and what was laid is released.
func TestUnitAtomicSaveFails(t *testing.T) {
	w, _, _, _ := twoOpen(t)
	w.at("b: SAVEPOINT sqlreq_1", fails(errConflict))
	never := func(context.Context) error { t.Error("it ran"); return nil }
	if err := w.Atomic(background, background, never); errText(err) != `sqlreq: savepoint on key "b" (close open rows first; or this database has no savepoints, or spells them otherwise): conflict` || !w.SawConflict() {
		t.Errorf("got %v, conflict %v", err, w.SawConflict())
	}
	w.check("a: SAVEPOINT sqlreq_1; b: SAVEPOINT sqlreq_1; a: RELEASE SAVEPOINT sqlreq_1")
	if err := w.atomic(background, nil); err != nil {
		t.Errorf("again: got %v", err)
	}
	w.check("a: SAVEPOINT sqlreq_2; b: SAVEPOINT sqlreq_2; fn; b: RELEASE SAVEPOINT sqlreq_2; a: RELEASE SAVEPOINT sqlreq_2")
	w.Finish(200)

	w, _, _, _ = twoOpen(t)
	w.at("b: SAVEPOINT sqlreq_1", fails(errPlain))
	w.at("a: RELEASE SAVEPOINT sqlreq_1", first(errRefused))
	err := w.Atomic(background, background, never)
	if !errors.Is(err, errPlain) || !errors.Is(err, errRefused) || w.SawConflict() {
		t.Errorf("got %v, conflict %v", err, w.SawConflict())
	}
	w.check("a: SAVEPOINT sqlreq_1; b: SAVEPOINT sqlreq_1; a: RELEASE SAVEPOINT sqlreq_1; " + backA)
	w.Abandon()
}

// If the first release fails all is undone; if another had succeeded before, the
// request can only roll back.
func TestUnitAtomicReleaseFails(t *testing.T) {
	const begun = "a: SAVEPOINT sqlreq_1; b: SAVEPOINT sqlreq_1; fn; c: BEGIN; "
	const releaseOf = `sqlreq: release of a savepoint on key "`
	for _, row := range []struct {
		at   string
		err  string
		unit string
		saw  string
		end  string
	}{
		{"b: RELEASE SAVEPOINT sqlreq_1", releaseOf + `b" (close open rows first): plain`, "",
			"b: RELEASE SAVEPOINT sqlreq_1; " + backB + "; c: ROLLBACK; c was rolled back; " + backA,
			"a: COMMIT; b: COMMIT; a was committed; b was committed; a + around; c + around"},
		{"a: RELEASE SAVEPOINT sqlreq_1", "sqlreq: a part of an Atomic cannot be undone any more, the request can only roll back: " + releaseOf + `a" (close open rows first): plain`,
			"sqlreq: a part of an Atomic cannot be undone any more, the request can only roll back: " + releaseOf + `a" (close open rows first): plain`,
			"b: RELEASE SAVEPOINT sqlreq_1; a: RELEASE SAVEPOINT sqlreq_1; " + backA + "; c: ROLLBACK; c was rolled back",
			"a: ROLLBACK; b: ROLLBACK; a was rolled back; b was rolled back; a - around; c - around"},
	} {
		w, a, _, c := twoOpen(t)
		for _, key := range []*binding{a, c} {
			w.hook(background, key, true, key.name+" + around")
			w.hook(background, key, false, key.name+" - around")
		}
		w.at(row.at, first(errPlain))
		at := context.WithValue(background, t, t)
		err := w.Atomic(background, at, func(ctx context.Context) error {
			_ = w.note(ctx, "fn")
			w.hooks(ctx, a)
			must(w.use(ctx, c))(t)
			return nil
		})
		if errText(err) != row.err || errText(w.Err()) != row.unit || (row.unit != "") != (w.FailedAt() == at) {
			t.Errorf("%s: got %v, the unit failed with %v", row.at, err, w.Err())
		}
		w.check(begun + row.saw)
		w.Finish(200)
		w.check(row.end)
	}
}

// What cannot be gone back to is in the error, and the request can only roll back.
func TestUnitAtomicUndoFails(t *testing.T) {
	const failed = `sqlreq: rollback to a savepoint on key "b" failed (close open rows first), the request can only roll back: answered 23505`
	w, a, _, c := twoOpen(t)
	w.at("b: ROLLBACK TO SAVEPOINT sqlreq_1", fails(errRefused))
	err := w.atomic(background, func(ctx context.Context) error { must(w.use(ctx, c))(t); return errPlain })
	if errText(err) != "plain\n"+failed {
		t.Errorf("got %v", err)
	}
	w.check("a: SAVEPOINT sqlreq_1; b: SAVEPOINT sqlreq_1; fn; c: BEGIN; c: ROLLBACK; c was rolled back; b: ROLLBACK TO SAVEPOINT sqlreq_1; " + backA)
	must(w.use(background, a))(t)
	if err := w.Finish(200); errText(err) != `sqlreq: key "b": an earlier error may have ended the transaction, it was rolled back: `+failed {
		t.Errorf("the unit: got %v", err)
	}
	w.check("a: ROLLBACK; b: ROLLBACK; a was rolled back; b was rolled back")
}

// The transaction that fn began and that the server had ended: nobody knows.
func TestUnitAtomicBegunAndEnded(t *testing.T) {
	w := newWorld(t)
	c := w.bind("c")
	w.hook(background, c, true, "around")
	w.at("c: ROLLBACK", fails(answered("25P01")))
	err := w.atomic(background, func(ctx context.Context) error { must(w.use(ctx, c))(t); return errPlain })
	if !errors.Is(err, errPlain) || !errors.Is(err, txn.ErrTxEnded) || !errors.Is(w.Err(), txn.ErrTxEnded) || !w.Committed() {
		t.Errorf("got %v, the unit failed with %v", err, w.Err())
	}
	w.check("fn; c: BEGIN; c: ROLLBACK; c was ended")
	w.Abandon()
}

// A driver that does not return from the ROLLBACK of what fn began: it is told, and
// the turn is free.
func TestUnitAtomicUndoPanics(t *testing.T) {
	w := newWorld(t)
	c := w.bind("c")
	w.at("c: ROLLBACK", panics)
	var o Open
	if came := called(func() {
		_ = w.atomic(background, func(ctx context.Context) error { o = must(w.use(ctx, c))(t); return errPlain })
	}); came != "panicked" {
		t.Errorf("it %s", came)
	}
	w.check("fn; c: BEGIN; c: ROLLBACK; c was unknown")
	if o.source.slot.Busy() || w.group() != nil || w.Err() == nil {
		t.Error("it is busy, or the Atomic is open, or the unit has not failed")
	}
	w.at("c: ROLLBACK", nil)
	w.Abandon()
}

// Whatever context Commit, Rollback and Hijack have, they are refused in fn; hooks,
// Fail and Begun are not.
func TestUnitAtomicRefuses(t *testing.T) {
	w := newWorld(t)
	a, b := w.bind("a"), w.bind("b")
	if err := w.atomic(background, func(in context.Context) error {
		must(w.use(in, a))(t)
		for _, ctx := range []context.Context{in, background} {
			for _, commit := range []bool{true, false} {
				for _, key := range []*binding{a, b} {
					if err := w.EndNow(ctx, background, background, key, commit); err == nil {
						t.Errorf("commit %v of %s", commit, key.name)
					}
				}
			}
		}
		for _, commit := range []bool{true, false} {
			if err := w.EndOpen(commit); err == nil {
				t.Errorf("Hijack, commit %v", commit)
			}
		}
		if err := w.Savepoint(background, background, b, fails(nil)); errText(err) != `sqlreq: key "b": an Atomic is open, and this context is not that of the innermost one, so that the work would be undone with it; pass on the context that its function was given` {
			t.Errorf("Savepoint: got %v", err)
		}
		w.hooks(background, a)
		if !w.Begun(a) || w.Begun(b) {
			t.Error("Begun is wrong")
		}
		return w.Savepoint(in, background, a, func(sp context.Context) error {
			if err := w.Atomic(in, background, fails(nil)); err == nil {
				t.Error("an Atomic beside the savepoint")
			}
			return w.Atomic(sp, background, fails(nil))
		})
	}); err != nil {
		t.Error(err)
	}
	w.saw()
	if err := w.commit(a); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	w.check("a: COMMIT; a was committed; a +")
	w.Abandon()
}

// Fail in fn fails the unit, and a unit that ends in fn ends what it has begun.
func TestUnitAtomicFails(t *testing.T) {
	w, _, _, c := twoOpen(t)
	if err := w.atomic(background, func(ctx context.Context) error {
		must(w.use(ctx, c))(t)
		return w.Fail(background, errPlain)
	}); err != nil || w.Err() != errPlain {
		t.Errorf("got %v, the unit failed with %v", err, w.Err())
	}
	w.saw()
	w.Finish(200)
	w.check("a: ROLLBACK; b: ROLLBACK; c: ROLLBACK; a was rolled back; b was rolled back; c was rolled back")

	w = newWorld(t)
	c = w.bind("c")
	err := w.atomic(background, func(ctx context.Context) error {
		must(w.use(ctx, c))(t)
		w.Finish(200)
		return nil
	})
	if err != txn.ErrFinished || errText(w.Err()) != `sqlreq: key "c": a Savepoint is still open, the transaction was rolled back` {
		t.Errorf("got %v, the unit failed with %v", err, w.Err())
	}
	w.check("fn; c: BEGIN; c: ROLLBACK; c was rolled back")
	if err := w.atomic(background, nil); err != txn.ErrFinished {
		t.Errorf("after the end: got %v", err)
	}
}

// An Atomic that returns before one inside of it has is undone, and the unit fails:
// the inner one would stay, or be undone, by halves. Until that returns it is the open one.
func TestUnitAtomicInnerOpen(t *testing.T) {
	for _, fails := range []error{nil, errPlain} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			goes := make(chan bool)
			inner := make(chan error, 1)
			err := w.atomic(background, func(in context.Context) error {
				go func() { inner <- w.atomic(in, func(context.Context) error { <-goes; return nil }) }()
				synctest.Wait()
				return fails
			})
			if !errors.Is(err, errInnerOpen) || fails != nil && !errors.Is(err, fails) || w.Err() != errInnerOpen {
				t.Errorf("got %v, the unit failed with %v", err, w.Err())
			}
			if err := w.atomic(background, nil); err == nil {
				t.Error("another one beside the inner one")
			}
			close(goes)
			must(0, <-inner)(t)
			must(0, w.atomic(background, nil))(t)
			w.Abandon()
		})
	}
}

// With the context of an Atomic that was undone nothing is begun and no function registered.
func TestUnitAtomicUndoneContext(t *testing.T) {
	const undone = `sqlreq: key "a": the Savepoint of this context was rolled back; use the context around it`
	w := newWorld(t)
	a := w.bind("a")
	var in context.Context
	_ = w.atomic(background, func(ctx context.Context) error { in = ctx; return errPlain })
	if _, err := w.use(in, a); errText(err) != undone {
		t.Errorf("a use: got %v", err)
	}
	if err := w.AddBefore(in, background, background, background, a, fails(nil)); errText(err) != undone {
		t.Errorf("AddBefore: got %v", err)
	}
	w.check("fn")
	w.Abandon()
}

// Under a Binding.Tx it is the same, with a savepoint in the savepoint.
func TestUnitAtomicInATest(t *testing.T) {
	w := newWorld(t)
	a := w.inTest("a")
	w.before(background, a, "before", nil)
	if err := w.atomic(background, func(ctx context.Context) error {
		must(w.use(ctx, a))(t)
		return errPlain
	}); err != errPlain {
		t.Errorf("got %v", err)
	}
	if w.Begun(a) {
		t.Error("it is open still")
	}
	w.saw()
	w.begin(a)
	w.saw()
	if err := w.Finish(200); err != nil || !strings.HasPrefix(w.saw(), "before; a: RELEASE SAVEPOINT sqlreq_tx_") {
		t.Error(err)
	}
	other := newWorld(t)
	other.begin(a) // the turn is free
	other.Abandon()
}

// It waits for a BEGIN that is under way, and lays a savepoint there.
func TestUnitAtomicWaitsForABegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.bind("a")
		begins := make(chan bool)
		w.at("a: BEGIN", func(context.Context) error { <-begins; return nil })
		go w.use(background, a)
		synctest.Wait()
		got := make(chan error, 1)
		go func() { got <- w.atomic(background, nil) }()
		synctest.Wait()
		if len(got) > 0 {
			t.Error("it did not wait")
		}
		close(begins)
		must(0, <-got)(t)
		w.check("a: BEGIN; a: SAVEPOINT sqlreq_1; fn; a: RELEASE SAVEPOINT sqlreq_1")
		w.Abandon()
	})
}
