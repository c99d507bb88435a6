package txn

import (
	"context"
	"database/sql"
	"database/sql/driver"
)

// failing is a driver.Connector whose only connection is an error.
type failing struct{ err error }

func (f failing) Connect(context.Context) (driver.Conn, error) { return nil, f.err }
func (f failing) Driver() driver.Driver                        { return nil }

// ErrorRow returns a row that carries err to Scan. database/sql makes one only
// for a query that failed, so a query is made to fail.
func ErrorRow(err error) *sql.Row {
	db := sql.OpenDB(failing{err})
	defer db.Close()
	return db.QueryRowContext(context.Background(), "")
}
