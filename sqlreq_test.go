package sqlreq_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	_ "modernc.org/sqlite"
)

// TestKeyStatements: the four methods work as those of *sql.Tx, on a real file.
func TestKeyStatements(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	o := sqlreqtest.AskGet(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
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
	sqlreqtest.Idle(t, db)
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
		{context.Background(), sqlreq.Errorf(404, "secret"), 404, "DEBUG", ""},
		{context.Background(), &http.MaxBytesError{}, 413, "DEBUG", ""},
		{gone, sqlreqtest.ErrTest, 503, "DEBUG", "1"},
	}
	for _, test := range tests {
		log := logDefault(t)
		o := sqlreqtest.Ask(sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return test.err }),
			httptest.NewRequest("GET", "/p", nil).WithContext(test.ctx))
		if o.Code != test.code || o.Header().Get("Retry-After") != test.retry || strings.Contains(o.Body.String(), "secret") {
			t.Errorf("%v: got %d %q %v, want %d", test.err, o.Code, o.Body, o.Header(), test.code)
		}
		if n := len(log.Records()); (n == 1) != (test.level != "") || n == 1 && log.Records()[0]["level"] != test.level {
			t.Errorf("%v: got %v, want level %q", test.err, log.Records(), test.level)
		}
	}
}

// logDefault makes l the default logger for the test.
func logDefault(t *testing.T) *sqlreqtest.Recorder {
	l := &sqlreqtest.Recorder{}
	before := slog.Default()
	slog.SetDefault(l.Logger())
	t.Cleanup(func() { slog.SetDefault(before) })
	return l
}

func TestWithoutRegistry(t *testing.T) {
	uses := sqlreqtest.Uses()
	uses["Commit"], uses["Rollback"] = sqlreq.Commit, sqlreq.Rollback
	uses["Fail"] = func(ctx context.Context) error { return sqlreq.Fail(ctx, sqlreqtest.ErrTest) }
	uses["DB"] = func(ctx context.Context) error { _, err := sqlreq.DB(ctx); return err }
	uses["AfterCommit"] = func(ctx context.Context) error { return sqlreq.AfterCommit(ctx, func(context.Context) {}) }
	for name, use := range uses {
		err := use(t.Context())
		for _, fix := range []string{"Middleware", "With", "Do", "c.Request.Context()"} {
			if !errors.Is(err, sqlreq.ErrNoRegistry) || !strings.Contains(err.Error(), fix) {
				t.Errorf("%s: got %v, want ErrNoRegistry that names %s", name, err, fix)
			}
		}
	}
	log := logDefault(t)
	o := sqlreqtest.AskGet(sqlreq.TxFunc(func(http.ResponseWriter, *http.Request, *sql.Tx) error { return nil }), "/")
	if o.Code != 500 || len(log.Records()) != 1 {
		t.Errorf("TxFunc: got %d and %v, want 500 and a record", o.Code, log.Records())
	}
	if p := sqlreq.Prefix(t.Context()); p != "" {
		t.Errorf("Prefix: got %q, want none", p)
	}
}

// upstream has a StatusCode of its own, which is not ours.
type upstream struct{}

func (upstream) Error() string { return "upstream" }

func (upstream) StatusCode() int { return 404 }

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
		{sqlreq.Errorf(0, "a: %w", sqlreq.Errorf(404, "x")), 500},
		{errors.Join(sqlreq.Errorf(0, "x"), sqlreq.Errorf(404, "x")), 500},
		{&sqlreq.StatusError{Code: 200, Err: sqlreq.Errorf(404, "x")}, 404},
		{sqlreq.Errorf(409, "a: %w", sqlreq.Errorf(404, "x")), 409},
		{&sqlreq.StatusError{Code: 418}, 418},
		{(*sqlreq.StatusError)(nil), 500},
		{fmt.Errorf("a: %w", (*sqlreq.StatusError)(nil)), 500},
		{&http.MaxBytesError{Limit: 1}, 413},
		{fmt.Errorf("a: %w", &http.MaxBytesError{}), 413},
		{sqlreq.Errorf(400, "a: %w", &http.MaxBytesError{}), 400},
		{upstream{}, 500},
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
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	o := sqlreqtest.AskGet(reg.Middleware(sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		var err *sqlreq.StatusError
		return err
	})), "/")
	if o.Code != 500 || o.Panicked != nil {
		t.Errorf("got %d, panic %v, want 500", o.Code, o.Panicked)
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

// view has all three shapes.
type view struct{ t *testing.T }

func (v *view) Get(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Method) }

