package held

import (
	"io"
	"net/http"
)

// Write holds p, or sends it when the response is streaming.
func (w *Writer) Write(p []byte) (int, error) {
	if w.hold(p, "") {
		return len(p), nil
	}
	return w.write(p, "")
}

// WriteString is Write for a string.
func (w *Writer) WriteString(s string) (int, error) {
	if w.hold(nil, s) {
		return len(s), nil
	}
	return w.write(nil, s)
}

// hold is the way of most Writes, of p or s, of which one is empty: there is room in what
// is held without another look at the response, or a plain one begins. It calls nothing
// of others that could panic with the lock, and needs no defer. It reports whether that
// is so; otherwise it has done nothing.
func (w *Writer) hold(p []byte, s string) (held bool) {
	n := len(p) + len(s)
	w.mu.Lock()
	switch b := w.body; {
	case w.phase != holding || w.handlerDone:
	case b != nil && n <= b.room:
		w.written += int64(n)
		b.append(p, s)
		held = true
	case w.callsNobodyLocked() && w.fitsLocked(n):
		w.holdPlainLocked(p, s)
		held = true
	}
	w.mu.Unlock()
	return held
}

// action is what is to be done with the bytes of a Write.
type action uint8

const (
	sendNothing   action = iota // they are held, or dropped
	sendHeldFirst               // the response has started
	sendAll
	sendButLast // all but the last byte, which is held
)

// write is given p or s; the other one is empty.
func (w *Writer) write(p []byte, s string) (int, error) {
	do, err := w.accept(p, s)
	if do == sendHeldFirst {
		if err = w.sendHeld(); err == nil {
			do, err = w.acceptStarted(p, s)
		}
	}
	n := len(p) + len(s)
	switch {
	case err != nil:
		return 0, err
	case do == sendAll:
		return w.pass(p, s)
	case do == sendButLast && n > 1:
		if m, err := w.pass(p[:max(len(p)-1, 0)], s[:max(len(s)-1, 0)]); err != nil {
			return m, err
		}
	}
	return n, nil
}

// pass hands a Write to the underlying writer; both p and s may be empty.
func (w *Writer) pass(p []byte, s string) (n int, err error) {
	returned := false
	defer w.recoverLate(&returned, &err)
	if s == "" {
		n, err = w.rw.Write(p)
	} else {
		n, err = io.WriteString(w.rw, s)
	}
	returned = true
	return n, err
}

// accept counts and holds what is written, or says what is to be sent. What does
// not fit starts the response.
func (w *Writer) accept(p []byte, s string) (action, error) {
	n := len(p) + len(s)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.phase != holding || w.handlerDone {
		return w.acceptUnheldLocked(p, s)
	}
	if w.status == 0 {
		w.implyStatusLocked()
	}
	fits := w.fitsLocked(n)
	if !fits && bodyAllowed(w.status) {
		w.adoptOuterHeaderLocked()
	}
	if err := w.countLocked(n); err != nil || n == 0 {
		return sendNothing, err
	}
	if fits {
		w.holdLocked(p, s)
		return sendNothing, nil
	}
	w.startLocked()
	return sendHeldFirst, nil
}

// callsNobodyLocked reports whether what is held is a 200 whose header nobody has
// asked for: to keep it and to send it calls nothing of others that could panic with
// the lock. A defer would be noticed there.
func (w *Writer) callsNobodyLocked() bool {
	return w.header == nil && (w.implicit || w.status == 0 && w.defaultStatus == http.StatusOK)
}

// holdPlainLocked holds what fits of such a response, which has no length that it could
// exceed.
func (w *Writer) holdPlainLocked(p []byte, s string) {
	if w.status == 0 {
		w.implyStatusLocked()
	}
	n := len(p) + len(s)
	w.written += int64(n)
	if n > 0 {
		w.holdLocked(p, s)
	}
}

// acceptUnheldLocked is accept for what is not held any more.
func (w *Writer) acceptUnheldLocked(p []byte, s string) (action, error) {
	if err := w.refusedLocked(); err != nil {
		return sendNothing, err
	}
	n := len(p) + len(s)
	switch {
	case w.phase != streaming && w.dropBody:
		return sendNothing, nil
	case w.phase != streaming:
		return sendAll, nil
	}
	if err := w.countLocked(n); err != nil || n == 0 {
		return sendNothing, err
	}
	return w.keepLastLocked(p, s), nil
}

