package sqlreqpgx_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sqlreq/sqlreq"
	sqlreqpgx "github.com/sqlreq/sqlreq/adapters/pgx"
)

// 2xx commits; 4xx, an error, a panic and a failed deferred constraint don't.
func TestOutcome(t *testing.T) {
	s := newSite(t)
	ends := map[string]struct {
		status int
		stored bool
		end    func(http.ResponseWriter, *http.Request) error
	}{
		"2xx":   {201, true, func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(201); return nil }},
		"4xx":   {422, false, func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(422); return nil }},
		"error": {409, false, func(http.ResponseWriter, *http.Request) error { return sqlreq.Errorf(409, "no") }},
		"panic": {0, false, func(http.ResponseWriter, *http.Request) error { panic(http.ErrAbortHandler) }},
		"deferred constraint": {500, false, func(_ http.ResponseWriter, r *http.Request) error {
			_, err := key.Exec(r.Context(), "INSERT INTO children VALUES (-1)")
			return err
		}},
	}
	queriers := map[string]func(context.Context) (querier, error){
		"Key":   func(context.Context) (querier, error) { return key, nil },
		"Tx":    func(ctx context.Context) (querier, error) { return sqlreqpgx.Tx(ctx) },
		"Begin": func(ctx context.Context) (querier, error) { return key.Begin(ctx) },
	}
	for name, e := range ends {
		for by, of := range queriers {
			for _, kind := range kinds {
				t.Run(name+"/"+by+"/"+kind, func(t *testing.T) {
					id := fresh()
					s.want(e.status, e.stored, []int{id}, func(w http.ResponseWriter, r *http.Request) error {
						q, err := of(r.Context())
						if err != nil {
							return err
						}
						if err := insert(r.Context(), q, kind, id, "text"); err != nil {
							return err
						}
						if tx, ok := q.(pgx.Tx); ok && by == "Begin" {
							if err := tx.Commit(r.Context()); err != nil {
								return err
							}
						}
						return e.end(w, r)
					})
				})
			}
		}
	}
}

// No use, no connection.
func TestNoUseNoConnection(t *testing.T) {
	s := newSite(t)
	before := s.pool.Stat().AcquireCount()
	s.want(200, false, nil, func(http.ResponseWriter, *http.Request) error {
		key.QueryRow(context.Background(), "SELECT 1") // without a Scan it is not sent
		return nil
	})
	if got := s.pool.Stat().AcquireCount() - before; got != 0 {
		t.Errorf("got %d connections taken, want 0", got)
	}
}

// Key, *sql.Tx and native statements share one connection for the transaction's life,
// and another one holds after it.
func TestOneConnection(t *testing.T) {
	s := newSite(t)
	const who = "SELECT pg_backend_pid() || '/' || txid_current()"
	s.want(200, false, nil, func(_ http.ResponseWriter, r *http.Request) error {
		ctx := r.Context()
		var got [6]string
		tx, err := sqlreq.Tx(ctx)
		if err != nil {
			return err
		}
		native, err := sqlreqpgx.Tx(ctx)
		if err != nil {
			return err
		}
		sp, err := key.Begin(ctx)
		if err != nil {
			return err
		}
		err = errors.Join(
			tx.QueryRow(who).Scan(&got[0]),
			key.QueryRow(ctx, who).Scan(&got[1]),
			native.QueryRow(ctx, who).Scan(&got[2]),
			sp.QueryRow(ctx, who).Scan(&got[3]),
			sqlreq.DefaultKey.QueryRowContext(ctx, who).Scan(&got[4]),
			sp.Commit(ctx),
			native.Conn().QueryRow(ctx, who).Scan(&got[5]))
		if err != nil {
			return err
		}
		if others := slices.Compact(got[:]); len(others) != 1 {
			t.Errorf("got %v, want one connection and transaction", others)
		}
		if n := s.pool.Stat().AcquiredConns(); n != 1 {
			t.Errorf("got %d connections in use, want 1", n)
		}
		return nil
	})
	if n := s.pool.Stat().AcquiredConns(); n != 0 {
		t.Errorf("got %d connections in use after the request, want 0", n)
	}
}

// After an error that the handler swallows PostgreSQL commits nothing: a 500.
func TestSwallowedErrorIsNoSuccess(t *testing.T) {
	s := newSite(t)
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			before, after := fresh(), fresh()
			a := s.want(500, false, []int{before, after}, func(_ http.ResponseWriter, r *http.Request) error {
				if err := insert(r.Context(), key, kind, before, "text"); err != nil {
					return err
				}
				if err := insert(r.Context(), key, kind, before, "text"); !hasState(err, "23505") {
					t.Errorf("got %v, want 23505", err)
				}
				if err := insert(r.Context(), key, kind, after, "text"); !hasState(err, "25P02") {
					t.Errorf("got %v, want 25P02", err)
				}
				return nil
			})
			if a.ambiguous() {
				t.Errorf("the outcome is unknown: %v", a.events)
			}
		})
	}
}

