package txn

import (
	"context"
	"database/sql"
	"testing"
	"testing/synctest"
)

// statement begins a statement of the key, which has not returned before Done.
func (w *world) statement(ctx context.Context) {
	w.t.Helper()
	must(w.Use(ctx, w.ask(ForStatement)))(w.t)
}

// Quiet waits until the last statement has returned, also one that came while it
// waited, or for the end of a context. Several may wait.
func TestSlotQuiet(t *testing.T) {
	for _, who := range []string{"nobody", "caller", "unit"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, plain)
			w.begin()
			w.statement(background)
			w.statement(background)
			ctx, end := context.WithCancel(background)
			unit, endUnit := context.WithCancel(background)
			got := make(chan error, 2)
			for range 2 {
				go func() { got <- w.Quiet(ctx, unit) }()
			}
			synctest.Wait()
			w.Done()
			synctest.Wait()
			if len(got) > 0 {
				t.Error("it did not wait for the second statement")
			}
			var want error
			switch who {
			case "nobody":
				w.Done()
			case "caller":
				end()
				want = context.Canceled
			case "unit":
				endUnit()
				want = context.Canceled
			}
			synctest.Wait()
			if len(got) != 2 {
				t.Fatalf("%s: %d have returned, want 2", who, len(got))
			}
			for range 2 {
				if err := <-got; err != want {
					t.Errorf("%s: got %v, want %v", who, err, want)
				}
			}
			if who != "nobody" {
				w.Done()
			}
			if err := w.Quiet(canceled, canceled); err != nil {
				t.Errorf("with no statement under way: got %v", err)
			}
			end()
			endUnit()
			w.End(true)
		})
	}
}

// Who waited in vain leaves nothing behind: the next one waits for the next statement.
func TestSlotQuietAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain)
		w.begin()
		for range 2 {
			w.statement(background)
			if err := w.Quiet(canceled, background); err != context.Canceled {
				t.Errorf("got %v", err)
			}
			got := make(chan error, 1)
			go func() { got <- w.Quiet(background, background) }()
			synctest.Wait()
			if len(got) > 0 {
				t.Error("it did not wait")
			}
			w.Done()
			must(0, <-got)(t)
		}
		w.End(true)
	})
}

// A statement that comes while a savepoint statement waits waits for that, and is
// refused where its context is not that of the savepoint.
func TestSlotStatementsWaitForSavepoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain)
		tx := w.begin()
		w.statement(background)
		saved, second := make(chan *Savepoint, 1), make(chan error, 1)
		go func() { sp, _ := w.Save(background, background, tx, "k"); saved <- sp }()
		synctest.Wait()
		if w.join(w.ask(ForStatement)) != nil {
			t.Error("a further statement passed the one that waits")
		}
		go func() { _, err := w.use(background); second <- err }()
		synctest.Wait()
		if len(saved) > 0 || len(second) > 0 {
			t.Errorf("they did not wait: %d, %d", len(saved), len(second))
		}
		w.Done()
		sp := <-saved
		if err := <-second; word(err) != "other context" {
			t.Errorf("got %v", err)
		}
		must(0, sp.Release("k"))(t)
		w.End(true)
	})
}

// What a waited-for statement's error says counts.
func TestSlotWaitedForCounts(t *testing.T) {
	for _, call := range []string{"Save", "Release", "RollBack"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, plain)
			tx := w.begin()
			ctx, asked := background, 0
			var sp *Savepoint
			if call != "Save" {
				sp = w.save(background)
				ctx = sp.Context(background)
			}
			w.statement(ctx)
			got := make(chan error, 1)
			go func() {
				var err error
				switch call {
				case "Save":
					_, err = w.Save(background, background, tx, "k")
				case "Release":
					err = sp.Release("k")
				case "RollBack":
					err = sp.RollBack("k")
				}
				got <- err
			}()
			synctest.Wait()
			asked = len(w.d.Log())
			w.Note(background, tx, false, errFull)
			w.Done()
			want := map[string][3]string{
				"Save":     {"aborted", "", "aborted"},
				"Release":  {"aborted", back1, "open"},
				"RollBack": {"ok", back1, "open"},
			}[call]
			if err := <-got; word(err) != want[0] || w.since(asked) != want[1] {
				t.Errorf("%s: got %v, the driver was asked %q", call, err, w.since(asked))
			}
			w.inState(want[2])
			w.End(false)
		})
	}
}

