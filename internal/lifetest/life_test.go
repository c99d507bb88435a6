package lifetest

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"modernc.org/sqlite"
)

// lifeConflict is a serialization failure in the shape of the drivers for PostgreSQL.
type lifeConflict struct{}

func (lifeConflict) Error() string    { return "could not serialize access" }
func (lifeConflict) SQLState() string { return "40001" }

// lifeFaults are points in the life of a connection at which a test waits, or
// fails what the database was asked for. They are set before the first use.
type lifeFaults struct {
	begin  func(context.Context) error         // before BEGIN
	begun  func(context.Context)               // after BEGIN
	stmt   func(context.Context, string) error // before a statement
	commit func() error                        // before COMMIT; after an error ROLLBACK is sent in its place
	done   func() error                        // after COMMIT: an answer that was lost
}

// lifeConnector connects to SQLite with faults.
type lifeConnector struct {
	*lifeFaults
	dsn    string
	driver driver.Driver
}

func (c *lifeConnector) Driver() driver.Driver { return c.driver }

func (c *lifeConnector) Connect(context.Context) (driver.Conn, error) {
	conn, err := c.driver.Open(c.dsn)
	if err != nil {
		return nil, err
	}
	return &lifeConn{conn.(lifeSQLite), c.lifeFaults}, nil
}

// lifeSQLite is what a connection of modernc's can do.
type lifeSQLite interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ExecerContext
	driver.QueryerContext
	driver.ConnPrepareContext
	driver.SessionResetter
	driver.Validator
}

type lifeConn struct {
	lifeSQLite
	faults *lifeFaults
}

func (c *lifeConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if f := c.faults.begin; f != nil {
		if err := f(ctx); err != nil {
			return nil, err
		}
	}
	tx, err := c.lifeSQLite.BeginTx(context.WithoutCancel(ctx), opts)
	if err != nil {
		return nil, err
	}
	if f := c.faults.begun; f != nil {
		f(ctx)
	}
	return &lifeTx{tx, c.faults}, nil
}

func (c *lifeConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if f := c.faults.stmt; f != nil {
		if err := f(ctx, query); err != nil {
			return nil, err
		}
	}
	return c.lifeSQLite.ExecContext(ctx, query, args)
}

type lifeTx struct {
	driver.Tx
	faults *lifeFaults
}

func (t *lifeTx) Commit() error {
	if f := t.faults.commit; f != nil {
		if err := f(); err != nil {
			_ = t.Rollback()
			return err
		}
	}
	if err := t.Tx.Commit(); err != nil {
		return err
	}
	if f := t.faults.done; f != nil {
		return f()
	}
	return nil
}

// lifeOpen returns a new SQLite file with the schema, opened through faults.
func lifeOpen(t testing.TB, faults *lifeFaults) *sql.DB {
	t.Helper()
	plain := sqlreqtest.OpenDB(t)
	var n, name, file string
	if err := plain.QueryRow("PRAGMA database_list").Scan(&n, &name, &file); err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(&lifeConnector{faults, "file:" + filepath.ToSlash(file) + "?_pragma=foreign_keys(1)&_pragma=busy_timeout(5000)", plain.Driver()})
	t.Cleanup(func() { db.Close() })
	return db
}

// lifeEvents keeps what Observe was told.
type lifeEvents struct {
	mu  sync.Mutex
	all []sqlreq.Event
}

func (l *lifeEvents) observe(_ context.Context, e sqlreq.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, e)
}

// String returns key, outcome and attempt of each event.
func (l *lifeEvents) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var s []string
	for _, e := range l.all {
		s = append(s, fmt.Sprintf("%s %v %d", e.Key, e.Outcome, e.Attempt))
	}
	return strings.Join(s, ", ")
}

// lifeLog collects words from several goroutines.
type lifeLog struct {
	mu    sync.Mutex
	words []string
}

func (l *lifeLog) add(word string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.words = append(l.words, word)
}

func (l *lifeLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.words, " ")
}

// hooks registers one of each kind; the words end in name.
func (l *lifeLog) hooks(t testing.TB, ctx context.Context, k sqlreq.Key, name string) {
	t.Helper()
	if err := k.AfterCommit(ctx, func(context.Context) { l.add("commit" + name) }); err != nil {
		t.Errorf("AfterCommit: %v", err)
	}
	if err := k.AfterRollback(ctx, func(context.Context) { l.add("rollback" + name) }); err != nil {
		t.Errorf("AfterRollback: %v", err)
	}
}

// lifeDo serves one POST.
func lifeDo(h http.Handler) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("POST", "/path", strings.NewReader("body")))
	return rec
}

// lifeExec runs a statement through k that must succeed.
func lifeExec(t testing.TB, ctx context.Context, k sqlreq.Key, query string) {
	t.Helper()
	if _, err := k.ExecContext(ctx, query); err != nil {
		t.Errorf("%s: %v", query, err)
	}
}

// lifeIdle checks that a request left nothing behind in the pool.
func lifeIdle(t testing.TB, db *sql.DB) {
	t.Helper()
	if n := db.Stats().InUse; n != 0 {
		t.Errorf("%d connections in use, want none", n)
	}
}

// lifeNotes returns the notes of the table work, in order.
func lifeNotes(t testing.TB, db *sql.DB) string {
	t.Helper()
	var notes sql.NullString
	if err := db.QueryRow("SELECT group_concat(note, ' ') FROM (SELECT note FROM work ORDER BY id)").Scan(&notes); err != nil {
		t.Fatal(err)
	}
	return notes.String
}

func lifeNote(t testing.TB, ctx context.Context, k sqlreq.Key, note string) {
	t.Helper()
	lifeExec(t, ctx, k, "INSERT INTO work (note) VALUES ('"+note+"')")
}

func TestSavepointNestsToAnyDepth(t *testing.T) {
	const depth = 25
	for _, failing := range []int{0, 1, 7, depth - 1, depth} {
		t.Run(strconv.Itoa(failing), func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			db.SetMaxOpenConns(1)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			var nest func(ctx context.Context, level int) error
			nest = func(ctx context.Context, level int) error {
				err := sqlreq.Savepoint(ctx, func(ctx context.Context) error {
					lifeExec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
					if level+1 < depth {
						if err := nest(ctx, level+1); err != nil {
							return err
						}
					}
					if level == failing {
						return sqlreqtest.ErrTest
					}
					return nil
				})
				if want := level == failing; errors.Is(err, sqlreqtest.ErrTest) != want {
					t.Errorf("level %d: got %v, want an error: %t", level, err, want)
				}
				return nil
			}
			rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				_ = nest(r.Context(), 0)
			})))
			if n := sqlreqtest.Count(t, db, "work"); rec.Code != 200 || n != failing {
				t.Errorf("got %d and %d rows, want 200 and %d", rec.Code, n, failing)
			}
			lifeIdle(t, db)
		})
	}
}

func TestSavepointRolledBackThoughItsContextEnded(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		lifeNote(t, r.Context(), sqlreqtest.Main, "before")
		ctx, cancel := context.WithCancel(r.Context())
		err := sqlreq.Savepoint(ctx, func(ctx context.Context) error {
			lifeNote(t, ctx, sqlreqtest.Main, "inside")
			cancel()
			_, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
			return err
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want that the context was cancelled", err)
		}
		lifeNote(t, r.Context(), sqlreqtest.Main, "after")
	})))
	if got := lifeNotes(t, db); rec.Code != 200 || got != "before after" {
		t.Errorf("got %d and %q", rec.Code, got)
	}
}

func TestSavepointPanics(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	h := reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		panicIn := func(ctx context.Context) {
			_ = sqlreq.Savepoint(ctx, func(ctx context.Context) error {
				lifeNote(t, ctx, sqlreqtest.Main, "inside")
				panic(sqlreqtest.ErrTest)
			})
		}
		if r.URL.Path == "/whole" {
			panicIn(r.Context())
		}
		func() {
			defer func() {
				if v := recover(); v != sqlreqtest.ErrTest {
					t.Errorf("recovered %v, want %v", v, sqlreqtest.ErrTest)
				}
			}()
			panicIn(r.Context())
		}()
		exited := make(chan struct{})
		go func() {
			defer close(exited)
			_ = sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
				lifeNote(t, ctx, sqlreqtest.Main, "exited")
				runtime.Goexit()
				return nil
			})
		}()
		<-exited
		lifeNote(t, r.Context(), sqlreqtest.Main, "after")
	}))
	if rec, got := lifeDo(h), lifeNotes(t, db); rec.Code != 200 || got != "after" {
		t.Errorf("recovered inside: got %d and %q, want 200 and only what came after", rec.Code, got)
	}
	func() {
		defer func() {
			if v := recover(); v != sqlreqtest.ErrTest {
				t.Errorf("got panic %v, want %v", v, sqlreqtest.ErrTest)
			}
		}()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/whole", nil))
	}()
	if got := lifeNotes(t, db); got != "after" {
		t.Errorf("after a panic through everything: got %q", got)
	}
	lifeIdle(t, db)
}

func TestSavepointMisuse(t *testing.T) {
	nothing := func(context.Context) error { return nil }
	tests := map[string]struct {
		do   func(w http.ResponseWriter, outer, inner context.Context) error
		text string
	}{
		"context of the request": {func(_ http.ResponseWriter, o, _ context.Context) error { return sqlreq.Savepoint(o, nothing) }, "innermost"},
		"Commit":                 {func(_ http.ResponseWriter, _, i context.Context) error { return sqlreq.Commit(i) }, "inside a Savepoint"},
		"Commit outside":         {func(_ http.ResponseWriter, o, _ context.Context) error { return sqlreq.Commit(o) }, "inside a Savepoint"},
		"Rollback":               {func(_ http.ResponseWriter, _, i context.Context) error { return sqlreq.Rollback(i) }, "inside a Savepoint"},
		"Rollback outside":       {func(_ http.ResponseWriter, o, _ context.Context) error { return sqlreq.Rollback(o) }, "inside a Savepoint"},
		"BeginTx": {func(_ http.ResponseWriter, _, i context.Context) error {
			_, err := sqlreq.BeginTx(i, nil)
			if !errors.Is(err, sqlreq.ErrBegun) {
				return nil
			}
			return err
		}, "open already"},
		"Hijack": {func(w http.ResponseWriter, _, _ context.Context) error {
			_, _, err := http.NewResponseController(w).Hijack()
			return err
		}, "inside a Savepoint"},
		"the context of a savepoint that has returned": {func(_ http.ResponseWriter, _, i context.Context) error {
			var old context.Context
			_ = sqlreq.Savepoint(i, func(ctx context.Context) error { old = ctx; return nil })
			return sqlreq.Savepoint(old, nothing)
		}, "innermost"},
		"a hook in one that was rolled back": {func(_ http.ResponseWriter, _, i context.Context) error {
			var old context.Context
			_ = sqlreq.Savepoint(i, func(ctx context.Context) error { old = ctx; return sqlreqtest.ErrTest })
			return sqlreq.AfterCommit(old, func(context.Context) {})
		}, "rolled back"},
		"a hook in one that was released into one rolled back": {func(_ http.ResponseWriter, _, i context.Context) error {
			var old context.Context
			_ = sqlreq.Savepoint(i, func(ctx context.Context) error {
				_ = sqlreq.Savepoint(ctx, func(ctx context.Context) error { old = ctx; return nil })
				return sqlreqtest.ErrTest
			})
			return sqlreq.AfterCommit(old, func(context.Context) {})
		}, "rolled back"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
					lifeExec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
					if err := tt.do(w, r.Context(), ctx); err == nil || !strings.Contains(err.Error(), tt.text) {
						t.Errorf("got %v, want an error with %q", err, tt.text)
					}
					lifeExec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
					return nil
				})
				if err != nil {
					t.Error(err)
				}
				_, _ = io.WriteString(w, "fine")
			})))
			if code, body, err := sqlreqtest.Get(t, srv.URL); code != 200 || body != "fine" || err != nil {
				t.Errorf("got %d %q %v, want a misuse to harm nothing else", code, body, err)
			}
			if n := sqlreqtest.Count(t, db, "work"); n != 2 {
				t.Errorf("%d rows, want 2", n)
			}
		})
	}
}

func TestSavepointGoingBackFails(t *testing.T) {
	faults := &lifeFaults{stmt: func(_ context.Context, query string) error {
		if strings.HasPrefix(query, "ROLLBACK TO") {
			return sqlreqtest.ErrTest
		}
		return nil
	}}
	db := lifeOpen(t, faults)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var events lifeEvents
	reg.Observe = events.observe
	var cause error
	reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
		cause = err
		w.WriteHeader(sqlreq.StatusCode(err))
	}
	errInside := errors.New("inside")
	var log lifeLog
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		log.hooks(t, r.Context(), sqlreqtest.Main, "")
		err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
			lifeExec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
			return errInside
		})
		if !errors.Is(err, errInside) || !errors.Is(err, sqlreqtest.ErrTest) || !strings.Contains(err.Error(), "only roll back") {
			t.Errorf("got %v, want both errors and what follows", err)
		}
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); !errors.Is(err, sqlreqtest.ErrTest) {
			t.Errorf("a statement after it: got %v, want the cause", err)
		}
		w.WriteHeader(201)
	})))
	if rec.Code != 500 || !errors.Is(cause, sqlreqtest.ErrTest) {
		t.Errorf("got %d with %v, want 500 with the cause", rec.Code, cause)
	}
	if got := lifeNotes(t, db); got != "" || log.String() != "rollback" || events.String() != "main RolledBack 1" {
		t.Errorf("got rows %q, hooks %q, events %q", got, &log, &events)
	}
	lifeIdle(t, db)
}

