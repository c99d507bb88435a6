package txn

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sqlreq/sqlreq/internal/dialect"
	"github.com/sqlreq/sqlreq/internal/sqlerr"
)

// Outcome is what became of a transaction, or of a savepoint.
type Outcome uint8

const (
	Unknown    Outcome = iota // nobody knows
	Committed                 // it is stored; or it was read-only and ended well
	RolledBack                // nothing of it is stored
	Refused                   // COMMIT was answered with an error: nothing of it is stored
	Ended                     // others ended it, through *sql.Tx; nobody knows how
)

// sent is the statement that was to end something.
type sent uint8

const (
	sentCommit      sent = iota // COMMIT, or RELEASE of a request's savepoint in a test's transaction
	sentCheck                   // Guard's RELEASE, before COMMIT
	sentRollback                // ROLLBACK, or ROLLBACK TO a request's savepoint in a test's transaction
	sentReadOnlyEnd             // the same for a read-only transaction that ends well
	sentRelease                 // RELEASE of a Savepoint
	sentRollbackTo              // ROLLBACK TO a Savepoint
)

// answer is what came back.
type answer uint8

const (
	none    answer = iota // the driver did not return: a panic or runtime.Goexit
	done                  // success
	over                  // sql.ErrTxDone: the transaction was ended through *sql.Tx before
	refused               // an error with the server's own answer
	lost                  // any other error: the answer is not known
)

func answerOf(err error) answer {
	switch {
	case err == nil:
		return done
	case errors.Is(err, sql.ErrTxDone):
		return over
	case sqlerr.Answered(err):
		return refused
	}
	return lost
}

// known is what else decides.
type known struct {
	late    bool // BEGIN succeeded after its context was cancelled: database/sql rolls back too (Tx.awaitDone)
	aborted bool // an earlier error may have ended it
}

// judge says what became of a transaction, or of a savepoint. It is the table of
// the package comment.
func judge(s sent, a answer, k known) Outcome {
	switch {
	case a == over && s == sentRollback && k.late:
		return RolledBack
	case a == over:
		return Ended
	case a == done && s == sentReadOnlyEnd && k.aborted:
		return RolledBack
	}
	return outcomes[s][a]
}

// outcomes has what does not depend on anything else known.
var outcomes = [...][5]Outcome{
	sentCommit:      {none: Unknown, done: Committed, over: Ended, refused: Refused, lost: Unknown},
	sentCheck:       {none: Unknown, done: Committed, over: Ended, refused: Unknown, lost: Unknown},
	sentRollback:    {none: Unknown, done: RolledBack, over: Ended, refused: RolledBack, lost: RolledBack},
	sentReadOnlyEnd: {none: Unknown, done: Committed, over: Ended, refused: RolledBack, lost: RolledBack},
	sentRelease:     {none: Unknown, done: Committed, over: Ended, refused: Refused, lost: Refused},
	sentRollbackTo:  {none: Unknown, done: RolledBack, over: Ended, refused: Unknown, lost: Unknown},
}

// Result is what became of a transaction.
type Result struct {
	Opener  Opener // that began it
	Outcome Outcome
	Tried   bool   // COMMIT was sent, or Guard's check before it
	Stored  bool   // something of it is stored, or may be
	Err     error  // why it did not end as asked; of COMMIT the driver's error
	Times   *Times // nil if nobody wanted to know
}

// CommitFailed reports whether COMMIT was tried and did not succeed.
func (r Result) CommitFailed() bool {
	return r.Tried && (r.Outcome == Refused || r.Outcome == Unknown)
}

// ending is an end under way.
type ending struct {
	well  bool  // it is to be committed
	late  bool  // as in known
	cause error // why it is rolled back, where that was not asked for

	sent   sent
	answer answer // to what was sent; none until the driver has returned
	err    error  // of the driver
}

// End ends the open transaction: well, which is COMMIT unless it is read-only or
// cannot be committed any more, or with ROLLBACK. The caller has the turn, or has
// closed the slot. What became of it is told by Last, also if the driver panics.
func (s *Slot) End(well bool) { s.end(&ending{well: well}) }

// end is the one way in which a transaction ends. What became of it is noted, and
// the turn at a test's transaction given back, also if the driver panics or exits
// the goroutine: the deferred calls run from the last to the first.
func (s *Slot) end(e *ending) {
	var asked time.Time
	if s.times != nil {
		asked = time.Now()
	}
	defer s.settle(e, asked)
	defer s.giveUp(e)
	switch {
	case !e.well:
		s.sendEnd(e, sentRollback)
	case s.endsWithRollback():
		s.sendEnd(e, sentReadOnlyEnd)
	default:
		s.commit(e)
	}
}

