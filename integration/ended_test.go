package integration

import (
	"context"
	"fmt"
	"testing"

	"github.com/sqlreq/sqlreq/internal/servers"
)

// With innodb_rollback_on_timeout a wait for a row that takes too long ends the whole
// transaction (1205). A full table of locks does so in any case (1206), but cannot be
// had here: MariaDB 10.11 with a buffer pool of 6 MB, the least that it allows, stands still or
// kills itself before it gives that answer.
func TestG11TimeoutEndsTheTransaction(t *testing.T) {
	m := servers.NewMariaDB(t, "innodb_rollback_on_timeout=ON", "innodb_lock_wait_timeout=1", "innodb_buffer_pool_size=6M")
	db, second := openDSN(t, "mysql", m.DSN), openDSN(t, "mysql", m.DSN)
	tables(t, db, "account (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)")
	exec(t, db, "INSERT INTO account VALUES (1, 0)")
	timeout := func(ctx context.Context, run runner) error {
		return locked(t, second, func() error { return run(ctx, "UPDATE account SET n = n + 1 WHERE id = 1") })
	}
	const again = "RolledBack Committed"
	for _, c := range []cell{
		{name: "Key, swallowed", run: throughKey, swallowed: true, status: 200, outcomes: again, hooks: "rc", before: 1, after: 1},
		{name: "Key, Guard, swallowed", guard: true, run: throughKey, swallowed: true, status: 200, outcomes: again, hooks: "rc", before: 1, after: 1},
		{name: "Key, Guard, success", guard: true, run: throughKey, swallowed: true, result: errNil, status: 200, outcomes: again, hooks: "rc", before: 1, after: 1},
		{name: "Tx, Guard, swallowed", guard: true, run: throughTx, swallowed: true, status: 500, outcomes: "Ended", after: 1},
		{name: "Tx, Guard, success", guard: true, run: throughTx, swallowed: true, result: errNil, status: 500, outcomes: "CommitFailed?", after: 1},
	} {
		t.Run("1205/"+c.name, func(t *testing.T) { c.check(t, db, second, timeout) })
	}
}

// The connection of a statement was lost: the server has rolled back. COMMIT is not
// tried, and without Guard, or where nobody has the *sql.Tx, the outcome is known.
func TestG11ConnectionLost(t *testing.T) {
	for _, driver := range postgresDrivers {
		t.Run(driver, func(t *testing.T) { connectionLost(t, driver) })
	}
}

func connectionLost(t *testing.T, driver string) {
	db, second := openDSN(t, driver, servers.SharedPostgres(t).DSN), openDSN(t, driver, servers.SharedPostgres(t).DSN)
	gone := func(pid int) error {
		return until("the backend has ended", func() bool {
			var n int
			err := second.QueryRow(fmt.Sprintf("SELECT count(*) FROM pg_stat_activity WHERE pid = %d", pid)).Scan(&n)
			return err == nil && n == 0
		})
	}
	ends := map[string]func(context.Context, runner, int) error{
		"57P01": func(ctx context.Context, run runner, pid int) error {
			_, err := second.Exec(fmt.Sprintf("SELECT pg_terminate_backend(%d)", pid))
			return err
		},
		"25P03": func(ctx context.Context, run runner, pid int) error {
			return run(ctx, "SET LOCAL idle_in_transaction_session_timeout = 1")
		},
	}
	for name, end := range ends {
		for _, c := range []cell{
			{name: "Key", run: throughKey, status: 500, outcomes: "RolledBack", hooks: "r"},
			{name: "Key, Guard", guard: true, run: throughKey, status: 500, outcomes: "RolledBack", hooks: "r"},
			{name: "Key, swallowed", run: throughKey, result: errNil, status: 500, outcomes: "RolledBack", hooks: "r"},
			{name: "Key, Guard, swallowed", guard: true, run: throughKey, result: errNil, status: 500, outcomes: "RolledBack", hooks: "r"},
			{name: "Key, a conflict", run: throughKey, result: conflict{}, status: 200, outcomes: "RolledBack Committed", hooks: "rc", before: 1, after: 1},
			{name: "Key, Guard, a conflict", guard: true, run: throughKey, result: conflict{}, status: 200, outcomes: "RolledBack Committed", hooks: "rc", before: 1, after: 1},
			{name: "Tx", run: throughTx, status: 500, outcomes: "RolledBack", hooks: "r"},
			{name: "Tx, Guard", guard: true, run: throughTx, status: 500, outcomes: "Ended"},
		} {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				c.check(t, db, second, func(ctx context.Context, run runner) error {
					var pid int
					if err := key.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
						t.Error(err)
					}
					if err := end(ctx, run, pid); err != nil {
						t.Error(err)
					}
					if err := gone(pid); err != nil {
						t.Error(err)
					}
					err := run(ctx, "SELECT 1")
					if err == nil {
						t.Error("a statement has run on a connection that was lost")
					}
					return err
				})
			})
		}
	}
}

// Guard's RELEASE is refused with 25P02: nothing is stored, and what made it so is
// run again if it was a conflict.
func TestG11GuardRefused(t *testing.T) {
	for _, driver := range postgresDrivers {
		db, second := openDSN(t, driver, servers.SharedPostgres(t).DSN), openDSN(t, driver, servers.SharedPostgres(t).DSN)
		raise := func(state string) func(context.Context, runner) error {
			return func(ctx context.Context, run runner) error {
				err := run(ctx, "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '"+state+"'; END $$")
				if err == nil {
					t.Error("no error")
				}
				return err
			}
		}
		for _, c := range []struct {
			cell
			state string
		}{
			{cell{name: "Key, a conflict", run: throughKey, status: 200, outcomes: "CommitFailed Committed", hooks: "rc", before: 1, after: 1}, "40001"},
			{cell{name: "Key, an error", run: throughKey, status: 500, outcomes: "CommitFailed", hooks: "r"}, "23505"},
			{cell{name: "Tx, an error", run: throughTx, status: 500, outcomes: "CommitFailed", hooks: "r"}, "23505"},
			// A conflict that only the handler has seen.
			{cell{name: "Tx, a conflict", run: throughTx, status: 500, outcomes: "CommitFailed", hooks: "r"}, "40001"},
		} {
			c.guard, c.swallowed, c.result = true, true, errNil
			t.Run(driver+"/"+c.name, func(t *testing.T) { c.check(t, db, second, raise(c.state)) })
		}
	}
}
