package held

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestAbortKeepsTheLastByte(t *testing.T) {
	c := newClient()
	w := writer(c, request("GET"), 4)
	w.Header().Set("Content-Length", "10")
	_, _ = w.WriteString("0123456789")
	w.HandlerDone()
	w.Abort()
	w.Release() // must not send it either
	w.Close()
	if got := c.body.String(); got != "012345678" || !c.deadline.Before(time.Now()) || c.deadline.IsZero() {
		t.Errorf("got %q, deadline %v, want the last byte missing and a deadline in the past", got, c.deadline)
	}
}

func TestResetTakesEverythingBack(t *testing.T) {
	for _, own := range []bool{false, true} {
		c := newClient()
		c.header["Outside"] = []string{"a", "b"}
		c.header["Date"] = nil
		before := maps.Clone(c.header)
		w := writer(c, request("POST"), 100)
		if own {
			w.OwnHeader()
		}
		w.Header().Set("Outside", "changed")
		w.Header().Set("X", "1")
		w.Header().Set("Content-Length", "4")
		w.Header()["Date"] = []string{"now"}
		_, _ = w.WriteString("body")
		w.Header().Set("Trailer:Sum", "1")
		w.HandlerDone()
		w.Reset()
		w.Close()
		if !reflect.DeepEqual(c.header, before) || c.status != 0 || c.body.Len() != 0 {
			t.Errorf("own %t: got %v, %s, want %v and nothing sent", own, c.header, c, before)
		}
	}
}

func TestResetWithoutHeader(t *testing.T) {
	c := newClient()
	w := writer(c, request("POST"), 100)
	w.Header().Set("X", "1")
	w.HandlerDone()
	w.Reset()
	if len(c.header) != 0 {
		t.Errorf("got %v, want an empty header", c.header)
	}
}

func TestAfterHandlerDoneNothingIsAdded(t *testing.T) {
	for _, streaming := range []bool{false, true} {
		c := newClient()
		w := writer(c, request("GET"), 4)
		w.WriteHeader(200)
		_, _ = w.WriteString("one")
		if streaming {
			_ = w.FlushError()
		}
		w.HandlerDone()
		before := c.String()
		_, err := w.WriteString("two")
		_, err2 := w.ReadFrom(strings.NewReader("two"))
		_, _, err4 := w.Hijack()
		for what, err := range map[string]error{
			"Write": err, "ReadFrom": err2, "Flush": w.FlushError(), "Hijack": err4,
			"SetReadDeadline": w.SetReadDeadline(time.Time{}), "SetWriteDeadline": w.SetWriteDeadline(time.Time{}),
			"EnableFullDuplex": w.EnableFullDuplex(),
		} {
			if err != ErrReturned {
				t.Errorf("streaming %t: %s: got %v, want ErrReturned", streaming, what, err)
			}
		}
		if !streaming {
			w.WriteHeader(500)
		}
		if got := c.String(); got != before {
			t.Errorf("streaming %t: %s reached the client", streaming, got)
		}
		w.Release()
		w.Close()
		if got := c.body.String(); got != "one" {
			t.Errorf("streaming %t: got %q, want one", streaming, got)
		}
	}
}

