// G4 No success by accident, and no failure in silence: logging follows the status
// that the client was sent, from 500 up at error level, below for debugging; a client
// that has gone for debugging only, unless a COMMIT failed; work that may have stayed
// as a warning at least. A line has method, path as the client asked for it, status,
// attempt, error, and the key if there is one that the error is about.

package guarantees

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// TestG4Log: failures are logged with method, path and status; the body has nothing of them.
func TestG4Log(t *testing.T) {
	gone, leave := context.WithCancel(context.Background())
	leave()
	tests := []struct {
		name  string
		ctx   context.Context
		err   error
		level string
		body  string
	}{
		{"500", context.Background(), errors.New("secret"), "ERROR", "Internal Server Error\n"},
		{"502", context.Background(), sqlreq.Errorf(502, "secret"), "ERROR", "Bad Gateway\n"},
		{"404", context.Background(), sqlreq.Errorf(404, "secret"), "DEBUG", "Not Found\n"},
		{"503", gone, errors.New("secret"), "DEBUG", "Service Unavailable\n"},
	}
	for _, test := range tests {
		log := &sqlreqtest.Recorder{}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "books", DB: (&fakedb.DB{}).Open(t)})
		reg.Logger = log.Logger()
		o := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			if _, err := sqlreq.Key("books").Tx(r.Context()); err != nil && r.Context().Err() == nil {
				t.Error(err)
			}
			return test.err
		})), httptest.NewRequest("PUT", "/shelf?x=1", nil).WithContext(test.ctx))
		if o.Body.String() != test.body {
			t.Errorf("%s: got body %q, want %q", test.name, o.Body, test.body)
		}
		want := map[string]string{"level": test.level, "method": "PUT", "path": "/shelf", "status": test.name, "attempt": "1", "err": "secret", "msg": "sqlreq: request failed"}
		if len(log.Records()) != 1 || !reflect.DeepEqual(log.Records()[0], want) {
			t.Errorf("%s: got %v, want %v", test.name, log.Records(), want)
		}
	}
}

// TestG4LogOfAHandlersAnswer: its answer stands, the error is logged all the same.
func TestG4LogOfAHandlersAnswer(t *testing.T) {
	log := &sqlreqtest.Recorder{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	reg.Logger = log.Logger()
	sqlreqtest.AskGet(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		w.WriteHeader(503)
		return sqlreqtest.ErrTest
	})), "/")
	if len(log.Records()) != 1 || log.Records()[0]["level"] != "ERROR" || log.Records()[0]["err"] != "test" {
		t.Errorf("got %v, want one record of the error", log.Records())
	}
}

// TestG4LogWhenAnInnerContextEnds: only the client's going makes a failure a
// matter of debugging, not the cancel of a middleware that has returned.
func TestG4LogWhenAnInnerContextEnds(t *testing.T) {
	log := &sqlreqtest.Recorder{}
	outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "inner", DB: (&fakedb.DB{}).Open(t)})
	outer.Logger, inner.Logger = log.Logger(), log.Logger()
	h := inner.Middleware(sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return sqlreqtest.ErrTest }))
	o := sqlreqtest.AskGet(outer.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), time.Hour)
		defer cancel()
		h.ServeHTTP(w, r.WithContext(ctx))
	})), "/")
	if o.Code != 500 || len(log.Records()) != 1 || log.Records()[0]["level"] != "ERROR" {
		t.Errorf("got %d and %v, want 500 and a record at level ERROR", o.Code, log.Records())
	}
}

func TestG4LoggerAttributes(t *testing.T) {
	tests := map[string]struct {
		key     sqlreq.Key
		attempt int64
		err     error
		stream  bool
	}{
		"an error":               {"", 1, sqlreqtest.ErrTest, false},
		"of the second attempt":  {"", 2, sqlreqtest.ErrTest, false},
		"of COMMIT":              {"other", 1, &sqlreq.CommitError{}, false},
		"after streaming began":  {"", 1, sqlreqtest.ErrTest, true},
		"after several attempts": {"", 2, sqlreqtest.Conflict{}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var log sqlreqtest.Recorder
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}, sqlreq.Binding{Key: "other", DB: sqlreqtest.OpenDB(t)})
			reg.Logger = log.Logger()
			reg.Retry = sqlreqtest.Retries(2)
			runs := int64(0)
			func() {
				defer func() { _ = recover() }()
				sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
					runs++
					sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
					if tt.stream {
						w.(http.Flusher).Flush()
					}
					if tt.key == "other" {
						sqlreqtest.Exec(t, r.Context(), "other", sqlreqtest.BreakCommit)
						return nil
					}
					if runs < tt.attempt {
						return sqlreqtest.Conflict{}
					}
					return tt.err
				})))
			}()
			all := log.Slog()
			if len(all) != 1 {
				t.Fatalf("%d records, want 1: %v", len(all), all)
			}
			attrs := make(map[string]slog.Value)
			all[0].Attrs(func(a slog.Attr) bool { attrs[a.Key] = a.Value; return true })
			err, _ := attrs["err"].Any().(error)
			_, isCommit := tt.err.(*sqlreq.CommitError)
			is := errors.Is(err, tt.err)
			if isCommit {
				var c *sqlreq.CommitError
				is = errors.As(err, &c)
			}
			if all[0].Level != slog.LevelError || attrs["method"].String() != "POST" || attrs["path"].String() != "/path" ||
				keyOf(attrs) != string(tt.key) || attrs["attempt"].Int64() != tt.attempt || !is {
				t.Errorf("got %v %v", all[0].Level, attrs)
			}
		})
	}
}

