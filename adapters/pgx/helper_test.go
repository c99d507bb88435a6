package sqlreqpgx_test

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sqlreq/sqlreq"
	sqlreqpgx "github.com/sqlreq/sqlreq/adapters/pgx"
	"github.com/sqlreq/sqlreq/internal/servers"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if installed, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb"); installed == nil && os.Getenv(servers.PostgresDSN) == "" && os.Getenv(servers.Require) == "" {
		if _, err := exec.LookPath("initdb"); err != nil {
			_ = flag.Set("test.skip", "^Example") // the tests skip themselves
		}
	}
	os.Exit(servers.Run(m))
}

// patience bounds every wait.
const patience = 60 * time.Second

// key is the key of the tests.
const key = sqlreqpgx.DefaultKey

// tables has notes, whose trigger does what a text says, and children with a constraint
// that is looked at by COMMIT.
const tables = `
CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	CASE NEW.text
	WHEN 'conflict' THEN RAISE EXCEPTION 'a conflict' USING ERRCODE = '40001';
	WHEN 'fail' THEN RAISE EXCEPTION 'a failure' USING ERRCODE = '22023';
	WHEN 'sleep' THEN PERFORM pg_sleep(600);
	WHEN 'nap' THEN PERFORM pg_sleep(1);
	WHEN 'kill' THEN PERFORM pg_terminate_backend(pg_backend_pid());
	ELSE
	END CASE;
	RETURN NEW;
END $$;
CREATE FUNCTION conflict_at(n INT, at INT) RETURNS TEXT LANGUAGE plpgsql AS $$
BEGIN
	IF n = at THEN RAISE EXCEPTION 'a conflict' USING ERRCODE = '40001'; END IF;
	RETURN repeat('x', 100);
END $$;
CREATE TABLE notes (id BIGINT PRIMARY KEY, text TEXT NOT NULL);
CREATE TRIGGER act BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION act();
CREATE TABLE children (note BIGINT REFERENCES notes DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE tally (n BIGINT);
`

var schemas atomic.Int64

// judge is a pool of its own that looks at what is stored, in a schema of its own.
type judge struct {
	*pgxpool.Pool
	t     testing.TB
	dsn   string
	query func(query string, args ...any) int // nil: on the pool
}

func newJudge(t testing.TB) *judge {
	t.Helper()
	return newJudgeOn(t, servers.SharedPostgres(t).DSN)
}

func newJudgeOn(t testing.TB, dsn string) *judge {
	t.Helper()
	ctx := context.Background()
	schema := fmt.Sprintf("s%d", schemas.Add(1))
	first, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close(ctx)
	if _, err := first.Exec(ctx, "DROP SCHEMA IF EXISTS "+schema+" CASCADE; CREATE SCHEMA "+schema+"; SET search_path = "+schema+";"+tables); err != nil {
		t.Fatal(err)
	}
	j := &judge{t: t, dsn: dsn + "&search_path=" + schema}
	j.Pool = newPool(t, j.dsn)
	return j
}

func newPool(t testing.TB, dsn string, set ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	c, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range set {
		f(c)
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// number returns the result of a query for one number.
func (j *judge) number(query string, args ...any) (n int) {
	j.t.Helper()
	if j.query != nil {
		return j.query(query, args...)
	}
	if err := j.QueryRow(context.Background(), query, args...).Scan(&n); err != nil {
		j.t.Fatalf("%s: %v", query, err)
	}
	return n
}

// stored returns whether a note is stored.
func (j *judge) stored(id int) bool {
	j.t.Helper()
	return j.number("SELECT count(*) FROM notes WHERE id = $1", id) == 1
}

// eventually polls what only another process knows.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// site is a service on a pool.
type site struct {
	*judge
	pool *pgxpool.Pool // the service's
	db   *sql.DB
	reg  *sqlreq.Registry
	url  string

	handler atomic.Pointer[sqlreq.HandlerFunc]
	mu      sync.Mutex
	events  []sqlreq.Event
}

type option func(*site, *sqlreq.Binding, *sqlreq.Registry)

func onBinding(f func(*sqlreq.Binding)) option {
	return func(_ *site, b *sqlreq.Binding, _ *sqlreq.Registry) {
		if b != nil {
			f(b)
		}
	}
}

func onRegistry(f func(*sqlreq.Registry)) option {
	return func(_ *site, _ *sqlreq.Binding, reg *sqlreq.Registry) {
		if reg != nil {
			f(reg)
		}
	}
}

func serializable(context.Context, *http.Request) *sql.TxOptions {
	return &sql.TxOptions{Isolation: sql.LevelSerializable}
}

var twice = onRegistry(func(reg *sqlreq.Registry) {
	reg.Retry = sqlreq.Retry{Attempts: 3, Within: patience, Backoff: func(int) time.Duration { return 0 }}
})

// newSite serves the handlers that its request is given.
func newSite(t testing.TB, options ...option) *site {
	t.Helper()
	j := newJudge(t)
	return newSiteOn(t, j, newPool(t, j.dsn), options...)
}

func newSiteOn(t testing.TB, j *judge, pool *pgxpool.Pool, options ...option) *site {
	t.Helper()
	s := &site{judge: j, pool: pool, db: sqlreqpgx.OpenDB(pool)}
	t.Cleanup(func() { s.db.Close() })
	b := sqlreq.Binding{DB: s.db}
	for _, o := range options {
		o(s, &b, nil)
	}
	reg, err := sqlreq.New(b)
	if err != nil {
		t.Fatal(err)
	}
	s.reg = reg
	reg.Logger = slog.New(slog.DiscardHandler)
	reg.Observe = func(_ context.Context, e sqlreq.Event) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.events = append(s.events, e)
	}
	for _, o := range options {
		o(s, nil, reg)
	}
	inner := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { return (*s.handler.Load())(w, r) }))
	srv := httptest.NewUnstartedServer(inner)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.Start()
	t.Cleanup(srv.Close)
	s.url = srv.URL
	return s
}

