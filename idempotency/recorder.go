package idempotency

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"time"
)

// recorder is the writer of a handler whose answer is recorded. It passes everything on,
// and keeps what the handler has answered. It has no Unwrap, which would be a way
// around it.
//
// Like net/http's own it is meant for one goroutine at a time. A call that comes after
// the handler has returned is refused: it would not be in the record.
type recorder struct {
	// Set before the handler runs, only read from then on: no lock.
	rw     http.ResponseWriter
	req    *http.Request
	limit  int64
	before http.Header // of the layers outside; nil if it was empty
	call   *call       // has its answer recorded before the connection is hijacked

	mu       sync.Mutex // guards what follows, never while rw is called
	status   int        // 0 until WriteHeader, or the first Write
	header   []byte     // of the row; nil until the status is set
	trailers []string   // declared with the status
	early    []string   // set with the status, by http.TrailerPrefix
	body     []byte     // up to limit
	lost     bool       // the body is not kept: too large, or a Write has failed
	flushed  bool       // the header has left
	returned bool       // the handler has returned
	hijack   hijack
}

// hijack says whether the connection is the handler's.
type hijack uint8

const (
	notHijacked hijack = iota
	hijacking          // the record is written, the connection is asked for
	hijacked
)

var errReturned = errors.New("idempotency: write to a response whose handler has returned")

func (rec *recorder) init(w http.ResponseWriter, r *http.Request, limit int64) {
	rec.rw, rec.req, rec.limit = w, r, limit
	if h := w.Header(); len(h) > 0 {
		rec.before = h.Clone()
	}
}

// Header returns the header map of the response.
func (rec *recorder) Header() http.Header { return rec.rw.Header() }

// WriteHeader sets the status. A later one of 400 or more replaces the answer, as far
// as sqlreq holds it still.
func (rec *recorder) WriteHeader(status int) {
	if rec.takeStatus(status, false, rec.rw.Header()) {
		rec.rw.WriteHeader(status)
	}
}

// takeStatus keeps a final status and the header that goes with it. It reports whether
// the call is to be passed on.
func (rec *recorder) takeStatus(status int, implicit bool, h http.Header) bool {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	switch {
	case rec.returned:
		return false
	case rec.hijack == hijacked, status < 200 && status != http.StatusSwitchingProtocols:
		return true // an early one decides nothing
	case status > 999:
		return true // it is none: net/http panics
	case rec.status != 0 && status < 400:
		return true // superfluous
	}
	rec.setStatus(status, implicit, h)
	return true
}

// setStatus begins a new answer. The caller holds rec.mu.
func (rec *recorder) setStatus(status int, implicit bool, h http.Header) {
	flags := byte(0)
	if implicit {
		flags = flagImplicit
	}
	rec.status, rec.body, rec.lost = status, nil, false
	rec.header = appendChanges(newHeader(flags), rec.before, h)
	rec.trailers, rec.early = declaredTrailers(h), nil
	for name := range h {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			rec.early = append(rec.early, name)
		}
	}
}

// appendChanges appends what leads from the header of the layers outside to h.
func appendChanges(b []byte, before, h http.Header) []byte {
	for name, values := range h {
		was, ok := before[name]
		switch {
		case isOfConnection(name), strings.HasPrefix(name, http.TrailerPrefix), !isToken(name):
		case !ok:
			b = appendField(b, fieldSet, name, values)
		case slices.Equal(was, values):
		case len(values) > len(was) && slices.Equal(was, values[:len(was)]):
			b = appendField(b, fieldAdd, name, values[len(was):])
		default:
			b = appendField(b, fieldSet, name, values)
		}
	}
	for name := range before {
		if _, ok := h[name]; !ok && !isOfConnection(name) {
			b = appendField(b, fieldDelete, name, nil)
		}
	}
	return b
}

