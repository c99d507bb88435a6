// Package matrix runs a request that fails under everything that may be between a
// server and Middleware, and prints what the client saw. docs/responses.md is made
// of its tables: the servers of the standard library run in internal/guarantees,
// those of other modules in integration/thirdparty.
package matrix

import (
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// Patience is when a client gives up. Nobody waits so long but in a test that fails.
const Patience = time.Minute

// holdLimit is above what net/http buffers by itself.
const holdLimit = 8 << 10

// Answer is what a client saw.
type Answer struct {
	Status int
	Err    error  // of the transfer
	Told   string // in place of the two, where something else became of the request
}

// Server serves a handler and asks it once. Exception reports whether a streaming
// response that looks complete is a limit of G1 there.
type Server struct {
	Name      string
	Ask       func(t *testing.T, h http.Handler) Answer
	Exception func(outside string, panics bool) bool
}

// page does not become small by compression.
var page = sync.OnceValue(func() string {
	random := rand.New(rand.NewPCG(1, 2))
	page := make([]byte, 128<<10)
	for i := range page {
		page[i] = byte(32 + random.IntN(95))
	}
	return string(page)
})

// failure is how a request fails.
type failure struct {
	name    string
	streams bool
	fail    func(w http.ResponseWriter, r *http.Request) error
}

var failures = []failure{
	{"error", false, func(http.ResponseWriter, *http.Request) error { return sqlreqtest.ErrTest }},
	{"own panic", false, func(http.ResponseWriter, *http.Request) error { panic("boom") }},
	{"COMMIT", false, BreakCommit},
	{"error", true, func(http.ResponseWriter, *http.Request) error { return sqlreqtest.ErrTest }},
	{"own panic", true, func(http.ResponseWriter, *http.Request) error { panic("boom") }},
	{"COMMIT", true, BreakCommit},
	{"late status", true, func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(500); return nil }},
}

// BreakCommit makes COMMIT fail.
func BreakCommit(_ http.ResponseWriter, r *http.Request) error {
	_, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.BreakCommit)
	return err
}

// outsides is what is between the server and Middleware.
var outsides = []struct {
	name string
	wrap func(http.Handler) http.Handler
}{
	{"nothing", func(h http.Handler) http.Handler { return h }},
	{"recoverer that passes http.ErrAbortHandler on", Recoverer(false)},
	{"recoverer that swallows", Recoverer(true)},
	{"wrapper with Unwrap", Wrapper(true)},
	{"wrapper without Unwrap", Wrapper(false)},
	{"wrapper without Unwrap, recoverer that passes on", func(h http.Handler) http.Handler { return Recoverer(false)(Wrapper(false)(h)) }},
	{"wrapper without Unwrap, recoverer that swallows", func(h http.Handler) http.Handler { return Recoverer(true)(Wrapper(false)(h)) }},
	{"http.TimeoutHandler", timeout},
	{"http.TimeoutHandler, recoverer that swallows inside", func(h http.Handler) http.Handler { return timeout(Recoverer(true)(h)) }},
	{"compression without Unwrap", zipper},
	{"compression without Unwrap, recoverer that swallows", func(h http.Handler) http.Handler { return Recoverer(true)(zipper(h)) }},
	{"goroutine of a middleware, recoverer that swallows", func(h http.Handler) http.Handler { return inGoroutine(Recoverer(true)(Wrapper(false)(h))) }},
}

// Recoverer is a middleware that answers 500 to a panic, and swallows
// http.ErrAbortHandler or not.
func Recoverer(swallows bool) func(http.Handler) http.Handler {
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

type opaque struct{ http.ResponseWriter }

func (w opaque) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

type clearWriter struct{ opaque }

func (w clearWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Wrapper is a middleware that hands on a writer of its own, with Unwrap or without.
func Wrapper(unwraps bool) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if unwraps {
				next.ServeHTTP(clearWriter{opaque{w}}, r)
				return
			}
			next.ServeHTTP(opaque{w}, r)
		})
	}
}

func timeout(h http.Handler) http.Handler {
	return http.TimeoutHandler(h, Patience, "")
}

// zipper compresses what has a status below 400.
func zipper(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		z := &zipped{ResponseWriter: w}
		defer z.close()
		next.ServeHTTP(z, r)
	})
}

type zipped struct {
	http.ResponseWriter
	zip    *gzip.Writer
	status int
}

func (z *zipped) WriteHeader(status int) {
	if z.status == 0 && status < 400 {
		z.Header().Set("Content-Encoding", "gzip")
		z.Header().Del("Content-Length")
		z.zip = gzip.NewWriter(z.ResponseWriter)
	}
	z.status = status
	z.ResponseWriter.WriteHeader(status)
}

func (z *zipped) Write(p []byte) (int, error) {
	if z.status == 0 {
		z.WriteHeader(200)
	}
	if z.zip != nil {
		return z.zip.Write(p)
	}
	return z.ResponseWriter.Write(p)
}

