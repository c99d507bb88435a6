package held

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

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

// net/http looks for the values of trailers when the handler has returned: one that was
// there when the header left, and was deleted since, is not sent.
func TestDeletedTrailer(t *testing.T) {
	for _, own := range []bool{false, true} {
		c := newClient()
		w := writer(c, request("GET"), 100)
		if own {
			w.OwnHeader()
		}
		w.Header().Set("Trailer", "Sum, Kept")
		w.WriteHeader(200)
		w.Header().Set("Sum", "1")
		w.Header().Set("Kept", "1")
		_ = w.FlushError()
		w.Header().Del("Sum")
		w.finish()
		if c.header.Get("Sum") != "" || c.header.Get("Kept") != "1" {
			t.Errorf("own %t: got the trailers of %v, want Kept alone", own, c.header)
		}
	}
}

func TestOwnHeaderWithoutAMap(t *testing.T) {
	c := &client{}
	w := writer(noHeader{c}, request("GET"), 100)
	w.OwnHeader()
	w.Header().Set("X", "1")
	w.HandlerDone()
}

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
		if c.sent.Get("Late") != "" || asked && c.sent.Get("X") != "1" || c.header.Get("Late") != "" || !asked && c.header.Get("X") != "" {
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
		"Header": func(w *Writer) error {
			_, _ = w.WriteString("b")
			w.Header().Set("Content-Length", "10") // late
			_, err := w.WriteString("ody")
			return err
		},
		"Hijack": func(w *Writer) error {
			w.WriteHeader(200)
			if _, _, err := w.Hijack(); err == nil {
				return errors.New("a Hijack that was to fail")
			}
			_, err := w.WriteString("body")
			return err
		},
	}
	for name, call := range calls {
		c := newClient() // without a connection to hijack
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

func TestLengthSpeltOtherwiseIsDropped(t *testing.T) {
	c := newClient()
	w := writer(c, request("GET"), 2)
	const spelt = "content-length"
	maps.Copy(w.Header(), map[string][]string{spelt: {"4"}})
	if _, err := w.WriteString("a body"); err != nil {
		t.Error(err)
	}
	w.finish()
	if _, ok := map[string][]string(c.sent)[spelt]; ok {
		t.Errorf("%v was sent", c.sent)
	}
}

// What is sent is the header of the moment of WriteHeader, also where a key without a
// value was replaced by another; a header that nobody has changed is not copied.
func TestHeaderOfTheMomentOfTheStatus(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(http.Header)
		copied bool
	}{
		{"unchanged", func(http.Header) {}, false},
		{"one for another", func(h http.Header) { delete(h, "Date"); h["X-Late"] = nil }, true},
		{"another value", func(h http.Header) { h["X"] = []string{"2"} }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newClient()
			w := writer(c, request("GET"), 100)
			value := []string{"1"}
			w.Header()["Date"], w.Header()["X"] = nil, value // net/http adds no Date then
			w.WriteHeader(200)
			test.change(w.Header())
			w.finish()
			if want := (http.Header{"Date": nil, "X": {"1"}}); !maps.EqualFunc(c.sent, want, slices.Equal) {
				t.Errorf("got %v, want %v", c.sent, want)
			}
			if copied := &c.header["X"][0] != &value[0]; copied != test.copied {
				t.Errorf("copied: %t, want %t", copied, test.copied)
			}
		})
	}
}
