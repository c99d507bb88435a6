// Package sqlerr tells database errors apart without importing a driver: by the methods and fields
// that drivers give their error types, along the whole tree of wrapped errors.
package sqlerr

import (
	"context"
	"database/sql/driver"
	"io"
	"reflect"
	"slices"
	"strings"
)

// Primary result codes of SQLite, and one extended code (https://www.sqlite.org/rescode.html).
const (
	sqliteError         = 1 // "no transaction is active", "no such savepoint", and every mistake in a statement
	sqliteBusy          = 5
	sqliteLocked        = 6
	sqliteNoMem         = 7
	sqliteInterrupt     = 9
	sqliteIOErr         = 10
	sqliteFull          = 13
	sqliteConstraint    = 19
	sqliteAbortRollback = 4 | 2<<8
)

// Error numbers of MySQL and MariaDB (https://mariadb.com/kb/en/mariadb-error-code-reference/).
const (
	mysqlCheckRead       = 1020 // a row changed since it was read: MariaDB with innodb_snapshot_isolation
	mysqlTooManyConns    = 1040
	mysqlTooManyOfUser   = 1203
	mysqlLockWaitTimeout = 1205 // ends the transaction where innodb_rollback_on_timeout is on
	mysqlLockTableFull   = 1206 // always ends it
	mysqlNotSupported    = 1235 // TiDB, for a read-only transaction
	mysqlDeadlock        = 1213 // also a certification conflict of Galera
	mysqlNoSavepoint     = 1305 // "SAVEPOINT … does not exist": there is none, or no transaction
)

// mysqlConflicts are the error numbers of conflicts, TiDB's among them
// (https://docs.pingcap.com/tidb/stable/error-codes/): write conflicts 9007 and 8005, the transaction's
// retry that failed 8002 and 8022, a schema that changed 8028.
var mysqlConflicts = []int{mysqlDeadlock, mysqlLockWaitTimeout, mysqlCheckRead, 9007, 8002, 8005, 8022, 8028}

// Retryable reports whether err, or an error that it wraps, says that the transaction failed on a
// serialization conflict, a deadlock or a busy database, so that the same work may succeed when it
// is done again from the start. It is false for nil. It may be called from any goroutine.
func Retryable(err error) bool {
	return slices.ContainsFunc(codes(err), func(c code) bool {
		primary := c.sqlite & 0xff
		return c.conflict || c.state == "40001" || c.state == "40P01" ||
			primary == sqliteBusy || primary == sqliteLocked ||
			slices.Contains(mysqlConflicts, c.mysql)
	})
}

// Answered reports whether err, an error of COMMIT, carries the server's own answer, so that the
// outcome is known: nothing was committed. It is false for nil, for errors that it does not know,
// and as soon as anything in the tree of wrapped errors says that the connection was lost, the
// context ended, or the server itself does not know: an SQLite whose COMMIT ended in an I/O error may find the
// work in its journal after a crash. What Gone finds is no answer either: what ran since the end of the
// transaction has been committed. It may be called from any goroutine.
func Answered(err error) bool {
	all := codes(err)
	return slices.ContainsFunc(all, code.answered) && !slices.ContainsFunc(all, func(c code) bool {
		return c.lost() || c.gone() || c.sqlite&0xff == sqliteIOErr || c.state == cockroachPartly
	})
}

// Gone reports whether err, the answer to COMMIT, ROLLBACK or a statement about a savepoint, says that there is no
// such savepoint, or no transaction: the server has ended it before. It is false for nil. It may be called from any
// goroutine.
func Gone(err error) bool { return slices.ContainsFunc(codes(err), code.gone) }

// EndsTx reports whether the server may have ended the transaction when it answered a statement
// with err, so that the statements that follow would commit by themselves, or has lost its connection. It is false
// for nil. It may be called from any goroutine.
//
// For SQLite the codes are the four after which the library itself rolls back (sqlite3VdbeHalt; its documentation,
// https://www.sqlite.org/lang_transaction.html, "Response To Errors Within A Transaction", also names
// SQLITE_BUSY, which today leaves the transaction open), and SQLITE_ABORT_ROLLBACK, which a
// statement gets after another one's rollback.
func EndsTx(err error) bool {
	return slices.ContainsFunc(codes(err), func(c code) bool {
		switch c.sqlite & 0xff {
		case sqliteFull, sqliteIOErr, sqliteNoMem, sqliteInterrupt:
			return true
		}
		switch c.mysql {
		case mysqlDeadlock, mysqlCheckRead, mysqlLockWaitTimeout, mysqlLockTableFull:
			return true
		}
		return c.ends || c.sqlite == sqliteAbortRollback || c.disconnected()
	})
}

