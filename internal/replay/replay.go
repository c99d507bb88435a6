// Package replay lets the attempts of a request read its body one after the other, each from the start.
package replay

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
)

// ErrCutOff is the error of a Read through a view that a later one has replaced, or after Stop.
var ErrCutOff = errors.New("replay: the attempt that this request body belongs to is over")

var errOutgrown = errors.New("replay: the request body outgrew the limit and cannot be read again")

// Body records what attempts read from a request's body so that the next attempt reads the same from the
// start. Nothing is read ahead: bytes are asked of the body only in a Read of a view, with that
// Read's own buffer. All methods may be called from any goroutine; none of them waits for a Read that is blocked.
type Body struct {
	src   io.Reader
	limit int64 // not negative

	mu      sync.Mutex
	changed sync.Cond // on mu: reading was unset, or the current view ended
	cur     *view     // the latest view; nil before the first
	record  []byte    // what came from src, from its start; nil once over and cur has had it all
	over    bool      // more than limit bytes came from src
	reading bool      // a Read is in src.Read, without mu; there is never a second one
	err     error     // how src ended; nil until then
	stopped bool
}

// New returns the Body of src, of which up to limit bytes are kept for further attempts; a negative limit is 0. A nil
// src is an empty body. src is never closed: net/http does that itself.
func New(src io.ReadCloser, limit int64) *Body {
	if src == nil {
		src = http.NoBody
	}
	b := &Body{src: src, limit: max(0, limit)}
	b.changed.L = &b.mu
	return b
}

// View returns the body for a new attempt and cuts off every earlier view: its Reads return ErrCutOff, also
// one that is blocked in the body right now, as soon as that returns; its bytes then belong to the new view.
// Until then the new view yields what is recorded, and waits only when it needs more.
//
// Reads of a view that was made when Replayable was false already return an error. Ask Replayable after View rather
// than before, when a late Read of the earlier attempt could still take bytes: if it is true then, the view is whole.
//
// The view's Reads may be called from several goroutines, which share the bytes out among
// them. Its Close does not close the body; Reads then return http.ErrBodyReadAfterClose.
func (b *Body) View() io.ReadCloser {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.end(b.cur, ErrCutOff)
	v := &view{body: b}
	switch {
	case b.stopped:
		v.err = ErrCutOff
	case b.over:
		v.err = errOutgrown
	}
	b.cur = v
	b.trim()
	return v
}

// Replayable reports whether a further attempt can read the same body: false once more than the limit was
// read from it, or after Stop.
func (b *Body) Replayable() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.over && !b.stopped
}

// Stop ends the last attempt: every view is cut off, and what was recorded is let go. A Read that is blocked in the
// body returns ErrCutOff when the body lets it; its bytes are lost.
func (b *Body) Stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
	b.end(b.cur, ErrCutOff)
	b.record = nil
}

// end makes v's Reads return err from now on, the waiting ones included; the first reason stays. b.mu is held.
func (b *Body) end(v *view, err error) {
	if v != nil && v.err == nil {
		v.err = err
		b.changed.Broadcast()
	}
}

// trim lets the record go when nobody will read it any more: no further attempt may, and the current
// one cannot or need not. b.mu is held.
func (b *Body) trim() {
	if b.over && (b.cur.err != nil || b.cur.off >= len(b.record)) {
		b.record = nil
	}
}

// readSrc reads from the body while others may use b. b.mu is held before and after, also when
// the body's Read panics or ends the goroutine, so that nobody waits for ever.
func (b *Body) readSrc(p []byte) (int, error) {
	b.reading = true
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.reading = false
		b.changed.Broadcast()
	}()
	return b.src.Read(p)
}

// keep files what the body gave to a Read of v. b.mu is held.
func (b *Body) keep(v *view, p []byte, err error) {
	// A deadline that has passed can be set anew (http.ResponseController.SetReadDeadline), so it is no end.
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		b.err = err
	}
	if b.stopped {
		return
	}
	b.over = b.over || int64(len(b.record)+len(p)) > b.limit
	switch {
	case v.err != nil: // the reader is cut off: these bytes are for the current view, whatever the limit says
		b.record = append(b.record, p...)
	case !b.over:
		b.record = append(b.record, p...)
		v.off = len(b.record)
	}
	b.trim()
}

// view is one attempt's reader. Its fields are guarded by body.mu.
type view struct {
	body *Body
	off  int   // how much of body.record it has yielded; means nothing once that was let go
	err  error // why its Reads fail; nil as long as they don't
}

// Read yields what is recorded, or else what one Read of the body gives.
func (v *view) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b := v.body
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		switch {
		case v.err != nil:
			return 0, v.err
		case v.off < len(b.record):
			n := copy(p, b.record[v.off:])
			v.off += n
			b.trim()
			return n, nil
		case b.err != nil:
			return 0, b.err
		case !b.reading:
			n, err := b.readSrc(p)
			b.keep(v, p[:n], err)
			if v.err != nil {
				return 0, v.err
			}
			return n, err
		}
		b.changed.Wait()
	}
}

// Close ends this view and leaves the body open. It always returns nil.
func (v *view) Close() error {
	b := v.body
	b.mu.Lock()
	defer b.mu.Unlock()
	b.end(v, http.ErrBodyReadAfterClose)
	b.trim()
	return nil
}
