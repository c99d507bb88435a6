package txn

import "testing"

// The row of an error carries it to Scan.
func TestErrorRow(t *testing.T) {
	row := ErrorRow(errPlain)
	if err := row.Scan(new(int)); err != errPlain || row.Err() != errPlain {
		t.Errorf("got %v, %v", err, row.Err())
	}
}
