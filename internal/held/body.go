package held

import (
	"io"
	"sync"
)

// store is a place for the bytes of a held response. Memory is the only one so far.
// It is used by one goroutine at a time.
type store interface {
	// append adds p and s, of which one is empty. If it cannot, writeTo fails.
	append(p []byte, s string)
	// writeTo writes all that is stored to dst.
	writeTo(dst io.Writer) error
	// free gives up what is stored and what it is stored in.
	free()
}

// body is what is held of a response. The Writer has a pointer to it: an
// interface takes 8 bytes more, and the Writer has no room for them.
type body struct {
	store  store
	size   int    // how many bytes are stored
	room   int    // how many more may be added without another look at the response
	memory memory // pooled with the body
}

var bodies = sync.Pool{New: func() any { return new(body) }}

// newBody returns an empty body for a response held up to limit bytes. The store
// is chosen here.
func newBody(limit int) *body {
	b := bodies.Get().(*body)
	b.memory.limit = limit
	b.store = &b.memory
	return b
}

// length returns how many bytes are held; nil is an empty body.
func (b *body) length() int {
	if b == nil {
		return 0
	}
	return b.size
}

// append adds p and s, of which one is empty.
func (b *body) append(p []byte, s string) {
	b.size += len(p) + len(s)
	b.room -= len(p) + len(s)
	b.store.append(p, s)
}

// writeTo writes the body to dst, and frees it; after a panic of dst it is the
// garbage collector's.
func (b *body) writeTo(dst io.Writer) error {
	if b == nil {
		return nil
	}
	err := b.store.writeTo(dst)
	b.free()
	return err
}

// free gives the body back. Nothing may use it afterwards.
func (b *body) free() {
	if b != nil { // this much is inlined
		b.putBack()
	}
}

func (b *body) putBack() {
	b.store.free()
	b.size = 0
	if cap(b.memory.bytes) <= keepMemory {
		bodies.Put(b)
	}
}

// keepMemory is the size in bytes up to which memory goes back to the pool: a
// rare large response must not stay in memory for ever.
const keepMemory = 128 << 10

// firstMemory is the size in bytes of the first piece of memory: a small page
// is stored without a copy.
const firstMemory = 4 << 10

// memory is the store of a response that is held in memory.
type memory struct {
	bytes []byte
	limit int
}

// append grows to the limit at most, so that a response held up to the limit
// takes no more than that.
func (m *memory) append(p []byte, s string) {
	need := len(m.bytes) + len(p) + len(s)
	if need > cap(m.bytes) {
		size := min(max(2*cap(m.bytes), firstMemory), m.limit)
		grown := make([]byte, len(m.bytes), max(size, need))
		copy(grown, m.bytes)
		m.bytes = grown
	}
	if s == "" {
		m.bytes = append(m.bytes, p...)
	} else {
		m.bytes = append(m.bytes, s...)
	}
}

func (m *memory) writeTo(dst io.Writer) error {
	_, err := dst.Write(m.bytes)
	return err
}

func (m *memory) free() { m.bytes = m.bytes[:0] }
