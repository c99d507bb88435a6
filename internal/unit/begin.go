package unit

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"

	"github.com/sqlreq/sqlreq/internal/sqlerr"
	"github.com/sqlreq/sqlreq/internal/txn"
)

// Open is a transaction as a use of a key found it. It does not change.
type Open struct {
	Tx        *sql.Tx
	RollsBack bool // it is read-only, and ends with ROLLBACK in any case
	unit      *Unit
	source    *Source
}

// Begin returns the transaction of b, begun if there is none. at is the context
// of the registry that bound it. opts counts with txn.WithOptions only.
func (u *Unit) Begin(ctx, at context.Context, b Binding, why txn.Purpose, opts *sql.TxOptions) (Open, error) {
	s, err := u.resolve(ctx, at, b, need{transaction: true, options: why != txn.WithOptions})
	if err != nil {
		return Open{}, err
	}
	if u.group() != nil {
		if _, err := u.groupFor(ctx, s); err != nil {
			return Open{}, cmp.Or(u.Refused(), err)
		}
	}
	if why == txn.ForStatement && u.hasBegun() {
		if tx, rollsBack := s.slot.Join(s); tx != nil {
			return Open{tx, rollsBack, u, s}, nil
		}
	}
	return u.begin(ctx, at, s, why, opts)
}

// begin is Begin for what has more to look at.
func (u *Unit) begin(ctx, at context.Context, s *Source, why txn.Purpose, opts *sql.TxOptions) (Open, error) {
	var ask txn.Ask // field by field: a composite literal would be built apart and copied
	ask.Opener, ask.Purpose, ask.Timed = s, why, s.Observed()
	ask.Unit, ask.Begins, ask.Groups = u.host.Context(), &u.used.Load().begins, u
	if why == txn.WithOptions { // nobody has waited for those of the binding
		ask.Options = txn.Chosen(opts)
	} else {
		ask.Options = s.options()
	}
	if s.slot.TestTx() != nil || s.HasAfterBegin() {
		u.addToBegin(&ask, at, s)
	}
	if err := u.needsOwnConnection(s); err != nil && u.host.Within().Waits {
		return Open{}, u.beginFailed(ctx, s, err)
	}
	if u.asksNow() {
		return u.beginWhileAsking(ctx, s, &ask)
	}
	return u.askSlot(ctx, s, &ask)
}

// addToBegin sets what is done in a begin besides BEGIN.
func (u *Unit) addToBegin(ask *txn.Ask, at context.Context, s *Source) {
	if tx := s.slot.TestTx(); tx != nil {
		ask.Nest = func() *txn.Nest { return u.nestOf(tx) }
	}
	if s.HasAfterBegin() {
		ask.AfterBegin = func(ctx context.Context, tx *sql.Tx) error { return u.askAfterBegin(ctx, at, s, tx) }
	}
}

// beginWhileAsking is begin while a function of the program is being asked.
func (u *Unit) beginWhileAsking(ctx context.Context, s *Source, ask *txn.Ask) (Open, error) {
	done, err := u.mayUse(ctx, s)
	if err != nil {
		return Open{}, u.beginFailed(ctx, s, err)
	}
	defer done()
	return u.askSlot(ctx, s, ask)
}

// askSlot asks the slot of s, again as long as Persist says so.
func (u *Unit) askSlot(ctx context.Context, s *Source, ask *txn.Ask) (Open, error) {
	tx, err := u.askSlotOnce(ctx, s, ask)
	for n := 1; err != nil && u.persists(ctx, err, n); n++ {
		tx, err = u.askSlotOnce(ctx, s, ask)
	}
	if err != nil {
		return Open{}, u.useFailed(ctx, s, err)
	}
	return Open{tx, ask.RollsBack, u, s}, nil
}

func (u *Unit) askSlotOnce(ctx context.Context, s *Source, ask *txn.Ask) (*sql.Tx, error) {
	ask.Refused = nil
	defer func() { // also if AfterBegin does not return
		if ask.Refused != nil {
			u.noteRefused(s, ask.Refused)
		}
	}()
	return s.slot.Use(ctx, ask)
}

