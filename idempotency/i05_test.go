package idempotency_test

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// request sends a request with the key k.
func request(t *testing.T, method, url, body string, more ...string) reply {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Idempotency-Key", "k")
	for i := 0; i+1 < len(more); i += 2 {
		req.Header.Set(more[i], more[i+1])
	}
	r, err := send(req)
	if err != nil {
		t.Error(err)
	}
	return r
}

func TestI5AnotherRequest(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", 20_000) // 320 kB
	differs := large[:len(large)-1] + "x"
	cases := map[string]struct {
		method, path, body    string
		method2, path2, body2 string
		same                  bool
	}{
		"the same":                  {"POST", "/a?b", "c", "POST", "/a?b", "c", true},
		"the same, no body":         {"POST", "/a", "", "POST", "/a", "", true},
		"method":                    {"POST", "/a", "c", "PUT", "/a", "c", false},
		"path":                      {"POST", "/a", "c", "POST", "/ab", "c", false},
		"path, escaped otherwise":   {"POST", "/a%2Fb", "c", "POST", "/a/b", "c", false},
		"query":                     {"POST", "/a?b=1", "c", "POST", "/a?b=2", "c", false},
		"no query":                  {"POST", "/a?b", "c", "POST", "/a", "c", false},
		"query in the path":         {"POST", "/a?b", "c", "POST", "/ab", "c", false},
		"body":                      {"POST", "/a", "c", "POST", "/a", "d", false},
		"body longer":               {"POST", "/a", "c", "POST", "/a", "cd", false},
		"body shorter":              {"POST", "/a", "cd", "POST", "/a", "c", false},
		"body gone":                 {"POST", "/a", "c", "POST", "/a", "", false},
		"large":                     {"POST", "/a", large, "POST", "/a", large, true},
		"large, differs at the end": {"POST", "/a", large, "POST", "/a", differs, false},
		"large, longer":             {"POST", "/a", large, "POST", "/a", large + "x", false},
		"large, shorter":            {"POST", "/a", large, "POST", "/a", large[:len(large)-1], false},
		"64 KiB":                    {"POST", "/a", large[:64<<10], "POST", "/a", large[:64<<10], true},
		"64 KiB, and one more":      {"POST", "/a", large[:64<<10], "POST", "/a", large[:64<<10+1], false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			db := open(t)
			calls := 0
			srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
				calls++
				b, err := io.ReadAll(r.Body)
				if err != nil || string(b) != c.body {
					t.Errorf("the handler has read %d bytes and %v, want %d", len(b), err, len(c.body))
				}
				insertWork(t, r.Context())
				fmt.Fprint(w, "done")
			}))
			want(t, request(t, c.method, srv.URL+c.path, c.body), "200 done")
			got := request(t, c.method2, srv.URL+c.path2, c.body2)
			switch {
			case c.same:
				want(t, got, "200 done (replayed)")
			case got.status != 422 || got.header.Get("Content-Type") != "application/problem+json":
				t.Errorf("got %v, want a 422", got)
			}
			if calls != 1 {
				t.Errorf("got %d calls", calls)
			}
			rows(t, db, 1, 1)
			sqlreqtest.Idle(t, db)
		})
	}
}

func TestI5OnlyWhatTheHandlerHasReadCounts(t *testing.T) {
	db := open(t)
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		io.CopyN(io.Discard, r.Body, 100_000)
		insertWork(t, r.Context())
		fmt.Fprint(w, "done")
	}))
	body := strings.Repeat("0123456789", 20_000)
	want(t, request(t, "POST", srv.URL, body), "200 done")
	want(t, request(t, "POST", srv.URL, body[:100_000]+strings.Repeat("x", 100_000)), "200 done (replayed)")
	if got := request(t, "POST", srv.URL, body[:99_999]+strings.Repeat("x", 100_001)); got.status != 422 {
		t.Errorf("got %v, want a 422", got)
	}
	if got := request(t, "POST", srv.URL, body[:99_999]); got.status != 422 {
		t.Errorf("got %v, want a 422", got)
	}
}

func TestI5PathWithItsPrefix(t *testing.T) {
	db := open(t)
	once := newOnce()
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	h := once.Handler(new(work))
	mux := http.NewServeMux()
	mux.Handle("/a/", http.StripPrefix("/a", reg.Middleware(h)))
	mux.Handle("/b/", http.StripPrefix("/b", reg.Middleware(h)))
	srv := sqlreqtest.Serve(t, reg.Middleware(mux))
	want(t, request(t, "POST", srv.URL+"/a/orders", "x"), "201 order 1")
	want(t, request(t, "POST", srv.URL+"/a/orders", "x"), "201 order 1 (replayed)")
	if got := request(t, "POST", srv.URL+"/b/orders", "x"); got.status != 422 {
		t.Errorf("got %v, want a 422", got)
	}
}

