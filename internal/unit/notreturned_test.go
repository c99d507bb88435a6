package unit

import (
	"testing"

	"github.com/sqlreq/sqlreq/internal/txn"
)

// When a driver does not return before a Hijack no hook runs, not even of what was
// committed before, and none runs later for an end that was another.
func TestUnitEndOpenPanicHooks(t *testing.T) {
	w, _, _ := three(t)
	w.at("c: COMMIT", panics)
	called(func() { w.EndOpen(true) })
	w.saw()
	w.Abandon()
	w.check("")
}

// Every transaction that was begun is told, also where a driver does not return.
func TestUnitObservePanicEndAll(t *testing.T) {
	w, _, _ := three(t)
	w.at("c: COMMIT", panics)
	called(func() { w.Finish(200) })
	w.check("b: COMMIT; c: COMMIT; a: ROLLBACK; b was committed; c was unknown; a was rolled back")
}

func TestUnitObservePanicEndNow(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	w.begin(a)
	w.at("a: COMMIT", panics)
	called(func() { w.commit(a) })
	w.check("a: BEGIN; a: COMMIT; a was unknown")
}

// Nobody receives the error of a begin whose driver did not return: its end is told all the same.
func TestUnitObserveGuardPanic(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	a.guard = true
	w.at("a: SAVEPOINT sqlreq_guard", panics)
	called(func() { w.begin(a) })
	w.check("a: BEGIN; a: SAVEPOINT sqlreq_guard; a: ROLLBACK; a was rolled back")
}

// A second driver that does not return leaves nothing of the others open.
func TestUnitSecondPanic(t *testing.T) {
	w, _, o := three(t)
	w.at("b: COMMIT", panics)
	w.at("c: ROLLBACK", panics)
	called(func() { w.Finish(200) })
	if o["a"].source.slot.Open() {
		t.Error("the transaction of a is still open")
	}
	w.check("b: COMMIT; c: ROLLBACK; a: ROLLBACK; b was unknown; c was unknown; a was rolled back")
}

// After the end of a unit that has used nothing EndOpen is ErrFinished as it is of
// any other.
func TestUnitEndOpenOfAnEndedUnit(t *testing.T) {
	w := newWorld(t)
	w.Finish(200)
	if err := w.EndOpen(true); err != txn.ErrFinished {
		t.Errorf("got %v", err)
	}
}

// A Rollback whose driver did not return is Unknown: neither kind of hook runs, as at the end of the unit.
func TestUnitRollbackPanicHooks(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	w.begin(a)
	w.hooks(background, a)
	w.at("a: ROLLBACK", panics)
	called(func() { w.rollback(a) })
	w.saw()
	w.Abandon()
	w.check("")
}

// A RELEASE that does not return leaves the savepoint open: others are refused, and
// at the end everything is rolled back.
func TestUnitReleasePanics(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	w.begin(a)
	w.at("a: RELEASE SAVEPOINT sqlreq_1", panics)
	if came := called(func() { w.Savepoint(background, background, a, fails(nil)) }); came != "panicked" {
		t.Errorf("it %s", came)
	}
	if _, err := w.use(background, a); err == nil {
		t.Error("a statement outside of the savepoint was not refused")
	}
	w.check("a: BEGIN; a: SAVEPOINT sqlreq_1; a: RELEASE SAVEPOINT sqlreq_1")
	if err := w.Finish(200); errText(err) != `sqlreq: key "a": a Savepoint is still open, the transaction was rolled back` {
		t.Errorf("got %v", err)
	}
	w.check("a: ROLLBACK; a was rolled back")
}
