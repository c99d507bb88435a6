package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/sqlreq/sqlreq/examples/orders/internal/postgres"
	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
	"github.com/sqlreq/sqlreq/examples/orders/internal/sqlite"
	"github.com/sqlreq/sqlreq/examples/orders/internal/telemetry"
	"github.com/sqlreq/sqlreq/internal/servers"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if !testing.Verbose() {
		slog.SetDefault(slog.New(slog.DiscardHandler)) // many tests provoke errors
	}
	code := servers.Run(m)
	if err := os.RemoveAll(buildDir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// buildDir has the program, where a test has built it.
var buildDir string

// service is the whole service on a database of its own, and a connection beside it that looks at what is stored.
type service struct {
	t        testing.TB
	url      string
	dsn      string // PostgreSQL's; "" on SQLite
	server   *server
	judge    *sql.DB
	spans    *tracetest.InMemoryExporter
	postgres bool
}

// onBoth runs a test on each store.
func onBoth(t *testing.T, stock int64, test func(t *testing.T, s *service)) {
	t.Helper()
	t.Run("SQLite", func(t *testing.T) { test(t, onSQLite(t, stock)) })
	t.Run("PostgreSQL", func(t *testing.T) { test(t, onPostgres(t, stock)) })
}

func onSQLite(t testing.TB, stock int64) *service {
	t.Helper()
	path := filepath.Join(t.TempDir(), "orders.db")
	store, err := sqlite.Open(t.Context(), path, stock)
	if err != nil {
		t.Fatal(err)
	}
	return newService(t, store, &service{judge: openDB(t, "sqlite", "file:"+path+"?_pragma=busy_timeout(5000)")})
}

func onPostgres(t testing.TB, stock int64) *service {
	t.Helper()
	dsn := newDatabase(t, servers.SharedPostgres(t).DSN)
	store, err := postgres.Open(t.Context(), dsn, "", stock)
	if err != nil {
		t.Fatal(err)
	}
	return newService(t, store, &service{dsn: dsn, postgres: true, judge: openDB(t, "pgx", dsn)})
}

var databases atomic.Int64

// newDatabase creates a database on a server, and returns its DSN.
func newDatabase(t testing.TB, dsn string) string {
	t.Helper()
	name := fmt.Sprintf("orders_%d_%d", os.Getpid(), databases.Add(1))
	db := openDB(t, "pgx", dsn)
	execute(t, db, "CREATE DATABASE "+name)
	t.Cleanup(func() { execute(t, db, "DROP DATABASE "+name+" WITH (FORCE)") })
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

func openDB(t testing.TB, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func execute(t testing.TB, db *sql.DB, queries ...string) {
	t.Helper()
	for _, query := range queries {
		if _, err := db.ExecContext(context.Background(), query); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
}

func newService(t testing.TB, store shop.Store, s *service) *service {
	t.Helper()
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	s.t, s.spans = t, tracetest.NewInMemoryExporter()
	var err error
	if s.server, err = newServer(store, telemetry.Export(trace.WithSyncer(s.spans))); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.server.handler())
	t.Cleanup(srv.Close)
	s.url = srv.URL
	return s
}

// work works jobs until the test ends.
func (s *service) work() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.server.store.Work(ctx, s.server.reg, s.server.shop.Confirm) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
	})
}

// number asks for one number, past the service.
func (s *service) number(query string) (n int64) {
	s.t.Helper()
	if err := s.judge.QueryRowContext(context.Background(), query).Scan(&n); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
	return n
}

func (s *service) stats() (stats shop.Stats) {
	s.t.Helper()
	s.get("/api/stats").json(s.t, &stats)
	return stats
}

// answer is what a client got.
type answer struct {
	status int
	header http.Header
	body   string
}

// do sends a request. It may be called by several goroutines.
func (s *service) do(method, path, key, kind, body string) answer {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Error(err)
		return answer{}
	}
	req.Header.Set("Content-Type", kind)
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := noRedirects.Do(req)
	if err != nil {
		s.t.Error(err)
		return answer{}
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Error(err)
	}
	return answer{res.StatusCode, res.Header, string(got)}
}

var noRedirects = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

func (s *service) get(path string) answer {
	s.t.Helper()
	return s.do("GET", path, "", "", "")
}

func (s *service) order(tenant, key, body string) answer {
	s.t.Helper()
	return s.do("POST", "/"+tenant+"/api/orders", key, "application/json", body)
}

func (s *service) form(path string, fields ...string) answer {
	s.t.Helper()
	form := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		form.Set(fields[i], fields[i+1])
	}
	return s.do("POST", path, "", "application/x-www-form-urlencoded", form.Encode())
}

func (a answer) is(t testing.TB, status int) answer {
	t.Helper()
	if a.status != status {
		t.Fatalf("got %d %s, want %d", a.status, a.body, status)
	}
	return a
}

func (a answer) has(t testing.TB, text string) answer {
	t.Helper()
	if !strings.Contains(a.body, text) {
		t.Fatalf("no %q in %d %s", text, a.status, a.body)
	}
	return a
}

func (a answer) json(t testing.TB, v any) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader([]byte(a.body)))
	if err := dec.Decode(v); err != nil {
		t.Fatalf("%d %q: %v", a.status, a.body, err)
	}
}

func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// eventually waits until ok is true, a minute at most.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for began := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatalf("after a minute there is still not: %s", what)
		}
	}
}

// sameDatabase returns the DSN of the database of another server.
func sameDatabase(t testing.TB, server, dsn string) string {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	of, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = of.Path
	return u.String()
}
