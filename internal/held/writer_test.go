package held

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

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
	if n := len(w.body.memory.bytes); n > sniffLen || w.written != 9<<20 {
		t.Errorf("%d bytes stored, %d counted", n, w.written)
	}
}

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

func TestStatus(t *testing.T) {
	w := writer(newClient(), request("GET"), 100)
	if status, held, streams := w.Status(); status != 0 || !held || streams {
		t.Errorf("got %d, held %t, streams %t at the beginning, want 0 and held", status, held, streams)
	}
	w.WriteHeader(201)
	if status, held, streams := w.Status(); status != 201 || !held || streams {
		t.Errorf("got %d, held %t, streams %t, want 201 and held", status, held, streams)
	}
	w.Flush()
	if status, held, streams := w.Status(); status != 201 || held || !streams {
		t.Errorf("got %d, held %t, streams %t after Flush, want 201 and that it streams", status, held, streams)
	}
}