// MayHaveRolledBack reports whether err is that of a constraint of SQLite, whose statement has been undone alone, or
// the whole transaction (OR ROLLBACK, ON CONFLICT ROLLBACK, RAISE(ROLLBACK) in a trigger): the code is the same. It
// is false for nil. It may be called from any goroutine.
func MayHaveRolledBack(err error) bool {
	return slices.ContainsFunc(codes(err), func(c code) bool { return c.sqlite&0xff == sqliteConstraint })
}

// RefusesReadOnly reports whether err, an error of BEGIN, says that there are no read-only transactions: TiDB's answer
// (https://docs.pingcap.com/tidb/stable/sql-statement-start-transaction/), or that of database/sql for a driver without
// BeginTx. It is false for nil. It may be called from any goroutine.
func RefusesReadOnly(err error) bool {
	return slices.ContainsFunc(codes(err), func(c code) bool { return c.mysql == mysqlNotSupported || c.noReadOnly })
}

// KnowsSavepoints reports whether err is of an engine that has savepoints in the standard's spelling, or says nothing of
// the engine: a connection that was lost, a context that ended. It is false for nil. It may be called from any goroutine.
func KnowsSavepoints(err error) bool {
	return slices.ContainsFunc(codes(err), func(c code) bool {
		return c.state != "" || c.sqlite != 0 || c.mysql != 0 || c.broken || c.cancelled
	})
}

// Unreachable reports whether err, an error of BEGIN, says that the database cannot be reached at the moment: the
// network, a server that is starting, stopping or full, a pool that was closed. It is false for nil and for contexts
// that ended. It may be called from any goroutine.
func Unreachable(err error) bool {
	return slices.ContainsFunc(codes(err), func(c code) bool {
		switch c.state {
		case "53300", "57P01", "57P02", "57P03": // too_many_connections, admin_shutdown, crash_shutdown, cannot_connect_now
			return true
		}
		return c.broken || strings.HasPrefix(c.state, "08") || strings.HasPrefix(c.mysqlState, "08") || c.mysql == mysqlTooManyConns || c.mysql == mysqlTooManyOfUser
	})
}

// code is what one error of the tree says about itself; a zero field says nothing.
type code struct {
	state      string // SQLSTATE of the error's method
	sqlite     int    // SQLite's result code, the extended one where the driver tells
	mysql      int    // MySQL's error number
	mysqlState string // SQLSTATE of MySQL's field
	rolledBack bool   // the driver's own error for a COMMIT that the server answered with ROLLBACK
	notOpen    bool   // the driver's own error for a COMMIT or ROLLBACK outside of a transaction
	broken     bool   // the answer may be missing: a lost connection
	cancelled  bool   // likewise: a context that ended

	// Of engines whose numbers are of no further interest: see engines.go.
	conflict bool // a serialization conflict, a deadlock, a busy database
	ends     bool // the transaction may have ended, or only a rollback is left
	reply    bool // the server's own answer

	noReadOnly bool // database/sql's own error: the driver has no read-only transactions
}

func (c code) answered() bool {
	return c.state != "" || c.sqlite != 0 || c.mysql != 0 || c.rolledBack || c.reply
}

func (c code) lost() bool {
	return c.broken || c.cancelled || lostState(c.state) || lostState(c.mysqlState)
}

// gone reports whether there was no such savepoint, or no transaction.
func (c code) gone() bool {
	return c.notOpen || c.state == "3B001" || c.state == "25P01" || c.mysql == mysqlNoSavepoint || c.sqlite&0xff == sqliteError
}

// disconnected reports whether the connection of a statement was lost: the server rolls back what is open on it.
func (c code) disconnected() bool {
	return c.broken || c.state == "25P03" || // idle_in_transaction_session_timeout
		c.state != "40003" && lostState(c.state) || c.mysqlState != "40003" && lostState(c.mysqlState)
}

// lostState reports whether an SQLSTATE leaves open what became of a COMMIT: connection exceptions,
// statement_completion_unknown, and a server that is going away
// (https://www.postgresql.org/docs/current/errcodes-appendix.html).
func lostState(s string) bool {
	return strings.HasPrefix(s, "08") || s == "40003" || strings.HasPrefix(s, "57P")
}

