package sqlerr_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/sqlreq/sqlreq/internal/sqlerr"
	"github.com/sqlreq/sqlreq/internal/sqlerr/internal/shapes/lookalike"
	mattn "github.com/sqlreq/sqlreq/internal/sqlerr/internal/shapes/mattn_sqlite3"
	modernc "github.com/sqlreq/sqlreq/internal/sqlerr/internal/shapes/modernc_sqlite"
	"github.com/sqlreq/sqlreq/internal/sqlerr/internal/shapes/mysql"
	"github.com/sqlreq/sqlreq/internal/sqlerr/internal/shapes/pgconn"
	"github.com/sqlreq/sqlreq/internal/sqlerr/internal/shapes/pq"
)

// verdict is what the package says of an error.
type verdict struct{ retryable, answered, ends, gone, unreachable bool }

func judge(err error) verdict {
	return verdict{sqlerr.Retryable(err), sqlerr.Answered(err), sqlerr.EndsTx(err), sqlerr.Gone(err), sqlerr.Unreachable(err)}
}

var (
	nothing     = verdict{}
	answer      = verdict{answered: true}
	retry       = verdict{retryable: true, answered: true}
	retryEnds   = verdict{retryable: true, answered: true, ends: true}
	answerEnds  = verdict{answered: true, ends: true}
	ends        = verdict{ends: true}
	gone        = verdict{gone: true}
	lost        = verdict{ends: true, unreachable: true}
	full        = verdict{answered: true, unreachable: true}
	errUnknown  = errors.New("out of cheese")
	deadlockPG  = &pgconn.PgError{Severity: "ERROR", Code: "40P01", Message: "deadlock detected"}
	deadlockMy  = &mysql.MySQLError{Number: 1213, SQLState: [5]byte([]byte("40001")), Message: "Deadlock found"}
	netReset    = &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}
	txRolled    = pgconn.ErrTxCommitRollback
	nilPgError  *pgconn.PgError
	nilMySQL    *mysql.MySQLError
	nilSQLite   *modernc.Error
	nilMattn    *mattn.Error
	nilInStruct = modernc.Wrapper{}
)

// inStruct wraps as an application's own error type does.
type inStruct struct {
	op  string
	err error
}

func (e inStruct) Error() string { return e.op + " failed" }
func (e inStruct) Unwrap() error { return e.err }

// inQuery embeds a driver's error, and does not unwrap.
type inQuery struct {
	query string
	*mysql.MySQLError
}

type inHandler struct{ inQuery }

type sqliteError = modernc.Error

type inFile struct{ *sqliteError }

type inCircle struct{ *inCircle }

func (*inCircle) Error() string { return "circle" }

// rude panics wherever it is asked something.
type rude struct{ err error }

func (rude) Error() string    { panic("Error") }
func (rude) SQLState() string { panic("SQLState") }
func (rude) Is(error) bool    { panic("Is") }
func (e rude) Unwrap() error  { return e.err }

// ruder panics also when unwrapped.
type ruder struct{ rude }

func (ruder) Unwrap() []error { panic("Unwrap") }

// isBadConn is a driver's error that declares itself to be driver.ErrBadConn, as that variable's documentation allows.
type isBadConn struct{ pgconn.PgError }

func (*isBadConn) Is(err error) bool { return err == driver.ErrBadConn }

func sqlState(code string) error { return &pgconn.PgError{Code: code} }

func mysqlState(number uint16, state string) error {
	return &mysql.MySQLError{Number: number, SQLState: [5]byte([]byte(state))}
}

// closedPool returns the error of database/sql for a pool that was closed, which it does not export.
func closedPool() error {
	db := sql.OpenDB(nil)
	db.Close()
	_, err := db.Begin()
	return err
}

