package integration

import (
	"context"
	"database/sql"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
	sqlreqpgx "github.com/sqlreq/sqlreq/adapters/pgx"
	"github.com/sqlreq/sqlreq/integration/conformance"
	"github.com/sqlreq/sqlreq/internal/servers"
)

func init() {
	databases = append(databases, database{
		name:    "PostgreSQL, pgx",
		driver:  "pgx",
		dsn:     func(t testing.TB) string { return servers.SharedPostgres(t).DSN },
		dialect: conformance.PostgreSQL,
	}, database{
		name:    "PostgreSQL, pgxpool by adapters/pgx",
		driver:  "sqlreqpgx",
		dsn:     func(t testing.TB) string { return servers.SharedPostgres(t).DSN },
		dialect: conformance.PostgreSQL,
	})
}

// openPool opens a database of adapters/pgx, whose pool lives as long as the test.
func openPool(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	pool, err := pgxpool.New(context.Background(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	db := sqlreqpgx.OpenDB(pool)
	t.Cleanup(func() { db.Close() })
	return db
}
