// G4 COMMIT, SAVEPOINT, RELEASE and ROLLBACK TO wait for the statements of Keys that
// are under way (from the call to its return; open rows and prepared statements are
// not), and statements that come meanwhile wait for them. What a waited-for
// statement's error says about the transaction counts. Each transaction waits for its
// own statements only. An explicit Commit's wait ends with its context: then it is
// refused. At the end of the request the wait ends when the request's context ends:
// then everything is rolled back.

package guarantees

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/mysqlite"
)

// slow is a database on which the statement SLOW waits for the point, and then
// answers with err.
func slow(point *fakedb.Point, err error) *fakedb.DB {
	return &fakedb.DB{Stmt: func(ctx context.Context, q string) error {
		if q != "SLOW" {
			return nil
		}
		if ended := point.WaitOr(ctx); ended != nil {
			return ended
		}
		return err
	}}
}

// slowStatements run the statement SLOW in each way.
var slowStatements = map[string]func(context.Context) error{
	"ExecContext": func(ctx context.Context) error {
		_, err := sqlreqtest.Main.ExecContext(ctx, "SLOW")
		return err
	},
	"QueryContext": func(ctx context.Context) error {
		rows, err := sqlreqtest.Main.QueryContext(ctx, "SLOW")
		if rows != nil {
			rows.Close()
		}
		return err
	},
	"QueryRowContext": func(ctx context.Context) error {
		row := sqlreqtest.Main.QueryRowContext(ctx, "SLOW")
		err := row.Err()
		_ = row.Scan(new(int)) // the end waits for the query, not for its row: it may have closed it
		return err
	},
	"PrepareContext": func(ctx context.Context) error {
		stmt, err := sqlreqtest.Main.PrepareContext(ctx, "SLOW")
		if stmt != nil {
			stmt.Close()
		}
		return err
	},
}

// An end is what waits for a statement under way.
type end struct {
	name    string
	waits   func(t *testing.T, w http.ResponseWriter, r *http.Request, start func(context.Context)) error
	sends   string // what must not be sent before the statement has returned
	code    int    // with a deadlock
	sound   int    // with a statement that goes well
	attempt bool   // after a deadlock of the statement nothing is committed, and Retry runs the request again
}

func endsThatWait() []end {
	start := func(r *http.Request, start func(context.Context)) { start(r.Context()) }
	return []end{
		{"end", func(_ *testing.T, _ http.ResponseWriter, r *http.Request, s func(context.Context)) error {
			start(r, s)
			return nil
		}, "COMMIT", 503, 200, true},
		{"Commit", func(t *testing.T, _ http.ResponseWriter, r *http.Request, s func(context.Context)) error {
			start(r, s)
			return sqlreq.Commit(r.Context())
		}, "COMMIT", 503, 200, true},
		{"Savepoint begins", func(t *testing.T, _ http.ResponseWriter, r *http.Request, s func(context.Context)) error {
			start(r, s)
			return sqlreq.Savepoint(r.Context(), func(context.Context) error { return nil })
		}, "SAVEPOINT sqlreq_", 503, 200, true},
		{"Savepoint is released", func(t *testing.T, _ http.ResponseWriter, r *http.Request, s func(context.Context)) error {
			return sqlreq.Savepoint(r.Context(), func(ctx context.Context) error { s(ctx); return nil })
		}, "RELEASE", 503, 200, true},
		{"Savepoint is gone back to", func(t *testing.T, _ http.ResponseWriter, r *http.Request, s func(context.Context)) error {
			_ = sqlreq.Savepoint(r.Context(), func(ctx context.Context) error { s(ctx); return sqlreqtest.ErrTest })
			return nil
		}, "ROLLBACK TO SAVEPOINT sqlreq_1", 200, 200, false},
		{"Hijack", func(t *testing.T, w http.ResponseWriter, r *http.Request, s func(context.Context)) error {
			start(r, s)
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				conn.Close()
			}
			return err
		}, "COMMIT", 503, 200, true},
	}
}