func TestAfterCloseAllIsPassedOn(t *testing.T) {
	c := newClient()
	w := writer(c, request("GET"), 100)
	w.finish()
	w.WriteHeader(202)
	_, _ = w.Write([]byte("a"))
	_, _ = w.WriteString("b")
	_, _ = w.ReadFrom(strings.NewReader("c"))
	w.Flush()
	w.Header().Set("X", "1")
	if got, want := c.String(), `202 map[] "abc" flushed 1`; got != want || c.header.Get("X") != "1" {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestStrayGoroutines(t *testing.T) {
	ends := map[string]func(w *Writer){
		"Release": func(w *Writer) {
			w.HandlerDone()
			w.Release()
		},
		"Finish": func(w *Writer) { w.Finish() },
		"Reset": func(w *Writer) {
			if w.HandlerDone().Held {
				w.Reset()
			}
		},
		"Abort": func(w *Writer) {
			w.HandlerDone()
			w.Abort()
		},
	}
	strays := map[string]func(w *Writer){
		"Write":       func(w *Writer) { _, _ = w.Write([]byte("stray")) },
		"WriteString": func(w *Writer) { _, _ = w.WriteString("s") },
		"Header":      func(w *Writer) { w.Header() },
		"WriteHeader": func(w *Writer) { w.WriteHeader(500) },
		"Flush":       func(w *Writer) { w.Flush() },
		"Hijack":      func(w *Writer) { _, _, _ = w.Hijack() },
		"ReadFrom":    func(w *Writer) { _, _ = w.ReadFrom(strings.NewReader("stray")) },
		"Rewrite":     func(w *Writer) { w.Rewrite(nil) },
		"Untouched":   func(w *Writer) { w.Untouched() },
	}
	for end, finish := range ends {
		for name, stray := range strays {
			t.Run(end+" and "+name, func(t *testing.T) {
				for range 50 {
					c := newClient()
					c.conn, _ = net.Pipe()
					w := writer(c, request("GET"), 8)
					_, _ = w.WriteString("body")
					done := make(chan struct{})
					go func() {
						defer close(done)
						for range 5 {
							stray(w)
						}
					}()
					finish(w)
					w.Close()
					<-done
				}
			})
		}
	}
}

// A Write that waits for the client holds no lock that the end needs.
func TestBlockedWriteHoldsNoLock(t *testing.T) {
	c := newClient()
	entered, leave := make(chan struct{}), make(chan struct{})
	c.block = func() {
		entered <- struct{}{}
		<-leave
	}
	w := writer(c, request("GET"), 2)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = w.WriteString("ab")
		_, _ = w.WriteString("cd")
	}()
	<-entered
	if w.HandlerDone().Held {
		t.Error("held while the client is written to")
	}
	w.Abort()
	w.Close()
	close(leave)
	for {
		select {
		case <-entered:
		case <-done:
			return
		}
	}
}

func TestAbortOfHTTP10Resets(t *testing.T) {
	for _, length := range []string{"", "4"} { // a writer outside may take it out of the header
		plain := &lingering{linger: -1}
		secure := &lingering{linger: -1}
		for l, conn := range map[*lingering]net.Conn{plain: plain, secure: tls.Client(secure, nil)} {
			c := newClient()
			c.conn = conn
			abortHTTP10(c, length)
			if l.linger != 0 || !l.closed {
				t.Errorf("length %q: linger %d, closed %t: no reset", length, l.linger, l.closed)
			}
		}
	}
}

func TestAbortOfHTTP10WithoutHijack(t *testing.T) {
	for _, length := range []string{"", "4"} {
		c := newClient()
		abortHTTP10(c, length)
		if c.deadline.IsZero() {
			t.Errorf("length %q: no write deadline", length)
		}
	}
}

// abortHTTP10 breaks off a response of that length, "" if none is declared.
func abortHTTP10(c *client, length string) {
	r := request("GET")
	r.ProtoMajor, r.ProtoMinor = 1, 0
	w := writer(c, r, 2)
	if length != "" {
		w.Header().Set("Content-Length", length)
	}
	_, _ = w.WriteString("body")
	w.HandlerDone()
	w.Abort()
}

func TestAbortWithoutDeadlineTakesTheConnection(t *testing.T) {
	c, conn := newClient(), &lingering{linger: -1}
	c.conn = conn
	w := writer(struct {
		http.ResponseWriter
		http.Hijacker
	}{c, c}, request("GET"), 2)
	_, _ = w.WriteString("body")
	w.HandlerDone()
	w.Abort()
	if conn.linger != 0 || !conn.closed {
		t.Errorf("linger %d, closed %t: the connection lives", conn.linger, conn.closed)
	}
}

func TestReleaseOfAnHTTP2HeadWithTrailers(t *testing.T) {
	c := newClient()
	w := writer(c, request("HEAD"), 1000)
	w.Header().Set("Trailer", "Sum")
	_, _ = w.WriteString(strings.Repeat("x", 2*sniffLen))
	w.finish()
	if got := c.sent.Get("Content-Length"); got != "1024" {
		t.Errorf("got Content-Length %q, want what was counted", got)
	}
}

var large = strings.Repeat("x", 100)

// panicTests are calls in which the part of a writer below that at names panics.
var panicTests = []struct {
	name, at string
	do       func(w *Writer, arm func())
}{
	{"held", "Write", func(w *Writer, arm func()) { _, _ = w.WriteString("x"); arm(); w.HandlerDone(); w.Release() }},
	{"held", "WriteHeader", func(w *Writer, arm func()) { w.WriteHeader(201); arm(); w.HandlerDone(); w.Release() }},
	{"held and flushed for trailers", "Flush", func(w *Writer, arm func()) {
		_, _ = w.ReadFrom(strings.NewReader(strings.Repeat("x", 2*sniffLen)))
		w.Header().Set(http.TrailerPrefix+"X", "1")
		arm()
		w.HandlerDone()
		w.Release()
	}},
	{"untouched", "Header", func(w *Writer, arm func()) { w.Header().Set("X", "1"); arm(); w.HandlerDone(); w.Release() }},
	{"grows too large", "Write", func(w *Writer, arm func()) { arm(); _, _ = w.WriteString(large) }},
	{"grows too large", "WriteHeader", func(w *Writer, arm func()) { w.WriteHeader(200); arm(); _, _ = w.WriteString(large) }},
	{"grows too large", "Header", func(w *Writer, arm func()) { arm(); _, _ = w.WriteString(large) }},
	{"streams", "Write", func(w *Writer, arm func()) { _, _ = w.WriteString(large); arm(); _, _ = w.WriteString(large) }},
	{"is read", "Write", func(w *Writer, arm func()) { arm(); _, _ = w.ReadFrom(strings.NewReader(large)) }},
	{"is read", "WriteHeader", func(w *Writer, arm func()) { w.WriteHeader(200); arm(); _, _ = w.ReadFrom(strings.NewReader(large)) }},
	{"is read with a length", "Write", func(w *Writer, arm func()) {
		w.Header().Set("Content-Length", "100")
		w.WriteHeader(200)
		arm()
		_, _ = w.ReadFrom(strings.NewReader(large))
	}},
	{"last byte", "Write", func(w *Writer, arm func()) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.WriteString(large)
		arm()
		w.HandlerDone()
		w.Release()
	}},
	{"flushed", "WriteHeader", func(w *Writer, arm func()) { w.WriteHeader(200); arm(); w.Flush() }},
	{"flushed", "Write", func(w *Writer, arm func()) { _, _ = w.WriteString("x"); arm(); w.Flush() }},
	{"flushed", "Flush", func(w *Writer, arm func()) { arm(); w.Flush() }},
	{"hijacked after a status", "WriteHeader", func(w *Writer, arm func()) { w.WriteHeader(101); arm(); _, _, _ = w.Hijack() }},
	{"hijacked after a status", "Header", func(w *Writer, arm func()) { w.WriteHeader(101); arm(); _, _, _ = w.Hijack() }},
	{"header asked for late", "Header", func(w *Writer, arm func()) { _, _ = w.WriteString("x"); arm(); w.Header() }},
	{"ends in one step", "Write", func(w *Writer, arm func()) { _, _ = w.WriteString("x"); arm(); w.Finish() }},
	{"early hints", "WriteHeader", func(w *Writer, arm func()) { arm(); w.WriteHeader(103) }},
}

