package guarantees

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// TestG4FailBesideTheEnd: a Fail, or a RollbackOnly, that returns nil beside the end of
// the unit counts: no AfterCommit function runs then. No hook of the program lies
// between its two halves, so many rounds are needed to see them come apart.
func TestG4FailBesideTheEnd(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	for name, fail := range map[string]func(context.Context, error) error{"Fail": sqlreq.Fail, "RollbackOnly": sqlreq.RollbackOnly} {
		t.Run(name, func(t *testing.T) {
			for i := range 15000 {
				committed, got := false, make(chan error, 1)
				_ = reg.Do(t.Context(), func(ctx context.Context) error {
					_ = sqlreq.AfterCommit(ctx, func(context.Context) { committed = true })
					ready := make(chan bool)
					go func() {
						close(ready)
						for range i % 200 {
							runtime.KeepAlive(ctx)
						}
						got <- fail(ctx, sqlreqtest.ErrTest)
					}()
					<-ready
					return nil
				})
				if err := <-got; err == nil && committed {
					t.Fatalf("round %d: it returned nil, and the unit has committed", i)
				}
			}
		})
	}
}

// TestG4FailBesideTheEndOfARequestWithoutUse: also a request that has begun nothing
// fails, if Fail has returned nil.
func TestG4FailBesideTheEndOfARequestWithoutUse(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	for i := range 15000 {
		got := make(chan error, 1)
		rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ready := make(chan bool)
			go func() {
				close(ready)
				for range i % 200 {
					runtime.KeepAlive(r)
				}
				got <- sqlreq.Fail(r.Context(), sqlreqtest.ErrTest)
			}()
			<-ready
			_, _ = w.Write([]byte("done"))
		})))
		if err := <-got; (err == nil) != (rec.Code == http.StatusInternalServerError) {
			t.Fatalf("round %d: Fail returned %v, and the answer was %d", i, err, rec.Code)
		}
	}
}

// TestG4UnknownCommitOfAFailedUnit: that nobody knows what a COMMIT has stored is
// told, also if the unit has failed for another reason meanwhile.
func TestG4UnknownCommitOfAFailedUnit(t *testing.T) {
	for name, fail := range map[string]func(context.Context, error) error{"Fail": sqlreq.Fail, "RollbackOnly": sqlreq.RollbackOnly} {
		for _, inDo := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				p := fakedb.NewPoint()
				f := &fakedb.DB{Committed: func() error { p.Wait(); return io.ErrUnexpectedEOF }}
				var log sqlreqtest.Recorder
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
				log.Watch(reg)
				commit := make(chan error, 1)
				work := func(ctx context.Context) {
					sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
					go func() { commit <- sqlreq.Commit(ctx) }()
					p.Reached()
					if err := fail(ctx, sqlreq.Errorf(409, "not this one")); err != nil {
						t.Error(err)
					}
					p.Release() // the end of the unit waits for the Commit
				}
				if inDo {
					err := reg.Do(t.Context(), func(ctx context.Context) error { work(ctx); return nil })
					if !sqlreq.MayHaveCommitted(err) || sqlreq.StatusCode(err) != 409 {
						t.Errorf("Do returned %v, want both errors", err)
					}
				} else {
					sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { work(r.Context()) })))
					if !slices.ContainsFunc(log.Records(), func(r map[string]string) bool { return r["level"] == "WARN" || r["level"] == "ERROR" }) {
						t.Errorf("nothing in the log: %v", log.Records())
					}
				}
				if err := <-commit; !sqlreq.MayHaveCommitted(err) {
					t.Errorf("Commit returned %v", err)
				}
			})
		}
	}
}

// TestG4ObserveHoldsNoTurn: Observe may wait for a statement of the request that begins
// again, and may use the only connection of the pool in a Do.
func TestG4ObserveHoldsNoTurn(t *testing.T) {
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakedb.DB{}
				db := f.Open(t)
				defer db.Close()
				db.SetMaxOpenConns(1)
				reg, audit := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
				h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
					var once sync.Once
					reg.Observe = func(ctx context.Context, _ sqlreq.Event) {
						once.Do(func() {
							if err := audit.Do(ctx, func(ctx context.Context) error {
								_, err := sqlreqtest.Main.ExecContext(ctx, "AUDIT")
								return err
							}); err != nil {
								t.Error(err)
							}
							again := make(chan bool)
							go func() {
								defer close(again)
								sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "AGAIN")
							}()
							<-again
						})
					}
					end(w, r.Context())
				}))
				reg.Observe = func(context.Context, sqlreq.Event) {}
				h.ServeHTTP(hijackable{httptest.NewRecorder()}, httptest.NewRequest("GET", "/", nil).WithContext(t.Context()))
				f.CheckLog(t, "BEGIN", "INSERT", "COMMIT", "BEGIN", "AUDIT", "COMMIT", "BEGIN", "AGAIN", "COMMIT")
			})
		})
	}
}

// TestG4FailWhileHijackWaits: what has failed, or is to roll back, while a Hijack waits
// for a statement is not committed.
func TestG4FailWhileHijackWaits(t *testing.T) {
	for name, fail := range map[string]func(context.Context, error) error{"Fail": sqlreq.Fail, "RollbackOnly": sqlreq.RollbackOnly} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reached, goOn := make(chan bool), make(chan bool)
				f := &fakedb.DB{Stmt: func(_ context.Context, query string) error {
					if query == "SLOW" {
						close(reached)
						<-goOn
					}
					return nil
				}}
				db := f.Open(t)
				defer db.Close()
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
				reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					ctx, over := r.Context(), make(chan bool)
					sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
					go func() { _, _ = sqlreqtest.Main.ExecContext(ctx, "SLOW") }()
					<-reached
					go func() { defer close(over); _, _, _ = w.(http.Hijacker).Hijack() }()
					synctest.Wait() // the Hijack waits for the statement
					if err := fail(ctx, sqlreqtest.ErrTest); err != nil {
						t.Error(err)
					}
					close(goOn)
					<-over
				})).ServeHTTP(hijackable{httptest.NewRecorder()}, httptest.NewRequest("GET", "/", nil).WithContext(t.Context()))
				f.CheckLog(t, "BEGIN", "INSERT", "SLOW", "ROLLBACK")
			})
		})
	}
}
