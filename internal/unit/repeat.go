package unit

import (
	"context"
	"errors"
	"slices"

	"github.com/sqlreq/sqlreq/internal/repeat"
	"github.com/sqlreq/sqlreq/internal/sqlerr"
	"github.com/sqlreq/sqlreq/internal/txn"
)

// Opened makes u, with AtEnd and BeforeEnd, a repeat.Unit.
func (u *Unit) Opened() bool {
	for ; u != nil; u = u.host.Outer() {
		if u.opened() {
			return true
		}
	}
	return false
}

func (u *Unit) opened() bool {
	if u.used.Load() == nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for s := u.firstSlot(); s != nil; s = s.next {
		if s.Busy() {
			return true
		}
	}
	return false
}

// AtEnd has e told when the transactions of u have ended, whatever became of them.
func (u *Unit) AtEnd(e repeat.Ender) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state >= ending {
		return false
	}
	rare := u.rare()
	rare.ends = append(rare.ends, e)
	return true
}

// BeforeEnd has c asked before what is open at the end of u is committed.
func (u *Unit) BeforeEnd(c repeat.Checker) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state >= ending {
		return false
	}
	rare := u.rare()
	rare.checks = append(rare.checks, c)
	return true
}

// failUnchecked makes a unit that is to commit fail if one of those says no who have
// asked by BeforeEnd. Nothing is added to them any more: the unit is ending.
func (u *Unit) failUnchecked(open []*txn.Slot) {
	rare := u.ifRare()
	if rare == nil || len(open) == 0 {
		return
	}
	for _, c := range rare.checks {
		if err := c.MayCommit(); err != nil {
			u.failByItself(err)
		}
	}
}

// tellEnd tells who has asked by AtEnd.
func (u *Unit) tellEnd() {
	for _, e := range u.takeEnds() {
		e.UnitEnded()
	}
}

func (u *Unit) takeEnds() (ends []repeat.Ender) {
	rare := u.ifRare()
	if rare == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	ends, rare.ends = rare.ends, nil
	return ends
}

// isRecorded reports whether the record was written in the transaction of s.
func (u *Unit) isRecorded(s *txn.Slot) bool {
	rare := u.ifRare()
	if rare == nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Contains(rare.recorded, s)
}

// loseRecord notes that nobody knows whether the record is stored. The units around
// have none of their own, so they are not run again.
func (u *Unit) loseRecord() {
	u.noteRecordLost()
	if outer := u.host.Outer(); outer != nil && !u.host.Within().Repeats {
		outer.Keep()
	}
}

func (u *Unit) noteRecordLost() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.rare().recordLost = true
}

// RecordLost reports whether the answer to the COMMIT of the record did not come, and
// nothing else of u is stored, or may be: the record tells a repeat what has become
// of it.
func (u *Unit) RecordLost() bool {
	rare := u.ifRare()
	if rare == nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return rare.recordLost && !u.committed
}

// Persist waits before a BEGIN is sent again for the nth time, and reports whether
// there is time left for it.
type Persist func(ctx context.Context, n int) bool

// PersistInBegin has a BEGIN that cannot reach its database sent again: after a COMMIT
// whose answer was lost there may be a failover, which takes its time.
func (u *Unit) PersistInBegin(p Persist) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.rare().persist = p
}

// persists reports whether the BEGIN that has failed is to be sent again, for the nth
// time, and waits before it says so. One after which nobody knows what has stayed is not.
func (u *Unit) persists(ctx context.Context, err error, n int) bool {
	p := u.persistence()
	var failed *txn.BeginError
	if p == nil || !errors.As(err, &failed) || !sqlerr.Unreachable(failed.Err) || ctx.Err() != nil || u.unknown() != nil {
		return false
	}
	return p(ctx, n)
}

func (u *Unit) persistence() Persist {
	rare := u.ifRare()
	if rare == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return rare.persist
}
