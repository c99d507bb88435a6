package turn

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

func TestOneAtATime(t *testing.T) {
	var table Table[string]
	var wg sync.WaitGroup
	inside := 0 // the race detector sees two at once
	for range 50 {
		wg.Go(func() {
			if err := table.Lock(context.Background(), "a"); err != nil {
				t.Error(err)
				return
			}
			inside++
			table.Unlock("a")
		})
	}
	wg.Wait()
	if inside != 50 {
		t.Errorf("%d had a turn, want 50", inside)
	}
	if len(table.of) != 0 {
		t.Errorf("%d queues are left, want none", len(table.of))
	}
}

func TestWaitEndsWithTheContext(t *testing.T) {
	var table Table[int]
	if err := table.Lock(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := table.Lock(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if err := table.Lock(context.Background(), 2); err != nil {
		t.Errorf("another key waited: %v", err)
	}
	table.Unlock(2)
	table.Unlock(1)
	if len(table.of) != 0 {
		t.Errorf("%d queues are left, want none", len(table.of))
	}
}

func TestAFreeTurnIsTakenByAnEndedContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var turn Turn
	if err := turn.Lock(ctx); err != nil || !turn.Taken() {
		t.Errorf("got %v, taken %v; want the turn", err, turn.Taken())
	}
	turn.Unlock()
	if turn.Taken() {
		t.Error("taken after Unlock")
	}
}

func TestTryLock(t *testing.T) {
	var turn Turn
	if !turn.TryLock() {
		t.Error("a free turn was not taken")
	}
	if turn.TryLock() {
		t.Error("a turn was taken twice")
	}
	turn.Unlock()
	if !turn.TryLock() {
		t.Error("a turn that was given back was not taken")
	}
}

// Whichever of the two contexts ends, the wait ends with its error.
func TestLockEither(t *testing.T) {
	deadline := errors.New("deadline")
	for _, test := range []struct {
		name          string
		first, second bool // which context ends
	}{{"the first", true, false}, {"the second", false, true}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var turn Turn
				if err := turn.LockEither(t.Context(), t.Context()); err != nil {
					t.Fatal(err)
				}
				a, endA := context.WithCancelCause(context.Background())
				b, endB := context.WithCancelCause(context.Background())
				defer endA(nil)
				defer endB(nil)
				got := make(chan error)
				go func() { got <- turn.LockEither(a, b) }()
				synctest.Wait()
				if test.first {
					endA(deadline)
				} else {
					endB(deadline)
				}
				if err := <-got; err != context.Canceled {
					t.Errorf("got %v, want context.Canceled", err)
				}
				turn.Unlock()
				if err := turn.LockEither(a, b); err != nil {
					t.Errorf("a free turn: %v", err)
				}
			})
		})
	}
}

// Everybody who waits gets the turn, one after the other.
func TestUnlockWakesWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turn Turn
		turn.TryLock()
		got := 0
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := turn.LockEither(t.Context(), t.Context()); err != nil {
					t.Error(err)
				}
				got++
				turn.Unlock()
			})
		}
		synctest.Wait()
		if got != 0 {
			t.Errorf("%d had the turn while it was taken", got)
		}
		turn.Unlock()
		wg.Wait()
		if got != 3 {
			t.Errorf("%d had the turn, want 3", got)
		}
	})
}
