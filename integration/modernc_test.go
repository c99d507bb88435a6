package integration

import (
	"database/sql/driver"
	"testing"

	"modernc.org/sqlite"
)

func init() {
	sqlite.MustRegisterScalarFunction("sqlreq_leave", 0, func(*sqlite.FunctionContext, []driver.Value) (driver.Value, error) { return callLeave(), nil })
	sqliteDrivers["sqlite"] = func(path string) string {
		return "file:" + path + "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)"
	}
	databases = append(databases, database{
		name:   "SQLite, modernc.org/sqlite",
		driver: "sqlite",
		dsn: func(t testing.TB) string {
			return "file:" + file(t) + "?_pragma=foreign_keys(1)&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)"
		},
		dialect: leavingSQLite(),
		leftOut: 2,
	})
}
