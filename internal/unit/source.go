package unit

import (
	"context"
	"database/sql"
	"errors"
	"sync/atomic"

	"github.com/sqlreq/sqlreq/internal/turn"
	"github.com/sqlreq/sqlreq/internal/txn"
)

// Source is a key in a unit of work: where its transactions come from. What is set
// by sourceOf is set before others can see it. The unit's mutex guards slot until it
// is set, where there is a choice.
type Source struct {
	Binding
	next   atomic.Pointer[Source]
	at     context.Context // of the registry that bound it
	slot   *txn.Slot       // nil until Route has answered; the unit's mutex guards it until then
	choice *choice         // nil if the binding has nothing to choose
}

// choice is what Route and TxOptions have said. Its fields are written with turn
// and the unit's mutex held, so that either is enough to read them. What was asked
// is not asked again: who has seen routed or opted needs no lock for what they said.
type choice struct {
	turn   turn.Turn      // held while Route and TxOptions are asked
	routed bool           // Route was asked, or there is none; from false to true once
	err    error          // of Route
	opted  bool           // TxOptions was asked, or there is none; from false to true once
	opts   *sql.TxOptions // what TxOptions said

	asked asked
}

// chosen reports whether all that is needed is known. The caller holds the unit's mutex.
func (s *Source) chosen(opts bool) bool {
	return s.choice == nil || s.slot != nil && (s.choice.opted || !opts)
}

// options returns those of the binding; nil are the driver's defaults.
func (s *Source) options() *sql.TxOptions {
	if s.choice == nil {
		return nil
	}
	return s.choice.opts
}

// need is what a key is used for.
type need struct {
	transaction bool // in a unit that is over, or hijacked, there is none
	options     bool // the transaction's, from the binding
}

// resolve returns the source of b with its slot known, and its options if they are
// needed.
func (u *Unit) resolve(ctx, at context.Context, b Binding, n need) (*Source, error) {
	if s := u.known(b); s != nil && s.choice == nil {
		return s, nil // the way of most uses: no lock; whether the unit is over its slot says
	}
	s, chosen, err := u.source(at, b, n)
	if err != nil || chosen {
		return s, err
	}
	return s, u.choose(ctx, at, s, n.options)
}

// known returns the source of b in the unit, nil if there is none yet.
func (u *Unit) known(b Binding) *Source {
	use := u.used.Load()
	if use == nil {
		return nil
	}
	s := use.sources.Load()
	for s != nil && s.Binding != b {
		s = s.next.Load()
	}
	return s
}

// source returns the source of b in the unit, a new one if there is none.
func (u *Unit) source(at context.Context, b Binding, n need) (s *Source, chosen bool, err error) {
	u.mu.Lock()
	if n.transaction {
		err = u.refused()
	}
	if err == nil {
		s, err = u.sourceOf(at, b)
	}
	chosen = err == nil && s.chosen(n.options)
	u.mu.Unlock()
	return s, chosen, err
}

// sourceOf is source for who holds u.mu.
func (u *Unit) sourceOf(at context.Context, b Binding) (*Source, error) {
	if s := u.known(b); s != nil {
		return s, nil
	}
	if u.state >= ending {
		return nil, txn.ErrFinished // but after a Hijack DB works
	}
	use := u.use()
	first := use.sources.Load()
	s := &use.firstSource
	if first != nil {
		s = new(Source)
	}
	s.Binding, s.at = b, at
	if db, tx, engine := b.Pool(); db != nil || tx != nil {
		s.slot = u.slotOf(use, db, tx, engine)
	}
	if route, options := b.Chooses(); route || options {
		s.choice = &choice{routed: !route, opted: !options, asked: asked{function: "Route or TxOptions", binding: b}}
	}
	if first == nil {
		use.sources.Store(s)
		return s, nil
	}
	// Behind the first, which stays the first key that was used (FirstKey).
	s.next.Store(first.next.Load())
	first.next.Store(s)
	return s, nil
}

// slotOf returns the slot on db, or on a test's transaction: several keys may
// share it. The caller holds the unit's mutex.
func (u *Unit) slotOf(use *used, db *sql.DB, tx *sql.Tx, engine txn.Engine) *txn.Slot {
	for s := use.slots; s != nil; s = s.next {
		if s.Of(db, tx) {
			return &s.Slot
		}
	}
	s := &use.firstSlot
	if use.slots == nil {
		use.slots = s
	} else {
		s = &slot{next: use.slots.next}
		use.slots.next = s
	}
	s.Init(db, tx, engine)
	if u.state == hijacked {
		s.Shut() // it is there for DB only
	}
	return &s.Slot
}

// choose asks Route, and TxOptions if opts is true, where that was not done yet,
// about the request at the context at. The turn is held meanwhile, so that each is
// asked once.
func (u *Unit) choose(ctx, at context.Context, s *Source, opts bool) error {
	c := s.choice
	if err := u.lockChoice(ctx, s); err != nil {
		return u.beginFailed(ctx, s, err)
	}
	defer c.turn.Unlock()
	if err := u.Refused(); err != nil && err != ErrHijacked {
		return err
	}
	if !c.routed {
		if err := u.route(ctx, at, s); err != nil {
			return err
		}
	}
	if c.err != nil {
		return c.err
	}
	if opts && !c.opted {
		var chosen *sql.TxOptions
		u.ask(ctx, &c.asked, func(ctx context.Context) { chosen = txn.Chosen(s.AskTxOptions(ctx, at)) })
		u.mu.Lock()
		defer u.mu.Unlock()
		c.opted, c.opts = true, chosen
	}
	return nil
}

// route asks Route and keeps what it says. An error is not kept if the context of
// this use has ended: it may be the reason. After the end of the unit nothing is
// kept, since nobody would close the new slot. The caller has the choice's turn.
func (u *Unit) route(ctx, at context.Context, s *Source) error {
	var db *sql.DB
	var err error
	u.ask(ctx, &s.choice.asked, func(ctx context.Context) { db, err = s.AskRoute(ctx, at) })
	if err == nil && db == nil {
		err = errors.New("the Route returned no *sql.DB and no error")
	}
	engine := txn.EngineOf(db, nil)
	if err == nil {
		err = engine.Refuses(s.Guarded(), false)
	}
	if err != nil {
		err = u.beginFailed(ctx, s, err)
		if ctx.Err() != nil {
			return err // the next use asks Route again
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state >= ending {
		return txn.ErrFinished
	}
	s.choice.routed, s.choice.err = true, err
	if err == nil {
		s.slot = u.slotOf(u.use(), db, nil, engine)
	}
	return err
}

// DB returns the pool of b, chosen now if it is not yet.
func (u *Unit) DB(ctx, at context.Context, b Binding) (*sql.DB, error) {
	s, err := u.resolve(ctx, at, b, need{})
	if err != nil {
		return nil, err
	}
	return s.slot.DB(), nil
}
