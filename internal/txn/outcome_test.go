package txn

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqlreq/sqlreq/internal/modeltest/mysqlite"
)

// The table of the package comment, with each combination of what was sent, what
// came back and what is known: nothing; E; H; both.
func TestJudge(t *testing.T) {
	for _, row := range []struct {
		sent   sent
		answer answer
		want   [4]Outcome
	}{
		{sentCommit, none, [4]Outcome{Unknown, Unknown, Unknown, Unknown}},
		{sentCommit, done, [4]Outcome{Committed, Committed, Committed, Committed}},
		{sentCommit, over, [4]Outcome{Ended, Ended, Ended, Ended}},
		{sentCommit, gone, [4]Outcome{Unknown, Unknown, Unknown, Unknown}},
		{sentCommit, refused, [4]Outcome{Refused, Refused, Refused, Refused}},
		{sentCommit, lost, [4]Outcome{Unknown, Unknown, Unknown, Unknown}},

		{sentCheck, none, [4]Outcome{Unknown, Unknown, Unknown, Unknown}},
		{sentCheck, done, [4]Outcome{Committed, Committed, Committed, Committed}},
		{sentCheck, over, [4]Outcome{Ended, Ended, Ended, Ended}},
		{sentCheck, gone, [4]Outcome{Unknown, Unknown, Unknown, Unknown}},
		{sentCheck, refused, [4]Outcome{Refused, Refused, Refused, Refused}},
		{sentCheck, lost, [4]Outcome{Refused, Refused, Unknown, Unknown}},

		{sentRollbackCheck, none, [4]Outcome{Unknown, Unknown, Unknown, Unknown}},
		{sentRollbackCheck, done, [4]Outcome{RolledBack, RolledBack, RolledBack, RolledBack}},
		{sentRollbackCheck, over, [4]Outcome{Ended, Ended, Ended, Ended}},
		{sentRollbackCheck, gone, [4]Outcome{Ended, RolledBack, Ended, Ended}},
		{sentRollbackCheck, refused, [4]Outcome{RolledBack, RolledBack, RolledBack, RolledBack}},
		{sentRollbackCheck, lost, [4]Outcome{RolledBack, RolledBack, Ended, Ended}},

		{sentRollback, none, [4]Outcome{Unknown, Unknown, Unknown, Unknown}},
		{sentRollback, done, [4]Outcome{RolledBack, RolledBack, RolledBack, RolledBack}},
		{sentRollback, over, [4]Outcome{Ended, Ended, Ended, Ended}},
		{sentRollback, gone, [4]Outcome{Ended, RolledBack, Ended, Ended}},
		{sentRollback, refused, [4]Outcome{RolledBack, RolledBack, RolledBack, RolledBack}},
		{sentRollback, lost, [4]Outcome{RolledBack, RolledBack, RolledBack, RolledBack}},

		{sentRelease, none, [4]Outcome{Refused, Refused, Refused, Refused}},
		{sentRelease, done, [4]Outcome{Committed, Committed, Committed, Committed}},
		{sentRelease, over, [4]Outcome{Ended, Ended, Ended, Ended}},
		{sentRelease, gone, [4]Outcome{Refused, Refused, Refused, Refused}},
		{sentRelease, refused, [4]Outcome{Refused, Refused, Refused, Refused}},
		{sentRelease, lost, [4]Outcome{Refused, Refused, Refused, Refused}},

		{sentRollbackTo, none, [4]Outcome{Unknown, Unknown, Unknown, Unknown}},
		{sentRollbackTo, done, [4]Outcome{RolledBack, RolledBack, RolledBack, RolledBack}},
		{sentRollbackTo, over, [4]Outcome{Ended, Ended, Ended, Ended}},
		{sentRollbackTo, gone, [4]Outcome{Unknown, Unknown, Unknown, Unknown}},
		{sentRollbackTo, refused, [4]Outcome{Unknown, Unknown, Unknown, Unknown}},
		{sentRollbackTo, lost, [4]Outcome{Unknown, Unknown, Unknown, Unknown}},
	} {
		for i, k := range []known{{}, {aborted: true}, {handedOut: true}, {aborted: true, handedOut: true}} {
			rollback := row.sent == sentRollback || row.sent == sentRollbackCheck
			if got := judge(row.sent, row.answer, k); got != row.want[i] {
				t.Errorf("sent %d, answer %d, %+v: got %d, want %d", row.sent, row.answer, k, got, row.want[i])
			}
			want := row.want[i]
			if rollback && row.answer == over {
				want = RolledBack // by database/sql
			}
			k.late = true
			if got := judge(row.sent, row.answer, k); got != want {
				t.Errorf("sent %d, answer %d, %+v: got %d, want %d", row.sent, row.answer, k, got, want)
			}
			want = row.want[i]
			if rollback && row.answer == done && !k.aborted {
				want = Committed // the end of a read-only transaction that ends well
			}
			k.late, k.readOnly = false, true
			if got := judge(row.sent, row.answer, k); got != want {
				t.Errorf("sent %d, answer %d, %+v: got %d, want %d", row.sent, row.answer, k, got, want)
			}
			want = row.want[i]
			if row.sent == sentRollback && row.answer != none && row.answer != over {
				want = [4]Outcome{Ended, RolledBack, Ended, Ended}[i] // as if there had been none
			}
			k.readOnly, k.vanished = false, true
			if got := judge(row.sent, row.answer, k); got != want {
				t.Errorf("sent %d, answer %d, %+v: got %d, want %d", row.sent, row.answer, k, got, want)
			}
		}
	}
}

