package sqlreq_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	_ "modernc.org/sqlite"
)

// G1 on every protocol and in every way of answering is the matter of internal/wiretest.
func TestG1FailedCommitIsNoSuccess(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.BreakCommit); err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Secret", "1")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, "created")
	})))
	res, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if res.StatusCode != 500 || string(body) != "Internal Server Error\n" || err != nil || res.Header.Get("X-Secret") != "" {
		t.Errorf("got %d %q %v %v, want a bare 500", res.StatusCode, body, err, res.Header)
	}
	if n := sqlreqtest.Count(t, db, "child"); n != 0 {
		t.Errorf("%d rows stayed", n)
	}
	if n := db.Stats().InUse; n != 0 {
		t.Errorf("%d connections in use", n)
	}
}

// txFake is a database that asks step about each statement, COMMIT and ROLLBACK
// included, and counts its connections.
type txFake struct {
	step func(ctx context.Context, stmt string) error // nil: all succeeds

	mu      sync.Mutex
	log     []string
	opened  int
	closed  int
	openTxs int
	dirty   int // connections given back inside of a transaction
}

func (f *txFake) Connect(context.Context) (driver.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opened++
	return &txConn{f: f}, nil
}

func (f *txFake) Driver() driver.Driver { return nil }

func (f *txFake) run(ctx context.Context, stmt string) error {
	f.mu.Lock()
	f.log = append(f.log, stmt)
	f.mu.Unlock()
	if f.step == nil {
		return nil
	}
	return f.step(ctx, stmt)
}

func (f *txFake) statements() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.log)
}

// check fails the test if the statements were others, or a connection was lost.
func (f *txFake) check(t *testing.T, want ...string) {
	t.Helper()
	if got := f.statements(); !slices.Equal(got, want) {
		t.Errorf("statements: got %q, want %q", got, want)
	}
	f.checkClean(t)
}

func (f *txFake) checkClean(t *testing.T) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.openTxs != 0 || f.closed != 0 || f.dirty != 0 {
		t.Errorf("got %d open transactions, %d closed and %d dirty connections, want none", f.openTxs, f.closed, f.dirty)
	}
}

func (f *txFake) openDB(t testing.TB) *sql.DB {
	db := sql.OpenDB(f)
	t.Cleanup(func() { db.Close() })
	return db
}

type txConn struct {
	f    *txFake
	inTx bool
}

func (c *txConn) Prepare(string) (driver.Stmt, error) { return txStmt{c}, nil }
func (c *txConn) Begin() (driver.Tx, error)           { return nil, errors.New("BeginTx is there") }
func (c *txConn) IsValid() bool                       { return true }

func (c *txConn) Close() error {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	c.f.closed++
	return nil
}

func (c *txConn) ResetSession(context.Context) error {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	if c.inTx {
		c.f.dirty++
	}
	return nil
}

func (c *txConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	stmt := "BEGIN"
	if opts.Isolation != 0 {
		stmt += " " + sql.IsolationLevel(opts.Isolation).String()
	}
	if opts.ReadOnly {
		stmt += " READ ONLY"
	}
	if err := c.f.run(ctx, stmt); err != nil {
		return nil, err
	}
	c.set(true)
	return c, nil
}

func (c *txConn) set(inTx bool) {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	c.inTx = inTx
	if inTx {
		c.f.openTxs++
	} else {
		c.f.openTxs--
	}
}

func (c *txConn) Commit() error {
	err := c.f.run(context.Background(), "COMMIT")
	c.set(false)
	return err
}

func (c *txConn) Rollback() error {
	err := c.f.run(context.Background(), "ROLLBACK")
	c.set(false)
	return err
}

func (c *txConn) ExecContext(ctx context.Context, query string, _ []driver.NamedValue) (driver.Result, error) {
	return driver.RowsAffected(1), c.f.run(ctx, query)
}

func (c *txConn) QueryContext(ctx context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	return &txRows{left: 1}, c.f.run(ctx, query)
}

type txStmt struct{ c *txConn }

func (s txStmt) Close() error                               { return nil }
func (s txStmt) NumInput() int                              { return -1 }
func (s txStmt) Exec([]driver.Value) (driver.Result, error) { return driver.RowsAffected(1), nil }
func (s txStmt) Query([]driver.Value) (driver.Rows, error)  { return &txRows{left: 1}, nil }

type txRows struct{ left int }

func (r *txRows) Columns() []string { return []string{"n"} }
func (r *txRows) Close() error      { return nil }
func (r *txRows) Next(dest []driver.Value) error {
	if r.left == 0 {
		return io.EOF
	}
	r.left--
	dest[0] = int64(1)
	return nil
}

// txScript is a database that is expected to get the statements of a list in
// that order; those that end in "!" fail with sqlreqtest.ErrTest.
type txScript struct {
	name  string
	open  func(t *testing.T, want []string) *sql.DB
	check func(t *testing.T)
}

// txScripts are the two that the tables run on: sqlmock is told beforehand, the
// recorder also shows a ROLLBACK that nobody expected.
func txScripts() []*txScript {
	m := &txScript{name: "sqlmock"}
	m.open = func(t *testing.T, want []string) *sql.DB {
		db, mock, err := sqlmock.New(sqlmock.QueryMatcherOption(sqlmock.QueryMatcherEqual))
		if err != nil {
			t.Fatal(err)
		}
		for _, stmt := range want {
			txExpect(mock, stmt)
		}
		m.check = func(t *testing.T) {
			t.Helper()
			if err := mock.ExpectationsWereMet(); err != nil {
				t.Error(err)
			}
		}
		t.Cleanup(func() { mock.ExpectClose(); db.Close() })
		return db
	}
	r := &txScript{name: "recorder"}
	r.open = func(t *testing.T, want []string) *sql.DB {
		n := 0
		f := &txFake{}
		f.step = func(_ context.Context, stmt string) error {
			n++
			if n <= len(want) && want[n-1] == stmt+"!" {
				return sqlreqtest.ErrTest
			}
			return nil
		}
		bare := slices.Clone(want)
		for i := range bare {
			bare[i] = strings.TrimSuffix(bare[i], "!")
		}
		r.check = func(t *testing.T) { t.Helper(); f.check(t, bare...) }
		return f.openDB(t)
	}
	return []*txScript{m, r}
}

func txExpect(mock sqlmock.Sqlmock, stmt string) {
	bare, fails := strings.CutSuffix(stmt, "!")
	var err error
	if fails {
		err = sqlreqtest.ErrTest
	}
	switch {
	case strings.HasPrefix(bare, "BEGIN"):
		mock.ExpectBegin().WillReturnError(err)
	case bare == "COMMIT":
		mock.ExpectCommit().WillReturnError(err)
	case bare == "ROLLBACK":
		mock.ExpectRollback().WillReturnError(err)
	default:
		e := mock.ExpectExec(bare)
		if fails {
			e.WillReturnError(err)
		} else {
			e.WillReturnResult(sqlmock.NewResult(1, 1))
		}
	}
}

// txOutcome is what became of a handler that may panic or exit its goroutine.
type txOutcome struct {
	*httptest.ResponseRecorder
	panicked any
	returned bool
}

// txServe serves one request in a goroutine of its own.
func txServe(h http.Handler, r *http.Request) txOutcome {
	o := txOutcome{ResponseRecorder: httptest.NewRecorder()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { o.panicked = recover() }()
		h.ServeHTTP(o.ResponseRecorder, r)
		o.returned = true
	}()
	<-done
	return o
}

func txGet(h http.Handler, target string) txOutcome {
	return txServe(h, httptest.NewRequest(http.MethodGet, target, nil))
}

// txExec runs a statement that must succeed.
func txExec(t testing.TB, ctx context.Context, k sqlreq.Key, stmt string) {
	t.Helper()
	if _, err := k.ExecContext(ctx, stmt); err != nil {
		t.Errorf("%s: %v", stmt, err)
	}
}

// txIdle fails the test if a connection is in use or none can be had.
func txIdle(t testing.TB, db *sql.DB) {
	t.Helper()
	if n := db.Stats().InUse; n != 0 {
		t.Errorf("got %d connections in use, want none", n)
	}
	if err := db.Ping(); err != nil {
		t.Errorf("the pool is not alive: %v", err)
	}
}

// txUntil waits for what no channel tells. If it never comes, the limit of go
// test ends the wait and shows who waits.
func txUntil(ok func() bool) {
	for !ok() {
		runtime.Gosched()
	}
}

// txWatched tells when somebody begins to wait for the context's end.
type txWatched struct {
	context.Context
	once    sync.Once
	waiting chan struct{}
}

func txWatch(ctx context.Context) *txWatched {
	return &txWatched{Context: ctx, waiting: make(chan struct{})}
}

func (w *txWatched) Done() <-chan struct{} {
	w.once.Do(func() { close(w.waiting) })
	return w.Context.Done()
}

var (
	txReadOnly     = &sql.TxOptions{ReadOnly: true}
	txSerializable = &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelSerializable}
)

func txOptions(o *sql.TxOptions) func(context.Context, *http.Request) *sql.TxOptions {
	return func(context.Context, *http.Request) *sql.TxOptions { return o }
}

// TestG4Statements shows the exact statements that each end of a request sends.
func TestG4Statements(t *testing.T) {
	insert := func(t *testing.T, r *http.Request) { t.Helper(); txExec(t, r.Context(), sqlreqtest.Main, "INSERT") }
	plain := func(f func(*testing.T, http.ResponseWriter, *http.Request)) func(*testing.T) http.Handler {
		return func(t *testing.T) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f(t, w, r) })
		}
	}
	type w = http.ResponseWriter
	type r = *http.Request
	tests := []struct {
		name    string
		binding sqlreq.Binding
		status  func(int, http.Header) bool
		handler func(*testing.T) http.Handler
		code    int // 0: no answer
		stmts   []string
	}{
		{"no use", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {}), 200, nil},
		{"commit", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 200, []string{"BEGIN", "INSERT", "COMMIT"}},
		{"commit of a begin alone", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { _, _ = sqlreq.Tx(r.Context()) }), 200, []string{"BEGIN", "COMMIT"}},
		{"redirect commits", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r); http.Redirect(w, r, "/x", http.StatusSeeOther) }), 303, []string{"BEGIN", "INSERT", "COMMIT"}},
		{"failed commit", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 500, []string{"BEGIN", "INSERT", "COMMIT!"}},
		{"status 400", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r); w.WriteHeader(400) }), 400, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"status before the work", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { w.WriteHeader(404); insert(t, r) }), 404, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"second status", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { w.WriteHeader(201); insert(t, r); w.WriteHeader(502) }), 502, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"status after a write", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			_, _ = io.WriteString(w, "half a page")
			insert(t, r)
			http.Error(w, "broken", 500)
		}), 500, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"second status below 400 is ignored", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r); w.WriteHeader(404); w.WriteHeader(200) }), 404, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"returned error", sqlreq.Binding{}, nil, func(t *testing.T) http.Handler {
			return sqlreq.HandlerFunc(func(w w, r r) error { insert(t, r); return sqlreqtest.ErrTest })
		}, 500, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"returned status error", sqlreq.Binding{}, nil, func(t *testing.T) http.Handler {
			return sqlreq.HandlerFunc(func(w w, r r) error {
				insert(t, r)
				w.WriteHeader(201)
				return sqlreq.Errorf(409, "taken")
			})
		}, 409, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"Fail", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			if err := sqlreq.Fail(r.Context(), sqlreqtest.ErrTest); err != nil {
				t.Error(err)
			}
			w.WriteHeader(201)
		}), 500, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"Fail of nil", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r); _ = sqlreq.Fail(r.Context(), nil) }), 200, []string{"BEGIN", "INSERT", "COMMIT"}},
		{"Fail before the work", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { _ = sqlreq.Fail(r.Context(), sqlreqtest.ErrTest); insert(t, r) }), 500, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"explicit Commit after Fail", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			_ = sqlreq.Fail(r.Context(), sqlreqtest.ErrTest)
			if err := sqlreq.Commit(r.Context()); err == nil {
				t.Error("Commit of a request that has failed: got nil, want an error")
			}
		}), 500, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"panic", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r); panic(sqlreqtest.ErrTest) }), 0, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"Goexit", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r); runtime.Goexit() }), 0, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"CommitIf says no", sqlreq.Binding{}, func(int, http.Header) bool { return false }, plain(func(t *testing.T, w w, r r) { insert(t, r); w.WriteHeader(201) }), 201, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"CommitIf says yes", sqlreq.Binding{}, func(int, http.Header) bool { return true }, plain(func(t *testing.T, w w, r r) { insert(t, r); w.WriteHeader(503) }), 503, []string{"BEGIN", "INSERT", "COMMIT"}},
		{"CommitIf says yes, and COMMIT fails", sqlreq.Binding{}, func(int, http.Header) bool { return true }, plain(func(t *testing.T, w w, r r) { insert(t, r); w.WriteHeader(404) }), 500, []string{"BEGIN", "INSERT", "COMMIT!"}},
		{"CommitIf panics", sqlreq.Binding{}, func(int, http.Header) bool { panic(sqlreqtest.ErrTest) }, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 0, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"read-only", sqlreq.Binding{TxOptions: txOptions(txReadOnly)}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 200, []string{"BEGIN READ ONLY", "INSERT", "ROLLBACK"}},
		{"read-only whose ROLLBACK fails", sqlreq.Binding{TxOptions: txOptions(txReadOnly)}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 200, []string{"BEGIN READ ONLY", "INSERT", "ROLLBACK!"}},
		{"read-only serializable", sqlreq.Binding{TxOptions: txOptions(txSerializable)}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 200, []string{"BEGIN Serializable READ ONLY", "INSERT", "COMMIT"}},
		{"read-only serializable, failed commit", sqlreq.Binding{TxOptions: txOptions(txSerializable)}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 500, []string{"BEGIN Serializable READ ONLY", "INSERT", "COMMIT!"}},
		{"read-only by method", sqlreq.Binding{TxOptions: sqlreq.ReadOnlySafeMethods}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 200, []string{"BEGIN READ ONLY", "INSERT", "ROLLBACK"}},
		{"options that are nil", sqlreq.Binding{TxOptions: txOptions(nil)}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 200, []string{"BEGIN", "INSERT", "COMMIT"}},
		{"BeginTx", sqlreq.Binding{TxOptions: txOptions(txReadOnly)}, nil, plain(func(t *testing.T, w w, r r) {
			if _, err := sqlreq.BeginTx(r.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead}); err != nil {
				t.Error(err)
			}
			insert(t, r)
		}), 200, []string{"BEGIN Repeatable Read", "INSERT", "COMMIT"}},
		{"BeginTx with nil replaces the binding's", sqlreq.Binding{TxOptions: txOptions(txReadOnly)}, nil, plain(func(t *testing.T, w w, r r) {
			if _, err := sqlreq.BeginTx(r.Context(), nil); err != nil {
				t.Error(err)
			}
			insert(t, r)
		}), 200, []string{"BEGIN", "INSERT", "COMMIT"}},
		{"explicit commit and going on", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			if err := sqlreq.Commit(r.Context()); err != nil {
				t.Error(err)
			}
			insert(t, r)
		}), 200, []string{"BEGIN", "INSERT", "COMMIT", "BEGIN", "INSERT", "COMMIT"}},
		{"explicit commit, then an error", sqlreq.Binding{}, nil, func(t *testing.T) http.Handler {
			return sqlreq.HandlerFunc(func(w w, r r) error {
				insert(t, r)
				if err := sqlreq.Commit(r.Context()); err != nil {
					t.Error(err)
				}
				insert(t, r)
				return sqlreqtest.ErrTest
			})
		}, 500, []string{"BEGIN", "INSERT", "COMMIT", "BEGIN", "INSERT", "ROLLBACK"}},
		{"explicit rollback and going on", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			if err := sqlreq.Rollback(r.Context()); err != nil {
				t.Error(err)
			}
			insert(t, r)
		}), 200, []string{"BEGIN", "INSERT", "ROLLBACK", "BEGIN", "INSERT", "COMMIT"}},
		{"explicit ends with nothing open", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			if err := errors.Join(sqlreq.Commit(r.Context()), sqlreq.Rollback(r.Context())); err != nil {
				t.Error(err)
			}
			insert(t, r)
			if err := errors.Join(sqlreq.Commit(r.Context()), sqlreq.Commit(r.Context()), sqlreq.Rollback(r.Context())); err != nil {
				t.Error(err)
			}
		}), 200, []string{"BEGIN", "INSERT", "COMMIT"}},
		{"failed explicit commit ignored", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			var c *sqlreq.CommitError
			if err := sqlreq.Commit(r.Context()); !errors.As(err, &c) || !errors.Is(err, sqlreqtest.ErrTest) {
				t.Errorf("got %v, want a CommitError", err)
			}
			w.WriteHeader(201)
		}), 500, []string{"BEGIN", "INSERT", "COMMIT!"}},
		{"failed explicit commit ignored, handler goes on", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			_ = sqlreq.Commit(r.Context())
			insert(t, r)
		}), 500, []string{"BEGIN", "INSERT", "COMMIT!", "BEGIN", "INSERT", "ROLLBACK"}},
		{"failed explicit commit ignored, and tried again", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			_ = sqlreq.Commit(r.Context())
			insert(t, r)
			if err := sqlreq.Commit(r.Context()); err == nil {
				t.Error("second Commit: got nil, want an error")
			}
		}), 500, []string{"BEGIN", "INSERT", "COMMIT!", "BEGIN", "INSERT", "ROLLBACK"}},
		{"failed explicit commit, status 404", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			_ = sqlreq.Commit(r.Context())
			w.WriteHeader(404)
		}), 500, []string{"BEGIN", "INSERT", "COMMIT!"}},
		{"failed BEGIN", sqlreq.Binding{}, nil, func(t *testing.T) http.Handler {
			return sqlreq.TxFunc(func(w w, r r, tx *sql.Tx) error { t.Error("called without a transaction"); return nil })
		}, 500, []string{"BEGIN!"}},
		{"failed BEGIN and another try", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			if _, err := sqlreq.Tx(r.Context()); !errors.Is(err, sqlreqtest.ErrTest) {
				t.Errorf("got %v, want sqlreqtest.ErrTest", err)
			}
			insert(t, r)
		}), 200, []string{"BEGIN!", "BEGIN", "INSERT", "COMMIT"}},
		{"Guard", sqlreq.Binding{Guard: true}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 200,
			[]string{"BEGIN", "SAVEPOINT sqlreq_guard", "INSERT", "RELEASE SAVEPOINT sqlreq_guard", "COMMIT"}},
		{"Guard and rollback", sqlreq.Binding{Guard: true}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r); w.WriteHeader(404) }), 404,
			[]string{"BEGIN", "SAVEPOINT sqlreq_guard", "INSERT", "ROLLBACK"}},
		{"Guard cannot be laid", sqlreq.Binding{Guard: true}, nil, func(t *testing.T) http.Handler {
			return sqlreq.TxFunc(func(w w, r r, tx *sql.Tx) error { return nil })
		}, 500, []string{"BEGIN", "SAVEPOINT sqlreq_guard!", "ROLLBACK"}},
		{"Guard finds out", sqlreq.Binding{Guard: true}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 500,
			[]string{"BEGIN", "SAVEPOINT sqlreq_guard", "INSERT", "RELEASE SAVEPOINT sqlreq_guard!", "ROLLBACK"}},
	}
	for _, test := range tests {
		for _, script := range txScripts() {
			t.Run(test.name+"/"+script.name, func(t *testing.T) {
				b := test.binding
				b.DB = script.open(t, test.stmts)
				reg := sqlreqtest.NewRegistry(t, b)
				reg.CommitIf = test.status
				o := txGet(reg.Middleware(test.handler(t)), "/")
				switch {
				case o.returned != (test.code != 0):
					t.Errorf("returned %v (panic %v), want %v", o.returned, o.panicked, test.code != 0)
				case o.returned && o.Code != test.code:
					t.Errorf("got status %d, want %d", o.Code, test.code)
				}
				script.check(t)
			})
		}
	}
}

