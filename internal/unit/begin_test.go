package unit

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq/internal/modeltest/mysqlite"
	"github.com/sqlreq/sqlreq/internal/txn"
)

// What a failed BEGIN returns, and what the unit remembers of it.
func TestUnitBeginFails(t *testing.T) {
	const begin = `sqlreq: begin on key "a": `
	for _, row := range []struct {
		name        string
		fault       func(context.Context) error
		ends        string // "caller", "host": whose context has ended
		err         string
		is          error
		unavailable bool
		conflict    bool
	}{
		{"an error", fails(errPlain), "", begin + "plain", errPlain, false, false},
		{"a conflict", fails(errConflict), "", begin + "conflict", errConflict, false, true},
		{"a deadline of the driver's", fails(os.ErrDeadlineExceeded), "", begin + "i/o timeout", os.ErrDeadlineExceeded, true, false},
		{"a deadline", fails(context.DeadlineExceeded), "", begin + "context deadline exceeded", context.DeadlineExceeded, true, false},
		{"the caller's end", untilDone, "caller", begin + "context canceled", context.Canceled, false, false},
		{"the host's end", untilDone, "host", begin + "context canceled", context.Canceled, true, false},
		{"the driver's word for it", func(c context.Context) error { <-c.Done(); return errPlain }, "caller", begin + "context canceled: plain", errPlain, false, false},
		{"and at the host's end", func(c context.Context) error { <-c.Done(); return errConflict }, "host", begin + "context canceled: conflict", context.Canceled, true, true},
		{"the caller's deadline", untilDone, "deadline", begin + "context deadline exceeded", context.DeadlineExceeded, true, false},
		{"the driver's word for that", func(c context.Context) error { <-c.Done(); return errPlain }, "deadline", begin + "context deadline exceeded: plain", errPlain, true, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.at("a: BEGIN", row.fault)
				ctx, end := context.WithCancel(background)
				switch row.ends {
				case "caller":
					w.at("a: BEGIN", func(c context.Context) error { end(); return row.fault(c) })
				case "host":
					w.at("a: BEGIN", func(c context.Context) error { w.leave(); return row.fault(c) })
				case "deadline":
					ctx, end = context.WithTimeout(background, 1)
				}
				defer end()
				o, err := w.use(ctx, w.bind("a"))
				var begin *txn.BeginError
				var unavailable *Unavailable
				if errText(err) != row.err || !errors.Is(err, row.is) || !errors.As(err, &begin) || o != (Open{}) {
					t.Errorf("got %v, %v, want %s", o, err, row.err)
				}
				if errors.As(err, &unavailable) != row.unavailable || w.SawConflict() != row.conflict || w.timedOut != row.unavailable {
					t.Errorf("unavailable %v, conflict %v", unavailable, w.SawConflict())
				}
				if w.Err() != nil {
					t.Errorf("the unit failed with %v", w.Err())
				}
				w.Abandon()
			})
		})
	}
}

// A transaction that was begun and ended at once is told.
func TestUnitBeginIsTold(t *testing.T) {
	for _, observed := range []bool{true, false} {
		w := newWorld(t)
		a := w.bind("a")
		a.guard, a.observed = true, observed
		w.at("a: SAVEPOINT sqlreq_guard", fails(errConflict))
		if _, err := w.use(background, a); errText(err) != `sqlreq: begin on key "a": conflict` {
			t.Errorf("got %v", err)
		}
		w.check("a: BEGIN; a: SAVEPOINT sqlreq_guard; a: ROLLBACK" + map[bool]string{true: "; a was rolled back"}[observed])
		if w.Committed() || !w.SawConflict() {
			t.Errorf("committed %v, conflict %v", w.Committed(), w.SawConflict())
		}
		w.Abandon()
	}
}

// What cannot be shared is the error as it is, which is no failed BEGIN.
func TestUnitBeginNotShared(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	o := w.begin(a)
	o.Note(background, false, &mysqlite.Full{})
	_, err := w.use(background, a)
	var begin *txn.BeginError
	if errors.As(err, &begin) || !errors.Is(err, &mysqlite.Full{}) && err == nil {
		t.Errorf("got %v", err)
	}
	w.Abandon()
}

// The error of a statement is returned as it is, and what it says is remembered.
func TestUnitNote(t *testing.T) {
	w := newWorld(t)
	o := w.begin(w.bind("a"))
	if err := o.Note(background, false, errPlain); err != errPlain || w.SawConflict() {
		t.Errorf("got %v, conflict %v", err, w.SawConflict())
	}
	if err := o.Note(canceled, true, errConflict); err != errConflict || !w.SawConflict() {
		t.Errorf("got %v, conflict %v", err, w.SawConflict())
	}
	if err := o.source.slot.Lost(); err != nil {
		t.Errorf("aborted: %v", err)
	}
	_ = o.Note(canceled, false, errPlain)
	if err := o.source.slot.Lost(); err == nil {
		t.Error("not aborted by what was interrupted")
	}
	w.Abandon()
}

