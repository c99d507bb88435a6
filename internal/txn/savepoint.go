package txn

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"

	"github.com/sqlreq/sqlreq/internal/dialect"
	"github.com/sqlreq/sqlreq/internal/sqlerr"
)

// savepointState is what became of a Savepoint.
type savepointState uint8

const (
	savepointOpen     savepointState = iota
	savepointReleased                // what it had belongs to the savepoint around it
	savepointRolledBack
)

// Savepoint is a savepoint of the open transaction of a slot.
type Savepoint struct {
	// Set by newSavepoint, only read from then on: no lock.
	slot    *Slot
	unit    context.Context
	name    string
	outer   *Savepoint // around it in the same transaction
	context *Savepoint // the innermost one of any slot in the context that it was begun with
	group   *Group     // of a Savepoint that stands for those of several slots in a context; otherwise nil
	doubt   bool       // the slot's when it was begun: what has ended the transaction since then has taken it along
	bottom  bool       // the whole transaction, begun inside of a group: no statement, going back is ROLLBACK

	given context.Context // to its function; written by Context, before that runs

	state savepointState // guarded by slot.mu; from open to one of the others once, by end
}

type savepointKey struct{}

// Inside returns the innermost savepoint of any slot that ctx is inside of, nil
// if there is none.
func Inside(ctx context.Context) *Savepoint {
	sp, _ := ctx.Value(savepointKey{}).(*Savepoint)
	return sp
}

// Context returns ctx as that of the function inside of sp.
func (sp *Savepoint) Context(ctx context.Context) context.Context {
	sp.given = context.WithValue(ctx, savepointKey{}, sp)
	return sp.given
}

// IsGiven reports whether ctx is the very context that the function inside of a
// savepoint, or of a group, was given.
func IsGiven(ctx context.Context) bool {
	sp := Inside(ctx)
	return sp != nil && sp.given == ctx
}

// of returns sp, or the innermost savepoint that its context is inside of, if it
// is one of s.
func (sp *Savepoint) of(s *Slot) *Savepoint {
	for ; sp != nil; sp = sp.context {
		if sp.slot == s {
			return sp
		}
		if m := sp.group.member(s); m != nil {
			return m
		}
	}
	return nil
}

// around returns the savepoint that ctx is inside of, nil for none. Where no
// savepoint is open any more, that is the one around those that were released: what
// was done in these belongs to it.
func (s *Slot) around(ctx context.Context) *Savepoint {
	sp := Inside(ctx).of(s) // asks a context of the program: not under the mutex
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.innermost == nil && sp != nil && sp.state == savepointReleased {
		sp = sp.outer
	}
	return sp
}

// Undone reports whether what was registered inside of sp, which may be nil, for
// the slot s, which may be nil, of owner was rolled back with a savepoint. A group
// of another owner is none of its business: that of a unit around.
func (sp *Savepoint) Undone(owner any, s *Slot) bool {
	for p := sp; p != nil; p = p.context {
		if p.group.undoneFor(owner) {
			return true
		}
	}
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := sp.of(s); p != nil; p = p.outer {
		if p.state == savepointRolledBack {
			return true
		}
	}
	return false
}