// TestG6SeveralDatabases shows the order of the ends, and what a CommitError
// tells when one of them fails.
func TestG6SeveralDatabases(t *testing.T) {
	tests := []struct {
		name      string
		fails     string
		ends      []string
		key       sqlreq.Key
		committed []sqlreq.Key
	}{
		{"all commit", "", []string{"b COMMIT", "c COMMIT", "a COMMIT"}, "", nil},
		{"the first fails", "b COMMIT", []string{"b COMMIT", "c ROLLBACK", "a ROLLBACK"}, "b", nil},
		{"the second fails", "c COMMIT", []string{"b COMMIT", "c COMMIT", "a ROLLBACK"}, "c", []sqlreq.Key{"b"}},
		{"the last fails", "a COMMIT", []string{"b COMMIT", "c COMMIT", "a COMMIT"}, "a", []sqlreq.Key{"b", "c"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var log []string
			var bindings []sqlreq.Binding
			for _, k := range []sqlreq.Key{"a", "b", "c"} {
				f := &txFake{step: func(_ context.Context, stmt string) error {
					log = append(log, string(k)+" "+stmt)
					if log[len(log)-1] == test.fails {
						return sqlreqtest.ErrTest
					}
					return nil
				}}
				bindings = append(bindings, sqlreq.Binding{Key: k, DB: f.openDB(t)})
			}
			reg := sqlreqtest.NewRegistry(t, bindings...)
			var failure error
			reg.ErrorHandler = func(_ http.ResponseWriter, _ *http.Request, err error) { failure = err }
			o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for _, k := range []sqlreq.Key{"b", "c", "a"} {
					txExec(t, r.Context(), k, "INSERT")
				}
				w.WriteHeader(201)
			})), "/")
			if got := log[len(log)-3:]; !slices.Equal(got, test.ends) {
				t.Errorf("ends: got %q, want %q", got, test.ends)
			}
			if test.fails == "" {
				if o.Code != 201 || failure != nil {
					t.Errorf("got %d, %v, want 201", o.Code, failure)
				}
				return
			}
			var c *sqlreq.CommitError
			if !errors.As(failure, &c) || c.Key != test.key || !slices.Equal(c.Committed, test.committed) || !errors.Is(failure, sqlreqtest.ErrTest) {
				t.Errorf("got %#v, want key %q, committed %q", failure, test.key, test.committed)
			}
			for _, k := range test.committed {
				if !strings.Contains(failure.Error(), fmt.Sprintf("%q", k)) {
					t.Errorf("%v does not name %q", failure, k)
				}
			}
			if o.Code != 500 {
				t.Errorf("got %d, want 500", o.Code)
			}
		})
	}
}

// TestG6SeveralDatabasesSqlmock is the same with expectations told beforehand.
func TestG6SeveralDatabasesSqlmock(t *testing.T) {
	for _, test := range []struct {
		name          string
		first, second []string
	}{
		{"the first fails", []string{"BEGIN", "INSERT", "COMMIT!"}, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"the second fails", []string{"BEGIN", "INSERT", "COMMIT"}, []string{"BEGIN", "INSERT", "COMMIT!"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			one, two := txScripts()[0], txScripts()[0]
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "one", DB: one.open(t, test.first)}, sqlreq.Binding{Key: "two", DB: two.open(t, test.second)})
			o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				txExec(t, r.Context(), "one", "INSERT")
				txExec(t, r.Context(), "two", "INSERT")
			})), "/")
			if o.Code != 500 {
				t.Errorf("got %d, want 500", o.Code)
			}
			one.check(t)
			two.check(t)
		})
	}
}

// TestG4EndedElsewhereCommitsNothing: of two databases the second was ended
// behind our back; the first is still open, and must not be committed.
func TestG4EndedElsewhereCommitsNothing(t *testing.T) {
	one, two := &txFake{}, &txFake{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "one", DB: one.openDB(t)}, sqlreq.Binding{Key: "two", DB: two.openDB(t)})
	o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		txExec(t, r.Context(), "one", "INSERT")
		tx, err := sqlreq.Key("two").Tx(r.Context())
		if err != nil {
			t.Error(err)
			return
		}
		defer tx.Rollback()
	})), "/")
	if o.Code != 500 {
		t.Errorf("got %d, want 500", o.Code)
	}
	two.check(t, "BEGIN", "ROLLBACK")
	one.check(t, "BEGIN", "INSERT", "ROLLBACK")
}

// TestG11BrokenCommitsNothing: of two databases the second can only roll back;
// the first must not be committed either.
func TestG11BrokenCommitsNothing(t *testing.T) {
	one := &txFake{}
	var cancel context.CancelFunc
	two := &txFake{step: func(ctx context.Context, stmt string) error {
		if stmt == "UPDATE" {
			cancel() // the statement is under way
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "one", DB: one.openDB(t)}, sqlreq.Binding{Key: "two", DB: two.openDB(t)})
	o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		txExec(t, r.Context(), "one", "INSERT")
		txExec(t, r.Context(), "two", "INSERT")
		var ctx context.Context
		ctx, cancel = context.WithCancel(r.Context())
		defer cancel()
		if _, err := sqlreq.Key("two").ExecContext(ctx, "UPDATE"); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want the context's error", err)
		}
	})), "/")
	if o.Code != 500 {
		t.Errorf("got %d, want 500", o.Code)
	}
	two.check(t, "BEGIN", "INSERT", "UPDATE", "ROLLBACK")
	one.check(t, "BEGIN", "INSERT", "ROLLBACK")
}

// TestG4FailWhileDeciding: a Fail that returned nil has to count, also when
// CommitIf is being asked.
func TestG4FailWhileDeciding(t *testing.T) {
	f := &txFake{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.openDB(t)})
	var ctx context.Context
	reg.CommitIf = func(int, http.Header) bool {
		if err := sqlreq.Fail(ctx, sqlreqtest.ErrTest); err != nil {
			t.Errorf("Fail: %v", err)
		}
		return true
	}
	o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx = r.Context()
		txExec(t, ctx, sqlreqtest.Main, "INSERT")
	})), "/")
	if o.Code != 500 {
		t.Errorf("got %d, want 500", o.Code)
	}
	f.check(t, "BEGIN", "INSERT", "ROLLBACK")
}

// TestG4CommitFailsWhileDeciding: an explicit Commit of another goroutine fails
// when the handler has returned; nothing else is committed then.
func TestG4CommitFailsWhileDeciding(t *testing.T) {
	committing, release := make(chan struct{}), make(chan struct{})
	one := &txFake{step: func(_ context.Context, stmt string) error {
		if stmt == "COMMIT" {
			close(committing)
			<-release
			return sqlreqtest.ErrTest
		}
		return nil
	}}
	two := &txFake{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "one", DB: one.openDB(t)}, sqlreq.Binding{Key: "two", DB: two.openDB(t)})
	committed := make(chan error, 1)
	reg.CommitIf = func(int, http.Header) bool {
		close(release)
		return true
	}
	o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		txExec(t, r.Context(), "one", "INSERT")
		txExec(t, r.Context(), "two", "INSERT")
		go func() { committed <- sqlreq.Key("one").Commit(r.Context()) }()
		<-committing
	})), "/")
	if err := <-committed; !errors.Is(err, sqlreqtest.ErrTest) {
		t.Errorf("Commit: got %v, want sqlreqtest.ErrTest", err)
	}
	if o.Code != 500 {
		t.Errorf("got %d, want 500", o.Code)
	}
	one.check(t, "BEGIN", "INSERT", "COMMIT")
	two.check(t, "BEGIN", "INSERT", "ROLLBACK")
}

