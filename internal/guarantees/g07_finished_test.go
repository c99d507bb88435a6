// G7 Finished is finished. After the request, everything that would use its
// transaction returns ErrFinished from whatever goroutine; nothing can begin a
// transaction that nobody will end. A Write after the end goes to the underlying
// writer while that is this request's, is an error afterwards, and never reaches
// another request.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
	"weak"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// TestG7Finished: after the request everything that would use its transaction
// returns ErrFinished, from whatever goroutine.
func TestG7Finished(t *testing.T) {
	f := &fakedb.DB{}
	for _, used := range []bool{false, true} {
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
		var ctx context.Context
		o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx = context.WithoutCancel(r.Context())
			if used {
				sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
			}
		})), "/")
		if o.Code != 200 {
			t.Errorf("got %d, want 200", o.Code)
		}
		uses := sqlreqtest.Uses()
		uses["Commit"] = sqlreq.Commit
		uses["Rollback"] = sqlreq.Rollback
		uses["Fail"] = func(ctx context.Context) error { return sqlreq.Fail(ctx, sqlreqtest.ErrTest) }
		uses["AfterCommit"] = func(ctx context.Context) error { return sqlreq.AfterCommit(ctx, func(context.Context) {}) }
		uses["AfterRollback"] = func(ctx context.Context) error { return sqlreq.AfterRollback(ctx, func(context.Context) {}) }
		for name, use := range uses {
			got := make(chan error)
			go func() { got <- use(ctx) }()
			if err := <-got; !errors.Is(err, sqlreq.ErrFinished) || !strings.Contains(err.Error(), "Registry.Do(context.WithoutCancel(ctx)") {
				t.Errorf("%s (used %v): got %v, want ErrFinished", name, used, err)
			}
		}
		if err := reg.Do(ctx, func(ctx context.Context) error { _, err := sqlreq.Tx(ctx); return err }); err != nil {
			t.Errorf("Do after the request: %v", err)
		}
	}
	f.Check(t, "BEGIN", "COMMIT", "BEGIN", "INSERT", "COMMIT", "BEGIN", "COMMIT")
}

// TestG7StatementOvertaken: the request ends after a statement of another
// goroutine has found the transaction, and before it runs; the client has left, so
// that the end does not wait for it.
func TestG7StatementOvertaken(t *testing.T) {
	for name, use := range sqlreqtest.Uses() {
		if name == "Tx" || name == "BeginTx" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			f := &fakedb.DB{}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
			ready, finished, result := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			client, leave := context.WithCancel(t.Context())
			sqlreqtest.Ask(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := sqlreq.Tx(r.Context()); err != nil {
					t.Error(err)
				}
				ctx := sqlreqtest.Asked{Context: context.WithoutCancel(r.Context()), OnErr: sync.OnceFunc(func() { close(ready); <-finished })}
				if name == "Savepoint" { // is through the gate by then, which the end waits for
					ctx.OnErr = sync.OnceFunc(func() { close(ready) })
				}
				go func() { result <- use(ctx) }()
				<-ready
				leave()
			})), httptest.NewRequestWithContext(client, "GET", "/", nil))
			close(finished)
			if err := <-result; err != nil && !errors.Is(err, sqlreq.ErrFinished) {
				t.Errorf("got %v, want ErrFinished", err)
			} else if err == nil && name != "Savepoint" {
				t.Error("got nil, want ErrFinished")
			}
		})
	}
}

