// G9 A retry is invisible to the client. With Retry set, a request that failed on a
// serialization conflict, a deadlock or a busy database runs again: a clone of the
// request as it arrived, its own view of the same body, fresh headers, hooks and
// transaction, after a capped, jittered backoff that stops when the client goes.
// Never after a byte of the response has left (1xx aside), a connection was hijacked,
// anything was committed (an explicit Commit, one of several databases, a Do under
// this request that committed), the body outgrew the limit, the outcome of COMMIT is
// unknown, or Within is over.

package guarantees

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// newCounter makes a database with a counter that starts at 0.
func newCounter(t testing.TB) *sql.DB {
	t.Helper()
	db := sqlreqtest.OpenDB(t)
	if _, err := db.Exec(`CREATE TABLE counter (n INTEGER); INSERT INTO counter VALUES (0)`); err != nil {
		t.Fatal(err)
	}
	return db
}

// increment reads, then writes: between is where another request may commit.
func increment(ctx context.Context, between func()) error {
	var n int
	if err := sqlreqtest.Main.QueryRowContext(ctx, "SELECT n FROM counter").Scan(&n); err != nil {
		return err
	}
	between()
	_, err := sqlreqtest.Main.ExecContext(ctx, "UPDATE counter SET n = ?", n+1)
	return err
}

func TestG9NoIncrementIsLost(t *testing.T) {
	const clients, requests = 8, 50
	db := newCounter(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	reg.Retry = sqlreq.Retry{Attempts: 100, Within: time.Hour}
	srv := sqlreqtest.Serve(t, reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		return increment(r.Context(), runtime.Gosched)
	})))
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range requests {
				if code, body, err := sqlreqtest.Get(t, srv.URL); code != 200 || err != nil {
					t.Errorf("got %d %q %v", code, body, err)
				}
			}
		})
	}
	wg.Wait()
	var n int
	if err := db.QueryRow("SELECT n FROM counter").Scan(&n); err != nil || n != clients*requests {
		t.Errorf("the counter is %d (%v), want %d", n, err, clients*requests)
	}
	sqlreqtest.Idle(t, db)
}

// Two requests read the same row before either writes: one of them must fail, or run again.
func TestG9TwoRequestsConflict(t *testing.T) {
	for attempts, want := range map[int]struct {
		codes string
		n     int
	}{1: {"200 503", 1}, 2: {"200 200", 2}} {
		t.Run(strconv.Itoa(attempts), func(t *testing.T) {
			db := newCounter(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			reg.Retry = sqlreq.Retry{Attempts: attempts, Within: time.Hour}
			read, written := make(chan struct{}), make(chan struct{})
			var slowRuns int
			slow := reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				slowRuns++
				return increment(r.Context(), func() {
					if slowRuns == 1 {
						close(read)
						<-written
					}
				})
			}))
			quick := reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				return increment(r.Context(), func() {})
			}))
			second := make(chan *httptest.ResponseRecorder)
			go func() { second <- sqlreqtest.Do(slow) }()
			<-read
			first := sqlreqtest.Do(quick)
			close(written)
			got := fmt.Sprint(first.Code, (<-second).Code)
			var n int
			if err := db.QueryRow("SELECT n FROM counter").Scan(&n); err != nil || got != want.codes || n != want.n || slowRuns != attempts {
				t.Errorf("got %s, counter %d (%v), %d runs; want %s, %d, %d", got, n, err, slowRuns, want.codes, want.n, attempts)
			}
		})
	}
}

