// Package unit has one outcome for the transactions of a unit of work: an attempt
// at a request, or at a Registry.Do. It knows no net/http: what it needs of the
// program it asks a Host and a Binding.
//
// # The states of a unit
//
//	   ┌───────────▶ hijacked ───┐
//	   │                         ▼
//	running ──▶ deciding ──▶ ending ──▶ ended
//	   └─────────────────────────▲
//
// While it is running, statements, Commit, Rollback and Savepoint are welcome,
// and so are hooks. It is deciding while the BeforeCommit functions run, after
// Finish has asked the host: only Commit, Rollback and Hijack are refused then. A
// unit without such functions, and one that is not to commit, goes from running to
// ending at once. That closes every slot first (package txn), so that nothing begins
// any more, then what is open is ended, and the unit has ended. The hooks run last.
//
// A unit whose connection was hijacked begins nothing any more either: its slots
// are closed, and so is every slot that it gets later. It ends with the program's
// return all the same.
//
// # Locks
//
// In this order: the turn at a source's choice, the turn of a slot, the unit's
// mutex, a slot's mutex. The mutex is held for a few instructions; no function of
// the program is called under it. Turns are held while Route and TxOptions, or a
// driver, are waited for. An AfterBegin runs with the turn of its slot, and may take
// those of others: waits in a circle are found out (asking.go). EndOpen takes the
// turns of all slots, and waits for none while it has another.
package unit

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/sqlreq/sqlreq/internal/reason"
	"github.com/sqlreq/sqlreq/internal/repeat"
	"github.com/sqlreq/sqlreq/internal/txn"
)

// Host is the attempt, at a request or at a Registry.Do, that a unit of work
// belongs to.
type Host interface {
	Context() context.Context              // the caller's: its end ends every wait
	Outer() *Unit                          // the unit that this one is inside of, nil if there is none
	Within() Within                        // how this one is inside of Outer
	Retryable(err error) bool              // whether the same work may succeed when it is done again
	Commits(status int, joined []any) bool // whether the answer is one to commit; joined is what Join was given
	Answered() bool                        // whether the program has answered anything
}

// Within says how a unit is inside of another one.
type Within struct {
	Repeats bool // it runs again with each attempt at the outer one, by its nature: in a Route, an AfterRollback function, that runs
	Waits   bool // the outer one waits for it: its context is that of the outer one, or of a function that it runs
}

// Binding is a key and its database, as the program has bound them.
type Binding interface {
	Name() string
	Guarded() bool
	Pool() (*sql.DB, *sql.Tx, txn.Engine)              // both nil: Route tells
	Chooses() (route, options bool)                    // which of the next two are to be asked
	AskRoute(ctx, at context.Context) (*sql.DB, error) // at is the context of who asks
	AskTxOptions(ctx, at context.Context) *sql.TxOptions
	HasAfterBegin() bool
	RunAfterBegin(ctx, at context.Context, tx *sql.Tx) error // at is the context of who asks
	Observed() bool                                          // whether Observe is to be called
	Observe(u *Unit, r txn.Result)                           // a panic of the program's function does not come out
	RunHook(ctx context.Context, fn func(context.Context))   // the same
	CommitError(committed []string, ambiguous bool, err error) error
}

// state is that of a unit; see the package comment.
type state uint8

const (
	running  state = iota
	deciding       // BeforeCommit functions run
	hijacked       // every slot is closed; the program goes on
	ending         // every slot is closed, or is being closed; transactions end
	ended          // every transaction has ended; the hooks run, or have run
)

// Unit is a unit of work. It ends once. The zero Unit is not usable: call Init.
// It may be used from several goroutines.
type Unit struct {
	host Host // set by Init, only read from then on: no lock

	failed atomic.Pointer[failure] // the first; nil if nothing has failed; from nil to a failure once, by fail, which replaces one that does not count
	used   atomic.Pointer[used]    // nil in a unit that has asked for nothing; from nil to a used once, by use, with mu

	mu        sync.Mutex // guards what follows, and what used holds
	attempt   int32      // from 1; set by Init, only read from then on: no lock; here it fills a gap (see sqlreq's firstAttempt)
	state     state      // written by startEnding and lastHooks, only onward
	committed bool       // something is stored, or may be, or an AfterCommit function ran; from false to true once, by Keep

	sawConflict bool // by a statement, or a begin; from false to true once, by Met
	timedOut    bool // a wait for a transaction; from false to true once, by noteTimedOut
}

// failure is why a unit of work fails.
type failure struct {
	err error
	// only is whether nothing but the transactions fails: the answer stands.
	only bool
	// begun is whether it counts only where a transaction was begun.
	begun bool
	at    context.Context // of the handler that failed; nil: of the host itself
}

