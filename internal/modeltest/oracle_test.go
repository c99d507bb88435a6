package modeltest

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/sqlreq/sqlreq"
)

// The oracle knows nothing of how the library decides. It compares what the
// databases hold, which their journals tell, with what the program was told: by
// answers, by results of Commit, Rollback and Do, by hooks, by a further attempt.

// job is a request or a Do.
type job struct {
	repeats  bool // it runs for each attempt at the unit around it, by its nature
	attempts []*attempt
}

// attempt is a unit of work.
type attempt struct {
	id       int // Client.Unit
	inside   []*job
	hooks    []*noted
	only     bool // RollbackOnly was called
	hijacked bool
	ranHook  bool // an AfterCommit function
	some     bool // Commit of a key with a Route, wherever that leads
}

// noted is a hook.
type noted struct {
	op     *op
	commit bool
	unit   *attempt
	server int
	tx     *Transaction // that was open when it was registered, nil if none was
	after  int          // how long the journal was
	free   bool         // it is no business of the oracle
	ran    int
}

// enter begins an attempt at j. The transactions that begin are its own, until leave.
func (x *world) enter(j *job) (leave func()) {
	before, client := x.current, *x.client
	x.units++
	a := &attempt{id: x.units}
	j.attempts = append(j.attempts, a)
	x.current = a
	*x.client = Client{Unit: a.id}
	return func() { x.current, *x.client = before, client }
}

// begin returns a new job inside of the attempt.
func (a *attempt) begin(repeats bool) *job {
	j := &job{repeats: repeats}
	a.inside = append(a.inside, j)
	return j
}

// serverOf returns where the key leads, -1 if asking would change something.
func (x *world) serverOf(ctx context.Context, key string) int {
	for _, a := range x.p.apps {
		for _, b := range a.bindings {
			if b.key == key && b.route {
				return -1
			}
		}
	}
	db, err := sqlreq.Key(key).DB(ctx)
	if err != nil {
		return -1
	}
	return x.indexOf(db)
}

func (x *world) indexOf(db *sql.DB) int {
	for i := range x.dbs {
		if x.dbs[i] == db {
			return i
		}
	}
	return -1
}

// open returns the transaction of the current attempt that an end of the key would
// end, nil if that is not known.
func (x *world) open(ctx context.Context, key string) *Transaction {
	server := x.serverOf(ctx, key)
	if server < 0 {
		return nil
	}
	if t := x.servers[server].Last(x.current.id); t != nil && !t.Over {
		return t
	}
	return nil
}

// blind reports whether nobody could know of the end of t, as G11 has it: no error of
// a Key has told of it, and there is no Guard, or its *sql.Tx was not used and Guard's
// answer did not come, or was taken for the work of a later error that a Key was told.
func (x *world) blind(t *Transaction) bool {
	noGuard := !t.Guarded && (x.p.engine != SQLite || t.Reopened || t.Mute)
	return t.Unseen && (noGuard || (t.Mute || t.Told) && !t.Used)
}

// lacks reports whether something is missing of what t should have committed.
func (x *world) lacks(t *Transaction) bool {
	return !t.RollsBack && !t.Asked && (t.Has(Lost) || t.Has(Open)) && !x.blind(t)
}

// keeps reports whether something is there that should not be.
func (x *world) keeps(t *Transaction) bool { return t.Has(Stored) && !x.blind(t) }

// of returns the transactions of the attempt.
func (x *world) of(a *attempt) (all []*Transaction) {
	for _, s := range x.servers {
		for _, t := range s.Journal() {
			if t.Unit == a.id {
				all = append(all, t)
			}
		}
	}
	return all
}

// kept reports whether a further attempt would do work twice.
func (x *world) kept(a *attempt) bool {
	for _, t := range x.of(a) {
		if x.keeps(t) {
			return true
		}
	}
	for _, j := range a.inside {
		for _, b := range j.attempts {
			if !j.repeats && x.kept(b) {
				return true
			}
		}
	}
	return a.ranHook
}

// judge judges a request that is over.
func (x *world) judge(j *job, res *response) {
	x.judgeAttempts(j)
	last := j.attempts[len(j.attempts)-1]
	if res.retry != "" && x.kept(last) {
		x.wrong("a client was asked to come again, and its work is stored")
	}
	success := res.complete && res.left == "returned" && res.status < 400 && !last.only && !last.hijacked
	if success && x.p.apps[0].commitIf <= 1 && x.p.apps[1].commitIf <= 1 {
		for _, t := range x.of(last) {
			if x.lacks(t) {
				x.wrong("a client was told %d, and work is not stored: %v", res.status, t.writes())
			}
		}
	}
	ended, server := x.endedBehind(j)
	if ended {
		x.behind++
	}
	if server {
		x.behindByServer++
	}
}

