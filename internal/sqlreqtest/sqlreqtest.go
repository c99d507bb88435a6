// Package sqlreqtest holds what the tests of several packages start from: a
// SQLite file with a table for work and one that makes COMMIT fail, a quiet
// registry, uses of its transactions, contexts that tell when they are asked, a
// recorder of events, hooks and log records, servers and clients. The fake driver
// is the package fakedb below, which does not import sqlreq.
package sqlreqtest

import (
	"database/sql"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/sqlreq/sqlreq"
)

// Main is the key of most tests.
const Main = sqlreq.DefaultKey

const schema = `
CREATE TABLE work (id INTEGER PRIMARY KEY, note TEXT NOT NULL DEFAULT '');
CREATE TABLE parent (id INTEGER PRIMARY KEY);
CREATE TABLE child (parent INTEGER REFERENCES parent(id) DEFERRABLE INITIALLY DEFERRED);`

const (
	// InsertWork adds a row to the table "work".
	InsertWork = `INSERT INTO work (note) VALUES ('x')`
	// BreakCommit adds a row to the table "child"; it is accepted, and makes COMMIT
	// fail with SQLITE_CONSTRAINT_FOREIGNKEY (787).
	BreakCommit = `INSERT INTO child (parent) VALUES (404)`
)

// ErrTest is an error that means nothing to the library.
var ErrTest = errors.New("test")

// OpenDB returns a new SQLite file with the schema. The test imports the driver
// (modernc.org/sqlite), so that no package of the module does.
func OpenDB(t testing.TB) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.ToSlash(filepath.Join(t.TempDir(), "test.db"))+
		"?_pragma=foreign_keys(1)&_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if _, err := db.Exec(schema); err != nil {
		t.Fatal(err)
	}
	return db
}

// NewRegistry returns a registry whose log is thrown away.
func NewRegistry(t testing.TB, bindings ...sqlreq.Binding) *sqlreq.Registry {
	t.Helper()
	reg, err := sqlreq.New(bindings...)
	if err != nil {
		t.Fatal(err)
	}
	reg.Logger = slog.New(slog.DiscardHandler)
	return reg
}

// Count returns the rows of a table.
func Count(t testing.TB, db *sql.DB, table string) int {
	t.Helper()
	var n int
	if err := db.QueryRow("SELECT count(*) FROM " + table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Serve starts h on a real TCP connection, with panics of handlers not logged.
func Serve(t testing.TB, h http.Handler) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.Start()
	t.Cleanup(srv.Close)
	return srv
}

// Get returns the status and the body of a GET; the error is that of a broken transfer.
func Get(t testing.TB, url string) (status int, body string, err error) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}
