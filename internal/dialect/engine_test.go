package dialect

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"

	clickhousego "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/clickhouse-go"
	duckdbgo "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/duckdb-go"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/firebirdsql"
	glebarez "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/glebarez/go-sqlite"
	golibsql "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-libsql"
	gomssqldb "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-mssqldb"
	goora "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-ora"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-sql-driver/mysql"
	gosqlspanner "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-sql-spanner"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/godror"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/gorqlite"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/gosnowflake"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/lib/pq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/modernc.org/sqlite"
	ncruces "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/ncruces/go-sqlite3"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/pgx"
	trinogoclient "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/trino-go-client"
	ydbgosdk "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/ydb-go-sdk"
)

// What is known of each engine. "-" is no statement; the reasons are parts of the errors.
func TestEngines(t *testing.T) {
	const (
		noTx     = "has no transactions"
		noGuard  = "no Guard can be had on"
		noTest   = "Binding.Tx needs savepoints"
		noPoints = "has no savepoints"
	)
	for _, row := range []struct {
		driver                          driver.Driver
		engine                          string
		savepoint, release, rollback    string
		points, plain, guard, inTest    string // why not
		ignoresReadOnly, keeps, byPoint bool
		commitCheck, state              string
		speaks                          Dialect
	}{
		{driver: other{}, savepoint: "SAVEPOINT a", release: "RELEASE SAVEPOINT a", rollback: "ROLLBACK TO SAVEPOINT a", byPoint: true},
		{driver: gomssqldb.Driver{}, engine: "SQL Server", savepoint: "SAVE TRANSACTION a", rollback: "ROLLBACK TRANSACTION a", ignoresReadOnly: true, state: "SELECT XACT_STATE()"},
		{driver: goora.Driver{}, engine: "Oracle", savepoint: "SAVEPOINT a", rollback: "ROLLBACK TO SAVEPOINT a", guard: noGuard, ignoresReadOnly: true, byPoint: true},
		{driver: godror.Driver{}, engine: "Oracle", savepoint: "SAVEPOINT a", rollback: "ROLLBACK TO SAVEPOINT a", guard: noGuard, byPoint: true},
		{driver: duckdbgo.Driver{}, engine: "DuckDB", points: noPoints, inTest: noTest, ignoresReadOnly: true, commitCheck: "SELECT 1"},
		{driver: gosqlspanner.Driver{}, engine: "Spanner", points: noPoints, guard: noGuard, inTest: noTest, byPoint: true},
		{driver: gosnowflake.Driver{}, engine: "Snowflake", points: noPoints, guard: noGuard, inTest: noTest, ignoresReadOnly: true, byPoint: true},
		{driver: ydbgosdk.Driver{}, engine: "YDB", points: noPoints, guard: noGuard, inTest: noTest, byPoint: true},
		{driver: trinogoclient.Driver{}, engine: "Trino", points: noPoints, guard: noGuard, inTest: noTest, byPoint: true},
		{driver: glebarez.Driver{}, engine: "SQLite by glebarez/go-sqlite", savepoint: "SAVEPOINT a", release: "RELEASE SAVEPOINT a", rollback: "ROLLBACK TO SAVEPOINT a", keeps: true, byPoint: true, speaks: SQLite},
		{driver: ncruces.Driver{}, engine: "SQLite by ncruces/go-sqlite3", savepoint: "SAVEPOINT a", release: "RELEASE SAVEPOINT a", rollback: "ROLLBACK TO SAVEPOINT a", keeps: true, byPoint: true, speaks: SQLite},
		{driver: golibsql.Driver{}, engine: "libSQL", savepoint: "SAVEPOINT a", release: "RELEASE SAVEPOINT a", rollback: "ROLLBACK TO SAVEPOINT a", keeps: true, ignoresReadOnly: true, byPoint: true, speaks: SQLite},
		{driver: gorqlite.Driver{}, engine: "rqlite", plain: noTx, guard: noTx, inTest: noTx, savepoint: "SAVEPOINT a", release: "RELEASE SAVEPOINT a", rollback: "ROLLBACK TO SAVEPOINT a", byPoint: true},
		{driver: clickhousego.Driver{}, engine: "ClickHouse", plain: noTx, guard: noTx, inTest: noTx, savepoint: "SAVEPOINT a", release: "RELEASE SAVEPOINT a", rollback: "ROLLBACK TO SAVEPOINT a", byPoint: true},
		{driver: firebirdsql.Driver{}, engine: "Firebird", savepoint: "SAVEPOINT a", release: "RELEASE SAVEPOINT a", rollback: "ROLLBACK TO SAVEPOINT a", byPoint: true},
		{driver: sqlite.Driver{}, engine: "SQLite", savepoint: "SAVEPOINT a", release: "RELEASE SAVEPOINT a", rollback: "ROLLBACK TO SAVEPOINT a", byPoint: true, speaks: SQLite},
		{driver: mysql.Driver{}, engine: "MySQL", savepoint: "SAVEPOINT a", release: "RELEASE SAVEPOINT a", rollback: "ROLLBACK TO SAVEPOINT a", byPoint: true, speaks: MySQL},
		{driver: pgx.Driver{}, engine: "PostgreSQL", savepoint: "SAVEPOINT a", release: "RELEASE SAVEPOINT a", rollback: "ROLLBACK TO SAVEPOINT a", byPoint: true, speaks: PostgreSQL},
		{driver: pq.Driver{}, engine: "PostgreSQL", savepoint: "SAVEPOINT a", release: "RELEASE SAVEPOINT a", rollback: "ROLLBACK TO SAVEPOINT a", byPoint: true, speaks: PostgreSQL},
	} {
		d := Of(sql.OpenDB(connector{driver: row.driver}))
		refused := func(what string, err error, want string) {
			t.Helper()
			if want == "" != (err == nil) || err != nil && (!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), row.engine)) {
				t.Errorf("%s, %s: got %v, want %q", row.engine, what, err, want)
			}
		}
		refused("bound", d.Refuses(false, false), row.plain)
		refused("Guard", d.Refuses(true, false), row.guard)
		refused("Tx", d.Refuses(false, true), row.inTest)
		refused("savepoints", d.NoSavepoints(), row.points)
		if row.points == "" {
			if s, r, b := d.Savepoint("a"), d.Release("a"), d.RollbackTo("a"); s != row.savepoint || r != row.release || b != row.rollback {
				t.Errorf("%s: %q, %q, %q", engines[d].name, s, r, b)
			}
		}
		if d.Name() != row.engine || d.Speaks() != row.speaks || d.IgnoresReadOnly() != row.ignoresReadOnly || d.KeepsRefused() != row.keeps ||
			d.GuardsBySavepoint() != row.byPoint || d.CommitCheck() != row.commitCheck || d.StateQuery() != row.state {
			t.Errorf("got %+v, want %+v", engines[d], row)
		}
	}
}

