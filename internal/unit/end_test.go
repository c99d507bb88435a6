package unit

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq/internal/modeltest/mysqlite"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"github.com/sqlreq/sqlreq/internal/txn"
)

const gaveUp = `sqlreq: key "a": the transaction was given up, its end panicked`

// The outcome of a unit with one transaction: what is committed, who is told, which hooks run.
func TestUnitFinish(t *testing.T) {
	for _, row := range []struct {
		name  string
		do    func(*world, *binding, Open)
		err   string
		saw   string
		flags string // Committed, CommitFailed
	}{
		{"well", func(*world, *binding, Open) {}, "", "a: COMMIT; a was committed; a +", "committed"},
		{"not to be committed", func(w *world, _ *binding, _ Open) { w.commits = func(int, []any) bool { return false } }, "", "a: ROLLBACK; a was rolled back; a -", ""},
		{"failed", func(w *world, _ *binding, _ Open) { w.Fail(background, errPlain) }, "plain", "a: ROLLBACK; a was rolled back; a -", ""},
		{"refused", func(w *world, _ *binding, _ Open) { w.at("a: COMMIT", fails(errRefused)) }, "commit of a after [], ambiguous false: answered 23505", "a: COMMIT; a was refused; a -", "commit failed"},
		{"unknown", func(w *world, _ *binding, _ Open) { w.at("a: COMMIT", fails(io.ErrUnexpectedEOF)) }, "commit of a after [], ambiguous true: unexpected EOF", "a: COMMIT; a was unknown", "committed, commit failed"},
		{"ended by the program", func(_ *world, _ *binding, o Open) { o.Tx.Commit() }, `sqlreq: key "a": the transaction was ended through *sql.Tx; delete the defer tx.Rollback() or tx.Commit(), and use sqlreq.Commit or sqlreq.Rollback to end it early`, "a: COMMIT; a was ended", "committed"},
		{"aborted", func(_ *world, _ *binding, o Open) { o.Note(background, false, &mysqlite.Full{}) }, `sqlreq: key "a": an earlier error may have ended the transaction, it was rolled back: database or disk is full (13)`, "a: ROLLBACK; a was rolled back; a -", ""},
		{"the client has gone", func(w *world, _ *binding, _ Open) { w.leave() }, "sqlreq: the request's context ended before COMMIT: context canceled", "a: ROLLBACK; a was rolled back; a -", ""},
		{"nobody is to be told", func(_ *world, b *binding, _ Open) { b.observed = false }, "", "a: COMMIT; a was committed; a +", "committed"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t)
			a := w.bind("a")
			o := w.begin(a)
			w.hooks(background, a)
			w.saw()
			row.do(w, a, o)
			if err := w.Finish(200); errText(err) != row.err || err != w.Err() {
				t.Errorf("got %v\nwant %s", err, row.err)
			}
			w.check(row.saw)
			w.flags(t, row.flags)
			if err := w.Finish(200); errText(err) != row.err || !w.Over() {
				t.Errorf("again: got %v, over %v", err, w.Over())
			}
			w.Abandon()
			w.check("")
		})
	}
}

// flags fails the test unless the unit says these, and no others.
func (w *world) flags(t *testing.T, want string) {
	t.Helper()
	got := ""
	for _, f := range []struct {
		is   bool
		text string
	}{{w.Committed(), "committed"}, {w.CommitFailed(), "commit failed"}, {w.SawConflict(), "saw conflict"}} {
		if f.is && got != "" {
			got += ", "
		}
		if f.is {
			got += f.text
		}
	}
	if got != want {
		t.Errorf("the unit is %q, want %q", got, want)
	}
}

// Nobody is told of a transaction whose binding is not observed.
func TestUnitNotObserved(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	a.observed = false
	w.begin(a)
	must(0, w.commit(a))(t)
	w.begin(a)
	w.Finish(200)
	w.check("a: BEGIN; a: COMMIT; a: BEGIN; a: COMMIT")
}

