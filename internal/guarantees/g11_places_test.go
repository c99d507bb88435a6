// G11 A transaction the server ended is found out: the tables of a rollback that was
// none, of what COMMIT's answer means, and of errors that end transactions, in every
// place in which a transaction can stand (places_test.go).

package guarantees

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/mysqlite"
)

// A rollback that was none: the request inserts "before", a DDL commits that, "order" is
// stored at once, and then there is a conflict. MariaDB has a success for COMMIT and
// ROLLBACK all the same, so that only a savepoint that is not there can tell: Guard's,
// or the Savepoint's that is gone back to. Without one it is a rollback like any other,
// as the contract says; SQLite tells by its answer to ROLLBACK (TestG11EndedBySQLite).
// What is told is never run again: "order" is stored once.
func TestG11TableOfWorkThatStayed(t *testing.T) {
	const (
		untold      = "503 Retry-After; main RolledBack 1; rollback; stored: before order"
		told        = "500; main Ended 1; no hook; stored: before order"
		notReleased = "500; main CommitFailed 1; no hook; stored: before order" // Guard's savepoint was not there
	)
	placeTable{
		//              Key     Guard  *sql.Tx Guard
		"end":        {untold, told, untold, told},
		"Rollback":   {untold, told, untold, told},
		"Savepoint":  {told, told, told, told},
		"Binding.Tx": {told, told, told, told}, // the request's savepoint is not there
		"Commit": {
			"500; main Committed 1; commit; stored: before order", notReleased,
			"500; main Committed 1; commit; stored: before order", notReleased,
		},
		"Hijack": {
			"hijacked; main Committed 1; commit; stored: before order", notReleased,
			"hijacked; main Committed 1; commit; stored: before order", notReleased,
		},
		"Retry": {
			"200; main RolledBack 1, main Committed 2; rollback commit; stored: before order again", told,
			"200; main RolledBack 1, main Committed 2; rollback commit; stored: before order again", told,
		},
		"Do": {
			"503; main RolledBack 1; rollback; stored: before order", told,
			"503; main RolledBack 1; rollback; stored: before order", told,
		},
		"nested": {
			"503 Retry-After; other RolledBack 1, main RolledBack 1; rollback; stored: before order",
			"500; other RolledBack 1, main Ended 1; no hook; stored: before order",
			"503 Retry-After; other RolledBack 1, main RolledBack 1; rollback; stored: before order",
			"500; other RolledBack 1, main Ended 1; no hook; stored: before order",
		},
		"two keys": {
			"503 Retry-After; main RolledBack 1, other RolledBack 1; rollback; stored: before order",
			"500; main Ended 1, other RolledBack 1; no hook; stored: before order",
			"503 Retry-After; main RolledBack 1, other RolledBack 1; rollback; stored: before order",
			"500; main Ended 1, other RolledBack 1; no hook; stored: before order",
		},
	}.run(t, 40, func(t *testing.T, p place) string {
		d := newServer()
		s := scene{place: p, main: p.binding(t, d.Open(t))}
		return s.play(t, func(ctx context.Context) error {
			for _, q := range []string{"INSERT before", "DDL", "INSERT order"} {
				if err := p.exec(ctx, q); err != nil {
					t.Error(err)
				}
			}
			return sqlreqtest.Conflict{}
		}) + d.told()
	})
}

