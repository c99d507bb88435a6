// G12 Before COMMIT. While BeforeCommit functions run, Commit and Rollback of that
// database, and Hijack, return an error, whoever calls them; Commit and Rollback of
// another database return one if they are called with the function's context.

package guarantees

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// ends are the calls that are refused while functions run.
func ends(ctx context.Context, k sqlreq.Key) map[string]error {
	return map[string]error{"Commit": k.Commit(ctx), "Rollback": k.Rollback(ctx)}
}

const whileFunctionsRun = "while BeforeCommit functions run"

func TestG12EndsAreRefusedMeanwhile(t *testing.T) {
	for _, at := range []string{"end", "Commit", "Hijack"} {
		t.Run(at, func(t *testing.T) {
			j, bindings := newJournal(t, mainKey, "other", "third")
			reg := sqlreqtest.NewRegistry(t, bindings...)
			rec := httptest.NewRecorder()
			reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				for _, k := range []sqlreq.Key{mainKey, "other"} {
					sqlreqtest.Exec(t, r.Context(), k, "INSERT")
				}
				before(t, r.Context(), mainKey, func(ctx context.Context) error {
					for _, k := range []sqlreq.Key{mainKey, "other"} {
						for what, err := range ends(ctx, k) {
							refused(t, what+" of "+string(k), err, whileFunctionsRun)
						}
					}
					over := make(chan bool)
					go func() { // another goroutine, with the handler's context
						defer close(over)
						for what, err := range ends(r.Context(), mainKey) {
							refused(t, what+" by another goroutine", err, whileFunctionsRun)
						}
						if at == "Commit" { // the other database's is not under way
							if err := sqlreq.Key("other").Commit(r.Context()); err != nil {
								t.Error(err)
							}
						}
						_, _, err := http.NewResponseController(w).Hijack()
						if err == nil {
							t.Error("Hijack has succeeded")
						}
					}()
					<-over
					sqlreqtest.Exec(t, ctx, mainKey, "OUTBOX")
					return nil
				})
				switch at {
				case "Commit":
					return sqlreq.Commit(r.Context())
				case "Hijack":
					_, _, err := http.NewResponseController(w).Hijack()
					if !errors.Is(err, sqlreqtest.ErrTest) {
						t.Errorf("Hijack: got %v, want the writer's own error", err)
					}
				}
				return nil
			})).ServeHTTP(hijackable{rec}, httptest.NewRequest("POST", "/", nil))
			begin := []string{"main BEGIN", "main INSERT", "other BEGIN", "other INSERT"}
			if at == "Commit" {
				j.Check(t, append(begin, "other COMMIT", "main OUTBOX", "main COMMIT")...)
			} else {
				j.Check(t, append(begin, "main OUTBOX", "other COMMIT", "main COMMIT")...)
			}
			if rec.Code != 200 {
				t.Errorf("got %d, want 200: what was refused does not fail the request", rec.Code)
			}
		})
	}
}

// A Commit waits for no function of another Commit: it is refused, and no COMMIT
// is sent before the function has returned.
func TestG12TwoCommitsAtOnce(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		j, bindings := newJournal(t, mainKey)
		reg := sqlreqtest.NewRegistry(t, bindings...)
		run(reg, func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
			running, goOn := make(chan bool), make(chan bool)
			before(t, ctx, mainKey, func(context.Context) error {
				close(running)
				<-goOn
				j.Add("function")
				return nil
			})
			first := make(chan error)
			go func() { first <- sqlreq.Commit(ctx) }()
			<-running
			refused(t, "Commit", sqlreq.Commit(ctx), whileFunctionsRun)
			refused(t, "Rollback", sqlreq.Rollback(ctx), whileFunctionsRun)
			close(goOn)
			return <-first
		}).ok(t)
		j.Check(t, "main BEGIN", "main INSERT", "function", "main COMMIT")
	})
}

