package engines

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"

	_ "github.com/duckdb/duckdb-go/v2"
	_ "github.com/glebarez/go-sqlite"
	_ "github.com/ncruces/go-sqlite3/driver"
	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/integration/conformance"
)

// database is a way to open an engine that is embedded.
type database struct {
	name, driver string
	dsn          func(file string) string
	dialect      conformance.Dialect
}

var databases = []database{
	{"DuckDB, duckdb/duckdb-go", "duckdb", func(file string) string { return file }, duckDB},
	{"SQLite, ncruces/go-sqlite3", "sqlite3", pragmas, ncruces()},
	{"SQLite, glebarez/go-sqlite", "sqlite", pragmas, glebarez()},
}

func pragmas(file string) string {
	return "file:" + filepath.ToSlash(file) + "?_pragma=foreign_keys(1)&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)"
}

// duckDB has no savepoints and no deferred constraints; an error aborts its transactions,
// and two that insert the same key are told apart by COMMIT.
var duckDB = conformance.Dialect{
	Placeholder:  func(n int) string { return fmt.Sprintf("$%d", n) },
	ID:           "UUID DEFAULT uuid() PRIMARY KEY",
	NoSavepoints: true,
	Aborts:       true,
	Sleep:        "SELECT sum(a.range % 7 + b.range % 5) FROM range(10000000) a, range(10000000) b",
	Refuse: func(ctx context.Context, db *sql.DB, n int32) error {
		const insert = "INSERT INTO sqlreq_parent (id) VALUES ($1)"
		if _, err := sqlreq.DefaultKey.ExecContext(ctx, insert, n); err != nil {
			return err
		}
		_, err := db.ExecContext(ctx, insert, n)
		return err
	},
}

// ncruces refuses to write in a read-only transaction.
func ncruces() conformance.Dialect {
	d := conformance.SQLite
	d.ReadOnly = true
	return d
}

// glebarez looks at the context between the rows of a query only.
func glebarez() conformance.Dialect {
	d := conformance.SQLite
	d.Sleep = ""
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
			for _, r := range conformance.Run(t, d.open(t), d.dialect) {
				t.Logf("%s %s: %s %s", r.Guarantee, r.Check, r.Verdict, r.Note)
			}
		})
	}
}
