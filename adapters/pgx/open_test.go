package sqlreqpgx_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sqlreq/sqlreq"
	sqlreqpgx "github.com/sqlreq/sqlreq/adapters/pgx"
)

// opened is what a handler leaves open: err is what its user learns of the end.
type opened struct {
	err   func() error
	close func() error
}

// openers leave something open that has inserted the note.
var openers = map[string]func(context.Context, int) (opened, error){
	"rows": func(ctx context.Context, id int) (opened, error) {
		if err := insert(ctx, key, "Exec", id, "text"); err != nil {
			return opened{}, err
		}
		rows, err := key.Query(ctx, "SELECT generate_series(1, 100000)")
		if err == nil && !rows.Next() {
			err = fmt.Errorf("no row: %w", rows.Err())
		}
		return opened{func() error {
			if rows.Next() {
				return errors.New("one more row")
			}
			return rows.Err()
		}, func() error { rows.Close(); return rows.Err() }}, err
	},
	"batch": func(ctx context.Context, id int) (opened, error) {
		var b pgx.Batch
		b.Queue("SELECT generate_series(1, 100000)")
		ended := true
		b.Queue(insertNote, id, "text").Exec(func(pgconn.CommandTag) error {
			if ended {
				return errors.New("a function has run")
			}
			return nil
		})
		b.Queue("SELECT 1")
		results := key.SendBatch(ctx, &b)
		return opened{results.Close, func() error { ended = false; return results.Close() }}, nil
	},
	"rows of a batch": func(ctx context.Context, id int) (opened, error) {
		var b pgx.Batch
		b.Queue("SELECT generate_series(1, 100000)")
		b.Queue(insertNote, id, "text")
		results := key.SendBatch(ctx, &b)
		rows, err := results.Query()
		if err == nil && !rows.Next() {
			err = fmt.Errorf("no row: %w", rows.Err())
		}
		return opened{func() error {
			if rows.Next() {
				return errors.New("one more row")
			}
			_, more := results.Exec()
			return errors.Join(rows.Err(), more, results.Close())
		}, func() error { rows.Close(); return errors.Join(rows.Err(), results.Close()) }}, err
	},
}

// Open rows and batches at every kind of end: it is that end, the rows end early and
// say so, and the connection lives.
func TestOpenAtEveryKindOfEnd(t *testing.T) {
	ends := map[string]struct {
		status int
		stored bool
		end    func(http.ResponseWriter, *http.Request) error
	}{
		"success": {200, true, func(http.ResponseWriter, *http.Request) error { return nil }},
		"4xx":     {404, false, func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(404); return nil }},
		"error":   {500, false, func(http.ResponseWriter, *http.Request) error { return errors.New("no") }},
		"panic":   {0, false, func(http.ResponseWriter, *http.Request) error { panic(http.ErrAbortHandler) }},
		"explicit Commit": {404, true, func(w http.ResponseWriter, r *http.Request) error {
			w.WriteHeader(404)
			return sqlreq.Commit(r.Context())
		}},
		"explicit Rollback": {200, false, func(_ http.ResponseWriter, r *http.Request) error {
			return sqlreq.Rollback(r.Context())
		}},
		"Fail": {500, false, func(_ http.ResponseWriter, r *http.Request) error {
			return sqlreq.Fail(r.Context(), errors.New("no"))
		}},
	}
	bindings := map[string]func(*testing.T) *site{
		"DB":    func(t *testing.T) *site { return newSite(t) },
		"Guard": func(t *testing.T) *site { return newSite(t, onBinding(func(b *sqlreq.Binding) { b.Guard = true })) },
		"Tx":    func(t *testing.T) *site { return newTestTxSite(t) },
	}
	for on, newSite := range bindings {
		s := newSite(t)
		for name, e := range ends {
			for what, open := range openers {
				t.Run(on+"/"+name+"/"+what, func(t *testing.T) {
					var o opened
					var pid uint32
					id := fresh()
					a := s.want(e.status, e.stored, []int{id}, func(w http.ResponseWriter, r *http.Request) (err error) {
						tx, err := key.Tx(r.Context())
						if err != nil {
							return err
						}
						pid = tx.Conn().PgConn().PID()
						if o, err = open(r.Context(), id); err != nil {
							return err
						}
						return e.end(w, r)
					})
					if a.ambiguous() {
						t.Errorf("the outcome is unknown: %v", a.events)
					}
					if err := o.err(); err == nil || !strings.Contains(err.Error(), "ended early") {
						t.Errorf("the rows' error: got %v, want ended early", err)
					}
					if s.number("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid) != 1 {
						t.Error("the connection is lost")
					}
				})
			}
		}
	}
}

