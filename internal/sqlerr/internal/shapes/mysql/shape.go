// Package mysql has the shape of the error of github.com/go-sql-driver/mysql, for tests.
package mysql

import "errors"

// ErrInvalidConn has the driver's text.
var ErrInvalidConn = errors.New("invalid connection")

// MySQLError is the driver's since v1.7.0.
type MySQLError struct {
	Number   uint16
	SQLState [5]byte
	Message  string
}

// Error panics on a nil receiver, as the driver's does.
func (me *MySQLError) Error() string { return me.Message }

// Is compares numbers, as the driver's does.
func (me *MySQLError) Is(err error) bool {
	other, ok := err.(*MySQLError)
	return ok && other.Number == me.Number
}

// OldError is the driver's before v1.7.0.
type OldError struct {
	Number  uint16
	Message string
}

// Error returns the message.
func (me *OldError) Error() string { return me.Message }

// StringState has an SQLState of another type than the driver's.
type StringState struct {
	Number   uint16
	SQLState string
}

// Error says nothing.
func (StringState) Error() string { return "string state" }

// Hidden has the right field at the wrong visibility, and one of the wrong type.
type Hidden struct {
	number uint16
	Number string
}

// Error returns the message.
func (h Hidden) Error() string { return h.Number + string(rune(h.number)) }

// Wrapper is a type of a driver's package that merely embeds the error.
type Wrapper struct{ *MySQLError }

// Warnings is an error that is no struct.
type Warnings []string

// Error says nothing.
func (Warnings) Error() string { return "warnings" }
