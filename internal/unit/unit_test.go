package unit

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq/internal/modeltest/mysqlite"
	"github.com/sqlreq/sqlreq/internal/txn"
)

const onlyConnection = "the pool has one connection (MaxOpenConnections is 1), and the request, or Do, around this one has it; use its transaction, end that by Commit or Rollback before, allow more connections, or do it later (go reg.Do(context.WithoutCancel(ctx), ...))"

// A use that needs the only connection of a pool, which a unit around has, is an
// error at once where that one waits for it; otherwise it waits, and if it waits in
// vain the error says the same.
func TestUnitNeedsTheOnlyConnection(t *testing.T) {
	for _, row := range []struct {
		name  string
		set   func(outer, inner *world, a *binding)
		waits bool   // the unit around for this one
		want  string // "" is none, "waits" is that it waits for the end of its context
	}{
		{"around has it", func(outer, _ *world, a *binding) { outer.begin(a) }, true, onlyConnection},
		{"around has it, and does not wait", func(outer, _ *world, a *binding) { outer.begin(a) }, false, "waits"},
		{"around has ended it", func(outer, _ *world, a *binding) { outer.begin(a); outer.rollback(a) }, true, ""},
		{"around has another", func(outer, _ *world, a *binding) { outer.begin(outer.bind("b")) }, true, ""},
		{"around has nothing", func(_, _ *world, _ *binding) {}, true, ""},
		{"two connections", func(outer, _ *world, a *binding) { a.db.SetMaxOpenConns(2); outer.begin(a) }, true, ""},
		{"the one around that", func(outer, inner *world, a *binding) {
			middle := outer.inside()
			inner.around = &middle.Unit
			outer.begin(a)
		}, true, onlyConnection},
		{"it has it itself", func(_, inner *world, a *binding) { inner.begin(a) }, true, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				outer := newWorld(t)
				a := outer.bind("a")
				a.db.SetMaxOpenConns(1)
				inner := outer.inside()
				inner.within.Waits = row.waits
				row.set(outer, inner, a)
				ctx, end := context.WithCancel(background)
				defer end()
				got := make(chan error, 1)
				go func() { _, err := inner.use(ctx, a); got <- err }()
				synctest.Wait()
				if (len(got) == 0) != (row.want == "waits") {
					t.Errorf("it has returned: %d", len(got))
				}
				end()
				err := <-got
				want := row.want
				if want == "waits" {
					want = "context canceled: " + onlyConnection
				}
				if want != "" {
					want = `sqlreq: begin on key "a": ` + want
				}
				if errText(err) != want || errors.Is(err, context.Canceled) != (row.want == "waits") {
					t.Errorf("got %v, want %s", err, want)
				}
				inner.Abandon()
				outer.Abandon()
			})
		})
	}
}

// The end of the unit's own context, and a wait for something else.
func TestUnitWaitedForSomethingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		outer := newWorld(t)
		a := outer.bind("a")
		a.db.SetMaxOpenConns(1)
		outer.begin(a)
		inner := outer.inside()
		got := make(chan error, 1)
		go func() { _, err := inner.use(background, a); got <- err }()
		synctest.Wait()
		inner.leave()
		var unavailable *Unavailable
		if err := <-got; errText(err) != `sqlreq: begin on key "a": context canceled: `+onlyConnection || !errors.As(err, &unavailable) {
			t.Errorf("got %v", err)
		}
		inner.Abandon()
		outer.Abandon()

		w := newWorld(t)
		b := w.bind("b")
		if _, err := w.use(canceled, b); errText(err) != `sqlreq: begin on key "b": context canceled` {
			t.Errorf("got %v", err)
		}
		test := w.inside()
		test.within.Waits = true
		test.begin(w.inTest("c")) // has no pool
		test.Abandon()
		w.Abandon()
	})
}