func TestSavepointReleaseFails(t *testing.T) {
	faults := &lifeFaults{stmt: func(_ context.Context, query string) error {
		if strings.HasPrefix(query, "RELEASE") {
			return sqlreqtest.ErrTest
		}
		return nil
	}}
	db := lifeOpen(t, faults)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var log lifeLog
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		lifeNote(t, r.Context(), sqlreqtest.Main, "before")
		err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
			log.hooks(t, ctx, sqlreqtest.Main, "")
			lifeNote(t, ctx, sqlreqtest.Main, "inside")
			return nil
		})
		if !errors.Is(err, sqlreqtest.ErrTest) || !strings.Contains(err.Error(), "close open rows first") {
			t.Errorf("got %v, want the cause and what to do", err)
		}
		lifeNote(t, r.Context(), sqlreqtest.Main, "after")
	})))
	if got := lifeNotes(t, db); rec.Code != 200 || got != "before after" || log.String() != "" {
		t.Errorf("got %d, %q and hooks %q", rec.Code, got, &log)
	}
}

// With one in progress, a Savepoint of another goroutine is refused; without, it
// runs. Either way exactly the released ones are there.
func TestSavepointsOfSeveralGoroutines(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var released lifeLog
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var wg sync.WaitGroup
		inside, refused := make(chan struct{}), make(chan struct{})
		wg.Go(func() {
			if err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
				close(inside)
				<-refused
				lifeExec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
				return nil
			}); err != nil {
				t.Error(err)
			}
			released.add("x")
		})
		<-inside
		err := sqlreq.Savepoint(r.Context(), func(context.Context) error { t.Error("ran"); return nil })
		if err == nil {
			t.Error("a second one was not refused")
		}
		close(refused)
		wg.Wait()
		for range 8 {
			wg.Go(func() {
				err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
					_, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
					return err
				})
				if err == nil {
					released.add("x")
				}
			})
		}
		wg.Wait()
	})))
	if got := lifeNotes(t, db); rec.Code != 200 || got != released.String() {
		t.Errorf("got %d and rows %q, want 200 and %q", rec.Code, got, &released)
	}
}

func TestSavepointsOfSeveralKeysCrosswise(t *testing.T) {
	tests := map[string]struct {
		fail    string // the level that fails
		a, b    string
		hooks   string
		aliases bool
	}{
		"none":           {"", "0 1 3", "2", "commit1 commit2 commit3", false},
		"the innermost":  {"3", "0 1", "2", "commit1 commit2", false},
		"the other's":    {"2", "0 1 3", "", "commit1 commit3", false},
		"the outermost":  {"1", "0", "2", "commit2", false},
		"one pool":       {"2", "0 1", "", "commit1", true},
		"one pool, none": {"", "0 1 2 3", "", "commit1 commit2 commit3", true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a, b := sqlreqtest.OpenDB(t), sqlreqtest.OpenDB(t)
			second := b
			if tt.aliases {
				second = a
			}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "a", DB: a}, sqlreq.Binding{Key: "b", DB: second})
			var log lifeLog
			fails := func(level string) error {
				if tt.fail == level {
					return sqlreqtest.ErrTest
				}
				return nil
			}
			level := func(ctx context.Context, k sqlreq.Key, name string, inside func(context.Context)) {
				_ = k.Savepoint(ctx, func(ctx context.Context) error {
					lifeNote(t, ctx, k, name)
					_ = k.AfterCommit(ctx, func(context.Context) { log.add("commit" + name) })
					inside(ctx)
					return fails(name)
				})
			}
			rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				lifeNote(t, r.Context(), "a", "0")
				level(r.Context(), "a", "1", func(ctx context.Context) {
					level(ctx, "b", "2", func(ctx context.Context) {
						level(ctx, "a", "3", func(context.Context) {})
					})
				})
			})))
			if gotA, gotB := lifeNotes(t, a), lifeNotes(t, b); rec.Code != 200 || gotA != tt.a || gotB != tt.b || log.String() != tt.hooks {
				t.Errorf("got %d, a %q, b %q, hooks %q; want a %q, b %q, hooks %q", rec.Code, gotA, gotB, &log, tt.a, tt.b, tt.hooks)
			}
		})
	}
}

func TestStatementsOfSavepointGuardAndRetry(t *testing.T) {
	ok := sqlmock.NewResult(0, 0)
	failInside := func(ctx context.Context) {
		_ = sqlreq.Savepoint(ctx, func(context.Context) error { return sqlreqtest.ErrTest })
	}
	tests := map[string]struct {
		guard   bool
		expect  func(sqlmock.Sqlmock)
		handler func(http.ResponseWriter, *http.Request) error
	}{
		"savepoints": {
			expect: func(m sqlmock.Sqlmock) {
				m.ExpectBegin()
				m.ExpectExec("SAVEPOINT sqlreq_1").WillReturnResult(ok)
				m.ExpectExec("SAVEPOINT sqlreq_2").WillReturnResult(ok)
				m.ExpectExec("ROLLBACK TO SAVEPOINT sqlreq_2").WillReturnResult(ok)
				m.ExpectExec("RELEASE SAVEPOINT sqlreq_1").WillReturnResult(ok)
				m.ExpectExec("SAVEPOINT sqlreq_3").WillReturnResult(ok)
				m.ExpectExec("ROLLBACK TO SAVEPOINT sqlreq_3").WillReturnResult(ok)
				m.ExpectCommit()
			},
			handler: func(_ http.ResponseWriter, r *http.Request) error {
				err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error { failInside(ctx); return nil })
				failInside(r.Context())
				return err
			},
		},
		"guard": {
			guard: true,
			expect: func(m sqlmock.Sqlmock) {
				m.ExpectBegin()
				m.ExpectExec("SAVEPOINT sqlreq_guard").WillReturnResult(ok)
				m.ExpectExec("INSERT").WillReturnResult(ok)
				m.ExpectExec("RELEASE SAVEPOINT sqlreq_guard").WillReturnResult(ok)
				m.ExpectCommit()
			},
			handler: func(_ http.ResponseWriter, r *http.Request) error {
				_, err := sqlreqtest.Main.ExecContext(r.Context(), "INSERT")
				return err
			},
		},
		"guard, rolled back": {
			guard: true,
			expect: func(m sqlmock.Sqlmock) {
				m.ExpectBegin()
				m.ExpectExec("SAVEPOINT sqlreq_guard").WillReturnResult(ok)
				m.ExpectRollback()
			},
			handler: func(w http.ResponseWriter, r *http.Request) error {
				_, err := sqlreq.Tx(r.Context())
				w.WriteHeader(404)
				return err
			},
		},
		"retry": {
			expect: func(m sqlmock.Sqlmock) {
				m.ExpectBegin()
				m.ExpectExec("INSERT").WillReturnError(lifeConflict{})
				m.ExpectRollback()
				m.ExpectBegin()
				m.ExpectExec("INSERT").WillReturnResult(ok)
				m.ExpectCommit().WillReturnError(lifeConflict{})
				m.ExpectBegin()
				m.ExpectExec("INSERT").WillReturnResult(ok)
				m.ExpectCommit()
			},
			handler: func(_ http.ResponseWriter, r *http.Request) error {
				_, err := sqlreqtest.Main.ExecContext(r.Context(), "INSERT")
				return err
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db, mock, err := sqlmock.New(sqlmock.QueryMatcherOption(sqlmock.QueryMatcherEqual))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			tt.expect(mock)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, Guard: tt.guard})
			reg.Retry = sqlreq.Retry{Attempts: 3, Within: time.Hour, Backoff: func(int) time.Duration { return 0 }}
			lifeDo(reg.Middleware(sqlreq.HandlerFunc(tt.handler)))
			if err := mock.ExpectationsWereMet(); err != nil {
				t.Error(err)
			}
		})
	}
}

// lifeWriter tells whether anything was released.
type lifeWriter struct {
	*httptest.ResponseRecorder
	released bool
}

func (w *lifeWriter) WriteHeader(status int) {
	w.released = true
	w.ResponseRecorder.WriteHeader(status)
}
func (w *lifeWriter) Write(p []byte) (int, error) {
	w.released = true
	return w.ResponseRecorder.Write(p)
}

func TestG8HooksRunInOrderBeforeTheResponse(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "other", DB: sqlreqtest.OpenDB(t)})
	w := &lifeWriter{ResponseRecorder: httptest.NewRecorder()}
	var log lifeLog
	h := reg.Middleware(http.HandlerFunc(func(hw http.ResponseWriter, r *http.Request) {
		hw.WriteHeader(201)
		_, _ = io.WriteString(hw, "done")
		for i := range 6 {
			k := []sqlreq.Key{sqlreqtest.Main, "other"}[i%2]
			lifeExec(t, r.Context(), k, sqlreqtest.InsertWork)
			if err := k.AfterCommit(r.Context(), func(context.Context) {
				if w.released {
					t.Error("the response was released before the hook")
				}
				if n := sqlreqtest.Count(t, db, "work"); n != 3 {
					t.Errorf("another connection sees %d rows in the hook, want 3", n)
				}
				log.add(strconv.Itoa(i))
			}); err != nil {
				t.Error(err)
			}
		}
	}))
	h.ServeHTTP(w, httptest.NewRequest("POST", "/", nil))
	if !w.released || log.String() != "0 1 2 3 4 5" || w.Code != 201 || w.Body.String() != "done" {
		t.Errorf("got hooks %q, then %d %q", &log, w.Code, w.Body)
	}
}

func TestG8WhichHooksRun(t *testing.T) {
	gone := func(r *http.Request) { r.Context().Value(lifeCancelKey{}).(context.CancelFunc)() }
	tests := map[string]struct {
		want    string
		faults  lifeFaults
		binding sqlreq.Binding
		handler func(t *testing.T, log *lifeLog, w http.ResponseWriter, r *http.Request) error
	}{
		"commit": {want: "commit", handler: func(t *testing.T, _ *lifeLog, _ http.ResponseWriter, r *http.Request) error {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return nil
		}},
		"status": {want: "rollback", handler: func(t *testing.T, _ *lifeLog, w http.ResponseWriter, r *http.Request) error {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			w.WriteHeader(400)
			return nil
		}},
		"error": {want: "rollback", handler: func(t *testing.T, _ *lifeLog, _ http.ResponseWriter, r *http.Request) error {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return sqlreqtest.ErrTest
		}},
		"panic": {want: "rollback", handler: func(t *testing.T, _ *lifeLog, _ http.ResponseWriter, r *http.Request) error {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			panic(http.ErrAbortHandler)
		}},
		"client gone": {want: "rollback", handler: func(t *testing.T, _ *lifeLog, _ http.ResponseWriter, r *http.Request) error {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			gone(r)
			return nil
		}},
		"failed COMMIT": {want: "rollback", handler: func(t *testing.T, _ *lifeLog, _ http.ResponseWriter, r *http.Request) error {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.BreakCommit)
			return nil
		}},
		"failed explicit Commit": {want: "rollback", handler: func(t *testing.T, _ *lifeLog, _ http.ResponseWriter, r *http.Request) error {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.BreakCommit)
			_ = sqlreq.Commit(r.Context())
			return nil
		}},
		"COMMIT of unknown outcome": {want: "", faults: lifeFaults{done: func() error { return sqlreqtest.ErrTest }},
			handler: func(t *testing.T, _ *lifeLog, _ http.ResponseWriter, r *http.Request) error {
				lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				return nil
			}},
		"explicit Commit": {want: "commit then commit2", handler: func(t *testing.T, log *lifeLog, _ http.ResponseWriter, r *http.Request) error {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			if err := sqlreq.Commit(r.Context()); err != nil {
				t.Error(err)
			}
			log.add("then")
			log.hooks(t, r.Context(), sqlreqtest.Main, "2")
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return nil
		}},
		"explicit Commit, then an error": {want: "commit then rollback2", handler: func(t *testing.T, log *lifeLog, _ http.ResponseWriter, r *http.Request) error {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			_ = sqlreq.Commit(r.Context())
			log.add("then")
			log.hooks(t, r.Context(), sqlreqtest.Main, "2")
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return sqlreqtest.ErrTest
		}},
		"explicit Rollback": {want: "rollback then commit2", handler: func(t *testing.T, log *lifeLog, _ http.ResponseWriter, r *http.Request) error {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			if err := sqlreq.Rollback(r.Context()); err != nil {
				t.Error(err)
			}
			log.add("then")
			log.hooks(t, r.Context(), sqlreqtest.Main, "2")
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return nil
		}},
		"Commit and Rollback with nothing open": {want: "then commit", handler: func(t *testing.T, log *lifeLog, _ http.ResponseWriter, r *http.Request) error {
			if err := errors.Join(sqlreq.Commit(r.Context()), sqlreq.Rollback(r.Context())); err != nil {
				t.Error(err)
			}
			log.add("then")
			return nil
		}},
		"nothing begun": {want: "commit", handler: func(*testing.T, *lifeLog, http.ResponseWriter, *http.Request) error { return nil }},
		"nothing begun, status": {want: "rollback", handler: func(_ *testing.T, _ *lifeLog, w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(404)
			return nil
		}},
		"nothing begun, error": {want: "rollback", handler: func(*testing.T, *lifeLog, http.ResponseWriter, *http.Request) error { return sqlreqtest.ErrTest }},
		"nothing begun, Fail": {want: "rollback", handler: func(_ *testing.T, _ *lifeLog, _ http.ResponseWriter, r *http.Request) error {
			return sqlreq.Fail(r.Context(), sqlreqtest.ErrTest)
		}},
		"nothing begun, client gone": {want: "rollback", handler: func(_ *testing.T, _ *lifeLog, _ http.ResponseWriter, r *http.Request) error {
			gone(r)
			return nil
		}},
		"nothing begun, panic": {want: "rollback", handler: func(*testing.T, *lifeLog, http.ResponseWriter, *http.Request) error { panic(http.ErrAbortHandler) }},
		"read-only": {want: "commit", handler: func(_ *testing.T, _ *lifeLog, _ http.ResponseWriter, r *http.Request) error {
			_, err := sqlreq.BeginTx(r.Context(), &sql.TxOptions{ReadOnly: true})
			return err
		}},
		"read-only, serializable": {want: "commit", handler: func(_ *testing.T, _ *lifeLog, _ http.ResponseWriter, r *http.Request) error {
			_, err := sqlreq.BeginTx(r.Context(), &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelSerializable})
			return err
		}},
		"read-only, status": {want: "rollback", handler: func(_ *testing.T, _ *lifeLog, w http.ResponseWriter, r *http.Request) error {
			_, err := sqlreq.BeginTx(r.Context(), &sql.TxOptions{ReadOnly: true})
			w.WriteHeader(404)
			return err
		}},
		"read-only, explicit Commit": {want: "commit then", handler: func(_ *testing.T, log *lifeLog, _ http.ResponseWriter, r *http.Request) error {
			_, err := sqlreq.BeginTx(r.Context(), &sql.TxOptions{ReadOnly: true})
			err = errors.Join(err, sqlreq.Commit(r.Context()))
			log.add("then")
			return err
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := lifeOpen(t, &tt.faults)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			var log lifeLog
			h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				log.hooks(t, r.Context(), sqlreqtest.Main, "")
				return tt.handler(t, &log, w, r)
			}))
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			ctx = context.WithValue(ctx, lifeCancelKey{}, cancel)
			func() {
				defer func() { _ = recover() }()
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "POST", "/", nil))
			}()
			if log.String() != tt.want {
				t.Errorf("got %q, want %q", &log, tt.want)
			}
			lifeIdle(t, db)
		})
	}
}

