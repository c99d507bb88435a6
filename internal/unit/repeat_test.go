package unit

import (
	"context"
	"testing"

	"github.com/sqlreq/sqlreq/internal/repeat"
)

// A unit that waits for another one is told whether a transaction is open, in it or in
// one around it.
func TestUnitOpened(t *testing.T) {
	outer := newWorld(t)
	inner := outer.inside()
	a := outer.bind("a")
	is := func(want bool) {
		t.Helper()
		if got := inner.Opened(); got != want {
			t.Errorf("got %t, want %t", got, want)
		}
	}
	is(false)
	outer.begin(a)
	is(true)
	must(0, outer.commit(a))(t)
	is(false)
	inner.begin(a)
	is(true)
	must(0, inner.Finish(200))(t)
	is(false)
	must(0, outer.Finish(200))(t)
}

// ender notes in the log of its unit that this has ended.
type ender struct{ w *world }

func (e ender) UnitEnded() { _ = e.w.note(background, "told") }

// Who has asked for it is told of the end of a unit after the COMMIT, or whatever came
// of that, and before the hooks; after the end nobody can ask any more.
func TestUnitAtEnd(t *testing.T) {
	for _, row := range []struct {
		name, at string
		fault    func(context.Context) error
		want     string
	}{
		{"committed", "", nil, "a: BEGIN; a: COMMIT; a was committed; told; a +"},
		{"refused", "a: COMMIT", fails(errRefused), "a: BEGIN; a: COMMIT; a was refused; told; a -"},
		{"panicked", "a: COMMIT", panics, "a: BEGIN; a: COMMIT; a was unknown; told"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t)
			a := w.bind("a")
			w.begin(a)
			w.hooks(background, a)
			w.at(row.at, row.fault)
			if !w.AtEnd(ender{w}) {
				t.Error("the unit is said to be over")
			}
			called(func() { _ = w.Finish(200) })
			w.check(row.want)
			if w.AtEnd(ender{w}) {
				t.Error("the unit is over, and did not say so")
			}
		})
	}
}

// If nothing is lost but the answer to the COMMIT of the record, the record tells what
// has become of the request: it counts as repeatable, but for the units around it.
func TestUnitRecordLost(t *testing.T) {
	for _, row := range []struct {
		name            string
		record          bool // the function writes the record
		earlier         bool // something was committed before
		lost, committed bool
	}{
		{"the record's", true, false, true, false},
		{"another function's", false, false, false, true},
		{"after a Commit", true, true, false, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			outer := newWorld(t)
			w := outer.inside()
			a, b := w.bind("a"), w.bind("b")
			if row.earlier {
				w.begin(b)
				must(0, w.commit(b))(t)
			}
			w.begin(a)
			ctx := background
			if row.record {
				ctx = repeat.Record(ctx)
			}
			w.before(ctx, a, "before", nil)
			w.at("a: COMMIT", fails(errPlain))
			if w.RecordLost() {
				t.Error("it is lost before the end")
			}
			if err := w.Finish(200); err == nil {
				t.Error("no error")
			}
			if w.RecordLost() != row.lost || w.Committed() != row.committed || !outer.Committed() {
				t.Errorf("lost %t, committed %t, around %t", w.RecordLost(), w.Committed(), outer.Committed())
			}
		})
	}
}

// A BEGIN that cannot reach its database is sent again as long as the wait before it
// says so; any other error is that of the use.
func TestUnitPersistInBegin(t *testing.T) {
	unreachable := answered("08006")
	for _, row := range []struct {
		name  string
		fault func(context.Context) error
		waits int // that there is time for
		asked int
		want  string
	}{
		{"reached again", first(unreachable), 1, 1, ""},
		{"no time", fails(unreachable), 0, 1, `sqlreq: begin on key "a": answered 08006`},
		{"not reached again", fails(unreachable), 2, 3, `sqlreq: begin on key "a": answered 08006`},
		{"another error", fails(errPlain), 2, 0, `sqlreq: begin on key "a": plain`},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t)
			a := w.bind("a")
			w.at("a: BEGIN", row.fault)
			asked := 0
			w.PersistInBegin(func(_ context.Context, n int) bool {
				asked++
				if n != asked {
					t.Errorf("the %d. time is said to be the %d.", asked, n)
				}
				return n <= row.waits
			})
			if _, err := w.use(background, a); errText(err) != row.want || asked != row.asked {
				t.Errorf("got %v after %d, want %s after %d", err, asked, row.want, row.asked)
			}
			_ = w.Abandon()
		})
	}
}
