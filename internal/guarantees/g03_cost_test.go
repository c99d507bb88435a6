// G3 No use, no cost. A request that never asks for a transaction takes no
// connection, begins nothing, and pays one allocation of 512 bytes (two are allowed).
// One that streams a file without a transaction keeps the sendfile path.

package guarantees

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// TestG3NoUseNoConnection: a request that asks for nothing leaves the pool alone.
func TestG3NoUseNoConnection(t *testing.T) {
	f := &fakedb.DB{}
	db := f.Open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "routed", Route: func(context.Context, *http.Request) (*sql.DB, error) {
		t.Error("Route was asked")
		return nil, sqlreqtest.ErrTest
	}})
	h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = sqlreq.Prefix(r.Context())
		if got, err := sqlreq.DB(r.Context()); got != db || err != nil {
			t.Errorf("DB: got %p, %v", got, err)
		}
		if err := errors.Join(sqlreq.Commit(r.Context()), sqlreq.Rollback(r.Context())); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, "hello")
	}))
	if o := sqlreqtest.AskGet(h, "/"); o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	if f.Counts().Opened != 0 {
		t.Errorf("got %d connections opened, want none", f.Counts().Opened)
	}
	db.Close() // a closed pool is no trouble either
	if o := sqlreqtest.AskGet(h, "/"); o.Code != 200 {
		t.Errorf("with a closed pool: got %d, want 200", o.Code)
	}
}

func TestG3CommitWithNothingOpenAsksNoRoute(t *testing.T) {
	tests := map[string]func(t *testing.T, ctx context.Context){
		"nothing was used": func(*testing.T, context.Context) {},
		"another key has a hook": func(t *testing.T, ctx context.Context) {
			if err := sqlreq.AfterCommit(ctx, func(context.Context) {}); err != nil {
				t.Error(err)
			}
		},
		"another key's transaction has ended": func(t *testing.T, ctx context.Context) {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
			if err := sqlreq.Commit(ctx); err != nil {
				t.Error(err)
			}
		},
	}
	for name, before := range tests {
		t.Run(name, func(t *testing.T) {
			asked := 0
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}, sqlreq.Binding{Key: "routed", Route: func(context.Context, *http.Request) (*sql.DB, error) {
				asked++
				return nil, sqlreqtest.ErrTest
			}})
			rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				before(t, r.Context())
				if err := sqlreq.Key("routed").Commit(r.Context()); err != nil {
					t.Errorf("Commit: %v", err)
				}
				if err := sqlreq.Key("routed").Rollback(r.Context()); err != nil {
					t.Errorf("Rollback: %v", err)
				}
			})))
			if rec.Code != 200 || asked != 0 {
				t.Errorf("got %d, Route was asked %d times; want 200, never", rec.Code, asked)
			}
		})
	}
}

// nullWriter is a ResponseWriter that allocates nothing.
type nullWriter struct{ header http.Header }

func (n *nullWriter) Header() http.Header { return n.header }

func (n *nullWriter) Write(p []byte) (int, error) { return len(p), nil }

func (n *nullWriter) WriteHeader(int) {}

// allocations returns the allocations of a request to h.
func allocations(h http.Handler) (allocs float64, bytes int64) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r = r.WithContext(ctx)
	w := &nullWriter{make(http.Header)}
	once := func() {
		clear(w.header)
		h.ServeHTTP(w, r)
	}
	// A garbage collection in between empties the pools of net/http and sqlreq, and
	// other goroutines allocate too: the least of some rounds is what once costs.
	allocs, bytes = testing.AllocsPerRun(100, once), allocatedBytes(100, once)
	for range 9 {
		allocs = min(allocs, testing.AllocsPerRun(100, once))
		bytes = min(bytes, allocatedBytes(100, once))
	}
	return allocs, bytes
}

// allocatedBytes returns the bytes that each of n runs of f allocates.
func allocatedBytes(n int, f func()) int64 {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	f()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		f()
	}
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc-before.TotalAlloc) / int64(n)
}

