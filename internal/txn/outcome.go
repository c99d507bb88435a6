package txn

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sqlreq/sqlreq/internal/sqlerr"
)

// Outcome is what became of a transaction, or of a savepoint.
type Outcome uint8

const (
	Unknown    Outcome = iota // nobody knows
	Committed                 // it is stored; or it was read-only and ended well
	RolledBack                // nothing of it is stored
	Refused                   // COMMIT was answered with an error: nothing of it is stored
	Ended                     // others ended it, through *sql.Tx or by the server; nobody knows how
)

// sent is the statement that was to end something.
type sent uint8

const (
	sentCommit        sent = iota // COMMIT, or RELEASE of a request's savepoint in a test's transaction
	sentCheck                     // Guard's RELEASE, before COMMIT
	sentRollbackCheck             // Guard's ROLLBACK TO, before ROLLBACK
	sentRollback                  // ROLLBACK, or ROLLBACK TO a request's savepoint in a test's transaction
	sentRelease                   // RELEASE of a Savepoint
	sentRollbackTo                // ROLLBACK TO a Savepoint, and RELEASE of what is left of it
)

// answer is what came back.
type answer uint8

const (
	none    answer = iota // the driver did not return: a panic or runtime.Goexit
	done                  // success
	over                  // sql.ErrTxDone: the transaction was ended through *sql.Tx before
	gone                  // there is no such savepoint, or no transaction
	refused               // another error with the server's own answer
	lost                  // any other error: the answer is not known
)

func answerOf(err error) answer {
	switch {
	case err == nil:
		return done
	case errors.Is(err, sql.ErrTxDone):
		return over
	case err == errNoneOpen, sqlerr.Gone(err):
		return gone
	case err == errDoomed, sqlerr.Answered(err):
		return refused
	}
	return lost
}

// known is what else decides.
type known struct {
	late      bool // begun when its context had ended, or the slot was closed: database/sql rolls it back too
	aborted   bool // E of the package comment
	handedOut bool // H of the package comment
	readOnly  bool // it was to end well, which for a read-only one is a rollback
	vanished  bool // a Savepoint was not there when it was to be gone back to
}

// judge says what became of a transaction, or of a savepoint. It is the table of
// the package comment.
func judge(s sent, a answer, k known) Outcome {
	if s == sentRollback && k.vanished && (a == done || a == refused || a == lost) {
		a = gone // MySQL drivers have a success for a ROLLBACK outside of a transaction
	}
	switch rollback := s == sentRollback || s == sentRollbackCheck; {
	case rollback && a == over && k.late:
		return RolledBack
	case rollback && a == gone && k.aborted && !k.handedOut:
		return RolledBack
	case rollback && a == done && k.readOnly && !k.aborted:
		return Committed
	case s == sentRollbackCheck && a == lost && k.handedOut:
		return Ended
	case s == sentCheck && a == lost && k.handedOut:
		return Unknown
	}
	return outcomes[s][a]
}

// outcomes has what does not depend on anything else known.
var outcomes = [...][6]Outcome{
	sentCommit:        {none: Unknown, done: Committed, over: Ended, gone: Unknown, refused: Refused, lost: Unknown},
	sentCheck:         {none: Unknown, done: Committed, over: Ended, gone: Unknown, refused: Refused, lost: Refused},
	sentRollbackCheck: {none: Unknown, done: RolledBack, over: Ended, gone: Ended, refused: RolledBack, lost: RolledBack},
	sentRollback:      {none: Unknown, done: RolledBack, over: Ended, gone: Ended, refused: RolledBack, lost: RolledBack},
	sentRelease:       {none: Refused, done: Committed, over: Ended, gone: Refused, refused: Refused, lost: Refused},
	sentRollbackTo:    {none: Unknown, done: RolledBack, over: Ended, gone: Unknown, refused: Unknown, lost: Unknown},
}

// Result is what became of a transaction.
type Result struct {
	Opener  Opener // that began it
	Outcome Outcome
	Tried   bool   // COMMIT was sent, or Guard's check before it
	Stored  bool   // something of it is stored, or may be
	Err     error  // why it did not end as asked; of COMMIT the driver's error
	Unheard error  // of a ROLLBACK whose answer did not come
	Times   *Times // nil if nobody wanted to know
}

