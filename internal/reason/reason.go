// Package reason makes errors that have a text of their own and are one of the
// exported error variables as well.
package reason

import (
	"errors"
	"fmt"
)

// New returns an error whose text is made as fmt.Sprintf does. errors.Is finds is in it.
func New(is error, format string, args ...any) error {
	return &reason{fmt.Sprintf(format, args...), is, ""}
}

// OfKey returns an error about a key, which begins the text. KeyOf finds the key.
func OfKey(key string, is error, format string, args ...any) error {
	return &reason{fmt.Sprintf("sqlreq: key %q: ", key) + fmt.Sprintf(format, args...), is, key}
}

// KeyOf returns the key that err is about, "" if there is none.
func KeyOf(err error) string {
	var r *reason
	if errors.As(err, &r) {
		return r.key
	}
	return ""
}

type reason struct {
	text string
	is   error
	key  string
}

func (r *reason) Error() string { return r.text }
func (r *reason) Unwrap() error { return r.is }
