// Package held holds an HTTP response until somebody decides that it may go
// out, and streams what is too large to hold without letting it complete.
//
// What a client may take for a complete response is kept back until Release:
// a response that fits is not sent at all; of a larger one with a declared
// length the last byte stays here; a chunked or HTTP/2 one is completed by
// net/http only after the handler has returned; one whose end is the end of
// the connection (HTTP/1.0 without a length) is reset by Abort.
package held

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ErrReturned is what a Write gets between the return of the handler and the end
// of its response, when nobody can say any more what the bytes would belong to,
// and when net/http has taken the response back.
var ErrReturned = errors.New("sqlreq: write to a response whose handler has returned")

type phase uint8

const (
	holding   phase = iota // nothing of the final response has left
	streaming              // the header is out
	hijacked
	passing // everything goes to the underlying writer
)

// sniffLen is how many bytes http.DetectContentType looks at.
const sniffLen = 512

// Writer is the http.ResponseWriter handed to a handler. Like net/http's own it
// is meant for one goroutine at a time; calls that break that rule, or come
// after the handler has returned, may fail but never reach another response.
// The zero Writer is not usable: call Init, or get one from PassThrough.
type Writer struct {
	mu    sync.Mutex // guards what follows; not held while the client is waited for
	rw    http.ResponseWriter
	req   *http.Request // as net/http knows it
	limit int

	rewrite func(status int, h http.Header) (dropBody bool)

	header http.Header // the handler's: rw's own or, with OwnHeader, a map apart; nil until asked for
	base   *snapshot   // rw's header before the handler touched it
	sent   *snapshot   // the handler's header at WriteHeader; what comes later is not sent
	body   *body

	length  int64 // declared Content-Length, -1 if there is none
	written int64 // bytes the handler has written, as net/http counts them

	status        uint16 // 0 until WriteHeader or the first Write
	defaultStatus uint16 // the status of a Write without WriteHeader
	phase         phase
	handlerDone   bool // the handler has returned
	ownHeader     bool
	dropBody      bool
	lastByteHeld  bool // lastByte is the last byte of a declared length
	flushed       bool // a Flush waits: for a GET the header would be out
	chunkedByCopy bool // by ReadFrom, so much that net/http would have chunked it
	lastByte      byte
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
	w.phase = passing
	return w
}

// OwnHeader gives the handler a header map of its own, so that one that goes on
// writing to it after its attempt cannot meet the map of the next.
func (w *Writer) OwnHeader() {
	h := w.rw.Header()
	w.base = take(h)
	w.header = h.Clone()
	if w.header == nil {
		w.header = make(http.Header)
	}
	w.ownHeader = true
}

// DefaultStatus sets the status of a Write without a WriteHeader, otherwise 200.
func (w *Writer) DefaultStatus(status int) { w.defaultStatus = uint16(status) }

// Rewrite sets f, which may change the header of a final status before it is
// kept or sent and says whether the body is to be dropped, and returns the
// function that was set before.
func (w *Writer) Rewrite(f func(status int, h http.Header) (dropBody bool)) func(int, http.Header) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	f, w.rewrite = w.rewrite, f
	return f
}

// over reports whether net/http has taken the response back: it cancels the
// request's context when the handler has returned, and then gives the buffer
// of the response to another one, into which a late Write would go. While a
// middleware outside still runs, and with other servers, it is not over.
func (w *Writer) over() bool { return w.handlerDone && w.phase == passing && w.taken() }

func (w *Writer) taken() bool {
	ctx := w.req.Context()
	return ctx.Err() != nil && ctx.Value(http.ServerContextKey) != nil
}

// Header returns the header map that will be sent by WriteHeader.
func (w *Writer) Header() http.Header {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.phase == passing && !w.ownHeader {
		return w.rw.Header()
	}
	return w.headerLocked()
}

// headerLocked asks the underlying writer for its header only when somebody
// wants it: net/http clones a header that was asked for.
func (w *Writer) headerLocked() http.Header {
	if w.header == nil {
		w.header = w.rw.Header()
		if len(w.header) > 0 {
			w.base = take(w.header)
		}
		if w.status != 0 && w.phase == holding {
			w.sent = take(w.header) // nobody can have changed it since WriteHeader
		}
	}
	return w.header
}

