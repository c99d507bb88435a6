package main

import (
	"fmt"
	"testing"

	"github.com/sqlreq/sqlreq/examples/orders/internal/postgres"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// What only reads is read on the standby; what must not be stale, and what writes, goes to the primary.
func TestRoute(t *testing.T) {
	primary, standby := servers.SharedPair(t)
	dsn := newDatabase(t, primary.DSN)
	reader := sameDatabase(t, standby.DSN, dsn)
	store, err := postgres.Open(t.Context(), dsn, reader, 5)
	if err != nil {
		t.Fatal(err)
	}
	s := newService(t, store, &service{dsn: dsn, postgres: true, judge: openDB(t, "pgx", dsn)})
	behind := openDB(t, "pgx", sameDatabase(t, standby.DSN, standby.DSN))
	replayed := func(what string) {
		t.Helper()
		var at string
		if err := s.judge.QueryRow("SELECT pg_current_wal_insert_lsn()").Scan(&at); err != nil {
			t.Fatal(err)
		}
		eventually(t, what, func() bool {
			var ok bool
			err := behind.QueryRow("SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn", at).Scan(&ok)
			return err == nil && ok
		})
	}
	replayed("the tables on the standby")
	s.order("acme", "k1", `{"product": 1, "quantity": 1}`).is(t, 201)
	replayed("the order on the standby")

	// From here on the standby stands still.
	execute(t, behind, "SELECT pg_wal_replay_pause()")
	t.Cleanup(func() { execute(t, behind, "SELECT pg_wal_replay_resume()") })
	a := s.order("acme", "k2", `{"product": 1, "quantity": 1}`).is(t, 201)
	id := s.number("SELECT max(id) FROM orders")
	s.get("/acme/api/products").is(t, 200).has(t, `"stock":4`) // not 3 yet
	s.get("/acme/").is(t, 200).has(t, `<td class="number">4</td>`)
	s.get("/admin/").is(t, 200).has(t, "<dt>Orders</dt><dd>1</dd>")
	s.get(a.header.Get("Location")).is(t, 200)
	s.get(fmt.Sprintf("/acme/orders/%d", id)).is(t, 200)
	equal(t, "orders", s.stats().Orders, 2)
}