// undecidedLocked reports whether the response could still be held back or broken off.
func (w *Writer) undecidedLocked() bool { return w.phase == holding || w.phase == streaming }

// refusedLocked returns the error of a call that would add to the response, when
// that may not be.
func (w *Writer) refusedLocked() error {
	if w.handlerDone && w.undecidedLocked() || w.overLocked() {
		return ErrReturned
	}
	return nil
}

// acceptStarted is for the Write that started the response, when that is done.
func (w *Writer) acceptStarted(p []byte, s string) (action, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.phase != streaming {
		return sendNothing, ErrReturned // the end of the response did not wait for this Write
	}
	return w.keepLastLocked(p, s), nil
}

// countLocked counts n bytes, also if they are refused, as net/http does.
func (w *Writer) countLocked(n int) error {
	switch {
	case n == 0:
		return nil
	case !bodyAllowed(w.status):
		return http.ErrBodyNotAllowed
	}
	w.written += int64(n)
	if w.length >= 0 && w.written > w.length && !w.dropBody {
		w.noRoomLocked() // what was refused counts: nothing fits any more
		return http.ErrContentLength
	}
	return nil
}

// keepLastLocked keeps the last byte of a declared length.
func (w *Writer) keepLastLocked(p []byte, s string) action {
	if w.length < 0 || w.written < w.length || w.stands {
		return sendAll
	}
	w.lastByteHeld = true
	if s != "" {
		w.lastByte = s[len(s)-1]
	} else {
		w.lastByte = p[len(p)-1]
	}
	return sendButLast
}

// fitsLocked reports whether n more bytes can be held, or need not be held at all.
func (w *Writer) fitsLocked(n int) bool {
	return w.body.length()+n <= w.limit || w.dropBody || w.req.Method == http.MethodHead
}

// holdLocked holds the bytes, of which there is at least one.
func (w *Writer) holdLocked(p []byte, s string) {
	if w.dropBody || w.req.Method == http.MethodHead {
		n := w.sniffedLocked(len(p) + len(s))
		if n == 0 {
			return
		}
		p, s = p[:min(len(p), n)], s[:min(len(s), n)]
	}
	if w.body == nil {
		w.body = newBody(max(w.limit, sniffLen))
	}
	w.body.append(p, s)
	w.makeRoomLocked()
}

// noRoomLocked makes the next Write look at the response.
func (w *Writer) noRoomLocked() {
	if w.body != nil {
		w.body.room = 0
	}
}

// makeRoomLocked says how much more may be held without another look: what fits, and
// what has been declared.
func (w *Writer) makeRoomLocked() {
	w.body.room = 0
	if w.req.Method == http.MethodHead {
		return // of its body only what the type is found by is held
	}
	w.body.room = w.limit - w.body.size
	if w.length >= 0 {
		w.body.room = int(min(int64(w.body.room), w.length-w.written))
	}
}

// sniffedLocked says how many of n bytes of a body that is not sent are held: of a
// HEAD what the type is sniffed from, which net/http does at the first Flush at
// the latest.
func (w *Writer) sniffedLocked(n int) int {
	if w.dropBody || w.flushWaits {
		return 0
	}
	return min(n, sniffLen-w.body.length())
}

// bodyWantedLocked reports whether the protocol sends a body for this response.
func (w *Writer) bodyWantedLocked() bool {
	return w.req.Method != http.MethodHead && bodyAllowed(w.status) && !w.dropBody
}

// bodyAllowed is that of net/http (RFC 9110, section 6.4.1).
func bodyAllowed(status uint16) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// startLocked goes over to streaming and sends the header. The caller gives the lock
// back and calls sendHeld. If the header panics, what was held is never sent.
func (w *Writer) startLocked() {
	w.phase = streaming
	w.sendHeaderLocked()
}

// sendHeld sends what was held before the response started.
func (w *Writer) sendHeld() error { return w.takeBody().writeTo(w.rw) }

func (w *Writer) takeBody() *body {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.takeBodyLocked()
}

func (w *Writer) takeBodyLocked() *body {
	b := w.body
	w.body = nil
	return b
}
