// G1. Complete means committed: a response larger than HoldLimit starts to stream
// with at most HoldLimit bytes in memory.

package guarantees_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
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