// The host is asked once, with the status and who has joined, if nothing has failed.
func TestUnitCommits(t *testing.T) {
	w := newWorld(t)
	asked := 0
	w.commits = func(status int, joined []any) bool {
		asked++
		if status != 201 || !slices.Equal(joined, []any{"x", "y"}) {
			t.Errorf("got %d, %v", status, joined)
		}
		return true
	}
	w.Join("x")
	w.Join("y")
	w.Join("x")
	w.Finish(201)
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}

	w = newWorld(t)
	w.commits = func(_ int, joined []any) bool {
		asked++
		return joined == nil
	}
	w.Finish(201)
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
	w = newWorld(t)
	w.Fail(background, errPlain)
	w.commits = func(int, []any) bool { t.Error("asked about what has failed"); return true }
	w.Finish(200)
}

// A unit whose program failed while the host was asked commits nothing.
func TestUnitFailsWhileTheHostIsAsked(t *testing.T) {
	w := newWorld(t)
	w.begin(w.bind("a"))
	w.commits = func(int, []any) bool { w.Fail(background, errPlain); return true }
	if err := w.Finish(200); err != errPlain {
		t.Errorf("got %v", err)
	}
	w.check("a: BEGIN; a: ROLLBACK; a was rolled back")
}

func TestUnitAbandon(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	w.begin(a)
	w.hooks(background, a)
	w.Abandon()
	w.check("a: BEGIN; a: ROLLBACK; a was rolled back; a -")
	if w.Err() != nil || !w.Over() {
		t.Errorf("got %v, over %v", w.Err(), w.Over())
	}
}

// A client that has gone is a failure if something was open, or if the program
// gave up and answered nothing; otherwise there is nothing that is not done.
func TestUnitClientGone(t *testing.T) {
	const gone = "sqlreq: the request's context ended before COMMIT: context canceled"
	for _, row := range []struct {
		name     string
		open     bool
		waits    bool // the program has waited in vain
		answered bool
		err      string
	}{
		{"nothing was open", false, false, false, ""},
		{"something was open", true, false, true, gone},
		{"it gave up", false, true, false, gone},
		{"it gave up and answered", false, true, true, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t)
			a := w.bind("a")
			w.answered = row.answered
			w.hooks(background, a)
			if row.open {
				w.begin(a)
			}
			w.leave()
			if row.waits {
				if _, err := w.use(background, a); err == nil {
					t.Error("it did not wait in vain")
				}
			}
			w.saw()
			if err := w.Finish(200); errText(err) != row.err || w.FailedAt() != nil {
				t.Errorf("got %v at %v, want %s", err, w.FailedAt(), row.err)
			}
			if row.open {
				w.check("a: ROLLBACK; a was rolled back; a -")
			} else {
				w.check("a -")
			}
		})
	}
}