// lifeCancelKey finds the function that ends the request's context.
type lifeCancelKey struct{}

func TestG8HooksFollowTheirDatabase(t *testing.T) {
	for _, failing := range []sqlreq.Key{"a", "b", "c"} {
		t.Run(string(failing), func(t *testing.T) {
			keys := []sqlreq.Key{"a", "b", "c"}
			dbs := make(map[sqlreq.Key]*sql.DB)
			var bindings []sqlreq.Binding
			for _, k := range keys {
				dbs[k] = sqlreqtest.OpenDB(t)
				bindings = append(bindings, sqlreq.Binding{Key: k, DB: dbs[k]})
			}
			bindings = append(bindings, sqlreq.Binding{Key: "alias", DB: dbs["a"]})
			reg := sqlreqtest.NewRegistry(t, bindings...)
			var failure *sqlreq.CommitError
			reg.ErrorHandler = func(_ http.ResponseWriter, _ *http.Request, err error) { errors.As(err, &failure) }
			var log lifeLog
			rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				for _, k := range keys {
					lifeExec(t, r.Context(), k, sqlreqtest.InsertWork)
					log.hooks(t, r.Context(), k, string(k))
				}
				log.hooks(t, r.Context(), "alias", "alias")
				lifeExec(t, r.Context(), failing, sqlreqtest.BreakCommit)
			})))
			var want []string
			var committed []sqlreq.Key
			for i, k := range keys {
				if i < slices.Index(keys, failing) {
					want, committed = append(want, "commit"+string(k)), append(committed, k)
				} else {
					want = append(want, "rollback"+string(k))
				}
				rows := sqlreqtest.Count(t, dbs[k], "work")
				if wantRows := len(committed) - i; rows != max(0, wantRows) {
					t.Errorf("key %s: %d rows", k, rows)
				}
			}
			want = append(want, strings.TrimSuffix(want[0], "a")+"alias")
			if log.String() != strings.Join(want, " ") {
				t.Errorf("got hooks %q, want %q", &log, want)
			}
			if rec.Code != 500 || failure == nil || failure.Key != failing || !slices.Equal(failure.Committed, committed) || failure.Ambiguous {
				t.Errorf("got %d and %+v, want key %q and committed %q", rec.Code, failure, failing, committed)
			}
		})
	}
}

func TestG8HooksRollUpOneLevelAtATime(t *testing.T) {
	tests := map[string]struct {
		one, two, request error
		want              string
	}{
		"released":                      {nil, nil, nil, "commit0 commit1 commit2"},
		"inner rolled back":             {nil, sqlreqtest.ErrTest, nil, "commit0 commit1"},
		"released into one rolled back": {sqlreqtest.ErrTest, nil, nil, "commit0"},
		"both rolled back":              {sqlreqtest.ErrTest, sqlreqtest.ErrTest, nil, "commit0"},
		"released, request fails":       {nil, nil, sqlreqtest.ErrTest, "rollback0 rollback1 rollback2"},
		"rolled back, request fails":    {nil, sqlreqtest.ErrTest, sqlreqtest.ErrTest, "rollback0 rollback1"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
			var log lifeLog
			lifeDo(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				log.hooks(t, r.Context(), sqlreqtest.Main, "0")
				_ = sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
					log.hooks(t, ctx, sqlreqtest.Main, "1")
					_ = sqlreq.Savepoint(ctx, func(ctx context.Context) error {
						log.hooks(t, ctx, sqlreqtest.Main, "2")
						return tt.two
					})
					return tt.one
				})
				return tt.request
			})))
			if log.String() != tt.want {
				t.Errorf("got %q, want %q", &log, tt.want)
			}
		})
	}
}

func TestG8HookPanics(t *testing.T) {
	for _, when := range []string{"at the end", "explicit"} {
		t.Run(when, func(t *testing.T) {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
			var out bytes.Buffer
			reg.Logger = slog.New(slog.NewTextHandler(&out, nil))
			var log lifeLog
			rec := lifeDo(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				_ = sqlreq.AfterCommit(r.Context(), lifePanickingHook)
				log.hooks(t, r.Context(), sqlreqtest.Main, "")
				if when == "explicit" {
					if err := sqlreq.Commit(r.Context()); err != nil {
						t.Error(err)
					}
				}
				w.WriteHeader(201)
				_, _ = io.WriteString(w, "created")
			})))
			if rec.Code != 201 || rec.Body.String() != "created" || log.String() != "commit" {
				t.Errorf("got %d %q, hooks %q", rec.Code, rec.Body, &log)
			}
			for _, part := range []string{"panic=boom", "lifePanickingHook", "method=POST", "path=/path"} {
				if !strings.Contains(out.String(), part) {
					t.Errorf("the log has no %s: %s", part, &out)
				}
			}
		})
	}
}

func lifePanickingHook(context.Context) { panic("boom") }

func TestG8ContextOfAHook(t *testing.T) {
	type valueKey struct{}
	for _, when := range []string{"at the end", "explicit Commit", "explicit Rollback"} {
		t.Run(when, func(t *testing.T) {
			db, audit := sqlreqtest.OpenDB(t), sqlreqtest.OpenDB(t)
			db.SetMaxOpenConns(1) // the connection is back when hooks run
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "audit", DB: audit})
			ran := false
			hook := func(ctx context.Context) {
				ran = true
				if ctx.Value(valueKey{}) != "value" || ctx.Err() != nil || ctx.Done() != nil {
					t.Errorf("got value %v, error %v, done %v", ctx.Value(valueKey{}), ctx.Err(), ctx.Done())
				}
				lifeFinished(t, ctx)
				if err := reg.Do(ctx, func(ctx context.Context) error {
					_, err := sqlreq.Key("audit").ExecContext(ctx, sqlreqtest.InsertWork)
					_, inMain := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
					return errors.Join(err, inMain)
				}); err != nil {
					t.Errorf("Do in a hook: %v", err)
				}
			}
			rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				ctx, cancel := context.WithCancel(context.WithValue(r.Context(), valueKey{}, "value"))
				register := sqlreq.AfterCommit
				if when == "explicit Rollback" {
					register = sqlreq.AfterRollback
				}
				if err := register(ctx, hook); err != nil {
					t.Error(err)
				}
				cancel()
				switch when {
				case "explicit Commit":
					_ = sqlreq.Commit(r.Context())
				case "explicit Rollback":
					_ = sqlreq.Rollback(r.Context())
				}
			})))
			if n := sqlreqtest.Count(t, audit, "work"); rec.Code != 200 || !ran || n != 1 {
				t.Errorf("got %d, hook ran: %t, %d rows of Do", rec.Code, ran, n)
			}
		})
	}
}

// lifeFinished checks that everything which would use the transaction refuses to.
func lifeFinished(t testing.TB, ctx context.Context) {
	t.Helper()
	fn := func(context.Context) {}
	calls := map[string]func() error{
		"Tx":              func() error { _, err := sqlreq.Tx(ctx); return err },
		"BeginTx":         func() error { _, err := sqlreq.BeginTx(ctx, nil); return err },
		"ExecContext":     func() error { _, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork); return err },
		"PrepareContext":  func() error { _, err := sqlreqtest.Main.PrepareContext(ctx, sqlreqtest.InsertWork); return err },
		"QueryContext":    func() error { _, err := sqlreqtest.Main.QueryContext(ctx, "SELECT 1"); return err }, //nolint:sqlclosecheck,rowserrcheck
		"QueryRowContext": func() error { return sqlreqtest.Main.QueryRowContext(ctx, "SELECT 1").Err() },
		"Commit":          func() error { return sqlreq.Commit(ctx) },
		"Rollback":        func() error { return sqlreq.Rollback(ctx) },
		"Savepoint":       func() error { return sqlreq.Savepoint(ctx, func(context.Context) error { return nil }) },
		"AfterCommit":     func() error { return sqlreq.AfterCommit(ctx, fn) },
		"AfterRollback":   func() error { return sqlreq.AfterRollback(ctx, fn) },
		"Fail":            func() error { return sqlreq.Fail(ctx, sqlreqtest.ErrTest) },
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, sqlreq.ErrFinished) {
			t.Errorf("%s: got %v, want ErrFinished", name, err)
		}
	}
}

func TestG8AfterRollbackRunsBeforeTheBackoff(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	var log lifeLog
	reg.Retry = sqlreq.Retry{Attempts: 3, Within: time.Hour, Backoff: func(n int) time.Duration {
		log.add("backoff" + strconv.Itoa(n))
		return 0
	}}
	run := 0
	rec := lifeDo(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		run++
		log.hooks(t, r.Context(), sqlreqtest.Main, strconv.Itoa(run))
		lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		if run < 3 {
			return lifeConflict{}
		}
		return nil
	})))
	if want := "rollback1 backoff1 rollback2 backoff2 commit3"; rec.Code != 200 || log.String() != want {
		t.Errorf("got %d, %q, want %q", rec.Code, &log, want)
	}
}

// A COMMIT that the server answered with ROLLBACK is a failure with known outcome.
func TestG8CommitErrors(t *testing.T) {
	tests := map[string]struct {
		err       error
		ambiguous bool
		hooks     string
	}{
		"pgx, answered with ROLLBACK":   {errors.New("commit unexpectedly resulted in rollback"), false, "rollback"},
		"lib/pq, answered with it":      {errors.New("pq: Could not complete operation in a failed transaction"), false, "rollback"},
		"lib/pq, taken for a sound one": {errors.New("pq: unexpected command tag ROLLBACK"), false, "rollback"},
		"an SQLSTATE":                   {fmt.Errorf("commit: %w", lifeConflict{}), false, "rollback"},
		"a bad connection":              {driver.ErrBadConn, true, ""},
		"a network error":               {&net.OpError{Op: "read", Net: "tcp", Err: errors.New("reset")}, true, ""},
		"anything else":                 {sqlreqtest.ErrTest, true, ""},
		"both":                          {errors.Join(lifeConflict{}, driver.ErrBadConn), true, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := lifeOpen(t, &lifeFaults{commit: func() error { return tt.err }})
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			var events lifeEvents
			reg.Observe = events.observe
			var failure *sqlreq.CommitError
			reg.ErrorHandler = func(_ http.ResponseWriter, _ *http.Request, err error) { errors.As(err, &failure) }
			var log lifeLog
			rec := lifeDo(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				log.hooks(t, r.Context(), sqlreqtest.Main, "")
				w.WriteHeader(201)
			})))
			if rec.Code < 500 || log.String() != tt.hooks || events.String() != "main CommitFailed 1" {
				t.Errorf("got %d, hooks %q, events %q; want a failure, hooks %q", rec.Code, &log, &events, tt.hooks)
			}
			if failure == nil || failure.Ambiguous != tt.ambiguous || !errors.Is(failure, tt.err) {
				t.Errorf("got %+v, want ambiguous: %t", failure, tt.ambiguous)
			}
			lifeIdle(t, db)
		})
	}
	t.Run("a constraint of SQLite", func(t *testing.T) {
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
		err := reg.Do(context.Background(), func(ctx context.Context) error {
			_, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.BreakCommit)
			return err
		})
		var failure *sqlreq.CommitError
		var answer *sqlite.Error
		if !errors.As(err, &failure) || failure.Ambiguous || !errors.As(err, &answer) || answer.Code() != 787 {
			t.Errorf("got %v, want a CommitError of code 787 that is not ambiguous", err)
		}
	})
}

