package dialect

import (
	"database/sql"
	"database/sql/driver"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"weak"
)

// Dialect is that of a database engine: what it has, and how it is spelled. The zero
// Dialect is the standard's, which every engine is taken for that is not known to differ.
type Dialect uint8

// The engines. Standard is every one that is not known to differ.
const (
	Standard Dialect = iota
	SQLServer
	Oracle  // by go-ora
	OracleC // by godror, which is Oracle's own library
	DuckDB
	Spanner
	Snowflake
	YDB
	Trino
	Glebarez // SQLite
	Ncruces  // SQLite
	LibSQL   // SQLite
	Rqlite
	ClickHouse
	Firebird
	SQLite     // by modernc.org/sqlite, mattn/go-sqlite3 and others, whose paths are below those above
	MySQL      // and MariaDB, TiDB, which cannot be told apart by the driver
	PostgreSQL // and CockroachDB, likewise
)

// engine is what is known of an engine.
type engine struct {
	paths  []string // parts of the package paths of its drivers
	name   string   // for errors
	form   form     // of savepoints
	speaks Dialect  // whose SQL it takes: see Speaks

	ignoresReadOnly bool
	commitCheck     string
	stateQuery      string
	keepsRefused    bool
	noTransactions  bool // BEGIN and ROLLBACK do nothing
	noGuard         bool // nothing tells, without undoing work, whether a savepoint is there
}

// form is how savepoints are spelled.
type form uint8

const (
	standard       form = iota // SAVEPOINT, RELEASE SAVEPOINT, ROLLBACK TO SAVEPOINT
	withoutRelease             // Oracle: the same, but there is no RELEASE
	transactSQL                // SQL Server: SAVE TRANSACTION, ROLLBACK TRANSACTION, no release
	noSavepoints
)

var engines = [...]engine{
	Standard: {},
	// https://learn.microsoft.com/sql/t-sql/language-elements/save-transaction-transact-sql,
	// https://learn.microsoft.com/sql/t-sql/functions/xact-state-transact-sql
	SQLServer: {paths: []string{"mssql"}, name: "SQL Server", form: transactSQL, ignoresReadOnly: true, stateQuery: "SELECT XACT_STATE()"},
	// https://docs.oracle.com/en/database/oracle/oracle-database/19/sqlrf/SAVEPOINT.html
	Oracle:  {paths: []string{"go-ora"}, name: "Oracle", form: withoutRelease, ignoresReadOnly: true, noGuard: true},
	OracleC: {paths: []string{"godror"}, name: "Oracle", form: withoutRelease, noGuard: true},
	// https://duckdb.org/docs/stable/sql/statements/transactions
	DuckDB:     {paths: []string{"duckdb"}, name: "DuckDB", form: noSavepoints, ignoresReadOnly: true, commitCheck: "SELECT 1"},
	Spanner:    {paths: []string{"go-sql-spanner"}, name: "Spanner", form: noSavepoints, noGuard: true},
	Snowflake:  {paths: []string{"gosnowflake"}, name: "Snowflake", form: noSavepoints, ignoresReadOnly: true, noGuard: true},
	YDB:        {paths: []string{"ydb-go-sdk"}, name: "YDB", form: noSavepoints, noGuard: true},
	Trino:      {paths: []string{"trino-go-client"}, name: "Trino", form: noSavepoints, noGuard: true},
	Glebarez:   {paths: []string{"glebarez/go-sqlite"}, name: "SQLite by glebarez/go-sqlite", speaks: SQLite, keepsRefused: true},
	Ncruces:    {paths: []string{"ncruces/go-sqlite3"}, name: "SQLite by ncruces/go-sqlite3", speaks: SQLite, keepsRefused: true},
	LibSQL:     {paths: []string{"libsql"}, name: "libSQL", speaks: SQLite, ignoresReadOnly: true, keepsRefused: true},
	Rqlite:     {paths: []string{"gorqlite"}, name: "rqlite", noTransactions: true},
	ClickHouse: {paths: []string{"clickhouse-go"}, name: "ClickHouse", noTransactions: true},
	Firebird:   {paths: []string{"firebirdsql"}, name: "Firebird"},
	SQLite:     {paths: []string{"sqlite"}, name: "SQLite", speaks: SQLite},
	MySQL:      {paths: []string{"mysql"}, name: "MySQL", speaks: MySQL},
	PostgreSQL: {paths: []string{"pgx", "lib/pq"}, name: "PostgreSQL", speaks: PostgreSQL},
}

