// Package wait has the context of a wait for something that outlives it.
package wait

import (
	"context"
	"sync"
	"time"
)

// Context is the context that something is begun with: it can be cancelled until
// Finish, and never afterwards, whoever has kept it or derived others from it. It
// has the values of another context, and no deadline. The zero Context is not
// usable: call Init. It may be used from several goroutines.
//
// It does what a context.WithCancel(context.WithoutCancel(ctx)) that is not cancelled
// any more would do, as a part of something else: two allocations and some 250
// bytes less for each transaction, half of them for the map in which that keeps
// the one context that database/sql derives from it.
type Context struct {
	values context.Context
	done   chan struct{}

	mu    sync.Mutex
	ended bool   // cancelled
	over  bool   // not to be cancelled any more
	after func() // what was given to AfterFunc
}

// Init gives c the values of ctx.
func (c *Context) Init(ctx context.Context) {
	c.values, c.done = ctx, make(chan struct{})
}

// Cancel ends c, unless Finish was called.
func (c *Context) Cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over || c.ended {
		return
	}
	c.ended = true
	close(c.done)
	if c.after != nil {
		go c.after()
		c.after = nil
	}
}

// Finish ends the wait. It reports whether c was not cancelled, and will not be.
func (c *Context) Finish() bool {
	c.mu.Lock()
	c.over, c.after = true, nil
	inTime := !c.ended
	c.mu.Unlock()
	return inTime
}

// Deadline returns none.
func (c *Context) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done returns the channel that Cancel closes.
func (c *Context) Done() <-chan struct{} { return c.done }

// Err returns context.Canceled when c was cancelled.
func (c *Context) Err() error {
	select {
	case <-c.done:
		return context.Canceled
	default:
		return nil
	}
}

// Value is that of the context given to Init.
func (c *Context) Value(key any) any { return c.values.Value(key) }

// AfterFunc has f called in a goroutine of its own when c is cancelled. It is for
// package context, which ends by it the contexts derived from c (see
// context.AfterFunc). Those take no notice of an end after their own: stop has
// nothing to do.
func (c *Context) AfterFunc(f func()) (stop func() bool) {
	c.mu.Lock()
	switch {
	case c.over:
	case c.ended:
		go f()
	case c.after == nil:
		c.after = f
	default:
		c.after = both(c.after, f)
	}
	c.mu.Unlock()
	return stopped
}

func both(f, g func()) func() {
	return func() {
		f()
		g()
	}
}

func stopped() bool { return true }
