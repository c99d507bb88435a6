package txn

import (
	"context"
	"database/sql"
	"fmt"
	"sync/atomic"

	"github.com/sqlreq/sqlreq/internal/dialect"
	"github.com/sqlreq/sqlreq/internal/turn"
)

// testTx is a test's open transaction (Binding.Tx): the transactions of units are
// savepoints of it. The slot's turn guards its fields; after Close they are those of
// who closed the slot.
type testTx struct {
	tx     *sql.Tx    // set by Init
	name   string     // of the savepoint that is open, or was the last
	nest   *turn.Turn // for units that nest in the savepoint; written before Slot.tx is set, and read with the slot's mutex while it is
	within *turn.Turn // the turn in the savepoint of the unit around, if this one nests in it
	has    bool       // this slot has the turn within or, if that is nil, the one at tx
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
// test's transaction tx, nil if none is.
func (s *Slot) Nest(tx *sql.Tx) *turn.Turn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.testTx() != tx || s.tx == nil {
		return nil
	}
	return s.test.nest
}

// TestTx returns the test's transaction that s is a slot on, nil if there is none.
func (s *Slot) TestTx() *sql.Tx { return s.testTx() }

// beginInTest makes the transaction a savepoint of the test's. The caller has
// the slot's turn; the turn at the test's transaction, or at the savepoint that
// this one nests in, is taken for as long as the transaction is open.
func (s *Slot) beginInTest(ctx context.Context, within *turn.Turn) error {
	t := s.test
	if err := t.lock(ctx, within); err != nil {
		return err
	}
	laid := false
	defer func() {
		if !laid {
			t.unlock()
		}
	}()
	t.name = fmt.Sprintf("sqlreq_tx_%d", names.Add(1))
	if _, err := t.tx.ExecContext(ctx, dialect.Savepoint(t.name)); err != nil {
		return err
	}
	laid = true
	t.nest = new(turn.Turn)
	s.setTx(t.tx)
	return nil
}

func (t *testTx) lock(ctx context.Context, within *turn.Turn) (err error) {
	if within != nil {
		err = within.Lock(ctx)
	} else {
		err = turns.Lock(ctx, t.tx)
	}
	t.within, t.has = within, err == nil
	return err
}

// unlock gives the turn back, if t has it.
func (t *testTx) unlock() {
	switch {
	case !t.has:
		return
	case t.within != nil:
		t.within.Unlock()
	default:
		turns.Unlock(t.tx)
	}
	t.within, t.has = nil, false
}
