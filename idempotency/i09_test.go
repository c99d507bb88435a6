package idempotency_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

func TestI9TheWriter(t *testing.T) {
	first, again, _ := twice(t, newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		for name, err := range map[string]error{
			"SetReadDeadline":  rc.SetReadDeadline(time.Now().Add(time.Hour)),
			"SetWriteDeadline": rc.SetWriteDeadline(time.Now().Add(time.Hour)),
			"EnableFullDuplex": rc.EnableFullDuplex(),
		} {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, ok := w.(interface{ Unwrap() http.ResponseWriter }); ok {
			t.Error("the writer has Unwrap, a way around it")
		}
		if c := w.(interface{ CloseNotify() <-chan bool }).CloseNotify(); c == nil {
			t.Error("CloseNotify: got nil")
		}
		n, err := w.(io.ReaderFrom).ReadFrom(strings.NewReader("read, "))
		if n != 6 || err != nil {
			t.Errorf("ReadFrom: got %d %v", n, err)
		}
		if n, err := w.(io.StringWriter).WriteString("written"); n != 7 || err != nil {
			t.Errorf("WriteString: got %d %v", n, err)
		}
		if err := rc.Flush(); err != nil {
			t.Errorf("Flush: %v", err)
		}
		w.(http.Flusher).Flush()
		fmt.Fprint(w, ", printed")
	}))
	again.header.Del("Content-Length")
	same(t, first, again)
	want(t, first, "200 read, written, printed")
}

func TestI9WriterThatCanDoNothing(t *testing.T) {
	type plain struct{ http.ResponseWriter }
	hide := func(next http.Handler) http.Handler {
		return handle(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(plain{w}, r) })
	}
	first, again, _ := twice(t, newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := rc.Flush(); !errors.Is(err, http.ErrNotSupported) {
			t.Errorf("Flush: got %v", err)
		}
		if _, _, err := rc.Hijack(); !errors.Is(err, http.ErrNotSupported) {
			t.Errorf("Hijack: got %v", err)
		}
		select {
		case <-w.(interface{ CloseNotify() <-chan bool }).CloseNotify():
			t.Error("CloseNotify: the client has gone")
		default:
		}
		w.WriteHeader(201)
		fmt.Fprint(w, "done")
	}), hide)
	want(t, first, "201 done")
	same(t, first, again)
}

func TestI9LateWritesAreRefused(t *testing.T) {
	var w0 http.ResponseWriter
	first, again, _ := twice(t, newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		w0 = w
		fmt.Fprint(w, "done")
	}), func(next http.Handler) http.Handler {
		return handle(func(w http.ResponseWriter, r *http.Request) {
			w0 = nil
			next.ServeHTTP(w, r)
			if w0 == nil {
				return // a repeat
			}
			w0.WriteHeader(500)
			if _, err := io.WriteString(w0, "late"); err == nil {
				t.Error("a Write after the handler has returned got no error")
			}
			if _, err := w0.Write([]byte("late")); err == nil {
				t.Error("a Write after the handler has returned got no error")
			}
			if _, err := io.Copy(w0, strings.NewReader("late")); err == nil {
				t.Error("a copy after the handler has returned got no error")
			}
			if err := http.NewResponseController(w0).Flush(); err == nil {
				t.Error("a Flush after the handler has returned got no error")
			}
		})
	})
	want(t, first, "200 done")
	same(t, first, again)
}

// hijackAnswer answers by itself.
func hijackAnswer(t *testing.T, w http.ResponseWriter) error {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprint(buf, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
	return buf.Flush()
}

func TestI9HijackedRequestIsCommittedWithoutAnAnswer(t *testing.T) {
	db := open(t)
	calls := 0
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		calls++
		insertWork(t, r.Context())
		if err := hijackAnswer(t, w); err != nil {
			t.Error(err)
		}
	}))
	want(t, post(t, srv.URL, "k", "x"), "200 ok")
	if got := post(t, srv.URL, "k", "x"); got.status != 410 || got.replayed {
		t.Errorf("got %v, want a 410", got)
	}
	if got := post(t, srv.URL, "k", "y"); got.status != 422 {
		t.Errorf("got %v, want a 422", got)
	}
	rows(t, db, 1, 1)
	if calls != 1 {
		t.Errorf("got %d calls", calls)
	}
}

func TestI9RepeatWhileTheHijackedConnectionIsOpen(t *testing.T) {
	db := open(t)
	once := newOnce()
	once.OnWait(func() { t.Error("the repeat waits for the connection to end") })
	hijacked, release := make(chan struct{}), make(chan struct{})
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), once, handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		if err := hijackAnswer(t, w); err != nil {
			t.Error(err)
		}
		close(hijacked)
		<-release
	}))
	want(t, post(t, srv.URL, "k", "x"), "200 ok")
	<-hijacked
	if got := post(t, srv.URL, "k", "x"); got.status != 410 {
		t.Errorf("got %v, want a 410", got)
	}
	close(release)
}

