package held

import "sync"

// keepBuffer is the size in bytes up to which a buffer goes back to the pool:
// a rare large answer must not stay in memory for ever.
const keepBuffer = 128 << 10

// firstBuffer is the size in bytes of a new buffer: a small page in one piece.
const firstBuffer = 4 << 10

type buffer struct{ b []byte }

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// add appends p, or s if p is nil. It grows to limit at most, so that a
// response held up to limit takes no more than limit bytes.
func (b *buffer) add(p []byte, s string, limit int) {
	need := len(b.b) + len(p) + len(s)
	if need > cap(b.b) {
		size := min(max(2*cap(b.b), firstBuffer), limit)
		grown := make([]byte, len(b.b), max(size, need))
		copy(grown, b.b)
		b.b = grown
	}
	b.b = append(b.b, p...)
	b.b = append(b.b, s...)
}

func (b *buffer) free() {
	if b == nil || cap(b.b) > keepBuffer {
		return
	}
	b.b = b.b[:0]
	buffers.Put(b)
}
