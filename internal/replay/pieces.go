package replay

import "io"

// pieces are bytes in memory. They grow without a copy, so that up to a limit they
// take no more than that: what is grown by doubling is there twice for a while, and
// may have twice the room that it needs.
type pieces struct {
	list [][]byte
	size int
}

// firstPiece is the size in bytes of the first piece, unless the limit is smaller.
const firstPiece = 1 << 10

// spare returns free memory, of at most limit bytes in all; there is none if that is reached.
func (p *pieces) spare(limit int) []byte {
	if n := len(p.list); n > 0 {
		if last := p.list[n-1]; len(last) < cap(last) {
			return last[len(last):cap(last)]
		}
	}
	room := limit - p.size
	if room <= 0 {
		return nil
	}
	p.list = append(p.list, make([]byte, 0, min(room, max(p.size, firstPiece))))
	return p.spare(limit)
}

// grow notes that n bytes were put into what spare has returned.
func (p *pieces) grow(n int) {
	last := &p.list[len(p.list)-1]
	*last = (*last)[:len(*last)+n]
	p.size += n
}

// append adds b. Beyond the limit it takes what b needs.
func (p *pieces) append(b []byte, limit int) {
	for len(b) > 0 {
		free := p.spare(max(limit, p.size+len(b)))
		n := copy(free, b)
		p.grow(n)
		b = b[n:]
	}
}

// copyFrom copies what is behind the first off bytes to dst, as much as fits.
func (p *pieces) copyFrom(off int, dst []byte) (n int) {
	for _, piece := range p.list {
		if off < len(piece) {
			n += copy(dst[n:], piece[off:])
			off = 0
		} else {
			off -= len(piece)
		}
	}
	return n
}

// clear lets everything go.
func (p *pieces) clear() { p.list, p.size = nil, 0 }

// Ahead reads up to limit bytes of src into memory, and returns what reads them, and
// then the rest of src. An error comes from the Read that gets so far. declared is
// the length of src, -1 if it is not known.
func Ahead(src io.Reader, limit int, declared int64) io.Reader {
	a := &ahead{rest: src}
	most := limit
	if declared >= 0 && declared < int64(limit) {
		most = int(declared)
		if most > 0 {
			a.head.list = [][]byte{make([]byte, 0, most)}
		}
	}
	var end [1]byte
	for a.err == nil && a.head.size < limit {
		if free := a.head.spare(most); free != nil {
			var n int
			n, a.err = src.Read(free)
			a.head.grow(n)
			continue
		}
		var n int
		n, a.err = src.Read(end[:]) // the end
		a.head.append(end[:n], limit)
		most = limit // it is longer than was declared
	}
	return a
}

type ahead struct {
	head pieces
	err  error // how src has ended
	rest io.Reader
}

func (a *ahead) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(a.head.list) > 0 {
		first := a.head.list[0]
		n := copy(p, first)
		if first = first[n:]; len(first) == 0 {
			a.head.list = a.head.list[1:]
		} else {
			a.head.list[0] = first
		}
		if n > 0 {
			return n, nil
		}
	}
	if a.err != nil {
		return 0, a.err
	}
	return a.rest.Read(p)
}
