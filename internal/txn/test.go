package txn

import (
	"context"
	"database/sql"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"weak"

	"github.com/sqlreq/sqlreq/internal/turn"
)

// testTx is a test's open transaction (Binding.Tx): the transactions of units are
// savepoints of it. The slot's turn guards its fields; after Close they are those of
// who closed the slot.
type testTx struct {
	tx     *sql.Tx
	name   string // of the savepoint that is open, or was the last
	nest   *Nest  // of that savepoint; read with the slot's mutex, too
	within *Nest  // that of the savepoint around, if this one is nested
	has    bool   // the turn at within or, if that is nil, at tx
}

// Nest is the turn for what nests in a savepoint of a test's transaction.
type Nest struct {
	turn turn.Turn
	over atomic.Bool // the savepoint has ended, or is about to
}

// turns makes the units that share a test's transaction wait for each other,
// whatever registry they came by.
var turns turn.Table[*sql.Tx]

// names numbers the savepoints in tests' transactions: a name is used once in a
// transaction, whoever uses it (MariaDB replaces one of the same name).
var names atomic.Int64

// testTx returns the test's transaction, nil if there is none.
func (s *Slot) testTx() *sql.Tx {
	if s.test == nil {
		return nil
	}
	return s.test.tx
}

// Nest returns the turn for what nests in the savepoint that is open in the
// test's transaction tx, nil if none is, or if it is about to end.
func (s *Slot) Nest(tx *sql.Tx) *Nest {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.testTx() != tx || s.tx == nil || s.test.nest.over.Load() {
		return nil // who nested in what is over would be sent here again, until that has ended
	}
	return s.test.nest
}

// TestTx returns the test's transaction that s is a slot on, nil if there is none.
func (s *Slot) TestTx() *sql.Tx { return s.testTx() }

// beginInTest makes the transaction a savepoint of the test's. The caller has
// the slot's turn; the turn at the test's transaction, or at the savepoint that
// this one nests in, is taken for as long as the transaction is open.
func (s *Slot) beginInTest(ctx context.Context, within func() *Nest) (*sql.Tx, error) {
	t := s.test
	if err := t.lock(ctx, within); err != nil {
		return nil, err
	}
	laid := false
	defer func() {
		if !laid {
			t.unlock()
		}
	}()
	if err := whyDead(t.tx); err != nil {
		return nil, err
	}
	t.name = fmt.Sprintf("sqlreq_tx_%d", names.Add(1))
	if _, err := t.tx.ExecContext(ctx, s.engine.Savepoint(t.name)); err != nil {
		return nil, err
	}
	laid = true
	t.nest = new(Nest)
	s.setTx(t.tx)
	return t.tx, nil
}

// lock takes the turn at the savepoint that within returns, or else at tx.
func (t *testTx) lock(ctx context.Context, within func() *Nest) error {
	t.within = nil
	for within != nil {
		n := within()
		if n == nil {
			break
		}
		if err := n.turn.Lock(ctx); err != nil {
			return err
		}
		if !n.over.Load() {
			t.within, t.has = n, true
			return nil
		}
		n.turn.Unlock() // it has ended meanwhile: there is another one around, or none
	}
	err := turns.Lock(ctx, t.tx)
	t.has = err == nil
	return err
}

// CloseNest waits for what nests in the savepoint of a test's transaction, which is to
// end now: an explicit end, whose wait its own context ends too. Then nothing has
// changed. The caller has the turn.
func (s *Slot) CloseNest(ctx, unit context.Context) error {
	if s.test == nil {
		return nil
	}
	nest := s.test.nest
	if err := nest.turn.LockEither(ctx, unit); err != nil {
		return err
	}
	defer nest.turn.Unlock()
	nest.over.Store(true)
	return nil
}

// closeNest waits for what nests in the savepoint, which is about to end, or for
// the end of the unit's context. What comes later nests in what is around.
func (t *testTx) closeNest(unit context.Context) {
	if t.nest.turn.Lock(unit) == nil {
		defer t.nest.turn.Unlock()
	}
	t.nest.over.Store(true)
}

// unlock gives the turn back, if t has it.
func (t *testTx) unlock() {
	switch {
	case !t.has:
		return
	case t.within != nil:
		t.within.turn.Unlock()
	default:
		turns.Unlock(t.tx)
	}
	t.within, t.has = nil, false
}

// dead has the tests' transactions that are known to have ended, and why. Outside
// of a transaction SQLite's SAVEPOINT begins one, and its RELEASE commits
// (https://www.sqlite.org/lang_savepoint.html), so that nothing may be sent any more.
var dead sync.Map // of weak.Pointer[sql.Tx] to error

func markDead(tx *sql.Tx, err error) {
	p := weak.Make(tx)
	if _, known := dead.LoadOrStore(p, err); !known {
		runtime.AddCleanup(tx, func(p weak.Pointer[sql.Tx]) { dead.Delete(p) }, p)
	}
}

// whyDead returns the error of a use of a test's transaction that has ended.
func whyDead(tx *sql.Tx) error {
	if err, ok := dead.Load(weak.Make(tx)); ok {
		return fmt.Errorf("the test's transaction (Binding.Tx) has ended in an earlier request, nothing runs in it any more; begin a new one for each test: %w", err.(error))
	}
	return nil
}

// goBackInTest goes back to the savepoint when its RELEASE has failed, so that the
// test's transaction is sound for the next request: after an error that was dealt
// with PostgreSQL refuses everything but that (25P02). If there is nothing to go
// back to, the test's transaction has ended.
func (s *Slot) goBackInTest(e *ending) {
	err := s.rollback(e.unit)
	switch a := answerOf(err); a {
	case done:
		e.answer = refused
	case gone, lost:
		e.answer = a
		markDead(s.test.tx, err)
	}
}