// Begun: from the call that begins to the end of the transaction, for each key of the pool.
func TestUnitBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, c, d := w.bind("a"), w.bind("b"), w.bind("c"), w.routed("d")
		b.db = a.db
		e := w.inTest("e")
		is := func(what string, want ...*binding) {
			t.Helper()
			for _, key := range []*binding{a, b, c, d, e} {
				found := false
				for _, k := range want {
					found = found || k == key
				}
				if w.Begun(key) != found {
					t.Errorf("%s: %s is %v", what, key.name, !found)
				}
			}
		}
		is("new")
		begins := make(chan bool)
		w.at("a: BEGIN", func(context.Context) error { <-begins; return errPlain })
		go w.use(background, a)
		synctest.Wait()
		is("beginning", a, b)
		close(begins)
		synctest.Wait()
		is("failed")
		w.at("a: BEGIN", nil)
		w.begin(b)
		is("open", a, b)
		must(w.use(background, a))(t)
		must(w.DB(background, background, d))(t)
		is("routed", a, b)
		w.begin(d, e)
		is("and others", a, b, d, e)
		must(0, w.commit(a))(t)
		is("committed", d, e)
		w.at("d: COMMIT", func(context.Context) error { is("ending"); return nil })
		w.Finish(200)
		is("ended")
	})
}

// RollbackOnly: everything is rolled back, and the answer stands; the first of it
// and Fail counts.
func TestUnitRollbackOnly(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.bind("a"), w.bind("b"), w.bind("c")
	w.commits = func(int, []any) bool { t.Error("the host was asked"); return true }
	w.begin(a, b)
	for _, key := range []*binding{a, b, c} { // nothing is open of c
		w.hooks(background, key)
	}
	at := context.WithValue(background, t, t)
	if w.AnswerStands() {
		t.Error("the answer stands before")
	}
	if err := w.RollbackOnly(at, errPlain); err != nil || w.Err() != errPlain || w.FailedAt() != at || !w.AnswerStands() {
		t.Errorf("got %v, %v, stands %v", err, w.Err(), w.AnswerStands())
	}
	w.Fail(background, errConflict)
	w.RollbackOnly(background, errConflict)
	if err := w.commit(a); errText(err) != `sqlreq: commit on key "a" refused: plain` {
		t.Errorf("Commit: got %v", err)
	}
	w.saw()
	if err := w.Finish(200); err != errPlain || !w.AnswerStands() || w.FailedAt() != at {
		t.Errorf("got %v, stands %v", err, w.AnswerStands())
	}
	w.check("a: ROLLBACK; b: ROLLBACK; a was rolled back; b was rolled back; a -; b -; c -")

	w = newWorld(t)
	w.Fail(background, errConflict)
	if err := w.RollbackOnly(background, errPlain); err != nil || w.Err() != errConflict || w.AnswerStands() {
		t.Errorf("after Fail: got %v, %v, stands %v", err, w.Err(), w.AnswerStands())
	}
}

