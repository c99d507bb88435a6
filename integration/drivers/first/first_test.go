// Package first has the five drivers that sqlreq began with. Two of them register themselves by the names of drivers in
// the package above.
package first

import (
	"errors"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"
	"github.com/mattn/go-sqlite3"
	. "github.com/sqlreq/sqlreq/integration/drivers/check"
	"github.com/sqlreq/sqlreq/internal/dialect"
	_ "modernc.org/sqlite"
)

// They are the standard's, below wrappers too.
func TestFound(t *testing.T) {
	pools := 0
	for _, d := range []Driver{
		{Name: "pgx", DSN: "postgres://u@127.0.0.1:1/x"},
		{Name: "postgres", DSN: "postgres://u@127.0.0.1:1/x"},
		{Name: "mysql", DSN: "u@tcp(127.0.0.1:1)/x"},
		{Name: "sqlite", DSN: ":memory:"},
		{Name: "sqlite3", DSN: ":memory:"},
	} {
		d.Want = dialect.Standard
		pools += d.Found(t)
	}
	if pools != 5*Pools {
		t.Errorf("%d pools were asked", pools)
	}
}

// What is read in their errors: of the databases that are told by their errors alone, CockroachDB and TiDB, too.
func TestErrors(t *testing.T) {
	for _, r := range []struct {
		name string
		err  error
		want Verdict
	}{
		{"PostgreSQL, serialization", &pgconn.PgError{Code: "40001"}, Retry},
		{"PostgreSQL, deadlock", &pgconn.PgError{Code: "40P01"}, Retry},
		{"PostgreSQL, unique", &pgconn.PgError{Code: "23505"}, Answer},
		{"PostgreSQL, COMMIT answered with ROLLBACK", pgx.ErrTxCommitRollback, Answer},
		{"lib/pq, serialization", &pq.Error{Code: "40001"}, Retry},
		{"lib/pq, no such savepoint", &pq.Error{Code: "3B001"}, Gone},

		// https://www.cockroachlabs.com/docs/stable/common-errors
		{"CockroachDB, restart transaction", &pgconn.PgError{Code: "40001", Message: "restart transaction: TransactionRetryWithProtoRefreshError"}, Retry},
		{"CockroachDB, result is ambiguous", &pgconn.PgError{Code: "40003", Message: "result is ambiguous"}, Nothing},
		{"CockroachDB, committed, the schema's change failed", &pgconn.PgError{Code: "XXA00", Message: "transaction committed but schema change aborted with error: (23505)"}, Nothing},
		{"CockroachDB by lib/pq, committed, the schema's change failed", &pq.Error{Code: "XXA00"}, Nothing},
		{"CockroachDB, the node shuts down", &pgconn.PgError{Code: "57P01"}, Lost},

		// https://docs.pingcap.com/tidb/stable/error-codes
		{"TiDB, write conflict", tidb(9007), Retry},
		{"TiDB, write conflict, optimistic", tidb(8005), Retry},
		{"TiDB, the retry failed", tidb(8002), Retry},
		{"TiDB, may be tried again", tidb(8022), Retry},
		{"TiDB, the schema changed", tidb(8028), Retry},
		{"TiDB, deadlock", &mysql.MySQLError{Number: 1213, SQLState: [5]byte([]byte("40001"))}, RetryEnd},
		{"TiDB, lock wait timeout", tidb(1205), RetryEnd},
		{"TiDB, no such savepoint", &mysql.MySQLError{Number: 1305, SQLState: [5]byte([]byte("42000"))}, Gone},
		{"MySQL, connection lost", mysql.ErrInvalidConn, Lost},

		{"mattn, busy", sqlite3.Error{Code: sqlite3.ErrBusy, ExtendedCode: sqlite3.ErrBusySnapshot}, Retry},
		{"mattn, constraint", sqlite3.Error{Code: sqlite3.ErrConstraint, ExtendedCode: sqlite3.ErrConstraintForeignKey}, Answer},
		{"mattn, I/O", sqlite3.Error{Code: sqlite3.ErrIoErr}, Verdict{Ends: true}},
		{"another", errors.New("x"), Nothing},
	} {
		r.want.Read(t, r.name, r.err)
	}
}

func tidb(number uint16) error {
	return &mysql.MySQLError{Number: number, SQLState: [5]byte([]byte("HY000"))}
}
