// G6 One request, one outcome, one transaction for each pool. Keys are looked up in
// the innermost application first, then outward; a key bound in the inner registry
// hides the outer's, also if it is not opened here (ErrUnknownKey, never the wrong
// database). Route chooses the pool once for a request and key.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// TestG6Keys shows which keys a handler sees, and that a key is never looked up
// in the wrong database.
func TestG6Keys(t *testing.T) {
	dbs := map[string]*sql.DB{}
	open := func(name string) *sql.DB { dbs[name] = (&fakedb.DB{}).Open(t); return dbs[name] }
	a := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: open("a.main")}, sqlreq.Binding{Key: "shared", DB: open("a.shared")},
		sqlreq.Binding{Key: "demand", DB: open("a.demand"), OnDemand: true}, sqlreq.Binding{Key: "a", DB: open("a.a")})
	b := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "shared", DB: open("b.shared")},
		sqlreq.Binding{DB: open("b.main"), OnDemand: true}, sqlreq.Binding{Key: "b", DB: open("b.b")})
	type wrap = func(http.Handler) http.Handler
	chain := func(ws ...wrap) wrap {
		return func(h http.Handler) http.Handler {
			for _, w := range slices.Backward(ws) {
				h = w(h)
			}
			return h
		}
	}
	strip := func(h http.Handler) http.Handler { return http.StripPrefix("/x", h) }
	tests := []struct {
		name string
		wrap wrap
		want map[sqlreq.Key]string // "" means ErrUnknownKey
	}{
		{"Middleware", a.Middleware, map[sqlreq.Key]string{sqlreqtest.Main: "a.main", "shared": "a.shared", "demand": "", "a": "a.a", "b": "", "": ""}},
		{"Middleware twice", chain(a.Middleware, a.Middleware), map[sqlreq.Key]string{sqlreqtest.Main: "a.main", "demand": "", "a": "a.a"}},
		{"With alone", a.With("demand"), map[sqlreq.Key]string{sqlreqtest.Main: "", "shared": "", "demand": "a.demand"}},
		{"With of nothing", a.With(), map[sqlreq.Key]string{sqlreqtest.Main: "", "demand": ""}},
		{"With inside Middleware", chain(a.Middleware, a.With("demand")), map[sqlreq.Key]string{sqlreqtest.Main: "a.main", "demand": "a.demand"}},
		{"Middleware inside With", chain(a.With("demand"), a.Middleware), map[sqlreq.Key]string{sqlreqtest.Main: "a.main", "demand": "a.demand"}},
		{"With in With", chain(a.With("demand"), a.With("a")), map[sqlreq.Key]string{sqlreqtest.Main: "", "demand": "a.demand", "a": "a.a"}},
		{"nested", chain(a.Middleware, b.Middleware), map[sqlreq.Key]string{sqlreqtest.Main: "", "shared": "b.shared", "a": "a.a", "b": "b.b", "demand": ""}},
		{"nested, opened", chain(a.Middleware, b.Middleware, b.With(sqlreqtest.Main)), map[sqlreq.Key]string{sqlreqtest.Main: "b.main", "a": "a.a", "demand": ""}},
		{"nested by With", chain(a.Middleware, b.With("b")), map[sqlreq.Key]string{sqlreqtest.Main: "", "shared": "", "a": "a.a", "b": "b.b"}},
		{"nested the other way", chain(b.Middleware, a.Middleware), map[sqlreq.Key]string{sqlreqtest.Main: "a.main", "shared": "a.shared", "b": "b.b"}},
		{"nested OnDemand outside", chain(a.With("demand"), b.Middleware), map[sqlreq.Key]string{"demand": "a.demand", "a": ""}},
		{"back in the outer, stripped", chain(a.Middleware, b.Middleware, strip, a.Middleware), map[sqlreq.Key]string{sqlreqtest.Main: "a.main", "shared": "a.shared", "b": "b.b"}},
		{"back in the outer", chain(a.Middleware, b.Middleware, a.Middleware), map[sqlreq.Key]string{sqlreqtest.Main: "a.main", "shared": "a.shared", "b": "b.b"}},
		{"back in the outer by With", chain(a.Middleware, b.Middleware, a.With(sqlreqtest.Main)), map[sqlreq.Key]string{sqlreqtest.Main: "a.main", "b": "b.b"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ran := false
			sqlreqtest.AskGet(test.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ran = true
				for k, want := range test.want {
					db, err := k.DB(r.Context())
					if want == "" {
						if !errors.Is(err, sqlreq.ErrUnknownKey) || !strings.Contains(err.Error(), fmt.Sprintf("%q", k)) && k != "" {
							t.Errorf("key %q: got %v, want ErrUnknownKey with the key", k, err)
						}
						continue
					}
					if err != nil || db != dbs[want] {
						t.Errorf("key %q: got another database than %s, or %v", k, want, err)
					}
				}
			})), "/x/")
			if !ran {
				t.Error("the handler did not run")
			}
		})
	}
}

func TestG6UnknownKeySaysWhatToDo(t *testing.T) {
	db := (&fakedb.DB{}).Open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "reports", DB: db, OnDemand: true}, sqlreq.Binding{Key: "other", DB: db})
	h := reg.With("other")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for k, parts := range map[sqlreq.Key][]string{
			"reports":       {`"reports"`, "OnDemand", `With("reports")`, `"other"`},
			sqlreqtest.Main: {`"main"`, "With", `"other"`},
			"mian":          {`"mian"`, "not bound", `"other"`},
			"":              {"empty", "DefaultKey", `"other"`},
		} {
			_, err := k.Tx(r.Context())
			for _, part := range parts {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("key %q: got %v, want it to contain %q", k, err, part)
				}
			}
			if scanned := k.QueryRowContext(r.Context(), "SELECT").Scan(); !errors.Is(scanned, sqlreq.ErrUnknownKey) {
				t.Errorf("key %q: Scan got %v, want ErrUnknownKey", k, scanned)
			}
		}
	}))
	sqlreqtest.AskGet(h, "/")
}

