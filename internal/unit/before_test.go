package unit

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq/internal/txn"
)

// ends are the three ways to a COMMIT.
var ends = map[string]func(*world, *binding) error{
	"Finish": func(w *world, _ *binding) error { return w.Finish(200) },
	"Commit": func(w *world, b *binding) error { return w.commit(b) },
	"Hijack": func(w *world, _ *binding) error { return w.EndOpen(true) },
}

// Functions run once, in order, in the open transaction, before its COMMIT, also
// those that another one registers, and those of each key of the pool.
func TestUnitBefore(t *testing.T) {
	for name, end := range ends {
		w := newWorld(t)
		a, b := w.bind("a"), w.bind("b")
		b.db = a.db
		w.before(background, a, "first", func(context.Context) error {
			w.before(background, b, "registered by it", nil)
			w.begin(b) // the same transaction
			return nil
		})
		o := w.begin(a)
		w.before(background, b, "second", func(context.Context) error {
			if !o.source.slot.Open() {
				t.Error("nothing is open")
			}
			return nil
		})
		if err := end(w, a); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		w.check("a: BEGIN; first; second; registered by it; a: COMMIT; a was committed")
		if name == "Finish" {
			continue
		}
		w.begin(a)
		must(0, end(w, a))(t)
		w.check("a: BEGIN; a: COMMIT; a was committed")
		w.Abandon()
	}
}

// They get the context that they were registered to run with.
func TestUnitBeforeContext(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	w.begin(a)
	run := context.WithValue(background, t, "run")
	ran := false
	fn := func(ctx context.Context) error { ran = ctx.Value(t) == "run"; return nil }
	must(0, w.AddBefore(background, run, background, background, a, fn))(t)
	if err := w.Finish(200); err != nil || !ran {
		t.Errorf("got %v, ran %v", err, ran)
	}
}

// They do not run where nothing is to be committed.
func TestUnitBeforeNot(t *testing.T) {
	for name, do := range map[string]func(*world, *binding){
		"nothing is open":   func(w *world, _ *binding) { w.Finish(200) },
		"failed":            func(w *world, b *binding) { w.begin(b); w.Fail(background, errPlain); w.Finish(200) },
		"failed, Commit":    func(w *world, b *binding) { w.begin(b); w.Fail(background, errPlain); w.commit(b) },
		"failed, Hijack":    func(w *world, b *binding) { w.begin(b); w.Fail(background, errPlain); w.EndOpen(true) },
		"the host says no":  func(w *world, b *binding) { w.begin(b); w.commits = no; w.Finish(200) },
		"Rollback":          func(w *world, b *binding) { w.begin(b); w.rollback(b); w.begin(b); w.Finish(200) },
		"Hijack after 400":  func(w *world, b *binding) { w.begin(b); w.EndOpen(false); w.begin(b); w.Finish(200) },
		"Abandon":           func(w *world, b *binding) { w.begin(b); w.Abandon() },
		"the client left":   func(w *world, b *binding) { w.begin(b); w.leave(); w.Finish(200) },
		"it left, Commit":   func(w *world, b *binding) { w.begin(b); w.leave(); w.commit(b) },
		"RollbackOnly":      func(w *world, b *binding) { w.begin(b); w.RollbackOnly(background, errPlain); w.Finish(200) },
		"Commit of another": func(w *world, b *binding) { w.begin(b); c := w.bind("c"); w.begin(c); w.commit(c) },
	} {
		w := newWorld(t)
		a := w.bind("a")
		fn := func(context.Context) error { t.Errorf("%s: it ran", name); return nil }
		must(0, w.AddBefore(background, background, background, background, a, fn))(t)
		do(w, a)
	}
}

func no(int, []any) bool { return false }