// used is what a unit of work has used. Most use one key of one database: the
// first of each is part of it, so that one allocation does for all, of 288 bytes,
// which is one of the sizes that Go allocates (TestG3InsertAllocations counts). The
// unit's mutex guards it, but for begins.
type used struct {
	sources atomic.Pointer[Source] // a list: the first, then the others, the newest first; written by sourceOf, with the mutex
	slots   *slot                  // a list of the same kind; written by slotOf, and not after the unit has begun to end
	hooks   []hook                 // in the order of registration; written by AddHook, takeHooks and lastHooks
	seldom  atomic.Pointer[seldom] // what few units need; nil in the others

	asking atomic.Int32 // functions of the program that are being asked
	begins atomic.Int32 // how many BEGINs have succeeded; written by txn.Slot

	firstSource Source // the memory of the first of sources
	firstSlot   slot   // the memory of the first of slots
}

// seldom is what few units need.
type seldom struct {
	joined  []any // in the order of Join, which writes it
	warned  bool  // of a write in a read-only transaction
	unknown error // the first of a transaction about which nobody knows how it has ended

	befores  []before             // BeforeCommit functions that have not run, in the order of registration
	deciding []*decision          // for explicit Commits and Hijack, until they are over
	order    []*txn.Slot          // whose BeforeCommit functions have run, the last one last
	recorded []*txn.Slot          // in whose open transaction the record of the request was written: see package repeat
	begins   map[*txn.Slot]*asked // of AfterBegin

	group atomic.Pointer[txn.Group] // the innermost Atomic that is open, nil if none is; written with the mutex

	commitFailed bool // a COMMIT was tried, and failed

	recordLost bool             // the answer to the COMMIT of the record did not come; from false to true once, by noteEnd
	persist    Persist          // see PersistInBegin, which writes it
	ends       []repeat.Ender   // in the order of AtEnd, which writes it
	checks     []repeat.Checker // in the order of BeforeEnd, which writes it, and not after the unit has begun to end

	firstBefore               [1]before         // the memory of the first of befores
	firstOrder, firstRecorded [1]*txn.Slot      // that of order and recorded
	firstEnd                  [1]repeat.Ender   // that of ends
	firstCheck                [1]repeat.Checker // that of checks
}

// rare returns what few units need. The caller holds u.mu.
func (u *Unit) rare() *seldom {
	use := u.use()
	rare := use.seldom.Load()
	if rare == nil {
		rare = new(seldom)
		rare.befores, rare.order = rare.firstBefore[:0], rare.firstOrder[:0]
		rare.recorded, rare.ends = rare.firstRecorded[:0], rare.firstEnd[:0]
		rare.checks = rare.firstCheck[:0]
		use.seldom.Store(rare)
	}
	return rare
}

// ifRare returns what few units need, nil where it was not needed so far.
func (u *Unit) ifRare() *seldom {
	use := u.used.Load()
	if use == nil {
		return nil
	}
	return use.seldom.Load()
}

// slot is a txn.Slot in the unit's list.
type slot struct {
	txn.Slot       // has locks of its own
	next     *slot // guarded by the unit's mutex until it ends; not written afterwards
}

// Init makes u the host's unit of work. Attempts count from 1.
func (u *Unit) Init(host Host, attempt int) {
	u.host, u.attempt = host, int32(attempt)
}

// Host returns what Init was given.
func (u *Unit) Host() Host { return u.host }

// Attempt returns what Init was given.
func (u *Unit) Attempt() int { return int(u.attempt) }

// use returns what the unit has used, and makes it at the first use. The caller
// holds u.mu.
func (u *Unit) use() *used {
	use := u.used.Load()
	if use == nil {
		use = new(used)
		u.used.Store(use)
	}
	return use
}

// Over reports whether the transactions of u are no longer to be used.
func (u *Unit) Over() bool { return u.Refused() != nil }

// ErrHijacked is what a use gets when the connection was hijacked.
var ErrHijacked = reason.New(txn.ErrFinished, "sqlreq: the connection was hijacked, and nothing begins in its request any more; use Registry.Do for each message")

// Refused returns why the transactions of u are no longer to be used, nil if they are.
func (u *Unit) Refused() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.refused()
}

// refused is Refused for who holds u.mu.
func (u *Unit) refused() error {
	switch {
	case u.state >= ending:
		return txn.ErrFinished
	case u.state == hijacked:
		return ErrHijacked
	}
	return nil
}

// ofEnd returns the error of a slot that is closed as that of the unit.
func (u *Unit) ofEnd(err error) error {
	if err != txn.ErrFinished {
		return err
	}
	return cmp.Or(u.Refused(), err)
}

// Join notes, once, that somebody takes part in the decision: see Host.Commits.
func (u *Unit) Join(who any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	rare := u.rare()
	for _, j := range rare.joined {
		if j == who {
			return
		}
	}
	rare.joined = append(rare.joined, who)
}

// Joined reports whether somebody does.
func (u *Unit) Joined() bool { return len(u.joined()) > 0 }

func (u *Unit) joined() []any {
	rare := u.ifRare()
	if rare == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return rare.joined
}

// Fail makes the unit fail with err, unless it has failed already; nil does
// nothing. at is the context of who fails.
func (u *Unit) Fail(at context.Context, err error) error {
	u.mu.Lock() // until it has failed: startEnding comes before both, or after both
	defer u.mu.Unlock()
	if refused := u.refused(); refused != nil {
		return refused
	}
	u.fail(at, err)
	return nil
}

