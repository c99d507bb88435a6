// G1 Complete means committed. If COMMIT or the handler fails while the response is
// held, the client gets an error response instead: none of the handler's headers or
// body. The error response itself can never look complete where it is not.

package guarantees

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// failing is a handler that leaves traces and fails.
func failing(err error) http.Handler {
	return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("X-Inside", "1")
		w.Header().Set("X-Outside", "changed")
		w.Header().Set("Content-Length", "3")
		w.WriteHeader(201)
		_, _ = io.WriteString(w, "yes")
		return err
	})
}

// TestG1ErrorHandler: what it finds, and what becomes of what it does.
func TestG1ErrorHandler(t *testing.T) {
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
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
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
				reg.Middleware(failing(failure)).ServeHTTP(w, r)
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

// TestG1ErrorHandlerPanics: the request is rolled back by then, a middleware
// outside that recovers finds its own headers and none of anybody else's.
func TestG1ErrorHandlerPanics(t *testing.T) {
	for _, attempts := range []int{0, 2} {
		f := &fakedb.DB{}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
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
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
				return failingError(w)
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
		f.Check(t, "BEGIN", "INSERT", "ROLLBACK")
	}
}

func failingError(w http.ResponseWriter) error {
	w.Header().Set("X-Inside", "1")
	return sqlreqtest.ErrTest
}

// TestG1ErrorHandlerPanicsStreaming: its half answer must not look complete either.
func TestG1ErrorHandlerPanicsStreaming(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) {
		w.WriteHeader(200)
		_, _ = w.Write(make([]byte, 200<<10))
		panic(sqlreqtest.ErrTest)
	}
	srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { _ = recover() }()
		reg.Middleware(failing(sqlreqtest.ErrTest)).ServeHTTP(w, r)
	}))
	if status, body, err := sqlreqtest.Get(t, srv.URL); err == nil {
		t.Errorf("got a complete %d of %d bytes, want a broken transfer", status, len(body))
	}
}

// typedNil is an error like those of many functions that return their own type:
// every method of a nil one panics.
type typedNil struct{ err error }

func (e *typedNil) Error() string { return e.err.Error() }
func (e *typedNil) Unwrap() error { return e.err }

// panickingAs is one with a method that panics in errors.As alone.
type panickingAs struct{}

func (panickingAs) Error() string { return "panickingAs" }
func (panickingAs) As(any) bool   { panic("As") }

// TestG1ErrorsWhoseMethodsPanic: such an error rolls back as any other does, and is a 500.
func TestG1ErrorsWhoseMethodsPanic(t *testing.T) {
	bad := map[string]error{
		"typed nil": (*typedNil)(nil),
		"joined":    errors.Join(sqlreqtest.ErrTest, (*typedNil)(nil)),
		"As":        panickingAs{},
	}
	for name, failure := range bad {
		for _, ended := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", ended through *sql.Tx ", ended), func(t *testing.T) {
				db := sqlreqtest.OpenDB(t)
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "routed", Route: func(context.Context, *http.Request) (*sql.DB, error) {
					return nil, failure
				}})
				work := func(ctx context.Context) error {
					sqlreqtest.Exec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
					if tx, err := sqlreq.Tx(ctx); err != nil || ended && tx.Rollback() != nil {
						t.Errorf("Tx: %v", err)
					}
					return failure
				}
				handlers := map[string]http.Handler{
					"returned": sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error { return work(r.Context()) }),
					"Fail": http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
						_ = sqlreq.Fail(r.Context(), work(r.Context()))
					}),
					"Route": sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
						_ = work(r.Context())
						_, err := sqlreq.Key("routed").Tx(r.Context())
						return err
					}),
				}
				for how, h := range handlers {
					srv := sqlreqtest.Serve(t, reg.Middleware(h))
					if status, _, err := sqlreqtest.Get(t, srv.URL); err != nil || status != 500 {
						t.Errorf("%s: got %d, %v, want 500", how, status, err)
					}
				}
				if err := reg.Do(t.Context(), work); err == nil {
					t.Error("Do: got nil, want an error")
				}
				if n := sqlreqtest.Count(t, db, "work"); n != 0 {
					t.Errorf("got %d rows, want none", n)
				}
				sqlreqtest.Idle(t, db)
			})
		}
	}
}
