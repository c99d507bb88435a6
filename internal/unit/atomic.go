package unit

import (
	"context"
	"errors"
	"fmt"

	"github.com/sqlreq/sqlreq/internal/txn"
)

// Atomic runs fn as a part of the unit, of which all stays or nothing: with a
// savepoint of every transaction that is open; one that fn begins is rolled back as
// a whole. at is the context of the caller's handler.
func (u *Unit) Atomic(ctx, at context.Context, fn func(context.Context) error) error {
	g, leave, err := u.enterAtomic(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if err := u.saveAll(ctx, g); err != nil {
		return err
	}
	returned := false
	defer func() {
		if !returned {
			_ = u.undo(g)
		}
	}()
	err = fn(g.Context(ctx))
	returned = true
	if inner := u.group(); inner != g {
		u.fail(at, errInnerOpen) // what is inside of it would stay, or be undone, by halves
		return errors.Join(err, errInnerOpen, u.undo(g))
	}
	if err == nil {
		return u.release(at, g)
	}
	return joinIf(err, u.undo(g))
}

var errInnerOpen = errors.New("sqlreq: an Atomic inside of this one has not returned yet, the request can only roll back")

// enterAtomic makes a new group the innermost one of the unit, until leave is called.
func (u *Unit) enterAtomic(ctx context.Context) (g *txn.Group, leave func(), err error) {
	for {
		outer, err := u.groupFor(ctx, nil)
		if err != nil {
			return nil, nil, err
		}
		g, entered, err := u.openGroup(outer)
		if err != nil {
			return nil, nil, err
		}
		if entered {
			return g, func() { u.leaveAtomic(g) }, nil
		}
	}
}

// openGroup opens a group inside of outer, if that is still the innermost one.
func (u *Unit) openGroup(outer *txn.Group) (g *txn.Group, entered bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.refused(); err != nil {
		return nil, false, err
	}
	rare := u.rare()
	if rare.group.Load() != outer {
		return nil, false, nil
	}
	g = txn.NewGroup(u, u.host.Context(), outer)
	rare.group.Store(g)
	return g, true, nil
}

// leaveAtomic ends g. If a group inside of it has not ended, that stays the
// innermost one until it does.
func (u *Unit) leaveAtomic(g *txn.Group) {
	u.mu.Lock()
	defer u.mu.Unlock()
	rest := g.Leave()
	if rare := u.rare(); rare.group.Load() == g {
		rare.group.Store(rest)
	}
}

var errStillOpen = errors.New("sqlreq: an Atomic is still open, nothing is committed")

// failInAtomic makes a unit that ends fail if an Atomic is open in it: nobody knows
// whether its hooks count. Where a transaction is open its savepoint tells that.
func (u *Unit) failInAtomic(open []*txn.Slot) {
	if len(open) == 0 && u.group() != nil {
		u.failByItself(errStillOpen)
	}
}

// group returns the innermost Atomic that is open, nil if none is.
func (u *Unit) group() *txn.Group {
	rare := u.ifRare()
	if rare == nil {
		return nil
	}
	return rare.group.Load()
}

// GroupFor is groupFor for a transaction that is about to be begun.
func (u *Unit) GroupFor(ctx context.Context, o txn.Opener) (*txn.Group, error) {
	if u.ifRare() == nil {
		return nil, nil // there was no Atomic, and ctx is not that of one
	}
	s := o.(*Source)
	if txn.Inside(ctx).Undone(u, nil) {
		return nil, undoneError(s.Name())
	}
	return u.groupFor(ctx, s)
}

// groupFor returns the innermost group that is open, nil if none is, and an error
// if ctx is not inside of it: what is done would be undone with it.
func (u *Unit) groupFor(ctx context.Context, s *Source) (*txn.Group, error) {
	g := u.group()
	if g == nil || g.Has(ctx) {
		return g, nil
	}
	if s == nil {
		return nil, errors.New("sqlreq: an Atomic is open, and this context is not that of the innermost one; pass on the context that its function was given")
	}
	return nil, fmt.Errorf("sqlreq: key %q: an Atomic is open, and this context is not that of the innermost one, so that the work would be undone with it; pass on the context that its function was given", s.Name())
}

// saveAll begins a savepoint of g in every open transaction. If one cannot be begun
// the others are released.
func (u *Unit) saveAll(ctx context.Context, g *txn.Group) error {
	for _, s := range u.slots() {
		err := u.saveOne(ctx, s, g)
		if err == nil {
			continue
		}
		u.metIfSent(err)
		err = u.ofEnd(err)
		for _, sp := range g.Members() {
			err = joinIf(err, sp.Release(nameOf(sp)))
		}
		return err
	}
	return nil
}

func (u *Unit) saveOne(ctx context.Context, s *txn.Slot, g *txn.Group) error {
	if !s.Busy() {
		return nil
	}
	if askingIn(ctx) != nil {
		done, err := u.mayWait(ctx, u.beginOf(u.keyOf(s)))
		if err != nil {
			return err
		}
		defer done()
	}
	sp, err := s.Save(ctx, u.host.Context(), nil, "")
	if sp != nil {
		g.Add(sp)
	}
	return err
}

// keyOf returns the key that began the transaction of s or, where none was ever begun
// but somebody has the turn, one that s belongs to.
func (u *Unit) keyOf(s *txn.Slot) *Source {
	if by := s.Opener(); by != nil {
		return by.(*Source)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	k := u.used.Load().sources.Load()
	for k.slot != s { // which was made for one of them, under the same mutex
		k = k.next.Load()
	}
	return k
}

// slots returns those of the unit.
func (u *Unit) slots() []*txn.Slot { return u.appendSlots(nil) }

func (u *Unit) appendSlots(slots []*txn.Slot) []*txn.Slot {
	u.mu.Lock()
	defer u.mu.Unlock()
	for s := u.firstSlot(); s != nil; s = s.next {
		slots = append(slots, &s.Slot)
	}
	return slots
}

func nameOf(sp *txn.Savepoint) string { return sp.Slot().Opener().Name() }

// joinIf joins the errors, either of which may be nil. The end of the unit in the
// middle of an Atomic is told once, however many savepoints it met.
func joinIf(err, other error) error {
	switch {
	case other == nil, err == txn.ErrFinished && other == txn.ErrFinished:
		return err
	case err == nil:
		return other
	}
	return errors.Join(err, other)
}

// undo goes back to every savepoint of g, and rolls back what was begun in it.
func (u *Unit) undo(g *txn.Group) (err error) {
	g.Close()
	g.Undo()
	for _, sp := range g.Members() {
		if sp.IsOpen() {
			err = joinIf(err, u.undoOne(sp))
		}
	}
	return err
}

func (u *Unit) undoOne(sp *txn.Savepoint) error {
	if !sp.Whole() {
		return sp.RollBack(nameOf(sp))
	}
	s := sp.Slot()
	ended := s.Ended()
	defer func() { // also if a driver does not return
		if s.Ended() != ended { // BeforeCommit functions from before the Atomic wait, as hooks do, for the next transaction
			r := s.Last()
			u.noteEnd(s, &r, nil, nil)
			u.observe(r)
		}
	}()
	return sp.RollBack(nameOf(sp))
}

// release keeps what was done in g. If a savepoint cannot be released, everything
// is undone; where another one was released before, the unit can only roll back.
func (u *Unit) release(at context.Context, g *txn.Group) error {
	g.Close()
	if len(g.Members()) == 0 {
		return u.Refused() // the unit has ended: it has failed, see failInAtomic
	}
	for _, sp := range g.Members() {
		err := sp.MayRelease(nameOf(sp))
		if err == txn.ErrFinished {
			return err // the unit has ended what was begun
		}
		if err != nil {
			return joinIf(err, u.undo(g))
		}
	}
	released := false
	for _, sp := range g.Members() {
		if sp.Whole() {
			continue
		}
		err := sp.Release(nameOf(sp))
		if err == nil {
			released = true
			continue
		}
		if released {
			err = fmt.Errorf("sqlreq: a part of an Atomic cannot be undone any more, the request can only roll back: %w", err)
			u.fail(at, err)
		}
		return joinIf(err, u.undo(g))
	}
	for _, sp := range g.Members() {
		if sp.Whole() {
			if err := sp.MoveTo(g.Outer()); err != nil {
				return err
			}
		}
	}
	return nil
}
