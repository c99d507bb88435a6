package txn

import (
	"context"
	"slices"
	"testing"
)

// whole begins a transaction of w in the group.
func (w *world) whole(g *Group) *Savepoint {
	w.t.Helper()
	a := w.ask(ForStatement)
	a.Groups = inGroup{g}
	must(w.Use(background, a))(w.t)
	w.Done()
	return g.Members()[0]
}

// A context is inside of a group, and of those around it, also through savepoints.
func TestGroupContext(t *testing.T) {
	w := newWorld(t, plain)
	w.begin()
	outer := NewGroup(unitOfTest, background, nil)
	inner, beside := NewGroup(unitOfTest, background, outer), NewGroup(unitOfTest, background, outer)
	if inner.Outer() != outer || outer.Outer() != nil {
		t.Error("Outer does not say what NewGroup was given")
	}
	inOuter := outer.Context(background)
	saved := w.save(inOuter).Context(inOuter)
	in := inner.Context(saved)
	for i, row := range []struct {
		ctx                  context.Context
		outer, inner, beside bool
	}{
		{background, false, false, false},
		{inOuter, true, false, false},
		{saved, true, false, false},
		{in, true, true, false},
		{beside.Context(inOuter), true, false, true},
	} {
		if outer.Has(row.ctx) != row.outer || inner.Has(row.ctx) != row.inner || beside.Has(row.ctx) != row.beside {
			t.Errorf("%d: got %v %v %v", i, outer.Has(row.ctx), inner.Has(row.ctx), beside.Has(row.ctx))
		}
	}
	w.End(false)
}

// The members are savepoints and whole transactions, the last one first.
func TestGroupMembers(t *testing.T) {
	v, w, third := newWorld(t, plain), newWorld(t, plain), newWorld(t, plain)
	v.begin()
	g := NewGroup(unitOfTest, background, nil)
	if len(g.Members()) != 0 || g.member(&v.Slot) != nil {
		t.Error("a new group has members")
	}
	a := v.save(background)
	g.Add(a)
	b := w.whole(g)
	if got := g.Members(); !slices.Equal(got, []*Savepoint{b, a}) || !slices.Equal(g.Members(), got) {
		t.Errorf("got %v", got)
	}
	if g.member(&v.Slot) != a || g.member(&w.Slot) != b || g.member(&third.Slot) != nil || (*Group)(nil).member(&v.Slot) != nil {
		t.Error("the member of a slot is another")
	}
	if a.Slot() != &v.Slot || b.Slot() != &w.Slot || a.Whole() || !b.Whole() || !a.IsOpen() || !b.IsOpen() {
		t.Errorf("whole %v %v, open %v %v", a.Whole(), b.Whole(), a.IsOpen(), b.IsOpen())
	}
	must(0, a.Release("k"))(t)
	must(0, b.RollBack("k"))(t)
	if a.IsOpen() || b.IsOpen() {
		t.Error("they are open after their ends")
	}
	v.End(true)
	v.d.Check(t, "BEGIN", save1, release1, "COMMIT")
	w.d.Check(t, "BEGIN", "ROLLBACK")
}

// In a transaction that was begun in a group everything is done with a context of
// that, of whatever slot the savepoints between are, and savepoints nest in it.
func TestGroupWhole(t *testing.T) {
	w := newWorld(t, plain)
	g := NewGroup(unitOfTest, background, nil)
	in := g.Context(background)
	sp := w.whole(g)
	if _, err := w.use(background); word(err) != "other context" {
		t.Errorf("with the context around: got %v", err)
	}
	must(w.use(in))(t)
	inner := w.save(in)
	if _, err := w.use(in); word(err) != "other context" {
		t.Errorf("beside the savepoint inside: got %v", err)
	}
	if err := sp.RollBack("k"); word(err) != "not innermost" {
		t.Errorf("around the savepoint inside: got %v", err)
	}
	must(w.use(inner.Context(in)))(t)
	must(0, inner.Release("k"))(t)
	must(0, sp.Release("k"))(t)
	w.inState("open")
	must(w.use(background))(t)
	must(w.use(in))(t) // what it did belongs to what is around
	w.End(true)
	w.d.Check(t, "BEGIN", "SAVEPOINT sqlreq_2", "RELEASE SAVEPOINT sqlreq_2", "COMMIT")
}

