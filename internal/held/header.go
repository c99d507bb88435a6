package held

import (
	"net/http"
	"strconv"
	"strings"
)

// OwnHeader gives the handler a header map of its own, so that one that goes on
// writing to it after its attempt cannot meet the map of the next. It is called
// before the handler runs.
func (w *Writer) OwnHeader() {
	h := w.rw.Header()
	if len(h) > 0 {
		w.before = newSnapshot(h)
	}
	w.header = h.Clone()
	if w.header == nil {
		w.header = make(http.Header)
	}
	w.ownHeader = true
}

// Header returns the header map that will be sent by WriteHeader.
func (w *Writer) Header() http.Header {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.handlerDone:
		return w.lateHeaderLocked()
	case w.phase == passingThrough && !w.ownHeader:
		return w.outerHeaderLocked()
	}
	return w.headerLocked()
}

// lateHeaderLocked is Header when the handler has returned: that of a response which
// net/http has taken back is nobody's, and to ask for it may panic.
func (w *Writer) lateHeaderLocked() (h http.Header) {
	h = w.header
	if h == nil {
		h = make(http.Header)
	}
	if w.ownHeader || w.phase != passingThrough || w.overLocked() {
		return h
	}
	defer func() { _ = recover() }()
	return w.outerHeaderLocked()
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

// headerLocked asks the underlying writer for its header only when somebody
// wants it: net/http clones a header that was asked for.
func (w *Writer) headerLocked() http.Header {
	if w.header == nil {
		w.header = w.outerHeaderLocked()
		if len(w.header) > 0 {
			w.before = newSnapshot(w.header)
		}
		switch { // nobody can have changed it since WriteHeader, or the handler's return
		case w.phase != holding:
		case w.handlerDone:
			w.sent = newSnapshot(w.header)
		case w.status != 0:
			w.frameLocked() // a middleware outside may have declared a length
		}
	}
	return w.header
}

// outerHeaderLocked returns the header map of the underlying writer. It is asked
// for under the lock: Header is a getter, in net/http as in what wraps it, and
// waits for nobody. If one panics all the same, the lock is given back.
func (w *Writer) outerHeaderLocked() http.Header { return w.rw.Header() }

// frameLocked makes the header one whose response can be kept from completing, and
// takes the snapshot that is sent.
func (w *Writer) frameLocked() {
	w.noRoomLocked() // a length may be declared now
	w.sent.free()
	w.sent = snapshots.Get().(*snapshot)
	for k, v := range w.header {
		switch {
		case len(k) != len("Transfer-Encoding") && len(k) != len("Content-Length"): // most
		case strings.EqualFold(k, "Transfer-Encoding"):
			// With "identity" the end of the connection would be the end of the
			// response, and an aborted one look complete (RFC 9112, section 6.3).
			delete(w.header, k)
			continue
		case strings.EqualFold(k, "Content-Length"):
			if len(v) == 0 && k == "Content-Length" {
				break // nil keeps net/http from declaring one
			}
			if !w.declareLocked(k, v) {
				delete(w.header, k)
				continue
			}
		}
		w.sent.add(k, v...)
	}
}

// declareLocked takes the length from a header field. An invalid one is dropped, as
// net/http does, but for HTTP/1.0; another spelling of its name net/http would
// send as it is.
func (w *Writer) declareLocked(key string, values []string) bool {
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

// adoptOuterHeaderLocked sees to the framing before a response streams whose
// handler never asked for the header: a middleware outside may have declared a
// length.
func (w *Writer) adoptOuterHeaderLocked() {
	if w.header == nil && w.status != 0 && !w.handlerDone {
		w.headerLocked()
	}
}

// sendHeaderLocked hands the status and the header of its moment to the underlying
// writer. What the handler changed since is taken out of the map, so that no writer
// outside sends it later, but for the values of trailers, for which net/http looks
// there when the handler has returned.
//
// A status that is implicit stays so: the first Write tells. If there are values of
// trailers by now they must not be in the map then.
//
// It is done under the lock: if another goroutine's Write, or the end of the request,
// got ahead of the status, the client would see a 200. net/http sends nothing yet
// in WriteHeader, 1xx aside, which do not come here.
func (w *Writer) sendHeaderLocked() {
	switch {
	case w.sent == nil: // the handler never asked for the header
		w.sendStatusLocked()
	case w.sent.equal(w.header):
		if w.ownHeader {
			w.sent.restore(w.outerHeaderLocked())
		}
		w.sendStatusLocked()
	default:
		trailers := w.sent.laterTrailers(w.header, false)
		outer := w.outerHeaderLocked()
		w.sent.restore(outer)
		w.implicit = w.implicit && len(trailers) == 0
		w.sendStatusLocked()
		if !w.ownHeader { // of an own header they are set at the end: until then the handler can delete them
			setTrailers(outer, trailers)
		}
	}
}

func (w *Writer) sendStatusLocked() {
	if !w.implicit {
		w.rw.WriteHeader(int(w.status))
	}
}

// laterTrailersLocked reports whether there are trailers that were not declared
// before WriteHeader: net/http sends them only with a chunked body.
func (w *Writer) laterTrailersLocked() bool {
	for k := range w.header {
		if strings.HasPrefix(k, http.TrailerPrefix) {
			return true
		}
	}
	return false
}

// compressibleLocked reports whether a middleware outside may compress the response:
// the length of its HEAD is not what was counted here. gorilla's takes the
// Accept-Encoding out of the request.
func (w *Writer) compressibleLocked() bool {
	if w.req.Header["Accept-Encoding"] != nil {
		return true
	}
	for _, fields := range w.outerHeaderLocked()["Vary"] {
		if strings.Contains(strings.ToLower(fields), "accept-encoding") {
			return true
		}
	}
	return false
}

// suppressLengthLocked keeps net/http from declaring a length.
func (w *Writer) suppressLengthLocked() {
	w.headerLocked()
	if !w.sent.has("Content-Length") {
		w.sent.add("Content-Length")
	}
}

// declareCountedLocked declares the length that was counted: of the body of a HEAD
// only the first bytes reach net/http, which would take them for all.
func (w *Writer) declareCountedLocked() {
	w.headerLocked()
	w.sent.add("Content-Length", strconv.FormatInt(w.written, 10))
}
