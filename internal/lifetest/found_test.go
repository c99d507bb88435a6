package lifetest

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// foundContext tells a test that it is asked: Done by who is going to wait, Err
// by a statement that has its transaction and is about to be sent.
type foundContext struct {
	context.Context
	done, err func()
}

func (c foundContext) Done() <-chan struct{} {
	if c.done != nil {
		c.done()
	}
	return c.Context.Done()
}

func (c foundContext) Err() error {
	if c.err != nil {
		c.err()
	}
	return c.Context.Err()
}

const foundInsert = sqlreqtest.InsertWork + " RETURNING id"

func foundTx(tx *sql.Tx, err error) error {
	if err == nil {
		_, err = tx.Exec(sqlreqtest.InsertWork)
	}
	return err
}

// foundStatements add a row through the key.
var foundStatements = map[string]func(context.Context) error{
	"ExecContext": func(ctx context.Context) error {
		_, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
		return err
	},
	"PrepareContext": func(ctx context.Context) error {
		stmt, err := sqlreqtest.Main.PrepareContext(ctx, sqlreqtest.InsertWork)
		if err != nil {
			return err
		}
		_, err = stmt.Exec()
		return errors.Join(err, stmt.Close())
	},
	"QueryContext": func(ctx context.Context) error {
		rows, err := sqlreqtest.Main.QueryContext(ctx, foundInsert)
		if err != nil {
			return err
		}
		for rows.Next() {
		}
		return errors.Join(rows.Err(), rows.Close())
	},
	"QueryRowContext": func(ctx context.Context) error {
		var id int
		return sqlreqtest.Main.QueryRowContext(ctx, foundInsert).Scan(&id)
	},
}

// foundUses add a row in all other ways.
var foundUses = map[string]func(context.Context) error{
	"Tx":      func(ctx context.Context) error { return foundTx(sqlreq.Tx(ctx)) },
	"BeginTx": func(ctx context.Context) error { return foundTx(sqlreq.BeginTx(ctx, nil)) },
	"Savepoint": func(ctx context.Context) error {
		return sqlreq.Savepoint(ctx, foundStatements["ExecContext"])
	},
}

// foundEnds calls f, which may exit its goroutine, and returns what it panicked with.
func foundEnds(f func()) (panicked any) {
	over := make(chan any, 1)
	go func() {
		defer func() { over <- recover() }()
		f()
	}()
	return <-over
}

// foundPool waits until somebody waits for a connection, which the pool tells
// only those who ask.
func foundPool(db *sql.DB, waits int64) {
	for db.Stats().WaitCount < waits {
		runtime.Gosched()
	}
}

// foundTwo checks that the use and the Commit beside it had a transaction each.
func foundTwo(t testing.TB, rec *httptest.ResponseRecorder, db *sql.DB, events *lifeEvents) {
	t.Helper()
	if n := sqlreqtest.Count(t, db, "work"); rec.Code != 200 || n != 2 || events.String() != "main Committed 1, main Committed 1" {
		t.Errorf("got %d, %d rows, events %q; want 200, 2 rows and two commits", rec.Code, n, events)
	}
	lifeIdle(t, db)
}

// What comes while another goroutine's COMMIT runs waits for it, and begins anew.
func TestG2UseBesideACommitBeginsAnew(t *testing.T) {
	for _, uses := range []map[string]func(context.Context) error{foundStatements, foundUses} {
		for name, use := range uses {
			t.Run(name, func(t *testing.T) {
				committing, goOn := make(chan struct{}), make(chan struct{})
				hold := sync.OnceFunc(func() { close(committing); <-goOn })
				db := lifeOpen(t, &lifeFaults{commit: func() error { hold(); return nil }})
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
				var events lifeEvents
				reg.Observe = events.observe
				rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
					committed := make(chan error, 1)
					go func() { committed <- sqlreq.Commit(r.Context()) }()
					<-committing
					release := sync.OnceFunc(func() { close(goOn) })
					if err := use(foundContext{Context: r.Context(), done: release}); err != nil {
						t.Errorf("got %v, want a new transaction", err)
					}
					release()
					if err := <-committed; err != nil {
						t.Errorf("Commit: %v", err)
					}
				})))
				foundTwo(t, rec, db, &events)
			})
		}
	}
}

