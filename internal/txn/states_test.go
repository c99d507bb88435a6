package txn

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// stateTest is a slot in a state.
type stateTest struct {
	*world
	tx, last *sql.Tx         // that is open, or the last one; and the one before
	sp       *Savepoint      // the innermost that is open, or one of the transaction before
	in       context.Context // inside of that, if it is open
	begun    *fakedb.Point   // of a BEGIN under way
	runs     bool            // a statement is under way
}

// reach brings a new slot into a state. A transaction with a savepoint was there before.
func reach(t *testing.T, k kind, state string) *stateTest {
	s := &stateTest{world: newWorld(t, k), in: background}
	s.last = s.begin()
	s.sp = s.save(background)
	must(0, s.sp.Release("k"))(t)
	s.End(true)
	s.tx = s.last
	for _, what := range strings.Fields(state) {
		switch what {
		case "beginning":
			s.startBegin()
		case "open":
			s.tx = s.begin()
		case "saved":
			s.tx = s.begin()
			s.sp = s.save(background)
			s.in = s.sp.Context(background)
		case "whole":
			g := NewGroup(nil, background, nil)
			a := s.ask(ForStatement)
			a.Groups = inGroup{g, nil}
			s.tx = must(s.Use(background, a))(t)
			s.Done()
			s.sp, s.in = g.Members()[0], g.Context(background)
		case "aborted":
			s.Note(background, s.tx, false, errFull)
		case "statement":
			must(s.Use(s.in, s.ask(ForStatement)))(t)
			s.runs = true
		case "closed":
			s.Slot.Close()
		}
	}
	return s
}

// startBegin begins a transaction whose BEGIN, or Guard's SAVEPOINT, does not
// return before begun is released, whatever its context.
func (s *stateTest) startBegin() {
	s.begun = fakedb.NewPoint()
	wait := func(context.Context) error { s.begun.Wait(); return nil }
	at := "BEGIN"
	switch {
	case s.outer != nil:
		at = "SAVEPOINT sqlreq_tx_2"
	case s.key.guard:
		at = "SAVEPOINT sqlreq_guard"
	}
	s.at(at, wait)
	go s.use(background)
	s.begun.Reached()
}

// word is a short text for an error that a slot returns.
func word(err error) string {
	switch {
	case err == nil:
		return "ok"
	case err == ErrFinished:
		return "finished"
	case errors.Is(err, ErrBegun):
		return "begun"
	case errors.Is(err, ErrTxEnded):
		return "ended"
	case errors.Is(err, errFull):
		return "aborted"
	case strings.Contains(err.Error(), "has not returned yet"):
		return "not innermost"
	case err.Error() == savedText:
		return "saved"
	case strings.Contains(err.Error(), "this context is not that of the innermost one"), strings.Contains(err.Error(), "its context is not that of the innermost"):
		return "other context"
	}
	return err.Error()
}

// useAs, with a context that is inside of the open savepoint, uses the slot and says which transaction it got.
func (s *stateTest) useAs(a *Ask) string { return s.useIn(s.in, a) }

func (s *stateTest) useIn(ctx context.Context, a *Ask) string {
	tx, err := s.Use(ctx, a)
	switch {
	case err != nil:
		return word(err)
	case tx == s.tx && s.Ended() == 1:
		return "the same"
	}
	return "a new one"
}

