package unit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/sqlreq/sqlreq/internal/repeat"
	"github.com/sqlreq/sqlreq/internal/txn"
)

// before is a BeforeCommit function. The unit's mutex guards it while it is in
// seldom.befores.
type before struct {
	source *Source
	since  uint32          // how many transactions of its slot had ended at its registration
	inside *txn.Savepoint  // the innermost of any slot at its registration
	at     context.Context // of who registered it: that fails if it fails
	ctx    context.Context // that it is given
	fn     func(context.Context) error
	record bool // it writes the record of the request: see repeat.Record
}

// AddBefore registers fn to be run, with the context run, once right before the
// COMMIT of the transaction of b that is open, or the next one. ctx is the context
// of the registration, at that of its handler, bound that of the registry that bound b.
func (u *Unit) AddBefore(ctx, run, at, bound context.Context, b Binding, fn func(context.Context) error) error {
	f := before{inside: txn.Inside(ctx), at: at, ctx: run, fn: fn, record: repeat.IsRecord(ctx)}
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.refused(); err != nil {
		return err
	}
	s, err := u.sourceOf(bound, b)
	if err != nil {
		return err
	}
	if f.source = s; s.slot != nil {
		if f.inside.Undone(u, s.slot) {
			return undoneError(s.Name())
		}
		f.since = s.slot.Ended()
	}
	rare := u.rare()
	rare.befores = append(rare.befores, f)
	return nil
}

// next takes the first function that is to run before the COMMIT of one of the
// slots, of any if there are none. ok is false if there is none to run.
func (u *Unit) next(slots ...*txn.Slot) (f before, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	i := u.indexOfNext(slots)
	if i < 0 {
		return f, false
	}
	rare := u.rare()
	f = rare.befores[i]
	rare.befores = slices.Delete(rare.befores, i, i+1)
	rare.order = slices.DeleteFunc(rare.order, func(s *txn.Slot) bool { return s == f.source.slot })
	rare.order = append(rare.order, f.source.slot)
	if f.record {
		rare.recorded = append(rare.recorded, f.source.slot)
	}
	return f, true
}

// indexOfNext is that of next in seldom.befores, -1 if there is none. One that writes
// the record comes when no other is left. The caller holds u.mu.
func (u *Unit) indexOfNext(slots []*txn.Slot) int {
	rare := u.ifRare()
	if rare == nil {
		return -1
	}
	record := -1
	for i, f := range rare.befores {
		s := f.source.slot
		switch {
		case s == nil, len(slots) > 0 && !slices.Contains(slots, s), !s.Sound(), f.inside.Undone(u, s):
		case !f.record:
			return i
		case record < 0:
			record = i
		}
	}
	return record
}

// dropBefores forgets the functions of the transaction that has just ended in s.
func (u *Unit) dropBefores(s *txn.Slot) {
	rare := u.ifRare()
	if rare == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	n := s.Ended()
	rare.befores = slices.DeleteFunc(rare.befores, func(f before) bool {
		return f.source.slot == s && f.since < n
	})
	isS := func(o *txn.Slot) bool { return o == s }
	rare.order = slices.DeleteFunc(rare.order, isS)
	rare.recorded = slices.DeleteFunc(rare.recorded, isS)
}

// decision is the run of BeforeCommit functions, as their contexts tell.
type decision struct {
	unit *Unit
	slot *txn.Slot // of an explicit Commit; nil: every transaction is to end
	over atomic.Bool
	done chan struct{} // closed when it is over; nil for that at the end of the unit
}

type decisionKey struct{}

// decisionIn returns the run of u's functions that ctx is that of, nil if there is
// none, or it is over.
func (u *Unit) decisionIn(ctx context.Context) *decision {
	d, _ := ctx.Value(decisionKey{}).(*decision)
	if d == nil || d.unit != u || d.over.Load() {
		return nil
	}
	return d
}

// Deciding reports whether ctx is that of a BeforeCommit function of u that runs.
func (u *Unit) Deciding(ctx context.Context) bool { return u.decisionIn(ctx) != nil }

// run runs the functions for the COMMIT that d is about until none is left or one
// fails. ctx ends it as well as the unit's context.
func (d *decision) run(ctx context.Context) error {
	u := d.unit
	var slots []*txn.Slot
	if d.slot != nil {
		slots = []*txn.Slot{d.slot}
	}
	for {
		if err := cmp.Or(ctx.Err(), u.host.Context().Err(), u.Err()); err != nil {
			return err
		}
		f, ok := u.next(slots...)
		if !ok {
			return nil
		}
		if err := d.call(&f); err != nil {
			return err
		}
	}
}

var errNotDecided = errors.New("sqlreq: a BeforeCommit function did not return")

