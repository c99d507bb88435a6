package conformance

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/dialect"
)

// facts are what the engine does without sqlreq, on plain transactions, and what the library
// takes it for: from them it follows what is promised.
type facts struct {
	engine       dialect.Dialect
	driver       string // the type of the driver
	noSavepoints bool
	noGuard      error // why New refuses Guard; nil if it does not

	aborts         bool // after a statement that failed only a rollback is left
	lies           bool // COMMIT reports success then, and stores nothing
	silentCommit   bool // COMMIT reports success where no transaction is open
	silentRollback bool // so does ROLLBACK
	ddlCommits     bool // CREATE TABLE commits what came before
	refusesFlag    bool // the driver refuses to begin a read-only transaction
	refusesToWrite bool // a read-only transaction refuses to write
}

// probe finds the facts out.
func (s *suite) probe(t testing.TB) (f facts) {
	f.engine, f.driver = dialect.Of(s.db), fmt.Sprintf("%T", s.db.Driver())
	_, f.noGuard = sqlreq.New(sqlreq.Binding{DB: s.db, Guard: true})
	insert := func(tx *sql.Tx) error {
		_, err := tx.Exec("INSERT INTO sqlreq_work (note) VALUES ('probe')")
		return err
	}
	stored := func() bool {
		var n int
		if err := s.db.QueryRow("SELECT count(*) FROM sqlreq_work").Scan(&n); err != nil {
			t.Fatal(err)
		}
		if _, err := s.db.Exec("DELETE FROM sqlreq_work"); err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
	s.plain(t, nil, func(tx *sql.Tx) {
		f.noSavepoints = f.engine.NoSavepoints() != nil
		if !f.noSavepoints {
			_, err := tx.Exec(f.engine.Savepoint("sqlreq_probe"))
			f.noSavepoints = err != nil
		}
	})
	s.plain(t, nil, func(tx *sql.Tx) {
		if err := insert(tx); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(duplicate); err == nil {
			t.Fatalf("%s: a duplicate key was accepted", duplicate)
		}
		f.aborts = insert(tx) != nil
		f.lies = tx.Commit() == nil && f.aborts
	})
	if stored() && f.aborts {
		t.Fatal("without sqlreq, a transaction that refuses every statement has stored something")
	}
	s.plain(t, nil, func(tx *sql.Tx) {
		if _, err := tx.Exec("ROLLBACK"); err == nil {
			f.silentCommit = tx.Commit() == nil
		}
	})
	s.plain(t, nil, func(tx *sql.Tx) {
		if _, err := tx.Exec("ROLLBACK"); err == nil {
			f.silentRollback = tx.Rollback() == nil
		}
	})
	s.plain(t, nil, func(tx *sql.Tx) {
		if err := insert(tx); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(createTable); err != nil {
			t.Fatalf("%s: %v", createTable, err)
		}
		_ = tx.Rollback()
	})
	f.ddlCommits = stored()
	s.dropTable(t, "ddl")
	began := s.plain(t, &sql.TxOptions{ReadOnly: true}, func(tx *sql.Tx) { f.refusesToWrite = insert(tx) != nil })
	f.refusesFlag = !began
	return f
}

const (
	duplicate   = "INSERT INTO sqlreq_counter (id, n) VALUES (1, 0)"
	createTable = "CREATE TABLE sqlreq_ddl (id INTEGER)"
)

// plain runs fn in a transaction on a connection of its own, which is closed afterwards: some
// drivers would give it back inside of the transaction. It reports whether that has begun.
func (s *suite) plain(t testing.TB, opts *sql.TxOptions, fn func(*sql.Tx)) bool {
	t.Helper()
	conn, err := s.db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Raw(func(any) error { return driver.ErrBadConn }) }()
	tx, err := conn.BeginTx(context.Background(), opts)
	if err != nil {
		if opts == nil {
			t.Fatal(err)
		}
		return false
	}
	defer func() { _ = tx.Rollback() }()
	fn(tx)
	return true
}