// The panic of a writer below goes on, and what comes after it, as the caller
// aborts the response, does not wait for a lock.
func TestWriterBelowPanics(t *testing.T) {
	for _, test := range panicTests {
		t.Run(test.name+", "+test.at, func(t *testing.T) {
			p := &panicky{client: newClient()}
			w := writer(p, request("GET"), 10)
			if strings.HasSuffix(test.name, "trailers") {
				w = writer(p, request("GET"), 10*sniffLen)
			}
			got := func() (v any) {
				defer func() { v = recover() }()
				test.do(w, func() { p.at = test.at })
				return nil
			}()
			if got != test.at {
				t.Fatalf("got %v, want the panic of %s", got, test.at)
			}
			p.at = ""
			done := make(chan struct{})
			go func() {
				defer close(done)
				w.HandlerDone()
				w.Abort()
				w.Close()
			}()
			select {
			case <-done:
			case <-time.After(time.Minute):
				t.Fatal("the end of the response waits for a lock")
			}
		})
	}
}

// What comes when the handler has returned may meet a writer that net/http has taken
// back, which panics. That does not go on; while the handler runs it does.
func TestLateCallsDoNotPanic(t *testing.T) {
	calls := map[string]struct {
		at   string
		call func(w *Writer) error
	}{
		"Header":      {"Header", func(w *Writer) error { w.Header().Set("X", "1"); return ErrReturned }},
		"CloseNotify": {"CloseNotify", func(w *Writer) error { <-w.CloseNotify(); return ErrReturned }},
		"WriteHeader": {"WriteHeader", func(w *Writer) error { w.WriteHeader(200); return ErrReturned }},
		"Write":       {"Write", func(w *Writer) error { _, err := w.Write([]byte("x")); return err }},
		"WriteString": {"Write", func(w *Writer) error { _, err := w.WriteString("x"); return err }},
		"ReadFrom":    {"Write", func(w *Writer) error { _, err := w.ReadFrom(strings.NewReader("x")); return err }},
		"Flush":       {"Flush", func(w *Writer) error { return w.FlushError() }},
	}
	for name, test := range calls {
		for _, late := range []bool{false, true} {
			p := &panicky{client: newClient()}
			r := request("GET")
			ctx, cancel := context.WithCancel(r.Context())
			cancel() // for CloseNotify
			w := PassThrough(p, r.WithContext(ctx))
			if late {
				w.Close()
			}
			p.at = test.at
			var err error
			panicked := func() (v any) {
				defer func() { v = recover() }()
				err = test.call(w)
				return nil
			}()
			if late && (panicked != nil || err != ErrReturned) || !late && panicked != test.at {
				t.Errorf("%s, late %t: got the panic %v, and %v", name, late, panicked, err)
			}
		}
	}
}

