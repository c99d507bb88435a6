// Package sqlreqgin puts net/http middlewares of sqlreq into gin's chain of handlers.
package sqlreqgin

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/sqlreq/sqlreq"
)

// Wrap returns a middleware of sqlreq (Registry.Middleware, Registry.With("reports"),
// Once.Handler) as a handler for gin's Use. What is registered before it stays outside:
// access logs, CORS, sessions, compression, and Recovery, which must be there.
//
//	engine := gin.New()
//	engine.Use(gin.Logger(), gin.Recovery(), renderErrors, sqlreqgin.Wrap(reg.Middleware))
//
// Handlers use the transaction by c.Request.Context(). An error that c.Error or
// c.AbortWithError adds to c.Errors makes the request fail; so does a status of 400 or
// more. If the request fails without an answer, a COMMIT that failed for instance, and
// the registry has no ErrorHandler, the error is added to c.Errors and the status is set
// to sqlreq.StatusCode(err): a middleware registered before Wrap writes the body, as it
// does for AbortWithError, if c.Writer.Written() is false.
//
// What mw answers by itself (the record of an idempotency key) is not passed on to the
// next handlers. gin's chain cannot be run twice: where Retry runs a request again, the
// second attempt panics, so let Retry.When say no to gin's routes. gin's
// Engine.HandleContext behind Wrap, whose answer would be sent before COMMIT, panics
// too, and breaks the response off, unless all of a large one has left by then.
//
// mw is asked for its handler once. Wrap panics if it is nil. The handler may be used by
// several engines, from several goroutines.
func Wrap(mw func(http.Handler) http.Handler) gin.HandlerFunc {
	if mw == nil {
		panic("sqlreqgin: Wrap(nil); give it a middleware of sqlreq, as in Wrap(reg.Middleware)")
	}
	h := mw(http.HandlerFunc(next))
	return func(c *gin.Context) {
		if outer := callOf(c.Request.Context()); outer != nil && outer.c == c && outer.reentered() {
			panic(reentered)
		}
		x := &call{c: c, writer: c.Writer, errors: len(c.Errors)}
		req := c.Request
		inner := req.WithContext(context.WithValue(req.Context(), callKey{}, x))
		over := false
		defer func() {
			c.Request, c.Writer = req, x.writer
			copyForm(req, inner) // net/http removes its files
			if !over {
				// gin's Recovery sets no status for http.ErrAbortHandler, and gin would send a 200.
				x.writer.WriteHeader(http.StatusInternalServerError)
			}
		}()
		h.ServeHTTP(newOutside(x), inner)
		over = true
		if !x.entered {
			c.Abort()
		}
	}
}

const (
	reentered = "sqlreqgin: Engine.HandleContext was called behind Wrap: its answer would be sent before COMMIT; call it in a handler that is registered before Wrap"
	again     = "sqlreqgin: the request is to be run again after a conflict, but gin's chain of handlers cannot be run twice; let Retry.When return false for the routes of gin"
)

// call is the way of a request through a Wrap.
type call struct {
	c        *gin.Context
	writer   gin.ResponseWriter // of outside
	errors   int                // how many there were before
	entered  bool               // the next handlers have been called
	returned bool               // and have returned
	writing  atomic.Bool        // the status is being written to writer
}

// newErrors returns the errors that were added to c.Errors since x began.
func (x *call) newErrors() []*gin.Error { return x.c.Errors[min(x.errors, len(x.c.Errors)):] }

type callKey struct{}

func callOf(ctx context.Context) *call {
	x, _ := ctx.Value(callKey{}).(*call)
	return x
}

// reentered reports whether Engine.HandleContext has reset the context since x began: it
// forgets the keys.
func (x *call) reentered() bool {
	_, marked := x.c.Get(callKey{})
	return !marked
}

// next calls the next handlers of gin's chain.
func next(w http.ResponseWriter, r *http.Request) {
	x := callOf(r.Context())
	if x == nil {
		panic("sqlreqgin: the middleware given to Wrap does not pass on the context of its request")
	}
	if x.entered {
		panic(again)
	}
	x.entered = true
	c := x.c
	c.Set(callKey{}, true)
	inner := &writer{ResponseWriter: w, x: x, req: r, status: x.writer.Status(), size: notWritten}
	c.Request, c.Writer = r, inner
	defer func() {
		x.returned = true
		copyForm(r, c.Request) // a handler may have put another request there
	}()
	c.Next()
	if x.reentered() {
		// gin has given the header of the answer to net/http: only a broken transfer is no success.
		_ = http.NewResponseController(x.writer).SetWriteDeadline(time.Unix(1, 0))
		panic(reentered)
	}
	if inner.status != http.StatusOK || x.writer.Status() != http.StatusOK {
		inner.WriteHeaderNow() // one that was only set decides too, and gin's own 404
	}
	if added := x.newErrors(); len(added) > 0 {
		_ = sqlreq.Fail(r.Context(), added[0].Err) // ErrNoRegistry: another middleware than a registry's
	}
}

// copyForm gives a request the form that a copy of it has parsed.
func copyForm(to, from *http.Request) {
	if to.MultipartForm == nil {
		to.MultipartForm = from.MultipartForm
	}
}

// outside is gin's writer as sqlreq has it.
type outside struct {
	x    *call
	base http.ResponseWriter // the server's
}

// newOutside returns the writer for sqlreq. It has a Hijack only where the server's
// writer has one: gin's always has, and panics over HTTP/2.
func newOutside(x *call) http.ResponseWriter {
	w := &outside{x, x.writer}
	for {
		u, ok := w.base.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		w.base = u.Unwrap()
	}
	if _, ok := w.base.(http.Hijacker); ok {
		return hijackable{w}
	}
	return w
}