// TestG7Race: uses of many goroutines race with the end of the request.
func TestG7Race(t *testing.T) {
	f := &fakedb.DB{}
	db := f.Open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "routed", Route: func(context.Context, *http.Request) (*sql.DB, error) { return db, nil }})
	uses := sqlreqtest.Uses()
	uses["routed"] = func(ctx context.Context) error { _, err := sqlreq.Key("routed").Tx(ctx); return err }
	uses["Commit"] = sqlreq.Commit
	uses["Rollback"] = sqlreq.Rollback
	for round := range 300 {
		var all sync.WaitGroup
		sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			started := make(chan struct{})
			for name, use := range uses {
				all.Go(func() {
					started <- struct{}{}
					for range 3 {
						err := use(context.WithoutCancel(r.Context()))
						if errors.Is(err, sqlreq.ErrTxEnded) && (name == "Tx" || name == "routed") {
							t.Errorf("round %d, %s: got %v, though nobody ended it through *sql.Tx", round, name, err)
						}
					}
				})
			}
			for range uses {
				<-started
			}
		})), "/")
		all.Wait()
		// database/sql itself rolls back a BEGIN that was cancelled, in a goroutine of its own.
		sqlreqtest.Until(func() bool { return db.Stats().InUse == 0 })
	}
	f.CheckClean(t)
}

// TestG7BeginUnderWay: a BEGIN that the handler did not wait for is rolled back
// when it succeeds after all.
func TestG7BeginUnderWay(t *testing.T) {
	beginning, release := make(chan struct{}), make(chan struct{})
	f := &fakedb.DB{Step: func(_ context.Context, stmt string) error {
		if stmt == "BEGIN" {
			close(beginning)
			<-release
		}
		return nil
	}}
	db := f.Open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	result := make(chan error, 1)
	o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		go func() { _, err := sqlreq.Tx(r.Context()); result <- err }()
		<-beginning
		w.WriteHeader(201)
	})), "/")
	close(release)
	if err := <-result; !errors.Is(err, sqlreq.ErrFinished) {
		t.Errorf("Tx: got %v, want ErrFinished", err)
	}
	if o.Code != 201 {
		t.Errorf("got %d, want 201", o.Code)
	}
	sqlreqtest.Until(func() bool { return db.Stats().InUse == 0 })
	f.Check(t, "BEGIN", "ROLLBACK")
}

// TestG7LateGoroutineOfATimeout: http.TimeoutHandler answers while the handler
// still runs; its statements must find the end.
func TestG7LateGoroutineOfATimeout(t *testing.T) {
	f := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
	answered, result := make(chan struct{}), make(chan error, 1)
	var expire func()
	late := http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := context.WithoutCancel(r.Context())
		sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
		expire()
		<-answered
		_, err := sqlreqtest.Main.ExecContext(ctx, "INSERT")
		result <- err
	}), time.Hour, "too late")
	o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var ctx context.Context
		ctx, expire = sqlreqtest.Deadline(r.Context())
		late.ServeHTTP(w, r.WithContext(ctx))
	})), "/")
	close(answered)
	if err := <-result; !errors.Is(err, sqlreq.ErrFinished) {
		t.Errorf("got %v, want ErrFinished", err)
	}
	if o.Code != 503 || o.Body.String() != "too late" {
		t.Errorf("got %d %q, want TimeoutHandler's 503", o.Code, o.Body)
	}
	f.Check(t, "BEGIN", "INSERT", "ROLLBACK")
}

// Whatever the driver calls its cancelled BEGIN, the request is over.
func TestG7BeginUnderWayAtTheEnd(t *testing.T) {
	own := errors.New("canceling statement due to user request")
	begins := map[string]func(context.Context) error{
		"error of the context": func(ctx context.Context) error { return ctx.Err() },
		"error of the driver":  func(context.Context) error { return own },
		"BEGIN succeeds":       func(context.Context) error { return nil },
	}
	for name, begin := range begins {
		for _, use := range []string{"Tx", "BeginTx", "Savepoint"} {
			t.Run(name+", "+use, func(t *testing.T) {
				beginning := make(chan struct{})
				db := sqlreqtest.OpenFaulty(t, &fakedb.DB{Begin: func(ctx context.Context) error {
					close(beginning)
					<-ctx.Done()
					return begin(ctx)
				}})
				beginAtTheEnd(t, db, otherUses[use], func() { <-beginning })
				if n := sqlreqtest.Count(t, db, "work"); n != 0 {
					t.Errorf("%d rows, want none", n)
				}
			})
		}
	}
	for name, use := range sqlreqtest.Statements() {
		t.Run("pool, "+name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			db.SetMaxOpenConns(1)
			conn, err := db.Conn(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			beginAtTheEnd(t, db, use, func() { sqlreqtest.Pool(db, 1) })
		})
	}
}

