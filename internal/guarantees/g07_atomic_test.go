// G7 Nothing is done in a request that has ended: Atomic is ErrFinished then.

package guarantees

import (
	"context"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// One that is called when its unit has ended, outside of hooks, is no Do: what an
// attempt has left running does not commit beside the next one.
func TestG7AtomicAfterTheEnd(t *testing.T) {
	j, bindings := newJournal(t, "a")
	reg := sqlreqtest.NewRegistry(t, bindings...)
	reg.Retry = sqlreqtest.Retries(2)
	goOn, late, attempts := make(chan bool), make(chan error, 1), 0
	asRequest(reg, func(ctx context.Context) error {
		if attempts++; attempts == 1 {
			go func() { <-goOn; late <- reg.Atomic(ctx, exec(t, nil, "LATE", "a")) }()
			return sqlreqtest.Conflict{}
		}
		close(goOn)
		if err := <-late; err != sqlreq.ErrFinished {
			t.Errorf("got %v, want ErrFinished", err)
		}
		return reg.Atomic(ctx, exec(t, nil, "X", "a"))
	}).ok(t)
	j.Check(t, "a BEGIN", "a X", "a COMMIT")
}