// A COMMIT that failed is somebody's fault, also if its client has gone meanwhile.
func TestG4LogOfACommitWhoseClientHasGone(t *testing.T) {
	tests := map[string]struct {
		explicit bool
		err      error
	}{
		"at the end":            {false, sqlreqtest.ErrTest},
		"explicit":              {true, sqlreqtest.ErrTest},
		"refused by the server": {false, sqlreqtest.Conflict{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			ctx, leave := context.WithCancel(context.Background())
			d := &fakedb.DB{Commit: func() error { leave(); return test.err }}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
			var log sqlreqtest.Recorder
			reg.Logger = log.Logger()
			sqlreqtest.Ask(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
				if test.explicit {
					_ = sqlreq.Commit(r.Context())
				}
			})), httptest.NewRequest("POST", "/", nil).WithContext(ctx))
			if all := log.Records(); len(all) != 1 || all[0]["level"] != "ERROR" || !strings.Contains(all[0]["err"], "commit") {
				t.Errorf("got %v, want one record of the commit at level ERROR", all)
			}
		})
	}
}

// keyOf returns the key of a record, "" if it has none.
func keyOf(attrs map[string]slog.Value) string {
	if key, ok := attrs["key"]; ok {
		return key.String()
	}
	return ""
}

// TestG4LogFollowsTheStatus that the client was sent, not the error's.
func TestG4LogFollowsTheStatus(t *testing.T) {
	answer := func(status int, err error) sqlreq.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(status)
			return err
		}
	}
	ended := func(status int) sqlreq.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) error {
			tx, err := sqlreq.Tx(r.Context())
			if err != nil {
				return err
			}
			if err := tx.Commit(); err != nil {
				return err
			}
			if status != 0 {
				w.WriteHeader(status)
			}
			return nil
		}
	}
	breaks := func(end error) sqlreq.HandlerFunc {
		return func(_ http.ResponseWriter, r *http.Request) error {
			return errors.Join(end, onlyError(sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.BreakCommit)))
		}
	}
	own := func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(418) }
	stayed := "sqlreq: request failed, and its work, or a part of it, may be committed"
	plain := "sqlreq: request failed"
	tests := map[string]struct {
		h       sqlreq.HandlerFunc
		onError func(http.ResponseWriter, *http.Request, error)
		want    string // level, status, key and text; "" means no line
	}{
		"401 answered, an error":      {answer(401, sqlreqtest.ErrTest), nil, "DEBUG 401  " + plain},
		"503 answered, a 422":         {answer(503, sqlreq.Errorf(422, "x")), nil, "ERROR 503  " + plain},
		"401 answered, ended outside": {ended(401), nil, "WARN 401 main " + stayed},
		"500 answered, ended outside": {ended(500), nil, "ERROR 500 main " + stayed},
		"ended outside":               {ended(0), nil, "ERROR 500 main " + stayed},
		"a default answer of 422":     {func(http.ResponseWriter, *http.Request) error { return sqlreq.Errorf(422, "x") }, nil, "DEBUG 422  " + plain},
		"own ErrorHandler":            {func(http.ResponseWriter, *http.Request) error { return sqlreqtest.ErrTest }, own, ""},
		"own ErrorHandler, ended":     {ended(0), own, "WARN 418 main " + stayed},
		"own ErrorHandler, COMMIT":    {breaks(nil), own, "ERROR 418 main " + plain},
		"COMMIT":                      {breaks(nil), nil, "ERROR 500 main " + plain},
		"unknown key": {func(_ http.ResponseWriter, r *http.Request) error {
			return onlyError(sqlreq.Key("none").Tx(r.Context()))
		}, nil, "ERROR 500  " + plain},
		"begun with other options": {func(_ http.ResponseWriter, r *http.Request) error {
			_, _ = sqlreq.Tx(r.Context())
			return onlyError(sqlreq.BeginTx(r.Context(), nil))
		}, nil, "ERROR 500 main " + plain},
		"RollbackOnly": {func(_ http.ResponseWriter, r *http.Request) error {
			return sqlreq.RollbackOnly(r.Context(), sqlreqtest.ErrTest)
		}, nil, "DEBUG 200  " + plain},
		"RollbackOnly with a 500": {func(w http.ResponseWriter, r *http.Request) error {
			w.WriteHeader(500)
			return sqlreq.RollbackOnly(r.Context(), sqlreqtest.ErrTest)
		}, nil, "DEBUG 500  " + plain},
		"a 422 while the answer streams": {func(w http.ResponseWriter, _ *http.Request) error {
			w.(http.Flusher).Flush()
			return sqlreq.Errorf(422, "x")
		}, nil, "ERROR 422  " + plain},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
			reg.ErrorHandler = test.onError
			var log sqlreqtest.Recorder
			reg.Logger = log.Logger()
			sqlreqtest.AskGet(reg.Middleware(test.h), "/")
			var got []string
			for _, l := range log.Records() {
				got = append(got, strings.Join([]string{l["level"], l["status"], l["key"], l["msg"]}, " "))
			}
			if s := strings.Join(got, ", "); s != test.want {
				t.Errorf("got %q, want %q", s, test.want)
			}
		})
	}
}

