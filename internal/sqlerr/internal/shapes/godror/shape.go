// Package godror has the shape of the error of github.com/godror/godror, for tests.
package godror

// OraErr is the driver's.
type OraErr struct{ Num int }

// Error says nothing.
func (*OraErr) Error() string { return "ORA" }

// Code returns the server's number.
func (e *OraErr) Code() int { return e.Num }

// SQLState returns none.
func (*OraErr) SQLState() string { return "" }
