package held

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

var errClient = errors.New("the client has gone")

// client is an underlying writer of which every part can be looked at. It may be
// used by several goroutines.
type client struct {
	mu       sync.Mutex
	header   http.Header
	early    []int
	status   int
	sent     http.Header
	body     bytes.Buffer
	flushes  int
	deadline time.Time
	conn     net.Conn
	fail     error
	block    func() // called by Write, outside of the lock
}

func newClient() *client { return &client{header: make(http.Header)} }

func (c *client) Header() http.Header { return c.header }

func (c *client) WriteHeader(status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case status < 200 && status != 101:
		c.early = append(c.early, status)
	case c.status == 0:
		c.status, c.sent = status, c.header.Clone()
	}
}

func (c *client) Write(p []byte) (int, error) {
	if c.block != nil {
		c.block()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		return 0, c.fail
	}
	if c.status == 0 {
		c.status, c.sent = 200, c.header.Clone()
	}
	return c.body.Write(p)
}

func (c *client) Flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flushes++
}

func (c *client) SetReadDeadline(time.Time) error { return nil }
func (c *client) EnableFullDuplex() error         { return nil }

func (c *client) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return nil
}

func (c *client) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if c.conn == nil {
		return nil, nil, errClient
	}
	return c.conn, nil, nil
}

func (c *client) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("%d %v %q flushed %d", c.status, c.sent, c.body.String(), c.flushes)
}

func request(method string) *http.Request { return httptest.NewRequest(method, "/", nil) }

func writer(c http.ResponseWriter, r *http.Request, limit int) *Writer {
	w := new(Writer)
	w.Init(c, r, limit)
	return w
}

func (w *Writer) finish() {
	w.HandlerDone()
	w.Release()
	w.Close()
}

