package idempotency_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// answers are ways to answer a request.
var answers = map[string]func(w http.ResponseWriter, r *http.Request){
	"nothing":         func(http.ResponseWriter, *http.Request) {},
	"an implicit 200": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") },
	"only a header":   func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-A", "b") },
	"an explicit 200": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) },
	"204": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", `"1"`)
		w.WriteHeader(204)
	},
	"204 with a body that is not sent": func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(204)
		fmt.Fprint(w, "not sent")
	},
	"303": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/orders/1", http.StatusSeeOther) },
	"many fields": func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Add("Set-Cookie", "a=b; Path=/")
		h.Add("Set-Cookie", "c=d")
		h.Set("Location", "/orders/1")
		h.Set("Content-Type", "application/json; charset=utf-8")
		h.Set("Cache-Control", "no-store")
		h["X-Empty"] = []string{""}
		w.WriteHeader(201)
		fmt.Fprint(w, `{"id": 1}`)
		h.Set("X-Late", "not sent")
	},
	"bytes that are no text": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		for i := range 256 {
			w.Write([]byte{byte(i), 0, byte(i)})
		}
	},
	"a length": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "5")
		io.WriteString(w, "12345")
	},
	"no Content-Type": func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = nil
		fmt.Fprint(w, "<html>")
	},
	"trailers": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Sum, X-Unset")
		w.WriteHeader(200)
		fmt.Fprint(w, "body")
		w.Header().Set("X-Sum", "12")
		w.Header().Set(http.TrailerPrefix+"X-More", "34")
	},
	"1xx before": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		w.WriteHeader(201)
		fmt.Fprint(w, "hello")
	},
	"a second status": func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(201)
		w.WriteHeader(200)
		fmt.Fprint(w, "hello")
	},
	"larger than held": func(w http.ResponseWriter, _ *http.Request) {
		for range 100 {
			w.Write(bytes.Repeat([]byte("0123456789"), 300))
		}
	},
	"flushed": func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "<html>")
		w.(http.Flusher).Flush()
		fmt.Fprint(w, "</html>")
	},
	"flushed before": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-A", "b")
		http.NewResponseController(w).Flush()
		w.Header().Set("X-Late", "not sent")
		fmt.Fprint(w, "text")
	},
	"copied": func(w http.ResponseWriter, _ *http.Request) {
		io.Copy(w, io.LimitReader(strings.NewReader(strings.Repeat("copied ", 50_000)), 200_000))
	},
	"http.ServeContent's kind of copy": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100000")
		w.WriteHeader(200)
		io.CopyN(w, strings.NewReader(strings.Repeat("z", 200_000)), 100_000)
	},
}

// same compares a reply with the first: all but what belongs to the moment.
func same(t *testing.T, first, again reply) {
	t.Helper()
	if first.replayed || !again.replayed {
		t.Errorf("replayed: got %v for the first and %v for the repeat", first.replayed, again.replayed)
	}
	for _, r := range []reply{first, again} {
		r.header.Del("Date")
	}
	again.header.Del("Idempotent-Replayed")
	if first.status != again.status || first.body != again.body {
		t.Errorf("got %d and %d bytes again, want %d and %d", again.status, len(again.body), first.status, len(first.body))
	}
	if !reflect.DeepEqual(first.header, again.header) {
		t.Errorf("got the header %v again, want %v", again.header, first.header)
	}
	if !maps.EqualFunc(first.trailer, again.trailer, func(a, b []string) bool { return reflect.DeepEqual(a, b) }) {
		t.Errorf("got the trailers %v again, want %v", again.trailer, first.trailer)
	}
}

func TestI2TheFirstAnswer(t *testing.T) {
	for name, h := range answers {
		t.Run(name, func(t *testing.T) {
			first, again, calls := twice(t, newOnce(), handle(h))
			if first.status >= 400 || calls != 1 {
				t.Fatalf("got %v, and %d calls", first, calls)
			}
			if name != "larger than held" && name != "flushed" && name != "flushed before" && name != "copied" {
				same(t, first, again)
				return
			}
			// A response that streamed has no length; its repeat is small enough to have one.
			again.header.Del("Content-Length")
			same(t, first, again)
		})
	}
}