func TestAnswerOf(t *testing.T) {
	for _, row := range []struct {
		err  error
		want answer
	}{
		{nil, done},
		{sql.ErrTxDone, over},
		{fmt.Errorf("driver: %w", sql.ErrTxDone), over},
		{errNoTx, gone},
		{fmt.Errorf("driver: %w", errNoTx), gone},
		{answered("3B001"), gone},
		{answered("25P01"), gone},
		{answered("25P02"), refused},
		{&mysqlite.IOErr{}, lost}, // the work may be in the journal
		{driver.ErrBadConn, lost},
		{errRefused, refused},
		{fmt.Errorf("driver: %w", errRefused), refused},
		{errNetwork, lost},
		{errPlain, lost},
		{errors.Join(errRefused, errNetwork), lost},
		{answered("57P01"), lost}, // the server is going away
		{context.Canceled, lost},
	} {
		if got := answerOf(row.err); got != row.want {
			t.Errorf("%v: got %d, want %d", row.err, got, row.want)
		}
	}
}

const (
	endedText   = `sqlreq: key "k": the transaction was ended through *sql.Tx; delete the defer tx.Rollback() or tx.Commit(), and use sqlreq.Commit or sqlreq.Rollback to end it early`
	serverText  = `sqlreq: key "k": when the transaction was to be rolled back the server had ended it already, or the answer did not come; what ran after that end may have been committed`
	gaveUp      = `sqlreq: key "k": the transaction was given up, its end panicked`
	checked     = `the transaction was ended by the server before COMMIT: `
	abortedText = `sqlreq: key "k": an earlier error may have ended the transaction, it was rolled back: plain`
	savedText   = `sqlreq: key "k": a Savepoint is still open, the transaction was rolled back`
	noTxText    = `SQL logic error: no transaction is active (1)`
)

// cell is a cell of the table of the package comment.
type cell struct {
	kind   kind
	before string // what happens first: "over" (ended through *sql.Tx), "E", "H", "saved", "late"
	well   bool
	at     string // the call at which the driver has the fault
	fault  func(context.Context) error
	want   string // the Result
	err    string // its Err
	asked  string // of the driver
}

var (
	plain, guarded   = kind{}, kind{guard: true}
	test, testGuard  = kind{test: true}, kind{test: true, guard: true}
	readOnly, testRO = kind{readOnly: true}, kind{readOnly: true, test: true}
	guardedRO        = kind{readOnly: true, guard: true}
	serializable     = kind{serializable: true}
	serializableRO   = kind{readOnly: true, serializable: true}
)

const (
	releaseTx       = "RELEASE SAVEPOINT sqlreq_tx_1"
	rollbackToTx    = "ROLLBACK TO SAVEPOINT sqlreq_tx_1"
	releaseGuard    = "RELEASE SAVEPOINT sqlreq_guard"
	rollbackToGuard = "ROLLBACK TO SAVEPOINT sqlreq_guard"

	backInTest  = rollbackToTx + "; " + releaseTx
	guardedBack = rollbackToGuard + "; ROLLBACK"
)