// TestG2RowsStream: 5,000 rows of an open query, in a request that also wrote.
func TestG2RowsStream(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	if _, err := db.Exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 5000)
		INSERT INTO work (id, note) SELECT i, printf('%0100d', i) FROM n`); err != nil {
		t.Fatal(err)
	}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	for _, flush := range []int{0, 1, 100} {
		t.Run(fmt.Sprintf("Flush each %d", flush), func(t *testing.T) {
			srv := sqlreqtest.Serve(t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				txExec(t, r.Context(), sqlreqtest.Main, `INSERT INTO parent DEFAULT VALUES`)
				rows, err := sqlreqtest.Main.QueryContext(r.Context(), "SELECT id, note FROM work ORDER BY id")
				if err != nil {
					return err
				}
				defer rows.Close()
				for n := 1; rows.Next(); n++ {
					var id int
					var note string
					if err := rows.Scan(&id, &note); err != nil {
						return err
					}
					fmt.Fprintf(w, "%d %s\n", id, note)
					if flush > 0 && n%flush == 0 {
						w.(http.Flusher).Flush()
					}
				}
				return rows.Err()
			})))
			before := sqlreqtest.Count(t, db, "parent")
			status, body, err := sqlreqtest.Get(t, srv.URL)
			lines := strings.Split(strings.TrimSuffix(body, "\n"), "\n")
			if status != 200 || err != nil || len(lines) != 5000 || !strings.HasPrefix(lines[4999], "5000 ") {
				t.Errorf("got %d, %v and %d lines, want 200 and 5000", status, err, len(lines))
			}
			if n := sqlreqtest.Count(t, db, "parent"); n != before+1 {
				t.Errorf("got %d rows written, want %d", n, before+1)
			}
			txIdle(t, db)
		})
	}
}

// TestG2ValuesStay: what was read is valid after Commit, and the next use begins anew.
func TestG2ValuesStay(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	o := txGet(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		ctx := r.Context()
		first, err := sqlreq.Tx(ctx)
		if err != nil {
			return err
		}
		res, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
		if err != nil {
			return err
		}
		var note []byte
		if err := sqlreqtest.Main.QueryRowContext(ctx, "SELECT note FROM work").Scan(&note); err != nil {
			return err
		}
		if err := sqlreq.Commit(ctx); err != nil {
			return err
		}
		if n := db.Stats().InUse; n != 0 {
			t.Errorf("got %d connections in use after Commit, want none", n)
		}
		if id, err := res.LastInsertId(); id != 1 || err != nil || string(note) != "x" {
			t.Errorf("got %d, %v, %q after Commit", id, err, note)
		}
		second, err := sqlreq.Tx(ctx)
		if err != nil || second == first {
			t.Errorf("after Commit: got the same transaction, %v", err)
		}
		txExec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
		if err := sqlreq.Rollback(ctx); err != nil {
			return err
		}
		third, err := sqlreq.Tx(ctx)
		if err != nil || third == second {
			t.Errorf("after Rollback: got the same transaction, %v", err)
		}
		txExec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
		return nil
	})), "/")
	if n := sqlreqtest.Count(t, db, "work"); o.Code != 200 || n != 2 {
		t.Errorf("got %d and %d rows, want 200 and 2", o.Code, n)
	}
	txIdle(t, db)
}

// TestG2CallersContext: the end of the context that began a transaction is not
// that of the transaction.
func TestG2CallersContext(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	begin := map[string]func(context.Context) error{
		"Tx":      func(ctx context.Context) error { _, err := sqlreq.Tx(ctx); return err },
		"BeginTx": func(ctx context.Context) error { _, err := sqlreq.BeginTx(ctx, nil); return err },
		"ExecContext": func(ctx context.Context) error {
			_, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
			return err
		},
	}
	for name, f := range begin {
		for _, committed := range []bool{false, true} { // the first transaction of the request, and a later one
			t.Run(fmt.Sprintf("%s, committed before %v", name, committed), func(t *testing.T) {
				before := sqlreqtest.Count(t, db, "work")
				o := txGet(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
					if committed {
						if err := errors.Join(f(r.Context()), sqlreq.Commit(r.Context())); err != nil {
							return err
						}
					}
					return txOutlives(t, r, f)
				})), "/")
				if n := sqlreqtest.Count(t, db, "work"); o.Code != 200 || n <= before {
					t.Errorf("got %d and %d more rows, want 200 and more", o.Code, n-before)
				}
				txIdle(t, db)
			})
		}
	}
}

// txOutlives begins with a context that ends, and goes on.
func txOutlives(t *testing.T, r *http.Request, begin func(context.Context) error) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if err := begin(ctx); err != nil {
		return err
	}
	tx, err := sqlreq.Tx(ctx)
	if err != nil {
		return err
	}
	cancel()
	if again, err := sqlreq.Tx(r.Context()); again != tx || err != nil {
		t.Errorf("got another transaction, or %v", err)
	}
	if _, err := sqlreq.Tx(ctx); err != nil {
		t.Errorf("Tx of what is open, with a context that has ended: %v", err)
	}
	_, err = tx.ExecContext(r.Context(), sqlreqtest.InsertWork)
	return err
}

// TestG3NoUseNoConnection: a request that asks for nothing leaves the pool alone.
func TestG3NoUseNoConnection(t *testing.T) {
	f := &txFake{}
	db := f.openDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "routed", Route: func(context.Context, *http.Request) (*sql.DB, error) {
		t.Error("Route was asked")
		return nil, sqlreqtest.ErrTest
	}})
	h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = sqlreq.Prefix(r.Context())
		if got, err := sqlreq.DB(r.Context()); got != db || err != nil {
			t.Errorf("DB: got %p, %v", got, err)
		}
		if err := errors.Join(sqlreq.Commit(r.Context()), sqlreq.Rollback(r.Context())); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, "hello")
	}))
	if o := txGet(h, "/"); o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	if f.opened != 0 {
		t.Errorf("got %d connections opened, want none", f.opened)
	}
	db.Close() // a closed pool is no trouble either
	if o := txGet(h, "/"); o.Code != 200 {
		t.Errorf("with a closed pool: got %d, want 200", o.Code)
	}
}

// txRace reports whether the race detector is on: sync.Pool forgets at random
// then, so that allocations are not exact.
func txRace() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// txNull is a ResponseWriter that allocates nothing.
type txNull struct{ header http.Header }

func (n *txNull) Header() http.Header         { return n.header }
func (n *txNull) Write(p []byte) (int, error) { return len(p), nil }
func (n *txNull) WriteHeader(int)             {}

// txAllocs returns the allocations of a request to h.
func txAllocs(h http.Handler) (allocs float64, bytes int64) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r = r.WithContext(ctx)
	w := &txNull{make(http.Header)}
	once := func() {
		clear(w.header)
		h.ServeHTTP(w, r)
	}
	// A garbage collection in between empties the pools of net/http and sqlreq, and
	// other goroutines allocate too: the least of some rounds is what once costs.
	allocs, bytes = testing.AllocsPerRun(100, once), txBytes(100, once)
	for range 9 {
		allocs = min(allocs, testing.AllocsPerRun(100, once))
		bytes = min(bytes, txBytes(100, once))
	}
	return allocs, bytes
}

// txBytes returns the bytes that each of n runs of f allocates.
func txBytes(n int, f func()) int64 {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	f()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		f()
	}
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc-before.TotalAlloc) / int64(n)
}

// TestG3Allocations: a request without a transaction pays one allocation of 512
// bytes (the contract allows two, of less than 640 bytes in all), whatever it does with its headers and however many keys there are.
func TestG3Allocations(t *testing.T) {
	page := bytes.Repeat([]byte("x"), 1024)
	text, private := []string{"text/plain"}, []string{"private"}
	bare := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(page) })
	headers := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = text
		w.Header()["Cache-Control"] = private
		w.WriteHeader(200)
		_, _ = w.Write(page)
	})
	outside := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header()["X-Request-Id"] = text
			w.Header()["Vary"] = private
			h.ServeHTTP(w, r)
		})
	}
	same := func(h http.Handler) http.Handler { return h }
	for _, keys := range []int{1, 10, 1000} {
		var bindings []sqlreq.Binding
		for i := range keys {
			bindings = append(bindings, sqlreq.Binding{Key: sqlreq.Key(fmt.Sprint("key", i)), DB: (&txFake{}).openDB(t)})
		}
		reg := sqlreqtest.NewRegistry(t, bindings...)
		for _, test := range []struct {
			name string
			h    http.Handler
			wrap func(http.Handler) http.Handler
		}{
			{"bare write", bare, same},
			{"headers", headers, same},
			{"headers outside", bare, outside},
			{"headers on both sides", headers, outside},
		} {
			t.Run(fmt.Sprintf("%s, %d keys", test.name, keys), func(t *testing.T) {
				want, wantBytes := txAllocs(test.wrap(test.h))
				got, gotBytes := txAllocs(test.wrap(reg.Middleware(test.h)))
				if txRace() {
					// The pools that keep the rest away leak at random: the two are the least.
					if got-want < 1 || got-want > 12 {
						t.Errorf("with the race detector: got %v allocations more, want 1 to 12", got-want)
					}
					return
				}
				if got-want != 1 || gotBytes-wantBytes > 512 {
					t.Errorf("got %v allocations and %d bytes more, want 1 and at most 512", got-want, gotBytes-wantBytes)
				}
			})
		}
	}
}

// TestG3InsertAllocations: one INSERT and COMMIT costs at most 12 allocations
// more than by hand. Allocations of the driver are the same in both.
func TestG3InsertAllocations(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	db.SetMaxOpenConns(1)
	byHand, _ := txAllocs(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tx, err := db.BeginTx(r.Context(), nil)
		if err == nil {
			_, err = tx.ExecContext(r.Context(), sqlreqtest.InsertWork)
		}
		if err == nil {
			err = tx.Commit()
		}
		if err != nil {
			t.Error(err)
		}
		w.WriteHeader(201)
	}))
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	got, _ := txAllocs(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
			t.Error(err)
		}
		w.WriteHeader(201)
	})))
	most := 12.0
	if txRace() {
		most = 30 // sync.Pool forgets at random
	}
	if got-byHand > most {
		t.Errorf("got %v allocations, %v by hand: %v more, want at most %v", got, byHand, got-byHand, most)
	}
	t.Logf("%v allocations, %v by hand", got, byHand)
}

// TestG4Panic: the panic goes through with its value, and the stack where it is
// recovered outside is that of the handler.
func TestG4Panic(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	values := map[string]any{"error": sqlreqtest.ErrTest, "abort": http.ErrAbortHandler, "value": &struct{ n int }{1}}
	for name, value := range values {
		for _, inner := range []string{"plain", "HandlerFunc", "TxFunc", "nested"} {
			t.Run(name+"/"+inner, func(t *testing.T) {
				h := txPanicking(t, inner, value)
				var got any
				var stack string
				outside := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("X-Outside", "1")
					defer func() {
						got, stack = recover(), string(debug.Stack())
						http.Error(w, "recovered", 500)
					}()
					reg.Middleware(h).ServeHTTP(w, r)
				})
				res, err := http.Get(sqlreqtest.Serve(t, outside).URL)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				if got != value || !strings.Contains(stack, "txThrow") {
					t.Errorf("got %v, want %v, and the handler's frame in\n%s", got, value, stack)
				}
				if res.StatusCode != 500 || res.Header.Get("X-Inside") != "" || res.Header.Get("X-Outside") != "1" {
					t.Errorf("got %d %v, want 500 without the handler's header", res.StatusCode, res.Header)
				}
				if n := sqlreqtest.Count(t, db, "work"); n != 0 {
					t.Errorf("got %d rows, want none", n)
				}
				txIdle(t, db)
			})
		}
	}
}

func txThrow(v any) { panic(v) }

func txPanicking(t *testing.T, kind string, value any) http.Handler {
	work := func(w http.ResponseWriter, r *http.Request) {
		txExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		w.Header().Set("X-Inside", "1")
		w.WriteHeader(201)
		txThrow(value)
	}
	switch kind {
	case "HandlerFunc":
		return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { work(w, r); return nil })
	case "TxFunc":
		return sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, _ *sql.Tx) error { work(w, r); return nil })
	case "nested":
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "inner", DB: (&txFake{}).openDB(t)})
		return reg.Middleware(http.HandlerFunc(work))
	}
	return http.HandlerFunc(work)
}

// TestG4PanicOnTheWire: without anybody who recovers the client sees no response at all.
func TestG4PanicOnTheWire(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	for name, end := range map[string]func(){
		"panic":           func() { panic(sqlreqtest.ErrTest) },
		"ErrAbortHandler": func() { panic(http.ErrAbortHandler) },
		"Goexit":          runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				txExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				w.WriteHeader(201)
				end()
			})))
			if status, _, err := sqlreqtest.Get(t, srv.URL); err == nil {
				t.Errorf("got %d, want no response", status)
			}
			if n := sqlreqtest.Count(t, db, "work"); n != 0 {
				t.Errorf("got %d rows, want none", n)
			}
			txIdle(t, db)
		})
	}
}

// TestG4EndedElsewhere: a transaction ended through *sql.Tx fails the request,
// and everything that would use it before that.
func TestG4EndedElsewhere(t *testing.T) {
	ends := map[string]func(*sql.Tx) error{"Rollback": (*sql.Tx).Rollback, "Commit": (*sql.Tx).Commit}
	for name, end := range ends {
		t.Run("deferred "+name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			var failure error
			reg.ErrorHandler = func(_ http.ResponseWriter, _ *http.Request, err error) { failure = err }
			o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tx, err := sqlreq.Tx(r.Context())
				if err != nil {
					t.Error(err)
				}
				defer end(tx)
				_, _ = tx.Exec(sqlreqtest.InsertWork)
			})), "/")
			if o.Code != 500 {
				t.Errorf("got %d, want 500", o.Code)
			}
			txEndedText(t, failure)
			txIdle(t, db)
		})
		t.Run(name+" and going on", func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tx, err := sqlreq.Tx(r.Context())
				if err != nil {
					t.Error(err)
				}
				_ = end(tx)
				for what, use := range txUses() {
					if what == "BeginTx" { // finds one open, whatever became of it
						continue
					}
					if err := use(r.Context()); !errors.Is(err, sqlreq.ErrTxEnded) {
						t.Errorf("%s: got %v, want ErrTxEnded", what, err)
					} else {
						txEndedText(t, err)
					}
				}
			})), "/")
			if o.Code != 500 {
				t.Errorf("got %d, want 500", o.Code)
			}
			txIdle(t, db)
		})
	}
	t.Run("found by Commit and Rollback", func(t *testing.T) {
		for _, f := range []func(context.Context) error{sqlreq.Commit, sqlreq.Rollback} {
			db := sqlreqtest.OpenDB(t)
			o := txGet(sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tx, _ := sqlreq.Tx(r.Context())
				_ = tx.Rollback()
				if err := f(r.Context()); !errors.Is(err, sqlreq.ErrTxEnded) {
					t.Errorf("got %v, want ErrTxEnded", err)
				}
			})), "/")
			if o.Code != 500 {
				t.Errorf("got %d, want 500", o.Code)
			}
			txIdle(t, db)
		}
	})
}

func txEndedText(t *testing.T, err error) {
	t.Helper()
	for _, part := range []string{"defer tx.Rollback()", "sqlreq.Commit", "Rollback", `"main"`} {
		if !errors.Is(err, sqlreq.ErrTxEnded) || !strings.Contains(err.Error(), part) {
			t.Errorf("got %v, want ErrTxEnded with %q in its text", err, part)
		}
	}
}

// txUses is everything that would use the transaction of DefaultKey.
func txUses() map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Tx":      func(ctx context.Context) error { _, err := sqlreq.Tx(ctx); return err },
		"BeginTx": func(ctx context.Context) error { _, err := sqlreq.BeginTx(ctx, nil); return err },
		"Exec": func(ctx context.Context) error {
			_, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
			return err
		},
		"Prepare": func(ctx context.Context) error {
			stmt, err := sqlreqtest.Main.PrepareContext(ctx, sqlreqtest.InsertWork)
			if stmt != nil {
				stmt.Close()
			}
			return err
		},
		"Query": func(ctx context.Context) error {
			rows, err := sqlreqtest.Main.QueryContext(ctx, "SELECT 1")
			if rows != nil {
				rows.Close()
			}
			return err
		},
		"QueryRow": func(ctx context.Context) error {
			var n int
			return sqlreqtest.Main.QueryRowContext(ctx, "SELECT 1").Scan(&n)
		},
		"Savepoint": func(ctx context.Context) error {
			return sqlreq.Savepoint(ctx, func(context.Context) error { return nil })
		},
	}
}

// TestG4ClientGone: a client that has left before COMMIT was sent.
func TestG4ClientGone(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	for name, commit := range map[string]bool{"at the end": false, "before an explicit Commit": true} {
		t.Run(name, func(t *testing.T) {
			entered, over := make(chan struct{}), make(chan struct{})
			h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				txExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				close(entered)
				<-r.Context().Done()
				if commit {
					if err := sqlreq.Commit(r.Context()); !errors.Is(err, context.Canceled) {
						t.Errorf("Commit: got %v, want context.Canceled", err)
					}
				}
				w.WriteHeader(201)
			}))
			srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(over)
				h.ServeHTTP(w, r)
			}))
			conn, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			<-entered
			conn.Close()
			<-over
			if n := sqlreqtest.Count(t, db, "work"); n != 0 {
				t.Errorf("got %d rows, want none", n)
			}
			txIdle(t, db)
		})
	}
}

// txExpiring is a context whose deadline passes when expire is called.
type txExpiring struct {
	context.Context
	done chan struct{}
}

func txDeadline(ctx context.Context) (c context.Context, expire func()) {
	e := &txExpiring{ctx, make(chan struct{})}
	return e, func() { close(e.done) }
}

func (e *txExpiring) Done() <-chan struct{} { return e.done }

func (e *txExpiring) Err() error {
	select {
	case <-e.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// TestG4Deadline: a context with a deadline set outside has ended before COMMIT;
// its client is still there.
func TestG4Deadline(t *testing.T) {
	for name, options := range map[string]*sql.TxOptions{"BEGIN": nil, "BEGIN READ ONLY": txReadOnly} {
		f := &txFake{}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.openDB(t), TxOptions: txOptions(options)})
		srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, expire := txDeadline(r.Context())
			reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				txExec(t, r.Context(), sqlreqtest.Main, "INSERT")
				expire()
				w.WriteHeader(201)
			})).ServeHTTP(w, r.WithContext(ctx))
		}))
		res, err := http.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 503 || res.Header.Get("Retry-After") != "1" {
			t.Errorf("%s: got %d %v, want 503 with Retry-After: 1", name, res.StatusCode, res.Header)
		}
		f.check(t, name, "INSERT", "ROLLBACK")
	}
}

// TestG4DeadlineAndNothingOpen: what is committed, or was never begun, needs no error.
func TestG4DeadlineAndNothingOpen(t *testing.T) {
	f := &txFake{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.openDB(t)})
	for _, use := range []bool{false, true} {
		ctx, expire := txDeadline(context.Background())
		o := txServe(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if use {
				txExec(t, r.Context(), sqlreqtest.Main, "INSERT")
				if err := sqlreq.Commit(r.Context()); err != nil {
					t.Error(err)
				}
			}
			expire()
			w.WriteHeader(201)
		})), httptest.NewRequest("POST", "/", nil).WithContext(ctx))
		if o.Code != 201 {
			t.Errorf("got %d, want 201", o.Code)
		}
	}
	f.check(t, "BEGIN", "INSERT", "COMMIT")
}

// TestG4CommitSeenThrough: no cancellation makes a committed transaction look
// like a failed one.
func TestG4CommitSeenThrough(t *testing.T) {
	for name, explicit := range map[string]bool{"at the end": false, "explicit": true} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			f := &txFake{step: func(ctx context.Context, stmt string) error {
				if stmt == "COMMIT" {
					cancel()
				}
				return ctx.Err()
			}}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.openDB(t)})
			hooks := 0
			o := txServe(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				txExec(t, r.Context(), sqlreqtest.Main, "INSERT")
				if err := sqlreq.AfterCommit(r.Context(), func(context.Context) { hooks++ }); err != nil {
					t.Error(err)
				}
				if explicit {
					if err := sqlreq.Commit(r.Context()); err != nil {
						t.Errorf("Commit: %v", err)
					}
				}
				w.WriteHeader(201)
			})), httptest.NewRequest("POST", "/", nil).WithContext(ctx))
			if o.Code != 201 || hooks != 1 {
				t.Errorf("got %d and %d hooks, want 201 and 1", o.Code, hooks)
			}
			f.check(t, "BEGIN", "INSERT", "COMMIT")
		})
	}
}

// TestBeginWaitEnds: the wait for a connection, and for BEGIN, ends with the
// caller's context and with the request's.
func TestBeginWaitEnds(t *testing.T) {
	tests := []struct {
		name       string
		request    bool // the request's context ends, not only the caller's
		inBegin    bool // BEGIN waits, not the pool
		code       int
		retryAfter string
	}{
		{"caller, pool", false, false, 503, "1"},
		{"request, pool", true, false, 503, "1"},
		{"caller, BEGIN", false, true, 503, "1"},
		{"request, BEGIN", true, true, 503, "1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			beginning := make(chan struct{})
			f := &txFake{step: func(ctx context.Context, stmt string) error {
				if stmt == "BEGIN" {
					close(beginning)
					<-ctx.Done()
					return errors.New("interrupted") // drivers have errors of their own for it
				}
				return nil
			}}
			db := f.openDB(t)
			db.SetMaxOpenConns(1)
			if !test.inBegin {
				conn, err := db.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
			}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			root, expireRoot := txDeadline(context.Background())
			o := txServe(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				ctx, expire := r.Context(), expireRoot
				if !test.request {
					ctx, expire = txDeadline(ctx)
				}
				go func() {
					if test.inBegin {
						<-beginning
					} else {
						txUntil(func() bool { return db.Stats().WaitCount > 0 })
					}
					expire()
				}()
				_, err := sqlreq.Tx(ctx)
				if err == nil {
					t.Error("Tx: got nil, want an error")
				}
				return err
			})), httptest.NewRequest("POST", "/", nil).WithContext(root))
			if o.Code != test.code || o.Header().Get("Retry-After") != test.retryAfter {
				t.Errorf("got %d %v, want %d with Retry-After %q", o.Code, o.Header(), test.code, test.retryAfter)
			}
		})
	}
}

// TestBeginOnce: many goroutines, one BEGIN.
func TestBeginOnce(t *testing.T) {
	f := &txFake{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.openDB(t)})
	o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var all sync.WaitGroup
		txs := make([]*sql.Tx, 50)
		for i := range txs {
			all.Go(func() {
				var err error
				if txs[i], err = sqlreq.Tx(r.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for _, tx := range txs {
			if tx != txs[0] {
				t.Error("got several transactions")
			}
		}
	})), "/")
	if o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	f.check(t, "BEGIN", "COMMIT")
}

// TestBeginDelaysNoOtherKey: while one key waits, be it for Route or for BEGIN, another works.
func TestBeginDelaysNoOtherKey(t *testing.T) {
	waiting, release := make(chan struct{}, 2), make(chan struct{})
	slow := &txFake{step: func(_ context.Context, stmt string) error {
		if stmt == "BEGIN" {
			waiting <- struct{}{}
			<-release
		}
		return nil
	}}
	fast := &txFake{}
	slowDB := slow.openDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: fast.openDB(t)}, sqlreq.Binding{Key: "slow", DB: slowDB},
		sqlreq.Binding{Key: "routed", Route: func(context.Context, *http.Request) (*sql.DB, error) {
			waiting <- struct{}{}
			<-release
			return slowDB, nil
		}})
	o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var all sync.WaitGroup
		for _, k := range []sqlreq.Key{"slow", "routed"} {
			all.Go(func() { txExec(t, r.Context(), k, "INSERT") })
			<-waiting
		}
		txExec(t, r.Context(), sqlreqtest.Main, "INSERT")
		if err := sqlreq.Commit(r.Context()); err != nil {
			t.Error(err)
		}
		close(release)
		all.Wait()
	})), "/")
	if o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	fast.check(t, "BEGIN", "INSERT", "COMMIT")
	slow.check(t, "BEGIN", "INSERT", "INSERT", "COMMIT")
}

// TestBeginWaiterTakesOver: who waits for somebody else's BEGIN begins itself
// when that one gives up; and may give up itself.
func TestBeginWaiterTakesOver(t *testing.T) {
	beginning, first := make(chan struct{}), true
	f := &txFake{step: func(ctx context.Context, stmt string) error {
		if stmt == "BEGIN" && first {
			first = false
			close(beginning)
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.openDB(t)})
	o := txGet(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		one, giveUp := context.WithCancel(r.Context())
		beginner := make(chan error, 1)
		go func() { _, err := sqlreq.Tx(one); beginner <- err }()
		<-beginning

		two, leave := context.WithCancel(r.Context())
		watched := txWatch(two)
		impatient := make(chan error, 1)
		go func() { _, err := sqlreq.Tx(watched); impatient <- err }()
		<-watched.waiting
		leave()
		if err := <-impatient; !errors.Is(err, context.Canceled) {
			t.Errorf("a waiter that gave up: got %v, want context.Canceled", err)
		}

		three := txWatch(r.Context())
		waiter := make(chan error, 1)
		go func() { _, err := sqlreq.Tx(three); waiter <- err }()
		<-three.waiting
		giveUp()
		if err := <-beginner; !errors.Is(err, context.Canceled) {
			t.Errorf("the beginner that gave up: got %v, want context.Canceled", err)
		}
		if err := <-waiter; err != nil {
			t.Errorf("the waiter: got %v, want a transaction", err)
		}
		return nil
	})), "/")
	if o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	f.check(t, "BEGIN", "BEGIN", "COMMIT")
}

type txCtxKey struct{}

// TestRoute: it is asked once for a request and key, with the context that asked
// and the request, may use other keys, and what it gives is remembered.
func TestRoute(t *testing.T) {
	directory, tenant := &txFake{}, &txFake{}
	tenantDB := tenant.openDB(t)
	var routed, opted atomic.Int32
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: directory.openDB(t)}, sqlreq.Binding{
		Key: "tenant",
		Route: func(ctx context.Context, r *http.Request) (*sql.DB, error) {
			routed.Add(1)
			var n int
			if err := sqlreqtest.Main.QueryRowContext(ctx, "SELECT").Scan(&n); err != nil {
				return nil, err
			}
			if ctx.Value(txCtxKey{}) != "asked" || r == nil || r.URL.Path != "/x" {
				t.Errorf("Route: got %v, %v", ctx.Value(txCtxKey{}), r)
			}
			return tenantDB, nil
		},
		TxOptions: func(ctx context.Context, r *http.Request) *sql.TxOptions {
			opted.Add(1)
			var n int
			if err := sqlreqtest.Main.QueryRowContext(ctx, "SELECT").Scan(&n); err != nil {
				t.Error(err)
			}
			return &sql.TxOptions{Isolation: sql.LevelSerializable}
		},
	})
	o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := context.WithValue(r.Context(), txCtxKey{}, "asked")
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { txExec(t, ctx, "tenant", "INSERT") })
		}
		all.Wait()
		if db, err := sqlreq.Key("tenant").DB(ctx); db != tenantDB || err != nil {
			t.Errorf("DB: got %p, %v", db, err)
		}
		if err := sqlreq.Key("tenant").Commit(ctx); err != nil {
			t.Error(err)
		}
		txExec(t, ctx, "tenant", "INSERT")
	})), "/x")
	if o.Code != 200 || routed.Load() != 1 || opted.Load() != 1 {
		t.Errorf("got %d, Route asked %d times, TxOptions %d times, want 200, 1, 1", o.Code, routed.Load(), opted.Load())
	}
	directory.check(t, "BEGIN", "SELECT", "SELECT", "COMMIT")
	if got := tenant.statements(); got[0] != "BEGIN Serializable" || len(got) != 25 {
		t.Errorf("got %q", got)
	}
	tenant.checkClean(t)
}

// TestRouteIsGivenTheRequestThatAsks: not that of the first handler that had
// anything to do with the key.
func TestRouteIsGivenTheRequestThatAsks(t *testing.T) {
	db := (&txFake{}).openDB(t)
	var paths []string
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{
		Route: func(_ context.Context, r *http.Request) (*sql.DB, error) {
			paths = append(paths, "Route "+r.URL.Path)
			return db, nil
		},
		TxOptions: func(_ context.Context, r *http.Request) *sql.TxOptions {
			paths = append(paths, "TxOptions "+r.URL.Path)
			return nil
		},
	})
	inner := http.StripPrefix("/a", reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		txExec(t, r.Context(), sqlreqtest.Main, "INSERT")
	})))
	txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := sqlreq.AfterCommit(r.Context(), func(context.Context) {}); err != nil {
			t.Error(err)
		}
		inner.ServeHTTP(w, r)
	})), "/a/b")
	if want := []string{"Route /b", "TxOptions /b"}; !slices.Equal(paths, want) {
		t.Errorf("got %q, want %q", paths, want)
	}
}

func TestRouteFails(t *testing.T) {
	asked := 0
	tests := []struct {
		name  string
		route func() (*sql.DB, error)
		code  int
		text  string
	}{
		{"error", func() (*sql.DB, error) { return nil, sqlreqtest.ErrTest }, 500, "test"},
		{"status", func() (*sql.DB, error) { return nil, sqlreq.Errorf(404, "no such tenant") }, 404, "no such tenant"},
		{"nil", func() (*sql.DB, error) { return nil, nil }, 500, "Route"},
	}
	for _, test := range tests {
		asked = 0
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "tenant", Route: func(context.Context, *http.Request) (*sql.DB, error) {
			asked++
			return test.route()
		}})
		o := txGet(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			_, first := sqlreq.Key("tenant").DB(r.Context())
			_, err := sqlreq.Key("tenant").Tx(r.Context())
			if first == nil || err == nil || !strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), `"tenant"`) {
				t.Errorf("%s: got %v and %v, want an error with %q and the key", test.name, first, err, test.text)
			}
			return err
		})), "/")
		if o.Code != test.code || asked != 1 {
			t.Errorf("%s: got %d, asked %d times, want %d, once", test.name, o.Code, asked, test.code)
		}
	}
}

// TestRouteIsAskedAgain: what failed because the asker's context ended is no answer.
func TestRouteIsAskedAgain(t *testing.T) {
	f := &txFake{}
	db := f.openDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Route: func(ctx context.Context, _ *http.Request) (*sql.DB, error) { return db, ctx.Err() }})
	o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		if _, err := sqlreq.Tx(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
		txExec(t, r.Context(), sqlreqtest.Main, "INSERT")
	})), "/")
	if o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	f.check(t, "BEGIN", "INSERT", "COMMIT")
}

// TestG6OnePoolOneTransaction: keys of one pool share the transaction, unless
// they want different ones.
func TestG6OnePoolOneTransaction(t *testing.T) {
	f := &txFake{}
	db := f.openDB(t)
	route := func(context.Context, *http.Request) (*sql.DB, error) { return db, nil }
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "same", DB: db}, sqlreq.Binding{Key: "routed", Route: route},
		sqlreq.Binding{Key: "readonly", DB: db, TxOptions: txOptions(txReadOnly)}, sqlreq.Binding{Key: "guarded", DB: db, Guard: true})
	inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "nested", DB: db})
	o := txGet(reg.Middleware(inner.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tx, err := sqlreq.Tx(r.Context())
		if err != nil {
			t.Error(err)
		}
		for _, k := range []sqlreq.Key{"same", "routed", "nested"} {
			if got, err := k.Tx(r.Context()); got != tx || err != nil {
				t.Errorf("key %q: got another transaction, or %v", k, err)
			}
		}
		for _, k := range []sqlreq.Key{"readonly", "guarded"} {
			if _, err := k.Tx(r.Context()); !errors.Is(err, sqlreq.ErrBegun) {
				t.Errorf("key %q: got %v, want ErrBegun", k, err)
			}
		}
		for _, k := range []sqlreq.Key{sqlreqtest.Main, "same", "readonly"} {
			if _, err := k.BeginTx(r.Context(), nil); !errors.Is(err, sqlreq.ErrBegun) {
				t.Errorf("BeginTx of key %q: got %v, want ErrBegun", k, err)
			}
		}
		if err := sqlreq.Key("same").Commit(r.Context()); err != nil {
			t.Error(err)
		}
		txExec(t, r.Context(), "guarded", "INSERT")
		if _, err := sqlreq.Tx(r.Context()); !errors.Is(err, sqlreq.ErrBegun) {
			t.Errorf("got %v, want ErrBegun", err)
		}
		if err := sqlreq.Key("nested").Commit(r.Context()); err != nil { // not the one that began it
			t.Error(err)
		}
	}))), "/")
	if o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	f.check(t, "BEGIN", "COMMIT", "BEGIN", "SAVEPOINT sqlreq_guard", "INSERT", "RELEASE SAVEPOINT sqlreq_guard", "COMMIT")
}

// TestG7Finished: after the request everything that would use its transaction
// returns ErrFinished, from whatever goroutine.
func TestG7Finished(t *testing.T) {
	f := &txFake{}
	for _, used := range []bool{false, true} {
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.openDB(t)})
		var ctx context.Context
		o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx = context.WithoutCancel(r.Context())
			if used {
				txExec(t, ctx, sqlreqtest.Main, "INSERT")
			}
		})), "/")
		if o.Code != 200 {
			t.Errorf("got %d, want 200", o.Code)
		}
		uses := txUses()
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
	f.check(t, "BEGIN", "COMMIT", "BEGIN", "INSERT", "COMMIT", "BEGIN", "COMMIT")
}

// txAtErr is a context that calls f the first time that somebody looks whether it has ended.
type txAtErr struct {
	context.Context
	once sync.Once
	f    func()
}

func (c *txAtErr) Err() error {
	c.once.Do(c.f)
	return c.Context.Err()
}

// TestG7StatementOvertaken: the request ends after a statement of another
// goroutine has found the transaction, and before it runs.
func TestG7StatementOvertaken(t *testing.T) {
	for name, use := range txUses() {
		if name == "Tx" || name == "BeginTx" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			f := &txFake{}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.openDB(t)})
			ready, finished, result := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := sqlreq.Tx(r.Context()); err != nil {
					t.Error(err)
				}
				ctx := &txAtErr{Context: r.Context(), f: func() { close(ready); <-finished }}
				if name == "Savepoint" { // is through the gate by then, which the end waits for
					ctx.f = func() { close(ready) }
				}
				go func() { result <- use(ctx) }()
				<-ready
			})), "/")
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
	f := &txFake{}
	db := f.openDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "routed", Route: func(context.Context, *http.Request) (*sql.DB, error) { return db, nil }})
	uses := txUses()
	uses["routed"] = func(ctx context.Context) error { _, err := sqlreq.Key("routed").Tx(ctx); return err }
	uses["Commit"] = sqlreq.Commit
	uses["Rollback"] = sqlreq.Rollback
	for round := range 300 {
		var all sync.WaitGroup
		txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
		txUntil(func() bool { return db.Stats().InUse == 0 })
	}
	f.checkClean(t)
}

// TestG7BeginUnderWay: a BEGIN that the handler did not wait for is rolled back
// when it succeeds after all.
func TestG7BeginUnderWay(t *testing.T) {
	beginning, release := make(chan struct{}), make(chan struct{})
	f := &txFake{step: func(_ context.Context, stmt string) error {
		if stmt == "BEGIN" {
			close(beginning)
			<-release
		}
		return nil
	}}
	db := f.openDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	result := make(chan error, 1)
	o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
	txUntil(func() bool { return db.Stats().InUse == 0 })
	f.check(t, "BEGIN", "ROLLBACK")
}

// TestG7LateGoroutineOfATimeout: http.TimeoutHandler answers while the handler
// still runs; its statements must find the end.
func TestG7LateGoroutineOfATimeout(t *testing.T) {
	f := &txFake{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.openDB(t)})
	answered, result := make(chan struct{}), make(chan error, 1)
	var expire func()
	late := http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := context.WithoutCancel(r.Context())
		txExec(t, ctx, sqlreqtest.Main, "INSERT")
		expire()
		<-answered
		_, err := sqlreqtest.Main.ExecContext(ctx, "INSERT")
		result <- err
	}), time.Hour, "too late")
	o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var ctx context.Context
		ctx, expire = txDeadline(r.Context())
		late.ServeHTTP(w, r.WithContext(ctx))
	})), "/")
	close(answered)
	if err := <-result; !errors.Is(err, sqlreq.ErrFinished) {
		t.Errorf("got %v, want ErrFinished", err)
	}
	if o.Code != 503 || o.Body.String() != "too late" {
		t.Errorf("got %d %q, want TimeoutHandler's 503", o.Code, o.Body)
	}
	f.check(t, "BEGIN", "INSERT", "ROLLBACK")
}

// TestG6CommitIf: every registry entered that has one may veto; only if none has, the status decides.
func TestG6CommitIf(t *testing.T) {
	yes := func(int, http.Header) bool { return true }
	no := func(int, http.Header) bool { return false }
	tests := []struct {
		outer, inner func(int, http.Header) bool
		status       int
		want         string
	}{
		{nil, nil, 200, "COMMIT"},
		{nil, nil, 404, "ROLLBACK"},
		{yes, nil, 404, "COMMIT"},
		{nil, yes, 404, "COMMIT"},
		{yes, no, 200, "ROLLBACK"},
		{no, yes, 200, "ROLLBACK"},
		{nil, no, 200, "ROLLBACK"},
		{yes, yes, 500, "COMMIT"},
	}
	for i, test := range tests {
		f := &txFake{}
		outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.openDB(t)})
		inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "inner", DB: (&txFake{}).openDB(t)})
		outer.CommitIf, inner.CommitIf = test.outer, test.inner
		o := txGet(outer.Middleware(inner.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			txExec(t, r.Context(), sqlreqtest.Main, "INSERT")
			w.WriteHeader(test.status)
		}))), "/")
		if o.Code != test.status {
			t.Errorf("case %d: got %d, want %d", i, o.Code, test.status)
		}
		f.check(t, "BEGIN", "INSERT", test.want)
	}
}

// TestCommitIfOrder: from the outermost inward, until one says no.
func TestCommitIfOrder(t *testing.T) {
	var asked []string
	var h http.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	for _, name := range []string{"d", "c", "b", "a"} {
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&txFake{}).openDB(t)})
		reg.CommitIf = func(int, http.Header) bool {
			asked = append(asked, name)
			return name != "c"
		}
		h = reg.Middleware(h)
	}
	txGet(h, "/")
	if want := []string{"a", "b", "c"}; !slices.Equal(asked, want) {
		t.Errorf("got %q, want %q", asked, want)
	}
}

// TestCommitIfSeesTheResponse: it is asked once, with what would be sent.
func TestCommitIfSeesTheResponse(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&txFake{}).openDB(t)})
	asked := 0
	reg.CommitIf = func(status int, h http.Header) bool {
		asked++
		if status != 202 || h.Get("X-A") != "1" || h.Get("X-Late") != "" {
			t.Errorf("got %d %v, want 202 with the header of WriteHeader", status, h)
		}
		return true
	}
	txGet(reg.Middleware(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-A", "1")
		w.WriteHeader(202)
		w.Header().Set("X-Late", "1")
	}))), "/")
	if asked != 1 {
		t.Errorf("asked %d times, want once", asked)
	}
}

// TestG6TwoRegistriesOneOutcome: the databases of outer and inner registry end alike.
func TestG6TwoRegistriesOneOutcome(t *testing.T) {
	for status, want := range map[int]string{200: "COMMIT", 422: "ROLLBACK"} {
		a, b := &txFake{}, &txFake{}
		outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: a.openDB(t)})
		inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "inner", DB: b.openDB(t)})
		h := inner.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			txExec(t, r.Context(), "inner", "INSERT")
			w.WriteHeader(status)
		}))
		txGet(outer.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			txExec(t, r.Context(), sqlreqtest.Main, "INSERT")
			h.ServeHTTP(w, r)
			if got := b.statements(); len(got) != 2 {
				t.Errorf("the inner one has ended before the outer: %q", got)
			}
		})), "/")
		a.check(t, "BEGIN", "INSERT", want)
		b.check(t, "BEGIN", "INSERT", want)
	}
}

// TestG6Keys shows which keys a handler sees, and that a key is never looked up
// in the wrong database.
func TestG6Keys(t *testing.T) {
	dbs := map[string]*sql.DB{}
	open := func(name string) *sql.DB { dbs[name] = (&txFake{}).openDB(t); return dbs[name] }
	a := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: open("a.main")}, sqlreq.Binding{Key: "shared", DB: open("a.shared")},
		sqlreq.Binding{Key: "demand", DB: open("a.demand"), OnDemand: true}, sqlreq.Binding{Key: "a", DB: open("a.a")})
	b := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "shared", DB: open("b.shared")},
		sqlreq.Binding{DB: open("b.main"), OnDemand: true}, sqlreq.Binding{Key: "b", DB: open("b.b")})
	type wrap = func(http.Handler) http.Handler
	chain := func(ws ...wrap) wrap {
		return func(h http.Handler) http.Handler {
			for _, w := range slices.Backward(ws) {
				h = w(h)
			}
			return h
		}
	}
	strip := func(h http.Handler) http.Handler { return http.StripPrefix("/x", h) }
	tests := []struct {
		name string
		wrap wrap
		want map[sqlreq.Key]string // "" means ErrUnknownKey
	}{
		{"Middleware", a.Middleware, map[sqlreq.Key]string{sqlreqtest.Main: "a.main", "shared": "a.shared", "demand": "", "a": "a.a", "b": "", "": ""}},
		{"Middleware twice", chain(a.Middleware, a.Middleware), map[sqlreq.Key]string{sqlreqtest.Main: "a.main", "demand": "", "a": "a.a"}},
		{"With alone", a.With("demand"), map[sqlreq.Key]string{sqlreqtest.Main: "", "shared": "", "demand": "a.demand"}},
		{"With of nothing", a.With(), map[sqlreq.Key]string{sqlreqtest.Main: "", "demand": ""}},
		{"With inside Middleware", chain(a.Middleware, a.With("demand")), map[sqlreq.Key]string{sqlreqtest.Main: "a.main", "demand": "a.demand"}},
		{"Middleware inside With", chain(a.With("demand"), a.Middleware), map[sqlreq.Key]string{sqlreqtest.Main: "a.main", "demand": "a.demand"}},
		{"With in With", chain(a.With("demand"), a.With("a")), map[sqlreq.Key]string{sqlreqtest.Main: "", "demand": "a.demand", "a": "a.a"}},
		{"nested", chain(a.Middleware, b.Middleware), map[sqlreq.Key]string{sqlreqtest.Main: "", "shared": "b.shared", "a": "a.a", "b": "b.b", "demand": ""}},
		{"nested, opened", chain(a.Middleware, b.Middleware, b.With(sqlreqtest.Main)), map[sqlreq.Key]string{sqlreqtest.Main: "b.main", "a": "a.a", "demand": ""}},
		{"nested by With", chain(a.Middleware, b.With("b")), map[sqlreq.Key]string{sqlreqtest.Main: "", "shared": "", "a": "a.a", "b": "b.b"}},
		{"nested the other way", chain(b.Middleware, a.Middleware), map[sqlreq.Key]string{sqlreqtest.Main: "a.main", "shared": "a.shared", "b": "b.b"}},
		{"nested OnDemand outside", chain(a.With("demand"), b.Middleware), map[sqlreq.Key]string{"demand": "a.demand", "a": ""}},
		{"back in the outer, stripped", chain(a.Middleware, b.Middleware, strip, a.Middleware), map[sqlreq.Key]string{sqlreqtest.Main: "a.main", "shared": "a.shared", "b": "b.b"}},
		{"back in the outer", chain(a.Middleware, b.Middleware, a.Middleware), map[sqlreq.Key]string{sqlreqtest.Main: "a.main", "shared": "a.shared", "b": "b.b"}},
		{"back in the outer by With", chain(a.Middleware, b.Middleware, a.With(sqlreqtest.Main)), map[sqlreq.Key]string{sqlreqtest.Main: "a.main", "b": "b.b"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ran := false
			txGet(test.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ran = true
				for k, want := range test.want {
					db, err := k.DB(r.Context())
					if want == "" {
						if !errors.Is(err, sqlreq.ErrUnknownKey) || !strings.Contains(err.Error(), fmt.Sprintf("%q", k)) && k != "" {
							t.Errorf("key %q: got %v, want ErrUnknownKey with the key", k, err)
						}
						continue
					}
					if err != nil || db != dbs[want] {
						t.Errorf("key %q: got another database than %s, or %v", k, want, err)
					}
				}
			})), "/x/")
			if !ran {
				t.Error("the handler did not run")
			}
		})
	}
}

func TestUnknownKeySaysWhatToDo(t *testing.T) {
	db := (&txFake{}).openDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "reports", DB: db, OnDemand: true}, sqlreq.Binding{Key: "other", DB: db})
	h := reg.With("other")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for k, parts := range map[sqlreq.Key][]string{
			"reports":       {`"reports"`, "OnDemand", `With("reports")`, `"other"`},
			sqlreqtest.Main: {`"main"`, "With", `"other"`},
			"mian":          {`"mian"`, "not bound", `"other"`},
			"":              {"empty", "DefaultKey", `"other"`},
		} {
			_, err := k.Tx(r.Context())
			for _, part := range parts {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("key %q: got %v, want it to contain %q", k, err, part)
				}
			}
			if scanned := k.QueryRowContext(r.Context(), "SELECT").Scan(); !errors.Is(scanned, sqlreq.ErrUnknownKey) {
				t.Errorf("key %q: Scan got %v, want ErrUnknownKey", k, scanned)
			}
		}
	}))
	txGet(h, "/")
}

// TestG6PanicRecoveredBetween: a nested application panics, and a handler
// between it and the outermost registry recovers.
func TestG6PanicRecoveredBetween(t *testing.T) {
	recoverer := func(answer int) func(http.Handler) http.Handler {
		return func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer func() {
					if recover() != nil && answer != 0 {
						w.WriteHeader(answer)
					}
				}()
				h.ServeHTTP(w, r)
			})
		}
	}
	kinds := map[string]func(*sqlreq.Registry, http.HandlerFunc) http.Handler{
		"Middleware":  func(reg *sqlreq.Registry, h http.HandlerFunc) http.Handler { return reg.Middleware(h) },
		"HandlerFunc": func(_ *sqlreq.Registry, h http.HandlerFunc) http.Handler { return txReturning(h) },
		"TxFunc": func(_ *sqlreq.Registry, h http.HandlerFunc) http.Handler {
			return sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, _ *sql.Tx) error { h(w, r); return nil })
		},
		"View": func(_ *sqlreq.Registry, h http.HandlerFunc) http.Handler { return sqlreq.View(txGetOnly{h}) },
	}
	for name, kind := range kinds {
		for answer, want := range map[int]int{0: 500, 200: 500, 302: 500, 418: 418, 503: 503} {
			f := &txFake{}
			outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.openDB(t)})
			inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "inner", DB: (&txFake{}).openDB(t)})
			o := txGet(outer.Middleware(recoverer(answer)(kind(inner, func(w http.ResponseWriter, r *http.Request) {
				txExec(t, r.Context(), sqlreqtest.Main, "INSERT")
				panic(sqlreqtest.ErrTest)
			}))), "/")
			if o.Code != want || !o.returned {
				t.Errorf("%s, answered with %d: got %d, want %d", name, answer, o.Code, want)
			}
			f.check(t, "BEGIN", "INSERT", "ROLLBACK")
		}
	}
}

type txGetOnly struct{ h http.HandlerFunc }

func (g txGetOnly) Get(w http.ResponseWriter, r *http.Request) { g.h(w, r) }

func txReturning(h http.HandlerFunc) http.Handler {
	return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { h(w, r); return nil })
}

// txFailing is a handler that leaves traces and fails.
func txFailing(err error) http.Handler {
	return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("X-Inside", "1")
		w.Header().Set("X-Outside", "changed")
		w.Header().Set("Content-Length", "3")
		w.WriteHeader(201)
		_, _ = io.WriteString(w, "yes")
		return err
	})
}

// TestErrorHandler: what it finds, and what becomes of what it does.
func TestErrorHandler(t *testing.T) {
	failure := sqlreq.Errorf(409, "secret: %w", sqlreqtest.ErrTest)
	type handler = func(http.ResponseWriter, *http.Request, error)
	tests := []struct {
		name string
		f    handler
		code int
		body string
	}{
		{"default", nil, 409, "Conflict\n"},
		{"silent", func(http.ResponseWriter, *http.Request, error) {}, 409, "Conflict\n"},
		{"bare write", func(w http.ResponseWriter, _ *http.Request, _ error) { _, _ = io.WriteString(w, "page") }, 409, "page"},
		{"own status", func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(418) }, 418, ""},
		{"StatusCode", func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "page", sqlreq.StatusCode(err))
		}, 409, "page\n"},
		{"large", func(w http.ResponseWriter, _ *http.Request, _ error) {
			_, _ = w.Write(bytes.Repeat([]byte("x"), 100<<10))
		}, 409, strings.Repeat("x", 100<<10)},
		{"no transaction", func(w http.ResponseWriter, r *http.Request, _ error) {
			if _, err := sqlreq.Tx(r.Context()); !errors.Is(err, sqlreq.ErrFinished) {
				t.Errorf("Tx in ErrorHandler: got %v, want ErrFinished", err)
			}
			w.WriteHeader(400)
		}, 400, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&txFake{}).openDB(t)})
			if test.f != nil {
				reg.ErrorHandler = func(w http.ResponseWriter, r *http.Request, err error) {
					if h := w.Header(); h.Get("X-Inside") != "" || h.Get("Content-Length") != "" || h.Get("X-Outside") != "1" {
						t.Errorf("ErrorHandler found %v, want none of the handler's headers", h)
					}
					if !errors.Is(err, sqlreqtest.ErrTest) || r.URL.Path != "/page" {
						t.Errorf("ErrorHandler got %v for %s", err, r.URL.Path)
					}
					test.f(w, r, err)
				}
			}
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Outside", "1")
				reg.Middleware(txFailing(failure)).ServeHTTP(w, r)
			})
			res, err := http.Get(sqlreqtest.Serve(t, h).URL + "/page")
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil || res.StatusCode != test.code || string(body) != test.body {
				t.Errorf("got %d %.20q %v, want %d %.20q", res.StatusCode, body, err, test.code, test.body)
			}
			if res.Header.Get("X-Inside") != "" || res.Header.Get("X-Outside") != "1" {
				t.Errorf("got headers %v", res.Header)
			}
		})
	}
}

// TestErrorHandlerPanics: the request is rolled back by then, a middleware
// outside that recovers finds its own headers and none of anybody else's.
func TestErrorHandlerPanics(t *testing.T) {
	for _, attempts := range []int{0, 2} {
		f := &txFake{}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.openDB(t)})
		reg.Retry.Attempts = attempts
		reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) {
			w.Header().Set("X-Error", "1")
			_, _ = io.WriteString(w, "half")
			panic(sqlreqtest.ErrTest)
		}
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Outside", "1")
			defer func() {
				if got := recover(); got != sqlreqtest.ErrTest {
					t.Errorf("recovered %v, want sqlreqtest.ErrTest", got)
				}
				w.WriteHeader(500)
			}()
			reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				txExec(t, r.Context(), sqlreqtest.Main, "INSERT")
				return txFailingErr(w)
			})).ServeHTTP(w, r)
		})
		res, err := http.Get(sqlreqtest.Serve(t, h).URL)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != 500 || len(body) != 0 || res.Header.Get("X-Outside") != "1" || res.Header.Get("X-Error") != "" || res.Header.Get("X-Inside") != "" {
			t.Errorf("%d attempts: got %d %q %v, want 500 with the outer header alone", attempts, res.StatusCode, body, res.Header)
		}
		f.check(t, "BEGIN", "INSERT", "ROLLBACK")
	}
}

func txFailingErr(w http.ResponseWriter) error {
	w.Header().Set("X-Inside", "1")
	return sqlreqtest.ErrTest
}

// TestErrorHandlerPanicsStreaming: its half answer must not look complete either.
func TestErrorHandlerPanicsStreaming(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&txFake{}).openDB(t)})
	reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) {
		w.WriteHeader(200)
		_, _ = w.Write(make([]byte, 200<<10))
		panic(sqlreqtest.ErrTest)
	}
	srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { _ = recover() }()
		reg.Middleware(txFailing(sqlreqtest.ErrTest)).ServeHTTP(w, r)
	}))
	if status, body, err := sqlreqtest.Get(t, srv.URL); err == nil {
		t.Errorf("got a complete %d of %d bytes, want a broken transfer", status, len(body))
	}
}

// TestG6ErrorHandlerOfTheInner: errors of a nested application's handlers are
// rendered by its own ErrorHandler.
func TestG6ErrorHandlerOfTheInner(t *testing.T) {
	name := func(reg *sqlreq.Registry, s string) {
		reg.ErrorHandler = func(w http.ResponseWriter, r *http.Request, err error) {
			fmt.Fprintf(w, "%s %s %s", s, r.URL.Path, sqlreq.Prefix(r.Context()))
		}
	}
	outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&txFake{}).openDB(t)})
	inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "inner", DB: (&txFake{step: func(_ context.Context, stmt string) error {
		if stmt == "COMMIT" {
			return sqlreqtest.ErrTest
		}
		return nil
	}}).openDB(t)})
	name(outer, "outer")
	name(inner, "inner")
	mux := http.NewServeMux()
	mux.Handle("/in/", inner.Mount("/in", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/returned":
			txFailing(sqlreqtest.ErrTest).ServeHTTP(w, r)
		case "/fail":
			_ = sqlreq.Fail(r.Context(), sqlreqtest.ErrTest)
		case "/commit":
			txExec(t, r.Context(), "inner", "INSERT")
		}
	})))
	mux.Handle("/out", txFailing(sqlreqtest.ErrTest))
	for target, want := range map[string]string{
		"/in/returned": "inner /returned /in",
		"/in/fail":     "inner /fail /in",
		"/in/commit":   "inner /commit /in",
		"/out":         "outer /out ",
	} {
		if o := txGet(outer.Middleware(mux), target); o.Code != 500 || o.Body.String() != want {
			t.Errorf("%s: got %d %q, want 500 %q", target, o.Code, o.Body, want)
		}
	}
}

// TestErrorAfterAnAnswer: the handler's own answer of 400 or more stands.
func TestErrorAfterAnAnswer(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&txFake{}).openDB(t)})
	reg.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { t.Error("ErrorHandler was called") }
	o := txGet(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("X-Inside", "1")
		http.Error(w, "mine", http.StatusUnprocessableEntity)
		return sqlreqtest.ErrTest
	})), "/")
	if o.Code != 422 || o.Body.String() != "mine\n" || o.Header().Get("X-Inside") != "1" {
		t.Errorf("got %d %q %v, want the handler's answer", o.Code, o.Body, o.Header())
	}
}

// txLog collects the records of a logger.
type txLog struct {
	mu      sync.Mutex
	records []map[string]string
}

func (l *txLog) Enabled(context.Context, slog.Level) bool { return true }
func (l *txLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *txLog) WithGroup(string) slog.Handler            { return l }
func (l *txLog) Handle(_ context.Context, r slog.Record) error {
	m := map[string]string{"level": r.Level.String()}
	r.Attrs(func(a slog.Attr) bool { m[a.Key] = a.Value.String(); return true })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, m)
	return nil
}

// TestLog: failures from 500 up are logged with method, path and key; the body has nothing of them.
func TestLog(t *testing.T) {
	gone, leave := context.WithCancel(context.Background())
	leave()
	tests := []struct {
		name  string
		ctx   context.Context
		err   error
		level string // "" means no record
		body  string
	}{
		{"500", context.Background(), errors.New("secret"), "ERROR", "Internal Server Error\n"},
		{"502", context.Background(), sqlreq.Errorf(502, "secret"), "ERROR", "Bad Gateway\n"},
		{"404", context.Background(), sqlreq.Errorf(404, "secret"), "", "Not Found\n"},
		{"gone", gone, errors.New("secret"), "DEBUG", "Service Unavailable\n"},
	}
	for _, test := range tests {
		log := &txLog{}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "books", DB: (&txFake{}).openDB(t)})
		reg.Logger = slog.New(log)
		o := txServe(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			if _, err := sqlreq.Key("books").Tx(r.Context()); err != nil && r.Context().Err() == nil {
				t.Error(err)
			}
			return test.err
		})), httptest.NewRequest("PUT", "/shelf?x=1", nil).WithContext(test.ctx))
		if o.Body.String() != test.body {
			t.Errorf("%s: got body %q, want %q", test.name, o.Body, test.body)
		}
		if test.level == "" {
			if len(log.records) != 0 {
				t.Errorf("%s: got %v, want no record", test.name, log.records)
			}
			continue
		}
		want := map[string]string{"level": test.level, "method": "PUT", "path": "/shelf", "key": "books", "attempt": "1", "err": "secret"}
		if len(log.records) != 1 || !reflect.DeepEqual(log.records[0], want) {
			t.Errorf("%s: got %v, want %v", test.name, log.records, want)
		}
	}
}

// TestLogOfAHandlersAnswer: its answer stands, the error is logged all the same.
func TestLogOfAHandlersAnswer(t *testing.T) {
	log := &txLog{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&txFake{}).openDB(t)})
	reg.Logger = slog.New(log)
	txGet(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		w.WriteHeader(503)
		return sqlreqtest.ErrTest
	})), "/")
	if len(log.records) != 1 || log.records[0]["level"] != "ERROR" || log.records[0]["err"] != "test" {
		t.Errorf("got %v, want one record of the error", log.records)
	}
}

// TestLogWhenAnInnerContextEnds: only the client's going makes a failure a
// matter of debugging, not the cancel of a middleware that has returned.
func TestLogWhenAnInnerContextEnds(t *testing.T) {
	log := &txLog{}
	outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&txFake{}).openDB(t)})
	inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "inner", DB: (&txFake{}).openDB(t)})
	outer.Logger, inner.Logger = slog.New(log), slog.New(log)
	h := inner.Middleware(sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return sqlreqtest.ErrTest }))
	o := txGet(outer.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), time.Hour)
		defer cancel()
		h.ServeHTTP(w, r.WithContext(ctx))
	})), "/")
	if o.Code != 500 || len(log.records) != 1 || log.records[0]["level"] != "ERROR" {
		t.Errorf("got %d and %v, want 500 and a record at level ERROR", o.Code, log.records)
	}
}

// txLogDefault makes l the default logger for the test.
func txLogDefault(t *testing.T) *txLog {
	l := &txLog{}
	before := slog.Default()
	slog.SetDefault(slog.New(l))
	t.Cleanup(func() { slog.SetDefault(before) })
	return l
}

// TestHandlerFuncWithoutRegistry answers by the same mapping, and logs.
func TestHandlerFuncWithoutRegistry(t *testing.T) {
	gone, leave := context.WithCancel(context.Background())
	leave()
	tests := []struct {
		ctx   context.Context
		err   error
		code  int
		level string
		retry string
	}{
		{context.Background(), nil, 200, "", ""},
		{context.Background(), sqlreqtest.ErrTest, 500, "ERROR", ""},
		{context.Background(), sqlreq.Errorf(404, "secret"), 404, "", ""},
		{context.Background(), &http.MaxBytesError{}, 413, "", ""},
		{gone, sqlreqtest.ErrTest, 503, "DEBUG", "1"},
	}
	for _, test := range tests {
		log := txLogDefault(t)
		o := txServe(sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return test.err }),
			httptest.NewRequest("GET", "/p", nil).WithContext(test.ctx))
		if o.Code != test.code || o.Header().Get("Retry-After") != test.retry || strings.Contains(o.Body.String(), "secret") {
			t.Errorf("%v: got %d %q %v, want %d", test.err, o.Code, o.Body, o.Header(), test.code)
		}
		if n := len(log.records); (n == 1) != (test.level != "") || n == 1 && log.records[0]["level"] != test.level {
			t.Errorf("%v: got %v, want level %q", test.err, log.records, test.level)
		}
	}
}

func TestWithoutRegistry(t *testing.T) {
	uses := txUses()
	uses["Commit"], uses["Rollback"] = sqlreq.Commit, sqlreq.Rollback
	uses["Fail"] = func(ctx context.Context) error { return sqlreq.Fail(ctx, sqlreqtest.ErrTest) }
	uses["DB"] = func(ctx context.Context) error { _, err := sqlreq.DB(ctx); return err }
	uses["AfterCommit"] = func(ctx context.Context) error { return sqlreq.AfterCommit(ctx, func(context.Context) {}) }
	for name, use := range uses {
		if err := use(t.Context()); !errors.Is(err, sqlreq.ErrNoRegistry) || !strings.Contains(err.Error(), "Middleware") {
			t.Errorf("%s: got %v, want ErrNoRegistry that names the fix", name, err)
		}
	}
	log := txLogDefault(t)
	o := txGet(sqlreq.TxFunc(func(http.ResponseWriter, *http.Request, *sql.Tx) error { return nil }), "/")
	if o.Code != 500 || len(log.records) != 1 {
		t.Errorf("TxFunc: got %d and %v, want 500 and a record", o.Code, log.records)
	}
	if p := sqlreq.Prefix(t.Context()); p != "" {
		t.Errorf("Prefix: got %q, want none", p)
	}
}

// txUpstream has a StatusCode of its own, which is not ours.
type txUpstream struct{}

func (txUpstream) Error() string   { return "upstream" }
func (txUpstream) StatusCode() int { return 404 }

func TestStatusCode(t *testing.T) {
	tests := []struct {
		err  error
		code int
	}{
		{nil, 200},
		{sqlreqtest.ErrTest, 500},
		{sqlreq.Errorf(404, "x"), 404},
		{fmt.Errorf("a: %w", sqlreq.Errorf(599, "x")), 599},
		{errors.Join(sqlreqtest.ErrTest, sqlreq.Errorf(400, "x")), 400},
		{sqlreq.Errorf(200, "x"), 500},
		{sqlreq.Errorf(399, "x"), 500},
		{sqlreq.Errorf(600, "x"), 500},
		{sqlreq.Errorf(0, "a: %w", sqlreq.Errorf(404, "x")), 404},
		{errors.Join(sqlreq.Errorf(0, "x"), sqlreq.Errorf(404, "x")), 404},
		{sqlreq.Errorf(409, "a: %w", sqlreq.Errorf(404, "x")), 409},
		{&sqlreq.StatusError{Code: 418}, 418},
		{(*sqlreq.StatusError)(nil), 500},
		{fmt.Errorf("a: %w", (*sqlreq.StatusError)(nil)), 500},
		{&http.MaxBytesError{Limit: 1}, 413},
		{fmt.Errorf("a: %w", &http.MaxBytesError{}), 413},
		{sqlreq.Errorf(400, "a: %w", &http.MaxBytesError{}), 400},
		{txUpstream{}, 500},
		{context.Canceled, 500},
		{context.DeadlineExceeded, 500},
	}
	for _, test := range tests {
		t.Run(fmt.Sprintf("%T %d", test.err, test.code), func(t *testing.T) {
			defer func() {
				if v := recover(); v != nil {
					t.Errorf("panic: %v", v)
				}
			}()
			if got := sqlreq.StatusCode(test.err); got != test.code {
				t.Errorf("%#v: got %d, want %d", test.err, got, test.code)
			}
		})
	}
}

func TestStatusError(t *testing.T) {
	err := sqlreq.Errorf(404, "no %s: %w", "note", sqlreqtest.ErrTest)
	var status *sqlreq.StatusError
	if !errors.As(err, &status) || status.Code != 404 || !errors.Is(err, sqlreqtest.ErrTest) || err.Error() != "no note: test" {
		t.Errorf("got %#v", err)
	}
	if got := (&sqlreq.StatusError{Code: 404}).Error(); got != "Not Found" {
		t.Errorf("got %q", got)
	}
}

// TestReturnedTypedNil: the classic mistake is a failure, not a panic.
func TestReturnedTypedNil(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&txFake{}).openDB(t)})
	o := txGet(reg.Middleware(sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		var err *sqlreq.StatusError
		return err
	})), "/")
	if o.Code != 500 || o.panicked != nil {
		t.Errorf("got %d, panic %v, want 500", o.Code, o.panicked)
	}
}

// TestDoStatements: the ends of a Do are those of a request.
func TestDoStatements(t *testing.T) {
	insert := func(ctx context.Context) error { _, err := sqlreqtest.Main.ExecContext(ctx, "INSERT"); return err }
	tests := []struct {
		name  string
		fn    func(context.Context) error
		want  error
		stmts []string
	}{
		{"nothing", func(context.Context) error { return nil }, nil, nil},
		{"commit", insert, nil, []string{"BEGIN", "INSERT", "COMMIT"}},
		{"error", func(ctx context.Context) error { return errors.Join(insert(ctx), sqlreqtest.ErrTest) }, sqlreqtest.ErrTest, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"Fail", func(ctx context.Context) error { return errors.Join(insert(ctx), sqlreq.Fail(ctx, sqlreqtest.ErrTest)) }, sqlreqtest.ErrTest, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"failed commit", insert, sqlreqtest.ErrTest, []string{"BEGIN", "INSERT", "COMMIT!"}},
		{"failed begin", insert, sqlreqtest.ErrTest, []string{"BEGIN!"}},
		{"explicit commit", func(ctx context.Context) error { return errors.Join(insert(ctx), sqlreq.Commit(ctx), insert(ctx)) }, nil,
			[]string{"BEGIN", "INSERT", "COMMIT", "BEGIN", "INSERT", "COMMIT"}},
	}
	for _, test := range tests {
		for _, script := range txScripts() {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: script.open(t, test.stmts)})
			if err := reg.Do(t.Context(), test.fn); !errors.Is(err, test.want) {
				t.Errorf("%s: got %v, want %v", test.name, err, test.want)
			}
			script.check(t)
		}
	}
}

func TestDoPanicAndGoexit(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic(sqlreqtest.ErrTest) }, "Goexit": runtime.Goexit} {
		f := &txFake{}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.openDB(t)})
		recovered := make(chan any)
		go func() {
			defer func() { recovered <- recover() }()
			_ = reg.Do(t.Context(), func(ctx context.Context) error {
				txExec(t, ctx, sqlreqtest.Main, "INSERT")
				end()
				return nil
			})
		}()
		if got := <-recovered; (got == sqlreqtest.ErrTest) != (name == "panic") {
			t.Errorf("%s: recovered %v", name, got)
		}
		f.check(t, "BEGIN", "INSERT", "ROLLBACK")
	}
}

// TestDoContextEnds: a context that ends before COMMIT rolls back; a later one changes nothing.
func TestDoContextEnds(t *testing.T) {
	f := &txFake{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.openDB(t)})
	ctx, cancel := context.WithCancel(t.Context())
	err := reg.Do(ctx, func(ctx context.Context) error { txExec(t, ctx, sqlreqtest.Main, "INSERT"); cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	f.check(t, "BEGIN", "INSERT", "ROLLBACK")
}

// TestDoInsideARequest: it is independent of the request's transaction, opens
// every key of its registry and none of the others'.
func TestDoInsideARequest(t *testing.T) {
	db, audit := sqlreqtest.OpenDB(t), sqlreqtest.OpenDB(t)
	outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "audit", DB: audit, OnDemand: true})
	var inside context.Context
	o := txGet(outer.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		txExec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		err := reg.Do(r.Context(), func(ctx context.Context) error {
			inside = ctx
			if _, err := sqlreq.Tx(ctx); !errors.Is(err, sqlreq.ErrUnknownKey) {
				t.Errorf("a key of the request inside Do: got %v, want ErrUnknownKey", err)
			}
			_, err := sqlreq.Key("audit").ExecContext(ctx, sqlreqtest.InsertWork)
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if _, err := sqlreq.Key("audit").Tx(inside); !errors.Is(err, sqlreq.ErrFinished) {
			t.Errorf("after Do: got %v, want ErrFinished", err)
		}
		if _, err := sqlreq.Tx(r.Context()); err != nil {
			t.Errorf("the request's after Do: %v", err)
		}
		return sqlreqtest.ErrTest
	})), "/")
	if n, m := sqlreqtest.Count(t, db, "work"), sqlreqtest.Count(t, audit, "work"); o.Code != 500 || n != 0 || m != 1 {
		t.Errorf("got %d, %d rows of the request, %d of the audit, want 500, 0, 1", o.Code, n, m)
	}
	txIdle(t, db)
	txIdle(t, audit)
}

// TestDoFailsAlone: the failure of a Do is not that of the request around it.
func TestDoFailsAlone(t *testing.T) {
	f := &txFake{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.openDB(t)})
	o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		txExec(t, r.Context(), sqlreqtest.Main, "OUTER")
		if err := reg.Do(r.Context(), func(ctx context.Context) error {
			txExec(t, ctx, sqlreqtest.Main, "INNER")
			return sqlreqtest.ErrTest
		}); !errors.Is(err, sqlreqtest.ErrTest) {
			t.Errorf("got %v, want sqlreqtest.ErrTest", err)
		}
	})), "/")
	if o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	f.check(t, "BEGIN", "OUTER", "BEGIN", "INNER", "ROLLBACK", "COMMIT")
}

// TestDoOnAPoolOfOne waits for the request's connection until its context ends.
func TestDoOnAPoolOfOne(t *testing.T) {
	db := (&txFake{}).openDB(t)
	db.SetMaxOpenConns(1)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	o := txGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		txExec(t, r.Context(), sqlreqtest.Main, "INSERT")
		ctx, expire := txDeadline(r.Context())
		go func() {
			txUntil(func() bool { return db.Stats().WaitCount > 0 })
			expire()
		}()
		err := reg.Do(ctx, func(ctx context.Context) error { _, err := sqlreq.Tx(ctx); return err })
		if !errors.Is(err, context.DeadlineExceeded) || sqlreq.StatusCode(err) != 503 {
			t.Errorf("got %v (%d), want the deadline and 503", err, sqlreq.StatusCode(err))
		}
	})), "/")
	if o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
}

// txView has all three shapes.
type txView struct{ t *testing.T }

func (v *txView) Get(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Method) }
func (v *txView) Post(w http.ResponseWriter, r *http.Request) error {
	txExec(v.t, r.Context(), "books", "INSERT")
	return sqlreqtest.ErrTest
}

func (v *txView) Put(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
	if got, err := sqlreq.Key("books").Tx(r.Context()); got != tx || err != nil {
		v.t.Errorf("got another transaction, or %v", err)
	}
	w.WriteHeader(201)
	return nil
}

func TestView(t *testing.T) {
	f := &txFake{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "books", DB: f.openDB(t)})
	h := reg.Middleware(sqlreq.Key("books").View(&txView{t}))
	const allow = "GET, HEAD, OPTIONS, POST, PUT"
	for _, test := range []struct {
		method string
		code   int
		allow  string
		body   string
	}{
		{"GET", 200, "", "GET"},
		{"HEAD", 200, "", ""},
		{"POST", 500, "", "Internal Server Error\n"},
		{"PUT", 201, "", ""},
		{"OPTIONS", 204, allow, ""},
		{"DELETE", 405, allow, "Method Not Allowed\n"},
		{"PATCH", 405, allow, "Method Not Allowed\n"},
		{"BREW", 405, allow, "Method Not Allowed\n"},
	} {
		o := txServe(h, httptest.NewRequest(test.method, "/", nil))
		body := o.Body.String()
		if test.method == "HEAD" {
			body = "" // a recorder keeps it
		}
		if o.Code != test.code || o.Header().Get("Allow") != test.allow || body != test.body {
			t.Errorf("%s: got %d, Allow %q, %q, want %d, %q, %q", test.method, o.Code, o.Header().Get("Allow"), body, test.code, test.allow, test.body)
		}
	}
	f.check(t, "BEGIN", "INSERT", "ROLLBACK", "BEGIN", "COMMIT")
}

type txOwn struct{}

func (txOwn) Head(w http.ResponseWriter, _ *http.Request)    { w.WriteHeader(204) }
func (txOwn) Options(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(418) }

func TestViewOwnHeadAndOptions(t *testing.T) {
	h := sqlreq.View(txOwn{})
	for method, code := range map[string]int{"HEAD": 204, "OPTIONS": 418, "GET": 405} {
		o := txServe(h, httptest.NewRequest(method, "/", nil))
		if o.Code != code {
			t.Errorf("%s: got %d, want %d", method, o.Code, code)
		}
		if allow := o.Header().Get("Allow"); code == 405 && allow != "HEAD, OPTIONS" {
			t.Errorf("got Allow %q", allow)
		}
	}
}

type (
	txNoMethod   struct{}
	txWrongShape struct{}
	txWrongCase  struct{}
	txPointer    struct{}
)

func (txWrongShape) Get(http.ResponseWriter) {}
func (txWrongCase) GET(http.ResponseWriter, *http.Request) {
}
func (*txPointer) Post(http.ResponseWriter, *http.Request) {}

// TestSetUpPanics: programmer errors panic at set-up, with a text that names the fix.
func TestSetUpPanics(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&txFake{}).openDB(t)})
	h := http.NotFoundHandler()
	tests := []struct {
		name  string
		f     func()
		parts []string
	}{
		{"View(nil)", func() { sqlreq.View(nil) }, []string{"View(nil)", "Get("}},
		{"View without methods", func() { sqlreq.View(txNoMethod{}) }, []string{"txNoMethod", "Get", "Options"}},
		{"View of the wrong case", func() { sqlreq.View(txWrongCase{}) }, []string{"txWrongCase", "Get"}},
		{"View of a wrong shape", func() { sqlreq.View(txWrongShape{}) }, []string{"Get", "txWrongShape", "func(http.ResponseWriter, *http.Request)"}},
		{"View of a value with pointer methods", func() { sqlreq.View(txPointer{}) }, []string{"Post", "txPointer", "pointer"}},
		{"With", func() { reg.With(sqlreqtest.Main, "nope") }, []string{`"nope"`, "not bound", "New", `"main"`}},
		{"With of the empty key", func() { reg.With("") }, []string{"not bound"}},
		{"With()(nil)", func() { reg.With(sqlreqtest.Main)(nil) }, []string{`With("main")`, "handler"}},
		{"Middleware(nil)", func() { reg.Middleware(nil) }, []string{"Middleware(nil)", "handler"}},
		{"Mount without a slash", func() { reg.Mount("admin", h) }, []string{`Mount("admin")`, `"/admin"`}},
		{"Mount with a slash at the end", func() { reg.Mount("/admin/", h) }, []string{`Mount("/admin/")`, `"/admin"`}},
		{"Mount with two slashes", func() { reg.Mount("//admin", h) }, []string{`"/admin"`}},
		{"Mount of nothing", func() { reg.Mount("", h) }, []string{`Mount("")`, `"/`}},
		{"Mount of the root", func() { reg.Mount("/", h) }, []string{`Mount("/")`, `"/`}},
		{"Mount of nil", func() { reg.Mount("/admin", nil) }, []string{`Mount("/admin")`, "nil"}},
	}
	for _, test := range tests {
		func() {
			defer func() {
				v := recover()
				for _, part := range append(test.parts, "sqlreq: ") {
					if !strings.Contains(fmt.Sprint(v), part) {
						t.Errorf("%s: got panic %v, want it to contain %q", test.name, v, part)
					}
				}
			}()
			test.f()
		}()
	}
	sqlreq.View(&txPointer{}) // is fine
}