// CommitFailed reports whether COMMIT was tried and did not succeed.
func (r Result) CommitFailed() bool {
	return r.Tried && (r.Outcome == Refused || r.Outcome == Unknown)
}

// ending is an end under way.
type ending struct {
	unit    context.Context // whose end gives up a ROLLBACK that is not answered
	well    bool            // it is to be committed
	refused bool            // nobody was given it: the end of a begin that failed
	late    bool            // database/sql rolls it back too
	cause   error           // why it is rolled back, where it was not asked for

	sent   sent
	answer answer // to what was sent; none until the driver has returned
	err    error  // of the driver
}

// End ends the open transaction: well, which is COMMIT unless it is read-only or
// cannot be committed any more, or with ROLLBACK. A ROLLBACK that is not answered
// is given up some time after the unit's context has ended. The caller has the
// turn, or has closed the slot. What became of it is told by Last, also if the
// driver panics.
func (s *Slot) End(unit context.Context, well bool) { s.end(&ending{unit: unit, well: well}) }

// end is the one way in which a transaction ends. What became of it is noted, and
// the turn at a test's transaction given back, also if the driver panics or exits
// the goroutine: the deferred calls run from the last to the first.
func (s *Slot) end(e *ending) {
	var asked time.Time
	if s.times != nil {
		asked = time.Now()
	}
	if s.test != nil {
		s.test.closeNest(e.unit)
		_ = s.Quiet(e.unit, e.unit) // one that came after ROLLBACK TO would be the test's; no *sql.Tx that has ended refuses it
	}
	defer func() {
		if e.answer == none { // the driver did not return
			defer s.settle(e, asked)
			_ = s.rollback(e.unit)
			return
		}
		s.settle(e, asked)
	}()
	commit := e.well && !s.EndsWithRollback()
	if commit {
		e.cause = s.doomed()
	}
	if commit && e.cause == nil {
		s.commit(e)
		return
	}
	s.rollBack(e)
}

// commit sends COMMIT, after Guard's check.
func (s *Slot) commit(e *ending) {
	if s.guarded || s.engine.CommitCheck() != "" {
		if s.send(e, sentCheck); e.answer != done {
			if e.answer != over {
				_ = s.rollback(e.unit)
			}
			return
		}
	}
	if s.send(e, sentCommit); s.test != nil && e.answer != done && e.answer != over {
		s.goBackInTest(e)
	}
}