// askAfterBegin calls the AfterBegin of s, about the request at the context at.
func (u *Unit) askAfterBegin(ctx, at context.Context, s *Source, tx *sql.Tx) (err error) {
	a := u.beginOf(s)
	u.mu.Lock()
	a.binding = s.Binding // that of another key of the pool may have been the last
	u.mu.Unlock()
	u.ask(ctx, a, func(ctx context.Context) { err = s.RunAfterBegin(ctx, at, tx) })
	return err
}

// beginOf returns what the AfterBegin for the slot of s is asked for.
func (u *Unit) beginOf(s *Source) *asked {
	u.mu.Lock()
	defer u.mu.Unlock()
	rare := u.rare()
	a := rare.begins[s.slot]
	if a == nil {
		a = &asked{function: "AfterBegin", binding: s.Binding}
		if rare.begins == nil {
			rare.begins = make(map[*txn.Slot]*asked)
		}
		rare.begins[s.slot] = a
	}
	return a
}

// mayUse returns an error if a use of s with ctx, which takes the slot's turn, would
// wait for itself: one in an AfterBegin, or in a Route that another one waits for.
func (u *Unit) mayUse(ctx context.Context, s *Source) (done func(), err error) {
	if !u.asksNow() || askingIn(ctx) == nil {
		return nothing, nil
	}
	return u.mayWait(ctx, u.beginOf(s))
}

// asksNow reports whether a function of the program is being asked.
func (u *Unit) asksNow() bool { return u.used.Load().asking.Load() > 0 }

// Begun reports whether a transaction is open, or being begun, on the database of b.
func (u *Unit) Begun(b Binding) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.refused() != nil {
		return false
	}
	db, tx, _ := b.Pool()
	if s := u.known(b); s != nil {
		return s.slot != nil && s.slot.Begun()
	}
	for s := u.firstSlot(); s != nil && (db != nil || tx != nil); s = s.next {
		if s.Of(db, tx) {
			return s.Begun() // another key of the same database has asked
		}
	}
	return false
}

// needsOwnConnection returns an error if s needs a connection, the only one of
// its pool, that a unit around u has. If that waits for u, neither ever ends.
func (u *Unit) needsOwnConnection(s *Source) error {
	outer := u.host.Outer()
	if outer == nil {
		return nil
	}
	db := s.slot.DB()
	if db == nil || s.slot.Open() || db.Stats().MaxOpenConnections != 1 {
		return nil
	}
	for ; outer != nil; outer = outer.host.Outer() {
		if outer.has(db) {
			return &neverServed{}
		}
	}
	return nil
}

// neverServed is the error of a wait for a connection that the unit around has.
type neverServed struct {
	ended error // of the context that has ended the wait; nil if there was none
}

func (n *neverServed) Error() string {
	const why = "the pool has one connection (MaxOpenConnections is 1), and the request, or Do, around this one has it; use its transaction, end that by Commit or Rollback before, allow more connections, or do it later (go reg.Do(context.WithoutCancel(ctx), ...))"
	if n.ended == nil {
		return why
	}
	return n.ended.Error() + ": " + why
}

func (n *neverServed) Unwrap() error { return n.ended }

// has reports whether u has a connection of db.
func (u *Unit) has(db *sql.DB) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for s := u.firstSlot(); s != nil; s = s.next {
		if s.Of(db, nil) && s.Busy() {
			return true
		}
	}
	return false
}

// nestOf returns the turn in the savepoint that a unit around this one has open
// in the test's transaction tx, nil if none has: a Do in a request nests there.
func (u *Unit) nestOf(tx *sql.Tx) *txn.Nest {
	for u = u.host.Outer(); u != nil; u = u.host.Outer() {
		if nest := u.nest(tx); nest != nil {
			return nest
		}
	}
	return nil
}

func (u *Unit) nest(tx *sql.Tx) *txn.Nest {
	u.mu.Lock()
	defer u.mu.Unlock()
	for s := u.firstSlot(); s != nil; s = s.next {
		if nest := s.Nest(tx); nest != nil {
			return nest
		}
	}
	return nil
}

