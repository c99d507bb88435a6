package modeltest

import (
	"fmt"
	"slices"
	"strings"
)

// end is what became of a transaction.
type end struct {
	t       *tx
	outcome string
	fate    string // what its hooks follow, "" if neither kind runs
	err     *failure
	stored  bool // something is, or may be
	unheard bool // a ROLLBACK was not answered
}

// told is what a server says when it is to undo something.
type told int

const (
	wasThere told = iota
	wasGone
	nothing // no answer
)

func (f *failure) told() told {
	switch {
	case f == nil:
		return wasThere
	case f.class == "no transaction", f.class == "no savepoint":
		return wasGone
	case f.class == "bad", f.class == "plain":
		return nothing
	}
	return wasThere
}

// endTx ends t as asked if that is possible, after those of the keys committed.
func (u *unit) endTx(t *tx, commit bool, committed []string) (e end) {
	u.open = slices.DeleteFunc(u.open, func(o *tx) bool { return o == t })
	t.over = true
	switch {
	case t.behind:
		e = end{outcome: "Ended", err: txEnded, stored: true}
	case commit && !t.reads() && t.broken == nil:
		e = t.commit(committed)
	default:
		e = t.rollBack(commit)
	}
	e.t = t
	u.commitFailed = u.commitFailed || e.outcome == "CommitFailed"
	u.unknown = u.unknown || e.outcome == "Ended"
	if e.stored {
		u.keep()
	}
	u.fail(e.err, 0, 1)
	return e
}

// keep rules out that u, or one around it, is run again.
func (u *unit) keep() {
	for v := u; v != nil; v = v.parent {
		if v.committed = true; v.repeats {
			return
		}
	}
}

func (t *tx) commit(committed []string) end {
	checked, ambiguous := true, false
	var f *failure
	if t.by.guard {
		if f = t.run("RELEASE SAVEPOINT guard"); f != nil {
			t.run("ROLLBACK")
			checked = false
			ambiguous = f.told() == wasGone || f.told() == nothing && t.handed
		}
	}
	if checked {
		f = t.run("COMMIT")
		ambiguous = f != nil && (f.told() != wasThere || f.class == "I/O error")
	}
	if f == nil {
		return end{outcome: "Committed", fate: "commit", stored: true}
	}
	f = &failure{class: fmt.Sprintf("commit %s, ambiguous %v, committed %v", t.by.key, ambiguous, committed), retry: f.retry}
	return end{outcome: "CommitFailed", fate: pick(ambiguous, "", "rollback"), err: f, stored: ambiguous}
}

// rollBack is ROLLBACK and the table of G11. well is whether t was to be committed.
func (t *tx) rollBack(well bool) (e end) {
	var said told
	if t.by.guard {
		said = t.run("ROLLBACK TO SAVEPOINT guard").told()
	}
	answer := t.run("ROLLBACK").told()
	if !t.by.guard || said == nothing && answer == wasGone {
		said = answer
	}
	if !t.by.guard && t.vanished {
		said = wasGone
	}
	e = end{outcome: "RolledBack", fate: "rollback", unheard: answer == nothing || said == nothing}
	switch {
	case said == wasGone && (t.broken == nil || t.handed), said == nothing && t.by.guard && t.handed:
		return end{outcome: "Ended", err: txEnded, stored: true}
	case well && !t.reads():
		e.err = t.broken.any()
	case well && said == wasThere && t.broken == nil:
		e.outcome, e.fate = "Committed", "commit"
	}
	return e
}

func (u *unit) event(e end) {
	what := e.err.String()
	if e.outcome == "RolledBack" {
		what = pick(u.err != nil || e.err != nil || e.unheard, "failed", "ok")
		if u.panicked || !u.finished {
			what = "!" // a panic has no error, and who asks for Rollback needs none
		}
	}
	u.events = append(u.events, fmt.Sprintf("app %d, %s, %s, attempt %d: %s", e.t.app, e.t.by.key, e.outcome, u.attempt, what))
}

