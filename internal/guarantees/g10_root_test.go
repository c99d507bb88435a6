// G10 The writer stays a writer, and the request a request: what works on those of
// net/http works on the ones handed to the handler.

package guarantees

import (
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// The handler's request is a request as any other, also to the runtime.
func TestG10FinalizerOfTheRequest(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		runtime.SetFinalizer(r, func(*http.Request) {}) // throws, if it was not allocated by itself or first in its block
		runtime.SetFinalizer(r, nil)
	})))
	if rec.Code != 200 {
		t.Errorf("got %d", rec.Code)
	}
}

// What was written before does not count for the length of the answer that
// replaces it.
func TestG10ReplacedAnswerIsWhole(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("x", 100))
		w.Header().Set("Content-Length", "5")
		w.WriteHeader(500)
		if n, err := io.WriteString(w, "sorry"); n != 5 || err != nil {
			t.Errorf("wrote %d bytes, %v; want 5", n, err)
		}
	})))
	if code, body, err := sqlreqtest.Get(t, srv.URL); code != 500 || body != "sorry" || err != nil {
		t.Errorf("got %d %q %v, want 500 and the whole answer", code, body, err)
	}
}
