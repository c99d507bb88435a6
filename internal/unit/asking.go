package unit

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
)

// asking is a Route or TxOptions that is being asked, as the context that it is
// given tells.
type asking struct {
	unit   *Unit
	source *Source
	outer  *asking // that it is inside of: the Route of another key used this one
	over   atomic.Bool
}

type askingKey struct{}

// askingIn returns the innermost asking that ctx is inside of, nil if there is none.
func askingIn(ctx context.Context) *asking {
	a, _ := ctx.Value(askingKey{}).(*asking)
	return a
}

// Asking reports whether ctx is that of a Route or TxOptions of u, and whether that
// is still running.
func (u *Unit) Asking(ctx context.Context) (asked, running bool) {
	a := askingIn(ctx)
	if a == nil || a.unit != u {
		return false, false
	}
	return true, !a.over.Load()
}

// ask calls a function of the binding of s, with a context that tells so.
func (u *Unit) ask(ctx context.Context, s *Source, fn func(context.Context)) {
	a := &asking{unit: u, source: s, outer: askingIn(ctx)}
	defer a.over.Store(true)
	fn(context.WithValue(ctx, askingKey{}, a))
}

// lockChoice takes the turn at what s has to choose. A wait that would never end,
// since who is asked uses the key that it is asked for, is an error instead.
func (u *Unit) lockChoice(ctx context.Context, s *Source) error {
	if s.choice.turn.TryLock() {
		return nil
	}
	inside := askingIn(ctx)
	if err := u.startWaiting(inside, s); err != nil {
		return err
	}
	defer u.stopWaiting(inside, s)
	return s.choice.turn.LockEither(ctx, u.host.Context())
}

// startWaiting notes that those who are being asked wait for s.
func (u *Unit) startWaiting(inside *asking, s *Source) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	for a := inside; a != nil; a = a.outer {
		switch {
		case a.source == s:
			return fmt.Errorf("its own Route or TxOptions uses the key %q, and would wait for itself; use another key there, or Registry.Do", s.Name())
		case s.waitsFor(a.source, nil):
			return fmt.Errorf("the Route or TxOptions of key %q uses the key %q, whose own waits for %q in turn; they would wait for each other", a.source.Name(), s.Name(), a.source.Name())
		}
	}
	for a := inside; a != nil; a = a.outer {
		a.source.choice.waits = append(a.source.choice.waits, s)
	}
	return nil
}

func (u *Unit) stopWaiting(inside *asking, s *Source) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for a := inside; a != nil; a = a.outer {
		if i := slices.Index(a.source.choice.waits, s); i >= 0 {
			a.source.choice.waits = slices.Delete(a.source.choice.waits, i, i+1)
		}
	}
}

// waitsFor reports whether who is asked for s waits for t, or for one that does.
// seen are those that were looked at. The caller holds the unit's mutex.
func (s *Source) waitsFor(t *Source, seen []*Source) bool {
	if slices.Contains(seen, s) {
		return false
	}
	seen = append(seen, s)
	return slices.ContainsFunc(s.choice.waits, func(w *Source) bool { return w == t || w.waitsFor(t, seen) })
}