// The driver is found below wrappers, whatever they call their fields, where a
// connector tells of no driver or of another one, and by an open transaction.
func TestOf(t *testing.T) {
	mssql := gomssqldb.Driver{}
	deep := driver.Driver(mssql)
	for range maxLooks {
		deep = exported{deep}
	}
	for name, c := range map[string]driver.Connector{
		"a driver":                              connector{driver: mssql},
		"a pointer to one":                      connector{driver: &mssql},
		"an exported field":                     connector{driver: exported{mssql}},
		"a pointer to a struct, other fields":   connector{driver: &unexported{name: "x", wrapped: mssql}},
		"a wrapper around a wrapper":            connector{driver: exported{&unexported{wrapped: mssql}}},
		"a wrapper around a connector":          connector{driver: around{connector{driver: mssql}}},
		"a connector that tells of no driver":   silent{connector{driver: mssql}},
		"a connector that tells of another one": connector{driver: other{}, told: true, in: connector{driver: mssql}},
		"opened by name":                        byName(t, "named", mssql),
		"a wrapper in a package of that name":   connector{driver: pgx.Driver{Driver: mssql}},
		"one that tells of another engine":      connector{driver: pgx.Driver{}, told: true, in: connector{driver: mssql}},
		"a field of the driver's own type":      connector{driver: &concrete{inner: &mssql}},
		"an embedded driver":                    connector{driver: embedded{mssql}},
		"a field of another interface":          connector{driver: wide{mssql}},
		"a struct in a wrapper":                 connector{driver: deeper{in: exported{mssql}}},
		"behind an unknown driver":              connector{driver: two{other{}, mssql}},
		"one of several":                        connector{driver: several{other{}, mssql}},
	} {
		if d := Of(sql.OpenDB(c)); engines[d].name != "SQL Server" {
			t.Errorf("%s: got %q", name, engines[d].name)
		}
	}
	for name, c := range map[string]driver.Connector{
		"another driver":        connector{driver: other{}},
		"nil":                   nil,
		"a nil pointer":         connector{driver: (*unexported)(nil)},
		"a wrapper around nil":  connector{driver: exported{}},
		"a type without fields": connector{driver: function(nil)},
		"wrapped without end":   connector{driver: deep},
		"in a circle":           connector{driver: circle()},
		"a struct of a package": connector{driver: configured{}},
	} {
		if d := Of(sql.OpenDB(c)); d != Standard {
			t.Errorf("%s: got %q", name, engines[d].name)
		}
	}
	if Of(nil) != Standard || OfTx(nil) != Standard || OfTx(new(sql.Tx)) != Standard {
		t.Error("nothing is taken for an engine")
	}
	tx, err := sql.OpenDB(connector{driver: exported{mssql}, opens: true}).Begin()
	if err != nil {
		t.Fatal(err)
	}
	if d := OfTx(tx); engines[d].name != "SQL Server" {
		t.Errorf("by a transaction: got %q; has database/sql other fields?", engines[d].name)
	}
	if tx, err = sql.OpenDB(telling{func() driver.Driver { return mssql }, func() driver.Conn { return conn{} }}).Begin(); err != nil {
		t.Fatal(err)
	}
	if d := OfTx(tx); engines[d].name != "SQL Server" {
		t.Errorf("by a transaction, only the Driver tells: got %q", engines[d].name)
	}
}

