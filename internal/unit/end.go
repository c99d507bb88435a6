package unit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/sqlreq/sqlreq/internal/txn"
)

// Finish ends the unit when the program has returned: it commits what is open, if
// nothing has failed and the host says so, or rolls it back, and runs the hooks.
// Afterwards nothing can begin in it. status is handed to the host. It returns the
// first failure; a second call does nothing else.
func (u *Unit) Finish(status int) error {
	var joined []any
	if u.ifRare() != nil {
		joined = u.joined()
	}
	return u.finish(u.failed.Load() == nil && u.host.Commits(status, joined))
}

// Abandon ends the unit when the program has not returned: what is open is rolled
// back. It returns the first failure.
func (u *Unit) Abandon() error { return u.finish(false) }

func (u *Unit) finish(commit bool) error {
	if u.used.Load() == nil && u.endUnused(true) {
		return u.Err()
	}
	started := false
	for !started {
		decides := commit      // if a BeforeCommit function is there
		if u.ifRare() != nil { // otherwise none is there yet
			commit = commit && u.decide()
			decides = commit && u.gone() == nil // not asked under the mutex
		}
		var again bool
		if started, again = u.startEnding(decides); !started && !again {
			return u.result()
		}
	}
	var one [1]*txn.Slot // most units have one: no allocation
	open := u.closeSlots(one[:0])
	commit = u.endClosed(open, commit)
	if hooks := u.lastHooks(); len(hooks) > 0 {
		runLast(hooks, open, commit)
	}
	return u.result()
}

// endClosed ends what is open in the slots, which are closed. Who wants to know of
// the end is told also if a driver does not return.
func (u *Unit) endClosed(open []*txn.Slot, commit bool) bool {
	rare := u.ifRare() != nil // otherwise nobody has asked for what follows, and nobody can any more
	if rare {
		defer u.tellEnd()
	}
	if commit {
		u.waitForStatements(open)
	}
	if commit && rare {
		u.failInAtomic(open)
		u.failUnchecked(open)
	}
	return u.endObserved(open, u.mayCommit(commit, len(open) > 0))
}

// FinishUnused is Finish for a unit that has used nothing and has not failed, and
// reports whether it is one: the answer decides nothing in it.
func (u *Unit) FinishUnused() bool { return u.used.Load() == nil && u.endUnused(false) }

// endUnused ends a unit that has used nothing, and reports whether it is one. One that has
// failed is, if failed is true. Fail takes the mutex, too: it comes before, or is refused.
func (u *Unit) endUnused(failed bool) bool {
	u.mu.Lock()
	unused := u.state < ending && u.used.Load() == nil && (failed || u.failed.Load() == nil)
	if unused {
		u.state = ended
	}
	u.mu.Unlock()
	return unused
}

// startEnding reports whether there is anything to end. again is true if decides is,
// and a BeforeCommit function is to run first, or runs.
func (u *Unit) startEnding(decides bool) (started, again bool) {
	u.mu.Lock()
	if u.state < ending {
		again = decides && u.ifRare() != nil && (u.indexOfNext(nil) >= 0 || u.firstDecision() != nil)
		started = !again
	}
	if started {
		u.state = ending
	}
	u.mu.Unlock()
	return started, again
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
	for _, s := range open {
		if s.Running() && s.Quiet(u.host.Context(), u.host.Context()) != nil {
			return
		}
	}
}

// mayCommit returns whether what is open may be committed, and makes the unit
// fail where it is for the client's leaving that it may not.
func (u *Unit) mayCommit(commit, isOpen bool) bool {
	commit = commit && u.Err() == nil // a Commit that closeSlots waited for may have failed
	if !commit {
		return false
	}
	gone := u.gone()
	if gone == nil {
		return true
	}
	if isOpen || u.gaveUp() {
		u.failByItself(fmt.Errorf("sqlreq: the request's context ended before COMMIT: %w", gone))
	}
	return false
}

// gone returns why the unit's context has ended, nil if it has not. One that panics
// counts as one that has ended: what is open must be ended all the same.
func (u *Unit) gone() (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("sqlreq: the context's Err panicked: %v", v)
		}
	}()
	return u.host.Context().Err()
}

// gaveUp reports whether the program waited for a transaction in vain and then
// answered nothing: an empty 200, or the nil of a Do, would be a lie.
func (u *Unit) gaveUp() bool {
	return u.hasTimedOut() && !u.host.Answered()
}

