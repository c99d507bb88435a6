package unit

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/sqlreq/sqlreq/internal/txn"
)

// Finish ends the unit when the program has returned: it commits what is open, if
// nothing has failed and the host says so, or rolls it back, and runs the hooks.
// Afterwards nothing can begin in it. status is handed to the host. It returns the
// first failure; a second call does nothing else.
func (u *Unit) Finish(status int) error {
	return u.finish(u.Err() == nil && u.host.Commits(status, u.joined()))
}

// Abandon ends the unit when the program has not returned: what is open is rolled back.
func (u *Unit) Abandon() { _ = u.finish(false) }

func (u *Unit) finish(commit bool) error {
	started := false
	for !started {
		commit = commit && u.decide()
		var again bool
		if started, again = u.startEnding(commit); !started && !again {
			return u.result()
		}
	}
	var one [1]*txn.Slot // most units have one: no allocation
	open := u.closeSlots(one[:0])
	commit = u.endClosed(open, commit)
	for _, h := range u.lastHooks(open, commit) {
		h.run()
	}
	return u.result()
}

// endClosed ends what is open in the slots, which are closed. Who wants to know of
// the end is told also if a driver does not return.
func (u *Unit) endClosed(open []*txn.Slot, commit bool) bool {
	defer u.tellEnd()
	if commit {
		u.waitForStatements(open)
	}
	return u.endAll(open, u.mayCommit(commit, len(open) > 0))
}

// startEnding reports whether there is anything to end. again is true if a
// BeforeCommit function is to run first.
func (u *Unit) startEnding(commit bool) (started, again bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.state >= ending:
		return false, false
	case u.used.Load() == nil:
		u.state = ended
		return false, false
	case commit && u.host.Context().Err() == nil && u.indexOfNext(nil) >= 0:
		return false, true
	}
	u.state = ending
	return true, false
}

// closeSlots closes every slot and returns those with an open transaction. No
// slot is added any more.
func (u *Unit) closeSlots(open []*txn.Slot) []*txn.Slot {
	for s := u.used.Load().slots; s != nil; s = s.next {
		if s.Close() {
			open = append(open, &s.Slot)
		}
	}
	return open
}

// waitForStatements waits for those that are under way: what their errors say
// about the transactions counts. The wait ends with the unit's context, and then
// nothing is committed.
func (u *Unit) waitForStatements(open []*txn.Slot) {
	ctx := u.host.Context()
	for _, s := range open {
		if s.Quiet(ctx, ctx) != nil {
			return
		}
	}
}

// mayCommit returns whether what is open may be committed, and makes the unit
// fail where it is for the client's leaving that it may not.
func (u *Unit) mayCommit(commit, isOpen bool) bool {
	commit = commit && u.Err() == nil // a Commit that closeSlots waited for may have failed
	gone := u.host.Context().Err()
	if !commit || gone == nil {
		return commit
	}
	if isOpen || u.gaveUp() {
		u.failByItself(fmt.Errorf("sqlreq: the request's context ended before COMMIT: %w", gone))
	}
	return false
}

// gaveUp reports whether the program waited for a transaction in vain and then
// answered nothing: an empty 200, or the nil of a Do, would be a lie.
func (u *Unit) gaveUp() bool {
	return u.askUsed(func(use *used) bool { return use.timedOut }) && !u.host.Answered()
}

// endAll ends the open transactions, until one fails: the rest are rolled back
// then. Those that end with ROLLBACK in any case come first, for one on the same
// SQLite file would make the writer's COMMIT fail; then those for which no
// BeforeCommit function has run, in the order of their BEGINs, and the others in the
// order of the last of these functions. Observe is told when all have ended. It
// returns whether all went as asked. The caller has the turns of the slots, or has
// closed them.
func (u *Unit) endAll(open []*txn.Slot, commit bool) bool {
	if len(open) > 1 {
		slices.SortFunc(open, u.inOrderOfEnds)
		commit = commit && u.noneLost(open)
	}
	var one [1]txn.Result
	results := one[:0]
	defer func() {
		if len(results) < len(open) { // a driver did not return: its own transaction is noted, the rest are still open
			u.rollBack(open[len(results)+1:])
		}
		for _, r := range results {
			u.observe(r)
		}
	}()
	var committed []string
	for _, s := range open {
		r := u.end(s, sourceOf(s).at, commit, committed)
		results = append(results, r)
		commit = commit && r.Err == nil
		if len(open) > 1 && commit && !s.ReadOnly() {
			committed = append(committed, s.Opener().Name())
		}
	}
	return commit
}

