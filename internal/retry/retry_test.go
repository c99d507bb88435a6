package retry

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var background = context.Background()

func TestLeft(t *testing.T) {
	for _, row := range []struct {
		attempts, attempt int
		want              bool
	}{{0, 1, false}, {1, 1, false}, {2, 1, true}, {2, 2, false}, {3, 2, true}, {3, 4, false}} {
		if l := (Loop{Attempts: row.attempts, Attempt: row.attempt}); l.Left() != row.want {
			t.Errorf("attempt %d of %d: got %v", row.attempt, row.attempts, l.Left())
		}
	}
}

// Wait waits for what Backoff says after the attempt that failed, and counts.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []int
		pause := time.Second
		l := Loop{Attempts: 4, Start: time.Now(), Attempt: 1}
		l.Backoff = func(attempt int) time.Duration {
			asked = append(asked, attempt)
			return pause
		}
		for range 3 {
			start := time.Now()
			if !l.Wait(background) || time.Since(start) != max(pause, 0) {
				t.Errorf("waited %v, want %v", time.Since(start), pause)
			}
			pause -= time.Second // 1 s, none, and less than none
		}
		if l.Attempt != 4 || !slices.Equal(asked, []int{1, 2, 3}) {
			t.Errorf("attempt %d, asked %v", l.Attempt, asked)
		}
	})
}

// No attempt begins later than Within after the first; that is known at once.
func TestWithin(t *testing.T) {
	for _, row := range []struct {
		within, gone, pause time.Duration
		want                bool
	}{
		{time.Second, 0, time.Second, true},
		{time.Second, 0, time.Second + 1, false},
		{time.Second, 400 * time.Millisecond, 600 * time.Millisecond, true},
		{time.Second, 400 * time.Millisecond, 600*time.Millisecond + 1, false},
		{time.Second, 2 * time.Second, 0, false},
		{0, 0, 10 * time.Second, true}, // the default
		{0, 0, 10*time.Second + 1, false},
		{-1, 0, 10 * time.Second, true},
		{-1, 4 * time.Second, 6*time.Second + 1, false},
		{1, 0, 1, true},
		{1, 0, 2, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := Loop{Within: row.within, Start: time.Now(), Attempt: 1, Backoff: func(int) time.Duration { return row.pause }}
			time.Sleep(row.gone) // the bubble's time
			start := time.Now()
			if got := l.Wait(background); got != row.want {
				t.Errorf("%+v: got %v", row, got)
			}
			waited, attempt := row.pause, 2
			if !row.want {
				waited, attempt = 0, 1
			}
			if time.Since(start) != waited || l.Attempt != attempt {
				t.Errorf("%+v: waited %v, attempt %d", row, time.Since(start), l.Attempt)
			}
		})
	}
}

// A client that has gone needs no further attempt: before the wait, and while it lasts.
func TestWaitEndsWithTheContext(t *testing.T) {
	for _, row := range []struct {
		name         string
		leave, pause time.Duration // leave: when the context ends; less than 0: it has ended
		waited       time.Duration
	}{
		{"before", -1, time.Minute, 0},
		{"before, with no pause", -1, 0, 0},
		{"while it waits", time.Second, time.Minute, time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, end := context.WithTimeout(background, row.leave)
				defer end()
				start := time.Now()
				l := Loop{Within: time.Hour, Start: start, Attempt: 1, Backoff: func(int) time.Duration { return row.pause }}
				if l.Wait(ctx) || l.Attempt != 1 || time.Since(start) != row.waited {
					t.Errorf("attempt %d, waited %v, want %v", l.Attempt, time.Since(start), row.waited)
				}
			})
		})
	}
}

// slow is a context that has ended, and tells it when every timer has fired.
type slow struct{ context.Context }

func (s slow) Done() <-chan struct{} {
	time.Sleep(time.Hour) // the bubble's time
	return s.Context.Done()
}

// Where the pause is over and the context has ended, the context counts, whichever
// of the two the select takes.
func TestWaitAndContextEndAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(background)
		end()
		for range 50 {
			if sleep(slow{ctx}, time.Minute) {
				t.Fatal("the context has not ended")
			}
		}
	})
}

