package txn

import (
	"context"
	"database/sql"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"weak"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// The end of a savepoint waits for what nests in it; what comes while it ends, or
// waited for the turn there, takes a turn of its own around it.
func TestNestOver(t *testing.T) {
	for _, well := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, test)
			w.begin()
			inner, late := w.beside(w.innest), w.beside(w.innest)
			inner.begin()
			at := fakedb.NewPoint()
			first := map[bool]string{true: releaseTx, false: rollbackToTx}[well]
			w.at(first, func(context.Context) error { at.Wait(); return nil })
			ended := make(chan bool, 1)
			go func() { w.End(well); ended <- true }()
			synctest.Wait()
			if n := w.d.Count(first); n != 0 {
				t.Error("it did not wait for what nests in it")
			}
			inner.End(true)
			at.Reached()
			got := make(chan error, 1)
			go func() { _, err := late.use(background); got <- err }()
			synctest.Wait()
			if len(got) > 0 {
				t.Error("it nests in what is about to end")
			}
			at.Release()
			must(0, <-got)(t)
			<-ended
			late.inState("open")
			w.endedNest(t, late)
		})
	}
}

// endedNest fails the test unless w has ended, and late, which is open, has the turn at the test's transaction itself.
func (w *world) endedNest(t *testing.T, late *world) {
	t.Helper()
	if late.test.within != nil || !late.test.has {
		t.Error("it has the turn in a savepoint that is over")
	}
	if turns.Lock(canceled, w.outer) == nil {
		t.Error("nobody has the turn at the test's transaction")
		turns.Unlock(w.outer)
	}
	late.End(true)
	w.endedOnce(t)
}

// Who waited in a savepoint that ends meanwhile goes on around it.
func TestNestOverWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, test)
		w.begin()
		nest := w.innest()
		must(0, nest.turn.Lock(background))(t)
		waits := w.beside(w.innest)
		got := make(chan error, 1)
		go func() { _, err := waits.use(background); got <- err }()
		synctest.Wait()
		unit, end := context.WithCancel(background)
		end()
		w.Slot.End(unit, true) // does not wait for what nests any more
		nest.turn.Unlock()
		must(0, <-got)(t)
		if nest.turn.Taken() {
			t.Error("the turn in what is over was not given back")
		}
		w.endedNest(t, waits)
	})
}

// The end of the unit's context ends the wait for what nests.
func TestNestEndOfTheUnit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, test)
		w.begin()
		inner := w.beside(w.innest)
		inner.begin()
		unit, end := context.WithCancel(background)
		ended := make(chan bool, 1)
		go func() { w.Slot.End(unit, false); ended <- true }()
		synctest.Wait()
		if len(ended) > 0 {
			t.Error("it did not wait")
		}
		end()
		<-ended
		inner.End(true)
		w.endedOnce(t)
	})
}

// A test's transaction that is known to have ended: nothing is sent in it any
// more, whoever comes, and the first reason is told.
func TestDead(t *testing.T) {
	w := newWorld(t, test)
	w.begin()
	w.at(releaseTx, fails(errNoTx))
	w.at(rollbackToTx, fails(answered("3B001")))
	w.End(true)
	asked := len(w.d.Log())
	w.well()
	markDead(w.outer, errPlain) // again
	other := w.beside(nil)
	if _, err := other.use(background); errText(err) != deadText+"answered 3B001" || !errors.Is(err, answered("3B001")) {
		t.Errorf("got %v", err)
	}
	if got := w.since(asked); got != "" {
		t.Errorf("the driver was asked %q", got)
	}
	other.inState("idle")
	w.endedOnce(t)
	if beside := newWorld(t, test); whyDead(beside.outer) != nil {
		t.Error("another transaction is dead, too")
	}
}

// Nothing is remembered of a transaction that nobody has any more.
func TestDeadIsForgotten(t *testing.T) {
	p := markNew()
	for {
		if _, known := dead.Load(p); !known {
			break
		}
		runtime.GC()
	}
}

//go:noinline
func markNew() weak.Pointer[sql.Tx] {
	tx := new(sql.Tx)
	markDead(tx, errPlain)
	return weak.Make(tx)
}
