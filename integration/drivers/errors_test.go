package drivers

import (
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"unsafe"

	"github.com/duckdb/duckdb-go/v2"
	mssql "github.com/microsoft/go-mssqldb"
	"github.com/nakagami/firebirdsql"
	"github.com/ncruces/go-sqlite3"
	"github.com/sijms/go-ora/v2/network"
	. "github.com/sqlreq/sqlreq/integration/drivers/check"
	"github.com/trinodb/trino-go-client/trino"
)

// set sets a field of an error that only its driver sets.
func set[E any](e *E, field string, value any) *E {
	f := reflect.ValueOf(e).Elem().FieldByName(field)
	reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem().Set(reflect.ValueOf(value).Convert(f.Type()))
	return e
}

// What is read in the errors of the real drivers.
func TestErrors(t *testing.T) {
	deadlock := mssql.Error{Number: 1205, Class: 13, Message: "Transaction was deadlocked"}
	severed := set(&mssql.ServerError{}, "sqlError", mssql.Error{Number: 3314, Class: 17})
	type row struct {
		name string
		err  error
		want Verdict
	}
	rows := []row{
		// https://learn.microsoft.com/sql/relational-databases/errors-events/database-engine-events-and-errors
		{"deadlock", deadlock, RetryEnd},
		{"lock request time out", mssql.Error{Number: 1222, Class: 16}, Retry},
		{"snapshot, update conflict", mssql.Error{Number: 3960, Class: 16}, RetryEnd},
		{"snapshot, the schema changed", mssql.Error{Number: 3961, Class: 16}, Retry},
		{"in memory, dependency failed", mssql.Error{Number: 41301, Class: 16}, Retry},
		{"in memory, write conflict", mssql.Error{Number: 41302, Class: 16}, RetryEnd},
		{"in memory, repeatable read", mssql.Error{Number: 41305, Class: 16}, Retry},
		{"in memory, serializable", mssql.Error{Number: 41325, Class: 16}, Retry},
		{"in memory, too many dependencies", mssql.Error{Number: 41839, Class: 16}, Retry},
		{"duplicate key", mssql.Error{Number: 2627, Class: 14}, Answer},
		{"uncommittable, rolled back", mssql.Error{Number: 3998, Class: 16}, AnswerEnd},
		{"a trigger rolled back", mssql.Error{Number: 3609, Class: 16}, AnswerEnd},
		{"an error in a trigger rolled back", mssql.Error{Number: 3616, Class: 16}, AnswerEnd},
		{"COMMIT without a transaction", mssql.Error{Number: 3902, Class: 16}, Gone},
		{"ROLLBACK without a transaction", mssql.Error{Number: 3903, Class: 16}, Gone},
		{"SAVE TRANSACTION without a transaction", mssql.Error{Number: 628, Class: 16}, Gone},
		{"no such savepoint", mssql.Error{Number: 6401, Class: 16}, Gone},
		{"the driver's, before anything is sent", mssql.Error{Message: "server does not have an active transaction: the transaction was aborted by the server"}, Gone},
		{"class 19", mssql.Error{Number: 701, Class: 19}, Answer},
		{"class 20", mssql.Error{Number: 4014, Class: 20}, Lost},
		{"class 21", mssql.Error{Number: 596, Class: 21}, Lost},
		{"severed", *severed, Lost},
		{"an answer that cannot be read", mssql.StreamError{InnerError: errors.New("x")}, Lost},
		{"retryable", *set(&mssql.RetryableError{}, "err", fmt.Errorf("failed to send SQL Batch")), Lost},

		// https://docs.oracle.com/en/error-help/db/
		{"unique", &network.OracleError{ErrCode: 1}, Answer},
		{"deadlock", &network.OracleError{ErrCode: 60}, Retry},
		{"can't serialize", &network.OracleError{ErrCode: 8177}, Retry},
		{"rolled back by COMMIT", &network.OracleError{ErrCode: 2091}, Answer},
		{"no such savepoint", &network.OracleError{ErrCode: 1086}, Gone},
		{"godror, unique", godrorError(1), Answer},
		{"godror, deadlock", godrorError(60), Retry},
		{"godror, can't serialize", godrorError(8177), Retry},
		{"godror, rolled back by COMMIT", godrorError(2091), Answer},
		{"godror, no such savepoint", godrorError(1086), Gone},
		{"godror, with a state", set(godrorError(60), "sqlState", "HY000"), Retry},

		// duckdb.h, duckdb_error_type; the texts are DuckDB's
		{"conflict", &duckdb.Error{Type: duckdb.ErrorTypeTransaction, Msg: "TransactionContext Error: Conflict on update!"}, RetryEnd},
		{"aborted", &duckdb.Error{Type: duckdb.ErrorTypeTransaction, Msg: "TransactionContext Error: Current transaction is aborted (please ROLLBACK)"}, AnswerEnd},
		{"the same key", &duckdb.Error{Type: duckdb.ErrorTypeTransaction, Msg: `TransactionContext Error: Failed to commit: PRIMARY KEY or UNIQUE constraint violation: duplicate key "2"`}, RetryEnd},
		{"no transaction", &duckdb.Error{Type: duckdb.ErrorTypeTransaction, Msg: "TransactionContext Error: cannot commit - no transaction is active"}, Verdict{Ends: true, Gone: true}},
		{"constraint", &duckdb.Error{Type: duckdb.ErrorTypeConstraint, Msg: "Constraint Error: Duplicate key"}, AnswerEnd},
		{"conversion", &duckdb.Error{Type: duckdb.ErrorTypeConversion, Msg: "Conversion Error: Could not convert string 'a' to INT32"}, AnswerEnd},
		{"interrupt", &duckdb.Error{Type: duckdb.ErrorTypeInterrupt, Msg: "INTERRUPT Error: Interrupted!"}, AnswerEnd},
		{"out of memory", &duckdb.Error{Type: duckdb.ErrorTypeOutOfMemory, Msg: "Out of Memory Error: failed"}, AnswerEnd},
		{"catalog", &duckdb.Error{Type: duckdb.ErrorTypeCatalog, Msg: "Catalog Error: Table with name x does not exist!"}, Answer},
		{"parser", &duckdb.Error{Type: duckdb.ErrorTypeParser, Msg: "Parser Error: syntax error"}, Answer},
		{"syntax", &duckdb.Error{Type: duckdb.ErrorTypeSyntax, Msg: "Syntax Error: syntax error"}, Answer},
		{"binder", &duckdb.Error{Type: duckdb.ErrorTypeBinder, Msg: "Binder Error: Referenced column not found"}, Answer},

		// The codes are those of firebirdsql's errmsgs.go.
		{"conflict", &firebirdsql.FbError{GDSCodes: []int{335544336, 335544451}, SQLCode: -913, SQLState: "40001"}, Retry},
		{"unique", &firebirdsql.FbError{GDSCodes: []int{335544665}, SQLCode: -803, SQLState: "23000"}, Answer},
		{"no such transaction", &firebirdsql.FbError{GDSCodes: []int{335544332}, SQLCode: -901, SQLState: "25000"}, Gone},
		{"no such savepoint", &firebirdsql.FbError{GDSCodes: []int{335544820}, SQLState: "3B001"}, Gone},
		{"no such savepoint, without a state", &firebirdsql.FbError{GDSCodes: []int{335544820}}, Gone},
		{"connection lost", &firebirdsql.FbError{GDSCodes: []int{335544721}, SQLState: "08006"}, Lost},
		{"shutdown", &firebirdsql.FbError{GDSCodes: []int{335544528}, SQLState: "HY000"}, Answer},

		// https://www.sqlite.org/rescode.html
		{"ncruces, busy", sqlite3.BUSY, Retry},
		{"ncruces, stale snapshot", sqlite3.BUSY_SNAPSHOT, Retry},
		{"ncruces, locked", sqlite3.LOCKED, Retry},
		{"ncruces, constraint", sqlite3.CONSTRAINT_FOREIGNKEY, Answer},
		{"ncruces, interrupted", sqlite3.INTERRUPT, AnswerEnd},
		{"ncruces, full", sqlite3.FULL, AnswerEnd},
		{"ncruces, I/O", sqlite3.IOERR_FSYNC, Verdict{Ends: true}},

		// What is not read is not known: a COMMIT that fails so is Ambiguous.
		{"trino", &trino.ErrQueryFailed{StatusCode: 200, Reason: &trino.ErrTrino{ErrorCode: 13, ErrorName: "GENERIC_USER_ERROR", SqlState: "40001"}}, Nothing},
		{"trino, cancelled", trino.ErrQueryCancelled, Nothing},
	}
	for _, code := range []int{28, 1012, 1033, 1034, 1089, 3113, 3114, 3135, 12528, 12537, 25405} {
		rows = append(rows,
			row{fmt.Sprintf("go-ora, ORA-%05d", code), &network.OracleError{ErrCode: code}, Lost},
			row{fmt.Sprintf("godror, ORA-%05d", code), godrorError(code), Lost})
	}
	for _, r := range rows {
		r.want.Read(t, r.name, r.err)
	}
	if len(rows) != 85 {
		t.Errorf("%d rows", len(rows))
	}
}

