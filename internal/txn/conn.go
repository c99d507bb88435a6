package txn

import (
	"context"
	"database/sql"
	"database/sql/driver"
)

// Some drivers of SQLite give a connection back to the pool inside of the transaction
// whose COMMIT was refused: what comes next there reads what was never committed, and
// the file stays locked. Their transactions are on a connection of their own, which is
// thrown away when the end has failed.

// beginOnConn sends BEGIN on a connection of its own. The caller has the turn.
func (s *Slot) beginOnConn(ctx context.Context, opts *sql.TxOptions) (tx *sql.Tx, err error) {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if tx == nil { // also if the driver panics: a begin that failed may have left something behind
			throwAway(conn)
		}
	}()
	tx, err = conn.BeginTx(ctx, opts)
	if err == nil {
		s.conn = conn
	}
	return tx, err
}

// leaveConn gives the connection of the transaction that has ended back to the pool, or
// throws it away.
func (s *Slot) leaveConn(failed bool) {
	conn := s.conn
	s.conn = nil
	if failed {
		throwAway(conn)
		return
	}
	_ = conn.Close()
}

// throwAway closes the connection: what sql.Conn.Raw is told to be broken does not go
// back to the pool (database/sql, Conn.Raw).
func throwAway(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
}