var cells = []cell{
	// COMMIT
	{plain, "", true, "", nil, "committed, tried, stored", "", "COMMIT"},
	{plain, "H", true, "", nil, "committed, tried, stored", "", "COMMIT"},
	{plain, "", true, "COMMIT", fails(errRefused), "refused, tried, commit failed", "answered 23505", "COMMIT"},
	{plain, "", true, "COMMIT", fails(errNoTx), "unknown, tried, stored, commit failed", noTxText, "COMMIT"},
	{plain, "", true, "COMMIT", fails(errNetwork), "unknown, tried, stored, commit failed", "unexpected EOF", "COMMIT"},
	{plain, "", true, "COMMIT", fails(&mysqlite.IOErr{}), "unknown, tried, stored, commit failed", "disk I/O error (10)", "COMMIT"},
	{plain, "", true, "COMMIT", fails(errPlain), "unknown, tried, stored, commit failed", "plain", "COMMIT"},
	{plain, "", true, "COMMIT", panics, "unknown, tried, stored, commit failed, panicked", gaveUp, "COMMIT"},
	{plain, "", true, "COMMIT", exits, "unknown, tried, stored, commit failed, exited", gaveUp, "COMMIT"},
	{plain, "over", true, "", nil, "ended, tried, stored", endedText, ""},
	{serializable, "", true, "", nil, "committed, tried, stored", "", "COMMIT"},
	{serializableRO, "", true, "", nil, "committed, tried, stored", "", "COMMIT"},
	{serializableRO, "", true, "COMMIT", fails(errRefused), "refused, tried, commit failed", "answered 23505", "COMMIT"},

	// RELEASE of a request's savepoint in a test's transaction. If it fails the
	// savepoint is gone back to.
	{test, "", true, "", nil, "committed, tried, stored", "", releaseTx},
	{testGuard, "", true, "", nil, "committed, tried, stored", "", releaseTx},
	{test, "", true, releaseTx, first(errRefused), "refused, tried, commit failed", "answered 23505", releaseTx + "; " + backInTest},
	{test, "", true, releaseTx, first(errNetwork), "refused, tried, commit failed", "unexpected EOF", releaseTx + "; " + backInTest},
	{test, "", true, releaseTx, fails(errRefused), "refused, tried, commit failed", "answered 23505", releaseTx + "; " + backInTest},
	{test, "", true, releaseTx, fails(errNoTx), "unknown, tried, stored, commit failed, dead", noTxText, releaseTx + "; " + backInTest},
	{test, "", true, releaseTx, fails(errNetwork), "unknown, tried, stored, commit failed, dead", "unexpected EOF", releaseTx + "; " + backInTest},
	{test, "", true, "", fails(errNoTx), "unknown, tried, stored, commit failed, dead", noTxText, releaseTx + "; " + rollbackToTx},
	{test, "", true, releaseTx, panics, "unknown, tried, stored, commit failed, panicked", gaveUp, releaseTx + "; " + backInTest},
	{test, "", true, releaseTx, exits, "unknown, tried, stored, commit failed, exited", gaveUp, releaseTx + "; " + backInTest},
	{test, "over", true, "", nil, "ended, tried, stored", endedText, ""},

	// Guard's RELEASE, before COMMIT
	{guarded, "", true, "", nil, "committed, tried, stored", "", releaseGuard + "; COMMIT"},
	{guarded, "H", true, "", nil, "committed, tried, stored", "", releaseGuard + "; COMMIT"},
	{guarded, "", true, "COMMIT", fails(errRefused), "refused, tried, commit failed", "answered 23505", releaseGuard + "; COMMIT"},
	{guarded, "", true, releaseGuard, fails(errRefused), "refused, tried, commit failed", "answered 23505", releaseGuard + "; ROLLBACK"},
	{guarded, "H", true, releaseGuard, fails(answered("25P02")), "refused, tried, commit failed", "answered 25P02", releaseGuard + "; ROLLBACK"},
	{guarded, "", true, releaseGuard, fails(errNoTx), "unknown, tried, stored, commit failed", checked + noTxText, releaseGuard + "; ROLLBACK"},
	{guarded, "H", true, releaseGuard, fails(errNoTx), "unknown, tried, stored, commit failed", checked + noTxText, releaseGuard + "; ROLLBACK"},
	{guarded, "", true, releaseGuard, fails(errNetwork), "refused, tried, commit failed", "unexpected EOF", releaseGuard + "; ROLLBACK"},
	{guarded, "H", true, releaseGuard, fails(errNetwork), "unknown, tried, stored, commit failed", checked + "unexpected EOF", releaseGuard + "; ROLLBACK"},
	{guarded, "", true, releaseGuard, panics, "unknown, tried, stored, commit failed, panicked", gaveUp, releaseGuard + "; ROLLBACK"},
	{guarded, "", true, releaseGuard, exits, "unknown, tried, stored, commit failed, exited", gaveUp, releaseGuard + "; ROLLBACK"},
	{guarded, "over", true, "", nil, "ended, tried, stored", endedText, ""},

	// ROLLBACK, without Guard
	{plain, "", false, "", nil, "rolled back", "", "ROLLBACK"},
	{plain, "H", false, "", nil, "rolled back", "", "ROLLBACK"},
	{readOnly, "", false, "", nil, "rolled back", "", "ROLLBACK"},
	{plain, "", false, "ROLLBACK", fails(errRefused), "rolled back", "", "ROLLBACK"},
	{plain, "", false, "ROLLBACK", fails(errNoTx), "ended, stored", serverText, "ROLLBACK"},
	{plain, "E", false, "ROLLBACK", fails(errNoTx), "rolled back", "", "ROLLBACK"},
	{plain, "H", false, "ROLLBACK", fails(errNoTx), "ended, stored", serverText, "ROLLBACK"},
	{plain, "H E", false, "ROLLBACK", fails(errNoTx), "ended, stored", serverText, "ROLLBACK"},
	{plain, "", false, "ROLLBACK", fails(errNetwork), "rolled back, unheard", "", "ROLLBACK"},
	{plain, "H E", false, "ROLLBACK", fails(errNetwork), "rolled back, unheard", "", "ROLLBACK"},
	{plain, "", false, "ROLLBACK", panics, "unknown, panicked", gaveUp, "ROLLBACK"},
	{plain, "", false, "ROLLBACK", exits, "unknown, exited", gaveUp, "ROLLBACK"},
	{plain, "over", false, "", nil, "ended, stored", endedText, ""},
	{plain, "E", false, "", nil, "rolled back", "", "ROLLBACK"},
	{plain, "late", false, "", nil, "rolled back", "plain", "ROLLBACK"},
	{plain, "late", false, "ROLLBACK", panics, "unknown, panicked", "plain", "ROLLBACK"},
	{plain, "late over", false, "", nil, "rolled back", "plain", ""},

	// Guard's ROLLBACK TO, before ROLLBACK
	{guarded, "", false, "", nil, "rolled back", "", guardedBack},
	{guarded, "H", false, "", nil, "rolled back", "", guardedBack},
	{guarded, "H E", false, "", nil, "rolled back", "", guardedBack},
	{guarded, "", false, rollbackToGuard, fails(errRefused), "rolled back", "", guardedBack},
	{guarded, "H E", false, rollbackToGuard, fails(errRefused), "rolled back", "", guardedBack},
	{guarded, "", false, rollbackToGuard, fails(errNoTx), "ended, stored", serverText, guardedBack},
	{guarded, "E", false, rollbackToGuard, fails(errNoTx), "rolled back", "", guardedBack},
	{guarded, "H", false, rollbackToGuard, fails(errNoTx), "ended, stored", serverText, guardedBack},
	{guarded, "H E", false, rollbackToGuard, fails(errNoTx), "ended, stored", serverText, guardedBack},
	{guarded, "", false, rollbackToGuard, fails(errNetwork), "rolled back, unheard", "", guardedBack},
	{guarded, "E", false, rollbackToGuard, fails(errNetwork), "rolled back, unheard", "", guardedBack},
	{guarded, "H", false, rollbackToGuard, fails(errNetwork), "ended, stored", serverText, guardedBack},
	{guarded, "H E", false, rollbackToGuard, fails(errNetwork), "ended, stored", serverText, guardedBack},
	{guarded, "", false, "ROLLBACK", fails(errNoTx), "rolled back", "", guardedBack}, // the check says more
	{guarded, "H", false, "ROLLBACK", fails(errNetwork), "rolled back, unheard", "", guardedBack},
	{guarded, "", false, rollbackToGuard, panics, "unknown, panicked", gaveUp, guardedBack},
	{guarded, "", false, rollbackToGuard, exits, "unknown, exited", gaveUp, guardedBack},
	{guarded, "", false, "ROLLBACK", panics, "unknown, panicked", gaveUp, guardedBack},
	{guarded, "over", false, "", nil, "ended, stored", endedText, ""},
	{guarded, "late", false, "", nil, "rolled back", "plain", "ROLLBACK"}, // nobody was given it
	{guarded, "late over", false, "", nil, "rolled back", "plain", ""},

	// ROLLBACK TO a request's savepoint in a test's transaction
	{test, "", false, "", nil, "rolled back", "", backInTest},
	{testGuard, "", false, "", nil, "rolled back", "", backInTest},
	{test, "", false, rollbackToTx, fails(errRefused), "rolled back", "", rollbackToTx},
	{test, "", false, releaseTx, fails(errRefused), "rolled back", "", backInTest},
	{test, "", false, rollbackToTx, fails(errNoTx), "ended, stored, dead", serverText, rollbackToTx},
	{test, "E", false, rollbackToTx, fails(errNoTx), "rolled back, dead", "", rollbackToTx},
	{test, "H E", false, rollbackToTx, fails(errNoTx), "ended, stored, dead", serverText, rollbackToTx},
	{test, "H", false, rollbackToTx, fails(errNetwork), "rolled back, unheard, dead", "", rollbackToTx},
	{test, "", false, rollbackToTx, panics, "unknown, panicked", gaveUp, rollbackToTx + "; " + rollbackToTx},
	{test, "", false, rollbackToTx, exits, "unknown, exited", gaveUp, rollbackToTx + "; " + rollbackToTx},
	{test, "over", false, "", nil, "ended, stored", endedText, ""},
	{test, "late over", false, "", nil, "rolled back", "plain", ""},

	// ROLLBACK in the place of COMMIT: the transaction cannot be committed any more
	{plain, "E", true, "", nil, "rolled back", abortedText, "ROLLBACK"},
	{guarded, "E", true, "", nil, "rolled back", abortedText, guardedBack},
	{plain, "E", true, "ROLLBACK", fails(errRefused), "rolled back", abortedText, "ROLLBACK"},
	{plain, "E", true, "ROLLBACK", fails(errNoTx), "rolled back", abortedText, "ROLLBACK"},
	{plain, "H E", true, "ROLLBACK", fails(errNoTx), "ended, stored", abortedText + "\n" + serverText, "ROLLBACK"},
	{plain, "E", true, "ROLLBACK", fails(errNetwork), "rolled back, unheard", abortedText, "ROLLBACK"},
	{plain, "E", true, "ROLLBACK", panics, "unknown, panicked", gaveUp, "ROLLBACK"},
	{guarded, "H E", true, rollbackToGuard, fails(errNetwork), "ended, stored", abortedText + "\n" + serverText, guardedBack},
	{plain, "E over", true, "", nil, "ended, stored", abortedText + "\n" + endedText, ""},
	{plain, "saved", true, "", nil, "rolled back", savedText, "ROLLBACK"},
	{test, "E", true, "", nil, "rolled back", abortedText, backInTest},
	{test, "saved", true, "", nil, "rolled back", savedText, backInTest},

	// ROLLBACK of a read-only transaction that ends well
	{readOnly, "", true, "", nil, "committed", "", "ROLLBACK"},
	{readOnly, "H", true, "", nil, "committed", "", "ROLLBACK"},
	{guardedRO, "", true, "", nil, "committed", "", guardedBack},
	{readOnly, "saved", true, "", nil, "committed", "", "ROLLBACK"},
	{readOnly, "E", true, "", nil, "rolled back", "", "ROLLBACK"},
	{readOnly, "", true, "ROLLBACK", fails(errRefused), "rolled back", "", "ROLLBACK"},
	{readOnly, "", true, "ROLLBACK", fails(errNetwork), "rolled back, unheard", "", "ROLLBACK"},
	{readOnly, "", true, "ROLLBACK", fails(errNoTx), "ended, stored", serverText, "ROLLBACK"},
	{readOnly, "E", true, "ROLLBACK", fails(errNoTx), "rolled back", "", "ROLLBACK"},
	{readOnly, "", true, "ROLLBACK", panics, "unknown, panicked", gaveUp, "ROLLBACK"},
	{readOnly, "", true, "ROLLBACK", exits, "unknown, exited", gaveUp, "ROLLBACK"},
	{readOnly, "over", true, "", nil, "ended, stored", endedText, ""},
	{guardedRO, "E", true, "", nil, "rolled back", "", guardedBack},
	{guardedRO, "", true, rollbackToGuard, fails(errNoTx), "ended, stored", serverText, guardedBack},
	{guardedRO, "", true, rollbackToGuard, fails(errNetwork), "rolled back, unheard", "", guardedBack},
	{guardedRO, "H", true, rollbackToGuard, fails(errNetwork), "ended, stored", serverText, guardedBack},
	{guardedRO, "over", true, "", nil, "ended, stored", endedText, ""},
	{testRO, "", true, "", nil, "committed", "", backInTest},
	{testRO, "E", true, "", nil, "rolled back", "", backInTest},
	{testRO, "", true, rollbackToTx, fails(errRefused), "rolled back", "", rollbackToTx},
	{testRO, "", true, rollbackToTx, fails(errNoTx), "ended, stored, dead", serverText, rollbackToTx},
	{testRO, "over", true, "", nil, "ended, stored", endedText, ""},
}

