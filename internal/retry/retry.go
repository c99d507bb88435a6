// Package retry counts the attempts at a piece of work and waits between them.
package retry

import (
	"context"
	"math/rand/v2"
	"time"
)

// Loop is the attempts at one piece of work. It belongs to one goroutine.
type Loop struct {
	Attempts int                             // in all; 0 and 1: no further one
	Within   time.Duration                   // no attempt begins later than this after Start; 0 and less: 10 s
	Backoff  func(attempt int) time.Duration // after the given failed attempt, from 1; nil: the function Backoff
	Start    time.Time                       // of the first attempt; not needed if there is no further one
	Attempt  int                             // the one under way, from 1
}

// Left reports whether a further attempt is allowed by their number.
func (l *Loop) Left() bool { return l.Attempt < l.Attempts }

// Wait waits for the time of the next attempt and counts it. It returns false,
// at once where that is known at once, if the attempt would begin too late or if
// ctx ends: a client that has gone needs none.
func (l *Loop) Wait(ctx context.Context) bool {
	if !l.Again(ctx, l.Attempt) {
		return false
	}
	l.Attempt++
	return true
}

// Again waits before something inside of the attempt under way is tried again, for
// the nth time. It counts nothing; otherwise it is as Wait. It may be called from
// several goroutines during an attempt.
func (l *Loop) Again(ctx context.Context, n int) bool {
	pause := l.pause(n)
	return ctx.Err() == nil && time.Since(l.Start)+pause <= l.within() && sleep(ctx, pause)
}

func (l *Loop) pause(n int) time.Duration {
	if l.Backoff != nil {
		return l.Backoff(n)
	}
	return Backoff(n)
}

func (l *Loop) within() time.Duration {
	if l.Within <= 0 {
		return 10 * time.Second
	}
	return l.Within
}

// sleep reports whether ctx had not ended when d was over.
func sleep(ctx context.Context, d time.Duration) bool {
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return ctx.Err() == nil // also where both had ended, and select took the timer
}

// Backoff is exponential with full jitter, from 5 ms to 500 ms: who met in a
// conflict does not meet again.
func Backoff(attempt int) time.Duration {
	const first, most = 5 * time.Millisecond, 500 * time.Millisecond
	ceiling := most
	if shift := attempt - 1; shift < 7 {
		ceiling = min(first<<shift, most)
	}
	return rand.N(ceiling) + 1
}
