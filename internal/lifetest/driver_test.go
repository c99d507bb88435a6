package lifetest

import (
	"bufio"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// driverFake is a driver that does what it is told and remembers what it was asked.
type driverFake struct {
	begin    func(context.Context)
	exec     func(query string) error
	commit   func() error
	rollback func()

	mu    sync.Mutex
	asked []string
}

func (d *driverFake) note(what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, what)
}

func (d *driverFake) check(t testing.TB, want ...string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Equal(d.asked, want) {
		t.Errorf("the driver was asked %q, want %q", d.asked, want)
	}
}

func (d *driverFake) open(t testing.TB) *sql.DB {
	db := sql.OpenDB(d)
	t.Cleanup(func() { db.Close() })
	return db
}

func (d *driverFake) Connect(context.Context) (driver.Conn, error) { return &driverConn{d}, nil }
func (d *driverFake) Driver() driver.Driver                        { return nil }

type driverConn struct{ *driverFake }

func (c *driverConn) Prepare(string) (driver.Stmt, error) { return nil, sqlreqtest.ErrTest }
func (c *driverConn) Begin() (driver.Tx, error)           { return nil, sqlreqtest.ErrTest }
func (c *driverConn) Close() error                        { return nil }
func (c *driverConn) ResetSession(context.Context) error  { return nil }
func (c *driverConn) IsValid() bool                       { return true }

func (c *driverConn) BeginTx(ctx context.Context, _ driver.TxOptions) (driver.Tx, error) {
	c.note("BEGIN")
	if c.begin != nil {
		c.begin(ctx)
	}
	return c, nil
}

func (c *driverConn) ExecContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Result, error) {
	c.note(query)
	if c.exec != nil {
		if err := c.exec(query); err != nil {
			return nil, err
		}
	}
	return driver.RowsAffected(1), nil
}

func (c *driverConn) Commit() error {
	c.note("COMMIT")
	if c.commit != nil {
		return c.commit()
	}
	return nil
}

func (c *driverConn) Rollback() error {
	c.note("ROLLBACK")
	if c.rollback != nil {
		c.rollback()
	}
	return nil
}

// driverOnce returns f for the first call, and nothing for those after it.
func driverOnce(f func()) func() {
	var once sync.Once
	return func() { once.Do(f) }
}

// driverGone runs f in a goroutine, until it returns, panics or exits.
func driverGone(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }()
		f()
	}()
	<-done
}

// What was begun is ended also if what belongs to the BEGIN does not return.
func TestG4DriverPanicsAfterBegin(t *testing.T) {
	t.Run("Guard", func(t *testing.T) {
		d := &driverFake{}
		d.exec = func(string) error { panic("driver") }
		db := d.open(t)
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, Guard: true})
		driverGone(func() {
			lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = sqlreq.Tx(r.Context()) })))
		})
		d.check(t, "BEGIN", "SAVEPOINT sqlreq_guard", "ROLLBACK")
		lifeIdle(t, db)
	})
	t.Run("Binding.Tx", func(t *testing.T) {
		d := &driverFake{}
		tx, err := d.open(t).Begin()
		if err != nil {
			t.Fatal(err)
		}
		once := driverOnce(func() { panic("driver") })
		d.exec = func(string) error { once(); return nil }
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: tx})
		use := func(ctx context.Context) error {
			_, err := sqlreq.Tx(ctx)
			return err
		}
		driverGone(func() { _ = reg.Do(context.Background(), use) })
		if err := reg.Do(context.Background(), use); err != nil { // the turn was given back
			t.Errorf("the next one got %v", err)
		}
	})
}

// A BEGIN that comes too late is rolled back. If that, or Observe, does not
// return, the next use of the database begins anew all the same.
func TestG4LateBeginWhoseEndDoesNotReturn(t *testing.T) {
	t.Run("ROLLBACK panics", func(t *testing.T) {
		// database/sql rolls a late transaction back as well, and the first of the two
		// sends the ROLLBACK: it is tried until that is the request.
		for tries := 1; ; tries++ {
			var panicked atomic.Bool
			d := &driverFake{}
			once := driverOnce(func() {
				if !driverByDatabaseSQL() {
					panicked.Store(true)
					panic("driver")
				}
			})
			lateBegin(t, d, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.open(t)}), once)
			if panicked.Load() {
				return
			}
			if tries == 10_000 {
				t.Fatalf("the request sent no ROLLBACK in %d tries", tries)
			}
		}
	})
	t.Run("Observe exits", func(t *testing.T) {
		d := &driverFake{}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.open(t)})
		exit := driverOnce(runtime.Goexit)
		reg.Observe = func(context.Context, sqlreq.Event) { exit() }
		lateBegin(t, d, reg, func() {})
	})
}

