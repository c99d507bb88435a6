package integration

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"net/url"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// withOption returns a DSN whose sessions have a setting of PostgreSQL.
func withOption(t testing.TB, dsn, name, value string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	return u.String()
}

// victim is a handler that inserts a row named after its path, and the id of its backend.
type victim struct {
	*service
	db     *sql.DB
	pid    chan int
	before func(path string) // runs in the handler, when only COMMIT is left
}

func newVictim(t *testing.T, db *sql.DB) *victim {
	tables(t, db, "victim (path VARCHAR(50) PRIMARY KEY)")
	v := &victim{db: db, pid: make(chan int, 1), before: func(string) {}}
	v.service = newService(t, sqlreq.Binding{DB: db}, sqlreq.Retry{Attempts: 3}, func(w http.ResponseWriter, r *http.Request) error {
		var pid int
		if err := key.QueryRowContext(r.Context(), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
			return err
		}
		if _, err := key.ExecContext(r.Context(), "INSERT INTO victim VALUES ($1)", r.URL.Path); err != nil {
			return err
		}
		v.pid <- pid
		v.before(r.URL.Path)
		_, err := w.Write([]byte("done"))
		return err
	})
	return v
}

// is fails the test if the request's outcome, or what the database has of it, is another.
func (v *victim) is(db *sql.DB, path string, ambiguous, there bool) {
	v.t.Helper()
	r := v.of(path)
	if len(r.events) != 1 || r.ambiguous() != ambiguous {
		v.t.Errorf("%s: %d attempts, %v, ambiguous %v (%v), want 1, ambiguous %v", path, len(r.events), r.last().Outcome, r.ambiguous(), r.last().Err, ambiguous)
	}
	if want := map[bool]string{true: "", false: "c"}[ambiguous]; r.hooks != want {
		v.t.Errorf("%s: hooks %q, want %q", path, r.hooks, want)
	}
	if got := number(v.t, db, "SELECT count(*) FROM victim WHERE path = '"+path+"'") == 1; got != there {
		v.t.Errorf("%s: its row is there: %v, want %v", path, got, there)
	}
}

// next sends a request that must work.
func (v *victim) next(name string) {
	v.t.Helper()
	path := "/next-" + name
	if v.want(path, http.StatusOK) {
		<-v.pid
		v.is(v.db, path, false, true)
	}
	idle(v.t, v.db)
}

// meetsDeadConnection sends a request that finds a connection in the pool whose
// backend was killed while nobody used it. database/sql takes another one if the
// driver says driver.ErrBadConn, as lib/pq does. pgx says so only of connections that
// were idle for a second, which it pings before; otherwise BEGIN fails, and so does
// one request, without having done anything.
func (v *victim) meetsDeadConnection(driver string) {
	v.t.Helper()
	const path = "/dead-connection"
	status, err := v.post(context.Background(), path)
	if err != nil {
		v.t.Fatal(err)
	}
	if status == http.StatusOK {
		<-v.pid
		v.is(v.db, path, false, true)
		return
	}
	rows := number(v.t, v.db, "SELECT count(*) FROM victim WHERE path = '"+path+"'")
	if r := v.of(path); driver != "pgx" || status != http.StatusServiceUnavailable || len(r.events) != 0 || rows != 0 {
		v.t.Errorf("%s: got %d, events %v, %d rows, want 200, or with pgx 503, none and none", path, status, r.events, rows)
	}
}

func terminate(t *testing.T, db *sql.DB, pid int) {
	t.Helper()
	exec(t, db, fmt.Sprintf("SELECT pg_terminate_backend(%d, 10000)", pid))
}

// waitsForStandby waits until the backend's COMMIT does.
func waitsForStandby(t *testing.T, db *sql.DB, pid int) {
	t.Helper()
	eventually(t, "COMMIT waits for the standby", func() bool {
		return number(t, db, fmt.Sprintf("SELECT count(*) FROM pg_stat_activity WHERE pid = %d AND wait_event = 'SyncRep'", pid)) == 1
	})
}

// A backend is killed at each point of a request.
func TestG1KilledBackend(t *testing.T) {
	primary, standby := servers.SharedPair(t)
	admin := openDSN(t, "pgx", primary.DSN)
	standbyDB := openDSN(t, "pgx", standby.DSN)
	for _, driver := range postgresDrivers {
		t.Run(driver, func(t *testing.T) {
			// COMMIT returns when the standby has applied it.
			v := newVictim(t, openDSN(t, driver, withOption(t, primary.DSN, "synchronous_commit", "remote_apply")))

			v.before = func(string) { terminate(t, admin, <-v.pid) }
			v.want("/before-commit", http.StatusInternalServerError)
			v.is(admin, "/before-commit", true, false)
			v.before = func(string) {}
			v.next("1")

			exec(t, standbyDB, "SELECT pg_wal_replay_pause()")
			status := make(chan int)
			go func() {
				got, err := v.post(context.Background(), "/while-commit-waits")
				if err != nil {
					t.Error(err)
				}
				status <- got
			}()
			pid := <-v.pid
			waitsForStandby(t, admin, pid)
			terminate(t, admin, pid)
			if got := <-status; got != http.StatusInternalServerError {
				t.Errorf("while COMMIT waited: got %d, want 500", got)
			}
			exec(t, standbyDB, "SELECT pg_wal_replay_resume()")
			v.is(admin, "/while-commit-waits", true, true) // and that is why it must not be called a failure
			v.next("2")

			v.want("/after-commit", http.StatusOK)
			terminate(t, admin, <-v.pid)
			v.is(admin, "/after-commit", false, true)
			v.meetsDeadConnection(driver)
			v.next("3")
		})
	}
}

// The whole server is killed at each point of a request, and started again.
func TestG1KilledServer(t *testing.T) {
	primary, standby := servers.NewPair(t)
	standbyDB := openDSN(t, "pgx", standby.DSN)
	admin := openDSN(t, "pgx", primary.DSN)
	admin.SetMaxIdleConns(-1) // its connections die with the server
	for _, driver := range postgresDrivers {
		t.Run(driver, func(t *testing.T) {
			v := newVictim(t, openDSN(t, driver, withOption(t, primary.DSN, "synchronous_commit", "remote_apply")))
			restart := func() {
				t.Helper()
				if err := primary.Start(); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the standby is back", func() bool {
					return number(t, admin, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == 1
				})
			}

			v.before = func(string) { <-v.pid; primary.Kill() }
			v.want("/before-commit", http.StatusInternalServerError)
			v.before = func(string) {}
			restart()
			v.is(admin, "/before-commit", true, false)
			v.next("1")

			exec(t, standbyDB, "SELECT pg_wal_replay_pause()")
			status := make(chan int)
			go func() {
				got, err := v.post(context.Background(), "/while-commit-waits")
				if err != nil {
					t.Error(err)
				}
				status <- got
			}()
			waitsForStandby(t, admin, <-v.pid)
			primary.Kill()
			if got := <-status; got != http.StatusInternalServerError {
				t.Errorf("while COMMIT waited: got %d, want 500", got)
			}
			exec(t, standbyDB, "SELECT pg_wal_replay_resume()")
			restart()
			v.is(admin, "/while-commit-waits", true, true)
			v.next("2")

			v.want("/after-commit", http.StatusOK)
			<-v.pid
			primary.Kill()
			v.want("/server-is-away", http.StatusServiceUnavailable)
			restart()
			v.is(admin, "/after-commit", false, true)
			v.next("3")
		})
	}
}
