// Package held holds an HTTP response until somebody decides that it may go
// out, and streams what is too large to hold without letting it complete.
//
// What a client may take for a complete response is kept back until Release:
// a response that fits is not sent at all; of a larger one with a declared
// length the last byte stays here; a chunked or HTTP/2 one is completed by
// net/http only after the handler has returned; one whose end is the end of
// the connection (HTTP/1.0) is reset by Abort.
//
// # States
//
// A response is in one of four phases, and its handler has returned or not. No
// arrow leads back.
//
//	 Init                                             PassThrough
//	   |                                                   |
//	   v      too large, Flush, Hijack                     |
//	holding ---------------------------> streaming         |
//	   |  |                                |   |           v
//	   |  +--------------------------------|---+---> passing through
//	   |           Release, Close          |               |
//	   |                                   |               |
//	   +-----------------------------------+---------------+---> hijacked
//	                        Hijack
//
// What becomes of a Write:
//
//	                 while the handler runs     after HandlerDone
//	holding          held                       refused
//	streaming        sent, but for the last     refused
//	                 byte of a declared length
//	passing through  sent                       sent, until net/http has taken
//	                                            the response back
//	hijacked         left to net/http, which    the same
//	                 refuses
//
// After HandlerDone a response that is held ends by Release or by Reset and Close,
// one that streams by Release or by Abort and Close.
//
// # The lock
//
// There is one, Writer.mu. A call decides under it what is to be sent, gives it
// back, sends, and takes it again to note the result: nobody waits for a client
// with it. A method whose name ends in Locked is called with it and keeps it
// throughout. Two methods of the underlying writer are called with it, for the
// reasons at outerHeaderLocked and sendHeaderLocked, and the function given to
// Rewrite. If one of them panics, the lock is given back.
package held

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
)

// ErrReturned is what a Write gets between the return of the handler and the end
// of its response, when nobody can say any more what the bytes would belong to,
// and when net/http has taken the response back.
var ErrReturned = errors.New("sqlreq: write to a response whose handler has returned")

// phase is where a response is.
type phase uint8

const (
	holding        phase = iota // nothing of the final response has left
	streaming                   // the header is out
	passingThrough              // everything goes to the underlying writer
	hijacked                    // the connection belongs to the handler
)

// sniffLen is how many bytes http.DetectContentType looks at.
const sniffLen = 512

// Writer is the http.ResponseWriter handed to a handler. Like net/http's own it
// is meant for one goroutine at a time; calls that break that rule, or come
// after the handler has returned, may fail but never reach another response.
// The zero Writer is not usable: call Init, or get one from PassThrough.
type Writer struct {
	// Set before the handler runs, by Init, DefaultStatus and OwnHeader, and only
	// read from then on: no lock.
	rw            http.ResponseWriter
	req           *http.Request // as net/http knows it
	limit         int           // how many bytes are held
	defaultStatus uint16        // of a Write without a WriteHeader
	ownHeader     bool          // the handler has a header map of its own

	mu sync.Mutex // guards everything below

	// State.
	phase       phase  // see the package comment for who changes it
	handlerDone bool   // turns true exactly once, in HandlerDone or Close
	status      uint16 // 0 until WriteHeader or the first Write; set again by a later error, and by Reset

	// Framing, set with the status.
	length  int64 // declared Content-Length, -1 if there is none
	written int64 // bytes the handler has written, as net/http counts them

	// Header. The map is the handler's to change without the lock; it is changed
	// here in the calls of the handler and, under the lock, at the end.
	header  http.Header // rw's own or, with ownHeader, a map apart; nil until asked for
	before  *snapshot   // of rw's header, from before the handler touched it; freed by Close
	sent    *snapshot   // of the handler's header at WriteHeader; what comes later is not sent
	rewrite func(status int, h http.Header) (dropBody bool)

	// Body.
	body          *body // what is held; taken out when it is sent, nil while there is nothing
	dropBody      bool  // set by rewrite: the body is counted only
	flushWaits    bool  // holding: a Flush came that would complete the response
	chunkedByCopy bool  // holding: ReadFrom copied so much that net/http would have chunked it
	lastByteHeld  bool  // streaming: lastByte waits; set by a Write, cleared by Release or Abort
	lastByte      byte  // of a declared length

	// Two more of the state, where they take no room of their own.
	implicit bool // the status is the 200 of a Write, or Flush, without WriteHeader; set with the status
	stands   bool // an answer of 400 or more was flushed whole; from false to true once, by FlushAnswer
}

// Init makes w hold a response to r, up to limit bytes, for rw.
func (w *Writer) Init(rw http.ResponseWriter, r *http.Request, limit int) {
	w.rw, w.req, w.limit = rw, r, limit
	w.length, w.defaultStatus = -1, http.StatusOK
}

