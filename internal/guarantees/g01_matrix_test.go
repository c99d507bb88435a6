// G1 Complete means committed, on every server, under whatever is outside: the four
// ways to abort, and what the client sees. docs/responses.md is what this prints.

package guarantees_test

import (
	"compress/gzip"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fastcgi"
)

// matrixPage does not become small by compression.
var matrixPage = sync.OnceValue(func() string {
	random := rand.New(rand.NewPCG(1, 2))
	page := make([]byte, 128<<10)
	for i := range page {
		page[i] = byte(32 + random.IntN(95))
	}
	return string(page)
})

// matrixFailures is how a request fails.
var matrixFailures = []struct {
	name    string
	streams bool
	fail    func(w http.ResponseWriter, r *http.Request) error
}{
	{"error", false, func(http.ResponseWriter, *http.Request) error { return sqlreqtest.ErrTest }},
	{"own panic", false, func(http.ResponseWriter, *http.Request) error { panic("boom") }},
	{"COMMIT", false, matrixBreak},
	{"error", true, func(http.ResponseWriter, *http.Request) error { return sqlreqtest.ErrTest }},
	{"own panic", true, func(http.ResponseWriter, *http.Request) error { panic("boom") }},
	{"COMMIT", true, matrixBreak},
	{"late status", true, func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(500); return nil }},
}

func matrixBreak(_ http.ResponseWriter, r *http.Request) error {
	_, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.BreakCommit)
	return err
}

// matrixOutside is what is between the server and Middleware.
var matrixOutside = []struct {
	name string
	wrap func(http.Handler) http.Handler
}{
	{"nothing", func(h http.Handler) http.Handler { return h }},
	{"recoverer that passes http.ErrAbortHandler on", matrixRecover(false)},
	{"recoverer that swallows", matrixRecover(true)},
	{"wrapper with Unwrap", matrixWrap(true)},
	{"wrapper without Unwrap", matrixWrap(false)},
	{"wrapper without Unwrap, recoverer that passes on", func(h http.Handler) http.Handler { return matrixRecover(false)(matrixWrap(false)(h)) }},
	{"wrapper without Unwrap, recoverer that swallows", func(h http.Handler) http.Handler { return matrixRecover(true)(matrixWrap(false)(h)) }},
	{"http.TimeoutHandler", matrixTimeout},
	{"http.TimeoutHandler, recoverer that swallows inside", func(h http.Handler) http.Handler { return matrixTimeout(matrixRecover(true)(h)) }},
	{"compression without Unwrap", matrixGzip},
	{"compression without Unwrap, recoverer that swallows", func(h http.Handler) http.Handler { return matrixRecover(true)(matrixGzip(h)) }},
	{"goroutine of a middleware, recoverer that swallows", func(h http.Handler) http.Handler { return matrixGoroutine(matrixRecover(true)(matrixWrap(false)(h))) }},
}

func matrixRecover(swallows bool) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				switch v := recover(); {
				case v == nil:
				case v == http.ErrAbortHandler && !swallows:
					panic(v)
				default:
					http.Error(w, "recovered", 500)
				}
			}()
			next.ServeHTTP(w, r)
		})
	}
}

type matrixOpaque struct{ http.ResponseWriter }

func (w matrixOpaque) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

type matrixClear struct{ matrixOpaque }

func (w matrixClear) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func matrixWrap(unwraps bool) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if unwraps {
				next.ServeHTTP(matrixClear{matrixOpaque{w}}, r)
				return
			}
			next.ServeHTTP(matrixOpaque{w}, r)
		})
	}
}

func matrixTimeout(h http.Handler) http.Handler {
	return http.TimeoutHandler(h, wirePatience, "")
}

// matrixGzip compresses what has a status below 400.
func matrixGzip(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		z := &matrixZipped{ResponseWriter: w}
		defer z.close()
		next.ServeHTTP(z, r)
	})
}

type matrixZipped struct {
	http.ResponseWriter
	zip    *gzip.Writer
	status int
}

func (z *matrixZipped) WriteHeader(status int) {
	if z.status == 0 && status < 400 {
		z.Header().Set("Content-Encoding", "gzip")
		z.Header().Del("Content-Length")
		z.zip = gzip.NewWriter(z.ResponseWriter)
	}
	z.status = status
	z.ResponseWriter.WriteHeader(status)
}

