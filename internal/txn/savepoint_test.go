package txn

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"testing/synctest"
)

const (
	saveFailed     = `sqlreq: savepoint on key "k" (close open rows first): `
	saveUnknown    = `sqlreq: savepoint on key "k" (close open rows first; or this database has no savepoints, or spells them otherwise): `
	releaseFailed  = `sqlreq: release of a savepoint on key "k" (close open rows first): `
	rollbackFailed = `sqlreq: rollback to a savepoint on key "k" failed (close open rows first), the request can only roll back: `
	wasAborted     = `sqlreq: a savepoint on key "k" is rolled back, an error may have ended the transaction: `
)

// savepointCell is an end of a Savepoint in a slot: the cells of the table of the
// package comment for RELEASE and ROLLBACK TO.
type savepointCell struct {
	before string // "over" (ended through *sql.Tx), "aborted"
	call   string
	faults map[string]func(context.Context) error // by call of the driver
	came   string
	err    string
	asked  string // of the driver
	after  string // the slot
	undone bool   // whether hooks of the savepoint are dropped
	end    string // of the transaction that is to end well then
}

const back1 = rollbackTo1 + "; " + release1

type faults = map[string]func(context.Context) error

var savepointCells = []savepointCell{
	// RELEASE of a Savepoint
	{"", "Release", nil, "returned", "", release1, "open", false, "committed, tried, stored"},
	{"", "Release", faults{release1: first(errRefused)}, "returned", releaseFailed + "answered 23505", release1 + "; " + back1, "open", true, "committed, tried, stored"},
	{"", "Release", faults{release1: first(errNetwork)}, "returned", releaseFailed + "unexpected EOF", release1 + "; " + back1, "open", true, "committed, tried, stored"},
	{"", "Release", faults{release1: fails(errPlain), rollbackTo1: fails(errRefused)}, "returned", releaseFailed + "plain\n" + rollbackFailed + "answered 23505", release1 + "; " + rollbackTo1, "aborted", true, "rolled back"},
	{"", "Release", faults{release1: first(errNoTx)}, "returned", releaseFailed + noTxText, release1 + "; " + back1, "open", true, "committed, tried, stored"},
	{"", "Release", faults{release1: fails(errRefused)}, "returned", releaseFailed + "answered 23505\n" + rollbackFailed + "answered 23505", release1 + "; " + back1, "aborted", true, "rolled back"},
	{"", "Release", faults{release1: panics}, "panicked", "", release1, "open saved", false, "rolled back"},
	{"", "Release", faults{release1: exits}, "exited", "", release1, "open saved", false, "rolled back"},
	{"over", "Release", nil, "returned", releaseFailed + endedText + "\n" + rollbackFailed + endedText, "", "aborted", true, "ended, stored"},
	{"aborted", "Release", nil, "returned", wasAborted + "database or disk is full (13)", back1, "open", true, "committed, tried, stored"},
	{"aborted", "Release", faults{rollbackTo1: fails(errPlain)}, "returned", wasAborted + "database or disk is full (13)\n" + rollbackFailed + "plain", rollbackTo1, "aborted", true, "rolled back"},

	// ROLLBACK TO a Savepoint
	{"", "RollBack", nil, "returned", "", back1, "open", true, "committed, tried, stored"},
	{"aborted", "RollBack", nil, "returned", "", back1, "open", true, "committed, tried, stored"},
	{"", "RollBack", faults{rollbackTo1: fails(errRefused)}, "returned", rollbackFailed + "answered 23505", rollbackTo1, "aborted", true, "rolled back"},
	{"", "RollBack", faults{rollbackTo1: fails(errNetwork)}, "returned", rollbackFailed + "unexpected EOF", rollbackTo1, "aborted", true, "rolled back"},
	{"", "RollBack", faults{rollbackTo1: fails(errNoTx)}, "returned", rollbackFailed + noTxText, rollbackTo1, "aborted", true, "ended, stored"}, // whatever ROLLBACK says
	{"aborted", "RollBack", faults{rollbackTo1: fails(errNoTx)}, "returned", rollbackFailed + noTxText, rollbackTo1, "aborted", true, "rolled back"},
	{"", "RollBack", faults{release1: fails(errRefused)}, "returned", rollbackFailed + "answered 23505", back1, "aborted", true, "rolled back"}, // of what is left
	{"aborted", "RollBack", faults{release1: fails(errRefused)}, "returned", rollbackFailed + "answered 23505", back1, "aborted", true, "rolled back"},
	{"", "RollBack", faults{rollbackTo1: panics}, "panicked", "", rollbackTo1, "open saved", false, "rolled back"},
	{"", "RollBack", faults{rollbackTo1: exits}, "exited", "", rollbackTo1, "open saved", false, "rolled back"},
	{"over", "RollBack", nil, "returned", rollbackFailed + endedText, "", "aborted", true, "ended, stored"},
}