// end ends the unit.
func (u *unit) end(commit bool) {
	u.finished = true
	if commit && *u.gone {
		commit = false
		if len(u.open) > 0 || u.waited && !u.answered {
			u.fail(canceled, 0, 1)
		}
	}
	fates, commit := u.endAll(commit)
	hooks := u.hooks
	u.hooks = nil
	for _, h := range hooks {
		fate, ok := fates[h.server]
		if !ok {
			fate = pick(commit, "commit", "rollback")
		}
		h.run(fate)
	}
}

// endAll ends all that is open until one fails: the rest are rolled back. Those that
// end with ROLLBACK in any case come first, the others in the order of their BEGINs.
func (u *unit) endAll(commit bool) (fates map[int]string, all bool) {
	for _, t := range u.open {
		// One that is lost already keeps all from being committed.
		if commit && t.behind {
			u.fail(txEnded, 0, 1)
			commit = false
		} else if commit && t.broken != nil && !t.reads() {
			u.fail(t.broken.any(), 0, 1)
			commit = false
		}
	}
	fates = make(map[int]string)
	var ends []end
	var committed []string
	for _, t := range u.inOrder() {
		e := u.endTx(t, commit, committed)
		ends = append(ends, e)
		fates[t.server] = e.fate
		if e.err != nil {
			commit = false
		} else if commit && !t.readOnly {
			committed = append(committed, t.by.key)
		}
	}
	for _, e := range ends {
		u.event(e)
	}
	return fates, commit
}

// inOrder returns what is open in the order of the ends.
func (u *unit) inOrder() (all []*tx) {
	for _, reads := range []bool{true, false} {
		for _, t := range u.open {
			if t.reads() == reads {
				all = append(all, t)
			}
		}
	}
	return all
}

func (h *hook) run(fate string) {
	if fate != pick(h.commit, "commit", "rollback") {
		return
	}
	if h.commit {
		h.unit.keep() // what it did must not be done again
	}
	m := h.unit.model
	m.trace = append(m.trace, fmt.Sprintf("hook %d", h.op.id))
	switch h.op.n % hookKinds {
	case hookUses:
		m.trace = append(m.trace, fmt.Sprintf("hook %d: Tx = finished", h.op.id))
	case hookDoes:
		lazy := &op{kind: opExec, key: "lazy", id: h.op.id, must: true}
		alive := false
		e := &menv{unit: &unit{model: m, parent: h.unit, gone: &alive, repeats: !h.commit}}
		f, _ := e.do(0, func(e *menv) (*failure, exit) {
			_, f := e.exec(lazy, fmt.Sprintf("PUT hook %d", h.op.id))
			return f, stays
		})
		m.trace = append(m.trace, fmt.Sprintf("hook %d: Do = %v", h.op.id, f))
	}
}

// do is Registry.Do of an application.
func (e *menv) do(app int, fn func(*menv) (*failure, exit)) (*failure, exit) {
	for n := 1; ; n++ {
		u := &unit{model: e.model, app: app, parent: e.unit, attempt: n, gone: e.gone}
		f, ex := fn(&menv{unit: u, doors: []door{{app: app, all: true}}, handles: make(map[string]*tx)})
		if ex != stays {
			u.panicked = true
			u.end(false)
			return nil, ex
		}
		u.fail(f)
		u.end(u.err == nil)
		if u.err == nil {
			return nil, stays
		}
		if !u.conflict(500) || u.committed || n >= e.p.apps[app].attempts || *u.gone {
			return u.result(), stays
		}
	}
}

// result is the error of a Do.
func (u *unit) result() *failure {
	f := *u.err
	if u.unknown && !strings.HasPrefix(f.class, "commit ") {
		f.class = txEnded.class
	}
	f.unavailable = !u.committed && (f.unavailable || f.retry || *u.gone)
	return &f
}
