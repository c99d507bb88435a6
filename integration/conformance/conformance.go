// Package conformance runs the guarantees of sqlreq against a database: through a
// real HTTP server, with the driver and the server that an application will use.
//
//	func TestMine(t *testing.T) {
//		db, err := sql.Open("mine", dsn)
//		…
//		t.Log(conformance.Run(t, db, conformance.PostgreSQL))
//	}
//
// It needs a database in which it may create and drop tables, whose names begin
// with sqlreq_, and leaves none of them behind.
package conformance

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
)

// Dialect is what the suite has to know about a database.
type Dialect struct {
	// Placeholder returns the nth placeholder of a statement, from 1.
	Placeholder func(n int) string

	// ID is the definition of a column with a number that the database gives.
	ID string

	// Deferred is what makes a foreign key one that is checked by COMMIT; empty if there is no such thing.
	Deferred string

	// Refuse does what makes COMMIT fail, in the transaction of the context, by exec, where there
	// are no deferred constraints: what it writes collides with what others commit
	// meanwhile through db. n is another one at each call. nil where there is no way.
	Refuse func(ctx context.Context, exec Exec, db *sql.DB, n int32) error

	// Late does what makes COMMIT meet a conflict, in the transaction of the context, which has the
	// options Conflict and has inserted into sqlreq_work, and through db. n is another one at each
	// call. undo, if it is not nil, is called when that COMMIT has failed. nil where there is no
	// way; NoLate says why.
	Late   func(ctx context.Context, exec Exec, db *sql.DB, n int32) (undo func(), err error)
	NoLate string

	// Kill ends, from another connection, the one that has the id that IDQuery
	// returns. Both are empty where there is no connection to lose. It should return
	// when that connection has ended.
	IDQuery string
	Kill    func(id int64) string

	// Sleep is a query for one text or number that runs until it is cancelled; empty where
	// nothing can be cancelled, or nobody can tell when it runs: then Work is one that comes to its end.
	// Sleeping counts those that run. Leaves, for a database in the process, has leave called by
	// the SQL of Sleep as soon as that runs. Without both a client leaves at about the time at which
	// the query begins, so that the driver must not lose that.
	Sleep, Sleeping, Work string
	Leaves                func(leave func())

	// Conflict are the options under which one of two transactions fails that have
	// read a row before both write it.
	Conflict sql.TxOptions
}

// The dialects of common databases.
var (
	PostgreSQL = Dialect{
		Placeholder: func(n int) string { return fmt.Sprintf("$%d", n) },
		ID:          "BIGSERIAL PRIMARY KEY",
		Deferred:    "DEFERRABLE INITIALLY DEFERRED",
		IDQuery:     "SELECT pg_backend_pid()",
		Kill:        func(id int64) string { return fmt.Sprintf("SELECT pg_terminate_backend(%d, 10000)", id) },
		Sleep:       "SELECT CAST(pg_sleep(60) AS text)",
		Sleeping:    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%CAST(pg_sleep(60) AS text)' AND pid <> pg_backend_pid()",
		Conflict:    sql.TxOptions{Isolation: sql.LevelSerializable},
		Late:        writeSkew,
	}
	MySQL = Dialect{
		Placeholder: question,
		ID:          "BIGINT AUTO_INCREMENT PRIMARY KEY",
		IDQuery:     "SELECT connection_id()",
		Kill:        func(id int64) string { return fmt.Sprintf("KILL CONNECTION %d", id) },
		Sleep:       "SELECT sleep(60)",
		Sleeping:    "SELECT count(*) FROM information_schema.processlist WHERE info LIKE '%SELECT sleep(60)' AND id <> connection_id()",
		Conflict:    sql.TxOptions{Isolation: sql.LevelSerializable},
		NoLate:      "no conflict comes in COMMIT, but on a Galera cluster",
	}
	// SQLite is for a file in WAL mode, with foreign keys and a busy_timeout switched
	// on in the data source name, for every connection: for modernc.org/sqlite
	// "file:x.db?_pragma=foreign_keys(1)&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)".
	SQLite = Dialect{
		Placeholder: question,
		ID:          "INTEGER PRIMARY KEY AUTOINCREMENT",
		Deferred:    "DEFERRABLE INITIALLY DEFERRED",
		Work:        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < 30000) SELECT max(n) FROM c", // the drivers lose an interrupt that comes before the first step
		NoLate:      "no conflict comes in COMMIT in WAL mode; in rollback mode one does, which is tried apart",
	}
	// SQLiteRollback is for a file in rollback mode without a busy_timeout, and for the one
	// check of a conflict in COMMIT: a reader makes it fail.
	SQLiteRollback = Dialect{
		Placeholder: question,
		ID:          SQLite.ID,
		Late:        stillRead,
	}
	// DuckDB has no savepoints and no deferred constraints; an error aborts its transactions, and
	// of two that insert the same key the second one's COMMIT fails.
	DuckDB = Dialect{
		Placeholder: func(n int) string { return fmt.Sprintf("$%d", n) },
		ID:          "UUID DEFAULT uuid() PRIMARY KEY",
		Sleep:       "SELECT sum(a.range % 7 + b.range % 5) FROM range(10000000) a, range(10000000) b",
		Refuse:      sameKey,
		Late: func(ctx context.Context, exec Exec, db *sql.DB, n int32) (func(), error) {
			return nil, sameKey(ctx, exec, db, n)
		},
	}
)

