package sqlreqpgx_test

import (
	"context"
	"flag"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/sqlreq/sqlreq"
)

var cost = flag.Bool("cost", false, "measure the cost against native pgx, and against a Key on stdlib")

// work is what is measured: of a Key, or of a native pgx.Tx; and the same by
// database/sql, where that can do it.
type work struct {
	name   string
	bar    float64 // of the time against native pgx
	native func(context.Context, querier) error
	sql    func(context.Context) error
	n      int // how many in one turn
}

var works = []work{
	{"Exec", 1.15, func(ctx context.Context, q querier) error {
		return second(q.Exec(ctx, "INSERT INTO tally VALUES ($1)", 1))
	}, func(ctx context.Context) error {
		return second(sqlreq.DefaultKey.ExecContext(ctx, "INSERT INTO tally VALUES ($1)", 1))
	}, 400},
	{"QueryRow", 1.1, func(ctx context.Context, q querier) error {
		var n int
		return q.QueryRow(ctx, "SELECT g FROM generate_series(1, $1) g", 1).Scan(&n)
	}, func(ctx context.Context) error {
		var n int
		return sqlreq.DefaultKey.QueryRowContext(ctx, "SELECT g FROM generate_series(1, $1) g", 1).Scan(&n)
	}, 400},
	{"Query, 100 rows", 1.1, func(ctx context.Context, q querier) error {
		rows, err := q.Query(ctx, "SELECT g, g::text FROM generate_series(1, $1) g", 100)
		if err != nil {
			return err
		}
		var n int
		var s string
		for rows.Next() {
			if err := rows.Scan(&n, &s); err != nil {
				return err
			}
		}
		return rows.Err()
	}, func(ctx context.Context) error {
		rows, err := sqlreq.DefaultKey.QueryContext(ctx, "SELECT g, g::text FROM generate_series(1, $1) g", 100)
		if err != nil {
			return err
		}
		defer rows.Close()
		var n int
		var s string
		for rows.Next() {
			if err := rows.Scan(&n, &s); err != nil {
				return err
			}
		}
		return rows.Err()
	}, 200},
	{"CopyFrom, 100 rows", 1.1, func(ctx context.Context, q querier) error {
		return second(q.CopyFrom(ctx, pgx.Identifier{"tally"}, []string{"n"}, pgx.CopyFromSlice(100, func(i int) ([]any, error) { return []any{i}, nil })))
	}, nil, 100},
	{"SendBatch, 10 statements", 1.1, func(ctx context.Context, q querier) error {
		var b pgx.Batch
		for i := range 10 {
			b.Queue("SELECT g FROM generate_series(1, $1) g", i)
		}
		return q.SendBatch(ctx, &b).Close()
	}, nil, 100},
}

// contenders run work in a transaction of native pgx, of a Key, and of a Key on stdlib.
type contenders struct {
	t      *testing.T
	s      *site
	stdlib *sqlreq.Registry
}

func newContenders(t *testing.T) *contenders {
	s := newSite(t)
	db := stdlib.OpenDBFromPool(s.pool)
	t.Cleanup(func() { db.Close() })
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		t.Fatal(err)
	}
	s.reg.Observe = nil
	return &contenders{t, s, reg}
}

