// G10. An implicit 200 stays implicit for the writer outside. A HEAD under a
// compressing middleware outside gets no Content-Length of a stump. Headers set after
// the first Write are taken out of the map again, trailers aside, so that no writer
// outside sends them. w.Header()["Content-Length"] = nil suppresses the length. A
// superfluous WriteHeader is logged as a warning with the caller's function and line.
// If no registry entered has a CommitIf, a Flush of a response of 400 or more sends
// it, its last byte too, and it then stands, whatever follows; with a CommitIf it
// waits. After the end no method of the writer panics.

package guarantees_test

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/matrix"
)

// lateZip compresses, as gorilla's and chi's middlewares do: the type is found out in
// Write unless WriteHeader came first, the header is sent with the first Write.
type lateZip struct {
	http.ResponseWriter
	zip         *gzip.Writer
	wroteHeader bool
}

func (z *lateZip) WriteHeader(status int) {
	z.wroteHeader = true
	z.Header().Del("Content-Length")
	z.ResponseWriter.WriteHeader(status)
}

func (z *lateZip) Write(p []byte) (int, error) {
	if !z.wroteHeader && z.Header().Get("Content-Type") == "" {
		z.Header().Set("Content-Type", http.DetectContentType(p))
	}
	z.Header().Del("Content-Length")
	if z.zip == nil {
		z.Header().Set("Content-Encoding", "gzip")
		z.zip = gzip.NewWriter(z.ResponseWriter)
	}
	return z.zip.Write(p)
}

func (z *lateZip) Flush() {
	if z.zip != nil {
		_ = z.zip.Flush()
	}
	_ = http.NewResponseController(z.ResponseWriter).Flush()
}

func lateZipped(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		z := &lateZip{ResponseWriter: w}
		defer func() {
			if z.zip != nil {
				_ = z.zip.Close()
			}
		}()
		next.ServeHTTP(z, r)
	})
}

// TestG10CompressionOutsideSeesWhatTheBareOneSees compares headers.
func TestG10CompressionOutsideSeesWhatTheBareOneSees(t *testing.T) {
	pages := map[string]func(w http.ResponseWriter){
		"small":             func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<!DOCTYPE html><p>hello") },
		"large":             func(w http.ResponseWriter) { wirePieces(w, "<!DOCTYPE html>"+wireLarge, 1000) },
		"several":           func(w http.ResponseWriter) { wirePieces(w, "<!DOCTYPE html>"+wireSmall, 100) },
		"flushed":           func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<!DOCTYPE html>"); wireFlush(w) },
		"with a late field": func(w http.ResponseWriter) { _, _ = io.WriteString(w, "hello"); w.Header().Set("X-Late", "1") },
	}
	for _, retry := range []bool{false, true} {
		for name, page := range pages {
			bare := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { page(w) })
			get := func(h http.Handler, method string) http.Header {
				req, err := http.NewRequest(method, sqlreqtest.Serve(t, lateZipped(h)).URL, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Accept-Encoding", "gzip")
				res, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				_, _ = io.Copy(io.Discard, res.Body)
				res.Header.Del("Date")
				return res.Header
			}
			app := wireRegistry(t, retry, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(bare)
			for _, method := range []string{"GET", "HEAD"} {
				got, want := get(app, method), get(bare, method)
				if told := got.Get("Content-Length"); method == "HEAD" && told != "" && told != get(app, "GET").Get("Content-Length") {
					t.Errorf("retry %t, HEAD %s: Content-Length %s, want that of GET or none", retry, name, told)
				}
				got.Del("Content-Length") // fewer or more writes make another length
				want.Del("Content-Length")
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("retry %t, %s %s:\n got %v\nwant %v", retry, method, name, got, want)
				}
			}
		}
	}
}