func (c cell) String() string {
	text := fmt.Sprintf("%+v %s well %v %s", c.kind, c.before, c.well, c.at)
	if c.fault != nil {
		text += " " + c.want + " " + c.err
	}
	return text
}

func TestSlotEnd(t *testing.T) {
	for _, c := range cells {
		t.Run(c.String(), func(t *testing.T) {
			w := newWorld(t, c.kind)
			tx := w.begin()
			e := w.prepare(tx, c)
			asked := len(w.d.Log())
			switch {
			case c.fault == nil:
			case c.at == "": // at every call
				w.at(releaseTx, c.fault)
				w.at(rollbackToTx, c.fault)
			default:
				w.at(c.at, c.fault)
			}
			must(0, w.Lock(background, background))(t)
			came := called(func() { w.end(e) })
			w.Unlock()
			w.well()

			r := w.Last()
			if got := describeResult(r, came) + w.whetherDead(); got != c.want || errText(r.Err) != c.err {
				t.Errorf("got %s: %s\nwant %s: %s", got, errText(r.Err), c.want, c.err)
			}
			if r.Outcome == Ended != errors.Is(r.Err, ErrTxEnded) {
				t.Errorf("the outcome is %d, the error %v", r.Outcome, r.Err)
			}
			if got := w.since(asked); got != c.asked {
				t.Errorf("the driver was asked %q, want %q", got, c.asked)
			}
			if r.Unheard != nil && r.Unheard != errNetwork {
				t.Errorf("unheard: %v", r.Unheard)
			}
			w.endedOnce(t)
		})
	}
}