// running serves a request in which a statement runs when something ends, and
// checks that nothing is sent before the statement has returned.
func running(t *testing.T, reg *sqlreq.Registry, d *fakedb.DB, point *fakedb.Point, e end, statement func(context.Context) error) (code int, result error) {
	t.Helper()
	statements := make(chan error, 1)
	rec := httptest.NewRecorder()
	attempt := 0
	served := make(chan struct{})
	go func() {
		defer close(served)
		reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			if attempt++; attempt > 1 {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "AGAIN")
				return nil
			}
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
			return e.waits(t, w, r, func(ctx context.Context) {
				go func() { statements <- statement(ctx) }()
				point.Reached()
			})
		})).ServeHTTP(pipe{rec}, httptest.NewRequest("POST", "/", nil))
	}()
	synctest.Wait()
	if last := d.Log()[len(d.Log())-1]; !strings.HasSuffix(last, "SLOW") {
		t.Errorf("%s was sent while a statement runs", last)
	}
	point.Release()
	result = <-statements
	<-served
	return rec.Code, result
}

func TestG4StatementUnderWay(t *testing.T) {
	for _, e := range endsThatWait() {
		for name, statement := range slowStatements {
			for _, guard := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/Guard %t", e.name, name, guard), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						point := fakedb.NewPoint()
						d := slow(point, nil)
						reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: guard})
						code, err := running(t, reg, d, point, e, statement)
						if code != e.sound || err != nil {
							t.Errorf("got %d, the statement %v; want %d", code, err, e.sound)
						}
						if log := d.Log(); log[len(log)-1] != "COMMIT" || d.Count(e.sends) == 0 {
							t.Errorf("the driver was asked %q, want %s, and COMMIT as the last", log, e.sends)
						}
						d.CheckClean(t)
					})
				})
			}
		}
	}
}

// The statement that is waited for meets a deadlock, which has ended the
// transaction: nothing is committed, and there is no success.
func TestG4StatementUnderWayMeetsADeadlock(t *testing.T) {
	for _, e := range endsThatWait() {
		for name, statement := range slowStatements {
			for _, guard := range []bool{false, true} {
				for _, attempts := range []int{1, 3} {
					t.Run(fmt.Sprintf("%s/%s/Guard %t/attempts %d", e.name, name, guard, attempts), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							point := fakedb.NewPoint()
							d := slow(point, &mysqlite.MySQL{Number: 1213})
							reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: guard})
							reg.Retry = sqlreqtest.Retries(attempts)
							var log sqlreqtest.Recorder
							log.Watch(reg)
							code, err := running(t, reg, d, point, e, statement)
							if !errors.As(err, new(*mysqlite.MySQL)) {
								t.Errorf("the statement returned %v, want the deadlock", err)
							}
							want, events := e.code, "main RolledBack 1"
							switch {
							case !e.attempt: // going back to the savepoint has succeeded: the transaction is sound
								events = "main Committed 1"
							case attempts > 1:
								want, events = 200, "main RolledBack 1, main Committed 2"
							}
							if code != want || log.Events() != events {
								t.Errorf("got %d, events %q; want %d, %q", code, log.Events(), want, events)
							}
							committed := d.Count("COMMIT")
							if wantCommits := strings.Count(events, "Committed"); committed != wantCommits {
								t.Errorf("%d times COMMIT, want %d: %q", committed, wantCommits, d.Log())
							}
						})
					})
				}
			}
		}
	}
}

// statusError is the error of an answer that is no success.
func statusError(code int) error {
	if code < 400 {
		return nil
	}
	return sqlreq.Errorf(code, "answered")
}

// A statement that comes while a Commit waits for another one waits for it too, and
// begins anew.
func TestG4StatementThatComesMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		point := fakedb.NewPoint()
		d := slow(point, nil)
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
		err := reg.Do(t.Context(), func(ctx context.Context) error {
			results := make(chan error, 3)
			go func() { results <- slowStatements["ExecContext"](ctx) }()
			point.Reached()
			go func() { results <- sqlreq.Commit(ctx) }()
			synctest.Wait()
			go func() { _, err := sqlreqtest.Main.ExecContext(ctx, "NEXT"); results <- err }()
			synctest.Wait()
			d.CheckLog(t, "BEGIN", "SLOW")
			point.Release()
			return errors.Join(<-results, <-results, <-results)
		})
		if err != nil {
			t.Error(err)
		}
		d.Check(t, "BEGIN", "SLOW", "COMMIT", "BEGIN", "NEXT", "COMMIT")
	})
}

