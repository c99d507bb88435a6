// G9 A request is never run again after anything was committed: also where a Do under
// it commits while the next attempt is waited for.

package guarantees

import (
	"context"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

func TestG9DoThatCommitsDuringTheBackoff(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		audit := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
		goOn, committed := make(chan bool), make(chan error, 1)
		reg.Retry = sqlreqtest.Retries(2)
		reg.Retry.Backoff = func(int) time.Duration {
			close(goOn)
			if err := <-committed; err != nil {
				t.Error(err)
			}
			return 0
		}
		attempts := 0
		run(reg, func(ctx context.Context) error {
			if attempts++; attempts > 1 {
				return nil
			}
			inside := make(chan bool)
			go func() {
				committed <- audit.Do(ctx, func(ctx context.Context) error {
					close(inside)
					<-goOn
					sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "AUDIT")
					return nil
				})
			}()
			<-inside
			return sqlreqtest.Conflict{}
		})
		if attempts != 1 {
			t.Errorf("run %d times, though a Do under it has committed before the second", attempts)
		}
	})
}
