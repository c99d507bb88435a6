// G6 One request, one outcome, one transaction for each pool; a Do inside a request
// is independent of the request's transaction: it takes a second connection, so that
// on a pool of one it waits until its context ends.

package guarantees

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// TestG6DoInsideARequest: it is independent of the request's transaction, opens
// every key of its registry and none of the others'.
func TestG6DoInsideARequest(t *testing.T) {
	db, audit := sqlreqtest.OpenDB(t), sqlreqtest.OpenDB(t)
	outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "audit", DB: audit, OnDemand: true})
	var inside context.Context
	o := sqlreqtest.AskGet(outer.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		err := reg.Do(r.Context(), func(ctx context.Context) error {
			inside = ctx
			if _, err := sqlreq.Tx(ctx); !errors.Is(err, sqlreq.ErrUnknownKey) {
				t.Errorf("a key of the request inside Do: got %v, want ErrUnknownKey", err)
			}
			_, err := sqlreq.Key("audit").ExecContext(ctx, sqlreqtest.InsertWork)
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if _, err := sqlreq.Key("audit").Tx(inside); !errors.Is(err, sqlreq.ErrFinished) {
			t.Errorf("after Do: got %v, want ErrFinished", err)
		}
		if _, err := sqlreq.Tx(r.Context()); err != nil {
			t.Errorf("the request's after Do: %v", err)
		}
		return sqlreqtest.ErrTest
	})), "/")
	if n, m := sqlreqtest.Count(t, db, "work"), sqlreqtest.Count(t, audit, "work"); o.Code != 500 || n != 0 || m != 1 {
		t.Errorf("got %d, %d rows of the request, %d of the audit, want 500, 0, 1", o.Code, n, m)
	}
	sqlreqtest.Idle(t, db)
	sqlreqtest.Idle(t, audit)
}

// TestG6DoFailsAlone: the failure of a Do is not that of the request around it.
func TestG6DoFailsAlone(t *testing.T) {
	f := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
	o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "OUTER")
		if err := reg.Do(r.Context(), func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INNER")
			return sqlreqtest.ErrTest
		}); !errors.Is(err, sqlreqtest.ErrTest) {
			t.Errorf("got %v, want sqlreqtest.ErrTest", err)
		}
	})), "/")
	if o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	f.Check(t, "BEGIN", "OUTER", "BEGIN", "INNER", "ROLLBACK", "COMMIT")
}

// TestG6DoOnAPoolOfOne waits for the request's connection until its context ends.
func TestG6DoOnAPoolOfOne(t *testing.T) {
	db := (&fakedb.DB{}).Open(t)
	db.SetMaxOpenConns(1)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
		ctx, expire := sqlreqtest.Deadline(r.Context())
		go func() {
			sqlreqtest.Pool(db, 1)
			expire()
		}()
		err := reg.Do(ctx, func(ctx context.Context) error { _, err := sqlreq.Tx(ctx); return err })
		if !errors.Is(err, context.DeadlineExceeded) || sqlreq.StatusCode(err) != 503 {
			t.Errorf("got %v (%d), want the deadline and 503", err, sqlreq.StatusCode(err))
		}
	})), "/")
	if o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
}
