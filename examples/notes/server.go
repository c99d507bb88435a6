package main

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/notes/internal/admin"
	"github.com/sqlreq/sqlreq/examples/notes/internal/audit"
	"github.com/sqlreq/sqlreq/examples/notes/internal/dialect"
	"github.com/sqlreq/sqlreq/examples/notes/internal/notesdb"
)

//go:embed templates static
var files embed.FS

// server is the service: what its handlers share. There is no *sql.DB in it. Handlers run their statements through
// notes, whose key leads to the transaction of the request that they are called for.
type server struct {
	reg     *sqlreq.Registry
	notes   *notesdb.Queries
	admin   http.Handler
	feed    feed
	exports chan struct{} // one token for each download under way
	demos   chan struct{} // one for each demo
	kills   chan struct{} // one for each that starts and kills processes
	again   atomic.Int64  // transactions that were begun again after a conflict
}

func newServer(dbs databases) (*server, error) {
	s := &server{
		notes:   notesdb.New(sqlreq.DefaultKey), // what sqlc generates takes a key where it expects a database
		exports: make(chan struct{}, 2), demos: make(chan struct{}, 4), kills: make(chan struct{}, 2),
	}
	if dbs.numbered {
		s.notes = notesdb.New(dialect.DBTX{Key: sqlreq.DefaultKey})
	}
	var err error
	if s.reg, err = sqlreq.New(
		sqlreq.Binding{DB: dbs.notes, TxOptions: dbs.txOptions},
		// OnDemand: no handler writes to the audit log in its own transaction, where a rollback would take the
		// record along. See audit.Record.
		sqlreq.Binding{Key: audit.Key, DB: dbs.audit, OnDemand: true},
	); err != nil {
		return nil, err
	}
	s.reg.ErrorHandler = s.renderError
	s.reg.Retry = sqlreq.Retry{Attempts: 50, Within: 20 * time.Second} // less than the server's WriteTimeout
	s.reg.Observe = func(_ context.Context, e sqlreq.Event) {
		if e.Attempt > 1 {
			s.again.Add(1)
		}
	}
	if s.admin, err = admin.New("/admin", dbs.audit); err != nil {
		return nil, err
	}
	return s, nil
}

// handler puts the service together. What looks at a request before there is a transaction stands outside of
// Middleware, and so does everything that must not wait for one.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /static/", s.static)
	mux.Handle("/", s.reg.Middleware(s.routes()))

	csrf := http.NewCrossOriginProtection()
	csrf.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.renderError(w, r, sqlreq.Errorf(http.StatusForbidden, "This form was sent by another site."))
	}))
	return s.onlyHere(headers(csrf.Handler(mux)))
}

// routes are the handlers that have a transaction as soon as they ask for one.
func (s *server) routes() http.Handler {
	const (
		kilo = 1 << 10
		mega = 1 << 20
	)
	mux := http.NewServeMux()
	handle := func(pattern string, f sqlreq.HandlerFunc) { mux.Handle(pattern, limit(64*kilo, f)) }

	handle("GET /{$}", s.list)
	handle("GET /notes/new", s.newNote)
	handle("GET /notes", s.toList)
	handle("POST /notes", s.createNote)
	handle("GET /notes/{id}", s.showNote)
	handle("GET /notes.csv", s.export)
	handle("GET /import", s.importForm)
	mux.Handle("POST /import", limit(mega, sqlreq.HandlerFunc(s.importNotes)))
	handle("GET /imports/{id}", s.importReport)
	handle("GET /events", s.events)
	handle("GET /demo", s.demoPage)
	handle("GET /demo/{failure}", s.showCard)
	handle("POST /demo/{failure}", s.runDemo)
	handle("POST /demo/fail", s.failAfterInsert)
	handle("GET /demo/once", s.oncePage)
	handle("POST /demo/once", s.runOnce)
	mux.Handle("/counter", sqlreq.View(counterPage{s}))

	mux.Handle("/api/notes", limit(64*kilo, sqlreq.View(notesAPI{s})))
	mux.Handle("/api/notes/{id}", sqlreq.View(noteAPI{s}))
	mux.Handle("/api/counter", sqlreq.View(counterAPI{s}))

	mux.Handle("/admin", s.admin)
	mux.Handle("/admin/", s.admin)
	handle("/", func(http.ResponseWriter, *http.Request) error {
		return sqlreq.Errorf(http.StatusNotFound, "There is no such page.")
	})
	return mux
}

// static serves the files that pages are made with. They are asked for by name: one that ends in a slash, as a folder's does, is none.
func (s *server) static(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	if _, err := fs.Stat(files, name); err != nil {
		s.renderError(w, r, sqlreq.Errorf(http.StatusNotFound, "There is no such file."))
		return
	}
	http.ServeFileFS(w, r, files, name)
}

// limit refuses bodies of more than n bytes: reading one fails, and that error is answered with 413.
func limit(n int64, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, n)
		next.ServeHTTP(w, r)
	})
}

// renderError is the one place where an error becomes an answer. When it is called the transaction has been rolled
// back and nothing of what the handler wrote is left.
func (s *server) renderError(w http.ResponseWriter, r *http.Request, err error) {
	code := sqlreq.StatusCode(err)
	if code >= 500 && r.Context().Err() == nil {
		slog.ErrorContext(r.Context(), "notes: request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	if code == http.StatusServiceUnavailable || code == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}

	message := message(err)
	kept := "Nothing of what this request wrote was kept."
	if commit := (*sqlreq.CommitError)(nil); errors.As(err, &commit) && commit.Ambiguous {
		kept = "Whether this request was saved is not known. Please look before you try again."
	}

	if strings.HasPrefix(r.URL.Path, "/api/") {
		writeJSON(w, code, map[string]string{"error": message})
		return
	}
	if err := s.render(w, code, "error", map[string]any{
		"Code": code, "Message": message, "Kept": kept, "Safe": r.Method == http.MethodGet || r.Method == http.MethodHead,
		"Demo": strings.HasPrefix(r.URL.Path, "/demo"),
	}); err != nil {
		slog.ErrorContext(r.Context(), "notes: error page", "err", err)
	}
}

// render writes straight to w. A template that fails half-way does no harm: what it has written is held back until
// the transaction is committed, and replaced by the error page.
func (s *server) render(w http.ResponseWriter, code int, page string, data any) error {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(code)
	return pages[page].ExecuteTemplate(w, "layout", data)
}

func writeJSON(w http.ResponseWriter, code int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	return json.NewEncoder(w).Encode(v)
}

// headers forbids what the pages don't need. Scripts come from /static only, so that a note that slipped through the
// escaping could still not run any.
func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "+
			"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

// onlyHere refuses requests on loopback that name another host. Listening on localhost does not keep a web page out:
// it may have its own name resolve to 127.0.0.1, and is then of the same origin as the service (DNS rebinding).
// Behind a reverse proxy on the same machine the check has to know the public name.
func (s *server) onlyHere(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if local, _ := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); local != nil &&
			local.IP.IsLoopback() && !isLoopback(r.Host) {
			s.renderError(w, r, sqlreq.Errorf(http.StatusMisdirectedRequest, "This is not %s.", r.Host))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