func TestHeldUntilRelease(t *testing.T) {
	c := newClient()
	w := writer(c, request("POST"), 10)
	if !w.Untouched() {
		t.Error("a new one is not Untouched")
	}
	w.Header().Set("X", "1")
	w.WriteHeader(201)
	_, _ = w.Write([]byte("01234"))
	_, _ = w.WriteString("56789")
	if got := c.String(); c.status != 0 || c.body.Len() != 0 || w.Untouched() {
		t.Errorf("got %s before Release, want nothing", got)
	}
	if got, want := w.HandlerDone(), (State{Status: 201, Held: true}); got != want {
		t.Errorf("HandlerDone: got %+v, want %+v", got, want)
	}
	w.Release()
	w.Close()
	if got, want := c.String(), `201 map[X:[1]] "0123456789" flushed 0`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestStreamsBeyondTheLimit(t *testing.T) {
	c := newClient()
	w := writer(c, request("GET"), 10)
	_, _ = w.WriteString("0123456789")
	if c.body.Len() != 0 {
		t.Error("sent before the limit was passed")
	}
	_, _ = w.WriteString("x")
	if got := c.body.String(); got != "0123456789x" {
		t.Errorf("got %q, want everything", got)
	}
	if got, want := w.HandlerDone(), (State{Status: 200}); got != want {
		t.Errorf("HandlerDone: got %+v, want %+v", got, want)
	}
}

func TestLastByteOfALengthWaits(t *testing.T) {
	body := "0123456789abcdef"
	writes := map[string]func(w *Writer){
		"bytes":    func(w *Writer) { _, _ = w.Write([]byte(body)) },
		"string":   func(w *Writer) { _, _ = w.WriteString(body) },
		"one each": func(w *Writer) { writeEach(w, body) },
		"flushed": func(w *Writer) {
			_, _ = w.WriteString(body[:3])
			_ = w.FlushError()
			_, _ = w.WriteString(body[3:])
			_ = w.FlushError()
		},
		"copied": func(w *Writer) { _, _ = io.Copy(w, onlyReader{strings.NewReader(body)}) },
		"copied after a status": func(w *Writer) {
			w.WriteHeader(200)
			_, _ = io.Copy(w, onlyReader{strings.NewReader(body)})
		},
		"limited copies": func(w *Writer) {
			src := strings.NewReader(body)
			w.WriteHeader(200)
			_, _ = io.CopyN(w, src, 3)
			_, _ = io.CopyN(w, src, 12)
			_, _ = io.CopyN(w, src, 1)
		},
	}
	for name, write := range writes {
		c := newClient()
		w := writer(c, request("GET"), 4)
		w.Header().Set("Content-Length", "16")
		write(w)
		w.HandlerDone()
		if got := c.body.String(); got != body[:15] {
			t.Errorf("%s: got %q before Release, want all but the last byte", name, got)
		}
		w.Release()
		w.Close()
		if got := c.body.String(); got != body {
			t.Errorf("%s: got %q, want all", name, got)
		}
	}
}

type onlyReader struct{ io.Reader }

func writeEach(w *Writer, body string) {
	for i := range body {
		_, _ = w.Write([]byte{body[i]})
	}
}

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

func TestFlushThatWouldComplete(t *testing.T) {
	cases := map[string]struct {
		method string
		write  func(w *Writer)
	}{
		"HEAD":   {"HEAD", func(w *Writer) { _, _ = w.WriteString("body") }},
		"204":    {"GET", func(w *Writer) { w.WriteHeader(204) }},
		"304":    {"GET", func(w *Writer) { w.WriteHeader(304) }},
		"length": {"GET", func(w *Writer) { w.Header().Set("Content-Length", "4"); _, _ = w.WriteString("body") }},
		"zero":   {"GET", func(w *Writer) { w.Header().Set("Content-Length", "0"); w.WriteHeader(200) }},
	}
	for name, c := range cases {
		under := newClient()
		w := writer(under, request(c.method), 100)
		c.write(w)
		if err := w.FlushError(); err != nil {
			t.Errorf("%s: Flush: %v", name, err)
		}
		w.Flush()
		if under.status != 0 || under.flushes != 0 {
			t.Errorf("%s: got %s after Flush, want nothing sent", name, under)
		}
		if !w.HandlerDone().Held {
			t.Errorf("%s: not held any more", name)
		}
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

func TestOwnHeaderIsNotTheClients(t *testing.T) {
	c := newClient()
	c.header["Outside"] = []string{"1"}
	w := writer(c, request("GET"), 100)
	w.OwnHeader()
	w.Header().Set("X", "1")
	w.Header()["Outside"][0] = "2"
	if c.header.Get("X") != "" || c.header.Get("Outside") != "1" {
		t.Errorf("got %v, want the client's header alone", c.header)
	}
	w.WriteHeader(103)
	if c.header.Get("X") != "1" || len(c.early) != 1 {
		t.Errorf("got %v, %v: a 1xx has the handler's header", c.header, c.early)
	}
	w.Header().Set("Trailer", "Sum")
	_, _ = w.WriteString("body")
	w.Header().Set("Sum", "abc")
	w.finish()
	if c.sent.Get("X") != "1" || c.sent.Get("Sum") != "" || c.header.Get("Sum") != "abc" {
		t.Errorf("sent %v, then %v, want the trailer after the header", c.sent, c.header)
	}
	w.Header().Set("Late", "1")
	if c.header.Get("Late") != "" {
		t.Error("the own header is the client's after Close")
	}
}

func TestOwnHeaderWithoutAMap(t *testing.T) {
	c := &client{}
	w := writer(noHeader{c}, request("GET"), 100)
	w.OwnHeader()
	w.Header().Set("X", "1")
	w.HandlerDone()
}

type noHeader struct{ *client }

func (noHeader) Header() http.Header { return nil }

func TestOwnHeaderOfAnUntouchedResponse(t *testing.T) {
	for _, own := range []bool{false, true} {
		c := newClient()
		w := writer(c, request("GET"), 100)
		if own {
			w.OwnHeader()
		}
		w.Header().Set("X", "1")
		w.Header().Set("Transfer-Encoding", "identity")
		w.finish()
		if c.status != 0 || c.header.Get("X") != "1" || c.header.Get("Transfer-Encoding") != "" {
			t.Errorf("own %t: got %v, want X, and the status left to net/http", own, c)
		}
	}
}

func TestLateHeaderIsNotSent(t *testing.T) {
	for _, asked := range []bool{false, true} {
		c := newClient()
		w := writer(c, request("GET"), 100)
		if asked {
			w.Header().Set("X", "1")
		}
		_, _ = w.WriteString("body")
		w.Header().Set("Late", "1")
		w.Header().Set("X", "2")
		if h := w.SentHeader(); h.Get("Late") != "" {
			t.Errorf("SentHeader has %v", h)
		}
		w.finish()
		if c.sent.Get("Late") != "" || asked && c.sent.Get("X") != "1" || c.header.Get("Late") != "1" {
			t.Errorf("asked before %t: sent %v, then %v", asked, c.sent, c.header)
		}
	}
}

func TestSentHeaderBeforeAStatus(t *testing.T) {
	w := writer(newClient(), request("GET"), 100)
	w.Header().Set("X", "1")
	if h := w.SentHeader(); h.Get("X") != "1" {
		t.Errorf("got %v, want X", h)
	}
}

func TestSecondStatus(t *testing.T) {
	cases := map[string]struct {
		statuses []int
		want     string
	}{
		"below 400 is ignored":    {[]int{201, 302}, `201 map[] "oneend" flushed 0`},
		"above replaces":          {[]int{201, 500}, `500 map[] "end" flushed 0`},
		"replaces an error":       {[]int{404, 500}, `500 map[] "end" flushed 0`},
		"1xx after a status":      {[]int{201, 103}, `201 map[] "oneend" flushed 0`},
		"replaced by one without": {[]int{500, 201}, `500 map[] "oneend" flushed 0`},
	}
	for name, c := range cases {
		under := newClient()
		w := writer(under, request("GET"), 100)
		w.WriteHeader(c.statuses[0])
		_, _ = w.WriteString("one")
		w.WriteHeader(c.statuses[1])
		_, _ = w.WriteString("end")
		w.finish()
		if got := under.String(); got != c.want || len(under.early) > 0 {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
	}
}

func TestStatusWhileStreaming(t *testing.T) {
	c := newClient()
	w := writer(c, request("GET"), 1)
	_, _ = w.WriteString("body")
	w.WriteHeader(500)
	if got := w.HandlerDone(); got.Status != 200 || got.Held {
		t.Errorf("got %+v, want a streaming 200", got)
	}
	w.WriteHeader(500)
}

func TestBodylessAndRefused(t *testing.T) {
	for _, status := range []int{101, 204, 304} {
		w := writer(newClient(), request("GET"), 100)
		w.WriteHeader(status)
		if n, err := w.WriteString("x"); n != 0 || err != http.ErrBodyNotAllowed {
			t.Errorf("%d: got %d %v, want ErrBodyNotAllowed", status, n, err)
		}
		if n, err := w.Write(nil); n != 0 || err != nil {
			t.Errorf("%d: Write of nothing: got %d %v", status, n, err)
		}
	}
	w := writer(newClient(), request("GET"), 100)
	w.Header().Set("Content-Length", "2")
	if n, err := w.WriteString("xyz"); n != 0 || err != http.ErrContentLength {
		t.Errorf("got %d %v, want ErrContentLength", n, err)
	}
}

func TestHeadTellsTheLength(t *testing.T) {
	long := strings.Repeat("x", 5000)
	cases := map[string]struct {
		header func(h http.Header)
		body   string
		want   string
	}{
		"short":                 {nil, "short", ""}, // net/http counts
		"long":                  {nil, long, "5000"},
		"long with a header":    {func(h http.Header) { h.Set("X", "1") }, long, "5000"},
		"declared":              {func(h http.Header) { h.Set("Content-Length", "7000") }, long, "7000"},
		"replaces a wrong one":  {func(h http.Header) { h.Set("Content-Length", "many") }, long, "5000"},
		"more than it is given": {func(h http.Header) { h.Set("Content-Length", "10") }, long, "10"},
	}
	for name, c := range cases {
		under := newClient()
		w := writer(under, request("HEAD"), 100)
		if c.header != nil {
			c.header(w.Header())
		}
		for _, part := range []string{c.body[:2], c.body[2:]} {
			_, _ = w.WriteString(part)
		}
		w.finish()
		if got := under.sent.Get("Content-Length"); got != c.want || under.body.Len() > sniffLen {
			t.Errorf("%s: Content-Length %q and %d bytes, want %q and at most %d bytes", name, got, under.body.Len(), c.want, sniffLen)
		}
	}
}

func TestHeadStoresNothing(t *testing.T) {
	w := writer(newClient(), request("HEAD"), 64<<10)
	piece := make([]byte, 1<<20)
	for range 8 {
		if n, err := w.Write(piece); n != len(piece) || err != nil {
			t.Fatal(n, err)
		}
	}
	if n, err := w.ReadFrom(onlyReader{bytes.NewReader(piece)}); n != int64(len(piece)) || err != nil {
		t.Fatal(n, err)
	}
	if cap(w.buf.b) > firstBuffer || w.written != 9<<20 {
		t.Errorf("%d bytes stored, %d counted", cap(w.buf.b), w.written)
	}
}

func TestReadFrom(t *testing.T) {
	long := strings.Repeat("0123456789", 1000)
	for _, limit := range []int{1, 100, 600, 9999, 10000, 20000} {
		for _, prepare := range []string{"", "status", "write", "length", "short length"} {
			c := newClient()
			w := writer(c, request("GET"), limit)
			want := long
			switch prepare {
			case "status":
				w.WriteHeader(201)
			case "write":
				_, _ = w.WriteString("ab")
				want = "ab" + long
			case "length":
				w.Header().Set("Content-Length", "10000")
			case "short length":
				w.Header().Set("Content-Length", "10001")
			}
			n, err := w.ReadFrom(onlyReader{strings.NewReader(long)})
			if n != int64(len(long)) || err != nil {
				t.Errorf("limit %d, %s: got %d %v, want %d", limit, prepare, n, err, len(long))
			}
			w.finish()
			if got := c.body.String(); got != want {
				t.Errorf("limit %d, %s: got %d bytes, want %d", limit, prepare, len(got), len(want))
			}
		}
	}
}

func TestReadFromOfABadSourceSendsNothing(t *testing.T) {
	c := newClient()
	w := writer(c, request("GET"), 1<<10)
	if n, err := w.ReadFrom(io.MultiReader(strings.NewReader("abc"), badReader{})); n != 3 || err != errClient {
		t.Errorf("got %d %v, want 3 and the error", n, err)
	}
	if c.status != 0 {
		t.Error("something was sent")
	}
	long := strings.NewReader(strings.Repeat("x", 5000))
	w.Header().Set("Content-Length", "9000")
	w = writer(c, request("GET"), 1<<10)
	w.Header().Set("Content-Length", "9000")
	w.WriteHeader(200)
	if n, err := w.ReadFrom(io.MultiReader(long, badReader{})); n != 5000 || err != errClient {
		t.Errorf("got %d %v, want 5000 and the error", n, err)
	}
}

type badReader struct{}

func (badReader) Read([]byte) (int, error) { return 0, errClient }

func TestClientThatHasGone(t *testing.T) {
	calls := map[string]func(w *Writer) error{
		"Write":       func(w *Writer) error { _, err := w.WriteString("0123456789"); return err },
		"Flush":       func(w *Writer) error { _, _ = w.WriteString("x"); return w.FlushError() },
		"ReadFrom":    func(w *Writer) error { _, err := w.ReadFrom(onlyReader{strings.NewReader("0123456789")}); return err },
		"after a bit": func(w *Writer) error { _ = w.FlushError(); _, err := w.WriteString("0123456789"); return err },
		"with length": func(w *Writer) error {
			w.Header().Set("Content-Length", "10")
			_, err := w.WriteString("0123456789")
			return err
		},
		"ReadFrom after a write": func(w *Writer) error {
			_, _ = w.WriteString("01")
			w.limit = 2
			_, err := w.ReadFrom(io.LimitReader(strings.NewReader("0123456789"), 10))
			return err
		},
		"Hijack": func(w *Writer) error { _, _ = w.WriteString("x"); _, _, err := w.Hijack(); return err },
	}
	for name, call := range calls {
		c := newClient()
		c.fail = errClient
		w := writer(c, request("GET"), 4)
		if err := call(w); err != errClient {
			t.Errorf("%s: got %v, want the client's error", name, err)
		}
		w.finish()
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

func TestHijackAfterHandlerDoneDoesNothing(t *testing.T) {
	c := newClient()
	c.conn, _ = net.Pipe()
	w := writer(c, request("GET"), 100)
	_, _ = w.WriteString("body")
	_, _, err := w.HijackAfter(func(int) error {
		w.HandlerDone() // the handler returns while the goroutine that hijacks commits
		return nil
	})
	if err != ErrReturned || c.status != 0 {
		t.Errorf("got %v and %s, want ErrReturned and nothing sent", err, c)
	}
}

func TestHijack(t *testing.T) {
	c := newClient()
	c.conn, _ = net.Pipe()
	w := writer(c, request("GET"), 100)
	w.WriteHeader(101)
	if _, _, err := w.HijackAfter(func(int) error { return errClient }); err != errClient || c.status != 0 {
		t.Errorf("got %v, %s, want the error and nothing sent", err, c)
	}
	got := 0
	conn, _, err := w.HijackAfter(func(status int) error { got = status; return nil })
	if conn != c.conn || err != nil || got != 101 || c.status != 101 {
		t.Errorf("got %v %v, status %d, %s", conn, err, got, c)
	}
	if _, _, err := w.Hijack(); err != http.ErrHijacked {
		t.Errorf("again: got %v, want ErrHijacked", err)
	}
	if s := w.HandlerDone(); !s.Hijacked || s.Held {
		t.Errorf("got %+v, want hijacked", s)
	}
	w.Release()
	w.Close()
	if _, _, err := w.Hijack(); err != http.ErrHijacked {
		t.Errorf("after Close: got %v, want ErrHijacked", err)
	}
	plain := writer(struct{ http.ResponseWriter }{c}, request("GET"), 100)
	if _, _, err := plain.Hijack(); err != http.ErrNotSupported {
		t.Errorf("got %v, want ErrNotSupported", err)
	}
	c.conn = nil
	w = writer(c, request("GET"), 100)
	if _, _, err := w.Hijack(); err != errClient || !w.HandlerDone().Held {
		t.Errorf("got %v, want the error, and the response held", err)
	}
}

// wrapped is a middleware's writer that can be looked through.
type wrapped struct{ http.ResponseWriter }

func (w wrapped) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func TestController(t *testing.T) {
	c := newClient()
	rc := http.NewResponseController(writer(wrapped{c}, request("GET"), 100))
	if err := errors.Join(rc.Flush(), rc.SetReadDeadline(time.Now()), rc.SetWriteDeadline(time.Now()), rc.EnableFullDuplex()); err != nil {
		t.Error(err)
	}
	plain := writer(struct{ http.ResponseWriter }{c}, request("GET"), 100)
	if err := plain.FlushError(); err != http.ErrNotSupported || !plain.HandlerDone().Held {
		t.Errorf("got %v, want ErrNotSupported, and the response held", err)
	}
}

func TestCloseNotify(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	w := writer(newClient(), request("GET").WithContext(ctx), 100)
	gone := w.CloseNotify()
	cancel()
	<-gone
	own := make(chan bool)
	if got := writer(notifier{newClient(), own}, request("GET"), 1).CloseNotify(); got != own {
		t.Error("not the underlying writer's channel")
	}
}

type notifier struct {
	*client
	c chan bool
}

func (n notifier) CloseNotify() <-chan bool { return n.c }

func TestRewrite(t *testing.T) {
	rewrite := func(status int, h http.Header) bool {
		h.Set("Seen", fmt.Sprint(status))
		return status == 301
	}
	for _, status := range []int{200, 301} {
		for name, make := range map[string]func(c *client) *Writer{
			"held":   func(c *client) *Writer { return writer(c, request("GET"), 100) },
			"passed": func(c *client) *Writer { return PassThrough(c, request("GET")) },
		} {
			c := newClient()
			w := make(c)
			if w.Rewrite(rewrite) != nil {
				t.Error("there was one before")
			}
			w.Header().Set("X", "1")
			w.WriteHeader(status)
			n, err := w.Write([]byte("body"))
			m, err2 := w.ReadFrom(strings.NewReader("more"))
			if n != 4 || m != 4 || err != nil || err2 != nil {
				t.Errorf("got %d %v %d %v", n, err, m, err2)
			}
			if w.Rewrite(nil) == nil {
				t.Error("Rewrite does not return the one before")
			}
			w.finish()
			want := "bodymore"
			if status == 301 {
				want = ""
			}
			if c.body.String() != want || c.sent.Get("Seen") != fmt.Sprint(status) {
				t.Errorf("%s, %d: got %s", name, status, c)
			}
		}
	}
}

func TestDroppedBodyMayBeLargerThanItsLength(t *testing.T) {
	c := newClient()
	w := writer(c, request("GET"), 2)
	w.Rewrite(func(int, http.Header) bool { return true })
	w.Header().Set("Content-Length", "1")
	w.WriteHeader(301)
	if _, err := w.WriteString("a long body"); err != nil {
		t.Error(err)
	}
	w.WriteHeader(500)
	w.finish()
	if c.status != 500 {
		t.Errorf("got %s", c)
	}
}

func TestRequestEntityTooLargeCloses(t *testing.T) {
	for major, want := range map[int]string{1: "close", 2: ""} {
		c := newClient()
		r := request("POST")
		r.ProtoMajor = major
		w := writer(c, r, 100)
		w.WriteHeader(413)
		w.finish()
		if got := c.sent.Get("Connection"); got != want {
			t.Errorf("HTTP/%d: got Connection %q, want %q", major, got, want)
		}
	}
}

func TestInvalidStatusPanics(t *testing.T) {
	defer func() {
		if v := recover(); v != "invalid WriteHeader code 42" {
			t.Errorf("got %v", v)
		}
	}()
	writer(newClient(), request("GET"), 1).WriteHeader(42)
}

func TestDefaultStatus(t *testing.T) {
	w := writer(newClient(), request("GET"), 100)
	w.DefaultStatus(503)
	if got := w.HandlerDone().Status; got != 503 {
		t.Errorf("got %d, want 503", got)
	}
	c := newClient()
	w = writer(c, request("GET"), 100)
	w.DefaultStatus(503)
	_, _ = w.Write([]byte("x"))
	w.finish()
	if c.status != 503 {
		t.Errorf("got %s, want a 503", c)
	}
}

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

func TestStrayGoroutines(t *testing.T) {
	ends := map[string]func(w *Writer, s State){
		"Release": func(w *Writer, _ State) { w.Release() },
		"Reset": func(w *Writer, s State) {
			if s.Held {
				w.Reset()
			}
		},
		"Abort": func(w *Writer, _ State) { w.Abort() },
	}
	strays := map[string]func(w *Writer){
		"Write":       func(w *Writer) { _, _ = w.Write([]byte("stray")) },
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
					s := w.HandlerDone()
					finish(w, s)
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

// lingering records how a connection was closed.
type lingering struct {
	net.Conn
	linger int
	closed bool
}

func (l *lingering) SetLinger(sec int) error { l.linger = sec; return nil }
func (l *lingering) Close() error            { l.closed = true; return nil }

func TestAbortOfHTTP10Resets(t *testing.T) {
	plain := &lingering{linger: -1}
	secure := &lingering{linger: -1}
	for l, conn := range map[*lingering]net.Conn{plain: plain, secure: tls.Client(secure, nil)} {
		c := newClient()
		c.conn = conn
		r := request("GET")
		r.ProtoMajor, r.ProtoMinor = 1, 0
		w := writer(c, r, 2)
		_, _ = w.WriteString("body")
		w.HandlerDone()
		w.Abort()
		if l.linger != 0 || !l.closed {
			t.Errorf("linger %d, closed %t: no reset", l.linger, l.closed)
		}
	}
}

func TestAbortOfHTTP10WithLengthOrWithoutHijack(t *testing.T) {
	for _, length := range []string{"", "4"} {
		c := newClient()
		if length != "" {
			c.conn = &lingering{}
		}
		r := request("GET")
		r.ProtoMajor, r.ProtoMinor = 1, 0
		w := writer(c, r, 2)
		if length != "" {
			w.Header().Set("Content-Length", length)
		}
		_, _ = w.WriteString("body")
		w.HandlerDone()
		w.Abort()
		if c.deadline.IsZero() {
			t.Errorf("length %q: no write deadline", length)
		}
	}
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

func TestCopiedWithUndeclaredTrailersIsFlushed(t *testing.T) {
	for _, trailers := range []bool{false, true} {
		c := newClient()
		w := writer(c, request("GET"), 1000)
		_, _ = io.Copy(w, onlyReader{strings.NewReader(strings.Repeat("x", sniffLen))})
		if trailers {
			w.Header().Set(http.TrailerPrefix+"Sum", "1")
		} else {
			w.Header().Set("Late", "1")
		}
		w.finish()
		if got := c.flushes == 1; got != trailers {
			t.Errorf("trailers %t: flushed %t", trailers, got)
		}
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

func TestLengthDeclaredOutside(t *testing.T) {
	calls := map[string]func(w *Writer) error{
		"Write": func(w *Writer) error { _, err := w.WriteString("body"); return err },
		"Flush": func(w *Writer) error {
			_, _ = w.WriteString("bo")
			err := w.FlushError()
			_, err2 := w.WriteString("dy")
			return errors.Join(err, err2, w.FlushError())
		},
		"ReadFrom": func(w *Writer) error {
			w.WriteHeader(200)
			_, err := w.ReadFrom(onlyReader{strings.NewReader("body")})
			return err
		},
	}
	for name, call := range calls {
		c := newClient()
		c.header.Set("Content-Length", "4")
		c.header.Set("Transfer-Encoding", "identity")
		w := writer(c, request("GET"), 2)
		if err := call(w); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := c.body.String(); got != "bod" || c.sent.Get("Transfer-Encoding") != "" {
			t.Errorf("%s: %q was sent with %v, want all but the last byte", name, got, c.sent)
		}
		if _, err := w.WriteString("x"); err != http.ErrContentLength {
			t.Errorf("%s: a byte too many: got %v, want ErrContentLength", name, err)
		}
		w.finish()
	}
	c := newClient()
	c.header.Set("Content-Length", "4")
	if _, err := writer(c, request("GET"), 2).WriteString("a body"); err != http.ErrContentLength || c.body.Len() > 0 {
		t.Errorf("a body too long: got %v and %s, want ErrContentLength", err, c)
	}
}

func TestSuperfluousInvalidStatusIsIgnored(t *testing.T) {
	c := newClient()
	w := writer(c, request("GET"), 100)
	w.WriteHeader(201)
	w.WriteHeader(0)
	w.HandlerDone()
	w.WriteHeader(1000)
	w.WriteHeader(500)
	w.Release()
	if c.status != 201 {
		t.Errorf("got %s, want a 201", c)
	}
}

func quiet(h http.Handler) *httptest.Server {
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.Start()
	return srv
}

// panicky is a writer of a middleware outside that panics when it is told to.
type panicky struct {
	*client
	at string
}

func (p *panicky) on(what string) {
	if p.at == what {
		panic(what)
	}
}

func (p *panicky) Header() http.Header {
	p.on("Header")
	return p.client.Header()
}

func (p *panicky) WriteHeader(status int) {
	p.on("WriteHeader")
	p.client.WriteHeader(status)
}

func (p *panicky) Write(b []byte) (int, error) {
	p.on("Write")
	return p.client.Write(b)
}

func (p *panicky) Flush() {
	p.on("Flush")
	p.client.Flush()
}

// The panic of a writer below goes on, and what comes after it, as the caller
// aborts the response, does not wait for a lock.
func TestWriterBelowPanics(t *testing.T) {
	large := strings.Repeat("x", 100)
	tests := []struct {
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
		{"grows too large", "WriteHeader", func(w *Writer, arm func()) { arm(); _, _ = w.WriteString(large) }},
		{"grows too large", "Header", func(w *Writer, arm func()) { arm(); _, _ = w.WriteString(large) }},
		{"streams", "Write", func(w *Writer, arm func()) { _, _ = w.WriteString(large); arm(); _, _ = w.WriteString(large) }},
		{"is read", "Write", func(w *Writer, arm func()) { arm(); _, _ = w.ReadFrom(strings.NewReader(large)) }},
		{"is read", "WriteHeader", func(w *Writer, arm func()) { arm(); _, _ = w.ReadFrom(strings.NewReader(large)) }},
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
		{"flushed", "WriteHeader", func(w *Writer, arm func()) { arm(); w.Flush() }},
		{"flushed", "Write", func(w *Writer, arm func()) { _, _ = w.WriteString("x"); arm(); w.Flush() }},
		{"flushed", "Flush", func(w *Writer, arm func()) { arm(); w.Flush() }},
		{"hijacked after a status", "WriteHeader", func(w *Writer, arm func()) { w.WriteHeader(101); arm(); _, _, _ = w.Hijack() }},
		{"early hints", "WriteHeader", func(w *Writer, arm func()) { arm(); w.WriteHeader(103) }},
		{"passed on", "WriteHeader", func(w *Writer, arm func()) { w.Close(); arm(); w.WriteHeader(200) }},
		{"passed on", "Write", func(w *Writer, arm func()) { w.Close(); arm(); _, _ = w.WriteString("x") }},
		{"passed on and read", "Write", func(w *Writer, arm func()) { w.Close(); arm(); _, _ = w.ReadFrom(strings.NewReader("x")) }},
	}
	for _, test := range tests {
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