func (u *Unit) inOrderOfEnds(a, b *txn.Slot) int {
	switch first := a.EndsWithRollback(); {
	case first == b.EndsWithRollback():
		return cmp.Or(cmp.Compare(u.place(a), u.place(b)), cmp.Compare(a.Number(), b.Number()))
	case first:
		return -1
	}
	return 1
}

// sourceOf returns the source that began the transaction of s.
func sourceOf(s *txn.Slot) *Source { return s.Opener().(*Source) }

// noneLost reports whether every transaction can still be committed, as far as
// that is known: one that cannot is better found before the first COMMIT.
func (u *Unit) noneLost(open []*txn.Slot) bool {
	sound := true
	for _, s := range open {
		if err := s.Lost(); err != nil {
			u.fail(sourceOf(s).at, err)
			sound = false
		}
	}
	return sound
}

// rollBack rolls back what is open in the slots.
func (u *Unit) rollBack(open []*txn.Slot) {
	for _, s := range open {
		u.end(s, sourceOf(s).at, false, nil)
	}
}

// end ends the transaction of s; at is the context of who fails if that does. The
// Err of the result is that for the program. The caller has the turn, or has
// closed s.
func (u *Unit) end(s *txn.Slot, at context.Context, well bool, committed []string) (r txn.Result) {
	defer func() { r = u.noteEnd(s, at, committed) }() // also if a driver does not return
	s.End(u.host.Context(), well)
	return r
}

// noteEnd notes what became of the transaction that has ended in s.
func (u *Unit) noteEnd(s *txn.Slot, at context.Context, committed []string) txn.Result {
	r := s.Last()
	switch {
	case !r.Stored:
	case r.Outcome == txn.Unknown && u.isRecorded(s):
		u.loseRecord()
	default:
		u.Keep()
	}
	u.dropBefores(s)
	if r.CommitFailed() {
		u.noteCommitFailed()
		ambiguous := r.Outcome == txn.Unknown
		if ambiguous {
			u.takeHooks(s) // they are dropped: neither kind runs
		}
		r.Err = sourceOf(s).CommitError(committed, ambiguous, r.Err)
	}
	if r.Outcome == txn.Ended {
		u.noteUnknown(r.Err)
	}
	u.fail(at, r.Err)
	return r
}

func (u *Unit) noteCommitFailed() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.use().commitFailed = true
}

func (u *Unit) noteUnknown(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if rare := u.rare(); rare.unknown == nil {
		rare.unknown = err
	}
}

// observe tells who wants to know what became of a transaction.
func (u *Unit) observe(r txn.Result) {
	if r.Times != nil {
		r.Opener.(*Source).Observe(u, r)
	}
}

// EndNow commits the transaction of b, or rolls it back, and lets the unit go on.
// With nothing open in the unit it does nothing, and asks no Route. at is the
// context of the caller, bound that of the registry that bound b.
func (u *Unit) EndNow(ctx, at, bound context.Context, b Binding, commit bool) error {
	if busy, err := u.busy(); !busy {
		return err
	}
	s, err := u.resolve(ctx, bound, b, false) // another key may have begun on the same pool
	if err != nil {
		return err
	}
	what := "Rollback"
	if commit {
		what = "Commit"
	}
	if err := u.mayEndNow(ctx, what, s.Name(), s.slot); err != nil {
		return err
	}
	done, err := u.mayUse(ctx, s)
	if err != nil {
		return err
	}
	defer done()
	if commit {
		defer u.markDeciding([]*txn.Slot{s.slot})()
	}
	r, hooks, err := u.decideAndEnd(ctx, at, s, commit)
	u.observe(r)
	for _, h := range hooks {
		h.run()
	}
	return err
}

// decideAndEnd runs the BeforeCommit functions and ends the transaction when none
// is left.
func (u *Unit) decideAndEnd(ctx, at context.Context, s *Source, commit bool) (r txn.Result, hooks []hook, err error) {
	for again := true; again; {
		if commit && s.slot.Open() && !s.slot.InSavepoint() {
			if err := u.runBefores(ctx, s.slot); err != nil {
				return r, nil, u.refuse(at, s, err)
			}
		}
		r, hooks, again, err = u.endNow(ctx, at, s, commit)
	}
	return r, hooks, err
}

