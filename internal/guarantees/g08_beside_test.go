// G8 Hooks tell the truth. A hook belongs to the transaction that was open, or next to
// begin, when it was registered; this holds beside another goroutine's Commit too.

package guarantees

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// A hook is registered, and the next transaction begun, when another goroutine's end
// of the transaction has been answered, and the hooks of that have not yet run: it is
// the next one's.
func TestG8HookRegisteredBesideAnEnd(t *testing.T) {
	ends := map[string]struct {
		end   func(context.Context) error
		first string // the hook that the first end runs
	}{
		"Commit":   {sqlreq.Commit, "commit1"},
		"Rollback": {sqlreq.Rollback, "rollback1"},
	}
	for name, tt := range ends {
		for next, outcome := range map[string]struct {
			err  error
			word string
		}{"committed": {nil, "commit2"}, "rolled back": {sqlreqtest.ErrTest, "rollback2"}, "none": {nil, "commit2"}} {
			for _, guard := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, the next %s, Guard %t", name, next, guard), func(t *testing.T) {
					var log sqlreqtest.Recorder
					reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t), Guard: guard})
					var ctx context.Context
					// Observe is told between the end and the hooks.
					reg.Observe = func(context.Context, sqlreq.Event) {
						if ctx == nil {
							return
						}
						late := ctx
						ctx = nil
						registered := make(chan struct{})
						go func() {
							defer close(registered)
							if next != "none" {
								sqlreqtest.Exec(t, late, sqlreqtest.Main, "INSERT")
							}
							log.Hooks(t, late, sqlreqtest.Main, "2")
						}()
						<-registered
					}
					err := reg.Do(t.Context(), func(c context.Context) error {
						log.Hooks(t, c, sqlreqtest.Main, "1")
						sqlreqtest.Exec(t, c, sqlreqtest.Main, "INSERT")
						ctx = c
						if err := tt.end(c); err != nil {
							t.Error(err)
						}
						if got := log.Words(); got != tt.first {
							t.Errorf("after the first end the hooks %q have run, want %q", got, tt.first)
						}
						if next != "none" {
							sqlreqtest.Exec(t, c, sqlreqtest.Main, "INSERT")
						}
						return outcome.err
					})
					if want := tt.first + " " + outcome.word; log.Words() != want || !errors.Is(err, outcome.err) {
						t.Errorf("got %v, hooks %q, want %q", err, log.Words(), want)
					}
				})
			}
		}
	}
}
