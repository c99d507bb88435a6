// G6 One request, one outcome, one transaction for each pool. With several databases
// this is the order: the BeforeCommit functions; the transactions that end with ROLLBACK
// because they are read-only; the COMMITs, adjacent: first the databases for which no
// function ran, in the order of their BEGINs, then the others in the order in which the
// last such function of each ran; then Observe for each in the order of their ends;
// then the hooks in the order of registration. After a COMMIT that failed the rest are
// rolled back.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// orderKeys are those of the tests here; "ro" is read-only, "serial" is too, but
// ends with COMMIT.
var orderKeys = []sqlreq.Key{"a", "b", "c", "d", "ro", "serial"}

// inOrder uses every database and registers functions and hooks; what Observe is
// told is in the journal too.
func inOrder(t *testing.T, reg *sqlreq.Registry, j *journal) func(context.Context) error {
	reg.Observe = func(_ context.Context, e sqlreq.Event) { j.Add("Observe " + string(e.Key) + " " + e.Outcome.String()) }
	return func(ctx context.Context) error {
		for _, k := range []sqlreq.Key{"d", "c", "ro", "b", "serial", "a"} {
			opts := map[sqlreq.Key]*sql.TxOptions{"ro": sqlreqtest.ReadOnly, "serial": sqlreqtest.ReadOnlySerializable}
			if _, err := k.BeginTx(ctx, opts[k]); err != nil {
				t.Error(err)
			}
			if err := k.AfterCommit(ctx, j.Hook("hook "+string(k))); err != nil {
				t.Error(err)
			}
		}
		before(t, ctx, "c", j.Func("function c", nil))
		before(t, ctx, "ro", j.Func("function ro", nil))
		before(t, ctx, "b", func(ctx context.Context) error {
			j.Add("function b")
			before(t, ctx, "c", j.Func("the last of c", nil))
			return nil
		})
		before(t, ctx, "a", j.Func("function a", nil))
		j.CheckLines(t, "d BEGIN", "c BEGIN", "ro BEGIN READ ONLY", "b BEGIN", "serial BEGIN Serializable READ ONLY", "a BEGIN")
		return nil
	}
}

var (
	functionsInOrder = []string{"function c", "function ro", "function b", "function a", "the last of c"}
	endsInOrder      = []string{"ro ROLLBACK", "d COMMIT", "serial COMMIT", "b COMMIT", "a COMMIT", "c COMMIT"}
	observedInOrder  = []string{"Observe ro Committed", "Observe d Committed", "Observe serial Committed", "Observe b Committed",
		"Observe a Committed", "Observe c Committed"}
	hooksInOrder = []string{"hook d", "hook c", "hook ro", "hook b", "hook serial", "hook a"}
)

func TestG6OrderOfTheEnd(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		j, bindings := newJournal(t, orderKeys...)
		reg := sqlreqtest.NewRegistry(t, bindings...)
		run(reg, inOrder(t, reg, j)).ok(t)
		j.Check(t, slices.Concat(functionsInOrder, endsInOrder, observedInOrder, hooksInOrder)...)
	})
}

func TestG6OrderAtHijack(t *testing.T) {
	j, bindings := newJournal(t, orderKeys...)
	reg := sqlreqtest.NewRegistry(t, bindings...)
	reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = inOrder(t, reg, j)(r.Context())
		_, _, _ = http.NewResponseController(w).Hijack()
		j.Add("hijacked")
	})).ServeHTTP(hijackable{httptest.NewRecorder()}, httptest.NewRequest("GET", "/", nil))
	j.Check(t, slices.Concat(functionsInOrder, endsInOrder, observedInOrder, hooksInOrder, []string{"hijacked"})...)
}

// Each COMMIT fails in turn: those before it are named, the rest are rolled back.
func TestG6OrderWhenACommitFails(t *testing.T) {
	commits := []sqlreq.Key{"d", "serial", "b", "a", "c"}
	for i, k := range commits {
		t.Run(string(k), func(t *testing.T) {
			asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
				j, bindings := newJournal(t, orderKeys...)
				j.Fails(string(k)+" COMMIT", sqlreqtest.Conflict{}) // with the server's answer
				reg := sqlreqtest.NewRegistry(t, bindings...)
				u := run(reg, inOrder(t, reg, j))
				ends := slices.Clone(endsInOrder[:i+2])
				for _, rest := range commits[i+1:] {
					ends = append(ends, string(rest)+" ROLLBACK")
				}
				want := slices.Concat(functionsInOrder, ends)
				if got := j.Take(); !slices.Equal(got[:len(want)], want) {
					t.Errorf("got %q, want %q", got, want)
				}
				committed := slices.DeleteFunc(slices.Clone(commits[:i]), func(k sqlreq.Key) bool {
					return k == "serial" // nothing is stored by it
				})
				var c *sqlreq.CommitError
				if !errors.As(u.err, &c) || c.Key != k || !slices.Equal(c.Committed, committed) {
					t.Errorf("got %+v, want key %q and %q committed", u.err, k, committed)
				}
			})
		})
	}
}

// A transaction on which a function ran, that was ended and begun again, is one
// without such a function.
func TestG6OrderIsThatOfTheOpenTransactions(t *testing.T) {
	j, bindings := newJournal(t, "a", "b", "c")
	asRequest(sqlreqtest.NewRegistry(t, bindings...), func(ctx context.Context) error {
		a := sqlreq.Key("a")
		before(t, ctx, "a", j.Func("function a", nil))
		sqlreqtest.Exec(t, ctx, "a", "INSERT")
		err := a.Commit(ctx)
		for _, k := range []sqlreq.Key{"c", "a", "b"} {
			sqlreqtest.Exec(t, ctx, k, "INSERT")
		}
		before(t, ctx, "c", j.Func("function c", nil))
		return err
	}).ok(t)
	j.Check(t, "a BEGIN", "a INSERT", "function a", "a COMMIT", "c BEGIN", "c INSERT", "a BEGIN", "a INSERT", "b BEGIN", "b INSERT",
		"function c", "a COMMIT", "b COMMIT", "c COMMIT")
}

// A reader and a writer on one SQLite file without a write-ahead log: the reader ends
// first, or the writer's COMMIT would find the file locked.
func TestG6OrderOnOneSQLiteFile(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		file := "file:" + filepath.ToSlash(filepath.Join(t.TempDir(), "test.db")) + "?_pragma=busy_timeout(0)&_pragma=journal_mode(DELETE)"
		var pools []*sql.DB
		for range 2 {
			db, err := sql.Open("sqlite", file)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			pools = append(pools, db)
		}
		if _, err := pools[0].Exec("CREATE TABLE work (id INTEGER PRIMARY KEY, note TEXT)"); err != nil {
			t.Fatal(err)
		}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: pools[0]},
			sqlreq.Binding{Key: "read", DB: pools[1], TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnly)})
		run(reg, func(ctx context.Context) error {
			sqlreqtest.Note(t, ctx, mainKey, "work")
			var n int
			if err := sqlreq.Key("read").QueryRowContext(ctx, "SELECT count(*) FROM work").Scan(&n); err != nil || n != 0 {
				t.Errorf("got %d, %v", n, err)
			}
			before(t, ctx, mainKey, func(ctx context.Context) error {
				sqlreqtest.Note(t, ctx, mainKey, "outbox")
				return nil
			})
			return nil
		}).ok(t)
		if got := sqlreqtest.Notes(t, pools[0]); got != "work outbox" {
			t.Errorf("got %q", got)
		}
	})
}
