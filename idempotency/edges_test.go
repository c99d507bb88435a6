package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// A part of a file that was asked for, and a condition that a repeat does not have.
func TestI2ServeContent(t *testing.T) {
	modified := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	db := open(t)
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		w.Header().Set("Etag", `"1"`)
		http.ServeContent(w, r, "a.txt", modified, strings.NewReader("0123456789"))
	}))
	first := post(t, srv.URL, "k", "", "Range", "bytes=2-4")
	if first.status != 206 || first.body != "234" || first.header.Get("Content-Range") != "bytes 2-4/10" {
		t.Errorf("got %v %v", first, first.header)
	}
	for _, field := range [][]string{{}, {"Range", "bytes=5-6"}, {"If-Match", `"2"`}, {"If-Unmodified-Since", modified.Add(-time.Hour).Format(http.TimeFormat)}} {
		again := post(t, srv.URL, "k", "", field...)
		if again.String() != "206 234 (replayed)" || again.header.Get("Content-Range") != first.header.Get("Content-Range") || again.header.Get("Etag") != `"1"` {
			t.Errorf("%v: got %v %v", field, again, again.header)
		}
	}
	// 412 rolls back: it is no answer to keep.
	if got := post(t, srv.URL, "l", "", "If-Match", `"2"`); got.status != 412 {
		t.Errorf("got %v, want 412", got)
	}
	rows(t, db, 1, 1)
}

// A body in chunks with a trailer: the handler has both, the fingerprint the body.
func TestI5ChunksAndTrailers(t *testing.T) {
	for name, serve := range map[string]func(testing.TB, http.Handler) *httptest.Server{"HTTP/1.1": sqlreqtest.Serve, "HTTP/2.0": sqlreqtest.ServeHTTP2} {
		t.Run(name, func(t *testing.T) {
			db := open(t)
			srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(newOnce().Handler(handle(func(w http.ResponseWriter, r *http.Request) {
				insertWork(t, r.Context())
				b, err := io.ReadAll(r.Body)
				fmt.Fprintf(w, "%d bytes, %v, the trailer %q, length %d", len(b), err, r.Trailer.Get("X-Sum"), r.ContentLength)
			}))))
			post := func(n int, sum string) string {
				req, _ := http.NewRequest("POST", srv.URL, io.LimitReader(zeros{}, int64(n)))
				req.ContentLength = -1
				req.Header.Set("Idempotency-Key", fmt.Sprint(n))
				req.Trailer = http.Header{"X-Sum": {sum}}
				res, err := srv.Client().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				b, _ := io.ReadAll(res.Body)
				return fmt.Sprint(res.StatusCode, " ", string(b), " ", res.Header.Get("Idempotent-Replayed"))
			}
			for _, n := range []int{10, 64 << 10, 300_000} {
				want := fmt.Sprintf(`200 %d bytes, <nil>, the trailer "one", length -1 `, n)
				if got := post(n, "one"); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
				if got := post(n, "two"); got != want+"true" { // a trailer is a field
					t.Errorf("got %q, want %q", got, want+"true")
				}
			}
			rows(t, db, 3, 3)
		})
	}
}

// The record by one key of a pool, the work by another.
func TestI13TwoKeysOfOnePool(t *testing.T) {
	db := open(t)
	once := newOnce()
	once.Database = "records"
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "records", DB: db}), once, new(work))
	want(t, post(t, srv.URL, "k", "x"), "201 order 1")
	want(t, post(t, srv.URL, "k", "x"), "201 order 1 (replayed)")
	rows(t, db, 1, 1)

	// With other ideas of a transaction they cannot be one: nothing is done.
	srv = serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "records", DB: db, Guard: true}), once, new(work))
	if got := post(t, srv.URL, "l", "x"); got.status != 500 {
		t.Errorf("got %v, want a 500", got)
	}
	rows(t, db, 1, 1)
}

