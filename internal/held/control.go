package held

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"time"
)

// Flush is FlushError for http.Flusher.
func (w *Writer) Flush() { _ = w.FlushError() }

// FlushError sends what is there, except that what would complete the response
// waits: the header of one without a body, the last byte of a declared length.
func (w *Writer) FlushError() error { return w.flush(false) }

// FlushAnswer is FlushError for a program that says that nothing which follows can
// make an answer of 400 or more a success: all of it is sent, its end too, and it
// stands, also if the handler does not return. Others are flushed as ever.
func (w *Writer) FlushAnswer() error { return w.flush(true) }

func (w *Writer) flush(answer bool) error {
	starts, waits, err := w.startFlush(answer)
	if waits || err != nil {
		return err
	}
	if starts {
		if err := w.sendHeld(); err != nil {
			return err
		}
	}
	if w.answered() {
		w.sendLastByte()
	}
	return w.outer(http.NewResponseController(w.rw).Flush)
}

// answered reports whether FlushAnswer has been called for an answer of 400 or more.
func (w *Writer) answered() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stands
}

// startFlush reports whether the response starts with the Flush, and whether the
// Flush has to wait.
func (w *Writer) startFlush(answer bool) (starts, waits bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.refusedLocked(); err != nil {
		return false, false, err
	}
	switch {
	case w.undecidedLocked() && !canFlush(w.rw):
		return false, false, http.ErrNotSupported
	case w.phase != holding:
		w.stands = w.stands || answer && w.phase == streaming && w.status >= 400
		return false, false, nil
	}
	if w.status == 0 {
		w.implyStatusLocked()
	}
	w.adoptOuterHeaderLocked()
	if answer && w.status >= 400 {
		w.stands = true
	} else if !w.bodyWantedLocked() || w.length >= 0 && w.written >= w.length {
		w.flushWaits = true
		return false, true, nil
	}
	w.startLocked()
	return true, false, nil
}

func canFlush(rw http.ResponseWriter) bool {
	return implements[http.Flusher](rw) || implements[interface{ FlushError() error }](rw)
}

// implements looks for T as http.ResponseController does.
func implements[T any](rw http.ResponseWriter) bool {
	for {
		if _, ok := rw.(T); ok {
			return true
		}
		u, ok := rw.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return false
		}
		rw = u.Unwrap()
	}
}

// answerable returns an error if the handler has returned, but its response is
// not over, or is that of another attempt.
func (w *Writer) answerable() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.overLocked() || w.handlerDone && w.phase != passingThrough {
		return ErrReturned
	}
	return nil
}

// SetReadDeadline is that of http.ResponseController.
func (w *Writer) SetReadDeadline(t time.Time) error {
	if err := w.answerable(); err != nil {
		return err
	}
	return w.outer(func() error { return http.NewResponseController(w.rw).SetReadDeadline(t) })
}

// SetWriteDeadline is that of http.ResponseController.
func (w *Writer) SetWriteDeadline(t time.Time) error {
	if err := w.answerable(); err != nil {
		return err
	}
	return w.outer(func() error { return http.NewResponseController(w.rw).SetWriteDeadline(t) })
}

// EnableFullDuplex is that of http.ResponseController.
func (w *Writer) EnableFullDuplex() error {
	if err := w.answerable(); err != nil {
		return err
	}
	return w.outer(http.NewResponseController(w.rw).EnableFullDuplex)
}

// CloseNotify is the old way of gin and others to learn that the client has
// gone. Without support below, the end of the request's context tells.
func (w *Writer) CloseNotify() (c <-chan bool) {
	n, ok := w.rw.(interface{ CloseNotify() <-chan bool })
	if ok && w.answerable() == nil {
		_ = w.outer(func() error {
			c = n.CloseNotify()
			return nil
		})
	}
	if c != nil {
		return c
	}
	gone := make(chan bool, 1)
	context.AfterFunc(w.req.Context(), func() { gone <- true })
	return gone
}

// Hijack takes the connection over at once.
func (w *Writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.HijackAfter(func(int) error { return nil })
}

// HijackAfter takes the connection over if that is possible and before, which
// is given the status set so far, succeeds. The header set so far, a 101 in
// particular, goes out first.
func (w *Writer) HijackAfter(before func(status int) error) (net.Conn, *bufio.ReadWriter, error) {
	status, err := w.canHijack()
	if err != nil {
		return nil, nil, err
	}
	if err := before(status); err != nil {
		return nil, nil, err
	}
	starts, flushes, err := w.startHijack()
	if err != nil {
		return nil, nil, err
	}
	if starts {
		if err := w.sendHeld(); err != nil {
			return nil, nil, err
		}
	}
	if w.sendLastByte() || flushes { // net/http's Hijack drops what is in its buffers
		_ = w.outer(http.NewResponseController(w.rw).Flush)
	}
	var conn net.Conn
	var rw *bufio.ReadWriter
	if err := w.outer(func() (err error) {
		conn, rw, err = http.NewResponseController(w.rw).Hijack()
		return err
	}); err != nil {
		return nil, nil, err
	}
	w.noteHijacked()
	return conn, rw, nil
}

// canHijack returns the status set so far.
func (w *Writer) canHijack() (status int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.phase == hijacked:
		return 0, http.ErrHijacked
	case w.handlerDone:
		return 0, ErrReturned // net/http panics here
	case w.req.ProtoMajor >= 2 && w.req.Method != "PRI", !implements[http.Hijacker](w.rw):
		// Of HTTP/2 also if a writer outside has the method, which can only fail. "PRI * HTTP/2.0" is
		// the preface of a client that begins with HTTP/2 (RFC 9113, section 3.4): net/http hands it out as
		// a request on a connection of HTTP/1, which h2c takes over.
		return 0, http.ErrNotSupported
	}
	return int(w.status), nil
}

// startHijack starts the response if a status was set, and reports that, and whether
// a Flush has waited.
func (w *Writer) startHijack() (starts, flushes bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.handlerDone:
		return false, false, ErrReturned // while the caller's function ran
	case w.phase == holding && w.status != 0:
		w.implicit = false // there may be no byte to write that would tell
		w.adoptOuterHeaderLocked()
		w.startLocked()
		return true, w.flushWaits, nil
	}
	return false, false, nil
}

// noteHijacked notes that the connection belongs to the handler.
func (w *Writer) noteHijacked() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.phase = hijacked
	w.freeLocked()
}
