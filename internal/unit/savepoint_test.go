package unit

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"github.com/sqlreq/sqlreq/internal/txn"
)

const (
	save1       = "a: SAVEPOINT sqlreq_1"
	release1    = "a: RELEASE SAVEPOINT sqlreq_1"
	rollbackTo1 = "a: ROLLBACK TO SAVEPOINT sqlreq_1"
)

func TestUnitSavepoint(t *testing.T) {
	const releaseFailed = `sqlreq: release of a savepoint on key "a" (close open rows first): plain`
	const rollbackFailed = `sqlreq: rollback to a savepoint on key "a" failed (close open rows first), the request can only roll back: plain`
	for _, row := range []struct {
		name  string
		at    string // the call at which the driver fails with plain
		fn    func(context.Context) error
		came  string
		err   string
		saw   string
		ended string // what Finish says then
	}{
		{"released", "", nil, "returned", "", save1 + "; fn; " + release1, ""},
		{"an error", "", fails(errConflict), "returned", "conflict", save1 + "; fn; " + rollbackTo1 + "; " + release1, ""},
		{"a panic", "", panics, "panicked", "", save1 + "; fn; " + rollbackTo1 + "; " + release1, ""},
		{"an exit", "", exits, "exited", "", save1 + "; fn; " + rollbackTo1 + "; " + release1, ""},
		{"SAVEPOINT fails", save1, nil, "returned", `sqlreq: savepoint on key "a" (close open rows first; or this database has no savepoints, or spells them otherwise): plain`, save1, ""},
		{"RELEASE fails", release1, nil, "returned", releaseFailed, save1 + "; fn; " + release1 + "; " + rollbackTo1 + "; " + release1, ""},
		{"RELEASE fails twice", release1 + "!", nil, "returned", releaseFailed + "\n" + rollbackFailed, save1 + "; fn; " + release1 + "; " + rollbackTo1 + "; " + release1,
			`sqlreq: key "a": an earlier error may have ended the transaction, it was rolled back: ` + rollbackFailed},
		{"ROLLBACK TO fails", rollbackTo1, fails(errConflict), "returned", "conflict\n" + rollbackFailed, save1 + "; fn; " + rollbackTo1,
			`sqlreq: key "a": an earlier error may have ended the transaction, it was rolled back: ` + rollbackFailed},
		{"ROLLBACK TO fails after a panic", rollbackTo1, panics, "panicked", "", save1 + "; fn; " + rollbackTo1,
			`sqlreq: key "a": an earlier error may have ended the transaction, it was rolled back: ` + rollbackFailed},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t)
			a := w.bind("a")
			w.begin(a)
			w.saw()
			if at, always := strings.CutSuffix(row.at, "!"); always || row.at != release1 {
				w.at(at, fails(errPlain))
			} else {
				w.at(at, first(errPlain))
			}
			w.at("fn", row.fn)
			var err error
			came := called(func() {
				err = w.Savepoint(background, background, a, func(ctx context.Context) error { return w.note(ctx, "fn") })
			})
			if came != row.came || errText(err) != row.err {
				t.Errorf("it %s with %v\nwant %s with %s", came, err, row.came, row.err)
			}
			w.check(row.saw)
			if w.Err() != nil {
				t.Errorf("the unit failed with %v", w.Err())
			}
			if err := w.Finish(200); errText(err) != row.ended {
				t.Errorf("Finish: got %v, want %s", err, row.ended)
			}
		})
	}
}

// A savepoint begins the transaction, and its function has a context to nest with.
func TestUnitSavepointBegins(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	err := w.Savepoint(background, background, a, func(ctx context.Context) error {
		if txn.Inside(ctx) == nil {
			t.Error("the context is not inside")
		}
		if err := w.Savepoint(background, background, a, nil); err == nil {
			t.Error("a savepoint with the context around began")
		}
		for _, commit := range []bool{true, false} {
			want := map[bool]string{true: "sqlreq: Commit", false: "sqlreq: Rollback"}[commit] + ` inside a Savepoint of key "a"; return from its function first`
			if err := w.EndNow(ctx, ctx, background, a, commit); errText(err) != want {
				t.Errorf("got %v", err)
			}
			if err := w.EndOpen(commit); errText(err) != `sqlreq: Hijack inside a Savepoint of key "a"; return from its function first` {
				t.Errorf("got %v", err)
			}
		}
		return w.Savepoint(ctx, background, a, fails(nil))
	})
	if err != nil || w.Err() != nil {
		t.Errorf("got %v, %v", err, w.Err())
	}
	w.check("a: BEGIN; " + save1 + "; a: SAVEPOINT sqlreq_3; a: RELEASE SAVEPOINT sqlreq_3; " + release1)
	w.Abandon()
}