// lockSpy is an underlying writer that notes which of its methods are called while
// the lock of the Writer is held.
type lockSpy struct {
	*client
	w    *Writer
	held map[string]bool
}

func (s *lockSpy) note(method string) {
	free := s.w.mu.TryLock()
	if free {
		s.w.mu.Unlock()
	}
	s.held[method] = s.held[method] || !free
}

func (s *lockSpy) WriteHeader(status int) {
	if status < 200 && status != http.StatusSwitchingProtocols {
		s.note("early WriteHeader")
	} else {
		s.note("WriteHeader")
	}
	s.client.WriteHeader(status)
}

func (s *lockSpy) Write(p []byte) (int, error) {
	s.note("Write")
	return s.client.Write(p)
}

func (s *lockSpy) Flush() {
	s.note("Flush")
	s.client.Flush()
}

func (s *lockSpy) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	s.note("Hijack")
	return s.client.Hijack()
}

func (s *lockSpy) SetWriteDeadline(t time.Time) error {
	s.note("SetWriteDeadline")
	return s.client.SetWriteDeadline(t)
}

// Nobody waits for a client with the lock. A final status alone is handed on with
// it, so that nothing gets ahead of it.
func TestClientIsNotWaitedForWithTheLock(t *testing.T) {
	tests := map[string]struct {
		header string
		do     func(w *Writer)
		want   []string
	}{
		"held":          {"", func(w *Writer) { w.WriteHeader(200); _, _ = w.WriteString("x"); w.finish() }, []string{"WriteHeader", "Write"}},
		"too large":     {"", func(w *Writer) { w.WriteHeader(200); _, _ = w.WriteString("x"); _, _ = w.WriteString(large) }, []string{"WriteHeader", "Write"}},
		"last byte":     {"100", func(w *Writer) { w.WriteHeader(200); _, _ = w.WriteString(large); w.finish() }, []string{"WriteHeader", "Write"}},
		"read":          {"", func(w *Writer) { w.WriteHeader(200); _, _ = w.ReadFrom(strings.NewReader(large)); w.finish() }, []string{"WriteHeader", "Write"}},
		"flushed":       {"", func(w *Writer) { w.WriteHeader(200); _, _ = w.WriteString("x"); w.Flush() }, []string{"WriteHeader", "Write", "Flush"}},
		"hijacked":      {"", func(w *Writer) { w.WriteHeader(101); _, _, _ = w.Hijack() }, []string{"WriteHeader", "Hijack"}},
		"early hints":   {"", func(w *Writer) { w.WriteHeader(103) }, []string{"early WriteHeader"}},
		"aborted":       {"", func(w *Writer) { w.WriteHeader(200); w.Flush(); w.HandlerDone(); w.Abort() }, []string{"WriteHeader", "Flush", "SetWriteDeadline"}},
		"passed on":     {"", func(w *Writer) { w.Close(); w.WriteHeader(103); _, _ = w.WriteString("x") }, []string{"early WriteHeader", "Write"}},
		"copied, later": {"", func(w *Writer) { w.Close(); _, _ = w.ReadFrom(strings.NewReader("x")) }, []string{"Write"}},
	}
	for name, test := range tests {
		s := &lockSpy{client: newClient(), held: make(map[string]bool)}
		s.conn = &lingering{}
		s.w = writer(s, request("GET"), 10)
		if test.header != "" {
			s.w.Header().Set("Content-Length", test.header)
		}
		test.do(s.w)
		want := make(map[string]bool)
		for _, method := range test.want {
			want[method] = method == "WriteHeader"
		}
		if !maps.Equal(s.held, want) {
			t.Errorf("%s: called, with the lock or not: got %v, want %v", name, s.held, want)
		}
	}
}