// whetherDead says whether the test's transaction is known to have ended.
func (w *world) whetherDead() string {
	if w.outer != nil && whyDead(w.outer) != nil {
		return ", dead"
	}
	return ""
}

// prepare does what happens before the end, and returns the end to be.
func (w *world) prepare(tx *sql.Tx, c cell) *ending {
	e := &ending{unit: background, well: c.well}
	for _, what := range strings.Fields(c.before) {
		switch what {
		case "over":
			must(0, tx.Rollback())(w.t)
		case "H":
			must(w.Use(background, w.ask(ForCaller)))(w.t)
		case "E":
			w.mu.Lock()
			w.abort(errPlain)
			w.mu.Unlock()
		case "saved":
			w.save(background)
		case "late":
			e.late, e.refused, e.cause = true, true, errPlain
		}
	}
	return e
}

// endedOnce fails the test unless one transaction has ended in the slot and nothing is left of it.
func (w *world) endedOnce(t *testing.T) {
	t.Helper()
	w.inState("idle")
	if w.Ended() != 1 || w.Open() || w.Busy() || w.InSavepoint() {
		t.Errorf("ended %d, open %v, busy %v, in a savepoint %v", w.Ended(), w.Open(), w.Busy(), w.InSavepoint())
	}
	if w.outer != nil {
		if err := turns.Lock(canceled, w.outer); err != nil {
			t.Error("the turn at the test's transaction was not given back")
		} else {
			turns.Unlock(w.outer)
		}
	}
}