func TestG9WhatIsRunAgain(t *testing.T) {
	type attempt struct {
		t   *testing.T
		w   http.ResponseWriter
		r   *http.Request
		reg *sqlreq.Registry
		run int
	}
	conflict := error(sqlreqtest.Conflict{})
	bound := func(reg *sqlreq.Registry) { reg.Retry.BodyLimit = 3 }
	tests := map[string]struct {
		runs    int // of 3 attempts, the third of which would succeed
		set     func(*sqlreq.Registry)
		faults  *fakedb.DB
		handler func(a attempt) error
	}{
		"conflict":   {runs: 3},
		"wrapped":    {runs: 3, handler: func(attempt) error { return sqlreq.Errorf(409, "in vain: %w", conflict) }},
		"other":      {runs: 1, handler: func(attempt) error { return sqlreqtest.ErrTest }},
		"given Fail": {runs: 3, handler: func(a attempt) error { return sqlreq.Fail(a.r.Context(), conflict) }},
		"panic":      {runs: 1, handler: func(attempt) error { panic(conflict) }},
		"answered 409": {runs: 3, handler: func(a attempt) error {
			a.w.WriteHeader(409)
			_, _ = io.WriteString(a.w, "stays inside")
			return conflict
		}},
		"answered 404 without an error": {runs: 1, handler: func(a attempt) error { a.w.WriteHeader(404); return nil }},
		"by BEGIN": {runs: 3, faults: &fakedb.DB{Begin: func(context.Context) error { return conflict }},
			handler: func(a attempt) error { _, err := sqlreq.Tx(a.r.Context()); return err }},
		"by BEGIN, answered 500": {runs: 3, faults: &fakedb.DB{Begin: func(context.Context) error { return conflict }},
			handler: func(a attempt) error { _, _ = sqlreq.Tx(a.r.Context()); a.w.WriteHeader(500); return nil }},
		"by a statement, answered 500": {runs: 3, faults: &fakedb.DB{Stmt: func(context.Context, string) error { return conflict }},
			handler: func(a attempt) error {
				_, _ = sqlreqtest.Main.ExecContext(a.r.Context(), sqlreqtest.InsertWork)
				http.Error(a.w, "broken", 500)
				return nil
			}},
		"by a statement, answered 400": {runs: 1, faults: &fakedb.DB{Stmt: func(context.Context, string) error { return conflict }},
			handler: func(a attempt) error {
				_, _ = sqlreqtest.Main.ExecContext(a.r.Context(), sqlreqtest.InsertWork)
				http.Error(a.w, "broken", 400)
				return nil
			}},
		"by COMMIT": {runs: 3, faults: &fakedb.DB{Commit: func() error { return conflict }},
			handler: func(a attempt) error { _, err := sqlreq.Tx(a.r.Context()); return err }},
		"by an explicit Commit": {runs: 3, faults: &fakedb.DB{Commit: func() error { return conflict }},
			handler: func(a attempt) error {
				_, _ = sqlreq.Tx(a.r.Context())
				_ = sqlreq.Commit(a.r.Context())
				return nil
			}},
		"held": {runs: 3, handler: func(a attempt) error {
			_, _ = io.WriteString(a.w, strings.Repeat("x", 1000))
			return conflict
		}},
		"early hints": {runs: 3, handler: func(a attempt) error {
			a.w.Header().Set("Link", "</style.css>")
			a.w.WriteHeader(103)
			return conflict
		}},
		"explicit Rollback": {runs: 3, handler: func(a attempt) error {
			sqlreqtest.Exec(a.t, a.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return errors.Join(sqlreq.Rollback(a.r.Context()), conflict)
		}},
		"savepoint": {runs: 3, handler: func(a attempt) error {
			return sqlreq.Savepoint(a.r.Context(), func(context.Context) error { return conflict })
		}},
		"a Do that was rolled back": {runs: 3, handler: func(a attempt) error {
			_ = a.reg.Do(a.r.Context(), func(ctx context.Context) error {
				sqlreqtest.Exec(a.t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
				return sqlreqtest.ErrTest
			})
			return conflict
		}},
		"body within the limit": {runs: 3, set: func(reg *sqlreq.Registry) { reg.Retry.BodyLimit = 4 }, handler: func(a attempt) error {
			_, _ = io.ReadAll(a.r.Body)
			return conflict
		}},

		"streamed": {runs: 1, set: func(reg *sqlreq.Registry) { reg.HoldLimit = 4 }, handler: func(a attempt) error {
			_, _ = io.WriteString(a.w, "12345")
			return conflict
		}},
		"flushed": {runs: 1, handler: func(a attempt) error {
			_ = http.NewResponseController(a.w).Flush()
			return conflict
		}},
		"hijacked": {runs: 1, handler: func(a attempt) error {
			conn, _, err := http.NewResponseController(a.w).Hijack()
			if err != nil {
				a.t.Error(err)
				return conflict
			}
			_ = conn.Close()
			return conflict
		}},
		"explicit Commit": {runs: 1, handler: func(a attempt) error {
			sqlreqtest.Exec(a.t, a.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return errors.Join(sqlreq.Commit(a.r.Context()), conflict)
		}},
		"one of several databases": {runs: 1, faults: &fakedb.DB{Commit: func() error { return conflict }}, handler: func(a attempt) error {
			sqlreqtest.Exec(a.t, a.r.Context(), "other", sqlreqtest.InsertWork)
			sqlreqtest.Exec(a.t, a.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return nil
		}},
		"the first of several databases": {runs: 3, faults: &fakedb.DB{Commit: func() error { return conflict }}, handler: func(a attempt) error {
			sqlreqtest.Exec(a.t, a.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			sqlreqtest.Exec(a.t, a.r.Context(), "other", sqlreqtest.InsertWork)
			return nil
		}},
		"a Do": {runs: 1, handler: func(a attempt) error {
			err := a.reg.Do(a.r.Context(), func(ctx context.Context) error {
				_, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
				return err
			})
			return errors.Join(err, conflict)
		}},
		"a Do in a Do": {runs: 1, handler: func(a attempt) error {
			err := a.reg.Do(a.r.Context(), func(ctx context.Context) error {
				return a.reg.Do(ctx, func(ctx context.Context) error {
					_, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
					return err
				})
			})
			return errors.Join(err, conflict)
		}},
		"the body outgrew the limit": {runs: 1, set: bound, handler: func(a attempt) error {
			if b, err := io.ReadAll(a.r.Body); string(b) != "body" || err != nil {
				a.t.Errorf("the handler read %q %v", b, err)
			}
			return conflict
		}},
		"a body that was not read beyond it": {runs: 3, set: bound, handler: func(a attempt) error {
			_, _ = io.ReadFull(a.r.Body, make([]byte, 2))
			return conflict
		}},
		"unknown outcome": {runs: 1,
			set:    func(reg *sqlreq.Registry) { reg.Retry.Retryable = func(error) bool { return true } },
			faults: &fakedb.DB{Committed: func() error { return driver.ErrBadConn }},
			handler: func(a attempt) error {
				_, err := sqlreq.Tx(a.r.Context())
				return err
			}},
		"unknown outcome of a conflict": {runs: 1, faults: &fakedb.DB{Commit: func() error { return errors.Join(driver.ErrBadConn, conflict) }},
			handler: func(a attempt) error {
				_, err := sqlreq.Tx(a.r.Context())
				return err
			}},
		"ended behind its back": {runs: 1, handler: func(a attempt) error {
			tx, err := sqlreq.Tx(a.r.Context())
			if err != nil {
				return err
			}
			return errors.Join(tx.Commit(), conflict)
		}},
		"Within over": {runs: 1, set: func(reg *sqlreq.Registry) {
			reg.Retry.Within, reg.Retry.Backoff = time.Hour, func(int) time.Duration { return 2 * time.Hour }
		}},
		"Within over by default": {runs: 1, set: func(reg *sqlreq.Registry) {
			reg.Retry.Within, reg.Retry.Backoff = 0, func(int) time.Duration { return 11 * time.Second }
		}},
		"not When":     {runs: 1, set: func(reg *sqlreq.Registry) { reg.Retry.When = func(r *http.Request) bool { return r.Method == "GET" } }},
		"When":         {runs: 3, set: func(reg *sqlreq.Registry) { reg.Retry.When = func(r *http.Request) bool { return r.Method == "POST" } }},
		"no Attempts":  {runs: 1, set: func(reg *sqlreq.Registry) { reg.Retry.Attempts = 0 }},
		"one attempt":  {runs: 1, set: func(reg *sqlreq.Registry) { reg.Retry.Attempts = 1 }},
		"two attempts": {runs: 2, set: func(reg *sqlreq.Registry) { reg.Retry.Attempts = 2 }},
		"custom Retryable": {runs: 3,
			set: func(reg *sqlreq.Registry) {
				reg.Retry.Retryable = func(err error) bool { return errors.Is(err, sqlreqtest.ErrTest) }
			},
			handler: func(attempt) error { return sqlreqtest.ErrTest }},
		"custom Retryable says no": {runs: 1, set: func(reg *sqlreq.Registry) { reg.Retry.Retryable = func(error) bool { return false } }},
		"client gone": {runs: 1, handler: func(a attempt) error {
			a.r.Context().Value(cancelKey{}).(context.CancelFunc)()
			return conflict
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenFaulty(t, tt.faults)
			other := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "other", DB: other})
			reg.Retry = sqlreqtest.Retries(3)
			if tt.set != nil {
				tt.set(reg)
			}
			runs := 0
			h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				if runs++; runs > tt.runs {
					t.Errorf("run %d", runs)
					return nil
				}
				if tt.handler == nil {
					return conflict
				}
				return tt.handler(attempt{t, w, r, reg, runs})
			}))
			served := make(chan struct{})
			srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(served)
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				h.ServeHTTP(w, r.WithContext(context.WithValue(ctx, cancelKey{}, cancel)))
			}))
			req, _ := http.NewRequest("POST", srv.URL, strings.NewReader("body"))
			if res, err := http.DefaultTransport.RoundTrip(req); err == nil {
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
			<-served
			if runs != tt.runs {
				t.Errorf("ran %d times, want %d", runs, tt.runs)
			}
			sqlreqtest.Idle(t, db)
			sqlreqtest.Idle(t, other)
		})
	}
}