// TestNewNamesAll: every invalid binding, all at once.
func TestNewNamesAll(t *testing.T) {
	db := (&txFake{}).openDB(t)
	route := func(context.Context, *http.Request) (*sql.DB, error) { return db, nil }
	reg, err := sqlreq.New(
		sqlreq.Binding{DB: db},
		sqlreq.Binding{Key: sqlreqtest.Main, DB: db},
		sqlreq.Binding{Key: "none"},
		sqlreq.Binding{Key: "both", DB: db, Route: route},
		sqlreq.Binding{Key: "fine", Route: route},
		sqlreq.Binding{Key: "fine", DB: db},
		sqlreq.Binding{Key: "none", DB: db},
	)
	if reg != nil || !errors.Is(err, sqlreq.ErrDuplicateKey) {
		t.Fatalf("got %v, %v, want ErrDuplicateKey", reg, err)
	}
	for _, part := range []string{`"main" is bound twice`, `"none" has no database`, `"both" has more than one`, `"fine" is bound twice`, "binding 6"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not say %q", err, part)
		}
	}
	if _, err := sqlreq.New(); err != nil {
		t.Errorf("no binding: got %v", err)
	}
}

// TestTxFuncBody: the function gets the whole body, however large, and none of it
// is read with a transaction open that fits into 64 KiB.
func TestTxFuncBody(t *testing.T) {
	f := &txFake{}
	db := f.openDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	srv := sqlreqtest.Serve(t, reg.Middleware(sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
		got, err := io.ReadAll(r.Body) // HTTP/1 cannot be read any more when the answer has begun
		_, _ = w.Write(got)
		return errors.Join(err, r.Body.Close())
	})))
	for _, size := range []int{0, 1, 100, 64<<10 - 1, 64 << 10, 64<<10 + 1, 1 << 20} {
		for _, chunked := range []bool{false, true} {
			sent := make([]byte, size)
			for i := range sent {
				sent[i] = byte(i % 251)
			}
			var body io.Reader = bytes.NewReader(sent)
			if chunked {
				body = io.MultiReader(body)
			}
			res, err := http.Post(srv.URL, "application/octet-stream", body)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || res.StatusCode != 200 || !bytes.Equal(got, sent) {
				t.Errorf("%d bytes, chunked %v: got %d, %d bytes, %v", size, chunked, res.StatusCode, len(got), err)
			}
		}
	}
	f.checkClean(t)
}

