// G1 Complete means committed. No client ever receives a complete success response
// for work that should have been committed and was not. A response up to HoldLimit
// is held until COMMIT has succeeded; if COMMIT fails, the client gets an error
// response instead: none of the handler's headers or body. A larger one starts to
// stream with at most HoldLimit bytes in memory and cannot complete before COMMIT:
// if COMMIT then fails, or the handler fails, the connection is aborted, so that the
// client sees a broken transfer, never a short success. This holds with a declared
// Content-Length (the last byte is kept back), with chunking, with HTTP/2, for HEAD,
// 204 and 304, and after Flush. A Transfer-Encoding set by the handler is removed.
// Once COMMIT was attempted and failed, all this applies whatever status the
// handler chose. A rollback that the program asked for is no failure: the
// handler's response stands.

package guarantees

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// G1 on every protocol and in every way of answering is the matter of the files g01_wire_*_test.go.
func TestG1FailedCommitIsNoSuccess(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.BreakCommit); err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Secret", "1")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, "created")
	})))
	res, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if res.StatusCode != 500 || string(body) != "Internal Server Error\n" || err != nil || res.Header.Get("X-Secret") != "" {
		t.Errorf("got %d %q %v %v, want a bare 500", res.StatusCode, body, err, res.Header)
	}
	if n := sqlreqtest.Count(t, db, "child"); n != 0 {
		t.Errorf("%d rows stayed", n)
	}
	if n := db.Stats().InUse; n != 0 {
		t.Errorf("%d connections in use", n)
	}
}

// Nobody knows whether a COMMIT that panicked has worked: no success, whatever the
// handler answers, no hook of either kind, and no second attempt.
func TestG1CommitPanicsAndTheHandlerRecovers(t *testing.T) {
	for _, status := range []int{201, 404} {
		d := &fakedb.DB{Commit: func() error { panic("driver") }}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
		reg.Retry = sqlreq.Retry{Attempts: 3, Within: time.Hour, Backoff: sqlreqtest.NoBackoff, Retryable: func(error) bool { return true }}
		var got *sqlreq.CommitError
		var log sqlreqtest.Recorder
		reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
			errors.As(err, &got)
			w.WriteHeader(sqlreq.StatusCode(err))
		}
		rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
			log.Hooks(t, r.Context(), sqlreqtest.Main, "")
			sqlreqtest.Panicked(func() { _ = sqlreq.Commit(r.Context()) })
			w.WriteHeader(status)
		})))
		if log.Words() != "" {
			t.Errorf("%d: hooks ran: %s", status, log.Words())
		}
		if rec.Code < 500 || got == nil || !got.Ambiguous {
			t.Errorf("%d: got %d and %v, want a CommitError of unknown outcome", status, rec.Code, got)
		}
		d.CheckLog(t, "BEGIN", "INSERT", "COMMIT")
	}
}

// net/http sends such fields as they are, and an HTTP/1.0 client would have all
// of the response before COMMIT has failed.
func TestG1FramingUnderOtherSpellings(t *testing.T) {
	large := strings.Repeat("x", 100<<10)
	fields := []struct{ name, value string }{
		{"content-length", strconv.Itoa(len(large))},
		{"CONTENT-LENGTH", strconv.Itoa(len(large))},
		{"Content-Length", fmt.Sprintf("%8d", len(large))},
		{"transfer-encoding", "identity"},
		{"TRANSFER-ENCODING", "identity"},
	}
	for _, field := range fields {
		for _, version := range []string{"1.0", "1.1"} {
			for _, statement := range []string{sqlreqtest.InsertWork, sqlreqtest.BreakCommit} {
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
				srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, statement)
					w.Header()[field.name] = []string{field.value}
					_, _ = io.WriteString(w, large)
					w.(http.Flusher).Flush()
				})))
				head, status, size, err := sqlreqtest.Raw(t, srv, version)
				if lower := strings.ToLower(head); strings.Contains(lower, "content-length") || strings.Contains(lower, "identity") {
					t.Errorf("%q, HTTP/%s: the field was sent: %s", field, version, head)
				}
				complete := status == 200 && size == len(large) && err == nil
				if want := statement == sqlreqtest.InsertWork; complete != want {
					t.Errorf("%q, HTTP/%s, %s: got %d with %d bytes and %v, want a complete response: %t", field, version, statement, status, size, err, want)
				}
			}
		}
	}
}

// http.TimeoutHandler keeps the response, offers no way to the connection, and
// would send all of it when the panic does not reach it.
func TestG1TimeoutHandlerAroundARecover(t *testing.T) {
	large := strings.Repeat("x", 256<<10)
	recovering := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() { _ = recover() }()
			next.ServeHTTP(w, r)
		})
	}
	for _, length := range []string{"", strconv.Itoa(len(large))} {
		for _, version := range []string{"1.0", "1.1"} {
			for _, statement := range []string{sqlreqtest.InsertWork, sqlreqtest.BreakCommit} {
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
				h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, statement)
					if length != "" {
						w.Header().Set("Content-Length", length)
					}
					_, _ = io.WriteString(w, large)
				}))
				srv := sqlreqtest.Serve(t, http.TimeoutHandler(recovering(h), time.Hour, ""))
				_, status, size, err := sqlreqtest.Raw(t, srv, version)
				complete := status == 200 && err == nil
				if want := statement == sqlreqtest.InsertWork; complete != want || want && size != len(large) {
					t.Errorf("HTTP/%s, length %q, %s: got %d with %d bytes and %v, want a complete response: %t", version, length, statement, status, size, err, want)
				}
			}
		}
	}
}
