package replay

import (
	"errors"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
)

// closable is a body that tells that it was closed; a Read waits as long as it has nothing to give.
type closable struct {
	io.Reader
	reading chan struct{} // gets a value by a Read that waits
	closed  chan struct{}
	waits   bool
}

var errClosed = errors.New("closed")

func (c *closable) Read(p []byte) (int, error) {
	if c.waits {
		c.reading <- struct{}{}
		<-c.closed
		return 0, errClosed
	}
	return c.Reader.Read(p)
}

func (c *closable) Close() error { close(c.closed); return nil }

func (c *closable) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

func newClosable(body string) *closable {
	return &closable{Reader: strings.NewReader(body), reading: make(chan struct{}, 1), closed: make(chan struct{})}
}

func request(major int, length int64) *http.Request {
	return &http.Request{ProtoMajor: major, ContentLength: length, Header: make(http.Header)}
}

// In HTTP/1 Close reads the rest: the next attempt reads all of it.
func TestCloseReadsTheRest(t *testing.T) {
	long := strings.Repeat("x", 3*mostAtClose)
	tests := map[string]struct {
		body   string
		limit  int64
		length int64
		expect string
		left   int  // of the body
		again  bool // there may be a further attempt
		closes bool // the body itself
	}{
		"small":                      {"hello, body", 100, -1, "", 0, true, false},
		"of a declared length":       {"hello, body", 100, 11, "", 0, true, false},
		"as large as the limit":      {"hello, body", 11, 11, "", 0, true, false},
		"larger than the limit":      {"hello, body", 4, 11, "", 0, false, true},
		"more than net/http reads":   {long, int64(len(long)), -1, "", len(long) - mostAtClose - 2, true, false},
		"more than that is declared": {long, int64(len(long)), int64(len(long)), "", len(long) - 2, true, false},
		"asked for":                  {"hello, body", 100, 11, "100-continue", 0, true, false},
	}
	for name, test := range tests {
		src := newClosable(test.body)
		r := request(1, test.length)
		r.Header.Set("Expect", test.expect)
		b := New(src, test.limit)
		b.CloseAs(r)
		v := b.View()
		read(t, v, 2, test.body[:2], nil)
		if err := v.Close(); err != nil {
			t.Errorf("%s: Close: %v", name, err)
		}
		read(t, v, 1, "", http.ErrBodyReadAfterClose)
		if left := src.Reader.(*strings.Reader).Len(); !src.isClosed() && (left > test.left || left < test.left-4<<10) {
			t.Errorf("%s: %d bytes are left, want %d", name, left, test.left)
		}
		next := b.View()
		if again := b.Replayable(); again != test.again || src.isClosed() != test.closes {
			t.Errorf("%s: a further attempt %t, closed %t; want %t and %t", name, again, src.isClosed(), test.again, test.closes)
		}
		if got, err := io.ReadAll(next); test.again && (string(got) != test.body || err != nil) {
			t.Errorf("%s: the next attempt reads %d bytes and %v, want the whole body", name, len(got), err)
		}
	}
}

// A client that waits to be asked for the body is not asked by Close.
func TestCloseDoesNotAskForTheBody(t *testing.T) {
	src := newClosable("hello, body")
	b := New(src, 100)
	r := request(1, 11)
	r.Header.Set("Expect", "100-continue")
	b.CloseAs(r)
	_ = b.View().Close()
	if left := src.Reader.(*strings.Reader).Len(); left != 11 {
		t.Errorf("%d bytes are left, want 11", left)
	}
}

// In HTTP/1 Close waits for a Read under way, as net/http's does, and reads on.
func TestCloseWaitsForARead(t *testing.T) {
	pr, pw := io.Pipe()
	b := New(pr, 100)
	b.CloseAs(request(1, -1))
	v := b.View()
	done := make(chan error, 1)
	go func() {
		_, err := v.Read(make([]byte, 3))
		done <- err
	}()
	for waiting := false; !waiting; runtime.Gosched() {
		b.mu.Lock()
		waiting = b.reading
		b.mu.Unlock()
	}
	closed := make(chan struct{})
	go func() { _ = v.Close(); close(closed) }()
	_, _ = pw.Write([]byte("hello, body"))
	_ = pw.Close()
	<-closed
	<-done
	if got, err := io.ReadAll(b.View()); string(got) != "hello, body" || err != nil {
		t.Errorf("the next attempt reads %q and %v", got, err)
	}
}

// In HTTP/2 Close ends a Read that is under way, and nothing else.
func TestCloseEndsARead(t *testing.T) {
	for name, reads := range map[string]bool{"a Read under way": true, "none": false} {
		src := newClosable("hello")
		src.waits = reads
		b := New(src, 100)
		b.CloseAs(request(2, -1))
		v := b.View()
		done := make(chan error, 1)
		if reads {
			go func() {
				_, err := v.Read(make([]byte, 3))
				done <- err
			}()
			<-src.reading
		}
		_ = v.Close()
		if reads {
			if err := <-done; err != http.ErrBodyReadAfterClose {
				t.Errorf("%s: got %v, want ErrBodyReadAfterClose", name, err)
			}
		}
		if src.isClosed() != reads || b.Replayable() == reads {
			t.Errorf("%s: closed %t, replayable %t", name, src.isClosed(), b.Replayable())
		}
		if left := src.Reader.(*strings.Reader).Len(); left != 5 {
			t.Errorf("%s: %d bytes are left, want 5", name, left)
		}
	}
}

// A view that was replaced leaves the body to the next one.
func TestCloseOfAnOldView(t *testing.T) {
	for _, major := range []int{1, 2} {
		src := newClosable("hello")
		b := New(src, 100)
		b.CloseAs(request(major, 5))
		old := b.View()
		now := b.View()
		_ = old.Close()
		if left := src.Reader.(*strings.Reader).Len(); left != 5 || src.isClosed() {
			t.Errorf("HTTP/%d: %d bytes are left, closed %t", major, left, src.isClosed())
		}
		read(t, now, 5, "hello", nil)
	}
}