// firstSlot returns the first of the slots in use, nil if there is none. The caller holds u.mu.
func (u *Unit) firstSlot() *slot {
	if use := u.used.Load(); use != nil {
		return use.slots
	}
	return nil
}

// useFailed returns the error of a use.
func (u *Unit) useFailed(ctx context.Context, s *Source, err error) error {
	b, ok := err.(*txn.BeginError)
	if !ok {
		return u.ofEnd(err) // of a slot that is closed, or the transaction that is open is not for this use
	}
	err = b.Err
	if ended := cmp.Or(ctx.Err(), u.host.Context().Err()); ended != nil {
		if why := u.needsOwnConnection(s); why != nil {
			err = &neverServed{ended}
		}
	}
	return u.beginFailed(ctx, s, err)
}

// noteRefused notes what became of a transaction that was begun in the slot of s and
// ended at once.
func (u *Unit) noteRefused(s *Source, r *txn.Result) {
	if r.Outcome == txn.Ended { // nobody knows how: what AfterBegin did may have stayed
		u.Keep()
		u.takeHooks(s.slot) // they are dropped: nobody knows which kind is to run
		u.noteUnknown(r.Err)
		u.fail(r.Opener.(*Source).at, r.Err)
	}
	u.observe(*r)
}

// beginFailed returns the error of a use for which there is no transaction,
// marked if it waited in vain.
func (u *Unit) beginFailed(ctx context.Context, s *Source, err error) error {
	if err == txn.ErrFinished || err == ErrHijacked {
		return u.ofEnd(err)
	}
	err = &txn.BeginError{Key: s.Name(), Err: u.ofContext(ctx, err)}
	u.Met(err)
	timedOut := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || u.host.Context().Err() != nil
	if timedOut {
		u.noteTimedOut()
	}
	if timedOut || sqlerr.Unreachable(err) {
		return &Unavailable{err}
	}
	return err
}

func (u *Unit) noteTimedOut() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.timedOut = true
}

// ofContext makes err the error of the context that ended, if one has: that of
// BEGIN only knows that it was cancelled, and drivers have errors of their own
// for it ("canceling statement due to user request").
func (u *Unit) ofContext(ctx context.Context, err error) error {
	ended := cmp.Or(ctx.Err(), u.host.Context().Err())
	if ended == nil {
		return err
	}
	switch {
	case errors.As(err, new(*neverServed)):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return ended
	}
	return fmt.Errorf("%w: %w", ended, err)
}

// Unavailable marks an error as one that another try, a little later, may not meet.
type Unavailable struct{ Err error }

// Error returns the text of Err.
func (u *Unavailable) Error() string { return u.Err.Error() }

// Unwrap returns Err.
func (u *Unavailable) Unwrap() error { return u.Err }

// Met remembers a conflict that a statement, or a begin, met.
func (u *Unit) Met(err error) {
	if !u.host.Retryable(err) {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sawConflict = true
}

// Done ends what Begin began for a statement: the statement has returned.
func (o Open) Done() { o.source.slot.Done() }

// Engine returns that of the database.
func (o Open) Engine() txn.Engine { return o.source.slot.Engine() }

// Key returns the key that the transaction was asked for by.
func (o Open) Key() string { return o.source.Name() }

// WarnOnce is Unit.WarnOnce.
func (o Open) WarnOnce() bool { return o.unit.WarnOnce() }

// Note remembers what the error of a statement says about the transaction, and
// returns it. late is whether ctx had ended before the statement.
// See txn.Slot.Note.
func (o Open) Note(ctx context.Context, late bool, err error) error {
	o.unit.Met(err)
	o.source.slot.Note(ctx, o.Tx, late, err)
	return err
}

// Gone explains a statement's sql.ErrTxDone: nil means that the transaction was
// ended by this library, so that the next use begins a new one.
func (o Open) Gone(ctx context.Context) error {
	err := o.source.slot.Gone(ctx, o.unit.host.Context(), o.Tx, o.source.Name())
	return o.unit.useFailed(ctx, o.source, err)
}
