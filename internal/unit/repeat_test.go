package unit

import (
	"context"
	"database/sql"
	"errors"
	"syscall"
	"testing"

	"github.com/sqlreq/sqlreq/internal/repeat"
)

// opened is whether a transaction is open on whatever database, in the unit or in one
// around it.
func TestUnitOpened(t *testing.T) {
	outer := newWorld(t)
	inner := outer.inside()
	a, b := outer.bind("a"), inner.bind("b")
	check := func(when string, out, in bool) {
		t.Helper()
		if outer.Opened() != out || inner.Opened() != in {
			t.Errorf("%s: got %v outside and %v inside, want %v and %v", when, outer.Opened(), inner.Opened(), out, in)
		}
	}
	check("nothing is used", false, false)
	outer.hooks(background, a)
	inner.hooks(background, b)
	check("hooks only", false, false)
	inner.begin(b)
	check("open inside", false, true)
	must(0, inner.commit(b))(t)
	check("committed inside", false, false)
	outer.begin(a)
	check("open outside", true, true)
	c := outer.bind("c") // a second database, the first has ended
	outer.begin(c)
	must(0, outer.rollback(a))(t)
	check("open on the second", true, true)
	must(0, outer.Finish(200))(t)
	check("ended outside", false, false)
	must(0, inner.Finish(200))(t)
}

// A transaction that is being begun counts.
func TestUnitOpenedWhileItBegins(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	w.at("a: BEGIN", func(context.Context) error {
		if !w.Opened() {
			t.Error("a transaction that is being begun is none")
		}
		return nil
	})
	w.begin(a)
	must(0, w.Finish(200))(t)
}

// ender notes in the log that its unit has ended.
type ender struct {
	w    *world
	name string
}

func (e ender) UnitEnded() { _ = e.w.note(background, e.name) }

var _ repeat.Unit = (*Unit)(nil)

// Who has asked is told once, in order, when the transactions have ended, before the
// hooks run, whatever became of them, also if a driver does not return.
func TestUnitAtEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		end  func(*world)
		want string
	}{
		"Finish":  {func(w *world) { must(0, w.Finish(200))(t) }, "a: COMMIT; a was committed; first; second; a +"},
		"fails":   {func(w *world) { w.Fail(background, errPlain); _ = w.Finish(200) }, "a: ROLLBACK; a was rolled back; first; second; a -"},
		"Abandon": {func(w *world) { _ = w.Abandon() }, "a: ROLLBACK; a was rolled back; first; second; a -"},
		"refused": {func(w *world) { w.at("a: COMMIT", fails(errRefused)); _ = w.Finish(200) }, "a: COMMIT; a was refused; first; second; a -"},
		"a panic": {func(w *world) {
			w.at("a: COMMIT", panics)
			if how := called(func() { w.Finish(200) }); how != "panicked" {
				t.Errorf("Finish %s", how)
			}
		}, "a: COMMIT; a was unknown; first; second"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a := w.bind("a")
			w.begin(a)
			w.hooks(background, a)
			for _, e := range []string{"first", "second"} {
				if !w.AtEnd(ender{w, e}) {
					t.Error("the unit says that it is over")
				}
			}
			w.saw()
			tt.end(w)
			w.check(tt.want)
			if w.AtEnd(ender{w, "late"}) {
				t.Error("a unit that has ended takes it")
			}
			_ = w.Finish(200)
			w.check("")
		})
	}
}

// A unit that has used nothing tells its end as well, and takes nobody afterwards.
func TestUnitAtEndOfNothing(t *testing.T) {
	w := newWorld(t)
	w.AtEnd(ender{w, "told"})
	must(0, w.Finish(200))(t)
	w.check("told")
	w = newWorld(t)
	must(0, w.Finish(200))(t)
	if w.AtEnd(ender{w, "late"}) {
		t.Error("a unit that has ended takes it")
	}
	w.check("")
}

// An explicit Commit and Hijack end no unit.
func TestUnitAtEndIsNoCommit(t *testing.T) {
	for name, end := range ends {
		if name == "Finish" {
			continue
		}
		w := newWorld(t)
		a := w.bind("a")
		w.begin(a)
		w.AtEnd(ender{w, "told"})
		must(0, end(w, a))(t)
		w.check("a: BEGIN; a: COMMIT; a was committed")
		must(0, w.Finish(200))(t)
		w.check("told")
	}
}

// checker is asked before the unit commits.
type checker struct {
	w   *world
	err error
}

func (c checker) MayCommit() error {
	_ = c.w.note(background, "asked")
	return c.err
}