// Retry sees conflicts of native statements, also those that a plain handler hides.
func TestRetrySeesNativeConflicts(t *testing.T) {
	s := newSite(t, twice)
	for _, kind := range kinds {
		for _, hidden := range []bool{false, true} {
			t.Run(kind+map[bool]string{true: "/hidden"}[hidden], func(t *testing.T) {
				id, attempts := fresh(), 0
				s.want(200, true, []int{id}, func(w http.ResponseWriter, r *http.Request) error {
					attempts++
					text := "text"
					if attempts == 1 {
						text = "conflict"
					}
					err := insert(r.Context(), key, kind, id, text)
					if err != nil && hidden {
						http.Error(w, "something failed", 500)
						return nil
					}
					return err
				})
				if attempts != 2 {
					t.Errorf("got %d attempts, want 2", attempts)
				}
			})
		}
	}
}

// A conflict that is met when the rows that are left open are read at the end, or by
// Next, is seen too.
func TestRetrySeesLateConflicts(t *testing.T) {
	s := newSite(t, twice)
	const query = "SELECT conflict_at(g, 5000) FROM generate_series(1, 10000) g"
	for name, open := range map[string]func(context.Context) error{
		"rows left open": func(ctx context.Context) error { return second(key.Query(ctx, query)) },
		"batch left open": func(ctx context.Context) error {
			var b pgx.Batch
			b.Queue(query)
			key.SendBatch(ctx, &b)
			return nil
		},
		"rows read, swallowed": func(ctx context.Context) error {
			rows, err := key.Query(ctx, query)
			for rows.Next() {
			}
			return err
		},
		"rows closed, swallowed": func(ctx context.Context) error {
			rows, err := key.Query(ctx, query)
			rows.Close()
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			id, attempts := fresh(), 0
			s.want(200, true, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
				if err := insert(r.Context(), key, "Exec", id, "text"); err != nil {
					return err
				}
				if attempts++; attempts == 1 {
					return open(r.Context())
				}
				return nil
			})
			if attempts != 2 {
				t.Errorf("got %d attempts, want 2", attempts)
			}
		})
	}
}

// A conflict that comes after another error of the same batch is seen, too.
func TestRetrySeesConflictAfterAnotherError(t *testing.T) {
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} { // in the others pgx itself says the first one again
		t.Run(mode.String(), func(t *testing.T) {
			j := newJudge(t)
			s := newSiteOn(t, j, newPool(t, j.dsn, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode }), twice)
			id, attempts := fresh(), 0
			s.want(200, true, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
				text := "text"
				if attempts++; attempts == 1 {
					text = "conflict"
				}
				var b pgx.Batch
				b.Queue("SELECT 'no number'")
				b.Queue(insertNote, id, text)
				results := key.SendBatch(r.Context(), &b)
				defer results.Close()
				if results.QueryRow().Scan(new(int)) == nil {
					t.Error("scanned")
				}
				_, err := results.Exec()
				if attempts == 1 && !hasState(err, "40001") {
					t.Errorf("got %v, want a conflict", err)
				}
				return nil // swallowed
			})
			if attempts != 2 {
				t.Errorf("got %d attempts, want 2", attempts)
			}
		})
	}
}

// Real conflicts: each of a number of requests that count the rows and insert one more
// succeeds, and none has counted what another one has.
func TestRetrySerializable(t *testing.T) {
	const n = 8
	s := newSite(t, onBinding(func(b *sqlreq.Binding) {
		b.TxOptions = serializable
	}), onRegistry(func(reg *sqlreq.Registry) { reg.Retry = sqlreq.Retry{Attempts: 100, Within: patience} }))
	h := sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		var id int
		if err := key.QueryRow(r.Context(), "SELECT count(*) FROM tally").Scan(&id); err != nil {
			return err
		}
		var b pgx.Batch
		b.Queue("INSERT INTO tally VALUES ($1)", id)
		return key.SendBatch(r.Context(), &b).Close()
	})
	s.handler.Store(&h)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			status, body := s.post(context.Background(), "/")
			if status != 200 {
				t.Errorf("got %d %q, want 200", status, body)
			}
		})
	}
	wg.Wait()
	if got := s.number("SELECT count(DISTINCT n) FROM tally"); got != n {
		t.Errorf("got %d different numbers, want %d", got, n)
	}
}

// A copy of 100,000 rows, with 422 and with 200.
func TestCopyFrom(t *testing.T) {
	s := newSite(t)
	const rows = 100_000
	for _, c := range []struct{ status, stored int }{{422, 0}, {200, rows}} {
		s.want(c.status, false, nil, func(w http.ResponseWriter, r *http.Request) error {
			n, err := key.CopyFrom(r.Context(), pgx.Identifier{"notes"}, []string{"id", "text"},
				pgx.CopyFromSlice(rows, func(i int) ([]any, error) { return []any{i, "text"}, nil }))
			if err != nil {
				return err
			}
			if n != rows {
				t.Errorf("got %d, want %d", n, rows)
			}
			w.WriteHeader(c.status)
			return nil
		})
		if got := s.number("SELECT count(*) FROM notes"); got != c.stored {
			t.Errorf("after %d: got %d rows, want %d", c.status, got, c.stored)
		}
	}
}