func TestEachErrorIsJudgedBareAndHoweverItIsWrapped(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want verdict
	}{
		{"nil", nil, nothing},
		{"an unknown error", errUnknown, nothing},
		{"ErrTxDone", sql.ErrTxDone, nothing},

		{"pgx serialization failure", sqlState("40001"), retry},
		{"pgx deadlock", deadlockPG, retry},
		{"lib/pq serialization failure", &pq.Error{Code: "40001"}, retry},
		{"lib/pq deadlock", &pq.Error{Code: "40P01"}, retry},
		{"pgx unique violation", sqlState("23505"), answer},
		{"pgx lock not available", sqlState("55P03"), answer},
		{"pgx statement cancelled", sqlState("57014"), answer},
		{"pgx statement completion unknown", sqlState("40003"), nothing},
		{"pgx connection failure", sqlState("08006"), lost},
		{"pgx admin shutdown", sqlState("57P01"), lost},
		{"lib/pq crash shutdown", &pq.Error{Code: "57P02"}, lost},
		{"pgx cannot connect now", sqlState("57P03"), lost},
		{"pgx database dropped", sqlState("57P04"), ends},
		{"pgx too many connections", sqlState("53300"), full},
		{"pgx out of memory", sqlState("53200"), answer},
		{"pgx idle in transaction", sqlState("25P03"), answerEnds},
		{"pgx aborted transaction", sqlState("25P02"), answer},
		{"pgx no transaction", sqlState("25P01"), gone},
		{"pgx no such savepoint", sqlState("3B001"), gone},
		{"lib/pq no such savepoint", &pq.Error{Code: "3B001"}, gone},
		{"lib/pq no transaction", errors.New("pq: unexpected transaction status idle"), gone},
		{"lib/pq another status", errors.New("pq: unexpected transaction status in failed transaction"), nothing},
		{"an empty SQLSTATE", sqlState(""), nothing},
		{"an SQLSTATE that is none", sqlState("2350!"), nothing},
		{"an SQLSTATE that is too short", sqlState("2350"), nothing},
		{"an SQLSTATE that is too long", sqlState("235050"), nothing},

		{"pgx COMMIT answered with ROLLBACK", txRolled, answer},
		{"lib/pq COMMIT answered with ROLLBACK", pq.ErrInFailedTransaction, answer},
		{"lib/pq the same without its prefix", errors.New("could not complete operation in a failed transaction"), answer},
		{"lib/pq the same by the command tag", errors.New("unexpected command tag ROLLBACK"), answer},
		{"that text quoted by another error", fmt.Errorf("log shipping: %v", txRolled), nothing},

		{"modernc BUSY", &modernc.Error{Num: 5}, retry},
		{"modernc BUSY_SNAPSHOT", &modernc.Error{Num: 517}, retry},
		{"modernc LOCKED", &modernc.Error{Num: 6}, retry},
		{"modernc LOCKED_SHAREDCACHE", &modernc.Error{Num: 262}, retry},
		{"modernc foreign key", &modernc.Error{Num: 787}, answer},
		{"modernc ERROR", &modernc.Error{Num: 1}, gone},
		{"modernc OK is no answer", &modernc.Error{Num: 0}, nothing},
		{"modernc NOMEM", &modernc.Error{Num: 7}, answerEnds},
		{"modernc INTERRUPT", &modernc.Error{Num: 9}, answerEnds},
		{"modernc IOERR", &modernc.Error{Num: 10}, ends},
		{"modernc IOERR_FSYNC", &modernc.Error{Num: 1034}, ends},
		{"modernc FULL", &modernc.Error{Num: 13}, answerEnds},
		{"modernc ABORT", &modernc.Error{Num: 4}, answer},
		{"modernc ABORT_ROLLBACK", &modernc.Error{Num: 516}, answerEnds},
		{"modernc embedded in a type of its package", modernc.Wrapper{Base: &modernc.Error{Num: 5}}, retry},
		{"a sqlite error with the methods of a network error", modernc.Net{Base: &modernc.Error{Num: 5}}, retry},
		{"sqlite error that is no struct", modernc.ErrNo(5), nothing},

		{"mattn BUSY", mattn.Error{Code: 5, ExtendedCode: 5}, retry},
		{"mattn BUSY_SNAPSHOT", mattn.Error{Code: 5, ExtendedCode: 517}, retry},
		{"mattn BUSY built by hand", mattn.Error{Code: 5}, retry},
		{"mattn LOCKED by pointer", &mattn.Error{Code: 6, ExtendedCode: 6}, retry},
		{"mattn foreign key", mattn.Error{Code: 19, ExtendedCode: 787}, answer},
		{"mattn ERROR", mattn.Error{Code: 1, ExtendedCode: 1}, gone},
		{"mattn IOERR_FSYNC", mattn.Error{Code: 10, ExtendedCode: 1034}, ends},
		{"mattn ABORT_ROLLBACK", mattn.Error{Code: 4, ExtendedCode: 516}, answerEnds},
		{"mattn ABORT", mattn.Error{Code: 4, ExtendedCode: 4}, answer},
		{"mattn FULL", mattn.Error{Code: 13, ExtendedCode: 13}, answerEnds},
		{"mattn without a code", mattn.Error{}, nothing},
		{"sqlite fields of other types", mattn.Hidden{Code: "5", ExtendedCode: "5"}, nothing},

		{"MySQL deadlock", deadlockMy, retryEnds},
		{"MySQL record changed since last read", mysqlState(1020, "HY000"), retryEnds},
		{"MySQL lock wait timeout", mysqlState(1205, "HY000"), retryEnds},
		{"MySQL lock table full", mysqlState(1206, "HY000"), answerEnds},
		{"MySQL no such savepoint", mysqlState(1305, "42000"), gone},
		{"MySQL before the driver had SQLState, no such savepoint", &mysql.OldError{Number: 1305}, gone},
		{"MySQL too many connections", mysqlState(1040, "08004"), lost},
		{"MySQL too many connections, without an SQLSTATE", &mysql.OldError{Number: 1040}, full},
		{"MySQL too many connections of a user", mysqlState(1203, "42000"), full},
		{"MySQL shuts down", mysqlState(1053, "08S01"), lost},
		{"MySQL duplicate entry", mysqlState(1062, "23000"), answer},
		{"MySQL error during commit", mysqlState(1180, "HY000"), answer},
		{"MySQL node not ready", mysqlState(1047, "08S01"), lost},
		{"MySQL without an SQLSTATE", &mysql.MySQLError{Number: 1213}, retryEnds},
		{"MySQL without a number", &mysql.MySQLError{}, nothing},
		{"MySQL before the driver had SQLState", &mysql.OldError{Number: 1213}, retryEnds},
		{"MySQL with an SQLState of another type", mysql.StringState{Number: 1062, SQLState: "08S01"}, answer},
		{"MySQL embedded in a type of its package", mysql.Wrapper{MySQLError: deadlockMy}, retryEnds},
		{"MySQL field of another type", mysql.Hidden{Number: "1213"}, nothing},
		{"MySQL error that is no struct", mysql.Warnings{"1213"}, nothing},
		{"MySQL invalid connection", mysql.ErrInvalidConn, lost},

		{"an application's Code method", &lookalike.Coded{Num: 5}, nothing},
		{"an application's Code fields", lookalike.Fields{Code: 5, ExtendedCode: 5}, nothing},
		{"an application's Number field", &lookalike.Numbered{Number: 1213}, nothing},

		{"a nil *PgError", nilPgError, nothing},
		{"a nil *MySQLError", nilMySQL, nothing},
		{"a nil *sqlite.Error", nilSQLite, nothing},
		{"a nil *sqlite3.Error", nilMattn, nothing},
		{"a struct that embeds a nil *sqlite.Error", nilInStruct, nothing},
		{"a struct that embeds a nil *MySQLError", mysql.Wrapper{}, nothing},
		{"MySQL embedded in a type of the program's", inQuery{"SELECT 1", deadlockMy}, retryEnds},
		{"that one embedded", &inHandler{inQuery: inQuery{"SELECT 1", deadlockMy}}, retryEnds},
		{"one of the program's that embeds a nil *MySQLError", inQuery{}, nothing},
		{"modernc embedded in a type of the program's", inFile{&modernc.Error{Num: 5}}, retry},
		{"a type of the program's that embeds itself", &inCircle{}, nothing},
		{"an error whose methods panic", rude{}, nothing},
		{"an error whose methods panic around one that is known", rude{deadlockPG}, retry},
		{"an error that panics when unwrapped", ruder{}, nothing},

		{"ErrBadConn", driver.ErrBadConn, lost},
		{"pgx conn closed", pgconn.ErrConnClosed, lost},
		{"EOF", io.EOF, lost},
		{"a reset connection", netReset, lost},
		{"a refused connection", &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, lost},
		{"a pool that was closed", closedPool(), lost},
		{"a connection that was closed", sql.ErrConnDone, lost},
		{"context cancelled", context.Canceled, nothing},
		{"context deadline exceeded", context.DeadlineExceeded, nothing},
	}
	wraps := []struct {
		name string
		wrap func(error) error
	}{
		{"bare", func(err error) error { return err }},
		{"wrapped twice", func(err error) error { return fmt.Errorf("b: %w", fmt.Errorf("a: %w", err)) }},
		{"in a struct", func(err error) error { return inStruct{"commit", err} }},
		{"in a pointer to a struct", func(err error) error { return &inStruct{"commit", err} }},
		{"joined, last", func(err error) error { return errors.Join(errUnknown, err) }},
		{"joined, first, wrapped", func(err error) error { return fmt.Errorf("x: %w", errors.Join(err, errUnknown)) }},
		{"one of two verbs", func(err error) error { return fmt.Errorf("%w after %w", errUnknown, err) }},
		{"beside a nil pointer", func(err error) error { return errors.Join(nilPgError, err) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, w := range wraps {
				// fmt prints %!w(<nil>) for a nil error and wraps nothing, which is as good.
				if got := judge(w.wrap(tt.err)); got != tt.want {
					t.Errorf("%s: %+v, want %+v", w.name, got, tt.want)
				}
			}
		})
	}
}