// newTestTxSite is a site all of whose requests run in one transaction of the test
// (Binding.Tx). What is stored is what that transaction sees.
func newTestTxSite(t *testing.T) *site {
	j := newJudge(t)
	pool := newPool(t, j.dsn)
	own := beginTest(t, sqlreqpgx.OpenDB(pool))
	s := newSiteOn(t, j, newPool(t, j.dsn), onBinding(func(b *sqlreq.Binding) { b.DB, b.Tx = nil, own }))
	j.query = func(query string, args ...any) (n int) {
		if err := own.QueryRow(query, args...).Scan(&n); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		return n
	}
	return s
}

// beginTest begins a transaction of the test.
func beginTest(t *testing.T, db *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tx.Rollback(); err != nil {
			t.Errorf("the test's transaction: %v", err)
		}
		db.Close()
	})
	return tx
}

// Every statement on the connection is a clear error while something is open,
// native or not, and the transaction lives.
func TestOpenRefusesOtherStatements(t *testing.T) {
	s := newSite(t)
	for what, open := range openers {
		t.Run(what, func(t *testing.T) {
			id, later := fresh(), fresh()
			s.want(200, true, []int{id, later}, func(_ http.ResponseWriter, r *http.Request) error {
				ctx := r.Context()
				prepared, err := sqlreq.DefaultKey.PrepareContext(ctx, "SELECT 1")
				if err != nil {
					return err
				}
				tx, err := sqlreq.Tx(ctx)
				if err != nil {
					return err
				}
				sp, err := key.Begin(ctx)
				if err != nil {
					return err
				}
				native, err := key.Tx(ctx)
				if err != nil {
					return err
				}
				o, err := open(ctx, id)
				if err != nil {
					return err
				}
				var n int
				refused := map[string]error{
					"Savepoint":         sqlreq.Savepoint(ctx, func(context.Context) error { return nil }),
					"Tx.Exec":           second(tx.ExecContext(ctx, "SELECT 1")),
					"Tx.Query":          second(tx.QueryContext(ctx, "SELECT 1")),
					"Tx.Prepare":        second(tx.PrepareContext(ctx, "SELECT 2")),
					"Stmt.Exec":         second(prepared.ExecContext(ctx)),
					"Stmt.Query":        second(prepared.QueryContext(ctx)),
					"sqlreq.Key":        second(sqlreq.DefaultKey.ExecContext(ctx, "SELECT 1")),
					"Prepare":           second(native.Prepare(ctx, "x", "SELECT 1")),
					"Begin":             second(key.Begin(ctx)),
					"Begin in Begin":    second(sp.Begin(ctx)),
					"sqlreq.Key's row":  sqlreq.DefaultKey.QueryRowContext(ctx, "SELECT 1").Scan(&n),
					"Stmt.Query's row":  prepared.QueryRowContext(ctx).Scan(&n),
					"Tx.Stmt's Prepare": second(tx.Prepare("SELECT 3")),
				}
				for _, kind := range kinds {
					refused[kind] = insert(ctx, key, kind, later, "text")
					refused["Tx's "+kind] = insert(ctx, native, kind, later, "text")
					refused["Begin's "+kind] = insert(ctx, sp, kind, later, "text")
				}
				for name, err := range refused {
					if !isBusy(err) {
						t.Errorf("%s: got %v, want an error that says what is open", name, err)
					}
				}
				if err := prepared.Close(); !isBusy(err) {
					t.Errorf("Stmt.Close: got %v", err)
				}
				return errors.Join(o.close(), insert(ctx, key, "Exec", later, "text"), sp.Commit(ctx))
			})
		})
	}
	// The other way round: rows of database/sql.
	id := fresh()
	s.want(200, true, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
		rows, err := sqlreq.DefaultKey.QueryContext(r.Context(), "SELECT generate_series(1, 100000)")
		if err != nil {
			return err
		}
		defer rows.Close()
		for _, kind := range kinds {
			if err := insert(r.Context(), key, kind, id, "text"); !isBusy(err) {
				t.Errorf("%s beside rows of database/sql: got %v", kind, err)
			}
		}
		return errors.Join(rows.Close(), insert(r.Context(), key, "Exec", id, "text"))
	})
}

func second[T any](_ T, err error) error { return err }