// lifeCounter makes a database with a counter that starts at 0.
func lifeCounter(t testing.TB) *sql.DB {
	t.Helper()
	db := sqlreqtest.OpenDB(t)
	if _, err := db.Exec(`CREATE TABLE counter (n INTEGER); INSERT INTO counter VALUES (0)`); err != nil {
		t.Fatal(err)
	}
	return db
}

// lifeIncrement reads, then writes: between is where another request may commit.
func lifeIncrement(ctx context.Context, between func()) error {
	var n int
	if err := sqlreqtest.Main.QueryRowContext(ctx, "SELECT n FROM counter").Scan(&n); err != nil {
		return err
	}
	between()
	_, err := sqlreqtest.Main.ExecContext(ctx, "UPDATE counter SET n = ?", n+1)
	return err
}

func lifeNoBackoff(int) time.Duration { return 0 }

func TestG9NoIncrementIsLost(t *testing.T) {
	const clients, requests = 8, 50
	db := lifeCounter(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	reg.Retry = sqlreq.Retry{Attempts: 100, Within: time.Hour}
	srv := sqlreqtest.Serve(t, reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		return lifeIncrement(r.Context(), runtime.Gosched)
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
	lifeIdle(t, db)
}

// Two requests read the same row before either writes: one of them must fail, or run again.
func TestG9TwoRequestsConflict(t *testing.T) {
	for attempts, want := range map[int]struct {
		codes string
		n     int
	}{1: {"200 503", 1}, 2: {"200 200", 2}} {
		t.Run(strconv.Itoa(attempts), func(t *testing.T) {
			db := lifeCounter(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			reg.Retry = sqlreq.Retry{Attempts: attempts, Within: time.Hour}
			read, written := make(chan struct{}), make(chan struct{})
			var slowRuns int
			slow := reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				slowRuns++
				return lifeIncrement(r.Context(), func() {
					if slowRuns == 1 {
						close(read)
						<-written
					}
				})
			}))
			quick := reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				return lifeIncrement(r.Context(), func() {})
			}))
			second := make(chan *httptest.ResponseRecorder)
			go func() { second <- lifeDo(slow) }()
			<-read
			first := lifeDo(quick)
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
	conflict := error(lifeConflict{})
	bound := func(reg *sqlreq.Registry) { reg.Retry.BodyLimit = 3 }
	tests := map[string]struct {
		runs    int // of 3 attempts, the third of which would succeed
		set     func(*sqlreq.Registry)
		faults  lifeFaults
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
		"by BEGIN": {runs: 3, faults: lifeFaults{begin: func(context.Context) error { return conflict }},
			handler: func(a attempt) error { _, err := sqlreq.Tx(a.r.Context()); return err }},
		"by BEGIN, answered 500": {runs: 3, faults: lifeFaults{begin: func(context.Context) error { return conflict }},
			handler: func(a attempt) error { _, _ = sqlreq.Tx(a.r.Context()); a.w.WriteHeader(500); return nil }},
		"by a statement, answered 500": {runs: 3, faults: lifeFaults{stmt: func(context.Context, string) error { return conflict }},
			handler: func(a attempt) error {
				_, _ = sqlreqtest.Main.ExecContext(a.r.Context(), sqlreqtest.InsertWork)
				http.Error(a.w, "broken", 500)
				return nil
			}},
		"by a statement, answered 400": {runs: 1, faults: lifeFaults{stmt: func(context.Context, string) error { return conflict }},
			handler: func(a attempt) error {
				_, _ = sqlreqtest.Main.ExecContext(a.r.Context(), sqlreqtest.InsertWork)
				http.Error(a.w, "broken", 400)
				return nil
			}},
		"by COMMIT": {runs: 3, faults: lifeFaults{commit: func() error { return conflict }},
			handler: func(a attempt) error { _, err := sqlreq.Tx(a.r.Context()); return err }},
		"by an explicit Commit": {runs: 3, faults: lifeFaults{commit: func() error { return conflict }},
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
			lifeExec(a.t, a.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return errors.Join(sqlreq.Rollback(a.r.Context()), conflict)
		}},
		"savepoint": {runs: 3, handler: func(a attempt) error {
			return sqlreq.Savepoint(a.r.Context(), func(context.Context) error { return conflict })
		}},
		"a Do that was rolled back": {runs: 3, handler: func(a attempt) error {
			_ = a.reg.Do(a.r.Context(), func(ctx context.Context) error {
				lifeExec(a.t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
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
			lifeExec(a.t, a.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return errors.Join(sqlreq.Commit(a.r.Context()), conflict)
		}},
		"one of several databases": {runs: 1, faults: lifeFaults{commit: func() error { return conflict }}, handler: func(a attempt) error {
			lifeExec(a.t, a.r.Context(), "other", sqlreqtest.InsertWork)
			lifeExec(a.t, a.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return nil
		}},
		"the first of several databases": {runs: 3, faults: lifeFaults{commit: func() error { return conflict }}, handler: func(a attempt) error {
			lifeExec(a.t, a.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			lifeExec(a.t, a.r.Context(), "other", sqlreqtest.InsertWork)
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
			faults: lifeFaults{done: func() error { return driver.ErrBadConn }},
			handler: func(a attempt) error {
				_, err := sqlreq.Tx(a.r.Context())
				return err
			}},
		"unknown outcome of a conflict": {runs: 1, faults: lifeFaults{commit: func() error { return errors.Join(driver.ErrBadConn, conflict) }},
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
			a.r.Context().Value(lifeCancelKey{}).(context.CancelFunc)()
			return conflict
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := lifeOpen(t, &tt.faults)
			other := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "other", DB: other})
			reg.Retry = sqlreq.Retry{Attempts: 3, Within: time.Hour, Backoff: lifeNoBackoff}
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
				h.ServeHTTP(w, r.WithContext(context.WithValue(ctx, lifeCancelKey{}, cancel)))
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
			lifeIdle(t, db)
			lifeIdle(t, other)
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
		return lifeConflict{}
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
	rec := lifeDo(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("X-Secret", "1")
		_, _ = io.WriteString(w, "half a page")
		return lifeConflict{}
	})))
	if rec.Code != 503 || rec.Header().Get("Retry-After") != "1" || rec.Header().Get("X-Secret") != "" || rec.Body.String() != "Service Unavailable\n" {
		t.Errorf("got %d %v %q, want a bare 503 with Retry-After: 1", rec.Code, rec.Header(), rec.Body)
	}
	if !slices.Equal(attempts, []int{1, 2, 3}) {
		t.Errorf("Backoff was given %v, want 1, 2, 3", attempts)
	}
	reg.ErrorHandler = func(_ http.ResponseWriter, _ *http.Request, err error) {
		if code := sqlreq.StatusCode(err); code != 503 || !errors.Is(err, lifeConflict{}) {
			t.Errorf("the ErrorHandler got %v of status %d, want the conflict and 503", err, code)
		}
	}
	lifeDo(reg.Middleware(sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return lifeConflict{} })))
}

func TestG9DoIsRunAgain(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var events lifeEvents
	reg.Observe = events.observe
	reg.Retry = sqlreq.Retry{Attempts: 3, Within: time.Hour}
	var log lifeLog
	runs := 0
	err := reg.Do(context.Background(), func(ctx context.Context) error {
		runs++
		log.hooks(t, ctx, sqlreqtest.Main, strconv.Itoa(runs))
		lifeExec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
		if runs < 3 {
			return lifeConflict{}
		}
		return nil
	})
	if n := sqlreqtest.Count(t, db, "work"); err != nil || runs != 3 || n != 1 || log.String() != "rollback1 rollback2 commit3" {
		t.Errorf("got %v after %d runs, %d rows, hooks %q", err, runs, n, &log)
	}
	if want := "main RolledBack 1, main RolledBack 2, main Committed 3"; events.String() != want {
		t.Errorf("got events %q, want %q", &events, want)
	}
	runs = 0
	err = reg.Do(context.Background(), func(ctx context.Context) error {
		runs++
		lifeExec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
		return errors.Join(sqlreq.Commit(ctx), lifeConflict{})
	})
	if runs != 1 || !errors.Is(err, lifeConflict{}) {
		t.Errorf("after a Commit: %d runs, %v", runs, err)
	}
}

// lifeAgain serves one request over TCP, with two failing attempts before the last.
func lifeAgain(t *testing.T, handler func(run int, w http.ResponseWriter, r *http.Request)) *httptest.Server {
	t.Helper()
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	reg.Retry = sqlreq.Retry{Attempts: 3, Within: time.Hour, Backoff: lifeNoBackoff}
	run := 0
	return sqlreqtest.Serve(t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		run++
		handler(run, w, r)
		if run < 3 {
			return lifeConflict{}
		}
		return nil
	})))
}

func TestG9BodyIsReplayed(t *testing.T) {
	tests := map[string]func(run int, r *http.Request) string{
		"read whole": func(_ int, r *http.Request) string { b, _ := io.ReadAll(r.Body); return string(b) },
		"read in part first": func(run int, r *http.Request) string {
			if run < 3 {
				_, _ = io.ReadFull(r.Body, make([]byte, run))
				return "a=1&b=2"
			}
			b, _ := io.ReadAll(r.Body)
			return string(b)
		},
		"closed first": func(run int, r *http.Request) string {
			if run < 3 {
				_ = r.Body.Close()
				return "a=1&b=2"
			}
			b, _ := io.ReadAll(r.Body)
			return string(b)
		},
		"a form": func(_ int, r *http.Request) string {
			return "a=" + r.FormValue("a") + "&b=" + r.PostFormValue("b")
		},
		"a form that the attempt changes": func(_ int, r *http.Request) string {
			s := "a=" + r.FormValue("a") + "&b=" + r.PostFormValue("b")
			r.Form.Set("a", "changed")
			r.PostForm.Set("b", "changed")
			return s
		},
	}
	for name, read := range tests {
		t.Run(name, func(t *testing.T) {
			srv := lifeAgain(t, func(run int, w http.ResponseWriter, r *http.Request) {
				if got := read(run, r); got != "a=1&b=2" {
					t.Errorf("attempt %d read %q", run, got)
				}
				_, _ = fmt.Fprint(w, run)
			})
			res, err := http.Post(srv.URL, "application/x-www-form-urlencoded", strings.NewReader("a=1&b=2"))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if b, err := io.ReadAll(res.Body); string(b) != "3" || err != nil {
				t.Errorf("got %q %v, want the third attempt", b, err)
			}
		})
	}
}

// The client sends what comes next only when an attempt has read what was there.
func TestG9BodyIsNotReadAhead(t *testing.T) {
	body, client := io.Pipe()
	parts := []string{"one", "two", "three"}
	srv := lifeAgain(t, func(run int, w http.ResponseWriter, r *http.Request) {
		for i, part := range parts[:run] {
			if i == run-1 {
				go func() { _, _ = io.WriteString(client, part) }()
			}
			got := make([]byte, len(part))
			if _, err := io.ReadFull(r.Body, got); err != nil || string(got) != part {
				t.Errorf("attempt %d read %q %v, want %q", run, got, err, part)
			}
		}
		if run == 3 {
			_ = client.Close()
			if b, err := io.ReadAll(r.Body); len(b) > 0 || err != nil {
				t.Errorf("after the end: %q %v", b, err)
			}
		}
		_, _ = fmt.Fprint(w, run)
	})
	res, err := http.Post(srv.URL, "text/plain", body)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); res.StatusCode != 200 || string(b) != "3" {
		t.Errorf("got %d %q", res.StatusCode, b)
	}
}

func TestG9TemporaryFilesOfFailedAttemptsAreRemoved(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	files := func() int {
		all, err := os.ReadDir(dir)
		if err != nil {
			t.Error(err)
		}
		return len(all)
	}
	srv := lifeAgain(t, func(run int, _ http.ResponseWriter, r *http.Request) {
		if n := files(); n != 0 {
			t.Errorf("attempt %d begins with %d temporary files", run, n)
		}
		if err := r.ParseMultipartForm(1); err != nil {
			t.Error(err)
			return
		}
		if n := files(); n != 1 {
			t.Errorf("attempt %d has %d temporary files, want 1", run, n)
		}
		f, _, err := r.FormFile("file")
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		if b, err := io.ReadAll(f); string(b) != strings.Repeat("x", 1000) || err != nil {
			t.Errorf("attempt %d read %d bytes, %v", run, len(b), err)
		}
	})
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	part, _ := w.CreateFormFile("file", "file.txt")
	_, _ = io.WriteString(part, strings.Repeat("x", 1000))
	_ = w.Close()
	res, err := http.Post(srv.URL, w.FormDataContentType(), &form)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	srv.Close() // net/http removes those of the last attempt after the response
	if n := files(); res.StatusCode != 200 || n != 0 {
		t.Errorf("got %d, %d temporary files stayed", res.StatusCode, n)
	}
}

