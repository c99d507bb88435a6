package idempotency_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

func TestI11NoKeyNoHandler(t *testing.T) {
	db := sqlreqtest.OpenDB(t) // without the table
	var rec sqlreqtest.Recorder
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec.Watch(reg)
	h := new(work)
	srv := serve(t, reg, newOnce(), h)
	if got := post(t, srv.URL, "k", "x"); got.status != 500 || got.header.Get("Retry-After") != "" {
		t.Errorf("got %v, want a 500", got)
	}
	records := rec.Records()
	if len(records) != 1 || !strings.Contains(records[0]["err"], "idempotency_keys") {
		t.Errorf("got the log %v, want one line that names the table", records)
	}
	if h.calls.Load() != 0 {
		t.Error("the handler ran")
	}
}

func TestI11NoRegistry(t *testing.T) {
	h := new(work)
	srv := sqlreqtest.Serve(t, newOnce().Handler(h))
	if got := post(t, srv.URL, "k", "x"); got.status != 500 || h.calls.Load() != 0 {
		t.Errorf("got %v and %d calls, want a 500 and none", got, h.calls.Load())
	}
	if got := post(t, srv.URL, "a b", "x"); got.status != 400 {
		t.Errorf("got %v, want a 400", got)
	}
}

func TestI11UnknownDatabase(t *testing.T) {
	h := new(work)
	once := newOnce()
	once.Database = "other"
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: open(t)}), once, h)
	if got := post(t, srv.URL, "k", "x"); got.status != 500 || h.calls.Load() != 0 {
		t.Errorf("got %v and %d calls, want a 500 and none", got, h.calls.Load())
	}
}

// failing makes the statements fail that begin with a text.
func failing(d *fakedb.DB, begin string) {
	d.Change(func(d *fakedb.DB) {
		d.Stmt = func(_ context.Context, q string) error {
			if strings.HasPrefix(q, begin) {
				return errors.New("refused")
			}
			return nil
		}
	})
}

func TestI11NoRecordNoCommit(t *testing.T) {
	var d fakedb.DB
	db := withTable(t, sqlreqtest.OpenFaulty(t, &d))
	failing(&d, "UPDATE")
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), new(work))
	if got := post(t, srv.URL, "k", "x"); got.status != 500 {
		t.Errorf("got %v, want a 500", got)
	}
	rows(t, db, 0, 0)
	d.Change(func(d *fakedb.DB) { d.Stmt = nil })
	want(t, post(t, srv.URL, "k", "x"), "201 order 2")
}

func TestI11TheRowHasGone(t *testing.T) {
	db := open(t)
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		sqlreqtest.Exec(t, r.Context(), main, "DELETE FROM idempotency_keys")
	}))
	if got := post(t, srv.URL, "k", "x"); got.status != 500 {
		t.Errorf("got %v, want a 500", got)
	}
	rows(t, db, 0, 0)
}

func TestI11ReadOnly(t *testing.T) {
	// SQLite's drivers ignore ReadOnly: work and record are dropped together.
	db := open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnly)})
	srv := serve(t, reg, newOnce(), new(work))
	want(t, post(t, srv.URL, "k", "x"), "201 order 1")
	rows(t, db, 0, 0)

	// A server that refuses the INSERT.
	var d fakedb.DB
	refusing := d.Open(t)
	failing(&d, "INSERT INTO idempotency_keys")
	h := new(work)
	srv = serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: refusing, TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnly)}), newOnce(), h)
	if got := post(t, srv.URL, "k", "x"); got.status != 500 || h.calls.Load() != 0 {
		t.Errorf("got %v and %d calls, want a 500 and none", got, h.calls.Load())
	}
}

func TestI11DamagedRow(t *testing.T) {
	for _, damage := range []string{
		"status = 99", "status = 200", "status = 20100", "status = -201",
		"fingerprint = NULL", "fingerprint = x'00'", "fingerprint = zeroblob(42)",
		"header = NULL", "header = x''", "header = x'01'", "header = x'010000000000'", "header = header || x'01'", "header = substr(header, 1, length(header) - 1)",
		"body = NULL", "body = 'order 2'", "body = body || 'x'",
	} {
		t.Run(damage, func(t *testing.T) {
			db := open(t)
			h := new(work)
			srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), h)
			want(t, post(t, srv.URL, "k", "x"), "201 order 1")
			if _, err := db.Exec("UPDATE idempotency_keys SET " + damage); err != nil {
				t.Fatal(err)
			}
			if got := post(t, srv.URL, "k", "x"); got.status != 500 || got.header.Get("Location") != "" {
				t.Errorf("got %v, want a 500", got)
			}
			if h.calls.Load() != 1 {
				t.Error("the handler ran again")
			}
			rows(t, db, 1, 1)
		})
	}
}

