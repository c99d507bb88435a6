package idempotency

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq/internal/repeat"
)

// endingUnit is a unit that ends while AtEnd returns: behind http.TimeoutHandler the
// handler's goroutine is another than the one that ends the request.
type endingUnit struct {
	told chan struct{} // closed when the flight was told
}

func (u *endingUnit) Opened() bool                  { return false }
func (u *endingUnit) BeforeEnd(repeat.Checker) bool { return true }

func (u *endingUnit) AtEnd(e repeat.Ender) bool {
	var told atomic.Bool
	go func() {
		e.UnitEnded()
		told.Store(true)
		close(u.told)
	}()
	for i := 0; i < 1000 && !told.Load(); i++ { // it may have to wait for who has called AtEnd
		runtime.Gosched()
	}
	return true
}

func TestI4UnitThatEndsWhileItsFlightBegins(t *testing.T) {
	var fs flights
	id := recordID{"ann", "k", ofRequest}
	for range 20 {
		u := &endingUnit{make(chan struct{})}
		if _, _, err := fs.enter(t.Context(), &flight{id: id, unit: u}, time.Second); err != nil {
			t.Fatal(err)
		}
		<-u.told
		next := &flight{id: id, unit: &endingUnit{make(chan struct{})}}
		if f, landed := fs.try(next); f != next || landed != nil {
			t.Fatal("the key of a unit that has ended is in progress")
		}
		next.land()
	}
	if len(fs.byID) != 0 {
		t.Errorf("got %v", fs.byID)
	}
}

// overUnit is a unit that has ended.
type overUnit struct{}

func (overUnit) Opened() bool                  { return false }
func (overUnit) AtEnd(repeat.Ender) bool       { return false }
func (overUnit) BeforeEnd(repeat.Checker) bool { return false }

func TestI4UnitThatHasEndedHasNoFlight(t *testing.T) {
	var fs flights
	f, _, err := fs.enter(context.Background(), &flight{unit: overUnit{}}, time.Second)
	if f != nil || err != nil || len(fs.byID) != 0 {
		t.Errorf("got %v, %v, %v", f, err, fs.byID)
	}
}
