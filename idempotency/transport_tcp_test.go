package idempotency_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// noWait makes t wait for nothing; each wait calls fn first.
func noWait(t *idempotency.Transport, fn func()) *idempotency.Transport {
	t.Backoff = func(int) time.Duration { return 0 }
	t.Sleep(func(context.Context, time.Duration) error {
		if fn != nil {
			fn()
		}
		return nil
	})
	return t
}

// Transport against Handler on both protocols, with bodies that can be had again and
// such that are kept, and each way in which an answer does not come.
func TestTransportAgainstHandlerOverTCP(t *testing.T) {
	protocols := map[string]func(testing.TB, http.Handler) *httptest.Server{"HTTP/1.1": sqlreqtest.Serve, "HTTP/2.0": sqlreqtest.ServeHTTP2}
	bodies := map[string]func() io.Reader{
		"no body":        func() io.Reader { return nil },
		"GetBody":        func() io.Reader { return strings.NewReader("hello") },
		"a stream":       func() io.Reader { return io.MultiReader(strings.NewReader("hel"), strings.NewReader("lo")) },
		"64 KiB of them": func() io.Reader { return io.LimitReader(zeros{}, 64<<10) },
	}
	breaks := map[string]struct {
		arm   func(*lossy)
		layer func(http.Handler) http.Handler
		calls int32
	}{
		"nothing":                    {nil, nil, 1},
		"the answer to COMMIT":       {func(l *lossy) { l.arm() }, nil, 1},
		"the COMMIT":                 {func(l *lossy) { l.before = true; l.arm() }, nil, 2},
		"the answer":                 {nil, cut, 1},
		"the answer, by a proxy":     {nil, func(h http.Handler) http.Handler { return badGateway(h, 502, true) }, 1},
		"the request, by a proxy":    {nil, func(h http.Handler) http.Handler { return badGateway(h, 504, false) }, 1},
		"the request, of a rate":     {nil, func(h http.Handler) http.Handler { return badGateway(h, 429, false) }, 1},
		"the answer, and the COMMIT": {func(l *lossy) { l.before = true; l.arm() }, cut, 2},
	}
	for protocol, serve := range protocols {
		for body, newBody := range bodies {
			for name, c := range breaks {
				t.Run(protocol+"/"+body+"/"+name, func(t *testing.T) {
					var l lossy
					db := withTable(t, sqlreqtest.OpenFaulty(t, &l.DB))
					h := new(work)
					next := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(newOnce().Handler(h))
					if c.layer != nil {
						next = c.layer(next)
					}
					if c.arm != nil {
						c.arm(&l)
					}
					srv := serve(t, next)
					base := srv.Client().Transport
					req, _ := http.NewRequest("POST", srv.URL, newBody())
					res, err := noWait(&idempotency.Transport{Base: base}, nil).RoundTrip(req)
					if err != nil {
						t.Fatal(err)
					}
					defer res.Body.Close()
					b, err := io.ReadAll(res.Body)
					if res.StatusCode != 201 || err != nil || res.Proto != protocol || h.calls.Load() != c.calls || string(b) != fmt.Sprint("order ", c.calls) {
						t.Errorf("got %s %d %q %v after %d calls, want %d", res.Proto, res.StatusCode, b, err, h.calls.Load(), c.calls)
					}
					rows(t, db, 1, 1)
				})
			}
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// badGateway answers the first request with a status of its own, before or after it was
// passed on.
func badGateway(next http.Handler, status int, after bool) http.Handler {
	var later atomic.Bool
	return handle(func(w http.ResponseWriter, r *http.Request) {
		if later.Swap(true) {
			next.ServeHTTP(w, r)
			return
		}
		if after {
			next.ServeHTTP(httptest.NewRecorder(), r)
		}
		w.WriteHeader(status)
	})
}

// A server that is down, and comes back on the same address: the name of a socket in a folder of the test's own, for
// a port that is free here may be taken by somebody else in between.
func TestTransportServerIsRestarted(t *testing.T) {
	folder, err := os.MkdirTemp("", "") // its name is short, as the one of a socket must be
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(folder) })
	addr := filepath.Join(folder, "s")
	stopped, err := net.Listen("unix", addr)
	must(t, err)
	stopped.(*net.UnixListener).SetUnlinkOnClose(false) // connections are refused, as by a port
	must(t, stopped.Close())
	db := open(t)
	h := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(newOnce().Handler(new(work)))
	waits := 0
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", addr)
	}
	transport := noWait(&idempotency.Transport{Base: &http.Transport{DialContext: dial}}, func() {
		if waits++; waits != 2 {
			return
		}
		must(t, os.Remove(addr))
		listener, err := net.Listen("unix", addr)
		must(t, err)
		srv := &http.Server{Handler: h}
		go srv.Serve(listener)
		t.Cleanup(func() { srv.Close() })
	})
	client := http.Client{Transport: transport}
	res, err := client.Post("http://test", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 201 || waits != 2 {
		t.Errorf("got %d after %d waits", res.StatusCode, waits)
	}
	rows(t, db, 1, 1)
}

// A request with the same key is in progress in another process: 409 with Retry-After,
// until that has failed, or has its answer.
func TestTransportWaitsForAnother(t *testing.T) {
	db := open(t)
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), new(work))
	_, err := db.Exec("INSERT INTO idempotency_keys (scope, idempotency_key, created_at) VALUES ('', 'k', 0)")
	must(t, err)
	waits := 0
	client := http.Client{Transport: noWait(&idempotency.Transport{}, func() {
		if waits++; waits == 2 {
			_, err := db.Exec("DELETE FROM idempotency_keys")
			must(t, err)
		}
	})}
	post := func() string {
		req, _ := http.NewRequest("POST", srv.URL, strings.NewReader("x"))
		req.Header.Set("Idempotency-Key", "k")
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return fmt.Sprint(res.StatusCode, " ", string(b), " ", res.Header.Get("Idempotent-Replayed"))
	}
	if got := post(); got != "201 order 1 " || waits != 2 {
		t.Errorf("got %q after %d waits", got, waits)
	}
	if got := post(); got != "201 order 1 true" || waits != 2 {
		t.Errorf("a repeat: got %q after %d waits", got, waits)
	}
	rows(t, db, 1, 1)
}

// A redirect that is to be followed with the same request did nothing here: the client
// of net/http goes there with the body, and with a key of its own.
func TestTransportFollowsARedirect(t *testing.T) {
	db := open(t)
	mux := http.NewServeMux()
	mux.Handle("/orders/", new(work)) // POST /orders is redirected
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), mux)
	client := http.Client{Transport: noWait(&idempotency.Transport{}, nil)}
	res, err := client.Post(srv.URL+"/orders", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 201 || res.Request.URL.Path != "/orders/" {
		t.Errorf("got %d from %s", res.StatusCode, res.Request.URL)
	}
	rows(t, db, 1, 1)
}
