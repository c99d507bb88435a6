// G6 One request, one outcome, one transaction for each pool: the tables of a test's
// transaction (Binding.Tx) that has ended, of a Do that needs the only connection, of a
// Route that uses its own key, and of the order of ends, in every place in which a
// transaction can stand (places_test.go).

package guarantees

import (
	"context"
	"database/sql"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/mysqlite"
)

// A request ends the test's transaction with OR ROLLBACK on a real SQLite, and inserts
// "order", which is stored at once. Every later use is refused, so that nothing else
// stays. Guard does nothing here.
func TestG6TableOfATestThatIsDead(t *testing.T) {
	placeTable{
		// Key, with Guard; *sql.Tx, with Guard
		"end":        all("500; main CommitFailed 1; no hook; rows: x order"),
		"Commit":     all("500; main CommitFailed 1; no hook; rows: x order"),
		"Rollback":   all("500; main Ended 1; no hook; rows: x order"),
		"Savepoint":  all("500; main Ended 1; no hook; rows: x order"),
		"Hijack":     all("500; main CommitFailed 1; no hook; rows: x order"),
		"Retry":      all("500; main Ended 1; no hook; rows: x order"),
		"Do":         all("500; main CommitFailed 1; no hook; rows: x order"),
		"Binding.Tx": all(never + "every row here is under Binding.Tx, as it is in the row end"),
		"nested":     all("500; other Committed 1, main CommitFailed 1; no hook; rows: x order"),
		"two keys":   all("500; main CommitFailed 1, other RolledBack 1; no hook; rows: x order"),
	}.run(t, 36, func(t *testing.T, p place) string {
		db := sqlreqtest.OpenDB(t)
		if _, err := db.Exec(sqlreqtest.InsertWork); err != nil { // the row with the id 1
			t.Fatal(err)
		}
		test := testTx(t, db)
		s := scene{place: p, main: sqlreq.Binding{Tx: test, Guard: p.guard}}
		seen := s.play(t, func(ctx context.Context) error {
			if err := p.exec(ctx, "INSERT INTO work (note) VALUES ('before')"); err != nil {
				t.Error(err)
			}
			if err := p.exec(ctx, orRollback); err == nil {
				t.Error("no conflict")
			}
			if err := p.exec(ctx, insertOrder); err != nil {
				t.Error(err)
			}
			if p.way == "Retry" {
				return sqlreqtest.Conflict{}
			}
			return nil
		})
		later := s.reg.Do(t.Context(), func(ctx context.Context) error { return p.exec(ctx, "INSERT INTO work (note) VALUES ('later')") })
		if !testEnded(later) {
			t.Errorf("later: got %v, want that the test's transaction has ended", later)
		}
		_ = test.Rollback()
		return seen + "; rows: " + sqlreqtest.Notes(t, db)
	})
}

// An error that was dealt with has aborted PostgreSQL's transaction. The request goes
// back to its savepoint, also where RELEASE is refused with 25P02, and the next one is
// fine.
func TestG6TableOfATestThatGoesOn(t *testing.T) {
	placeTable{
		// Key, with Guard; *sql.Tx, with Guard
		"end":        all("500; main CommitFailed 1; rollback"),
		"Commit":     all("500; main CommitFailed 1; rollback"),
		"Rollback":   all("200; main RolledBack 1; rollback"),
		"Savepoint":  all("500; main RolledBack 1; rollback"),
		"Hijack":     all("500; main CommitFailed 1; rollback"),
		"Retry":      all("500; main CommitFailed 1; rollback"),
		"Do":         all("500; main CommitFailed 1; rollback"),
		"Binding.Tx": all(never + "every row here is under Binding.Tx, as it is in the row end"),
		"nested":     all("500; other Committed 1, main CommitFailed 1; rollback"),
		"two keys":   all("500; main CommitFailed 1, other RolledBack 1; rollback"),
	}.run(t, 36, func(t *testing.T, p place) string {
		d := postgres("DUPLICATE", mysqlite.State("23505"))
		s := scene{place: p, main: sqlreq.Binding{Tx: testTx(t, d.Open(t)), Guard: p.guard}}
		seen := s.play(t, func(ctx context.Context) error {
			if err := p.exec(ctx, "INSERT"); err != nil {
				t.Error(err)
			}
			if err := p.exec(ctx, "DUPLICATE"); err == nil {
				t.Error("no error")
			}
			return nil
		})
		if err := s.reg.Do(t.Context(), func(ctx context.Context) error { return p.exec(ctx, "INSERT") }); err != nil {
			t.Errorf("later: %v", err)
		}
		return seen
	})
}