func (z *matrixZipped) Write(p []byte) (int, error) {
	if z.status == 0 {
		z.WriteHeader(200)
	}
	if z.zip != nil {
		return z.zip.Write(p)
	}
	return z.ResponseWriter.Write(p)
}

func (z *matrixZipped) close() {
	if z.zip != nil {
		_ = z.zip.Close()
	}
}

func matrixGoroutine(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if v := sqlreqtest.Panicked(func() { next.ServeHTTP(w, r) }); v != nil {
			panic(v)
		}
	})
}

// matrixServers asks a handler once, over a server of its own.
var matrixServers = []struct {
	name string
	ask  func(t *testing.T, h http.Handler) wireAnswer
}{
	{"HTTP/1.0", func(t *testing.T, h http.Handler) wireAnswer { return wireHTTP10.start(t, h)("GET", "/") }},
	{"HTTP/1.1", func(t *testing.T, h http.Handler) wireAnswer { return wireHTTP11.start(t, h)("GET", "/") }},
	{"HTTP/2", func(t *testing.T, h http.Handler) wireAnswer { return wireHTTP2.start(t, h)("GET", "/") }},
	{"HTTP/2 without TLS", matrixH2C},
	{"FastCGI", matrixFastCGI},
	{"httptest.ResponseRecorder", matrixRecorder},
}

func matrixH2C(t *testing.T, h http.Handler) wireAnswer {
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	t.Cleanup(srv.Close)
	srv.Client().Transport.(*http.Transport).Protocols = srv.Config.Protocols
	return wireAskHTTP2(t, srv)("GET", "/")
}

// matrixFastCGI recovers where a panic would end the process.
func matrixFastCGI(t *testing.T, h http.Handler) (a wireAnswer) {
	panicked := make(chan any, 1)
	addr := fastcgi.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { panicked <- recover() }()
		h.ServeHTTP(w, r)
	}))
	a.status, a.header, a.body, a.err = fastcgi.Get(addr, "/")
	if v := <-panicked; v != nil {
		a.err = fmt.Errorf("the process ends: %v", v)
	}
	return a
}

func matrixRecorder(_ *testing.T, h http.Handler) (a wireAnswer) {
	rec := sqlreqtest.AskGet(h, "/")
	a.status, a.header, a.body = rec.Code, rec.Header(), rec.Body.String()
	if told := a.header.Get("Content-Length"); told != "" && told != strconv.Itoa(len(a.body)) {
		a.err = fmt.Errorf("Content-Length %s of %d bytes", told, len(a.body))
	}
	if rec.Panicked != nil {
		a.err = fmt.Errorf("panic: %v", rec.Panicked)
	}
	return a
}

// matrixSeen says what a client has seen.
func matrixSeen(a wireAnswer) string {
	switch {
	case a.err != nil && strings.HasPrefix(a.err.Error(), "the process ends"):
		return "process ends"
	case a.err != nil && strings.HasPrefix(a.err.Error(), "panic"):
		return "panic"
	case a.err != nil:
		return "broken"
	case a.status >= 400:
		return strconv.Itoa(a.status)
	}
	return "**looks complete**"
}

// matrixException reports whether a cell is a limit of G1, where a failed stream
// looks complete.
func matrixException(server, outside string, streams, panics bool) bool {
	hidden := strings.Contains(outside, "without Unwrap") || strings.HasPrefix(outside, "goroutine")
	swallows := strings.Contains(outside, "swallows") || panics && strings.Contains(outside, "recoverer")
	switch {
	case !streams:
		return false
	case strings.HasPrefix(outside, "http.TimeoutHandler"):
		return swallows && panics // http.Error removes the Content-Length
	case server == "FastCGI":
		return true
	case server == "HTTP/1.0":
		return hidden
	case server == "httptest.ResponseRecorder":
		return swallows
	}
	return strings.HasPrefix(outside, "goroutine")
}