// tellsByRollback reports whether Guard has nothing to ask before ROLLBACK, the end that e is.
func (s *Slot) tellsByRollback(e *ending) bool {
	if !s.guarded || e.refused || s.engine.CommitCheck() != "" { // the answer to ROLLBACK tells, where COMMIT's does not
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.vanished && s.engine.StateQuery() != "" // of which transaction the state is, the query does not tell
}

// rollBack sends ROLLBACK, after Guard's check.
func (s *Slot) rollBack(e *ending) {
	if s.tellsByRollback(e) {
		if s.send(e, sentRollback); s.test != nil && (e.answer == gone || e.answer == lost) {
			markDead(s.test.tx, e.err)
		}
		return
	}
	if s.send(e, sentRollbackCheck); e.answer == over {
		return
	}
	checked := *e
	s.send(e, sentRollback)
	if e.answer != none && (checked.answer != lost || e.answer != gone) {
		checked.err = cmp.Or(e.err, checked.err)
		*e = checked // which says more than the answer to ROLLBACK
	}
}

// send sends a statement that ends the transaction, or Guard's check.
func (s *Slot) send(e *ending, what sent) {
	e.sent, e.answer = what, none
	e.err = s.carryOut(e.unit, what)
	e.answer = answerOf(e.err)
}

func (s *Slot) carryOut(unit context.Context, what sent) error {
	switch {
	case what == sentCommit && s.test == nil:
		return s.tx.Commit()
	case what == sentCommit:
		return s.release(s.test.name, func(query string) error { return s.exec(context.Background(), query) }) // its COMMIT
	case what == sentCheck && s.engine.CommitCheck() != "":
		return s.execPatiently(unit, s.engine.CommitCheck())
	case (what == sentCheck || what == sentRollbackCheck) && s.engine.StateQuery() != "":
		return s.askState(unit, what == sentRollbackCheck)
	case what == sentCheck:
		return s.execPatiently(unit, guardRelease)
	case what == sentRollbackCheck:
		return s.execPatiently(unit, guardRollbackTo)
	}
	return s.rollback(unit)
}

// rollback undoes the transaction.
func (s *Slot) rollback(unit context.Context) error {
	if s.test != nil {
		return s.execPatiently(unit, s.engine.RollbackTo(s.test.name), s.engine.Release(s.test.name))
	}
	answered, cancel := make(chan struct{}), s.cancel
	defer close(answered)
	defer context.AfterFunc(calm(unit), func() { giveUp(answered, cancel) })()
	return s.tx.Rollback()
}

// exec runs a statement in the transaction.
func (s *Slot) exec(ctx context.Context, query string) error {
	_, err := s.tx.ExecContext(ctx, query)
	return err
}

// execPatiently runs statements that end something, until one fails. Their context
// ends when they are given up, and not with the unit's.
func (s *Slot) execPatiently(unit context.Context, queries ...string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(calm(unit), func() { giveUp(ctx.Done(), cancel) })()
	for _, query := range queries {
		if query == "" {
			continue // the engine has no such statement
		}
		if err := s.exec(ctx, query); err != nil {
			return err
		}
	}
	return nil
}

// What a query for the state of the transaction has told.
var (
	errNoneOpen = errors.New("there is no transaction any more")
	errDoomed   = errors.New("the transaction can only be rolled back")
)

// askState is Guard's check where a query tells what became of the transaction. Before
// a ROLLBACK it need not be sound.
func (s *Slot) askState(unit context.Context, rollback bool) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(calm(unit), func() { giveUp(ctx.Done(), cancel) })()
	var state int
	err := s.tx.QueryRowContext(ctx, s.engine.StateQuery()).Scan(&state)
	switch {
	case err != nil:
		return err
	case state == 0:
		return errNoneOpen
	case state < 0 && !rollback:
		return errDoomed
	}
	return nil
}

// patience is how long a ROLLBACK may take when the unit's context has ended.
const patience = 2 * time.Second

// giveUp waits until the statement is answered, but not longer than patience: then it
// calls cancel. It is called when the unit's context has ended, or at once if it has
// already. A context whose Done panics counts as one that has ended: a ROLLBACK is sent
// all the same.
func giveUp(answered <-chan struct{}, cancel func()) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-timer.C:
		cancel()
	case <-answered:
	}
}

// calm returns unit, or a context that has ended if the Done of unit panics.
func calm(unit context.Context) (safe context.Context) {
	defer func() {
		if recover() != nil {
			ended, cancel := context.WithCancel(context.Background())
			cancel()
			safe = ended
		}
	}()
	_ = unit.Done()
	return unit
}

// settle notes what became of the transaction, and how long it took.
func (s *Slot) settle(e *ending, asked time.Time) {
	if s.times != nil {
		s.times.Open, s.times.End = asked.Sub(s.times.Began), time.Since(asked)
	}
	tx := s.tx
	s.note(e)
	if s.engine.KeepsRefused() {
		leaveConn(tx, e)
	}
	if s.test != nil {
		s.test.unlock()
	}
}

