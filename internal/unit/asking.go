package unit

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
)

// asked is what a function of the program is asked for while others wait for its
// answer: the choice of a source (Route, TxOptions), the BEGIN of a slot
// (AfterBegin). The unit's mutex guards it.
type asked struct {
	function string   // for the text of an error; set before it is asked
	binding  Binding  // likewise; of the key that asks
	waits    []*asked // what the function waits for
}

func (a *asked) String() string { return fmt.Sprintf("the %s of key %q", a.function, a.binding.Name()) }

// asking is a function of the program that is being asked, as the context that it
// is given tells.
type asking struct {
	unit  *Unit
	asked *asked
	outer *asking // that it is inside of: the Route of another key used this one
	over  atomic.Bool
}

type askingKey struct{}

// askingIn returns the innermost asking that ctx is inside of, nil if there is none.
func askingIn(ctx context.Context) *asking {
	a, _ := ctx.Value(askingKey{}).(*asking)
	return a
}

// Asking reports whether ctx is that of a function which u asks, and whether that
// is still running.
func (u *Unit) Asking(ctx context.Context) (asked, running bool) {
	a := askingIn(ctx)
	if a == nil || a.unit != u {
		return false, false
	}
	return true, !a.over.Load()
}

// ask calls a function of the program about a, with a context that tells so.
func (u *Unit) ask(ctx context.Context, a *asked, fn func(context.Context)) {
	call := &asking{unit: u, asked: a, outer: askingIn(ctx)}
	if use := u.used.Load(); use != nil { // so that the uses of units that ask nothing need not look at their contexts
		use.asking.Add(1)
		defer use.asking.Add(-1)
	}
	defer call.over.Store(true)
	fn(context.WithValue(ctx, askingKey{}, call))
}

// lockChoice takes the turn at what s has to choose. A wait that would never end,
// since who is asked uses the key that it is asked for, is an error instead.
func (u *Unit) lockChoice(ctx context.Context, s *Source) error {
	if s.choice.turn.TryLock() {
		return nil
	}
	done, err := u.mayWait(ctx, &s.choice.asked)
	if err != nil {
		return err
	}
	defer done()
	return s.choice.turn.LockEither(ctx, u.host.Context())
}

func nothing() {}

// mayWait notes that those who are being asked, as ctx tells, wait for target until
// done is called. If target waits for one of them, it returns an error.
func (u *Unit) mayWait(ctx context.Context, target *asked) (done func(), err error) {
	inside := askingIn(ctx)
	if inside == nil {
		return nothing, nil
	}
	if err := u.startWaiting(inside, target); err != nil {
		return nothing, err
	}
	return func() { u.stopWaiting(inside, target) }, nil
}

func (u *Unit) startWaiting(inside *asking, target *asked) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	for a := inside; a != nil; a = a.outer {
		switch {
		case a.over.Load(): // its context was kept, nobody waits for it any more
		case a.asked == target:
			return fmt.Errorf("%v uses the key %q and would wait for itself; use what it is given, another key, or Registry.Do", inside.asked, target.binding.Name())
		case target.waitsFor(a.asked, nil):
			return fmt.Errorf("%v waits for %v, which waits for it in turn; they would wait for each other", a.asked, target)
		}
	}
	for a := inside; a != nil; a = a.outer {
		a.asked.waits = append(a.asked.waits, target)
	}
	return nil
}

func (u *Unit) stopWaiting(inside *asking, target *asked) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for a := inside; a != nil; a = a.outer {
		if i := slices.Index(a.asked.waits, target); i >= 0 {
			a.asked.waits = slices.Delete(a.asked.waits, i, i+1)
		}
	}
}

// waitsFor reports whether who is asked for a waits for t, or for one that does.
// seen are those that were looked at. The caller holds the unit's mutex.
func (a *asked) waitsFor(t *asked, seen []*asked) bool {
	if slices.Contains(seen, a) {
		return false
	}
	seen = append(seen, a)
	return slices.ContainsFunc(a.waits, func(w *asked) bool { return w == t || w.waitsFor(t, seen) })
}
