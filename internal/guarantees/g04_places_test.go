// G4 No success by accident: the tables of statements under way at the end, of
// Savepoints, and of a ROLLBACK that is not answered, in every place in which a
// transaction can stand (places_test.go).

package guarantees

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// A statement of the Key is under way when the work is done, and then meets 1213, which
// has ended the transaction. The end waits for it, and nothing is told to be committed.
// Where the *sql.Tx was handed out nobody knows what ran after that.
func TestG4TableOfAStatementUnderWay(t *testing.T) {
	placeTable{
		// Key, with Guard; *sql.Tx, with Guard
		"end": {
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"500; main Ended 1; no hook; nothing stored",
		},
		"Commit": {
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"500; main Ended 1; no hook; nothing stored",
		},
		"Rollback": all(never + "a ROLLBACK waits for no statement; database/sql does, with a lock that the bubble of this test cannot wait at"),
		"Savepoint": unguarded(
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"500; main Ended 1; no hook; nothing stored",
		),
		"Hijack": {
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"500; main Ended 1; no hook; nothing stored",
		},
		"Retry": {
			"200; main RolledBack 1, main Committed 2; rollback commit; stored: again",
			"200; main RolledBack 1, main Committed 2; rollback commit; stored: again",
			"200; main RolledBack 1, main Committed 2; rollback commit; stored: again",
			"500; main Ended 1; no hook; nothing stored",
		},
		"Do": {
			"503; main RolledBack 1; rollback; nothing stored",
			"503; main RolledBack 1; rollback; nothing stored",
			"503; main RolledBack 1; rollback; nothing stored",
			"500; main Ended 1; no hook; nothing stored",
		},
		"Binding.Tx": unguarded(
			"503 Retry-After; main RolledBack 1; rollback; nothing stored",
			"500; main Ended 1; no hook; nothing stored",
		),
		"nested": {
			"503 Retry-After; other RolledBack 1, main RolledBack 1; rollback; nothing stored",
			"503 Retry-After; other RolledBack 1, main RolledBack 1; rollback; nothing stored",
			"503 Retry-After; other RolledBack 1, main RolledBack 1; rollback; nothing stored",
			"500; other RolledBack 1, main Ended 1; no hook; nothing stored",
		},
		"two keys": {
			"503 Retry-After; main RolledBack 1, other RolledBack 1; rollback; nothing stored",
			"503 Retry-After; main RolledBack 1, other RolledBack 1; rollback; nothing stored",
			"503 Retry-After; main RolledBack 1, other RolledBack 1; rollback; nothing stored",
			"500; main Ended 1, other RolledBack 1; no hook; nothing stored",
		},
	}.run(t, 36, func(t *testing.T, p place) (seen string) {
		synctest.Test(t, func(t *testing.T) {
			point := fakedb.NewPoint()
			d := newServer()
			d.Step = func(ctx context.Context, text string) error {
				if text == "SLOW" {
					if err := point.WaitOr(ctx); err != nil {
						return err
					}
					text = "DEADLOCK"
				}
				return d.answer(text)
			}
			s := scene{place: p, main: p.binding(t, d.Open(t))}
			done := make(chan struct{})
			go func() {
				defer close(done)
				seen = s.play(t, func(ctx context.Context) error {
					if err := p.exec(ctx, "INSERT before"); err != nil {
						t.Error(err)
					}
					go func() { _, _ = sqlreqtest.Main.ExecContext(ctx, "SLOW") }()
					point.Reached()
					return nil
				})
			}()
			synctest.Wait()
			if last := d.Log()[len(d.Log())-1]; last != "SLOW" {
				t.Errorf("%s was sent while a statement runs", last)
			}
			point.Release()
			<-done
			seen += d.told()
		})
		return seen
	})
}

