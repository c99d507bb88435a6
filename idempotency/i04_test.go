package idempotency_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// gate is a handler that waits until it is told to go on, and then does as next.
type gate struct {
	next    http.Handler
	reached chan struct{} // gets a value for each call
	release chan struct{}
}

func newGate(next http.Handler) *gate {
	return &gate{next, make(chan struct{}, 100), make(chan struct{})}
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.reached <- struct{}{}
	<-g.release
	g.next.ServeHTTP(w, r)
}

func TestI4RepeatsWaitForTheFirst(t *testing.T) {
	for name, fail := range map[string]int32{"it commits": 0, "it fails": 1, "three fail": 3} {
		t.Run(name, func(t *testing.T) {
			db := open(t)
			var calls atomic.Int32
			good := new(work)
			g := newGate(handle(func(w http.ResponseWriter, r *http.Request) {
				if calls.Add(1) <= fail {
					insertWork(t, r.Context())
					http.Error(w, "no", http.StatusConflict)
					return
				}
				good.ServeHTTP(w, r)
			}))
			once := newOnce()
			var waiting atomic.Int32
			once.OnWait(func() { waiting.Add(1) })
			srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), once, g)
			var mu sync.Mutex
			got := make(map[string]int)
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					r := post(t, srv.URL, "k", "x")
					mu.Lock()
					defer mu.Unlock()
					got[r.String()]++
				})
			}
			<-g.reached
			sqlreqtest.Until(func() bool { return waiting.Load() == 7 })
			close(g.release)
			wg.Wait()
			if got["409 no"] != int(fail) || got["201 order 1"] != 1 || got["201 order 1 (replayed)"] != 7-int(fail) {
				t.Errorf("got %v", got)
			}
			rows(t, db, 1, 1)
			sqlreqtest.Idle(t, db)
		})
	}
}

// ask serves a request with the key k, without a connection.
func ask(ctx context.Context, h http.Handler) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", "/", strings.NewReader("x")).WithContext(ctx)
	r.Header.Set("Idempotency-Key", "k")
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

// inBubble runs fn with a clock that jumps, and a database that answers as it is told.
func inBubble(t *testing.T, d *fakedb.DB, once *idempotency.Once, h http.Handler, fn func(t *testing.T, h http.Handler)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
		fn(t, reg.Middleware(once.Handler(h)))
	})
}

func TestI4WaitEnds(t *testing.T) {
	for name, c := range map[string]struct {
		wait, want time.Duration
	}{"default": {0, 10 * time.Second}, "a minute": {time.Minute, time.Minute}} {
		t.Run(name, func(t *testing.T) {
			once := newOnce()
			once.Wait = c.wait
			inBubble(t, new(fakedb.DB), once, handle(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(2 * c.want) // by the clock of the bubble
			}), func(t *testing.T, h http.Handler) {
				go ask(context.Background(), h)
				synctest.Wait()
				start := time.Now()
				rec := ask(t.Context(), h)
				if rec.Code != 409 || rec.Header().Get("Retry-After") != "1" || time.Since(start) != c.want {
					t.Errorf("got %d with Retry-After %q after %v, want 409, 1, %v", rec.Code, rec.Header().Get("Retry-After"), time.Since(start), c.want)
				}
				time.Sleep(2 * c.want)
			})
		})
	}
}

func TestI4WaitInTheDatabaseEnds(t *testing.T) {
	d := &fakedb.DB{Stmt: func(ctx context.Context, q string) error {
		if strings.HasPrefix(q, "INSERT") {
			return fakedb.UntilDone(ctx)
		}
		return nil
	}}
	once := newOnce()
	once.Wait = 0 // the default
	inBubble(t, d, once, new(work), func(t *testing.T, h http.Handler) {
		start := time.Now()
		rec := ask(t.Context(), h)
		if rec.Code != 409 || rec.Header().Get("Retry-After") != "1" || time.Since(start) != 10*time.Second {
			t.Errorf("got %d after %v", rec.Code, time.Since(start))
		}
		if d.Count("ROLLBACK") != 1 || d.Count("COMMIT") != 0 {
			t.Errorf("got %q", d.Log())
		}
	})
}

func TestI4WaitForBeginIsNoConflict(t *testing.T) {
	d := &fakedb.DB{Begin: fakedb.UntilDone}
	inBubble(t, d, newOnce(), new(work), func(t *testing.T, h http.Handler) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		start := time.Now()
		if rec := ask(ctx, h); rec.Code != 503 || rec.Header().Get("Retry-After") != "1" || time.Since(start) != time.Hour {
			t.Errorf("got %d with Retry-After %q after %v, want 503 and 1", rec.Code, rec.Header().Get("Retry-After"), time.Since(start))
		}
	})
}

func TestI4WaitEndsWithTheClient(t *testing.T) {
	inBubble(t, new(fakedb.DB), newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(time.Second)
	}), func(t *testing.T, h http.Handler) {
		go ask(context.Background(), h)
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan int)
		go func() { done <- ask(ctx, h).Code }()
		synctest.Wait()
		cancel()
		if code := <-done; code != 503 {
			t.Errorf("got %d, want 503", code)
		}
		time.Sleep(time.Second)
	})
}

func TestI4ConflictOfTheClaimIsRetryable(t *testing.T) {
	for _, attempts := range []int{1, 2} {
		t.Run(fmt.Sprint("attempts=", attempts), func(t *testing.T) {
			var d fakedb.DB
			db := withTable(t, sqlreqtest.OpenFaulty(t, &d))
			failed := false
			d.Change(func(d *fakedb.DB) {
				d.Stmt = func(_ context.Context, q string) error {
					if strings.HasPrefix(q, "INSERT INTO idempotency_keys") && !failed {
						failed = true
						return sqlreqtest.Conflict{}
					}
					return nil
				}
			})
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			reg.Retry = sqlreqtest.Retries(attempts)
			srv := serve(t, reg, newOnce(), new(work))
			got := post(t, srv.URL, "k", "x")
			if attempts == 1 && (got.status != 503 || got.header.Get("Retry-After") != "1") || attempts == 2 && got.status != 201 {
				t.Errorf("got %v", got)
			}
			rows(t, db, attempts-1, attempts-1)
		})
	}
}

func TestI4SnapshotTakenBefore(t *testing.T) {
	for _, attempts := range []int{1, 2} {
		t.Run(fmt.Sprint("attempts=", attempts), func(t *testing.T) {
			db := open(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			reg.Retry = sqlreqtest.Retries(attempts)
			h := newOnce().Handler(new(work))
			other := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(newOnce().Handler(new(work)))
			snapshots := 0
			srv := sqlreqtest.Serve(t, reg.Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
				var n int
				if err := main.QueryRowContext(r.Context(), "SELECT count(*) FROM idempotency_keys").Scan(&n); err != nil {
					t.Error(err)
				}
				if snapshots++; snapshots == 1 {
					if rec := ask(t.Context(), other); rec.Code != 201 {
						t.Errorf("got %d", rec.Code)
					}
				}
				h.ServeHTTP(w, r)
			})))
			got := post(t, srv.URL, "k", "x")
			if attempts == 1 && got.status != 503 || attempts == 2 && got.String() != "201 order 1 (replayed)" {
				t.Errorf("got %v", got)
			}
			rows(t, db, 1, 1)
		})
	}
}
