package wait

import (
	"context"
	"errors"
	"testing"
	"time"
)

type key struct{}

func start() *Context {
	c := new(Context)
	c.Init(context.WithValue(context.Background(), key{}, "value"))
	return c
}

func open(c context.Context) bool {
	select {
	case <-c.Done():
		return false
	default:
		return c.Err() == nil
	}
}

func TestCancelEndsEverythingDerived(t *testing.T) {
	for name, early := range map[string]bool{"derived before": true, "asked for after": false} {
		t.Run(name, func(t *testing.T) {
			c := start()
			var derived []context.Context
			ran := make(chan struct{}, 2)
			derive := func() {
				for range 3 { // more than one, one below the other
					d, cancel := context.WithCancel(c)
					t.Cleanup(cancel)
					e, cancel := context.WithTimeout(context.WithValue(d, key{}, 1), time.Hour)
					t.Cleanup(cancel)
					derived = append(derived, d, e)
				}
				for range 2 {
					context.AfterFunc(c, func() { ran <- struct{}{} })
				}
			}
			if early {
				derive()
				for _, d := range derived {
					if !open(d) {
						t.Fatal("ended before Cancel")
					}
				}
			}
			c.Cancel()
			c.Cancel()
			if !early {
				derive()
			}
			for _, d := range append(derived, c) {
				<-d.Done()
				if d.Err() != context.Canceled || context.Cause(d) != context.Canceled {
					t.Errorf("Err %v, Cause %v", d.Err(), context.Cause(d))
				}
			}
			<-ran
			<-ran
			if c.Finish() {
				t.Error("Finish has not noticed the Cancel")
			}
		})
	}
}

// What a driver keeps of the context of BEGIN must not end the transaction:
// pgx keeps the context, lib/pq its channel.
func TestFinishIsForGood(t *testing.T) {
	c := start()
	kept := c.Done()
	before, cancelBefore := context.WithCancel(c)
	defer cancelBefore()
	context.AfterFunc(c, func() { t.Error("the function of AfterFunc ran") })
	if !c.Finish() {
		t.Error("Finish has noticed a Cancel")
	}
	after, cancelAfter := context.WithCancel(c)
	defer cancelAfter()
	c.Cancel()
	for name, d := range map[string]context.Context{"the context": c, "one derived before": before, "one derived after": after} {
		if !open(d) {
			t.Errorf("%s has ended", name)
		}
	}
	select {
	case <-kept:
		t.Error("the channel is closed")
	default:
	}
	if c.Done() != kept {
		t.Error("Done returned another channel")
	}
}

func TestEndOfWhatIsDerived(t *testing.T) {
	c := start()
	d, cancel := context.WithCancelCause(c)
	because := errors.New("test")
	cancel(because)
	if context.Cause(d) != because || !open(c) {
		t.Errorf("Cause %v, the context has ended: %v", context.Cause(d), !open(c))
	}
	c.Cancel()
	if context.Cause(d) != because {
		t.Errorf("Cause %v after Cancel", context.Cause(d))
	}
}

func TestValuesWithoutTheRest(t *testing.T) {
	parent, cancel := context.WithTimeout(context.WithValue(context.Background(), key{}, "value"), time.Hour)
	c := new(Context)
	c.Init(parent)
	if _, ok := c.Deadline(); ok || c.Value(key{}) != "value" {
		t.Errorf("deadline %v, value %v", ok, c.Value(key{}))
	}
	d, cancelDerived := context.WithCancel(c)
	defer cancelDerived()
	cancel()
	if !open(c) || !open(d) {
		t.Error("it ends with the context that it has the values of")
	}
	if d.Value(key{}) != "value" {
		t.Errorf("value %v", d.Value(key{}))
	}
}

// database/sql asks for the channel, and derives one context.
func TestAllocations(t *testing.T) {
	parent := context.Background()
	mine := testing.AllocsPerRun(100, func() {
		c := new(Context)
		c.Init(parent)
		_ = c.Done()
		d, cancel := context.WithCancel(c)
		_ = d.Done()
		c.Finish()
		cancel()
	})
	theirs := testing.AllocsPerRun(100, func() {
		c, stop := context.WithCancel(context.WithoutCancel(parent))
		_ = c.Done()
		d, cancel := context.WithCancel(c)
		_ = d.Done()
		cancel()
		_ = stop
	})
	t.Logf("%v against %v", mine, theirs)
	if mine >= theirs {
		t.Errorf("%v allocations, context.WithCancel takes %v", mine, theirs)
	}
}