// A whole transaction that cannot be rolled back, or that was ended by others.
func TestGroupWholeRollBackFaults(t *testing.T) {
	for _, row := range []struct {
		aborted bool
		fault   func(context.Context) error
		came    string
		err     string
		result  string
	}{
		{false, nil, "returned", "", "rolled back"},
		{false, fails(errRefused), "returned", "", "rolled back"},
		{false, fails(errNetwork), "returned", "", "rolled back, unheard"},
		{false, fails(errNoTx), "returned", serverText, "ended, stored"},
		{true, fails(errNoTx), "returned", "", "rolled back"},
		{false, panics, "panicked", "", "unknown"},
		{false, exits, "exited", "", "unknown"},
	} {
		w := newWorld(t, plain)
		sp := w.whole(NewGroup(unitOfTest, background, nil))
		if row.aborted {
			w.Note(background, w.tx, false, errFull)
		}
		if row.fault != nil {
			w.at("ROLLBACK", row.fault)
		}
		var err error
		came := called(func() { err = sp.RollBack("k") })
		if got := describeResult(w.Last(), "returned"); came != row.came || errText(err) != row.err || got != row.result {
			t.Errorf("it %s with %v, %s; want %s with %s, %s", came, err, got, row.came, row.err, row.result)
		}
		if sp.IsOpen() || !sp.Undone(unitOfTest, &w.Slot) {
			t.Error("it is open still, or its hooks are kept")
		}
		w.endedOnce(t)
	}
}

// A whole transaction is rolled back with the context of its unit, whose end gives that up.
func TestGroupWholeAborted(t *testing.T) {
	w := newWorld(t, plain)
	sp := w.whole(NewGroup(unitOfTest, canceled, nil))
	w.Note(background, w.tx, false, errFull)
	err := sp.Release("k")
	if errText(err) != wasAborted+"database or disk is full (13)" {
		t.Errorf("got %v", err)
	}
	if sp.unit != canceled {
		t.Error("its unit is another")
	}
	w.endedOnce(t)
}

// A whole transaction that stays belongs to the group around, or to none.
func TestGroupMoveTo(t *testing.T) {
	w := newWorld(t, plain)
	outer := NewGroup(unitOfTest, background, nil)
	inner := NewGroup(unitOfTest, background, outer)
	inOuter := outer.Context(background)
	in := inner.Context(inOuter)
	sp := w.whole(inner)
	saved := w.save(in)
	if err := sp.MoveTo(outer); word(err) != "not innermost" {
		t.Errorf("with a savepoint inside: got %v", err)
	}
	must(0, saved.Release("k"))(t)
	must(0, sp.MoveTo(outer))(t)
	if outer.member(&w.Slot) != sp || !sp.IsOpen() {
		t.Error("it is not an open member of the group around")
	}
	must(w.use(inOuter))(t)
	if _, err := w.use(background); word(err) != "other context" {
		t.Errorf("with the context around both: got %v", err)
	}
	must(0, sp.MoveTo(nil))(t)
	if sp.IsOpen() || w.InSavepoint() {
		t.Error("it is open still")
	}
	must(w.use(background))(t)
	w.inState("open")
	w.Slot.Close()
	if err := sp.MoveTo(nil); err != ErrFinished {
		t.Errorf("after the end: got %v", err)
	}
	w.End(true)
	w.d.Check(t, "BEGIN", "SAVEPOINT sqlreq_2", "RELEASE SAVEPOINT sqlreq_2", "COMMIT")
}

// What was registered inside of a group is undone with it for every slot, also for
// one that has none of its members, and with each group around.
func TestGroupUndone(t *testing.T) {
	w, other := newWorld(t, plain), newWorld(t, plain)
	w.begin()
	outer := NewGroup(unitOfTest, background, nil)
	inner := NewGroup(unitOfTest, background, outer)
	a := w.save(background)
	outer.Add(a)
	inOuter := outer.Context(background)
	in := inner.Context(inOuter)
	b := must(w.Save(in, background, nil, ""))(t)
	inner.Add(b)
	undone := func(ctx context.Context, want bool) {
		t.Helper()
		for _, s := range []*Slot{nil, &w.Slot, &other.Slot} {
			if got := Inside(ctx).Undone(unitOfTest, s); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		}
	}
	undone(in, false)
	undone(inOuter, false)
	inner.Undo()
	must(0, b.RollBack("k"))(t)
	undone(in, true)
	undone(inOuter, false)
	undone(background, false)
	if _, err := w.use(in); word(err) != "other context" {
		t.Errorf("with the context of what was undone: got %v", err)
	}
	must(w.use(inOuter))(t)
	outer.Undo()
	must(0, a.RollBack("k"))(t)
	undone(inOuter, true)
	undone(background, false)
	w.End(true)
	w.d.Check(t, "BEGIN", save1, "SAVEPOINT sqlreq_2", "ROLLBACK TO SAVEPOINT sqlreq_2", "RELEASE SAVEPOINT sqlreq_2", rollbackTo1, release1, "COMMIT")
}