// Rows that are open, and prepared statements, are not under way; nor is what
// another key's transaction does.
func TestG4WhatIsNotWaitedFor(t *testing.T) {
	tests := map[string]func(t *testing.T, ctx context.Context, point *fakedb.Point) (undo func()){
		"open rows": func(t *testing.T, ctx context.Context, _ *fakedb.Point) func() {
			rows, err := sqlreqtest.Main.QueryContext(ctx, "SELECT")
			if err != nil {
				t.Error(err)
				return func() {}
			}
			return func() { rows.Close() }
		},
		"an open row": func(t *testing.T, ctx context.Context, _ *fakedb.Point) func() {
			row := sqlreqtest.Main.QueryRowContext(ctx, "SELECT")
			return func() { _ = row.Scan(new(int)) }
		},
		"a prepared statement": func(t *testing.T, ctx context.Context, point *fakedb.Point) func() {
			stmt, err := sqlreqtest.Main.PrepareContext(ctx, "INSERT")
			if err != nil {
				t.Error(err)
				return func() {}
			}
			return func() { stmt.Close() }
		},
		"a statement of another key": func(t *testing.T, ctx context.Context, point *fakedb.Point) func() {
			done := make(chan struct{})
			go func() {
				defer close(done)
				sqlreqtest.Exec(t, ctx, "other", "SLOW")
			}()
			point.Reached()
			return func() { point.Release(); <-done }
		},
	}
	for name, begin := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				point := fakedb.NewPoint()
				d, other := &fakedb.DB{}, slow(point, nil)
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)}, sqlreq.Binding{Key: "other", DB: other.Open(t)})
				err := reg.Do(t.Context(), func(ctx context.Context) error {
					sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
					undo := begin(t, ctx, point)
					defer undo()
					return sqlreq.Commit(ctx)
				})
				if err != nil {
					t.Error(err)
				}
				if n := d.Count("COMMIT"); n != 1 {
					t.Errorf("the driver was asked %q, want a COMMIT", d.Log())
				}
			})
		})
	}
}

// The wait for a statement ends with a context: nothing is committed then.
func TestG4WaitForAStatementIsGivenUp(t *testing.T) {
	tests := map[string]struct {
		waits  func(ctx context.Context, leave func()) error // leave ends the request's context
		code   int
		events string
	}{
		"Commit's own context": {func(ctx context.Context, _ func()) error {
			own, cancel := context.WithCancel(ctx)
			go func() { synctest.Wait(); cancel() }()
			return sqlreq.Commit(own)
		}, 500, "main RolledBack 1"},
		"Commit, the request's context": {func(ctx context.Context, leave func()) error {
			go func() { synctest.Wait(); leave() }()
			return sqlreq.Commit(context.WithoutCancel(ctx))
		}, 503, "main RolledBack 1"},
		"Savepoint's own context": {func(ctx context.Context, _ func()) error {
			own, cancel := context.WithCancel(ctx)
			go func() { synctest.Wait(); cancel() }()
			return sqlreq.Savepoint(own, func(context.Context) error { return nil })
		}, 500, "main RolledBack 1"},
	}
	for name, tt := range tests {
		for _, guard := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, Guard %t", name, guard), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					point := fakedb.NewPoint()
					d := slow(point, nil)
					reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: guard})
					var log sqlreqtest.Recorder
					log.Watch(reg)
					client, leave := context.WithCancel(t.Context())
					var refused error
					statement := make(chan error, 1)
					a := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
						log.Hooks(t, r.Context(), sqlreqtest.Main, "")
						sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
						// Its own context does not end: the driver's answer is all that it waits for.
						go func() { statement <- slowStatements["ExecContext"](context.WithoutCancel(r.Context())) }()
						point.Reached()
						refused = tt.waits(r.Context(), leave)
						point.Release()
						<-statement
						return refused
					})), httptest.NewRequestWithContext(client, "GET", "/", nil))
					if !errors.Is(refused, context.Canceled) {
						t.Errorf("got %v, want that it was cancelled", refused)
					}
					if a.Code != tt.code || log.Events() != tt.events || log.Words() != "rollback" {
						t.Errorf("got %d, events %q, hooks %q; want %d, %q and that nothing stayed", a.Code, log.Events(), log.Words(), tt.code, tt.events)
					}
					if d.Count("COMMIT") > 0 {
						t.Errorf("the driver was asked %q, want no COMMIT", d.Log())
					}
					leave()
				})
			})
		}
	}
}

