package sqlerr

import (
	"reflect"
	"slices"
	"strings"
)

// engines read the error types of drivers, by a part of the package path of the type. The path is part of
// the shape: a Code of 5 or a Number of 1213 means something else everywhere else.
var engines = []struct {
	path string
	read func(c *code, err error, v reflect.Value) // v is err, or what it points to
}{
	{"sqlite", readSQLite},
	{"mysql", readMySQL},
	{"mssql", readSQLServer},
	{"go-ora", readOracle},
	{"godror", readOracle},
	{"duckdb", readDuckDB},
	{"firebirdsql", readFirebird},
}

// readEngine reads what the driver's own type says, also where a type of the program's embeds it: its methods and
// fields are that type's too.
func readEngine(c *code, err error) {
	v := reflect.Indirect(reflect.ValueOf(err))
	for _, e := range engines {
		if isOf(v.Type(), e.path, maxEmbedded) {
			e.read(c, err, v)
		}
	}
}

// maxEmbedded is how deep an embedded type is looked for.
const maxEmbedded = 4

// isOf reports whether t, or a type that it embeds, is of a package with that part in its path.
func isOf(t reflect.Type, path string, deep int) bool {
	if strings.Contains(t.PkgPath(), path) {
		return true
	}
	if t.Kind() != reflect.Struct || deep == 0 {
		return false
	}
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.Anonymous {
			continue
		}
		if f.Type.Kind() == reflect.Pointer {
			f.Type = f.Type.Elem()
		}
		if isOf(f.Type, path, deep-1) {
			return true
		}
	}
	return false
}

func readSQLite(c *code, err error, v reflect.Value) {
	if c.sqlite = sqliteCode(err, v); c.sqlite != 0 {
		c.broken = false // an embedded database: some drivers' errors have the methods of network errors
	}
}

func sqliteCode(err error, v reflect.Value) int {
	// modernc.org/sqlite, glebarez/go-sqlite: the extended code.
	if e, ok := err.(interface{ Code() int }); ok {
		return e.Code()
	}
	// ncruces/go-sqlite3: methods that return a uint8 and a uint16 of types of its own, or the error is such a number.
	if n := resultOf(reflect.ValueOf(err).MethodByName("ExtendedCode")); n != 0 {
		return n
	}
	if v.CanUint() {
		return int(v.Uint())
	}
	if v.Kind() != reflect.Struct {
		return 0
	}
	// mattn/go-sqlite3: both codes, each of a type of its own. An Error that was built by hand may lack the extended one.
	primary, extended := v.FieldByName("Code"), v.FieldByName("ExtendedCode")
	switch {
	case !primary.CanInt() || !extended.CanInt():
		return 0
	case extended.Int() != 0:
		return int(extended.Int())
	}
	return int(primary.Int())
}

// resultOf returns what a method without arguments returns if that is one number, otherwise 0.
func resultOf(method reflect.Value) int {
	if !method.IsValid() || method.Type().NumIn() != 0 || method.Type().NumOut() != 1 {
		return 0
	}
	if n := method.Call(nil)[0]; n.CanUint() {
		return int(n.Uint())
	}
	return 0
}

func readMySQL(c *code, _ error, v reflect.Value) {
	if v.Kind() != reflect.Struct {
		return
	}
	if f := v.FieldByName("Number"); f.Kind() == reflect.Uint16 {
		c.mysql = int(f.Uint())
		c.mysqlState = mysqlField(v.FieldByName("SQLState"))
	}
}

// mysqlField reads the [5]byte that go-sql-driver has had since v1.7.0.
func mysqlField(f reflect.Value) string {
	if f.Kind() != reflect.Array || f.Type().Elem().Kind() != reflect.Uint8 {
		return ""
	}
	b := make([]byte, f.Len())
	for i := range b {
		b[i] = byte(f.Index(i).Uint())
	}
	return validState(string(b))
}

// Error numbers of SQL Server
// (https://learn.microsoft.com/sql/relational-databases/errors-events/database-engine-events-and-errors).
var (
	sqlServerConflicts = []int32{
		1205,       // deadlock victim
		1222,       // lock request time out
		3960, 3961, // snapshot isolation: an update conflict, a change of the schema
		41301, 41302, 41305, 41325, // memory-optimized tables: dependency failed, write conflict, two validations
		41839, // too many dependencies
	}
	sqlServerEnds = []int32{1205, 3960, 41302,
		3609, 3616, // a trigger, or an error in one, has rolled back
		3998} // what an error made uncommittable was rolled back at the end of the batch
	sqlServerGone = []int32{3902, 3903, 628, // COMMIT, ROLLBACK, SAVE TRANSACTION without a BEGIN TRANSACTION
		6401} // no such savepoint
)

// sqlServerFatal is the class from which the server closes the connection
// (https://learn.microsoft.com/sql/relational-databases/errors-events/database-engine-error-severities).
const sqlServerFatal = 20

