package integration

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq/internal/servers"
)

// Each kind of server starts, with settings, ends, and starts again on its port with
// what was committed.

// restarted stops a server and starts it again, kills it and starts it again. Each
// time check must find what it wants.
func restarted(t *testing.T, s interface {
	Start() error
	Stop() error
	Kill()
}, check func()) {
	t.Helper()
	check()
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	check()
	s.Kill()
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	check()
}

// text returns the result of a query for one value.
func text(t *testing.T, db *sql.DB, query string) (value string) {
	t.Helper()
	if err := db.QueryRow(query).Scan(&value); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return value
}

// restartable returns a pool that keeps no connection, which would not live through a restart.
func restartable(t *testing.T, driver, dsn string) *sql.DB {
	t.Helper()
	db := openDSN(t, driver, dsn)
	db.SetMaxIdleConns(-1)
	return db
}

func TestServerPostgres(t *testing.T) {
	p := servers.NewPostgres(t, "max_prepared_transactions = 7")
	db := restartable(t, "pgx", p.DSN)
	exec(t, db, "CREATE TABLE kept (n INTEGER)", "INSERT INTO kept VALUES (1)")
	restarted(t, p, func() {
		t.Helper()
		if got := text(t, db, "SHOW max_prepared_transactions"); got != "7" {
			t.Errorf("a setting: got %q, want 7", got)
		}
		if got := number(t, db, "SELECT count(*) FROM kept"); got != 1 {
			t.Errorf("got %d rows, want 1", got)
		}
	})
}

func TestServerPair(t *testing.T) {
	primary, standby := servers.NewPair(t)
	primaryDB := restartable(t, "pgx", withOption(t, primary.DSN, "synchronous_commit", "remote_apply"))
	standbyDB := restartable(t, "pgx", standby.DSN)
	exec(t, primaryDB, "CREATE TABLE kept (n INTEGER)")
	n := 0
	restarted(t, standby, func() {
		t.Helper()
		if got := text(t, primaryDB, "SELECT pg_is_in_recovery()"); got != "false" {
			t.Errorf("primary: in recovery: %s", got)
		}
		if got := text(t, standbyDB, "SELECT pg_is_in_recovery()"); got != "true" {
			t.Errorf("standby: in recovery: %s", got)
		}
		n++
		exec(t, primaryDB, fmt.Sprintf("INSERT INTO kept VALUES (%d)", n)) // returns when the standby has applied it
		if got := number(t, standbyDB, "SELECT count(*) FROM kept"); got != n {
			t.Errorf("standby: got %d rows, want %d", got, n)
		}
	})
}

// A standby takes over, with what was committed, and stays a primary.
func TestServerPromote(t *testing.T) {
	primary, standby := servers.NewPair(t, "synchronous_commit = on")
	exec(t, restartable(t, "pgx", primary.DSN), "CREATE TABLE kept (n INTEGER)", "INSERT INTO kept VALUES (1)")
	primary.Kill()
	if err := standby.Promote(); err != nil {
		t.Fatal(err)
	}
	db := restartable(t, "pgx", standby.DSN)
	n := 1
	restarted(t, standby, func() {
		t.Helper()
		if got := text(t, db, "SELECT pg_is_in_recovery() || current_setting('synchronous_standby_names')"); got != "false" {
			t.Fatalf("in recovery, and the standbys that it waits for: %q", got)
		}
		n++
		exec(t, db, fmt.Sprintf("INSERT INTO kept VALUES (%d)", n))
		if got := number(t, db, "SELECT count(*) FROM kept"); got != n {
			t.Errorf("got %d rows, want %d", got, n)
		}
	})
}

func TestServerPgBouncer(t *testing.T) {
	b := servers.NewPgBouncer(t, servers.NewPostgres(t), "default_pool_size = 1")
	for _, driver := range postgresDrivers {
		dsn := b.DSN
		if driver == "pgx" {
			dsn = withOption(t, dsn, "default_query_exec_mode", "exec")
		}
		db := restartable(t, driver, dsn)
		restarted(t, b, func() {
			t.Helper()
			conns := make([]*sql.Conn, 2)
			pids := make([]int, 2)
			for i := range conns {
				var err error
				if conns[i], err = db.Conn(context.Background()); err != nil {
					t.Fatal(err)
				}
				defer conns[i].Close()
				if err := conns[i].QueryRowContext(context.Background(), "SELECT pg_backend_pid()").Scan(&pids[i]); err != nil {
					t.Fatal(err)
				}
			}
			// Transaction mode, and the setting: two connections of clients, one of the server.
			if pids[0] != pids[1] {
				t.Errorf("%s: the backends are %d, want one", driver, pids)
			}
		})
	}
}

func TestServerMariaDB(t *testing.T) {
	m := servers.NewMariaDB(t, "innodb_rollback_on_timeout=ON", "innodb_lock_wait_timeout=1", "innodb_buffer_pool_size=6M")
	db := restartable(t, "mysql", m.DSN)
	exec(t, db, "CREATE TABLE kept (n INTEGER)", "INSERT INTO kept VALUES (1)")
	restarted(t, m, func() {
		t.Helper()
		if got := text(t, db, "SELECT concat_ws(' ', @@innodb_rollback_on_timeout, @@innodb_lock_wait_timeout, @@innodb_buffer_pool_size)"); got != "ON 1 6291456" {
			t.Errorf("settings: got %q", got)
		}
		if got := number(t, db, "SELECT count(*) FROM kept"); got != 1 {
			t.Errorf("got %d rows, want 1", got)
		}
	})
}

func TestServerGalera(t *testing.T) {
	nodes := servers.NewGalera(t, 3, "innodb_lock_wait_timeout=7")
	var dbs []*sql.DB
	for _, n := range nodes {
		dbs = append(dbs, restartable(t, "mysql", n.DSN))
	}
	exec(t, dbs[0], "CREATE TABLE kept (n INTEGER PRIMARY KEY)", "INSERT INTO kept VALUES (1)")
	check := func() {
		t.Helper()
		for i, db := range dbs {
			var n int
			if err := fresh(db, "SELECT count(*) FROM kept", &n); err != nil || n != 1 {
				t.Errorf("node %d: got %d rows, %v, want 1", i+1, n, err)
			}
			if got := text(t, db, "SELECT @@innodb_lock_wait_timeout"); got != "7" {
				t.Errorf("node %d: a setting: got %q, want 7", i+1, got)
			}
		}
	}
	check()
	if err := nodes[0].Stop(); err != nil { // the one that has begun the cluster
		t.Error(err)
	}
	if err := nodes[0].Start(); err != nil {
		t.Fatal(err)
	}
	check()

	// Two are killed. The third takes nothing until they are back.
	nodes[0].Kill()
	nodes[1].Kill()
	var wg sync.WaitGroup
	for _, n := range nodes[:2] {
		wg.Go(func() {
			if err := n.Start(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	check()
}