// An application inside of another, each with a Once and a database: both keep the key.
// If the outer COMMIT fails after the inner one, the repeat does the outer work, and the
// inner application answers from its record.
func TestI13OnceInsideOfAnother(t *testing.T) {
	for _, fails := range []bool{false, true} {
		t.Run(fmt.Sprint("the last COMMIT fails: ", fails), func(t *testing.T) {
			var d fakedb.DB
			outer, inner := withTable(t, sqlreqtest.OpenFaulty(t, &d)), open(t)
			h := new(work)
			parent, child := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: outer}), sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: inner})
			application := child.Middleware(newOnce().Handler(h))
			srv := serve(t, parent, newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
				insertWork(t, r.Context())
				application.ServeHTTP(w, r)
			}))
			first := "201 order 1"
			if fails {
				first = ""
				d.Change(func(d *fakedb.DB) { d.Commit = func() error { return errors.New("refused") } })
				if got := post(t, srv.URL, "k", "x"); got.status < 500 {
					t.Errorf("got %v", got)
				}
				d.Change(func(d *fakedb.DB) { d.Commit = nil })
			}
			got := post(t, srv.URL, "k", "x")
			if first != "" {
				want(t, got, first)
			} else if got.status != 201 || got.body != fmt.Sprint("order ", h.calls.Load()) {
				t.Errorf("got %v", got)
			}
			want(t, post(t, srv.URL, "k", "x"), fmt.Sprint("201 ", got.body, " (replayed)"))
			rows(t, outer, 1, 1)
			rows(t, inner, 1, 1)
		})
	}
}

// A batch sends two requests with one key through Handler in one unit: the second finds
// the first's key without an answer, and nothing of either is done.
func TestI1TwoRequestsInOneUnit(t *testing.T) {
	db := open(t)
	h := newOnce().Handler(new(work))
	srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
		for range 2 {
			h.ServeHTTP(httptest.NewRecorder(), r.Clone(r.Context()))
		}
	})))
	if got := post(t, srv.URL, "k", ""); got.status != 409 {
		t.Errorf("got %v, want 409", got)
	}
	rows(t, db, 0, 0)
}

// Two of them with keys of their own are two records in one transaction.
func TestI1ABatch(t *testing.T) {
	db := open(t)
	h := newOnce().Handler(new(work))
	srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
		for _, key := range []string{"a", "b"} {
			part := r.Clone(r.Context())
			part.Header.Set("Idempotency-Key", key)
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, part)
			fmt.Fprintf(w, "%d %s %s, ", rec.Code, rec.Body, rec.Header().Get("Idempotent-Replayed"))
		}
	})))
	want(t, post(t, srv.URL, "", ""), "200 201 order 1 , 201 order 2 ,")
	want(t, post(t, srv.URL, "", ""), "200 201 order 1 true, 201 order 2 true,")
	rows(t, db, 2, 2)
}

// The scope asks the database, so that the transaction has begun before the claim.
func TestI6ScopeThatQueries(t *testing.T) {
	db := open(t)
	once := newOnce()
	once.Scope = func(r *http.Request) (string, error) {
		var name string
		err := main.QueryRowContext(r.Context(), "SELECT 'ann'").Scan(&name)
		return name, err
	}
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), once, new(work))
	want(t, post(t, srv.URL, "k", "x"), "201 order 1")
	want(t, post(t, srv.URL, "k", "x"), "201 order 1 (replayed)")
	rows(t, db, 1, 1)
	sqlreqtest.Idle(t, db)
}

// A Do with the context of a request that is a repeat, and one with that of a hook.
func TestI3DoInAHook(t *testing.T) {
	db := open(t)
	reg, once := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce()
	told := make(chan error, 1)
	srv := serve(t, reg, once, handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		must(t, sqlreq.AfterCommit(r.Context(), func(ctx context.Context) {
			first, err := once.Do(ctx, reg, "mail", r.Header.Get("Idempotency-Key"), func(ctx context.Context) error { insertWork(t, ctx); return nil })
			if !first {
				err = errors.Join(err, errors.New("not the first"))
			}
			told <- err
		}))
	}))
	want(t, post(t, srv.URL, "k", "x"), "200 ")
	must(t, <-told)
	want(t, post(t, srv.URL, "k", "x"), "200  (replayed)")
	rows(t, db, 2, 2)
}