// After RollbackOnly a rollback that was none is told all the same.
func TestUnitResult(t *testing.T) {
	noTx := &mysqlite.NoTx{}
	const ended = `sqlreq: key "a": when the transaction was to be rolled back the server had ended it already, or the answer did not come; what ran after that end may have been committed`
	for _, row := range []struct {
		name string
		do   func(*world, *binding)
		want string
		is   error
	}{
		{"failed, and ended", func(w *world, _ *binding) { w.Fail(background, errPlain) }, "plain\n" + ended, errPlain},
		{"RollbackOnly, and ended", func(w *world, _ *binding) { w.RollbackOnly(background, errPlain) }, "plain\n" + ended, errPlain},
		{"ended alone", func(w *world, _ *binding) { w.commits = no }, ended, txn.ErrTxEnded},
		{"ended by Rollback", func(w *world, b *binding) {
			if err := w.rollback(b); errText(err) != ended || !errors.Is(err, txn.ErrTxEnded) {
				w.t.Errorf("Rollback: got %v", err)
			}
		}, ended, txn.ErrTxEnded},
		{"failed, and ended by Rollback", func(w *world, b *binding) { w.Fail(background, errPlain); _ = w.rollback(b) }, "plain\n" + ended, errPlain},
	} {
		w := newWorld(t)
		a := w.bind("a")
		w.begin(a)
		w.hooks(background, a)
		w.at("a: ROLLBACK", fails(noTx))
		row.do(w, a)
		err := w.Finish(200)
		if errText(err) != row.want || !errors.Is(err, row.is) || !errors.Is(err, txn.ErrTxEnded) {
			t.Errorf("%s: got %v, want %s", row.name, err, row.want)
		}
		if again := w.Finish(200); errText(again) != row.want {
			t.Errorf("%s, again: got %v", row.name, again)
		}
		if !w.Committed() || w.CommitFailed() {
			t.Errorf("%s: committed %v, commit failed %v", row.name, w.Committed(), w.CommitFailed())
		}
		w.check("a: BEGIN; a: ROLLBACK; a was ended") // neither hook
	}
}

// An error that ended the transaction, and a statement of the key only: the server
// has rolled back.
func TestUnitRolledBackByTheServer(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	o := w.begin(a)
	w.hooks(background, a)
	o.Note(background, false, &mysqlite.Full{})
	w.at("a: ROLLBACK", fails(&mysqlite.NoTx{}))
	w.Fail(background, errConflict)
	if err := w.Finish(200); err != errConflict || w.Committed() {
		t.Errorf("got %v, committed %v", err, w.Committed())
	}
	w.check("a: BEGIN; a: ROLLBACK; a was rolled back; a -")
}

// What is repeated with each attempt by its nature forbids no retry of the unit around.
func TestUnitKeepRepeats(t *testing.T) {
	outer := newWorld(t)
	middle := outer.inside()
	middle.within.Repeats = true
	inner := middle.inside()
	inner.Keep()
	if !inner.Committed() || !middle.Committed() || outer.Committed() {
		t.Errorf("got %v, %v, around %v", inner.Committed(), middle.Committed(), outer.Committed())
	}
}

func TestUnitWarnOnce(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	a.options = readOnly
	o := w.begin(a)
	if !o.RollsBack || o.Key() != "a" {
		t.Errorf("got %v, %s", o.RollsBack, o.Key())
	}
	if !o.WarnOnce() || o.WarnOnce() || w.WarnOnce() {
		t.Error("not once")
	}
	w.Abandon()
}

// At the end of the unit, and before an explicit Commit and Hijack, statements that
// are under way are waited for, and count; a rollback does not wait.
func TestUnitWaitsForStatements(t *testing.T) {
	for name, end := range ends {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			a := w.bind("a")
			o := must(w.Begin(background, background, a, txn.ForStatement, nil))(t)
			got := make(chan error, 1)
			go func() { got <- end(w, a) }()
			synctest.Wait()
			if len(got) > 0 {
				t.Errorf("%s did not wait", name)
			}
			o.Note(background, false, &mysqlite.Full{})
			o.Done()
			if err := <-got; err == nil || w.Committed() {
				t.Errorf("%s: got %v, committed %v", name, err, w.Committed())
			}
			w.check("a: BEGIN; a: ROLLBACK; a was rolled back")
			w.Abandon()
		})
	}
	for name, end := range map[string]func(*world, *binding){
		"Rollback": func(w *world, b *binding) { w.rollback(b) },
		"Finish":   func(w *world, _ *binding) { w.commits = no; w.Finish(200) },
		"Abandon":  func(w *world, _ *binding) { w.Abandon() },
	} {
		w := newWorld(t)
		a := w.bind("a")
		o := must(w.Begin(background, background, a, txn.ForStatement, nil))(t)
		end(w, a)
		o.Done()
		if got := w.saw(); got != "a: BEGIN; a: ROLLBACK; a was rolled back" {
			t.Errorf("%s: got %s", name, got)
		}
	}
}

