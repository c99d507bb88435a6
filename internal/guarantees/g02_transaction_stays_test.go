// G2 Nothing ends under your feet. Only the end of the handler, Commit, Rollback and
// Hijack end a transaction. A Write, a Flush, a large response or a cancelled context
// never does: open *sql.Rows keep yielding every row while the handler streams them
// (a COMMIT under open rows ends them early on every driver, and only rows.Err()
// tells). Values read stay valid after Commit, and after Commit or Rollback the next
// use begins a new transaction.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// TestG2RowsStream: 5,000 rows of an open query, in a request that also wrote.
func TestG2RowsStream(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	if _, err := db.Exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 5000)
		INSERT INTO work (id, note) SELECT i, printf('%0100d', i) FROM n`); err != nil {
		t.Fatal(err)
	}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	for _, flush := range []int{0, 1, 100} {
		t.Run(fmt.Sprintf("Flush each %d", flush), func(t *testing.T) {
			srv := sqlreqtest.Serve(t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, `INSERT INTO parent DEFAULT VALUES`)
				rows, err := sqlreqtest.Main.QueryContext(r.Context(), "SELECT id, note FROM work ORDER BY id")
				if err != nil {
					return err
				}
				defer rows.Close()
				for n := 1; rows.Next(); n++ {
					var id int
					var note string
					if err := rows.Scan(&id, &note); err != nil {
						return err
					}
					fmt.Fprintf(w, "%d %s\n", id, note)
					if flush > 0 && n%flush == 0 {
						w.(http.Flusher).Flush()
					}
				}
				return rows.Err()
			})))
			before := sqlreqtest.Count(t, db, "parent")
			status, body, err := sqlreqtest.Get(t, srv.URL)
			lines := strings.Split(strings.TrimSuffix(body, "\n"), "\n")
			if status != 200 || err != nil || len(lines) != 5000 || !strings.HasPrefix(lines[4999], "5000 ") {
				t.Errorf("got %d, %v and %d lines, want 200 and 5000", status, err, len(lines))
			}
			if n := sqlreqtest.Count(t, db, "parent"); n != before+1 {
				t.Errorf("got %d rows written, want %d", n, before+1)
			}
			sqlreqtest.Idle(t, db)
		})
	}
}

// TestG2ValuesStay: what was read is valid after Commit, and the next use begins anew.
func TestG2ValuesStay(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	o := sqlreqtest.AskGet(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		ctx := r.Context()
		first, err := sqlreq.Tx(ctx)
		if err != nil {
			return err
		}
		res, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
		if err != nil {
			return err
		}
		var note []byte
		if err := sqlreqtest.Main.QueryRowContext(ctx, "SELECT note FROM work").Scan(&note); err != nil {
			return err
		}
		if err := sqlreq.Commit(ctx); err != nil {
			return err
		}
		if n := db.Stats().InUse; n != 0 {
			t.Errorf("got %d connections in use after Commit, want none", n)
		}
		if id, err := res.LastInsertId(); id != 1 || err != nil || string(note) != "x" {
			t.Errorf("got %d, %v, %q after Commit", id, err, note)
		}
		second, err := sqlreq.Tx(ctx)
		if err != nil || second == first {
			t.Errorf("after Commit: got the same transaction, %v", err)
		}
		sqlreqtest.Exec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
		if err := sqlreq.Rollback(ctx); err != nil {
			return err
		}
		third, err := sqlreq.Tx(ctx)
		if err != nil || third == second {
			t.Errorf("after Rollback: got the same transaction, %v", err)
		}
		sqlreqtest.Exec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
		return nil
	})), "/")
	if n := sqlreqtest.Count(t, db, "work"); o.Code != 200 || n != 2 {
		t.Errorf("got %d and %d rows, want 200 and 2", o.Code, n)
	}
	sqlreqtest.Idle(t, db)
}

// TestG2CallersContext: the end of the context that began a transaction is not
// that of the transaction.
func TestG2CallersContext(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	begin := map[string]func(context.Context) error{
		"Tx":      func(ctx context.Context) error { _, err := sqlreq.Tx(ctx); return err },
		"BeginTx": func(ctx context.Context) error { _, err := sqlreq.BeginTx(ctx, nil); return err },
		"ExecContext": func(ctx context.Context) error {
			_, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
			return err
		},
	}
	for name, f := range begin {
		for _, committed := range []bool{false, true} { // the first transaction of the request, and a later one
			t.Run(fmt.Sprintf("%s, committed before %v", name, committed), func(t *testing.T) {
				before := sqlreqtest.Count(t, db, "work")
				o := sqlreqtest.AskGet(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
					if committed {
						if err := errors.Join(f(r.Context()), sqlreq.Commit(r.Context())); err != nil {
							return err
						}
					}
					return outlives(t, r, f)
				})), "/")
				if n := sqlreqtest.Count(t, db, "work"); o.Code != 200 || n <= before {
					t.Errorf("got %d and %d more rows, want 200 and more", o.Code, n-before)
				}
				sqlreqtest.Idle(t, db)
			})
		}
	}
}

// outlives begins with a context that ends, and goes on.
func outlives(t *testing.T, r *http.Request, begin func(context.Context) error) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if err := begin(ctx); err != nil {
		return err
	}
	tx, err := sqlreq.Tx(ctx)
	if err != nil {
		return err
	}
	cancel()
	if again, err := sqlreq.Tx(r.Context()); again != tx || err != nil {
		t.Errorf("got another transaction, or %v", err)
	}
	if _, err := sqlreq.Tx(ctx); err != nil {
		t.Errorf("Tx of what is open, with a context that has ended: %v", err)
	}
	_, err = tx.ExecContext(r.Context(), sqlreqtest.InsertWork)
	return err
}

func insertBy(tx *sql.Tx, err error) error {
	if err == nil {
		_, err = tx.Exec(sqlreqtest.InsertWork)
	}
	return err
}

// otherUses add a row in all other ways.
var otherUses = map[string]func(context.Context) error{
	"Tx":      func(ctx context.Context) error { return insertBy(sqlreq.Tx(ctx)) },
	"BeginTx": func(ctx context.Context) error { return insertBy(sqlreq.BeginTx(ctx, nil)) },
	"Savepoint": func(ctx context.Context) error {
		return sqlreq.Savepoint(ctx, sqlreqtest.Statements()["ExecContext"])
	},
}

// checkTwoCommits checks that the use and the Commit beside it had a transaction each.
func checkTwoCommits(t testing.TB, rec *httptest.ResponseRecorder, db *sql.DB, events *sqlreqtest.Recorder) {
	t.Helper()
	if n := sqlreqtest.Count(t, db, "work"); rec.Code != 200 || n != 2 || events.Events() != "main Committed 1, main Committed 1" {
		t.Errorf("got %d, %d rows, events %q; want 200, 2 rows and two commits", rec.Code, n, events)
	}
	sqlreqtest.Idle(t, db)
}

// What comes while another goroutine's COMMIT runs waits for it, and begins anew.
func TestG2UseBesideACommitBeginsAnew(t *testing.T) {
	for _, uses := range []map[string]func(context.Context) error{sqlreqtest.Statements(), otherUses} {
		for name, use := range uses {
			t.Run(name, func(t *testing.T) {
				committing, goOn := make(chan struct{}), make(chan struct{})
				hold := sync.OnceFunc(func() { close(committing); <-goOn })
				db := sqlreqtest.OpenFaulty(t, &fakedb.DB{Commit: func() error { hold(); return nil }})
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
				var events sqlreqtest.Recorder
				reg.Observe = events.Observe
				rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
					committed := make(chan error, 1)
					go func() { committed <- sqlreq.Commit(r.Context()) }()
					<-committing
					release := sync.OnceFunc(func() { close(goOn) })
					if err := use(sqlreqtest.Asked{Context: r.Context(), OnDone: release}); err != nil {
						t.Errorf("got %v, want a new transaction", err)
					}
					release()
					if err := <-committed; err != nil {
						t.Errorf("Commit: %v", err)
					}
				})))
				checkTwoCommits(t, rec, db, &events)
			})
		}
	}
}

// A statement whose transaction another goroutine rolls back before it is sent was
// not run: nobody has ended anything behind sqlreq's back. (A Commit waits for it:
// TestG4StatementUnderWay.)
func TestG2StatementBehindARollbackBeginsAnew(t *testing.T) {
	for name, statement := range sqlreqtest.Statements() {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			var events sqlreqtest.Recorder
			reg.Observe = events.Observe
			rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				rollBack := sync.OnceFunc(func() {
					rolledBack := make(chan error, 1)
					go func() { rolledBack <- sqlreq.Rollback(r.Context()) }()
					if err := <-rolledBack; err != nil {
						t.Errorf("Rollback: %v", err)
					}
				})
				if err := statement(sqlreqtest.Asked{Context: r.Context(), OnErr: rollBack}); err != nil {
					t.Errorf("got %v, want a new transaction", err)
				}
			})))
			if n := sqlreqtest.Count(t, db, "work"); rec.Code != 200 || n != 1 || events.Events() != "main RolledBack 1, main Committed 1" {
				t.Errorf("got %d, %d rows, events %q; want 200, a row and a transaction for each", rec.Code, n, &events)
			}
			sqlreqtest.Idle(t, db)
		})
	}
}