func TestI9HijackThatFails(t *testing.T) {
	// COMMIT is refused: the connection stays net/http's, and nothing is recorded.
	db := open(t)
	bad := true
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		if bad {
			sqlreqtest.Exec(t, r.Context(), main, sqlreqtest.BreakCommit)
		}
		if err := hijackAnswer(t, w); (err != nil) != bad {
			t.Errorf("got %v", err)
		}
	}))
	if got := post(t, srv.URL, "k", "x"); got.status != 500 {
		t.Errorf("got %v, want a 500", got)
	}
	rows(t, db, 0, 0)
	bad = false
	want(t, post(t, srv.URL, "k", "x"), "200 ok")
	rows(t, db, 1, 1)
}

func TestI9HijackOfAnUpgrade(t *testing.T) {
	db := open(t)
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "x")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(conn, "hello\n")
		conn.Close()
	}))
	conn := sqlreqtest.Dial(t, srv)
	defer conn.Close()
	fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n")
	buf := bufio.NewReader(conn)
	res, err := http.ReadResponse(buf, nil)
	if err != nil || res.StatusCode != 101 {
		t.Fatalf("got %v %v", res, err)
	}
	if line, err := buf.ReadString('\n'); line != "hello\n" {
		t.Errorf("got %q %v", line, err)
	}
	if got := post(t, srv.URL, "k", ""); got.status != 410 {
		t.Errorf("got %v, want a 410", got)
	}
}

func TestI10LargeAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		limit int64
		size  int
		kept  bool
	}{
		"the default":           {0, 1 << 20, true},
		"one byte more":         {0, 1<<20 + 1, false},
		"a small limit":         {10, 10, true},
		"over a small limit":    {10, 11, false},
		"far over":              {10, 1 << 20, false},
		"a limit over the held": {200_000, 200_000, true},
	} {
		for _, how := range []string{"Write", "WriteString", "ReadFrom", "declared"} {
			t.Run(name+"/"+how, func(t *testing.T) {
				once := newOnce()
				once.Limit = c.limit
				page := strings.Repeat("x", c.size)
				first, again, calls := twice(t, once, handle(func(w http.ResponseWriter, _ *http.Request) {
					if how == "declared" {
						w.Header().Set("Content-Length", fmt.Sprint(c.size))
					}
					switch how {
					case "ReadFrom":
						io.Copy(w, struct{ io.Reader }{strings.NewReader(page)})
					case "WriteString":
						io.WriteString(w, page)
					default:
						for rest := []byte(page); len(rest) > 0; {
							n := min(len(rest), 1000)
							w.Write(rest[:n])
							rest = rest[n:]
						}
					}
				}))
				if first.status != 200 || first.body != page || calls != 1 {
					t.Errorf("got %d with %d bytes, %d calls", first.status, len(first.body), calls)
				}
				switch {
				case c.kept && (!again.replayed || again.body != page):
					t.Errorf("got %d with %d bytes again", again.status, len(again.body))
				case !c.kept && (again.status != 410 || again.replayed):
					t.Errorf("got %d again, want 410", again.status)
				}
			})
		}
	}
}

// nowhere is a response that takes everything and keeps nothing.
type nowhere struct{ header http.Header }

func (n nowhere) Header() http.Header         { return n.header }
func (n nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (n nowhere) WriteHeader(int)             {}

func TestI10Memory(t *testing.T) {
	const limit, holdLimit = 1 << 20, 64 << 10
	live := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for name, size := range map[string]int{"the most that is kept": limit, "not kept": 8 * limit} {
		t.Run(name, func(t *testing.T) {
			var d fakedb.DB
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
			chunk := bytes.Repeat([]byte("x"), 4096)
			var before, during uint64
			h := reg.Middleware(newOnce().Handler(handle(func(w http.ResponseWriter, r *http.Request) {
				for range size / len(chunk) {
					w.Write(chunk)
				}
				during = live()
			})))
			r := httptest.NewRequest("POST", "/", struct{ io.Reader }{bytes.NewReader(make([]byte, 1<<20))})
			r.Header.Set("Idempotency-Key", "k")
			before = live()
			h.ServeHTTP(nowhere{make(http.Header)}, r)
			if held := int64(during) - int64(before); held > limit+holdLimit+64<<10+32<<10 {
				t.Errorf("got %d bytes held, want at most %d", held, limit+holdLimit+64<<10)
			}
			runtime.KeepAlive(r)
		})
	}
}

func TestI10AWriteThatFailed(t *testing.T) {
	// The client has gone in the middle of a stream, and the handler gives up: what it
	// would have written is not known.
	var d fakedb.DB
	db := withTable(t, sqlreqtest.OpenFaulty(t, &d))
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	once := newOnce()
	h := reg.Middleware(once.Handler(handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		for range 100 {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
		t.Error("no Write has failed")
	})))
	r := httptest.NewRequest("POST", "/", nil)
	r.Header.Set("Idempotency-Key", "k")
	h.ServeHTTP(&broken{nowhere{make(http.Header)}, 100_000}, r)
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r.Clone(context.Background()))
	if rec.Code != 410 {
		t.Errorf("got %d, want 410", rec.Code)
	}
	rows(t, db, 1, 1)
}