// sameKey inserts a key that another transaction has inserted and committed meanwhile.
func sameKey(ctx context.Context, exec Exec, db *sql.DB, n int32) error {
	const insert = "INSERT INTO sqlreq_parent (id) VALUES ($1)"
	if err := exec(ctx, insert, n); err != nil {
		return err
	}
	_, err := db.ExecContext(ctx, insert, n)
	return err
}

// writeSkew lets another transaction read what this one has written before, and write what this
// one has read before: of the two the later COMMIT fails at SERIALIZABLE.
func writeSkew(ctx context.Context, exec Exec, db *sql.DB, _ int32) (undo func(), err error) {
	if err := exec(ctx, "SELECT n FROM sqlreq_counter"); err != nil {
		return nil, err
	}
	other, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelSerializable})
	if err != nil {
		return nil, err
	}
	defer func() { _ = other.Rollback() }()
	for _, statement := range []string{"SELECT count(*) FROM sqlreq_work", "UPDATE sqlreq_counter SET n = n + 1"} {
		if _, err := other.ExecContext(ctx, statement); err != nil {
			return nil, err
		}
	}
	return nil, other.Commit()
}

// stillRead has another transaction read until undo is called: SQLite in rollback mode cannot
// write the file meanwhile.
func stillRead(ctx context.Context, _ Exec, db *sql.DB, _ int32) (undo func(), err error) {
	other, err := db.BeginTx(context.WithoutCancel(ctx), nil)
	if err != nil {
		return nil, err
	}
	var n int
	if err := other.QueryRowContext(ctx, "SELECT count(*) FROM sqlreq_counter").Scan(&n); err != nil {
		return nil, errors.Join(err, other.Rollback())
	}
	return func() { _ = other.Rollback() }, nil
}

func question(int) string { return "?" }

// Result is what came of one check.
type Result struct {
	Guarantee string // "G1"
	Check     string // what was checked
	Verdict   string // "yes", "NO", or "–" where the database has no such thing
	Note      string // what is to be known beside a yes, and why there is none
}

