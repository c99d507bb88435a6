package txn

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"sync"
)

// Some drivers of SQLite give a connection back to the pool inside of the transaction
// whose COMMIT was refused: what comes next there reads what was never committed, and
// the file stays locked. Their transactions are on a connection of their own, which is
// thrown away when the end has failed.

// beginOnConn sends BEGIN on a connection of its own. The caller has the turn. After a
// driver's panic the connection is lost, as with sql.DB.BeginTx: database/sql keeps its locks.
func (s *Slot) beginOnConn(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error) {
	for stale := s.db.Stats().Idle + 1; ; stale-- { // which sql.DB.BeginTx would replace, too
		conn, err := s.db.Conn(ctx)
		if err != nil {
			return nil, err
		}
		tx, err := conn.BeginTx(ctx, opts)
		if err == nil {
			conns.Store(tx, conn)
			return tx, nil
		}
		throwAway(conn) // the begin may have left something behind
		if stale == 0 || !errors.Is(err, driver.ErrBadConn) {
			return nil, err
		}
	}
}

// conns has the connections of open transactions that are on one of their own. A field of
// Slot would cost every request of every other engine.
var conns sync.Map // of *sql.Tx to *sql.Conn

// leaveConn gives the connection of a transaction back to the pool, or throws it away if
// its end has failed.
func leaveConn(tx *sql.Tx, e *ending) {
	conn, _ := conns.LoadAndDelete(tx)
	switch {
	case conn == nil || e.answer == none: // a driver that did not return keeps database/sql's locks
	case e.err != nil:
		throwAway(conn.(*sql.Conn))
	default:
		_ = conn.(*sql.Conn).Close()
	}
}

// throwAway closes the connection: what sql.Conn.Raw is told to be broken does not go
// back to the pool (database/sql, Conn.Raw).
func throwAway(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
}