// steps serves requests with the key k, whose handlers are the steps, and returns what
// they got.
func steps(t *testing.T, db *sql.DB, requests ...func(w http.ResponseWriter, r *http.Request)) (got []string) {
	t.Helper()
	n := 0
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), handle(func(w http.ResponseWriter, r *http.Request) { requests[n](w, r) }))
	for n = range requests {
		r := post(t, srv.URL, "k", "x")
		s := fmt.Sprint(r.status)
		if r.replayed {
			s += " replayed"
		}
		if r.header.Get("Retry-After") != "" {
			s += " later"
		}
		got = append(got, s)
	}
	return got
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func TestI12ExplicitEnds(t *testing.T) {
	work := func(w http.ResponseWriter, r *http.Request) { insertWork(t, r.Context()) }
	commit := func(w http.ResponseWriter, r *http.Request) { must(t, sqlreq.Commit(r.Context())) }
	rollback := func(w http.ResponseWriter, r *http.Request) { must(t, sqlreq.Rollback(r.Context())) }
	fail := func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }
	stolen := func(w http.ResponseWriter, r *http.Request) {
		must(t, sqlreq.Rollback(r.Context()))
		db, _ := sqlreq.DB(r.Context())
		if _, err := db.Exec("INSERT INTO idempotency_keys (scope, idempotency_key, created_at) VALUES ('', 'k', 0)"); err != nil {
			t.Error(err)
		}
	}
	refusedCommit := func(w http.ResponseWriter, r *http.Request) {
		if err := sqlreq.Commit(r.Context()); err == nil {
			t.Error("the Commit went well")
		}
	}
	all := func(fs ...func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			for _, f := range fs {
				f(w, r)
			}
		}
	}
	for name, c := range map[string]struct {
		first         func(http.ResponseWriter, *http.Request)
		want          string // of the first request, and of its repeat with a handler that works
		work, records int    // after both
	}{
		"Commit":                                 {all(work, commit), "200, 200 replayed", 1, 1},
		"Commit, work":                           {all(work, commit, work), "200, 200 replayed", 2, 1},
		"Commit twice":                           {all(work, commit, work, commit), "200, 200 replayed", 2, 1},
		"Commit, a failure":                      {all(work, commit, fail), "500, 409 later", 1, 1},
		"Commit, work, a failure":                {all(work, commit, work, fail), "500, 409 later", 1, 1},
		"Commit, work, Rollback":                 {all(work, commit, work, rollback), "200, 200 replayed", 1, 1},
		"Rollback":                               {all(work, rollback), "200, 200", 1, 1},
		"Rollback, work":                         {all(work, rollback, work), "200, 200 replayed", 1, 1},
		"Rollback twice, work":                   {all(work, rollback, work, rollback, work), "200, 200 replayed", 1, 1},
		"Rollback, work, Commit":                 {all(work, rollback, work, commit), "200, 200 replayed", 1, 1},
		"Rollback, work, Commit, a failure":      {all(work, rollback, work, commit, fail), "500, 409 later", 1, 1},
		"Rollback, work, a failure":              {all(work, rollback, work, fail), "500, 200", 1, 1},
		"Rollback, work, Commit, work, Rollback": {all(work, rollback, work, commit, work, rollback), "200, 200 replayed", 1, 1},
		"somebody quicker":                       {all(stolen, work), "409 later, 409 later", 0, 1},
		"somebody quicker, Commit":               {all(stolen, work, refusedCommit), "409 later, 409 later", 0, 1},
		"Rollback, nothing, nothing is there":    {rollback, "200, 200", 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			db := open(t)
			got := strings.Join(steps(t, db, c.first, work), ", ")
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			rows(t, db, c.work, c.records)
			sqlreqtest.Idle(t, db)
		})
	}
}

func TestI12BeginTxBehindHandler(t *testing.T) {
	db := open(t)
	steps(t, db, func(w http.ResponseWriter, r *http.Request) {
		if _, err := sqlreq.BeginTx(r.Context(), nil); !errors.Is(err, sqlreq.ErrBegun) {
			t.Errorf("got %v, want ErrBegun", err)
		}
	})
}

