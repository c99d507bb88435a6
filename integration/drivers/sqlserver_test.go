package drivers

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	_ "github.com/microsoft/go-mssqldb"
	"github.com/sqlreq/sqlreq"
)

// sqlServer answers the real driver as SQL Server does by its documentation; what each case has is named there. A
// statement that it does not know is a mistake of the library.
type sqlServer struct {
	t *testing.T
	// xactAbort is SET XACT_ABORT ON: an error of a statement rolls the transaction back
	// (https://learn.microsoft.com/sql/t-sql/statements/set-xact-abort-transact-sql).
	xactAbort bool
	waiting   chan struct{} // closed when a statement waits

	mu     sync.Mutex
	stored []string
	ids    uint64
	commit lostCommit // what becomes of the next COMMIT
	log    []string
}

// lostCommit is what becomes of a COMMIT whose answer does not come.
type lostCommit int

const (
	answered    lostCommit = iota
	lostBefore             // the connection breaks before it is carried out
	lostAfter              // and after that
	lostKilled             // an error of class 21 comes, and then the connection breaks
	lostInPanic            // the same, of class 16 with the mark of a server that gives the connection up
)

func (s *sqlServer) open(t *testing.T) *sql.DB {
	t.Helper()
	s.t = t
	db, err := sql.Open("sqlserver", "sqlserver://sa:x@"+serveTDS(t, func() sqlSession { return &mssqlSession{s: s} })+"?encrypt=disable&dial+timeout=20")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func (s *sqlServer) Stored() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.stored, " ")
}

// next sets what becomes of the next COMMIT.
func (s *sqlServer) next(l lostCommit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commit = l
}

// mssqlSession is a session and its transaction.
type mssqlSession struct {
	s       *sqlServer
	tx      uint64 // 0: none
	pending []string
	points  []savepoint
	late    *sqlError // of COMMIT
}

type savepoint struct {
	name string
	at   int // how much was pending
}

func (m *mssqlSession) transaction() uint64 { return m.tx }

// reset is sp_reset_connection, which rolls back what is open.
func (m *mssqlSession) reset(r *reply) {
	if m.tx != 0 {
		m.s.t.Errorf("a session was used again inside of a transaction")
		m.end(r, envRollback)
	}
	r.changed(envReset, 0)
}

// close is the end of the connection: the server rolls back.
func (m *mssqlSession) close() { m.tx, m.pending = 0, nil }

func (m *mssqlSession) begin(r *reply) {
	m.s.ids++
	m.tx = m.s.ids
	r.changed(envBegin, m.tx)
}

// end ends the transaction, and stores what it has if that is to be kept.
func (m *mssqlSession) end(r *reply, kind byte) {
	if kind == envCommit {
		m.s.stored = append(m.s.stored, m.pending...)
	}
	r.changed(kind, m.tx)
	m.tx, m.pending, m.points, m.late = 0, nil, nil, nil
}

// Errors 3902 and 3903: https://learn.microsoft.com/sql/relational-databases/errors-events/database-engine-events-and-errors-3000-to-3999.
var (
	errNoCommit   = sqlError{3902, 16, "The COMMIT TRANSACTION request has no corresponding BEGIN TRANSACTION."}
	errNoRollback = sqlError{3903, 16, "The ROLLBACK TRANSACTION request has no corresponding BEGIN TRANSACTION."}
)

func (m *mssqlSession) manage(r *reply, kind uint16) {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	m.s.log = append(m.s.log, map[uint16]string{managerBegin: "BEGIN", managerCommit: "COMMIT", managerRollback: "ROLLBACK"}[kind])
	switch {
	case kind == managerBegin && m.tx == 0:
		m.begin(r)
		r.done(0)
	case kind == managerCommit:
		m.carryOutCommit(r)
	case kind == managerRollback:
		m.carryOutRollback(r)
	default:
		m.s.t.Errorf("request %d to the transaction manager, open is %d", kind, m.tx)
		r.fail(sqlError{8180, 16, "not known"})
	}
}

