package held

import (
	"io"
	"math"
)

// copying is what ReadFrom does next with its source.
type copying uint8

const (
	holdSome    copying = iota
	sendHeldNow         // the response has started
	dropAll
	passSome // to the underlying writer, and Write the rest
	passAll
)

// writerOnly hides ReadFrom from io.Copy.
type writerOnly struct{ io.Writer }

// ReadFrom copies src into the response. A response larger than the limit is
// handed to the underlying writer, for sendfile, all but the last byte of a
// declared length.
func (w *Writer) ReadFrom(src io.Reader) (int64, error) {
	var n int64
	for {
		do, most, err := w.nextCopy(src)
		if err != nil {
			return n, err
		}
		var m int64
		switch do {
		case holdSome:
			m, err = io.Copy(writerOnly{w}, io.LimitReader(src, most))
			n += m
			w.noteHeld(n)
			if err != nil || m < most {
				return n, err
			}
			continue
		case sendHeldNow:
			if err := w.sendHeld(); err != nil {
				return n, err
			}
			continue
		case dropAll:
			m, err = io.Copy(io.Discard, src)
		case passSome:
			if m, err = w.copyUpTo(src, most); err == nil {
				n += m
				m, err = io.Copy(writerOnly{w}, src) // the last byte, and too many
			}
		case passAll:
			err = w.outer(func() (err error) {
				m, err = io.Copy(w.rw, src)
				return err
			})
			w.noteWritten(m)
		}
		return n + m, err
	}
}

// nextCopy says what to do next with src, with how many of its bytes at most.
func (w *Writer) nextCopy(src io.Reader) (do copying, most int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.refusedLocked(); err != nil {
		return 0, 0, err
	}
	switch {
	case w.phase == passingThrough && w.dropBody:
		return dropAll, 0, nil
	case w.phase == streaming && w.length >= 0 && !w.stands:
		return passSome, w.length - w.written - 1, nil
	case w.phase != holding:
		return passAll, 0, nil
	}
	most = w.holdFromLocked(src)
	switch {
	case most > 0:
		return holdSome, most, nil
	case w.bodyWantedLocked():
		w.startLocked()
		return sendHeldNow, 0, nil
	}
	return holdSome, math.MaxInt64, nil // Write counts it
}

// noteHeld notes that a ReadFrom has held n bytes so far.
func (w *Writer) noteHeld(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.chunkedByCopy = w.chunkedByCopy || n >= sniffLen
}

// noteWritten counts what was handed to the underlying writer.
func (w *Writer) noteWritten(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.written += n
}

// holdFromLocked says how many bytes of src to read into memory before the response
// may stream: enough for the type to be sniffed and for src to have proved
// readable (golang.org/issue/5660), and all that fits if the rest may fit too.
func (w *Writer) holdFromLocked(src io.Reader) int64 {
	room := min(int64(w.limit), math.MaxInt64-1) + 1 - int64(w.body.length())
	if w.status == 0 {
		return min(room, sniffLen+1)
	}
	w.adoptOuterHeaderLocked()
	if !w.bodyWantedLocked() {
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

// copyUpTo copies at most room bytes of src by the underlying writer. It looks
// into an io.LimitedReader as net does: one in another would keep it from seeing
// the file.
func (w *Writer) copyUpTo(src io.Reader, room int64) (int64, error) {
	if room <= 0 {
		return 0, nil
	}
	part := io.LimitedReader{R: src, N: room}
	outer, ok := src.(*io.LimitedReader)
	if ok {
		part.R, part.N = outer.R, min(outer.N, room)
	}
	before := part.N
	n, err := io.Copy(w.rw, &part)
	if ok {
		outer.N -= before - part.N
	}
	w.noteWritten(n)
	return n, err
}