func TestSlotSavepointEnds(t *testing.T) {
	for _, c := range savepointCells {
		t.Run(c.before+" "+c.call+" "+c.err+c.came, func(t *testing.T) { c.run(t) })
	}
}

func (c savepointCell) run(t *testing.T) {
	w := newWorld(t, plain)
	tx := w.begin()
	sp := w.save(background)
	switch c.before {
	case "over":
		must(0, tx.Rollback())(t)
	case "aborted":
		w.Note(background, tx, false, errFull)
	}
	asked := len(w.d.Log())
	for at, fault := range c.faults {
		w.at(at, fault)
	}
	var err error
	end := map[string]func(string) error{"Release": sp.Release, "RollBack": sp.RollBack}[c.call]
	came := called(func() { err = end("k") })
	if came != c.came || errText(err) != c.err {
		t.Errorf("it %s with %v\nwant %s with %s", came, err, c.came, c.err)
	}
	if got := w.since(asked); got != c.asked {
		t.Errorf("the driver was asked %q, want %q", got, c.asked)
	}
	w.inState(c.after)
	if got := sp.Undone(unitOfTest, &w.Slot); got != c.undone {
		t.Errorf("undone %v, want %v", got, c.undone)
	}
	if came == "returned" {
		if err := sp.RollBack("k"); word(err) != "not innermost" {
			t.Errorf("a savepoint that has ended: got %v", err)
		}
	}
	w.well()
	w.End(true)
	if got := describeResult(w.Last(), "returned"); got != c.end {
		t.Errorf("the transaction is %s, want %s", got, c.end)
	}
	w.inState("idle")
}

// A Savepoint that was not there says that the transaction had ended, one around it that
// is found again says that it had not. What is known is of one transaction.
func TestSlotSavepointFoundAgain(t *testing.T) {
	for _, found := range []bool{false, true} {
		w := newWorld(t, plain)
		w.begin()
		outer := w.save(background)
		inner := w.save(outer.Context(background))
		w.at("ROLLBACK TO SAVEPOINT sqlreq_2", fails(errNoTx))
		if !found {
			w.at(rollbackTo1, fails(errNoTx))
		}
		_ = inner.RollBack("k")
		_ = outer.RollBack("k")
		w.End(false)
		if got, want := describeResult(w.Last(), "returned"), map[bool]string{true: "rolled back", false: "ended, stored"}[found]; got != want {
			t.Errorf("found again %v: the transaction is %s, want %s", found, got, want)
		}
		w.well()
		w.begin()
		w.End(false)
		if got := describeResult(w.Last(), "returned"); got != "rolled back" {
			t.Errorf("found again %v: the next transaction is %s, want rolled back", found, got)
		}
	}
}