// A copy's source, and the functions of a batch, that use the Key get an error, and do
// not wait for themselves.
// What describes the columns of rows may be asked for inside of whatever holds the connection.
func TestFieldDescriptionsInsideOfAStatement(t *testing.T) {
	s := newSite(t)
	id := fresh()
	s.want(200, true, []int{id, id + 1, id + 2}, func(_ http.ResponseWriter, r *http.Request) error {
		ctx := r.Context()
		closed, err := key.Query(ctx, "SELECT 1 AS text")
		if err != nil {
			return err
		}
		closed.Close()
		name := func() string { return closed.FieldDescriptions()[0].Name }
		_, err = key.CopyFrom(ctx, pgx.Identifier{"notes"}, []string{"id", name()},
			pgx.CopyFromSlice(1, func(int) ([]any, error) { return []any{id, name()}, nil }))
		if err != nil {
			return err
		}
		var b pgx.Batch
		b.Queue(insertNote, id+1, "text").Exec(func(pgconn.CommandTag) error {
			if got := name(); got != "text" {
				t.Errorf("got %q", got)
			}
			return nil
		})
		if err := key.SendBatch(ctx, &b).Close(); err != nil {
			return err
		}
		rows, err := key.Query(ctx, insertNote+" RETURNING id AS other", id+2, "text")
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			err = rows.Scan(scanner(func() error {
				if got := name() + rows.FieldDescriptions()[0].Name; got != "textother" {
					t.Errorf("got %q", got)
				}
				return nil
			}))
		}
		return errors.Join(err, rows.Err())
	})
}

// A query without a statement has no columns, and is no panic, in any mode.
func TestQueryOfNothing(t *testing.T) {
	for mode := pgx.QueryExecModeCacheStatement; mode <= pgx.QueryExecModeSimpleProtocol; mode++ {
		t.Run(mode.String(), func(t *testing.T) {
			j := newJudge(t)
			s := newSiteOn(t, j, newPool(t, j.dsn, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode }))
			s.want(200, false, nil, func(_ http.ResponseWriter, r *http.Request) error {
				for _, sql := range []string{"", "-- nothing", "SET LOCAL work_mem = '8MB'"} {
					rows, err := key.Query(r.Context(), sql)
					if err != nil {
						return err
					}
					rows.Close()
					if rows.Err() != nil || len(rows.FieldDescriptions()) != 0 {
						t.Errorf("%q: got %v, %v", sql, rows.FieldDescriptions(), rows.Err())
					}
				}
				return nil
			})
		})
	}
}

func TestStatementsInsideOfAStatement(t *testing.T) {
	s := newSite(t)
	t.Run("source of a copy", func(t *testing.T) {
		id := fresh()
		s.want(200, true, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
			_, err := key.CopyFrom(r.Context(), pgx.Identifier{"notes"}, []string{"id", "text"},
				pgx.CopyFromSlice(1, func(int) ([]any, error) {
					for _, kind := range kinds {
						if err := insert(r.Context(), key, kind, fresh(), "text"); !isBusy(err) {
							t.Errorf("%s: got %v", kind, err)
						}
					}
					return []any{id, "text"}, nil
				}))
			return err
		})
	})
	t.Run("function of a batch", func(t *testing.T) {
		id := fresh()
		s.want(200, true, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
			var b pgx.Batch
			b.Queue(insertNote, id, "text").Exec(func(pgconn.CommandTag) error {
				for _, kind := range kinds {
					if err := insert(r.Context(), key, kind, fresh(), "text"); !isBusy(err) {
						t.Errorf("%s: got %v", kind, err)
					}
				}
				return nil
			})
			return key.SendBatch(r.Context(), &b).Close()
		})
	})
	t.Run("Scanner of rows", func(t *testing.T) {
		id := fresh()
		s.want(200, true, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
			rows, err := key.Query(r.Context(), insertNote+" RETURNING id", id, "text")
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				err = rows.Scan(scanner(func() error {
					if err := insert(r.Context(), key, "Exec", fresh(), "text"); !isBusy(err) {
						t.Errorf("got %v", err)
					}
					return nil
				}))
			}
			return errors.Join(err, rows.Err())
		})
	})
}

// scanner is a sql.Scanner.
type scanner func() error

func (s scanner) Scan(any) error { return s() }