// What COMMIT's answer means: SQLite's code 1 (no transaction is active) and 10 (the
// frame may be on the disk), and 1305 for a request's savepoint in a test's transaction,
// say nothing of what is stored. Nothing is run again, no hook runs.
func TestG11TableOfAmbiguousCommits(t *testing.T) {
	table := placeTable{
		// Key, with Guard; *sql.Tx, with Guard
		"end":        all("500; main CommitFailed 1; no hook; ambiguous true, committed []"),
		"Commit":     all("500; main CommitFailed 1; no hook; ambiguous true, committed []"),
		"Rollback":   all(never + "no COMMIT is sent"),
		"Savepoint":  all("500; main CommitFailed 1; no hook; ambiguous true, committed []"),
		"Hijack":     all("500; main CommitFailed 1; no hook; ambiguous true, committed []"),
		"Retry":      all("500; main CommitFailed 1; no hook; ambiguous true, committed []"),
		"Do":         all("500; main CommitFailed 1; no hook; ambiguous true, committed []"),
		"Binding.Tx": all("500; main CommitFailed 1; no hook; ambiguous true, committed []"),
		"nested":     all("500; other Committed 1, main CommitFailed 1; no hook; ambiguous true, committed [\"other\"]"),
		"two keys":   all("500; main CommitFailed 1, other RolledBack 1; no hook; ambiguous true, committed []"),
	}
	for _, code := range []int{1, 10} {
		t.Run(fmt.Sprintf("SQLite %d", code), func(t *testing.T) {
			table.run(t, 36, func(t *testing.T, p place) string { return ambiguousCommit(t, p, code) })
		})
	}
}

// ambiguousCommit is a request whose COMMIT is answered with that code.
func ambiguousCommit(t *testing.T, p place, code int) string {
	d := &fakedb.DB{Step: func(_ context.Context, text string) error {
		switch {
		case text == "COMMIT":
			return &mysqlite.SQLite{Result: code}
		case strings.HasPrefix(text, "RELEASE SAVEPOINT sqlreq_tx_"), strings.HasPrefix(text, "ROLLBACK TO SAVEPOINT sqlreq_tx_"):
			return &mysqlite.MySQL{Number: 1305}
		}
		return nil
	}}
	s := scene{place: p, main: p.binding(t, d.Open(t))}
	seen := s.play(t, func(ctx context.Context) error { return p.exec(ctx, "INSERT") })
	for _, e := range s.log.Told() {
		var c *sqlreq.CommitError
		if e.Outcome == sqlreq.CommitFailed && errors.As(e.Err, &c) {
			seen += fmt.Sprintf("; ambiguous %t, committed %q", c.Ambiguous, c.Committed)
		}
	}
	return seen
}