// Several transactions end in the order of their BEGINs, whatever the order of
// their keys, until one fails; all are told at the end.
func TestUnitSeveral(t *testing.T) {
	const (
		rolledBack = "b: ROLLBACK; c: ROLLBACK; a: ROLLBACK; b was rolled back; c was rolled back; a was rolled back; b -; c -; a -"
		ended      = `: the transaction was ended through *sql.Tx; delete the defer tx.Rollback() or tx.Commit(), and use sqlreq.Commit or sqlreq.Rollback to end it early`
	)
	for _, row := range []struct {
		name string
		do   func(*world, map[string]Open)
		came string
		err  string
		at   string // the key whose context is that of who failed
		saw  string
	}{
		{"well", func(*world, map[string]Open) {}, "returned", "", "",
			"b: COMMIT; c: COMMIT; a: COMMIT; b was committed; c was committed; a was committed; b +; c +; a +"},
		{"failed", func(w *world, _ map[string]Open) { w.Fail(background, errPlain) }, "returned", "plain", "", rolledBack},
		{"the first fails", func(w *world, _ map[string]Open) { w.at("b: COMMIT", fails(errRefused)) }, "returned",
			"commit of b after [], ambiguous false: answered 23505", "b",
			"b: COMMIT; c: ROLLBACK; a: ROLLBACK; b was refused; c was rolled back; a was rolled back; b -; c -; a -"},
		{"the second fails", func(w *world, _ map[string]Open) { w.at("c: COMMIT", fails(errRefused)) }, "returned",
			"commit of c after [b], ambiguous false: answered 23505", "c",
			"b: COMMIT; c: COMMIT; a: ROLLBACK; b was committed; c was refused; a was rolled back; b +; c -; a -"},
		{"the last is unknown", func(w *world, _ map[string]Open) { w.at("a: COMMIT", fails(errPlain)) }, "returned",
			"commit of a after [b c], ambiguous true: plain", "a",
			"b: COMMIT; c: COMMIT; a: COMMIT; b was committed; c was committed; a was unknown; b +; c +"},
		{"the last is lost", func(_ *world, o map[string]Open) { o["a"].Note(background, false, &mysqlite.Full{}) }, "returned",
			`sqlreq: key "a": an earlier error may have ended the transaction, it was rolled back: database or disk is full (13)`, "a", rolledBack},
		{"the second was ended", func(w *world, o map[string]Open) { o["c"].Tx.Rollback(); w.saw() }, "returned",
			`sqlreq: key "c"` + ended, "c",
			"b: ROLLBACK; a: ROLLBACK; b was rolled back; c was ended; a was rolled back; b -; a -"},
		{"two are lost", func(w *world, o map[string]Open) {
			o["c"].Note(background, false, &mysqlite.Full{})
			o["b"].Tx.Commit()
			w.saw()
		}, "returned", `sqlreq: key "b"` + ended, "b",
			"c: ROLLBACK; a: ROLLBACK; b was ended; c was rolled back; a was rolled back; c -; a -"},
		{"lost, and not to be committed", func(w *world, o map[string]Open) {
			o["a"].Note(background, false, &mysqlite.Full{})
			w.commits = func(int, []any) bool { return false }
		}, "returned", "", "", rolledBack},
	} {
		t.Run(row.name, func(t *testing.T) {
			w, at, opens := three(t)
			row.do(w, opens)
			var err error
			came := called(func() { err = w.Finish(200) })
			if came != row.came || errText(err) != row.err {
				t.Errorf("it %s with %v\nwant %s", came, err, row.err)
			}
			w.check(row.saw)
			if row.at != "" && w.FailedAt() != at[row.at] {
				t.Errorf("it failed at %v", w.FailedAt())
			}
		})
	}
}

// three returns a unit with transactions of three keys, begun in the order b, c, a,
// and hooks of each. Each key has a context of its own.
func three(t *testing.T) (*world, map[string]context.Context, map[string]Open) {
	w := newWorld(t)
	at, opens, keys := map[string]context.Context{}, map[string]Open{}, map[string]*binding{}
	for _, name := range []string{"a", "b", "c"} {
		at[name] = context.WithValue(background, &name, name)
		keys[name] = w.bind(name)
		must(w.DB(background, at[name], keys[name]))(t) // known in this order
	}
	for _, name := range []string{"b", "c", "a"} {
		opens[name] = must(w.useAt(background, at[name], keys[name]))(t)
		w.hooks(background, keys[name])
	}
	w.saw()
	return w, at, opens
}