// Twenty lines fail, each in a Savepoint, and the last one is good. What was rolled back
// to is released: the server never has more savepoints than that of a line, those
// around it, and Guard's or that of a request in a test's transaction.
func TestG4TableOfSavepointsThatFail(t *testing.T) {
	placeTable{
		// Key, with Guard; *sql.Tx, with Guard
		"end": {
			"200; main Committed 1; commit; stored: good; at most 1 savepoints",
			"200; main Committed 1; commit; stored: good; at most 2 savepoints",
			"200; main Committed 1; commit; stored: good; at most 1 savepoints",
			"200; main Committed 1; commit; stored: good; at most 2 savepoints",
		},
		"Commit": {
			"200; main Committed 1; commit; stored: good; at most 1 savepoints",
			"200; main Committed 1; commit; stored: good; at most 2 savepoints",
			"200; main Committed 1; commit; stored: good; at most 1 savepoints",
			"200; main Committed 1; commit; stored: good; at most 2 savepoints",
		},
		"Rollback": {
			"200; main RolledBack 1; rollback; nothing stored; at most 1 savepoints",
			"200; main RolledBack 1; rollback; nothing stored; at most 2 savepoints",
			"200; main RolledBack 1; rollback; nothing stored; at most 1 savepoints",
			"200; main RolledBack 1; rollback; nothing stored; at most 2 savepoints",
		},
		"Savepoint": {
			"200; main Committed 1; commit; stored: good; at most 2 savepoints",
			"200; main Committed 1; commit; stored: good; at most 3 savepoints",
			"200; main Committed 1; commit; stored: good; at most 2 savepoints",
			"200; main Committed 1; commit; stored: good; at most 3 savepoints",
		},
		"Hijack": {
			"hijacked; main Committed 1; commit; stored: good; at most 1 savepoints",
			"hijacked; main Committed 1; commit; stored: good; at most 2 savepoints",
			"hijacked; main Committed 1; commit; stored: good; at most 1 savepoints",
			"hijacked; main Committed 1; commit; stored: good; at most 2 savepoints",
		},
		"Retry": {
			"200; main Committed 1; commit; stored: good; at most 1 savepoints",
			"200; main Committed 1; commit; stored: good; at most 2 savepoints",
			"200; main Committed 1; commit; stored: good; at most 1 savepoints",
			"200; main Committed 1; commit; stored: good; at most 2 savepoints",
		},
		"Do": {
			"200; main Committed 1; commit; stored: good; at most 1 savepoints",
			"200; main Committed 1; commit; stored: good; at most 2 savepoints",
			"200; main Committed 1; commit; stored: good; at most 1 savepoints",
			"200; main Committed 1; commit; stored: good; at most 2 savepoints",
		},
		"Binding.Tx": all("200; main Committed 1; commit; stored: good; at most 2 savepoints"),
		"nested": {
			"200; other Committed 1, main Committed 1; commit; stored: good; at most 1 savepoints",
			"200; other Committed 1, main Committed 1; commit; stored: good; at most 2 savepoints",
			"200; other Committed 1, main Committed 1; commit; stored: good; at most 1 savepoints",
			"200; other Committed 1, main Committed 1; commit; stored: good; at most 2 savepoints",
		},
		"two keys": {
			"200; main Committed 1, other Committed 1; commit; stored: good; at most 1 savepoints",
			"200; main Committed 1, other Committed 1; commit; stored: good; at most 2 savepoints",
			"200; main Committed 1, other Committed 1; commit; stored: good; at most 1 savepoints",
			"200; main Committed 1, other Committed 1; commit; stored: good; at most 2 savepoints",
		},
	}.run(t, 40, func(t *testing.T, p place) string {
		most := 0
		d := newServer()
		d.Stepped = func(context.Context, string) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			most = max(most, len(d.marks))
			return nil
		}
		s := scene{place: p, main: p.binding(t, d.Open(t))}
		return s.play(t, func(ctx context.Context) error {
			for range 20 {
				err := sqlreq.Savepoint(ctx, func(ctx context.Context) error {
					return errors.Join(p.exec(ctx, "INSERT bad"), sqlreqtest.ErrTest)
				})
				if !errors.Is(err, sqlreqtest.ErrTest) {
					t.Error(err)
				}
			}
			return p.exec(ctx, "INSERT good")
		}) + d.told() + fmt.Sprintf("; at most %d savepoints", most)
	})
}

// Inside a Savepoint a use with the context around it is refused, and so is, later, one
// with the context of a Savepoint that was rolled back. What is refused harms nothing
// else. The functions that register hooks, and Fail, are not refused.
func TestG4TableOfAnotherContext(t *testing.T) {
	placeTable{
		// Key, with Guard; *sql.Tx, with Guard
		"end":        all("200; main Committed 1; commit; stored: right; refused: late wrong"),
		"Commit":     all("200; main Committed 1; commit; stored: right; refused: late wrong"),
		"Rollback":   all("200; main RolledBack 1; rollback; nothing stored; refused: late wrong"),
		"Savepoint":  all("200; main Committed 1; commit; stored: right; refused: late wrong"),
		"Hijack":     all("hijacked; main Committed 1; commit; stored: right; refused: late wrong"),
		"Retry":      all("200; main Committed 1; commit; stored: right; refused: late wrong"),
		"Do":         all("200; main Committed 1; commit; stored: right; refused: late wrong"),
		"Binding.Tx": all("200; main Committed 1; commit; stored: right; refused: late wrong"),
		"nested":     all("200; other Committed 1, main Committed 1; commit; stored: right; refused: late wrong"),
		"two keys":   all("200; other Committed 1, main Committed 1; commit; stored: right; refused: late wrong"), // main has a BeforeCommit function
	}.run(t, 40, func(t *testing.T, p place) string {
		d := newServer()
		s := scene{place: p, main: p.binding(t, d.Open(t))}
		refused := "; refused:"
		try := func(ctx context.Context, row string) {
			if err := p.exec(ctx, "INSERT "+row); err != nil {
				refused += " " + row
			}
		}
		return s.play(t, func(around context.Context) error {
			var old context.Context
			if err := sqlreq.Savepoint(around, func(ctx context.Context) error {
				old = ctx
				return errors.Join(p.exec(ctx, "INSERT undone"), sqlreqtest.ErrTest)
			}); !errors.Is(err, sqlreqtest.ErrTest) {
				t.Errorf("Savepoint returned %v", err)
			}
			try(old, "late")
			return sqlreq.Savepoint(around, func(ctx context.Context) error {
				try(around, "wrong")
				try(ctx, "right")
				return errors.Join(
					sqlreq.AfterCommit(around, func(context.Context) {}),
					sqlreq.AfterRollback(around, func(context.Context) {}),
					sqlreq.BeforeCommit(around, func(context.Context) error { return nil }),
					sqlreq.Fail(around, nil),
				)
			})
		}) + d.told() + refused
	})
}