func beginAtTheEnd(t *testing.T, db *sql.DB, use func(context.Context) error, underWay func()) {
	t.Helper()
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	got := make(chan error, 1)
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		go func() { got <- use(context.WithoutCancel(r.Context())) }()
		underWay()
	})))
	if err := <-got; !errors.Is(err, sqlreq.ErrFinished) || rec.Code != 200 {
		t.Errorf("got %d and %v, want 200 and ErrFinished", rec.Code, err)
	}
}

func TestG7DBOfARouteAfterTheEnd(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	asked := 0
	route := func(context.Context, *http.Request) (*sql.DB, error) { asked++; return db, nil }
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Route: route}, sqlreq.Binding{Key: "other", Route: route})
	check := func(when string, ctx context.Context) {
		if got, err := sqlreq.DB(ctx); got != db || err != nil {
			t.Errorf("%s: got %v, want the pool", when, err)
		}
	}
	var ctx context.Context
	sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		ctx = r.Context()
		check("in the handler", ctx)
		if err := sqlreq.AfterCommit(ctx, func(ctx context.Context) { check("in a hook", ctx) }); err != nil {
			t.Error(err)
		}
	})))
	check("after the request", ctx)
	if _, err := sqlreq.Key("other").DB(ctx); !errors.Is(err, sqlreq.ErrFinished) || asked != 1 {
		t.Errorf("a Route not asked: got %v, %d asked; want ErrFinished, 1", err, asked)
	}
}

// net/http gives the buffer of a response that is over to another one.
func TestG7LateWriteReachesNoOtherRequest(t *testing.T) {
	writes := map[string]func(http.ResponseWriter) (int64, error){
		"Write":       func(w http.ResponseWriter) (int64, error) { n, err := w.Write([]byte("late")); return int64(n), err },
		"WriteString": func(w http.ResponseWriter) (int64, error) { n, err := io.WriteString(w, "late"); return int64(n), err },
		"ReadFrom": func(w http.ResponseWriter) (int64, error) {
			return w.(io.ReaderFrom).ReadFrom(strings.NewReader("late"))
		},
	}
	type response struct {
		w   http.ResponseWriter
		ctx context.Context
	}
	for _, attempts := range []int{1, 2} {
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
		reg.Retry.Attempts = attempts
		kept := make(chan response, 1)
		srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, "in ")
			if r.URL.Path == "/first" {
				kept <- response{w, r.Context()}
				return
			}
			first := <-kept
			<-first.ctx.Done()
			for name, write := range writes {
				if n, err := write(first.w); n != 0 || err == nil {
					t.Errorf("%d attempts: %s: got %d, %v, want an error", attempts, name, n, err)
				}
			}
			_, _ = io.WriteString(w, "time")
		})))
		for _, ask := range []struct{ path, want string }{{"/first", "in "}, {"/second", "in time"}} {
			if code, body, err := sqlreqtest.Get(t, srv.URL+ask.path); code != 200 || body != ask.want || err != nil {
				t.Errorf("%d attempts: %s: got %d %q %v, want %q", attempts, ask.path, code, body, err, ask.want)
			}
		}
	}
}

// ErrFinished comes before what is wrong with a key.
func TestG7UnknownKeyAfterTheEnd(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	var ctx context.Context
	sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { ctx = r.Context() })))
	for name, err := range map[string]error{
		"Tx":          insertBy(sqlreq.Key("none").Tx(ctx)),
		"Commit":      sqlreq.Key("none").Commit(ctx),
		"AfterCommit": sqlreq.Key("none").AfterCommit(ctx, func(context.Context) {}),
	} {
		if !errors.Is(err, sqlreq.ErrFinished) {
			t.Errorf("%s: got %v, want ErrFinished", name, err)
		}
	}
}