// note writes down what became of the transaction, and that none is open.
func (s *Slot) note(e *ending) {
	tried := e.sent == sentCommit || e.sent == sentCheck
	s.mu.Lock()
	outcome := judge(e.sent, e.answer, known{
		late:      e.late,
		aborted:   s.reason != nil || e.refused && !s.afterBegin, // nothing ran in one that nobody was given
		handedOut: s.handedOut || s.doubtful,
		readOnly:  e.well && !tried && e.cause == nil,
		vanished:  s.vanished,
	})
	if outcome == Committed {
		s.become(outcome, tried, nil)
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	failed := s.failureOf(e, outcome)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.become(outcome, tried, failed)
}

// become is note for who holds s.mu.
func (s *Slot) become(outcome Outcome, tried bool, failed *failure) {
	s.outcome, s.tried, s.failed = outcome, tried, failed
	switch outcome {
	case Committed:
		s.stored = !s.EndsWithRollback()
	case Unknown:
		s.stored = tried // a ROLLBACK that did not return stores nothing
	default:
		s.stored = outcome == Ended // by a Commit, perhaps
	}
	s.to(idle)
	s.tx, s.innermost, s.reason = nil, nil, nil
	s.ended++
}

// failureOf is what the Result says in Err and Unheard, nil if that is nothing. It
// makes texts of the driver's errors, and is called without the mutex.
func (s *Slot) failureOf(e *ending, o Outcome) *failure {
	err := s.why(e, o)
	switch {
	case o == RolledBack && answerOf(e.err) == lost: // also if Guard's check was answered, and ROLLBACK was not
		return &failure{err, e.err}
	case err != nil:
		return &failure{err: err}
	}
	return nil
}

// why is the Err of the Result.
func (s *Slot) why(e *ending, o Outcome) error {
	key := s.by.Name()
	switch {
	case o == Committed:
		return nil
	case o == Ended && e.answer == over:
		return joinCause(e.cause, endedError(key))
	case o == Ended:
		return joinCause(e.cause, endedByServer(key))
	case e.answer == none && !e.late:
		return fmt.Errorf("sqlreq: key %q: the transaction was given up, its end panicked", key)
	case e.sent == sentCheck && o == Unknown:
		return fmt.Errorf("the transaction was ended by the server before COMMIT: %w", e.err)
	case e.sent == sentCheck, e.sent == sentCommit:
		return e.err
	}
	return e.cause // of a rollback that was asked for there is none
}

// joinCause joins the reason for a rollback, if there is one, and what came of it.
func joinCause(cause, err error) error {
	if cause == nil {
		return err
	}
	return errors.Join(cause, err)
}

// Last returns what became of the transaction that was the last to end.
func (s *Slot) Last() Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Result()
}

// Result is Last for who has the turn, or has closed the slot: nobody else writes
// what it reads.
func (s *Slot) Result() Result {
	r := Result{Opener: s.by, Outcome: s.outcome, Tried: s.tried, Stored: s.stored, Times: s.times}
	if s.failed != nil {
		r.Err, r.Unheard = s.failed.err, s.failed.unheard
	}
	return r
}

// EndsWithRollback reports whether the transaction ends with ROLLBACK in any
// case: a read-only one, so that nothing is persisted through it, also on a
// driver that ignores the flag. PostgreSQL counts the reads of a serializable one
// only at COMMIT, which must not be sent where the flag was not.
func (s *Slot) EndsWithRollback() bool {
	return s.opts != nil && s.opts.ReadOnly && (s.opts.Isolation != sql.LevelSerializable || s.engine.IgnoresReadOnly())
}

// ReadOnly reports whether the open transaction, or the last one, was begun as a
// read-only one. The caller has the turn, or has closed the slot.
func (s *Slot) ReadOnly() bool { return s.opts != nil && s.opts.ReadOnly }

// doomed returns the reason why only a rollback is left, nil if there is none.
func (s *Slot) doomed() error {
	s.mu.Lock()
	reason, innermost := s.reason, s.innermost
	s.mu.Unlock()
	switch {
	case reason != nil:
		return fmt.Errorf("sqlreq: key %q: an earlier error may have ended the transaction, it was rolled back: %w", s.by.Name(), reason)
	case innermost != nil:
		return fmt.Errorf("sqlreq: key %q: a Savepoint is still open, the transaction was rolled back", s.by.Name())
	}
	return nil
}

// Lost returns the reason why the transaction cannot be committed any more, as
// far as that is known without a word to the driver. The caller has the turn, or
// has closed the slot.
func (s *Slot) Lost() error {
	if s.test == nil && endedOutside(s.tx) {
		return endedError(s.by.Name())
	}
	if s.EndsWithRollback() {
		return nil
	}
	return s.doomed()
}
