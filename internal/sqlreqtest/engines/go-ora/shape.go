// Package goora has the shapes of the driver and the error of github.com/sijms/go-ora/v2/network, for tests.
package goora

import "database/sql/driver"

// Driver opens nothing.
type Driver struct{ driver.Driver }

// OracleError is the driver's.
type OracleError struct {
	ErrCode int
	ErrMsg  string
}

// Error returns the text.
func (e *OracleError) Error() string { return e.ErrMsg }

// Other has a field of another type, which says nothing.
type Other struct{ ErrCode string }

// Error says nothing.
func (Other) Error() string { return "other" }

// Text is an error that is no struct.
type Text string

// Error returns the text.
func (e Text) Error() string { return string(e) }
