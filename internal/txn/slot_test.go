package txn

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
)

// What is open is shared by those who want it as it was begun.
func TestSlotShare(t *testing.T) {
	const (
		newOnly = `sqlreq: key "other": BeginTx, but a transaction is open already on this pool (begun by key "k"); call BeginTx before any other use`
		others  = `sqlreq: key "other": the transaction open on this pool was begun by key "k" with other options; keys of one pool share a transaction, give them the same TxOptions`
		guards  = `sqlreq: key "other": the transaction open on this pool was begun by key "k", of which only one has a Guard; keys of one pool share a transaction, give them the same Guard`
		begins  = `sqlreq: key "other": the transaction open on this pool was begun by key "k", and only one of the two has an AfterBegin; keys of one pool share a transaction, give them the same AfterBegin`
	)
	ro, ro2 := &sql.TxOptions{ReadOnly: true}, &sql.TxOptions{ReadOnly: true}
	for _, row := range []struct {
		name  string
		begun *sql.TxOptions
		ask   Ask
		err   string
	}{
		{"another key, the defaults", nil, Ask{Opener: &key{"other", false}}, ""},
		{"another key, equal options", ro, Ask{Opener: &key{"other", false}, Options: ro2}, ""},
		{"another key, the same options", ro, Ask{Opener: &key{"other", false}, Options: ro}, ""},
		{"another key, other options", nil, Ask{Opener: &key{"other", false}, Options: ro}, others},
		{"another key, other options than these", ro, Ask{Opener: &key{"other", false}}, others},
		{"another key, different options", ro, Ask{Opener: &key{"other", false}, Options: &sql.TxOptions{Isolation: sql.LevelSerializable, ReadOnly: true}}, others},
		{"another key, with Guard", nil, Ask{Opener: &key{"other", true}}, guards},
		{"another key, with AfterBegin", nil, Ask{Opener: &key{"other", false}, AfterBegin: nothingAfter}, begins},
		{"another key, as new", nil, Ask{Opener: &key{"other", false}, Purpose: WithOptions}, newOnly},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t, plain)
			w.opts = row.begun
			first := w.begin()
			row.ask.Unit, row.ask.Begins = background, &w.begins
			tx, err := w.Use(background, &row.ask)
			if errText(err) != row.err || (tx == first) != (err == nil) || errors.Is(err, ErrBegun) != (row.err != "") {
				t.Errorf("got %v, %v\nwant %s", tx, err, row.err)
			}
			if w.Opener() != Opener(&w.key) {
				t.Error("the opener is another")
			}
			w.End(false)
		})
	}
}

// The key that has begun shares what it has begun, whatever its options are now.
func TestSlotShareWithItself(t *testing.T) {
	w := newWorld(t, plain)
	w.begin()
	w.opts = &sql.TxOptions{ReadOnly: true}
	if _, err := w.use(background); err != nil {
		t.Errorf("got %v", err)
	}
	if w.ReadOnly() {
		t.Error("the transaction is said to be read-only")
	}
	w.End(true)
	w.d.Check(t, "BEGIN", "COMMIT")
}

// A transaction that was ended through *sql.Tx is found when its *sql.Tx is asked
// for, without a word to the driver; a statement finds it by itself.
func TestSlotEndedThroughTx(t *testing.T) {
	w := newWorld(t, plain)
	tx := w.begin()
	must(0, tx.Commit())(t)
	if _, err := w.Use(background, w.ask(ForCaller)); errText(err) != endedText || !errors.Is(err, ErrTxEnded) {
		t.Errorf("for a caller: got %v", err)
	}
	if got, err := w.use(background); got != tx || err != nil {
		t.Errorf("for a statement: got %v, %v", got, err)
	}
	if err := w.Gone(background, background, tx, "x"); errText(err) != strings.Replace(endedText, `"k"`, `"x"`, 1) {
		t.Errorf("Gone: got %v", err)
	}
	if err := w.Lost(); errText(err) != endedText {
		t.Errorf("Lost: got %v", err)
	}
	w.End(false)
	w.d.Check(t, "BEGIN", "COMMIT")
}

// What aborted a transaction is in the error of the next use, with what to do.
func TestSlotAborted(t *testing.T) {
	w := newWorld(t, plain)
	tx := w.begin()
	w.Note(background, tx, false, errFull)
	_, err := w.use(background)
	if want := `sqlreq: key "k": an error may have ended the transaction, no further statement runs; call Rollback to begin anew: database or disk is full (13)`; errText(err) != want || !errors.Is(err, errFull) {
		t.Errorf("got %v", err)
	}
	w.End(false)
	if _, err := w.use(background); err != nil {
		t.Errorf("anew: got %v", err)
	}
	w.End(true)
	w.d.Check(t, "BEGIN", "ROLLBACK", "BEGIN", "COMMIT")
}