// Save begins a savepoint in the open transaction tx; nil is whichever is open. It
// returns nil, and no error, if that is not the open one any more, or none is. A
// *SaveError is that of the statement.
func (s *Slot) Save(ctx, unit context.Context, tx *sql.Tx, key string) (*Savepoint, error) {
	if err := s.Lock(ctx, unit); err != nil {
		return nil, err
	}
	defer s.turn.Unlock()
	if err := s.Quiet(ctx, unit); err != nil {
		return nil, err
	}
	if key == "" && s.by != nil {
		key = s.by.Name()
	}
	if err := s.noSavepoints(key); err != nil {
		return nil, err
	}
	sp, isOpen := s.newSavepoint(ctx, unit, tx)
	switch aborted := s.abortedBy(); {
	case !isOpen:
		return nil, nil
	case aborted != nil: // by another goroutine's statement, since Use
		return nil, abortedError(key, aborted)
	case s.around(ctx) != sp.outer:
		return nil, fmt.Errorf("sqlreq: savepoint on key %q: its context is not that of the innermost open Savepoint; pass on the context that the function was given", key)
	}
	late := ctx.Err() != nil
	if _, err := s.tx.ExecContext(ctx, s.engine.Savepoint(sp.name)); err != nil {
		if errors.Is(err, sql.ErrTxDone) {
			return nil, endedError(key)
		}
		s.Note(ctx, s.tx, late, err)
		return nil, &SaveError{key, s.engine == dialect.Standard && !sqlerr.KnowsSavepoints(err), err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.innermost = sp
	return sp, nil
}

// noSavepoints returns why the engine has none, nil if it has.
func (s *Slot) noSavepoints(key string) error {
	if err := s.engine.NoSavepoints(); err != nil {
		return fmt.Errorf("sqlreq: savepoint on key %q: %w", key, err)
	}
	return nil
}

// release ends a savepoint and keeps what was done in it. Where there is no statement
// for that it stays, and only a transaction that was ended through *sql.Tx is found out.
func (s *Slot) release(name string, send func(query string) error) error {
	if query := s.engine.Release(name); query != "" {
		return send(query)
	}
	if endedOutside(s.tx) {
		return sql.ErrTxDone
	}
	return nil
}

// SaveError is the error of a statement that was to begin a savepoint.
type SaveError struct {
	Key     string
	Unknown bool // nothing is known of the engine
	Err     error
}

// Error names the key.
func (e *SaveError) Error() string {
	hint := "close open rows first"
	if e.Unknown {
		hint += "; or this database has no savepoints, or spells them otherwise"
	}
	return fmt.Sprintf("sqlreq: savepoint on key %q (%s): %v", e.Key, hint, e.Err)
}

// Unwrap returns the error of the driver.
func (e *SaveError) Unwrap() error { return e.Err }

func (s *Slot) newSavepoint(ctx, unit context.Context, tx *sql.Tx) (sp *Savepoint, isOpen bool) {
	inside := Inside(ctx) // asks a context of the program: not under the mutex
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tx == nil || tx != nil && s.tx != tx {
		return nil, false
	}
	s.names++
	within := "sqlreq"
	if s.test != nil {
		within = s.test.name
	}
	return &Savepoint{slot: s, unit: unit, name: within + "_" + strconv.Itoa(int(s.names)), outer: s.innermost, context: inside, doubt: s.doubtful}, true
}

// lock keeps others from the transaction. No context ends the wait: a savepoint is
// rolled back to also when all of them have ended. The error is ErrFinished: the
// slot is closed, and the savepoint has ended with the transaction.
func (sp *Savepoint) lock() error {
	return sp.slot.Lock(context.Background(), context.Background())
}

// isInnermost returns an error if a savepoint inside of sp is still open.
func (sp *Savepoint) isInnermost() error {
	sp.slot.mu.Lock()
	defer sp.slot.mu.Unlock()
	if sp.slot.innermost != sp {
		return errors.New("sqlreq: a Savepoint inside of this one has not returned yet")
	}
	return nil
}

// MayRelease returns why Release would have to go back to sp instead, as far as
// that is known without a word to the driver; nil if nothing is known. It waits for
// the statements under way.
func (sp *Savepoint) MayRelease(key string) error {
	if err := sp.lock(); err != nil {
		return err
	}
	defer sp.slot.turn.Unlock()
	if err := sp.mayEnd(key); err != nil {
		return err
	}
	return sp.abortedError(key)
}

func (sp *Savepoint) abortedError(key string) error {
	aborted := sp.slot.abortedBy()
	if aborted == nil {
		return nil
	}
	return fmt.Errorf("sqlreq: a savepoint on key %q is rolled back, an error may have ended the transaction: %w", key, aborted)
}

// Release ends sp and keeps what was done in it. If that is impossible it goes
// back to sp and returns an error.
func (sp *Savepoint) Release(key string) error {
	if err := sp.lock(); err != nil {
		return err
	}
	defer sp.slot.turn.Unlock()
	if err := sp.mayEnd(key); err != nil {
		return err
	}
	if err := sp.abortedError(key); err != nil {
		return errors.Join(err, sp.rollBack(key))
	}
	if sp.bottom {
		sp.end(savepointReleased)
		return nil
	}
	if outcome, err := sp.send(sentRelease); outcome != Committed {
		return errors.Join(fmt.Errorf("sqlreq: release of a savepoint on key %q (close open rows first): %w", key, err), sp.rollBack(key))
	}
	sp.end(savepointReleased)
	s := sp.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doubtful = sp.doubt
	return nil
}

// RollBack ends sp and undoes what was done in it. If that fails the transaction
// is aborted. If it succeeds, a transaction that was aborted is open again: the
// server still knew the savepoint, so it had not ended the transaction.
func (sp *Savepoint) RollBack(key string) error {
	if err := sp.lock(); err != nil {
		return err
	}
	defer sp.slot.turn.Unlock()
	if err := sp.mayEnd(key); err != nil {
		return err
	}
	return sp.rollBack(key)
}

// mayEnd waits for the statements under way, whose errors count. It returns an
// error if a savepoint inside of sp is still open, or if the unit's context ends
// first: then the transaction can only be rolled back. The caller has the turn.
func (sp *Savepoint) mayEnd(key string) error {
	if err := sp.isInnermost(); err != nil {
		return err
	}
	s := sp.slot
	err := s.Quiet(sp.unit, sp.unit)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("sqlreq: the end of a savepoint on key %q waited in vain for a statement that is under way, the request can only roll back: %w", key, err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.abort(err)
	s.handedOut = true // by the statement, about which nothing is known yet
	return err
}

// rollBack is RollBack for who has the turn. That of a whole transaction is told by
// the slot's Last.
func (sp *Savepoint) rollBack(key string) error {
	if sp.bottom {
		sp.end(savepointRolledBack)
		sp.slot.End(sp.unit, false)
		return sp.slot.Last().Err
	}
	outcome, err := sp.send(sentRollbackTo)
	answer := answerOf(err) // calls methods of the driver's error: not under the mutex
	sp.end(savepointRolledBack)
	s := sp.slot
	if outcome == RolledBack {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sound()
		s.doubtful = sp.doubt
		return nil
	}
	err = fmt.Errorf("sqlreq: rollback to a savepoint on key %q failed (close open rows first), the request can only roll back: %w", key, err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reason == nil {
		s.handedOut = true // no statement has told that the transaction had ended
	}
	s.vanished = s.test == nil && answer == gone // a test's transaction is found again, or not, by the savepoint around
	s.abort(err)
	return err
}

// send sends what ends sp. What was rolled back to is released as well: a
// savepoint that is left costs a lock in a table that all sessions of a PostgreSQL
// share, and on SQLite each one more than the last.
func (sp *Savepoint) send(what sent) (outcome Outcome, err error) {
	s := sp.slot
	if what == sentRelease {
		err = s.release(sp.name, func(query string) error { return s.execPatiently(sp.unit, query) })
	} else {
		err = s.execPatiently(sp.unit, s.engine.RollbackTo(sp.name), s.engine.Release(sp.name))
	}
	outcome = judge(what, answerOf(err), known{})
	if outcome == Ended {
		err = endedError(s.by.Name())
	}
	return outcome, err
}

// end notes that sp has ended.
func (sp *Savepoint) end(how savepointState) {
	sp.slot.mu.Lock()
	defer sp.slot.mu.Unlock()
	sp.state, sp.slot.innermost = how, sp.outer
}
