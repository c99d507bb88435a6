package replay

import (
	"bytes"
	"io"
	"net/http"
	"testing"
)

// gated is a body that gives its data in chunks; while gate is set, a Read announces itself and waits.
type gated struct {
	data    []byte
	chunks  []byte // sizes, used in turn
	next    int
	withEOF bool // EOF comes with the last bytes
	gate    chan struct{}
	arrived chan struct{}
}

func (g *gated) Read(p []byte) (int, error) {
	if gate := g.gate; gate != nil {
		g.arrived <- struct{}{}
		<-gate
	}
	n, err := g.step(len(p))
	copy(p, g.data[:n])
	g.data = g.data[n:]
	g.next++
	return n, err
}

// step says what the next Read will give. The model asks it, too.
func (g *gated) step(size int) (int, error) {
	n := min(size, len(g.data), int(g.chunks[g.next%len(g.chunks)]))
	if len(g.data) == 0 || g.withEOF && n == len(g.data) {
		return n, io.EOF
	}
	return n, nil
}

// FuzzReplay runs random Reads, blocked Reads, new views, Closes and Stop against a model that holds the
// whole body and counts.
func FuzzReplay(f *testing.F) {
	f.Add([]byte("hello, body"), []byte{3}, int64(100), false, []byte{2, 4, 9, 5, 0, 6, 9})
	f.Add([]byte("hello, body"), []byte{1, 0, 4}, int64(4), true, []byte{3, 5, 4, 1, 6, 3, 1, 3, 4, 3})
	f.Add([]byte("hello, body"), []byte{9}, int64(4), true, []byte{3, 5, 4, 6, 0, 4, 0})
	f.Add([]byte("hello, body"), []byte{2}, int64(5), false, []byte{0x13, 5, 7, 6, 4, 5, 4, 15, 6, 3})
	f.Add([]byte("hello, body"), []byte{2}, int64(-1), false, []byte{4, 3, 3, 4})
	f.Add([]byte(""), []byte{2}, int64(0), false, []byte{5, 4, 6, 3, 23, 6})
	f.Fuzz(func(t *testing.T, data, chunks []byte, limit int64, withEOF bool, ops []byte) {
		if len(chunks) == 0 || bytes.Count(chunks, []byte{0}) == len(chunks) || len(data) > 1<<12 || len(ops) > 1<<10 {
			return
		}
		const maxSize = 32
		src := &gated{data: data, chunks: chunks, withEOF: withEOF, arrived: make(chan struct{})}
		b := New(io.NopCloser(src), limit)

		var (
			taken   int   // what the body has given so far
			end     error // and how it ended
			cur     = b.View()
			off     int       // what cur has yielded
			curErr  error     // what cur's Reads return
			stale   io.Reader // an earlier view
			stopped bool

			blocked     chan result // a Read in the body
			blockedSize int
			blockedOld  error // what it returns, if its view has ended
		)
		over := func() bool { return int64(taken) > max(0, limit) }
		give := func(size int) (int, error) {
			n, err := src.step(size)
			if err != nil {
				end = err
			}
			taken += n
			return n, err
		}
		check := func(what string, got []byte, err error, want []byte, wantErr error) {
			t.Helper()
			if !bytes.Equal(got, want) || err != wantErr {
				t.Fatalf("%s: %q, %v, want %q, %v", what, got, err, want, wantErr)
			}
		}
		readCur := func(size int) {
			p := make([]byte, size)
			var want []byte
			wantErr := curErr
			switch {
			case curErr != nil:
			case off < taken:
				want = data[off:min(taken, off+size)]
			case end != nil:
				wantErr = end
			case blocked != nil:
				return // it would wait
			default:
				var n int
				n, wantErr = give(size)
				want = data[off : off+n]
			}
			n, err := cur.Read(p)
			check("Read", p[:n], err, want, wantErr)
			off += n
		}
		release := func() {
			n, wantErr := give(blockedSize)
			want := data[taken-n : taken]
			close(src.gate)
			r := <-blocked
			src.gate, blocked = nil, nil
			if blockedOld != nil {
				want, wantErr = nil, blockedOld
			} else {
				off += n
			}
			check("blocked Read", []byte(r.text), r.err, want, wantErr)
		}
		endCur := func(err error) {
			if curErr == nil {
				curErr = err
				if blocked != nil && blockedOld == nil {
					blockedOld = err
				}
			}
		}

		for _, op := range ops {
			size := 1 + int(op>>3)%maxSize
			switch op % 8 {
			case 0, 1, 2, 3:
				readCur(size)
			case 4:
				endCur(ErrCutOff)
				stale, cur = cur, b.View()
				off, curErr = 0, nil
				if stopped {
					curErr = ErrCutOff
				} else if over() {
					curErr = errOutgrown
				}
			case 5:
				if blocked != nil || curErr != nil || off < taken || end != nil {
					continue
				}
				blocked, blockedSize, blockedOld = make(chan result, 1), size, nil
				src.gate = make(chan struct{})
				go func(r io.Reader, done chan<- result) {
					p := make([]byte, size)
					n, err := r.Read(p)
					done <- result{string(p[:n]), err}
				}(cur, blocked)
				<-src.arrived
			case 6:
				if blocked != nil {
					release()
				}
			case 7:
				switch {
				case op < 16:
					cur.Close()
					endCur(http.ErrBodyReadAfterClose)
				case op >= 248:
					b.Stop()
					stopped = true
					endCur(ErrCutOff)
				case stale != nil:
					if n, err := stale.Read(make([]byte, size)); n != 0 || err == nil || err == io.EOF {
						t.Fatalf("an earlier view read %d bytes, %v", n, err)
					}
				}
			}
			if got, want := b.Replayable(), !over() && !stopped; got != want {
				t.Fatalf("Replayable: %v with %d bytes read and a limit of %d, stopped %v", got, taken, limit, stopped)
			}
			b.mu.Lock()
			if kept := int64(b.record.size); kept > max(0, limit)+maxSize || stopped && kept > 0 {
				t.Fatalf("%d bytes recorded with a limit of %d, stopped %v", kept, limit, stopped)
			}
			b.mu.Unlock()
		}
		if blocked != nil {
			release()
		}
		for curErr == nil && (off < taken || end == nil) {
			readCur(maxSize)
		}
		if curErr == nil && off != len(data) {
			t.Fatalf("the view ended after %d bytes of %d", off, len(data))
		}
	})
}
