package txn

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// untilDone is a driver that waits for the end of the context of its call.
func untilDone(ctx context.Context) error { return fakedb.UntilDone(ctx) }

// ignores is a driver that waits for the end of the context, and succeeds.
func ignores(ctx context.Context) error { <-ctx.Done(); return nil }

const (
	saveTx       = "SAVEPOINT sqlreq_tx_1"
	saveGuard    = "SAVEPOINT sqlreq_guard"
	save1        = "SAVEPOINT sqlreq_1"
	release1     = "RELEASE SAVEPOINT sqlreq_1"
	rollbackTo1  = "ROLLBACK TO SAVEPOINT sqlreq_1"
	beginRefused = `sqlreq: begin on key "k": `
)

// beginFault is a BEGIN at which something goes wrong.
type beginFault struct {
	kind  kind
	at    string // the call at which the driver has the fault
	fault func(context.Context) error
	ends  string // what ends while the driver waits: "caller", "unit", "slot"
	came  string
	err   string
	ended string // the Result in the error, "" if there is none
	asked string
}

var beginFaults = []beginFault{
	{plain, "BEGIN", fails(errPlain), "", "returned", beginRefused + "plain", "", "BEGIN"},
	{plain, "BEGIN", panics, "", "panicked", "", "", "BEGIN"},
	{plain, "BEGIN", exits, "", "exited", "", "", "BEGIN"},
	{plain, "BEGIN", untilDone, "caller", "returned", beginRefused + "context canceled", "", "BEGIN"},
	{plain, "BEGIN", untilDone, "unit", "returned", beginRefused + "context canceled", "", "BEGIN"},
	{plain, "BEGIN", untilDone, "slot", "returned", finishedText, "", "BEGIN"},
	{plain, "BEGIN", ignores, "caller", "returned", beginRefused + "context canceled", "rolled back", "BEGIN; ROLLBACK"},
	{plain, "BEGIN", ignores, "unit", "returned", beginRefused + "context canceled", "rolled back", "BEGIN; ROLLBACK"},
	{plain, "BEGIN", ignores, "slot", "returned", finishedText, "rolled back", "BEGIN; ROLLBACK"},

	{guarded, "BEGIN", ignores, "caller", "returned", beginRefused + "context canceled", "rolled back: context canceled", "BEGIN; ROLLBACK"},
	{guarded, saveGuard, fails(errPlain), "", "returned", beginRefused + "plain", "rolled back: plain", "BEGIN; " + saveGuard + "; ROLLBACK"},
	{guarded, saveGuard, fails(sql.ErrTxDone), "", "returned", beginRefused + sql.ErrTxDone.Error(), "rolled back: " + sql.ErrTxDone.Error(), "BEGIN; " + saveGuard + "; ROLLBACK"},
	{guarded, saveGuard, panics, "", "panicked", "", notReturned, "BEGIN; " + saveGuard + "; ROLLBACK"},
	{guarded, saveGuard, exits, "", "exited", "", notReturned, "BEGIN; " + saveGuard + "; ROLLBACK"},
	{guarded, saveGuard, untilDone, "caller", "returned", beginRefused + "context canceled", "rolled back: context canceled", "BEGIN; " + saveGuard + "; ROLLBACK"},
	{guarded, saveGuard, untilDone, "unit", "returned", beginRefused + "context canceled", "rolled back: context canceled", "BEGIN; " + saveGuard + "; ROLLBACK"},
	{guarded, saveGuard, untilDone, "slot", "returned", finishedText, "rolled back: context canceled", "BEGIN; " + saveGuard + "; ROLLBACK"},

	{test, saveTx, fails(errPlain), "", "returned", beginRefused + "plain", "", saveTx},
	{test, saveTx, panics, "", "panicked", "", "", saveTx},
	{test, saveTx, exits, "", "exited", "", "", saveTx},
	{test, saveTx, untilDone, "caller", "returned", beginRefused + "context canceled", "", saveTx},
	{test, saveTx, untilDone, "unit", "returned", beginRefused + "context canceled", "", saveTx},
	{test, saveTx, untilDone, "slot", "returned", finishedText, "", saveTx},
	{test, saveTx, ignores, "caller", "returned", beginRefused + "context canceled", "rolled back", saveTx + "; " + backInTest},
	{test, saveTx, ignores, "unit", "returned", beginRefused + "context canceled", "rolled back", saveTx + "; " + backInTest},
	{test, saveTx, ignores, "slot", "returned", finishedText, "rolled back", saveTx + "; " + backInTest},
}

