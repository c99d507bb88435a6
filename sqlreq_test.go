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
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

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
		if err := use(t.Context()); !errors.Is(err, sqlreq.ErrNoRegistry) || !strings.Contains(err.Error(), "Middleware") {
			t.Errorf("%s: got %v, want ErrNoRegistry that names the fix", name, err)
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
		{sqlreq.Errorf(0, "a: %w", sqlreq.Errorf(404, "x")), 404},
		{errors.Join(sqlreq.Errorf(0, "x"), sqlreq.Errorf(404, "x")), 404},
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