func TestG9EachAttemptGetsTheRequestAsItArrived(t *testing.T) {
	var seen []string
	mux := http.NewServeMux()
	mux.Handle("GET /x/{id}", sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		seen[len(seen)-1] += fmt.Sprint(" id=", r.PathValue("id"), " pattern=", r.Pattern)
		r.SetPathValue("id", "changed")
		w.Header().Add("X-Attempt", strconv.Itoa(len(seen)))
		if len(seen) < 3 {
			return lifeConflict{}
		}
		return nil
	}))
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	reg.Retry = sqlreq.Retry{Attempts: 3, Within: time.Hour, Backoff: lifeNoBackoff}
	outside := http.NewServeMux()
	outside.Handle("/{first}/{rest...}", reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, fmt.Sprint(r.Method, " ", r.URL, " ", r.Header["X-A"], " ", w.Header()["X-Attempt"], " first=", r.PathValue("first"), " ", r.Pattern))
		r.Header.Set("X-A", "changed")
		r.Header.Add("X-B", "added")
		defer mux.ServeHTTP(w, r)
		r.Method = "GET"
		r.URL.RawQuery = "changed"
		r.URL.Path = "/x/7"
	})))
	srv := sqlreqtest.Serve(t, outside)
	req, _ := http.NewRequest("POST", srv.URL+"/x/y?q=1", nil)
	req.Header.Set("X-A", "as it arrived")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	want := "POST /x/y?q=1 [as it arrived] [] first=x /{first}/{rest...} id=7 pattern=GET /x/{id}"
	if !slices.Equal(seen, []string{want, want, want}) || !slices.Equal(res.Header["X-Attempt"], []string{"3"}) {
		t.Errorf("got %s\nwant three times %s\nand header %q", strings.Join(seen, "\n"), want, res.Header["X-Attempt"])
	}
}

func TestG9TrailersOfTheRequestAreVisibleInEachAttempt(t *testing.T) {
	srv := lifeAgain(t, func(run int, _ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if got := r.Trailer.Get("X-Sum"); got != "42" {
			t.Errorf("attempt %d: trailer %q, want 42", run, got)
		}
	})
	req, _ := http.NewRequest("POST", srv.URL, struct{ io.Reader }{strings.NewReader("body")})
	req.Trailer = http.Header{"X-Sum": {"42"}}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != 200 {
		t.Errorf("got %d", res.StatusCode)
	}
}

// What a goroutine of the first attempt still does, during the last one, reaches nobody.
func TestG9StaleAttemptDisturbsNothing(t *testing.T) {
	tests := map[string]func(t *testing.T, w http.ResponseWriter, r *http.Request){
		"Write": func(_ *testing.T, w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "stale") },
		"WriteString": func(_ *testing.T, w http.ResponseWriter, _ *http.Request) {
			_, _ = w.(io.StringWriter).WriteString("stale")
		},
		"ReadFrom": func(_ *testing.T, w http.ResponseWriter, _ *http.Request) {
			_, _ = w.(io.ReaderFrom).ReadFrom(strings.NewReader("stale"))
		},
		"WriteHeader": func(_ *testing.T, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(418) },
		"early hints": func(_ *testing.T, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", "stale")
			w.WriteHeader(103)
		},
		"Flush":  func(_ *testing.T, w http.ResponseWriter, _ *http.Request) { _ = http.NewResponseController(w).Flush() },
		"Header": func(_ *testing.T, w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Attempt", "stale") },
		"Hijack": func(t *testing.T, w http.ResponseWriter, _ *http.Request) {
			if _, _, err := http.NewResponseController(w).Hijack(); err == nil {
				t.Error("a stale Hijack took the connection")
			}
		},
		"body": func(t *testing.T, _ http.ResponseWriter, r *http.Request) {
			if n, err := r.Body.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("read %d bytes, %v", n, err)
			}
		},
		"transaction": func(t *testing.T, _ http.ResponseWriter, r *http.Request) { lifeFinished(t, r.Context()) },
	}
	for name, stale := range tests {
		t.Run(name, func(t *testing.T) {
			last, done := make(chan struct{}), make(chan struct{})
			srv := lifeAgain(t, func(run int, w http.ResponseWriter, r *http.Request) {
				switch run {
				case 1:
					go func() {
						defer close(done)
						<-last
						stale(t, w, r)
					}()
				case 3:
					w.Header().Set("X-Attempt", "3")
					close(last)
					<-done
					w.WriteHeader(201)
					_, _ = io.Copy(w, r.Body)
				}
			})
			res, err := http.Post(srv.URL, "text/plain", strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			if res.StatusCode != 201 || string(b) != "body" || err != nil || res.Header.Get("X-Attempt") != "3" {
				t.Errorf("got %d %q %v %v, want what the last attempt answered", res.StatusCode, b, err, res.Header)
			}
		})
	}
}

// A Read of the first attempt is under way in the body when the next attempt begins.
func TestG9StaleReadStealsNothing(t *testing.T) {
	body, client := io.Pipe()
	stale := make(chan error, 1)
	srv := lifeAgain(t, func(run int, w http.ResponseWriter, r *http.Request) {
		switch run {
		case 1:
			reading := make(chan struct{})
			go func() {
				close(reading)
				_, err := r.Body.Read(make([]byte, 4))
				stale <- err
			}()
			<-reading
		case 3:
			go func() {
				_, _ = io.WriteString(client, "body")
				_ = client.Close()
			}()
			_, _ = io.Copy(w, r.Body)
		}
	})
	res, err := http.Post(srv.URL, "text/plain", body)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); string(b) != "body" || err != nil {
		t.Errorf("got %q %v, want the whole body", b, err)
	}
	if err := <-stale; err == nil {
		t.Error("the stale Read got bytes")
	}
}

// lifeCancels are functions that the SQL function life_cancel calls, by number.
var lifeCancels struct {
	sync.Mutex
	all []func()
}

func init() {
	sqlite.MustRegisterScalarFunction("life_cancel", 1, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		lifeCancels.Lock()
		defer lifeCancels.Unlock()
		lifeCancels.all[args[0].(int64)]()
		return "x", nil
	})
}

// lifeEndless is a query without end that ends the context by cancel on the way.
func lifeEndless(cancel func()) string {
	lifeCancels.Lock()
	defer lifeCancels.Unlock()
	lifeCancels.all = append(lifeCancels.all, cancel)
	return fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "+
		"SELECT CASE WHEN i = 10 THEN life_cancel(%d) ELSE 'x' END AS v FROM n", len(lifeCancels.all)-1)
}

// lifeRefused checks that no statement of a Key runs any more.
func lifeRefused(t testing.TB, ctx context.Context, cause func(error) bool) {
	t.Helper()
	_, exec := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
	_, query := sqlreqtest.Main.QueryContext(ctx, "SELECT 1") //nolint:sqlclosecheck,rowserrcheck
	_, prepare := sqlreqtest.Main.PrepareContext(ctx, sqlreqtest.InsertWork)
	_, tx := sqlreq.Tx(ctx)
	row := sqlreqtest.Main.QueryRowContext(ctx, "SELECT 1").Err()
	savepoint := sqlreq.Savepoint(ctx, func(context.Context) error { t.Error("the Savepoint ran"); return nil })
	for name, err := range map[string]error{
		"ExecContext": exec, "QueryContext": query, "PrepareContext": prepare, "QueryRowContext": row, "Tx": tx, "Savepoint": savepoint,
	} {
		if err == nil || !cause(err) {
			t.Errorf("%s: got %v, want the cause", name, err)
		}
	}
}

func lifeCode(code int) func(error) bool {
	return func(err error) bool {
		var e *sqlite.Error
		return errors.As(err, &e) && e.Code() == code
	}
}

// An INSERT that is interrupted ends SQLite's whole transaction: what follows would commit by itself.
func TestG11ContextEndsDuringAStatement(t *testing.T) {
	ways := map[string]func(ctx context.Context, insert string) error{
		"ExecContext": func(ctx context.Context, insert string) error {
			_, err := sqlreqtest.Main.ExecContext(ctx, insert)
			return err
		},
		"QueryContext": func(ctx context.Context, insert string) error {
			_, err := sqlreqtest.Main.QueryContext(ctx, insert+" RETURNING id")
			return err
		}, //nolint:sqlclosecheck,rowserrcheck
		"QueryRowContext": func(ctx context.Context, insert string) error {
			var id int
			return sqlreqtest.Main.QueryRowContext(ctx, insert+" RETURNING id").Scan(&id)
		},
		"in a Savepoint": func(ctx context.Context, insert string) error {
			return sqlreq.Savepoint(ctx, func(ctx context.Context) error {
				_, err := sqlreqtest.Main.ExecContext(ctx, insert)
				return err
			})
		},
		"in a Savepoint that hides it": func(ctx context.Context, insert string) (err error) {
			return errors.Join(sqlreq.Savepoint(ctx, func(ctx context.Context) error {
				_, err = sqlreqtest.Main.ExecContext(ctx, insert)
				return nil
			}), err)
		},
	}
	for name, run := range ways {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			var events lifeEvents
			reg.Observe = events.observe
			var log lifeLog
			rec := lifeDo(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				log.hooks(t, r.Context(), sqlreqtest.Main, "")
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				if err := run(ctx, "INSERT INTO work (note) "+lifeEndless(cancel)); err == nil {
					t.Error("the statement was not interrupted")
				}
				lifeRefused(t, r.Context(), func(error) bool { return true })
				w.WriteHeader(201)
			})))
			if n := sqlreqtest.Count(t, db, "work"); rec.Code != 500 || n != 0 || log.String() != "rollback" || events.String() != "main RolledBack 1" {
				t.Errorf("got %d, %d rows, hooks %q, events %q; want 500 and nothing", rec.Code, n, &log, &events)
			}
			lifeIdle(t, db)
		})
	}
}

func TestG11UsableAgainAfterASavepoint(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		lifeNote(t, r.Context(), sqlreqtest.Main, "before")
		err := sqlreq.Savepoint(r.Context(), func(outer context.Context) error {
			ctx, cancel := context.WithCancel(outer)
			defer cancel()
			lifeNote(t, ctx, sqlreqtest.Main, "inside")
			// An interrupted read leaves SQLite's transaction alone.
			var n int
			err := sqlreqtest.Main.QueryRowContext(ctx, "SELECT count(v) FROM ("+lifeEndless(cancel)+")").Scan(&n)
			if err == nil {
				t.Error("the query was not interrupted")
			}
			lifeRefused(t, outer, func(error) bool { return true })
			return err
		})
		if err == nil {
			t.Error("Savepoint returned no error")
		}
		lifeNote(t, r.Context(), sqlreqtest.Main, "after")
	})))
	if got := lifeNotes(t, db); rec.Code != 200 || got != "before after" {
		t.Errorf("got %d and %q, want 200 and what was outside", rec.Code, got)
	}
}

func TestG11RollbackBeginsAnew(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		lifeNote(t, r.Context(), sqlreqtest.Main, "before")
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		_, _ = sqlreqtest.Main.ExecContext(ctx, "INSERT INTO work (note) "+lifeEndless(cancel))
		if err := sqlreq.Rollback(r.Context()); err != nil {
			t.Error(err)
		}
		lifeNote(t, r.Context(), sqlreqtest.Main, "after")
	})))
	if got := lifeNotes(t, db); rec.Code != 200 || got != "after" {
		t.Errorf("got %d and %q", rec.Code, got)
	}
}

func TestG11CommitOfABrokenTransactionFails(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		_, _ = sqlreqtest.Main.ExecContext(ctx, "INSERT INTO work (note) "+lifeEndless(cancel))
		if err := sqlreq.Commit(r.Context()); err == nil {
			t.Error("an explicit Commit succeeded")
		}
	})))
	if n := sqlreqtest.Count(t, db, "work"); rec.Code != 500 || n != 0 {
		t.Errorf("got %d and %d rows", rec.Code, n)
	}
}

// A context that had ended before the statement, or a statement refused for what it says, ends nothing.
func TestG11HarmlessErrors(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		lifeNote(t, r.Context(), sqlreqtest.Main, "before")
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		if _, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		for _, query := range []string{"nonsense", "INSERT INTO work (id) VALUES (1)", "INSERT INTO work (note) VALUES (NULL)"} {
			if _, err := sqlreqtest.Main.ExecContext(r.Context(), query); err == nil {
				t.Errorf("%s: no error", query)
			}
		}
		lifeNote(t, r.Context(), sqlreqtest.Main, "after")
	})))
	if got := lifeNotes(t, db); rec.Code != 200 || got != "before after" {
		t.Errorf("got %d and %q", rec.Code, got)
	}
}

