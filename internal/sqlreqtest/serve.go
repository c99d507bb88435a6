package sqlreqtest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// ServeHTTP2 is [Serve] with TLS and HTTP/2.
func ServeHTTP2(t testing.TB, h http.Handler) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.EnableHTTP2 = true
	srv.TLS = &tls.Config{}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

// Fetch returns the body of a GET that must succeed.
func Fetch(t testing.TB, c *http.Client, target string) string {
	t.Helper()
	res, err := c.Get(target)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Error(err)
	}
	return string(body)
}

// Raw returns what a client of that version of HTTP ("1.0", "1.1") gets for a
// GET: the heads as they came, those of 1xx first, and the error of a broken transfer.
func Raw(t testing.TB, srv *httptest.Server, version string) (head string, status, size int, err error) {
	t.Helper()
	conn := Dial(t, srv)
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/"+version+"\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	var raw bytes.Buffer
	in := bufio.NewReader(io.TeeReader(conn, &raw))
	for heads := 1; ; heads++ {
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			return "", 0, 0, err
		}
		if res.StatusCode < 200 && res.StatusCode != http.StatusSwitchingProtocols {
			continue // behind it comes the answer
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		parts := strings.SplitAfterN(raw.String(), "\r\n\r\n", heads+1)
		return strings.Join(parts[:heads], ""), res.StatusCode, len(body), err
	}
}

// Dial returns a TCP connection to srv.
func Dial(t testing.TB, srv *httptest.Server) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// Do serves one POST with the body "body", without a connection.
func Do(h http.Handler) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("POST", "/path", strings.NewReader("body")))
	return rec
}

// Answer is what became of a handler that may panic or exit its goroutine.
type Answer struct {
	*httptest.ResponseRecorder
	Panicked any
	Returned bool
}

// Ask serves one request in a goroutine of its own, without a connection.
func Ask(h http.Handler, r *http.Request) Answer {
	a := Answer{ResponseRecorder: httptest.NewRecorder()}
	a.Panicked = Panicked(func() {
		h.ServeHTTP(a.ResponseRecorder, r)
		a.Returned = true
	})
	return a
}

// AskGet is [Ask] for a GET.
func AskGet(h http.Handler, target string) Answer {
	return Ask(h, httptest.NewRequest(http.MethodGet, target, nil))
}

// Panicked runs f in a goroutine of its own, until it returns, panics or exits
// the goroutine, and returns what it panicked with.
func Panicked(f func()) any {
	over := make(chan any, 1)
	go func() {
		defer func() { over <- recover() }()
		f()
	}()
	return <-over
}
