package txn

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/sqlreq/sqlreq/internal/dialect"
	"github.com/sqlreq/sqlreq/internal/reason"
	"github.com/sqlreq/sqlreq/internal/sqlerr"
)

// Purpose is what a transaction is asked for.
type Purpose uint8

const (
	ForStatement  Purpose = iota // which tells by its error if the transaction was ended; Done ends it
	ForPrepare                   // the same for a statement that is prepared
	ForCommitting                // the same for a statement that may commit by itself
	ForSavepoint
	ForCaller   // who gets the *sql.Tx
	WithOptions // likewise, with given options: it must be new
)

// PurposeOf returns what a transaction is asked for by a statement.
func PurposeOf(statement string) Purpose {
	if dialect.MayCommit(statement) {
		return ForCommitting
	}
	return ForStatement
}

// Ask is a use of a key.
type Ask struct {
	Opener  Opener
	Options *sql.TxOptions // nil: the driver's defaults
	Purpose Purpose
	Timed   bool            // whether somebody wants the Times
	Unit    context.Context // that of the unit: its end ends the wait too
	Begins  *atomic.Int32   // counts the BEGINs of the unit
	Nest    func() *Nest    // where a transaction in a test's is nested; nil, or a nil result: in the test's itself

	AfterBegin func(context.Context, *sql.Tx) error // runs in a new transaction before anybody gets it; nil: nothing
	Groups     Groups                               // of the unit; nil: it has none

	RollsBack bool    // set by Use: the transaction ends with ROLLBACK in any case
	Refused   *Result // set by Use, also if a driver does not return: of a transaction that was begun and ended at once
}

// Groups tells the innermost Group that a new transaction is begun in, as a whole;
// nil if none is open. The error is that of a context which is not inside of it.
type Groups interface {
	GroupFor(ctx context.Context, o Opener) (*Group, error)
}

func (a *Ask) now() time.Time {
	if !a.Timed {
		return time.Time{}
	}
	return time.Now()
}

// Use returns the open transaction, begun if there is none. Waiting for it ends
// with ctx or the unit's context; its life, once begun, ends with no context. If
// there is none the error is a *BeginError, or ErrFinished.
func (s *Slot) Use(ctx context.Context, a *Ask) (*sql.Tx, error) {
	if a.Purpose == ForSavepoint && s.engine.NoSavepoints() != nil {
		return nil, s.noSavepoints(a.Opener.Name())
	}
	if err := s.Lock(ctx, a.Unit); err != nil { // from then on who closes the slot waits for the turn
		return nil, beginError(a.Opener.Name(), err)
	}
	defer s.turn.Unlock()
	if s.tx == nil {
		return s.beginIn(ctx, a)
	}
	return s.share(ctx, a)
}

// Join is Use without the turn, for a further statement of the key that began the
// transaction, while nobody is at it. Who takes the turn after it was looked at
// sees by Quiet, which takes the mutex, that the statement is under way. It returns
// nil where there is more to look at, by Use.
func (s *Slot) Join(opener Opener) (tx *sql.Tx, rollsBack bool) {
	s.mu.Lock()
	if s.state == open && s.names == 0 && s.by == opener && !s.turn.Taken() {
		s.startStatement()
		tx, rollsBack = s.tx, s.EndsWithRollback()
	}
	s.mu.Unlock()
	return tx, rollsBack
}

// give notes that a is given the open transaction. The caller has the turn and s.mu.
func (s *Slot) give(a *Ask) {
	a.RollsBack = s.EndsWithRollback()
	if a.Purpose == ForStatement || a.Purpose == ForPrepare || a.Purpose == ForCommitting {
		s.startStatement()
	}
	if a.Purpose == ForPrepare || a.Purpose == ForCaller || a.Purpose == WithOptions {
		s.handedOut = true
	}
	if a.Purpose == ForCommitting {
		s.doubtful = true
	}
}

