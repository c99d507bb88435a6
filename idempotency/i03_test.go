package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// failures are ways in which a handler's work is rolled back.
var failures = map[string]http.Handler{
	"400":            handle(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(400) }),
	"500":            handle(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }),
	"error":          sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return errors.New("test") }),
	"Fail":           handle(func(_ http.ResponseWriter, r *http.Request) { sqlreq.Fail(r.Context(), errors.New("test")) }),
	"RollbackOnly":   handle(func(_ http.ResponseWriter, r *http.Request) { sqlreq.RollbackOnly(r.Context(), nil) }),
	"panic":          handle(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }),
	"Goexit":         handle(func(http.ResponseWriter, *http.Request) { runtime.Goexit() }),
	"COMMIT refused": handle(func(_ http.ResponseWriter, r *http.Request) { main.ExecContext(r.Context(), sqlreqtest.BreakCommit) }),
	"307": handle(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	}),
	"308": handle(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/elsewhere", http.StatusPermanentRedirect)
	}),
	"explicit Rollback": handle(func(_ http.ResponseWriter, r *http.Request) { sqlreq.Rollback(r.Context()) }),
	"BeforeCommit": handle(func(_ http.ResponseWriter, r *http.Request) {
		sqlreq.BeforeCommit(r.Context(), func(context.Context) error { return errors.New("test") })
	}),
}

func TestI3NothingInBetween(t *testing.T) {
	for name, fails := range failures {
		t.Run(name, func(t *testing.T) {
			db := open(t)
			bad := true
			good := new(work)
			srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
				if !bad {
					good.ServeHTTP(w, r)
					return
				}
				insertWork(t, r.Context())
				fails.ServeHTTP(w, r)
			}))
			for range 2 {
				if got, err := try(srv.URL, "k", "x"); err == nil && (got.status == 201 || got.replayed) {
					t.Errorf("got %v", got)
				}
			}
			rows(t, db, 0, 0)
			bad = false
			want(t, post(t, srv.URL, "k", "another payload"), "201 order 1")
			rows(t, db, 1, 1)
			sqlreqtest.Idle(t, db)
		})
	}
}

// swallow recovers like a middleware that takes no care.
func swallow(next http.Handler) http.Handler {
	return handle(func(w http.ResponseWriter, r *http.Request) {
		defer func() { _ = recover() }()
		next.ServeHTTP(w, r)
	})
}

func TestI3PanicThatALayerOutsideRecovers(t *testing.T) {
	db := open(t)
	calls := 0
	h := newOnce().Handler(handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		if calls++; calls == 1 {
			panic("test")
		}
		fmt.Fprint(w, "done")
	}))
	srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(swallow(h)))
	if got := post(t, srv.URL, "k", "x"); got.status != 500 {
		t.Errorf("got %v, want a 500", got)
	}
	rows(t, db, 0, 0)
	want(t, post(t, srv.URL, "k", "x"), "200 done")
	rows(t, db, 1, 1)
}

func TestI3CommitIfSaysNo(t *testing.T) {
	db := open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	reg.CommitIf = func(_ int, h http.Header) bool { return h.Get("X-Commit") != "" }
	commit := false
	srv := serve(t, reg, newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		if commit {
			w.Header().Set("X-Commit", "yes")
		}
		w.WriteHeader(422)
		fmt.Fprint(w, "no")
	}))
	want(t, post(t, srv.URL, "k", "x"), "422 no")
	rows(t, db, 0, 0)
	commit = true
	want(t, post(t, srv.URL, "k", "x"), "422 no")
	want(t, post(t, srv.URL, "k", "x"), "422 no (replayed)")
	rows(t, db, 1, 1)
}

func TestI3ClientGone(t *testing.T) {
	db := open(t)
	ctx, leave := context.WithCancel(t.Context())
	gone := false
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		if !gone {
			gone = true
			leave()
			<-r.Context().Done()
		}
		fmt.Fprint(w, "done")
	}))
	req, _ := http.NewRequestWithContext(ctx, "POST", srv.URL, nil)
	req.Header.Set("Idempotency-Key", "k")
	if got, err := send(req); err == nil {
		t.Errorf("got %v, want an error", got)
	}
	want(t, post(t, srv.URL, "k", ""), "200 done")
	rows(t, db, 1, 1)
}

func TestI3RedirectOfWhatWasBegunOutside(t *testing.T) {
	// Inside of a Savepoint nothing can be rolled back as a whole: the request fails.
	db := open(t)
	once := newOnce()
	h := once.Handler(handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	}))
	srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
		_ = sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
			h.ServeHTTP(w, r.WithContext(ctx))
			return nil
		})
	})))
	if got := post(t, srv.URL, "k", "x"); got.status != 500 {
		t.Errorf("got %v, want a 500", got)
	}
	rows(t, db, 0, 0)
}
