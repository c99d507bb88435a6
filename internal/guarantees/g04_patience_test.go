// G4 A rollback that the server does not answer is given up when the request's context
// has ended and two seconds have passed since it ended or since the ROLLBACK was sent,
// whichever is later: a ROLLBACK by ending the context of its BEGIN, a ROLLBACK TO by
// ending that of its own statement. Where no context ends nothing is given up. As a
// rule it counts as rolled back: hooks, Event RolledBack with the error.

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
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// silent is a database whose server has gone without a word: ROLLBACK waits for the
// end of the context that BEGIN had, as a driver that heeds it does, ROLLBACK TO for
// its own; what they were sent after is kept, with the time.
type silent struct {
	fakedb.DB
	mu     sync.Mutex
	begin  context.Context
	gaveUp []time.Duration // since start
	start  time.Time
}

func newSilent() *silent {
	s := &silent{start: time.Now()}
	s.Begin = func(ctx context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.begin = ctx
		return nil
	}
	s.Rollback = func() error {
		s.mu.Lock()
		ctx := s.begin
		s.mu.Unlock()
		return s.silence(ctx)
	}
	s.Stmt = func(ctx context.Context, q string) error {
		if strings.HasPrefix(q, "ROLLBACK TO") {
			return s.silence(ctx)
		}
		return nil
	}
	return s
}

// silence waits for the end of ctx, and notes when that was.
func (s *silent) silence(ctx context.Context) error {
	err := fakedb.UntilDone(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gaveUp = append(s.gaveUp, time.Since(s.start))
	return err
}

func (s *silent) told() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprint(s.gaveUp)
}

// In each row the client leaves after that long, and the work takes that long.
func TestG4RollbackIsGivenUp(t *testing.T) {
	tests := map[string]struct {
		leaves, returns time.Duration
		guard, inTest   bool
		savepoint       bool // goes back to one, when the work is done
		gaveUp          string
		events          string
	}{
		"while the work is done":            {leaves: time.Second, returns: time.Minute, gaveUp: "[1m2s]", events: back},
		"while ROLLBACK is waited for":      {leaves: time.Minute, returns: time.Second, gaveUp: "[1m2s]", events: back},
		"just before ROLLBACK":              {leaves: time.Second, returns: time.Second + time.Millisecond, gaveUp: "[3.001s]", events: back},
		"Guard":                             {leaves: time.Minute, returns: time.Second, guard: true, gaveUp: "[1m2s 1m4s]", events: back},
		"Binding.Tx":                        {leaves: time.Minute, returns: time.Second, inTest: true, gaveUp: "[1m2s]", events: back},
		"Binding.Tx, while the work is":     {leaves: time.Second, returns: time.Minute, inTest: true, gaveUp: "[1m2s]", events: back},
		"a Savepoint":                       {leaves: time.Minute, returns: time.Second, savepoint: true, gaveUp: "[1m2s 1m4s]", events: back},
		"a Savepoint, Guard":                {leaves: time.Minute, returns: time.Second, savepoint: true, guard: true, gaveUp: "[1m2s 1m4s 1m6s]", events: ended},
		"a Savepoint, Binding.Tx":           {leaves: time.Minute, returns: time.Second, savepoint: true, inTest: true, gaveUp: "[1m2s 1m4s]", events: back},
		"a Savepoint, the client long gone": {leaves: time.Second, returns: time.Minute, savepoint: true, gaveUp: "[1m2s 1m4s]", events: back},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSilent()
				db := s.Open(t)
				b := sqlreq.Binding{DB: db, Guard: tt.guard}
				if tt.inTest {
					test, err := db.Begin()
					if err != nil {
						t.Fatal(err)
					}
					defer func() {
						s.Change(func(d *fakedb.DB) { d.Rollback = nil })
						_ = test.Rollback()
					}()
					b = sqlreq.Binding{Tx: test}
				}
				reg := sqlreqtest.NewRegistry(t, b)
				var log sqlreqtest.Recorder
				log.Watch(reg)
				client, leave := context.WithCancel(t.Context())
				time.AfterFunc(tt.leaves, leave)
				s.start = time.Now()
				sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
					log.Hooks(t, r.Context(), sqlreqtest.Main, "")
					sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
					work := func(context.Context) error {
						time.Sleep(tt.returns) // of the bubble
						return sqlreqtest.ErrTest
					}
					if tt.savepoint {
						return sqlreq.Savepoint(r.Context(), work)
					}
					return work(r.Context())
				})), httptest.NewRequestWithContext(client, "GET", "/", nil))
				hooks := map[string]string{back: "rollback", ended: ""}[tt.events]
				if got := s.told(); got != tt.gaveUp || log.Events() != tt.events || log.Words() != hooks {
					t.Errorf("given up after %s, events %q, hooks %q; want %s, %q, %q", got, log.Events(), log.Words(), tt.gaveUp, tt.events, hooks)
				}
				if e := log.Told(); len(e) == 1 && e[0].Err == nil {
					t.Error("the Event has no error")
				}
				if n := db.Stats().InUse; n > 0 && !tt.inTest {
					t.Errorf("%d connections are in use", n)
				}
			})
		})
	}
}