func (v *view) Post(w http.ResponseWriter, r *http.Request) error {
	sqlreqtest.Exec(v.t, r.Context(), "books", "INSERT")
	return sqlreqtest.ErrTest
}

func (v *view) Put(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
	if got, err := sqlreq.Key("books").Tx(r.Context()); got != tx || err != nil {
		v.t.Errorf("got another transaction, or %v", err)
	}
	w.WriteHeader(201)
	return nil
}

func TestView(t *testing.T) {
	f := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "books", DB: f.Open(t)})
	h := reg.Middleware(sqlreq.Key("books").View(&view{t}))
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
		o := sqlreqtest.Ask(h, httptest.NewRequest(test.method, "/", nil))
		body := o.Body.String()
		if test.method == "HEAD" {
			body = "" // a recorder keeps it
		}
		if o.Code != test.code || o.Header().Get("Allow") != test.allow || body != test.body {
			t.Errorf("%s: got %d, Allow %q, %q, want %d, %q, %q", test.method, o.Code, o.Header().Get("Allow"), body, test.code, test.allow, test.body)
		}
	}
	f.Check(t, "BEGIN", "INSERT", "ROLLBACK", "BEGIN", "COMMIT")
}

type ownHead struct{}

func (ownHead) Head(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }

func (ownHead) Options(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(418) }

func TestViewOwnHeadAndOptions(t *testing.T) {
	h := sqlreq.View(ownHead{})
	for method, code := range map[string]int{"HEAD": 204, "OPTIONS": 418, "GET": 405} {
		o := sqlreqtest.Ask(h, httptest.NewRequest(method, "/", nil))
		if o.Code != code {
			t.Errorf("%s: got %d, want %d", method, o.Code, code)
		}
		if allow := o.Header().Get("Allow"); code == 405 && allow != "HEAD, OPTIONS" {
			t.Errorf("got Allow %q", allow)
		}
	}
}

type (
	noMethod      struct{}
	wrongShape    struct{}
	wrongCase     struct{}
	pointerMethod struct{}
)

func (wrongShape) Get(http.ResponseWriter) {}

func (wrongCase) GET(http.ResponseWriter, *http.Request) {
}

func (*pointerMethod) Post(http.ResponseWriter, *http.Request) {}

