// Package sqlreqecho4 puts net/http middlewares of sqlreq into the chain of echo v4.
package sqlreqecho4

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"sync/atomic"

	"github.com/labstack/echo/v4"

	"github.com/sqlreq/sqlreq"
)

// Wrap returns a middleware of sqlreq (Registry.Middleware, Registry.With("reports"),
// Once.Handler) as one of echo. What is registered before it stays outside: access logs,
// CORS, sessions, compression, and Recover, which must be there.
//
//	e := echo.New()
//	e.Use(middleware.Logger(), middleware.Recover(), sqlreqecho4.Wrap(reg.Middleware))
//
// Handlers use the transaction by c.Request().Context(). An error that one returns, or
// gives to c.Error, makes the request fail, and is returned further out when the
// transaction has ended: echo's HTTPErrorHandler answers it once, also where Retry runs
// the request again. If the request fails otherwise, a COMMIT that failed for instance,
// and the registry has no ErrorHandler, an *echo.HTTPError is returned with the code
// sqlreq.StatusCode(err) and the error inside; that is also what becomes of a handler's
// error with a status of sqlreq's (sqlreq.Errorf(409, …)).
//
// What mw answers by itself (the record of an idempotency key) is not passed on to the
// next handler. What an attempt that is run again has put into the echo.Context by Set
// stays there. A status that is set behind the first byte is dropped by echo, but for that
// of JSON, so return an error instead.
//
// mw is asked for its handler once. Wrap panics if it is nil. What it returns may be used
// by several goroutines.
func Wrap(mw func(http.Handler) http.Handler) echo.MiddlewareFunc {
	if mw == nil {
		panic("sqlreqecho4: Wrap(nil); give it a middleware of sqlreq, as in Wrap(reg.Middleware)")
	}
	h := mw(http.HandlerFunc(serveNext))
	return func(next echo.HandlerFunc) echo.HandlerFunc { // called for every request
		return func(c echo.Context) error {
			x := &call{c: c, next: next, response: c.Response()}
			x.serve(h)
			return x.err
		}
	}
}

// call is the way of a request through a Wrap.
type call struct {
	c        echo.Context
	next     echo.HandlerFunc
	response *echo.Response // of outside
	err      error          // that the next handler has returned, or the request has failed with
	returned bool           // the next handler has returned
	writing  atomic.Bool    // the status is being written to response
}

type callKey struct{}

func (x *call) serve(h http.Handler) {
	req := x.c.Request()
	inner := req.WithContext(context.WithValue(req.Context(), callKey{}, x))
	defer func() { // before a Recover outside has echo answer
		x.c.SetRequest(req)
		x.c.SetResponse(x.response)
		copyForm(req, inner) // net/http removes its files
	}()
	h.ServeHTTP(&outside{x}, inner)
}

// serveNext calls the next handler of echo's chain.
func serveNext(w http.ResponseWriter, r *http.Request) {
	x, _ := r.Context().Value(callKey{}).(*call)
	if x == nil {
		panic("sqlreqecho4: the middleware given to Wrap does not pass on the context of its request")
	}
	x.returned = false // in the attempt before
	in := &inside{ResponseWriter: w, x: x}
	response := echo.NewResponse(in, x.c.Echo())
	response.Status = x.response.Status
	x.c.SetRequest(r)
	x.c.SetResponse(response)
	defer func() {
		x.returned = true
		copyForm(r, x.c.Request()) // a handler may have put another request there
	}()
	c, heard := x.c, &hearing{Context: x.c}
	if isEchosOwn(c) {
		c = heard
	}
	x.err = x.next(c)
	if x.err == nil {
		x.err = heard.err
	}
	if in.isLate(response) {
		w.WriteHeader(response.Status) // sqlreq replaces what is held, or breaks it off
	}
	if x.err != nil {
		_ = sqlreq.Fail(r.Context(), &failure{x.err}) // ErrNoRegistry: another middleware than a registry's
	}
}

// copyForm gives a request the form that a copy of it has parsed.
func copyForm(to, from *http.Request) {
	if to.MultipartForm == nil {
		to.MultipartForm = from.MultipartForm
	}
}

// hearing is echo's own context, but for Error: what is rendered inside may come too
// late, for a part of the response was written. The error is returned instead.
type hearing struct {
	echo.Context
	err error
}

// Error keeps the first error.
func (c *hearing) Error(err error) {
	if c.err == nil {
		c.err = err
	}
}