// calls are the calls of the table. The slot is asked, or told, something.
var calls = map[string]func(*stateTest) string{
	"Use":                 func(s *stateTest) string { return s.useAs(s.ask(ForStatement)) },
	"Use around":          func(s *stateTest) string { return s.useIn(background, s.ask(ForStatement)) },
	"Use for a savepoint": func(s *stateTest) string { return s.useIn(background, s.ask(ForSavepoint)) },
	"Use to prepare":      func(s *stateTest) string { return s.useAs(s.ask(ForPrepare)) },
	"join": func(s *stateTest) string {
		if s.join(s.ask(ForStatement)) == nil {
			return "none"
		}
		return "joined"
	},
	"Quiet":                  func(s *stateTest) string { return word(s.Quiet(background, background)) },
	"Use for caller":         func(s *stateTest) string { return s.useAs(s.ask(ForCaller)) },
	"Use as new":             func(s *stateTest) string { return s.useAs(s.ask(WithOptions)) },
	"Use by another":         func(s *stateTest) string { return s.useAs(s.other(s.opts, s.key.guard)) },
	"Use with other options": func(s *stateTest) string { return s.useAs(s.other(&sql.TxOptions{ReadOnly: true}, s.key.guard)) },
	"Use with other Guard":   func(s *stateTest) string { return s.useAs(s.other(s.opts, !s.key.guard)) },
	"Save":                   func(s *stateTest) string { return s.saved(s.in, s.tx) },
	"Save around":            func(s *stateTest) string { return s.saved(background, s.tx) },
	"Save in any":            func(s *stateTest) string { return s.saved(s.in, nil) },
	"Save in the last":       func(s *stateTest) string { return s.saved(s.in, s.last) },
	"Release":                func(s *stateTest) string { return word(s.sp.Release("k")) },
	"RollBack":               func(s *stateTest) string { return word(s.sp.RollBack("k")) },
	"End well":               func(s *stateTest) string { return s.ended(true) },
	"End badly":              func(s *stateTest) string { return s.ended(false) },
	"Lost":                   func(s *stateTest) string { return word(s.Lost()) },
	"Lock":                   func(s *stateTest) string { return word(s.Lock(background, background)) },
	"Close":                  func(s *stateTest) string { return fmt.Sprint(s.Slot.Close()) },
	"Note plain":             func(s *stateTest) string { s.Note(background, s.tx, false, errPlain); return "" },
	"Note full":              func(s *stateTest) string { s.Note(background, s.tx, false, errFull); return "" },
	"Note canceled":          func(s *stateTest) string { s.Note(canceled, s.tx, false, errFull); return "" },
	"Note not run":           func(s *stateTest) string { s.Note(canceled, s.tx, true, errPlain); return "" },
	"Note of the last":       func(s *stateTest) string { s.Note(background, s.last, false, errFull); return "" },
	"Gone":                   func(s *stateTest) string { return word(s.Gone(background, background, s.tx, "k")) },
	"Gone of the last":       func(s *stateTest) string { return word(s.Gone(background, background, s.last, "k")) },
	"questions": func(s *stateTest) string {
		return fmt.Sprintf("%v %v %v %v, %d ended, number %d", s.Begun(), s.Busy(), s.Open(), s.InSavepoint(), s.Ended(), s.Number())
	},
}

func (s *stateTest) other(opts *sql.TxOptions, guard bool) *Ask {
	a := s.ask(ForStatement)
	a.Opener, a.Options = &key{"other", guard}, opts
	return a
}

func (s *stateTest) saved(ctx context.Context, tx *sql.Tx) string {
	sp, err := s.Save(ctx, background, tx, "k")
	if sp == nil && err == nil {
		return "none"
	}
	return word(err)
}

// ended ends the transaction as who has the turn, or has closed the slot.
func (s *stateTest) ended(well bool) string {
	if s.Lock(background, background) == nil {
		defer s.Unlock()
	}
	s.End(well)
	return describeResult(s.Last(), "returned")
}

// callIn calls a slot in a state. It says what came back, after a wait if there
// was one, what the driver was asked meanwhile, and in which state the slot is then.
func callIn(t *testing.T, state, call string) stateRow {
	s := reach(t, kind{guard: strings.HasPrefix(state, "guard ")}, state)
	asked := len(s.d.Log())
	got := make(chan string, 1)
	go func() { got <- calls[call](s) }()
	synctest.Wait()
	returned := ""
	if len(got) == 0 {
		returned = "waits, "
	}
	switch {
	case s.begun != nil:
		s.begun.Release()
	case s.runs:
		s.Done()
	}
	synctest.Wait()
	returned += <-got
	row := stateRow{call, returned, s.since(asked), s.describe()}
	if s.turn.Taken() {
		s.Unlock()
	}
	s.finish(false)
	return row
}

type stateRow struct {
	call     string
	returned string
	asked    string // of the driver
	after    string // the state of the slot
}

func TestSlotStates(t *testing.T) {
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