// A driver that does not return from an end: what began later is rolled back.
func TestUnitSeveralPanic(t *testing.T) {
	for _, fault := range []func(context.Context) error{panics, exits} {
		for _, row := range []struct {
			at     string
			commit bool
			saw    string
			err    string
			flags  string
		}{
			{"b: COMMIT", true, "b: COMMIT; c: ROLLBACK; a: ROLLBACK",
				`commit of b after [], ambiguous true: sqlreq: key "b": the transaction was given up, its end panicked`, "committed, commit failed"},
			{"c: COMMIT", true, "b: COMMIT; c: COMMIT; a: ROLLBACK",
				`commit of c after [b], ambiguous true: sqlreq: key "c": the transaction was given up, its end panicked`, "committed, commit failed"},
			{"a: ROLLBACK", false, "b: ROLLBACK; c: ROLLBACK; a: ROLLBACK", gaveUp, ""},
		} {
			w, _, _ := three(t)
			w.commits = func(int, []any) bool { return row.commit }
			w.at(row.at, fault)
			if came := called(func() { w.Finish(200) }); came == "returned" {
				t.Errorf("%s: it returned", row.at)
			}
			if got := w.asked(); got != row.saw {
				t.Errorf("%s: the drivers were asked %s, want %s", row.at, got, row.saw)
			}
			w.flags(t, row.flags)
			if errText(w.Err()) != row.err || !w.Over() {
				t.Errorf("%s: got %v, over %v", row.at, w.Err(), w.Over())
			}
		}
	}
}

// Read-only transactions are not among what was committed before another failed.
func TestUnitSeveralReadOnly(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.bind("a"), w.bind("b"), w.bind("c")
	a.options = readOnly
	w.begin(a, b, c)
	w.saw()
	w.at("c: COMMIT", fails(errRefused))
	err := w.Finish(200)
	var failed *commitError
	if !errors.As(err, &failed) || !slices.Equal(failed.committed, []string{"b"}) {
		t.Errorf("got %v", err)
	}
	w.check("a: ROLLBACK; b: COMMIT; c: COMMIT; a was committed; b was committed; c was refused")
}

// An explicit Commit or Rollback ends the transaction of one key, and the unit goes on.
func TestUnitEndNow(t *testing.T) {
	for _, row := range []struct {
		name   string
		do     func(*world)
		commit bool
		err    string
		saw    string
		last   string // at the end of the unit
		flags  string
	}{
		{"Commit", nil, true, "", "a: COMMIT; a was committed; a +", "", "committed"},
		{"Rollback", nil, false, "", "a: ROLLBACK; a was rolled back; a -", "", ""},
		{"Commit, refused", func(w *world) { w.at("a: COMMIT", fails(errRefused)) }, true,
			"commit of a after [], ambiguous false: answered 23505", "a: COMMIT; a was refused; a -", "", "commit failed"},
		{"Commit, unknown", func(w *world) { w.at("a: COMMIT", fails(errPlain)) }, true,
			"commit of a after [], ambiguous true: plain", "a: COMMIT; a was unknown", "", "committed, commit failed"},
		{"Commit of a failed unit", func(w *world) { w.Fail(background, errPlain) }, true,
			`sqlreq: commit on key "a" refused: plain`, "", "a: ROLLBACK; a was rolled back; a -", ""},
		{"Rollback of a failed unit", func(w *world) { w.Fail(background, errPlain) }, false, "", "a: ROLLBACK; a was rolled back; a -", "", ""},
		{"Commit without a client", func(w *world) { w.leave() }, true,
			`sqlreq: commit on key "a" refused: context canceled`, "", "a: ROLLBACK; a was rolled back; a -", ""},
		{"Rollback without a client", func(w *world) { w.leave() }, false, "", "a: ROLLBACK; a was rolled back; a -", "", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t)
			a := w.bind("a")
			w.begin(a)
			w.hooks(background, a)
			w.saw()
			if row.do != nil {
				row.do(w)
			}
			at := context.WithValue(background, t, t)
			err := w.EndNow(background, at, background, a, row.commit)
			if errText(err) != row.err {
				t.Errorf("got %v, want %s", err, row.err)
			}
			if err != nil && errText(w.Err()) != "plain" && (w.Err() != err || w.FailedAt() != at) {
				t.Errorf("the unit failed with %v at %v", w.Err(), w.FailedAt())
			}
			w.check(row.saw)
			if w.Over() {
				t.Error("the unit has ended")
			}
			if err := w.commit(a); err != nil && row.last == "" {
				t.Errorf("with nothing open: got %v", err)
			}
			w.Finish(200)
			w.check(row.last)
			w.flags(t, row.flags)
		})
	}
}

