package txn

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// quietOpener is a key without Guard.
type quietOpener struct{}

func (quietOpener) Name() string  { return "quiet" }
func (quietOpener) Guarded() bool { return false }

// TestRollbackInATestWaitsForStatements: a statement that was given the transaction, and
// has not reached the driver yet, would run behind ROLLBACK TO in the test's own.
func TestRollbackInATestWaitsForStatements(t *testing.T) {
	var fake fakedb.DB
	test, err := fake.Open(t).Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer test.Rollback()
	var s Slot
	s.Init(nil, test, 0)
	unit, cancel := context.WithCancel(context.Background())
	defer cancel()
	ask := Ask{Opener: quietOpener{}, Purpose: ForStatement, Unit: unit, Begins: new(atomic.Int32)}
	if _, err := s.Use(unit, &ask); err != nil {
		t.Fatal(err)
	}
	if !s.Close() {
		t.Fatal("nothing is open")
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.End(unit, false)
	}()
	for waiting := false; !waiting && fake.Count("ROLLBACK TO") == 0; runtime.Gosched() {
		s.mu.Lock()
		waiting = s.quiet != nil
		s.mu.Unlock()
	}
	if n := fake.Count("ROLLBACK TO"); n != 0 {
		t.Errorf("ROLLBACK TO was sent %d times while a statement is under way", n)
	}
	s.Done()
	<-ended
	if n := fake.Count("ROLLBACK TO"); n != 1 {
		t.Errorf("ROLLBACK TO was sent %d times, want once", n)
	}
	if got := s.Last().Outcome; got != RolledBack {
		t.Errorf("got outcome %d, want RolledBack", got)
	}
}
