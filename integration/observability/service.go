package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/sqlreq/sqlreq"
	sqlreqotel "github.com/sqlreq/sqlreq/adapters/otel"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// service is a program on a PostgreSQL server, which tells OpenTelemetry of its requests
// and of its transactions.
type service struct {
	pool   *sql.DB
	reg    *sqlreq.Registry
	spans  *tracetest.InMemoryExporter
	reader *sdkmetric.ManualReader
	url    string
	close  func() error

	// between is called by a handler that has read and not yet written.
	between atomic.Pointer[func(ctx context.Context)]
}

// connections is the size of the service's pool.
const connections = 4

// authors is how many there are. A note of another one is refused by COMMIT.
const authors = 64

const schema = `
DROP TABLE IF EXISTS observed_notes, observed_authors;
CREATE TABLE observed_authors (id int PRIMARY KEY, notes int NOT NULL DEFAULT 0);
CREATE TABLE observed_notes (text text NOT NULL, author int NOT NULL REFERENCES observed_authors DEFERRABLE INITIALLY DEFERRED);
INSERT INTO observed_authors SELECT * FROM generate_series(1, 64)`

// start starts the service on a server that was started by this program, or is named by the
// environment. The caller closes it.
func start(ctx context.Context) (*service, error) {
	server, err := servers.StartPostgres()
	if err != nil {
		return nil, err
	}
	return startOn(ctx, server.DSN)
}

func startOn(ctx context.Context, dsn string) (*service, error) {
	pool, err := sql.Open("pgx", dsn)
	if err != nil {
		return nil, err
	}
	pool.SetMaxOpenConns(connections)
	pool.SetMaxIdleConns(connections)
	if _, err := pool.ExecContext(ctx, schema); err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	s := &service{pool: pool, spans: tracetest.NewInMemoryExporter(), reader: sdkmetric.NewManualReader()}
	s.reg, err = sqlreq.New(sqlreq.Binding{DB: pool, TxOptions: repeatableRead})
	if err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	tp := sdktrace.NewTracerProvider(sdktrace.WithSyncer(s.spans))
	s.reg.Observe = sqlreqotel.Observe(tp, sdkmetric.NewMeterProvider(sdkmetric.WithReader(s.reader)))
	s.reg.Logger = slog.New(slog.DiscardHandler)
	s.reg.Retry = sqlreq.Retry{Attempts: 5}

	mux := http.NewServeMux()
	mux.Handle("POST /notes", sqlreq.HandlerFunc(s.addNote))
	named := otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return r.Method + " " + r.URL.Path })
	h := otelhttp.NewHandler(s.reg.Middleware(mux), "notes", otelhttp.WithTracerProvider(tp), named)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }() // until Shutdown
	s.url = "http://" + listener.Addr().String()
	s.close = func() error { return errors.Join(server.Shutdown(context.Background()), pool.Close()) }
	return s, nil
}

func repeatableRead(context.Context, *http.Request) *sql.TxOptions {
	return &sql.TxOptions{Isolation: sql.LevelRepeatableRead}
}

// addNote stores a note, and counts those of its author. A note without a text is a 422.
func (s *service) addNote(w http.ResponseWriter, r *http.Request) error {
	ctx, author := r.Context(), r.FormValue("author")
	const insert = "INSERT INTO observed_notes (text, author) VALUES ($1, $2::int)"
	if _, err := sqlreq.DefaultKey.ExecContext(ctx, insert, r.FormValue("text"), author); err != nil {
		return err
	}
	if r.FormValue("text") == "" {
		return sqlreq.Errorf(http.StatusUnprocessableEntity, "a note needs a text")
	}
	var notes int
	err := sqlreq.DefaultKey.QueryRowContext(ctx, "SELECT count(*) FROM observed_notes WHERE author = $1::int", author).Scan(&notes)
	if err != nil {
		return err
	}
	if between := s.between.Load(); between != nil {
		(*between)(ctx)
	}
	const count = "UPDATE observed_authors SET notes = $1 WHERE id = $2::int"
	if _, err := sqlreq.DefaultKey.ExecContext(ctx, count, notes, author); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// post sends a note, and returns the status of the answer.
func (s *service) post(ctx context.Context, author int, text string) (int, error) {
	form := url.Values{"author": {fmt.Sprint(author)}, "text": {text}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/notes", strings.NewReader(form))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, errors.Join(err, res.Body.Close())
}