func onlyError[T any](_ T, err error) error { return err }

// TestG4LogHasThePathThatWasAskedFor: in mounted applications, after StripPrefix, in
// hooks, and where there is no RequestURI.
func TestG4LogHasThePathThatWasAskedFor(t *testing.T) {
	outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "outer", DB: sqlreqtest.OpenDB(t)})
	inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	var log sqlreqtest.Recorder
	outer.Logger, inner.Logger = log.Logger(), log.Logger()
	app := inner.Mount("/insidé", sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		if err := sqlreq.AfterRollback(r.Context(), func(context.Context) { panic("hook") }); err != nil {
			t.Error(err)
		}
		return sqlreqtest.ErrTest
	}))
	h := http.StripPrefix("/out", outer.Middleware(app))
	sqlreqtest.AskGet(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = r.Clone(r.Context())
		r.URL.Path = "/insidé/rewritten"
		outer.Middleware(app).ServeHTTP(w, r)
	}), "/asked")
	if all := log.Records(); len(all) != 2 || all[0]["path"] != "/asked" {
		t.Errorf("got %v, want the path that the client has asked for", all)
	}
	for _, uri := range []bool{true, false} {
		log.Reset()
		r := httptest.NewRequest("GET", "/out/insid%C3%A9/a%2Fb?q=1", nil)
		if !uri {
			r.RequestURI = ""
		}
		sqlreqtest.Ask(h, r)
		want := "/out/insidé/a/b"
		if !uri {
			want = "/insidé/a/b" // what the outermost registry knows of
		}
		for _, l := range log.Records() {
			if l["path"] != want {
				t.Errorf("got the path %q in %q, want %q", l["path"], l["msg"], want)
			}
		}
		if len(log.Records()) != 2 {
			t.Errorf("got %v, want the failure and the panic of the hook", log.Records())
		}
	}
}

// TestG4LogOfAPartCommittedWhoseClientHasGone: it is no matter of debugging.
func TestG4LogOfAPartCommittedWhoseClientHasGone(t *testing.T) {
	ctx, leave := context.WithCancel(context.Background())
	d := &fakedb.DB{Commit: func() error { leave(); return sqlreqtest.ErrTest }}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}, sqlreq.Binding{Key: "second", DB: d.Open(t)})
	var log sqlreqtest.Recorder
	reg.Logger = log.Logger()
	sqlreqtest.Ask(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		sqlreqtest.Exec(t, r.Context(), "second", "INSERT")
	})), httptest.NewRequest("POST", "/", nil).WithContext(ctx))
	if all := log.Records(); len(all) != 1 || all[0]["level"] != "ERROR" || all[0]["key"] != "second" || !strings.Contains(all[0]["msg"], "may be committed") {
		t.Errorf("got %v", all)
	}
}

// TestG4LogOfACommitWhoseErrorHandlerPanics: nobody else tells that a COMMIT has failed.
func TestG4LogOfACommitWhoseErrorHandlerPanics(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("test") }, "Goexit": runtime.Goexit} {
		for _, wrote := range []bool{false, true} {
			log := &sqlreqtest.Recorder{}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
			reg.Logger = log.Logger()
			reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) {
				if wrote {
					w.WriteHeader(409)
				}
				end()
			}
			o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.BreakCommit)
			})), "/path")
			if all := log.Records(); o.Returned || len(all) != 1 || all[0]["level"] != "ERROR" || all[0]["path"] != "/path" || !strings.Contains(all[0]["err"], "commit on key") {
				t.Errorf("%s, wrote=%t: got %v, returned=%t, want one line at error level about the COMMIT", name, wrote, all, o.Returned)
			}
		}
	}
}
