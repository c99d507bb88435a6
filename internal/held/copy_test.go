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