// TestG10HeadIsNoStump: gorilla's middleware takes the Accept-Encoding out of the
// request, and NYTimes' flushes nothing of what is small.
func TestG10HeadIsNoStump(t *testing.T) {
	for name, wrap := range map[string]func(http.Handler) http.Handler{
		"hides Accept-Encoding": func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Add("Vary", "Accept-Encoding")
				r.Header.Del("Accept-Encoding")
				lateZipped(next).ServeHTTP(w, r)
			})
		},
		"does not flush": func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(struct{ http.ResponseWriter }{w}, r) })
		},
	} {
		for _, retry := range []bool{false, true} {
			app := wireRegistry(t, retry, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, "<!DOCTYPE html>"+wireSmall)
			}))
			for _, p := range []wireProtocol{wireHTTP11, wireHTTP2} {
				srv := p.serve(t, wrap(app))
				r := takenBackRequest(t, "HEAD", srv.URL)
				r.Header.Set("Accept-Encoding", "gzip")
				res, err := srv.Client().Do(r)
				if err != nil {
					t.Fatal(err)
				}
				_ = res.Body.Close()
				if res.Header["Content-Length"] != nil || res.Header.Get("Content-Type") != "text/html; charset=utf-8" {
					t.Errorf("%s, %s, Retry %t: got %v, want a type and no length", p.name, name, retry, res.Header)
				}
			}
		}
	}
}

// TestG10RecorderSeesTheType: httptest.NewRecorder sniffs it in an implicit header only.
func TestG10RecorderSeesTheType(t *testing.T) {
	reg := wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	rec := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "<!DOCTYPE html><p>hello")
	})), "/")
	if got := rec.Header().Get("Content-Type"); rec.Code != 200 || got != "text/html; charset=utf-8" {
		t.Errorf("got %d, Content-Type %q", rec.Code, got)
	}
}

// TestG10LateFieldsAreTakenOut: the map is that of the writer outside.
func TestG10LateFieldsAreTakenOut(t *testing.T) {
	for _, retry := range []bool{false, true} {
		for name, respond := range map[string]func(w http.ResponseWriter){
			"Write":       func(w http.ResponseWriter) { _, _ = io.WriteString(w, "x") },
			"WriteHeader": func(w http.ResponseWriter) { w.WriteHeader(201) },
			"Flush":       func(w http.ResponseWriter) { _, _ = io.WriteString(w, "x"); wireFlush(w) },
		} {
			reg := wireRegistry(t, retry, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
			rec := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Kept", "1")
				w.Header().Set("Trailer", "X-Sum, x-other")
				if name != "Flush" {
					respond(w)
				}
				w.Header().Set("X-Kept", "2")
				if name != "Flush" {
					w.Header().Set("X-Late", "1")
				}
				w.Header().Set("X-Sum", "sum")
				w.Header().Set("X-Other", "other")
				w.Header().Set(http.TrailerPrefix+"X-More", "more")
				if name == "Flush" {
					respond(w)
				}
			})), "/")
			kept := "1"
			if name == "Flush" {
				kept = "2"
			}
			h := rec.Header()
			if h.Get("X-Kept") != kept || h["X-Late"] != nil || h.Get("X-Sum") != "sum" || h.Get("X-Other") != "other" || h.Get(http.TrailerPrefix+"X-More") != "more" {
				t.Errorf("retry %t, %s: the map outside is %v", retry, name, slices.Sorted(maps.Keys(h)))
			}
		}
	}
}

// TestG10NilSuppressesTheLength: as net/http documents of fields it adds by itself.
func TestG10NilSuppressesTheLength(t *testing.T) {
	wireEach(t, func(t *testing.T, p wireProtocol) {
		for _, retry := range []bool{false, true} {
			for _, body := range []string{"OK", wireSmall, wireLarge} {
				ask := p.start(t, wireRegistry(t, retry, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.Header()["Content-Length"] = nil
					_, _ = io.WriteString(w, body)
				})))
				for _, method := range []string{"GET", "HEAD"} {
					if got := ask(method, "/"); got.err != nil || got.header["Content-Length"] != nil || method == "GET" && got.body != body {
						t.Errorf("retry %t, %s of %d bytes: got %v", retry, method, len(body), got)
					}
				}
			}
		}
	})
}

func superfluousCall(w http.ResponseWriter) { w.WriteHeader(204) }

func superfluousRedirect(w http.ResponseWriter) {
	http.Redirect(w, &http.Request{Method: "GET"}, "http://test/", http.StatusFound)
}