func TestAnUnknownOutcomeOutweighsAnAnswer(t *testing.T) {
	marks := []struct {
		name string
		err  error
		says verdict
	}{
		{"ErrBadConn", driver.ErrBadConn, lost},
		{"an error that is ErrBadConn by its method Is", &isBadConn{}, lost},
		{"EOF", io.EOF, lost},
		{"unexpected EOF", io.ErrUnexpectedEOF, lost},
		{"context.Canceled", context.Canceled, nothing},
		{"context.DeadlineExceeded", context.DeadlineExceeded, nothing},
		{"a net.OpError", netReset, lost},
		{"a bare errno", syscall.EPIPE, lost},
		{"a closed network connection", net.ErrClosed, lost},
		{"an I/O timeout", os.ErrDeadlineExceeded, lost},
		{"conn closed", pgconn.ErrConnClosed, lost},
		{"invalid connection", mysql.ErrInvalidConn, lost},
		{"SQLSTATE 08006", sqlState("08006"), lost},
		{"SQLSTATE 40003", sqlState("40003"), nothing},
		{"SQLSTATE 57P03", sqlState("57P03"), lost},
		{"SQLSTATE 57P04", sqlState("57P04"), ends},
		{"MySQL's 08S01", mysqlState(1053, "08S01"), lost},
	}
	answers := []struct {
		name      string
		err       error
		retryable bool
	}{
		{"deadlock", deadlockPG, true},
		{"SQLite BUSY", mattn.Error{Code: 5, ExtendedCode: 5}, true},
		{"constraint", sqlState("23503"), false},
		{"COMMIT answered with ROLLBACK", txRolled, false},
	}
	for _, m := range marks {
		for _, a := range answers {
			for _, err := range []error{
				errors.Join(a.err, m.err),
				fmt.Errorf("%w: %w", m.err, a.err),
				inStruct{"commit", errors.Join(inStruct{"a", a.err}, inStruct{"b", m.err})},
			} {
				want := m.says
				want.retryable = a.retryable
				if got := judge(err); got != want {
					t.Errorf("%s with %s: %+v, want %+v", m.name, a.name, got, want)
				}
			}
		}
	}
}

func TestAnErrorThatHoldsBothItsCodeAndALostConnectionIsUnknown(t *testing.T) {
	err := &isBadConn{pgconn.PgError{Code: "23505"}}
	if got := judge(err); got != lost {
		t.Errorf("%+v, want %+v", got, lost)
	}
}

// What the server no longer has is no answer to COMMIT, whatever else is said beside it.
func TestWhatIsGoneOutweighsAnAnswer(t *testing.T) {
	for _, err := range []error{
		errors.Join(sqlState("3B001"), sqlState("23505")),
		fmt.Errorf("%w: %w", mysqlState(1062, "23000"), mysqlState(1305, "42000")),
		errors.Join(&modernc.Error{Num: 787}, &modernc.Error{Num: 1}),
	} {
		if got := judge(err); got != gone {
			t.Errorf("%v: %+v, want %+v", err, got, gone)
		}
	}
}
