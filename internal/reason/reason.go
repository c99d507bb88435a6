// Package reason makes errors that have a text of their own and are one of the
// exported error variables as well.
package reason

import "fmt"

// New returns an error whose text is made as fmt.Sprintf does. errors.Is finds is in it.
func New(is error, format string, args ...any) error {
	return &reason{fmt.Sprintf(format, args...), is}
}

type reason struct {
	text string
	is   error
}

func (r *reason) Error() string { return r.text }
func (r *reason) Unwrap() error { return r.is }
