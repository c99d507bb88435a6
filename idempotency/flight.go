package idempotency

import (
	"context"
	"sync"
	"time"

	"github.com/sqlreq/sqlreq/internal/repeat"
)

// recordID names a record.
type recordID struct {
	scope, key string
	kind       int64
}

const (
	ofRequest int64 = iota // kind of Handler
	ofMessage              // kind of Do
)

// flights are the keys in progress in this process. Who wants one of them waits here,
// without a connection. It is no more than that: the database decides who is the first.
type flights struct {
	mu     sync.Mutex // guards what follows, and the flights
	byID   map[recordID]*flight
	joined func() // called, without the mutex, by who is going to wait; for tests
}

// flight is a key in progress, from before its INSERT until its unit of work has ended.
type flight struct {
	id     recordID      // set by who makes it, only read from then on: no lock
	unit   repeat.Unit   // likewise
	of     *flights      // set by try, before anybody else sees it; nil until then
	landed chan struct{} // closed at the end; nil if nobody waits
}

// enter makes own the flight of its key, if the unit has none already, and waits until it may be. The
// wait ends with ErrInProgress after some time, of which it returns what is left, and
// with ctx. Who must not wait here, because it may hold locks in a database already, or a key,
// gets no flight; the database waits.
func (fs *flights) enter(ctx context.Context, own *flight, most time.Duration) (f *flight, left time.Duration, err error) {
	for left = most; ; {
		f, landed := fs.try(own)
		switch {
		case landed == nil:
			return f, left, nil
		case own.unit.Opened(), fs.has(own.unit):
			return nil, left, nil
		}
		if fs.joined != nil {
			fs.joined()
		}
		start := time.Now()
		if err := wait(ctx, landed, left); err != nil {
			return nil, 0, err
		}
		left -= time.Since(start)
	}
}

// has reports whether a unit has a key in progress already. Who waits for it must not be
// waited for: of two batches with the same keys each might have what the other wants,
// committed explicitly, which only the database knows.
func (fs *flights) has(unit repeat.Unit) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, f := range fs.byID {
		if f.unit == unit {
			return true
		}
	}
	return false
}

// try returns the flight of the key of own if that is the unit's, or else what to wait for.
func (fs *flights) try(own *flight) (*flight, <-chan struct{}) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.byID[own.id]
	switch {
	case f == nil:
		own.of = fs // before AtEnd: the unit may end, and land it, from then on
		if !own.unit.AtEnd(own) {
			return nil, nil // it is over: the use of its transaction says so
		}
		if fs.byID == nil {
			fs.byID = make(map[recordID]*flight)
		}
		fs.byID[own.id] = own
		return own, nil
	case f.unit == own.unit:
		return f, nil
	case f.landed == nil:
		f.landed = make(chan struct{})
	}
	return nil, f.landed
}

func wait(ctx context.Context, landed <-chan struct{}, most time.Duration) error {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-landed:
		return nil
	case <-timer.C:
		return ErrInProgress
	case <-ctx.Done():
		return ctx.Err()
	}
}

// UnitEnded ends the flight.
func (f *flight) UnitEnded() { f.land() }

// land lets others have the key. A flight may land twice, and one that was never
// entered, or is nil, too.
func (f *flight) land() {
	if f == nil || f.of == nil {
		return
	}
	f.of.mu.Lock()
	defer f.of.mu.Unlock()
	if f.of.byID[f.id] != f {
		return
	}
	delete(f.of.byID, f.id)
	if f.landed != nil {
		close(f.landed)
	}
}

// isAround reports whether ctx is that of the handler of the flight: a request that comes
// here again is a part of it. One beside it, of a layer that has sent it twice, is not.
func (f *flight) isAround(ctx context.Context) bool {
	return f != nil && ctx.Value(f) != nil
}