func (z *zipped) close() {
	if z.zip != nil {
		_ = z.zip.Close()
	}
}

func inGoroutine(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if v := sqlreqtest.Panicked(func() { next.ServeHTTP(w, r) }); v != nil {
			panic(v)
		}
	})
}

// seen says what a client has seen.
func (a Answer) seen() string {
	switch {
	case a.Told != "":
		return a.Told
	case a.Err != nil:
		return "broken"
	case a.Status >= 400:
		return strconv.Itoa(a.Status)
	}
	return looksComplete
}

const looksComplete = "**looks complete**"

// Hidden reports whether what is outside hides the server's writer.
func Hidden(outside string) bool {
	return strings.Contains(outside, "without Unwrap") || strings.HasPrefix(outside, "goroutine")
}

// Swallows reports whether what is outside swallows what a handler panics with, own
// panics or http.ErrAbortHandler.
func Swallows(outside string, panics bool) bool {
	return strings.Contains(outside, "swallows") || panics && strings.Contains(outside, "recoverer")
}

// Print runs every cell of the servers and returns their tables, and the number of cells.
func Print(t *testing.T, attempts int, servers []Server) (tables string, cells int) {
	var doc strings.Builder
	for _, server := range servers {
		fmt.Fprintf(&doc, "\n## %s\n\n| outside | held: error | own panic | COMMIT | streaming: error | own panic | COMMIT | late status |\n|---|---|---|---|---|---|---|---|\n", server.Name)
		for _, outside := range outsides {
			fmt.Fprintf(&doc, "| %s |", outside.name)
			for _, failure := range failures {
				name := fmt.Sprintf("%s, %s, %s, streams %v", server.Name, outside.name, failure.name, failure.streams)
				seen := ""
				t.Run(name, func(t *testing.T) {
					cells++
					seen = run(t, attempts, outside.wrap, server.Ask, failure)
					if seen == looksComplete && !(failure.streams && exception(server, outside.name, failure.name == "own panic")) {
						t.Error("looks complete")
					}
				})
				fmt.Fprintf(&doc, " %s |", seen)
			}
			doc.WriteByte('\n')
		}
	}
	return doc.String(), cells
}

// exception: in http.TimeoutHandler http.Error removes the Content-Length that breaks
// the response, whatever the server.
func exception(s Server, outside string, panics bool) bool {
	if strings.HasPrefix(outside, "http.TimeoutHandler") {
		return panics && Swallows(outside, panics)
	}
	return s.Exception(outside, panics)
}

// run runs one cell. Whatever the client sees, nothing is committed, the connection
// is given back, nobody has waited, and there is one line in the log, but none for a
// panic of the handler's own that goes on.
func run(t *testing.T, attempts int, wrap func(http.Handler) http.Handler, ask func(*testing.T, http.Handler) Answer, failure failure) string {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	reg.HoldLimit, reg.Retry.Attempts, reg.Retry.Within = holdLimit, attempts, Patience
	var rec sqlreqtest.Recorder
	rec.Watch(reg)
	h := wrap(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
			t.Error(err)
		}
		body := "small"
		if failure.streams {
			body = page()
		}
		_, _ = io.WriteString(w, body)
		return failure.fail(w, r)
	})))
	mux := http.NewServeMux() // another request on the connection is none of the handler's
	mux.Handle("/{$}", h)
	start := time.Now()
	a := ask(t, mux)
	if took := time.Since(start); took > Patience/2 {
		t.Errorf("took %v", took)
	}
	for end := time.Now().Add(Patience); db.Stats().InUse != 0; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("a connection is in use")
		}
	}
	if n := sqlreqtest.Count(t, db, "work"); n != 0 {
		t.Errorf("%d rows stayed", n)
	}
	if n := len(rec.Records()); n != 1 && failure.name != "own panic" || n > 1 {
		t.Errorf("got %d lines in the log, want one", n)
	}
	return a.seen()
}

// Compare compares what was printed with the part of a file from the line that begins
// with from up to the one that begins with to; "" is the file's beginning, or its end.
// With SQLREQ_WRITE_DOCS=1 it is written there first, after a change that is meant.
func Compare(t *testing.T, file, from, to, printed string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(b), "\r\n", "\n")
	start, end := 0, len(text)
	if from != "" {
		start = strings.Index(text, "\n"+from)
	}
	if to != "" {
		end = strings.Index(text, "\n"+to)
	}
	if start < 0 || end < start {
		t.Fatalf("%s has no line %q, or none %q behind it", file, from, to)
	}
	if os.Getenv("SQLREQ_WRITE_DOCS") != "" {
		text = text[:start] + printed + text[end:]
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		end = start + len(printed)
	}
	if text[start:end] != printed {
		t.Errorf("%s is not what this test prints", file)
	}
}
