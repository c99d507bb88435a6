package held

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fastcgi"
)

// deep calls f at the bottom of a deep stack.
func deep(n int, f func()) {
	if n == 0 {
		f()
		return
	}
	deep(n-1, f)
}

// TestFramesOfServers fails when a version of Go names the functions otherwise with
// which servers start the goroutines of handlers: then endFor needs the new names.
func TestFramesOfServers(t *testing.T) {
	looked := make(chan string, 1)
	serve := func(h http.Handler, http2 bool) {
		srv := httptest.NewUnstartedServer(h)
		srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		srv.EnableHTTP2 = http2
		srv.StartTLS()
		defer srv.Close()
		res, err := srv.Client().Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil || http2 != (res.ProtoMajor == 2) {
			t.Fatalf("got %v by %s", err, res.Proto)
		}
	}
	tests := map[string]struct {
		serve func(h http.Handler)
		want  End
	}{
		"HTTP/1.1":            {func(h http.Handler) { serve(h, false) }, Exit},
		"HTTP/2":              {func(h http.Handler) { serve(h, true) }, Exit},
		"http.TimeoutHandler": {func(h http.Handler) { serve(http.TimeoutHandler(h, time.Hour, ""), true) }, Return},
		"FastCGI": {func(h http.Handler) {
			if _, _, _, err := fastcgi.Get(fastcgi.Serve(t, h), "/"); err != nil {
				t.Fatal(err)
			}
		}, Return},
		"a test": {func(h http.Handler) { h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)) }, Panic},
		"a goroutine of a middleware": {func(h http.Handler) {
			serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				done := make(chan struct{})
				go func() { defer close(done); h.ServeHTTP(w, r) }()
				<-done
			}), false)
		}, Panic},
	}
	for name, test := range tests {
		for _, depth := range []int{0, 1, 200} {
			test.serve(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				deep(depth, func() { looked <- outermost() })
			}))
			function := <-looked
			if end := endFor(function); end != test.want || function == "" {
				t.Errorf("%s: the goroutine of a handler was started with %s, so that endFor says %d, want %d", name, function, end, test.want)
			}
		}
	}
}

// TestEndForOtherHTTP2: servers of HTTP/2 that are not in this Go.
func TestEndForOtherHTTP2(t *testing.T) {
	for _, function := range []string{"golang.org/x/net/http2.(*serverConn).runHandler", "net/http/internal/http2.(*serverConn).runHandler"} {
		if got := endFor(function); got != Exit {
			t.Errorf("%s: got %d, want %d", function, got, Exit)
		}
	}
}
