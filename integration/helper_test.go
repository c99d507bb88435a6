package integration

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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
)

// key is the key of the tests.
const key = sqlreq.DefaultKey

// patience bounds every wait.
const patience = 60 * time.Second

// postgresDrivers are the drivers that a PostgreSQL test runs with.
var postgresDrivers = []string{"pgx", "postgres"}

func exec(t testing.TB, db *sql.DB, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// tables creates tables, "name (columns)", and drops them after the test.
func tables(t testing.TB, db *sql.DB, definitions ...string) {
	t.Helper()
	for _, d := range definitions {
		name, _, _ := strings.Cut(d, " ")
		exec(t, db, "DROP TABLE IF EXISTS "+name, "CREATE TABLE "+d)
		t.Cleanup(func() {
			if _, err := db.Exec("DROP TABLE IF EXISTS " + name); err != nil {
				t.Error(err)
			}
		})
	}
}

// number returns the result of a query for one number.
func number(t testing.TB, db *sql.DB, query string) (n int) {
	t.Helper()
	if err := db.QueryRow(query).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

// eventually polls what only another process knows.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if err := until(what, ok); err != nil {
		t.Fatal(err)
	}
}

// until is eventually for a handler.
func until(what string, ok func() bool) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v", what, patience)
		}
	}
	return nil
}

// record is what is known of one request.
type record struct {
	events []sqlreq.Event
	hooks  string // "c" for each AfterCommit, "r" for each AfterRollback
}

func (r record) last() (e sqlreq.Event) {
	if len(r.events) > 0 {
		e = r.events[len(r.events)-1]
	}
	return e
}

// ambiguous reports whether the outcome of the last transaction is unknown.
func (r record) ambiguous() bool {
	var c *sqlreq.CommitError
	return errors.As(r.last().Err, &c) && c.Ambiguous
}

// service is a registry and its server. It keeps a record of every request, by
// the path.
type service struct {
	*sqlreq.Registry
	url string
	t   testing.TB

	mu      sync.Mutex
	records map[string]*record
	close   func() // waits until every request has been dealt with
}

type pathKey struct{}

// newService serves handler. The hooks of its record are registered before it runs.
func newService(t testing.TB, binding sqlreq.Binding, retry sqlreq.Retry, handler sqlreq.HandlerFunc) *service {
	t.Helper()
	reg, err := sqlreq.New(binding)
	if err != nil {
		t.Fatal(err)
	}
	s := &service{Registry: reg, t: t, records: make(map[string]*record)}
	reg.Logger = slog.New(slog.DiscardHandler)
	if retry.Within == 0 {
		retry.Within = patience // how long an attempt takes is the machine's part
	}
	reg.Retry = retry
	reg.Observe = func(ctx context.Context, e sqlreq.Event) {
		s.note(ctx, func(r *record) { r.events = append(r.events, e) })
	}
	inner := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		err := errors.Join(
			sqlreq.AfterCommit(r.Context(), func(ctx context.Context) { s.note(ctx, func(r *record) { r.hooks += "c" }) }),
			sqlreq.AfterRollback(r.Context(), func(ctx context.Context) { s.note(ctx, func(r *record) { r.hooks += "r" }) }))
		if err != nil {
			return err
		}
		return handler(w, r)
	}))
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inner.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), pathKey{}, r.URL.Path)))
	}))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.Start()
	t.Cleanup(srv.Close)
	s.url, s.close = srv.URL, srv.Close
	return s
}

func (s *service) note(ctx context.Context, fn func(*record)) {
	path, _ := ctx.Value(pathKey{}).(string)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records[path] == nil {
		s.records[path] = new(record)
	}
	fn(s.records[path])
}

// of returns the record of the request for a path.
func (s *service) of(path string) record {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.records[path]; r != nil {
		return *r
	}
	return record{}
}

// transactions is how many were begun.
func (s *service) transactions() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		n += len(r.events)
	}
	return n
}

// post sends a request. An error is that of a broken transfer.
func (s *service) post(ctx context.Context, path string) (status int, err error) {
	a, err := s.ask(ctx, path)
	return a.status, err
}

// answer is what a client was told.
type answer struct {
	status     int
	retryAfter bool
}

// ask is post with more of the answer.
func (s *service) ask(ctx context.Context, path string) (a answer, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+path, nil)
	if err != nil {
		return a, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return answer{res.StatusCode, res.Header.Get("Retry-After") != ""}, err
}

// want sends a request and fails the test if the status is not the one wanted.
func (s *service) want(path string, status int) bool {
	s.t.Helper()
	got, err := s.post(context.Background(), path)
	if got != status || err != nil {
		s.t.Errorf("%s: got %d, %v, want %d (events %v)", path, got, err, status, s.of(path).events)
		return false
	}
	return true
}

// idle fails the test if a connection is not given back.
func idle(t testing.TB, db *sql.DB) {
	t.Helper()
	for deadline := time.Now().Add(patience); db.Stats().InUse != 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections in use", db.Stats().InUse)
		}
	}
}

// meeting lets the first attempts of several requests wait for each other.
type meeting struct {
	sync.Mutex
	missing int
	all     chan struct{}
	seen    map[string]bool
}

func newMeeting(n int) *meeting {
	return &meeting{missing: n, all: make(chan struct{}), seen: make(map[string]bool)}
}

// wait returns when everybody is there; at once for who has been there before.
func (m *meeting) wait(ctx context.Context, who string) error {
	m.Lock()
	if !m.seen[who] {
		m.seen[who] = true
		if m.missing--; m.missing == 0 {
			close(m.all)
		}
	}
	m.Unlock()
	select {
	case <-m.all:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s waits in vain: %w", who, ctx.Err())
	}
}
