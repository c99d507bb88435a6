package held

import (
	"net/http"
)

// State is what the end of a request is decided by.
type State struct {
	Status   int  // 200 if none was set
	Held     bool // nothing but 1xx responses has left
	Stands   bool // an answer of 400 or more was flushed, see FlushAnswer
	Hijacked bool
}

// HandlerDone ends the handler's part: nothing can be added to the response any more.
func (w *Writer) HandlerDone() State {
	w.mu.Lock()
	w.handlerDone = true
	if w.status == 0 && w.phase == holding && w.header != nil {
		w.sent = newSnapshot(w.header) // what a function of the program sets later is not sent
	}
	s := State{Status: int(w.status), Held: w.phase == holding, Stands: w.stands, Hijacked: w.phase == hijacked}
	w.mu.Unlock()
	if s.Status == 0 {
		s.Status = int(w.defaultStatus)
	}
	return s
}

// Untouched reports whether neither a status nor a byte was written.
func (w *Writer) Untouched() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.phase == holding && w.status == 0
}

// Release lets the response complete, and closes w. HandlerDone comes before it.
// The errors of a client that has gone are nobody's business here.
func (w *Writer) Release() {
	if !w.releasePlain() {
		w.release()
	}
}

// release is Release for a response that is not plain.
func (w *Writer) release() {
	do, held := w.startRelease()
	switch do {
	case releaseHeld, releaseFlushed:
		_ = held.writeTo(w.rw)
	case releaseLastByte:
		w.sendLastByte()
	case released:
		return
	}
	if do == releaseFlushed {
		_ = http.NewResponseController(w.rw).Flush()
	}
	w.noteReleased()
}

// Finish is HandlerDone and Release in one step, for a response about which nothing
// is left to be decided.
func (w *Writer) Finish() {
	if !w.releasePlain() {
		w.HandlerDone()
		w.release()
	}
}

// releasePlain is Finish for a response whose start calls nothing of others, and
// reports whether it is one.
func (w *Writer) releasePlain() bool {
	held, plain := w.startPlain()
	if plain {
		_ = held.writeTo(w.rw)
		w.noteReleased()
	}
	return plain
}

// startPlain starts the response, and ends the handler's part, if that calls nothing
// of others, and returns what was held.
func (w *Writer) startPlain() (held *body, plain bool) {
	w.mu.Lock()
	plain = w.phase == holding && w.callsNobodyLocked() && w.req.Method != http.MethodHead
	if plain {
		w.handlerDone, w.phase = true, streaming
		held = w.takeBodyLocked()
	}
	w.mu.Unlock()
	return held, plain
}

// releasing is what Release has to do.
type releasing uint8

const (
	released        releasing = iota // nothing more: w is closed
	releaseHeld                      // send what was held
	releaseFlushed                   // the same, and flush it
	releaseLastByte                  // send the last byte of a declared length, if it is here
)

// startRelease sends the header if the response is held, and returns what was held.
func (w *Writer) startRelease() (do releasing, held *body) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.phase == streaming:
		return releaseLastByte, nil
	case w.phase == holding && w.status != 0:
		return w.releaseHeldLocked()
	case w.phase == holding:
		w.releaseUntouchedLocked()
	}
	w.closeLocked()
	return released, nil
}

func (w *Writer) releaseHeldLocked() (do releasing, held *body) {
	do = releaseHeld
	if w.chunkedByCopy && w.laterTrailersLocked() {
		do = releaseFlushed // so it is chunked, as from net/http alone, and can have trailers
	}
	switch {
	case w.req.Method != http.MethodHead || !bodyAllowed(w.status) || w.length >= 0 || w.written <= int64(w.body.length()) && !w.flushWaits:
	case w.compressibleLocked():
		// Nobody outside may take the first bytes for all: neither those who do not flush what is small, nor those who
		// take the length out.
		w.suppressLengthLocked()
		do = releaseFlushed
	case !w.sent.has("Content-Length") && w.written > int64(w.body.length()): // or it is nil
		w.declareCountedLocked()
	}
	w.startLocked()
	if held = w.takeBodyLocked(); held == nil && do == releaseHeld {
		w.endReleaseLocked()
		return released, nil
	}
	return do, held
}

// sendLastByte sends the last byte of a declared length, if the handler has written
// it, and reports that.
func (w *Writer) sendLastByte() bool {
	b, held := w.takeLastByte()
	if held {
		_, _ = w.rw.Write([]byte{b})
	}
	return held
}

func (w *Writer) takeLastByte() (b byte, held bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b, held = w.lastByte, w.lastByteHeld
	w.lastByteHeld = false
	return b, held
}

// noteReleased closes w when all has been sent.
func (w *Writer) noteReleased() {
	w.mu.Lock()
	if !w.ownHeader {
		w.closeLocked()
		w.mu.Unlock()
		return
	}
	defer w.mu.Unlock()
	w.endReleaseLocked()
}

func (w *Writer) endReleaseLocked() {
	if w.ownHeader && w.sent != nil {
		setTrailers(w.outerHeaderLocked(), w.sent.laterTrailers(w.header, true))
	}
	w.closeLocked()
}

// releaseUntouchedLocked leaves the status to net/http, which answers 200 by itself:
// the writers outside need not know.
func (w *Writer) releaseUntouchedLocked() {
	switch {
	case w.sent != nil:
		w.sent.restore(w.outerHeaderLocked())
	case w.ownHeader:
		setHeader(w.outerHeaderLocked(), w.header)
	}
	if w.header != nil {
		delete(w.outerHeaderLocked(), "Transfer-Encoding")
	}
}

// Reset drops what is held and takes the handler's headers back, so that an
// error can be answered, or another attempt begin: until Close w refuses
// everything. It is for a held response only.
func (w *Writer) Reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.header != nil {
		w.before.restore(w.outerHeaderLocked())
	}
	w.freeLocked()
	w.status, w.written, w.length = 0, 0, -1
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
		w.phase = passingThrough
	}
	w.rewrite, w.dropBody = nil, false
	w.freeLocked()
	w.before.free()
	w.before = nil
}

func (w *Writer) freeLocked() {
	w.body.free()
	w.sent.free()
	w.body, w.sent = nil, nil
}