// The wait ends with the contexts: an explicit Commit is refused then, and at the
// end everything is rolled back.
func TestUnitWaitsInVain(t *testing.T) {
	for _, row := range []struct {
		end  string
		ends string
		want string
		saw  string
	}{
		{"Finish", "host", "sqlreq: the request's context ended before COMMIT: context canceled", "a: BEGIN; b: BEGIN; a: ROLLBACK; b: ROLLBACK; a was rolled back; b was rolled back"},
		{"Commit", "host", `sqlreq: commit on key "a" refused: context canceled`, "a: BEGIN; b: BEGIN"},
		{"Commit", "caller", `sqlreq: commit on key "a" refused: context canceled`, "a: BEGIN; b: BEGIN"},
		{"Hijack", "host", "context canceled", "a: BEGIN; b: BEGIN"},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			a, b := w.bind("a"), w.bind("b")
			o := must(w.Begin(background, background, a, txn.ForStatement, nil))(t)
			w.begin(b)
			ctx, cancel := context.WithCancel(background)
			defer cancel()
			got := make(chan error, 1)
			go func() {
				if row.end == "Commit" {
					got <- w.EndNow(ctx, background, background, a, true)
				} else {
					got <- ends[row.end](w, a)
				}
			}()
			synctest.Wait()
			if row.ends == "host" {
				w.leave()
			} else {
				cancel()
			}
			if err := <-got; errText(err) != row.want {
				t.Errorf("%s, %s: got %v", row.end, row.ends, err)
			}
			w.check(row.saw)
			o.Done()
			w.Abandon()
		})
	}
}

// A statement on the pool of another key is not waited for by an explicit Commit.
func TestUnitWaitsForItsOwnStatements(t *testing.T) {
	w := newWorld(t)
	a, b := w.bind("a"), w.bind("b")
	o := must(w.Begin(background, background, b, txn.ForStatement, nil))(t)
	w.begin(a)
	if err := w.commit(a); err != nil {
		t.Error(err)
	}
	o.Done()
	w.Abandon()
}

// A database that cannot be reached: another try, a little later, may not meet that.
func TestUnitUnreachable(t *testing.T) {
	for _, err := range []error{answered("08006"), answered("53300"), answered("57P03")} {
		w := newWorld(t)
		w.at("a: BEGIN", fails(err))
		_, got := w.use(background, w.bind("a"))
		var unavailable *Unavailable
		if !errors.As(got, &unavailable) || !errors.Is(got, err) || w.timedOut {
			t.Errorf("got %v", got)
		}
		w.Abandon()
	}
	w := newWorld(t)
	a := w.bind("a")
	a.route = func(context.Context, context.Context) (*sql.DB, error) { return nil, answered("57P01") }
	a.db = nil
	var unavailable *Unavailable
	if _, err := w.use(background, a); !errors.As(err, &unavailable) {
		t.Errorf("of Route: got %v", err)
	}
}

// A unit that has used nothing is ended at once, unless it has failed: then Finish says so.
func TestFinishUnused(t *testing.T) {
	w := newWorld(t)
	if !w.FinishUnused() || !w.Over() || w.FinishUnused() {
		t.Error("a unit that has used nothing: want it ended, once")
	}
	if err := w.Fail(background, errConflict); err == nil {
		t.Error("Fail after the end returned nil")
	}
	failed := newWorld(t)
	_ = failed.Fail(background, errConflict)
	if failed.FinishUnused() || failed.Over() {
		t.Error("a unit that has failed was ended as if it had not")
	}
	if err := failed.Finish(200); err != errConflict {
		t.Errorf("Finish returned %v, want the failure", err)
	}
	used := newWorld(t)
	used.Join(t)
	if used.FinishUnused() {
		t.Error("a unit in whose decision somebody takes part was ended without it")
	}
}
