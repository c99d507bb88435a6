// G4 A RELEASE of a Savepoint, or of Guard's savepoint before COMMIT, that the server
// does not answer is given up as a ROLLBACK TO is: the request ends, rolled back.

package guarantees

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

func TestG4ReleaseIsGivenUp(t *testing.T) {
	for _, silent := range []string{"RELEASE SAVEPOINT sqlreq_1", "RELEASE SAVEPOINT sqlreq_guard"} {
		t.Run(silent, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &fakedb.DB{Stmt: func(ctx context.Context, q string) error {
					if q == silent {
						return fakedb.UntilDone(ctx)
					}
					return nil
				}}
				guard := silent == "RELEASE SAVEPOINT sqlreq_guard"
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: a.Open(t), Guard: guard})
				events := back
				if guard {
					events = "main CommitFailed 1"
				}
				var log sqlreqtest.Recorder
				log.Watch(reg)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				err := reg.Do(ctx, func(ctx context.Context) error {
					sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
					if guard {
						return nil
					}
					return sqlreq.Savepoint(ctx, func(context.Context) error { return nil })
				})
				if err == nil || sqlreq.MayHaveCommitted(err) || a.Count("COMMIT") != 0 || log.Events() != events {
					t.Errorf("Do returned %v, MayHaveCommitted %v, events %s; %q", err, sqlreq.MayHaveCommitted(err), log.Events(), a.Log())
				}
			})
		})
	}
}