// A SAVEPOINT that does not end well opens none.
func TestSlotSaveFaults(t *testing.T) {
	for _, row := range []struct {
		fault func(context.Context) error
		ends  bool // whether the context ends while the driver waits
		came  string
		err   string
		after string
	}{
		{fails(errPlain), false, "returned", saveUnknown + "plain", "open"},
		{fails(errFull), false, "returned", saveFailed + "database or disk is full (13)", "aborted"},
		{fails(sql.ErrTxDone), false, "returned", endedText, "open"},
		{panics, false, "panicked", "", "open"},
		{exits, false, "exited", "", "open"},
		{untilDone, true, "returned", saveFailed + "context canceled", "aborted"},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, plain)
			tx := w.begin()
			w.at(save1, row.fault)
			ctx, end := context.WithCancel(background)
			defer end()
			var sp *Savepoint
			var err error
			how := make(chan string, 1)
			go func() { how <- called(func() { sp, err = w.Save(ctx, background, tx, "k") }) }()
			synctest.Wait()
			if row.ends {
				end()
			}
			if came := <-how; came != row.came || errText(err) != row.err || sp != nil {
				t.Errorf("it %s with %v, %v, want %s with %s", came, sp, err, row.came, row.err)
			}
			w.inState(row.after)
			w.End(false)
		})
	}
}

// With a context that has ended no SAVEPOINT is sent, and the transaction is not aborted.
func TestSlotSaveAfterTheEnd(t *testing.T) {
	w := newWorld(t, plain)
	tx := w.begin()
	if _, err := w.Save(canceled, background, tx, "k"); errText(err) != saveFailed+"context canceled" {
		t.Errorf("got %v", err)
	}
	w.inState("open")
	w.End(true)
	w.d.Check(t, "BEGIN", "COMMIT")
}

// While somebody has the turn, a Save waits, until a context ends.
func TestSlotSaveWaits(t *testing.T) {
	for _, unit := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, plain)
			tx := w.begin()
			ctx, end := context.WithCancel(background)
			a, b := ctx, background
			if unit {
				a, b = b, a
			}
			must(0, w.Lock(background, background))(t)
			got := make(chan error, 1)
			go func() { _, err := w.Save(a, b, tx, "k"); got <- err }()
			synctest.Wait()
			if len(got) > 0 {
				t.Error("it did not wait")
			}
			end()
			if err := <-got; err != context.Canceled {
				t.Errorf("got %v", err)
			}
			w.Unlock()
			w.End(false)
		})
	}
}

// A Release, and a RollBack, waits for the turn, whatever has ended.
func TestSlotSavepointEndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain)
		w.begin()
		sp := w.save(background)
		must(0, w.Lock(background, background))(t)
		got := make(chan error, 1)
		go func() { got <- sp.Release("k") }()
		synctest.Wait()
		if len(got) > 0 {
			t.Error("it did not wait")
		}
		w.Unlock()
		if err := <-got; err != nil {
			t.Error(err)
		}
		w.End(true)
	})
}

// Savepoints are numbered anew in each transaction, and a name is used once in it.
func TestSlotSavepointNames(t *testing.T) {
	w := newWorld(t, plain)
	for range 2 {
		w.begin()
		outer := w.save(background)
		inner := w.save(outer.Context(background))
		must(0, inner.Release("k"))(t)
		must(0, outer.RollBack("k"))(t)
		must(0, w.save(background).Release("k"))(t)
		w.End(true)
	}
	one := []string{"BEGIN", save1, "SAVEPOINT sqlreq_2", "RELEASE SAVEPOINT sqlreq_2", rollbackTo1, release1, "SAVEPOINT sqlreq_3", "RELEASE SAVEPOINT sqlreq_3", "COMMIT"}
	w.d.Check(t, append(one, one...)...)
}

// An outer savepoint does not end before the inner one.
func TestSlotSavepointOrder(t *testing.T) {
	w := newWorld(t, plain)
	w.begin()
	outer := w.save(background)
	inner := w.save(outer.Context(background))
	asked := len(w.d.Log())
	for _, end := range []func(string) error{outer.Release, outer.RollBack} {
		if err := end("k"); errText(err) != "sqlreq: a Savepoint inside of this one has not returned yet" {
			t.Errorf("got %v", err)
		}
	}
	if got := w.since(asked); got != "" {
		t.Errorf("the driver was asked %q", got)
	}
	w.inState("open saved saved")
	must(0, inner.Release("k"))(t)
	must(0, outer.Release("k"))(t)
	w.End(true)
}