// Who has asked for it is asked before the first COMMIT at the end, when nothing begins
// any more, and an error fails the unit.
func TestUnitBeforeEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(w *world, a, b *binding)
		err  error // of the second of two
		want string
	}{
		"both say yes":     {func(*world, *binding, *binding) {}, nil, "asked; asked; a: COMMIT; b: COMMIT; a was committed; b was committed"},
		"one says no":      {func(*world, *binding, *binding) {}, errPlain, "asked; asked; a: ROLLBACK; b: ROLLBACK; a was rolled back; b was rolled back"},
		"the host says no": {func(w *world, _, _ *binding) { w.commits = no }, errPlain, "a: ROLLBACK; b: ROLLBACK; a was rolled back; b was rolled back"},
		"it has failed":    {func(w *world, _, _ *binding) { w.Fail(background, errConflict) }, errPlain, "a: ROLLBACK; b: ROLLBACK; a was rolled back; b was rolled back"},
		"Commits": {func(w *world, a, b *binding) {
			must(0, w.commit(a))(t)
			must(0, w.commit(b))(t)
		}, errPlain, "a: COMMIT; a was committed; b: COMMIT; b was committed"},
		"Commit of one": {func(w *world, a, b *binding) { must(0, w.commit(a))(t) }, errPlain, "a: COMMIT; a was committed; asked; asked; b: ROLLBACK; b was rolled back"},
		"Hijack":        {func(w *world, _, _ *binding) { must(0, w.EndOpen(true))(t); w.Hijacked() }, errPlain, "a: COMMIT; b: COMMIT; a was committed; b was committed"},
		"after the functions": {func(w *world, a, _ *binding) { w.before(background, a, "function", nil) }, nil,
			"function; asked; asked; b: COMMIT; a: COMMIT; b was committed; a was committed"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a, b := w.bind("a"), w.bind("b")
			w.begin(a, b)
			if !w.BeforeEnd(checker{w, nil}) || !w.BeforeEnd(checker{w, tt.err}) {
				t.Error("the unit says that it is over")
			}
			w.saw()
			tt.do(w, a, b)
			err := w.Finish(200)
			w.check(tt.want)
			if want := tt.err != nil && (name == "one says no" || name == "Commit of one"); want != errors.Is(err, errPlain) {
				t.Errorf("got %v", err)
			}
			if w.BeforeEnd(checker{w, errPlain}) {
				t.Error("a unit that has ended takes it")
			}
		})
	}
}

// record registers the function that writes the record.
func (w *world) record(b *binding, name string) {
	w.t.Helper()
	fn := func(ctx context.Context) error { return w.note(ctx, name) }
	must(0, w.AddBefore(repeat.Record(background), background, background, background, b, fn))(w.t)
}

// The answer to COMMIT is lost: RecordLost is true only if that was the record's, and
// nothing else is stored.
func TestUnitRecordLost(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(w *world, a, b *binding)
		lost bool
		kept bool // Committed, and so no further attempt
	}{
		"the record's": {func(w *world, a, b *binding) { w.record(a, "record") }, true, false},
		"without a record": {func(w *world, a, b *binding) {
			w.before(background, a, "function", nil)
		}, false, true},
		"the record is another's": {func(w *world, a, b *binding) { w.begin(b); w.record(b, "record") }, false, true},
		"another has committed":   {func(w *world, a, b *binding) { w.begin(b); w.record(a, "record") }, true, true},
		"an explicit Commit before": {func(w *world, a, b *binding) {
			w.begin(b)
			must(0, w.commit(b))(t)
			w.record(a, "record")
		}, true, true},
		"the record was rolled back, and is not written again": {func(w *world, a, b *binding) {
			w.record(a, "record")
			must(0, w.rollback(a))(t)
			w.begin(a)
		}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a, b := w.bind("a"), w.bind("b")
			w.begin(a)
			tt.do(w, a, b)
			w.at("a: COMMIT", fails(errPlain))
			err := w.Finish(200)
			var failed *commitError
			if !errors.As(err, &failed) || !failed.ambiguous {
				t.Errorf("got %v, want a COMMIT of unknown outcome", err)
			}
			if want := tt.lost && !tt.kept; w.RecordLost() != want || w.Committed() != tt.kept {
				t.Errorf("RecordLost %v, Committed %v, want %v and %v", w.RecordLost(), w.Committed(), want, tt.kept)
			}
		})
	}
	w := newWorld(t)
	if w.RecordLost() {
		t.Error("a unit that has used nothing has lost a record")
	}
	a := w.bind("a")
	w.begin(a)
	w.record(a, "record")
	w.at("a: COMMIT", fails(errRefused))
	if _ = w.Finish(200); w.RecordLost() || w.Committed() {
		t.Error("a COMMIT that was refused has lost nothing")
	}
}

