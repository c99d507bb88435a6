package held

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

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

func TestCopiedAndDroppedIsFlushedForTrailers(t *testing.T) {
	c := newClient()
	w := writer(c, request("GET"), 1000)
	w.Rewrite(func(int, http.Header) bool { return true })
	w.Header().Set(http.TrailerPrefix+"Sum", "1")
	w.WriteHeader(301)
	_, _ = io.Copy(w, onlyReader{strings.NewReader(strings.Repeat("x", sniffLen))})
	w.finish()
	if c.flushes != 1 || c.body.Len() != 0 {
		t.Errorf("got %s, want no body, and flushed once", c)
	}
}

// What is read is the least of the declared length and an io.LimitedReader's: if
// that fits nothing is sent, so that an error can still be answered.
func TestReadFromHoldsWhatFits(t *testing.T) {
	for _, test := range []struct {
		name          string
		length        string
		limit, source int // of the io.LimitedReader, and what there is to read
		held          bool
		sent          int
	}{
		{"the reader is shorter", "200", 50, 50, true, 0},
		{"the declared length is shorter", "50", 200, 50, true, 0},
		{"neither fits", "200", 200, 200, false, 199}, // the last byte is kept
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newClient()
			w := writer(c, request("GET"), 100)
			w.Header().Set("Content-Length", test.length)
			w.WriteHeader(200)
			source := strings.NewReader(strings.Repeat("x", test.source))
			n, err := w.ReadFrom(io.LimitReader(onlyReader{source}, int64(test.limit)))
			if n != int64(test.source) || err != nil {
				t.Errorf("got %d, %v, want %d", n, err, test.source)
			}
			if _, held, _ := w.Status(); held != test.held || c.body.Len() != test.sent {
				t.Errorf("held %t, %d bytes sent, want %t, %d", held, c.body.Len(), test.held, test.sent)
			}
		})
	}
}