// WriteHeader sets the status, once; a later one of 400 or more replaces what
// is held. 1xx ones (but for 101, which is final) are sent at once.
func (w *Writer) WriteHeader(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over() {
		return
	}
	if w.phase != holding {
		if w.phase == passing && w.rewrite != nil && w.rewrite(status, w.rw.Header()) {
			w.dropBody = true
		}
		w.unlocked(func() { w.rw.WriteHeader(status) })
		return
	}
	if status < 100 || status > 999 {
		if w.status == 0 && !w.handlerDone {
			// net/http panics in WriteHeader; held back, the panic would come after COMMIT.
			panic(fmt.Sprintf("invalid WriteHeader code %v", status))
		}
		return
	}
	switch {
	case w.handlerDone:
	case status < 200 && status != http.StatusSwitchingProtocols:
		if w.status == 0 {
			if w.ownHeader {
				replace(w.rw.Header(), w.header)
			}
			w.rw.WriteHeader(status)
		}
	case w.status == 0:
		w.setStatus(status)
	case status >= 400:
		// The page that broke half-way and then called http.Error.
		w.body.free()
		w.sent.free()
		w.body, w.sent, w.written, w.dropBody = nil, nil, 0, false
		w.setStatus(status)
	}
}

func (w *Writer) setStatus(status int) {
	if status == http.StatusRequestEntityTooLarge && w.req.ProtoMajor == 1 {
		// http.MaxBytesReader tells net/http's own writer to close the connection
		// by a method that cannot be written outside of net/http.
		w.headerLocked().Set("Connection", "close")
	}
	w.status, w.length = uint16(status), -1
	if w.header == nil {
		return
	}
	if w.rewrite != nil {
		w.dropBody = w.rewrite(status, w.header)
	}
	w.frame()
}

// frame makes the header one whose response can be kept from completing, and
// takes the snapshot that is sent.
func (w *Writer) frame() {
	h := w.header
	w.sent.free()
	w.sent = snapshots.Get().(*snapshot)
	for k, v := range h {
		switch {
		case len(k) != len("Transfer-Encoding") && len(k) != len("Content-Length"): // most
		case strings.EqualFold(k, "Transfer-Encoding"):
			// With "identity" the end of the connection would be the end of the
			// response, and an aborted one look complete (RFC 9112, section 6.3).
			delete(h, k)
			continue
		case strings.EqualFold(k, "Content-Length"):
			if !w.declare(k, v) {
				delete(h, k)
				continue
			}
		}
		w.sent.add(k, v...)
	}
}

// declare takes the length from a header field. An invalid one is dropped, as
// net/http does, but for HTTP/1.0; another spelling of its name net/http would
// send as it is.
func (w *Writer) declare(key string, values []string) bool {
	if key != "Content-Length" || len(values) == 0 {
		return false
	}
	n, err := strconv.ParseInt(values[0], 10, 64)
	if err != nil || n < 0 {
		return false
	}
	w.length = n
	return true
}

// adoptOuterHeader sees to the framing before a response streams whose handler never asked
// for the header: a middleware outside may have declared a length.
func (w *Writer) adoptOuterHeader() {
	if w.header == nil && w.status != 0 && !w.handlerDone {
		w.headerLocked()
		w.frame()
	}
}

// Write holds p, or sends it when the response is streaming.
func (w *Writer) Write(p []byte) (int, error) { return w.write(p, "") }

// WriteString is Write for a string.
func (w *Writer) WriteString(s string) (int, error) { return w.write(nil, s) }