// TestSetUpPanics: programmer errors panic at set-up, with a text that names the fix.
func TestSetUpPanics(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	h := http.NotFoundHandler()
	tests := []struct {
		name  string
		f     func()
		parts []string
	}{
		{"View(nil)", func() { sqlreq.View(nil) }, []string{"View(nil)", "Get("}},
		{"View without methods", func() { sqlreq.View(noMethod{}) }, []string{"noMethod", "Get", "Options"}},
		{"View of the wrong case", func() { sqlreq.View(wrongCase{}) }, []string{"wrongCase", "Get"}},
		{"View of a wrong shape", func() { sqlreq.View(wrongShape{}) }, []string{"Get", "wrongShape", "func(http.ResponseWriter, *http.Request)"}},
		{"View of a value with pointer methods", func() { sqlreq.View(pointerMethod{}) }, []string{"Post", "pointerMethod", "pointer"}},
		{"With", func() { reg.With(sqlreqtest.Main, "nope") }, []string{`"nope"`, "not bound", "New", `"main"`}},
		{"With of the empty key", func() { reg.With("") }, []string{"not bound"}},
		{"With()(nil)", func() { reg.With(sqlreqtest.Main)(nil) }, []string{`With("main")`, "handler"}},
		{"Middleware(nil)", func() { reg.Middleware(nil) }, []string{"Middleware(nil)", "handler"}},
		{"Mount without a slash", func() { reg.Mount("admin", h) }, []string{`Mount("admin")`, `"/admin"`}},
		{"Mount with a slash at the end", func() { reg.Mount("/admin/", h) }, []string{`Mount("/admin/")`, `"/admin"`}},
		{"Mount with two slashes", func() { reg.Mount("//admin", h) }, []string{`"/admin"`}},
		{"Mount of nothing", func() { reg.Mount("", h) }, []string{`Mount("")`, `"/`}},
		{"Mount of the root", func() { reg.Mount("/", h) }, []string{`Mount("/")`, `"/`}},
		{"Mount of a wildcard", func() { reg.Mount("/{tenant}", h) }, []string{`Mount("/{tenant}")`, "wildcard"}},
		{"Mount of half a wildcard", func() { reg.Mount("/tenant}", h) }, []string{"wildcard"}},
		{"Mount with a space", func() { reg.Mount("/my app", h) }, []string{`Mount("/my app")`, "space"}},
		{"Mount with a method", func() { reg.Mount("/GET /admin", h) }, []string{"space"}},
		{"Mount with a backslash", func() { reg.Mount(`/my\app`, h) }, []string{"backslash"}},
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
	sqlreq.View(&pointerMethod{}) // is fine
}

// TestNewNamesAll: every invalid binding, all at once.
func TestNewNamesAll(t *testing.T) {
	db := (&fakedb.DB{}).Open(t)
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

// TestSetUpOfAWrongRegistry: a negative field, and a nil *Registry, panic wherever
// the registry is used first, with the name of what is wrong.
func TestSetUpOfAWrongRegistry(t *testing.T) {
	h := http.NotFoundHandler()
	uses := map[string]func(*sqlreq.Registry){
		"Middleware": func(reg *sqlreq.Registry) { reg.Middleware(h) },
		"With":       func(reg *sqlreq.Registry) { reg.With(sqlreqtest.Main) },
		"Mount":      func(reg *sqlreq.Registry) { reg.Mount("/admin", h) },
		"Do": func(reg *sqlreq.Registry) {
			_ = reg.Do(context.Background(), func(context.Context) error { return nil })
		},
	}
	wrong := map[string]struct {
		set  func(*sqlreq.Registry)
		text string // "" for none
	}{
		"HoldLimit": {func(reg *sqlreq.Registry) { reg.HoldLimit = -1 }, "Registry.HoldLimit is negative"},
		"Attempts":  {func(reg *sqlreq.Registry) { reg.Retry.Attempts = -1 }, "Registry.Retry.Attempts is negative"},
		"BodyLimit": {func(reg *sqlreq.Registry) { reg.Retry.BodyLimit = -1 }, "Registry.Retry.BodyLimit is negative"},
		"Within":    {func(reg *sqlreq.Registry) { reg.Retry.Within = -1 }, "Registry.Retry.Within is negative"},
		"nothing":   {func(*sqlreq.Registry) {}, ""},
		"what is allowed": {func(reg *sqlreq.Registry) {
			reg.HoldLimit, reg.Retry = 1, sqlreq.Retry{Attempts: 1, BodyLimit: 1, Within: 1}
		}, ""},
	}
	for use, f := range uses {
		for what, tt := range wrong {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
			tt.set(reg)
			got := sqlreqtest.Panicked(func() { f(reg) })
			if text := fmt.Sprint(got); (got == nil) != (tt.text == "") || !strings.Contains(text, tt.text) {
				t.Errorf("%s with %s: got panic %v, want %q", use, what, got, tt.text)
			}
		}
		if text := fmt.Sprint(sqlreqtest.Panicked(func() { f(nil) })); !strings.Contains(text, "*Registry is nil") || !strings.Contains(text, "New") {
			t.Errorf("%s of a nil *Registry: got panic %q, want that New's error was not looked at", use, text)
		}
	}
}

// TestErrorf: the text of one with a code that is none says so.
func TestErrorf(t *testing.T) {
	for code, want := range map[int]int{400: 400, 404: 404, 599: 599, 399: 500, 600: 500, 0: 500, -1: 500, 200: 500} {
		err := sqlreq.Errorf(code, "row %d: %w", 7, sqlreqtest.ErrTest)
		var s *sqlreq.StatusError
		if !errors.As(err, &s) || s.Code != want || sqlreq.StatusCode(err) != want || !errors.Is(err, sqlreqtest.ErrTest) {
			t.Errorf("Errorf(%d): got %#v, want a StatusError of %d that wraps", code, err, want)
		}
		if says := strings.Contains(err.Error(), fmt.Sprintf("Errorf(%d): a status code of an error is from 400 to 599", code)); says != (want != code) || !strings.Contains(err.Error(), "row 7: test") {
			t.Errorf("Errorf(%d): got the text %q", code, err)
		}
	}
}

func TestMayHaveCommitted(t *testing.T) {
	tests := []struct {
		err  error
		want bool
	}{
		{nil, false},
		{sqlreqtest.ErrTest, false},
		{sqlreq.ErrTxEnded, true},
		{fmt.Errorf("a: %w", sqlreq.ErrTxEnded), true},
		{errors.Join(sqlreqtest.ErrTest, sqlreq.ErrTxEnded), true},
		{&sqlreq.CommitError{Err: sqlreqtest.ErrTest}, false},
		{&sqlreq.CommitError{Ambiguous: true, Err: sqlreqtest.ErrTest}, true},
		{&sqlreq.CommitError{Committed: []sqlreq.Key{"a"}, Err: sqlreqtest.ErrTest}, true},
		{sqlreq.Errorf(409, "a: %w", &sqlreq.CommitError{Ambiguous: true, Err: sqlreqtest.ErrTest}), true},
		{(*sqlreq.CommitError)(nil), false},
		{sqlreq.ErrFinished, false},
		{sqlreqtest.Conflict{}, false},
	}
	for _, test := range tests {
		if got := sqlreq.MayHaveCommitted(test.err); got != test.want {
			t.Errorf("%v: got %t, want %t", test.err, got, test.want)
		}
	}
}

// TestErrBegun: its causes have texts of their own.
func TestErrBegun(t *testing.T) {
	db := (&fakedb.DB{}).Open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "guarded", DB: db, Guard: true},
		sqlreq.Binding{Key: "readonly", DB: db, TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnly)})
	err := reg.Do(t.Context(), func(ctx context.Context) error {
		sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
		_, twice := sqlreq.BeginTx(ctx, nil)
		_, options := sqlreq.Key("readonly").Tx(ctx)
		_, guard := sqlreq.Key("guarded").Tx(ctx)
		for text, err := range map[string]error{"call BeginTx before any other use": twice, "the same TxOptions": options, "the same Guard": guard} {
			if !errors.Is(err, sqlreq.ErrBegun) || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), `"main"`) {
				t.Errorf("got %v, want ErrBegun with %q and the key that began", err, text)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestEventBegan: Began is when the use asked for the transaction, before the wait
// for it.
func TestEventBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakedb.DB{Begin: func(context.Context) error { time.Sleep(2 * time.Second); return nil }} // of the bubble
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
		var log sqlreqtest.Recorder
		log.Watch(reg)
		var asked []time.Time
		err := reg.Do(t.Context(), func(ctx context.Context) error {
			for range 2 {
				time.Sleep(time.Minute)
				asked = append(asked, time.Now())
				sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
				time.Sleep(time.Second)
				if err := sqlreq.Commit(ctx); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil || len(log.Told()) != 2 {
			t.Fatalf("got %v, events %q", err, log.Events())
		}
		for i, e := range log.Told() {
			if !e.Began.Equal(asked[i]) || e.Wait != 2*time.Second || e.Open != time.Second {
				t.Errorf("got %v after it was asked for, waited %v, open %v; want 0, 2s, 1s", e.Began.Sub(asked[i]), e.Wait, e.Open)
			}
		}
	})
}

// TestWriteInAReadOnlyTransaction is logged as a warning, once for each unit.
func TestWriteInAReadOnlyTransaction(t *testing.T) {
	twice := func(ctx context.Context, k sqlreq.Key) error {
		_, one := k.ExecContext(ctx, sqlreqtest.InsertWork)
		_, two := k.ExecContext(ctx, sqlreqtest.InsertWork)
		return errors.Join(one, two)
	}
	tests := map[string]struct {
		options *sql.TxOptions
		work    func(ctx context.Context) error
		warns   int
	}{
		"two writes":  {sqlreqtest.ReadOnly, func(ctx context.Context) error { return twice(ctx, sqlreqtest.Main) }, 1},
		"in two keys": {sqlreqtest.ReadOnly, func(ctx context.Context) error { return errors.Join(twice(ctx, sqlreqtest.Main), twice(ctx, "other")) }, 1},
		"by BeginTx": {nil, func(ctx context.Context) error {
			_, err := sqlreq.BeginTx(ctx, sqlreqtest.ReadOnly)
			return errors.Join(err, twice(ctx, sqlreqtest.Main))
		}, 1},
		"serializable":  {sqlreqtest.ReadOnlySerializable, func(ctx context.Context) error { return twice(ctx, sqlreqtest.Main) }, 0},
		"not read-only": {nil, func(ctx context.Context) error { return twice(ctx, sqlreqtest.Main) }, 0},
		"no row": {sqlreqtest.ReadOnly, func(ctx context.Context) error {
			_, err := sqlreqtest.Main.ExecContext(ctx, "DELETE FROM work WHERE id = 404")
			return err
		}, 0},
		"by Query, which is not seen": {sqlreqtest.ReadOnly, sqlreqtest.Statements()["QueryContext"], 0},
		"a read":                      {sqlreqtest.ReadOnly, sqlreqtest.Uses()["Query"], 0},
	}
	for name, tt := range tests {
		for _, guard := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, Guard %t", name, guard), func(t *testing.T) {
				other := sqlreqtest.OpenDB(t)
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t), Guard: guard, TxOptions: sqlreqtest.Options(tt.options)},
					sqlreq.Binding{Key: "other", DB: other, Guard: guard, TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnly)})
				var log sqlreqtest.Recorder
				log.Watch(reg)
				rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error { return tt.work(r.Context()) })))
				checkWarnings(t, &log, tt.warns, "POST /path")
				log.Reset()
				err := reg.Do(t.Context(), tt.work)
				checkWarnings(t, &log, tt.warns, " ")
				if rec.Code != 200 || err != nil {
					t.Errorf("got %d, Do %v; want that nothing fails", rec.Code, err)
				}
			})
		}
	}
}

// checkWarnings checks the warnings of writes that are lost; of is the method and
// the path.
func checkWarnings(t *testing.T, log *sqlreqtest.Recorder, n int, of string) {
	t.Helper()
	recs := log.Records()
	if len(recs) != n {
		t.Errorf("got %v, want %d warnings", recs, n)
	}
	for _, rec := range recs {
		if rec["level"] != "WARN" || !strings.Contains(rec["msg"], "read-only") || rec["key"] != "main" || rec["method"]+" "+rec["path"] != of {
			t.Errorf("got %v, want a warning with the key and %q", rec, of)
		}
	}
}
