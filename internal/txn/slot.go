// Package txn has one transaction at a time on one database: BEGIN once, whoever
// asks first, savepoints, COMMIT and ROLLBACK and what their answers mean. It
// knows no unit of work and no request.
//
// # The states of a slot
//
//	          Use                    BEGIN succeeded
//	┌─ idle ────────▶ beginning ─────────────────────▶ open ◀──────────┐
//	│   ▲  ▲              │                            │  │   went back to a
//	│   │  └──────────────┘                            │  │   savepoint
//	│   │   BEGIN failed, or came too late             │  ▼            │
//	│   └───────────────────────────── End ────────────┴─ aborted ─────┘
//	│                                                    (an error may have ended
//	└──▶ closed: by Close, from every state               it: no statement runs)
//
// A slot that is closed stays closed, and begins nothing any more. What is open then
// is ended by the one who has closed it, nobody else; if an error may end it
// meanwhile, or has before, the slot's reason tells. A BEGIN that is under way is
// cancelled; if it succeeds all the same, the goroutine that sent it rolls it back.
//
// # How a transaction ends
//
// There is one way in, [Slot.End]; the two ends of a savepoint have the same
// table. What was sent, what came back and what else is known decide, in one
// function (judge). E: a statement of a key met an error that may have ended the
// transaction, and nothing ran beside it or after it; or its begin was refused, so
// that nobody was given it. H: its *sql.Tx was handed out, so that nobody can tell
// what ran after such an end; or a statement before it may have ended the
// transaction without telling: one that MySQL commits before and after (DDL), or
// one that broke a constraint of SQLite, perhaps under OR ROLLBACK.
//
//	sent                          what came back                  what became of it
//	COMMIT, and RELEASE of a      success                         Committed
//	request's savepoint in a      the server's refusal            Refused
//	test's transaction            there is none                   Unknown
//	                              any other error, or it did      Unknown
//	                              not return
//	                              it was ended through *sql.Tx    Ended
//	Guard's RELEASE, before       success                         COMMIT is sent
//	COMMIT                        the server's refusal            Refused
//	                              there is none                   Unknown
//	                              any other error                 Refused; Unknown with H
//	                              it did not return               Unknown
//	                              it was ended through *sql.Tx    Ended
//	Guard's ROLLBACK TO, before   success, the server's refusal   RolledBack
//	ROLLBACK                      there is none                   RolledBack with E and without H; else Ended
//	                              any other error                 as the answer to ROLLBACK if that is "there is
//	                                                              none"; else RolledBack, Ended with H
//	                              it did not return               Unknown
//	                              it was ended through *sql.Tx    Ended
//	ROLLBACK, without Guard, and  success, any other error        RolledBack
//	ROLLBACK TO a request's       there is none                   RolledBack with E and without H; else Ended
//	savepoint in a test's         it did not return               Unknown
//	transaction                   it was ended through *sql.Tx    Ended; RolledBack if it was begun too
//	                                                              late, and database/sql ends it too
//	RELEASE of a Savepoint        success                         Committed: it belongs to what is around
//	                              any error                       Refused: it is there, to go back to
//	                              it was ended through *sql.Tx    Ended
//	ROLLBACK TO a Savepoint, and  success                         RolledBack: the transaction is sound
//	RELEASE of what is left       any error                       Unknown: the transaction is aborted
//	                              it was ended through *sql.Tx    Ended
//
// "There is none" is the answer that there is no such savepoint or no transaction
// (sqlerr.Gone). ROLLBACK without Guard counts as answered with it after a ROLLBACK TO
// a Savepoint was, whatever the driver says to ROLLBACK itself. A read-only transaction that ends well ends with ROLLBACK; where
// that succeeds and no error may have ended it before, it counts as Committed.
//
// # Locks
//
// In this order: the slot's turn, the slot's mutex. The turn is held while a driver
// is waited for, by one function from taking to giving back. The mutex is held for
// a few instructions, and never while a driver or a program is called.
//
// The turn at a test's transaction is no lock but a thing that a unit has: it is
// taken by BEGIN, with the slot's turn held, belongs to the open transaction and
// is given back when that has ended.
package txn

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sqlreq/sqlreq/internal/dialect"
	"github.com/sqlreq/sqlreq/internal/reason"
	"github.com/sqlreq/sqlreq/internal/sqlerr"
	"github.com/sqlreq/sqlreq/internal/turn"
)

