package dialect

import "testing"

// The statements of ISO/IEC 9075-2, 17.5 to 17.7; RELEASE has the word SAVEPOINT,
// which the standard and MySQL want.
func TestSavepoints(t *testing.T) {
	for _, row := range []struct{ got, want string }{
		{Savepoint("a_1"), "SAVEPOINT a_1"},
		{Release("a_1"), "RELEASE SAVEPOINT a_1"},
		{RollbackTo("a_1"), "ROLLBACK TO SAVEPOINT a_1"},
	} {
		if row.got != row.want {
			t.Errorf("got %q, want %q", row.got, row.want)
		}
	}
}
