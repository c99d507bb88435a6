package engines

import (
	"database/sql"
	"errors"
	"flag"
	"path/filepath"
	"testing"

	_ "github.com/duckdb/duckdb-go/v2"
	_ "github.com/glebarez/go-sqlite"
	_ "github.com/ncruces/go-sqlite3/driver"
	"github.com/sqlreq/sqlreq/integration/conformance"
	"github.com/sqlreq/sqlreq/integration/internal/enginetable"
)

var update = flag.Bool("update", false, "write what the tests have found into docs/databases.md and testdata")

// database is a way to open an engine that is embedded.
type database struct {
	name, driver string
	dsn          func(file string) string
	dialect      conformance.Dialect
	leftOut      int // checks of what it does not have
}

var databases = []database{
	{"DuckDB, duckdb/duckdb-go", "duckdb", func(file string) string { return file }, conformance.DuckDB, 2},
	{"SQLite, ncruces/go-sqlite3", "sqlite3", pragmas, ncruces(), 2},
	{"SQLite, glebarez/go-sqlite", "sqlite", pragmas, conformance.SQLite, 2},
}

func pragmas(file string) string {
	return "file:" + filepath.ToSlash(file) + "?_pragma=foreign_keys(1)&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)"
}

// ncruces loses no interrupt. glebarez, as the dialect of all says, looks at the context between the rows of a
// query only.
func ncruces() conformance.Dialect {
	d := conformance.SQLite
	d.Sleep = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < 4000000000) SELECT max(n) FROM c"
	return d
}

func (d database) open(t testing.TB) *sql.DB {
	t.Helper()
	db, err := sql.Open(d.driver, d.dsn(filepath.Join(t.TempDir(), "x.db")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// TestConformance runs the suite on each of them.
func TestConformance(t *testing.T) {
	for _, d := range databases {
		t.Run(d.name, func(t *testing.T) {
			report := conformance.Run(t, d.open(t), d.dialect)
			for _, r := range report.Results {
				t.Logf("%s %s: %s %s", r.Guarantee, r.Check, r.Verdict, r.Note)
			}
			if !report.Complete() {
				return
			}
			if n := report.LeftOut(); n != d.leftOut {
				t.Errorf("%d checks are of what it does not have, want %d", n, d.leftOut)
			}
			if err := errors.Join(enginetable.Compare("../../docs/databases.md", d.name, report, *update), enginetable.CompareFound("testdata/found", d.name, report, *update)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestConflictInCommitOfSQLite: in rollback mode a reader makes COMMIT fail, where the suite's
// files are in WAL mode.
func TestConflictInCommitOfSQLite(t *testing.T) {
	for _, driver := range []string{"sqlite3", "sqlite"} {
		t.Run(driver, func(t *testing.T) {
			db, err := sql.Open(driver, "file:"+filepath.ToSlash(filepath.Join(t.TempDir(), "x.db"))+"?_pragma=busy_timeout(0)&_pragma=journal_mode(DELETE)")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			report := conformance.Run(t, db, conformance.SQLiteRollback, "a conflict in COMMIT")
			if len(report.Results) != 1 || report.LeftOut() != 0 {
				t.Errorf("got %+v, want one check", report.Results)
			}
		})
	}
}