// TestG5TxFuncReadsFirst: a client that dribbles a form holds no connection.
func TestG5TxFuncReadsFirst(t *testing.T) {
	f := &txFake{}
	db := f.openDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	body, dribble := io.Pipe()
	reading := make(chan struct{})
	h := reg.Middleware(sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
		got, err := io.ReadAll(r.Body)
		if string(got) != "ab" {
			t.Errorf("got %q", got)
		}
		return err
	}))
	done := make(chan txOutcome)
	go func() {
		done <- txServe(h, httptest.NewRequest("POST", "/", struct{ io.Reader }{io.TeeReader(body, txNotify(reading))}))
	}()
	_, _ = dribble.Write([]byte("a"))
	<-reading
	if got := f.statements(); len(got) != 0 {
		t.Errorf("got %q before the body was there", got)
	}
	_, _ = dribble.Write([]byte("b"))
	dribble.Close()
	if o := <-done; o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	f.check(t, "BEGIN", "COMMIT")
}

type txNotified struct {
	once sync.Once
	c    chan struct{}
}

func txNotify(c chan struct{}) io.Writer { return &txNotified{c: c} }

func (n *txNotified) Write(p []byte) (int, error) {
	n.once.Do(func() { close(n.c) })
	return len(p), nil
}

// TestTxFuncBodyErrors reach who reads so far.
func TestTxFuncBodyErrors(t *testing.T) {
	f := &txFake{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "books", DB: f.openDB(t)})
	inner := sqlreq.Key("books").Handler(func(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
		got, err := io.ReadAll(r.Body)
		if string(got) != "0123456789" {
			t.Errorf("got %q, want the ten bytes before the limit", got)
		}
		return err
	})
	h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 10)
		inner.ServeHTTP(w, r)
	}))
	o := txServe(h, httptest.NewRequest("POST", "/", strings.NewReader(strings.Repeat("0123456789", 3))))
	if o.Code != 413 {
		t.Errorf("got %d, want 413", o.Code)
	}
	f.check(t, "BEGIN", "ROLLBACK")
}