// The errors of engines that run, as they come.
func TestErrorsOfRunningEngines(t *testing.T) {
	for _, e := range []struct {
		driver, dsn        string
		duplicate, missing Verdict
		none               Verdict // COMMIT by a statement outside of a transaction
	}{
		{"sqlite", ":memory:", Answer, Gone, Gone}, // code 1 is also that of every mistake
		{"sqlite3", ":memory:", Answer, Gone, Gone},
		{"libsql", "file:" + t.TempDir() + "/x.db", Nothing, Nothing, Gone},
		{"duckdb", "", AnswerEnd, Answer, Verdict{Ends: true, Gone: true}},
	} {
		db, err := sql.Open(e.driver, e.dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		db.SetMaxOpenConns(1)
		for _, query := range []string{"CREATE TABLE t (id INTEGER PRIMARY KEY)", "INSERT INTO t VALUES (1)"} {
			if _, err := db.Exec(query); err != nil {
				t.Fatalf("%s: %s: %v", e.driver, query, err)
			}
		}
		for _, s := range []struct {
			query string
			want  Verdict
		}{{"INSERT INTO t VALUES (1)", e.duplicate}, {"INSERT INTO nothing VALUES (1)", e.missing}, {"COMMIT", e.none}} {
			_, err := db.Exec(s.query)
			if err == nil {
				t.Errorf("%s: %s: no error", e.driver, s.query)
			}
			s.want.Read(t, e.driver+" "+s.query, err)
		}
	}
}
