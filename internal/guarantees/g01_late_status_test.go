// G1. A status of 400 or more set while a response below 400 streams cannot be sent
// any more, and is never part of a good response: the request has failed, whatever
// the size of the page. From then on an explicit Commit is refused; at the end
// everything is rolled back and the response aborted. Where no transaction was begun
// at all, the response is as net/http would make it.

package guarantees_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// lateRecoverer answers a panic with 500, as those of chi, gorilla and others do.
func lateRecoverer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if recover() != nil {
				w.WriteHeader(500)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// lateOnce keeps the second request of wireRaw from h.
func lateOnce(h http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/{$}", h)
	return mux
}

// TestG1LateStatus: the size of the page before the failure makes no difference.
func TestG1LateStatus(t *testing.T) {
	fails := map[string]http.Handler{
		"http.Error": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "half-way", 500) }),
		"404":        http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }),
		"recoverer": lateRecoverer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			panic("half-way")
		})),
	}
	wireEach(t, func(t *testing.T, p wireProtocol) {
		for name, fail := range fails {
			for _, page := range []string{wireSmall, wireLarge} {
				t.Run(fmt.Sprintf("%s after %d", name, len(page)), func(t *testing.T) {
					db := sqlreqtest.OpenDB(t)
					reg := wireRegistry(t, true, sqlreq.Binding{DB: db})
					var rec sqlreqtest.Recorder
					rec.Watch(reg)
					ask := p.start(t, lateOnce(wireRecover(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
						rec.Hooks(t, r.Context(), sqlreqtest.Main, "")
						_, _ = io.WriteString(w, page)
						fail.ServeHTTP(w, r)
					})))))
					got := ask("GET", "/")
					if got.err == nil && got.status < 400 {
						t.Errorf("got %v, want no complete success", got)
					}
					wireIdle(t, db)
					if n := sqlreqtest.Count(t, db, "work"); n != 0 || rec.Events() != "main RolledBack 1" || rec.Words() != "rollback" {
						t.Errorf("got %d rows, events %q, hooks %q; want a rollback", n, rec.Events(), rec.Words())
					}
					if logs := rec.Records(); page == wireLarge && (len(logs) != 1 || logs[0]["level"] != "ERROR" || !strings.Contains(logs[0]["err"], "had begun to stream with status 200")) {
						t.Errorf("got the log %v, want one error that says what happened", logs)
					}
				})
			}
		}
	})
}

// lateStream streams and sets a status of 500.
func lateStream(w http.ResponseWriter) {
	_, _ = io.WriteString(w, wireLarge)
	w.WriteHeader(500)
}

// TestG1LateStatusOfNoTransaction: as from net/http, but a failure fails.
func TestG1LateStatusOfNoTransaction(t *testing.T) {
	tests := map[string]struct {
		then func(w http.ResponseWriter, r *http.Request) error
		ok   bool
	}{
		"nothing": {func(http.ResponseWriter, *http.Request) error { return nil }, true},
		"Commit":  {func(_ http.ResponseWriter, r *http.Request) error { return sqlreq.Commit(r.Context()) }, true},
		"error":   {func(http.ResponseWriter, *http.Request) error { return sqlreqtest.ErrTest }, false},
		"work": {func(_ http.ResponseWriter, r *http.Request) error {
			_, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork)
			return err
		}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := wireRegistry(t, false, sqlreq.Binding{DB: db})
			var rec sqlreqtest.Recorder
			rec.Watch(reg)
			ask := wireHTTP11.start(t, lateOnce(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				rec.Hooks(t, r.Context(), sqlreqtest.Main, "")
				lateStream(w)
				return test.then(w, r)
			}))))
			got := ask("GET", "/")
			if complete := got.err == nil && got.status == 200 && got.body == wireLarge; complete != test.ok {
				t.Errorf("got %v, want complete %v", got, test.ok)
			}
			if n := sqlreqtest.Count(t, db, "work"); n != 0 || rec.Words() != "rollback" {
				t.Errorf("got %d rows, hooks %q; want none, and a rollback", n, rec.Words())
			}
			if logs := rec.Records(); name == "error" && (len(logs) != 1 || logs[0]["err"] != "test") {
				t.Errorf("got the log %v, want the error of the handler", logs)
			}
		})
	}
}

// TestG1LateStatusRefusesCommit: what was committed before stays, nothing more does.
func TestG1LateStatusRefusesCommit(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := wireRegistry(t, false, sqlreq.Binding{DB: db})
	ask := wireHTTP11.start(t, lateOnce(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "before")
		if err := sqlreq.Commit(r.Context()); err != nil {
			t.Errorf("Commit before: %v", err)
		}
		lateStream(w)
		sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "after")
		if err := sqlreq.Commit(r.Context()); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("Commit after: got %v, want that it is refused", err)
		}
		if _, _, err := http.NewResponseController(w).Hijack(); err == nil {
			t.Error("Hijack of a request that has failed: no error")
		}
	}))))
	if got := ask("GET", "/"); got.err == nil {
		t.Errorf("got %v, want a broken transfer", got)
	}
	if notes := sqlreqtest.Notes(t, db); notes != "before" {
		t.Errorf("got the notes %q, want before", notes)
	}
}

// TestG1LateStatusAndRollbackOnly: the first of them counts.
func TestG1LateStatusAndRollbackOnly(t *testing.T) {
	for _, rollbackFirst := range []bool{false, true} {
		db := sqlreqtest.OpenDB(t)
		reg := wireRegistry(t, false, sqlreq.Binding{DB: db})
		ask := wireHTTP11.start(t, lateOnce(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			steps := []func(){func() { lateStream(w) }, func() { _ = sqlreq.RollbackOnly(r.Context(), sqlreqtest.ErrTest) }}
			if rollbackFirst {
				steps[0], steps[1] = steps[1], steps[0]
			}
			steps[0]()
			steps[1]()
		}))))
		if got := ask("GET", "/"); (got.err == nil) != rollbackFirst {
			t.Errorf("RollbackOnly first %v: got %v", rollbackFirst, got)
		}
		if n := sqlreqtest.Count(t, db, "work"); n != 0 {
			t.Errorf("RollbackOnly first %v: %d rows stayed", rollbackFirst, n)
		}
	}
}

// TestG1StatusOfALateGoroutine: what comes when the handler has returned decides nothing.
func TestG1StatusOfALateGoroutine(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := wireRegistry(t, false, sqlreq.Binding{DB: db})
	var late http.ResponseWriter
	ask := wireHTTP11.start(t, lateOnce(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		late = w
		err := sqlreq.BeforeCommit(r.Context(), func(context.Context) error { late.WriteHeader(500); return nil })
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		_, werr := io.WriteString(w, wireLarge)
		if err := errors.Join(err, werr); err != nil {
			t.Error(err)
		}
	}))))
	if got := ask("GET", "/"); got.err != nil || got.body != wireLarge || sqlreqtest.Count(t, db, "work") != 1 {
		t.Errorf("got %v and %d rows, want the page and its row", got, sqlreqtest.Count(t, db, "work"))
	}
}