// Lost finds what cannot be committed; a read-only transaction has nothing to commit.
func TestSlotLost(t *testing.T) {
	for _, k := range []kind{plain, readOnly, serializableRO, test} {
		w := newWorld(t, k)
		tx := w.begin()
		if err := w.Lost(); err != nil {
			t.Errorf("%+v: got %v", k, err)
		}
		w.Note(background, tx, false, errFull)
		if err := w.Lost(); (err == nil) != (k == readOnly) {
			t.Errorf("%+v aborted: got %v", k, err)
		}
		if w.ReadOnly() != k.readOnly {
			t.Errorf("%+v: read-only %v", k, w.ReadOnly())
		}
		if k.test {
			continue
		}
		must(0, tx.Rollback())(t)
		if err := w.Lost(); errText(err) != endedText {
			t.Errorf("%+v ended: got %v", k, err)
		}
	}
}

func TestChosen(t *testing.T) {
	if Chosen(nil) != nil || Chosen(&sql.TxOptions{}) != nil {
		t.Error("the defaults are not nil")
	}
	for _, o := range []sql.TxOptions{{ReadOnly: true}, {Isolation: sql.LevelSerializable}} {
		if got := Chosen(&o); got == nil || got == &o || *got != o {
			t.Errorf("got %v, want a copy of %v", got, o)
		}
	}
}

// A statement that had not run because its context had ended says nothing; one
// that was interrupted does. The next transaction is not aborted by the last one's.
func TestSlotNote(t *testing.T) {
	for _, row := range []struct {
		name string
		ctx  context.Context
		late bool
		err  error
		want string
	}{
		{"an error of no known meaning", background, false, errPlain, "open"},
		{"the server's answer", background, false, errRefused, "open"},
		{"one that ends transactions", background, false, errFull, "aborted"},
		{"one that ends transactions, late", canceled, true, errFull, "open"},
		{"interrupted", canceled, false, errPlain, "aborted"},
		{"did not run", canceled, true, errPlain, "open"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t, plain)
			first := w.begin()
			w.End(true)
			tx := w.begin()
			w.Note(row.ctx, first, row.late, row.err)
			w.inState("open")
			w.Note(row.ctx, tx, row.late, row.err)
			w.inState(row.want)
			if w.abortedBy() != nil && w.abortedBy() != row.err {
				t.Errorf("the reason is %v", w.abortedBy())
			}
			w.End(false)
		})
	}
}

// Lock ends with the first of two contexts, and Gone says which key waited.
func TestSlotLockEnds(t *testing.T) {
	for _, unit := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, plain)
			must(0, w.Lock(background, background))(t)
			ctx, end := context.WithTimeout(background, 1)
			defer end()
			a, b := ctx, background
			if unit {
				a, b = b, a
			}
			if err := w.Lock(a, b); err != context.DeadlineExceeded {
				t.Errorf("Lock: got %v", err)
			}
			var begin *BeginError
			if err := w.Gone(a, b, nil, "x"); !errors.As(err, &begin) || begin.Key != "x" || begin.Err != context.DeadlineExceeded {
				t.Errorf("Gone: got %#v", err)
			}
			w.Unlock()
			must(0, w.Lock(a, b))(t) // a free turn is taken
			w.Unlock()
		})
	}
}

func TestBeginError(t *testing.T) {
	err := &BeginError{Key: "k", Err: errPlain}
	if err.Error() != `sqlreq: begin on key "k": plain` || !errors.Is(err, errPlain) {
		t.Errorf("got %v", err)
	}
}

// A turn that is taken makes a slot busy, and so does an open transaction.
func TestSlotBusy(t *testing.T) {
	w := newWorld(t, plain)
	if w.Busy() {
		t.Error("busy before")
	}
	must(0, w.Lock(background, background))(t)
	if !w.Busy() || w.Open() {
		t.Error("not busy, or open, though its turn is taken only")
	}
	w.Unlock()
	w.begin()
	if !w.Busy() || !w.Open() {
		t.Error("not busy, or not open")
	}
	w.End(true)
	if w.Busy() {
		t.Error("busy after")
	}
}

// While a driver is in Guard's savepoint nothing is open yet for others.
func TestSlotOpenDuringGuard(t *testing.T) {
	w := newWorld(t, guarded)
	w.at(saveGuard, func(context.Context) error {
		if w.Open() || !w.Busy() {
			t.Errorf("open %v, busy %v", w.Open(), w.Busy())
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.state != beginning || w.tx == nil {
			t.Errorf("state %d, %v", w.state, w.tx)
		}
		return nil
	})
	w.begin()
	w.inState("open")
	w.End(false)
}

// Who uses the slot while another goroutine closes it and ends what is open has the transaction
// before that, or ErrFinished, and never reads what the other one writes (the race detector looks).
func TestSlotUsedWhileItEnds(t *testing.T) {
	for range 300 {
		w := newWorld(t, plain)
		w.begin()
		start, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			<-start
			if w.Close() {
				w.End(true)
			}
		}()
		close(start)
		for {
			if tx, err := w.use(background); err == ErrFinished {
				break
			} else if tx == nil || err != nil {
				t.Fatalf("got %v, %v, want the transaction or ErrFinished", tx, err)
			}
		}
		<-ended
	}
}