func (u *Unit) fail(at context.Context, err error) {
	if err != nil {
		u.failFor(&failure{err: err, at: at})
	}
}

// failFor makes the unit fail for f, unless it has failed already, or there is no error.
func (u *Unit) failFor(f *failure) {
	if f.err == nil || u.failure() != nil {
		return
	}
	if !u.failed.CompareAndSwap(nil, f) {
		if first := u.failed.Load(); first.begun && !u.hasBegun() {
			u.failed.CompareAndSwap(first, f)
		}
	}
}

// FailIfBegun is Fail with an error that counts only if a transaction was begun in
// the unit, or is yet to be.
func (u *Unit) FailIfBegun(at context.Context, err error) error {
	u.mu.Lock() // as in Fail
	defer u.mu.Unlock()
	if refused := u.refused(); refused != nil {
		return refused
	}
	u.failed.CompareAndSwap(nil, &failure{err: err, at: at, begun: true})
	return nil
}

// hasBegun reports whether a transaction was begun in the unit.
func (u *Unit) hasBegun() bool {
	use := u.used.Load()
	return use != nil && use.begins.Load() > 0
}

// failure returns the first failure that counts, nil if there is none.
func (u *Unit) failure() *failure {
	f := u.failed.Load()
	if f != nil && f.begun && !u.hasBegun() {
		return nil
	}
	return f
}

// RollbackOnly makes the unit roll back because of err, unless it has failed
// already; what the program has answered stands.
func (u *Unit) RollbackOnly(at context.Context, err error) error {
	u.mu.Lock() // as in Fail
	defer u.mu.Unlock()
	if refused := u.refused(); refused != nil {
		return refused
	}
	u.failed.CompareAndSwap(nil, &failure{err: err, at: at, only: true})
	return nil
}

// AnswerStands reports whether the first failure was a RollbackOnly.
func (u *Unit) AnswerStands() bool {
	f := u.failure()
	return f != nil && f.only
}

// failByItself makes the unit fail with err, which is of nobody in particular.
func (u *Unit) failByItself(err error) { u.failFor(&failure{err: err}) }

// Err returns the first failure, nil if nothing has failed.
func (u *Unit) Err() error {
	if f := u.failure(); f != nil {
		return f.err
	}
	return nil
}

// result returns the first failure and, if it is another, the end of a transaction
// about which nobody knows how it was.
func (u *Unit) result() error {
	if u.ifRare() == nil {
		return u.Err() // nothing ended in an unknown way
	}
	err, unknown := u.Err(), u.unknown()
	if unknown == nil || tells(err, unknown) { // which calls methods of the program's error: not under the mutex
		return err
	}
	return errors.Join(err, unknown)
}

// unknown returns the end of a transaction about which nobody knows how it was, nil
// if there is none.
func (u *Unit) unknown() error {
	rare := u.ifRare()
	if rare == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return rare.unknown
}

// tells reports whether err has unknown in its tree, or is ErrTxEnded. One of the
// program's whose methods panic, as those of a typed nil often do, does not.
func tells(err, unknown error) (does bool) {
	defer func() { _ = recover() }()
	return errors.Is(err, unknown) || errors.Is(err, txn.ErrTxEnded)
}

// FailedAt returns the context of who failed first, nil if nothing has failed, or
// nobody in particular.
func (u *Unit) FailedAt() context.Context {
	if f := u.failure(); f != nil {
		return f.at
	}
	return nil
}

// Keep notes that something of u, and so of the units around it, stays: none of
// them is run again. What is repeated with each attempt by its nature forbids none.
func (u *Unit) Keep() {
	for u != nil {
		u.mu.Lock()
		u.committed = true
		u.mu.Unlock()
		outer := u.host.Outer()
		if outer == nil || u.host.Within().Repeats {
			return
		}
		u = outer
	}
}

// Committed reports whether something of u is stored, or may be, or an
// AfterCommit function has run. What RecordLost tells of does not count.
func (u *Unit) Committed() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.committed
}

// SawConflict reports whether a statement, or a begin, met a conflict.
func (u *Unit) SawConflict() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sawConflict
}

// hasTimedOut reports whether the program waited for a transaction in vain.
func (u *Unit) hasTimedOut() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.timedOut
}

// CommitFailed reports whether a COMMIT was tried, and failed.
func (u *Unit) CommitFailed() bool {
	rare := u.ifRare()
	if rare == nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return rare.commitFailed
}

// WarnOnce reports whether it is the first call.
func (u *Unit) WarnOnce() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	rare := u.rare()
	first := !rare.warned
	rare.warned = true
	return first
}

// FirstKey returns the first key that was used, "" if none was.
func (u *Unit) FirstKey() string {
	use := u.used.Load()
	if use == nil {
		return ""
	}
	first := use.sources.Load()
	if first == nil {
		return ""
	}
	return first.Name()
}
