package idempotency_test

import (
	"database/sql/driver"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// stored returns the columns of a record as the first request of a key has written them.
func stored(t testing.TB) (status int64, fingerprint, header, body []byte) {
	db := open(t)
	h := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(newOnce().Handler(new(work)))
	if rec := ask(t.Context(), h); rec.Code != 201 {
		t.Fatalf("got %d", rec.Code)
	}
	if err := db.QueryRow("SELECT status, fingerprint, header, body FROM idempotency_keys").Scan(&status, &fingerprint, &header, &body); err != nil {
		t.Fatal(err)
	}
	return status, fingerprint, header, body
}

// FuzzI11Row has a repeat find any row: it is answered with the record, or the request is
// refused or fails; the handler is not called, and nothing is committed.
func FuzzI11Row(f *testing.F) {
	status, fingerprint, header, body := stored(f)
	f.Add(status, fingerprint, header, body)
	f.Add(-status, fingerprint, header, []byte(nil))
	f.Add(int64(0), []byte(nil), []byte(nil), []byte(nil))
	f.Add(status, fingerprint[:10], header, body)
	f.Add(status, fingerprint, header[:len(header)-1], body)
	f.Add(status, append([]byte{1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, fingerprint[10:]...), header, body)
	f.Fuzz(func(t *testing.T, s int64, print, head, content []byte) {
		d := fakedb.DB{
			Affected: func(string) int64 { return 0 },
			Rows:     func(string) [][]driver.Value { return [][]driver.Value{{s, print, head, content}} },
		}
		h := new(work)
		served := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)}).Middleware(newOnce().Handler(h))
		r := httptest.NewRequest("POST", "/", strings.NewReader("x"))
		r.Header.Set("Idempotency-Key", "k")
		rec := httptest.NewRecorder()
		served.ServeHTTP(rec, r)
		whole := s == status && string(print) == string(fingerprint) && string(head) == string(header) && string(content) == string(body)
		switch code := rec.Code; {
		case whole && (code != 201 || rec.Body.String() != "order 1" || rec.Header().Get("Location") != "/orders/1"):
			t.Errorf("the whole record: got %v", rec)
		case s == 0 && code != 409, !whole && s != 0 && code != 500 && code != 410 && code != 422 && rec.Header().Get("Idempotent-Replayed") != "true":
			t.Errorf("got %d %q for the status %d", code, rec.Body, s)
		}
		if h.calls.Load() != 0 || d.Count("COMMIT") != 0 {
			t.Fatalf("%d calls of the handler, %d COMMITs", h.calls.Load(), d.Count("COMMIT"))
		}
		if c := d.Counts(); c.Open != 0 || c.Dirty != 0 {
			t.Fatalf("got %+v", c)
		}
	})
}