// The wait for BEGIN ends with the request, also if the context that it was
// called with does not.
func TestG7BeginEndsWithTheRequest(t *testing.T) {
	for _, early := range []bool{true, false} {
		d := &fakedb.DB{}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
		ctx, cancel := context.WithCancel(context.Background())
		var want []string
		if early {
			cancel()
		} else {
			want = []string{"BEGIN", "ROLLBACK"}
			d.Begin = func(wait context.Context) error {
				cancel()
				<-wait.Done()
				return nil
			}
		}
		rec := httptest.NewRecorder()
		reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if _, err := sqlreq.Tx(context.WithoutCancel(r.Context())); !errors.Is(err, context.Canceled) {
				t.Errorf("ended before: %v: got %v, want that the context was cancelled", early, err)
			}
		})).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil).WithContext(ctx))
		d.CheckLog(t, want...)
	}
}

// Who waits for another goroutine's BEGIN waits no longer than the request, also
// with a context that lives on.
func TestG7WaiterEndsWithTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which tells if it waits for ever
		point := fakedb.NewPoint()
		d := &fakedb.DB{Begin: func(context.Context) error { point.Wait(); return nil }}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
		ctx, leave := context.WithCancel(context.Background())
		defer leave()
		reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			beginner, waiter := make(chan error, 1), make(chan error, 1)
			begin := func(got chan error) {
				_, err := sqlreq.Tx(context.WithoutCancel(r.Context()))
				got <- err
			}
			go begin(beginner)
			point.Reached()
			go begin(waiter)
			synctest.Wait()
			leave()
			if err := <-waiter; !errors.Is(err, context.Canceled) {
				t.Errorf("the waiter got %v, want that the request was cancelled", err)
			}
			point.Release()
			if err := <-beginner; !errors.Is(err, context.Canceled) {
				t.Errorf("the beginner got %v, want that the request was cancelled", err)
			}
		})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(ctx))
		sqlreqtest.Until(func() bool { return d.Counts().Open == 0 })
		d.CheckLog(t, "BEGIN", "ROLLBACK")
	})
}

// countedBody counts its Reads.
type countedBody struct {
	io.Reader
	reads int
}

func (c *countedBody) Close() error { return nil }

func (c *countedBody) Read(p []byte) (int, error) {
	c.reads++
	return c.Reader.Read(p)
}

// Neither what is left of the body nor what was kept of it for another attempt.
func TestG7BodyAfterTheRequest(t *testing.T) {
	for _, size := range []int{0, 2, 4} {
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
		reg.Retry = sqlreqtest.Retries(3)
		body := &countedBody{Reader: strings.NewReader("body")}
		var kept io.Reader
		runs := 0
		h := reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
			kept = r.Body
			if runs++; runs == 1 { // so that there is something to replay
				_, _ = io.ReadFull(r.Body, make([]byte, size))
				return sqlreqtest.Conflict{}
			}
			return nil
		}))
		r := httptest.NewRequest("POST", "/", nil)
		r.Body = body
		h.ServeHTTP(httptest.NewRecorder(), r)
		reads := body.reads
		if n, err := kept.Read(make([]byte, 4)); n != 0 || err == nil || err == io.EOF || body.reads != reads {
			t.Errorf("%d bytes read before: got %d, %v and %d Reads of the body, want an error and none", size, n, err, body.reads-reads)
		}
	}
}

// Nothing that sqlreq keeps for the next response holds a header value of the
// last one: it may be a secret, or large.
func TestG7HeaderValuesAfterTheRequest(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // one collection, which does not empty a sync.Pool
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	var values []weak.Pointer[[1 << 10]byte]
	value := func() string {
		b := new([1 << 10]byte)
		values = append(values, weak.Make(b))
		return unsafe.String(&b[0], len(b))
	}
	h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Inside", value())
		w.WriteHeader(201)
		_, _ = io.WriteString(w, "held")
	}))
	sqlreqtest.Panicked(func() { // in a goroutine of its own, with nothing left on the stack
		w := &nullWriter{http.Header{"X-Outside": {value()}}}
		h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	})
	runtime.GC()
	for i, v := range values {
		if v.Value() != nil {
			t.Errorf("value %d of %d is still there", i+1, len(values))
		}
	}
}