// The end of a Savepoint waits for a statement in it, until the client has left: then
// the request can only roll back.
func TestG4WaitOfASavepointIsGivenUp(t *testing.T) {
	for _, fails := range []error{nil, sqlreqtest.ErrTest} {
		for _, guard := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				point := fakedb.NewPoint()
				d := slow(point, nil)
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: guard})
				var log sqlreqtest.Recorder
				log.Watch(reg)
				client, leave := context.WithCancel(t.Context())
				statement := make(chan error, 1)
				a := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
					err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
						go func() { statement <- slowStatements["ExecContext"](context.WithoutCancel(ctx)) }()
						point.Reached()
						go func() { synctest.Wait(); leave() }()
						return fails
					})
					if !errors.Is(err, context.Canceled) || !errors.Is(err, fails) && fails != nil || !strings.Contains(err.Error(), "waited in vain") {
						t.Errorf("Savepoint returned %v, want that it waited in vain", err)
					}
					point.Release()
					<-statement
					return nil
				})), httptest.NewRequestWithContext(client, "GET", "/", nil))
				if a.Code != 503 || log.Events() != back || d.Count("COMMIT") > 0 {
					t.Errorf("got %d, events %q, log %q; want 503 and a rollback", a.Code, log.Events(), d.Log())
				}
			})
		}
	}
}

// At the end of the request the client leaves while a statement of one key runs,
// which does not heed it: the transaction of the other key is rolled back at once.
func TestG4WaitForAStatementAtTheEndIsGivenUp(t *testing.T) {
	for _, guard := range []bool{false, true} {
		rolledBack, point := fakedb.NewPoint(), fakedb.NewPoint()
		one := &fakedb.DB{Rollback: func() error { rolledBack.Wait(); return nil }}
		two := &fakedb.DB{Stmt: func(_ context.Context, q string) error {
			if q == "SLOW" {
				point.Wait()
			}
			return nil
		}}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "one", DB: one.Open(t), Guard: guard}, sqlreq.Binding{DB: two.Open(t), Guard: guard})
		var log sqlreqtest.Recorder
		log.Watch(reg)
		client, leave := context.WithCancel(t.Context())
		statement, served := make(chan error, 1), make(chan sqlreqtest.Answer, 1)
		go func() {
			served <- sqlreqtest.Ask(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), "one", "INSERT")
				go func() { statement <- slowStatements["ExecContext"](context.WithoutCancel(r.Context())) }()
				point.Reached()
			})), httptest.NewRequestWithContext(client, "GET", "/", nil))
		}()
		point.Reached()
		leave()
		rolledBack.Reached() // while the statement runs
		point.Release()
		rolledBack.Release()
		<-statement
		if a := <-served; a.Code != 503 || log.Events() != "one RolledBack 1, main RolledBack 1" {
			t.Errorf("Guard %t: got %d, events %q; want 503 and that both are rolled back", guard, a.Code, log.Events())
		}
	}
}

// What ran beside a statement that met a deadlock may have run after it: it counts
// as if the *sql.Tx had been handed out, so that the outcome is unknown.
func TestG4StatementsBesideADeadlock(t *testing.T) {
	for _, guard := range []bool{false, true} {
		gone := "ROLLBACK"
		if guard {
			gone = guardCheck
		}
		point := fakedb.NewPoint()
		d := &fakedb.DB{Step: func(ctx context.Context, text string) error {
			switch text {
			case "SLOW":
				point.Wait()
				return &mysqlite.MySQL{Number: 1213}
			case gone:
				return &mysqlite.SQLite{Result: 1}
			}
			return nil
		}}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: guard})
		var log sqlreqtest.Recorder
		log.Watch(reg)
		err := reg.Do(t.Context(), func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			results := make(chan error, 2)
			go func() { results <- slowStatements["ExecContext"](ctx) }()
			point.Reached()
			// database/sql gives a connection to one call at a time: the second waits for
			// the first in it, and is sent when the deadlock has ended the transaction.
			counted := make(chan struct{})
			go func() {
				_, err := sqlreqtest.Main.ExecContext(sqlreqtest.Asked{Context: ctx, OnErr: sync.OnceFunc(func() { close(counted) })}, "BESIDE")
				results <- err
			}()
			<-counted
			point.Release()
			return errors.Join(<-results, <-results)
		})
		if !errors.Is(err, sqlreq.ErrTxEnded) || log.Events() != ended || d.Count("BESIDE") != 1 {
			t.Errorf("Guard %t: got %v, events %q after %q; want ErrTxEnded and %q", guard, err, log.Events(), d.Log(), ended)
		}
	}
}