// A Rollback that waits for its turn while functions begin to run does not end the
// transaction under them: it looks again when it has the turn.
func TestG12RollbackThatWaitsForItsTurn(t *testing.T) {
	j, bindings := newJournal(t, mainKey)
	reg := sqlreqtest.NewRegistry(t, bindings...)
	asRequest(reg, func(ctx context.Context) error {
		sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
		statement := fakedb.NewPoint()
		j.On = func(_ context.Context, line string) error {
			if line == "main SLOW" {
				statement.Wait()
			}
			return nil
		}
		slow, committed, rolledBack := make(chan bool), make(chan error), make(chan error)
		go func() { sqlreqtest.Exec(t, ctx, mainKey, "SLOW"); close(slow) }()
		statement.Reached()
		before(t, ctx, mainKey, func(ctx context.Context) error {
			refused(t, "Rollback", <-rolledBack, whileFunctionsRun)
			sqlreqtest.Exec(t, ctx, mainKey, "OUTBOX")
			return nil
		})
		commits, quiet := sqlreqtest.Watch(ctx)
		go func() { committed <- sqlreq.Commit(commits) }()
		<-quiet // it has the turn, and waits for the statement
		rolls, waits := sqlreqtest.Watch(ctx)
		go func() { rolledBack <- sqlreq.Rollback(rolls) }()
		<-waits // for the turn
		statement.Release()
		err := <-committed
		<-slow
		return err
	}).ok(t)
	j.Check(t, "main BEGIN", "main INSERT", "main SLOW", "main OUTBOX", "main COMMIT")
}

// A function for a key whose Route is asked by another function runs too.
func TestG12HijackRunsThem(t *testing.T) {
	j, bindings := newJournal(t, mainKey, "routed")
	db := bindings[1].DB
	bindings[1].DB = nil
	bindings[1].Route = func(context.Context, *http.Request) (*sql.DB, error) { return db, nil }
	reg := sqlreqtest.NewRegistry(t, bindings...)
	hijacked := func(t *testing.T, fn func(context.Context) error) (int, error) {
		var err error
		rec := httptest.NewRecorder()
		reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			sqlreqtest.Exec(t, r.Context(), mainKey, "INSERT")
			before(t, r.Context(), "routed", j.Func("routed", nil))
			before(t, r.Context(), mainKey, fn)
			_, _, err = http.NewResponseController(w).Hijack()
			j.Add("hijacked")
		})).ServeHTTP(hijackable{rec}, httptest.NewRequest("GET", "/", nil))
		return rec.Code, err
	}
	_, err := hijacked(t, func(ctx context.Context) error {
		sqlreqtest.Exec(t, ctx, "routed", "OUTBOX")
		return nil
	})
	if !errors.Is(err, sqlreqtest.ErrTest) { // hijackable's own
		t.Errorf("got %v", err)
	}
	j.Check(t, "main BEGIN", "main INSERT", "routed BEGIN", "routed OUTBOX", "routed", "main COMMIT", "routed COMMIT", "hijacked")

	no := errors.New("no")
	code, err := hijacked(t, j.Func("fails", no))
	if !errors.Is(err, no) || code != 500 {
		t.Errorf("got %d and %v, want 500 and the function's error", code, err)
	}
	j.Check(t, "main BEGIN", "main INSERT", "fails", "hijacked", "main ROLLBACK")
}

// Over a real connection the function runs before the connection is taken.
func TestG12HijackOverTCP(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Note(t, r.Context(), mainKey, "work")
		before(t, r.Context(), mainKey, func(ctx context.Context) error {
			sqlreqtest.Note(t, ctx, mainKey, "outbox")
			return nil
		})
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})))
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || res.StatusCode != 200 || sqlreqtest.Notes(t, db) != "work outbox" {
		t.Errorf("got %v and %q", err, sqlreqtest.Notes(t, db))
	}
}

// A Commit whose functions run in another goroutine when the handler returns is
// waited for: no COMMIT gets ahead of a function, and what one says counts.
func TestG12CommitUnderWayAtTheEnd(t *testing.T) {
	for _, fails := range []error{nil, sqlreqtest.ErrTest} {
		asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
			synctest.Test(t, func(t *testing.T) {
				j, bindings := newJournal(t, mainKey)
				goOn, committed := make(chan bool), make(chan bool)
				u := run(sqlreqtest.NewRegistry(t, bindings...), func(ctx context.Context) error {
					sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
					running := make(chan bool)
					before(t, ctx, mainKey, func(ctx context.Context) error {
						close(running)
						<-goOn
						sqlreqtest.Exec(t, ctx, mainKey, "OUTBOX")
						return fails
					})
					go func() { _ = sqlreq.Commit(ctx); close(committed) }()
					<-running
					go func() {
						synctest.Wait() // the end of the unit waits
						close(goOn)
					}()
					return nil
				})
				<-committed
				end := "main COMMIT"
				if fails != nil {
					end = "main ROLLBACK"
				}
				if (u.err == nil) != (fails == nil) {
					t.Errorf("got %v", u.err)
				}
				j.Check(t, "main BEGIN", "main INSERT", "main OUTBOX", end)
			})
		})
	}
}

