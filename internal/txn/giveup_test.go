package txn

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// answersIn is a driver that answers after d, or with an error when ctx, if it is
// not nil, or the context of the call ends.
func answersIn(d time.Duration, ctx *context.Context) func(context.Context) error {
	return func(own context.Context) error {
		if ctx != nil {
			own = *ctx
		}
		select {
		case <-time.After(d): // the bubble's time
			return nil
		case <-own.Done():
			return errNetwork
		}
	}
}

// A rollback that is not answered is given up two seconds after the end of the
// unit's context, or after it was sent if that is later; where that context does not
// end nothing is given up.
func TestSlotGivesUp(t *testing.T) {
	type row struct {
		ends time.Duration // the unit's context; 0: never; less: before
		took time.Duration // by the driver
		want time.Duration
		err  error
	}
	rows := []row{
		{time.Second, time.Hour, 3 * time.Second, errNetwork},
		{-time.Second, time.Hour, 2 * time.Second, errNetwork},
		{0, time.Hour, time.Hour, nil},
		{time.Second, 2 * time.Second, 2 * time.Second, nil},
		{time.Hour, 3 * time.Second, 3 * time.Second, nil},
	}
	for _, k := range []kind{plain, guarded, test} {
		for _, row := range rows {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, k)
				var began context.Context
				w.at("BEGIN", func(ctx context.Context) error { began = ctx; return nil })
				w.begin()
				switch k {
				case plain:
					w.at("ROLLBACK", answersIn(row.took, &began))
				case guarded:
					w.at(rollbackToGuard, answersIn(row.took, nil))
				case test:
					w.at(rollbackToTx, answersIn(row.took, nil))
				}
				unit, end := context.WithCancel(background)
				defer end()
				if row.ends == 0 {
					unit = background
				} else {
					time.AfterFunc(row.ends, end)
				}
				if row.ends < 0 {
					end()
				}
				start := time.Now()
				w.Slot.End(unit, false)
				if took := time.Since(start); took != row.want {
					t.Errorf("%+v %+v: it took %v", k, row, took)
				}
				if r := w.Last(); r.Outcome != RolledBack || r.Unheard != row.err {
					t.Errorf("%+v %+v: got %s: %v", k, row, describeResult(r, "returned"), r.Unheard)
				}
				if k == plain && row.err == nil && began.Err() != nil {
					t.Errorf("%+v: the context of BEGIN has ended", row)
				}
				end()
				synctest.Wait()
				time.Sleep(2 * patience)
				if k == plain && row.err == nil && began.Err() != nil {
					t.Errorf("%+v: the context of BEGIN has ended later", row)
				}
			})
		}
	}
}

// So is that of a savepoint, and then the request can only roll back.
func TestSlotGivesUpASavepoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain)
		tx := w.begin()
		unit, end := context.WithCancel(background)
		sp := must(w.Save(background, unit, tx, "k"))(t)
		w.at(rollbackTo1, answersIn(time.Hour, nil))
		start := time.Now()
		end()
		if err := sp.RollBack("k"); errText(err) != rollbackFailed+"unexpected EOF" {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took != patience {
			t.Errorf("it took %v", took)
		}
		w.inState("aborted")
		w.End(false)
	})
}

// COMMIT, and the RELEASE that stands for it in a test's transaction, are never given up.
func TestSlotSeesCommitThrough(t *testing.T) {
	for _, at := range []struct {
		kind kind
		call string
	}{{plain, "COMMIT"}, {test, releaseTx}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, at.kind)
			var began context.Context
			w.at("BEGIN", func(ctx context.Context) error { began = ctx; return nil })
			w.begin()
			own := &began
			if at.call != "COMMIT" {
				own = nil
			}
			w.at(at.call, answersIn(time.Hour, own))
			w.Slot.End(canceled, true)
			if r := w.Last(); r.Outcome != Committed {
				t.Errorf("%s: got %s", at.call, describeResult(r, "returned"))
			}
		})
	}
}
