// Package pq has the shape of the errors of github.com/lib/pq, for tests.
package pq

import "errors"

// ErrInFailedTransaction has the driver's text.
var ErrInFailedTransaction = errors.New("pq: Could not complete operation in a failed transaction")

// ErrorCode is an SQLSTATE.
type ErrorCode string

// Error has the SQLSTATE in a field and in a method.
type Error struct {
	Code    ErrorCode
	Message string
}

// Error panics on a nil receiver, as the driver's does.
func (err *Error) Error() string { return "pq: " + err.Message }

// SQLState returns the SQLSTATE.
func (err *Error) SQLState() string { return string(err.Code) }
