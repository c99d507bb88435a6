// Package sqlreqecho5 puts net/http middlewares of sqlreq into the chain of echo v5.
package sqlreqecho5

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"

	"github.com/labstack/echo/v5"

	"github.com/sqlreq/sqlreq"
)

// Wrap returns a middleware of sqlreq (Registry.Middleware, Registry.With("reports"),
// Once.Handler) as one of echo. What is registered before it stays outside: access logs,
// CORS, sessions, compression, and Recover, which must be there.
//
//	e := echo.New()
//	e.Use(middleware.Logger(), middleware.Recover(), sqlreqecho5.Wrap(reg.Middleware))
//
// Handlers use the transaction by c.Request().Context(). An error that one returns
// makes the request fail, and is returned further out when the
// transaction has ended: echo's HTTPErrorHandler answers it once, also where Retry runs
// the request again. If the request fails otherwise, a COMMIT that failed for instance,
// and the registry has no ErrorHandler, an *echo.HTTPError is returned with the code
// sqlreq.StatusCode(err) and the error inside; that is also what becomes of a handler's
// error with a status of sqlreq's (sqlreq.Errorf(409, …)).
//
// What mw answers by itself (the record of an idempotency key) is not passed on to the
// next handler. What an attempt that is run again has put into the *echo.Context by Set
// stays there.
//
// mw is asked for its handler once. Wrap panics if it is nil. What it returns may be used
// by several goroutines.
func Wrap(mw func(http.Handler) http.Handler) echo.MiddlewareFunc {
	if mw == nil {
		panic("sqlreqecho5: Wrap(nil); give it a middleware of sqlreq, as in Wrap(reg.Middleware)")
	}
	h := mw(http.HandlerFunc(serveNext))
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			x := &call{c: c, next: next, response: c.Response()}
			x.serve(h)
			return x.err
		}
	}
}

// call is the way of a request through a Wrap.
type call struct {
	c        *echo.Context
	next     echo.HandlerFunc
	response http.ResponseWriter // of outside
	err      error               // that the next handler has returned, or the request has failed with
	returned bool                // the next handler has returned
	writing  atomic.Bool         // the status is being written to response
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
		panic("sqlreqecho5: the middleware given to Wrap does not pass on the context of its request")
	}
	x.returned = false // in the attempt before
	in := &inside{w, x}
	response := echo.NewResponse(in, x.c.Logger())
	if outer, err := echo.UnwrapResponse(x.response); err == nil {
		response.Status = outer.Status
	}
	x.c.SetRequest(r)
	x.c.SetResponse(&late{response, in})
	defer func() {
		x.returned = true
		copyForm(r, x.c.Request()) // a handler may have put another request there
	}()
	x.err = x.next(x.c)
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

// failure is an error of a handler as sqlreq is told of it: with the status that echo
// answers it with.
type failure struct{ err error }

func (f *failure) Error() string { return f.err.Error() }

// Unwrap returns the error with its status.
func (f *failure) Unwrap() error {
	if code := echo.StatusCode(f.err); code != 0 {
		return &sqlreq.StatusError{Code: code, Err: f.err}
	}
	return f.err
}

// inside is sqlreq's writer as the response of the handlers has it.
type inside struct {
	http.ResponseWriter
	x *call
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

// late is the response of the handlers: echo's, but that echo drops a status that comes
// behind the first byte, or behind an early hint.
type late struct {
	*echo.Response
	in *inside
}

// Unwrap is for echo.UnwrapResponse.
func (r *late) Unwrap() http.ResponseWriter { return r.Response }

// WriteHeader writes the status.
func (r *late) WriteHeader(status int) {
	switch {
	case isEarly(status):
		r.in.WriteHeader(status)
	case r.Committed && status >= 400: // sqlreq replaces what is held, or breaks it off
		r.Status = status
		r.in.WriteHeader(status)
	default:
		r.Response.WriteHeader(status)
	}
}

// outside is echo's response as sqlreq has it.
type outside struct{ x *call }

// Header returns the header of the response.
func (w *outside) Header() http.Header { return w.x.response.Header() }

// WriteHeader writes the status. Functions that were given to Response.Before outside run
// now, and may ask the context for the response. sqlreq's lock is held.
func (w *outside) WriteHeader(status int) {
	if r, err := echo.UnwrapResponse(w.x.response); err == nil && isEarly(status) {
		r.ResponseWriter.WriteHeader(status) // echo's response would keep it, and drop the next one
		return
	}
	w.putBack()
	w.x.writing.Store(true)
	defer w.x.writing.Store(false)
	if r, ok := w.x.response.(*echo.Response); ok && r.Committed && status >= 400 && !w.x.returned { // echo drops a late one; below is the registry that e is in
		r.Status = status
		r.ResponseWriter.WriteHeader(status)
		return
	}
	w.x.response.WriteHeader(status)
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
func (w *outside) Unwrap() http.ResponseWriter {
	switch r := w.x.response.(type) {
	case *echo.Response:
		return r.ResponseWriter
	case *late: // in a group
		return r.in
	}
	return w.x.response // of a middleware outside
}

// AnswerError has the error returned to echo, whose HTTPErrorHandler answers it.
func (w *outside) AnswerError(_ *http.Request, err error) bool {
	code := sqlreq.StatusCode(err)
	var f *failure
	if errors.As(err, &f) {
		err = f.err
		own := echo.StatusCode(err) // below 400 it would be a success
		if own >= 400 || own == 0 && code == http.StatusInternalServerError {
			w.x.err = err // as the handler has returned it
			return true
		}
	}
	w.x.err = echo.NewHTTPError(code, http.StatusText(code)).Wrap(err)
	return true
}
