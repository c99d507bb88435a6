package sqlreqtest

import (
	"context"
	"runtime"
	"sync"
)

// Until waits for what no channel tells. If it never comes, the limit of go test
// ends the wait and shows who waits.
func Until(ok func() bool) {
	for !ok() {
		runtime.Gosched()
	}
}

// Asked is a context that tells when it is asked: Done by who is going to wait,
// Err by who looks whether it has ended, each before the answer.
type Asked struct {
	context.Context
	OnDone, OnErr func()
}

// Done calls OnDone.
func (c Asked) Done() <-chan struct{} {
	if c.OnDone != nil {
		c.OnDone()
	}
	return c.Context.Done()
}

// Err calls OnErr.
func (c Asked) Err() error {
	if c.OnErr != nil {
		c.OnErr()
	}
	return c.Context.Err()
}

// Watch returns ctx, and a channel that is closed when somebody begins to wait
// for its end.
func Watch(ctx context.Context) (watched context.Context, waiting <-chan struct{}) {
	c := make(chan struct{})
	return Asked{Context: ctx, OnDone: sync.OnceFunc(func() { close(c) })}, c
}

// Deadline returns ctx with a deadline that passes when expire is called.
func Deadline(ctx context.Context) (c context.Context, expire func()) {
	d := &deadline{ctx, make(chan struct{})}
	return d, sync.OnceFunc(func() { close(d.done) })
}

type deadline struct {
	context.Context
	done chan struct{}
}

func (d *deadline) Done() <-chan struct{} { return d.done }

func (d *deadline) Err() error {
	select {
	case <-d.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}
