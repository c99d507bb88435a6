package unit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"github.com/sqlreq/sqlreq/internal/txn"
)

// stateTest is a unit in a state, with a key that it knows and one that is new.
type stateTest struct {
	*world
	a, b  *binding
	o     Open            // of a, the last one
	in    context.Context // inside of the open savepoint, or background
	point *fakedb.Point   // of a COMMIT, or a BeforeCommit function, under way

	inFn   context.Context // that a BeforeCommit function under way was given
	leaves chan bool       // closed for the function of an Atomic to return
}

// reach brings a new unit into a state. Each of the words adds to it.
func reach(t *testing.T, state string) *stateTest {
	s := &stateTest{world: newWorld(t), in: background}
	s.a, s.b = s.bind("a"), s.bind("b")
	s.a.observed, s.b.observed = false, false
	for _, what := range strings.Fields(state) {
		switch what {
		case "used":
			s.o = s.begin(s.a)
			must(0, s.rollback(s.a))(t)
		case "open":
			s.o = s.begin(s.a)
		case "saved":
			sp := must(s.o.source.slot.Save(background, background, s.o.Tx, "a"))(t)
			s.in = sp.Context(background)
		case "atomic":
			// of which the function does not return before the end of the test
			in := make(chan context.Context)
			s.leaves = make(chan bool)
			go s.Atomic(s.in, background, func(ctx context.Context) error {
				in <- ctx
				<-s.leaves
				return errPlain
			})
			s.in = <-in
		case "deciding":
			s.point = fakedb.NewPoint()
			s.before(s.in, s.a, "before", func(ctx context.Context) error { s.inFn = ctx; s.point.Wait(); return nil })
			s.hooks(background, s.a)
			go s.Finish(200)
			s.point.Reached()
		case "committing":
			s.point = fakedb.NewPoint()
			s.before(s.in, s.a, "before", func(ctx context.Context) error { s.inFn = ctx; s.point.Wait(); return nil })
			go s.commit(s.a)
			s.point.Reached()
		case "failed":
			s.Fail(background, errPlain)
		case "gone":
			s.leave()
		case "ending":
			s.point = fakedb.NewPoint()
			s.at("a: COMMIT", func(context.Context) error { s.point.Wait(); return nil })
			go s.Finish(200)
			s.point.Reached()
		case "ended":
			s.Finish(200)
		}
	}
	s.saw()
	return s
}

// word is a short text for an error that a unit returns.
func word(err error) string {
	switch {
	case err == nil:
		return "ok"
	case err == txn.ErrFinished:
		return "finished"
	case errors.Is(err, txn.ErrTxEnded):
		return "ended"
	case errors.Is(err, txn.ErrBegun):
		return "begun"
	}
	text := strings.ReplaceAll(err.Error(), `"a"`, "a")
	return strings.TrimPrefix(text, "sqlreq: ")
}