// PassThrough returns a Writer that holds nothing: all goes to rw at once, only
// what Rewrite was given is heeded.
func PassThrough(rw http.ResponseWriter, r *http.Request) *Writer {
	w := new(Writer)
	w.Init(rw, r, 0)
	w.phase = passingThrough
	return w
}

// DefaultStatus sets the status of a Write without a WriteHeader, otherwise 200.
// It is called before the handler runs.
func (w *Writer) DefaultStatus(status int) { w.defaultStatus = uint16(status) }

// Rewrite sets f, which may change the header of a final status before it is
// kept or sent and says whether the body is to be dropped, and returns the
// function that was set before. It must not use w, whose lock is held when it is
// called: status and header change in one step.
func (w *Writer) Rewrite(f func(status int, h http.Header) (dropBody bool)) func(int, http.Header) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	f, w.rewrite = w.rewrite, f
	return f
}

// Status returns the status set so far, 0 if there is none, and, as long as the
// handler runs, whether its response is held or streams.
func (w *Writer) Status() (status int, held, streams bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return int(w.status), w.phase == holding && !w.handlerDone, w.phase == streaming && !w.handlerDone
}

// overLocked reports whether net/http has taken the response back: it cancels the
// request's context when the handler has returned, and then gives the buffer
// of the response to another one, into which a late Write would go. While a
// middleware outside still runs, and with other servers, it is not over.
func (w *Writer) overLocked() bool {
	return w.phase == passingThrough && w.handlerDone && handlerReturned(w.req)
}

// handlerReturned reports whether the handler of r has returned to net/http.
func handlerReturned(r *http.Request) bool {
	ctx := r.Context()
	return ctx.Err() != nil && ctx.Value(http.ServerContextKey) != nil
}

// WriteHeader sets the status, once; a later one of 400 or more replaces what
// is held. 1xx ones (but for 101, which is final) are sent at once.
func (w *Writer) WriteHeader(status int) {
	if w.takeStatus(status) {
		_ = w.outer(func() error {
			w.rw.WriteHeader(status)
			return nil
		})
	}
}

// outer calls the underlying writer for the handler. net/http takes its response
// back when the handler has returned, and may panic then; to look whether it has and
// to call it is not one step. While the handler runs a panic goes on.
func (w *Writer) outer(call func() error) (err error) {
	returned := false
	defer w.recoverLate(&returned, &err)
	err = call()
	returned = true
	return err
}

// recoverLate is deferred.
func (w *Writer) recoverLate(returned *bool, err *error) {
	if *returned || !w.late() {
		return
	}
	if recover() != nil {
		*err = ErrReturned
	}
}

func (w *Writer) late() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.handlerDone
}

// takeStatus reports whether the underlying writer is to be given the status now.
func (w *Writer) takeStatus(status int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch w.phase {
	case holding:
		return !w.handlerDone && w.holdStatusLocked(status)
	case passingThrough:
		if w.overLocked() {
			return false
		}
		if w.rewrite != nil && w.rewrite(status, w.outerHeaderLocked()) {
			w.dropBody = true
		}
	}
	return true // net/http logs a superfluous one
}

// holdStatusLocked keeps a final status, and reports whether it is an early one,
// which is to be sent.
func (w *Writer) holdStatusLocked(status int) (early bool) {
	switch {
	case status < 100 || status > 999:
		if w.status == 0 {
			// net/http panics in WriteHeader; held back, the panic would come after COMMIT.
			panic(fmt.Sprintf("invalid WriteHeader code %v", status))
		}
	case status < 200 && status != http.StatusSwitchingProtocols:
		if w.status != 0 {
			return false
		}
		if w.ownHeader {
			setHeader(w.outerHeaderLocked(), w.header)
		}
		return true
	case w.status == 0:
		w.setStatusLocked(status)
	case status >= 400:
		// The page that broke half-way and then called http.Error.
		w.freeLocked()
		w.written, w.dropBody = 0, false
		w.setStatusLocked(status)
	}
	return false
}

func (w *Writer) setStatusLocked(status int) {
	if status == http.StatusRequestEntityTooLarge && w.req.ProtoMajor == 1 {
		// http.MaxBytesReader tells net/http's own writer to close the connection
		// by a method that cannot be written outside of net/http.
		w.headerLocked().Set("Connection", "close")
	}
	w.status, w.implicit, w.length = uint16(status), false, -1
	if w.header == nil {
		return
	}
	if w.rewrite != nil {
		w.dropBody = w.rewrite(status, w.header)
	}
	w.frameLocked()
}

// implyStatusLocked sets the status of a Write, or Flush, without WriteHeader. A 200
// stays implicit for the writers outside: some find the type out then.
func (w *Writer) implyStatusLocked() {
	w.setStatusLocked(int(w.defaultStatus))
	w.implicit = w.status == http.StatusOK
}
