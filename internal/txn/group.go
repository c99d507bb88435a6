package txn

import (
	"context"
	"slices"
	"sync"
)

// Group is a savepoint of several slots: of those with an open transaction, and of
// those whose transaction is begun inside of it, as a whole. They end together.
type Group struct {
	owner any // the unit
	unit  context.Context
	outer *Group // around it in the same unit, nil if there is none

	mu       sync.Mutex   // guards what follows
	members  []*Savepoint // in the order in which they were begun
	state    groupState   // grows, by Close and Leave
	isUndone bool         // whether what was done in it is undone; from false to true once, by Undo
}

// groupState is where a group is in its life: open → closed → over, or open → over.
type groupState uint8

const (
	groupOpen   groupState = iota
	groupClosed            // about to end: there is no further member
	groupOver
)

// NewGroup returns an empty group for a unit, owner, with that context, inside of outer.
func NewGroup(owner any, unit context.Context, outer *Group) *Group {
	return &Group{owner: owner, unit: unit, outer: outer}
}

// Close keeps further members from g, which is about to end.
func (g *Group) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state = max(g.state, groupClosed)
}

// Leave notes that g has ended, and returns the innermost one of it and those
// around it that has not.
func (g *Group) Leave() *Group {
	g.mu.Lock()
	g.state = groupOver
	g.mu.Unlock()
	for g != nil && g.over() {
		g = g.outer
	}
	return g
}

func (g *Group) over() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state == groupOver
}

// Outer returns the group around g, nil if there is none.
func (g *Group) Outer() *Group { return g.outer }

// Context returns ctx as that of a function inside of g.
func (g *Group) Context(ctx context.Context) context.Context {
	sp := &Savepoint{group: g, context: Inside(ctx)}
	return sp.Context(ctx)
}

// Has reports whether ctx is inside of g.
func (g *Group) Has(ctx context.Context) bool {
	for sp := Inside(ctx); sp != nil; sp = sp.context {
		if sp.group == g {
			return true
		}
	}
	return false
}

// Add makes sp a member of g or, where that is closed, of one around it. It reports
// whether there is one that is not closed.
func (g *Group) Add(sp *Savepoint) bool {
	for g != nil && !g.add(sp) {
		g = g.outer
	}
	return g != nil
}

func (g *Group) add(sp *Savepoint) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state != groupOpen {
		return false
	}
	g.members = append(g.members, sp)
	return true
}

// Members returns the savepoints, the last one begun first.
func (g *Group) Members() []*Savepoint {
	g.mu.Lock()
	defer g.mu.Unlock()
	members := slices.Clone(g.members)
	slices.Reverse(members)
	return members
}

// Undo notes that all that was done in g is undone.
func (g *Group) Undo() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.isUndone = true
}

func (g *Group) undoneFor(owner any) bool {
	if g == nil || g.owner != owner {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.isUndone
}

// member returns the savepoint of s in g, nil if there is none.
func (g *Group) member(s *Slot) *Savepoint {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, sp := range g.members {
		if sp.slot == s {
			return sp
		}
	}
	return nil
}

// Slot returns the slot that sp is a savepoint of.
func (sp *Savepoint) Slot() *Slot { return sp.slot }

// IsOpen reports whether sp has not ended.
func (sp *Savepoint) IsOpen() bool {
	sp.slot.mu.Lock()
	defer sp.slot.mu.Unlock()
	return sp.state == savepointOpen
}

// Whole reports whether sp is a whole transaction.
func (sp *Savepoint) Whole() bool { return sp.bottom }

// MoveTo makes sp, a whole transaction that stays open, a member of the group
// around, or of none if that is nil or has ended.
func (sp *Savepoint) MoveTo(around *Group) error {
	if err := sp.lock(); err != nil {
		return err
	}
	defer sp.slot.turn.Unlock()
	if err := sp.isInnermost(); err != nil {
		return err
	}
	if !around.Add(sp) {
		sp.end(savepointReleased)
	}
	return nil
}

// enter makes the transaction that has just begun a whole in the group. The caller
// has the turn.
func (s *Slot) enter(g *Group) {
	sp := &Savepoint{slot: s, unit: g.unit, bottom: true}
	if !g.Add(sp) {
		return // it has ended meanwhile
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names++ // so that a further statement looks at its context
	s.innermost = sp
}
