package held

import (
	"strings"
	"sync"
	"testing"
)

func TestLargeBuffersAreNotKept(t *testing.T) {
	b := &buffer{b: make([]byte, 0, keepBuffer+1)}
	b.free()
	s := &snapshot{vals: make([]string, 0, keepValues+1)}
	s.free()
	for range 100 {
		if got := buffers.Get().(*buffer); got == b {
			t.Fatal("a large buffer came back")
		}
		if got := snapshots.Get().(*snapshot); got == s {
			t.Fatal("a large snapshot came back")
		}
	}
}

func TestBufferGrowsToTheLimit(t *testing.T) {
	const limit = 10_000
	b := new(buffer)
	for range limit / 10 {
		b.add([]byte("0123456789"), "", limit)
	}
	if len(b.b) != limit || cap(b.b) != limit {
		t.Errorf("%d bytes in %d, want %d", len(b.b), cap(b.b), limit)
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
