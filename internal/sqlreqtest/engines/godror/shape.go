// Package godror has the shapes of the driver and the error of github.com/godror/godror, for tests.
package godror

import "database/sql/driver"

// Driver opens nothing.
type Driver struct{ driver.Driver }

// OraErr is the driver's.
type OraErr struct{ Num int }

// Error says nothing.
func (*OraErr) Error() string { return "ORA" }

// Code returns the server's number.
func (e *OraErr) Code() int { return e.Num }

// SQLState returns none.
func (*OraErr) SQLState() string { return "" }
