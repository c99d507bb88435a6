// G3. No use, no cost. A request that streams a file without a transaction keeps the
// sendfile path. G1: with a transaction, or one that may yet begin, sendfile carries
// all but the last byte of a response whose length is declared.

package guarantees_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

func TestG3CopyReachesTheConnectionAsAFile(t *testing.T) {
	name := wireFile(t, wireLarge)
	size := int64(len(wireLarge))
	copies := map[string]struct {
		respond func(w http.ResponseWriter, r *http.Request)
		end     int64 // what the underlying ReadFrom must not go beyond; -1: no limit
	}{
		"ServeFile": {func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, name) }, size - 1},
		"Copy": {func(w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge))
			w.WriteHeader(200)
			wireCopyFile(t, w, name)
		}, size - 1},
		"Copy without a status": {func(w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge))
			wireCopyFile(t, w, name)
		}, size - 1},
		"Copy without length": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			wireCopyFile(t, w, name)
		}, -1},
	}
	for name, c := range copies {
		for _, begins := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,transaction=%t", name, begins), func(t *testing.T) {
				under, db := wireRecorder(), sqlreqtest.OpenDB(t)
				wireRegistry(t, false, sqlreq.Binding{DB: db}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if begins {
						_, _ = sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork)
					}
					c.respond(w, r)
				})).ServeHTTP(under, httptest.NewRequest("GET", "/", nil))
				if len(under.sources) != 1 {
					t.Fatalf("the underlying writer got %d readers, want one", len(under.sources))
				}
				src := under.sources[0]
				if l, ok := src.(*io.LimitedReader); ok {
					src = l.R
				}
				if _, ok := src.(interface {
					syscall.Conn
					io.Seeker
				}); !ok || under.ends[0] != c.end {
					t.Errorf("ReadFrom got a %T of a %T up to byte %d, want a file up to %d", under.sources[0], src, under.ends[0], c.end)
				}
				if body := under.Body.String(); body != wireLarge {
					t.Errorf("got %d bytes of the body, want all %d", len(body), len(wireLarge))
				}
				if db.Stats().OpenConnections > 1 || !begins && db.Stats().InUse > 0 {
					t.Errorf("connections were taken: %+v", db.Stats())
				}
			})
		}
	}
}