// Run runs every check as a subtest. The pool must allow at least 10 connections;
// it stays open. Before any check it shows on plain transactions, without sqlreq,
// that COMMIT refuses what breaks a deferred constraint: where it does not, the
// checks of G1 would blame sqlreq for it, so that Run says what to set, and ends.
//
// only are parts of the names of checks; none means all.
func Run(t *testing.T, db *sql.DB, d Dialect, only ...string) Report {
	s := &suite{db: db, dialect: d}
	s.drop(t)
	s.create(t)
	t.Cleanup(func() { s.drop(t) })
	if err := s.deferredIsChecked(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.facts = s.probe(t)
	var results []Result
	ran := 0
	for _, c := range checks {
		if len(only) > 0 && !slices.ContainsFunc(only, func(part string) bool { return strings.Contains(c.name, part) }) {
			continue
		}
		v := no
		t.Run(c.guarantee+" "+c.name, func(t *testing.T) {
			ran++
			r := &run{T: t, suite: s}
			r.exec("DELETE FROM sqlreq_work")
			r.exec("UPDATE sqlreq_counter SET n = 0")
			v = c.check(r)
			r.poolIsClean()
			if v.text == "–" && v.note == "" {
				t.Error("nothing says why it is left out")
			}
			if t.Failed() {
				v = no
			}
		})
		results = append(results, Result{c.guarantee, c.name, v.text, v.note})
	}
	strange, _ := s.strange.Load().(string)
	return Report{Results: results, facts: s.facts, strange: strange, ran: ran}
}

type check struct {
	guarantee, name string
	check           func(*run) verdict
}

type verdict struct{ text, note string }

var (
	yes = verdict{text: "yes"}
	no  = verdict{text: "NO"}
)

// but is a yes with something to be known beside it.
func but(note string) verdict { return verdict{"yes", note} }

// without is for what the database does not have.
func without(note string) verdict { return verdict{"–", note} }

type suite struct {
	db      *sql.DB
	dialect Dialect
	facts   facts
	refused atomic.Int32 // calls of Dialect.Refuse and Late
	strange atomic.Value // an error of a conflict that IsRetryable does not know, as a string
}

func (s *suite) create(t testing.TB) {
	t.Helper()
	for _, statement := range []string{
		"CREATE TABLE sqlreq_work (id " + s.dialect.ID + ", note VARCHAR(200) NOT NULL)",
		"CREATE TABLE sqlreq_counter (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)",
		"INSERT INTO sqlreq_counter (id, n) VALUES (1, 0)",
		"CREATE TABLE sqlreq_parent (id INTEGER PRIMARY KEY)",
		"CREATE TABLE sqlreq_child (parent INTEGER, FOREIGN KEY (parent) REFERENCES sqlreq_parent (id) " + s.dialect.Deferred + ")",
	} {
		if _, err := s.db.Exec(statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

func (s *suite) drop(t testing.TB) {
	t.Helper()
	for _, table := range []string{"ddl", "child", "parent", "counter", "work"} {
		s.dropTable(t, table)
	}
}

func (s *suite) dropTable(t testing.TB, table string) {
	t.Helper()
	if _, err := s.db.Exec("DROP TABLE IF EXISTS sqlreq_" + table); err != nil {
		t.Error(err)
	}
}

// deferredIsChecked returns an error that says what to set if a plain *sql.Tx can
// commit what breaks a deferred constraint. Two connections are asked: a setting may
// have been made on one of them only.
func (s *suite) deferredIsChecked(ctx context.Context) error {
	if s.dialect.Deferred == "" {
		return nil
	}
	first, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer first.Close()
	second, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer second.Close()
	for _, conn := range []*sql.Conn{first, second} {
		accepted, err := s.acceptsAnything(ctx, conn)
		if err != nil {
			return err
		}
		if accepted {
			return errors.New("without sqlreq, on a plain *sql.Tx, COMMIT has accepted a row that breaks a deferred foreign key: this database, or this connection, does not check foreign keys, and no check of G1 would say anything. " +
				"Switch them on in the data source name, for every connection: for SQLite by _pragma=foreign_keys(1) (modernc.org/sqlite) or _foreign_keys=1 (mattn/go-sqlite3). " +
				"If the database has no deferred constraints, leave Dialect.Deferred empty")
		}
	}
	return nil
}

// acceptsAnything reports whether COMMIT accepts a row that breaks a deferred foreign key.
func (s *suite) acceptsAnything(ctx context.Context, conn *sql.Conn) (bool, error) {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, breakDeferred); err != nil {
		return false, fmt.Errorf("the foreign key is not checked by COMMIT, as Dialect.Deferred (%q) says, but by the statement before: %w", s.dialect.Deferred, err)
	}
	if tx.Commit() != nil {
		_, _ = conn.ExecContext(ctx, "ROLLBACK") // some drivers leave the transaction open; the others have none any more
		return false, nil
	}
	_, err = conn.ExecContext(ctx, "DELETE FROM sqlreq_child")
	return true, err
}

// breakDeferred is accepted, and makes COMMIT fail where foreign keys are deferred.
const breakDeferred = "INSERT INTO sqlreq_child (parent) VALUES (404)"

// run is one check.
type run struct {
	*testing.T
	*suite
}

// main is the key of the checks.
const main = sqlreq.DefaultKey

func (r *run) exec(query string) {
	r.Helper()
	if _, err := r.db.Exec(query); err != nil {
		r.Fatalf("%s: %v", query, err)
	}
}

// insert writes a row in the request's transaction.
func (r *run) insert(ctx context.Context, note string) error {
	_, err := main.ExecContext(ctx, "INSERT INTO sqlreq_work (note) VALUES ("+r.dialect.Placeholder(1)+")", note)
	return err
}

// mustInsert is insert for handlers that cannot return an error.
func (r *run) mustInsert(ctx context.Context, note string) {
	if err := r.insert(ctx, note); err != nil {
		r.Errorf("insert %s: %v", note, err)
	}
}

// breakCommit does what makes COMMIT fail, by a deferred constraint or else by
// the end of the connection.
func (r *run) breakCommit(ctx context.Context) error {
	if r.dialect.Refuse == nil && r.dialect.Deferred == "" {
		return r.kill(ctx)
	}
	return r.refuse(ctx, byKey)
}

// refuse does what makes the server refuse COMMIT.
func (r *run) refuse(ctx context.Context, exec Exec) error {
	if r.dialect.Refuse != nil {
		return r.dialect.Refuse(ctx, exec, r.db, r.refused.Add(1))
	}
	return exec(ctx, breakDeferred)
}

// canBreakCommit reports whether there is a way to make COMMIT fail.
func (r *run) canBreakCommit() bool {
	return r.dialect.Deferred != "" || r.dialect.Refuse != nil || r.dialect.Kill != nil
}

// kill ends the connection of the request's transaction.
func (r *run) kill(ctx context.Context) error {
	var id int64
	if err := main.QueryRowContext(ctx, r.dialect.IDQuery).Scan(&id); err != nil {
		return err
	}
	_, err := r.db.ExecContext(ctx, r.dialect.Kill(id))
	return err
}

func (r *run) count() (n int) {
	r.Helper()
	if err := r.db.QueryRow("SELECT count(*) FROM sqlreq_work").Scan(&n); err != nil {
		r.Fatal(err)
	}
	return n
}

// rows fails the check if the table of work does not have that many rows.
func (r *run) rows(want int) {
	r.Helper()
	if got := r.count(); got != want {
		r.Errorf("%d rows, want %d", got, want)
	}
}

// patience is how long the suite waits for what must come to pass.
const patience = 30 * time.Second

// eventually polls what nothing else can tell of.
func (r *run) eventually(what string, ok func() bool) {
	r.Helper()
	for deadline := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			r.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// poolIsClean: every connection was given back, and each of those that are left can
// begin, which one that was left inside of a transaction could not.
func (r *run) poolIsClean() {
	r.Helper()
	r.eventually("every connection is given back", func() bool { return r.db.Stats().InUse == 0 })
	var conns []*sql.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range r.db.Stats().Idle {
		c, err := r.db.Conn(context.Background())
		if err != nil {
			r.Fatal(err)
		}
		conns = append(conns, c)
		if _, err := c.ExecContext(context.Background(), "BEGIN"); err != nil {
			r.Errorf("a connection in the pool cannot begin: %v", err)
			continue
		}
		if _, err := c.ExecContext(context.Background(), "ROLLBACK"); err != nil {
			r.Error(err)
		}
	}
}

// events collects what Observe is told.
type events struct {
	sync.Mutex
	all []sqlreq.Event
}

func (e *events) add(_ context.Context, event sqlreq.Event) {
	e.Lock()
	defer e.Unlock()
	e.all = append(e.all, event)
}

func (e *events) outcomes() string {
	e.Lock()
	defer e.Unlock()
	var names []string
	for _, event := range e.all {
		names = append(names, event.Outcome.String())
	}
	return strings.Join(names, " ")
}

// ambiguous reports whether the last transaction ended in a COMMIT of unknown outcome.
func (e *events) ambiguous() bool {
	e.Lock()
	defer e.Unlock()
	var c *sqlreq.CommitError
	return len(e.all) > 0 && errors.As(e.all[len(e.all)-1].Err, &c) && c.Ambiguous
}

func (r *run) registry(bindings ...sqlreq.Binding) (*sqlreq.Registry, *events) {
	r.Helper()
	if len(bindings) == 0 {
		bindings = []sqlreq.Binding{{DB: r.db}}
	}
	reg, err := sqlreq.New(bindings...)
	if err != nil {
		r.Fatal(err)
	}
	e := new(events)
	reg.Observe, reg.Logger = e.add, slog.New(slog.DiscardHandler)
	return reg, e
}

// serve starts h on a TCP connection on loopback, with HTTP/2 as well.
func (r *run) serve(h http.Handler) *httptest.Server {
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	r.Cleanup(srv.Close)
	return srv
}

// client returns a client for one protocol, 1 or 2.
func client(srv *httptest.Server, protocol int) *http.Client {
	c := srv.Client()
	if protocol == 2 {
		return c
	}
	t := c.Transport.(*http.Transport).Clone()
	t.ForceAttemptHTTP2 = false
	t.TLSClientConfig.NextProtos = []string{"http/1.1"}
	return &http.Client{Transport: t}
}

// answer is what a client sees. err is that of a broken transfer.
type answer struct {
	status int
	header http.Header
	body   string
	err    error
}

func (a answer) String() string {
	return fmt.Sprintf("%d, %d bytes of body, error %v", a.status, len(a.body), a.err)
}

// complete reports whether a client would take a for a success.
func (a answer) complete() bool { return a.err == nil && a.status < 400 }

func do(c *http.Client, req *http.Request) answer {
	res, err := c.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(b), err}
}

func post(c *http.Client, url, body string) answer {
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return answer{err: err}
	}
	return do(c, req)
}

// want fails the check if the status is another, or the transfer broke.
func (r *run) want(a answer, status int) {
	r.Helper()
	if a.err != nil || a.status != status {
		r.Errorf("got %v, want %d", a, status)
	}
}
