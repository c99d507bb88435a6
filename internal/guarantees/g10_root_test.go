// G10 The writer stays a writer, and the request a request: what works on those of
// net/http works on the ones handed to the handler.

package guarantees

import (
	"net/http"
	"runtime"
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