func TestG11DatabaseFull(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	db.SetMaxOpenConns(1) // the limit is the connection's
	if _, err := db.Exec("PRAGMA max_page_count = 20"); err != nil {
		t.Fatal(err)
	}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	const fill = "INSERT INTO work (note) VALUES (zeroblob(1000000))"
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), fill); !lifeCode(13)(err) {
			t.Errorf("got %v, want SQLITE_FULL", err)
		}
		lifeRefused(t, r.Context(), lifeCode(13))
		w.WriteHeader(201)
	})))
	if n := sqlreqtest.Count(t, db, "work"); rec.Code != 500 || n != 0 {
		t.Errorf("got %d and %d rows, want 500 and none", rec.Code, n)
	}
	lifeIdle(t, db)
}

// What a handler does to the transaction through *sql.Tx itself is found out by Guard only.
func TestG11Guard(t *testing.T) {
	tests := map[string]struct {
		guard     bool
		stmts     []string
		code      int
		notes     string
		outcome   sqlreq.Outcome
		ambiguous bool
		hooks     string
	}{
		"guard":                          {true, nil, 200, "before after", sqlreq.Committed, false, "commit"},
		"guard, ROLLBACK":                {true, []string{"ROLLBACK"}, 500, "after", sqlreq.CommitFailed, true, ""},
		"guard, COMMIT":                  {true, []string{"COMMIT"}, 500, "before after", sqlreq.CommitFailed, true, ""},
		"guard, another transaction":     {true, []string{"COMMIT", "BEGIN"}, 500, "before", sqlreq.CommitFailed, true, ""},
		"no guard, ROLLBACK":             {false, []string{"ROLLBACK"}, 500, "after", sqlreq.CommitFailed, false, "rollback"},
		"no guard, another transaction":  {false, []string{"ROLLBACK", "BEGIN"}, 200, "after", sqlreq.Committed, false, "commit"},
		"guard, its own savepoints live": {true, []string{"SAVEPOINT a", "ROLLBACK TO a", "RELEASE a"}, 200, "before after", sqlreq.Committed, false, "commit"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, Guard: tt.guard})
			var events lifeEvents
			reg.Observe = events.observe
			var failure *sqlreq.CommitError
			reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
				errors.As(err, &failure)
				w.WriteHeader(sqlreq.StatusCode(err))
			}
			var log lifeLog
			rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				log.hooks(t, r.Context(), sqlreqtest.Main, "")
				tx, err := sqlreq.Tx(r.Context())
				if err != nil {
					t.Error(err)
					return
				}
				for _, stmt := range slices.Concat([]string{"INSERT INTO work (note) VALUES ('before')"}, tt.stmts, []string{"INSERT INTO work (note) VALUES ('after')"}) {
					if _, err := tx.ExecContext(r.Context(), stmt); err != nil {
						t.Errorf("%s: %v", stmt, err)
					}
				}
			})))
			if notes := lifeNotes(t, db); rec.Code != tt.code || notes != tt.notes || log.String() != tt.hooks {
				t.Errorf("got %d, %q, hooks %q; want %d, %q, %q", rec.Code, notes, &log, tt.code, tt.notes, tt.hooks)
			}
			if want := fmt.Sprintf("main %v 1", tt.outcome); events.String() != want {
				t.Errorf("got events %q, want %q", &events, want)
			}
			if (failure != nil) != (tt.code != 200) || failure != nil && failure.Ambiguous != tt.ambiguous {
				t.Errorf("got %+v, want ambiguous: %t", failure, tt.ambiguous)
			}
			lifeIdle(t, db)
		})
	}
}

// lifeEnded ends the transaction by the methods of *sql.Tx.
func lifeEnded(end func(*sql.Tx) error) func(*testing.T, http.ResponseWriter, *http.Request) error {
	return func(_ *testing.T, _ http.ResponseWriter, r *http.Request) error {
		tx, err := sqlreq.Tx(r.Context())
		if err != nil {
			return err
		}
		return end(tx)
	}
}

func TestObserveIsToldOfEveryTransaction(t *testing.T) {
	conflict := lifeConflict{}
	tests := map[string]struct {
		want    string
		errs    []error // of the events
		set     func(*sqlreq.Registry)
		faults  lifeFaults
		handler func(t *testing.T, w http.ResponseWriter, r *http.Request) error
	}{
		"nothing begun": {want: "", handler: func(_ *testing.T, _ http.ResponseWriter, r *http.Request) error {
			return sqlreq.AfterCommit(r.Context(), func(context.Context) {})
		}},
		"commit": {want: "main Committed 1", errs: []error{nil}, handler: func(t *testing.T, _ http.ResponseWriter, r *http.Request) error {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return nil
		}},
		"status": {want: "main RolledBack 1", errs: []error{nil}, handler: func(t *testing.T, w http.ResponseWriter, r *http.Request) error {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			w.WriteHeader(404)
			return nil
		}},
		"error": {want: "main RolledBack 1", errs: []error{sqlreqtest.ErrTest}, handler: func(t *testing.T, _ http.ResponseWriter, r *http.Request) error {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return sqlreqtest.ErrTest
		}},
		"panic": {want: "main RolledBack 1", handler: func(t *testing.T, _ http.ResponseWriter, r *http.Request) error {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			panic(http.ErrAbortHandler)
		}},
		"failed COMMIT": {want: "main CommitFailed 1", errs: []error{sqlreqtest.ErrTest}, faults: lifeFaults{commit: func() error { return sqlreqtest.ErrTest }},
			handler: func(t *testing.T, _ http.ResponseWriter, r *http.Request) error {
				lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				return nil
			}},
		"ended by Commit":   {want: "main Ended 1", errs: []error{sqlreq.ErrTxEnded}, handler: lifeEnded((*sql.Tx).Commit)},
		"ended by Rollback": {want: "main Ended 1", errs: []error{sqlreq.ErrTxEnded}, handler: lifeEnded((*sql.Tx).Rollback)},
		"read-only": {want: "main Committed 1", errs: []error{nil}, handler: func(_ *testing.T, _ http.ResponseWriter, r *http.Request) error {
			_, err := sqlreq.BeginTx(r.Context(), &sql.TxOptions{ReadOnly: true})
			return err
		}},
		"explicit": {want: "main Committed 1, main RolledBack 1, main Committed 1", errs: []error{nil, nil, nil},
			handler: func(t *testing.T, _ http.ResponseWriter, r *http.Request) error {
				lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				err := sqlreq.Commit(r.Context())
				lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				err = errors.Join(err, sqlreq.Rollback(r.Context()))
				lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				return err
			}},
		"retries": {want: "main RolledBack 1, main RolledBack 2, main RolledBack 3", errs: []error{conflict, conflict, conflict},
			set: func(reg *sqlreq.Registry) {
				reg.Retry = sqlreq.Retry{Attempts: 3, Within: time.Hour, Backoff: lifeNoBackoff}
			},
			handler: func(t *testing.T, _ http.ResponseWriter, r *http.Request) error {
				lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				return conflict
			}},
		"failed BEGIN": {want: "", faults: lifeFaults{begin: func(context.Context) error { return sqlreqtest.ErrTest }},
			handler: func(_ *testing.T, _ http.ResponseWriter, r *http.Request) error {
				_, err := sqlreq.Tx(r.Context())
				return err
			}},
		"several": {want: "other Committed 1, main CommitFailed 1, third RolledBack 1", faults: lifeFaults{commit: func() error { return sqlreqtest.ErrTest }},
			handler: func(t *testing.T, _ http.ResponseWriter, r *http.Request) error {
				lifeExec(t, r.Context(), "other", sqlreqtest.InsertWork)
				lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				lifeExec(t, r.Context(), "third", sqlreqtest.InsertWork)
				return nil
			}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := lifeOpen(t, &tt.faults)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "alias", DB: db},
				sqlreq.Binding{Key: "other", DB: sqlreqtest.OpenDB(t)}, sqlreq.Binding{Key: "third", DB: sqlreqtest.OpenDB(t)})
			if tt.set != nil {
				tt.set(reg)
			}
			var events lifeEvents
			reg.Observe = events.observe
			func() {
				defer func() { _ = recover() }()
				lifeDo(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
					return tt.handler(t, w, r)
				})))
			}()
			if events.String() != tt.want {
				t.Errorf("got %q, want %q", &events, tt.want)
			}
			for i, e := range events.all {
				if e.Wait < 0 || e.Open < 0 || e.End < 0 || e.Wait > time.Hour || e.Open > time.Hour || e.End > time.Hour {
					t.Errorf("durations %v, %v, %v", e.Wait, e.Open, e.End)
				}
				if i < len(tt.errs) && (!errors.Is(e.Err, tt.errs[i]) || (e.Err == nil) != (tt.errs[i] == nil)) {
					t.Errorf("event %d: got %v, want %v", i, e.Err, tt.errs[i])
				}
			}
			lifeIdle(t, db)
		})
	}
}

func TestObserveIsToldTheKeyThatBegan(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "inner", DB: sqlreqtest.OpenDB(t)})
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "alias", DB: db})
	var events, innerEvents lifeEvents
	reg.Observe, inner.Observe = events.observe, innerEvents.observe
	lifeDo(reg.Middleware(inner.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		lifeExec(t, r.Context(), "alias", sqlreqtest.InsertWork)
		lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		lifeExec(t, r.Context(), "inner", sqlreqtest.InsertWork)
		if err := sqlreq.Commit(r.Context()); err != nil { // of the other key's
			t.Error(err)
		}
		lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
	}))))
	if want := "alias Committed 1, main Committed 1"; events.String() != want {
		t.Errorf("got %q, want %q", &events, want)
	}
	if want := "inner Committed 1"; innerEvents.String() != want {
		t.Errorf("nested: got %q, want %q", &innerEvents, want)
	}
}

// A BEGIN that succeeds after the request is over, or after its context has
// ended, is rolled back by sqlreq, and told.
func TestObserveIsToldOfALateBegin(t *testing.T) {
	for _, late := range []string{"the request is over", "its context has ended"} {
		t.Run(late, func(t *testing.T) {
			begun, goOn := make(chan struct{}), make(chan struct{})
			db := lifeOpen(t, &lifeFaults{begun: func(context.Context) { close(begun); <-goOn }})
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			told := make(chan sqlreq.Event, 2)
			reg.Observe = func(_ context.Context, e sqlreq.Event) { told <- e }
			got := make(chan error, 1)
			rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				go func() {
					_, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
					got <- err
				}()
				<-begun
				if late == "its context has ended" {
					cancel()
					close(goOn)
					if err := <-got; !errors.Is(err, context.Canceled) {
						t.Errorf("got %v, want that the context was cancelled", err)
					}
				}
			})))
			if late == "the request is over" {
				close(goOn)
				if err := <-got; !errors.Is(err, sqlreq.ErrFinished) {
					t.Errorf("got %v, want ErrFinished", err)
				}
			}
			if e := <-told; e.Outcome != sqlreq.RolledBack || e.Key != sqlreqtest.Main {
				t.Errorf("got %+v, want that it was rolled back", e)
			}
			if n := sqlreqtest.Count(t, db, "work"); rec.Code != 200 || n != 0 {
				t.Errorf("got %d and %d rows", rec.Code, n)
			}
			// The rollback may be one of database/sql's own, in a goroutine that nobody can wait for.
			for db.Stats().InUse > 0 {
				runtime.Gosched()
			}
			lifeIdle(t, db)
		})
	}
}

// A late BEGIN has committed nothing, so that it rules out no retry.
func TestG9LateBeginIsRunAgain(t *testing.T) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	faults := &lifeFaults{}
	db := lifeOpen(t, faults)
	var once sync.Once
	faults.begun = func(context.Context) { once.Do(func() { close(begun); <-goOn }) }
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	reg.Retry = sqlreq.Retry{Attempts: 2, Within: time.Hour, Backoff: lifeNoBackoff}
	runs := 0
	rec := lifeDo(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		if runs++; runs == 2 {
			lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
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
		return lifeConflict{}
	})))
	if n := sqlreqtest.Count(t, db, "work"); rec.Code != 200 || runs != 2 || n != 1 {
		t.Errorf("got %d after %d runs, %d rows; want 200 after 2, 1 row", rec.Code, runs, n)
	}
}

func TestObserveMayPanicAndUseNothing(t *testing.T) {
	for _, explicit := range []bool{false, true} {
		t.Run(fmt.Sprint("explicit ", explicit), func(t *testing.T) {
			type valueKey struct{}
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			var out bytes.Buffer
			reg.Logger = slog.New(slog.NewTextHandler(&out, nil))
			told := 0
			reg.Observe = func(ctx context.Context, _ sqlreq.Event) {
				told++
				if ctx.Value(valueKey{}) != "value" {
					t.Error("the context is not that of the request")
				}
				lifeFinished(t, ctx)
				panic("boom")
			}
			h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				if explicit {
					if err := sqlreq.Commit(r.Context()); err != nil {
						t.Error(err)
					}
				}
				w.WriteHeader(201)
			}))
			rec := httptest.NewRecorder()
			ctx := context.WithValue(context.Background(), valueKey{}, "value")
			h.ServeHTTP(rec, httptest.NewRequestWithContext(ctx, "POST", "/path", nil))
			if n := sqlreqtest.Count(t, db, "work"); rec.Code != 201 || n != 1 || told != 1 {
				t.Errorf("got %d, %d rows, %d events", rec.Code, n, told)
			}
			if !strings.Contains(out.String(), "panic=boom") || !strings.Contains(out.String(), "lifeFinished") && !strings.Contains(out.String(), "life_test.go") {
				t.Errorf("the log lacks the panic or its stack: %s", &out)
			}
		})
	}
}

