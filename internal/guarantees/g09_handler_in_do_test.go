// G9 A HandlerFunc that runs in a Do, which has committed, asks nobody to try again.

package guarantees

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

func TestG9HandlerFuncInDoThatHasCommitted(t *testing.T) {
	const other sqlreq.Key = "other"
	for _, commits := range []bool{false, true} {
		a, b := &fakedb.DB{}, &fakedb.DB{Begin: func(context.Context) error { return io.ErrUnexpectedEOF }}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: a.Open(t)}, sqlreq.Binding{Key: other, DB: b.Open(t)})
		rec := httptest.NewRecorder()
		h := sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
			if commits {
				if err := sqlreq.Commit(r.Context()); err != nil {
					t.Error(err)
				}
			}
			_, err := other.ExecContext(r.Context(), "INSERT")
			return err
		})
		_ = reg.Do(t.Context(), func(ctx context.Context) error {
			h.ServeHTTP(rec, httptest.NewRequestWithContext(ctx, "POST", "/", nil))
			return nil
		})
		code, again := 503, "1"
		if commits {
			code, again = 500, ""
		}
		if got := rec.Header().Get("Retry-After"); rec.Code != code || got != again {
			t.Errorf("committed %v: answered %d, Retry-After %q; want %d, %q", commits, rec.Code, got, code, again)
		}
	}
}
