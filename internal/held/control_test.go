package held

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

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

func TestHijackSendsAnImplicitStatus(t *testing.T) {
	c := newClient()
	c.conn, _ = net.Pipe()
	w := writer(c, request("GET"), 100)
	_, _ = w.Write(nil)
	if _, _, err := w.Hijack(); err != nil || c.status != 200 {
		t.Errorf("got %v, status %d, want 200: no byte of a body tells it", err, c.status)
	}
}

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

// After FlushAnswer nothing of an answer of 400 or more is kept back any more.
func TestFlushAnswer(t *testing.T) {
	for name, write := range map[string]func(w *Writer){
		"before":              func(w *Writer) { _, _ = w.WriteString("body"); _ = w.FlushAnswer() },
		"after":               func(w *Writer) { _ = w.FlushAnswer(); _, _ = w.WriteString("body") },
		"copied after":        func(w *Writer) { _ = w.FlushAnswer(); _, _ = w.ReadFrom(strings.NewReader("body")) },
		"in between":          func(w *Writer) { _, _ = w.WriteString("bo"); _ = w.FlushAnswer(); _, _ = w.WriteString("dy") },
		"streams, then after": func(w *Writer) { _, _ = w.WriteString("bod"); _ = w.FlushAnswer(); _, _ = w.WriteString("y") },
	} {
		for _, status := range []int{200, 400} {
			for _, limit := range []int{2, 100} {
				c := newClient()
				w := writer(c, request("GET"), limit)
				w.Header().Set("Content-Length", "4")
				w.WriteHeader(status)
				write(w)
				if got := c.body.String(); (got == "body") != (status == 400) {
					t.Errorf("%s, status %d, limit %d: got %q while the handler runs", name, status, limit, got)
				}
				if s := w.HandlerDone(); s.Stands != (status == 400) {
					t.Errorf("%s, status %d, limit %d: got %+v", name, status, limit, s)
				}
				w.Release()
				if got := c.body.String(); got != "body" {
					t.Errorf("%s, status %d, limit %d: got %q at the end", name, status, limit, got)
				}
			}
		}
	}
}