// lateBegin serves a request whose first BEGIN succeeds when its context has
// ended, and which uses the database again. rollback is called by each ROLLBACK.
func lateBegin(t *testing.T, d *driverFake, reg *sqlreq.Registry, rollback func()) {
	t.Helper()
	rolledBack := make(chan struct{})
	told := sync.OnceFunc(func() { close(rolledBack) })
	d.rollback = func() { told(); rollback() }
	lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		d.begin = func(wait context.Context) {
			cancel()
			<-wait.Done()
		}
		driverGone(func() { _, _ = sqlreq.Tx(ctx) })
		d.begin = nil
		<-rolledBack
		if _, err := sqlreq.Tx(r.Context()); err != nil {
			t.Errorf("the next use got %v", err)
		}
	})))
	d.check(t, "BEGIN", "ROLLBACK", "BEGIN", "COMMIT")
}

// driverByDatabaseSQL reports whether the driver is called by the goroutine in
// which database/sql waits for the end of a transaction's context. A panic there
// ends the process.
func driverByDatabaseSQL() bool {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs)])
	for {
		frame, more := frames.Next()
		if frame.Function == "database/sql.(*Tx).awaitDone" {
			return true
		}
		if !more {
			return false
		}
	}
}

// A driver that keeps the context of BEGIN (pgx does) finds it alive at COMMIT,
// though the client goes meanwhile.
func TestG4ContextOfBeginStaysAlive(t *testing.T) {
	d := &driverFake{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.open(t)})
	ctx, cancel := context.WithCancelCause(context.Background())
	var kept, derived context.Context
	d.begin = func(wait context.Context) {
		kept = wait
		var stop context.CancelFunc
		derived, stop = context.WithCancel(wait)
		t.Cleanup(stop)
	}
	d.commit = func() error {
		cancel(sqlreqtest.ErrTest)
		for name, c := range map[string]context.Context{"kept": kept, "derived": derived} {
			if c.Err() != nil || context.Cause(c) != nil {
				t.Errorf("%s: Err %v, Cause %v", name, c.Err(), context.Cause(c))
			}
		}
		return kept.Err()
	}
	rec := httptest.NewRecorder()
	reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := sqlreq.Tx(r.Context()); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusCreated)
	})).ServeHTTP(rec, httptest.NewRequest("POST", "/", nil).WithContext(ctx))
	if rec.Code != http.StatusCreated {
		t.Errorf("got %d, want 201", rec.Code)
	}
	d.check(t, "BEGIN", "COMMIT")
}

// The handler's request is a request as any other, also to the runtime.
func TestFinalizerOfTheRequest(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&driverFake{}).open(t)})
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		runtime.SetFinalizer(r, func(*http.Request) {}) // throws, if it was not allocated by itself or first in its block
		runtime.SetFinalizer(r, nil)
	})))
	if rec.Code != 200 {
		t.Errorf("got %d", rec.Code)
	}
}

// The wait for BEGIN ends with the request, also if the context that it was
// called with does not.
func TestBeginEndsWithTheRequest(t *testing.T) {
	for _, early := range []bool{true, false} {
		d := &driverFake{}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.open(t)})
		ctx, cancel := context.WithCancel(context.Background())
		var want []string
		if early {
			cancel()
		} else {
			want = []string{"BEGIN", "ROLLBACK"}
			d.begin = func(wait context.Context) {
				cancel()
				<-wait.Done()
			}
		}
		rec := httptest.NewRecorder()
		reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if _, err := sqlreq.Tx(context.WithoutCancel(r.Context())); !errors.Is(err, context.Canceled) {
				t.Errorf("ended before: %v: got %v, want that the context was cancelled", early, err)
			}
		})).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil).WithContext(ctx))
		d.check(t, want...)
	}
}

// A transaction whose end panics fails the request, though the handler recovers;
// what is known of it goes with it, and the next use begins anew.
func TestG4BrokenTransactionWhoseRollbackPanics(t *testing.T) {
	d := &driverFake{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.open(t)})
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		d.exec = func(string) error {
			cancel()
			return sqlreqtest.ErrTest
		}
		if _, err := sqlreqtest.Main.ExecContext(ctx, "INSERT"); !errors.Is(err, sqlreqtest.ErrTest) {
			t.Errorf("got %v", err)
		}
		d.exec = nil
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), "INSERT"); err == nil {
			t.Error("a statement ran on a transaction that may have ended")
		}
		d.rollback = driverOnce(func() { panic("driver") })
		driverGone(func() { _ = sqlreq.Rollback(r.Context()) })
		lifeExec(t, r.Context(), sqlreqtest.Main, "UPDATE")
	})))
	if rec.Code != 500 {
		t.Errorf("got %d, want 500", rec.Code)
	}
	d.check(t, "BEGIN", "INSERT", "ROLLBACK", "BEGIN", "UPDATE", "ROLLBACK")
}

