// G2 Nothing ends under your feet, and who asks begins nothing: Begun is true for an
// open transaction of this unit on that key's pool and for one being begun, from the
// call that begins, the wait for the pool included, until AfterBegin has returned. It
// is false for anything else, errors and unknown keys included. Two keys of one pool
// always give the same answer.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// begun fails the test if the keys do not all give that answer.
func begun(t testing.TB, ctx context.Context, want bool, keys ...sqlreq.Key) {
	t.Helper()
	for _, k := range keys {
		if got := k.Begun(ctx); got != want {
			t.Errorf("Begun of key %q: got %t, want %t", k, got, want)
		}
	}
}

func TestG2BegunBeginsNothing(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		j, bindings := newJournal(t, mainKey, "other")
		bindings = append(bindings, sqlreq.Binding{Key: "same", DB: bindings[0].DB},
			sqlreq.Binding{Key: "routed", Route: func(context.Context, *http.Request) (*sql.DB, error) {
				t.Error("Route was asked")
				return nil, sqlreqtest.ErrTest
			}})
		reg := sqlreqtest.NewRegistry(t, bindings...)
		run(reg, func(ctx context.Context) error {
			begun(t, ctx, false, mainKey, "same", "other", "routed", "unknown", "")
			if sqlreq.Begun(ctx) {
				t.Error("it has begun")
			}
			return nil
		}).ok(t)
		j.Check(t)
	})
	begun(t, context.Background(), false, mainKey)
}

func TestG2BegunByEveryUse(t *testing.T) {
	for name, use := range sqlreqtest.Uses() {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "same", DB: db}, sqlreq.Binding{Key: "other", DB: sqlreqtest.OpenDB(t)})
			asRequest(reg, func(ctx context.Context) error {
				if err := use(ctx); err != nil {
					t.Error(err)
				}
				begun(t, ctx, true, mainKey, "same")
				begun(t, ctx, false, "other")
				if !sqlreq.Begun(ctx) {
					t.Error("it has not begun")
				}
				// A unit of its own has its own.
				return reg.Do(ctx, func(ctx context.Context) error { begun(t, ctx, false, mainKey, "same"); return nil })
			}).ok(t)
		})
	}
}

func TestG2BegunUntilTheEnd(t *testing.T) {
	ends := map[string]func(context.Context) error{"Commit": sqlreq.Commit, "Rollback": sqlreq.Rollback}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "same", DB: db})
			asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
				run(reg, func(ctx context.Context) error {
					for range 2 {
						sqlreqtest.Exec(t, ctx, mainKey, sqlreqtest.InsertWork)
						begun(t, ctx, true, mainKey, "same")
						err := sqlreq.Savepoint(ctx, func(in context.Context) error { begun(t, in, true, mainKey); begun(t, ctx, true, "same"); return nil })
						if err := errors.Join(err, end(ctx)); err != nil {
							return err
						}
						begun(t, ctx, false, mainKey, "same")
					}
					return nil
				}).ok(t)
			})
		})
	}
}

func TestG2BegunWhereNothingIsToBegin(t *testing.T) {
	asUnits(t, func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun) {
		db := sqlreqtest.OpenDB(t)
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
		reg.Observe = func(ctx context.Context, _ sqlreq.Event) { begun(t, ctx, false, mainKey) }
		var late context.Context
		run(reg, func(ctx context.Context) error {
			late = ctx
			before(t, ctx, mainKey, func(ctx context.Context) error { begun(t, ctx, true, mainKey); return nil })
			sqlreqtest.Exec(t, ctx, mainKey, sqlreqtest.InsertWork)
			return sqlreq.AfterCommit(ctx, func(in context.Context) {
				begun(t, in, false, mainKey)
				begun(t, ctx, false, mainKey)
			})
		}).ok(t)
		begun(t, late, false, mainKey)
	})
}