// A savepoint that cannot be begun or ended because a statement does not return:
// after an end the transaction can only be rolled back, and nobody knows what the
// statement still does.
func TestSlotWaitsInVain(t *testing.T) {
	const vain = `sqlreq: the end of a savepoint on key "k" waited in vain for a statement that is under way, the request can only roll back: context canceled`
	for _, call := range []string{"Save, caller", "Save, unit", "Release", "RollBack"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, plain)
			tx := w.begin()
			ctx, end := context.WithCancel(background)
			in := background
			var sp *Savepoint
			if call == "Release" || call == "RollBack" {
				sp = must(w.Save(background, ctx, tx, "k"))(t)
				in = sp.Context(background)
			}
			w.statement(in)
			asked := len(w.d.Log())
			got := make(chan error, 1)
			go func() {
				var err error
				switch call {
				case "Save, caller":
					_, err = w.Save(ctx, background, tx, "k")
				case "Save, unit":
					_, err = w.Save(background, ctx, tx, "k")
				case "Release":
					err = sp.Release("k")
				case "RollBack":
					err = sp.RollBack("k")
				}
				got <- err
			}()
			synctest.Wait()
			end()
			want, after := "context canceled", "open, 1 running"
			if sp != nil {
				want, after = vain, "aborted saved, 1 running"
			}
			if err := <-got; errText(err) != want || w.since(asked) != "" {
				t.Errorf("%s: got %v, the driver was asked %q", call, err, w.since(asked))
			}
			w.inState(after)
			w.Done()
			if sp != nil {
				w.at("ROLLBACK", fails(errNoTx))
				w.End(false)
				if r := w.Last(); r.Outcome != Ended {
					t.Errorf("%s: then it was %s", call, describeResult(r, "returned"))
				}
				return
			}
			w.End(true)
		})
	}
}

// Whether anybody knows what ran after the end of a transaction, as the outcome of
// a ROLLBACK tells that finds none, after an error that may have ended it.
func TestSlotHandedOut(t *testing.T) {
	for _, row := range []struct {
		name string
		do   func(*world)
		want string
	}{
		{"statements only", func(w *world) { must(w.use(background))(w.t) }, "rolled back"},
		{"a savepoint", func(w *world) { must(w.Use(background, w.ask(ForSavepoint)))(w.t) }, "rolled back"},
		{"Tx", func(w *world) { must(w.Use(background, w.ask(ForCaller)))(w.t) }, "ended, stored"},
		{"BeginTx", func(w *world) { w.End(true); must(w.Use(background, w.ask(WithOptions)))(w.t) }, "ended, stored"},
		{"a prepared statement", func(w *world) { must(w.Use(background, w.ask(ForPrepare)))(w.t); w.Done() }, "ended, stored"},
		{"AfterBegin", func(w *world) {
			w.End(true)
			a := w.ask(ForStatement)
			a.AfterBegin = nothingAfter
			must(w.Use(background, a))(w.t)
			w.Done()
		}, "rolled back"},
		{"Tx of the transaction before", func(w *world) {
			must(w.Use(background, w.ask(ForCaller)))(w.t)
			w.End(true)
			w.begin()
		}, "rolled back"},
		{"a statement beside", func(w *world) { w.statement(background) }, "ended, stored"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t, plain)
			w.begin()
			row.do(w)
			w.statement(background)
			w.Note(background, w.tx, false, errFull)
			w.at("ROLLBACK", fails(errNoTx))
			w.End(false)
			if got := describeResult(w.Last(), "returned"); got != row.want {
				t.Errorf("got %s, want %s", got, row.want)
			}
		})
	}
}

// A savepoint that cannot be gone back to: if no statement had told why, something
// may have run after the end of the transaction.
func TestSlotRollBackFailsAndThereIsNone(t *testing.T) {
	for _, row := range []struct {
		aborted bool
		want    string
	}{{true, "rolled back"}, {false, "ended, stored"}} {
		w := newWorld(t, plain)
		tx := w.begin()
		sp := w.save(background)
		if row.aborted {
			w.Note(background, tx, false, errFull)
		}
		w.at(rollbackTo1, fails(errNoTx))
		w.at("ROLLBACK", fails(errNoTx))
		if err := sp.RollBack("k"); err == nil {
			t.Error("no error")
		}
		w.End(false)
		if got := describeResult(w.Last(), "returned"); got != row.want {
			t.Errorf("aborted %v: got %s, want %s", row.aborted, got, row.want)
		}
	}
}

// A further statement joins without the turn only where there is nothing to look at.
func TestSlotJoin(t *testing.T) {
	w := newWorld(t, plain)
	w.opts = &sql.TxOptions{ReadOnly: true}
	tx := w.begin()
	a := w.ask(ForStatement)
	if got := w.join(a); got != tx || !a.RollsBack {
		t.Errorf("got %v, rolls back %v", got, a.RollsBack)
	}
	w.Done()
	other := w.ask(ForStatement)
	other.Opener = &key{"other", false}
	if w.join(other) != nil {
		t.Error("another key joined")
	}
	must(0, w.Lock(background, background))(t)
	if w.join(w.ask(ForStatement)) != nil {
		t.Error("it joined beside who has the turn")
	}
	w.Unlock()
	must(0, w.save(background).Release("k"))(t)
	if w.join(w.ask(ForStatement)) != nil {
		t.Error("it joined where there are savepoints")
	}
	w.inState("open")
	for _, why := range []Purpose{ForPrepare, ForCaller, ForSavepoint} {
		a := w.ask(why)
		must(w.Use(background, a))(t)
		if !a.RollsBack {
			t.Errorf("%d: it is not said to end with ROLLBACK", why)
		}
	}
	w.Done() // of the one that was prepared
	w.End(true)
}

// join is Join by who asks.
func (s *Slot) join(a *Ask) (tx *sql.Tx) {
	tx, a.RollsBack = s.Join(a.Opener)
	return tx
}