func TestG9BackoffEndsWhenTheClientGoes(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	ctx, cancel := context.WithCancel(context.Background())
	reg.Retry = sqlreq.Retry{Attempts: 3, Within: 1000 * time.Hour, Backoff: func(int) time.Duration {
		go cancel()
		return 500 * time.Hour
	}}
	runs := 0
	reg.Middleware(sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		runs++
		return sqlreqtest.Conflict{}
	})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/", nil))
	if runs != 1 {
		t.Errorf("ran %d times, want 1", runs)
	}
}

func TestG9ExhaustedAttempts(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	var attempts []int
	reg.Retry = sqlreq.Retry{Attempts: 4, Within: time.Hour, Backoff: func(n int) time.Duration {
		attempts = append(attempts, n)
		return 0
	}}
	rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("X-Secret", "1")
		_, _ = io.WriteString(w, "half a page")
		return sqlreqtest.Conflict{}
	})))
	if rec.Code != 503 || rec.Header().Get("Retry-After") != "1" || rec.Header().Get("X-Secret") != "" || rec.Body.String() != "Service Unavailable\n" {
		t.Errorf("got %d %v %q, want a bare 503 with Retry-After: 1", rec.Code, rec.Header(), rec.Body)
	}
	if !slices.Equal(attempts, []int{1, 2, 3}) {
		t.Errorf("Backoff was given %v, want 1, 2, 3", attempts)
	}
	reg.ErrorHandler = func(_ http.ResponseWriter, _ *http.Request, err error) {
		if code := sqlreq.StatusCode(err); code != 503 || !errors.Is(err, sqlreqtest.Conflict{}) {
			t.Errorf("the ErrorHandler got %v of status %d, want the conflict and 503", err, code)
		}
	}
	sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return sqlreqtest.Conflict{} })))
}