// A savepoint is begun with the context of the innermost one around it, and with no other.
func TestSlotSaveContext(t *testing.T) {
	const refused = `sqlreq: savepoint on key "k": its context is not that of the innermost open Savepoint; pass on the context that the function was given`
	w, other, third := newWorld(t, plain), newWorld(t, plain), newWorld(t, plain)
	tx := w.begin()
	other.begin()
	third.begin()
	outer := w.save(background)
	inside := outer.Context(background)
	if Inside(inside) != outer || Inside(background) != nil {
		t.Error("Inside does not say what Context was given")
	}
	try := func(what string, ctx context.Context, want string) *Savepoint {
		t.Helper()
		sp, err := w.Save(ctx, background, tx, "k")
		if errText(err) != want || (sp == nil) != (want != "") {
			t.Errorf("%s: got %v, %v", what, sp, err)
		}
		return sp
	}
	asked := len(w.d.Log())
	try("the context around", background, refused)
	try("a savepoint of another slot alone", third.save(background).Context(background), refused)
	foreign := other.save(inside)
	if got := w.since(asked); got != "" {
		t.Errorf("the driver was asked %q", got)
	}
	inner := try("a savepoint of another slot between", foreign.Context(inside), "")
	must(0, inner.Release("k"))(t)
	try("a savepoint that was released, in one that is open", inner.Context(inside), refused)
	must(0, outer.Release("k"))(t)
	try("a savepoint that was released, whose work belongs to what is around", inside, "")
	w.innermost.RollBack("k")
	back := w.save(background)
	must(0, back.RollBack("k"))(t)
	try("a savepoint that was rolled back", back.Context(background), refused)
	w.End(true)
	third.End(false)
	other.End(false)
}

// What was registered inside of a savepoint is undone with it, and with each
// savepoint around it in the same transaction, and by no other.
func TestSlotUndone(t *testing.T) {
	w, other := newWorld(t, plain), newWorld(t, plain)
	w.begin()
	other.begin()
	outer := w.save(background)
	foreign := other.save(outer.Context(background))
	inner := w.save(foreign.Context(outer.Context(background)))
	undone := func(sp *Savepoint, of *world, want bool) {
		t.Helper()
		if got := sp.Undone(unitOfTest, &of.Slot); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	for _, sp := range []*Savepoint{nil, outer, foreign, inner} {
		undone(sp, w, false)
		undone(sp, other, false)
		if sp.Undone(unitOfTest, nil) {
			t.Error("undone for no slot")
		}
	}
	must(0, inner.Release("k"))(t)
	must(0, foreign.RollBack("k"))(t)
	undone(inner, w, false)
	undone(foreign, w, false)
	undone(inner, other, true) // begun inside of the other slot's
	undone(foreign, other, true)
	undone(outer, other, false)
	must(0, outer.RollBack("k"))(t)
	undone(inner, w, true) // which was released into it
	undone(foreign, w, true)
	undone(nil, w, false)
	w.End(true)
	other.End(true)
}

// Once a slot is closed its savepoints cannot be ended any more: they end with the
// transaction, which is rolled back.
func TestSlotSavepointOfAClosedSlot(t *testing.T) {
	w := newWorld(t, plain)
	w.begin()
	sp := w.save(background)
	if !w.Slot.Close() {
		t.Error("nothing is open")
	}
	if err := sp.Release("k"); err != ErrFinished {
		t.Errorf("Release: got %v", err)
	}
	if err := sp.RollBack("k"); err != ErrFinished {
		t.Errorf("RollBack: got %v", err)
	}
	w.End(true)
	if got := errText(w.Last().Err); got != savedText {
		t.Errorf("got %s", got)
	}
	if errors.Is(w.Last().Err, ErrTxEnded) {
		t.Error("it is said to have been ended through *sql.Tx")
	}
}
