package txn

import (
	"database/sql/driver"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq/internal/dialect"
)

// A transaction is open, but it is not the one that was begun: the savepoint to go back to
// is not in it. The query of Guard does not tell the two apart, and its answer counts for
// nothing then.
func TestVanishedSavepointOutweighsStateQuery(t *testing.T) {
	w := newWorld(t, kind{guard: true, engine: dialect.SQLServer})
	w.d.Rows = func(string) [][]driver.Value { return [][]driver.Value{{int64(1)}} }
	w.at("ROLLBACK TRANSACTION sqlreq_1", fails(errNoTx))
	w.begin()
	if err := w.save(background).RollBack("k"); err == nil {
		t.Error("a savepoint that is not there was gone back to")
	}
	w.End(false)
	if r := w.Last(); r.Outcome != Ended {
		t.Errorf("got %s, want that it was ended by others; the driver was asked %s", describeResult(r, "returned"), strings.Join(w.d.Log(), "; "))
	}
}
