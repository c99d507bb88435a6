package held

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
)

func TestLargeBuffersAreNotKept(t *testing.T) {
	b := newBody(keepMemory + 1)
	b.append(make([]byte, keepMemory+1), "")
	b.free()
	s := &snapshot{vals: make([]string, 0, keepValues+1)}
	s.free()
	for range 100 {
		if got := bodies.Get().(*body); got == b {
			t.Fatal("a large buffer came back")
		}
		if got := snapshots.Get().(*snapshot); got == s {
			t.Fatal("a large snapshot came back")
		}
	}
}

func TestBufferGrowsToTheLimit(t *testing.T) {
	const limit = 10_000
	m := &memory{limit: limit}
	for range limit / 10 {
		m.append([]byte("0123456789"), "")
	}
	if len(m.bytes) != limit || cap(m.bytes) != limit {
		t.Errorf("%d bytes in %d, want %d", len(m.bytes), cap(m.bytes), limit)
	}
}

func TestBuffersAreNeverShared(t *testing.T) {
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			mark := strings.Repeat(string(rune('a'+n)), 100)
			for range 200 {
				c := newClient()
				w := writer(c, request("GET"), 1000)
				if n < 4 { // the others may end in one step
					w.Header().Set("X", mark)
				}
				wait := make(chan struct{})
				go func() { // strays on while the end is made
					defer close(wait)
					for range 20 {
						_, _ = w.WriteString(mark)
						_ = w.FlushError()
						_, _ = w.ReadFrom(strings.NewReader(mark))
					}
				}()
				switch {
				case n >= 4:
					w.Finish()
				case !w.HandlerDone().Held:
					w.Abort()
				case n%2 == 0:
					w.Release()
				default:
					w.Reset()
				}
				w.Close()
				<-wait
				if rest := strings.Trim(c.body.String(), mark[:1]); rest != "" {
					t.Errorf("got bytes of another response: %q", rest)
				}
			}
		})
	}
	wg.Wait()
}

// failing is a store that takes nothing.
type failing struct{ freed int }

func (*failing) append([]byte, string)   {}
func (*failing) writeTo(io.Writer) error { return errClient }
func (f *failing) free()                 { f.freed++ }

func TestStoreThatFails(t *testing.T) {
	c, f := newClient(), new(failing)
	w := writer(c, request("GET"), 100)
	w.body = &body{store: f}
	if n, err := w.WriteString("x"); n != 1 || err != nil {
		t.Errorf("Write: got %d %v, want what net/http's returns, which keeps it in a buffer", n, err)
	}
	if err := w.FlushError(); err != errClient || f.freed != 1 {
		t.Errorf("Flush: got %v, freed %d times, want the store's error, and freed once", err, f.freed)
	}
	for range 100 {
		if b := newBody(1); b.store != &b.memory {
			t.Fatal("the store of another response came back")
		}
	}
}

// A further Write of a held response is looked at only for its room, which every bound
// of the response has a part in.
func TestRoomOfAHeldBody(t *testing.T) {
	for _, test := range []struct {
		name    string
		method  string
		length  string                     // declared before the first Write
		then    func(c *client, w *Writer) // after a Write of "body", before one of "0123456789"
		err     error
		streams bool
	}{
		{"none is needed", "GET", "", func(*client, *Writer) {}, nil, false},
		{"the limit", "GET", "", func(_ *client, w *Writer) { _, _ = w.WriteString("0123456789") }, nil, true},
		{"a declared length", "GET", "13", func(*client, *Writer) {}, http.ErrContentLength, false},
		{"a Write that was refused", "GET", "14", func(_ *client, w *Writer) { _, _ = w.WriteString("0123456789a") }, http.ErrContentLength, false},
		{"a length declared outside", "GET", "", func(c *client, w *Writer) {
			c.header.Set("Content-Length", "4")
			_ = w.FlushError() // waits, because it would complete the response
		}, http.ErrContentLength, false},
		{"one that the handler looks at", "GET", "", func(c *client, w *Writer) {
			c.header.Set("Content-Length", "13")
			_ = w.Header()
		}, http.ErrContentLength, false},
		{"the handler's return", "GET", "", func(_ *client, w *Writer) { w.HandlerDone() }, ErrReturned, false},
		{"the start of the response", "GET", "", func(_ *client, w *Writer) {
			w.mu.Lock()
			w.startLocked() // what is held is not taken out yet
			w.mu.Unlock()
		}, nil, true},
		{"a later error", "GET", "", func(_ *client, w *Writer) { w.WriteHeader(204); w.WriteHeader(500) }, nil, false},
		{"HEAD", "HEAD", "", func(_ *client, w *Writer) {
			w.limit = 2 * sniffLen
			_, _ = w.Write(make([]byte, sniffLen))
		}, nil, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newClient()
			w := writer(c, request(test.method), 20)
			if test.length != "" {
				w.Header().Set("Content-Length", test.length)
			}
			_, _ = w.WriteString("body")
			test.then(c, w)
			_, err := w.Write([]byte("0123456789"))
			if err != test.err || (c.status != 0) != test.streams {
				t.Errorf("got %v, sent %v, want %v, and that it streams: %t", err, c, test.err, test.streams)
			}
			if test.streams && !strings.HasSuffix(c.body.String(), "0123456789") {
				t.Errorf("%q was sent, want the last Write at its end", c.body.String())
			}
			if test.method == "HEAD" && (w.written != 14+sniffLen || w.body.size != sniffLen) {
				t.Errorf("%d bytes counted, %d held, want all and what the type is found by", w.written, w.body.size)
			}
		})
	}
}