// No transaction, no savepoint; a conflict that it met is remembered.
func TestUnitSavepointFails(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	w.at("a: BEGIN", fails(errPlain))
	never := func(context.Context) error { t.Error("it was run"); return nil }
	if err := w.Savepoint(background, background, a, never); errText(err) != `sqlreq: begin on key "a": plain` {
		t.Errorf("got %v", err)
	}
	w.at("a: BEGIN", nil)
	w.at(save1, fails(errConflict))
	if w.SawConflict() {
		t.Error("a conflict too early")
	}
	if err := w.Savepoint(background, background, a, never); !errors.Is(err, errConflict) || !w.SawConflict() {
		t.Errorf("got %v, conflict %v", err, w.SawConflict())
	}
	w.Abandon()
	if err := w.Savepoint(background, background, a, never); err != txn.ErrFinished {
		t.Errorf("after the end: got %v", err)
	}
}

// A unit that ends in a savepoint: its end, and the hooks registered in it, go with the transaction.
func TestUnitEndsInASavepoint(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	err := w.Savepoint(background, background, a, func(ctx context.Context) error {
		w.hooks(ctx, a)
		w.saw()
		w.Finish(200)
		w.check("a: ROLLBACK; a was rolled back; a -")
		return nil
	})
	if err != txn.ErrFinished || errText(w.Err()) != `sqlreq: key "a": a Savepoint is still open, the transaction was rolled back` {
		t.Errorf("got %v, %v", err, w.Err())
	}
}

// A Savepoint that another goroutine's Commit overtakes is the next use: it begins
// a new transaction, also where that Commit failed, and a hook counts for the new one.
func TestUnitSavepointBesideACommit(t *testing.T) {
	for _, failed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			a := w.bind("a")
			w.begin(a)
			w.hooks(background, a)
			w.saw()
			at := fakedb.NewPoint()
			w.at("a: COMMIT", func(context.Context) error {
				at.Wait()
				if failed {
					return errRefused
				}
				return nil
			})
			commit, saved := make(chan error, 1), make(chan error, 1)
			go func() { commit <- w.commit(a) }()
			at.Reached()
			go func() {
				saved <- w.Savepoint(background, background, a, func(ctx context.Context) error {
					w.hook(ctx, a, true, "of the new one")
					return nil
				})
			}()
			synctest.Wait()
			if len(saved) > 0 {
				t.Error("it did not wait for the Commit")
			}
			w.at("a: COMMIT", nil)
			at.Release()
			if err := <-commit; (err != nil) != failed {
				t.Errorf("Commit: got %v", err)
			}
			must(0, <-saved)(t)
			w.Finish(200)
			if failed && w.Committed() {
				t.Error("something is said to be stored")
			}
			if n := w.begins(); n != 2 {
				t.Errorf("%d BEGINs, want 2", n)
			}
		})
	}
}

func (w *world) begins() int32 { return w.used.Load().begins.Load() }

// The same where the transaction ends between the look-up and the SAVEPOINT: the
// name is asked there, for the second time.
func TestUnitSaveOvertaken(t *testing.T) {
	w := newWorld(t)
	a, b := w.bind("a"), w.bind("b")
	b.db = a.db
	w.begin(a)
	asked := 0
	b.named = func() {
		if asked++; asked == 2 {
			must(0, w.commit(a))(t)
		}
	}
	must(0, w.Savepoint(background, background, b, fails(nil)))(t)
	w.check("a: BEGIN; a: COMMIT; a was committed; a: BEGIN; " + save1 + "; " + release1)
	w.Finish(200)
	w.check("a: COMMIT; b was committed")
}