func TestG9DoIsRunAgain(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var events sqlreqtest.Recorder
	reg.Observe = events.Observe
	reg.Retry = sqlreq.Retry{Attempts: 3, Within: time.Hour}
	var log sqlreqtest.Recorder
	runs := 0
	err := reg.Do(context.Background(), func(ctx context.Context) error {
		runs++
		log.Hooks(t, ctx, sqlreqtest.Main, strconv.Itoa(runs))
		sqlreqtest.Exec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
		if runs < 3 {
			return sqlreqtest.Conflict{}
		}
		return nil
	})
	if n := sqlreqtest.Count(t, db, "work"); err != nil || runs != 3 || n != 1 || log.Words() != "rollback1 rollback2 commit3" {
		t.Errorf("got %v after %d runs, %d rows, hooks %q", err, runs, n, log.Words())
	}
	if want := "main RolledBack 1, main RolledBack 2, main Committed 3"; events.Events() != want {
		t.Errorf("got events %q, want %q", events.Events(), want)
	}
	runs = 0
	err = reg.Do(context.Background(), func(ctx context.Context) error {
		runs++
		sqlreqtest.Exec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
		return errors.Join(sqlreq.Commit(ctx), sqlreqtest.Conflict{})
	})
	if runs != 1 || !errors.Is(err, sqlreqtest.Conflict{}) {
		t.Errorf("after a Commit: %d runs, %v", runs, err)
	}
}

