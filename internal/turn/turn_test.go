package turn

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func TestOneAtATime(t *testing.T) {
	var table Table[string]
	var wg sync.WaitGroup
	inside := 0 // the race detector sees two at once
	for range 50 {
		wg.Go(func() {
			free, err := table.Take(context.Background(), "a")
			if err != nil {
				t.Error(err)
				return
			}
			inside++
			free()
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
	free, err := table.Take(context.Background(), 1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := table.Take(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	other, err := table.Take(context.Background(), 2)
	if err != nil {
		t.Errorf("another key waited: %v", err)
	}
	other()
	free()
	if len(table.of) != 0 {
		t.Errorf("%d queues are left, want none", len(table.of))
	}
}