// With a context that has ended a Commit is refused, and one that ends in a function
// refuses it: nothing more runs.
func TestG12ContextOfACommitEndsInOne(t *testing.T) {
	j, bindings := newJournal(t, mainKey)
	u := asRequest(sqlreqtest.NewRegistry(t, bindings...), func(ctx context.Context) error {
		sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
		own, cancel := context.WithCancel(ctx)
		before(t, ctx, mainKey, func(context.Context) error { j.Add("first"); cancel(); return nil })
		before(t, ctx, mainKey, j.Func("never", nil))
		if err := sqlreq.Commit(own); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		return nil
	})
	if u.status != 500 {
		t.Errorf("got %d, want 500", u.status)
	}
	j.Check(t, "main BEGIN", "main INSERT", "first", "main ROLLBACK")
}

// A Hijack that waits for the turn while functions begin to run is refused too.
func TestG12HijackThatWaitsForTheTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, bindings := newJournal(t, mainKey)
		statement := fakedb.NewPoint()
		j.On = func(_ context.Context, line string) error {
			if line == "main SLOW" {
				statement.Wait()
			}
			return nil
		}
		reg := sqlreqtest.NewRegistry(t, bindings...)
		reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx := r.Context()
			sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
			go func() { sqlreqtest.Exec(t, ctx, mainKey, "SLOW") }()
			synctest.Wait()
			committed, hijacked := make(chan error), make(chan error)
			before(t, ctx, mainKey, func(ctx context.Context) error {
				refused(t, "Hijack", <-hijacked, whileFunctionsRun)
				sqlreqtest.Exec(t, ctx, mainKey, "OUTBOX")
				return nil
			})
			go func() { committed <- sqlreq.Commit(ctx) }()
			synctest.Wait() // it has the turn, and waits for the statement
			go func() { _, _, err := http.NewResponseController(w).Hijack(); hijacked <- err }()
			synctest.Wait() // it waits for the turn
			statement.Release()
			if err := <-committed; err != nil {
				t.Error(err)
			}
		})).ServeHTTP(hijackable{httptest.NewRecorder()}, httptest.NewRequest("GET", "/", nil))
		j.Check(t, "main BEGIN", "main INSERT", "main SLOW", "main OUTBOX", "main COMMIT")
	})
}

// A Hijack that cannot commit any more runs no function.
func TestG12HijackOfWhatIsLost(t *testing.T) {
	j, bindings := newJournal(t, mainKey, "other")
	reg := sqlreqtest.NewRegistry(t, bindings...)
	reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		before(t, r.Context(), "other", j.Func("never", nil))
		sqlreqtest.Exec(t, r.Context(), "other", "INSERT")
		if tx, err := sqlreq.Tx(r.Context()); err != nil || tx.Rollback() != nil {
			t.Error(err)
		}
		if _, _, err := http.NewResponseController(w).Hijack(); !errors.Is(err, sqlreq.ErrTxEnded) {
			t.Errorf("got %v, want ErrTxEnded", err)
		}
	})).ServeHTTP(hijackable{httptest.NewRecorder()}, httptest.NewRequest("GET", "/", nil))
	j.Check(t, "other BEGIN", "other INSERT", "main BEGIN", "main ROLLBACK", "other ROLLBACK")
}

// There is no moment at the end of a unit at which a function is registered and
// neither runs before COMMIT nor is refused. The moments are those at which the
// request's context is asked.
func TestG12RegisteredAtTheVeryEnd(t *testing.T) {
	for moment := 1; moment <= 6; moment++ {
		j, bindings := newJournal(t, mainKey)
		reg := sqlreqtest.NewRegistry(t, bindings...)
		asked, registered := 0, false
		var unit context.Context
		late := func() {
			if unit == nil { // the first function has not run
				return
			}
			if asked++; asked != moment {
				return
			}
			switch err := sqlreq.BeforeCommit(unit, j.Func("late", nil)); {
			case err == nil:
				registered = true
			case !errors.Is(err, sqlreq.ErrFinished):
				t.Error(err)
			}
		}
		err := reg.Do(sqlreqtest.Asked{Context: context.Background(), OnErr: late}, func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, mainKey, "INSERT")
			before(t, ctx, mainKey, func(context.Context) error { unit = ctx; return nil })
			return nil
		})
		want := []string{"main BEGIN", "main INSERT", "main COMMIT"}
		if registered {
			want = []string{"main BEGIN", "main INSERT", "late", "main COMMIT"}
		}
		if err != nil {
			t.Error(err)
		}
		j.Check(t, want...)
	}
}