// A statement whose transaction another goroutine commits before it is sent was
// not run: nobody has ended anything behind sqlreq's back.
func TestG2StatementBehindACommitBeginsAnew(t *testing.T) {
	for name, statement := range foundStatements {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			var events lifeEvents
			reg.Observe = events.observe
			rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				commit := sync.OnceFunc(func() {
					committed := make(chan error, 1)
					go func() { committed <- sqlreq.Commit(r.Context()) }()
					if err := <-committed; err != nil {
						t.Errorf("Commit: %v", err)
					}
				})
				if err := statement(foundContext{Context: r.Context(), err: commit}); err != nil {
					t.Errorf("got %v, want a new transaction", err)
				}
			})))
			foundTwo(t, rec, db, &events)
		})
	}
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
				db := lifeOpen(t, &lifeFaults{begin: func(ctx context.Context) error {
					close(beginning)
					<-ctx.Done()
					return begin(ctx)
				}})
				foundBeginAtTheEnd(t, db, foundUses[use], func() { <-beginning })
				if n := sqlreqtest.Count(t, db, "work"); n != 0 {
					t.Errorf("%d rows, want none", n)
				}
			})
		}
	}
	for name, use := range foundStatements {
		t.Run("pool, "+name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			db.SetMaxOpenConns(1)
			conn, err := db.Conn(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			foundBeginAtTheEnd(t, db, use, func() { foundPool(db, 1) })
		})
	}
}

func foundBeginAtTheEnd(t *testing.T, db *sql.DB, use func(context.Context) error, underWay func()) {
	t.Helper()
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	got := make(chan error, 1)
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		go func() { got <- use(context.WithoutCancel(r.Context())) }()
		underWay()
	})))
	if err := <-got; !errors.Is(err, sqlreq.ErrFinished) || rec.Code != 200 {
		t.Errorf("got %d and %v, want 200 and ErrFinished", rec.Code, err)
	}
}

// A Commit that gave up its wait has failed like any other: what it was to
// commit must not be committed behind its back.
func TestG4CommitThatGaveUpItsWait(t *testing.T) {
	beginning, goOn := make(chan struct{}), make(chan struct{})
	db := lifeOpen(t, &lifeFaults{begin: func(context.Context) error { close(beginning); <-goOn; return nil }})
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var log lifeLog
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		log.hooks(t, r.Context(), sqlreqtest.Main, "")
		inserted := make(chan error, 1)
		go func() { inserted <- foundStatements["ExecContext"](r.Context()) }()
		<-beginning
		short, cancel := context.WithCancel(r.Context())
		defer cancel()
		if err := sqlreq.Commit(foundContext{Context: short, done: cancel}); !errors.Is(err, context.Canceled) {
			t.Errorf("Commit: got %v, want that its context was cancelled", err)
		}
		close(goOn)
		if err := <-inserted; err != nil {
			t.Error(err)
		}
		w.WriteHeader(201)
	})))
	if n := sqlreqtest.Count(t, db, "work"); rec.Code != 500 || n != 0 || log.String() != "rollback" {
		t.Errorf("got %d, %d rows, hooks %q; want 500, none and a rollback", rec.Code, n, &log)
	}
	lifeIdle(t, db)
}

// FailNow in an Observe of a test is a Goexit.
func TestG4ObserveExitsDuringCommit(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	reg.Observe = func(context.Context, sqlreq.Event) { runtime.Goexit() }
	foundEnds(func() {
		lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			_ = sqlreq.Commit(r.Context())
			t.Error("Commit returned")
		})))
	})
	if n := sqlreqtest.Count(t, db, "work"); n != 1 {
		t.Errorf("%d rows, want the committed one", n)
	}
	lifeIdle(t, db)
}