// The units around have no record, and are not run again because of it: they are, in
// any case, where this one runs again with each of their attempts.
func TestUnitRecordLostInside(t *testing.T) {
	for _, repeats := range []bool{false, true} {
		outer := newWorld(t)
		inner := outer.inside()
		inner.within.Repeats = repeats
		a := inner.bind("a")
		inner.begin(a)
		inner.record(a, "record")
		inner.at("a: COMMIT", fails(errPlain))
		_ = inner.Finish(200)
		if !inner.RecordLost() || outer.Committed() == repeats {
			t.Errorf("repeats %v: RecordLost %v, around it Committed %v", repeats, inner.RecordLost(), outer.Committed())
		}
	}
}

// The record comes when no other function is left, and its database commits last.
func TestUnitRecordIsTheLast(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.bind("a"), w.bind("b"), w.bind("c")
	w.begin(a, b, c)
	w.record(a, "record")
	w.before(background, b, "b", func(context.Context) error {
		w.before(background, c, "c", nil)
		return nil
	})
	w.saw()
	must(0, w.Finish(200))(t)
	w.check("b; c; record; b: COMMIT; c: COMMIT; a: COMMIT; b was committed; c was committed; a was committed")
}

// Also where another function of its database runs after it.
func TestUnitRecordIsTheLastOfItsDatabase(t *testing.T) {
	w := newWorld(t)
	a, b := w.bind("a"), w.bind("b")
	w.begin(a, b)
	fn := func(ctx context.Context) error {
		w.before(background, b, "b", nil) // registered by the record
		return w.note(ctx, "record")
	}
	must(0, w.AddBefore(repeat.Record(background), background, background, background, a, fn))(t)
	w.saw()
	must(0, w.Finish(200))(t)
	w.check("record; b; b: COMMIT; a: COMMIT; b was committed; a was committed")
}

// After a COMMIT without an answer a BEGIN that cannot reach its database is sent
// again, as long as who waits says so, and for nothing else.
func TestUnitPersistInBegin(t *testing.T) {
	unreachable := syscall.ECONNREFUSED
	for name, tt := range map[string]struct {
		err   error
		waits int // how often there is time left
		do    func(w *world, b *binding)
		ctx   context.Context
		asked string // n of each call
		log   string
		ok    bool
	}{
		"it is there again":    {unreachable, 9, nil, background, "12", "a: BEGIN; a: BEGIN; a: BEGIN", true},
		"the server is not up": {answered("08006"), 9, nil, background, "12", "a: BEGIN; a: BEGIN; a: BEGIN", true},
		"no time is left":      {unreachable, 1, nil, background, "12", "a: BEGIN; a: BEGIN", false},
		"another error":        {errPlain, 9, nil, background, "", "a: BEGIN", false},
		"the context ended":    {unreachable, 9, nil, canceled, "", "", false},
		"something is unknown": {unreachable, 9, func(w *world, b *binding) {
			other := w.bind("b")
			w.begin(other)
			w.at("b: COMMIT", fails(errPlain))
			_ = w.commit(other)
			w.saw()
		}, background, "", "a: BEGIN", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a := w.bind("a")
			begins, asked := 0, ""
			w.at("a: BEGIN", func(context.Context) error {
				if begins++; begins < 3 {
					return tt.err
				}
				return nil
			})
			w.PersistInBegin(func(_ context.Context, n int) bool {
				asked += string(rune('0' + n))
				return n <= tt.waits
			})
			if tt.do != nil {
				tt.do(w, a)
			}
			_, err := w.use(tt.ctx, a)
			if (err == nil) != tt.ok || asked != tt.asked {
				t.Errorf("got %v, asked %q, want %q", err, asked, tt.asked)
			}
			w.check(tt.log)
			_ = w.Abandon()
		})
	}
	t.Run("AfterBegin met the fault", func(t *testing.T) {
		w := newWorld(t)
		a := w.bind("a")
		times := 0
		a.afterBegin = func(context.Context, context.Context, *sql.Tx) error {
			if times++; times == 1 {
				return unreachable
			}
			return nil
		}
		w.PersistInBegin(func(context.Context, int) bool { return true })
		w.begin(a)
		w.Finish(200)
		w.check("a: BEGIN; a: AfterBegin; a: ROLLBACK; a was rolled back; a: BEGIN; a: AfterBegin; a: COMMIT; a was committed")
	})
	t.Run("nobody persists", func(t *testing.T) {
		for _, used := range []bool{false, true} {
			w := newWorld(t)
			a := w.bind("a")
			if used {
				w.hooks(background, a)
				w.before(background, a, "function", nil) // what few units need is there
			}
			w.at("a: BEGIN", fails(unreachable))
			if _, err := w.use(background, a); err == nil {
				t.Error("it has begun")
			}
			w.check("a: BEGIN")
		}
	})
}