// What a row or rows tell is what native pgx tells.
func TestAsNative(t *testing.T) {
	s := newSite(t)
	ask := func(ctx context.Context, q querier) (told []string) {
		tell := func(err error) { told = append(told, fmt.Sprint(err)) }
		var n int
		tell(q.QueryRow(ctx, "SELECT 1/(g - 2) FROM generate_series(3, 9) g").Scan(&n))
		tell(q.QueryRow(ctx, "SELECT 1 WHERE false").Scan(&n))
		tell(q.QueryRow(ctx, "SELECT 1, 2").Scan(&n))
		tell(q.QueryRow(ctx, "SELECT 'x'").Scan(&n))
		tell(q.QueryRow(ctx, "SELECT 1").Scan(new(pgtype.DriverBytes)))
		rows, err := q.Query(ctx, "SELECT g, 'x' FROM generate_series(1, 3) g")
		tell(err)
		for rows.Next() {
			values, err := rows.Values()
			tell(err)
			told = append(told, fmt.Sprint(values, rows.FieldDescriptions()[1].Name, len(rows.RawValues()), rows.CommandTag(), rows.Err()))
		}
		rows.Close()
		told = append(told, fmt.Sprint(rows.Err(), rows.CommandTag(), rows.Next()))
		rows, err = q.Query(ctx, "SELECT g FROM generate_series(1, 3) g")
		tell(err)
		rows.Next()
		tell(rows.Scan(&n, &n))
		told = append(told, fmt.Sprint(rows.Err(), rows.Next()))
		rows, err = q.Query(ctx, "SELECT $1::int", "x")
		tell(err)
		told = append(told, fmt.Sprint(rows.Err(), rows.Next(), rows.CommandTag()))
		rows.Close()
		var b pgx.Batch
		b.Queue("SELECT 1")
		b.Queue("SELECT generate_series(1, 3)")
		b.Queue("SELECT 2")
		b.Queue("SELECT 3")
		results := q.SendBatch(ctx, &b)
		tag, err := results.Exec()
		told = append(told, fmt.Sprint(tag, err))
		rows, err = results.Query()
		tell(err)
		got, err := pgx.CollectRows(rows, pgx.RowTo[int])
		told = append(told, fmt.Sprint(got, err, rows.CommandTag()))
		tell(results.QueryRow().Scan(&n))
		tell(results.QueryRow().Scan(new(func())))
		told = append(told, fmt.Sprint(n))
		tell(second(results.Exec()))
		tell(results.Close())
		tell(results.Close())
		tell(q.SendBatch(ctx, &pgx.Batch{}).Close())
		var begins pgx.Batch
		begins.BeginTx(pgx.TxOptions{})
		tell(q.SendBatch(ctx, &begins).Close())
		told = append(told, fmt.Sprint(q.Exec(ctx, "SELECT 1")))
		tell(second(q.CopyFrom(ctx, pgx.Identifier{"none"}, []string{"n"}, pgx.CopyFromRows(nil))))
		tell(q.QueryRow(ctx, "SELECT 1/(g - 2) FROM generate_series(1, 3) g").Scan(&n)) // 25P02
		return told
	}
	prepare := func(ctx context.Context, tx pgx.Tx) (told []string) {
		d, err := tx.Prepare(ctx, "named", "SELECT $1::int + 1")
		told = append(told, fmt.Sprint(d != nil && len(d.ParamOIDs) == 1, err))
		var n int
		told = append(told, fmt.Sprint(tx.QueryRow(ctx, "named", 1).Scan(&n), n))
		sp, err := tx.Begin(ctx)
		told = append(told, fmt.Sprint(err, sp.QueryRow(ctx, "SELECT nonsense").Scan(&n), sp.Rollback(ctx)))
		sp, err = tx.Begin(ctx) // an error behind the first row
		told = append(told, fmt.Sprint(err, sp.QueryRow(ctx, "SELECT 1/(g - 2) FROM generate_series(1, 3) g").Scan(&n), sp.Rollback(ctx)))
		_, err = tx.Prepare(ctx, "wrong", "SELECT FROM WHERE")
		return append(told, fmt.Sprint(err))
	}
	var want, got [2][]string
	for i := range want {
		tx, err := s.pool.Begin(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			want[i] = ask(context.Background(), tx)
		} else {
			want[i] = prepare(context.Background(), tx)
		}
		if err := tx.Rollback(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	s.want(404, false, nil, func(w http.ResponseWriter, r *http.Request) error {
		got[0] = ask(r.Context(), key)
		w.WriteHeader(404)
		return nil
	})
	s.want(404, false, nil, func(w http.ResponseWriter, r *http.Request) error {
		tx, err := sqlreqpgx.Tx(r.Context())
		if err != nil {
			return err
		}
		got[1] = prepare(r.Context(), tx)
		w.WriteHeader(404)
		return nil
	})
	for i := range want {
		for n := range max(len(want[i]), len(got[i])) {
			if n >= len(want[i]) || n >= len(got[i]) || want[i][n] != got[i][n] {
				t.Errorf("got\n%q\nnative pgx has\n%q", got[i][n:], want[i][n:])
				break
			}
		}
	}
}
