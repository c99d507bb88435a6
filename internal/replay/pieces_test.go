package replay

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func (p *pieces) room() (n int) {
	for _, piece := range p.list {
		n += cap(piece)
	}
	return n
}

// Pieces take no more than the limit, however they grow, and give back what was put in.
func TestPieces(t *testing.T) {
	body := strings.Repeat("0123456789", 7000)
	for _, size := range []int{1, 7, 1000, 5000, len(body)} {
		for _, limit := range []int{0, 100, 1000, 1025, 64 << 10} {
			var p pieces
			for p.size+size <= limit {
				p.append([]byte(body[p.size:p.size+size]), limit)
			}
			if p.room() > limit {
				t.Errorf("%d bytes, %d at a time: the pieces take %d", limit, size, p.room())
			}
			for _, off := range []int{0, 1, p.size / 2, p.size} {
				got := make([]byte, len(body))
				if n := p.copyFrom(min(off, p.size), got); string(got[:n]) != body[min(off, p.size):p.size] {
					t.Errorf("%d bytes, %d at a time: got %d bytes from %d on", limit, size, n, off)
				}
			}
			p.append([]byte(body[p.size:]), limit) // beyond it
			if got := make([]byte, len(body)); p.copyFrom(0, got) != len(body) || string(got) != body {
				t.Errorf("%d bytes, %d at a time: what was put in beyond is not what comes out", limit, size)
			}
		}
	}
}

func TestAhead(t *testing.T) {
	const limit = 5000
	for _, size := range []int{0, 1, 1024, 4999, 5000, 5001, 20000} {
		body := strings.Repeat("x", size)
		for name, as := range map[string]func(io.Reader) io.Reader{
			"plain": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "EOF at once": iotest.DataErrReader,
		} {
			for _, declared := range []int64{-1, int64(size), int64(size) / 2} { // the last is a lie
				counted := &counter{Reader: as(strings.NewReader(body))}
				a := Ahead(counted, limit, declared).(*ahead)
				if want := min(size, limit); counted.n != want || a.head.size != want {
					t.Errorf("%s of %d: read %d ahead, want %d", name, size, counted.n, want)
				}
				if room := a.head.room(); room > limit || declared == int64(size) && size < limit && room != size {
					t.Errorf("%s of %d: takes %d bytes", name, size, room)
				}
				if got, err := io.ReadAll(a); string(got) != body || err != nil {
					t.Errorf("%s of %d, %d declared: got %d bytes, %v", name, size, declared, len(got), err)
				}
			}
		}
	}
	want := errors.New("test")
	a := Ahead(io.MultiReader(strings.NewReader("body"), iotest.ErrReader(want)), limit, 10)
	if got, err := io.ReadAll(a); string(got) != "body" || err != want {
		t.Errorf("got %q, %v, want the error behind the body", got, err)
	}
}

type counter struct {
	io.Reader
	n int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += n
	return n, err
}