func TestG10SuperfluousWriteHeaderIsLogged(t *testing.T) {
	tests := map[string]struct {
		respond func(w http.ResponseWriter)
		logged  bool
	}{
		"held":           {func(w http.ResponseWriter) { w.WriteHeader(201); superfluousCall(w) }, true},
		"after a Write":  {func(w http.ResponseWriter) { _, _ = io.WriteString(w, "x"); superfluousCall(w) }, true},
		"streaming":      {func(w http.ResponseWriter) { _, _ = io.WriteString(w, wireLarge); superfluousCall(w) }, true},
		"after an error": {func(w http.ResponseWriter) { w.WriteHeader(404); superfluousCall(w) }, true},
		"a redirect":     {func(w http.ResponseWriter) { w.WriteHeader(201); superfluousRedirect(w) }, true},
		"400 or more":    {func(w http.ResponseWriter) { w.WriteHeader(201); w.WriteHeader(404) }, false},
		"late 1xx":       {func(w http.ResponseWriter) { w.WriteHeader(201); w.WriteHeader(103) }, false},
		"400, streaming 400": {func(w http.ResponseWriter) {
			w.WriteHeader(400)
			_, _ = io.WriteString(w, wireLarge)
			w.WriteHeader(500)
		}, false},
		"the first": {func(w http.ResponseWriter) { superfluousCall(w) }, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			reg := wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
			var rec sqlreqtest.Recorder
			rec.Watch(reg)
			h := reg.Mount("/app", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { test.respond(w) }))
			got := sqlreqtest.AskGet(h, "/app/x")
			if got.Panicked != nil {
				t.Error(got.Panicked)
			}
			logs := rec.Records()
			if !test.logged && len(logs) != 0 || test.logged && len(logs) != 1 {
				t.Fatalf("got the log %v", logs)
			}
			if !test.logged {
				return
			}
			if l := logs[0]; l["level"] != "WARN" || l["path"] != "/app/x" || !strings.Contains(l["caller"], ".superfluous") || !strings.Contains(l["caller"], " (g10_outside_test.go:") || l["status"] != "204" && l["status"] != "302" {
				t.Errorf("got %v, want a warning with the function and the line", l)
			}
		})
	}
}

// flushError answers with 500, of a declared length or not, and flushes it.
func flushError(w http.ResponseWriter, length bool) {
	if length {
		w.Header().Set("Content-Length", strconv.Itoa(len(wireSmall)))
	}
	w.WriteHeader(500)
	_, _ = io.WriteString(w, wireSmall)
	wireFlush(w)
}

// TestG10FlushedErrorStands: twirp flushes its error and panics on.
func TestG10FlushedErrorStands(t *testing.T) {
	then := map[string]struct {
		then func(r *http.Request) error
		ends bool // the handler returns
	}{
		"panic":  {func(*http.Request) error { panic("boom") }, false},
		"Goexit": {func(*http.Request) error { runtime.Goexit(); return nil }, false},
		"error":  {func(*http.Request) error { return sqlreqtest.ErrTest }, true},
		"COMMIT": {func(r *http.Request) error {
			return errors.Join(matrix.BreakCommit(nil, r), sqlreq.Commit(r.Context()))
		}, true},
	}
	for _, p := range []wireProtocol{wireHTTP11, wireHTTP2} {
		for name, test := range then {
			for _, length := range []bool{true, false} {
				for _, joins := range []string{"", "root", "inner"} {
					t.Run(fmt.Sprintf("%s %s length=%t CommitIf=%s", p.name, name, length, joins), func(t *testing.T) {
						db := sqlreqtest.OpenDB(t)
						reg, inner := wireRegistry(t, true, sqlreq.Binding{DB: db}), wireRegistry(t, true, sqlreq.Binding{Key: "inner", DB: db})
						commitIf := func(int, http.Header) bool { return false }
						switch joins {
						case "root":
							reg.CommitIf = commitIf
						case "inner":
							inner.CommitIf = commitIf
						}
						h := lateOnce(reg.Middleware(inner.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
							sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
							flushError(w, length)
							return test.then(r)
						}))))
						got := p.start(t, h)("GET", "/")
						whole := got.err == nil && got.status == 500 && got.body == wireSmall
						if want := joins == "" && (length && p.name == wireHTTP11.name || test.ends); want && !whole {
							t.Errorf("got %v, want the flushed answer", got)
						}
						if got.err == nil && got.status < 400 {
							t.Errorf("got %v, want no success", got)
						}
						if joins != "" && length && !test.ends && whole {
							t.Errorf("got %v, but a CommitIf might have committed it", got)
						}
						wireIdle(t, db)
						if n := sqlreqtest.Count(t, db, "work"); n != 0 {
							t.Errorf("%d rows stayed", n)
						}
					})
				}
			}
		}
	}
}

