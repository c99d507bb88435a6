package integration

import (
	"database/sql"
	"flag"
	"os"
	"testing"

	"github.com/sqlreq/sqlreq/integration/conformance"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// long is for tests whose usual share of time leaves rounds out.
var long = flag.Bool("long", false, "all rounds of the tests that have many")

func TestMain(m *testing.M) {
	if os.Getenv(shopVariable) != "" {
		os.Exit(runShop())
	}
	flag.Parse()
	os.Exit(servers.Run(m))
}

// database is a driver and a database that it runs on.
type database struct {
	name    string // in the table
	driver  string
	dsn     func(testing.TB) string
	dialect conformance.Dialect
	leaving string // the driver whose SQL has sqlreq_leave; "" if that is driver
	leftOut int    // checks of what it does not have
}

// databases are those of the files named after the drivers.
var databases []database

func (d database) open(t testing.TB) *sql.DB {
	t.Helper()
	return openDSN(t, d.driver, d.dsn(t))
}

// fixed returns the same database with one DSN: that of SQLite names a new file each time.
func (d database) fixed(t testing.TB) database {
	dsn := d.dsn(t)
	d.dsn = func(testing.TB) string { return dsn }
	return d
}

func openDSN(t testing.TB, driver, dsn string) *sql.DB {
	t.Helper()
	if driver == "sqlreqpgx" {
		return openPool(t, dsn)
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	db.SetMaxIdleConns(16)
	return db
}

// file returns the path of a new SQLite database.
func file(t testing.TB) string {
	return t.TempDir() + "/test.db"
}