func TestG4ObserveExitsAtTheEndOfTwoKeys(t *testing.T) {
	a, b := sqlreqtest.OpenDB(t), sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "a", DB: a}, sqlreq.Binding{Key: "b", DB: b})
	reg.Observe = func(context.Context, sqlreq.Event) { runtime.Goexit() }
	foundEnds(func() {
		lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			lifeExec(t, r.Context(), "a", sqlreqtest.InsertWork)
			lifeExec(t, r.Context(), "b", sqlreqtest.InsertWork)
		})))
	})
	lifeIdle(t, a)
	lifeIdle(t, b)
	if n := sqlreqtest.Count(t, b, "work"); n != 0 {
		t.Errorf("%d rows in the second, want none", n)
	}
}

func TestG4DriverPanicsInCommit(t *testing.T) {
	db := lifeOpen(t, &lifeFaults{commit: func() error { panic("driver") }})
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	panicked := foundEnds(func() {
		lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			_ = sqlreq.Commit(r.Context())
		})))
	})
	// database/sql has lost the connection, there is nothing to give back.
	if n := sqlreqtest.Count(t, db, "work"); panicked != "driver" || n != 0 {
		t.Errorf("got panic %v and %d rows, want the driver's and none", panicked, n)
	}
}

func TestDBOfARouteAfterTheEnd(t *testing.T) {
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
	lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
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

// foundErrors cannot be compared, as the error lists of some drivers.
type foundErrors []error

func (e foundErrors) Error() string { return fmt.Sprint([]error(e)) }

func TestStatementFailsWithAnUncomparableError(t *testing.T) {
	db, mock, err := sqlmock.New()
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	mock.ExpectBegin()
	mock.ExpectQuery("SELECT 1").WillReturnError(foundErrors{sqlreqtest.ErrTest})
	mock.ExpectQuery("SELECT 2").WillReturnError(foundErrors{sqlreqtest.ErrTest})
	mock.ExpectExec("UPDATE").WillReturnError(foundErrors{sqlreqtest.ErrTest})
	mock.ExpectPrepare("DELETE").WillReturnError(foundErrors{sqlreqtest.ErrTest})
	mock.ExpectRollback()
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec := lifeDo(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		var n int
		row := sqlreqtest.Main.QueryRowContext(r.Context(), "SELECT 1").Scan(&n)
		_, query := sqlreqtest.Main.QueryContext(r.Context(), "SELECT 2") //nolint:sqlclosecheck,rowserrcheck
		_, exec := sqlreqtest.Main.ExecContext(r.Context(), "UPDATE")
		_, prepare := sqlreqtest.Main.PrepareContext(r.Context(), "DELETE") //nolint:sqlclosecheck
		for i, err := range []error{row, query, exec, prepare} {
			if e := (foundErrors)(nil); !errors.As(err, &e) {
				t.Errorf("statement %d: got %v, want the driver's error", i, err)
			}
		}
		return row
	})))
	if err := mock.ExpectationsWereMet(); rec.Code != 500 || err != nil {
		t.Errorf("got %d, %v", rec.Code, err)
	}
}

// Which database the hook's key has is known only when its Route was asked.
func TestG8HookOfAKeyWithARouteGoesWithItsSavepoint(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "routed", Route: func(context.Context, *http.Request) (*sql.DB, error) {
		return db, nil
	}})
	var log lifeLog
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		log.hooks(t, r.Context(), "routed", "outside")
		err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
			log.hooks(t, ctx, "routed", "inside")
			lifeExec(t, ctx, "routed", sqlreqtest.InsertWork)
			return sqlreqtest.ErrTest
		})
		if !errors.Is(err, sqlreqtest.ErrTest) {
			t.Error(err)
		}
	})))
	if n := sqlreqtest.Count(t, db, "work"); rec.Code != 200 || n != 0 || log.String() != "commitoutside" {
		t.Errorf("got %d, %d rows, hooks %q; want 200, none, and only the hook outside", rec.Code, n, &log)
	}
}