// carryOutCommit carries COMMIT out, whose validation may fail: then the transaction is rolled back
// (https://learn.microsoft.com/sql/relational-databases/in-memory-oltp/transactions-with-memory-optimized-tables).
func (m *mssqlSession) carryOutCommit(r *reply) {
	lost := m.s.commit
	m.s.commit = answered
	switch {
	case m.tx == 0:
		r.fail(errNoCommit)
		return
	case lost == lostBefore:
		r.hangUp = true
		return
	case lost == lostKilled:
		// https://learn.microsoft.com/sql/relational-databases/errors-events/database-engine-error-severities
		r.fail(sqlError{596, 21, "Cannot continue the execution because the session is in the kill state."})
		r.hangUp = true
		return
	case m.late != nil:
		late := *m.late
		m.end(r, envRollback)
		r.fail(late)
		return
	}
	m.end(r, envCommit)
	switch lost {
	case lostAfter:
		r.Reset()
		r.hangUp = true
	case lostInPanic:
		r.error(sqlError{3314, 17, "An error occurred while writing the log."})
		r.done(doneError | doneFatal)
		r.hangUp = true
	default:
		r.done(0)
	}
}

func (m *mssqlSession) carryOutRollback(r *reply) {
	if m.tx == 0 {
		r.fail(errNoRollback)
		return
	}
	m.end(r, envRollback)
	r.done(0)
}

var (
	insertInto = regexp.MustCompile(`^INSERT INTO work VALUES \((\d+)\)$`)
	// https://learn.microsoft.com/sql/t-sql/language-elements/save-transaction-transact-sql: at most 32 characters.
	saveTx     = regexp.MustCompile(`^SAVE TRANSACTION (\w{1,32})$`)
	rollbackTx = regexp.MustCompile(`^ROLLBACK TRANSACTION (\w{1,32})$`)
)

// failures are errors of statements.
var failures = map[string]struct {
	err  sqlError
	ends bool // the transaction is rolled back
}{
	// https://learn.microsoft.com/sql/relational-databases/errors-events/mssqlserver-2627-database-engine-error
	"INSERT INTO parent VALUES (1)": {sqlError{2627, 14, "Violation of PRIMARY KEY constraint."}, false},
	// https://learn.microsoft.com/sql/relational-databases/errors-events/mssqlserver-1205-database-engine-error
	"UPDATE deadlock SET n = 1": {sqlError{1205, 13, "Transaction was deadlocked on lock resources with another process and has been chosen as the deadlock victim. Rerun the transaction."}, true},
	// https://learn.microsoft.com/dotnet/framework/data/adonet/sql/snapshot-isolation-in-sql-server
	"UPDATE snapshot SET n = 1": {sqlError{3960, 16, "Snapshot isolation transaction aborted due to update conflict."}, true},
	// https://learn.microsoft.com/sql/relational-databases/errors-events/mssqlserver-1222-database-engine-error
	"UPDATE locked SET n = 1": {sqlError{1222, 16, "Lock request time out period exceeded."}, false},
	// https://learn.microsoft.com/sql/relational-databases/in-memory-oltp/transactions-with-memory-optimized-tables
	"UPDATE memory SET n = 1": {sqlError{41302, 16, "The current transaction attempted to update a record that has been updated since this transaction started. The transaction was aborted."}, true},
	// https://learn.microsoft.com/sql/t-sql/language-elements/rollback-transaction-transact-sql, "General Remarks": in a trigger.
	"UPDATE triggered SET n = 1": {sqlError{3609, 16, "The transaction ended in the trigger. The batch has been aborted."}, true},
	// https://learn.microsoft.com/sql/t-sql/language-elements/try-catch-transact-sql, "Uncommittable Transactions and XACT_STATE":
	// what is left of it at the end of the batch is rolled back.
	doom: {sqlError{3998, 16, "Uncommittable transaction is detected at the end of the batch. The transaction is rolled back."}, true},
}

const doom = "BEGIN TRY SELECT CAST('a' AS INT) END TRY BEGIN CATCH END CATCH"

