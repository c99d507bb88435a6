package txn

import (
	"context"
	"database/sql"
	"testing"
	"testing/synctest"
)

// AfterBegin runs in each transaction, before anybody gets it, after Guard's
// savepoint or that in a test's transaction, with the context of who began.
func TestSlotAfterBegin(t *testing.T) {
	for _, k := range []kind{plain, guarded, readOnly, test} {
		w := newWorld(t, k)
		asked := len(w.d.Log())
		ctx := context.WithValue(background, t, t)
		runs := 0
		use := func() (*sql.Tx, error) {
			a := w.ask(ForCaller)
			a.AfterBegin = func(got context.Context, tx *sql.Tx) error {
				runs++
				if got != ctx || tx == nil || w.Open() || !w.Begun() {
					t.Errorf("%+v: with its context %v, open %v, begun %v", k, got == ctx, w.Open(), w.Begun())
				}
				_, err := tx.ExecContext(got, "SET")
				return err
			}
			return w.Use(ctx, a)
		}
		must(use())(t)
		must(use())(t)
		w.End(true)
		must(use())(t)
		w.End(false)
		one := map[kind][3]string{
			plain:    {"BEGIN", "COMMIT", "ROLLBACK"},
			guarded:  {"BEGIN; " + saveGuard, releaseGuard + "; COMMIT", guardedBack},
			readOnly: {"BEGIN READ ONLY", "ROLLBACK", "ROLLBACK"},
			test:     {saveTx, releaseTx, "ROLLBACK TO SAVEPOINT sqlreq_tx_2; RELEASE SAVEPOINT sqlreq_tx_2"},
		}[k]
		second := one[0]
		if k == test {
			second = "SAVEPOINT sqlreq_tx_2"
		}
		want := one[0] + "; SET; " + one[1] + "; " + second + "; SET; " + one[2]
		if got := w.since(asked); got != want || runs != 2 {
			t.Errorf("%+v: it ran %d times, the driver was asked %s\nwant %s", k, runs, got, want)
		}
	}
}

// What does not end well in AfterBegin rolls back, and is no transaction to anybody.
func TestSlotAfterBeginFails(t *testing.T) {
	for _, row := range []struct {
		name  string
		fn    func(*world, context.CancelFunc) error
		came  string
		err   string
		ended string
	}{
		{"an error", func(*world, context.CancelFunc) error { return errPlain }, "returned", beginRefused + "plain", "rolled back: plain"},
		{"a panic", func(*world, context.CancelFunc) error { panic("of the program") }, "panicked", "", notReturned},
		{"an exit", func(*world, context.CancelFunc) error { return exits(background) }, "exited", "", notReturned},
		{"the end of the caller", func(_ *world, end context.CancelFunc) error { end(); return nil }, "returned", beginRefused + "context canceled", "rolled back"},
		{"the end of the unit", func(w *world, _ context.CancelFunc) error { w.Slot.Close(); return nil }, "returned", finishedText, "rolled back"},
	} {
		for _, k := range []kind{plain, guarded, test} {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, k)
				w.timed = true
				ctx, end := context.WithCancel(background)
				defer end()
				a := w.ask(ForStatement)
				a.AfterBegin = func(context.Context, *sql.Tx) error { return row.fn(w, end) }
				var err error
				came := called(func() { _, err = w.Use(ctx, a) })
				if came != row.came || errText(errAsBegin(err)) != row.err || refusedOf(a) != row.ended {
					t.Errorf("%s %+v: it %s with %v, %s", row.name, k, came, err, refusedOf(a))
				}
				if a.Refused == nil || a.Refused.Opener != Opener(&w.key) {
					t.Errorf("%s %+v: refused is %+v", row.name, k, a.Refused)
				}
				synctest.Wait()
				w.isFree(t, row.name == "the end of the unit")
			})
		}
	}
}

// Where ROLLBACK says that there is none, AfterBegin may have ended it, so that nobody
// knows what stayed; if it has not run, nothing has.
func TestSlotAfterBeginEnds(t *testing.T) {
	for _, ran := range []bool{true, false} {
		k, want := plain, Ended
		if !ran {
			k, want = guarded, RolledBack
		}
		w := newWorld(t, k)
		w.at("ROLLBACK", fails(errNoTx))
		if !ran {
			w.at(saveGuard, fails(errPlain))
		}
		a := w.ask(ForStatement)
		a.AfterBegin = func(context.Context, *sql.Tx) error { return errPlain }
		if _, err := w.Use(background, a); errText(err) != beginRefused+"plain" || a.Refused.Outcome != want || a.Refused.Stored != ran {
			t.Errorf("it ran %v: got %v, %+v", ran, err, a.Refused)
		}
	}
}

// A BEGIN that is answered with an error leaves no transaction to tell of.
func TestSlotNothingRefused(t *testing.T) {
	w := newWorld(t, plain)
	w.at("BEGIN", fails(errPlain))
	a := w.ask(ForStatement)
	a.AfterBegin = func(context.Context, *sql.Tx) error { t.Error("it ran without a transaction"); return nil }
	if _, err := w.Use(background, a); errText(err) != beginRefused+"plain" || a.Refused != nil {
		t.Errorf("got %v, %+v", err, a.Refused)
	}
}