// The hooks of a savepoint in one slot do not go with a savepoint of another slot in the same group.
func TestGroupUndoneByItsMember(t *testing.T) {
	v, w := newWorld(t, plain), newWorld(t, plain)
	v.begin()
	w.begin()
	g := NewGroup(unitOfTest, background, nil)
	a, b := v.save(background), w.save(background)
	g.Add(a)
	g.Add(b)
	inside := Inside(g.Context(background))
	must(0, b.Release("k"))(t)
	must(0, a.RollBack("k"))(t)
	if !inside.Undone(unitOfTest, &v.Slot) || inside.Undone(unitOfTest, &w.Slot) {
		t.Errorf("got %v, %v", inside.Undone(unitOfTest, &v.Slot), inside.Undone(unitOfTest, &w.Slot))
	}
	v.End(true)
	w.End(true)
}

// A transaction that was refused is no member of the group that it was begun in.
func TestGroupBeginFails(t *testing.T) {
	w := newWorld(t, guarded)
	g := NewGroup(unitOfTest, background, nil)
	a := w.ask(ForStatement)
	a.Groups = inGroup{g}
	w.at(saveGuard, fails(errPlain))
	if _, err := w.Use(background, a); err == nil || len(g.Members()) != 0 {
		t.Errorf("got %v, %d members", err, len(g.Members()))
	}
	w.inState("idle")
}

// Save with no key names the one that began.
func TestSlotSaveNamesTheKey(t *testing.T) {
	w := newWorld(t, plain)
	w.begin()
	w.at(save1, fails(errPlain))
	if _, err := w.Save(background, background, nil, ""); errText(err) != saveUnknown+"plain" {
		t.Errorf("got %v", err)
	}
	w.End(true)
}

// unitOfTest is the owner of the groups here.
const unitOfTest = "unit"

// inGroup is for Ask.Groups: every transaction is begun in the group.
type inGroup struct{ g *Group }

func (i inGroup) GroupFor(context.Context, Opener) (*Group, error) { return i.g, nil }

// What is begun for a group that is about to end belongs to the one around it; the
// innermost group is then the next one around that has not ended either.
func TestGroupThatEnds(t *testing.T) {
	outer := NewGroup(unitOfTest, background, nil)
	inner := NewGroup(unitOfTest, background, outer)
	inner.Close()
	w := newWorld(t, plain)
	a := w.ask(ForStatement)
	a.Groups = inGroup{inner}
	must(w.Use(background, a))(t)
	w.Done()
	if len(inner.Members()) != 0 || len(outer.Members()) != 1 || inner.Outer() != outer {
		t.Errorf("inside are %d, around %d, want none and one", len(inner.Members()), len(outer.Members()))
	}
	if g := inner.Leave(); g != outer {
		t.Errorf("got %p, want the group around", g)
	}
	if g := outer.Leave(); g != nil {
		t.Errorf("got %p, want none", g)
	}
	late := NewGroup(unitOfTest, background, nil)
	last := NewGroup(unitOfTest, background, late)
	if g := late.Leave(); g != nil {
		t.Errorf("got %p, want none", g)
	}
	if g := last.Leave(); g != nil {
		t.Errorf("got %p, want none: the one around has ended before", g)
	}
	w.End(false)
}

// A group that has ended has no further member, whether it was closed before or not.
func TestGroupThatHasLeftTakesNoMember(t *testing.T) {
	for _, closed := range []bool{false, true} {
		outer := NewGroup(unitOfTest, background, nil)
		g := NewGroup(unitOfTest, background, outer)
		if closed {
			g.Close()
		}
		g.Leave()
		g.Close() // which does not bring it back
		w := newWorld(t, plain)
		w.begin()
		sp := w.save(background)
		if !g.Add(sp) || len(g.Members()) != 0 || !slices.Equal(outer.Members(), []*Savepoint{sp}) {
			t.Errorf("closed before: %t: members %v, around %v", closed, g.Members(), outer.Members())
		}
		if !g.over() {
			t.Errorf("closed before: %t: it has not ended", closed)
		}
		must(0, sp.Release("k"))(t)
		w.End(true)
	}
}