// A Do in the work needs the only connection of the pool. It is refused at once where the
// unit around it has that, and served where an explicit end has given it back, or where
// it nests in a request's savepoint. With Hijack it is called before, as with the end.
func TestG6TableOfTheOnlyConnection(t *testing.T) {
	placeTable{
		// Key, with Guard; *sql.Tx, with Guard
		"end":        all("200; main Committed 1; commit; the Do is refused"),
		"Commit":     all("200; main Committed 1, main Committed 1; commit; the Do is served"),
		"Rollback":   all("200; main RolledBack 1, main Committed 1; rollback; the Do is served"),
		"Savepoint":  all("200; main Committed 1; commit; the Do is refused"),
		"Hijack":     all("hijacked; main Committed 1; commit; the Do is refused"),
		"Retry":      all("200; main RolledBack 1, main Committed 2; rollback commit; the Do is refused"),
		"Do":         all("200; main Committed 1; commit; the Do is refused"),
		"Binding.Tx": all("200; main Committed 1, main Committed 1; commit; the Do is served"),
		"nested":     all("200; other Committed 1, main Committed 1; commit; the Do is refused"),
		"two keys":   all("200; main Committed 1, other Committed 1; commit; the Do is refused"),
	}.run(t, 40, func(t *testing.T, p place) (seen string) {
		synctest.Test(t, func(t *testing.T) {
			db := poolOfOne(t)
			s := scene{place: p, main: p.binding(t, db)}
			do := ""
			seen = s.play(t, func(ctx context.Context) error {
				if err := p.exec(ctx, "INSERT"); err != nil {
					t.Error(err)
				}
				if explicitly := map[string]func(context.Context) error{"Commit": sqlreq.Commit, "Rollback": sqlreq.Rollback}[p.way]; explicitly != nil {
					if err := explicitly(ctx); err != nil {
						t.Error(err)
					}
				}
				switch err := s.reg.Do(ctx, func(ctx context.Context) error { return p.exec(ctx, "INSERT") }); {
				case err == nil:
					do = "; the Do is served"
				case neverServed(err):
					do = "; the Do is refused"
				default:
					t.Error(err)
				}
				if p.way == "Retry" {
					return sqlreqtest.Conflict{}
				}
				return nil
			}) + do
		})
		return seen
	})
}

// The Route of the key uses the key itself, which would wait for its answer. That is an
// error at once, which names the mistake, and the use that has asked the Route is served.
func TestG6TableOfARouteThatUsesItsKey(t *testing.T) {
	placeTable{
		// Key, with Guard; *sql.Tx, with Guard
		"end":        all("200; main Committed 1; commit; the Route is refused"),
		"Commit":     all("200; main Committed 1; commit; the Route is refused"),
		"Rollback":   all("200; main RolledBack 1; rollback; the Route is refused"),
		"Savepoint":  all("200; main Committed 1; commit; the Route is refused"),
		"Hijack":     all("hijacked; main Committed 1; commit; the Route is refused"),
		"Retry":      all("200; main RolledBack 1, main Committed 2; rollback commit; the Route is refused twice"),
		"Do":         all("200; main Committed 1; commit; the Route is refused"),
		"Binding.Tx": all(never + "a key has a Route or a Tx"),
		"nested":     all("200; other Committed 1, main Committed 1; commit; the Route is refused"),
		"two keys":   all("200; main Committed 1, other Committed 1; commit; the Route is refused"),
	}.run(t, 36, func(t *testing.T, p place) (seen string) {
		synctest.Test(t, func(t *testing.T) {
			db, refused := (&fakedb.DB{}).Open(t), 0
			s := scene{place: p, main: sqlreq.Binding{Guard: p.guard, Route: func(ctx context.Context, _ *http.Request) (*sql.DB, error) {
				if err := p.exec(ctx, "INSERT"); err != nil && strings.Contains(err.Error(), "would wait for itself") {
					refused++
				}
				return db, nil
			}}}
			seen = s.play(t, func(ctx context.Context) error {
				if err := p.exec(ctx, "INSERT"); err != nil {
					t.Error(err)
				}
				if p.way == "Retry" {
					return sqlreqtest.Conflict{}
				}
				return nil
			}) + []string{"", "; the Route is refused", "; the Route is refused twice"}[refused]
		})
		return seen
	})
}

