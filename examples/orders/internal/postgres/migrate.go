package postgres

import (
	"context"
	"embed"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/sqlreq/sqlreq/examples/orders/internal/postgres/ordersdb"
	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
	"github.com/sqlreq/sqlreq/examples/orders/internal/tenant"
	"github.com/sqlreq/sqlreq/idempotency"
)

//go:embed migrations/*.sql
var migrations embed.FS

// lockID is any number that no other program on this database locks.
const lockID = 0x6f7264657273

// migrate brings the tables up to date. Processes that start together take turns by a lock of the session, so the DSN
// must lead to the server, not through a pooler in transaction mode.
func migrate(ctx context.Context, pool *pgxpool.Pool, stock int64) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	// The lock ends with the session. It is not given back to the pool, which would keep both.
	session := conn.Hijack()
	defer session.Close(context.WithoutCancel(ctx))
	if _, err := session.Exec(ctx, "SELECT pg_advisory_lock($1)", int64(lockID)); err != nil {
		return err
	}

	river, err := rivermigrate.New(riverpgxv5.New(pool), nil)
	if err != nil {
		return err
	}
	if _, err := river.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return fmt.Errorf("the tables of River: %w", err)
	}
	for _, query := range idempotency.PostgreSQL.Schema("") {
		if _, err := session.Exec(ctx, query); err != nil {
			return err
		}
	}
	if _, err := session.Exec(ctx, "CREATE TABLE IF NOT EXISTS schema_migrations (name text PRIMARY KEY)"); err != nil {
		return err
	}
	names, err := fs.Glob(migrations, "migrations/*.sql") // in the order of their names
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := apply(ctx, session, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return seed(ctx, session, stock)
}

// apply runs a file that was not run yet, and notes it in the same transaction.
func apply(ctx context.Context, session *pgx.Conn, name string) error {
	text, err := migrations.ReadFile(name)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, session, func(tx pgx.Tx) error {
		done, err := tx.Exec(ctx, "INSERT INTO schema_migrations (name) VALUES ($1) ON CONFLICT DO NOTHING", name)
		if err != nil || done.RowsAffected() == 0 {
			return err
		}
		_, err = tx.Exec(ctx, string(text))
		return err
	})
}

// seed puts the assortment of each tenant there that is new. The policies hold for the owner of the tables too.
func seed(ctx context.Context, session *pgx.Conn, stock int64) error {
	return pgx.BeginFunc(ctx, session, func(tx pgx.Tx) error {
		q := ordersdb.New(tx)
		for _, name := range tenant.All {
			if _, err := tx.Exec(ctx, "SELECT set_config('app.tenant', $1, true)", name); err != nil {
				return err
			}
			for _, p := range shop.Assortment(stock) {
				if err := q.Seed(ctx, ordersdb.SeedParams{ID: p.ID, Name: p.Name, Price: p.Price, Stock: p.Stock, Initial: p.Initial}); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