const matrixHead = `# What a client sees when a request fails

Clause G1 of the [contract](contract.md): no client receives a complete success response for work that was not committed. A table for
each server; a row for what is between the server and ` + "`Middleware`" + ` (the first name is what ` + "`Middleware`" + ` is in); a column for how the
request fails. Held: the response was smaller than ` + "`HoldLimit`" + `. Streaming: a part of it has left, without a declared length.

- a number: the status of a complete answer
- broken: the transfer ends with an error, or there is no answer
- panic: the panic reaches who called the handler, a test
- process ends: net/http/fcgi does not recover from a handler's own panic; recover outside of ` + "`Middleware`" + ` there
- **looks complete**: a limit of G1. FastCGI has no way to break a response off that has no length. In HTTP/1.0 the end of the connection is
  the end of such a response, and a wrapper without ` + "`Unwrap`" + ` hides the Hijack that could reset it. Nobody can end a goroutine of a
  middleware, or of a test, but by a panic, which a recoverer may swallow. In ` + "`http.TimeoutHandler`" + ` an impossible Content-Length breaks
  the response; a recoverer inside of it that calls ` + "`http.Error`" + ` after a handler's own panic removes that: put it outside

This is printed by ` + "`TestG1Matrix`" + `, which runs every cell. Servers that need other modules (golang.org/x/net/http2/h2c, quic-go) are not here.
`

// TestG1Matrix prints the matrix, and compares it with docs/responses.md. After a
// change that is meant, run it with SQLREQ_WRITE_DOCS=1.
func TestG1Matrix(t *testing.T) {
	var doc strings.Builder
	doc.WriteString(matrixHead)
	cells := 0
	for _, server := range matrixServers {
		fmt.Fprintf(&doc, "\n## %s\n\n| outside | held: error | own panic | COMMIT | streaming: error | own panic | COMMIT | late status |\n|---|---|---|---|---|---|---|---|\n", server.name)
		for _, outside := range matrixOutside {
			fmt.Fprintf(&doc, "| %s |", outside.name)
			for _, failure := range matrixFailures {
				cells++
				name := fmt.Sprintf("%s, %s, %s, streams %v", server.name, outside.name, failure.name, failure.streams)
				seen := ""
				t.Run(name, func(t *testing.T) {
					var logged int
					seen, logged = matrixCell(t, outside.wrap, server.ask, failure.streams, failure.fail)
					if panics := failure.name == "own panic"; logged != 1 && !panics || logged > 1 {
						t.Errorf("got %d lines in the log, want one", logged)
					}
				})
				if complete := seen == "**looks complete**"; complete && !matrixException(server.name, outside.name, failure.streams, failure.name == "own panic") {
					t.Errorf("%s: looks complete", name)
				}
				fmt.Fprintf(&doc, " %s |", seen)
			}
			doc.WriteByte('\n')
		}
	}
	t.Logf("%d cells\n%s", cells, doc.String())
	file := filepath.Join("..", "..", "docs", "responses.md")
	if os.Getenv("SQLREQ_WRITE_DOCS") != "" {
		if err := os.WriteFile(file, []byte(doc.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if stands, err := os.ReadFile(file); err != nil || strings.ReplaceAll(string(stands), "\r\n", "\n") != doc.String() {
		t.Errorf("%s is not what this test prints (%v)", file, err)
	}
}

// matrixCell runs one cell. Whatever the client sees, nothing is committed, the
// connection is given back.
func matrixCell(t *testing.T, wrap func(http.Handler) http.Handler, ask func(*testing.T, http.Handler) wireAnswer, streams bool, fail func(http.ResponseWriter, *http.Request) error) (seen string, logged int) {
	db := sqlreqtest.OpenDB(t)
	reg := wireRegistry(t, false, sqlreq.Binding{DB: db})
	var rec sqlreqtest.Recorder
	rec.Watch(reg)
	h := wrap(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
			t.Error(err)
		}
		if streams {
			_, _ = io.WriteString(w, matrixPage())
		} else {
			_, _ = io.WriteString(w, wireSmall)
		}
		return fail(w, r)
	})))
	start := time.Now()
	a := ask(t, lateOnce(h))
	if took := time.Since(start); took > wirePatience/2 {
		t.Errorf("took %v", took)
	}
	wireIdle(t, db)
	if n := sqlreqtest.Count(t, db, "work"); n != 0 {
		t.Errorf("%d rows stayed", n)
	}
	return matrixSeen(a), len(rec.Records())
}