// A statement meets 57P01, and from then on there is no answer. By a Key it is seen:
// COMMIT is not tried, ROLLBACK is, and what a server that is lost leaves is rolled back.
// On *sql.Tx it is not, so that COMMIT, or Guard's check before it, finds out, and
// nobody knows what is stored.
func TestG11TableOfALostConnection(t *testing.T) {
	placeTable{
		// Key, with Guard; *sql.Tx, with Guard
		"end": {
			"500; main RolledBack 1; rollback; 0 COMMIT",
			"500; main RolledBack 1; rollback; 0 COMMIT",
			"500; main CommitFailed 1; no hook; 1 COMMIT",
			"500; main CommitFailed 1; no hook; 0 COMMIT",
		},
		"Commit": {
			"500; main RolledBack 1; rollback; 0 COMMIT",
			"500; main RolledBack 1; rollback; 0 COMMIT",
			"500; main CommitFailed 1; no hook; 1 COMMIT",
			"500; main CommitFailed 1; no hook; 0 COMMIT",
		},
		"Rollback": {
			"200; main RolledBack 1; rollback; 0 COMMIT",
			"200; main RolledBack 1; rollback; 0 COMMIT",
			"200; main RolledBack 1; rollback; 0 COMMIT",
			"500; main Ended 1; no hook; 0 COMMIT",
		},
		"Savepoint": {
			"500; main RolledBack 1; rollback; 0 COMMIT",
			"500; main RolledBack 1; rollback; 0 COMMIT",
			"500; main RolledBack 1; rollback; 0 COMMIT",
			"500; main Ended 1; no hook; 0 COMMIT",
		},
		"Hijack": {
			"500; main RolledBack 1; rollback; 0 COMMIT",
			"500; main RolledBack 1; rollback; 0 COMMIT",
			"500; main CommitFailed 1; no hook; 1 COMMIT",
			"500; main CommitFailed 1; no hook; 0 COMMIT",
		},
		"Retry": {
			"500; main RolledBack 1; rollback; 0 COMMIT",
			"500; main RolledBack 1; rollback; 0 COMMIT",
			"500; main CommitFailed 1; no hook; 1 COMMIT",
			"500; main CommitFailed 1; no hook; 0 COMMIT",
		},
		"Do": {
			"500; main RolledBack 1; rollback; 0 COMMIT",
			"500; main RolledBack 1; rollback; 0 COMMIT",
			"500; main CommitFailed 1; no hook; 1 COMMIT",
			"500; main CommitFailed 1; no hook; 0 COMMIT",
		},
		"Binding.Tx": unguarded(
			"500; main RolledBack 1; rollback; 0 COMMIT",
			"500; main CommitFailed 1; no hook; 0 COMMIT",
		),
		"nested": {
			"500; other RolledBack 1, main RolledBack 1; rollback; 0 COMMIT",
			"500; other RolledBack 1, main RolledBack 1; rollback; 0 COMMIT",
			"500; other Committed 1, main CommitFailed 1; no hook; 1 COMMIT",
			"500; other Committed 1, main CommitFailed 1; no hook; 0 COMMIT",
		},
		"two keys": {
			"500; main RolledBack 1, other RolledBack 1; rollback; 0 COMMIT",
			"500; main RolledBack 1, other RolledBack 1; rollback; 0 COMMIT",
			"500; main CommitFailed 1, other RolledBack 1; no hook; 1 COMMIT",
			"500; main CommitFailed 1, other RolledBack 1; no hook; 0 COMMIT",
		},
	}.run(t, 40, func(t *testing.T, p place) string {
		lost := false
		d := &fakedb.DB{Step: func(_ context.Context, text string) error {
			switch {
			case text == "LOST":
				lost = true
				return mysqlite.State("57P01")
			case text == "BEGIN":
				lost = false
			case lost:
				return driver.ErrBadConn
			}
			return nil
		}}
		s := scene{place: p, main: p.binding(t, d.Open(t))}
		return s.play(t, func(ctx context.Context) error {
			if err := p.exec(ctx, "INSERT"); err != nil {
				t.Error(err)
			}
			if err := p.exec(ctx, "LOST"); err == nil {
				t.Error("no error")
			}
			return nil
		}) + fmt.Sprintf("; %d COMMIT", d.Count("COMMIT"))
	})
}

// A statement meets 1205 and has ended the transaction (innodb_rollback_on_timeout is
// on); the handler makes nothing of it and inserts "order". By a Key that is refused, and
// the request is run again. On *sql.Tx "order" is stored at once, and only Guard, or a
// savepoint that is not there any more, can tell.
func TestG11TableOfATimeout(t *testing.T) {
	placeTable{
		// Key, with Guard; *sql.Tx, with Guard
		"end": {
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"200; main Committed 1; commit; stored: order",
			"500; main CommitFailed 1; no hook; stored: order",
		},
		"Commit": {
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"200; main Committed 1; commit; stored: order",
			"500; main CommitFailed 1; no hook; stored: order",
		},
		"Rollback": {
			"200; main RolledBack 1; rollback; nothing stored",
			"200; main RolledBack 1; rollback; nothing stored",
			"200; main RolledBack 1; rollback; stored: order",
			"500; main Ended 1; no hook; stored: order",
		},
		"Savepoint": unguarded(
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"500; main Ended 1; no hook; stored: order",
		),
		"Hijack": {
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"hijacked; main Committed 1; commit; stored: order",
			"500; main CommitFailed 1; no hook; stored: order",
		},
		"Retry": {
			"200; main RolledBack 1, main Committed 2; rollback commit; stored: again",
			"200; main RolledBack 1, main Committed 2; rollback commit; stored: again",
			"200; main Committed 1; commit; stored: order",
			"500; main CommitFailed 1; no hook; stored: order",
		},
		"Do": {
			"503; main RolledBack 1; rollback; nothing stored",
			"503; main RolledBack 1; rollback; nothing stored",
			"200; main Committed 1; commit; stored: order",
			"500; main CommitFailed 1; no hook; stored: order",
		},
		"Binding.Tx": unguarded(
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"500; main CommitFailed 1; no hook; stored: order",
		),
		"nested": {
			"503 Retry-After; other RolledBack 1, main RolledBack 1; rollback; nothing stored",
			"503 Retry-After; other RolledBack 1, main RolledBack 1; rollback; nothing stored",
			"200; other Committed 1, main Committed 1; commit; stored: order",
			"500; other Committed 1, main CommitFailed 1; no hook; stored: order",
		},
		"two keys": {
			"503 Retry-After; main RolledBack 1, other RolledBack 1; rollback; nothing stored",
			"503 Retry-After; main RolledBack 1, other RolledBack 1; rollback; nothing stored",
			"200; main Committed 1, other Committed 1; commit; stored: order",
			"500; main CommitFailed 1, other RolledBack 1; no hook; stored: order",
		},
	}.run(t, 40, func(t *testing.T, p place) string {
		d := newServer()
		s := scene{place: p, main: p.binding(t, d.Open(t))}
		return s.play(t, func(ctx context.Context) error {
			if err := p.exec(ctx, "INSERT before"); err != nil {
				t.Error(err)
			}
			if err := p.exec(ctx, "TIMEOUT"); err == nil {
				t.Error("no error")
			}
			_ = p.exec(ctx, "INSERT order")
			return nil
		}) + d.told()
	})
}