// A Commit whose own context has ended is refused, and the request fails; a Rollback is not.
func TestUnitEndNowCanceled(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	w.begin(a)
	if err := w.EndNow(canceled, background, background, a, true); errText(err) != `sqlreq: commit on key "a" refused: context canceled` || w.Err() != err {
		t.Errorf("got %v", err)
	}
	if err := w.EndNow(canceled, background, background, a, false); err != nil {
		t.Errorf("got %v", err)
	}
	w.check("a: BEGIN; a: ROLLBACK; a was rolled back")
}

// A Commit and a Rollback wait for who is at the transaction. A Commit that
// waited in vain fails the unit, a Rollback does not.
func TestUnitEndNowWaits(t *testing.T) {
	for _, commit := range []bool{true, false} {
		for _, who := range []string{"caller", "host", "end"} {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a := w.bind("a")
				o := w.begin(a)
				slot := o.source.slot
				must(0, slot.Lock(background, background))(t)
				ctx, end := context.WithCancel(background)
				got := make(chan error, 1)
				go func() { got <- w.EndNow(ctx, background, background, a, commit) }()
				synctest.Wait()
				if len(got) > 0 {
					t.Error("it did not wait")
				}
				want := map[bool]string{true: `sqlreq: commit on key "a" refused: context canceled`, false: "context canceled"}[commit]
				switch who {
				case "caller":
					end()
				case "host":
					w.leave()
				case "end":
					go w.Abandon()
					synctest.Wait() // it waits for the turn as well
					slot.Unlock()
					want = txn.ErrFinished.Error()
				}
				err := <-got
				if errText(err) != want && !(who == "end" && err == nil) {
					t.Errorf("%s: got %v, want %s", who, err, want)
				}
				if failed := w.Err() != nil; failed != (commit && who != "end") {
					t.Errorf("%s: the unit failed: %v", who, w.Err())
				}
				if who != "end" {
					slot.Unlock()
				}
				end()
				synctest.Wait()
				w.Abandon()
			})
		}
	}
}

// Before a Hijack everything is ended, in the order of the BEGINs.
func TestUnitEndOpen(t *testing.T) {
	for _, row := range []struct {
		name   string
		do     func(*world)
		commit bool
		err    string
		saw    string
		last   string
	}{
		{"to commit", nil, true, "", "b: COMMIT; c: COMMIT; a: COMMIT; b was committed; c was committed; a was committed; b +; c +; a +", ""},
		{"to roll back", nil, false, "", "b: ROLLBACK; c: ROLLBACK; a: ROLLBACK; b was rolled back; c was rolled back; a was rolled back; b -; c -; a -", ""},
		{"one fails", func(w *world) { w.at("c: COMMIT", fails(errRefused)) }, true, "commit of c after [b], ambiguous false: answered 23505",
			"b: COMMIT; c: COMMIT; a: ROLLBACK; b was committed; c was refused; a was rolled back; b +; c -; a -", ""},
		{"a failed unit", func(w *world) { w.Fail(background, errPlain) }, true, "plain", "",
			"b: ROLLBACK; c: ROLLBACK; a: ROLLBACK; b was rolled back; c was rolled back; a was rolled back; b -; c -; a -"},
		{"a failed unit, to roll back", func(w *world) { w.Fail(background, errPlain) }, false, "plain", "",
			"b: ROLLBACK; c: ROLLBACK; a: ROLLBACK; b was rolled back; c was rolled back; a was rolled back; b -; c -; a -"},
		{"the client has gone", func(w *world) { w.leave() }, true, "context canceled", "",
			"b: ROLLBACK; c: ROLLBACK; a: ROLLBACK; b was rolled back; c was rolled back; a was rolled back; b -; c -; a -"},
		{"the client has gone, to roll back", func(w *world) { w.leave() }, false, "",
			"b: ROLLBACK; c: ROLLBACK; a: ROLLBACK; b was rolled back; c was rolled back; a was rolled back; b -; c -; a -", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			w, _, _ := three(t)
			if row.do != nil {
				row.do(w)
			}
			if err := w.EndOpen(row.commit); errText(err) != row.err {
				t.Errorf("got %v, want %s", err, row.err)
			}
			w.check(row.saw)
			if w.Over() {
				t.Error("the unit has ended")
			}
			w.Finish(200)
			w.check(row.last)
		})
	}
}

