// Package sqlite has the shape of the error of modernc.org/sqlite, for tests.
package sqlite

// Error has a method with the extended result code.
type Error struct {
	Msg string
	Num int
}

// Error panics on a nil receiver, as the driver's does.
func (e *Error) Error() string { return e.Msg }

// Code returns the extended result code.
func (e *Error) Code() int { return e.Num }

// Base gives the embedded field a name that hides no method.
type Base = Error

// Wrapper is a type of a driver's package that merely embeds the error.
type Wrapper struct{ *Base }

// Net has a method of network errors, as the error of github.com/ncruces/go-sqlite3.
type Net struct{ *Base }

// Timeout reports whether the database was busy.
func (n Net) Timeout() bool { return n.Num == 5 }

// ErrNo is an error that is no struct and has no method Code.
type ErrNo int

// Error says nothing.
func (ErrNo) Error() string { return "errno" }