// A conflict has aborted PostgreSQL's transaction, and the handler makes nothing of it:
// Guard's RELEASE is refused with 25P02, COMMIT is answered with ROLLBACK. Nothing stays
// and nothing is ambiguous, with Guard as without. A conflict that a Key has met is run
// again; of one on *sql.Tx nobody has told.
func TestG11TableOfAnAbortedTransaction(t *testing.T) {
	placeTable{
		// Key, with Guard; *sql.Tx, with Guard
		"end":       all("500; main CommitFailed 1; rollback"),
		"Commit":    all("500; main CommitFailed 1; rollback"),
		"Rollback":  all("200; main RolledBack 1; rollback"),
		"Savepoint": all("500; main RolledBack 1; rollback"),
		"Hijack":    all("500; main CommitFailed 1; rollback"),
		"Retry": unguarded(
			"200; main CommitFailed 1, main Committed 2; rollback commit",
			"500; main CommitFailed 1; rollback",
		),
		"Do":         all("500; main CommitFailed 1; rollback"),
		"Binding.Tx": all("500; main CommitFailed 1; rollback"),
		"nested":     all("500; other Committed 1, main CommitFailed 1; rollback"),
		"two keys":   all("500; main CommitFailed 1, other RolledBack 1; rollback"),
	}.run(t, 40, func(t *testing.T, p place) string {
		d := postgres("CONFLICT", sqlreqtest.Conflict{})
		s := scene{place: p, main: p.binding(t, d.Open(t))}
		return s.play(t, func(ctx context.Context) error {
			if err := p.exec(ctx, "INSERT"); err != nil {
				t.Error(err)
			}
			if err := p.exec(ctx, "CONFLICT"); err == nil {
				t.Error("no error")
			}
			return nil
		})
	})
}

// An Atomic that is not there any more when it is to be undone tells the same as a
// Savepoint, without Guard too. One around it that is found again says that the
// transaction is alive; here there is none.
func TestG11AtomicThatIsNotThereAnyMore(t *testing.T) {
	for _, nested := range []bool{false, true} {
		for _, guard := range []bool{false, true} {
			d := newServer()
			s := scene{place: place{way: "Retry", guard: guard}, main: sqlreq.Binding{DB: d.Open(t), Guard: guard}}
			got := s.play(t, func(ctx context.Context) error {
				sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT before")
				fails := func(ctx context.Context) error {
					return s.reg.Atomic(ctx, func(ctx context.Context) error {
						sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "DDL")
						return sqlreqtest.Conflict{}
					})
				}
				if nested {
					return s.reg.Atomic(ctx, fails)
				}
				return fails(ctx)
			}) + d.told()
			if want := "500; main Ended 1; no hook; stored: before"; got != want {
				t.Errorf("nested %t, Guard %t: got %q, want %q", nested, guard, got, want)
			}
		}
	}
}