func describeResult(r Result, came string) string {
	words := []string{[...]string{"unknown", "committed", "rolled back", "refused", "ended"}[r.Outcome]}
	for _, flag := range []struct {
		is   bool
		word string
	}{{r.Tried, "tried"}, {r.Stored, "stored"}, {r.CommitFailed(), "commit failed"}, {r.Unheard != nil, "unheard"}, {came != "returned", came}} {
		if flag.is {
			words = append(words, flag.word)
		}
	}
	return strings.Join(words, ", ")
}

// Where Guard's check is not answered, the answer to ROLLBACK says more if there is none.
func TestSlotRollbackSaysMore(t *testing.T) {
	for _, row := range []struct {
		before string
		answer error // to ROLLBACK
		want   string
		err    string
	}{
		{"", errNoTx, "ended, stored", serverText},
		{"E", errNoTx, "rolled back", ""},
		{"H", errNoTx, "ended, stored", serverText},
		{"H E", errNoTx, "ended, stored", serverText},
		{"", errRefused, "rolled back", ""},
		{"H", errRefused, "ended, stored", serverText},
		{"H", nil, "ended, stored", serverText},
	} {
		w := newWorld(t, guarded)
		e := w.prepare(w.begin(), cell{before: row.before})
		w.at(rollbackToGuard, fails(errNetwork))
		w.at("ROLLBACK", fails(row.answer))
		w.end(e)
		r := w.Last()
		if got := describeResult(r, "returned"); got != row.want || errText(r.Err) != row.err {
			t.Errorf("%s, %v: got %s: %v", row.before, row.answer, got, r.Err)
		}
	}
}