// isEchosOwn reports whether c may be replaced. A program's own would not be what its
// handlers look for, and before the router (Echo.Pre, where no path is known) echo
// itself asks for its own.
func isEchosOwn(c echo.Context) bool {
	return c.Path() != "" && reflect.TypeOf(c) == typeOfContext
}

var typeOfContext = reflect.TypeOf(echo.New().NewContext(nil, nil))

// failure is an error of a handler as sqlreq is told of it: with the status that echo
// answers it with.
type failure struct{ err error }

func (f *failure) Error() string { return f.err.Error() }

// Unwrap returns the error with its status.
func (f *failure) Unwrap() error {
	if he := httpError(f.err); he != nil {
		return &sqlreq.StatusError{Code: he.Code, Err: f.err}
	}
	return f.err
}

// httpError returns what echo's HTTPErrorHandler makes of err, nil if that is a 500.
func httpError(err error) *echo.HTTPError {
	he, _ := err.(*echo.HTTPError)
	if he != nil {
		if inner, _ := he.Internal.(*echo.HTTPError); inner != nil {
			return inner
		}
	}
	return he
}

// inside is sqlreq's writer as the response of the handlers has it.
type inside struct {
	http.ResponseWriter
	x      *call
	status int // that was written
}

// WriteHeader writes the status.
func (w *inside) WriteHeader(status int) {
	if !isEarly(status) {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// isLate reports whether the status of an error came behind the first byte, where echo
// keeps it (in JSON; elsewhere it forgets it, too) and writes none.
func (w *inside) isLate(response *echo.Response) bool {
	return response.Committed && response.Status >= 400 && w.status < 400 && w.status != http.StatusSwitchingProtocols
}

// Header returns the header of the response. While sqlreq writes the status it would wait
// for itself.
func (w *inside) Header() http.Header {
	if w.x.writing.Load() {
		return w.x.response.Header()
	}
	return w.ResponseWriter.Header()
}

// Unwrap is for http.ResponseController.
func (w *inside) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// outside is echo's response as sqlreq has it.
type outside struct{ x *call }

// Header returns the header of the response.
func (w *outside) Header() http.Header { return w.x.response.Header() }

// WriteHeader writes the status. Functions that were given to Response.Before outside run
// now, and may ask the context for the response. sqlreq's lock is held.
func (w *outside) WriteHeader(status int) {
	if isEarly(status) { // echo's response would keep it, and drop the next one
		w.x.response.Writer.WriteHeader(status)
		return
	}
	w.putBack()
	w.x.writing.Store(true)
	defer w.x.writing.Store(false)
	if w.x.response.Committed && status >= 400 && !w.x.returned {
		writeLate(w.x.response, status)
		return
	}
	w.x.response.WriteHeader(status)
}

// writeLate passes a status on that echo drops, because it comes behind the first byte: to
// another Wrap, or the registry that this Echo is in.
func writeLate(r *echo.Response, status int) {
	r.Status = status
	if outer, ok := r.Writer.(*echo.Response); ok { // by echo.WrapHandler
		writeLate(outer, status)
		return
	}
	r.Writer.WriteHeader(status)
}

// isEarly reports whether a status announces that another one follows.
func isEarly(status int) bool {
	return status >= 100 && status < 200 && status != http.StatusSwitchingProtocols
}

// Write writes a part of the body.
func (w *outside) Write(p []byte) (int, error) {
	w.putBack()
	return w.x.response.Write(p)
}

// putBack makes the response of outside that of the context, if nobody inside needs his
// own any more. What runs before, BeforeCommit functions and hooks, must not find it.
func (w *outside) putBack() {
	if w.x.returned {
		w.x.c.SetResponse(w.x.response)
	}
}

// Unwrap is for http.ResponseController. It leads around echo's response, which claims
// that every connection can be flushed and taken over.
func (w *outside) Unwrap() http.ResponseWriter { return w.x.response.Writer }

// AnswerError has the error returned to echo, whose HTTPErrorHandler answers it.
func (w *outside) AnswerError(_ *http.Request, err error) bool {
	code := sqlreq.StatusCode(err)
	var f *failure
	if errors.As(err, &f) {
		err = f.err
		he := httpError(err)
		switch {
		case he != nil && he.Code < 400:
			err = f // echo would answer with a code that is none of an error
		case he != nil, code == http.StatusInternalServerError:
			w.x.err = err // as the handler has returned it
			return true
		}
	}
	w.x.err = &echo.HTTPError{Code: code, Message: http.StatusText(code), Internal: err}
	return true
}