// foundAsk returns what a client of that version of HTTP gets, the head as it came.
func foundAsk(t testing.TB, srv *httptest.Server, version string) (head string, status, size int, err error) {
	t.Helper()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/"+version+"\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	var raw bytes.Buffer
	res, err := http.ReadResponse(bufio.NewReader(io.TeeReader(conn, &raw)), nil)
	if err != nil {
		return "", 0, 0, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	head, _, _ = strings.Cut(raw.String(), "\r\n\r\n")
	return head, res.StatusCode, len(body), err
}

// net/http sends such fields as they are, and an HTTP/1.0 client would have all
// of the response before COMMIT has failed.
func TestG1FramingUnderOtherSpellings(t *testing.T) {
	large := strings.Repeat("x", 100<<10)
	fields := []struct{ name, value string }{
		{"content-length", strconv.Itoa(len(large))},
		{"CONTENT-LENGTH", strconv.Itoa(len(large))},
		{"Content-Length", fmt.Sprintf("%8d", len(large))},
		{"transfer-encoding", "identity"},
		{"TRANSFER-ENCODING", "identity"},
	}
	for _, field := range fields {
		for _, version := range []string{"1.0", "1.1"} {
			for _, statement := range []string{sqlreqtest.InsertWork, sqlreqtest.BreakCommit} {
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
				srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					lifeExec(t, r.Context(), sqlreqtest.Main, statement)
					w.Header()[field.name] = []string{field.value}
					_, _ = io.WriteString(w, large)
					w.(http.Flusher).Flush()
				})))
				head, status, size, err := foundAsk(t, srv, version)
				if lower := strings.ToLower(head); strings.Contains(lower, "content-length") || strings.Contains(lower, "identity") {
					t.Errorf("%q, HTTP/%s: the field was sent: %s", field, version, head)
				}
				complete := status == 200 && size == len(large) && err == nil
				if want := statement == sqlreqtest.InsertWork; complete != want {
					t.Errorf("%q, HTTP/%s, %s: got %d with %d bytes and %v, want a complete response: %t", field, version, statement, status, size, err, want)
				}
			}
		}
	}
}

