// Package sqlite3 has the shapes of the errors of github.com/ncruces/go-sqlite3, for tests: a struct with methods
// that return numbers of two types, and errors that are such a number.
package sqlite3

// Error is the driver's.
type Error struct{ Num ExtendedErrorCode }

// Error says nothing.
func (*Error) Error() string { return "sqlite3" }

// Code returns the primary code.
func (e *Error) Code() ErrorCode { return ErrorCode(e.Num) }

// ExtendedCode returns the code as it is.
func (e *Error) ExtendedCode() ExtendedErrorCode { return e.Num }

// Timeout makes every error look like one of the network.
func (*Error) Timeout() bool { return false }

// ErrorCode is an error by itself.
type ErrorCode uint8

// Error says nothing.
func (ErrorCode) Error() string { return "sqlite3 code" }

// ExtendedCode returns the same number.
func (e ErrorCode) ExtendedCode() ExtendedErrorCode { return ExtendedErrorCode(e) }

// ExtendedErrorCode is an error by itself.
type ExtendedErrorCode uint16

// Error says nothing.
func (ExtendedErrorCode) Error() string { return "sqlite3 extended code" }

// Code returns the primary code.
func (e ExtendedErrorCode) Code() ErrorCode { return ErrorCode(e) }

// Timeout makes every error look like one of the network.
func (ExtendedErrorCode) Timeout() bool { return false }

// Strange has the method with another result, which says nothing.
type Strange struct{}

// Error says nothing.
func (Strange) Error() string { return "strange" }

// ExtendedCode returns no number.
func (Strange) ExtendedCode() string { return "5" }

// Asking has the method with an argument, which says nothing.
type Asking struct{}

// Error says nothing.
func (Asking) Error() string { return "asking" }

// ExtendedCode asks something.
func (Asking) ExtendedCode(int) uint16 { return 5 }
