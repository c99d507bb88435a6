// G10. The writer stays a writer. What works on net/http's ResponseWriter works on
// the one handed to the handler: http.ResponseController in full, http.Flusher,
// http.Hijacker, io.ReaderFrom, io.StringWriter, the old CloseNotify that gin still
// asks for. Hijack first looks whether it is possible, then commits what is open, and
// fails with the commit's error if that fails; a 101 set before it goes out, as some
// websocket libraries need. http.Pusher is not provided.

package guarantees_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

func TestG10WriterIsAWriter(t *testing.T) {
	wireEach(t, func(t *testing.T, p wireProtocol) {
		ask := p.start(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, flusher := w.(http.Flusher)
			_, hijacker := w.(http.Hijacker)
			_, readerFrom := w.(io.ReaderFrom)
			_, stringWriter := w.(io.StringWriter)
			_, closeNotifier := w.(interface{ CloseNotify() <-chan bool })
			_, pusher := w.(http.Pusher)
			if !flusher || !hijacker || !readerFrom || !stringWriter || !closeNotifier || pusher {
				t.Errorf("Flusher %t, Hijacker %t, ReaderFrom %t, StringWriter %t, CloseNotifier %t, want true; Pusher %t, want false",
					flusher, hijacker, readerFrom, stringWriter, closeNotifier, pusher)
			}
			rc := http.NewResponseController(w)
			far := time.Now().Add(wirePatience)
			if err := errors.Join(rc.SetReadDeadline(far), rc.SetWriteDeadline(far), rc.EnableFullDuplex()); err != nil {
				t.Error(err)
			}
			if err := rc.Flush(); err != nil {
				t.Error(err)
			}
		})))
		if got := ask("GET", "/"); got.err != nil || got.status != 200 {
			t.Errorf("got %v, want 200", got)
		}
	})
}

func TestG10PlainUnderlyingWriter(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	rec := httptest.NewRecorder()
	sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("X-Case", "1")
		_, _ = io.WriteString(w, "hello")
		rc := http.NewResponseController(w)
		_, _, hijack := rc.Hijack()
		far := time.Now().Add(time.Hour)
		for what, err := range map[string]error{
			"Flush": rc.Flush(), "Hijack": hijack, "SetReadDeadline": rc.SetReadDeadline(far),
			"SetWriteDeadline": rc.SetWriteDeadline(far), "EnableFullDuplex": rc.EnableFullDuplex(),
		} {
			if !errors.Is(err, http.ErrNotSupported) {
				t.Errorf("%s: got %v, want ErrNotSupported", what, err)
			}
		}
		return sqlreqtest.ErrTest
	})).ServeHTTP(struct{ http.ResponseWriter }{rec}, httptest.NewRequest("GET", "/", nil))
	if rec.Code != 500 || rec.Body.String() != "Internal Server Error\n" || rec.Header().Get("X-Case") != "" {
		t.Errorf("got %d %q %v, want a bare 500", rec.Code, rec.Body, rec.Header())
	}
}

func TestG10FlushReachesTheClientAtOnce(t *testing.T) {
	test := func(t *testing.T, p wireProtocol) {
		seen, db := make(chan struct{}), sqlreqtest.OpenDB(t)
		srv := p.serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
				t.Error(err)
			}
			_, _ = io.WriteString(w, "first")
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			select {
			case <-seen:
			case <-r.Context().Done():
				t.Error("the client has not seen what was flushed")
			}
		})))
		client := srv.Client()
		client.Timeout = wirePatience
		res, err := client.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		first := make([]byte, 5)
		if _, err := io.ReadFull(res.Body, first); err != nil || string(first) != "first" {
			t.Errorf("got %q %v before the handler returned, want first", first, err)
		}
		close(seen)
		if _, err := io.ReadAll(res.Body); err != nil {
			t.Error(err)
		}
		res.Body.Close()
	}
	for _, p := range []wireProtocol{wireHTTP11, wireHTTP2} {
		t.Run(p.name, func(t *testing.T) { test(t, p) })
	}
}

