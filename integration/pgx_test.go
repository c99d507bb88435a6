package integration

import (
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/sqlreq/sqlreq/integration/conformance"
	"github.com/sqlreq/sqlreq/internal/servers"
)

func init() {
	databases = append(databases, database{
		name:    "PostgreSQL, pgx",
		driver:  "pgx",
		dsn:     func(t testing.TB) string { return servers.SharedPostgres(t).DSN },
		dialect: conformance.PostgreSQL,
	})
}