type routeContextKey struct{}

// TestG6Route: it is asked once for a request and key, with the context that asked
// and the request, may use other keys, and what it gives is remembered.
func TestG6Route(t *testing.T) {
	directory, tenant := &fakedb.DB{}, &fakedb.DB{}
	tenantDB := tenant.Open(t)
	var routed, opted atomic.Int32
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: directory.Open(t)}, sqlreq.Binding{
		Key: "tenant",
		Route: func(ctx context.Context, r *http.Request) (*sql.DB, error) {
			routed.Add(1)
			var n int
			if err := sqlreqtest.Main.QueryRowContext(ctx, "SELECT").Scan(&n); err != nil {
				return nil, err
			}
			if ctx.Value(routeContextKey{}) != "asked" || r == nil || r.URL.Path != "/x" {
				t.Errorf("Route: got %v, %v", ctx.Value(routeContextKey{}), r)
			}
			return tenantDB, nil
		},
		TxOptions: func(ctx context.Context, r *http.Request) *sql.TxOptions {
			opted.Add(1)
			var n int
			if err := sqlreqtest.Main.QueryRowContext(ctx, "SELECT").Scan(&n); err != nil {
				t.Error(err)
			}
			return &sql.TxOptions{Isolation: sql.LevelSerializable}
		},
	})
	o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := context.WithValue(r.Context(), routeContextKey{}, "asked")
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { sqlreqtest.Exec(t, ctx, "tenant", "INSERT") })
		}
		all.Wait()
		if db, err := sqlreq.Key("tenant").DB(ctx); db != tenantDB || err != nil {
			t.Errorf("DB: got %p, %v", db, err)
		}
		if err := sqlreq.Key("tenant").Commit(ctx); err != nil {
			t.Error(err)
		}
		sqlreqtest.Exec(t, ctx, "tenant", "INSERT")
	})), "/x")
	if o.Code != 200 || routed.Load() != 1 || opted.Load() != 1 {
		t.Errorf("got %d, Route asked %d times, TxOptions %d times, want 200, 1, 1", o.Code, routed.Load(), opted.Load())
	}
	directory.Check(t, "BEGIN", "SELECT", "SELECT", "COMMIT")
	if got := tenant.Log(); got[0] != "BEGIN Serializable" || len(got) != 25 {
		t.Errorf("got %q", got)
	}
	tenant.CheckClean(t)
}

// TestG6RouteIsGivenTheRequestThatAsks: not that of the first handler that had
// anything to do with the key.
func TestG6RouteIsGivenTheRequestThatAsks(t *testing.T) {
	db := (&fakedb.DB{}).Open(t)
	var paths []string
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{
		Route: func(_ context.Context, r *http.Request) (*sql.DB, error) {
			paths = append(paths, "Route "+r.URL.Path)
			return db, nil
		},
		TxOptions: func(_ context.Context, r *http.Request) *sql.TxOptions {
			paths = append(paths, "TxOptions "+r.URL.Path)
			return nil
		},
	})
	inner := http.StripPrefix("/a", reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
	})))
	sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := sqlreq.AfterCommit(r.Context(), func(context.Context) {}); err != nil {
			t.Error(err)
		}
		inner.ServeHTTP(w, r)
	})), "/a/b")
	if want := []string{"Route /b", "TxOptions /b"}; !slices.Equal(paths, want) {
		t.Errorf("got %q, want %q", paths, want)
	}
}

func TestG6RouteFails(t *testing.T) {
	asked := 0
	tests := []struct {
		name  string
		route func() (*sql.DB, error)
		code  int
		text  string
	}{
		{"error", func() (*sql.DB, error) { return nil, sqlreqtest.ErrTest }, 500, "test"},
		{"status", func() (*sql.DB, error) { return nil, sqlreq.Errorf(404, "no such tenant") }, 404, "no such tenant"},
		{"nil", func() (*sql.DB, error) { return nil, nil }, 500, "Route"},
	}
	for _, test := range tests {
		asked = 0
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "tenant", Route: func(context.Context, *http.Request) (*sql.DB, error) {
			asked++
			return test.route()
		}})
		o := sqlreqtest.AskGet(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			_, first := sqlreq.Key("tenant").DB(r.Context())
			_, err := sqlreq.Key("tenant").Tx(r.Context())
			if first == nil || err == nil || !strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), `"tenant"`) {
				t.Errorf("%s: got %v and %v, want an error with %q and the key", test.name, first, err, test.text)
			}
			return err
		})), "/")
		if o.Code != test.code || asked != 1 {
			t.Errorf("%s: got %d, asked %d times, want %d, once", test.name, o.Code, asked, test.code)
		}
	}
}

// TestG6RouteIsAskedAgain: what failed because the asker's context ended is no answer.
func TestG6RouteIsAskedAgain(t *testing.T) {
	f := &fakedb.DB{}
	db := f.Open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Route: func(ctx context.Context, _ *http.Request) (*sql.DB, error) { return db, ctx.Err() }})
	o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		if _, err := sqlreq.Tx(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
	})), "/")
	if o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	f.Check(t, "BEGIN", "INSERT", "COMMIT")
}