// TestKeyStatements: the four methods work as those of *sql.Tx, on a real file.
func TestKeyStatements(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	o := txGet(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		ctx := r.Context()
		stmt, err := sqlreqtest.Main.PrepareContext(ctx, "INSERT INTO work (note) VALUES (?)")
		if err != nil {
			return err
		}
		for _, note := range []string{"a", "b"} {
			if _, err := stmt.ExecContext(ctx, note); err != nil {
				return err
			}
		}
		var n int
		if err := sqlreqtest.Main.QueryRowContext(ctx, "SELECT count(*) FROM work WHERE note > ?", "a").Scan(&n); err != nil || n != 1 {
			t.Errorf("got %d, %v, want 1", n, err)
		}
		if err := sqlreqtest.Main.QueryRowContext(ctx, "SELECT 1 FROM work WHERE 0").Scan(&n); err != sql.ErrNoRows {
			t.Errorf("got %v, want sql.ErrNoRows", err)
		}
		for what, err := range map[string]error{
			"Exec":     func() error { _, err := sqlreqtest.Main.ExecContext(ctx, "nonsense"); return err }(),
			"Prepare":  func() error { _, err := sqlreqtest.Main.PrepareContext(ctx, "nonsense"); return err }(),
			"Query":    func() error { _, err := sqlreqtest.Main.QueryContext(ctx, "nonsense"); return err }(),
			"QueryRow": sqlreqtest.Main.QueryRowContext(ctx, "nonsense").Scan(&n),
		} {
			if err == nil || !strings.Contains(err.Error(), "syntax error") {
				t.Errorf("%s: got %v, want the driver's error", what, err)
			}
		}
		return nil
	})), "/")
	if n := sqlreqtest.Count(t, db, "work"); o.Code != 200 || n != 2 {
		t.Errorf("got %d and %d rows, want 200 and 2", o.Code, n)
	}
	txIdle(t, db)
}

