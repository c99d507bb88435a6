package unit

import (
	"cmp"
	"context"
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
	if u.state >= ending {
		return txn.ErrFinished
	}
	s, err := u.sourceOf(bound, b)
	if err != nil {
		return err
	}
	if f.source = s; s.slot != nil {
		if f.inside.Undone(s.slot) {
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
	use := u.used.Load()
	if use == nil || use.seldom == nil {
		return -1
	}
	record := -1
	for i, f := range use.seldom.befores {
		s := f.source.slot
		switch {
		case s == nil, len(slots) > 0 && !slices.Contains(slots, s), !s.Open(), f.inside.Undone(s):
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
	use := u.used.Load()
	u.mu.Lock()
	defer u.mu.Unlock()
	if use.seldom == nil {
		return
	}
	n := s.Ended()
	use.seldom.befores = slices.DeleteFunc(use.seldom.befores, func(f before) bool {
		return f.source.slot == s && f.since < n
	})
	isS := func(o *txn.Slot) bool { return o == s }
	use.seldom.order = slices.DeleteFunc(use.seldom.order, isS)
	use.seldom.recorded = slices.DeleteFunc(use.seldom.recorded, isS)
}

// decision is the run of BeforeCommit functions, as their contexts tell.
type decision struct {
	unit *Unit
	over atomic.Bool
}

type decisionKey struct{}

// runBefores runs the functions for the COMMITs of the slots, of any if there are
// none, until none is left or one fails. ctx ends it as well as the unit's context.
func (u *Unit) runBefores(ctx context.Context, slots ...*txn.Slot) error {
	d := &decision{unit: u}
	defer d.over.Store(true)
	for {
		if err := cmp.Or(u.Err(), ctx.Err(), u.host.Context().Err()); err != nil {
			return err
		}
		f, ok := u.next(slots...)
		if !ok {
			return nil
		}
		if err := f.fn(context.WithValue(f.ctx, decisionKey{}, d)); err != nil {
			u.fail(f.at, err)
			return err
		}
	}
}

// decide runs the functions of every open transaction when the program has
// returned. It reports whether what is open may be committed.
func (u *Unit) decide() bool {
	if !u.startDeciding() {
		return true
	}
	return u.runBefores(u.host.Context()) == nil || u.host.Context().Err() != nil // mayCommit tells of that
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

// mayEndNow returns why a transaction may not be ended by Commit, Rollback or
// Hijack with the context ctx, nil if it may: BeforeCommit functions run, an Atomic
// is open.
func (u *Unit) mayEndNow(ctx context.Context, what, key string, slots ...*txn.Slot) error {
	d, _ := ctx.Value(decisionKey{}).(*decision)
	u.mu.Lock()
	defer u.mu.Unlock()
	use := u.used.Load()
	switch {
	case use == nil:
		return nil
	case u.state == deciding, d != nil && d.unit == u && !d.over.Load(), use.seldom != nil && meet(use.seldom.deciding, slots):
		return fmt.Errorf("sqlreq: %s on key %q while BeforeCommit functions run; return from them first", what, key)
	case use.atomic.Load() != nil:
		return fmt.Errorf("sqlreq: %s on key %q inside of an Atomic; return from its function first", what, key)
	}
	return nil
}

func meet(a, b []*txn.Slot) bool {
	return slices.ContainsFunc(a, func(s *txn.Slot) bool { return slices.Contains(b, s) })
}

// markDeciding keeps others from ending the transactions of the slots until unmark
// is called.
func (u *Unit) markDeciding(slots []*txn.Slot) (unmark func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.indexOfNext(slots) < 0 {
		return nothing
	}
	rare := u.rare()
	rare.deciding = append(rare.deciding, slots...)
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		rare.deciding = slices.DeleteFunc(rare.deciding, func(s *txn.Slot) bool { return slices.Contains(slots, s) })
	}
}

// undecided reports whether a function was registered since the last one has run.
func (u *Unit) undecided(slots ...*txn.Slot) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.indexOfNext(slots) >= 0
}

// place returns that of s among the slots whose functions have run, 0 for one
// without: those without are committed first, then the others in the order in which
// the last function of each has run, and at last that of the record.
func (u *Unit) place(s *txn.Slot) int {
	use := u.used.Load()
	u.mu.Lock()
	defer u.mu.Unlock()
	if use.seldom == nil {
		return 0
	}
	place := slices.Index(use.seldom.order, s) + 1
	if slices.Contains(use.seldom.recorded, s) {
		place += len(use.seldom.order)
	}
	return place
}
