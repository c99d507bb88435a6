// G1 Complete means committed, on every server, under whatever is outside: the four
// ways to abort, and what the client sees. docs/responses.md is what this prints, but
// for the servers of other modules.

package guarantees_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fastcgi"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/matrix"
)

// matrixServers are those of the standard library.
var matrixServers = []matrix.Server{
	{Name: "HTTP/1.0", Ask: matrixWire(wireHTTP10), Exception: func(outside string, _ bool) bool { return matrix.Hidden(outside) }},
	{Name: "HTTP/1.1", Ask: matrixWire(wireHTTP11), Exception: matrixGoroutine},
	{Name: "HTTP/2", Ask: matrixWire(wireHTTP2), Exception: matrixGoroutine},
	{Name: "HTTP/2 without TLS", Ask: matrixH2C, Exception: matrixGoroutine},
	{Name: "FastCGI", Ask: matrixFastCGI, Exception: func(string, bool) bool { return true }},
	{Name: "httptest.ResponseRecorder", Ask: matrixRecorder, Exception: matrix.Swallows},
}

// matrixGoroutine: nobody can end it but by a panic.
func matrixGoroutine(outside string, _ bool) bool { return strings.HasPrefix(outside, "goroutine") }

func matrixWire(p wireProtocol) func(t *testing.T, h http.Handler) matrix.Answer {
	return func(t *testing.T, h http.Handler) matrix.Answer { return matrixAnswer(p.start(t, h)("GET", "/")) }
}

func matrixAnswer(a wireAnswer) matrix.Answer { return matrix.Answer{Status: a.status, Err: a.err} }

func matrixH2C(t *testing.T, h http.Handler) matrix.Answer {
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	t.Cleanup(srv.Close)
	srv.Client().Transport.(*http.Transport).Protocols = srv.Config.Protocols
	return matrixAnswer(wireAskHTTP2(t, srv)("GET", "/"))
}

// matrixFastCGI recovers where a panic would end the process.
func matrixFastCGI(t *testing.T, h http.Handler) (a matrix.Answer) {
	panicked := make(chan any, 1)
	addr := fastcgi.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { panicked <- recover() }()
		h.ServeHTTP(w, r)
	}))
	a.Status, _, _, a.Err = fastcgi.Get(addr, "/")
	if <-panicked != nil {
		a.Told = "process ends"
	}
	return a
}

func matrixRecorder(_ *testing.T, h http.Handler) (a matrix.Answer) {
	rec := sqlreqtest.AskGet(h, "/")
	a.Status = rec.Code
	if told := rec.Header().Get("Content-Length"); told != "" && told != strconv.Itoa(rec.Body.Len()) {
		a.Err = fmt.Errorf("Content-Length %s of %d bytes", told, rec.Body.Len())
	}
	if rec.Panicked != nil {
		a.Told = "panic"
	}
	return a
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
  the response; a recoverer inside of it that calls ` + "`http.Error`" + ` after a handler's own panic removes that: put it outside.
  quic-go takes a write deadline, and completes the response all the same (its client does not compare the length either, as others do and this test)

This is printed by ` + "`TestG1Matrix`" + `, and the last two tables by ` + "`TestMatrixOfServers`" + ` of integration/thirdparty. They run every cell, and check that no
client waits, that nothing is committed, that the connection is back in the pool, and that each failed request is one line in the log (a panic of the handler's
own is logged by who recovers it, or by sqlreq where it ends in runtime.Goexit).
`

// TestG1Matrix prints the matrix, and compares it with docs/responses.md.
func TestG1Matrix(t *testing.T) {
	tables, cells := matrix.Print(t, 1, matrixServers)
	if cells != 504 {
		t.Errorf("%d cells, want 504", cells)
	}
	t.Logf("%d cells\n%s%s", cells, matrixHead, tables)
	matrix.Compare(t, filepath.Join("..", "..", "docs", "responses.md"), "", "## golang.org/x/net/http2/h2c", matrixHead+tables)
}