func TestReadOnlySafeMethods(t *testing.T) {
	for method, readOnly := range map[string]bool{"GET": true, "": true, "HEAD": true, "OPTIONS": true, "TRACE": true, "POST": false, "PUT": false, "DELETE": false, "get": false} {
		o := sqlreq.ReadOnlySafeMethods(t.Context(), &http.Request{Method: method})
		if got := o != nil && o.ReadOnly; got != readOnly {
			t.Errorf("%q: got %v, want %v", method, got, readOnly)
		}
	}
	if o := sqlreq.ReadOnlySafeMethods(t.Context(), nil); o != nil {
		t.Errorf("in Do: got %v, want nil", o)
	}
}

// nestedRegistry returns a registry for an application that is about paths only.
func nestedRegistry(t testing.TB) *sqlreq.Registry {
	return sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: sqlreq.Key(fmt.Sprintf("%p", t)), DB: (&txFake{}).openDB(t)})
}

// nestedPrefix answers with the prefix, and the path that is left.
var nestedPrefix = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s|%s", sqlreq.Prefix(r.Context()), r.URL.EscapedPath())
})

func nestedStrip(t testing.TB) func(string, http.Handler) http.Handler {
	return func(prefix string, h http.Handler) http.Handler {
		return http.StripPrefix(prefix, nestedRegistry(t).Middleware(h))
	}
}

func nestedMount(t testing.TB) func(string, http.Handler) http.Handler {
	return func(prefix string, h http.Handler) http.Handler { return nestedRegistry(t).Mount(prefix, h) }
}

// TestPrefix: under Mount, under a plain StripPrefix, and both in turn, with and
// without a registry outside, whatever way the request came.
func TestPrefix(t *testing.T) {
	mount, strip := nestedMount(t), nestedStrip(t)
	same := nestedRegistry(t)
	apps := map[string]http.Handler{
		"Mount":           mount("/a", mount("/b", mount("/c", nestedPrefix))),
		"StripPrefix":     strip("/a", strip("/b", strip("/c", nestedPrefix))),
		"mixed":           strip("/a", mount("/b", strip("/c", nestedPrefix))),
		"mixed otherwise": mount("/a", strip("/b", mount("/c", nestedPrefix))),
		"one registry":    same.Mount("/a", same.Mount("/b", http.StripPrefix("/c", same.Middleware(nestedPrefix)))),
		"stripped twice":  http.StripPrefix("/a", http.StripPrefix("/b", strip("/c", nestedPrefix))),
	}
	tests := []struct{ target, want string }{
		{"/a/b/c/", "/a/b/c|/"},
		{"/a/b/c/x", "/a/b/c|/x"},
		{"/a/b/c/x/", "/a/b/c|/x/"},
		{"/a/b/c/a/b/c/", "/a/b/c|/a/b/c/"},
		{"/a/b/c/x?y=/a/b/c/x", "/a/b/c|/x"},
		{"/a/b/c/x%2Fy", "/a/b/c|/x%2Fy"},
		{"/a/b/c/x%20y", "/a/b/c|/x%20y"},
		{"/a/b/c/%C3%A9", "/a/b/c|/%C3%A9"},
		{"/a/b/c//x", "/a/b/c|//x"},
	}
	for name, app := range apps {
		for outside, h := range map[string]http.Handler{"alone": app, "registry outside": nestedRegistry(t).Middleware(app)} {
			one, two := sqlreqtest.Serve(t, h), nestedHTTP2(t, h)
			for _, test := range tests {
				for way, got := range map[string]string{
					"HTTP/1.1":            nestedFetch(t, one.Client(), one.URL+test.target),
					"HTTP/2":              nestedFetch(t, two.Client(), two.URL+test.target),
					"httptest.NewRequest": txGet(h, test.target).Body.String(),
					"absolute form":       txServe(h, nestedAbsolute(test.target)).Body.String(),
				} {
					if got != test.want {
						t.Errorf("%s, %s, %s %s: got %q, want %q", name, outside, way, test.target, got, test.want)
					}
				}
			}
		}
	}
}

