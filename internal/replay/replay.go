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
	src   io.ReadCloser
	limit int64 // not negative

	// Set by CloseAs, only read from then on: what the Close of a view does.
	close    closing
	declared int64 // the length of the body, -1 if it is not known
	waits    bool  // the client sends nothing until it is asked to

	mu      sync.Mutex
	changed sync.Cond // on mu: reading was unset, or the current view ended
	cur     *view     // the latest view; nil before the first
	record  pieces    // what came from src, from its start; empty once over and cur has had it all
	over    bool      // more than limit bytes came from src
	reading bool      // a Read is in src.Read, without mu; there is never a second one
	err     error     // how src ended; nil until then
	stopped bool
}

// closing is what the Close of a view does.
type closing uint8

const (
	endView  closing = iota // nothing to the body
	readRest                // as in HTTP/1
	endRead                 // as in HTTP/2
)

// mostAtClose is how many bytes net/http reads when a body is closed (maxPostHandlerReadBytes).
const mostAtClose = 256 << 10

// New returns the Body of src, of which up to limit bytes are kept for further attempts; a negative limit is 0. A nil
// src is an empty body. src is not closed at the end: net/http does that itself.
func New(src io.ReadCloser, limit int64) *Body {
	if src == nil {
		src = http.NoBody
	}
	b := &Body{src: src, limit: max(0, limit), declared: -1}
	b.changed.L = &b.mu
	return b
}

// CloseAs makes the Close of a view do what that of r's body does. In HTTP/1 it reads the rest, so that trailers arrive
// and a client goes on that writes all before it reads; here the rest is kept for the replay. Where the connection ends
// with the response and no trailers can come it reads nothing. In HTTP/2 it ends a Read
// that is under way, which takes closing the body itself: unless it was at its end there is no further attempt. It is
// called before the first View.
func (b *Body) CloseAs(r *http.Request) {
	b.close, b.declared = readRest, r.ContentLength
	switch {
	case r.ProtoMajor >= 2:
		b.close = endRead
	case r.Close && r.ContentLength >= 0:
		b.close = endView // the connection ends with the response, and no trailers come: net/http reads nothing either
	}
	b.waits = r.Header.Get("Expect") != ""
}

// View returns the body for a new attempt and cuts off every earlier view: its Reads return ErrCutOff, also
// one that is blocked in the body right now, as soon as that returns; its bytes then belong to the new view.
// Until then the new view yields what is recorded, and waits only when it needs more.
//
// Reads of a view that was made when Replayable was false already return an error. Ask Replayable after View rather
// than before, when a late Read of the earlier attempt could still take bytes: if it is true then, the view is whole.
//
// The view's Reads may be called from several goroutines, which share the bytes out among
// them. After its Close they return http.ErrBodyReadAfterClose; see CloseAs.
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
	b.record.clear()
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
	if b.over && (b.cur.err != nil || b.cur.off >= b.record.size) {
		b.record.clear()
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
	b.over = b.over || int64(b.record.size+len(p)) > b.limit
	switch {
	case v.err != nil: // the reader is cut off: these bytes are for the current view, whatever the limit says
		b.record.append(p, b.room())
	case !b.over:
		b.record.append(p, b.room())
		v.off = b.record.size
	}
	b.trim()
}

// room is how large the record may become.
func (b *Body) room() int {
	if b.declared >= 0 && b.declared < b.limit {
		return int(b.declared)
	}
	return int(b.limit)
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
		case v.off < b.record.size:
			n := b.record.copyFrom(v.off, p)
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

// Close ends this view; see CloseAs. A view that has ended already leaves the body to the next one. It always returns nil.
func (v *view) Close() error {
	b := v.body
	b.mu.Lock()
	defer b.mu.Unlock()
	ended := v.err != nil
	b.end(v, http.ErrBodyReadAfterClose)
	b.trim()
	switch {
	case ended:
	case b.close == readRest:
		b.readRest(v)
	case b.close == endRead && b.reading && b.err == nil:
		b.over = true
		b.trim()
		b.closeSrc()
	}
	return nil
}

// readRest reads what net/http would read when the body is closed, as long as v is the latest view. b.mu is held, but
// not while the body is waited for.
func (b *Body) readRest(v *view) {
	if b.waits && b.record.size == 0 && !b.over || b.declared-int64(b.record.size) > mostAtClose {
		return
	}
	buf := make([]byte, 4<<10)
	for n := 0; b.cur == v && b.err == nil && !b.stopped && n < mostAtClose; {
		switch {
		case b.over:
			b.closeSrc() // nobody needs the rest, which net/http reads
			return
		case b.reading:
			b.changed.Wait()
		default:
			m, err := b.readSrc(buf)
			b.keep(v, buf[:m], err)
			n += m
			if err != nil {
				return
			}
		}
	}
}

// closeSrc closes the body. b.mu is held before and after.
func (b *Body) closeSrc() {
	b.mu.Unlock()
	defer b.mu.Lock()
	_ = b.src.Close()
}