// A Write that is waiting for the client at the end of the request sends nothing
// any more when it goes on.
func TestWriteThatOutlivesTheResponse(t *testing.T) {
	c := newClient()
	entered, leave := make(chan struct{}), make(chan struct{})
	c.block = func() {
		entered <- struct{}{}
		<-leave
	}
	w := writer(c, request("GET"), 2)
	_, _ = w.WriteString("ab")
	done := make(chan error)
	go func() {
		_, err := w.WriteString("cd") // sends what is held first
		done <- err
	}()
	<-entered
	w.HandlerDone()
	w.Abort()
	w.Close()
	close(leave)
	if err := <-done; err != ErrReturned || c.body.String() != "ab" {
		t.Errorf("got %v and %q sent, want ErrReturned and what was held", err, c.body.String())
	}
}

// net/http has taken the response back: nothing reaches its writer any more.
func TestOverAtTheServer(t *testing.T) {
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), http.ServerContextKey, new(http.Server)))
	c := newClient()
	w := writer(c, request("GET").WithContext(ctx), 100)
	w.finish()
	if _, err := w.WriteString("x"); err != nil {
		t.Errorf("a middleware outside still runs: got %v", err)
	}
	before := c.String()
	cancel()
	_, err := w.WriteString("y")
	_, err2 := w.ReadFrom(strings.NewReader("y"))
	for what, err := range map[string]error{
		"Write": err, "ReadFrom": err2, "Flush": w.FlushError(), "SetReadDeadline": w.SetReadDeadline(time.Time{}),
		"SetWriteDeadline": w.SetWriteDeadline(time.Time{}), "EnableFullDuplex": w.EnableFullDuplex(),
	} {
		if err != ErrReturned {
			t.Errorf("%s: got %v, want ErrReturned", what, err)
		}
	}
	w.WriteHeader(103)
	if got := c.String(); got != before || len(c.early) > 0 {
		t.Errorf("got %s and early %v, want %s", got, c.early, before)
	}
}

func TestAbortWithoutDeadlineAndHijack(t *testing.T) {
	c := newClient()
	w := writer(struct {
		http.ResponseWriter
		http.Flusher
	}{c, c}, request("GET"), 2)
	_, _ = w.WriteString("body")
	w.HandlerDone()
	w.Abort()
	if got := c.header.Get("Content-Length"); got != "9223372036854775807" {
		t.Errorf("got Content-Length %q, want one that is never reached", got)
	}
}

// Finish is HandlerDone and Release: the same leaves, for every kind of response, and what
// is written afterwards is passed on.
func TestFinishIsHandlerDoneAndRelease(t *testing.T) {
	for name, handler := range map[string]func(w *Writer){
		"nothing":        func(*Writer) {},
		"a body":         func(w *Writer) { _, _ = w.WriteString("body") },
		"an empty body":  func(w *Writer) { _, _ = w.WriteString("") },
		"a status":       func(w *Writer) { w.WriteHeader(404) },
		"a header":       func(w *Writer) { w.Header().Set("X", "1"); _, _ = w.WriteString("body") },
		"a page":         func(w *Writer) { _, _ = w.WriteString(strings.Repeat("x", 600)) },
		"flushed":        func(w *Writer) { _, _ = w.WriteString("body"); w.Flush() },
		"too large":      func(w *Writer) { _, _ = w.WriteString(strings.Repeat("x", 200)) },
		"a late header":  func(w *Writer) { _, _ = w.WriteString("body"); w.Header().Set("X", "1") },
		"its own status": func(w *Writer) { w.DefaultStatus(500); _, _ = w.WriteString("body") },
	} {
		for _, method := range []string{"GET", "HEAD"} {
			var got [2]string
			for i, finish := range []func(*Writer){(*Writer).Finish, func(w *Writer) { w.HandlerDone(); w.Release() }} {
				c := newClient()
				w := writer(c, request(method), 100)
				handler(w)
				finish(w)
				_, err := w.WriteString("late")
				got[i] = fmt.Sprint(c.status, c.header, c.body.String(), err)
			}
			if got[0] != got[1] {
				t.Errorf("%s, %s: Finish sends %s, HandlerDone and Release %s", name, method, got[0], got[1])
			}
		}
	}
}
