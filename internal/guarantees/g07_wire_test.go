// G7. Finished is finished. A Write after the end of the request goes to the
// underlying writer while that is this request's, is an error afterwards, and never
// reaches another request.

package guarantees_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

func TestG7WriteAfterTheEnd(t *testing.T) {
	for _, retry := range []bool{false, true} {
		app := wireRegistry(t, retry, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
		var writers []http.ResponseWriter
		h := app.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			writers = append(writers, w)
			_, _ = io.WriteString(w, "in time ")
		}))
		recs := []*httptest.ResponseRecorder{httptest.NewRecorder(), httptest.NewRecorder()}
		for _, rec := range recs {
			h.ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
		}
		for i, w := range writers {
			fmt.Fprint(w, i)
			_, _ = io.WriteString(w, " late")
			_, _ = io.Copy(w, wireReader{strings.NewReader(" and later")})
		}
		for i, rec := range recs {
			if want := fmt.Sprint("in time ", i, " late and later"); rec.Body.String() != want {
				t.Errorf("retry %t: response %d is %q, want %q", retry, i, rec.Body, want)
			}
		}
	}
}
