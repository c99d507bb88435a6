// G6 Binding.Tx. If a request's RELEASE fails, sqlreq goes back to the savepoint (25P02
// is PostgreSQL's everyday answer after an error that was dealt with: in production
// the next request is fine, so it must be here). Only if that fails too, because there
// is no such savepoint or transaction, or the connection is lost, is the test's
// transaction known to have ended; then every later use of it is an error that says
// so, and nothing of later requests stays behind. A Do that is open in a request's
// savepoint is waited for before that ends; one that begins later takes a turn of its
// own.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/mysqlite"
)

// testEnded reports whether err says that the test's transaction has ended.
func testEnded(err error) bool {
	return err != nil && strings.Contains(err.Error(), "the test's transaction (Binding.Tx) has ended")
}

// What ends the test's transaction on SQLite is known by the end of the request, and
// nothing of the requests that follow stays.
func TestG6BindingTxThatIsDead(t *testing.T) {
	tests := map[string]struct {
		request func(t *testing.T, ctx context.Context, leave func()) error
		code    int
	}{
		"OR ROLLBACK": {func(_ *testing.T, ctx context.Context, _ func()) error {
			_, err := sqlreqtest.Main.ExecContext(ctx, orRollback)
			return sqlreq.Errorf(409, "%w", err)
		}, 409},
		"OR ROLLBACK that was dealt with": {func(_ *testing.T, ctx context.Context, _ func()) error {
			_, _ = sqlreqtest.Main.ExecContext(ctx, orRollback)
			return nil
		}, 500},
		"OR ROLLBACK in a Savepoint": {func(_ *testing.T, ctx context.Context, _ func()) error {
			_ = sqlreq.Savepoint(ctx, func(ctx context.Context) error {
				_, err := sqlreqtest.Main.ExecContext(ctx, orRollback)
				return err
			})
			return nil
		}, 500},
		"a statement whose time is over": {func(t *testing.T, ctx context.Context, _ func()) error {
			interrupt(t, ctx)
			return nil
		}, 500},
		"a client that leaves": {func(t *testing.T, ctx context.Context, leave func()) error {
			_, err := sqlreqtest.Main.ExecContext(ctx, "INSERT INTO work (note) "+endless(leave))
			if err == nil {
				t.Error("the INSERT was not interrupted")
			}
			return err
		}, 503},
		"OR ROLLBACK in a Do": {func(t *testing.T, ctx context.Context, _ func()) error {
			return sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: testTxOf(ctx)}).Do(ctx, func(ctx context.Context) error {
				_, err := sqlreqtest.Main.ExecContext(ctx, orRollback)
				return err
			})
		}, 500},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			if _, err := db.Exec(sqlreqtest.InsertWork); err != nil { // the row with the id 1
				t.Fatal(err)
			}
			test := testTx(t, db)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test})
			client, leave := context.WithCancel(context.WithValue(t.Context(), testTxKey{}, test))
			defer leave()
			a := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "first")
				return tt.request(t, r.Context(), leave)
			})), httptest.NewRequestWithContext(client, "POST", "/", nil))
			if a.Code != tt.code {
				t.Errorf("the request that ended it: got %d, want %d", a.Code, tt.code)
			}
			for range 2 {
				var use error
				rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, use = sqlreqtest.Main.ExecContext(r.Context(), "INSERT INTO work (note) VALUES ('second')")
					if use != nil {
						w.WriteHeader(500)
					}
				})))
				if rec.Code != 500 || !testEnded(use) {
					t.Errorf("a later request: got %d, %v; want 500 and what is wrong", rec.Code, use)
				}
			}
			_ = test.Rollback() // the end of the test
			if got := sqlreqtest.Notes(t, db); got != "x" {
				t.Errorf("got rows %q after the test, want only the one from before", got)
			}
			// Another transaction of another test is none of its business.
			next := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: testTx(t, db)})
			if err := next.Do(t.Context(), sqlreqtest.Uses()["Exec"]); err != nil {
				t.Errorf("the next test: %v", err)
			}
		})
	}
}

type testTxKey struct{}

// testTxOf returns the test's transaction that a request is served with.
func testTxOf(ctx context.Context) *sql.Tx { return ctx.Value(testTxKey{}).(*sql.Tx) }

// PostgreSQL refuses the RELEASE of a request whose error was dealt with. The next
// request is as fine as it would be with a transaction of its own.
func TestG6BindingTxGoesBackWhenReleaseIsRefused(t *testing.T) {
	d := postgres("DUPLICATE", mysqlite.State("23505"))
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: testTx(t, d.Open(t))})
	var log sqlreqtest.Recorder
	log.Watch(reg)
	h := reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		log.Hooks(t, r.Context(), sqlreqtest.Main, r.URL.Path)
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
		if r.URL.Path == "/duplicate" {
			_, _ = sqlreqtest.Main.ExecContext(r.Context(), "DUPLICATE")
		}
		return nil
	}))
	for _, step := range []struct {
		path, hooks string
		code        int
	}{{"/fine", "commit/fine", 200}, {"/duplicate", "rollback/duplicate", 500}, {"/fine", "commit/fine", 200}} {
		log.Reset()
		if a := sqlreqtest.AskGet(h, step.path); a.Code != step.code || log.Words() != step.hooks {
			t.Errorf("%s: got %d, hooks %q; want %d, %q", step.path, a.Code, log.Words(), step.code, step.hooks)
		}
	}
	if n := d.Count("ROLLBACK TO"); n != 1 {
		t.Errorf("it went back %d times, want once: %q", n, d.Log())
	}
}

