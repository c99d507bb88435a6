package txn

import "testing"

// A savepoint in a transaction that an error may have ended is refused, as any
// other use is: between Use and Save a statement of another goroutine may have
// met the error. Otherwise going back to it makes the transaction sound again.
func TestSlotSaveInAnAborted(t *testing.T) {
	w := newWorld(t, plain)
	tx := w.begin()
	w.Note(background, tx, false, errFull)
	sp, err := w.Save(background, background, tx, "k")
	if err == nil {
		t.Errorf("it began, in a transaction that is aborted; RollBack: %v", sp.RollBack("k"))
	}
	w.inState("aborted")
	w.End(true)
	if r := w.Last(); r.Outcome != RolledBack {
		t.Errorf("got %s", describeResult(r, "returned"))
	}
	w.d.CheckLog(t, "BEGIN", "ROLLBACK")
}
