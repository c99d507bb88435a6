// Package firebirdsql has the shape of the error of github.com/nakagami/firebirdsql, for tests.
package firebirdsql

// FbError is the driver's.
type FbError struct {
	GDSCodes []int
	SQLState string
}

// Error says nothing.
func (*FbError) Error() string { return "firebird" }

// Other has fields of other types, which say nothing.
type Other struct {
	GDSCodes []string
	SQLState int
}

// Error says nothing.
func (Other) Error() string { return "other" }

// Text is an error that is no struct.
type Text string

// Error returns the text.
func (e Text) Error() string { return string(e) }