// Gone: a transaction that the library ended is replaced by the next use.
func TestUnitGone(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	o := w.begin(a)
	if err := o.Gone(background); !errors.Is(err, txn.ErrTxEnded) {
		t.Errorf("through *sql.Tx: got %v", err)
	}
	must(0, w.rollback(a))(t)
	if err := o.Gone(background); err != nil {
		t.Errorf("by Rollback: got %v", err)
	}
	must(0, o.source.slot.Lock(background, background))(t)
	if err := o.Gone(canceled); errText(err) != `sqlreq: begin on key "a": context canceled` {
		t.Errorf("canceled: got %v", err)
	}
	w.leave()
	var unavailable *Unavailable
	if err := o.Gone(background); !errors.As(err, &unavailable) {
		t.Errorf("without a client: got %v", err)
	}
	o.source.slot.Unlock()
	w.Abandon()
	if err := o.Gone(background); err != txn.ErrFinished {
		t.Errorf("after the end: got %v", err)
	}
}

// The end of the host's context ends the wait for a transaction, not the transaction.
func TestUnitHostEndsTheWait(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	o := w.begin(a)
	w.leave()
	if again, err := w.use(background, a); err != nil || again != o {
		t.Errorf("got %v, %v", again, err)
	}
	w.Abandon()
	w.check("a: BEGIN; a: ROLLBACK; a was rolled back")
}

// A unit inside of another one nests in what that has open in a test's transaction.
func TestUnitNests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		outer := newWorld(t)
		other, b := outer.bind("other"), outer.inTest("b")
		middle := outer.inside()
		inner := middle.inside()
		foreign := newWorld(t)
		outer.begin(other, b)
		middle.begin(other)
		inner.begin(b) // in the savepoint of outer: middle has none there
		got := make(chan error, 1)
		go func() { _, err := foreign.use(background, b); got <- err }()
		synctest.Wait()
		if len(got) > 0 {
			t.Error("a unit that is not inside did not wait")
		}
		inner.Finish(200)
		outer.Finish(200)
		must(0, <-got)(t)
		foreign.Abandon()
		middle.Abandon()
	})
}

// A unit around that has used nothing, or nothing there, is passed over.
func TestUnitNestsInNothing(t *testing.T) {
	outer := newWorld(t)
	b := outer.inTest("b")
	inner := outer.inside()
	inner.begin(b)
	inner.Finish(200)
	outer.begin(outer.bind("a"))
	inner = outer.inside()
	inner.begin(b)
	inner.Finish(200)
	outer.begin(b) // nobody has the turn any more
	outer.Abandon()
}

// A key on a pool of which a unit around has the same nests in nothing: it has a
// transaction of its own.
func TestUnitInsideHasItsOwn(t *testing.T) {
	outer := newWorld(t)
	a := outer.bind("a")
	inner := outer.inside()
	x, y := outer.begin(a), inner.begin(a)
	if x.Tx == y.Tx {
		t.Error("they share a transaction")
	}
	inner.Finish(200)
	if !outer.Committed() || outer.Over() {
		t.Error("what is stored inside does not forbid a retry around")
	}
	outer.Abandon()
}

func TestUnitKeep(t *testing.T) {
	outer := newWorld(t)
	middle := outer.inside()
	inner := middle.inside()
	beside := outer.inside()
	inner.Keep()
	for i, row := range []struct {
		w    *world
		want bool
	}{{outer, true}, {middle, true}, {inner, true}, {beside, false}} {
		if row.w.Committed() != row.want {
			t.Errorf("%d: got %v", i, row.w.Committed())
		}
	}
}

func TestUnitFail(t *testing.T) {
	w := newWorld(t)
	if err := w.Fail(background, nil); err != nil || w.Err() != nil || w.FailedAt() != nil {
		t.Errorf("nil: got %v, %v", err, w.Err())
	}
	first := context.WithValue(background, t, t)
	if err := w.Fail(first, errPlain); err != nil || w.Err() != errPlain || w.FailedAt() != first {
		t.Errorf("got %v, %v at %v", err, w.Err(), w.FailedAt())
	}
	if err := w.Fail(background, errConflict); err != nil || w.Err() != errPlain || w.FailedAt() != first {
		t.Errorf("again: got %v, %v at %v", err, w.Err(), w.FailedAt())
	}
	w.Finish(200)
	if err := w.Fail(background, errConflict); err != txn.ErrFinished || w.Err() != errPlain {
		t.Errorf("after the end: got %v, %v", err, w.Err())
	}
	if w.SawConflict() {
		t.Error("Fail is taken for a statement")
	}
}

func TestUnitInit(t *testing.T) {
	w := newWorld(t)
	w.Init(w, 3)
	if w.Host() != Host(w) || w.Attempt() != 3 {
		t.Errorf("got %v, %d", w.Host(), w.Attempt())
	}
	unavailable := &Unavailable{errPlain}
	if unavailable.Error() != "plain" || !errors.Is(unavailable, errPlain) {
		t.Errorf("got %v", unavailable)
	}
	var db *sql.DB
	if got, err := w.DB(background, background, w.inTest("a")); got != db || err != nil {
		t.Errorf("the pool of a test's transaction: got %v, %v", got, err)
	}
}