func TestOutcomeString(t *testing.T) {
	for o, want := range map[sqlreq.Outcome]string{
		sqlreq.Committed: "Committed", sqlreq.RolledBack: "RolledBack", sqlreq.CommitFailed: "CommitFailed", sqlreq.Ended: "Ended",
	} {
		if got := o.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := sqlreq.Outcome(99).String(); !strings.Contains(got, "99") {
		t.Errorf("an unknown one: %q", got)
	}
}

// lifeRecords is a slog.Handler that keeps what was logged.
type lifeRecords struct {
	slog.Handler
	mu  sync.Mutex
	all []slog.Record
}

func (l *lifeRecords) Enabled(context.Context, slog.Level) bool { return true }
func (l *lifeRecords) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, r)
	return nil
}

func TestLoggerAttributes(t *testing.T) {
	tests := map[string]struct {
		key     sqlreq.Key
		attempt int64
		err     error
		stream  bool
	}{
		"an error":               {sqlreqtest.Main, 1, sqlreqtest.ErrTest, false},
		"of the second attempt":  {sqlreqtest.Main, 2, sqlreqtest.ErrTest, false},
		"of COMMIT":              {"other", 1, &sqlreq.CommitError{}, false},
		"after streaming began":  {sqlreqtest.Main, 1, sqlreqtest.ErrTest, true},
		"after several attempts": {sqlreqtest.Main, 2, lifeConflict{}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			records := &lifeRecords{Handler: slog.DiscardHandler}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}, sqlreq.Binding{Key: "other", DB: sqlreqtest.OpenDB(t)})
			reg.Logger = slog.New(records)
			reg.Retry = sqlreq.Retry{Attempts: 2, Within: time.Hour, Backoff: lifeNoBackoff}
			runs := int64(0)
			func() {
				defer func() { _ = recover() }()
				lifeDo(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
					runs++
					lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
					if tt.stream {
						w.(http.Flusher).Flush()
					}
					if tt.key == "other" {
						lifeExec(t, r.Context(), "other", sqlreqtest.BreakCommit)
						return nil
					}
					if runs < tt.attempt {
						return lifeConflict{}
					}
					return tt.err
				})))
			}()
			if len(records.all) != 1 {
				t.Fatalf("%d records, want 1: %v", len(records.all), records.all)
			}
			attrs := make(map[string]slog.Value)
			records.all[0].Attrs(func(a slog.Attr) bool { attrs[a.Key] = a.Value; return true })
			err, _ := attrs["err"].Any().(error)
			_, isCommit := tt.err.(*sqlreq.CommitError)
			is := errors.Is(err, tt.err)
			if isCommit {
				var c *sqlreq.CommitError
				is = errors.As(err, &c)
			}
			if records.all[0].Level != slog.LevelError || attrs["method"].String() != "POST" || attrs["path"].String() != "/path" ||
				attrs["key"].String() != string(tt.key) || attrs["attempt"].Int64() != tt.attempt || !is {
				t.Errorf("got %v %v", records.all[0].Level, attrs)
			}
		})
	}
}

// lifeTest is the transaction of a test, rolled back at its end.
func lifeTest(t testing.TB, db *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	return tx
}

// lifeTxNotes returns the notes that the test's transaction sees.
func lifeTxNotes(t testing.TB, tx *sql.Tx) string {
	t.Helper()
	var notes sql.NullString
	if err := tx.QueryRow("SELECT group_concat(note, ' ') FROM (SELECT note FROM work ORDER BY id)").Scan(&notes); err != nil {
		t.Fatal(err)
	}
	return notes.String
}

func TestBindingTxLeavesNothing(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	test := lifeTest(t, db)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test})
	var events lifeEvents
	reg.Observe = events.observe
	var log lifeLog
	steps := []struct {
		path, sees, hooks, event string
		code                     int
	}{
		{"/one", "", "commit", "main Committed 1", 200},
		{"/fails", "one", "rollback", "main RolledBack 1", 500},
		{"/two", "one", "commit", "main Committed 1", 200},
		{"/readonly", "one two", "commit", "main Committed 1", 200},
		{"/panics", "one two", "rollback", "main RolledBack 1", 0},
		{"/savepoint", "one two", "commit", "main Committed 1", 200},
		{"/explicit", "one two savepoint", "commit", "main Committed 1, main RolledBack 1, main Committed 1", 200},
		{"/three", "one two savepoint explicit last", "commit", "main Committed 1", 200},
	}
	h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		log.hooks(t, r.Context(), sqlreqtest.Main, "")
		name := r.URL.Path[1:]
		if name == "readonly" {
			if _, err := sqlreq.BeginTx(r.Context(), &sql.TxOptions{ReadOnly: true}); err != nil {
				return err
			}
		}
		tx, err := sqlreq.Tx(r.Context())
		if err != nil {
			return err
		}
		_, _ = io.WriteString(w, lifeTxNotes(t, tx))
		lifeNote(t, r.Context(), sqlreqtest.Main, name)
		switch name {
		case "fails":
			return sqlreqtest.ErrTest
		case "panics":
			panic(http.ErrAbortHandler)
		case "savepoint":
			_ = sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
				lifeNote(t, ctx, sqlreqtest.Main, "never")
				return sqlreqtest.ErrTest
			})
		case "explicit":
			err := sqlreq.Commit(r.Context())
			lifeNote(t, r.Context(), sqlreqtest.Main, "never")
			err = errors.Join(err, sqlreq.Rollback(r.Context()))
			lifeNote(t, r.Context(), sqlreqtest.Main, "last")
			return err
		}
		return nil
	}))
	for _, step := range steps {
		events.all, log.words = nil, nil
		rec := httptest.NewRecorder()
		func() {
			defer func() { _ = recover() }()
			h.ServeHTTP(rec, httptest.NewRequest("POST", step.path, nil))
		}()
		if step.code != 0 && rec.Code != step.code || step.code == 200 && rec.Body.String() != step.sees {
			t.Errorf("%s: got %d %q, want %d %q", step.path, rec.Code, rec.Body, step.code, step.sees)
		}
		if log.String() != step.hooks || events.String() != step.event {
			t.Errorf("%s: hooks %q, events %q; want %q, %q", step.path, &log, &events, step.hooks, step.event)
		}
	}
	if err := test.Rollback(); err != nil {
		t.Error(err)
	}
	if got := lifeNotes(t, db); got != "" {
		t.Errorf("%q stayed", got)
	}
	lifeIdle(t, db)
}

func TestBindingTxRequestsTakeTurns(t *testing.T) {
	test := lifeTest(t, sqlreqtest.OpenDB(t))
	one, two := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test}), sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "two", Tx: test})
	first, goOn := make(chan struct{}), make(chan struct{})
	waiting := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		rec := lifeDo(one.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
			lifeNote(t, r.Context(), sqlreqtest.Main, "first")
			close(first)
			<-goOn
			lifeNote(t, r.Context(), sqlreqtest.Main, "first")
			return sqlreqtest.ErrTest
		})))
		if rec.Code != 500 {
			t.Errorf("the first: %d", rec.Code)
		}
	})
	<-first
	// Its context ends while it waits for its turn.
	rec := lifeDo(two.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		ctx, cancel := context.WithCancel(r.Context())
		go cancel()
		_, err := sqlreq.Key("two").Tx(ctx)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want that the wait was cancelled", err)
		}
		return nil
	})))
	if rec.Code != 200 {
		t.Errorf("the one that gave up: %d", rec.Code)
	}
	wg.Go(func() {
		rec := lifeDo(two.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
			close(waiting)
			_, err := sqlreq.Key("two").ExecContext(r.Context(), "INSERT INTO work (note) VALUES ('second')")
			return err
		})))
		if rec.Code != 200 {
			t.Errorf("the second: %d", rec.Code)
		}
	})
	<-waiting
	close(goOn)
	wg.Wait()
	if got := lifeTxNotes(t, test); got != "second" {
		t.Errorf("got %q, want what the second one wrote: the first was rolled back", got)
	}
	for range 20 {
		wg.Go(func() {
			lifeDo(one.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				runtime.Gosched()
				return sqlreqtest.ErrTest
			})))
		})
	}
	wg.Wait()
	if got := lifeTxNotes(t, test); got != "second" {
		t.Errorf("got %q after many requests at once", got)
	}
}

func TestBindingTxIsSharedByKeysAndRegistries(t *testing.T) {
	for _, fail := range []error{nil, sqlreqtest.ErrTest} {
		t.Run(fmt.Sprint(fail), func(t *testing.T) {
			test := lifeTest(t, sqlreqtest.OpenDB(t))
			outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "a", Tx: test}, sqlreq.Binding{Key: "b", Tx: test})
			inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "c", Tx: test})
			var events lifeEvents
			outer.Observe, inner.Observe = events.observe, events.observe
			lifeDo(outer.Middleware(inner.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				for _, k := range []sqlreq.Key{"b", "a", "c"} {
					lifeNote(t, r.Context(), k, string(k))
				}
				return fail
			}))))
			want, wantEvents := "b a c", "b Committed 1"
			if fail != nil {
				want, wantEvents = "", "b RolledBack 1"
			}
			if got := lifeTxNotes(t, test); got != want || events.String() != wantEvents {
				t.Errorf("got %q, events %q; want %q, %q", got, &events, want, wantEvents)
			}
		})
	}
}

func TestBindingTxDoNests(t *testing.T) {
	tests := map[string]struct {
		before           bool // a statement of the request, before the Do
		do, request      error
		notes, doOutcome string
	}{
		"both":                    {true, nil, nil, "request do request", "Committed"},
		"Do fails":                {true, sqlreqtest.ErrTest, nil, "request request", "RolledBack"},
		"Do alone":                {false, nil, nil, "do request", "Committed"},
		"Do alone fails":          {false, sqlreqtest.ErrTest, nil, "request", "RolledBack"},
		"Do alone, request fails": {false, nil, sqlreqtest.ErrTest, "do", "Committed"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			test := lifeTest(t, db)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test})
			var events lifeEvents
			reg.Observe = events.observe
			lifeDo(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				if tt.before {
					lifeNote(t, r.Context(), sqlreqtest.Main, "request")
				}
				err := reg.Do(r.Context(), func(ctx context.Context) error {
					lifeNote(t, ctx, sqlreqtest.Main, "do")
					return tt.do
				})
				if !errors.Is(err, tt.do) {
					t.Errorf("Do returned %v, want %v", err, tt.do)
				}
				lifeNote(t, r.Context(), sqlreqtest.Main, "request")
				return tt.request
			})))
			if got := lifeTxNotes(t, test); got != tt.notes || !strings.HasPrefix(events.String(), "main "+tt.doOutcome+" 1, ") {
				t.Errorf("got %q, events %q; want %q", got, &events, tt.notes)
			}
			_ = test.Rollback()
			if got := lifeNotes(t, db); got != "" {
				t.Errorf("%q stayed", got)
			}
		})
	}
}

func TestBindingTxStatements(t *testing.T) {
	ok := sqlmock.NewResult(0, 0)
	db, mock, err := sqlmock.New(sqlmock.QueryMatcherOption(sqlmock.QueryMatcherRegexp))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	const tx = `sqlreq_tx_\d+$`
	mock.ExpectBegin()
	mock.ExpectExec("^SAVEPOINT " + tx).WillReturnResult(ok)
	mock.ExpectExec("^INSERT$").WillReturnResult(ok)
	mock.ExpectExec(`^SAVEPOINT sqlreq_tx_\d+_1$`).WillReturnResult(ok)
	mock.ExpectExec(`^RELEASE SAVEPOINT sqlreq_tx_\d+_1$`).WillReturnResult(ok)
	mock.ExpectExec("^RELEASE SAVEPOINT " + tx).WillReturnResult(ok)
	mock.ExpectExec("^SAVEPOINT " + tx).WillReturnResult(ok)
	mock.ExpectExec("^INSERT$").WillReturnError(sqlreqtest.ErrTest)
	mock.ExpectExec("^ROLLBACK TO SAVEPOINT " + tx).WillReturnResult(ok)
	mock.ExpectRollback()
	test, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test, Guard: true}) // of which there is no need here
	h := reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), "INSERT"); err != nil {
			return err
		}
		return sqlreq.Savepoint(r.Context(), func(context.Context) error { return nil })
	}))
	if codes := fmt.Sprint(lifeDo(h).Code, lifeDo(h).Code); codes != "200 500" {
		t.Errorf("got %s, want 200 500", codes)
	}
	_ = test.Rollback()
	if err := mock.ExpectationsWereMet(); err != nil {
		t.Error(err)
	}
}