// What fails in one is the failure of the unit, at the handler that registered it,
// and nothing is committed any more.
func TestUnitBeforeFails(t *testing.T) {
	const rolledBack = "a: BEGIN; first; a: ROLLBACK; a was rolled back; a -"
	const notReturned = "sqlreq: a BeforeCommit function did not return"
	for _, row := range []struct {
		end  string
		fn   func(w *world, at context.Context) function
		came string
		err  string // of the end
		of   string // the unit's
		saw  string
	}{
		{"Finish", does(fails(errPlain)), "returned", "plain", "plain", rolledBack},
		{"Commit", does(fails(errPlain)), "returned", `sqlreq: commit on key "a" refused: plain`, "plain", "a: BEGIN; first"},
		{"Hijack", does(fails(errPlain)), "returned", "plain", "plain", "a: BEGIN; first"},
		{"Finish", failsTheUnit, "returned", "plain", "plain", rolledBack},
		{"Commit", failsTheUnit, "returned", `sqlreq: commit on key "a" refused: plain`, "plain", "a: BEGIN; first"},
		{"Hijack", failsTheUnit, "returned", "plain", "plain", "a: BEGIN; first"},
		{"Finish", does(panics), "panicked", "", notReturned, "a: BEGIN; first"},
		{"Commit", does(panics), "panicked", "", notReturned, "a: BEGIN; first"},
		{"Hijack", does(exits), "exited", "", notReturned, "a: BEGIN; first"},
	} {
		w := newWorld(t)
		a := w.bind("a")
		w.begin(a)
		w.hooks(background, a)
		at := context.WithValue(background, t, t)
		fn := row.fn(w, at)
		must(0, w.AddBefore(background, background, at, background, a, func(ctx context.Context) error {
			_ = w.note(ctx, "first")
			return fn(ctx)
		}))(t)
		w.before(background, a, "second", nil)
		var err error
		came := called(func() { err = ends[row.end](w, a) })
		if came != row.came || errText(err) != row.err || errText(w.Err()) != row.of {
			t.Errorf("%s: it %s with %v, the unit failed with %v", row.end, came, err, w.Err())
		}
		if row.of != "" && w.FailedAt() != at {
			t.Errorf("%s: it failed at another context", row.end)
		}
		w.check(row.saw)
		w.Abandon()
		if row.saw != rolledBack {
			w.check("a: ROLLBACK; a was rolled back; a -")
		}
		if w.Committed() {
			t.Errorf("%s: something is committed", row.end)
		}
	}
}

type function = func(context.Context) error

func does(fn function) func(*world, context.Context) function {
	return func(*world, context.Context) function { return fn }
}

// failsTheUnit is a function that calls Fail and returns nil.
func failsTheUnit(w *world, at context.Context) function {
	return func(context.Context) error { return w.Fail(at, errPlain) }
}

// The client that leaves while one runs is no failure of the function, but nothing
// is committed, and no further one runs.
func TestUnitBeforeClientLeaves(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	w.begin(a)
	w.before(background, a, "first", func(context.Context) error { w.leave(); return nil })
	w.before(background, a, "second", nil)
	if err := w.Finish(200); errText(err) != "sqlreq: the request's context ended before COMMIT: context canceled" {
		t.Errorf("got %v", err)
	}
	w.check("a: BEGIN; first; a: ROLLBACK; a was rolled back")
}

// The end of the context of a Commit ends the run as well.
func TestUnitBeforeCommitEnds(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	w.begin(a)
	ctx, end := context.WithCancel(background)
	w.before(background, a, "first", func(context.Context) error { end(); return nil })
	w.before(background, a, "second", nil)
	if err := w.EndNow(ctx, background, background, a, true); errText(err) != `sqlreq: commit on key "a" refused: context canceled` {
		t.Errorf("got %v", err)
	}
	w.check("a: BEGIN; first")
	w.Abandon()
}

// One may begin on another database, whose functions run then as well.
func TestUnitBeforeBegins(t *testing.T) {
	for _, end := range []string{"Finish", "Hijack"} {
		w := newWorld(t)
		a, b := w.bind("a"), w.bind("b")
		w.begin(a)
		w.before(background, b, "of b", nil)
		w.before(background, a, "of a", func(context.Context) error { w.begin(b); return nil })
		if err := ends[end](w, a); err != nil {
			t.Error(err)
		}
		w.check("a: BEGIN; of a; b: BEGIN; of b; a: COMMIT; b: COMMIT; a was committed; b was committed")
	}
	w := newWorld(t)
	a, b := w.bind("a"), w.bind("b")
	w.before(background, b, "of b", nil)
	w.before(background, a, "of a", func(context.Context) error { w.begin(b); return nil })
	w.begin(a)
	if err := w.commit(a); err != nil {
		t.Error(err)
	}
	w.check("a: BEGIN; of a; b: BEGIN; a: COMMIT; a was committed")
	w.Finish(200)
	w.check("of b; b: COMMIT; b was committed")
}

