package unit

import (
	"context"
	"fmt"
	"slices"

	"github.com/sqlreq/sqlreq/internal/txn"
)

// hook is a function to be run after the end of a transaction. While it is in
// used.hooks the unit's mutex guards it; then it belongs to who has taken it.
type hook struct {
	unit   *Unit
	source *Source
	before uint32         // how many transactions of its slot had ended at its registration
	inside *txn.Savepoint // the innermost of any slot at its registration
	commit bool           // whether it is for a COMMIT or for a rollback
	ctx    context.Context
	fn     func(context.Context)

	outcome txn.Outcome // of its transaction; Unknown until takeHooks or decide has set it
}

// AddHook registers fn to be run, with the context run, once after the transaction
// of b that is open, or the next one, was committed or rolled back. ctx is the
// context of the registration, bound that of the registry that bound b.
func (u *Unit) AddHook(ctx, run, bound context.Context, b Binding, commit bool, fn func(context.Context)) error {
	h := hook{unit: u, inside: txn.Inside(ctx), commit: commit, ctx: run, fn: fn}
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.refused(); err != nil {
		return err
	}
	s, err := u.sourceOf(bound, b)
	if err != nil {
		return err
	}
	h.source = s
	if s.slot != nil {
		if h.inside.Undone(u, s.slot) {
			return undoneError(s.Name())
		}
		h.before = s.slot.Ended()
	}
	use := u.use()
	use.hooks = append(use.hooks, h)
	return nil
}

// takeHooks takes the hooks of the transactions that have just ended in the slots,
// in the order of registration. Those registered in a savepoint that was rolled
// back are dropped.
func (u *Unit) takeHooks(slots ...*txn.Slot) (hooks []hook) {
	u.mu.Lock()
	defer u.mu.Unlock()
	use := u.use()
	use.hooks = slices.DeleteFunc(use.hooks, func(h hook) bool {
		s := h.source.slot
		if s == nil || !slices.Contains(slots, s) || h.before >= s.Ended() {
			return false
		}
		if !h.inside.Undone(u, s) {
			h.outcome = s.Last().Outcome
			hooks = append(hooks, h)
		}
		return true
	})
	return hooks
}

// lastHooks takes the hooks that are left when the unit has ended.
func (u *Unit) lastHooks() []hook {
	use := u.used.Load()
	u.mu.Lock()
	u.state = ended
	hooks := use.hooks
	use.hooks = nil
	u.mu.Unlock()
	return hooks
}

// runLast runs the hooks that are left. Those of a slot where nothing was open follow
// the outcome of the unit, commit.
func runLast(hooks []hook, open []*txn.Slot, commit bool) {
	for i := range hooks {
		hooks[i].decide(open, commit) // all before the first runs
	}
	for _, h := range hooks {
		h.run()
	}
}

// decide sets the outcome of a hook that is left at the end of the unit. open are
// the slots that had a transaction then, commit is how the unit has ended.
func (h *hook) decide(open []*txn.Slot, commit bool) {
	s := h.source.slot
	switch {
	case h.inside.Undone(h.unit, s):
		h.outcome = txn.Unknown // neither kind runs
	case s != nil && slices.Contains(open, s):
		h.outcome = s.Last().Outcome
	case commit:
		h.outcome = txn.Committed
	default:
		h.outcome = txn.RolledBack
	}
}

// run runs h if it is for the outcome of its transaction; after an unknown one, or
// an end through *sql.Tx, neither kind runs. What an AfterCommit function does must
// not be done again by a retry, so the unit counts as committed before it runs.
func (h *hook) run() {
	switch h.outcome {
	case txn.Committed:
		if !h.commit {
			return
		}
		h.unit.Keep()
	case txn.RolledBack, txn.Refused:
		if h.commit {
			return
		}
	default:
		return
	}
	h.source.RunHook(h.ctx, h.fn)
}

func undoneError(key string) error {
	return fmt.Errorf("sqlreq: key %q: the Savepoint of this context was rolled back; use the context around it", key)
}
