// G6: keys bound to the same *sql.DB share one transaction in a request. Route and
// TxOptions are asked once per attempt and key, from whatever goroutine.
package guarantees

import (
	"context"
	"database/sql"
	"net/http"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// BeginTx does not wait for TxOptions, which another goroutine is asking: the race
// detector tells if it looks at what that one writes.
func TestG6BeginTxWhileTxOptionsIsAsked(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, TxOptions: func(context.Context, *http.Request) *sql.TxOptions { return nil }})
	for range 100 {
		var tx, begun *sql.Tx
		err := reg.Do(t.Context(), func(ctx context.Context) (err error) {
			var wg sync.WaitGroup
			wg.Go(func() { tx, err = sqlreq.Tx(ctx) })
			wg.Go(func() { begun, _ = sqlreq.BeginTx(ctx, nil) }) // ErrBegun if it comes second
			wg.Wait()
			return err
		})
		if err != nil || tx == nil || begun != nil && begun != tx {
			t.Fatalf("Tx returned %p, BeginTx %p, Do %v; want one transaction", tx, begun, err)
		}
	}
}
