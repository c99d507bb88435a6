package unit

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"

	"github.com/sqlreq/sqlreq/internal/turn"
	"github.com/sqlreq/sqlreq/internal/txn"
)

// Open is a transaction as a use of a key found it. It does not change.
type Open struct {
	Tx     *sql.Tx
	unit   *Unit
	source *Source
}

// Begin returns the transaction of b, begun if there is none. at is the context
// of the registry that bound it. opts counts with txn.WithOptions only.
func (u *Unit) Begin(ctx, at context.Context, b Binding, why txn.Purpose, opts *sql.TxOptions) (Open, error) {
	s, err := u.resolve(ctx, at, b, why != txn.WithOptions)
	if err != nil {
		return Open{}, err
	}
	ask := txn.Ask{
		Opener:  s,
		Purpose: why,
		Timed:   s.Observed(),
		Unit:    u.host.Context(),
		Begins:  &u.used.Load().begins,
	}
	if why == txn.WithOptions { // nobody has waited for those of the binding
		ask.Options = txn.Chosen(opts)
	} else {
		ask.Options = s.options()
	}
	if tx := s.slot.TestTx(); tx != nil {
		ask.Nest = u.nestOf(tx)
	}
	defer u.observeRefused(&ask)
	tx, err := s.slot.Use(ctx, &ask)
	if err != nil {
		return Open{}, u.useFailed(ctx, s, err)
	}
	return Open{tx, u, s}, nil
}

// observeRefused tells of a transaction that was begun and ended at once.
func (u *Unit) observeRefused(a *txn.Ask) {
	if a.Refused != nil {
		u.observe(*a.Refused)
	}
}

// nestOf returns the turn in the savepoint that a unit around this one has open
// in the test's transaction tx, nil if none has: a Do in a request nests there.
func (u *Unit) nestOf(tx *sql.Tx) *turn.Turn {
	for u = u.host.Outer(); u != nil; u = u.host.Outer() {
		if nest := u.nest(tx); nest != nil {
			return nest
		}
	}
	return nil
}

func (u *Unit) nest(tx *sql.Tx) *turn.Turn {
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
		return err // ErrFinished, or the transaction that is open is not for this use
	}
	return u.beginFailed(ctx, s, b.Err)
}

// beginFailed returns the error of a use for which there is no transaction,
// marked if it waited in vain.
func (u *Unit) beginFailed(ctx context.Context, s *Source, err error) error {
	if err == txn.ErrFinished {
		return err
	}
	err = &txn.BeginError{Key: s.Name(), Err: u.ofContext(ctx, err)}
	u.Met(err)
	timedOut := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
	if !timedOut && u.host.Context().Err() == nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.use().timedOut = true
	return &Unavailable{err}
}

// ofContext makes err the error of the context that ended, if one has: that of
// BEGIN only knows that it was cancelled, and drivers have errors of their own
// for it ("canceling statement due to user request").
func (u *Unit) ofContext(ctx context.Context, err error) error {
	ended := cmp.Or(ctx.Err(), u.host.Context().Err())
	switch {
	case ended == nil:
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
	u.use().sawConflict = true
}

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
