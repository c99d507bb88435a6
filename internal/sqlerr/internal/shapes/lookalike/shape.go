// Package lookalike has errors of an application that happen to look like a driver's, for tests.
package lookalike

// Coded has modernc's method.
type Coded struct{ Num int }

// Error says nothing.
func (*Coded) Error() string { return "coded" }

// Code returns an application's code.
func (e *Coded) Code() int { return e.Num }

// Fields has mattn's fields.
type Fields struct{ Code, ExtendedCode int }

// Error says nothing.
func (Fields) Error() string { return "fields" }

// Numbered has MySQL's fields.
type Numbered struct {
	Number   uint16
	SQLState [5]byte
}

// Error says nothing.
func (*Numbered) Error() string { return "numbered" }
