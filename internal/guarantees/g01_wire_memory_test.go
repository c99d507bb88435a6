// G1. Complete means committed: a response larger than HoldLimit starts to stream
// with at most HoldLimit bytes in memory.

package guarantees_test

import (
	"database/sql"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

func TestG1LargeWriteIsNotCopied(t *testing.T) {
	big := make([]byte, 64<<20)
	for _, length := range []int{-1, len(big)} {
		under := wireRecorder()
		wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
				t.Error(err)
			}
			if length >= 0 {
				wireSetLength(w, length)
			}
			_, _ = w.Write(big)
		})).ServeHTTP(under, httptest.NewRequest("GET", "/", nil))
		if len(under.first) == 0 || under.first[0] != &big[0] {
			t.Errorf("Content-Length %d: the underlying writer got other memory than the handler's", length)
		}
	}
}

// wireDiscard is a client that is never slow.
type wireDiscard struct{ header http.Header }

func (d *wireDiscard) Header() http.Header         { return d.header }
func (d *wireDiscard) Write(p []byte) (int, error) { return len(p), nil }
func (d *wireDiscard) WriteHeader(int)             {}

func TestG1StreamTakesNoMemory(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	piece := make([]byte, 32<<10)
	stream := func(w http.ResponseWriter, r *http.Request) {
		if _, err := sqlreq.Tx(r.Context()); err != nil && !errors.Is(err, sqlreq.ErrNoRegistry) {
			t.Error(err)
		}
		for range 64 << 20 / len(piece) {
			_, _ = w.Write(piece)
		}
		_, _ = io.CopyN(w, wireZeros{}, 64<<20)
	}
	allocated := func(h http.Handler) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		h.ServeHTTP(&wireDiscard{make(http.Header)}, httptest.NewRequest("GET", "/", nil))
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	h := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(http.HandlerFunc(stream))
	allocated(h) // opens the connection
	bare, with := allocated(http.HandlerFunc(stream)), allocated(h)
	if with > bare+1<<20 {
		t.Errorf("128 MiB streamed took %d bytes of memory, %d without sqlreq", with, bare)
	}
}

// wireZeros never ends.
type wireZeros struct{}

func (wireZeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// memoryRequests is how many requests are blocked at once.
const memoryRequests = 200

// blocked returns the bytes that a request takes while the handler that app is given
// waits.
func blocked(t *testing.T, app func(wait http.HandlerFunc) http.Handler, request func() *http.Request) int64 {
	t.Helper()
	waiting, goOn := make(chan struct{}), make(chan struct{})
	h := app(func(http.ResponseWriter, *http.Request) {
		waiting <- struct{}{}
		<-goOn
	})
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what is in a sync.Pool goes with the second
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	var done sync.WaitGroup
	for range memoryRequests {
		done.Go(func() { h.ServeHTTP(&wireDiscard{make(http.Header)}, request()) })
	}
	for range memoryRequests {
		<-waiting
	}
	after := heap()
	close(goOn)
	done.Wait()
	return (after - before) / memoryRequests
}

// TestG1MemoryIsBounded: a request takes HoldLimit, BodyLimit, and 64 KiB for TxFunc,
// and not twice as much.
func TestG1MemoryIsBounded(t *testing.T) {
	const limit = 64 << 10
	const some = 8 << 10 // for all that is no body
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	retry := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	retry.Retry = sqlreqtest.Retries(2)
	// What arrives in pieces of a network, and is a little larger than half of the limit:
	// there a buffer that doubles has twice the room.
	for _, size := range []int{limit/2 + 1, limit, 4 * limit} {
		for _, declared := range []int64{-1, int64(size)} {
			request := func() *http.Request {
				r := httptest.NewRequest("POST", "/", iotest.HalfReader(io.LimitReader(wireZeros{}, int64(size))))
				r.ContentLength = declared
				return r
			}
			read := func(next http.HandlerFunc) http.HandlerFunc {
				return func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.CopyN(io.Discard, r.Body, int64(min(size, limit)))
					next(w, r)
				}
			}
			answer := func(next http.HandlerFunc) http.HandlerFunc {
				return func(w http.ResponseWriter, r *http.Request) {
					for n := 0; n < min(size, limit); n += 1 << 10 {
						_, _ = w.Write(make([]byte, 1<<10))
					}
					next(w, r)
				}
			}
			tests := map[string]struct {
				app  func(http.HandlerFunc) http.Handler
				most int64
			}{
				"TxFunc": {func(wait http.HandlerFunc) http.Handler {
					return reg.Middleware(sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, _ *sql.Tx) error { wait(w, r); return nil }))
				}, limit},
				"Retry": {func(wait http.HandlerFunc) http.Handler { return retry.Middleware(read(wait)) }, limit},
				"Retry, TxFunc and a held response": {func(wait http.HandlerFunc) http.Handler {
					return retry.Middleware(sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, _ *sql.Tx) error { answer(wait)(w, r); return nil }))
				}, 3 * limit},
			}
			for name, test := range tests {
				got := blocked(t, test.app, request)
				t.Logf("%s, %d bytes, declared %d: %d bytes for each request, at most %d are promised", name, size, declared, got, test.most)
				if got > test.most+some {
					t.Errorf("%s, %d bytes, declared %d: %d bytes for each request, want at most %d", name, size, declared, got, test.most)
				}
			}
		}
	}
}

func TestG1HoldLimitWithoutAnEnd(t *testing.T) {
	// The largest int holds everything, what is copied too: the client is told of a COMMIT
	// that has failed.
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	reg.HoldLimit = math.MaxInt
	srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.BreakCommit)
		w.WriteHeader(http.StatusCreated)
		if _, err := w.(io.ReaderFrom).ReadFrom(strings.NewReader("a body")); err != nil {
			t.Error(err)
		}
	})))
	if status, body, err := sqlreqtest.Get(t, srv.URL); status != 500 || err != nil {
		t.Errorf("got %d %q %v, want a 500", status, body, err)
	}
}