// One that was registered while a COMMIT waited for a statement runs before it.
func TestUnitBeforeRegisteredLate(t *testing.T) {
	for _, end := range []string{"Commit", "Hijack"} {
		for _, fn := range []error{nil, errPlain} {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a := w.bind("a")
				var o Open
				w.begin(a)
				w.before(background, a, "early", func(context.Context) error {
					o = must(w.Begin(background, background, a, txn.ForStatement, nil))(t)
					return nil
				})
				got := make(chan error, 1)
				go func() { got <- ends[end](w, a) }()
				synctest.Wait()
				w.check("a: BEGIN; early")
				w.before(background, a, "late", fails(fn))
				o.Done()
				if err := <-got; !errors.Is(err, fn) {
					t.Errorf("%s: got %v", end, err)
				}
				want := "late; a: COMMIT; a was committed"
				if fn != nil {
					want = "late"
				}
				w.check(want)
				w.Abandon()
			})
		}
	}
}

// A COMMIT waits for the statements under way before the functions run: these may
// check what they wrote.
func TestUnitBeforeAfterStatements(t *testing.T) {
	for _, end := range []string{"Commit", "Hijack"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			a := w.bind("a")
			w.before(background, a, "early", nil)
			o := must(w.Begin(background, background, a, txn.ForStatement, nil))(t)
			got := make(chan error, 1)
			go func() { got <- ends[end](w, a) }()
			synctest.Wait()
			w.before(background, a, "late", nil)
			w.check("a: BEGIN")
			o.Done()
			must(0, <-got)(t)
			w.check("early; late; a: COMMIT; a was committed")
			w.Abandon()
		})
	}
}

// One that was registered between the last function at the end of the unit and its
// end runs too.
func TestUnitStartEnding(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	w.before(background, a, "late", nil)
	w.begin(a)
	if started, again := w.startEnding(true); started || !again || w.Over() {
		t.Errorf("to commit: got %v, %v", started, again)
	}
	w.leave() // which finish has looked at: no context is asked under the mutex
	if started, again := w.startEnding(true); started || !again {
		t.Errorf("without a client: got %v, %v", started, again)
	}
	if started, again := w.startEnding(false); !started || again {
		t.Errorf("to roll back: got %v, %v", started, again)
	}
	if started, again := w.startEnding(true); started || again {
		t.Errorf("twice: got %v, %v", started, again)
	}
}

// decide says whether what is open may be committed.
func TestUnitDecide(t *testing.T) {
	for _, row := range []struct {
		fn   func(*world) error
		want bool
	}{
		{func(*world) error { return nil }, true},
		{func(*world) error { return errPlain }, false},
		{func(w *world) error { return w.Fail(background, errPlain) }, false},
		{func(w *world) error { w.leave(); return nil }, true}, // mayCommit says no
	} {
		w := newWorld(t)
		a := w.bind("a")
		if !w.decide() {
			t.Error("with nothing registered it says no")
		}
		w.before(background, a, "fn", func(context.Context) error { return row.fn(w) })
		if !w.decide() || w.state != running {
			t.Error("with nothing open it says no, or decides")
		}
		w.begin(a)
		if got := w.decide(); got != row.want || w.state != deciding {
			t.Errorf("got %v in state %d", got, w.state)
		}
		w.Abandon()
		if w.startDeciding() {
			t.Error("it decides after the end")
		}
	}
}

// In a savepoint that is rolled back they are dropped, and with its context none can
// be registered any more; in one that is released they are kept. They run at no
// COMMIT that is refused because of an open savepoint.
func TestUnitBeforeInSavepoints(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	var inside context.Context
	for _, back := range []error{nil, errPlain} {
		_ = w.Savepoint(background, background, a, func(ctx context.Context) error {
			inside = ctx
			w.before(ctx, a, "in "+errText(back), nil)
			if err := w.EndNow(ctx, ctx, background, a, true); errText(err) != `sqlreq: Commit inside a Savepoint of key "a"; return from its function first` {
				t.Errorf("got %v", err)
			}
			return back
		})
	}
	err := w.AddBefore(inside, background, background, background, a, fails(nil))
	if errText(err) != `sqlreq: key "a": the Savepoint of this context was rolled back; use the context around it` {
		t.Errorf("got %v", err)
	}
	w.saw()
	w.Finish(200)
	w.check("in ; a: COMMIT; a was committed")
	if err := w.AddBefore(background, background, background, background, a, fails(nil)); err != txn.ErrFinished {
		t.Errorf("after the end: got %v", err)
	}
}

// A read-only transaction counts as committed, so they run there too.
func TestUnitBeforeReadOnly(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	a.options = readOnly
	w.begin(a)
	w.before(background, a, "fn", nil)
	w.Finish(200)
	w.check("a: TxOptions; a: BEGIN READ ONLY; fn; a: ROLLBACK; a was committed")
}

