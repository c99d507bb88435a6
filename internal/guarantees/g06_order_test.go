// G6 With several databases this is the order: the transactions that end with ROLLBACK
// because they are read-only (one on the same SQLite file would make the writer's
// COMMIT fail); the COMMITs, adjacent, in the order of their BEGINs; then Observe for
// each in the order of their ends; then the hooks in the order of registration.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// A pool of writers and one of readers on one SQLite file with a rollback journal:
// COMMIT waits for the readers, also for that of the same request.
func TestG6ReadersAndWritersOfOneFile(t *testing.T) {
	units := map[string]func(t *testing.T, reg *sqlreq.Registry, work func(context.Context) error) error{
		"end": func(t *testing.T, reg *sqlreq.Registry, work func(context.Context) error) error {
			return statusError(sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error { return work(r.Context()) }))).Code)
		},
		"Do": func(t *testing.T, reg *sqlreq.Registry, work func(context.Context) error) error {
			return reg.Do(t.Context(), work)
		},
		"Hijack": func(t *testing.T, reg *sqlreq.Registry, work func(context.Context) error) error {
			rec := httptest.NewRecorder()
			reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				if err := work(r.Context()); err != nil {
					return err
				}
				conn, _, err := http.NewResponseController(w).Hijack()
				if err == nil {
					conn.Close()
				}
				return err
			})).ServeHTTP(pipe{rec}, httptest.NewRequest("GET", "/", nil))
			return statusError(rec.Code)
		},
		"nested": func(t *testing.T, reg *sqlreq.Registry, work func(context.Context) error) error {
			outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "other", DB: (&fakedb.DB{}).Open(t)})
			return statusError(sqlreqtest.Do(outer.Middleware(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error { return work(r.Context()) })))).Code)
		},
	}
	for name, serve := range units {
		for _, guard := range []bool{false, true} {
			for _, keys := range [][]sqlreq.Key{{"write", "read"}, {"read", "write"}} {
				t.Run(fmt.Sprintf("%s/Guard %t/%s first", name, guard, keys[0]), func(t *testing.T) {
					dsn := "file:" + filepath.ToSlash(filepath.Join(t.TempDir(), "x.db")) + "?_pragma=busy_timeout(0)"
					var pools []*sql.DB
					for range 2 {
						db, err := sql.Open("sqlite", dsn)
						if err != nil {
							t.Fatal(err)
						}
						defer db.Close()
						pools = append(pools, db)
					}
					if _, err := pools[0].Exec("CREATE TABLE work (id INTEGER PRIMARY KEY, note TEXT)"); err != nil {
						t.Fatal(err)
					}
					reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "write", DB: pools[0], Guard: guard},
						sqlreq.Binding{Key: "read", DB: pools[1], Guard: guard, TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnly)})
					err := serve(t, reg, func(ctx context.Context) error {
						for _, k := range keys {
							if k == "read" {
								var n int
								if err := k.QueryRowContext(ctx, "SELECT count(*) FROM work").Scan(&n); err != nil {
									return err
								}
								continue
							}
							sqlreqtest.Note(t, ctx, k, "x")
						}
						return nil
					})
					if n := sqlreqtest.Count(t, pools[1], "work"); err != nil || n != 1 {
						t.Errorf("got %v, %d rows; want a success", err, n)
					}
				})
			}
		}
	}
}

// Nothing of the program runs between the ends of several databases.
func TestG6OrderOfEnds(t *testing.T) {
	tests := map[string]struct {
		fails string // the key whose COMMIT fails
		code  int
		want  []string
	}{
		"all go well": {"", 200, []string{
			"b ROLLBACK", "d ROLLBACK", "c COMMIT", "a COMMIT",
			"observed b Committed", "observed d Committed", "observed c Committed", "observed a Committed",
			"hook a commit", "hook b commit", "hook c commit", "hook d commit",
		}},
		"the first COMMIT fails": {"c", 500, []string{
			"b ROLLBACK", "d ROLLBACK", "c COMMIT", "a ROLLBACK",
			"observed b Committed", "observed d Committed", "observed c CommitFailed", "observed a RolledBack",
			"hook a rollback", "hook b commit", "hook c rollback", "hook d commit",
		}},
		"the second COMMIT fails": {"a", 500, []string{
			"b ROLLBACK", "d ROLLBACK", "c COMMIT", "a COMMIT",
			"observed b Committed", "observed d Committed", "observed c Committed", "observed a CommitFailed",
			"hook a rollback", "hook b commit", "hook c commit", "hook d commit",
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var log []string
			add := func(s string) {
				mu.Lock()
				defer mu.Unlock()
				log = append(log, s)
			}
			var bindings []sqlreq.Binding
			for _, k := range []sqlreq.Key{"a", "b", "c", "d"} {
				d := &fakedb.DB{Step: func(_ context.Context, text string) error {
					if text == "COMMIT" || text == "ROLLBACK" {
						add(string(k) + " " + text)
					}
					if text == "COMMIT" && string(k) == tt.fails {
						return sqlreqtest.Conflict{}
					}
					return nil
				}}
				b := sqlreq.Binding{Key: k, DB: d.Open(t)}
				if k == "b" || k == "d" {
					b.TxOptions = sqlreqtest.Options(sqlreqtest.ReadOnly)
				}
				bindings = append(bindings, b)
			}
			reg := sqlreqtest.NewRegistry(t, bindings...)
			reg.Observe = func(_ context.Context, e sqlreq.Event) { add(fmt.Sprintf("observed %s %v", e.Key, e.Outcome)) }
			reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) { w.WriteHeader(500) }
			rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				for _, k := range []sqlreq.Key{"a", "b", "c", "d"} {
					if err := errors.Join(
						k.AfterCommit(r.Context(), func(context.Context) { add(fmt.Sprintf("hook %s commit", k)) }),
						k.AfterRollback(r.Context(), func(context.Context) { add(fmt.Sprintf("hook %s rollback", k)) }),
					); err != nil {
						t.Error(err)
					}
				}
				for _, k := range []sqlreq.Key{"b", "c", "d", "a"} {
					sqlreqtest.Exec(t, r.Context(), k, "SELECT")
				}
			})))
			if rec.Code != tt.code || !slices.Equal(log, tt.want) {
				t.Errorf("got %d,\n%s\nwant %d,\n%s", rec.Code, strings.Join(log, "\n"), tt.code, strings.Join(tt.want, "\n"))
			}
		})
	}
}