// The end waits for a step of rows that is under way in another goroutine.
func TestEndWaitsForUse(t *testing.T) {
	s := newSite(t)
	lock := newConn(t, s.dsn)
	for name, status := range map[string]int{"COMMIT": 200, "ROLLBACK": 409} {
		t.Run(name, func(t *testing.T) {
			id := fresh()
			if _, err := lock.Exec(context.Background(), "SELECT pg_advisory_lock($1)", id); err != nil {
				t.Fatal(err)
			}
			last, unlocked := make(chan error, 1), make(chan struct{})
			s.want(status, status == 200, []int{id}, func(w http.ResponseWriter, r *http.Request) error {
				ctx := context.WithoutCancel(r.Context())
				if err := insert(ctx, key, "Exec", id, "text"); err != nil {
					return err
				}
				rows, err := key.Query(ctx, "SELECT repeat('x', 100), CASE g WHEN 5000 THEN pg_advisory_xact_lock($1)::text END FROM generate_series(1, 5000) g", id)
				if err != nil {
					return err
				}
				entered := make(chan struct{})
				go func() {
					close(entered)
					for rows.Next() { // waits for the lock
					}
					last <- rows.Err()
				}()
				<-entered
				eventually(t, "the query waits", func() bool {
					return s.number("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == 1
				})
				go func() { // when the request has ended, but for this
					defer close(unlocked)
					_, _ = lock.Exec(context.Background(), "SELECT pg_advisory_unlock($1)", id)
				}()
				w.WriteHeader(status)
				return nil
			})
			<-unlocked
			if err := <-last; err != nil && !strings.Contains(err.Error(), "ended early") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Rows that another goroutine uses while COMMIT reads what is left of them: nothing
// hangs, and the connection is given back.
func TestEndBesideUse(t *testing.T) {
	s := newSite(t)
	lock := newConn(t, s.dsn)
	id := fresh()
	if _, err := lock.Exec(context.Background(), "SELECT pg_advisory_lock($1)", id); err != nil {
		t.Fatal(err)
	}
	var beside sync.WaitGroup
	s.want(200, true, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
		if err := insert(r.Context(), key, "Exec", id, "text"); err != nil {
			return err
		}
		rows, err := key.Query(r.Context(), "SELECT repeat('x', 100), CASE g WHEN 5000 THEN pg_advisory_xact_lock($1)::text END FROM generate_series(1, 5000) g", id)
		if err != nil {
			return err
		}
		return sqlreq.BeforeCommit(r.Context(), func(context.Context) error {
			beside.Go(func() {
				for rows.Err() == nil {
					rows.RawValues()
				}
				if rows.Next() || !strings.Contains(rows.Err().Error(), "ended early") {
					t.Errorf("got %v", rows.Err())
				}
			})
			beside.Go(func() { // COMMIT has begun to read by then, or reads less
				eventually(t, "the query waits", func() bool {
					return s.number("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == 1
				})
				if _, err := lock.Exec(context.Background(), "SELECT pg_advisory_unlock_all()"); err != nil {
					t.Error(err)
				}
			})
			return nil
		})
	})
	beside.Wait()
}

// What is called after its end says why.
func TestEndedEarlySaysSo(t *testing.T) {
	s := newSite(t)
	for what, open := range openers {
		var o opened
		var rows pgx.Rows
		s.want(200, false, nil, func(_ http.ResponseWriter, r *http.Request) (err error) {
			if o, err = open(r.Context(), fresh()); err != nil {
				return err
			}
			return sqlreq.Commit(r.Context())
		})
		if err := o.close(); err == nil || !strings.Contains(err.Error(), "ended early") {
			t.Errorf("%s: got %v", what, err)
		}
		s.want(200, false, nil, func(_ http.ResponseWriter, r *http.Request) (err error) {
			if rows, err = key.Query(r.Context(), "SELECT 1"); err != nil {
				return err
			}
			return sqlreq.Commit(r.Context())
		})
		_, values := rows.Values()
		for _, err := range []error{values, rows.Scan(new(int)), rows.Err()} {
			if err == nil || !strings.Contains(err.Error(), "ended early") {
				t.Errorf("got %v", err)
			}
		}
		if rows.RawValues() != nil || rows.CommandTag().String() != "" || rows.Conn() == nil || rows.TypeMap() == nil || len(rows.FieldDescriptions()) != 1 {
			t.Errorf("the rows are not as closed ones: %v %q %v %v %v", rows.RawValues(), rows.CommandTag(), rows.Conn(), rows.TypeMap(), rows.FieldDescriptions())
		}
	}
}

func newConn(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(context.Background(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

// Open rows do not keep a connection that is taken over, nor its transaction.
func TestOpenAtHijack(t *testing.T) {
	s := newSite(t)
	id := fresh()
	h := sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if _, err := openers["rows"](r.Context(), id); err != nil {
			return err
		}
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		return err
	})
	s.handler.Store(&h)
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("got %v, %v", res, err)
	}
	if !s.stored(id) {
		t.Error("Hijack has not committed")
	}
}