// Nobody knows whether a COMMIT that panicked has worked: no success, whatever the
// handler answers, no hook of either kind, and no second attempt.
func TestG1CommitPanicsAndTheHandlerRecovers(t *testing.T) {
	for _, status := range []int{201, 404} {
		d := &driverFake{commit: func() error { panic("driver") }}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.open(t)})
		reg.Retry = sqlreq.Retry{Attempts: 3, Within: time.Hour, Backoff: lifeNoBackoff, Retryable: func(error) bool { return true }}
		var got *sqlreq.CommitError
		var log lifeLog
		reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
			errors.As(err, &got)
			w.WriteHeader(sqlreq.StatusCode(err))
		}
		rec := lifeDo(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			lifeExec(t, r.Context(), sqlreqtest.Main, "INSERT")
			log.hooks(t, r.Context(), sqlreqtest.Main, "")
			driverGone(func() { _ = sqlreq.Commit(r.Context()) })
			w.WriteHeader(status)
		})))
		if log.String() != "" {
			t.Errorf("%d: hooks ran: %s", status, &log)
		}
		if rec.Code < 500 || got == nil || !got.Ambiguous {
			t.Errorf("%d: got %d and %v, want a CommitError of unknown outcome", status, rec.Code, got)
		}
		d.check(t, "BEGIN", "INSERT", "COMMIT")
	}
}

// ErrFinished comes before what is wrong with a key.
func TestG7UnknownKeyAfterTheEnd(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&driverFake{}).open(t)})
	var ctx context.Context
	lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { ctx = r.Context() })))
	for name, err := range map[string]error{
		"Tx":          foundTx(sqlreq.Key("none").Tx(ctx)),
		"Commit":      sqlreq.Key("none").Commit(ctx),
		"AfterCommit": sqlreq.Key("none").AfterCommit(ctx, func(context.Context) {}),
	} {
		if !errors.Is(err, sqlreq.ErrFinished) {
			t.Errorf("%s: got %v, want ErrFinished", name, err)
		}
	}
}

// Options that are the driver's defaults are no other options than none.
func TestG6KeysOfAPoolWithDefaultOptions(t *testing.T) {
	d := &driverFake{}
	db := d.open(t)
	defaults := func(context.Context, *http.Request) *sql.TxOptions { return &sql.TxOptions{} }
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "other", DB: db, TxOptions: defaults})
	for _, keys := range [][]sqlreq.Key{{sqlreqtest.Main, "other"}, {"other", sqlreqtest.Main}} {
		lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			for _, k := range keys {
				lifeExec(t, r.Context(), k, "INSERT")
			}
		})))
	}
	d.check(t, "BEGIN", "INSERT", "INSERT", "COMMIT", "BEGIN", "INSERT", "INSERT", "COMMIT")
}

// driverHijackable is a response that could be hijacked, if it came to that.
type driverHijackable struct{ *httptest.ResponseRecorder }

func (driverHijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return nil, nil, sqlreqtest.ErrTest
}

// Of two databases that a Hijack commits the second one panics: the error tells
// that the first one is committed.
func TestG6CommitOfTheSecondPanics(t *testing.T) {
	first, second := &driverFake{}, &driverFake{commit: func() error { panic("driver") }}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: first.open(t)}, sqlreq.Binding{Key: "second", DB: second.open(t)})
	var got *sqlreq.CommitError
	reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
		errors.As(err, &got)
		w.WriteHeader(sqlreq.StatusCode(err))
	}
	rec := httptest.NewRecorder()
	reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lifeExec(t, r.Context(), sqlreqtest.Main, "INSERT")
		lifeExec(t, r.Context(), "second", "INSERT")
		driverGone(func() { _, _, _ = http.NewResponseController(w).Hijack() })
	})).ServeHTTP(driverHijackable{rec}, httptest.NewRequest("GET", "/", nil))
	if rec.Code != 500 || got == nil || got.Key != "second" || !got.Ambiguous || !slices.Equal(got.Committed, []sqlreq.Key{sqlreqtest.Main}) {
		t.Errorf("got %d and %+v, want 500 and that the first one is committed", rec.Code, got)
	}
	first.check(t, "BEGIN", "INSERT", "COMMIT")
	second.check(t, "BEGIN", "INSERT", "COMMIT")
}