// commit sends COMMIT, if that is still possible.
func (s *Slot) commit(e *ending) {
	if e.cause = s.doomed(); e.cause != nil {
		s.sendEnd(e, sentRollback)
		return
	}
	if s.guarded() {
		if s.sendEnd(e, sentCheck); e.answer != done {
			if e.answer != over {
				_ = s.tx.Rollback() // gives the connection back; what became of the work stays unknown
			}
			return
		}
	}
	s.sendEnd(e, sentCommit)
}

// sendEnd sends a statement that ends the transaction, or Guard's check.
func (s *Slot) sendEnd(e *ending, what sent) {
	e.sent, e.answer = what, none
	e.err = s.send(what)
	e.answer = answerOf(e.err)
}

func (s *Slot) send(what sent) error {
	switch {
	case what == sentCheck:
		return s.exec(dialect.Release(guardName))
	case s.test != nil && what == sentCommit:
		return s.exec(dialect.Release(s.test.name))
	case s.test != nil:
		return s.exec(dialect.RollbackTo(s.test.name))
	case what == sentCommit:
		return s.tx.Commit()
	}
	return s.tx.Rollback()
}

// exec runs a statement that no context ends.
func (s *Slot) exec(query string) error {
	_, err := s.tx.ExecContext(context.Background(), query)
	return err
}

// giveUp rolls back when a driver did not return: after Guard's check, or in a
// test's transaction, something is still open. Its answer does not count, since what
// the statement before it did is not known.
func (s *Slot) giveUp(e *ending) {
	if e.answer == none {
		_ = s.send(sentRollback)
	}
}

// settle notes what became of the transaction, and how long it took.
func (s *Slot) settle(e *ending, asked time.Time) {
	if s.times != nil {
		s.times.Open, s.times.End = asked.Sub(s.times.Began), time.Since(asked)
	}
	s.note(e)
	if s.test != nil {
		s.test.unlock()
	}
}

// note writes down what became of the transaction, and that none is open.
func (s *Slot) note(e *ending) {
	tried := e.sent == sentCommit || e.sent == sentCheck
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outcome = judge(e.sent, e.answer, known{late: e.late, aborted: s.reason != nil})
	s.tried, s.err = tried, s.why(e, s.outcome)
	switch s.outcome {
	case Committed:
		s.stored = !s.endsWithRollback()
	case Unknown:
		s.stored = tried // a ROLLBACK that did not return stores nothing
	default:
		s.stored = s.outcome == Ended // by a Commit, perhaps
	}
	s.state, s.tx, s.innermost, s.reason = idle, nil, nil, nil
	s.ended++
}

// why is the Err of the Result.
func (s *Slot) why(e *ending, o Outcome) error {
	key := s.by.Name()
	switch {
	case o == Committed:
		return nil
	case o == Ended:
		return endedError(key)
	case e.answer == none && !e.late: // a BEGIN that came too late has an error of its own
		return fmt.Errorf("sqlreq: key %q: the transaction was given up, its end panicked", key)
	case e.sent == sentCheck:
		return fmt.Errorf("the transaction was ended by the server before COMMIT: %w", e.err)
	case e.sent == sentCommit:
		return e.err
	}
	return e.cause // of a rollback that was asked for there is none
}

// Last returns what became of the transaction that was the last to end. The caller
// has the turn, or has closed the slot.
func (s *Slot) Last() Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Result{s.by, s.outcome, s.tried, s.stored, s.err, s.times}
}

// endsWithRollback reports whether the transaction ends with ROLLBACK in any
// case: a read-only one, so that nothing is persisted through it, also on a
// driver that ignores the flag. PostgreSQL counts the reads of a serializable one
// only at COMMIT.
func (s *Slot) endsWithRollback() bool {
	return s.opts != nil && s.opts.ReadOnly && s.opts.Isolation != sql.LevelSerializable
}

// ReadOnly reports whether the open transaction, or the last one, was begun as a
// read-only one. The caller has the turn, or has closed the slot.
func (s *Slot) ReadOnly() bool { return s.opts != nil && s.opts.ReadOnly }

// guarded reports whether the transaction is guarded by a savepoint. A test's
// transaction has no need of it: each of the units is a savepoint already.
func (s *Slot) guarded() bool { return s.test == nil && s.by.Guarded() }

// doomed returns the reason why only a rollback is left, nil if there is none.
func (s *Slot) doomed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.reason != nil:
		return fmt.Errorf("sqlreq: key %q: an earlier error may have ended the transaction, it was rolled back: %w", s.by.Name(), s.reason)
	case s.innermost != nil:
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
	if s.endsWithRollback() {
		return nil
	}
	return s.doomed()
}