// endAll ends the open transactions, until one fails: the rest are rolled back
// then. Those that end with ROLLBACK in any case come first, for one on the same
// SQLite file would make the writer's COMMIT fail; then those for which no
// BeforeCommit function has run, in the order of their BEGINs, and the others in the
// order of the last of these functions. results gets what Observe is to be told when
// all have ended, also if a driver does not return. It returns whether all went as
// asked. The caller has the turns of the slots, or has closed them.
func (u *Unit) endAll(open []*txn.Slot, commit bool, results *[]txn.Result) bool {
	if len(open) == 1 { // in most units
		return u.end(open[0], nil, commit, nil, results) == nil && commit
	}
	slices.SortFunc(open, u.inOrderOfEnds)
	commit = commit && u.noneLost(open)
	n := 0 // ends have returned
	defer func() {
		if n < len(open) { // a driver did not return
			defer u.dropHooks(open)
			u.rollBack(open[n+1:], results)
		}
	}()
	var committed []string
	for _, s := range open {
		commit = u.end(s, nil, commit, committed, results) == nil && commit
		if commit && !s.ReadOnly() {
			committed = append(committed, s.Opener().Name())
		}
		n++
	}
	return commit
}

// endObserved is endAll for slots that are closed. It tells Observe.
func (u *Unit) endObserved(open []*txn.Slot, commit bool) bool {
	var results []txn.Result
	defer u.observeAll(&results)
	return u.endAll(open, commit, &results)
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

// dropHooks forgets the hooks of what has ended in the slots.
func (u *Unit) dropHooks(slots []*txn.Slot) {
	for _, s := range slots {
		u.takeHooks(s)
	}
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

// rollBack rolls back what is open in the slots, also if a driver does not return.
func (u *Unit) rollBack(open []*txn.Slot, results *[]txn.Result) {
	if len(open) == 0 {
		return
	}
	defer u.rollBack(open[1:], results)
	_ = u.end(open[0], nil, false, nil, results)
}

// end ends the transaction of s; at is the context of who fails if that does, nil for
// that of the key that began it. The error is that for the program. What became of it
// is added to results if somebody wants to know, also if a driver does not return. The
// caller has the turn, or has closed s.
func (u *Unit) end(s *txn.Slot, at context.Context, well bool, committed []string, results *[]txn.Result) (err error) {
	returned := false
	defer func() {
		r := s.Result()
		u.noteEnd(s, &r, at, committed)
		u.dropBefores(s)
		if !returned {
			u.takeHooks(s) // they are dropped, whatever came of COMMIT before: the driver did not return
		}
		if r.Times != nil { // somebody wants to know
			*results = append(*results, r)
		}
		err = r.Err
	}()
	s.End(u.host.Context(), well)
	returned = true
	return nil
}

// noteEnd notes what became of the transaction that has ended in s, and makes the
// Err of r that for the program.
func (u *Unit) noteEnd(s *txn.Slot, r *txn.Result, at context.Context, committed []string) {
	lost := r.Outcome == txn.Unknown && u.isRecorded(s)
	if r.Stored && !lost {
		u.Keep()
	}
	if r.Outcome == txn.Committed {
		return
	}
	if r.Stored && lost {
		u.loseRecord()
	}
	if r.Outcome == txn.Unknown {
		u.takeHooks(s) // they are dropped: neither kind runs
	}
	if r.CommitFailed() {
		u.noteCommitFailed()
		r.Err = r.Opener.(*Source).CommitError(committed, r.Outcome == txn.Unknown, r.Err)
	}
	if r.Outcome == txn.Ended || r.CommitFailed() && (r.Outcome == txn.Unknown || len(committed) > 0) {
		u.noteUnknown(r.Err) // also where the unit had failed before
	}
	if r.Err != nil {
		u.fail(cmp.Or(at, r.Opener.(*Source).at), r.Err)
	}
}

func (u *Unit) noteCommitFailed() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.rare().commitFailed = true
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

// observeAll is observe for all results.
func (u *Unit) observeAll(results *[]txn.Result) {
	for _, r := range *results {
		u.observe(r)
	}
}

// EndNow commits the transaction of b, or rolls it back, and lets the unit go on.
// With nothing open in the unit it does nothing, and asks no Route. at is the
// context of the caller, bound that of the registry that bound b.
func (u *Unit) EndNow(ctx, at, bound context.Context, b Binding, commit bool) error {
	if busy, err := u.busy(); !busy {
		return err
	}
	s, err := u.resolve(ctx, bound, b, need{}) // another key may have begun on the same pool
	if err != nil {
		return err
	}
	e := endOf{at: at, source: s, commit: commit, what: "Rollback"}
	if commit {
		e.what = "Commit"
	}
	if err := u.mayEndNow(ctx, e.what, s.Name(), s.slot, nil); err != nil {
		return err // without a wait for the turn
	}
	done, err := u.mayUse(ctx, s)
	if err != nil {
		return err
	}
	defer done()
	hooks, err := u.decideAndEnd(ctx, &e)
	for _, h := range hooks {
		h.run()
	}
	return err
}

// endOf is a Commit, a Rollback or a Hijack under way.
type endOf struct {
	at       context.Context // of the caller; nil: a Hijack
	source   *Source         // nil: a Hijack, which ends all that is open
	commit   bool
	what     string       // for the text of an error
	decision *decision    // the run of BeforeCommit functions; nil before the first
	results  []txn.Result // of what has ended, if somebody wants to know
}

// decideAndEnd ends the transaction when no BeforeCommit function is left, and runs
// them before. It tells Observe, without the turn.
func (u *Unit) decideAndEnd(ctx context.Context, e *endOf) (hooks []hook, err error) {
	defer u.observeAll(&e.results)
	defer func() { u.stopDeciding(e.decision) }()
	for {
		var again bool
		if hooks, again, err = u.endNow(ctx, e); !again {
			return hooks, err
		}
		if err := e.decision.run(ctx); err != nil {
			return nil, u.refuse(e.at, e.source, err)
		}
	}
}

// busy reports whether a transaction is open in the unit, or being begun.
func (u *Unit) busy() (bool, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.refused(); err != nil {
		return false, err
	}
	for s := u.firstSlot(); s != nil; s = s.next {
		if s.Busy() {
			return true, nil
		}
	}
	return false, nil
}

// endNow ends the transaction while it has the turn. The hooks are for the caller to
// run, without the turn. again is true if BeforeCommit functions are to run first.
func (u *Unit) endNow(ctx context.Context, e *endOf) (hooks []hook, again bool, err error) {
	s := e.source
	if err := u.ofEnd(s.slot.Lock(ctx, u.host.Context())); err != nil {
		if e.commit && !errors.Is(err, txn.ErrFinished) {
			err = u.refuse(e.at, s, err)
		}
		return nil, false, err
	}
	defer s.slot.Unlock()
	switch {
	case !s.slot.Open():
		return nil, false, nil
	case s.slot.InSavepoint():
		return nil, false, insideError(e.what, s.Name())
	}
	// Looked at again: whoever has begun to run functions meanwhile had the turn.
	if err := u.mayEndNow(ctx, e.what, s.Name(), s.slot, e.decision); err != nil {
		return nil, false, err
	}
	if e.commit {
		err := s.slot.Quiet(ctx, u.host.Context())
		if err = cmp.Or(err, ctx.Err(), u.host.Context().Err(), u.Err()); err != nil {
			return nil, false, u.refuse(e.at, s, err)
		}
		if s.slot.Lost() == nil { // otherwise the end will say so
			if d := u.startDecidingFor(s.slot, e.decision); d != nil {
				e.decision = d
				return nil, true, nil
			}
		}
	}
	if err := s.slot.CloseNest(ctx, u.host.Context()); err != nil && e.commit {
		return nil, false, u.refuse(e.at, s, err)
	} else if err != nil {
		return nil, false, err
	}
	err = u.end(s.slot, e.at, e.commit, nil, &e.results)
	return u.takeHooks(s.slot), false, err
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
// connection is hijacked. After a RollbackOnly it rolls back.
func (u *Unit) EndOpen(commit bool) error {
	commit = commit && !u.AnswerStands()
	if err := u.mayEndOpen(commit); err != nil {
		return err
	}
	hooks, err := u.decideAndEndOpen(commit)
	for _, h := range hooks {
		h.run()
	}
	return err
}

// decideAndEndOpen is decideAndEnd for what is open.
func (u *Unit) decideAndEndOpen(commit bool) (hooks []hook, err error) {
	e := endOf{commit: commit}
	defer u.observeAll(&e.results)
	defer func() { u.stopDeciding(e.decision) }()
	for {
		var again bool
		if hooks, again, err = u.endOpen(&e); !again {
			return hooks, err
		}
		if err := e.decision.run(u.host.Context()); err != nil {
			return nil, err
		}
	}
}

// mayEndOpen returns why what is open is not to be ended. With nothing open it asks
// no context: a client that has shut down its sending side is still there.
func (u *Unit) mayEndOpen(commit bool) error {
	if u.Over() {
		return txn.ErrFinished
	}
	if err := u.Err(); err != nil && !u.AnswerStands() {
		return err
	}
	slots := u.busySlots()
	if err := u.host.Context().Err(); err != nil && commit && len(slots) > 0 {
		return err
	}
	for _, s := range slots {
		if s.InSavepoint() {
			return insideError("Hijack", s.Opener().Name())
		}
	}
	return u.mayEndNow(u.host.Context(), "Hijack", u.FirstKey(), nil, nil)
}

// endOpen ends what is open while it has the turns of all slots. The hooks are for
// the caller to run, without the turns. again is true if BeforeCommit functions are
// to run first.
func (u *Unit) endOpen(e *endOf) (hooks []hook, again bool, err error) {
	slots := u.slots() // a function may have begun on another database
	if len(slots) == 0 {
		return nil, false, nil
	}
	unlock, err := u.lockAll(slots)
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	var open []*txn.Slot
	for _, s := range slots {
		if s.Open() {
			open = append(open, s)
		}
	}
	if err := u.mayEndNow(u.host.Context(), "Hijack", u.FirstKey(), nil, e.decision); err != nil {
		return nil, false, err
	}
	for _, s := range open {
		if err := s.Quiet(u.host.Context(), u.host.Context()); err != nil && e.commit {
			return nil, false, err
		}
	}
	if e.commit = e.commit && !u.AnswerStands(); e.commit && u.Err() != nil {
		return nil, false, u.Err() // it has failed while this has waited
	}
	if e.commit && !slices.ContainsFunc(open, func(s *txn.Slot) bool { return s.Lost() != nil }) {
		if d := u.startDecidingFor(nil, e.decision); d != nil {
			e.decision = d
			return nil, true, nil
		}
	}
	if ok := u.endAll(open, e.commit, &e.results); !ok && e.commit {
		err = u.Err() // a rollback that was asked for is no failure
	}
	return u.takeHooks(open...), false, err
}

// lockAll takes the turns of the slots. It waits for none of them while it has
// another: an AfterBegin has the turn of its slot, and may wait for that one.
func (u *Unit) lockAll(slots []*txn.Slot) (unlock func(), err error) {
	for {
		n := slices.IndexFunc(slots, func(s *txn.Slot) bool { return !s.TryLock() })
		if n < 0 && u.Over() {
			unlockAll(slots)
			return nil, txn.ErrFinished
		}
		if n < 0 {
			return func() { unlockAll(slots) }, nil
		}
		unlockAll(slots[:n])
		if err := slots[n].Lock(u.host.Context(), u.host.Context()); err != nil {
			return nil, err
		}
		slots[n].Unlock()
	}
}

func unlockAll(slots []*txn.Slot) {
	for _, s := range slots {
		s.Unlock()
	}
}

// busySlots returns those with a transaction that is open, or being begun or ended.
func (u *Unit) busySlots() []*txn.Slot {
	return slices.DeleteFunc(u.slots(), func(s *txn.Slot) bool { return !s.Busy() })
}

// Hijacked notes that the connection was hijacked. Nothing begins any more; what
// another goroutine has begun since EndOpen is rolled back, and a begin under way is
// given up.
func (u *Unit) Hijacked() {
	if !u.startHijacked() {
		return
	}
	var open []*txn.Slot
	for _, s := range u.slots() {
		if s.Close() {
			open = append(open, s)
		}
	}
	if len(open) == 0 {
		return
	}
	u.endObserved(open, false)
	for _, h := range u.takeHooks(open...) {
		h.run()
	}
}

// startHijacked reports whether the unit was running.
func (u *Unit) startHijacked() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state != running {
		return false
	}
	u.state = hijacked
	return true
}