// A begin that was refused is a rollback, whatever ROLLBACK says: nothing ran in it.
func TestSlotRefusedSaysNothing(t *testing.T) {
	for _, answer := range []error{errNoTx, errNetwork, errRefused} {
		w := newWorld(t, guarded)
		w.at(saveGuard, fails(errPlain))
		w.at("ROLLBACK", fails(answer))
		a := w.ask(ForStatement)
		_, _ = w.Use(background, a)
		want := map[bool]string{true: "rolled back, unheard", false: "rolled back"}[answer == errNetwork]
		if got := refusedOf(a); got != want+" without times: plain" {
			t.Errorf("%v: got %s", answer, got)
		}
	}
}

// The driver's error of COMMIT is the Err itself, and what aborted the transaction is in it.
func TestSlotEndKeepsTheError(t *testing.T) {
	w := newWorld(t, plain)
	w.begin()
	w.at("COMMIT", fails(errRefused))
	w.End(true)
	if r := w.Last(); r.Err != error(errRefused) || r.Opener != Opener(&w.key) {
		t.Errorf("got %v of %v, want the driver's of the key that began", r.Err, r.Opener)
	}
	w.well()
	tx := w.begin()
	w.Note(background, tx, false, errFull)
	w.End(true)
	if r := w.Last(); !errors.Is(r.Err, errFull) {
		t.Errorf("got %v, want what aborted the transaction in it", r.Err)
	}
}

// What the last transaction left is not taken for what became of the next one.
func TestSlotEndTwice(t *testing.T) {
	w := newWorld(t, plain)
	w.begin()
	w.at("COMMIT", fails(errNetwork))
	w.End(true)
	w.well()
	w.begin()
	w.End(false)
	r := w.Last()
	if got := describeResult(r, "returned"); got != "rolled back" || r.Err != nil || w.Ended() != 2 {
		t.Errorf("got %s: %v, %d ended", got, r.Err, w.Ended())
	}
	w.d.Check(t, "BEGIN", "COMMIT", "BEGIN", "ROLLBACK")
}

// The Times are those of the one transaction, and nil if nobody wants them.
func TestSlotTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		takes := func(d time.Duration) func(context.Context) error {
			return func(context.Context) error { time.Sleep(d); return nil } // the bubble's time
		}
		w := newWorld(t, plain)
		w.at("BEGIN", takes(time.Second))
		w.at("ROLLBACK", takes(time.Hour))
		w.timed = true
		start := time.Now()
		w.begin()
		time.Sleep(time.Minute)
		w.End(false)
		first := w.Last().Times
		if want := (Times{start, time.Second, start.Add(time.Second), time.Minute, time.Hour}); first == nil || *first != want {
			t.Errorf("got %+v, want %+v", first, want)
		}

		w.at("BEGIN", takes(2*time.Second))
		start = time.Now()
		w.begin()
		if r := w.Last(); r.Times == first {
			t.Error("the next transaction has the Times of the last one")
		}
		w.End(false)
		if second := w.Last().Times; *second != (Times{start, 2 * time.Second, start.Add(2 * time.Second), 0, time.Hour}) {
			t.Errorf("got %+v", second)
		}

		w.timed = false
		w.begin()
		w.End(false)
		if r := w.Last(); r.Times != nil {
			t.Errorf("got %+v, want none", r.Times)
		}
	})
}
