// Package turn has a lock that a context can end the wait for: for what is held
// while a database is waited for, which a sync.Mutex must not be.
package turn

import (
	"cmp"
	"context"
	"sync"
	"sync/atomic"
)

// Turn is a lock of that kind. The zero Turn is free. It must not be copied
// after its first use.
type Turn struct {
	state atomic.Int32 // free, taken or wanted; written by Lock, TryLock and Unlock

	mu    sync.Mutex    // guards what follows; held for a few instructions only
	freed chan struct{} // closed by the next Unlock of a turn that is wanted; nil if nobody waits
}

const (
	free   = iota
	taken  // by one, and nobody waits
	wanted // taken, and others may wait
)

// Lock takes the turn. If ctx ends before it is free, Lock returns the error of
// ctx. A turn that is free is taken whether or not ctx has ended.
func (t *Turn) Lock(ctx context.Context) error {
	for !t.TryLock() {
		freed := t.whenFreed()
		if !t.state.CompareAndSwap(taken, wanted) && t.state.Load() != wanted {
			continue // it is free by now
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// LockEither is Lock for a wait that the end of either context ends. The error is
// that of the first of the two that has ended.
func (t *Turn) LockEither(ctx, other context.Context) error {
	if t.TryLock() {
		return nil
	}
	either, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(other, cancel)()
	if t.Lock(either) != nil {
		return cmp.Or(ctx.Err(), other.Err())
	}
	return nil
}

// TryLock takes the turn if it is free, and reports whether it did.
func (t *Turn) TryLock() bool { return t.state.CompareAndSwap(free, taken) }

// Taken reports whether somebody has the turn.
func (t *Turn) Taken() bool { return t.state.Load() != free }

// Unlock gives the turn back. Any goroutine may do it, but only for one that took it.
func (t *Turn) Unlock() {
	if t.state.Swap(free) == wanted {
		t.wake()
	}
}

// whenFreed returns what is closed when it is worth another try. It is asked for
// before the turn is marked as wanted, so that the Unlock which sees that closes it.
func (t *Turn) whenFreed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.freed == nil {
		t.freed = make(chan struct{})
	}
	return t.freed
}

func (t *Turn) wake() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.freed != nil {
		close(t.freed)
		t.freed = nil
	}
}

// Table holds the turns at things named by K. A turn exists only while somebody
// has it or waits for it, so that nothing is remembered of things long gone. The
// zero Table is empty and ready; it may be used from several goroutines.
type Table[K comparable] struct {
	mu sync.Mutex
	of map[K]*queue
}

type queue struct {
	turn  Turn
	users int // who have the turn or wait for it; guarded by Table.mu
}

// Lock takes the turn at key. If ctx ends first it returns the error of ctx.
func (t *Table[K]) Lock(ctx context.Context, key K) error {
	q := t.join(key)
	if err := q.turn.Lock(ctx); err != nil {
		t.leave(key, q)
		return err
	}
	return nil
}

// Unlock gives the turn at key back to the others.
func (t *Table[K]) Unlock(key K) {
	t.mu.Lock()
	q := t.of[key]
	t.mu.Unlock()
	q.turn.Unlock()
	t.leave(key, q)
}

func (t *Table[K]) join(key K) *queue {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of == nil {
		t.of = make(map[K]*queue)
	}
	q := t.of[key]
	if q == nil {
		q = new(queue)
		t.of[key] = q
	}
	q.users++
	return q
}

func (t *Table[K]) leave(key K, q *queue) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if q.users--; q.users == 0 {
		delete(t.of, key)
	}
}