func (m *mssqlSession) batch(r *reply, text string) {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	m.s.log = append(m.s.log, text)
	failure, fails := failures[text]
	switch {
	case fails:
		r.error(failure.err)
		if m.tx != 0 && (failure.ends || m.s.xactAbort) {
			m.end(r, envRollback)
		}
		r.done(doneError)
		return
	case insertInto.MatchString(text):
		row := insertInto.FindStringSubmatch(text)[1]
		if m.tx == 0 {
			m.s.stored = append(m.s.stored, row)
		} else {
			m.pending = append(m.pending, row)
		}
	case text == "UPDATE validated SET n = 1":
		m.late = &sqlError{41325, 16, "The current transaction failed to commit due to a serializable validation failure."}
	case text == "select 1;": // the driver's Ping
	case text == "WAITFOR DELAY '01:00'":
		r.waits = true
		close(m.s.waiting)
		return
	// https://learn.microsoft.com/sql/t-sql/functions/xact-state-transact-sql
	case text == "SELECT XACT_STATE()":
		r.smallint(min(int16(m.tx), 1))
	case text == "COMMIT TRANSACTION":
		m.carryOutCommit(r)
		return
	case text == "ROLLBACK TRANSACTION":
		m.carryOutRollback(r)
		return
	case text == "COMMIT TRANSACTION BEGIN TRANSACTION" && m.tx != 0:
		m.end(r, envCommit)
		m.begin(r)
	case saveTx.MatchString(text):
		if m.tx == 0 {
			r.fail(sqlError{628, 16, "Cannot issue SAVE TRANSACTION when there is no active transaction."})
			return
		}
		m.points = append(m.points, savepoint{saveTx.FindStringSubmatch(text)[1], len(m.pending)})
	case rollbackTx.MatchString(text):
		if err := m.rollbackTo(rollbackTx.FindStringSubmatch(text)[1]); err != nil {
			r.fail(*err)
			return
		}
	default:
		m.s.t.Errorf("SQL Server was sent %q", text)
		r.fail(sqlError{102, 15, "Incorrect syntax near '" + text + "'."})
		return
	}
	r.done(0)
}

// rollbackTo goes back to a savepoint, of several with one name to the last
// (https://learn.microsoft.com/sql/t-sql/language-elements/rollback-transaction-transact-sql).
func (m *mssqlSession) rollbackTo(name string) *sqlError {
	if m.tx == 0 {
		return &errNoRollback
	}
	for i, p := range slices.Backward(m.points) {
		if p.name == name {
			m.pending, m.points = m.pending[:p.at], m.points[:i+1]
			return nil
		}
	}
	return &sqlError{6401, 16, fmt.Sprintf("Cannot roll back %s. No transaction or savepoint of that name was found.", name)}
}

// sqlServerEngine is the real driver before a server of the test's.
func sqlServerEngine(name, file string, xactAbort bool) engine {
	return engine{name: name, file: file, guards: true, savepoints: true, cells: 480, lies: map[string]int{
		"a raw COMMIT and a 422":          4, // the driver's ROLLBACK says nothing: without Guard and without a Savepoint nobody is asked
		"a raw COMMIT, a BEGIN and a 422": 8, // XACT_STATE() is that of another transaction: only a Savepoint tells
	}, open: func(t *testing.T) world {
		s := &sqlServer{xactAbort: xactAbort}
		next := func(l lostCommit) func() { return func() { s.next(l) } }
		return world{
			db:     s.open(t),
			insert: func(n int) string { return fmt.Sprintf("INSERT INTO work VALUES (%d)", n) },
			stored: s.Stored,
			events: append(common(),
				statement("a constraint", "INSERT INTO parent VALUES (1)", true),
				statement("a deadlock", "UPDATE deadlock SET n = 1", true),
				statement("a snapshot conflict", "UPDATE snapshot SET n = 1", true),
				statement("a lock timeout", "UPDATE locked SET n = 1", true),
				statement("a write conflict in memory", "UPDATE memory SET n = 1", true),
				statement("a trigger that rolls back", "UPDATE triggered SET n = 1", true),
				statement("doomed", doom, true),
				statement("a COMMIT that is refused", "UPDATE validated SET n = 1", false),
				quiet("COMMIT lost before", next(lostBefore)),
				quiet("COMMIT lost after", next(lostAfter)),
				quiet("COMMIT killed", next(lostKilled)),
				quiet("COMMIT, fatal", next(lostInPanic)),
				statement("a raw COMMIT", "COMMIT TRANSACTION", false),
				statement("a raw ROLLBACK", "ROLLBACK TRANSACTION", false),
				event{"a raw COMMIT and a 422", then422("COMMIT TRANSACTION"), true},
				event{"a raw COMMIT, a BEGIN and a 422", then422("COMMIT TRANSACTION BEGIN TRANSACTION"), true},
				event{"a raw ROLLBACK and a 422", then422("ROLLBACK TRANSACTION"), true},
			),
		}
	}}
}

// then422 runs statements and is a failure that is no error of the database.
func then422(queries ...string) func(context.Context, run) error {
	return func(ctx context.Context, run run) error {
		var err error
		for _, query := range queries {
			err = errors.Join(err, run(ctx, query))
		}
		return errors.Join(err, sqlreq.Errorf(422, "no"))
	}
}
