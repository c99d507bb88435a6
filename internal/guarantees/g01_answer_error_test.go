// G1 Complete means committed. Where the registry has no ErrorHandler, the writer that
// Middleware was given may answer the error, by its method AnswerError: an adapter's,
// so that a framework's own error handler answers.

package guarantees

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// answerer is a writer that answers errors itself, if answer says so.
type answerer struct {
	http.ResponseWriter
	asked  []error
	answer func(w http.ResponseWriter, r *http.Request, err error) bool
}

func (a *answerer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answerer) AnswerError(r *http.Request, err error) bool {
	a.asked = append(a.asked, err)
	return a.answer(a.ResponseWriter, r, err)
}

// framework answers as a framework's error handler may.
func framework(w http.ResponseWriter, r *http.Request, err error) bool {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(sqlreq.StatusCode(err))
	fmt.Fprintf(w, `{"path":%q}`, r.URL.Path)
	return true
}

// askWith serves a GET of /page behind a writer with AnswerError.
func askWith(h http.Handler, answer func(http.ResponseWriter, *http.Request, error) bool) (*answerer, sqlreqtest.Answer) {
	var a *answerer
	got := sqlreqtest.AskGet(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Outside", "1")
		a = &answerer{ResponseWriter: w, answer: answer}
		h.ServeHTTP(a, r)
	}), "/page")
	return a, got
}

// TestG1AnswerError: the error that it is given, and what the client gets.
func TestG1AnswerError(t *testing.T) {
	insert := func(w http.ResponseWriter, r *http.Request) error {
		_, err := sqlreqtest.Main.ExecContext(r.Context(), "INSERT")
		w.Header().Set("X-Inside", "1")
		w.WriteHeader(201)
		_, _ = io.WriteString(w, "yes")
		return err
	}
	returning := func(err error) sqlreq.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) error { return errors.Join(insert(w, r), err) }
	}
	tests := map[string]struct {
		stmt  string // that fails
		err   error
		h     sqlreq.HandlerFunc
		code  int
		later string // Retry-After
		is    func(error) bool
	}{
		"an error":        {h: returning(sqlreqtest.ErrTest), code: 500, is: func(err error) bool { return errors.Is(err, sqlreqtest.ErrTest) }},
		"a StatusError":   {h: returning(sqlreq.Errorf(409, "no")), code: 409, is: func(err error) bool { return sqlreq.StatusCode(err) == 409 }},
		"a failed COMMIT": {stmt: "COMMIT", err: sqlreqtest.ErrTest, h: insert, code: 500, is: sqlreq.MayHaveCommitted},
		"a conflict":      {stmt: "COMMIT", err: sqlreqtest.Conflict{}, h: insert, code: 503, later: "1", is: sqlreq.IsRetryable},
		"no database":     {stmt: "BEGIN", err: driver.ErrBadConn, h: insert, code: 503, later: "1", is: func(err error) bool { return errors.Is(err, driver.ErrBadConn) }},
		"a typed nil":     {h: returning((*typedNil)(nil)), code: 500, is: func(err error) bool { return err.Error() != "" }},
		"only Fail, no row": {h: func(_ http.ResponseWriter, r *http.Request) error {
			return sqlreq.Fail(r.Context(), sqlreqtest.ErrTest)
		}, code: 500, is: func(err error) bool { return errors.Is(err, sqlreqtest.ErrTest) }},
	}
	for name, test := range tests {
		for _, says := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", answered ", says), func(t *testing.T) {
				db := &fakedb.DB{Step: func(_ context.Context, text string) error {
					if text == test.stmt {
						return test.err
					}
					return nil
				}}
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db.Open(t)})
				var log sqlreqtest.Recorder
				reg.Logger = log.Logger()
				a, got := askWith(reg.Middleware(test.h), func(w http.ResponseWriter, r *http.Request, err error) bool {
					if h := w.Header(); h.Get("X-Inside") != "" || h.Get("X-Outside") != "1" || h.Get("Retry-After") != test.later {
						t.Errorf("AnswerError found %v, want the header of outside, and Retry-After %q", h, test.later)
					}
					if _, err := sqlreq.Tx(r.Context()); !errors.Is(err, sqlreq.ErrFinished) {
						t.Errorf("Tx in AnswerError: got %v, want ErrFinished", err)
					}
					return says && framework(w, r, err)
				})
				if len(a.asked) != 1 || !test.is(a.asked[0]) {
					t.Errorf("AnswerError got %v, want one error of this kind", a.asked)
				}
				body := `{"path":"/page"}`
				if !says {
					body = http.StatusText(test.code) + "\n"
				}
				if got.Code != test.code || got.Body.String() != body || got.Header().Get("X-Inside") != "" || got.Header().Get("Retry-After") != test.later {
					t.Errorf("got %d %q %v, want %d %q, Retry-After %q", got.Code, got.Body, got.Header(), test.code, body, test.later)
				}
				level := map[bool]string{true: "ERROR", false: "DEBUG"}[test.code >= 500]
				if lines := log.Records(); len(lines) != 1 || lines[0]["level"] != level || lines[0]["status"] != fmt.Sprint(test.code) {
					t.Errorf("got log %v, want one line at %s with status %d", lines, level, test.code)
				}
			})
		}
	}
}