func TestBindingTxMisuse(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	test := lifeTest(t, db)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test})
	var events lifeEvents
	reg.Observe = events.observe
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if _, err := sqlreq.DB(r.Context()); err == nil || !strings.Contains(err.Error(), "Binding.Tx") {
			t.Errorf("DB: got %v, want why there is none", err)
		}
		tx, err := sqlreq.Tx(r.Context())
		if err != nil {
			t.Error(err)
			return
		}
		_ = tx.Rollback() // of the test's transaction
	})))
	if rec.Code != 500 || events.String() != "main Ended 1" {
		t.Errorf("got %d, events %q, want 500 and that it was ended", rec.Code, &events)
	}
	// Whoever comes next gets an error, and does not wait for a turn for ever.
	if rec := lifeDo(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		_, err := sqlreq.Tx(r.Context())
		return err
	}))); rec.Code != 500 {
		t.Errorf("the next request: got %d, want 500", rec.Code)
	}
	route := func(context.Context, *http.Request) (*sql.DB, error) { return db, nil }
	for i, b := range []sqlreq.Binding{{Tx: test, Route: route}, {Tx: test, DB: db}, {DB: db, Route: route}} {
		if _, err := sqlreq.New(b); err == nil {
			t.Errorf("binding %d has two databases, and no error", i)
		}
	}
}

func TestBindingTxIsRunAgain(t *testing.T) {
	test := lifeTest(t, sqlreqtest.OpenDB(t))
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test})
	reg.Retry = sqlreq.Retry{Attempts: 3, Within: time.Hour, Backoff: lifeNoBackoff}
	runs := 0
	rec := lifeDo(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		runs++
		lifeNote(t, r.Context(), sqlreqtest.Main, strconv.Itoa(runs))
		if runs < 3 {
			return lifeConflict{}
		}
		return nil
	})))
	if got := lifeTxNotes(t, test); rec.Code != 200 || got != "3" {
		t.Errorf("got %d and %q, want the third attempt's", rec.Code, got)
	}
}

// A client that leaves, at each moment: the database, the event and the hooks
// tell the same, and the pool has all its connections.
func TestClientLeaves(t *testing.T) {
	type moment struct {
		leave func() // ends the connection and waits until net/http has noticed
		r     *http.Request
		t     *testing.T
	}
	tests := map[string]struct {
		handler func(m *moment)
		set     func(m *moment, reg *sqlreq.Registry, faults *lifeFaults)
		pool    bool // of one, in use by somebody else until the end
		events  string
		hooks   string
		rows    int
	}{
		"waiting for a connection": {
			pool: true,
			handler: func(m *moment) {
				go m.leave()
				if _, err := sqlreq.Tx(m.r.Context()); !errors.Is(err, context.Canceled) {
					m.t.Errorf("got %v, want that the context was cancelled", err)
				}
			},
			hooks: "rollback",
		},
		"during BEGIN": {
			set: func(m *moment, _ *sqlreq.Registry, faults *lifeFaults) {
				faults.begin = func(ctx context.Context) error {
					m.leave()
					<-ctx.Done()
					return ctx.Err()
				}
			},
			handler: func(m *moment) { _, _ = sqlreq.Tx(m.r.Context()) },
			hooks:   "rollback",
		},
		"during a statement": {
			handler: func(m *moment) {
				lifeExec(m.t, m.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				_, err := sqlreqtest.Main.ExecContext(m.r.Context(), "INSERT INTO work (note) "+lifeEndless(m.leave))
				if err == nil {
					m.t.Error("the statement was not interrupted")
				}
			},
			events: "main RolledBack 1", hooks: "rollback",
		},
		"between statements": {
			handler: func(m *moment) {
				lifeExec(m.t, m.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				m.leave()
				if _, err := sqlreqtest.Main.ExecContext(m.r.Context(), sqlreqtest.InsertWork); !errors.Is(err, context.Canceled) {
					m.t.Errorf("got %v, want that the context was cancelled", err)
				}
			},
			events: "main RolledBack 1", hooks: "rollback",
		},
		"between statements, unnoticed by the handler": {
			handler: func(m *moment) {
				lifeExec(m.t, m.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				m.leave()
				lifeExec(m.t, context.WithoutCancel(m.r.Context()), sqlreqtest.Main, sqlreqtest.InsertWork)
			},
			events: "main RolledBack 1", hooks: "rollback",
		},
		"before an explicit Commit": {
			handler: func(m *moment) {
				lifeExec(m.t, m.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				m.leave()
				if err := sqlreq.Commit(context.WithoutCancel(m.r.Context())); err == nil {
					m.t.Error("Commit succeeded")
				}
			},
			events: "main RolledBack 1", hooks: "rollback",
		},
		"in a Savepoint": {
			handler: func(m *moment) {
				_ = sqlreq.Savepoint(m.r.Context(), func(ctx context.Context) error {
					lifeExec(m.t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
					m.leave()
					return ctx.Err()
				})
			},
			events: "main RolledBack 1", hooks: "rollback",
		},
		"after the handler": {
			handler: func(m *moment) { lifeExec(m.t, m.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork) },
			set: func(m *moment, reg *sqlreq.Registry, _ *lifeFaults) {
				reg.CommitIf = func(int, http.Header) bool { m.leave(); return true }
			},
			events: "main RolledBack 1", hooks: "rollback",
		},
		"before COMMIT runs": {
			handler: func(m *moment) { lifeExec(m.t, m.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork) },
			set: func(m *moment, _ *sqlreq.Registry, faults *lifeFaults) {
				faults.commit = func() error { m.leave(); return nil }
			},
			events: "main Committed 1", hooks: "commit", rows: 1,
		},
		"after COMMIT ran": {
			handler: func(m *moment) { lifeExec(m.t, m.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork) },
			set: func(m *moment, _ *sqlreq.Registry, faults *lifeFaults) {
				faults.done = func() error { m.leave(); return nil }
			},
			events: "main Committed 1", hooks: "commit", rows: 1,
		},
		"while an explicit COMMIT runs": {
			handler: func(m *moment) {
				lifeExec(m.t, m.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				if err := sqlreq.Commit(m.r.Context()); err != nil {
					m.t.Errorf("the Commit that was sent: %v", err)
				}
			},
			set: func(m *moment, _ *sqlreq.Registry, faults *lifeFaults) {
				faults.commit = func() error { m.leave(); return nil }
			},
			events: "main Committed 1", hooks: "commit", rows: 1,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			faults := &lifeFaults{}
			db := lifeOpen(t, faults)
			db.SetMaxOpenConns(1)
			if err := db.Ping(); err != nil {
				t.Fatal(err)
			}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			reg.Retry = sqlreq.Retry{Attempts: 5, Within: time.Hour, Backoff: lifeNoBackoff}
			var events lifeEvents
			var log lifeLog
			reg.Observe = events.observe
			m := &moment{t: t}
			if tt.set != nil {
				tt.set(m, reg, faults)
			}
			if tt.pool {
				conn, err := db.Conn(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				defer func() { db.SetMaxOpenConns(2) }()
			}
			served := make(chan struct{})
			connected := make(chan net.Conn, 1)
			inner := reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				m.r = r
				log.hooks(t, r.Context(), sqlreqtest.Main, "")
				tt.handler(m)
			}))
			srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(served)
				m.leave = func() {
					_ = (<-connected).Close()
					<-r.Context().Done()
				}
				inner.ServeHTTP(w, r)
			}))
			conn, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			connected <- conn
			if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			<-served
			if events.String() != tt.events || log.String() != tt.hooks {
				t.Errorf("got events %q, hooks %q; want %q, %q", &events, &log, tt.events, tt.hooks)
			}
			stats := db.Stats()
			wantInUse := 0
			if tt.pool {
				wantInUse = 1
				db.SetMaxOpenConns(2)
			}
			if stats.InUse != wantInUse || stats.OpenConnections != 1 {
				t.Errorf("%d connections in use of %d, want %d of the one", stats.InUse, stats.OpenConnections, wantInUse)
			}
			if n := sqlreqtest.Count(t, db, "work"); n != tt.rows {
				t.Errorf("%d rows, want %d", n, tt.rows)
			}
		})
	}
}

// A transaction that begins while the hooks of the one before run is none of their business.
func TestG8HooksRunThoughATransactionBegins(t *testing.T) {
	ends := map[string]struct {
		end  func(ctx context.Context, w http.ResponseWriter) error
		want string
	}{
		"Commit":   {func(ctx context.Context, _ http.ResponseWriter) error { return sqlreq.Commit(ctx) }, "commit1 commit2"},
		"Rollback": {func(ctx context.Context, _ http.ResponseWriter) error { return sqlreq.Rollback(ctx) }, "rollback1 rollback2"},
		"Hijack": {func(_ context.Context, w http.ResponseWriter) error {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = conn.Close()
			}
			return err
		}, "commit1 commit2"},
	}
	for name, tt := range ends {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			var log lifeLog
			served := make(chan struct{})
			h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				log.hooks(t, r.Context(), sqlreqtest.Main, "1")
				begin := func(context.Context) {
					begun := make(chan struct{})
					go func() {
						defer close(begun)
						lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
					}()
					<-begun
				}
				if err := errors.Join(sqlreq.AfterCommit(r.Context(), begin), sqlreq.AfterRollback(r.Context(), begin)); err != nil {
					t.Error(err)
				}
				log.hooks(t, r.Context(), sqlreqtest.Main, "2")
				if err := tt.end(r.Context(), w); err != nil {
					t.Error(err)
				}
			}))
			srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(served)
				h.ServeHTTP(w, r)
			}))
			_, _, _ = sqlreqtest.Get(t, srv.URL)
			<-served
			if log.String() != tt.want {
				t.Errorf("got %q, want %q", &log, tt.want)
			}
		})
	}
}

// A hook that was accepted runs once, however close to the end it was registered.
func TestG8HooksRegisteredAtTheEnd(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	h := reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		ran, registered := new(lifeLog), make(chan error, 1)
		t.Cleanup(func() {
			want := "x"
			if err := <-registered; err != nil {
				want = ""
				if !errors.Is(err, sqlreq.ErrFinished) {
					t.Errorf("got %v", err)
				}
			}
			if ran.String() != want {
				t.Errorf("ran %q, want %q", ran, want)
			}
		})
		lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		go func() { registered <- sqlreq.AfterCommit(r.Context(), func(context.Context) { ran.add("x") }) }()
		runtime.Gosched()
	}))
	for range 100 {
		lifeDo(h)
	}
}

func TestG8HooksOfADoFollowIt(t *testing.T) {
	for _, fails := range []string{"request", "Do"} {
		t.Run(fails, func(t *testing.T) {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
			var log lifeLog
			lifeDo(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				log.hooks(t, r.Context(), sqlreqtest.Main, "request")
				_ = reg.Do(r.Context(), func(ctx context.Context) error {
					lifeExec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
					log.hooks(t, ctx, sqlreqtest.Main, "do")
					if fails == "Do" {
						return sqlreqtest.ErrTest
					}
					return nil
				})
				if fails == "request" {
					return sqlreqtest.ErrTest
				}
				return nil
			})))
			want := map[string]string{"request": "commitdo rollbackrequest", "Do": "rollbackdo commitrequest"}[fails]
			if log.String() != want {
				t.Errorf("got %q, want %q", &log, want)
			}
		})
	}
}

// A goroutine that is still inside a Savepoint when the handler returns has not
// said yet whether its part is to stay.
func TestSavepointStillOpenAtTheEnd(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	inside, goOn, result := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lifeExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		go func() {
			result <- sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
				lifeExec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
				close(inside)
				<-goOn
				lifeFinished(t, ctx)
				return nil
			})
		}()
		<-inside
		w.WriteHeader(201)
	})))
	close(goOn)
	if err := <-result; !errors.Is(err, sqlreq.ErrFinished) {
		t.Errorf("Savepoint returned %v, want ErrFinished", err)
	}
	if n := sqlreqtest.Count(t, db, "work"); rec.Code != 500 || n != 0 {
		t.Errorf("got %d and %d rows, want 500 and none", rec.Code, n)
	}
	lifeIdle(t, db)
}

func TestSavepointOfAnEndedTransaction(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var events lifeEvents
	reg.Observe = events.observe
	rec := lifeDo(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
			tx, err := sqlreq.Tx(ctx)
			if err != nil {
				return err
			}
			return tx.Rollback()
		})
		if !errors.Is(err, sqlreq.ErrTxEnded) {
			t.Errorf("got %v, want ErrTxEnded", err)
		}
	})))
	if rec.Code != 500 || events.String() != "main Ended 1" {
		t.Errorf("got %d, events %q", rec.Code, &events)
	}
}

func TestG9HeadersOfFailedAttemptsAreGone(t *testing.T) {
	srv := lifeAgain(t, func(run int, w http.ResponseWriter, _ *http.Request) {
		if run < 3 {
			w.Header().Set("X-Secret", "1")
			w.Header().Del("X-Outside")
			w.WriteHeader(103)
			w.Header().Set("Trailer", "X-Late")
			_, _ = io.WriteString(w, "secret")
		}
	})
	outside := srv.Config.Handler
	srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Outside", "stays")
		outside.ServeHTTP(w, r)
	})
	res, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if res.StatusCode != 200 || len(b) > 0 || err != nil || res.Header.Get("X-Secret") != "" || res.Trailer != nil || res.Header.Get("X-Outside") != "stays" {
		t.Errorf("got %d %q %v %v %v", res.StatusCode, b, err, res.Header, res.Trailer)
	}
}