func (w *Writer) write(p []byte, s string) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(p) + len(s)
	switch {
	case w.phase == passing || w.phase == hijacked:
		return w.passLocked(p, s)
	case w.handlerDone:
		return 0, ErrReturned
	}
	if w.status == 0 {
		w.setStatus(int(w.defaultStatus))
	}
	if n == 0 {
		return 0, nil
	}
	if !bodyAllowed(w.status) {
		return 0, http.ErrBodyNotAllowed
	}
	w.written += int64(n) // also if refused: net/http counts likewise
	hold := w.phase == holding && w.fits(n)
	if w.phase == holding && !hold {
		w.adoptOuterHeader()
	}
	if w.length >= 0 && w.written > w.length && !w.dropBody {
		return 0, http.ErrContentLength
	}
	if hold {
		if err := w.hold(p, s, n); err != nil {
			return 0, err
		}
		return n, nil
	}
	if w.phase == holding {
		if err := w.startLocked(); err != nil {
			return 0, err
		}
	}
	return w.streamLocked(p, s)
}

// passLocked hands on what is written when there is nothing to hold any more.
func (w *Writer) passLocked(p []byte, s string) (n int, err error) {
	switch {
	case w.over():
		return 0, ErrReturned
	case w.dropBody:
		return len(p) + len(s), nil
	}
	w.unlocked(func() { n, err = w.pass(p, s) })
	return n, err
}

// streamLocked sends all but the last byte of a declared length.
func (w *Writer) streamLocked(p []byte, s string) (n int, err error) {
	if w.length < 0 || w.written < w.length {
		w.unlocked(func() { n, err = w.pass(p, s) })
		return n, err
	}
	rest := len(p) + len(s) - 1
	w.lastByteHeld = true
	if p != nil {
		w.lastByte, p = p[rest], p[:rest]
	} else {
		w.lastByte, s = s[rest], s[:rest]
	}
	if rest > 0 {
		w.unlocked(func() { n, err = w.pass(p, s) })
		if err != nil {
			return n, err
		}
	}
	return rest + 1, nil
}

// unlocked runs f, about the underlying writer, without the lock, and takes it
// again, also if f panics.
func (w *Writer) unlocked(f func()) {
	w.mu.Unlock()
	defer w.mu.Lock()
	f()
}

// fits reports whether n more bytes can be kept here, or need not be kept at all.
func (w *Writer) fits(n int) bool {
	return w.dropBody || w.req.Method == http.MethodHead || w.body.length()+n <= w.limit
}

// hold keeps the bytes.
func (w *Writer) hold(p []byte, s string, n int) error {
	if w.dropBody {
		return nil
	}
	if w.req.Method == http.MethodHead {
		// Counted for the length and kept as far as the type is sniffed from it.
		if n = min(n, sniffLen-w.body.length()); n == 0 || w.flushed {
			return nil
		}
		if p != nil {
			p = p[:n]
		} else {
			s = s[:n]
		}
	}
	if w.body == nil {
		w.body = newBody(max(w.limit, sniffLen))
	}
	return w.body.append(p, s)
}

// startLocked sends the header and what was held, and goes over to streaming.
// It gives up the lock while the client is waited for.
func (w *Writer) startLocked() error {
	w.phase = streaming
	w.sendHeaderLocked()
	body := w.body
	w.body = nil
	if body == nil {
		return nil
	}
	var err error
	w.unlocked(func() { err = body.writeTo(w.rw) })
	body.free()
	return err
}

// sendHeaderLocked hands the status and the header of that moment to the
// underlying writer. Whatever the handler changed since stays in the map, where
// net/http looks for the values of trailers when the handler has returned.
func (w *Writer) sendHeaderLocked() {
	switch {
	case w.sent == nil: // the handler never asked for the header
		w.rw.WriteHeader(int(w.status))
	case w.ownHeader:
		w.sent.restore(w.rw.Header())
		w.rw.WriteHeader(int(w.status))
	case w.sent.equal(w.header):
		w.rw.WriteHeader(int(w.status))
	default:
		later := w.header.Clone()
		w.sent.restore(w.header)
		w.rw.WriteHeader(int(w.status))
		w.sent.change(w.header, later)
	}
}

func (w *Writer) pass(p []byte, s string) (int, error) {
	if p != nil || s == "" {
		return w.rw.Write(p)
	}
	return io.WriteString(w.rw, s)
}

// writerOnly hides ReadFrom from io.Copy.
type writerOnly struct{ io.Writer }