// form returns a multipart body of a size, and its Content-Type.
func form(t *testing.T, boundary, value string, size int) (body, contentType string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	if err := w.SetBoundary(boundary); err != nil {
		t.Fatal(err)
	}
	w.WriteField("value", value)
	f, _ := w.CreateFormFile("file", "file.bin")
	f.Write(bytes.Repeat([]byte("-"), size))
	w.Close()
	return b.String(), w.FormDataContentType()
}

func TestI5MultipartBoundary(t *testing.T) {
	for _, size := range []int{10, 64 << 10, 300_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			db := open(t)
			srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
				insertWork(t, r.Context())
				fmt.Fprint(w, "done ", r.FormValue("value"))
			}))
			body, kind := form(t, "----geckoformboundary123", "v", size)
			want(t, request(t, "POST", srv.URL, body, "Content-Type", kind), "200 done v")
			body, kind = form(t, "----geckoformboundary98765432", "v", size)
			want(t, request(t, "POST", srv.URL, body, "Content-Type", kind), "200 done v (replayed)")
			body, kind = form(t, "----geckoformboundary123", "w", size)
			if got := request(t, "POST", srv.URL, body, "Content-Type", kind); got.status != 422 {
				t.Errorf("got %v, want a 422", got)
			}
		})
	}
}

// dribble is a body whose second part comes when it is told to.
type dribble struct {
	parts [][]byte
	next  chan struct{}
}

func (d *dribble) Read(p []byte) (int, error) {
	if len(d.parts) == 0 {
		return 0, io.EOF
	}
	if len(d.parts) == 1 {
		<-d.next
	}
	n := copy(p, d.parts[0])
	if d.parts[0] = d.parts[0][n:]; len(d.parts[0]) == 0 {
		d.parts = d.parts[1:]
	}
	return n, nil
}

func TestI5RepeatReadsWithoutAConnection(t *testing.T) {
	var d fakedb.DB
	db := withTable(t, sqlreqtest.OpenFaulty(t, &d))
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		insertWork(t, r.Context())
		fmt.Fprint(w, "done")
	}))
	body := bytes.Repeat([]byte("x"), 200_000)
	want(t, request(t, "POST", srv.URL, string(body)), "200 done")
	slow := &dribble{parts: [][]byte{body[:100_000], body[100_000:]}, next: make(chan struct{})}
	req, _ := http.NewRequest("POST", srv.URL, slow)
	req.Header.Set("Idempotency-Key", "k")
	got := make(chan reply)
	go func() {
		r, err := send(req)
		if err != nil {
			t.Error(err)
		}
		got <- r
	}()
	sqlreqtest.Until(func() bool { return d.Count("ROLLBACK") == 1 && db.Stats().InUse == 0 })
	close(slow.next)
	want(t, <-got, "200 done (replayed)")
}

func TestI5BodyTooLargeAtTheRepeat(t *testing.T) {
	db := open(t)
	limit := int64(1 << 20)
	h := newOnce().Handler(handle(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			sqlreq.Fail(r.Context(), err)
			return
		}
		insertWork(t, r.Context())
		fmt.Fprint(w, "done")
	}))
	srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		h.ServeHTTP(w, r)
	})))
	body := strings.Repeat("x", 200_000)
	want(t, request(t, "POST", srv.URL, body), "200 done")
	limit = 100_000
	if got := request(t, "POST", srv.URL, body); got.status != 413 {
		t.Errorf("got %v, want a 413", got)
	}
}

func TestI5BodyThatTheHandlerDoesNotReadToItsError(t *testing.T) {
	// What the first has not read to its end, or has met the same error in, is no error of
	// a repeat either.
	for _, size := range []int{10, 100_000, 300_000} {
		first, again, calls := twice(t, newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
			if size == 300_000 {
				_, err := io.Copy(io.Discard, r.Body)
				if err == nil {
					t.Error("no error of the body")
				}
			}
			w.WriteHeader(http.StatusCreated)
		}), func(next http.Handler) http.Handler {
			return handle(func(w http.ResponseWriter, r *http.Request) {
				r.Body = http.MaxBytesReader(w, &endless{ReadCloser: r.Body}, int64(size))
				next.ServeHTTP(w, r)
			})
		})
		want(t, first, "201 ")
		want(t, again, "201  (replayed)")
		if calls != 1 {
			t.Errorf("the handler ran %d times", calls)
		}
	}
}

// endless is a body without an end.
type endless struct{ io.ReadCloser }

func (*endless) Read(p []byte) (int, error) { return len(p), nil }