// calls are the calls of the table.
var calls = map[string]func(*stateTest) string{
	"Begin":              func(s *stateTest) string { return s.beginOn(s.a, txn.ForStatement) },
	"Begin, new":         func(s *stateTest) string { return s.beginOn(s.a, txn.WithOptions) },
	"Begin on another":   func(s *stateTest) string { return s.beginOn(s.b, txn.ForStatement) },
	"AddHook":            func(s *stateTest) string { return s.addHook(s.a) },
	"AddHook on another": func(s *stateTest) string { return s.addHook(s.b) },
	"Savepoint": func(s *stateTest) string {
		return word(s.Savepoint(s.in, background, s.a, func(context.Context) error { return nil }))
	},
	"Savepoint around": func(s *stateTest) string {
		return word(s.Savepoint(background, background, s.a, func(context.Context) error { return nil }))
	},
	"Commit":         func(s *stateTest) string { return word(s.commit(s.a)) },
	"Commit another": func(s *stateTest) string { return word(s.commit(s.b)) },
	"Rollback":       func(s *stateTest) string { return word(s.rollback(s.a)) },
	"EndOpen well":   func(s *stateTest) string { return word(s.EndOpen(true)) },
	"EndOpen badly":  func(s *stateTest) string { return word(s.EndOpen(false)) },
	"Finish":         func(s *stateTest) string { return word(s.Finish(200)) },
	"Abandon":        func(s *stateTest) string { s.Abandon(); return "" },
	"Commit in fn": func(s *stateTest) string {
		return word(s.EndNow(s.inFn, background, background, s.a, true))
	},
	"Commit another in fn": func(s *stateTest) string {
		return word(s.EndNow(s.inFn, background, background, s.b, true))
	},
	"Rollback another": func(s *stateTest) string { return word(s.rollback(s.b)) },
	"AddBefore": func(s *stateTest) string {
		return word(s.AddBefore(s.in, background, background, background, s.a, fails(nil)))
	},
	"Atomic":        func(s *stateTest) string { return word(s.Atomic(s.in, background, fails(nil))) },
	"Atomic around": func(s *stateTest) string { return word(s.Atomic(background, background, fails(nil))) },
	"Begin around": func(s *stateTest) string {
		o, err := s.use(background, s.a)
		return word(err) + fmt.Sprint(" ", o.Tx != nil)
	},
	"RollbackOnly":  func(s *stateTest) string { return word(s.RollbackOnly(background, errConflict)) },
	"DB":            func(s *stateTest) string { _, err := s.DB(background, background, s.a); return word(err) },
	"DB of another": func(s *stateTest) string { _, err := s.DB(background, background, s.b); return word(err) },
	"Fail":          func(s *stateTest) string { return word(s.Fail(background, errConflict)) },
	"Keep":          func(s *stateTest) string { s.Keep(); return "" },
	"Join":          func(s *stateTest) string { s.Join(s); return fmt.Sprint(len(s.joined())) },
	"Met":           func(s *stateTest) string { s.Met(errConflict); return "" },
	"questions": func(s *stateTest) string {
		return fmt.Sprintf("%v %v %v %v %v %q %v %d", s.Over(), s.Begun(s.a), s.Begun(s.b), s.AnswerStands(), s.CommitFailed(), s.FirstKey(), s.gaveUp(), len(s.joined()))
	},
}

func (s *stateTest) beginOn(b *binding, why txn.Purpose) string {
	o, err := s.Begin(s.in, background, b, why, nil)
	if err == nil && why == txn.ForStatement {
		o.Done()
	}
	return word(err)
}

func (s *stateTest) addHook(b *binding) string {
	return word(s.AddHook(s.in, background, background, b, true, func(context.Context) { _ = s.note(background, "hook") }))
}

// describe says in which state the unit is.
func (s *stateTest) describe() string {
	s.Unit.mu.Lock()
	text := [...]string{"running", "deciding", "hijacked", "ending", "ended"}[s.state]
	if s.used.Load() == nil {
		text += " unused"
	}
	for slot := s.firstSlot(); slot != nil; slot = slot.next {
		if slot.Busy() {
			text += " busy"
		}
	}
	s.Unit.mu.Unlock()
	if s.Committed() {
		text += " committed"
	}
	if s.SawConflict() {
		text += " conflict"
	}
	if err := s.Err(); err != nil {
		text += " failed: " + word(err)
	}
	return text
}

type stateRow struct {
	call     string
	returned string
	asked    string // of the drivers
	after    string // the state of the unit
}

// callIn calls a unit in a state. It says what came back, what the drivers were
// asked meanwhile, and in which state the unit is then.
func callIn(t *testing.T, state, call string) stateRow {
	s := reach(t, state)
	got := make(chan string, 1)
	go func() { got <- calls[call](s) }()
	synctest.Wait()
	if len(got) == 0 {
		t.Fatal("it waits")
	}
	row := stateRow{call, <-got, s.saw(), s.describe()}
	if s.point != nil {
		s.point.Release()
	}
	if s.leaves != nil {
		close(s.leaves)
	}
	synctest.Wait()
	s.at("a: COMMIT", nil)
	s.Abandon()
	return row
}

func TestUnitStates(t *testing.T) {
	for state, rows := range states {
		for _, row := range rows {
			t.Run(state+"/"+row.call, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					if got := callIn(t, state, row.call); got != row {
						t.Errorf("got  %q\nwant %q", got, row)
					}
				})
			})
		}
	}
}