func nestedHTTP2(t testing.TB, h http.Handler) *httptest.Server {
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = true
	srv.TLS = &tls.Config{}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

func nestedFetch(t testing.TB, c *http.Client, target string) string {
	t.Helper()
	res, err := c.Get(target)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Error(err)
	}
	return string(body)
}

// nestedAbsolute is a request as a proxy gets it.
func nestedAbsolute(target string) *http.Request {
	r := httptest.NewRequest("GET", target, nil)
	r.RequestURI = "http://example.com" + target
	return r
}

// TestPrefixWithoutRequestURI: a request made by http.NewRequest has none, and
// only a registry outside knows.
func TestPrefixWithoutRequestURI(t *testing.T) {
	r, err := http.NewRequest("GET", "http://example.com/a/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	app := nestedMount(t)("/a", nestedPrefix)
	if got := txServe(app, r).Body.String(); got != "|/x" {
		t.Errorf("alone: got %q, want %q", got, "|/x")
	}
	if got := txServe(nestedRegistry(t).Middleware(app), r).Body.String(); got != "/a|/x" {
		t.Errorf("with a registry outside: got %q, want %q", got, "/a|/x")
	}
}

// TestPrefixEscaped: prefixes that need escaping, as the client escaped them.
func TestPrefixEscaped(t *testing.T) {
	tests := []struct{ mounted, target, want string }{
		{"/my app", "/my%20app/x", "/my%20app|/x"},
		{"/my app", "/my%20app/x%2Fy", "/my%20app|/x%2Fy"},
		{"/é", "/%C3%A9/x", "/%C3%A9|/x"},
		{"/a/b", "/a/b/x%2Fy", "/a/b|/x%2Fy"},
		{"/a", "/%61/x", "/%61|/x"},
		{"/a", "/%61/x%2Fy", "/%61|/x%2Fy"},
		{"/a", "/a%2Fb/x", "404 page not found\n"},
		{"/a/b", "/a%2Fb/x", "404 page not found\n"},
		{"/a", "/ab/x", "404 page not found\n"},
		{"/a", "/b", "404 page not found\n"},
	}
	for _, test := range tests {
		for _, h := range []http.Handler{nestedMount(t)(test.mounted, nestedPrefix), nestedRegistry(t).Middleware(nestedMount(t)(test.mounted, nestedPrefix))} {
			if got := txGet(h, test.target).Body.String(); got != test.want {
				t.Errorf("%q at %s: got %q, want %q", test.mounted, test.target, got, test.want)
			}
		}
	}
}

// TestPrefixAfterwards: in hooks, in Do and after the request it is what it was.
func TestPrefixAfterwards(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&txFake{}).openDB(t)})
	var hook, do string
	var ctx context.Context
	txGet(reg.Mount("/a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx = r.Context()
		if err := sqlreq.AfterCommit(ctx, func(ctx context.Context) { hook = sqlreq.Prefix(ctx) }); err != nil {
			t.Error(err)
		}
		_ = reg.Do(ctx, func(ctx context.Context) error { do = sqlreq.Prefix(ctx); return nil })
	})), "/a/x")
	if got := []string{hook, do, sqlreq.Prefix(ctx)}; got[0] != "/a" || got[1] != "/a" || got[2] != "/a" {
		t.Errorf("got %q, want /a thrice", got)
	}
}

// nestedLocal is a prefix that cannot lead to another host, nor end in a slash.
var nestedLocal = regexp.MustCompile(`^(/([^/\\]|[^/\\].*[^/]))?$`)

// FuzzPrefix: whatever is stripped of whatever path, the prefix stays on this host.
func FuzzPrefix(f *testing.F) {
	for _, path := range []string{"//evil.com/a/x", `/\evil.com/a/x`, `/\/evil.com/x`, "/%5Cevil.com/a/x", "/%2F/evil.com/a", "///a/", "/a//", "/.//evil.com", "/..//x", "/a%2F%2Fb/x", "/\t/evil.com/x", "/a\\/x", "/;//x", "/a?b", "*"} {
		for cut := range 12 {
			f.Add(path, cut)
		}
	}
	reg := nestedRegistry(f)
	f.Fuzz(func(t *testing.T, path string, cut int) {
		if cut < 0 || cut > len(path) {
			return
		}
		u := &url.URL{Path: path}
		if parsed, err := url.ParseRequestURI(path); err == nil {
			u = parsed
		}
		for _, outside := range []bool{false, true} {
			for _, uri := range []string{path, u.RequestURI(), ""} {
				r := (&http.Request{Method: "GET", URL: u, RequestURI: uri, Header: http.Header{}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}).WithContext(t.Context())
				ran := false
				var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					nestedCut(r, cut, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						ran = true
						if p := sqlreq.Prefix(r.Context()); !nestedLocal.MatchString(strings.ReplaceAll(p, "\n", "")) || strings.Contains(p, `\`) {
							t.Errorf("%q cut at %d, URI %q: got the prefix %q", path, cut, uri, p)
						}
					})))
				})
				if outside {
					h = reg.Middleware(h)
				}
				h.ServeHTTP(httptest.NewRecorder(), r)
				if !ran {
					t.Error("the handler did not run")
				}
			}
		}
	})
}

// nestedCut serves r without the first bytes of its path, as a middleware may.
func nestedCut(r *http.Request, cut int, h http.Handler) {
	r2 := new(http.Request)
	*r2 = *r
	r2.URL = new(url.URL)
	*r2.URL = *r.URL
	r2.URL.Path = r.URL.Path[min(cut, len(r.URL.Path)):]
	r2.URL.RawPath = r.URL.RawPath[min(cut, len(r.URL.RawPath)):]
	h.ServeHTTP(httptest.NewRecorder(), r2)
}

// nestedLocation returns status and Location of a request that is not followed.
func nestedLocation(t testing.TB, srv *httptest.Server, method, target string) (int, string, string) {
	t.Helper()
	r, err := http.NewRequest(method, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.URL.Opaque = "//" + strings.TrimPrefix(srv.URL, "http://") + target // sent as it is
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Errorf("%s: %v", target, err)
	}
	return res.StatusCode, res.Header.Get("Location"), string(body)
}

// TestMountRedirectsToItself: the prefix alone is answered with a redirect into
// the application, the query kept, and never to another host.
func TestMountRedirectsToItself(t *testing.T) {
	mount := nestedMount(t)
	deep := mount("/a", mount("/b", mount("/c", nestedPrefix)))
	outside := http.NewServeMux()
	outside.Handle("/a", deep)
	outside.Handle("/a/", deep)
	tests := []struct {
		h            http.Handler
		target, want string
	}{
		{mount("/admin", nestedPrefix), "/admin", "/admin/"},
		{mount("/admin", nestedPrefix), "/admin?x=1&y=//evil.com", "/admin/?x=1&y=//evil.com"},
		{mount("/my app", nestedPrefix), "/my%20app?q", "/my%20app/?q"},
		{deep, "/a", "/a/"},
		{deep, "/a/b", "/a/b/"},
		{deep, "/a/b/c?x=1", "/a/b/c/?x=1"},
		{outside, "/a", "/a/"},
		{outside, "/a/b?x", "/a/b/?x"},
		{http.StripPrefix("/v1", mount("/admin", nestedPrefix)), "/v1/admin?x=1", "/v1/admin/?x=1"},
		{http.StripPrefix("//evil.com", mount("/admin", nestedPrefix)), "//evil.com/admin", "/evil.com/admin/"},
		{http.StripPrefix(`/\evil.com`, mount("/admin", nestedPrefix)), "/%5Cevil.com/admin", "/%5Cevil.com/admin/"},
	}
	for _, test := range tests {
		for name, h := range map[string]http.Handler{"alone": test.h, "registry outside": nestedRegistry(t).Middleware(test.h)} {
			status, to, _ := nestedLocation(t, sqlreqtest.Serve(t, h), "POST", test.target)
			if status != 307 || to != test.want {
				t.Errorf("%s, %s: got %d %q, want 307 %q", test.target, name, status, to, test.want)
			}
		}
	}
}

// nestedMux is an application whose ServeMux redirects, and that redirects itself.
func nestedMux(levels ...http.Handler) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/dir/", func(w http.ResponseWriter, r *http.Request) { nestedPrefix(w, r) })
	mux.HandleFunc("/page", func(w http.ResponseWriter, r *http.Request) { nestedPrefix(w, r) })
	mux.HandleFunc("/own", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Query().Get("to"), http.StatusTemporaryRedirect)
	})
	for _, h := range levels {
		mux.Handle("/sub/", h)
	}
	return mux
}

// TestMountPutsThePrefixBack on the redirects that a ServeMux makes, on each
// level, whatever is held and whoever is in between; and on no other.
func TestMountPutsThePrefixBack(t *testing.T) {
	between := map[string]func(http.Handler) http.Handler{
		"nothing": func(h http.Handler) http.Handler { return h },
		"TimeoutHandler": func(h http.Handler) http.Handler {
			return http.TimeoutHandler(h, time.Hour, "")
		},
	}
	for name, wrap := range between {
		for _, limit := range []int{0, 1} {
			mount := func(prefix string, h http.Handler) http.Handler {
				reg := nestedRegistry(t)
				reg.HoldLimit = limit
				return wrap(reg.Mount(prefix, h))
			}
			outer := nestedRegistry(t)
			outer.HoldLimit = limit
			app := nestedMux(mount("/sub", nestedMux(mount("/sub", nestedMux()))))
			for _, h := range []http.Handler{mount("/admin", app), outer.Middleware(mount("/admin", app))} {
				srv := sqlreqtest.Serve(t, h)
				for _, prefix := range []string{"/admin", "/admin/sub", "/admin/sub/sub"} {
					nestedRedirects(t, fmt.Sprintf("%s between, limit %d", name, limit), srv, prefix)
				}
			}
		}
	}
}

func nestedRedirects(t *testing.T, name string, srv *httptest.Server, prefix string) {
	t.Helper()
	tests := []struct{ target, want string }{
		{"/dir", prefix + "/dir/"},
		{"/dir?x=1&y=/dir", prefix + "/dir/?x=1&y=/dir"},
		{"/x//page", prefix + "/x/page"},
		{"//page?q", prefix + "/page?q"},
		{"//evil.com/page", prefix + "/evil.com/page"},
		{"/dir/../page", prefix + "/page"},
		{"/dir/./%C3%A9//", ""},
		{"/own?to=/login", "/login"},
		{"/own?to=/own/", "/own/"},
		{"/own?to=https://example.com/x", "https://example.com/x"},
	}
	for _, test := range tests {
		for _, method := range []string{"GET", "HEAD", "POST"} {
			status, to, body := nestedLocation(t, srv, method, prefix+test.target)
			switch {
			case test.want == "": // escapes are the mux's own business
				if !strings.HasPrefix(to, prefix+"/dir/") {
					t.Errorf("%s: %s %s: got %q, want it under %s/dir/", name, method, prefix+test.target, to, prefix)
				}
			case to != test.want || status != 307 && status != 301:
				t.Errorf("%s: %s %s: got %d %q, want %q", name, method, prefix+test.target, status, to, test.want)
			}
			if own := strings.HasPrefix(test.target, "/own"); method == "GET" && (body == "") == own {
				t.Errorf("%s: %s: got the body %q", name, prefix+test.target, body)
			}
		}
	}
}

// TestMountServesWhatIsThere: nothing is rewritten that is no redirect.
func TestMountServesWhatIsThere(t *testing.T) {
	srv := sqlreqtest.Serve(t, nestedMount(t)("/admin", nestedMux()))
	for target, want := range map[string]string{
		"/admin/dir/":    "/admin|/dir/",
		"/admin/page":    "/admin|/page",
		"/admin/dir/x/y": "/admin|/dir/x/y",
		"/admin/nope":    "404 page not found\n",
		"/other":         "404 page not found\n",
	} {
		if _, body, err := sqlreqtest.Get(t, srv.URL+target); body != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", target, body, err, want)
		}
	}
}

// TestMountTellsThePattern: middlewares outside see the route of the inner mux.
func TestMountTellsThePattern(t *testing.T) {
	app := nestedRegistry(t).Middleware(nestedMount(t)("/admin", nestedMux()))
	r := httptest.NewRequest("GET", "/admin/page", nil)
	app.ServeHTTP(httptest.NewRecorder(), r)
	if r.Pattern != "/page" {
		t.Errorf("got the pattern %q, want /page", r.Pattern)
	}
}

// TestMountInsideItself: the same registry on each level is one transaction.
func TestMountInsideItself(t *testing.T) {
	f := &txFake{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.openDB(t)})
	work := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		txExec(t, r.Context(), sqlreqtest.Main, "INSERT "+sqlreq.Prefix(r.Context()))
	})
	o := txGet(reg.Mount("/a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		work(w, r)
		reg.Mount("/a", work).ServeHTTP(w, r)
		work(w, r)
	})), "/a/a/")
	if o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	f.check(t, "BEGIN", "INSERT /a", "INSERT /a/a", "INSERT /a", "COMMIT")
}

// TestG4NothingOpenAndTheClientLeaves: a stream whose work is committed ends like any
// other when its client leaves, also if it asked for a transaction once more; a
// handler that gave up waiting and answered nothing does not end in an empty 200.
func TestG4NothingOpenAndTheClientLeaves(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	db.SetMaxOpenConns(1)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	for _, test := range []struct {
		name   string
		stream bool
		want   int
	}{{"streamed", true, 200}, {"gave up", false, 503}} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if test.stream {
					_, _ = io.WriteString(w, "event")
					if err := http.NewResponseController(w).Flush(); err != nil {
						t.Error(err)
					}
				}
				cancel()
				if _, err := sqlreq.Tx(r.Context()); err == nil {
					t.Error("got a transaction, want an error")
				}
			}))
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx))
			if rec.Code != test.want {
				t.Errorf("got %d, want %d", rec.Code, test.want)
			}
		})
	}
}

// TestReadmeNamesTests: every test that the README names is there.
func TestReadmeNamesTests(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var sources strings.Builder
	for _, pattern := range []string{"*_test.go", "internal/*/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			sources.Write(b)
		}
	}
	names := regexp.MustCompile(`TestG[0-9]\w+`).FindAllString(string(readme), -1)
	if len(names) < 11 {
		t.Errorf("the README names %d tests, want one for each guarantee at least", len(names))
	}
	for _, name := range names {
		if !strings.Contains(sources.String(), "func "+name+"(") {
			t.Errorf("the README names %s, which is not there", name)
		}
	}
}

// TestIsRetryable: what the drivers' errors look like is the matter of internal/sqlerr.
func TestIsRetryable(t *testing.T) {
	if err := fmt.Errorf("save: %w", conflict{}); !sqlreq.IsRetryable(err) {
		t.Errorf("got false for %v with SQLSTATE 40001, want true", err)
	}
	if sqlreq.IsRetryable(sqlreqtest.ErrTest) || sqlreq.IsRetryable(nil) {
		t.Error("got true for an error of no database, or none, want false")
	}
}