// TestG3Allocations: a request without a transaction pays one allocation of 512
// bytes (the contract allows two, of less than 640 bytes in all), whatever it does with its headers and however many keys there are.
func TestG3Allocations(t *testing.T) {
	page := bytes.Repeat([]byte("x"), 1024)
	text, private := []string{"text/plain"}, []string{"private"}
	bare := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(page) })
	headers := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = text
		w.Header()["Cache-Control"] = private
		w.WriteHeader(200)
		_, _ = w.Write(page)
	})
	outside := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header()["X-Request-Id"] = text
			w.Header()["Vary"] = private
			h.ServeHTTP(w, r)
		})
	}
	same := func(h http.Handler) http.Handler { return h }
	for _, keys := range []int{1, 10, 1000} {
		var bindings []sqlreq.Binding
		for i := range keys {
			bindings = append(bindings, sqlreq.Binding{Key: sqlreq.Key(fmt.Sprint("key", i)), DB: (&fakedb.DB{}).Open(t)})
		}
		reg := sqlreqtest.NewRegistry(t, bindings...)
		for _, test := range []struct {
			name string
			h    http.Handler
			wrap func(http.Handler) http.Handler
		}{
			{"bare write", bare, same},
			{"headers", headers, same},
			{"headers outside", bare, outside},
			{"headers on both sides", headers, outside},
		} {
			t.Run(fmt.Sprintf("%s, %d keys", test.name, keys), func(t *testing.T) {
				want, wantBytes := allocations(test.wrap(test.h))
				got, gotBytes := allocations(test.wrap(reg.Middleware(test.h)))
				if raceDetector() {
					// The pools that keep the rest away leak at random: the two are the least.
					if got-want < 1 || got-want > 12 {
						t.Errorf("with the race detector: got %v allocations more, want 1 to 12", got-want)
					}
					return
				}
				if got-want != 1 || gotBytes-wantBytes > 512 {
					t.Errorf("got %v allocations and %d bytes more, want 1 and at most 512", got-want, gotBytes-wantBytes)
				}
			})
		}
	}
}

// TestG3InsertAllocations: one INSERT and COMMIT costs 10 allocations of 1,408 bytes
// more than by hand (the contract allows 12). Those of the driver are the same in both.
func TestG3InsertAllocations(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	db.SetMaxOpenConns(1)
	byHand, handBytes := allocations(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tx, err := db.BeginTx(r.Context(), nil)
		if err == nil {
			_, err = tx.ExecContext(r.Context(), sqlreqtest.InsertWork)
		}
		if err == nil {
			err = tx.Commit()
		}
		if err != nil {
			t.Error(err)
		}
		w.WriteHeader(201)
	}))
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	got, gotBytes := allocations(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
			t.Error(err)
		}
		w.WriteHeader(201)
	})))
	if raceDetector() {
		if got-byHand > 30 { // sync.Pool forgets at random
			t.Errorf("got %v allocations, %v by hand: %v more, want at most 30", got, byHand, got-byHand)
		}
		return
	}
	if got-byHand > 10 || gotBytes-handBytes > 1408 {
		t.Errorf("got %v allocations of %d bytes, %v of %d by hand: %v of %d more, want at most 10 of 1,408", got, gotBytes, byHand, handBytes, got-byHand, gotBytes-handBytes)
	}
	t.Logf("%v allocations of %d bytes, %v of %d by hand", got, gotBytes, byHand, handBytes)
}

// TestG3RetryAllocations: a request that may be run again, and is not, costs 5
// allocations of 352 bytes more than one that may not: the clone of the request that
// each attempt gets, with its header and URL, and the attempt's own header.
func TestG3RetryAllocations(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	db.SetMaxOpenConns(1)
	with := func(attempts int) (float64, int64) {
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
		reg.Retry.Attempts = attempts
		return allocations(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
				t.Error(err)
			}
			w.WriteHeader(201)
		})))
	}
	once, onceBytes := with(0)
	got, gotBytes := with(3)
	if raceDetector() {
		if got-once > 30 { // sync.Pool forgets at random
			t.Errorf("with the race detector: got %v allocations, %v without Retry", got, once)
		}
		return
	}
	if got-once != 5 || gotBytes-onceBytes > 352 {
		t.Errorf("got %v allocations of %d bytes, %v of %d without Retry: %v of %d more, want 5 of at most 352", got, gotBytes, once, onceBytes, got-once, gotBytes-onceBytes)
	}
}