// broken is a connection that breaks after some bytes.
type broken struct {
	nowhere
	left int
}

func (b *broken) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

// refusingHijack answers as an HTTP/2 connection does.
type refusingHijack struct{ http.ResponseWriter }

func TestI12CommitAfterAHijackThatWasRefused(t *testing.T) {
	// The handler has not answered when it commits: it commits the key without an answer,
	// which follows at the end, or does not.
	for name, c := range map[string]struct {
		end         func(w http.ResponseWriter, r *http.Request)
		first, more string
	}{
		"it answers":          {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201); fmt.Fprint(w, "done") }, "201 done", "201 done (replayed)"},
		"it fails":            {func(_ http.ResponseWriter, r *http.Request) { sqlreq.Fail(r.Context(), errTest) }, "500 Internal Server Error", ""},
		"it has answered 201": {func(w http.ResponseWriter, r *http.Request) { sqlreq.Fail(r.Context(), errTest) }, "500 Internal Server Error", ""},
	} {
		t.Run(name, func(t *testing.T) {
			db := open(t)
			h := newOnce().Handler(handle(func(w http.ResponseWriter, r *http.Request) {
				insertWork(t, r.Context())
				if _, _, err := http.NewResponseController(w).Hijack(); err == nil {
					t.Error("hijacked")
				}
				if name == "it has answered 201" {
					w.WriteHeader(201)
					fmt.Fprint(w, "a half")
				}
				must(t, sqlreq.Commit(r.Context()))
				c.end(w, r)
			}))
			srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
				h.ServeHTTP(refusingHijack{w}, r)
			})))
			want(t, post(t, srv.URL, "k", "x"), c.first)
			if got := post(t, srv.URL, "k", "x"); c.more == "" && got.status != 409 || c.more != "" && got.String() != c.more {
				t.Errorf("got %q to the repeat, want %q, 409 if that is empty", got, c.more)
			}
			rows(t, db, 1, 1)
		})
	}
}

func TestI9HijackAgain(t *testing.T) {
	db := open(t)
	returned := make(chan struct{})
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		defer close(returned)
		insertWork(t, r.Context())
		if err := hijackAnswer(t, w); err != nil {
			t.Error(err)
		}
		if _, _, err := http.NewResponseController(w).Hijack(); !errors.Is(err, http.ErrHijacked) {
			t.Errorf("got %v from a second Hijack, want http.ErrHijacked", err)
		}
		if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrHijacked) {
			t.Errorf("got %v from a Write behind it, want http.ErrHijacked", err)
		}
	}))
	want(t, post(t, srv.URL, "k", "x"), "200 ok")
	<-returned
	if got := post(t, srv.URL, "k", "x"); got.status != 410 {
		t.Errorf("got %v, want a 410", got)
	}
	rows(t, db, 1, 1)
}

// onlyReader has no WriteTo.
type onlyReader struct{ io.Reader }

func TestI10NoLimit(t *testing.T) {
	once := newOnce()
	once.Limit = math.MaxInt64
	first, again, calls := twice(t, once, handle(func(w http.ResponseWriter, r *http.Request) {
		must(t, errOf(io.Copy(w, onlyReader{strings.NewReader("a body")})))
	}))
	want(t, first, "200 a body")
	want(t, again, "200 a body (replayed)")
	if calls != 1 {
		t.Errorf("the handler ran %d times", calls)
	}
}

func errOf[V any](_ V, err error) error { return err }

func TestI2StatusThatIsNone(t *testing.T) {
	// net/http panics, and the handler makes the best of it.
	for _, status := range []int{0, 99, 1000, 1 << 20} {
		first, again, _ := twice(t, newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
			if sqlreqtest.Panicked(func() { w.WriteHeader(status) }) == nil {
				t.Errorf("no panic for status %d", status)
			}
			fmt.Fprint(w, "done")
		}))
		want(t, first, "200 done")
		want(t, again, "200 done (replayed)")
	}
}
