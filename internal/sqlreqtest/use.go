package sqlreqtest

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// Conflict is a serialization failure in the shape of the drivers for PostgreSQL.
type Conflict struct{}

// Error returns PostgreSQL's text.
func (Conflict) Error() string { return "could not serialize access" }

// SQLState returns 40001.
func (Conflict) SQLState() string { return "40001" }

// Retries returns a Retry of n attempts without a wait between, whatever time they take.
func Retries(n int) sqlreq.Retry {
	return sqlreq.Retry{Attempts: n, Within: time.Hour, Backoff: NoBackoff}
}

// NoBackoff is for [sqlreq.Retry.Backoff].
func NoBackoff(int) time.Duration { return 0 }

// OpenFaulty returns a new SQLite file with the schema, behind the functions of
// d; nil has none.
func OpenFaulty(t testing.TB, d *fakedb.DB) *sql.DB {
	t.Helper()
	if d == nil {
		d = &fakedb.DB{}
	}
	plain := OpenDB(t)
	var n, name, file string
	if err := plain.QueryRow("PRAGMA database_list").Scan(&n, &name, &file); err != nil {
		t.Fatal(err)
	}
	d.Behind = plain.Driver()
	d.DSN = "file:" + filepath.ToSlash(file) + "?_pragma=foreign_keys(1)&_pragma=busy_timeout(5000)"
	return d.Open(t)
}

// ReadOnly are the options of a read-only transaction, and ReadOnlySerializable
// those of one that ends with COMMIT all the same.
var (
	ReadOnly             = &sql.TxOptions{ReadOnly: true}
	ReadOnlySerializable = &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelSerializable}
)

// Options returns a function for [sqlreq.Binding.TxOptions].
func Options(o *sql.TxOptions) func(context.Context, *http.Request) *sql.TxOptions {
	return func(context.Context, *http.Request) *sql.TxOptions { return o }
}

// Exec runs a statement through k that must succeed.
func Exec(t testing.TB, ctx context.Context, k sqlreq.Key, query string) {
	t.Helper()
	if _, err := k.ExecContext(ctx, query); err != nil {
		t.Errorf("%s: %v", query, err)
	}
}

// Note adds a row to the table "work", with a note.
func Note(t testing.TB, ctx context.Context, k sqlreq.Key, note string) {
	t.Helper()
	Exec(t, ctx, k, "INSERT INTO work (note) VALUES ('"+note+"')")
}

// Rower is a pool or a transaction.
type Rower interface {
	QueryRow(query string, args ...any) *sql.Row
}

// Notes returns the notes of the table "work", in order, with a space between.
func Notes(t testing.TB, db Rower) string {
	t.Helper()
	var notes sql.NullString
	if err := db.QueryRow("SELECT group_concat(note, ' ') FROM (SELECT note FROM work ORDER BY id)").Scan(&notes); err != nil {
		t.Fatal(err)
	}
	return notes.String
}

// Idle fails the test if a connection is in use, or none can be had.
func Idle(t testing.TB, db *sql.DB) {
	t.Helper()
	if n := db.Stats().InUse; n != 0 {
		t.Errorf("got %d connections in use, want none", n)
		return
	}
	if err := db.Ping(); err != nil {
		t.Errorf("the pool is not alive: %v", err)
	}
}

// Pool waits until that many uses of the pool have had to wait for a connection.
func Pool(db *sql.DB, waits int64) {
	Until(func() bool { return db.Stats().WaitCount >= waits })
}

// Statements returns the ways to run a statement through DefaultKey that adds a
// row to the table "work", by the name of the method.
func Statements() map[string]func(context.Context) error {
	const returning = InsertWork + " RETURNING id"
	return map[string]func(context.Context) error{
		"ExecContext": func(ctx context.Context) error {
			_, err := Main.ExecContext(ctx, InsertWork)
			return err
		},
		"PrepareContext": func(ctx context.Context) error {
			stmt, err := Main.PrepareContext(ctx, InsertWork)
			if err != nil {
				return err
			}
			_, err = stmt.Exec()
			return errors.Join(err, stmt.Close())
		},
		"QueryContext": func(ctx context.Context) error {
			rows, err := Main.QueryContext(ctx, returning)
			if err != nil {
				return err
			}
			for rows.Next() {
			}
			return errors.Join(rows.Err(), rows.Close())
		},
		"QueryRowContext": func(ctx context.Context) error {
			var id int
			return Main.QueryRowContext(ctx, returning).Scan(&id)
		},
	}
}

// Uses returns everything that would use the transaction of DefaultKey, and changes nothing else.
func Uses() map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Tx":      func(ctx context.Context) error { _, err := sqlreq.Tx(ctx); return err },
		"BeginTx": func(ctx context.Context) error { _, err := sqlreq.BeginTx(ctx, nil); return err },
		"Exec": func(ctx context.Context) error {
			_, err := Main.ExecContext(ctx, InsertWork)
			return err
		},
		"Prepare": func(ctx context.Context) error {
			stmt, err := Main.PrepareContext(ctx, InsertWork)
			if stmt != nil {
				stmt.Close()
			}
			return err
		},
		"Query": func(ctx context.Context) error {
			rows, err := Main.QueryContext(ctx, "SELECT 1")
			if rows != nil {
				rows.Close()
			}
			return err
		},
		"QueryRow": func(ctx context.Context) error {
			var n int
			return Main.QueryRowContext(ctx, "SELECT 1").Scan(&n)
		},
		"Savepoint": func(ctx context.Context) error {
			return sqlreq.Savepoint(ctx, func(context.Context) error { return nil })
		},
	}
}

// Ends returns the functions that end a transaction, or wait for its end.
func Ends() map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Commit":        sqlreq.Commit,
		"Rollback":      sqlreq.Rollback,
		"Fail":          func(ctx context.Context) error { return sqlreq.Fail(ctx, ErrTest) },
		"AfterCommit":   func(ctx context.Context) error { return sqlreq.AfterCommit(ctx, func(context.Context) {}) },
		"AfterRollback": func(ctx context.Context) error { return sqlreq.AfterRollback(ctx, func(context.Context) {}) },
	}
}

// Finished checks that everything which would use the transaction, or end it,
// returns ErrFinished.
func Finished(t testing.TB, ctx context.Context) {
	t.Helper()
	for _, calls := range []map[string]func(context.Context) error{Uses(), Ends()} {
		for name, call := range calls {
			if err := call(ctx); !errors.Is(err, sqlreq.ErrFinished) {
				t.Errorf("%s: got %v, want ErrFinished", name, err)
			}
		}
	}
}