// cockroachPartly is CockroachDB's answer to a COMMIT that has committed, and whose change of the schema failed
// (https://www.cockroachlabs.com/docs/stable/common-errors).
const cockroachPartly = "XXA00"

// codes returns what each error of err's tree says, depth first.
func codes(err error) []code {
	if isNil(err) {
		return nil
	}
	found := []code{read(err)}
	for _, e := range unwrap(err) {
		found = append(found, codes(e)...)
	}
	return found
}

// isNil also finds a nil pointer in an interface, the classic mistake of functions that return
// their own error type. Such a value says nothing, and most drivers' methods would panic on it.
func isNil(err error) bool {
	if err == nil {
		return true
	}
	v := reflect.ValueOf(err)
	return v.Kind() == reflect.Pointer && v.IsNil()
}

func unwrap(err error) (wrapped []error) {
	try(func() {
		switch e := err.(type) {
		case interface{ Unwrap() error }:
			wrapped = []error{e.Unwrap()}
		case interface{ Unwrap() []error }:
			wrapped = e.Unwrap()
		}
	})
	return wrapped
}

func read(err error) (c code) {
	try(func() { c.broken, c.cancelled = broken(err) })
	try(func() { c.state = state(err) })
	try(func() { readEngine(&c, err) })
	try(func() {
		words := text(err)
		if strings.Contains(words, "no transaction is active") || // SQLite, by drivers that hide its code; DuckDB
			strings.Contains(words, "no such savepoint") || // the same
			strings.Contains(words, "does not have an active transaction") { // SQL Server
			c.notOpen = true
		}
		switch words {
		case "commit unexpectedly resulted in rollback", // pgx.ErrTxCommitRollback
			"could not complete operation in a failed transaction", // lib/pq's ErrInFailedTransaction, which it capitalizes
			"unexpected command tag rollback":                      // lib/pq, when it took the transaction for a sound one
			c.rolledBack = true
		case "unexpected transaction status idle": // lib/pq, for a COMMIT or ROLLBACK
			c.notOpen = true
		case "conn closed", // pgx, on a connection that broke under the COMMIT
			"invalid connection",                // go-sql-driver's mysql.ErrInvalidConn
			"sql: database is closed",           // database/sql, which does not export it
			"sql: connection is already closed": // sql.ErrConnDone
			c.broken = true
		case "sql: driver does not support read-only transactions": // database/sql, for a driver without BeginTx
			c.noReadOnly = true
		}
	})
	return c
}

// try runs f and drops its panic. The errors come from anywhere, and a struct that embeds a driver's error
// as a nil pointer panics in every method; that must not take down a request that is failing already.
func try(f func()) {
	defer func() { _ = recover() }()
	f()
}

// text is the whole message of one error, so that a message which merely quotes another is not taken for it.
func text(err error) string {
	return strings.TrimPrefix(strings.ToLower(err.Error()), "pq: ")
}

// broken reports whether err itself, not what it wraps, means that the server's answer may be missing: the
// connection is lost, or a context has ended.
func broken(err error) (connection, ended bool) {
	if is(err, context.Canceled) || is(err, context.DeadlineExceeded) {
		return false, true
	}
	for _, mark := range []error{driver.ErrBadConn, io.EOF, io.ErrUnexpectedEOF} {
		if is(err, mark) {
			return true, false
		}
	}
	// Every net.Error, and those of package os and syscall, which are not all net.Errors. Whether it says true
	// is of no interest: a connection reset is no timeout, and loses the answer as well.
	_, network := err.(interface{ Timeout() bool })
	return network, false
}

// is is errors.Is without what err wraps.
func is(err, mark error) bool {
	e, ok := err.(interface{ Is(error) bool })
	return err == mark || ok && e.Is(mark)
}

// state returns the SQLSTATE of a *pgconn.PgError (pgx), a *pq.Error, or any other type with their method.
func state(err error) string {
	if e, ok := err.(interface{ SQLState() string }); ok {
		return validState(e.SQLState())
	}
	return ""
}

// validState returns "" for what is no SQLSTATE: the empty one of an error that a driver made up
// itself, or the five zero bytes of a MySQL server that sent none.
func validState(s string) string {
	other := func(r rune) bool { return (r < '0' || r > '9') && (r < 'A' || r > 'Z') }
	if len(s) != 5 || strings.ContainsFunc(s, other) {
		return ""
	}
	return s
}