// isOfConnection reports whether a field belongs to the connection, or to the moment of
// the answer, and so to each repeat itself (RFC 9110, section 7.6.1).
func isOfConnection(name string) bool {
	switch name {
	case "Connection", "Date", "Keep-Alive", "Proxy-Connection", "Te", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

func declaredTrailers(h http.Header) (names []string) {
	for _, line := range h["Trailer"] {
		for name := range strings.SplitSeq(line, ",") {
			names = append(names, textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)))
		}
	}
	return names
}

// Write writes to the response.
func (rec *recorder) Write(p []byte) (int, error) {
	if err := rec.keep(p, "", rec.rw.Header()); err != nil {
		return 0, err
	}
	n, err := rec.rw.Write(p)
	rec.noteError(err)
	return n, err
}

// WriteString is Write for a string.
func (rec *recorder) WriteString(s string) (int, error) {
	if err := rec.keep(nil, s, rec.rw.Header()); err != nil {
		return 0, err
	}
	n, err := io.WriteString(rec.rw, s)
	rec.noteError(err)
	return n, err
}

// keep keeps a part of the body.
func (rec *recorder) keep(p []byte, s string, h http.Header) error {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.returned && rec.hijack != hijacked {
		return errReturned
	}
	if rec.status == 0 {
		rec.setStatus(http.StatusOK, true, h)
	}
	n := len(p) + len(s)
	switch {
	case rec.lost, rec.hijack == hijacked, !bodyAllowed(rec.status):
	case int64(len(rec.body)+n) > rec.limit:
		rec.lose()
	default:
		rec.body = grow(rec.body, n, rec.limit)
		rec.body = append(append(rec.body, p...), s...)
	}
	return nil
}

// bodyAllowed is that of net/http (RFC 9110, section 6.4.1).
func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// lose gives the body up. The caller holds rec.mu.
func (rec *recorder) lose() { rec.lost, rec.body = true, nil }