// TestG1AnswerErrorIsNotAsked: where there is nothing to answer, or somebody else answers.
func TestG1AnswerErrorIsNotAsked(t *testing.T) {
	failure := sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return sqlreq.Errorf(409, "no") })
	answering := func(status int, size int) http.Handler {
		return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, strings.Repeat("x", size))
			return sqlreqtest.ErrTest
		})
	}
	hidden := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(&onlyUnwrap{w}, r)
		})
	}
	custom := func(reg *sqlreq.Registry) {
		reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(418) }
	}
	tests := map[string]struct {
		set    func(*sqlreq.Registry)
		h      http.Handler
		around func(http.Handler) http.Handler
		code   int // 0: broken off
	}{
		"an ErrorHandler":                           {set: custom, h: failure, code: 418},
		"an ErrorHandler that writes nothing":       {set: func(reg *sqlreq.Registry) { reg.ErrorHandler = func(http.ResponseWriter, *http.Request, error) {} }, h: failure, code: 409},
		"the handler has answered 404":              {h: answering(404, 1), code: 404},
		"a part has left":                           {h: answering(200, 100<<10), code: 0},
		"it is further out, to be found by Unwrap":  {h: failure, around: hidden, code: 409},
		"all is well":                               {h: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }), code: 204},
		"a RollbackOnly":                            {h: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _ = sqlreq.RollbackOnly(r.Context(), sqlreqtest.ErrTest) }), code: 200},
		"a nested registry with an ErrorHandler":    {h: nestedIn(t, custom, failure), code: 418},
		"an error of a Do, answered by HandlerFunc": {h: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { inDo(t, failure, w, r) }), code: 409},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
			if test.set != nil {
				test.set(reg)
			}
			h := reg.Middleware(test.h)
			if test.around != nil {
				h = test.around(h)
			}
			a, got := askWith(h, framework)
			if len(a.asked) != 0 {
				t.Errorf("AnswerError was asked for %v", a.asked)
			}
			if test.code == 0 {
				if got.Panicked != http.ErrAbortHandler {
					t.Errorf("got panic %v, want http.ErrAbortHandler", got.Panicked)
				}
			} else if got.Code != test.code {
				t.Errorf("got %d, want %d", got.Code, test.code)
			}
		})
	}
}

// onlyUnwrap is a writer of a middleware between.
type onlyUnwrap struct{ http.ResponseWriter }

func (w *onlyUnwrap) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// nestedIn returns h inside of a registry of its own.
func nestedIn(t *testing.T, set func(*sqlreq.Registry), h http.Handler) http.Handler {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	set(reg)
	return reg.Middleware(h)
}

func inDo(t *testing.T, h http.Handler, w http.ResponseWriter, r *http.Request) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	_ = reg.Do(r.Context(), func(ctx context.Context) error {
		h.ServeHTTP(w, r.WithContext(ctx))
		return nil
	})
}

// TestG1AnswerErrorOfANestedRegistry: one without an ErrorHandler is asked for nothing,
// though that of the outermost would be.
func TestG1AnswerErrorOfANestedRegistry(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	reg.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { t.Error("the outer ErrorHandler was called") }
	failure := sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return sqlreq.Errorf(409, "no") })
	a, got := askWith(reg.Middleware(nestedIn(t, func(*sqlreq.Registry) {}, failure)), framework)
	if len(a.asked) != 1 || got.Code != 409 || got.Body.String() != `{"path":"/page"}` {
		t.Errorf("asked %v, got %d %q, want its answer", a.asked, got.Code, got.Body)
	}
}

// TestG1AnswerErrorWithRetry: it is asked once, when no attempt is left, with the
// header as it was before the first.
func TestG1AnswerErrorWithRetry(t *testing.T) {
	db := &fakedb.DB{Commit: func() error { return sqlreqtest.Conflict{} }}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db.Open(t)})
	reg.Retry = sqlreqtest.Retries(3)
	a, got := askWith(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Inside", "1")
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
	})), framework)
	if db.Count("COMMIT") != 3 || len(a.asked) != 1 {
		t.Errorf("got %d attempts, AnswerError asked %d times, want 3 and once", db.Count("COMMIT"), len(a.asked))
	}
	if got.Code != 503 || got.Header().Get("Retry-After") != "1" || got.Header().Get("X-Inside") != "" || got.Header().Get("X-Outside") != "1" {
		t.Errorf("got %d %v", got.Code, got.Header())
	}
}

// TestG1AnswerErrorPanics: the panic goes on; the transaction is over by then.
func TestG1AnswerErrorPanics(t *testing.T) {
	db := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db.Open(t)})
	srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if got := recover(); got != sqlreqtest.ErrTest {
				t.Errorf("recovered %v, want ErrTest", got)
			}
			w.WriteHeader(500)
		}()
		a := &answerer{ResponseWriter: w, answer: func(http.ResponseWriter, *http.Request, error) bool { panic(sqlreqtest.ErrTest) }}
		reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
			w.Header().Set("X-Inside", "1")
			return sqlreq.Errorf(409, "no")
		})).ServeHTTP(a, r)
	}))
	res, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 500 || res.Header.Get("X-Inside") != "" {
		t.Errorf("got %d %v, want 500 with nothing of the handler", res.StatusCode, res.Header)
	}
	db.Check(t, "BEGIN", "INSERT", "ROLLBACK")
}

// TestG1AnswerErrorAtWork: over HTTP, a HEAD and a GET.
func TestG1AnswerErrorAtWork(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	h := reg.Middleware(failing(sqlreq.Errorf(409, "no")))
	for _, serve := range []func(testing.TB, http.Handler) *httptest.Server{sqlreqtest.Serve, sqlreqtest.ServeHTTP2} {
		srv := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(&answerer{ResponseWriter: w, answer: framework}, r)
		}))
		for method, want := range map[string]string{"GET": `{"path":"/page"}`, "HEAD": ""} {
			req, err := http.NewRequest(method, srv.URL+"/page", nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || res.StatusCode != 409 || string(body) != want || res.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%s %s: got %d %q %v, want 409 %q", res.Proto, method, res.StatusCode, body, err, want)
			}
		}
	}
}