// A rollback that fails before a Hijack is no error of it, but one through *sql.Tx fails the unit.
func TestUnitEndOpenOfWhatWasEnded(t *testing.T) {
	w := newWorld(t)
	o := w.begin(w.bind("a"))
	must(0, o.Tx.Rollback())(t)
	if err := w.EndOpen(false); err != nil || !errors.Is(w.Err(), txn.ErrTxEnded) {
		t.Errorf("got %v, %v", err, w.Err())
	}
}

// While one transaction cannot be had, none is ended, and the turns are given back.
func TestUnitEndOpenWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.bind("a"), w.bind("b")
		first, second := w.begin(a), w.begin(b)
		must(0, second.source.slot.Lock(background, background))(t)
		got := make(chan error, 1)
		go func() { got <- w.EndOpen(true) }()
		synctest.Wait()
		w.leave()
		if err := <-got; err != context.Canceled {
			t.Errorf("got %v", err)
		}
		w.check("a: BEGIN; b: BEGIN")
		must(0, first.source.slot.Lock(background, background))(t)
		first.source.slot.Unlock()
		second.source.slot.Unlock()
		w.Abandon()
	})
}

// The turns are given back also where a driver does not return.
func TestUnitEndNowPanic(t *testing.T) {
	for _, fault := range []func(context.Context) error{panics, exits} {
		for _, end := range []struct {
			name string
			at   string
			call func(*world, *binding)
			err  string
		}{
			{"Commit", "a: COMMIT", func(w *world, b *binding) { w.commit(b) }, "commit of a after [], ambiguous true: " + gaveUp},
			{"Rollback", "a: ROLLBACK", func(w *world, b *binding) { w.rollback(b) }, gaveUp},
			{"Hijack", "a: COMMIT", func(w *world, _ *binding) { w.EndOpen(true) }, "commit of a after [], ambiguous true: " + gaveUp},
		} {
			w := newWorld(t)
			a := w.bind("a")
			o := w.begin(a)
			w.at(end.at, fault)
			if came := called(func() { end.call(w, a) }); came == "returned" {
				t.Errorf("%s: it returned", end.name)
			}
			if o.source.slot.Busy() || errText(w.Err()) != end.err {
				t.Errorf("%s: busy %v, failed %v", end.name, o.source.slot.Busy(), w.Err())
			}
			w.Finish(200)
		}
	}
}

// What another goroutine has begun beside a Hijack is ended by that alone, also if
// the unit ends while its ROLLBACK is under way.
func TestEndBesideAHijack(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	w.begin(a)
	sent := fakedb.NewPoint()
	w.at("a: ROLLBACK", func(context.Context) error { sent.Wait(); return nil })
	over := make(chan struct{})
	go func() {
		w.Hijacked()
		close(over)
	}()
	sent.Reached()
	if err := w.Finish(101); err != nil {
		t.Error(err)
	}
	sent.Release()
	<-over
	w.check("a: BEGIN; a: ROLLBACK; a was rolled back")
}