// noteError gives the body up after a Write that has failed: the handler may have left
// something out because of it.
func (rec *recorder) noteError(err error) {
	if err == nil || errors.Is(err, http.ErrBodyNotAllowed) {
		return
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.lose()
}

// ReadFrom copies src into the response. What cannot be kept any more is left to the
// writer below, for sendfile.
func (rec *recorder) ReadFrom(src io.Reader) (n int64, err error) {
	if room := rec.room(); room > 0 {
		n, err = io.Copy(writerOnly{rec}, io.LimitReader(src, room))
		if err != nil || n < room {
			return n, err
		}
	}
	if err := rec.keep(nil, "", rec.rw.Header()); err != nil {
		return n, err
	}
	m, err := io.Copy(rec.rw, src)
	rec.noteError(err)
	return n + m, err
}

// writerOnly hides ReadFrom from io.Copy.
type writerOnly struct{ io.Writer }

// room is how many bytes are to be looked at before it is known that the body is too
// large to keep; 0 if it is not kept anyway.
func (rec *recorder) room() int64 {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.lost || rec.hijack == hijacked || rec.status != 0 && !bodyAllowed(rec.status) {
		return 0
	}
	return min(rec.limit, math.MaxInt64-1) + 1 - int64(len(rec.body))
}

// Flush is FlushError for http.Flusher.
func (rec *recorder) Flush() { _ = rec.FlushError() }

// FlushError sends what is there.
func (rec *recorder) FlushError() error {
	h := rec.rw.Header()
	early := rec.untouched()
	if err := rec.keep(nil, "", h); err != nil {
		return err
	}
	err := http.NewResponseController(rec.rw).Flush()
	rec.noteFlush(h, early, err)
	return err
}

// untouched reports whether no status is set yet.
func (rec *recorder) untouched() bool {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return rec.status == 0
}

// noteFlush keeps what the Content-Type is when the header leaves without one: net/http
// finds it out by what there is of the body, and a repeat has all of it.
func (rec *recorder) noteFlush(h http.Header, early bool, err error) {
	_, typed := h["Content-Type"]
	typed = typed || h.Get("Content-Encoding") != "" // then net/http finds out nothing
	rec.mu.Lock()
	defer rec.mu.Unlock()
	switch {
	case err != nil && early:
		rec.status = 0 // nothing has left: another status may follow
		return
	case err != nil:
		return
	}
	if !typed && !rec.flushed && !rec.lost && bodyAllowed(rec.status) {
		rec.header = appendField(rec.header, fieldSet, "Content-Type", rec.sniffed())
	}
	rec.flushed = true
}

// sniffed returns the Content-Type that is found out by the body as far as it goes, none
// if there is nothing of it.
func (rec *recorder) sniffed() []string {
	if len(rec.body) == 0 {
		return nil
	}
	return []string{http.DetectContentType(rec.body)}
}

// SetReadDeadline is that of http.ResponseController.
func (rec *recorder) SetReadDeadline(t time.Time) error {
	return http.NewResponseController(rec.rw).SetReadDeadline(t)
}

// SetWriteDeadline is that of http.ResponseController.
func (rec *recorder) SetWriteDeadline(t time.Time) error {
	return http.NewResponseController(rec.rw).SetWriteDeadline(t)
}

// EnableFullDuplex is that of http.ResponseController.
func (rec *recorder) EnableFullDuplex() error {
	return http.NewResponseController(rec.rw).EnableFullDuplex()
}

// CloseNotify is the old way to learn that the client has gone.
func (rec *recorder) CloseNotify() <-chan bool {
	if n, ok := rec.rw.(interface{ CloseNotify() <-chan bool }); ok {
		return n.CloseNotify()
	}
	c := make(chan bool, 1)
	context.AfterFunc(rec.req.Context(), func() { c <- true })
	return c
}

// Hijack takes the connection over. What was done is committed by it, and recorded as
// something whose answer was not kept.
func (rec *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if rec.isHijacked() {
		return http.NewResponseController(rec.rw).Hijack() // says that it is
	}
	rec.setHijack(hijacking)
	if err := rec.call.recordAnswer(); err != nil {
		rec.setHijack(notHijacked)
		return nil, nil, err
	}
	conn, buf, err := http.NewResponseController(rec.rw).Hijack()
	if err != nil {
		rec.setHijack(notHijacked)
		return nil, nil, err
	}
	rec.setHijack(hijacked)
	rec.call.flight.land() // the record is there, and the connection may live for hours
	return conn, buf, nil
}

func (rec *recorder) isHijacked() bool {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return rec.hijack == hijacked
}

func (rec *recorder) setHijack(h hijack) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.hijack = h
}

// handlerDone ends the answer, and returns its status.
func (rec *recorder) handlerDone() (status int, isHijacked bool) {
	h := rec.rw.Header()
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.returned = true
	if rec.hijack == hijacked {
		return rec.status, true
	}
	if rec.status == 0 {
		rec.setStatus(http.StatusOK, true, h)
	}
	for name, values := range h {
		switch {
		case rec.isEarly(name):
			rec.header = appendField(rec.header, fieldEarly, name, values)
		case strings.HasPrefix(name, http.TrailerPrefix), slices.Contains(rec.trailers, name):
			rec.header = appendField(rec.header, fieldTrailer, name, values)
		}
	}
	return rec.status, false
}

// isEarly reports whether an answer, however short, has a trailer of the name though it
// was not declared: it was set with the status, or the header left before the end.
func (rec *recorder) isEarly(name string) bool {
	return slices.Contains(rec.early, name) || rec.flushed && strings.HasPrefix(name, http.TrailerPrefix)
}

// row returns what is to be recorded. ok is false as long as the handler may still
// answer: it has not returned, and does not hijack the connection.
func (rec *recorder) row(fingerprint []byte) (r row, ok bool) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if !rec.returned && rec.hijack == notHijacked {
		return row{}, false
	}
	r = row{status: rec.status, fingerprint: fingerprint, header: rec.header, body: rec.body}
	if rec.hijack != notHijacked || rec.lost {
		if r.status == 0 {
			r.status = http.StatusSwitchingProtocols // sent by the handler itself, most likely
		}
		r.status, r.header, r.body = -r.status, newHeader(0), nil
	}
	r.seal()
	return r, true
}