// idsOutside sets fields outside of Handler, which differ for each request.
func idsOutside() func(http.Handler) http.Handler {
	var n atomic.Int32
	return func(next http.Handler) http.Handler {
		return handle(func(w http.ResponseWriter, r *http.Request) {
			id := fmt.Sprint("request-", n.Add(1))
			h := w.Header()
			h.Set("X-Request-Id", id)
			h.Set("Vary", "Origin")
			h.Add("Server-Timing", id)
			h.Set("X-Replaced", id)
			h.Set("X-Deleted", id)
			next.ServeHTTP(w, r)
		})
	}
}

func TestI2FieldsOfLayersOutside(t *testing.T) {
	first, again, _ := twice(t, newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Server-Timing", "db;dur=1")
		w.Header().Set("X-Replaced", "by the handler")
		w.Header().Del("X-Deleted")
		w.Header().Set("Date", "Thu, 01 Jan 1970 00:00:00 GMT")
		w.Header().Set("Upgrade", "h2c")
		fmt.Fprint(w, "hello")
	}), idsOutside())
	for name, values := range map[string][3]string{
		"X-Request-Id":  {"request-1", "request-2"},
		"Vary":          {"Origin", "Origin"},
		"Server-Timing": {"request-1, db;dur=1", "request-2, db;dur=1"},
		"X-Replaced":    {"by the handler", "by the handler"},
		"X-Deleted":     {"", ""},
		"Upgrade":       {"h2c", ""},
	} {
		got := [2]string{strings.Join(first.header[name], ", "), strings.Join(again.header[name], ", ")}
		if got != [2]string(values[:2]) {
			t.Errorf("%s: got %q, want %q", name, got, values[:2])
		}
	}
	if again.header.Get("Date") == "Thu, 01 Jan 1970 00:00:00 GMT" {
		t.Error("the Date of the first answer is in its repeat")
	}
}

// gzipped compresses whatever goes through it.
func gzipped(next http.Handler) http.Handler {
	return handle(func(w http.ResponseWriter, r *http.Request) {
		z := gzip.NewWriter(w)
		next.ServeHTTP(&gzipWriter{w, z}, r)
		z.Close()
	})
}

type gzipWriter struct {
	http.ResponseWriter
	z *gzip.Writer
}

func (w *gzipWriter) WriteHeader(status int) {
	w.Header().Set("Content-Encoding", "gzip")
	w.Header().Del("Content-Length")
	w.ResponseWriter.WriteHeader(status)
}

func (w *gzipWriter) Write(p []byte) (int, error) { return w.z.Write(p) }

func TestI2CompressionInBetween(t *testing.T) {
	first, again, _ := twice(t, newOnce(), handle(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.WriteHeader(201)
		fmt.Fprint(w, strings.Repeat("hello ", 100))
	}), gzipped)
	same(t, first, again)
	if first.body != strings.Repeat("hello ", 100) { // the client undoes one compression
		t.Errorf("got %q", first.body)
	}
}

func TestI2TheHandlerAndItsHooksDoNotRun(t *testing.T) {
	db := open(t)
	var rec sqlreqtest.Recorder
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		rec.Hooks(t, r.Context(), main, "")
		rec.Add("handler")
	}))
	want(t, post(t, srv.URL, "k", "x"), "200 ")
	want(t, post(t, srv.URL, "k", "x"), "200  (replayed)")
	if got := rec.Words(); got != "handler commit" {
		t.Errorf("got %q, want one call and its hook", got)
	}
	rows(t, db, 1, 1)
}

func TestI2AnAnswerThatWasReplaced(t *testing.T) {
	db := open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	reg.CommitIf = func(int, http.Header) bool { return true }
	srv := serve(t, reg, newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		w.Header().Set("X-A", "b")
		w.WriteHeader(200)
		fmt.Fprint(w, "half a page")
		http.Error(w, "broken", http.StatusConflict)
	}))
	first, again := post(t, srv.URL, "k", "x"), post(t, srv.URL, "k", "x")
	want(t, first, "409 broken")
	same(t, first, again)
}