// share returns the transaction that is open. The caller has the turn.
func (s *Slot) share(ctx context.Context, a *Ask) (*sql.Tx, error) {
	s.mu.Lock()
	aborted, innermost := s.reason, s.innermost
	s.mu.Unlock()
	if err := s.mayShare(a, s.tx, aborted); err != nil {
		return nil, err
	}
	if a.Purpose != ForSavepoint && s.around(ctx) != innermost {
		if innermost == nil {
			return nil, fmt.Errorf("sqlreq: key %q: the Savepoint of this context was rolled back; use the context around it", a.Opener.Name())
		}
		return nil, fmt.Errorf("sqlreq: key %q: a Savepoint is open, and this context is not that of the innermost one, so that the work would be rolled back with it; pass on the context that its function was given", a.Opener.Name())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.give(a)
	return s.tx, nil
}

// mayShare returns why a may not use the transaction that is open, nil if it may.
// The key that began it may in any case: its options may be those of BeginTx. The
// caller has the turn.
func (s *Slot) mayShare(a *Ask, tx *sql.Tx, aborted error) error {
	key := a.Opener.Name()
	switch {
	case a.Purpose == WithOptions:
		return reason.OfKey(key, ErrBegun, "BeginTx, but a transaction is open already on this pool (begun by key %q); call BeginTx before any other use", s.by.Name())
	case s.by != a.Opener && !sameOptions(s.opts, a.Options):
		return reason.OfKey(key, ErrBegun, "the transaction open on this pool was begun by key %q with other options; keys of one pool share a transaction, give them the same TxOptions", s.by.Name())
	case s.by != a.Opener && s.by.Guarded() != a.Opener.Guarded():
		return reason.OfKey(key, ErrBegun, "the transaction open on this pool was begun by key %q, of which only one has a Guard; keys of one pool share a transaction, give them the same Guard", s.by.Name())
	case s.by != a.Opener && s.afterBegin != (a.AfterBegin != nil):
		return reason.OfKey(key, ErrBegun, "the transaction open on this pool was begun by key %q, and only one of the two has an AfterBegin; keys of one pool share a transaction, give them the same AfterBegin", s.by.Name())
	case a.Purpose == ForCaller && endedOutside(tx): // others learn it by their statement
		return endedError(key)
	case aborted != nil:
		return abortedError(key, aborted)
	}
	return nil
}

func abortedError(key string, aborted error) error {
	return fmt.Errorf("sqlreq: key %q: an error may have ended the transaction, no further statement runs; call Rollback to begin anew: %w", key, aborted)
}

// Chosen returns a copy of opts, nil if they are the driver's defaults.
func Chosen(opts *sql.TxOptions) *sql.TxOptions {
	if opts == nil || *opts == (sql.TxOptions{}) {
		return nil
	}
	o := *opts
	return &o
}

func sameOptions(a, b *sql.TxOptions) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// errNotReturned is the error of a driver that panics or exits the goroutine.
var errNotReturned = errors.New("sqlreq: the driver, or AfterBegin, did not return")

// beginIn begins the transaction in the innermost group. The caller has the turn: a
// group that is opened from now on finds the transaction, or waits for it.
func (s *Slot) beginIn(ctx context.Context, a *Ask) (*sql.Tx, error) {
	var in *Group
	if a.Groups != nil {
		var err error
		if in, err = a.Groups.GroupFor(ctx, a.Opener); err != nil {
			return nil, err
		}
	}
	tx, err := s.begin(ctx, a)
	if err == nil && in != nil {
		s.enter(in)
	}
	return tx, err
}

// begin begins the transaction. The caller has the turn.
//
// With BeginTx(ctx) the transaction's life would be bound to ctx as well:
// database/sql rolls it back when ctx ends (Tx.awaitDone), drops the connection
// of a driver without SessionResetter, and pgx reports commits that happened as
// cancelled. So BEGIN has a context of its own, which ctx and the unit's context
// end only while there is something to wait for. It is not cancelled when BEGIN has
// succeeded, which would end the transaction; it has no parent that keeps it.
func (s *Slot) begin(ctx context.Context, a *Ask) (tx *sql.Tx, err error) {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	if !s.startBegin(a, cancel) {
		cancel()
		return nil, ErrFinished
	}
	start := a.now()
	var stop, stopUnit func() bool
	err = errNotReturned // which stays if the driver panics
	defer func() {
		inTime := false
		defer func() { tx, err = s.finishBegin(a, tx, err, start, inTime) }() // also if a context panics: stop asks for its Done
		inTime = stop == nil || stop()
		inTime = (stopUnit == nil || stopUnit()) && inTime
	}()
	if err := ctx.Err(); err != nil {
		return nil, err // AfterFunc would cancel from a goroutine of its own: perhaps after the BEGIN
	}
	if ctx.Done() != a.Unit.Done() { // in most uses it is the same
		if err := a.Unit.Err(); err != nil {
			return nil, err
		}
		stop = context.AfterFunc(ctx, cancel)
	}
	stopUnit = context.AfterFunc(a.Unit, cancel)
	begun, failed := s.sendBegin(own, a) // and not err, which stays until AfterBegin has returned
	if failed != nil || a.AfterBegin == nil {
		return begun, failed
	}
	s.startAfterBegin()
	return begun, a.AfterBegin(ctx, begun)
}

func (s *Slot) startAfterBegin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.afterBegin = true
}