// Header returns the header of the response.
func (w *outside) Header() http.Header { return w.x.writer.Header() }

// WriteHeader sets the status. A writer of a middleware outside may ask the context for
// the header. sqlreq's lock is held.
func (w *outside) WriteHeader(status int) {
	if isEarly(status) { // gin's writer would keep it, and send the next one in its place
		w.base.WriteHeader(status)
		return
	}
	w.putBack()
	w.x.writing.Store(true)
	defer w.x.writing.Store(false)
	late := w.x.writer.Written() && !w.x.returned
	w.x.writer.WriteHeader(status)
	if late && status >= 400 && w.x.writer.Status() != status {
		w.base.WriteHeader(status) // gin drops a late one; below is the registry that this engine is in
	}
	if status == http.StatusSwitchingProtocols {
		w.x.writer.WriteHeaderNow() // the connection is taken over next
	}
}

// isEarly reports whether a status announces that another one follows.
func isEarly(status int) bool {
	return status >= 100 && status < 200 && status != http.StatusSwitchingProtocols
}

// Write writes a part of the body.
func (w *outside) Write(p []byte) (int, error) {
	w.putBack()
	return w.x.writer.Write(p)
}

// Flush sends what is there.
func (w *outside) Flush() { w.x.writer.Flush() }

// putBack makes the writer of outside that of the context, if nobody inside needs his own
// any more. What runs before, BeforeCommit functions and hooks, must not find it.
func (w *outside) putBack() {
	if w.x.returned {
		w.x.c.Writer = w.x.writer
	}
}

// Unwrap is for the deadlines of http.ResponseController.
func (w *outside) Unwrap() http.ResponseWriter { return w.base }

// CloseNotify is that of the server's writer. Without one gin's would panic.
func (w *outside) CloseNotify() <-chan bool {
	if _, ok := w.base.(interface{ CloseNotify() <-chan bool }); !ok {
		return nil
	}
	return w.x.writer.CloseNotify()
}

// AnswerError sets the status and adds the error to c.Errors, if it is not there: a
// middleware outside writes the body, as for every error of gin.
func (w *outside) AnswerError(_ *http.Request, err error) bool {
	c := w.x.c
	w.x.writer.WriteHeader(sqlreq.StatusCode(err))
	for _, e := range w.x.newErrors() {
		if errors.Is(err, e.Err) {
			return true
		}
	}
	_ = c.Error(err)
	return true
}

// hijackable is an outside whose connection can be taken over.
type hijackable struct{ *outside }

// Hijack takes the connection over. gin's own refuses that behind the first byte of the
// body, where sqlreq resets the connection of a failed response.
func (w hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.x.writer.Size() > 0 {
		return w.base.(http.Hijacker).Hijack()
	}
	return w.x.writer.Hijack()
}

const notWritten = -1 // that of gin

// writer is the writer of the handlers: gin's over sqlreq's. Unlike gin's it passes a
// status of 400 or more on that comes after the first byte, and a Hijack that has failed
// writes nothing.
type writer struct {
	http.ResponseWriter
	x      *call
	req    *http.Request
	status int
	size   int // of the body, notWritten before the header
}

// Unwrap is for http.ResponseController. Below is sqlreq's writer.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Header returns the header of the response. While sqlreq writes the status it would wait
// for itself.
func (w *writer) Header() http.Header {
	if w.x.writing.Load() {
		return w.x.writer.Header()
	}
	return w.ResponseWriter.Header()
}

// Status returns the status that was set.
func (w *writer) Status() int { return w.status }

// Size returns the length of the body so far, -1 before the header was written.
func (w *writer) Size() int { return w.size }

// Written reports whether the header was written.
func (w *writer) Written() bool { return w.size != notWritten }

// WriteHeader sets the status, which is written with the first byte.
func (w *writer) WriteHeader(status int) {
	switch {
	case status <= 0:
	case isEarly(status):
		w.ResponseWriter.WriteHeader(status)
	case !w.Written():
		w.status = status
	case status >= 400: // the page that broke half-way: sqlreq replaces it, or breaks it off
		w.status, w.size = status, 0
		w.ResponseWriter.WriteHeader(status)
	}
}

// WriteHeaderNow writes the header.
func (w *writer) WriteHeaderNow() {
	if !w.Written() {
		w.size = 0
		w.ResponseWriter.WriteHeader(w.status)
	}
}

// Write writes the header and a part of the body.
func (w *writer) Write(p []byte) (int, error) {
	w.WriteHeaderNow()
	n, err := w.ResponseWriter.Write(p)
	w.size += n
	return n, err
}

// WriteString is Write for a string.
func (w *writer) WriteString(s string) (int, error) {
	w.WriteHeaderNow()
	n, err := io.WriteString(w.ResponseWriter, s)
	w.size += n
	return n, err
}

// Flush sends what is there.
func (w *writer) Flush() {
	w.WriteHeaderNow()
	_ = http.NewResponseController(w.ResponseWriter).Flush()
}

var errHijackWritten = errors.New("sqlreqgin: the response has a body already")

// Hijack takes the connection over.
func (w *writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.size > 0 {
		return nil, nil, errHijackWritten
	}
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil && !w.Written() {
		w.size = 0
	}
	return conn, rw, err
}

// CloseNotify is the old way to learn that the client has gone.
func (w *writer) CloseNotify() <-chan bool {
	if n, ok := w.ResponseWriter.(interface{ CloseNotify() <-chan bool }); ok {
		return n.CloseNotify()
	}
	gone := make(chan bool, 1)
	context.AfterFunc(w.req.Context(), func() { gone <- true })
	return gone
}

// Pusher returns nil: sqlreq provides none.
func (w *writer) Pusher() http.Pusher { return nil }