// A pool is looked at once, and not kept alive by that.
func TestOfForgetsPools(t *testing.T) {
	asked := 0
	db := sql.OpenDB(connector{driver: other{}, asked: &asked})
	before := asked
	for range 3 {
		Of(db)
	}
	if asked != before+1 {
		t.Errorf("the driver was asked for %d times", asked-before)
	}
	gone := make(chan struct{})
	runtime.AddCleanup(db, func(gone chan struct{}) { close(gone) }, gone)
	db.Close()
	db = nil
	for {
		runtime.GC()
		select {
		case <-gone:
			return
		default:
			runtime.Gosched()
		}
	}
}

func TestOfAllocatesNothing(t *testing.T) {
	db := sql.OpenDB(connector{driver: other{}})
	if n := testing.AllocsPerRun(100, func() { Of(db) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// connector is one of a driver, or says that it is of another one than it opens.
type connector struct {
	told   bool
	in     driver.Connector // what it opens really; the first field that is looked at
	driver driver.Driver
	opens  bool
	asked  *int
}

func (c connector) Driver() driver.Driver {
	if c.asked != nil {
		*c.asked++
	}
	return c.driver
}

func (c connector) Connect(context.Context) (driver.Conn, error) {
	if !c.opens {
		return nil, errors.New("opens nothing")
	}
	return conn{}, nil
}

type conn struct{ driver.Conn }

func (conn) Begin() (driver.Tx, error) { return nil, nil }

// silent tells of no driver.
type silent struct{ driver.Connector }

func (silent) Driver() driver.Driver { return nil }

type other struct{}

func (other) Open(string) (driver.Conn, error) { return nil, errors.New("opens nothing") }

type exported struct{ Driver driver.Driver }

func (exported) Open(string) (driver.Conn, error) { return nil, errors.New("opens nothing") }

type unexported struct {
	name    string
	wrapped driver.Driver
}

func (*unexported) Open(string) (driver.Conn, error) { return nil, errors.New("opens nothing") }

type concrete struct {
	_     string
	inner *gomssqldb.Driver
}

func (*concrete) Open(string) (driver.Conn, error) { return nil, errors.New("opens nothing") }

type embedded struct{ gomssqldb.Driver }

type wide struct {
	inner interface {
		Open(string) (driver.Conn, error)
	}
}

func (wide) Open(string) (driver.Conn, error) { return nil, errors.New("opens nothing") }

type deeper struct {
	in struct{ Driver driver.Driver }
}

func (deeper) Open(string) (driver.Conn, error) { return nil, errors.New("opens nothing") }

type two struct{ first, second driver.Driver }

func (two) Open(string) (driver.Conn, error) { return nil, errors.New("opens nothing") }

type several []driver.Driver

func (several) Open(string) (driver.Conn, error) { return nil, errors.New("opens nothing") }

// circle is a wrapper that has itself, in three fields.
func circle() driver.Driver {
	c := &ring{}
	c.a, c.b, c.c = c, c, c
	return c
}

type ring struct{ a, b, c driver.Driver }

func (*ring) Open(string) (driver.Conn, error) { return nil, errors.New("opens nothing") }

// configured has a struct of a driver's package that is no driver.
type configured struct{ _ gomssqldb.Config }

func (configured) Open(string) (driver.Conn, error) { return nil, errors.New("opens nothing") }

// telling has no driver, and returns one.
type telling struct {
	driver func() driver.Driver
	conn   func() driver.Conn
}

func (c telling) Driver() driver.Driver                        { return c.driver() }
func (c telling) Connect(context.Context) (driver.Conn, error) { return c.conn(), nil }

type around struct{ driver.Connector }

func (around) Open(string) (driver.Conn, error) { return nil, errors.New("opens nothing") }

type function func()

func (function) Open(string) (driver.Conn, error) { return nil, errors.New("opens nothing") }

// byName is the connector that sql.Open makes.
func byName(t *testing.T, name string, d driver.Driver) driver.Connector {
	t.Helper()
	if !slices.Contains(sql.Drivers(), name) { // the tests may run more than once
		sql.Register(name, d)
	}
	db, err := sql.Open(name, "")
	if err != nil {
		t.Fatal(err)
	}
	return pool{db}
}

// pool stands for a pool that sql.Open has made.
type pool struct{ db *sql.DB }

func (p pool) Driver() driver.Driver                        { return p.db.Driver() }
func (p pool) Connect(context.Context) (driver.Conn, error) { return nil, errors.New("opens nothing") }
