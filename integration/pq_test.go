package integration

import (
	"testing"

	_ "github.com/lib/pq"
	"github.com/sqlreq/sqlreq/integration/conformance"
	"github.com/sqlreq/sqlreq/internal/servers"
)

func init() {
	databases = append(databases, database{
		name:    "PostgreSQL, lib/pq",
		driver:  "postgres",
		dsn:     func(t testing.TB) string { return servers.SharedPostgres(t).DSN },
		dialect: conformance.PostgreSQL,
	})
}