var (
	// ErrBegun: a transaction is open, and not as this use wants it.
	ErrBegun = errors.New("sqlreq: the transaction has begun")
	// ErrFinished: the slot is closed.
	ErrFinished = errors.New("sqlreq: the request is finished; for later work use Registry.Do(context.WithoutCancel(ctx), ...)")
	// ErrTxEnded: the transaction was ended through *sql.Tx; endedByServer is one with another text.
	ErrTxEnded = errors.New("sqlreq: the transaction was ended through *sql.Tx; delete the defer tx.Rollback() or tx.Commit(), and use sqlreq.Commit or sqlreq.Rollback to end it early")
)

// endedByServer is the error of a transaction that others than *sql.Tx have ended.
func endedByServer(key string) error {
	return reason.OfKey(key, ErrTxEnded, "when the transaction was to be rolled back the server had ended it already, or the answer did not come; what ran after that end may have been committed")
}

func endedError(key string) error {
	return reason.OfKey(key, ErrTxEnded, "%s", strings.TrimPrefix(ErrTxEnded.Error(), "sqlreq: "))
}

// state is that of a slot; see the package comment.
type state uint8

const (
	idle      state = iota // none is open; the last one, if there was any, has ended
	beginning              // BEGIN is under way
	open
	aborted // open, but an error may have ended it: only a rollback is left
	closed  // for good; what is open is to be ended by who has closed the slot
)

// Opener is who begins a transaction: a key. Two of them are the same if they are equal.
type Opener interface {
	Name() string  // of the key
	Guarded() bool // whether its transactions are guarded by a savepoint
}

// Slot is where a unit of work has its transaction on one database. The zero
// Slot has none: call Init. It may be used from several goroutines.
type Slot struct {
	// Set by Init, only read from then on: no lock.
	db   *sql.DB
	test *testTx // nil for a *sql.DB

	// turn is held by who begins, ends or nests the transaction. It guards the
	// following fields; after Close they are those of who closed the slot. by is
	// written with mu as well, so that either is enough to read it.
	turn       turn.Turn
	by         Opener         // that began the transaction, the last one if none is open; written by startBegin
	opts       *sql.TxOptions // it was begun with; written by startBegin
	times      *Times         // nil if nobody wants to know; written by finishBegin, what it points to by settle
	number     int32          // in the order of the unit's BEGINs; written by begun
	names      int32          // how many names of savepoints were used in the transaction; written by startBegin and newSavepoint
	guarded    bool           // by a savepoint of its own; written by startBegin
	afterBegin bool           // an AfterBegin has run, or runs, in the transaction
	engine     Engine         // set by Init

	running atomic.Int32 // statements of keys under way in the transaction; grows with the mutex or the turn
	awaited atomic.Bool  // somebody waits until running is 0; written with the mutex

	mu        sync.Mutex         // guards what follows
	state     state              // written by to: for the turn's holder, for Note (open to aborted), and for Close
	outcome   Outcome            // of the last transaction that has ended; written by End
	tried     bool               // COMMIT was tried for it; written by End
	stored    bool               // something of it is stored, or may be; written by End
	handedOut bool               // H of the package comment, or as good as that; from false to true, by Use, Note and Savepoint
	overlap   bool               // statements under way, or since none was, have overlapped; written by startStatement
	doubtful  bool               // a statement may have ended the transaction and has not told; written by Use, Note and Savepoint
	vanished  bool               // there was no such savepoint when one was to be gone back to; written by startBegin and Savepoint
	ended     uint32             // how many have ended; written by End
	cancel    context.CancelFunc // of the context of BEGIN; nil before the first
	tx        *sql.Tx            // nil when none is open; written by who has the turn or has closed the slot, who reads it without the mutex
	innermost *Savepoint         // the innermost open one
	reason    error              // why the transaction is aborted, otherwise nil; the state, unless it is closed, says the same
	quiet     chan struct{}      // closed when no statement is under way; nil if nobody waits for that
	failed    *failure           // why the last transaction did not end as asked; nil if it did; written by End
}

// failure is what Result says in Err and Unheard; apart, since it is seldom there.
type failure struct{ err, unheard error }