// Name returns the engine's name, "" if it is not known.
func (d Dialect) Name() string { return engines[d].name }

// Speaks returns SQLite, PostgreSQL or MySQL if the engine takes the SQL of that one for
// what is beside savepoints, otherwise Standard.
func (d Dialect) Speaks() Dialect { return engines[d].speaks }

// IgnoresReadOnly reports whether BEGIN is to be sent without the read-only flag, which
// the driver would refuse. Isolation levels are never left out.
func (d Dialect) IgnoresReadOnly() bool { return engines[d].ignoresReadOnly }

// CommitCheck returns a statement that an aborted transaction refuses, to be sent right
// before COMMIT, which answers with success there and stores nothing; "" if there is no need.
func (d Dialect) CommitCheck() string { return engines[d].commitCheck }

// StateQuery returns a query for one number that tells what became of the transaction,
// which Guard asks instead of a savepoint: 1 it is there, 0 there is none, -1 it can only be
// rolled back. "" if there is none.
func (d Dialect) StateQuery() string { return engines[d].stateQuery }

// KeepsRefused reports whether the driver gives a connection back to the pool inside of
// the transaction whose COMMIT or ROLLBACK has failed.
func (d Dialect) KeepsRefused() bool { return engines[d].keepsRefused }

// Refuses returns why nothing can be bound to the engine, or not with Guard, or not in a
// transaction of a test; nil if it can.
func (d Dialect) Refuses(guard, inTest bool) error {
	e := &engines[d]
	switch {
	case e.noTransactions:
		return fmt.Errorf("%s has no transactions: what its driver calls BEGIN and ROLLBACK does nothing, so that a failed request's work would stay; sqlreq is of no use there", e.name)
	case guard && e.noGuard:
		return fmt.Errorf("no Guard can be had on %s, which tells of no savepoint without undoing what came after it; leave Guard out", e.name)
	case inTest && e.form == noSavepoints:
		return fmt.Errorf("Binding.Tx needs savepoints, and %s has none; give each test a database of its own", e.name)
	}
	return nil
}

// NoSavepoints returns why no savepoint can be laid, nil if it can.
func (d Dialect) NoSavepoints() error {
	if engines[d].form != noSavepoints {
		return nil
	}
	return fmt.Errorf("%s has no savepoints; undo the whole request instead, by an error or Rollback", engines[d].name)
}

// GuardsBySavepoint reports whether Guard is a savepoint.
func (d Dialect) GuardsBySavepoint() bool { return d.CommitCheck() == "" && d.StateQuery() == "" }

// Savepoint returns the statement that begins a savepoint.
func (d Dialect) Savepoint(name string) string {
	if engines[d].form == transactSQL {
		return "SAVE TRANSACTION " + name
	}
	return "SAVEPOINT " + name
}

// Release returns the statement that ends a savepoint and keeps what was done in it,
// "" if there is none: then the savepoint stays until the transaction ends.
func (d Dialect) Release(name string) string {
	if engines[d].form != standard {
		return ""
	}
	return "RELEASE SAVEPOINT " + name
}

// RollbackTo returns the statement that undoes what was done in a savepoint. The
// savepoint stays open.
func (d Dialect) RollbackTo(name string) string {
	if engines[d].form == transactSQL {
		return "ROLLBACK TRANSACTION " + name
	}
	return "ROLLBACK TO SAVEPOINT " + name
}

// found has the dialects of pools, each looked for once.
var found sync.Map // of weak.Pointer[sql.DB] to Dialect

