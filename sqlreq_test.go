package sqlreq_test

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
	_ "modernc.org/sqlite"
)

// main is the key of most tests.
const main = sqlreq.DefaultKey

// schema has a table for work, and one whose constraint fails at COMMIT only.
const schema = `
CREATE TABLE work (id INTEGER PRIMARY KEY, note TEXT NOT NULL DEFAULT '');
CREATE TABLE parent (id INTEGER PRIMARY KEY);
CREATE TABLE child (parent INTEGER REFERENCES parent(id) DEFERRABLE INITIALLY DEFERRED);`

const (
	insertWork = `INSERT INTO work (note) VALUES ('x')`
	// breakCommit is accepted, and makes COMMIT fail with SQLITE_CONSTRAINT_FOREIGNKEY (787).
	breakCommit = `INSERT INTO child (parent) VALUES (404)`
)

// openDB returns a new SQLite file with the schema.
func openDB(t testing.TB) *sql.DB {
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

// newRegistry returns a registry whose log is thrown away.
func newRegistry(t testing.TB, bindings ...sqlreq.Binding) *sqlreq.Registry {
	t.Helper()
	reg, err := sqlreq.New(bindings...)
	if err != nil {
		t.Fatal(err)
	}
	reg.Logger = slog.New(slog.DiscardHandler)
	return reg
}

// count returns the rows of a table.
func count(t testing.TB, db *sql.DB, table string) int {
	t.Helper()
	var n int
	if err := db.QueryRow("SELECT count(*) FROM " + table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// serve starts h on a real TCP connection, with panics of handlers not logged.
func serve(t testing.TB, h http.Handler) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.Start()
	t.Cleanup(srv.Close)
	return srv
}

// get returns the status and the body of a GET; the error is that of a broken transfer.
func get(t testing.TB, url string) (status int, body string, err error) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

func TestG1FailedCommitIsNoSuccess(t *testing.T) {
	db := openDB(t)
	reg := newRegistry(t, sqlreq.Binding{DB: db})
	srv := serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := main.ExecContext(r.Context(), breakCommit); err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Secret", "1")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, "created")
	})))
	res, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if res.StatusCode != 500 || string(body) != "Internal Server Error\n" || err != nil || res.Header.Get("X-Secret") != "" {
		t.Errorf("got %d %q %v %v, want a bare 500", res.StatusCode, body, err, res.Header)
	}
	if n := count(t, db, "child"); n != 0 {
		t.Errorf("%d rows stayed", n)
	}
	if n := db.Stats().InUse; n != 0 {
		t.Errorf("%d connections in use", n)
	}
}

var errTest = errors.New("test")
