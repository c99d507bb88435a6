// Package gomssqldb has the shapes of the driver and the error of github.com/microsoft/go-mssqldb, for tests.
package gomssqldb

import "database/sql/driver"

// Driver opens nothing.
type Driver struct{ driver.Driver }

// Config is a struct of the driver's package, and no driver.
type Config struct{ Host string }

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

// ServerError is the driver's for an error after which the server severs the connection.
type ServerError struct{ Inner Error }

// Error says nothing.
func (ServerError) Error() string { return "server" }

// Unwrap returns the server's error.
func (e ServerError) Unwrap() error { return e.Inner }

// StreamError is the driver's for an answer that it cannot read.
type StreamError struct{}

// Error says nothing.
func (StreamError) Error() string { return "stream" }