const notReturned = "rolled back: sqlreq: the driver, or AfterBegin, did not return"

const finishedText = "sqlreq: the request is finished; for later work use Registry.Do(context.WithoutCancel(ctx), ...)"

// A BEGIN that does not end well leaves nothing behind, whatever the driver does
// and whoever no longer waits.
func TestSlotBeginFaults(t *testing.T) {
	for i, f := range beginFaults {
		t.Run(fmt.Sprint(i, " ", f.at, " ", f.ends, " ", f.came), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f.run(t) })
		})
	}
}

func (f beginFault) run(t *testing.T) {
	w := newWorld(t, f.kind)
	w.timed = true
	asked := len(w.d.Log())
	w.at(f.at, f.fault)
	ctx, endCaller := context.WithCancel(background)
	defer endCaller()
	unit, endUnit := context.WithCancel(background)
	defer endUnit()
	a := w.ask(ForStatement)
	a.Unit = unit
	var tx *sql.Tx
	var err error
	how := make(chan string, 1)
	go func() { how <- called(func() { tx, err = w.Use(ctx, a) }) }()
	synctest.Wait() // until the driver waits, or the use has returned
	switch f.ends {
	case "caller":
		endCaller()
	case "unit":
		endUnit()
	case "slot":
		if w.Slot.Close() {
			t.Error("Close says that a transaction is open")
		}
	}
	came := <-how
	synctest.Wait()
	if came != f.came || errText(errAsBegin(err)) != f.err || tx != nil {
		t.Errorf("it %s with %v, %v, want %s with %s", came, tx, err, f.came, f.err)
	}
	if got := refusedOf(a); got != f.ended {
		t.Errorf("the result is %q, want %q", got, f.ended)
	}
	if got := w.since(asked); got != f.asked {
		t.Errorf("the driver was asked %q, want %q", got, f.asked)
	}
	w.isFree(t, f.ends == "slot")
}

// errAsBegin returns what a *BeginError of a closed slot has inside: ErrFinished as it is.
func errAsBegin(err error) error {
	if errors.Is(err, ErrFinished) {
		return ErrFinished
	}
	return err
}

// refusedOf describes what a says of a transaction that was begun and ended at once.
func refusedOf(a *Ask) string {
	r := a.Refused
	if r == nil {
		return ""
	}
	text := describeResult(*r, "returned")
	if r.Times == nil {
		text += " without times"
	}
	if r.Err != nil {
		text += ": " + r.Err.Error()
	}
	return text
}

// isFree fails the test if something is left of a transaction, or the next one cannot begin.
func (w *world) isFree(t *testing.T, closed bool) {
	t.Helper()
	w.well()
	if closed {
		w.inState("closed")
		return
	}
	w.inState("idle")
	if _, err := w.use(background); err != nil {
		t.Errorf("the next use: %v", err)
	}
	w.inState("open")
	w.End(false)
	w.inState("idle")
}

// Contexts that end before BEGIN, also while the turn is waited for: no driver is asked.
func TestSlotBeginEndedBefore(t *testing.T) {
	for _, k := range []kind{plain, guarded, test} {
		for _, who := range []string{"caller", "unit", "both are one"} {
			for _, wait := range []bool{false, true} {
				t.Run(fmt.Sprintf("%+v %s %v", k, who, wait), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { endedBefore(t, k, who, wait) })
				})
			}
		}
	}
}