// busy reports whether a transaction is open in the unit, or being begun.
func (u *Unit) busy() (bool, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state >= ending {
		return false, txn.ErrFinished
	}
	for s := u.firstSlot(); s != nil; s = s.next {
		if s.Busy() {
			return true, nil
		}
	}
	return false, nil
}

// endNow ends the transaction of s while it has the turn. The hooks are for the
// caller to run, without the turn. The zero Result means that nothing was ended.
// again is true if BeforeCommit functions are to run first.
func (u *Unit) endNow(ctx, at context.Context, s *Source, commit bool) (r txn.Result, hooks []hook, again bool, err error) {
	if err := s.slot.Lock(ctx, u.host.Context()); err != nil {
		if commit && err != txn.ErrFinished {
			err = u.refuse(at, s, err)
		}
		return r, nil, false, err
	}
	defer s.slot.Unlock()
	switch {
	case !s.slot.Open():
		return r, nil, false, nil
	case s.slot.InSavepoint() && commit:
		return r, nil, false, insideError("Commit", s.Name())
	case s.slot.InSavepoint():
		return r, nil, false, insideError("Rollback", s.Name())
	}
	if commit {
		err := s.slot.Quiet(ctx, u.host.Context())
		if err = cmp.Or(err, ctx.Err(), u.host.Context().Err(), u.Err()); err != nil {
			return r, nil, false, u.refuse(at, s, err)
		}
	}
	if commit && u.undecided(s.slot) {
		return r, nil, true, nil
	}
	r = u.end(s.slot, at, commit, nil)
	return r, u.takeHooks(s.slot), false, r.Err
}

// refuse makes the unit fail because of a Commit that is refused.
func (u *Unit) refuse(at context.Context, s *Source, err error) error {
	err = fmt.Errorf("sqlreq: commit on key %q refused: %w", s.Name(), err)
	_ = u.Fail(at, err)
	return err
}

func insideError(what, key string) error {
	return fmt.Errorf("sqlreq: %s inside a Savepoint of key %q; return from its function first", what, key)
}

// EndOpen commits, or rolls back, what is open, and lets the unit go on: before a
// connection is hijacked.
func (u *Unit) EndOpen(commit bool) error {
	slots, err := u.allSlots(commit)
	if err != nil || len(slots) == 0 {
		return err
	}
	if commit {
		defer u.markDeciding(slots)()
	}
	var hooks []hook
	for again := true; again; {
		if commit {
			if err := u.runBefores(u.host.Context(), slots...); err != nil {
				return err
			}
		}
		hooks, again, err = u.endOpen(u.slots(), commit) // a function may have begun on another database
	}
	for _, h := range hooks {
		h.run()
	}
	return err
}

// allSlots returns the slots that are in use, or why they are not to be ended.
func (u *Unit) allSlots(commit bool) ([]*txn.Slot, error) {
	if err := u.Err(); err != nil {
		return nil, err
	}
	if err := u.host.Context().Err(); err != nil && commit {
		return nil, err
	}
	slots := u.slots()
	for _, s := range slots {
		if s.InSavepoint() {
			return nil, insideError("Hijack", s.Opener().Name())
		}
	}
	return slots, u.mayEndNow(u.host.Context(), "Hijack", u.FirstKey(), slots...)
}

// endOpen ends what is open in the slots while it has their turns. The hooks are
// for the caller to run, without the turns. again is true if BeforeCommit functions
// are to run first.
func (u *Unit) endOpen(slots []*txn.Slot, commit bool) (hooks []hook, again bool, err error) {
	var open []*txn.Slot
	for _, s := range slots {
		if err := s.Lock(u.host.Context(), u.host.Context()); err != nil {
			return nil, false, err
		}
		defer s.Unlock()
		if s.Open() {
			open = append(open, s)
		}
	}
	for _, s := range open {
		if err := s.Quiet(u.host.Context(), u.host.Context()); err != nil && commit {
			return nil, false, err
		}
	}
	if commit && u.undecided(slots...) {
		return nil, true, nil
	}
	if ok := u.endAll(open, commit); !ok && commit {
		err = u.Err() // a rollback that was asked for is no failure
	}
	return u.takeHooks(open...), false, err
}
