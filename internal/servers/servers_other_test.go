//go:build !linux

package servers

import (
	"errors"
	"testing"
)

func die() {}

// Nothing is started here; the error says so.
func TestNotSupported(t *testing.T) {
	var missing *errMissing
	if _, err := accountOf("nobody"); !errors.As(err, &missing) {
		t.Errorf("got %v, want that something is missing", err)
	}
}
