package benchmarks

import (
	"context"
	"net/http"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sqlreq/sqlreq"
	sqlreqpgx "github.com/sqlreq/sqlreq/adapters/pgx"
)

// natives run statements of pgx itself, on a pool of pgx's.
var natives = []contender{
	{name: "pgxpool"}, // by hand
	{"sqlreqpgx", func(s *site, o options) func(http.Handler) http.Handler {
		p := *s
		p.db = sqlreqpgx.OpenDB(s.pool)
		return newRegistry(&p, o).Middleware
	}, func(context.Context) (dbtx, error) { return nil, nil }, sqlreqFail},
}

// openPgx gives a site on PostgreSQL a pool of pgx's.
func (s *site) openPgx(t testing.TB) {
	t.Helper()
	config, err := pgxpool.ParseConfig(s.dsn)
	if err == nil {
		config.MaxConns = poolSize
		s.pool, err = pgxpool.NewWithConfig(t.Context(), config)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.pool.Close)
}

// pgxConn is a transaction of pgx, and a key of sqlreqpgx.
type pgxConn interface {
	Exec(ctx context.Context, query string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, query string, args ...any) (pgx.Rows, error)
	Begin(ctx context.Context) (pgx.Tx, error)
}

type pgxQuerier struct{ conn pgxConn }

func (q pgxQuerier) exec(ctx context.Context, query string) error {
	_, err := q.conn.Exec(ctx, query)
	return err
}

func (q pgxQuerier) each(ctx context.Context, query string, fn func([]byte) error) error {
	rows, err := q.conn.Query(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := fn(rows.RawValues()[0]); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (q pgxQuerier) savepoint(ctx context.Context, fn func(context.Context) error) error {
	return pgx.BeginFunc(ctx, q.conn, func(pgx.Tx) error { return fn(ctx) })
}

// nativeHandler returns the application that does the work on the pool of pgx's.
func (c contender) nativeHandler(s *site, j work, d deed) http.Handler {
	if c.middleware != nil {
		j.use = func(ctx context.Context, _ dbtx, w http.ResponseWriter) error {
			return d(ctx, pgxQuerier{sqlreqpgx.DefaultKey}, w)
		}
		return c.handler(s, j)
	}
	once := func(ctx context.Context, w http.ResponseWriter) error {
		var o pgx.TxOptions
		if j.tx != nil {
			o.IsoLevel = pgx.RepeatableRead
		}
		tx, err := s.pool.BeginTx(ctx, o)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(ctx) }()
		if err := d(ctx, pgxQuerier{tx}, w); err != nil {
			return err
		}
		return tx.Commit(ctx)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if j.when == nil || j.when(r) {
			err := once(r.Context(), w)
			for n := 1; n < j.attempts && sqlreq.IsRetryable(err); n++ {
				err = once(r.Context(), w)
			}
			if err != nil {
				http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
				return
			}
		}
		j.reply(w)
	})
}
