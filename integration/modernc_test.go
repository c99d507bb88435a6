package integration

import (
	"testing"

	"github.com/sqlreq/sqlreq/integration/conformance"
	_ "modernc.org/sqlite"
)

func init() {
	databases = append(databases, database{
		name:   "SQLite, modernc.org/sqlite",
		driver: "sqlite",
		dsn: func(t testing.TB) string {
			return "file:" + file(t) + "?_pragma=foreign_keys(1)&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)"
		},
		dialect: conformance.SQLite,
	})
}