// A Backoff during which the client leaves, with no pause.
func TestContextEndsInBackoff(t *testing.T) {
	ctx, end := context.WithCancel(background)
	l := Loop{Start: time.Now(), Attempt: 1, Backoff: func(int) time.Duration { end(); return 0 }}
	if l.Wait(ctx) || l.Attempt != 1 {
		t.Errorf("attempt %d", l.Attempt)
	}
	if sleep(ctx, 0) {
		t.Error("a sleep of nothing says that the context lives")
	}
}

// Again waits as Wait does, for what Backoff says of the nth time, and counts nothing.
func TestAgain(t *testing.T) {
	for _, row := range []struct {
		name          string
		within, pause time.Duration
		leave         time.Duration // when the context ends; 0: never; less than 0: it has ended
		want          bool
		waited        time.Duration
	}{
		{"there is time", time.Second, time.Second, 0, true, time.Second},
		{"it would be too late", time.Second, time.Second + 1, 0, false, 0},
		{"no pause", time.Second, 0, 0, true, 0},
		{"the default", 0, 10 * time.Second, 0, true, 10 * time.Second},
		{"later than the default", 0, 10*time.Second + 1, 0, false, 0},
		{"the context has ended", time.Hour, 0, -1, false, 0},
		{"the context ends", time.Hour, time.Minute, time.Second, false, time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Context(background)
				if row.leave != 0 {
					var end context.CancelFunc
					ctx, end = context.WithTimeout(background, row.leave)
					defer end()
				}
				asked := 0
				l := Loop{Attempts: 1, Within: row.within, Start: time.Now(), Attempt: 1, Backoff: func(n int) time.Duration {
					asked = n
					return row.pause
				}}
				if got := l.Again(ctx, 7); got != row.want || time.Since(l.Start) != row.waited {
					t.Errorf("got %v after %v, want %v after %v", got, time.Since(l.Start), row.want, row.waited)
				}
				if l.Attempt != 1 || asked != 7 {
					t.Errorf("attempt %d, asked for the pause of %d", l.Attempt, asked)
				}
			})
		})
	}
}

// Several goroutines of an attempt may wait at once.
func TestAgainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Loop{Within: time.Minute, Start: time.Now(), Attempt: 1, Backoff: func(n int) time.Duration { return time.Duration(n) * time.Second }}
		done := make(chan bool)
		for n := range 3 {
			go func() { done <- l.Again(background, n) }()
		}
		for range 3 {
			if !<-done {
				t.Error("there was time")
			}
		}
		if waited := time.Since(l.Start); waited != 2*time.Second {
			t.Errorf("waited %v", waited)
		}
	})
}

// Without a Backoff the pause is one of the function Backoff.
func TestDefaultBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Loop{Start: time.Now(), Attempt: 1}
		if !l.Wait(background) {
			t.Error("no further attempt")
		}
		if waited := time.Since(l.Start); waited <= 0 || waited > 5*time.Millisecond {
			t.Errorf("waited %v", waited)
		}
		l.Attempt = 3
		l.Start = time.Now()
		most := time.Duration(0)
		for range 1000 {
			most = max(most, l.pause(l.Attempt))
		}
		if most <= 10*time.Millisecond || most > 20*time.Millisecond {
			t.Errorf("the pause after the third attempt is at most %v", most)
		}
	})
}

// The ceiling doubles from 5 ms, to 500 ms; the jitter is full, and never nothing.
func TestBackoff(t *testing.T) {
	const ms = time.Millisecond
	for i, ceiling := range []time.Duration{5 * ms, 10 * ms, 20 * ms, 40 * ms, 80 * ms, 160 * ms, 320 * ms, 500 * ms, 500 * ms, 500 * ms} {
		least, most := time.Hour, time.Duration(0)
		for range 2000 {
			d := Backoff(i + 1)
			least, most = min(least, d), max(most, d)
		}
		// That all of 2,000 miss a tenth of the range happens once in 10^91 times.
		if least <= 0 || least > ceiling/10 || most > ceiling || most < ceiling-ceiling/10 {
			t.Errorf("after attempt %d: from %v to %v, want up to %v", i+1, least, most, ceiling)
		}
	}
	if d := Backoff(1 << 30); d <= 0 || d > 500*ms {
		t.Errorf("after very many: %v", d)
	}
}