// A Do that is open in the savepoint of a request is waited for, before that ends;
// the next request does not share its savepoint. One that begins later takes a turn
// of its own.
func TestG6BindingTxDoThatOutlivesItsRequest(t *testing.T) {
	for _, fails := range []error{nil, sqlreqtest.ErrTest} {
		synctest.Test(t, func(t *testing.T) {
			var open []string // savepoints of the server
			d := &fakedb.DB{Stmt: func(_ context.Context, q string) error {
				switch verb, name, _ := strings.Cut(q, "SAVEPOINT "); verb {
				case "":
					open = append(open, name)
				case "RELEASE ", "ROLLBACK TO ":
					if len(open) == 0 || open[len(open)-1] != name {
						t.Errorf("%s, and on top of the server's savepoints is %q", q, open)
					}
					if verb == "RELEASE " {
						open = open[:len(open)-1]
					}
				}
				return nil
			}}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: testTx(t, d.Open(t))})
			inside, goOn, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			request := func(fn func(r *http.Request) error) <-chan int {
				code := make(chan int, 1)
				go func() {
					code <- sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error { return fn(r) }))).Code
				}()
				return code
			}
			first := request(func(r *http.Request) error {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "FIRST")
				later := context.WithoutCancel(r.Context())
				go func() {
					done <- reg.Do(later, func(ctx context.Context) error {
						sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "DO")
						close(inside)
						<-goOn
						sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "DO")
						return nil
					})
				}()
				<-inside
				return fails
			})
			<-inside
			synctest.Wait()
			second := request(func(r *http.Request) error {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "SECOND")
				return nil
			})
			synctest.Wait()
			select {
			case <-first:
				t.Error("the request has ended, and a Do is open in its savepoint")
			default:
			}
			if d.Count("SECOND") > 0 {
				t.Error("the next request has begun, and a Do is open in the savepoint of the one before")
			}
			close(goOn)
			if err := errors.Join(<-done); err != nil {
				t.Errorf("Do: %v", err)
			}
			want := 200
			if fails != nil {
				want = 500
			}
			if one, two := <-first, <-second; one != want || two != 200 {
				t.Errorf("got %d and %d, want %d and 200", one, two, want)
			}
			if len(open) > 0 {
				t.Errorf("savepoints are left: %q", open)
			}
		})
	}
}

// The end of the request waits for the Do no longer than its own context lives.
func TestG6BindingTxWaitForADoEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: testTx(t, (&fakedb.DB{}).Open(t))})
		inside, goOn, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		client, leave := context.WithCancel(t.Context())
		served := make(chan int, 1)
		go func() {
			served <- sqlreqtest.Ask(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "FIRST")
				go func() {
					done <- reg.Do(context.WithoutCancel(r.Context()), func(ctx context.Context) error {
						sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "DO")
						close(inside)
						<-goOn
						return nil
					})
				}()
				<-inside
			})), httptest.NewRequestWithContext(client, "GET", "/", nil)).Code
		}()
		synctest.Wait()
		leave()
		if code := <-served; code != 200 { // the answer had been decided
			t.Errorf("got %d, want 200", code)
		}
		close(goOn)
		<-done
	})
}

// The wait of an explicit Commit or Rollback for a Do that is open in the request's
// savepoint ends with its own context. Such a Commit is refused, and nothing of the
// request stays; such a Rollback changes nothing. A later Do nests as before.
func TestG6BindingTxWaitForADoEndsWithTheCommit(t *testing.T) {
	tests := map[string]struct {
		end    func(context.Context) error
		code   int
		events string // of the first Do, the second, and the request
		hooks  string
	}{
		"Commit":   {sqlreq.Commit, 500, "main Committed 1, main Committed 1, main RolledBack 1", "rollback"},
		"Rollback": {sqlreq.Rollback, 200, "main Committed 1, main Committed 1, main Committed 1", "commit"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: testTx(t, (&fakedb.DB{}).Open(t))})
				var log sqlreqtest.Recorder
				log.Watch(reg)
				rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					log.Hooks(t, r.Context(), sqlreqtest.Main, "")
					sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "REQUEST")
					inside, goOn, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
					go func() {
						done <- reg.Do(context.WithoutCancel(r.Context()), func(ctx context.Context) error {
							sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "DO")
							close(inside)
							<-goOn
							return nil
						})
					}()
					<-inside
					own, cancel := context.WithCancel(r.Context())
					go func() { synctest.Wait(); cancel() }()
					if err := tt.end(own); !errors.Is(err, context.Canceled) {
						t.Errorf("got %v, want that it was cancelled", err)
					}
					close(goOn)
					later := reg.Do(r.Context(), sqlreqtest.Uses()["Exec"])
					if err := errors.Join(<-done, later); err != nil {
						t.Errorf("Do: %v", err)
					}
				})))
				if rec.Code != tt.code || log.Events() != tt.events || log.Words() != tt.hooks {
					t.Errorf("got %d, events %q, hooks %q; want %d, %q, %q", rec.Code, log.Events(), log.Words(), tt.code, tt.events, tt.hooks)
				}
			})
		})
	}
}
