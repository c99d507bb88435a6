package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// importLines inserts a line each in a Savepoint; every id that is there already is a bad line.
func importLines(ctx context.Context, ids func(yield func(int) bool), between func(n int) error) error {
	n := 0
	for id := range ids {
		err := sqlreq.Savepoint(ctx, func(ctx context.Context) error {
			_, err := key.ExecContext(ctx, fmt.Sprintf("INSERT INTO line VALUES (%d)", id))
			return err
		})
		if bad := id == 0; bad != (err != nil) {
			return fmt.Errorf("line %d: %w", id, errors.Join(err, errors.New("want an error of a bad line only")))
		}
		if n++; between != nil {
			if err := between(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// An import of 20,000 bad lines, among them good ones, leaves no lock behind for each, of which all sessions of
// a PostgreSQL together have 6,400 with its default settings.
func TestSavepointsOfManyBadLines(t *testing.T) {
	for _, driver := range postgresDrivers {
		if driver != "pgx" && !*long {
			continue // the statements are the same
		}
		t.Run(driver, func(t *testing.T) { manyBadLines(t, driver) })
	}
}

func manyBadLines(t *testing.T, driver string) {
	const bad, every = 20_000, 10 // each tenth is followed by a good line
	db, second := openDSN(t, driver, servers.SharedPostgres(t).DSN), openDSN(t, driver, servers.SharedPostgres(t).DSN)
	tables(t, db, "line (id INTEGER PRIMARY KEY)", "other (id INTEGER PRIMARY KEY)")
	exec(t, db, "INSERT INTO line VALUES (0)")
	most := 0
	others := func(n int) error { // what another session finds in the middle of it
		if n%2000 != 0 {
			return nil
		}
		var locks int
		if err := second.QueryRow("SELECT count(*) FROM pg_locks").Scan(&locks); err != nil {
			return fmt.Errorf("another session after %d lines: %w", n, err)
		}
		most = max(most, locks)
		_, err := second.Exec(fmt.Sprintf("INSERT INTO other VALUES (%d)", n))
		return err
	}
	s := newService(t, sqlreq.Binding{DB: db}, sqlreq.Retry{}, func(w http.ResponseWriter, r *http.Request) error {
		return importLines(r.Context(), func(yield func(int) bool) {
			for n := 1; n <= bad; n++ {
				if !yield(0) || n%every == 0 && !yield(n/every) {
					return
				}
			}
		}, others)
	})
	start := time.Now()
	s.want("/", http.StatusOK)
	t.Logf("%d bad lines: %v, at most %d locks", bad, time.Since(start).Round(time.Millisecond), most)
	if r := s.of("/"); outcomesOf(r) != "Committed" || r.hooks != "c" {
		t.Errorf("got %s, hooks %q (%v), want Committed, hooks c", outcomesOf(r), r.hooks, r.last().Err)
	}
	if got, want := number(t, second, "SELECT count(*) FROM line"), 1+bad/every; got != want {
		t.Errorf("%d lines, want %d", got, want)
	}
	if most == 0 || most > 100 {
		t.Errorf("%d locks at once, want some, and no more than 100", most)
	}
	idle(t, db)
}

// On SQLite each savepoint that is left on the stack costs more than the one before: none may be.
func TestSavepointsOnSQLiteInProportion(t *testing.T) {
	for driver, dsn := range sqliteDrivers {
		t.Run(driver, func(t *testing.T) {
			db := openDSN(t, driver, dsn(file(t)))
			tables(t, db, "line (id INTEGER PRIMARY KEY)")
			exec(t, db, "INSERT INTO line VALUES (0)")
			counts := []int{3_000, 30_000}
			if driver == "sqlite" && !*long {
				counts = counts[:1] // the slower driver of the two
			}
			for _, n := range counts {
				start := time.Now()
				s := newService(t, sqlreq.Binding{DB: db}, sqlreq.Retry{}, func(w http.ResponseWriter, r *http.Request) error {
					if err := importLines(r.Context(), func(yield func(int) bool) {
						for range n {
							if !yield(0) {
								return
							}
						}
					}, nil); err != nil {
						return err
					}
					took := time.Since(start)
					left, err := savepointsLeft(r.Context(), n)
					t.Logf("%d bad lines: %v", n, took.Round(time.Millisecond))
					if left != 0 {
						t.Errorf("%d savepoints are left on the stack after %d that were rolled back", left, n)
					}
					return err
				})
				s.want("/", http.StatusOK)
			}
			idle(t, db)
		})
	}
}

// savepointsLeft counts the savepoints of this library that are still on the stack,
// and takes them from there: n of them have been begun.
func savepointsLeft(ctx context.Context, n int) (left int, err error) {
	tx, err := sqlreq.Tx(ctx)
	if err != nil {
		return 0, err
	}
	for i := n; i > 0; i-- {
		_, err := tx.ExecContext(ctx, fmt.Sprintf("RELEASE SAVEPOINT sqlreq_%d", i))
		if err == nil {
			left++
		} else if !strings.Contains(err.Error(), "no such savepoint") {
			return left, err
		}
	}
	return left, nil
}

// A request in a test's transaction whose RELEASE is refused, as an error that was
// dealt with makes PostgreSQL do, leaves that transaction usable for the next ones.
func TestTxOnPostgresStaysUsable(t *testing.T) {
	for _, driver := range postgresDrivers {
		t.Run(driver, func(t *testing.T) {
			db, second := openDSN(t, driver, servers.SharedPostgres(t).DSN), openDSN(t, driver, servers.SharedPostgres(t).DSN)
			tables(t, db, "line (id INTEGER PRIMARY KEY)")
			exec(t, db, "INSERT INTO line VALUES (0)")
			tx, s := inTest(t, db, throughBoth(t, "INSERT INTO line VALUES (0)"))
			for _, path := range []string{"/bad/1", "/2", "/bad/tx/3", "/4"} {
				status, events, hooks := http.StatusOK, "Committed", "c"
				if strings.HasPrefix(path, "/bad") {
					status, events, hooks = http.StatusInternalServerError, "CommitFailed", "r"
				}
				s.want(path, status)
				if r := s.of(path); outcomesOf(r) != events || r.hooks != hooks {
					t.Errorf("%s: got %s, hooks %q (%v), want %s, hooks %q", path, outcomesOf(r), r.hooks, r.last().Err, events, hooks)
				}
			}
			var got string
			if err := tx.QueryRow("SELECT string_agg(id::text, ' ' ORDER BY id) FROM line").Scan(&got); err != nil || got != "0 2 4" {
				t.Errorf("in the test's transaction: got %q, %v, want 0 2 4", got, err)
			}
			if err := tx.Rollback(); err != nil {
				t.Error(err)
			}
			if got := number(t, second, "SELECT count(*) FROM line"); got != 1 {
				t.Errorf("after the test's Rollback: %d rows, want the one from before", got)
			}
		})
	}
}

// Where a request has ended the test's transaction, later ones are refused: on
// SQLite they would be committed for good.
func TestTxThatIsDead(t *testing.T) {
	type database struct {
		driver, dsn, ends string
		stays             int // what the statement that ends it has committed
	}
	all := []database{{"mysql", servers.SharedMariaDB(t).DSN, "TRUNCATE TABLE scratch", 1}}
	for driver, dsn := range sqliteDrivers {
		all = append(all, database{driver, dsn(file(t)), "INSERT OR ROLLBACK INTO line VALUES (0)", 0})
	}
	for _, d := range all {
		for _, how := range []string{"/bad/1", "/bad/tx/1"} {
			t.Run(d.driver+how, func(t *testing.T) {
				db, second := openDSN(t, d.driver, d.dsn), openDSN(t, d.driver, d.dsn)
				tables(t, db, "line (id INTEGER PRIMARY KEY)", "scratch (n INTEGER)")
				exec(t, db, "INSERT INTO line VALUES (0)")
				tx, s := inTest(t, db, throughBoth(t, d.ends))
				s.want(how, http.StatusInternalServerError)
				if r := s.of(how); r.hooks != "" || !r.ambiguous() {
					t.Errorf("got %s, hooks %q (%v), want CommitFailed?, no hook", outcomesOf(r), r.hooks, r.last().Err)
				}
				for _, path := range []string{"/2", "/3"} {
					s.want(path, http.StatusInternalServerError)
					if r := s.of(path); strings.Contains(r.hooks, "c") || len(r.events) != 0 {
						t.Errorf("%s: got %s, hooks %q, want nothing begun", path, outcomesOf(r), r.hooks)
					}
				}
				_ = tx.Rollback()
				if got, want := number(t, second, "SELECT count(*) FROM line WHERE id <> 0"), d.stays; got != want {
					t.Errorf("after the test's Rollback: %d rows, want %d", got, want)
				}
			})
		}
	}
}

// inTest returns a test's open transaction and a service in it.
func inTest(t *testing.T, db *sql.DB, handler sqlreq.HandlerFunc) (*sql.Tx, *service) {
	t.Helper()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	return tx, newService(t, sqlreq.Binding{Tx: tx}, sqlreq.Retry{Attempts: 3}, handler)
}

// throughBoth is a handler that inserts the number at the end of its path. On /bad/… it runs a statement
// before, through the Key or on /bad/tx/… through the *sql.Tx, and does not care what comes of it.
func throughBoth(t *testing.T, statement string) sqlreq.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		ctx, path := r.Context(), r.URL.Path
		id := path[strings.LastIndexByte(path, '/')+1:]
		bad := strings.HasPrefix(path, "/bad/")
		run := throughKey
		if strings.HasPrefix(path, "/bad/tx/") {
			run = throughTx
		}
		if bad && strings.HasPrefix(statement, "TRUNCATE") {
			if err := run(ctx, "INSERT INTO line VALUES ("+id+")"); err != nil {
				return err
			}
		}
		if bad {
			_ = run(ctx, statement)
			return nil
		}
		return run(ctx, "INSERT INTO line VALUES ("+id+")")
	}
}
