package idempotency_test

import (
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

func TestI1OnceForEachKey(t *testing.T) {
	db := open(t)
	h := new(work)
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), h)
	want(t, post(t, srv.URL, "k1", "x"), "201 order 1")
	for range 3 {
		want(t, post(t, srv.URL, "k1", "x"), "201 order 1 (replayed)")
	}
	want(t, post(t, srv.URL, `"k1"`, "x"), "201 order 1 (replayed)")
	want(t, post(t, srv.URL, "k2", "x"), "201 order 2")
	rows(t, db, 2, 2)
	sqlreqtest.Idle(t, db)
}