// Of returns the dialect of a pool, which is told by the type of what opens its
// connections, and if that tells nothing by the type of its driver.
func Of(db *sql.DB) Dialect {
	if db == nil {
		return Standard
	}
	p := weak.Make(db)
	if d, ok := found.Load(p); ok {
		return d.(Dialect)
	}
	d := ofTypes(fieldOf(reflect.ValueOf(db), "connector")) // first: its Driver may be nil, or another's
	if d == Standard {
		d = ofTypes(reflect.ValueOf(driverOf(db)))
	}
	if _, loaded := found.LoadOrStore(p, d); !loaded {
		runtime.AddCleanup(db, func(p weak.Pointer[sql.DB]) { found.Delete(p) }, p)
	}
	return d
}

// OfTx returns the dialect of a transaction's pool. Its connection is not looked at:
// database/sql takes it out of the transaction when a context ends, at any time.
func OfTx(tx *sql.Tx) Dialect {
	db := fieldOf(reflect.ValueOf(tx), "db")
	if !db.IsValid() || db.Type() != reflect.TypeFor[*sql.DB]() {
		return Standard
	}
	return Of((*sql.DB)(db.UnsafePointer()))
}

// driverOf returns the pool's driver, nil where asking for it panics: sql.OpenDB(nil).
func driverOf(db *sql.DB) (d driver.Driver) {
	defer func() { _ = recover() }()
	return db.Driver()
}

// fieldOf returns a field of database/sql's own types, which no function gives. Only
// types are looked at. Where a later Go names it otherwise there is nothing to be found.
func fieldOf(pointer reflect.Value, name string) reflect.Value {
	if pointer.Kind() != reflect.Pointer || pointer.IsNil() || pointer.Elem().Kind() != reflect.Struct {
		return reflect.Value{}
	}
	return pointer.Elem().FieldByName(name)
}

// maxLooks is at how many of them, wrappers and what they have, is looked.
const maxLooks = 64

var (
	driverType    = reflect.TypeFor[driver.Driver]()
	connectorType = reflect.TypeFor[driver.Connector]()
	contextType   = reflect.TypeFor[driver.DriverContext]()
)

// ofTypes returns the dialect of a driver or a connector by its type, and below a
// wrapper by the type of what it wraps. The innermost that is known counts: a program's
// own wrapper may be in a package whose path has the name of any engine.
func ofTypes(v reflect.Value) Dialect {
	looks := maxLooks
	return look(v, &looks)
}

// look is ofTypes with the looks that are left.
func look(v reflect.Value, left *int) Dialect {
	for v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if !v.IsValid() {
		return Standard
	}
	own := Standard
	if t := v.Type(); isDriver(t) || isDriver(reflect.PointerTo(t)) {
		if *left--; *left < 0 { // wrappers may go round in a circle
			return Standard
		}
		own = ofPath(t.PkgPath())
	}
	n, part := 0, v.Index
	switch v.Kind() {
	case reflect.Struct:
		n, part = v.NumField(), v.Field
	case reflect.Slice, reflect.Array:
		n = v.Len()
	}
	for i := range n {
		if p := part(i); mayWrap(p) {
			if d := look(p, left); d != Standard {
				return d
			}
		}
	}
	return own
}

// mayWrap reports whether a part of a wrapper is a driver or a connector, by the type of
// the field, or a struct or a slice that may have one. What else is in an interface is not
// looked at: it may be written at the same time.
func mayWrap(v reflect.Value) bool {
	switch t := v.Type(); t.Kind() {
	case reflect.Struct:
		return true
	case reflect.Slice, reflect.Array:
		return isDriver(t.Elem())
	case reflect.Interface:
		return isDriver(t) || t.Implements(contextType)
	default:
		return isDriver(t)
	}
}

// isDriver reports whether a type is a driver or a connector.
func isDriver(t reflect.Type) bool {
	return t.Implements(driverType) || t.Implements(connectorType)
}

// ofPath returns the dialect of the drivers of a package.
func ofPath(path string) Dialect {
	for i, e := range engines {
		for _, part := range e.paths {
			if strings.Contains(path, part) {
				return Dialect(i)
			}
		}
	}
	return Standard
}
