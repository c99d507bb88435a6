// G11 A transaction the server ended is found out: the tables of a rollback that was
// none, of what COMMIT's answer means, and of errors that end transactions, in every
// place in which a transaction can stand (places_test.go).

package guarantees

import (
	"context"
	"testing"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
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