// A key whose Route was not asked yet has its functions run when it was.
func TestUnitBeforeRoute(t *testing.T) {
	w := newWorld(t)
	a, b := w.routed("a"), w.routed("b")
	w.before(background, a, "of a", nil)
	w.before(background, b, "of b", nil)
	w.begin(b)
	w.Finish(200)
	w.check("b: Route; b: BEGIN; of b; b: COMMIT; b was committed")
}

// The context of a function refuses Commit and Rollback only while functions run,
// and only in its own unit.
func TestUnitBeforeContextLater(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	a, b := w.bind("a"), other.bind("b")
	w.begin(a)
	other.begin(b)
	var kept context.Context
	w.before(background, a, "fn", func(ctx context.Context) error {
		kept = ctx
		return other.EndNow(ctx, background, background, b, true)
	})
	if err := w.commit(a); err != nil {
		t.Error(err)
	}
	w.begin(a)
	if err := w.EndNow(kept, background, background, a, false); err != nil {
		t.Errorf("later: got %v", err)
	}
	w.check("a: BEGIN; fn; a: COMMIT; a was committed; a: BEGIN; a: ROLLBACK; a was rolled back")
	w.Abandon()
}

// Two Commits of different databases do not keep each other from it, and each
// forgets only its own.
func TestUnitBeforeOfTwo(t *testing.T) {
	w := newWorld(t)
	a, b := w.bind("a"), w.bind("b")
	w.begin(a, b)
	w.before(background, b, "of b", nil)
	w.before(background, a, "of a", func(context.Context) error {
		if err := w.commit(b); err != nil {
			t.Errorf("b: %v", err)
		}
		for _, commit := range []bool{true, false} {
			if err := w.EndNow(background, background, background, a, commit); err == nil {
				t.Error("a was ended while its functions run")
			}
		}
		return nil
	})
	if err := w.commit(a); err != nil {
		t.Errorf("a: %v", err)
	}
	w.check("a: BEGIN; b: BEGIN; of a; of b; b: COMMIT; b was committed; a: COMMIT; a was committed")
	w.begin(a)
	if err := w.rollback(a); err != nil {
		t.Errorf("a, later: %v", err)
	}
	w.Abandon()
}

// Read-only transactions end first, then those without functions in the order of
// their BEGINs, then the others in the order of the last function of each.
func TestUnitOrderOfEnds(t *testing.T) {
	w := newWorld(t)
	keys := map[string]*binding{}
	for _, name := range []string{"a", "b", "c", "d", "r", "s"} {
		keys[name] = w.bind(name)
	}
	keys["r"].options, keys["s"].options = readOnly, readOnly
	w.before(background, keys["a"], "a1", nil)
	w.before(background, keys["b"], "b1", nil)
	w.before(background, keys["s"], "s1", nil)
	w.before(background, keys["a"], "a2", nil)
	for _, name := range []string{"a", "d", "b", "s", "c", "r"} {
		w.begin(keys[name])
	}
	w.saw()
	w.Finish(200)
	w.check("a1; b1; s1; a2; r: ROLLBACK; s: ROLLBACK; d: COMMIT; c: COMMIT; b: COMMIT; a: COMMIT; " +
		"r was committed; s was committed; d was committed; c was committed; b was committed; a was committed")
}

// The order of the transaction before does not count for the next one.
func TestUnitOrderIsForgotten(t *testing.T) {
	w := newWorld(t)
	a, b := w.bind("a"), w.bind("b")
	w.before(background, a, "a1", nil)
	w.begin(a)
	must(0, w.commit(a))(t)
	w.begin(a, b)
	w.saw()
	if w.place(w.known(a).slot) != 0 {
		t.Error("it has a place still")
	}
	w.Finish(200)
	w.check("a: COMMIT; b: COMMIT; a was committed; b was committed")
}

// In the functions the transaction is as it was begun.
func TestUnitBeforeUsesTx(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	w.begin(a)
	var tx *sql.Tx
	w.before(background, a, "fn", func(ctx context.Context) error {
		o, err := w.use(ctx, a)
		tx = o.Tx
		return err
	})
	if err := w.Finish(200); err != nil || tx == nil {
		t.Errorf("got %v, %v", tx, err)
	}
	w.check("a: BEGIN; fn; a: COMMIT; a was committed")
}
