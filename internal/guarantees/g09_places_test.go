// G9 A database that is not there: the table of a begin that is refused, in every place in
// which a transaction can stand (places_test.go).

package guarantees

import (
	"context"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/mysqlite"
)

// BEGIN is answered with 57P03, with Guard its savepoint, and under Binding.Tx that of the
// request: 503 with Retry-After, and no second attempt. Where a Commit has stored
// something before there is neither.
func TestG9TableOfADatabaseThatIsNotThere(t *testing.T) {
	placeTable{
		// Key, with Guard; *sql.Tx, with Guard
		"end": {
			"503 Retry-After; no event; rollback",
			"503 Retry-After; main RolledBack 1; rollback",
			"503 Retry-After; no event; rollback",
			"503 Retry-After; main RolledBack 1; rollback",
		},
		"Commit": {
			"500; main Committed 1; commit",
			"500; main Committed 1, main RolledBack 1; commit",
			"500; main Committed 1; commit",
			"500; main Committed 1, main RolledBack 1; commit",
		},
		"Rollback": {
			"503 Retry-After; main RolledBack 1; rollback",
			"503 Retry-After; main RolledBack 1, main RolledBack 1; rollback",
			"503 Retry-After; main RolledBack 1; rollback",
			"503 Retry-After; main RolledBack 1, main RolledBack 1; rollback",
		},
		"Savepoint": {
			"503 Retry-After; no event; rollback",
			"503 Retry-After; main RolledBack 1; rollback",
			"503 Retry-After; no event; rollback",
			"503 Retry-After; main RolledBack 1; rollback",
		},
		"Hijack": {
			"hijacked; no event; commit",
			"hijacked; main RolledBack 1; commit",
			"hijacked; no event; commit",
			"hijacked; main RolledBack 1; commit",
		},
		"Retry": {
			"503 Retry-After; no event; rollback",
			"503 Retry-After; main RolledBack 1; rollback",
			"503 Retry-After; no event; rollback",
			"503 Retry-After; main RolledBack 1; rollback",
		},
		"Do": {
			"503; no event; rollback",
			"503; main RolledBack 1; rollback",
			"503; no event; rollback",
			"503; main RolledBack 1; rollback",
		},
		"Binding.Tx": all("503 Retry-After; no event; rollback"),
		"nested": {
			"503 Retry-After; other RolledBack 1; rollback",
			"503 Retry-After; main RolledBack 1, other RolledBack 1; rollback",
			"503 Retry-After; other RolledBack 1; rollback",
			"503 Retry-After; main RolledBack 1, other RolledBack 1; rollback",
		},
		"two keys": {
			"503 Retry-After; other RolledBack 1; rollback",
			"503 Retry-After; main RolledBack 1, other RolledBack 1; rollback",
			"503 Retry-After; other RolledBack 1; rollback",
			"503 Retry-After; main RolledBack 1, other RolledBack 1; rollback",
		},
	}.run(t, 40, func(t *testing.T, p place) string {
		away := false
		d := &fakedb.DB{Step: func(_ context.Context, text string) error {
			if away && (text == "BEGIN" && !p.guard || strings.HasPrefix(text, "SAVEPOINT sqlreq_guard") || strings.HasPrefix(text, "SAVEPOINT sqlreq_tx")) {
				return mysqlite.State("57P03")
			}
			return nil
		}}
		s := scene{place: p, main: p.binding(t, d.Open(t))}
		away = p.way != "Commit" && p.way != "Rollback" // in these it goes away after the explicit end
		return s.play(t, func(ctx context.Context) error {
			if !away {
				if err := p.exec(ctx, "INSERT"); err != nil {
					t.Error(err)
				}
				explicitly := map[string]func(context.Context) error{"Commit": sqlreq.Commit, "Rollback": sqlreq.Rollback}[p.way]
				if err := explicitly(ctx); err != nil {
					t.Error(err)
				}
			}
			away = true
			err := p.exec(ctx, "INSERT")
			if err == nil {
				t.Error("no error")
			}
			return err
		})
	})
}
