package idempotency_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	_ "modernc.org/sqlite"
)

const main = sqlreqtest.Main

func noScope(*http.Request) (string, error) { return "", nil }

// open returns a SQLite file with the table of records.
func open(t testing.TB) *sql.DB {
	t.Helper()
	return withTable(t, sqlreqtest.OpenDB(t))
}

func withTable(t testing.TB, db *sql.DB) *sql.DB {
	t.Helper()
	once := &idempotency.Once{Dialect: idempotency.SQLite}
	if err := once.CreateTable(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	return db
}

func newOnce() *idempotency.Once {
	return &idempotency.Once{Dialect: idempotency.SQLite, Scope: noScope, Wait: time.Hour} // however slow the machine is
}

// work does its work and answers with a number that is another for each call.
type work struct{ calls atomic.Int32 }

func (h *work) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := h.calls.Add(1)
	if _, err := main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
		sqlreq.Fail(r.Context(), err)
		return
	}
	w.Header().Set("Location", fmt.Sprint("/orders/", n))
	w.WriteHeader(http.StatusCreated)
	fmt.Fprint(w, "order ", n)
}

// reply is what a client has got.
type reply struct {
	status   int
	header   http.Header
	body     string
	trailer  http.Header
	replayed bool
}

func (r reply) String() string {
	s := fmt.Sprint(r.status, " ", strings.TrimSpace(r.body))
	if r.replayed {
		s += " (replayed)"
	}
	return s
}

// post sends a POST with a key over TCP; no key if that is "". more are names and values
// of header fields.
func post(t testing.TB, url, key, body string, more ...string) reply {
	t.Helper()
	r, err := try(url, key, body, more...)
	if err != nil {
		t.Error(err)
	}
	return r
}

func try(url, key, body string, more ...string) (reply, error) {
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	for i := 0; i+1 < len(more); i += 2 {
		req.Header.Add(more[i], more[i+1])
	}
	return send(req)
}

func send(req *http.Request) (reply, error) {
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, string(b), res.Trailer, res.Header.Get("Idempotent-Replayed") == "true"}, err
}

// serve starts a server whose handler is done once for each key.
func serve(t testing.TB, reg *sqlreq.Registry, once *idempotency.Once, h http.Handler) *httptest.Server {
	t.Helper()
	return sqlreqtest.Serve(t, reg.Middleware(once.Handler(h)))
}

// want fails the test if a reply is another.
func want(t testing.TB, got reply, want string) {
	t.Helper()
	if got.String() != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// rows checks how many rows of work and how many records there are.
func rows(t testing.TB, db *sql.DB, work, records int) {
	t.Helper()
	if w, r := sqlreqtest.Count(t, db, "work"), sqlreqtest.Count(t, db, "idempotency_keys"); w != work || r != records {
		t.Errorf("got %d rows of work and %d records, want %d and %d", w, r, work, records)
	}
}

// after has fn called by the next statement behind it.
func handle(fn func(w http.ResponseWriter, r *http.Request)) http.Handler {
	return http.HandlerFunc(fn)
}

func insertWork(t testing.TB, ctx context.Context) {
	t.Helper()
	sqlreqtest.Exec(t, ctx, main, sqlreqtest.InsertWork)
}

// twice sends the same request twice to a new server, whose handler does some work
// before it is h. layers are around the handler, inside of Middleware.
func twice(t *testing.T, once *idempotency.Once, h http.Handler, layers ...func(http.Handler) http.Handler) (first, again reply, calls int) {
	t.Helper()
	db := open(t)
	n := 0
	counted := once.Handler(handle(func(w http.ResponseWriter, r *http.Request) {
		n++
		insertWork(t, r.Context())
		h.ServeHTTP(w, r)
	}))
	for _, layer := range layers {
		counted = layer(counted)
	}
	srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(counted))
	first = post(t, srv.URL+"/orders?a=b", "k", "body", "Content-Type", "text/plain")
	again = post(t, srv.URL+"/orders?a=b", "k", "body", "Content-Type", "text/plain")
	sqlreqtest.Idle(t, db)
	return first, again, n
}