func TestG10Deadlines(t *testing.T) {
	app := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc, past := http.NewResponseController(w), time.Unix(1, 0)
		if r.URL.Path == "/write" {
			if err := rc.SetWriteDeadline(past); err != nil {
				t.Error(err)
			}
			return
		}
		if err := rc.SetReadDeadline(past); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadAll(r.Body); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("reading the body: got %v, want the deadline", err)
		}
	}))
	srv := sqlreqtest.Serve(t, app)
	conn := wireDial(t, srv, nil)
	defer conn.Close()
	fmt.Fprint(conn, "POST /read HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf")
	if got := wireRead(bufio.NewReader(conn), "POST"); got.status != 200 {
		t.Errorf("got %v, want an answer", got)
	}
	if got := wireHTTP11.ask(t, srv)("GET", "/write"); got.err == nil {
		t.Errorf("got %v, want a broken transfer: the deadline is over", got)
	}
}

func TestG10FullDuplex(t *testing.T) {
	srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := rc.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		for range 3 {
			b := make([]byte, 4)
			if _, err := io.ReadFull(r.Body, b); err != nil {
				t.Error(err)
			}
			_, _ = w.Write(b)
			if err := rc.Flush(); err != nil {
				t.Error(err)
			}
		}
	})))
	conn := wireDial(t, srv, nil)
	defer conn.Close()
	fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 12\r\n\r\nping")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		b := make([]byte, 4)
		if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != "ping" {
			t.Fatalf("turn %d: got %q %v, want ping", i, b, err)
		}
		if i < 2 {
			fmt.Fprint(conn, "ping")
		}
	}
}

func TestG10Hijack(t *testing.T) {
	cases := map[string]struct {
		before func(w http.ResponseWriter)
		want   string // on the wire
	}{
		"before anything":                 {func(http.ResponseWriter) {}, "raw"},
		"with a header that was not sent": {func(w http.ResponseWriter) { w.Header().Set("X-Case", "1") }, "raw"},
		"after a 101": {func(w http.ResponseWriter) {
			w.Header().Set("Upgrade", "echo")
			w.Header().Set("Connection", "Upgrade")
			w.WriteHeader(101)
		}, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nraw"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
					t.Error(err)
				}
				w.Header()["Date"] = nil
				c.before(w)
				conn, rw, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				if sqlreqtest.Count(t, db, "work") != 1 || db.Stats().InUse != 0 {
					t.Error("the transaction is still open after the Hijack")
				}
				if _, err := w.Write([]byte("x")); err != http.ErrHijacked {
					t.Errorf("Write after Hijack: got %v, want ErrHijacked", err)
				}
				if _, _, err := w.(http.Hijacker).Hijack(); err == nil {
					t.Error("a second Hijack succeeds")
				}
				_, _ = rw.WriteString("raw")
				_ = rw.Flush()
			})))
			conn := wireDial(t, srv, nil)
			defer conn.Close()
			fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
			if got, err := io.ReadAll(conn); string(got) != c.want || err != nil {
				t.Errorf("got %q %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestG10CloseNotify(t *testing.T) {
	app := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		gone := w.(interface{ CloseNotify() <-chan bool }).CloseNotify()
		if r.URL.Path == "/plain" {
			r.Context().Value(wireCancel{}).(context.CancelFunc)()
		} else {
			_ = http.NewResponseController(w).Flush()
		}
		select {
		case <-gone:
		case <-time.After(wirePatience):
			t.Errorf("%s: nobody tells that the client has gone", r.URL.Path)
		}
		if r.URL.Path != "/plain" {
			r.Context().Value(wireCancel{}).(context.CancelFunc)()
		}
	}))
	ctx, cancel := context.WithCancel(context.Background())
	ctx = context.WithValue(ctx, wireCancel{}, cancel)
	func() {
		defer func() { _ = recover() }() // the client has gone: whatever the end of the request says
		app.ServeHTTP(struct{ http.ResponseWriter }{httptest.NewRecorder()}, httptest.NewRequest("GET", "/plain", nil).WithContext(ctx))
	}()

	done, finished := context.WithCancel(context.Background())
	srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		app.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), wireCancel{}, finished)))
	}))
	conn := wireDial(t, srv, nil)
	fmt.Fprint(conn, "GET /conn HTTP/1.1\r\nHost: test\r\n\r\n")
	if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil {
		t.Error(err)
	}
	conn.Close()
	<-done.Done()
}

type wireCancel struct{}
