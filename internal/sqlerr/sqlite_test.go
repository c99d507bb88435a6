package sqlerr_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"modernc.org/sqlite"
)

func openSQLite(t *testing.T, pragmas ...string) *sql.DB {
	t.Helper()
	dsn := "file:" + filepath.ToSlash(filepath.Join(t.TempDir(), "test.db")) + "?_pragma=busy_timeout(0)"
	for _, p := range pragmas {
		dsn += "&_pragma=" + p
	}
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	mustExec(t, db, "CREATE TABLE a (id INTEGER PRIMARY KEY, b BLOB)")
	mustExec(t, db, "CREATE TABLE c (a INTEGER REFERENCES a DEFERRABLE INITIALLY DEFERRED)")
	return db
}

func mustExec(t *testing.T, db interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
}, query string,
) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func begin(t *testing.T, db *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback() })
	return tx
}

// checkReal guards the shapes that the other tests assume: the driver's own error, with the code that it should have.
func checkReal(t *testing.T, err error, code int, want verdict) {
	t.Helper()
	var e *sqlite.Error
	if !errors.As(err, &e) || e.Code() != code {
		t.Fatalf("error %v, want one of SQLite with code %d", err, code)
	}
	if got := judge(err); got != want {
		t.Errorf("%v: %+v, want %+v", err, got, want)
	}
}

func TestARealSQLiteErrorOfTwoWritersIsRetryable(t *testing.T) {
	db := openSQLite(t)
	mustExec(t, begin(t, db), "INSERT INTO a DEFAULT VALUES")
	_, err := begin(t, db).Exec("INSERT INTO a DEFAULT VALUES")
	checkReal(t, err, 5, retry)
}

func TestARealSQLiteErrorOfAStaleSnapshotIsRetryable(t *testing.T) {
	db := openSQLite(t, "journal_mode(wal)")
	tx := begin(t, db)
	var n int
	if err := tx.QueryRow("SELECT count(*) FROM a").Scan(&n); err != nil {
		t.Fatal(err)
	}
	mustExec(t, db, "INSERT INTO a DEFAULT VALUES")
	_, err := tx.Exec("INSERT INTO a DEFAULT VALUES")
	checkReal(t, err, 517, retry)
}

func TestARealSQLiteErrorOfADeferredConstraintAtCommitIsAnAnswer(t *testing.T) {
	db := openSQLite(t, "foreign_keys(1)")
	tx := begin(t, db)
	mustExec(t, tx, "INSERT INTO c VALUES (1)")
	checkReal(t, tx.Commit(), 787, answer)
}

func TestARealSQLiteErrorOfAFullDatabaseEndsTheTransaction(t *testing.T) {
	db := openSQLite(t, "max_page_count(20)")
	tx := begin(t, db)
	mustExec(t, tx, "INSERT INTO a DEFAULT VALUES")
	_, err := tx.Exec("INSERT INTO a (b) VALUES (zeroblob(1000000))")
	checkReal(t, err, 13, answerEnds)
	// It is not merely possible: the transaction is gone, and Commit has nothing to commit.
	err = tx.Commit()
	checkReal(t, err, 1, gone)
	if !strings.Contains(err.Error(), "no transaction is active") {
		t.Errorf("Commit: %v, want that no transaction is active", err)
	}
}

func TestARealSQLiteErrorOfASavepointThatIsNotThereIsGone(t *testing.T) {
	db := openSQLite(t)
	for _, query := range []string{"ROLLBACK TO SAVEPOINT a", "RELEASE SAVEPOINT a"} {
		tx := begin(t, db)
		_, err := tx.Exec(query)
		checkReal(t, err, 1, gone)
		if err := tx.Rollback(); err != nil {
			t.Errorf("Rollback after %s: %v", query, err)
		}
	}
}

func TestARealSQLiteErrorOfATransactionThatHasEndedIsGone(t *testing.T) {
	db := openSQLite(t)
	ends := map[string]func(*sql.Tx) error{"COMMIT": (*sql.Tx).Commit, "ROLLBACK": (*sql.Tx).Rollback}
	for name, end := range ends {
		tx := begin(t, db)
		mustExec(t, tx, "INSERT INTO a (id) VALUES (1)")
		if _, err := tx.Exec("INSERT OR ROLLBACK INTO a (id) VALUES (1)"); err == nil {
			t.Fatal("a row was added twice")
		}
		t.Run(name, func(t *testing.T) { checkReal(t, end(tx), 1, gone) })
	}
}

// cancelStatement is called by the SQL function sqlerr_cancel. The driver registers functions for ever, and once.
var cancelStatement atomic.Pointer[context.CancelFunc]

func init() {
	sqlite.MustRegisterScalarFunction("sqlerr_cancel", 0, func(*sqlite.FunctionContext, []driver.Value) (driver.Value, error) {
		(*cancelStatement.Load())()
		return int64(0), nil
	})
}

// The driver reports a cancelled statement as the context's error and keeps SQLITE_INTERRUPT to itself;
// this is why the caller has to look at the context as well.
func TestARealSQLiteStatementThatIsCancelledReportsTheContextOnly(t *testing.T) {
	db := openSQLite(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cancelStatement.Store(&cancel)
	// Endless, so that only the interrupt can end it.
	_, err := begin(t, db).ExecContext(ctx, `WITH RECURSIVE n(i) AS (SELECT sqlerr_cancel() UNION ALL SELECT i + 1 FROM n)
		INSERT INTO a (b) SELECT max(i) FROM n`)
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want %v", err, context.Canceled)
	}
	if got := judge(err); got != nothing {
		t.Errorf("%v: %+v, want %+v", err, got, nothing)
	}
}