// ReadFrom copies src into the response. A response larger than the limit is
// handed to the underlying writer, for sendfile, all but the last byte of a
// declared length.
func (w *Writer) ReadFrom(src io.Reader) (n int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.phase == holding && !w.handlerDone {
		hold := w.holdFrom(src)
		if hold == 0 {
			if w.bodyWanted() {
				if err := w.startLocked(); err != nil {
					return n, err
				}
				break
			}
			hold = math.MaxInt64
		}
		m, err := w.copyLocked(writerOnly{w}, io.LimitReader(src, hold))
		n += m
		w.chunkedByCopy = w.chunkedByCopy || n >= sniffLen
		if err != nil || m < hold {
			return n, err
		}
	}
	var m int64
	switch {
	case w.over(), w.handlerDone && (w.phase == holding || w.phase == streaming):
		return n, ErrReturned
	case w.phase == passing && w.dropBody:
		m, err = w.copyLocked(io.Discard, src)
	case w.phase == streaming && w.length >= 0:
		m, err = w.copyLimitedLocked(src, w.length-w.written-1)
		if err == nil {
			n += m
			m, err = w.copyLocked(writerOnly{w}, src) // the last byte, and too many
		}
	default:
		m, err = w.copyLocked(w.rw, src)
		w.written += m
	}
	return n + m, err
}

// copyLocked copies without the lock, which the caller holds.
func (w *Writer) copyLocked(dst io.Writer, src io.Reader) (n int64, err error) {
	w.unlocked(func() { n, err = io.Copy(dst, src) })
	return n, err
}

// bodyWanted reports whether the protocol sends a body for this response.
func (w *Writer) bodyWanted() bool {
	return w.req.Method != http.MethodHead && bodyAllowed(w.status) && !w.dropBody
}

// holdFrom says how many bytes of src to read into memory before the response
// may stream: enough for the type to be sniffed and for src to have proved
// readable (golang.org/issue/5660), and all that fits if the rest may fit too.
func (w *Writer) holdFrom(src io.Reader) int64 {
	room := int64(w.limit) + 1 - int64(w.body.length())
	if w.status == 0 {
		return min(room, sniffLen+1)
	}
	w.adoptOuterHeader()
	if !w.bodyWanted() {
		return 0
	}
	size := int64(-1)
	if w.length >= 0 {
		size = w.length - w.written
	}
	if l, ok := src.(*io.LimitedReader); ok && (size < 0 || l.N < size) {
		size = l.N
	}
	if size >= room {
		return 0
	}
	return room
}

// copyLimitedLocked copies at most room bytes of src by the underlying writer,
// without the lock. It looks into an io.LimitedReader as net does: one in another
// would keep it from seeing the file.
func (w *Writer) copyLimitedLocked(src io.Reader, room int64) (int64, error) {
	if room <= 0 {
		return 0, nil
	}
	part := io.LimitedReader{R: src, N: room}
	outer, ok := src.(*io.LimitedReader)
	if ok {
		part.R, part.N = outer.R, min(outer.N, room)
	}
	before := part.N
	n, err := w.copyLocked(w.rw, &part)
	if ok {
		outer.N -= before - part.N
	}
	w.written += n
	return n, err
}

// Flush is FlushError for http.Flusher.
func (w *Writer) Flush() { _ = w.FlushError() }

// FlushError sends what is there, except that what would complete the response
// waits: the header of one without a body, the last byte of a declared length.
func (w *Writer) FlushError() error {
	if waits, err := w.startFlush(); waits || err != nil {
		return err
	}
	return http.NewResponseController(w.rw).Flush()
}

// startFlush reports whether the Flush has to wait, and starts to stream if not.
func (w *Writer) startFlush() (waits bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.phase == holding || w.phase == streaming || w.over() {
		if w.handlerDone {
			return false, ErrReturned
		}
		if !implements[http.Flusher](w.rw) && !implements[interface{ FlushError() error }](w.rw) {
			return false, http.ErrNotSupported
		}
	}
	if w.phase != holding {
		return false, nil
	}
	if w.status == 0 {
		w.setStatus(int(w.defaultStatus))
	}
	w.adoptOuterHeader()
	if !w.bodyWanted() || w.length >= 0 && w.written >= w.length {
		w.flushed = true
		return true, nil
	}
	return false, w.startLocked()
}

