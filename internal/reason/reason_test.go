package reason

import (
	"errors"
	"testing"
)

// An error has its own text and is one of the variables, and of no other.
func TestNew(t *testing.T) {
	base, other := errors.New("base"), errors.New("other")
	err := New(base, "key %q: %d", "k", 3)
	if err.Error() != `key "k": 3` {
		t.Errorf("got %q", err)
	}
	if !errors.Is(err, base) || errors.Is(err, other) || errors.Unwrap(err) != base {
		t.Errorf("is %v, unwraps to %v", errors.Is(err, base), errors.Unwrap(err))
	}
	if again := New(base, "key %q: %d", "k", 3); again == err || errors.Is(again, err) {
		t.Error("two errors of one text are one")
	}
}
