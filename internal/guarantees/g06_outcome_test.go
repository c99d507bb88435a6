// G6 One request, one outcome, one transaction for each pool. However many
// middlewares, decorators, mounted applications and keys take part, the outermost
// decides once, for all of them: every registry entered that has a CommitIf may veto,
// and only if none has one the status decides.

package guarantees

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"slices"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// TestG6CommitIf: every registry entered that has one may veto; only if none has, the status decides.
func TestG6CommitIf(t *testing.T) {
	yes := func(int, http.Header) bool { return true }
	no := func(int, http.Header) bool { return false }
	tests := []struct {
		outer, inner func(int, http.Header) bool
		status       int
		want         string
	}{
		{nil, nil, 200, "COMMIT"},
		{nil, nil, 404, "ROLLBACK"},
		{yes, nil, 404, "COMMIT"},
		{nil, yes, 404, "COMMIT"},
		{yes, no, 200, "ROLLBACK"},
		{no, yes, 200, "ROLLBACK"},
		{nil, no, 200, "ROLLBACK"},
		{yes, yes, 500, "COMMIT"},
	}
	for i, test := range tests {
		f := &fakedb.DB{}
		outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
		inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "inner", DB: (&fakedb.DB{}).Open(t)})
		outer.CommitIf, inner.CommitIf = test.outer, test.inner
		o := sqlreqtest.AskGet(outer.Middleware(inner.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
			w.WriteHeader(test.status)
		}))), "/")
		if o.Code != test.status {
			t.Errorf("case %d: got %d, want %d", i, o.Code, test.status)
		}
		f.Check(t, "BEGIN", "INSERT", test.want)
	}
}

// TestG6CommitIfOrder: from the outermost inward, until one says no.
func TestG6CommitIfOrder(t *testing.T) {
	var asked []string
	var h http.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	for _, name := range []string{"d", "c", "b", "a"} {
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
		reg.CommitIf = func(int, http.Header) bool {
			asked = append(asked, name)
			return name != "c"
		}
		h = reg.Middleware(h)
	}
	sqlreqtest.AskGet(h, "/")
	if want := []string{"a", "b", "c"}; !slices.Equal(asked, want) {
		t.Errorf("got %q, want %q", asked, want)
	}
}

// TestG6CommitIfSeesTheResponse: it is asked once, with what would be sent.
func TestG6CommitIfSeesTheResponse(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	asked := 0
	reg.CommitIf = func(status int, h http.Header) bool {
		asked++
		if status != 202 || h.Get("X-A") != "1" || h.Get("X-Late") != "" {
			t.Errorf("got %d %v, want 202 with the header of WriteHeader", status, h)
		}
		return true
	}
	sqlreqtest.AskGet(reg.Middleware(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-A", "1")
		w.WriteHeader(202)
		w.Header().Set("X-Late", "1")
	}))), "/")
	if asked != 1 {
		t.Errorf("asked %d times, want once", asked)
	}
}

// TestG6TwoRegistriesOneOutcome: the databases of outer and inner registry end alike.
func TestG6TwoRegistriesOneOutcome(t *testing.T) {
	for status, want := range map[int]string{200: "COMMIT", 422: "ROLLBACK"} {
		a, b := &fakedb.DB{}, &fakedb.DB{}
		outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: a.Open(t)})
		inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "inner", DB: b.Open(t)})
		h := inner.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			sqlreqtest.Exec(t, r.Context(), "inner", "INSERT")
			w.WriteHeader(status)
		}))
		sqlreqtest.AskGet(outer.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
			h.ServeHTTP(w, r)
			if got := b.Log(); len(got) != 2 {
				t.Errorf("the inner one has ended before the outer: %q", got)
			}
		})), "/")
		a.Check(t, "BEGIN", "INSERT", want)
		b.Check(t, "BEGIN", "INSERT", want)
	}
}

// TestG6PanicRecoveredBetween: a nested application panics, and a handler
// between it and the outermost registry recovers.
func TestG6PanicRecoveredBetween(t *testing.T) {
	recoverer := func(answer int) func(http.Handler) http.Handler {
		return func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer func() {
					if recover() != nil && answer != 0 {
						w.WriteHeader(answer)
					}
				}()
				h.ServeHTTP(w, r)
			})
		}
	}
	kinds := map[string]func(*sqlreq.Registry, http.HandlerFunc) http.Handler{
		"Middleware":  func(reg *sqlreq.Registry, h http.HandlerFunc) http.Handler { return reg.Middleware(h) },
		"HandlerFunc": func(_ *sqlreq.Registry, h http.HandlerFunc) http.Handler { return returning(h) },
		"TxFunc": func(_ *sqlreq.Registry, h http.HandlerFunc) http.Handler {
			return sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, _ *sql.Tx) error { h(w, r); return nil })
		},
		"View": func(_ *sqlreq.Registry, h http.HandlerFunc) http.Handler { return sqlreq.View(getOnly{h}) },
	}
	for name, kind := range kinds {
		for answer, want := range map[int]int{0: 500, 200: 500, 302: 500, 418: 418, 503: 503} {
			f := &fakedb.DB{}
			outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
			inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "inner", DB: (&fakedb.DB{}).Open(t)})
			o := sqlreqtest.AskGet(outer.Middleware(recoverer(answer)(kind(inner, func(w http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
				panic(sqlreqtest.ErrTest)
			}))), "/")
			if o.Code != want || !o.Returned {
				t.Errorf("%s, answered with %d: got %d, want %d", name, answer, o.Code, want)
			}
			f.Check(t, "BEGIN", "INSERT", "ROLLBACK")
		}
	}
}

type getOnly struct{ h http.HandlerFunc }

func (g getOnly) Get(w http.ResponseWriter, r *http.Request) { g.h(w, r) }

func returning(h http.HandlerFunc) http.Handler {
	return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { h(w, r); return nil })
}

// TestG6ErrorHandlerOfTheInner: errors of a nested application's handlers are
// rendered by its own ErrorHandler.
func TestG6ErrorHandlerOfTheInner(t *testing.T) {
	name := func(reg *sqlreq.Registry, s string) {
		reg.ErrorHandler = func(w http.ResponseWriter, r *http.Request, err error) {
			fmt.Fprintf(w, "%s %s %s", s, r.URL.Path, sqlreq.Prefix(r.Context()))
		}
	}
	outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "inner", DB: (&fakedb.DB{Step: func(_ context.Context, stmt string) error {
		if stmt == "COMMIT" {
			return sqlreqtest.ErrTest
		}
		return nil
	}}).Open(t)})
	name(outer, "outer")
	name(inner, "inner")
	mux := http.NewServeMux()
	mux.Handle("/in/", inner.Mount("/in", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/returned":
			failing(sqlreqtest.ErrTest).ServeHTTP(w, r)
		case "/fail":
			_ = sqlreq.Fail(r.Context(), sqlreqtest.ErrTest)
		case "/commit":
			sqlreqtest.Exec(t, r.Context(), "inner", "INSERT")
		}
	})))
	mux.Handle("/out", failing(sqlreqtest.ErrTest))
	for target, want := range map[string]string{
		"/in/returned": "inner /returned /in",
		"/in/fail":     "inner /fail /in",
		"/in/commit":   "inner /commit /in",
		"/out":         "outer /out ",
	} {
		if o := sqlreqtest.AskGet(outer.Middleware(mux), target); o.Code != 500 || o.Body.String() != want {
			t.Errorf("%s: got %d %q, want 500 %q", target, o.Code, o.Body, want)
		}
	}
}