// Times are when things happened to a transaction, for who wants to know.
type Times struct {
	Asked time.Time     // when the transaction was asked for
	Wait  time.Duration // for a connection and BEGIN
	Began time.Time     // when BEGIN had succeeded
	Open  time.Duration // from then to its end
	End   time.Duration // of COMMIT or ROLLBACK
}

// Engine is what is known of the database engine of a pool.
type Engine = dialect.Dialect

// EngineOf returns that of db, or of a test's open transaction.
func EngineOf(db *sql.DB, tx *sql.Tx) Engine {
	if tx != nil {
		return dialect.OfTx(tx)
	}
	return dialect.Of(db)
}

// Init makes s a slot on db, or on a test's open transaction.
func (s *Slot) Init(db *sql.DB, tx *sql.Tx, engine Engine) {
	s.db, s.engine = db, engine
	if tx != nil {
		s.test = &testTx{tx: tx}
	}
}

// Of reports whether s is a slot on db, or on the test's transaction.
func (s *Slot) Of(db *sql.DB, tx *sql.Tx) bool { return s.db == db && s.testTx() == tx }

// DB returns the pool, nil for a test's transaction.
func (s *Slot) DB() *sql.DB { return s.db }

// Engine returns that of the database.
func (s *Slot) Engine() Engine { return s.engine }

// Lock waits until nobody begins, ends or nests the transaction, and keeps others
// from it until Unlock. It returns the error of the context that ended before,
// or ErrFinished.
func (s *Slot) Lock(ctx, unit context.Context) error {
	if !s.turn.TryLock() {
		if err := s.turn.LockEither(ctx, unit); err != nil {
			return err
		}
	}
	if s.isClosed() {
		s.turn.Unlock()
		return ErrFinished
	}
	return nil
}

func (s *Slot) isClosed() bool {
	s.mu.Lock()
	is := s.state == closed
	s.mu.Unlock()
	return is
}

// to changes the state, but for that of a closed slot. The caller holds s.mu.
func (s *Slot) to(next state) {
	if s.state != closed {
		s.state = next
	}
}

// TryLock is Lock where that needs no wait, and reports whether it is so. It does
// not look whether the slot is closed.
func (s *Slot) TryLock() bool { return s.turn.TryLock() }

// Unlock ends what Lock began.
func (s *Slot) Unlock() { s.turn.Unlock() }

// Open reports whether a transaction is open.
func (s *Slot) Open() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tx != nil && s.state != beginning
}

// Sound reports whether a transaction is open that may be committed, as far as the
// statements of keys have told.
func (s *Slot) Sound() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tx != nil && s.state == open
}

// Begun reports whether a transaction is open or being begun.
func (s *Slot) Begun() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tx != nil || s.state == beginning
}

// Busy reports whether a transaction is open, or being begun, ended or nested.
func (s *Slot) Busy() bool { return s.turn.Taken() || s.Open() }

// Number is that of the open transaction in the order of the unit's BEGINs. The
// caller has the turn, or has closed the slot.
func (s *Slot) Number() int32 { return s.number }

// Opener returns who began the open transaction, or the last one.
func (s *Slot) Opener() Opener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by
}

// Ended returns how many transactions have ended in s.
func (s *Slot) Ended() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// InSavepoint reports whether a savepoint is open.
func (s *Slot) InSavepoint() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.innermost != nil
}

// Close keeps everybody from the transaction for good, and reports whether one
// is open: it is the caller's to end. Where the slot is closed already it is not. A
// BEGIN under way is cancelled and not waited for: it may take long, and whoever sent
// it ends what it began. Close waits for a Commit, a Rollback, and the begin or the
// end of a Savepoint.
func (s *Slot) Close() (isOpen bool) {
	isOpen, wait := s.shut()
	if !wait {
		return isOpen
	}
	_ = s.turn.Lock(context.Background()) // which does not end
	s.turn.Unlock()
	return s.Open()
}

// Shut closes the slot and waits for nobody: a BEGIN under way is cancelled, what is
// open may be used or ended meanwhile.
func (s *Slot) Shut() { s.shut() }

// shut closes the slot, and reports whether a transaction is open, or whether that
// is known only when the turn is free. Who takes the turn from now on sees that the
// slot is closed, and gives it back at once.
func (s *Slot) shut() (isOpen, wait bool) {
	s.mu.Lock()
	switch s.state {
	case beginning:
		s.cancel()
	case idle, open, aborted:
		isOpen, wait = s.tx != nil, s.turn.Taken()
	}
	s.state = closed
	s.mu.Unlock()
	return isOpen, wait
}