// A layer sends the request again while its handler still runs, in the same unit. That
// is not the handler around itself.
func TestI1TwoRequestsAtOnceInOneUnit(t *testing.T) {
	db := open(t)
	ready, goOn := make(chan struct{}), make(chan struct{})
	calls := 0
	h := newOnce().Handler(handle(func(w http.ResponseWriter, r *http.Request) {
		calls++
		insertWork(t, r.Context())
		close(ready)
		<-goOn
	}))
	srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.ServeHTTP(httptest.NewRecorder(), r.Clone(r.Context()))
		}()
		<-ready
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r.Clone(r.Context()))
		if rec.Code != 409 {
			t.Errorf("got %d, want 409", rec.Code)
		}
		close(goOn)
		<-done
	})))
	if got := post(t, srv.URL, "k", ""); got.status != 409 || calls != 1 {
		t.Errorf("got %v and %d calls, want 409 and 1", got, calls)
	}
	rows(t, db, 0, 0)
}

// The handler has a request of its own, and layers outside see what net/http has to see.
func TestI9LayersSeePatternAndForm(t *testing.T) {
	db := open(t)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders", func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		must(t, r.ParseMultipartForm(1))
	})
	h := newOnce().Handler(mux)
	srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r)
		if r.Pattern != "POST /orders" || r.MultipartForm == nil {
			t.Errorf("got the pattern %q, form %v", r.Pattern, r.MultipartForm)
		}
	})))
	body := "--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nb\r\n--x--\r\n"
	want(t, post(t, srv.URL+"/orders", "k", body, "Content-Type", "multipart/form-data; boundary=x"), "200 ")
}

// The context of the handler of a key is the request's own: a Do in it that needs the only
// connection of the pool is told so, also where no context ends.
func TestI9DoThatNeedsTheConnectionOfTheRequest(t *testing.T) {
	db := open(t)
	db.SetMaxOpenConns(1)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	once := newOnce()
	h := reg.Middleware(once.Handler(once.Handler(handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		err := reg.Do(r.Context(), func(ctx context.Context) error { return errOf(main.ExecContext(ctx, sqlreqtest.InsertWork)) })
		if err == nil || !strings.Contains(err.Error(), "connection") {
			t.Errorf("got %v", err)
		}
	}))))
	r := httptest.NewRequest("POST", "/", nil).WithContext(context.Background())
	r.Header.Set("Idempotency-Key", "k")
	h.ServeHTTP(httptest.NewRecorder(), r)
	rows(t, db, 1, 1)
}

// Two batches with the same keys, in other orders, commit each part. Each has the key
// that the other wants, and nothing open.
func TestI4BatchesInACircle(t *testing.T) {
	db := open(t)
	once := newOnce()
	once.OnWait(func() { t.Error("it waits in the process") })
	h := once.Handler(new(work))
	var both sync.WaitGroup
	both.Add(2)
	srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
		for i, key := range strings.Split(r.URL.Path[1:], "/") {
			part := httptest.NewRequest("POST", "/", nil).WithContext(r.Context())
			part.Header.Set("Idempotency-Key", key)
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, part)
			must(t, sqlreq.Commit(r.Context()))
			fmt.Fprintf(w, "%d %s, ", rec.Code, rec.Header().Get("Idempotent-Replayed"))
			if i == 0 {
				both.Done()
				both.Wait()
			}
		}
	})))
	var wg sync.WaitGroup
	for _, path := range []string{"/a/b", "/b/a"} {
		wg.Go(func() { want(t, post(t, srv.URL+path, "", ""), "200 201 , 201 true,") })
	}
	wg.Wait()
	rows(t, db, 2, 2)
}
