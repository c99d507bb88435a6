// Package duckdbgo has the shapes of the driver and the error of github.com/duckdb/duckdb-go/v2, for tests.
package duckdbgo

import "database/sql/driver"

// Driver opens nothing.
type Driver struct{ driver.Driver }

// Error is the driver's.
type Error struct {
	Type ErrorType
	Msg  string
}

// ErrorType is the driver's.
type ErrorType int

// Error returns the message.
func (e *Error) Error() string { return e.Msg }

// Other has fields of other types, which say nothing.
type Other struct{ Type, Msg string }

// Error says nothing.
func (Other) Error() string { return "other" }

// Text is an error that is no struct.
type Text string

// Error returns the text.
func (e Text) Error() string { return string(e) }