func (c *contenders) inNative(fn func(context.Context, querier) error) {
	ctx := context.Background()
	tx, err := c.s.pool.Begin(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	if err := fn(ctx, tx); err != nil {
		c.t.Fatal(err)
	}
}

func (c *contenders) inKey(fn func(context.Context, querier) error) {
	c.in(c.s.reg, func(ctx context.Context) error { return fn(ctx, key) })
}

func (c *contenders) in(reg *sqlreq.Registry, fn func(context.Context) error) {
	err := reg.Do(context.Background(), func(ctx context.Context) error {
		if err := fn(ctx); err != nil {
			c.t.Fatal(err)
		}
		return errUndo
	})
	if err != errUndo {
		c.t.Fatal(err)
	}
}

// At most 8 allocations more than native pgx.
func TestAllocations(t *testing.T) {
	c := newContenders(t)
	for _, w := range works {
		got := [2]uint64{math.MaxUint64, math.MaxUint64}
		count := func(i int) func(context.Context, querier) error {
			return func(ctx context.Context, q querier) error {
				// The least of many: what runs in the background allocates too, a collection empties caches, and the race
				// detector has a sync.Pool forget at random. All of that only adds.
				for range 300 {
					var before, after runtime.MemStats
					runtime.ReadMemStats(&before)
					if err := w.native(ctx, q); err != nil {
						return err
					}
					runtime.ReadMemStats(&after)
					got[i] = min(got[i], after.Mallocs-before.Mallocs)
				}
				return nil
			}
		}
		c.inNative(count(0))
		c.inKey(count(1))
		t.Logf("%s: %d, native pgx %d", w.name, got[1], got[0])
		if got[1] > got[0]+8 {
			t.Errorf("%s: got %d allocations, native pgx %d, want at most 8 more", w.name, got[1], got[0])
		}
	}
}

// What it costs, side by side in one run, in turns, medians: go test -run TestCost -cost -v.
func TestCost(t *testing.T) {
	if !*cost {
		return
	}
	c := newContenders(t)
	const rounds = 41
	for _, w := range works {
		var took [3][]float64
		timed := func(i int, one func() error) error {
			start := time.Now()
			for range w.n {
				if err := one(); err != nil {
					return err
				}
			}
			took[i] = append(took[i], float64(time.Since(start))/float64(w.n))
			return nil
		}
		for range rounds {
			c.inNative(func(ctx context.Context, q querier) error { return timed(0, func() error { return w.native(ctx, q) }) })
			c.inKey(func(ctx context.Context, q querier) error { return timed(1, func() error { return w.native(ctx, q) }) })
			if w.sql != nil {
				c.in(c.stdlib, func(ctx context.Context) error { return timed(2, func() error { return w.sql(ctx) }) })
			}
		}
		native, ours := median(took[0]), median(took[1])
		t.Logf("%-26s native %8.0f ns, Key %8.0f ns: %.3f (bar %.2f)", w.name, native, ours, ours/native, w.bar)
		if w.sql != nil {
			t.Logf("%-26s Key on stdlib %8.0f ns: %.3f", "", median(took[2]), ours/median(took[2]))
		}
		if ours/native > w.bar {
			t.Errorf("%s: %.3f times native pgx, the bar is %.2f", w.name, ours/native, w.bar)
		}
	}
	c.requests()
}

// requests compares whole requests: one INSERT and one SELECT, the same by hand on the pool.
func (c *contenders) requests() {
	do := func(ctx context.Context, q querier) error {
		if _, err := q.Exec(ctx, "INSERT INTO tally VALUES ($1)", 1); err != nil {
			return err
		}
		var n int
		return q.QueryRow(ctx, "SELECT g FROM generate_series(1, $1) g", 1).Scan(&n)
	}
	handlers := []http.Handler{
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			err := pgx.BeginFunc(r.Context(), c.s.pool, func(tx pgx.Tx) error { return do(r.Context(), tx) })
			if err != nil {
				http.Error(w, err.Error(), 500)
				return
			}
			_, _ = w.Write([]byte("ok"))
		}),
		c.s.reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			if err := do(r.Context(), key); err != nil {
				return err
			}
			_, err := w.Write([]byte("ok"))
			return err
		})),
		c.stdlib.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			if _, err := sqlreq.DefaultKey.ExecContext(r.Context(), "INSERT INTO tally VALUES ($1)", 1); err != nil {
				return err
			}
			var n int
			if err := sqlreq.DefaultKey.QueryRowContext(r.Context(), "SELECT g FROM generate_series(1, $1) g", 1).Scan(&n); err != nil {
				return err
			}
			_, err := w.Write([]byte("ok"))
			return err
		})),
	}
	var took [3][]float64
	for range 41 {
		for i, h := range handlers {
			ctx, cancel := context.WithCancel(context.Background())
			start := time.Now()
			for range 100 {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil).WithContext(ctx))
				if w.Code != 200 {
					c.t.Fatal(w.Code, w.Body)
				}
			}
			took[i] = append(took[i], float64(time.Since(start))/100)
			cancel()
		}
	}
	c.t.Logf("%-26s by hand %8.0f ns, Middleware %8.0f ns: %.3f", "a request, in memory", median(took[0]), median(took[1]), median(took[1])/median(took[0]))
	c.t.Logf("%-26s Middleware on stdlib %8.0f ns: %.3f", "", median(took[2]), median(took[1])/median(took[2]))
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}