func endedBefore(t *testing.T, k kind, who string, wait bool) {
	w := newWorld(t, k)
	asked := len(w.d.Log())
	ended, end := context.WithCancelCause(background)
	defer end(nil)
	ctx, a := background, w.ask(ForStatement)
	if who != "unit" {
		ctx = ended
	}
	if who != "caller" {
		a.Unit = ended
	}
	if wait {
		must(0, w.Lock(background, background))(t)
	} else {
		end(errPlain)
	}
	got := make(chan error, 1)
	go func() { _, err := w.Use(ctx, a); got <- err }()
	synctest.Wait()
	if wait {
		if len(got) > 0 {
			t.Error("the use did not wait for the turn")
		}
		end(errPlain)
		synctest.Wait()
	}
	err := <-got
	var b *BeginError
	if !errors.As(err, &b) || b.Err != context.Canceled || b.Key != "k" || a.Refused != nil {
		t.Errorf("got %#v", err)
	}
	if wait {
		w.Unlock()
	}
	if got := w.since(asked); got != "" {
		t.Errorf("the driver was asked %q", got)
	}
	w.isFree(t, false)
}

// A transaction that has begun outlives the contexts that its BEGIN had.
func TestSlotOutlivesTheContexts(t *testing.T) {
	for _, k := range []kind{plain, guarded, test} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, k)
			ctx, end := context.WithCancel(background)
			unit, endUnit := context.WithCancel(background)
			a := w.ask(ForStatement)
			a.Unit = unit
			must(w.Use(ctx, a))(t)
			w.Done()
			end()
			endUnit()
			synctest.Wait()
			w.End(true)
			if r := w.Last(); r.Outcome != Committed {
				t.Errorf("%+v: got %s: %v", k, describeResult(r, ""), r.Err)
			}
		})
	}
}

// The context of BEGIN has the values of the caller's.
func TestSlotBeginHasTheCallersValues(t *testing.T) {
	type name struct{}
	w := newWorld(t, guarded)
	w.d.Step = func(ctx context.Context, text string) error {
		if v := ctx.Value(name{}); v != "value" {
			t.Errorf("%s: got %v", text, v)
		}
		return nil
	}
	must(w.use(context.WithValue(background, name{}, "value")))(t)
	w.d.Step = nil
	w.End(false)
}

// A slot is closed while Guard's savepoint is being laid, or in a test's transaction
// while somebody else's is open: Close does not wait, and the BEGIN ends itself.
func TestSlotCloseDuringBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, test)
		must(0, turns.Lock(background, w.outer))(t)
		got := make(chan error, 1)
		go func() { _, err := w.use(background); got <- err }()
		synctest.Wait()
		if w.Slot.Close() {
			t.Error("Close says that a transaction is open")
		}
		if err := <-got; !errors.Is(err, ErrFinished) {
			t.Errorf("got %v, want ErrFinished", err)
		}
		turns.Unlock(w.outer)
		w.inState("closed")
		w.d.CheckLog(t, "BEGIN")
	})
}

// Close between the turn and the BEGIN of a use: it begins nothing.
func TestSlotStartBeginOfAClosed(t *testing.T) {
	w := newWorld(t, plain)
	w.shut()
	tx, err := w.Slot.begin(background, w.ask(ForStatement))
	if tx != nil || err != ErrFinished {
		t.Errorf("got %v, %v, want ErrFinished", tx, err)
	}
	w.inState("closed")
	w.d.CheckLog(t)
}

// Close waits for who is at the transaction, and tells that it is open.
func TestSlotCloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain)
		w.begin()
		must(0, w.Lock(background, background))(t)
		got := make(chan bool, 1)
		go func() { got <- w.Slot.Close() }()
		synctest.Wait()
		if len(got) > 0 {
			t.Error("Close did not wait")
		}
		w.Unlock()
		if !<-got {
			t.Error("nothing is open")
		}
		w.End(false)
	})
}

// BEGINs that succeed are counted for the unit; a failed one is not.
func TestSlotNumbers(t *testing.T) {
	w := newWorld(t, plain)
	w.begins.Store(4)
	w.at("BEGIN", fails(errPlain))
	if _, err := w.use(background); err == nil {
		t.Error("no error")
	}
	w.well()
	w.begin()
	if w.Number() != 5 || w.begins.Load() != 5 {
		t.Errorf("got number %d of %d, want 5", w.Number(), w.begins.Load())
	}
	w.End(false)
}
