package held

import (
	"io"
	"strings"
	"sync"
	"testing"
)

func TestLargeBuffersAreNotKept(t *testing.T) {
	b := newBody(keepMemory + 1)
	if err := b.append(make([]byte, keepMemory+1), ""); err != nil {
		t.Fatal(err)
	}
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
		if err := m.append([]byte("0123456789"), ""); err != nil {
			t.Fatal(err)
		}
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
				w.Header().Set("X", mark)
				wait := make(chan struct{})
				go func() { // strays on while the end is made
					defer close(wait)
					for range 20 {
						_, _ = w.WriteString(mark)
						_ = w.FlushError()
						_, _ = w.ReadFrom(strings.NewReader(mark))
					}
				}()
				state := w.HandlerDone()
				switch {
				case !state.Held:
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

func (*failing) append([]byte, string) error { return errClient }
func (*failing) writeTo(io.Writer) error     { return errClient }
func (f *failing) free()                     { f.freed++ }

func TestStoreThatFails(t *testing.T) {
	c, f := newClient(), new(failing)
	w := writer(c, request("GET"), 100)
	w.body = &body{store: f}
	if n, err := w.WriteString("x"); n != 0 || err != errClient {
		t.Errorf("Write: got %d %v, want the store's error", n, err)
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
