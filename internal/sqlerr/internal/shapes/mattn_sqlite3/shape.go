// Package sqlite3 has the shape of the error of github.com/mattn/go-sqlite3, for tests.
package sqlite3

import "syscall"

// ErrNo is a primary result code.
type ErrNo int

// ErrNoExtended is an extended result code.
type ErrNoExtended int

// Error is returned by value.
type Error struct {
	Code         ErrNo
	ExtendedCode ErrNoExtended
	SystemErrno  syscall.Errno
	err          string
}

// Error returns the message.
func (err Error) Error() string { return "sqlite3" + err.err }

// Hidden has the right field names at the wrong visibility and type.
type Hidden struct {
	code         int
	Code         string
	ExtendedCode string
}

// Error returns the message.
func (h Hidden) Error() string { return string(rune(h.code)) }
