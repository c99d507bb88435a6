//go:build cgo

package integration

import (
	"database/sql"
	"testing"

	"github.com/mattn/go-sqlite3"
)

func init() {
	sql.Register("sqlite3_leave", &sqlite3.SQLiteDriver{ConnectHook: func(c *sqlite3.SQLiteConn) error {
		return c.RegisterFunc("sqlreq_leave", callLeave, false)
	}})
	sqliteDrivers["sqlite3_leave"] = func(path string) string {
		return "file:" + path + "?_busy_timeout=10000&_journal_mode=WAL&_synchronous=OFF"
	}
	databases = append(databases, database{
		name:   "SQLite, mattn/go-sqlite3",
		driver: "sqlite3",
		dsn: func(t testing.TB) string {
			return "file:" + file(t) + "?_foreign_keys=1&_busy_timeout=10000&_journal_mode=WAL&_synchronous=OFF"
		},
		dialect: leavingSQLite(),
		leaving: "sqlite3_leave",
		leftOut: 2,
	})
}
