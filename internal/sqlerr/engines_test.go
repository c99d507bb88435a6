package sqlerr_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/sqlreq/sqlreq/internal/sqlerr/internal/shapes/firebirdsql"
	ncruces "github.com/sqlreq/sqlreq/internal/sqlerr/internal/shapes/ncruces_sqlite3"
	duckdb "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/duckdb-go"
	mssql "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-mssqldb"
	network "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-ora"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/godror"
)

// What the errors of engines beside SQLite, MySQL and PostgreSQL say, from the documentation that engines.go names.
func TestErrorsOfOtherEngines(t *testing.T) {
	lostReply := verdict{ends: true, unreachable: true}
	type row struct {
		name string
		err  error
		want verdict
	}
	rows := []row{
		{"ncruces BUSY", &ncruces.Error{Num: 5}, retry},
		{"ncruces BUSY_SNAPSHOT", &ncruces.Error{Num: 517}, retry},
		{"ncruces BUSY as a code", ncruces.ErrorCode(5), retry},
		{"ncruces LOCKED as an extended code", ncruces.ExtendedErrorCode(262), retry},
		{"ncruces foreign key, refused COMMIT", &ncruces.Error{Num: 787}, answer},
		{"ncruces INTERRUPT as a code", ncruces.ErrorCode(9), answerEnds},
		{"ncruces ERROR", &ncruces.Error{Num: 1}, gone},
		{"ncruces OK", ncruces.ErrorCode(0), nothing},
		{"sqlite, a method with another result", ncruces.Strange{}, nothing},
		{"sqlite, a method with an argument", ncruces.Asking{}, nothing},

		{"SQL Server deadlock", mssql.Error{Number: 1205, Class: 13}, retryEnds},
		{"SQL Server lock timeout", mssql.Error{Number: 1222, Class: 16}, retry},
		{"SQL Server snapshot conflict", mssql.Error{Number: 3960, Class: 16}, retryEnds},
		{"SQL Server snapshot, the schema changed", mssql.Error{Number: 3961, Class: 16}, retry},
		{"SQL Server dependency failed", mssql.Error{Number: 41301, Class: 16}, retry},
		{"SQL Server write conflict", mssql.Error{Number: 41302, Class: 16}, retryEnds},
		{"SQL Server repeatable read", mssql.Error{Number: 41305, Class: 16}, retry},
		{"SQL Server serializable", mssql.Error{Number: 41325, Class: 16}, retry},
		{"SQL Server dependencies", mssql.Error{Number: 41839, Class: 16}, retry},
		{"SQL Server duplicate key", mssql.Error{Number: 2627, Class: 14}, answer},
		{"SQL Server by pointer", &mssql.Error{Number: 1205, Class: 13}, retryEnds},
		{"SQL Server class 19", mssql.Error{Number: 701, Class: 19}, answer},
		{"SQL Server class 20", mssql.Error{Number: 4014, Class: 20}, lostReply},
		{"SQL Server COMMIT without a transaction", mssql.Error{Number: 3902, Class: 16}, gone},
		{"SQL Server ROLLBACK without a transaction", mssql.Error{Number: 3903, Class: 16}, gone},
		{"SQL Server SAVE TRANSACTION without a transaction", mssql.Error{Number: 628, Class: 16}, gone},
		{"SQL Server no such savepoint", mssql.Error{Number: 6401, Class: 16}, gone},
		{"SQL Server rolled back what could not be committed", mssql.Error{Number: 3998, Class: 16}, answerEnds},
		{"SQL Server, the transaction ended in the trigger", mssql.Error{Number: 3609, Class: 16}, answerEnds},
		{"SQL Server, an error in a trigger rolled back", mssql.Error{Number: 3616, Class: 16}, answerEnds},
		{"SQL Server's connection is severed", mssql.ServerError{Inner: mssql.Error{Number: 3314, Class: 17}}, lostReply},
		{"SQL Server's words", errors.New("mssql: The transaction manager does not have an active transaction."), gone},
		{"SQL Server without a number", mssql.Error{}, nothing},
		{"SQL Server's stream", mssql.StreamError{}, lostReply},

		{"Oracle can't serialize", &network.OracleError{ErrCode: 8177}, retry},
		{"Oracle deadlock", &network.OracleError{ErrCode: 60}, retry},
		{"Oracle unique", &network.OracleError{ErrCode: 1}, answer},
		{"Oracle no such savepoint", &network.OracleError{ErrCode: 1086}, gone},
		{"godror no such savepoint", &godror.OraErr{Num: 1086}, gone},
		{"Oracle without a code", &network.OracleError{}, nothing},
		{"Oracle, a field of another type", network.Other{ErrCode: "60"}, nothing},
		{"Oracle, no struct", network.Text("60"), nothing},
		{"godror can't serialize", &godror.OraErr{Num: 8177}, retry},
		{"godror deadlock", &godror.OraErr{Num: 60}, retry},
		{"godror unique", &godror.OraErr{Num: 1}, answer},

		{"DuckDB conflict", &duckdb.Error{Type: 10, Msg: "TransactionContext Error: Conflict on update!"}, retryEnds},
		{"DuckDB aborted", &duckdb.Error{Type: 10, Msg: "TransactionContext Error: Current transaction is aborted (please ROLLBACK)"}, answerEnds},
		{"DuckDB refused COMMIT", &duckdb.Error{Type: 10, Msg: `TransactionContext Error: Failed to commit: PRIMARY KEY or UNIQUE constraint violation: duplicate key "1"`}, retryEnds},
		{"DuckDB unique", &duckdb.Error{Type: 18, Msg: `Constraint Error: PRIMARY KEY or UNIQUE constraint violation: duplicate key "1"`}, answerEnds},
		{"DuckDB catalog", &duckdb.Error{Type: 13, Msg: "Catalog Error: no such table"}, answer},
		{"DuckDB parser", &duckdb.Error{Type: 14, Msg: "Parser Error: syntax error"}, answer},
		{"DuckDB syntax", &duckdb.Error{Type: 22, Msg: "Syntax Error: syntax error"}, answer},
		{"DuckDB binder", &duckdb.Error{Type: 24, Msg: "Binder Error: no such column"}, answer},
		{"DuckDB no transaction", &duckdb.Error{Type: 10, Msg: "TransactionContext Error: cannot commit - no transaction is active"}, verdict{ends: true, gone: true}},
		{"DuckDB, fields of other types", duckdb.Other{Type: "10", Msg: "conflict"}, nothing},
		{"DuckDB, no struct", duckdb.Text("conflict"), nothing},

		{"TiDB write conflict", mysqlState(9007, "HY000"), retry},
		{"TiDB retry failed", mysqlState(8002, "HY000"), retry},
		{"TiDB write conflict, optimistic", mysqlState(8005, "HY000"), retry},
		{"TiDB commit failed, may be tried again", mysqlState(8022, "HY000"), retry},
		{"TiDB schema changed", mysqlState(8028, "HY000"), retry},
		{"TiDB deadlock", mysqlState(1213, "40001"), retryEnds},

		{"Firebird conflict", &firebirdsql.FbError{SQLState: "40001", GDSCodes: []int{335544336}}, retry},
		{"Firebird unique", &firebirdsql.FbError{SQLState: "23000", GDSCodes: []int{335544665}}, answer},
		{"Firebird without a state", &firebirdsql.FbError{GDSCodes: []int{335544665}}, answer},
		{"Firebird connection lost", &firebirdsql.FbError{SQLState: "08006", GDSCodes: []int{335544721}}, lostReply},
		{"Firebird no such transaction", &firebirdsql.FbError{SQLState: "08003", GDSCodes: []int{335544332}}, verdict{ends: true, unreachable: true, gone: true}},
		{"Firebird no such savepoint", &firebirdsql.FbError{SQLState: "3B001", GDSCodes: []int{335544820}}, gone},
		{"Firebird no such savepoint, without a state", &firebirdsql.FbError{GDSCodes: []int{335544820}}, gone},
		{"Firebird without anything", &firebirdsql.FbError{}, nothing},
		{"Firebird, fields of other types", firebirdsql.Other{GDSCodes: []string{"335544332"}, SQLState: 40001}, nothing},
		{"Firebird, no struct", firebirdsql.Text("40001"), nothing},

		{"CockroachDB restart", sqlState("40001"), retry},
		{"CockroachDB committed, the schema's change failed", sqlState("XXA00"), nothing},
		{"CockroachDB result is ambiguous", sqlState("40003"), nothing},

		{"SQLite's words, its code hidden", errors.New("cannot rollback - no transaction is active"), gone},
		{"libSQL's words about a savepoint", errors.New("failed to execute query RELEASE SAVEPOINT a\nerror code = 2: Error executing statement: SQLite failure: `no such savepoint: a`"), gone},
	}
	for _, n := range []int{28, 1012, 1033, 1034, 1089, 3113, 3114, 3135, 12528, 12537, 25405} {
		rows = append(rows,
			row{fmt.Sprintf("go-ora ORA-%05d", n), &network.OracleError{ErrCode: n}, lostReply},
			row{fmt.Sprintf("godror ORA-%05d", n), &godror.OraErr{Num: n}, lostReply})
	}
	for _, row := range rows {
		for _, err := range []error{row.err, fmt.Errorf("wrapped: %w", row.err)} {
			if got := judge(err); got != row.want {
				t.Errorf("%s: %+v, want %+v", row.name, got, row.want)
			}
		}
	}
}
