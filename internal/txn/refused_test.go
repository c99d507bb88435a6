package txn

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// refusedOpener is a key with Guard.
type refusedOpener struct{}

func (refusedOpener) Name() string  { return "refused" }
func (refusedOpener) Guarded() bool { return true }

// noTransaction is the answer of a server that has ended the transaction before.
type noTransaction struct{}

func (noTransaction) Error() string    { return "there is no transaction in progress" }
func (noTransaction) SQLState() string { return "25P01" }

// TestRefusedBeginIsRolledBack: nobody was given the transaction when Guard's savepoint
// failed, so that nothing of it stays, whatever ROLLBACK says.
func TestRefusedBeginIsRolledBack(t *testing.T) {
	for name, rollback := range map[string]error{"done": nil, "there is none": noTransaction{}, "no answer": errors.New("lost")} {
		t.Run(name, func(t *testing.T) {
			errSavepoint := errors.New("no savepoint")
			fake := fakedb.DB{
				Stmt: func(_ context.Context, q string) error {
					if strings.HasPrefix(q, "SAVEPOINT") {
						return errSavepoint
					}
					return nil
				},
				Rollback: func() error { return rollback },
			}
			var s Slot
			s.Init(fake.Open(t), nil, 0)
			a := &Ask{Opener: refusedOpener{}, Unit: t.Context(), Begins: new(atomic.Int32)}
			_, err := s.Use(t.Context(), a)
			var b *BeginError
			if !errors.As(err, &b) || !errors.Is(err, errSavepoint) || a.Refused == nil {
				t.Fatalf("got %v, want the error of the savepoint, with a result", err)
			}
			if a.Refused.Outcome != RolledBack || a.Refused.Stored {
				t.Errorf("got outcome %d, stored %t, want RolledBack, nothing stored", a.Refused.Outcome, a.Refused.Stored)
			}
		})
	}
}