// TestG10FlushOfAStreamingErrorSendsItsEnd: also what is copied, and what is
// written after the Flush.
func TestG10FlushOfAStreamingErrorSendsItsEnd(t *testing.T) {
	for name, write := range map[string]func(w http.ResponseWriter){
		"at the end": func(w http.ResponseWriter) { wirePieces(w, wireLarge, 1000); wireFlush(w) },
		"before":     func(w http.ResponseWriter) { wireFlush(w); wirePieces(w, wireLarge, 1000); wireFlush(w) },
		"copied": func(w http.ResponseWriter) {
			wireFlush(w)
			_, _ = io.Copy(w, wireReader{strings.NewReader(wireLarge)})
			wireFlush(w)
		},
	} {
		t.Run(name, func(t *testing.T) {
			seen := make(chan struct{})
			h := wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				wireSetLength(w, len(wireLarge))
				w.WriteHeader(500)
				write(w)
				<-seen
			}))
			srv := sqlreqtest.Serve(t, h)
			conn := wireDial(t, srv, nil)
			defer conn.Close()
			fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
			if got := wireRead(bufio.NewReader(conn), "GET"); got.err != nil || got.status != 500 || got.body != wireLarge {
				t.Errorf("got %v, want the whole answer while the handler runs", got)
			}
			close(seen)
		})
	}
}

// TestG10LateCallsOverHTTP2: net/http's own writer panics then.
func TestG10LateCallsOverHTTP2(t *testing.T) {
	for _, asked := range []bool{false, true} {
		for _, retry := range []bool{false, true} {
			reg := wireRegistry(t, retry, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
			kept := make(chan http.ResponseWriter, 1)
			over := make(chan struct{})
			srv := wireTLS(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if asked {
					w.Header().Set("X", "1")
				}
				go func() { <-r.Context().Done(); close(over) }()
				kept <- w
			})))
			if got := wireHTTP2.ask(t, srv)("GET", "/"); got.err != nil {
				t.Fatal(got)
			}
			w := <-kept
			<-over
			srv.Close() // every handler has returned, and its writer was taken back
			if v := sqlreqtest.Panicked(func() {
				w.Header().Set("Late", "1")
				<-w.(interface{ CloseNotify() <-chan bool }).CloseNotify()
				w.WriteHeader(500)
				if _, err := w.Write([]byte("x")); err == nil {
					t.Error("Write: no error")
				}
				if err := http.NewResponseController(w).Flush(); err == nil {
					t.Error("Flush: no error")
				}
			}); v != nil {
				t.Errorf("asked before %t, retry %t: got the panic %v", asked, retry, v)
			}
		}
	}
}

// TestG10FlushedErrorStandsUnderARecoverer: it is not broken off, also if only its
// end is missing.
func TestG10FlushedErrorStandsUnderARecoverer(t *testing.T) {
	for _, p := range []wireProtocol{wireHTTP11, wireHTTP2} {
		for _, length := range []bool{true, false} {
			reg := wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
			h := lateOnce(lateRecoverer(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				flushError(w, length)
				panic("boom")
			}))))
			if got := p.start(t, h)("GET", "/"); got.err != nil || got.status != 500 || got.body != wireSmall {
				t.Errorf("%s, length %t: got %v, want the flushed answer", p.name, length, got)
			}
		}
	}
}

// TestG10FlushedErrorKeepsItsTrailers: they are a part of the answer that stands.
func TestG10FlushedErrorKeepsItsTrailers(t *testing.T) {
	for _, p := range []wireProtocol{wireHTTP11, wireHTTP2} {
		for _, retry := range []bool{false, true} {
			for _, panics := range []bool{false, true} {
				reg := wireRegistry(t, retry, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
				h := lateOnce(lateRecoverer(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Trailer", "Sum")
					w.WriteHeader(500)
					_, _ = io.WriteString(w, wireSmall)
					w.Header().Set("Sum", "1")
					wireFlush(w)
					if panics {
						panic("boom")
					}
				}))))
				if got := p.start(t, h)("GET", "/"); got.err != nil || got.body != wireSmall || got.trailer.Get("Sum") != "1" {
					t.Errorf("%s, retry %t, panics %t: got %v, want the flushed answer with its trailer", p.name, retry, panics, got)
				}
			}
		}
	}
}
