// Package mysqlite has errors in the shape of two families of drivers, which
// sqlreq knows by the package path of their types: "mysql" and "sqlite".
package mysqlite

import "fmt"

// MySQL has the field of the error of go-sql-driver/mysql.
type MySQL struct{ Number uint16 }

// Error returns the number.
func (e *MySQL) Error() string { return fmt.Sprintf("MySQL error %d", e.Number) }

// SQLite has the method of the error of modernc.org/sqlite.
type SQLite struct{ Result int }

// Error returns the code.
func (e *SQLite) Error() string { return fmt.Sprintf("SQLite error (%d)", e.Result) }

// Code returns the extended result code.
func (e *SQLite) Code() int { return e.Result }

// State has the method of the errors of the drivers for PostgreSQL.
type State string

// Error returns the SQLSTATE.
func (s State) Error() string { return "SQLSTATE " + string(s) }

// SQLState returns the SQLSTATE.
func (s State) SQLState() string { return string(s) }