// answerable returns an error if the handler has returned, but its response is
// not over, or is that of another attempt.
func (w *Writer) answerable() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over() || w.handlerDone && w.phase != passing {
		return ErrReturned
	}
	return nil
}

// SetReadDeadline is that of http.ResponseController.
func (w *Writer) SetReadDeadline(t time.Time) error {
	if err := w.answerable(); err != nil {
		return err
	}
	return http.NewResponseController(w.rw).SetReadDeadline(t)
}

// SetWriteDeadline is that of http.ResponseController.
func (w *Writer) SetWriteDeadline(t time.Time) error {
	if err := w.answerable(); err != nil {
		return err
	}
	return http.NewResponseController(w.rw).SetWriteDeadline(t)
}

// EnableFullDuplex is that of http.ResponseController.
func (w *Writer) EnableFullDuplex() error {
	if err := w.answerable(); err != nil {
		return err
	}
	return http.NewResponseController(w.rw).EnableFullDuplex()
}

// CloseNotify is the old way of gin and others to learn that the client has
// gone. Without support below, the end of the request's context tells.
func (w *Writer) CloseNotify() <-chan bool {
	if n, ok := w.rw.(interface{ CloseNotify() <-chan bool }); ok {
		return n.CloseNotify()
	}
	c := make(chan bool, 1)
	context.AfterFunc(w.req.Context(), func() { c <- true })
	return c
}

// Hijack takes the connection over at once.
func (w *Writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.HijackAfter(func(int) error { return nil })
}

// HijackAfter takes the connection over if that is possible and before, which
// is given the status set so far, succeeds. The header set so far, a 101 in
// particular, goes out first.
func (w *Writer) HijackAfter(before func(status int) error) (net.Conn, *bufio.ReadWriter, error) {
	if err := w.canHijack(); err != nil {
		return nil, nil, err
	}
	w.mu.Lock()
	status := int(w.status)
	w.mu.Unlock()
	if err := before(status); err != nil {
		return nil, nil, err
	}
	if err := w.startHijack(); err != nil {
		return nil, nil, err
	}
	conn, rw, err := http.NewResponseController(w.rw).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.mu.Lock()
	w.phase = hijacked
	w.freeLocked()
	w.mu.Unlock()
	return conn, rw, nil
}

// startHijack sends a status that was set.
func (w *Writer) startHijack() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.handlerDone:
		return ErrReturned
	case w.phase == holding && w.status != 0:
		return w.startLocked()
	}
	return nil
}

func (w *Writer) canHijack() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.phase == hijacked:
		return http.ErrHijacked
	case w.handlerDone:
		return ErrReturned // net/http panics here
	case !implements[http.Hijacker](w.rw):
		return http.ErrNotSupported
	}
	return nil
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

// State is what the end of a request is decided by.
type State struct {
	Status   int  // 200 if none was set
	Held     bool // nothing but 1xx responses has left
	Hijacked bool
}

// HandlerDone ends the handler's part: nothing can be added to the response any more.
func (w *Writer) HandlerDone() State {
	w.mu.Lock()
	w.handlerDone = true
	s := State{Status: int(w.status), Held: w.phase == holding, Hijacked: w.phase == hijacked}
	if s.Status == 0 {
		s.Status = int(w.defaultStatus)
	}
	w.mu.Unlock()
	return s
}

// Untouched reports whether neither a status nor a byte was written.
func (w *Writer) Untouched() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.phase == holding && w.status == 0
}

// SentHeader returns the header that goes with the status, to look at.
func (w *Writer) SentHeader() http.Header {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sent != nil && !w.sent.equal(w.header) {
		h := make(http.Header)
		w.sent.restore(h)
		return h
	}
	return w.headerLocked()
}

// Release lets the response complete, and closes w. HandlerDone comes before it.
func (w *Writer) Release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.releaseLocked()
	w.closeLocked()
}