// beginners are where a use waits: on is called there.
var beginners = map[string]func(t *testing.T, on func(context.Context) error) sqlreq.Binding{
	"BEGIN": func(t *testing.T, on func(context.Context) error) sqlreq.Binding {
		return sqlreq.Binding{DB: (&fakedb.DB{Begin: on}).Open(t)}
	},
	"a connection": func(t *testing.T, on func(context.Context) error) sqlreq.Binding {
		return sqlreq.Binding{DB: (&fakedb.DB{Connect: on}).Open(t)}
	},
	"Guard's savepoint": func(t *testing.T, on func(context.Context) error) sqlreq.Binding {
		f := &fakedb.DB{Stmt: func(ctx context.Context, q string) error {
			if q == "SAVEPOINT sqlreq_guard" {
				return on(ctx)
			}
			return nil
		}}
		return sqlreq.Binding{DB: f.Open(t), Guard: true}
	},
	"AfterBegin": func(t *testing.T, on func(context.Context) error) sqlreq.Binding {
		return sqlreq.Binding{DB: (&fakedb.DB{}).Open(t), AfterBegin: func(ctx context.Context, _ *http.Request, _ *sql.Tx) error { return on(ctx) }}
	},
}

func TestG2BegunWhileBeingBegun(t *testing.T) {
	for name, bind := range beginners {
		for _, fails := range []error{nil, sqlreqtest.ErrTest} {
			t.Run(name, func(t *testing.T) {
				at := fakedb.NewPoint()
				b := bind(t, func(ctx context.Context) error {
					if err := at.WaitOr(ctx); err != nil {
						return err
					}
					return fails
				})
				same := b
				same.Key = "same"
				reg := sqlreqtest.NewRegistry(t, b, same)
				asRequest(reg, func(ctx context.Context) error {
					over := make(chan error)
					go func() { _, err := mainKey.Tx(ctx); over <- err }()
					at.Reached()
					begun(t, ctx, true, mainKey, "same")
					at.Release()
					if err := <-over; !errors.Is(err, fails) {
						t.Errorf("got %v, want %v", err, fails)
					}
					begun(t, ctx, fails == nil, mainKey, "same")
					return nil
				}).ok(t)
			})
		}
	}
}

// The wait for the pool is a part of it.
func TestG2BegunWhileWaitingForThePool(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	db.SetMaxOpenConns(1)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "same", DB: db})
	asRequest(reg, func(ctx context.Context) error {
		conn, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		over := make(chan error)
		go func() { _, err := sqlreq.Tx(ctx); over <- err }()
		sqlreqtest.Pool(db, 1)
		begun(t, ctx, true, mainKey, "same")
		return errors.Join(conn.Close(), <-over)
	}).ok(t)
}

// With Binding.Tx the wait for one's turn is a part of it too.
func TestG2BegunBindingTx(t *testing.T) {
	test := testTx(t, sqlreqtest.OpenDB(t))
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test}, sqlreq.Binding{Key: "same", Tx: test})
	asRequest(reg, func(ctx context.Context) error {
		begun(t, ctx, false, mainKey, "same")
		sqlreqtest.Exec(t, ctx, mainKey, sqlreqtest.InsertWork)
		begun(t, ctx, true, mainKey, "same")
		waits, waiting := sqlreqtest.Watch(context.Background())
		over := make(chan error)
		go func() {
			over <- reg.Do(waits, func(other context.Context) error {
				beginning := make(chan bool)
				go func() {
					<-waiting
					begun(t, other, true, mainKey, "same")
					if err := sqlreq.Commit(ctx); err != nil {
						t.Error(err)
					}
					close(beginning)
				}()
				_, err := sqlreq.Tx(other)
				<-beginning
				return err
			})
		}()
		return <-over
	}).ok(t)
}

// A key whose Route was not asked has none, though the pool is in use; when it was
// asked, it gives the answer of the pool.
func TestG2BegunRoutedKey(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	inRoute := func(ctx context.Context) {}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "routed", Route: func(ctx context.Context, _ *http.Request) (*sql.DB, error) {
		inRoute(ctx)
		return db, nil
	}})
	asRequest(reg, func(ctx context.Context) error {
		sqlreqtest.Exec(t, ctx, mainKey, sqlreqtest.InsertWork)
		begun(t, ctx, false, "routed")
		inRoute = func(ctx context.Context) { begun(t, ctx, true, mainKey); begun(t, ctx, false, "routed") }
		sqlreqtest.Exec(t, ctx, "routed", sqlreqtest.InsertWork)
		begun(t, ctx, true, mainKey, "routed")
		err := sqlreq.Rollback(ctx)
		begun(t, ctx, false, mainKey, "routed")
		return err
	}).ok(t)
}