// startBegin reports whether a BEGIN may be sent, and notes that one is under way.
func (s *Slot) startBegin(a *Ask, cancel context.CancelFunc) bool {
	guarded := s.test == nil && a.Opener.Guarded() // in a test's transaction it is a savepoint already
	s.mu.Lock()
	may := s.state != closed
	if may {
		s.by, s.opts, s.names, s.times, s.guarded, s.afterBegin = a.Opener, a.Options, 0, nil, guarded, false
		s.state, s.cancel = beginning, cancel
		s.handedOut, s.doubtful, s.vanished = false, false, false
	}
	s.mu.Unlock()
	return may
}

// sendBegin sends BEGIN, and Guard's savepoint, or the savepoint in a test's
// transaction. What it returns has begun, also if there is an error.
func (s *Slot) sendBegin(ctx context.Context, a *Ask) (*sql.Tx, error) {
	if s.test != nil {
		return s.beginInTest(ctx, a.Nest)
	}
	tx, err := s.beginTx(ctx)
	if err != nil {
		return nil, err
	}
	bySavepoint := s.guarded && s.engine.GuardsBySavepoint()
	if bySavepoint || a.AfterBegin != nil {
		s.setTx(tx) // before anything else runs: if that does not return, finishBegin rolls back what is set
	}
	if bySavepoint {
		_, err = tx.ExecContext(ctx, guardSavepoint)
	}
	return tx, err
}

// beginTx sends BEGIN, without the read-only flag where the driver, database/sql or the
// server (TiDB) would refuse it: a read-only transaction ends with ROLLBACK anyway.
func (s *Slot) beginTx(ctx context.Context) (*sql.Tx, error) {
	if s.opts == nil || !s.opts.ReadOnly {
		return s.beginWith(ctx, s.opts)
	}
	if s.engine.IgnoresReadOnly() {
		return s.beginWith(ctx, writable(s.opts))
	}
	tx, err := s.beginWith(ctx, s.opts)
	if err != nil && s.EndsWithRollback() && sqlerr.RefusesReadOnly(err) {
		return s.beginWith(ctx, writable(s.opts))
	}
	return tx, err
}

// beginWith sends BEGIN with the options.
func (s *Slot) beginWith(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error) {
	if s.engine.KeepsRefused() {
		return s.beginOnConn(ctx, opts)
	}
	return s.db.BeginTx(ctx, opts)
}

// writable returns a copy of opts without the read-only flag.
func writable(opts *sql.TxOptions) *sql.TxOptions {
	return Chosen(&sql.TxOptions{Isolation: opts.Isolation})
}

// guardName is that of Guard's savepoint.
const guardName = "sqlreq_guard"

// The statements about Guard's savepoint, made once.
var (
	guardSavepoint  = dialect.Standard.Savepoint(guardName)
	guardRelease    = dialect.Standard.Release(guardName)
	guardRollbackTo = dialect.Standard.RollbackTo(guardName)
)

func (s *Slot) setTx(tx *sql.Tx) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tx = tx
}

// finishBegin notes what came of a BEGIN, also of one that did not return; then tx
// is nil. inTime is whether no context has ended meanwhile. A transaction that has
// begun and that nobody may use is rolled back here: nobody else would end it.
func (s *Slot) finishBegin(a *Ask, tx *sql.Tx, err error, start time.Time, inTime bool) (*sql.Tx, error) {
	if a.Timed {
		now := time.Now()
		s.times = &Times{Asked: start, Wait: now.Sub(start), Began: now}
	}
	tx, tooLate := s.begun(a, tx, err == nil && inTime)
	if err == nil && inTime && !tooLate {
		return tx, nil
	}
	refused := &BeginError{Key: a.Opener.Name(), Err: err}
	if err == nil {
		refused.Err = context.Canceled // package unit replaces it by the error of the context that has ended
	}
	if tx != nil {
		s.end(&ending{unit: a.Unit, refused: !s.afterBegin, late: tooLate || !inTime, cause: err})
		r := s.Result()
		a.Refused = &r
	}
	if s.isClosed() {
		refused.Err = ErrFinished // Close has cancelled BEGIN: its error says nothing of the reason
	}
	return nil, refused
}

// begun notes that BEGIN has returned tx, nil if it did not, and reports whether the
// slot was closed meanwhile. If not, Close finds the transaction from now on, and who
// closes ends it; a is given it if it may be.
func (s *Slot) begun(a *Ask, tx *sql.Tx, may bool) (_ *sql.Tx, tooLate bool) {
	s.mu.Lock()
	if tx != nil {
		s.tx = tx
	}
	if s.tx != nil {
		s.to(open)
		s.number = a.Begins.Add(1)
	} else {
		s.to(idle)
	}
	tooLate = s.state == closed
	if may && !tooLate {
		s.give(a)
	}
	tx = s.tx
	s.mu.Unlock()
	return tx, tooLate
}
