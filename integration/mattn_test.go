//go:build cgo

package integration

import (
	"testing"

	_ "github.com/mattn/go-sqlite3"
	"github.com/sqlreq/sqlreq/integration/conformance"
)

func init() {
	databases = append(databases, database{
		name:   "SQLite, mattn/go-sqlite3",
		driver: "sqlite3",
		dsn: func(t testing.TB) string {
			return "file:" + file(t) + "?_foreign_keys=1&_busy_timeout=10000&_journal_mode=WAL&_synchronous=OFF"
		},
		dialect: conformance.SQLite,
	})
}