// A late BEGIN has committed nothing, so that it rules out no retry.
func TestG9LateBeginIsRunAgain(t *testing.T) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	faults := &fakedb.DB{}
	db := sqlreqtest.OpenFaulty(t, faults)
	var once sync.Once
	faults.Begun = func(context.Context) { once.Do(func() { close(begun); <-goOn }) }
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	reg.Retry = sqlreqtest.Retries(2)
	runs := 0
	rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		if runs++; runs == 2 {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return nil
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		go func() {
			<-begun
			cancel()
			close(goOn)
		}()
		if _, err := sqlreq.Tx(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		return sqlreqtest.Conflict{}
	})))
	if n := sqlreqtest.Count(t, db, "work"); rec.Code != 200 || runs != 2 || n != 1 {
		t.Errorf("got %d after %d runs, %d rows; want 200 after 2, 1 row", rec.Code, runs, n)
	}
}

// A conflict that went with its savepoint is not why a request failed that says why.
func TestG9ConflictThatWasDealtWith(t *testing.T) {
	tests := map[string]struct {
		err        error
		runs, code int
	}{
		"no error":      {nil, 1, 200},
		"404":           {sqlreq.Errorf(404, "none"), 1, 404},
		"409":           {sqlreq.Errorf(409, "taken"), 1, 409},
		"hidden by 500": {sqlreqtest.ErrTest, 3, 500},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenFaulty(t, &fakedb.DB{Stmt: func(_ context.Context, query string) error {
				if query == sqlreqtest.InsertWork {
					return sqlreqtest.Conflict{}
				}
				return nil
			}})
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			reg.Retry = sqlreqtest.Retries(3)
			runs := 0
			rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				runs++
				if err := sqlreq.Savepoint(r.Context(), sqlreqtest.Statements()["ExecContext"]); !errors.Is(err, sqlreqtest.Conflict{}) {
					t.Errorf("got %v, want the conflict", err)
				}
				return tt.err
			})))
			if rec.Code != tt.code || runs != tt.runs {
				t.Errorf("got %d after %d runs, want %d after %d", rec.Code, runs, tt.code, tt.runs)
			}
		})
	}
}

// Who waited once for the pool in vain has waited long enough.
func TestG9WaitForThePoolIsNotRunAgain(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	var waits int64
	wait := func(ctx context.Context) error {
		waits++
		expiring, expire := sqlreqtest.Deadline(ctx)
		go func() {
			sqlreqtest.Pool(db, waits)
			expire()
		}()
		return sqlreqtest.Statements()["ExecContext"](expiring)
	}
	handlers := map[string]struct {
		serve func(w http.ResponseWriter, r *http.Request) error
		code  int
	}{
		"returned": {func(_ http.ResponseWriter, r *http.Request) error { return wait(r.Context()) }, 503},
		"answered 500": {func(w http.ResponseWriter, r *http.Request) error {
			_ = wait(r.Context())
			w.WriteHeader(500)
			return nil
		}, 500},
		"hidden": {func(_ http.ResponseWriter, r *http.Request) error {
			_ = wait(r.Context())
			return sqlreqtest.ErrTest
		}, 500},
	}
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	yes := func(err error) bool { return !errors.Is(err, sqlreqtest.ErrTest) }
	reg.Retry = sqlreq.Retry{Attempts: 3, Within: time.Hour, Retryable: yes, Backoff: sqlreqtest.NoBackoff}
	for name, tt := range handlers {
		runs := 0
		rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			runs++
			return tt.serve(w, r)
		})))
		if rec.Code != tt.code || runs != 1 {
			t.Errorf("%s: got %d after %d runs, want %d after 1", name, rec.Code, runs, tt.code)
		}
	}
	runs := 0
	err = reg.Do(context.Background(), func(ctx context.Context) error { runs++; return wait(ctx) })
	if !errors.Is(err, context.DeadlineExceeded) || runs != 1 {
		t.Errorf("Do: got %v after %d runs, want the deadline after 1", err, runs)
	}
}

func TestG9BindingTxIsRunAgain(t *testing.T) {
	test := testTx(t, sqlreqtest.OpenDB(t))
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test})
	reg.Retry = sqlreqtest.Retries(3)
	runs := 0
	rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		runs++
		sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, strconv.Itoa(runs))
		if runs < 3 {
			return sqlreqtest.Conflict{}
		}
		return nil
	})))
	if got := sqlreqtest.Notes(t, test); rec.Code != 200 || got != "3" {
		t.Errorf("got %d and %q, want the third attempt's", rec.Code, got)
	}
}