// A server that answers in time is waited for, and one that answers at once costs no
// connection, also if the client has left long before.
func TestG4RollbackThatIsAnsweredIsNotGivenUp(t *testing.T) {
	for _, takes := range []time.Duration{0, time.Second, 1999 * time.Millisecond} {
		for _, guard := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				var begin context.Context
				d := &fakedb.DB{Begin: func(ctx context.Context) error { begin = ctx; return nil }, Rollback: func() error {
					time.Sleep(takes) // of the bubble
					return begin.Err()
				}}
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: guard})
				client, leave := context.WithCancel(t.Context())
				sqlreqtest.Ask(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
					leave()
					time.Sleep(time.Hour)
				})), httptest.NewRequestWithContext(client, "GET", "/", nil))
				synctest.Wait()
				if begin.Err() != nil {
					t.Errorf("Guard %t: the context of BEGIN has ended, and the ROLLBACK took %v", guard, takes)
				}
				d.CheckClean(t)
			})
		}
	}
}

// Where no context ends, nothing is given up: not with a request whose client waits,
// nor in a Do with a context that cannot end.
func TestG4RollbackIsWaitedFor(t *testing.T) {
	for name, ctx := range map[string]func(*testing.T) context.Context{
		"a client that waits":      func(t *testing.T) context.Context { return t.Context() },
		"a context without an end": func(*testing.T) context.Context { return context.Background() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var begin context.Context
				d := &fakedb.DB{Begin: func(ctx context.Context) error { begin = ctx; return nil }, Rollback: func() error {
					time.Sleep(24 * time.Hour) // of the bubble
					return begin.Err()
				}}
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
				var log sqlreqtest.Recorder
				log.Watch(reg)
				err := reg.Do(ctx(t), func(ctx context.Context) error {
					sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
					return sqlreqtest.ErrTest
				})
				if !errors.Is(err, sqlreqtest.ErrTest) || begin.Err() != nil || log.Events() != back || !errors.Is(log.Told()[0].Err, sqlreqtest.ErrTest) {
					t.Errorf("got %v, %v, events %q", err, begin.Err(), log.Events())
				}
			})
		})
	}
}

// An explicit Rollback, and one before a Hijack, are given up in the same way.
func TestG4ExplicitRollbackIsGivenUp(t *testing.T) {
	ends := map[string]func(w http.ResponseWriter, r *http.Request) error{
		"Rollback": func(_ http.ResponseWriter, r *http.Request) error {
			return sqlreq.Rollback(context.WithoutCancel(r.Context()))
		},
		"Hijack": func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(400)
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				conn.Close()
			}
			return err
		},
	}
	for name, end := range ends {
		for _, guard := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, Guard %t", name, guard), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newSilent()
					reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: s.Open(t), Guard: guard})
					var log sqlreqtest.Recorder
					log.Watch(reg)
					client, leave := context.WithCancel(t.Context())
					time.AfterFunc(time.Minute, leave)
					s.start = time.Now()
					reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
						sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
						return end(w, r)
					})).ServeHTTP(pipe{httptest.NewRecorder()}, httptest.NewRequestWithContext(client, "GET", "/", nil))
					want := "[1m2s]"
					if guard {
						want = "[1m2s 1m4s]"
					}
					if got := s.told(); got != want || log.Events() != back {
						t.Errorf("given up after %s, events %q; want %s and a rollback", got, log.Events(), want)
					}
				})
			})
		}
	}
}