// judgeDo judges a Do that has returned err.
func (x *world) judgeDo(j *job, err error) {
	x.judgeAttempts(j)
	for i, a := range j.attempts {
		for _, t := range x.of(a) {
			switch {
			case err == nil && i == len(j.attempts)-1 && x.lacks(t):
				x.wrong("a Do returned nil, and work is not stored: %v", t.writes())
			case err != nil && !sqlreq.MayHaveCommitted(err) && x.keeps(t) && !t.Committed && !t.ReadOnly && !a.some:
				x.wrong("a Do returned %q, which may not have committed, and work is stored: %v", err, t.writes())
			}
		}
	}
}

// judgeAttempts judges what attempts have in common: no work twice, hooks that tell the truth.
func (x *world) judgeAttempts(j *job) {
	for i, a := range j.attempts {
		if i < len(j.attempts)-1 && x.kept(a) {
			x.wrong("work of attempt %d is stored, or told of, and another attempt was made", i+1)
		}
		for _, h := range a.hooks {
			x.judgeHook(h)
		}
	}
}

func (x *world) judgeHook(h *noted) {
	if h.ran > 1 {
		x.wrong("hook %d ran %d times", h.op.id, h.ran)
	}
	t := h.tx
	if t == nil && !h.free {
		t = x.servers[h.server].first(h.unit.id, h.after)
	}
	switch {
	case h.free || h.ran == 0 || t == nil:
	case h.commit && x.lacks(t):
		x.wrong("the AfterCommit function %d ran, and work is not stored: %v", h.op.id, t.writes())
	case h.commit && t.Asked:
		x.wrong("the AfterCommit function %d ran after a Rollback", h.op.id)
	case !h.commit && x.keeps(t):
		x.wrong("the AfterRollback function %d ran, and work is stored: %v", h.op.id, t.writes())
	}
}

// first returns the unit's first transaction that began when the journal had after pages.
func (s *Server) first(unit, after int) *Transaction {
	for _, t := range s.Journal()[after:] {
		if t.Unit == unit && !t.Refused {
			return t
		}
	}
	return nil
}

// writes says what became of each.
func (t *Transaction) writes() (all []string) {
	for _, w := range t.Writes {
		all = append(all, fmt.Sprintf("%s: %v", w.Query, w.Fate))
	}
	return all
}

// endedBehind reports whether a transaction of j was ended behind the library's
// back, and whether one was by its server.
func (x *world) endedBehind(j *job) (ended, byServer bool) {
	for _, a := range j.attempts {
		for _, t := range x.of(a) {
			ended = ended || t.Raw || t.Behind
			byServer = byServer || t.Behind
		}
		for _, inside := range a.inside {
			e, s := x.endedBehind(inside)
			ended, byServer = ended || e, byServer || s
		}
	}
	return ended, byServer
}

// noteHook notes a hook that is about to be registered.
func (x *world) noteHook(ctx context.Context, o *op) *noted {
	h := &noted{op: o, commit: o.kind == opAfterCommit, unit: x.current, server: x.serverOf(ctx, o.key)}
	h.free = h.server < 0
	if !h.free {
		s := x.servers[h.server]
		h.after = len(s.Journal())
		t := s.Last(x.current.id)
		switch {
		case t == nil:
		case t.Raw: // the library may not know of its end yet
			h.free = true
		case !t.Over:
			h.tx = t
		}
	}
	x.current.hooks = append(x.current.hooks, h)
	return h
}

// endNow is Commit or Rollback, and what it says about the transaction is compared.
func (x *world) endNow(ctx context.Context, o *op) error {
	t, key := x.open(ctx, o.key), sqlreq.Key(o.key)
	if o.kind == opCommit {
		err := key.Commit(ctx)
		x.current.some = x.current.some || err == nil && t == nil
		if err == nil && t != nil {
			t.Committed = true
			if x.lacks(t) {
				x.wrong("Commit returned nil, and work is not stored: %v", t.writes())
			}
		}
		return err
	}
	x.client.Asks = true
	err := key.Rollback(ctx)
	x.client.Asks = false
	if err == nil && t != nil && x.keeps(t) {
		x.wrong("Rollback returned nil, and work is stored: %v", t.writes())
	}
	return err
}