func TestG3CommitWithNothingOpenAsksNoRoute(t *testing.T) {
	tests := map[string]func(t *testing.T, ctx context.Context){
		"nothing was used": func(*testing.T, context.Context) {},
		"another key has a hook": func(t *testing.T, ctx context.Context) {
			if err := sqlreq.AfterCommit(ctx, func(context.Context) {}); err != nil {
				t.Error(err)
			}
		},
		"another key's transaction has ended": func(t *testing.T, ctx context.Context) {
			lifeExec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
			if err := sqlreq.Commit(ctx); err != nil {
				t.Error(err)
			}
		},
	}
	for name, before := range tests {
		t.Run(name, func(t *testing.T) {
			asked := 0
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}, sqlreq.Binding{Key: "routed", Route: func(context.Context, *http.Request) (*sql.DB, error) {
				asked++
				return nil, sqlreqtest.ErrTest
			}})
			rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				before(t, r.Context())
				if err := sqlreq.Key("routed").Commit(r.Context()); err != nil {
					t.Errorf("Commit: %v", err)
				}
				if err := sqlreq.Key("routed").Rollback(r.Context()); err != nil {
					t.Errorf("Rollback: %v", err)
				}
			})))
			if rec.Code != 200 || asked != 0 {
				t.Errorf("got %d, Route was asked %d times; want 200, never", rec.Code, asked)
			}
		})
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
			db := lifeOpen(t, &lifeFaults{stmt: func(_ context.Context, query string) error {
				if query == sqlreqtest.InsertWork {
					return lifeConflict{}
				}
				return nil
			}})
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			reg.Retry = sqlreq.Retry{Attempts: 3, Within: time.Hour, Backoff: lifeNoBackoff}
			runs := 0
			rec := lifeDo(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				runs++
				if err := sqlreq.Savepoint(r.Context(), foundStatements["ExecContext"]); !errors.Is(err, lifeConflict{}) {
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

// The race detector is the judge of this one.
func TestG8RouteUnderWayAtTheEnd(t *testing.T) {
	asked, goOn, answering := make(chan struct{}), make(chan struct{}), make(chan struct{})
	routed := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}, sqlreq.Binding{Key: "routed", Route: func(context.Context, *http.Request) (*sql.DB, error) {
		close(asked)
		<-goOn
		close(answering)
		return routed, nil
	}})
	var log lifeLog
	got := make(chan error, 1)
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		err := sqlreq.AfterCommit(r.Context(), func(context.Context) {
			close(goOn)
			<-answering
			for range 1000 { // a channel would order what must be safe without an order
				runtime.Gosched()
			}
		})
		if err != nil {
			t.Error(err)
		}
		log.hooks(t, r.Context(), "routed", "")
		go func() {
			_, err := sqlreq.Key("routed").Tx(context.WithoutCancel(r.Context()))
			got <- err
		}()
		<-asked
	})))
	if err := <-got; !errors.Is(err, sqlreq.ErrFinished) {
		t.Errorf("got %v, want ErrFinished", err)
	}
	if rec.Code != 200 || log.String() != "commit" {
		t.Errorf("got %d, hooks %q", rec.Code, &log)
	}
	lifeIdle(t, routed)
}

// foundDeadline is a context whose deadline passes when done is closed.
type foundDeadline struct {
	context.Context
	done chan struct{}
}

func (d *foundDeadline) Done() <-chan struct{} { return d.done }

func (d *foundDeadline) Err() error {
	select {
	case <-d.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// Who waited once for the pool in vain has waited long enough.
func TestG9WaitForThePoolIsNotRunAgain(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	var waits int64
	wait := func(ctx context.Context) error {
		waits++
		expiring := &foundDeadline{ctx, make(chan struct{})}
		go func() {
			foundPool(db, waits)
			close(expiring.done)
		}()
		return foundStatements["ExecContext"](expiring)
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
	reg.Retry = sqlreq.Retry{Attempts: 3, Within: time.Hour, Retryable: yes, Backoff: lifeNoBackoff}
	for name, tt := range handlers {
		runs := 0
		rec := lifeDo(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
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

// http.TimeoutHandler keeps the response, offers no way to the connection, and
// would send all of it when the panic does not reach it.
func TestG1TimeoutHandlerAroundARecover(t *testing.T) {
	large := strings.Repeat("x", 256<<10)
	recovering := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() { _ = recover() }()
			next.ServeHTTP(w, r)
		})
	}
	for _, length := range []string{"", strconv.Itoa(len(large))} {
		for _, version := range []string{"1.0", "1.1"} {
			for _, statement := range []string{sqlreqtest.InsertWork, sqlreqtest.BreakCommit} {
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
				h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					lifeExec(t, r.Context(), sqlreqtest.Main, statement)
					if length != "" {
						w.Header().Set("Content-Length", length)
					}
					_, _ = io.WriteString(w, large)
				}))
				srv := sqlreqtest.Serve(t, http.TimeoutHandler(recovering(h), time.Hour, ""))
				_, status, size, err := foundAsk(t, srv, version)
				complete := status == 200 && err == nil
				if want := statement == sqlreqtest.InsertWork; complete != want || want && size != len(large) {
					t.Errorf("HTTP/%s, length %q, %s: got %d with %d bytes and %v, want a complete response: %t", version, length, statement, status, size, err, want)
				}
			}
		}
	}
}
