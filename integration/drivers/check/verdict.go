package check

import (
	"fmt"
	"testing"

	"github.com/sqlreq/sqlreq/internal/sqlerr"
)

// Verdict is what internal/sqlerr reads in an error.
type Verdict struct {
	Retryable   bool // a conflict
	Answered    bool // of COMMIT: nothing is stored
	Ends        bool // of a statement: the transaction may have ended
	Gone        bool // there is no transaction, or no such savepoint
	Unreachable bool // of BEGIN: 503
}

// The verdicts.
var (
	Nothing   = Verdict{}                           // not known: a COMMIT is Ambiguous
	Answer    = Verdict{Answered: true}             // a constraint, for instance
	AnswerEnd = Verdict{Answered: true, Ends: true} // the same, and only a rollback is left
	Retry     = Verdict{Answered: true, Retryable: true}
	RetryEnd  = Verdict{Answered: true, Retryable: true, Ends: true}
	Lost      = Verdict{Ends: true, Unreachable: true} // the connection
	Gone      = Verdict{Gone: true}
)

// Read checks what is read in err, bare and wrapped.
func (want Verdict) Read(t *testing.T, name string, err error) {
	t.Helper()
	for _, err := range []error{err, fmt.Errorf("wrapped: %w", err)} {
		got := Verdict{sqlerr.Retryable(err), sqlerr.Answered(err), sqlerr.EndsTx(err), sqlerr.Gone(err), sqlerr.Unreachable(err)}
		if got != want {
			t.Errorf("%s, a %T: got %+v, want %+v", name, err, got, want)
		}
	}
}