// The server does not answer ROLLBACK, nor ROLLBACK TO; the client leaves after a minute.
// Each is given up two seconds after that, or after it was sent. COMMIT is waited for,
// here for an hour. Without an answer it counts as rolled back. With Guard it does not,
// where the *sql.Tx was handed out or the ROLLBACK TO of a Savepoint was not answered.
func TestG4TableOfASilentServer(t *testing.T) {
	placeTable{
		// Key, with Guard; *sql.Tx, with Guard
		"end": {
			"503 Retry-After; main RolledBack 1; rollback; given up after [1m2s]",
			"503 Retry-After; main RolledBack 1; rollback; given up after [1m2s 1m4s]",
			"503 Retry-After; main RolledBack 1; rollback; given up after [1m2s]",
			"500; main Ended 1; no hook; given up after [1m2s 1m4s]",
		},
		"Commit": all("500; main Committed 1; commit; given up after []"),
		"Rollback": {
			"503 Retry-After; main RolledBack 1; rollback; given up after [1m2s]",
			"503 Retry-After; main RolledBack 1; rollback; given up after [1m2s 1m4s]",
			"503 Retry-After; main RolledBack 1; rollback; given up after [1m2s]",
			"500; main Ended 1; no hook; given up after [1m2s 1m4s]",
		},
		"Savepoint": {
			"503 Retry-After; main RolledBack 1; rollback; given up after [1m2s 1m4s]",
			"500; main Ended 1; no hook; given up after [1m2s 1m4s 1m6s]",
			"503 Retry-After; main RolledBack 1; rollback; given up after [1m2s 1m4s]",
			"500; main Ended 1; no hook; given up after [1m2s 1m4s 1m6s]",
		},
		"Hijack": all("hijacked; main Committed 1; commit; given up after []"),
		"Retry": {
			"503 Retry-After; main RolledBack 1; rollback; given up after [1m2s]",
			"503 Retry-After; main RolledBack 1; rollback; given up after [1m2s 1m4s]",
			"503 Retry-After; main RolledBack 1; rollback; given up after [1m2s]",
			"500; main Ended 1; no hook; given up after [1m2s 1m4s]",
		},
		"Do": {
			"503; main RolledBack 1; rollback; given up after [1m2s]",
			"503; main RolledBack 1; rollback; given up after [1m2s 1m4s]",
			"503; main RolledBack 1; rollback; given up after [1m2s]",
			"500; main Ended 1; no hook; given up after [1m2s 1m4s]",
		},
		"Binding.Tx": all("503 Retry-After; main RolledBack 1; rollback; given up after [1m2s]"),
		"nested": {
			"503 Retry-After; other RolledBack 1, main RolledBack 1; rollback; given up after [1m2s]",
			"503 Retry-After; other RolledBack 1, main RolledBack 1; rollback; given up after [1m2s 1m4s]",
			"503 Retry-After; other RolledBack 1, main RolledBack 1; rollback; given up after [1m2s]",
			"500; other RolledBack 1, main Ended 1; no hook; given up after [1m2s 1m4s]",
		},
		"two keys": {
			"503 Retry-After; main RolledBack 1, other RolledBack 1; rollback; given up after [1m2s]",
			"503 Retry-After; main RolledBack 1, other RolledBack 1; rollback; given up after [1m2s 1m4s]",
			"503 Retry-After; main RolledBack 1, other RolledBack 1; rollback; given up after [1m2s]",
			"500; main Ended 1, other RolledBack 1; no hook; given up after [1m2s 1m4s]",
		},
	}.run(t, 40, func(t *testing.T, p place) (seen string) {
		synctest.Test(t, func(t *testing.T) {
			silent := newSilent()
			silent.DB.Commit = func() error { time.Sleep(time.Hour); return nil } // of the bubble
			db := silent.Open(t)
			client, leave := context.WithCancel(t.Context())
			time.AfterFunc(time.Minute, leave)
			s := scene{place: p, main: p.binding(t, db), client: client}
			if p.way == "Binding.Tx" {
				t.Cleanup(func() { silent.Change(func(d *fakedb.DB) { d.Rollback = nil }) }) // before the test's own
			}
			silent.start = time.Now()
			seen = s.play(t, func(ctx context.Context) error {
				if err := p.exec(ctx, "INSERT"); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Second)
				return sqlreqtest.ErrTest
			}) + "; given up after " + silent.told()
			if n := db.Stats().InUse; n > 0 && p.way != "Binding.Tx" {
				t.Errorf("%d connections are in use", n)
			}
		})
		return seen
	})
}