// readSQLServer reads github.com/microsoft/go-mssqldb's Error, and two of its types that say that the connection is lost:
// the server severs it, whatever the class, or the answer cannot be read.
func readSQLServer(c *code, err error, v reflect.Value) {
	if name := v.Type().Name(); name == "ServerError" || name == "StreamError" {
		c.broken = true
		return
	}
	e, ok := err.(interface {
		SQLErrorNumber() int32
		SQLErrorClass() uint8
	})
	if !ok {
		return
	}
	n := e.SQLErrorNumber()
	c.reply = n != 0
	c.broken = c.broken || e.SQLErrorClass() >= sqlServerFatal
	c.conflict = slices.Contains(sqlServerConflicts, n)
	c.ends = slices.Contains(sqlServerEnds, n)
	c.notOpen = slices.Contains(sqlServerGone, n)
}

// Error numbers of Oracle (https://docs.oracle.com/en/error-help/db/).
const (
	oracleDeadlock       = 60
	oracleCantSerialize  = 8177
	oracleNoSavepoint    = 1086
	oracleSessionKilled  = 28
	oracleNotLoggedOn    = 1012
	oracleStarting       = 1033
	oracleNotThere       = 1034
	oracleShuttingDown   = 1089
	oracleEndOfFile      = 3113
	oracleNotConnected   = 3114
	oracleContactLost    = 3135
	oracleNewConnections = 12528 // all of the listener's instances block them
	oracleClosed         = 12537
	oracleFailover       = 25405 // the state of the transaction is not known
)

// readOracle reads the field ErrCode of github.com/sijms/go-ora, or the method Code of github.com/godror/godror.
func readOracle(c *code, err error, v reflect.Value) {
	n := 0
	if e, ok := err.(interface{ Code() int }); ok {
		n = e.Code()
	} else if v.Kind() == reflect.Struct {
		if f := v.FieldByName("ErrCode"); f.CanInt() {
			n = int(f.Int())
		}
	}
	c.reply = n != 0
	switch n {
	case oracleDeadlock, oracleCantSerialize:
		c.conflict = true
	case oracleNoSavepoint: // a commit has erased it, DDL's for instance
		c.notOpen = true
	case oracleSessionKilled, oracleNotLoggedOn, oracleStarting, oracleNotThere, oracleShuttingDown, oracleEndOfFile,
		oracleNotConnected, oracleContactLost, oracleNewConnections, oracleClosed, oracleFailover:
		c.broken = true
	}
}

// Types of DuckDB's errors (duckdb.h, duckdb_error_type).
const (
	duckTransaction = 10
	duckCatalog     = 13
	duckParser      = 14
	duckSyntax      = 22
	duckBinder      = 24
)

// readDuckDB reads github.com/duckdb/duckdb-go's Error (marcboeker's before). Every error of a statement that had
// begun to run aborts the transaction, whose COMMIT then answers with success and stores nothing.
func readDuckDB(c *code, err error, v reflect.Value) {
	if v.Kind() != reflect.Struct {
		return
	}
	kind, message := v.FieldByName("Type"), v.FieldByName("Msg")
	if !kind.CanInt() || message.Kind() != reflect.String {
		return
	}
	c.reply, c.broken = true, false
	words := strings.ToLower(err.Error())
	switch kind.Int() {
	case duckCatalog, duckParser, duckSyntax, duckBinder:
		return
	case duckTransaction:
		c.conflict = strings.Contains(words, "conflict")
	}
	// Two transactions that insert the same key: the second one is told by its COMMIT.
	if strings.Contains(words, "failed to commit") && strings.Contains(words, "primary key or unique constraint violation") {
		c.conflict = true
	}
	c.ends = true
}

// Codes of Firebird (https://firebirdsql.org/file/documentation/html/en/refdocs/fblangref50/firebird-50-language-reference.html,
// appendix "Exception Codes and Messages").
const (
	firebirdGone        = 335544332 // isc_bad_trans_handle: no such transaction
	firebirdNoSavepoint = 335544820 // isc_invalid_savepoint
)

// readFirebird reads github.com/nakagami/firebirdsql's FbError.
func readFirebird(c *code, _ error, v reflect.Value) {
	if v.Kind() != reflect.Struct {
		return
	}
	state, codes := v.FieldByName("SQLState"), v.FieldByName("GDSCodes")
	if state.Kind() == reflect.String {
		c.state = validState(state.String())
	}
	if codes.Kind() == reflect.Slice && codes.Type().Elem().Kind() == reflect.Int {
		c.reply = codes.Len() > 0
		for i := range codes.Len() {
			n := codes.Index(i).Int()
			c.notOpen = c.notOpen || n == firebirdGone || n == firebirdNoSavepoint
		}
	}
}