func (w *Writer) releaseLocked() {
	switch w.phase {
	case holding:
		if w.status != 0 {
			w.releaseHeldLocked()
			break
		}
		// net/http answers 200 by itself, and the writers outside need not know.
		if w.ownHeader {
			replace(w.rw.Header(), w.header)
		}
		if w.header != nil {
			delete(w.rw.Header(), "Transfer-Encoding")
		}
		return
	case streaming:
		if w.lastByteHeld {
			w.lastByteHeld = false
			last := [1]byte{w.lastByte}
			// A client that has gone is nobody's business here.
			w.unlocked(func() { _, _ = w.rw.Write(last[:]) })
		}
	default:
		return
	}
	if w.ownHeader {
		w.sent.change(w.rw.Header(), w.header) // for the trailers
	}
}

func (w *Writer) releaseHeldLocked() {
	if w.req.Method == http.MethodHead && bodyAllowed(w.status) && w.written > int64(w.body.length()) && w.length < 0 {
		w.tellLength()
	}
	chunk := w.chunkedByCopy && w.laterTrailers()
	_ = w.startLocked()
	if chunk {
		w.unlocked(func() { _ = http.NewResponseController(w.rw).Flush() })
	}
}

// laterTrailers reports whether there are trailers that were not declared
// before WriteHeader: net/http sends them only with a chunked body.
func (w *Writer) laterTrailers() bool {
	for k := range w.header {
		if strings.HasPrefix(k, http.TrailerPrefix) {
			return true
		}
	}
	return false
}

// tellLength declares what was counted: of the body of a HEAD only the first
// bytes reach net/http, which would take them for all.
func (w *Writer) tellLength() {
	w.headerLocked()
	w.sent.add("Content-Length", strconv.FormatInt(w.written, 10))
}

// Reset drops what is held and takes the handler's headers back, so that an
// error can be answered, or another attempt begin: until Close w refuses
// everything. It is for a held response only.
func (w *Writer) Reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.header != nil {
		w.base.restore(w.rw.Header())
	}
	w.freeLocked()
	w.status, w.written, w.length = 0, 0, -1
}

// Abort makes sure that a response whose header is out cannot be taken for a
// complete one, whatever a middleware outside does. The caller panics with
// http.ErrAbortHandler then.
func (w *Writer) Abort() {
	w.mu.Lock()
	closes := w.length < 0 && !w.req.ProtoAtLeast(1, 1)
	w.lastByteHeld = false
	w.mu.Unlock()
	rc := http.NewResponseController(w.rw)
	// Where the end of the connection is the end of the response, only a reset
	// tells the client that something is missing. A middleware outside without
	// Unwrap may hide SetWriteDeadline, but not Hijack.
	if closes || rc.SetWriteDeadline(time.Unix(1, 0)) != nil {
		if conn, _, err := rc.Hijack(); err == nil {
			reset(conn)
			return
		}
		if rc.SetWriteDeadline(time.Unix(1, 0)) != nil {
			// A writer that buffers, like http.TimeoutHandler's, may send all of it
			// if the panic is recovered in between: then it is too short.
			w.rw.Header().Set("Content-Length", strconv.FormatInt(math.MaxInt64, 10))
		}
	}
}

func reset(conn net.Conn) {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn() // TLS would say goodbye
	}
	if t, ok := conn.(interface{ SetLinger(sec int) error }); ok {
		_ = t.SetLinger(0)
	}
	_ = conn.Close()
}

// Close ends w. What is written to it from now on goes to the underlying writer.
func (w *Writer) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closeLocked()
}

func (w *Writer) closeLocked() {
	w.handlerDone = true
	if w.phase != hijacked {
		w.phase = passing
	}
	w.rewrite, w.dropBody = nil, false
	w.freeLocked()
	w.base.free()
	w.base = nil
}

func (w *Writer) freeLocked() {
	w.body.free()
	w.sent.free()
	w.body, w.sent = nil, nil
}

// bodyAllowed is that of net/http (RFC 9110, section 6.4.1).
func bodyAllowed(status uint16) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}
