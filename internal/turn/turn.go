// Package turn lets those who share something use it one after the other.
package turn

import (
	"context"
	"sync"
)

// Table holds the queues of things named by K. A queue exists only while
// somebody is in it, so that nothing is remembered of things long gone. The
// zero Table is empty and ready; it may be used from several goroutines.
type Table[K comparable] struct {
	mu sync.Mutex
	of map[K]*queue
}

type queue struct {
	taken Turn
	users int // at it or waiting; guarded by Table.mu
}

// Take waits for the turn at key, and returns how to give it back. If ctx ends
// first it returns the error of ctx.
func (t *Table[K]) Take(ctx context.Context, key K) (free func(), err error) {
	t.mu.Lock()
	if t.of == nil {
		t.of = make(map[K]*queue)
	}
	q := t.of[key]
	if q == nil {
		q = &queue{taken: New()}
		t.of[key] = q
	}
	q.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if q.users--; q.users == 0 {
			delete(t.of, key)
		}
	}
	give, err := q.taken.Take(ctx)
	if err != nil {
		leave()
		return nil, err
	}
	return func() { give(); leave() }, nil
}

// Turn is a single thing to take turns at.
type Turn chan struct{}

// New returns a Turn that is free.
func New() Turn { return make(Turn, 1) }

// Take waits for the turn, and returns how to give it back. If ctx ends first
// it returns the error of ctx.
func (t Turn) Take(ctx context.Context) (free func(), err error) {
	select {
	case t <- struct{}{}:
		return func() { <-t }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
