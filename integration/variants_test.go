package integration

import (
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/sqlreq/sqlreq/integration/conformance"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// variants are databases reached in another way: by a pooler in transaction mode, where
// each transaction may run on another connection and there are fewer of these than
// transactions at once; with rows counted that were found, not changed.
var variants = []database{
	{
		name:   "PostgreSQL, pgx, PgBouncer",
		driver: "pgx",
		dsn: func(t testing.TB) string {
			// Prepared statements do not survive a change of the connection.
			return withOption(t, pooled(t), "default_query_exec_mode", "exec")
		},
		dialect: conformance.PostgreSQL,
	},
	{
		name:    "PostgreSQL, lib/pq, PgBouncer",
		driver:  "postgres",
		dsn:     pooled,
		dialect: conformance.PostgreSQL,
	},
	{
		name:   "MariaDB, go-sql-driver/mysql, clientFoundRows",
		driver: "mysql",
		dsn: func(t testing.TB) string {
			c, err := mysql.ParseDSN(servers.SharedMariaDB(t).DSN)
			if err != nil {
				t.Fatal(err)
			}
			c.ClientFoundRows, c.InterpolateParams = true, true
			return c.FormatDSN()
		},
		dialect: conformance.MySQL,
	},
}

// pooled returns the DSN of a new pooler before the server that the tests share.
func pooled(t testing.TB) string {
	t.Helper()
	p := servers.SharedPostgres(t)
	if !p.Own() {
		t.Skipf("%s is set; a pooler is started before a server of the tests' own only", servers.PostgresDSN)
	}
	return servers.NewPgBouncer(t, p, "default_pool_size = 4").DSN
}