// Note remembers what the error of a statement on tx says about the transaction.
// late is whether ctx had ended before the statement, which then did not run.
func (s *Slot) Note(ctx context.Context, tx *sql.Tx, late bool, err error) {
	ends := !late && (sqlerr.EndsTx(err) || ctx.Err() != nil) // calls methods of the driver's error: not under the mutex
	doubtful := !late && !ends && sqlerr.MayHaveRolledBack(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tx == tx && doubtful {
		s.doubtful = true
	}
	if !ends || s.tx != tx {
		return
	}
	s.abort(err)
	if s.overlap {
		s.handedOut = true // what ran beside it may have run after the end, and may have returned before this
	}
}

// startStatement notes that a statement of a key is under way, until Done. The caller
// holds s.mu.
func (s *Slot) startStatement() { s.overlap = s.running.Add(1) > 1 }

// Done ends what Use began for a statement: the statement has returned.
func (s *Slot) Done() {
	if s.running.Add(-1) == 0 && s.awaited.Load() {
		s.becomeQuiet()
	}
}

func (s *Slot) becomeQuiet() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.quiet != nil {
		close(s.quiet)
		s.quiet = nil
		s.awaited.Store(false)
	}
}

// Running reports whether a statement of a key is under way. In a slot that is closed
// none comes any more.
func (s *Slot) Running() bool { return s.running.Load() > 0 }

// Quiet waits until no statement of a key is under way. The caller has the turn,
// or has closed the slot, so that none comes meanwhile. If the unit's context or
// ctx ends first it returns the error of that.
func (s *Slot) Quiet(ctx, unit context.Context) error {
	quiet := s.whenQuiet()
	if s.running.Load() == 0 {
		return nil
	}
	select {
	case <-quiet:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-unit.Done():
		return unit.Err()
	}
}

// whenQuiet returns what is closed by the Done after which no statement is under
// way. One that comes before running is looked at, after this, needs not to close it.
func (s *Slot) whenQuiet() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running.Load() == 0 {
		return nil
	}
	if s.quiet == nil {
		s.quiet = make(chan struct{})
	}
	s.awaited.Store(true)
	return s.quiet
}

// abort notes that only a rollback is left. The caller holds s.mu.
func (s *Slot) abort(err error) {
	s.to(aborted)
	s.reason = err
}

// sound notes that the transaction is known to be alive. The caller holds s.mu.
func (s *Slot) sound() {
	s.to(open)
	s.reason, s.vanished = nil, false
}

// abortedBy returns why only a rollback is left, nil if that is not so.
func (s *Slot) abortedBy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reason
}

// Gone explains a statement's sql.ErrTxDone on tx: nil means that tx was ended by
// this slot, so that the next use begins a new transaction.
func (s *Slot) Gone(ctx, unit context.Context, tx *sql.Tx, key string) error {
	if err := s.Lock(ctx, unit); err != nil {
		return beginError(key, err)
	}
	defer s.turn.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tx == tx {
		return endedError(key)
	}
	return nil
}

// beginError is err as that of a use of the key; ErrFinished stays as it is.
func beginError(key string, err error) error {
	if err == ErrFinished {
		return err
	}
	return &BeginError{Key: key, Err: err}
}

// BeginError is what a use gets when there is no transaction for it.
type BeginError struct {
	Key string
	Err error
}

// Error names the key.
func (b *BeginError) Error() string { return fmt.Sprintf("sqlreq: begin on key %q: %v", b.Key, b.Err) }

// Unwrap returns the error of the driver or of the context.
func (b *BeginError) Unwrap() error { return b.Err }

// foreign is a statement of no database, for endedOutside.
var foreign sql.Stmt

// endedOutside reports whether tx was committed or rolled back, without a word to
// the driver: Tx.StmtContext looks for that first, and refuses a statement of
// another database next (database/sql, Tx.grabConn and Tx.StmtContext).
func endedOutside(tx *sql.Tx) bool {
	return errors.Is(tx.StmtContext(context.Background(), &foreign).Close(), sql.ErrTxDone)
}