// answer is what a client was told.
type answer struct {
	status int // 0: the transfer was broken off
	body   string
	events []sqlreq.Event
}

// last returns the last event.
func (a answer) last() (e sqlreq.Event) {
	if n := len(a.events); n > 0 {
		e = a.events[n-1]
	}
	return e
}

// ambiguous reports whether the outcome is unknown.
func (a answer) ambiguous() bool {
	var c *sqlreq.CommitError
	return errors.As(a.last().Err, &c) && c.Ambiguous || a.last().Outcome == sqlreq.Ended
}

// request sends a request to h, and waits until the connections are given back.
func (s *site) request(h sqlreq.HandlerFunc) (a answer) {
	s.t.Helper()
	return s.requestWith(context.Background(), h)
}

func (s *site) requestWith(ctx context.Context, h sqlreq.HandlerFunc) (a answer) {
	s.t.Helper()
	s.mu.Lock()
	s.events = nil
	s.mu.Unlock()
	s.handler.Store(&h)
	a.status, a.body = s.post(ctx, "/")
	eventually(s.t, "connections given back", func() bool { return s.pool.Stat().AcquiredConns() == 0 })
	s.mu.Lock()
	defer s.mu.Unlock()
	a.events = s.events
	return a
}

func (s *site) post(ctx context.Context, path string) (status int, body string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, strings.TrimSpace(string(b))
}

// want sends a request and fails the test if the status is not the one wanted, or if
// the notes are not stored as the status says.
func (s *site) want(status int, stored bool, ids []int, h sqlreq.HandlerFunc) answer {
	s.t.Helper()
	a := s.request(h)
	if a.status != status {
		s.t.Errorf("status: got %d %q, want %d (events %v)", a.status, a.body, status, a.events)
	}
	for _, id := range ids {
		if got := s.stored(id); got != stored {
			s.t.Errorf("note %d stored: got %v, want %v (events %v)", id, got, stored, a.events)
		}
	}
	return a
}

// fresh returns an id that no other test of the schema uses.
func fresh() int { return int(schemas.Add(1)) + 1_000_000 }

// querier is what a Key and a pgx.Tx have in common.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error)
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
	Begin(ctx context.Context) (pgx.Tx, error)
}

// kinds are the ways to insert a note.
var kinds = []string{"Exec", "Query", "QueryRow", "CopyFrom", "SendBatch", "BatchResults"}

const insertNote = "INSERT INTO notes VALUES ($1, $2)"

func insert(ctx context.Context, q querier, kind string, id int, text string) error {
	switch kind {
	case "Exec":
		_, err := q.Exec(ctx, insertNote, id, text)
		return err
	case "Query":
		rows, err := q.Query(ctx, insertNote+" RETURNING id", id, text)
		if err != nil {
			return err
		}
		for rows.Next() {
		}
		return rows.Err()
	case "QueryRow":
		return q.QueryRow(ctx, insertNote+" RETURNING id", id, text).Scan(&id)
	case "CopyFrom":
		_, err := q.CopyFrom(ctx, pgx.Identifier{"notes"}, []string{"id", "text"}, pgx.CopyFromRows([][]any{{id, text}}))
		return err
	case "SendBatch":
		var b pgx.Batch
		b.Queue("SELECT 1")
		b.Queue(insertNote, id, text)
		return q.SendBatch(ctx, &b).Close()
	case "BatchResults":
		var b pgx.Batch
		b.Queue("SELECT 1")
		b.Queue(insertNote, id, text)
		results := q.SendBatch(ctx, &b)
		defer results.Close()
		if err := results.QueryRow().Scan(new(int)); err != nil {
			return err
		}
		_, err := results.Exec()
		return err
	}
	panic(kind)
}

// isBusy reports whether err is that of a statement while something is open.
func isBusy(err error) bool { return err != nil && strings.Contains(err.Error(), "close them before") }

// hasState reports whether err is an answer of the server with an SQLSTATE.
func hasState(err error, state string) bool {
	var p *pgconn.PgError
	return errors.As(err, &p) && p.Code == state
}