// A writer ("main"), begun first, and a reader ("read"). The reader ends before COMMIT
// is sent, Observe is told when all have ended, and then hooks run. A Do in an
// AfterRollback function does not keep a request from being run again.
func TestG6TableOfTheOrder(t *testing.T) {
	placeTable{
		// Key, with Guard; *sql.Tx, with Guard
		"end":        all("read ROLLBACK, main COMMIT, read Committed 1, main Committed 1, commit"),
		"Commit":     all("main COMMIT, main Committed 1, commit, read ROLLBACK, read Committed 1"),
		"Rollback":   all("main ROLLBACK, main RolledBack 1, rollback, audit Committed 1, read ROLLBACK, read Committed 1"),
		"Savepoint":  all("read ROLLBACK, main COMMIT, read Committed 1, main Committed 1, commit"),
		"Hijack":     all("read ROLLBACK, main COMMIT, read Committed 1, main Committed 1, commit"),
		"Retry":      all("read ROLLBACK, main ROLLBACK, read RolledBack 1, main RolledBack 1, rollback, audit Committed 1, main COMMIT, main Committed 2, commit"),
		"Do":         all("read ROLLBACK, main COMMIT, read Committed 1, main Committed 1, commit"),
		"Binding.Tx": all("read ROLLBACK TO, read RELEASE, main RELEASE, read Committed 1, main Committed 1, commit"),
		"nested":     all("read ROLLBACK, main COMMIT, read Committed 1, other Committed 1, main Committed 1, commit"),
		"two keys":   all("read ROLLBACK, main COMMIT, read Committed 1, main Committed 1, other Committed 1, commit"),
	}.run(t, 40, func(t *testing.T, p place) string {
		s := scene{place: p}
		ends := func(k string) *fakedb.DB {
			return &fakedb.DB{Affected: func(string) int64 { return 0 }, Step: func(_ context.Context, text string) error {
				verb, _, _ := strings.Cut(text, " SAVEPOINT sqlreq_tx_")
				if text == "COMMIT" || text == "ROLLBACK" || verb == "ROLLBACK TO" || verb == "RELEASE" && s.way == "Binding.Tx" {
					s.log.Add(k + " " + verb)
				}
				return nil
			}}
		}
		s.main = p.binding(t, ends("main").Open(t))
		read := p.binding(t, ends("read").Open(t))
		read.Key, read.TxOptions = "read", sqlreqtest.Options(sqlreqtest.ReadOnly)
		audit := (&fakedb.DB{}).Open(t)
		s.more = []sqlreq.Binding{read, {Key: "audit", DB: audit}}
		s.play(t, func(ctx context.Context) error {
			for _, k := range []sqlreq.Key{sqlreqtest.Main, "read"} {
				if err := p.execOn(ctx, k, "SELECT"); err != nil {
					t.Error(err)
				}
			}
			if err := sqlreq.AfterRollback(ctx, func(ctx context.Context) {
				_ = s.reg.Do(ctx, func(ctx context.Context) error { return p.execOn(ctx, "audit", "INSERT") })
			}); err != nil {
				t.Error(err)
			}
			if p.way == "Retry" {
				return sqlreqtest.Conflict{}
			}
			return nil
		})
		return s.log.String()
	})
}