func TestI12SavepointInside(t *testing.T) {
	db := open(t)
	h := func(w http.ResponseWriter, r *http.Request) {
		_ = sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
			insertWork(t, ctx)
			return errors.New("back")
		})
		must(t, sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
			insertWork(t, ctx)
			return nil
		}))
	}
	if got := steps(t, db, h, h); strings.Join(got, ", ") != "200, 200 replayed" {
		t.Errorf("got %q", got)
	}
	rows(t, db, 1, 1)
}

func TestI12SavepointOutside(t *testing.T) {
	for _, keep := range []bool{true, false} {
		t.Run(fmt.Sprint("keep=", keep), func(t *testing.T) {
			db := open(t)
			once := newOnce().Handler(new(work))
			srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
				insertWork(t, r.Context())
				_ = sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
					once.ServeHTTP(w, r.WithContext(ctx))
					if keep {
						return nil
					}
					return errors.New("back")
				})
			})))
			want(t, post(t, srv.URL, "k", "x"), "201 order 1")
			got := post(t, srv.URL, "k", "x")
			if keep {
				want(t, got, "201 order 1 (replayed)")
				rows(t, db, 3, 1)
			} else {
				want(t, got, "201 order 2")
				rows(t, db, 2, 0)
			}
		})
	}
}

func TestI12GuardAndTimeoutHandler(t *testing.T) {
	db := open(t)
	h := http.TimeoutHandler(newOnce().Handler(new(work)), 1<<40, "")
	srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, Guard: true}).Middleware(h))
	want(t, post(t, srv.URL, "k", "x"), "201 order 1")
	want(t, post(t, srv.URL, "k", "x"), "201 order 1 (replayed)")
	rows(t, db, 1, 1)
}

func TestI12BindingTx(t *testing.T) {
	db := open(t)
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	h := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: tx}).Middleware(newOnce().Handler(new(work)))
	for i, want := range []string{"", "true"} {
		if rec := ask(t.Context(), h); rec.Code != 201 || rec.Body.String() != "order 1" || rec.Header().Get("Idempotent-Replayed") != want {
			t.Errorf("%d: got %v", i, rec)
		}
	}
	must(t, tx.Rollback())
	rows(t, db, 0, 0)
}

func TestI12NestedApplications(t *testing.T) {
	for name, keys := range map[string][2]sqlreq.Key{"of the same key": {"main", "main"}, "of the parent's key": {"main", "child"}} {
		t.Run(name, func(t *testing.T) {
			outer, inner := open(t), open(t)
			parent := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: keys[0], DB: outer})
			child := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: keys[1], DB: inner})
			mux := http.NewServeMux()
			mux.Handle("/child/", child.Mount("/child", newOnce().Handler(new(work))))
			srv := sqlreqtest.Serve(t, parent.Middleware(mux))
			want(t, post(t, srv.URL+"/child/a", "k", "x"), "201 order 1")
			want(t, post(t, srv.URL+"/child/a", "k", "x"), "201 order 1 (replayed)")
			db := inner
			if keys[1] != "main" {
				db = outer // where the handler's key is found
			}
			rows(t, db, 1, 1)
		})
	}
}

func TestI12AroundItself(t *testing.T) {
	db := open(t)
	once, h := newOnce(), new(work)
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), once, once.Handler(h))
	want(t, post(t, srv.URL, "k", "x"), "201 order 1")
	want(t, post(t, srv.URL, "k", "x"), "201 order 1 (replayed)")
	rows(t, db, 1, 1)
}

func TestI12RollbackByALayerOutside(t *testing.T) {
	// What the layer does next has the record with it.
	db := open(t)
	h := newOnce().Handler(new(work))
	srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r)
		if w.Header().Get("Idempotent-Replayed") == "" {
			must(t, sqlreq.Rollback(r.Context()))
			insertWork(t, r.Context())
		}
	})))
	want(t, post(t, srv.URL, "k", "x"), "201 order 1")
	rows(t, db, 1, 1)
	want(t, post(t, srv.URL, "k", "x"), "201 order 1 (replayed)")
}

func TestI12WhatALayerHasBegunStays(t *testing.T) {
	// A repeat gives its own transaction back, not that of a layer outside.
	db := open(t)
	h := newOnce().Handler(new(work))
	srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		h.ServeHTTP(w, r)
	})))
	want(t, post(t, srv.URL, "k", "x"), "201 order 1")
	want(t, post(t, srv.URL, "k", "x"), "201 order 1 (replayed)")
	rows(t, db, 3, 1)
}