// call calls f. An error fails the unit, and so does a panic, should somebody
// recover it, or a Goexit.
func (d *decision) call(f *before) error {
	err := errNotDecided
	defer func() { d.unit.fail(f.at, err) }()
	err = f.fn(context.WithValue(f.ctx, decisionKey{}, d))
	return err
}

// decide runs the functions of every open transaction when the program has
// returned. It reports whether what is open may be committed.
func (u *Unit) decide() bool {
	if u.ifRare() == nil {
		return true // there are none
	}
	if u.waitForDecisions() != nil || !u.startDeciding() {
		return true
	}
	if u.anyLost() {
		return false
	}
	d := &decision{unit: u}
	defer d.over.Store(true)
	return d.run(u.host.Context()) == nil || u.host.Context().Err() != nil // mayCommit tells of that
}

// waitForDecisions waits for the functions of Commits under way in other
// goroutines: what they say counts. The error is that of the unit's context.
func (u *Unit) waitForDecisions() error {
	for {
		d := u.underWay()
		if d == nil {
			return nil
		}
		select {
		case <-d.done:
		case <-u.host.Context().Done():
			return u.host.Context().Err()
		}
	}
}

// underWay returns a run of functions for an explicit Commit or Hijack, nil if there is none.
func (u *Unit) underWay() *decision {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.firstDecision()
}

// firstDecision is underWay for who holds u.mu.
func (u *Unit) firstDecision() *decision {
	rare := u.ifRare()
	if rare == nil || len(rare.deciding) == 0 {
		return nil
	}
	return rare.deciding[0]
}

// startDeciding reports whether there are functions to run.
func (u *Unit) startDeciding() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state >= ending || u.indexOfNext(nil) < 0 {
		return false
	}
	u.state = deciding
	return true
}

// anyLost reports whether a transaction cannot be committed any more, which fails
// the unit. It waits for who ends one, and has not seen that the unit is deciding.
func (u *Unit) anyLost() (lost bool) {
	var one [1]*txn.Slot // most units have one: no allocation
	for _, s := range u.appendSlots(one[:0]) {
		if !s.Open() || s.Lock(u.host.Context(), u.host.Context()) != nil {
			continue
		}
		if s.Open() && !u.noneLost([]*txn.Slot{s}) {
			lost = true
		}
		s.Unlock()
	}
	return lost
}

// mayEndNow returns why a transaction may not be ended by Commit, Rollback or
// Hijack (slot is nil) with the context ctx, nil if it may: BeforeCommit functions
// run, but for those of own, or an Atomic is open.
func (u *Unit) mayEndNow(ctx context.Context, what, key string, slot *txn.Slot, own *decision) error {
	inside := u.decisionIn(ctx) != nil
	u.mu.Lock()
	defer u.mu.Unlock()
	rare := u.ifRare()
	switch {
	case rare == nil:
		return nil // there is neither
	case inside, u.state == deciding, slices.ContainsFunc(rare.deciding, func(d *decision) bool {
		return d != own && (d.slot == nil || slot == nil || d.slot == slot)
	}):
		return fmt.Errorf("sqlreq: %s on key %q while BeforeCommit functions run; return from them first", what, key)
	case u.group() != nil:
		return fmt.Errorf("sqlreq: %s on key %q inside of an Atomic; return from its function first", what, key)
	}
	return nil
}

// startDecidingFor returns the run of functions for the COMMIT of the slot, of
// every one if it is nil; nil if there are none to run. own is what it has returned
// before. Until stopDeciding is called nobody else ends the transaction. The caller
// has the turn of the slot, or of all.
func (u *Unit) startDecidingFor(slot *txn.Slot, own *decision) *decision {
	u.mu.Lock()
	defer u.mu.Unlock()
	var slots []*txn.Slot
	if slot != nil {
		slots = []*txn.Slot{slot}
	}
	switch {
	case u.indexOfNext(slots) < 0:
		return nil
	case own != nil:
		return own
	}
	d := &decision{unit: u, slot: slot, done: make(chan struct{})}
	rare := u.rare()
	rare.deciding = append(rare.deciding, d)
	return d
}

// stopDeciding ends what startDecidingFor began; nil is nothing.
func (u *Unit) stopDeciding(d *decision) {
	if d == nil {
		return
	}
	d.over.Store(true)
	defer close(d.done)
	u.mu.Lock()
	defer u.mu.Unlock()
	rare := u.rare()
	rare.deciding = slices.DeleteFunc(rare.deciding, func(o *decision) bool { return o == d })
}

// place returns that of s among the slots whose functions have run, 0 for one
// without: those without are committed first, then the others in the order in which
// the last function of each has run, and at last that of the record.
func (u *Unit) place(s *txn.Slot) int {
	rare := u.ifRare()
	if rare == nil {
		return 0
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	place := slices.Index(rare.order, s) + 1
	if slices.Contains(rare.recorded, s) {
		place += len(rare.order)
	}
	return place
}
