// Package turn has a lock that a context can end the wait for: for what is held
// while a database is waited for, which a sync.Mutex must not be.
package turn

import (
	"cmp"
	"context"
	"sync"
)

// Turn is a lock of that kind. The zero Turn is free. It must not be copied
// after its first use.
type Turn struct {
	mu    sync.Mutex    // guards what follows; held for a few instructions only
	taken bool          // written by Lock and Unlock
	freed chan struct{} // closed by the next Unlock; nil if nobody waits
}

// Lock takes the turn. If ctx ends before it is free, Lock returns the error of
// ctx. A turn that is free is taken whether or not ctx has ended.
func (t *Turn) Lock(ctx context.Context) error {
	for {
		freed := t.tryLock()
		if freed == nil {
			return nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
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
func (t *Turn) TryLock() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.taken {
		return false
	}
	t.taken = true
	return true
}

// Taken reports whether somebody has the turn.
func (t *Turn) Taken() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.taken
}

// tryLock takes the turn and returns nil, or returns what is closed when it is
// worth another try.
func (t *Turn) tryLock() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.taken {
		t.taken = true
		return nil
	}
	if t.freed == nil {
		t.freed = make(chan struct{})
	}
	return t.freed
}

// Unlock gives the turn back. Any goroutine may do it, but only for one that took it.
func (t *Turn) Unlock() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken = false
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
