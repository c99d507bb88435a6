// Package gomssqldb has the shapes of the driver and the error of github.com/microsoft/go-mssqldb, for tests.
package gomssqldb

import "database/sql/driver"

// Driver opens nothing.
type Driver struct{ driver.Driver }

// Error is the driver's, a value.
type Error struct {
	Number int32
	Class  uint8
}

// Error says nothing.
func (Error) Error() string { return "mssql" }

// SQLErrorNumber returns the server's number.
func (e Error) SQLErrorNumber() int32 { return e.Number }

// SQLErrorClass returns the severity.
func (e Error) SQLErrorClass() uint8 { return e.Class }

// StreamError is another error of the driver's, without a number.
type StreamError struct{}

// Error says nothing.
func (StreamError) Error() string { return "stream" }
