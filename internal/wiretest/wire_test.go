package wiretest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	_ "modernc.org/sqlite"
)

// wireLimit is the HoldLimit of these tests, above what net/http buffers by itself.
const wireLimit = 8 << 10

// wirePatience is when a test gives up on a peer that says nothing.
const wirePatience = 20 * time.Second

var (
	wireSmall = strings.Repeat("small ", 100)              // 600 bytes
	wireLarge = strings.Repeat("0123456789abcde\n", 3<<10) // 48 KiB
)

// wireAnswer is what a client saw.
type wireAnswer struct {
	status  int
	header  http.Header
	body    string
	trailer http.Header
	early   []string
	err     error // of the transfer
}

// comparable drops what may differ: how the length is told.
func (a wireAnswer) comparable() wireAnswer {
	a.header = maps.Clone(a.header)
	for _, k := range []string{"Date", "Content-Length", "Transfer-Encoding", "Connection"} {
		delete(a.header, k)
	}
	if len(a.header) == 0 {
		a.header = nil
	}
	a.trailer = maps.Clone(a.trailer)
	maps.DeleteFunc(a.trailer, func(_ string, v []string) bool { return len(v) == 0 })
	if len(a.trailer) == 0 {
		a.trailer = nil
	}
	return a
}

func (a wireAnswer) String() string {
	body := a.body
	if len(body) > 60 {
		body = fmt.Sprintf("%.60s… (%d bytes)", body, len(body))
	}
	return fmt.Sprintf("{%d %v %q trailers %v early %v err %v}", a.status, a.header, body, a.trailer, a.early, a.err)
}

// same reports whether a client would take a and b for the same response. Of
// broken transfers only that they are broken counts.
func (a wireAnswer) same(b wireAnswer) bool {
	if a.err != nil || b.err != nil {
		return a.err != nil && b.err != nil
	}
	return reflect.DeepEqual(a.comparable(), b.comparable())
}

// wireAsk sends a request and returns what came back.
type wireAsk func(method, path string) wireAnswer

// wireProtocols starts h and says how to talk to it.
var wireProtocols = map[string]func(t testing.TB, h http.Handler) wireAsk{
	"HTTP/1.0": func(t testing.TB, h http.Handler) wireAsk {
		return wireRaw(t, sqlreqtest.Serve(t, h).Listener.Addr().String(), "1.0", nil)
	},
	"HTTP/1.1": func(t testing.TB, h http.Handler) wireAsk {
		return wireRaw(t, sqlreqtest.Serve(t, h).Listener.Addr().String(), "1.1", nil)
	},
	"HTTP/2": func(t testing.TB, h http.Handler) wireAsk { return wireHTTP2(wireTLS(t, h)) },
	"TLS HTTP/1.0": func(t testing.TB, h http.Handler) wireAsk {
		return wireRaw(t, wireTLS(t, h).Listener.Addr().String(), "1.0", &tls.Config{InsecureSkipVerify: true})
	},
}

func wireTLS(t testing.TB, h http.Handler) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

func wireDial(t testing.TB, addr string, config *tls.Config) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err == nil && config != nil {
		conn = tls.Client(conn, config)
	}
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(wirePatience))
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// wireRaw asks over a connection of its own and, where that stays open, asks for
// another page then: a byte too many would be taken for its beginning.
func wireRaw(t testing.TB, addr, version string, config *tls.Config) wireAsk {
	return func(method, path string) (a wireAnswer) {
		t.Helper()
		conn := wireDial(t, addr, config)
		defer conn.Close()
		length := ""
		if method == http.MethodPost {
			length = "Content-Length: 0\r\n"
		}
		fmt.Fprintf(conn, "%s %s HTTP/%s\r\nHost: test\r\n%s\r\n", method, path, version, length)
		br := bufio.NewReader(conn)
		a = wireRead(br, method)
		if version == "1.0" {
			// To the end, also of a broken one: the handler shall not see the client go.
			if rest, _ := io.ReadAll(br); a.err == nil && len(rest) > 0 {
				a.err = fmt.Errorf("%d bytes after the response", len(rest))
			}
		}
		if a.err != nil || version == "1.0" {
			return a
		}
		fmt.Fprint(conn, "GET /second HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
		if rest, _ := io.ReadAll(br); len(rest) > 0 && !strings.HasPrefix(string(rest), "HTTP/1.1 ") {
			a.err = fmt.Errorf("bytes after the response: %.100q", rest)
		}
		return a
	}
}

func wireRead(br *bufio.Reader, method string) (a wireAnswer) {
	for {
		res, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			a.err = err
			return a
		}
		if res.StatusCode < 200 && res.StatusCode != http.StatusSwitchingProtocols {
			a.early = append(a.early, fmt.Sprint(res.StatusCode, " ", res.Header.Get("Link")))
			continue
		}
		a.status, a.header = res.StatusCode, res.Header
		if res.StatusCode == http.StatusSwitchingProtocols {
			return a
		}
		b, err := io.ReadAll(res.Body)
		a.body, a.err, a.trailer = string(b), err, res.Trailer
		return a
	}
}

func wireHTTP2(srv *httptest.Server) wireAsk {
	client := srv.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client.Transport.(*http.Transport).DisableCompression = true
	return func(method, path string) (a wireAnswer) {
		ctx, cancel := context.WithTimeout(context.Background(), wirePatience)
		defer cancel()
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				a.early = append(a.early, fmt.Sprint(code, " ", h.Get("Link")))
				return nil
			},
		})
		req, err := http.NewRequestWithContext(ctx, method, srv.URL+path, nil)
		if err != nil {
			return wireAnswer{err: err}
		}
		res, err := client.Do(req)
		if err != nil {
			a.err = err
			return a
		}
		defer res.Body.Close()
		if res.ProtoMajor != 2 {
			return wireAnswer{err: errors.New("not HTTP/2: " + res.Proto)}
		}
		b, err := io.ReadAll(res.Body)
		a.status, a.header, a.body, a.trailer, a.err = res.StatusCode, res.Header, string(b), res.Trailer, err
		return a
	}
}

// wireCase is a handler, all but its work in the database.
type wireCase struct {
	name    string
	respond func(t testing.TB, w http.ResponseWriter, r *http.Request)
	http1   bool // on HTTP/2 net/http itself breaks the response
	own     int  // the answer of 400 or more that it ends in, instead of what a bare handler gives
}

// wireReader hides every method of a reader but Read.
type wireReader struct{ io.Reader }

// wireFile returns the path of a file that holds body.
func wireFile(t testing.TB, body string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file.txt")
	if err := os.WriteFile(name, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func wireCopyFile(t testing.TB, w io.Writer, name string) {
	f, err := os.Open(name)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	_, _ = io.Copy(w, f)
}

func wireSetLength(w http.ResponseWriter, n int) {
	w.Header().Set("Content-Length", strconv.Itoa(n))
}

func wirePieces(w io.Writer, body string, size int) {
	for piece := range slices.Chunk([]byte(body), size) {
		_, _ = w.Write(piece)
	}
}

func wireFlush(w http.ResponseWriter) { w.(http.Flusher).Flush() }

// wireCases is every way of answering that this library must not disturb.
func wireCases(t testing.TB) []wireCase {
	small, large := wireFile(t, wireSmall), wireFile(t, wireLarge)
	return slices.Concat(wirePlainCases(), wireLengthCases(large), wireCopyCases(small, large), wireFlushCases(), wireHeaderCases(), wireTrailerCases(small))
}

func wirePlainCases() []wireCase {
	return []wireCase{
		{name: "nothing written", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {}},
		{name: "only a header", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) { w.Header().Set("X-Case", "1") }},
		{name: "only a status", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) { w.WriteHeader(202) }},
		{name: "bare write", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello") }},
		{name: "write of nothing", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) { _, _ = w.Write(nil) }},
		{name: "201 and body", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("X-Case", "1")
			w.WriteHeader(201)
			_, _ = io.WriteString(w, `{"id":1}`)
		}},
		{name: "204", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			w.WriteHeader(204)
		}},
		{name: "205", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) { w.WriteHeader(205) }},
		{name: "303", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/done", http.StatusSeeOther)
		}},
		{name: "304", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Etag", `"case"`)
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(304)
		}},
		{name: "cookie", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "session", Value: "1"})
			http.SetCookie(w, &http.Cookie{Name: "other", Value: "2"})
			_, _ = io.WriteString(w, "hello")
		}},
		{name: "write on 204", respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(204)
			if n, err := io.WriteString(w, "no"); n != 0 || err != http.ErrBodyNotAllowed {
				t.Errorf("Write on a 204: got %d %v, want ErrBodyNotAllowed", n, err)
			}
		}},
		{name: "copy and flush on 304", respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Etag", `"case"`)
			w.WriteHeader(304)
			if _, err := io.Copy(w, wireReader{strings.NewReader("no")}); err != http.ErrBodyNotAllowed {
				t.Errorf("Copy on a 304: got %v, want ErrBodyNotAllowed", err)
			}
			wireFlush(w)
		}},
		{name: "second WriteHeader below 400", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(201)
			w.WriteHeader(202)
			_, _ = io.WriteString(w, "hello")
			w.WriteHeader(203)
		}},
		{name: "second WriteHeader of 400 or more", own: 409, respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			_, _ = io.WriteString(w, "the page that broke half-")
			http.Error(w, "conflict", http.StatusConflict)
		}},
		{name: "second WriteHeader of 400 or more while streaming", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, wireLarge)
			if r.Method != http.MethodHead { // which never streams
				w.WriteHeader(500)
			}
		}},
		{name: "early hints", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</a.css>")
			w.WriteHeader(102)
			w.Header().Add("Link", "</b.css>")
			w.WriteHeader(103)
			w.Header().Set("X-Case", "1")
			_, _ = io.WriteString(w, "hello")
		}},
		{name: "early hints and a large body", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</a.css>")
			w.WriteHeader(103)
			w.Header().Del("Link")
			_, _ = io.WriteString(w, wireLarge)
		}},
		{name: "html", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "<!DOCTYPE html>")
			_, _ = io.WriteString(w, "<title>x</title>")
		}},
		{name: "a type that the second write decides", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, " ")
			_, _ = io.WriteString(w, "\x89PNG\x00\x01")
		}},
		{name: "binary after 600 bytes of text", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wirePieces(w, wireSmall+strings.Repeat("\x00", 4096), 100)
		}},
		{name: "encoded body", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "br")
			_, _ = io.WriteString(w, "<html>")
		}},
		{name: "no type wanted", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header()["Content-Type"] = nil
			w.Header()["Date"] = nil
			_, _ = io.WriteString(w, "<html>")
		}},
	}
}

func wireLengthCases(large string) []wireCase {
	return []wireCase{
		{name: "small with length", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireSmall))
			_, _ = io.WriteString(w, wireSmall)
		}},
		{name: "large with length", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			wireSetLength(w, len(wireLarge))
			_, _ = w.Write([]byte(wireLarge))
		}},
		{name: "large string with length", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge))
			_, _ = io.WriteString(w, wireLarge)
		}},
		{name: "large without length", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			_, _ = io.WriteString(w, wireLarge)
		}},
		{name: "in pieces", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wirePieces(w, wireLarge, 777)
		}},
		{name: "in pieces with length", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge))
			wirePieces(w, wireLarge, 1024)
		}},
		{name: "byte by byte with length", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			body := wireLarge[:wireLimit+2]
			wireSetLength(w, len(body))
			wirePieces(w, body, 1)
		}},
		{name: "exactly HoldLimit", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, wireLarge[:wireLimit])
		}},
		{name: "HoldLimit and a byte, with length", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, wireLimit+1)
			_, _ = io.WriteString(w, wireLarge[:wireLimit])
			_, _ = io.WriteString(w, "x")
		}},
		{name: "length zero", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, 0)
			w.WriteHeader(200)
			wireFlush(w)
		}},
		{name: "shorter than declared", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireSmall)+1)
			_, _ = io.WriteString(w, wireSmall)
		}},
		{name: "large and shorter than declared", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge)+1)
			_, _ = io.WriteString(w, wireLarge)
		}},
		{name: "longer than declared", http1: true, respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireSmall))
			_, _ = io.WriteString(w, wireSmall)
			if n, err := io.WriteString(w, "x"); n != 0 || err != http.ErrContentLength {
				t.Errorf("Write beyond the length: got %d %v, want ErrContentLength", n, err)
			}
		}},
		{name: "large and longer than declared", http1: true, respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge))
			wirePieces(w, wireLarge, 1024)
			if n, err := io.WriteString(w, "x"); n != 0 || err != http.ErrContentLength {
				t.Errorf("Write beyond the length: got %d %v, want ErrContentLength", n, err)
			}
		}},
		{name: "invalid length", http1: true, respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead || !r.ProtoAtLeast(1, 1) {
				return // net/http itself sends the invalid one
			}
			w.Header().Set("Content-Length", "many")
			_, _ = io.WriteString(w, wireLarge)
		}},
		{name: "ServeFile", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, large) }},
		{name: "ServeContent of a range", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=100-20000")
			http.ServeFile(w, r, large)
		}},
		{name: "ServeContent of a small range", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=-7")
			http.ServeFile(w, r, large)
		}},
	}
}

func wireCopyCases(small, large string) []wireCase {
	return []wireCase{
		{name: "small file copied", respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) { wireCopyFile(t, w, small) }},
		{name: "file copied", respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) { wireCopyFile(t, w, large) }},
		{name: "file copied with length", respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge))
			wireCopyFile(t, w, large)
		}},
		{name: "file copied after a status", respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(201)
			wireCopyFile(t, w, large)
		}},
		{name: "reader copied", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(w, wireReader{strings.NewReader(wireLarge)})
		}},
		{name: "reader copied with length", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge))
			_, _ = io.Copy(w, wireReader{strings.NewReader(wireLarge)})
		}},
		{name: "copied in parts", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge)+6)
			src := strings.NewReader(wireLarge)
			_, _ = io.CopyN(w, src, 100)
			_, _ = io.CopyN(w, src, 10000)
			_, _ = io.WriteString(w, "abc")
			_, _ = io.Copy(w, wireReader{src})
			_, _ = io.WriteString(w, "def")
		}},
		{name: "written, then copied", respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "<html>")
			wireCopyFile(t, w, large)
		}},
		{name: "file that grew since its length was told", http1: true, respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge)-10)
			wireCopyFile(t, w, large)
		}},
	}
}

func wireFlushCases() []wireCase {
	return []wireCase{
		{name: "flushed early", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			w.Header().Set("Content-Type", "text/event-stream")
			wireFlush(w)
			for range 3 {
				_, _ = io.WriteString(w, "data: x\n\n")
				wireFlush(w)
			}
		}},
		{name: "flushed before the type is known", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireFlush(w)
			_, _ = io.WriteString(w, "<html>")
		}},
		{name: "flushed with the type half known", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "<ht")
			wireFlush(w)
			_, _ = io.WriteString(w, "ml>\x00")
		}},
		{name: "flushed when complete", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			wireSetLength(w, len(wireSmall))
			_, _ = io.WriteString(w, wireSmall)
			wireFlush(w)
		}},
		{name: "large and flushed when complete", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge))
			_, _ = io.WriteString(w, wireLarge)
			wireFlush(w)
		}},
		{name: "flushed with length half-way", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, 2*len(wireSmall))
			_, _ = io.WriteString(w, wireSmall)
			wireFlush(w)
			_, _ = io.WriteString(w, wireSmall)
			wireFlush(w)
		}},
		{name: "204 flushed", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			w.WriteHeader(204)
			wireFlush(w)
		}},
	}
}

func wireHeaderCases() []wireCase {
	return []wireCase{
		{name: "header changed after WriteHeader", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			w.Header().Set("X-Gone", "1")
			w.WriteHeader(200)
			w.Header().Set("X-Case", "late")
			w.Header().Set("X-Late", "1")
			w.Header().Del("X-Gone")
			_, _ = io.WriteString(w, "hello")
		}},
		{name: "header first asked for after a Write", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "hello")
			w.Header().Set("X-Late", "1")
		}},
		{name: "header first asked for after WriteHeader", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			w.Header().Set("Content-Type", "text/late")
			w.Header().Set("Content-Length", "3")
			w.Header().Set("Transfer-Encoding", "identity")
			_, _ = io.WriteString(w, "hello")
		}},
		{name: "header changed while streaming", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, wireSmall)
			w.Header().Set("X-Late", "1")
			_, _ = io.WriteString(w, wireLarge)
			w.Header().Set("X-Later", "1")
		}},
		{name: "Transfer-Encoding first set while held", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, wireSmall)
			w.Header().Set("Transfer-Encoding", "identity")
			_, _ = io.WriteString(w, wireLarge)
		}},
		{name: "values changed in place", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header()["X-Case"] = []string{"1", "2"}
			w.WriteHeader(200)
			w.Header()["X-Case"][1] = "late"
			_, _ = io.WriteString(w, "hello")
		}},
		{name: "header of the outside changed", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Del("X-Outside")
			w.Header().Add("X-Outside-2", "added")
			_, _ = io.WriteString(w, "hello")
		}},
		{name: "Transfer-Encoding chunked", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 1 {
				w.Header().Set("Transfer-Encoding", "chunked")
			}
			w.Header().Set("Content-Type", "text/plain")
			_, _ = io.WriteString(w, wireLarge)
		}},
		{name: "Transfer-Encoding identity", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 1 {
				w.Header().Set("Transfer-Encoding", "identity")
			}
			w.Header().Set("Content-Type", "text/plain")
			_, _ = io.WriteString(w, wireLarge)
		}},
	}
}

func wireTrailerCases(small string) []wireCase {
	declared := func(body string) func(testing.TB, http.ResponseWriter, *http.Request) {
		return func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-Sum, X-Unused")
			w.Header().Add("Trailer", "X-More")
			_, _ = io.WriteString(w, body)
			w.Header().Set("X-Sum", "abc")
			w.Header().Add("X-More", "1")
			w.Header().Add("X-More", "2")
		}
	}
	late := func(body string, size int) func(testing.TB, http.ResponseWriter, *http.Request) {
		return func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			wirePieces(w, body, size)
			w.Header().Set(http.TrailerPrefix+"X-Sum", "abc")
		}
	}
	return []wireCase{
		{name: "declared trailers", respond: declared(wireSmall)},
		{name: "declared trailers after a large body", respond: declared(wireLarge)},
		{name: "declared trailers without a body", respond: declared("")},
		{name: "trailers by prefix before the body", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set(http.TrailerPrefix+"X-Sum", "early")
			_, _ = io.WriteString(w, "hello")
			w.Header().Set(http.TrailerPrefix+"X-Sum", "abc")
		}},
		{name: "trailers by prefix after a small body", respond: late(wireSmall, 600)},
		{name: "trailers by prefix after a body that is held", respond: late(wireLarge[:wireLimit], 100)},
		{name: "trailers by prefix after a large body", respond: late(wireLarge, 1000)},
		{name: "trailers by prefix, header first asked for then", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, wireLarge[:wireLimit])
			w.Header().Set(http.TrailerPrefix+"X-Sum", "abc")
		}},
		{name: "trailers by prefix after a flush", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, wireSmall)
			wireFlush(w)
			w.Header().Set(http.TrailerPrefix+"X-Sum", "abc")
		}},
		{name: "trailers by prefix after a copied file", respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			wireCopyFile(t, w, small)
			w.Header().Set(http.TrailerPrefix+"X-Sum", "abc")
		}},
	}
}

// wireVariant is how the handler of a case is run.
type wireVariant struct {
	bare    bool // without sqlreq
	retry   bool // with Retry, for which the handler gets a header map of its own
	last    bool // the work comes after the response
	recover bool // a middleware outside recovers
	query   string
}

func (v wireVariant) String() string {
	return fmt.Sprintf("retry=%t,last=%t,recover=%t", v.retry, v.last, v.recover)
}

// handler runs the case whose number is the last part of the path.
func (v wireVariant) handler(t testing.TB, reg *sqlreq.Registry, cases []wireCase) http.Handler {
	work := func(r *http.Request) {
		if v.bare {
			return
		}
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), v.query); err != nil {
			t.Error(err)
		}
	}
	var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(path.Base(r.URL.Path))
		if err != nil {
			return // the second request on a connection
		}
		if !v.last {
			work(r)
		}
		cases[n].respond(t, w, r)
		if v.last {
			work(r)
		}
	})
	if !v.bare {
		h = reg.Middleware(h)
	}
	if v.recover {
		h = wireRecover(h)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Outside", "1")
		w.Header()["X-Outside-2"] = []string{"2"}
		h.ServeHTTP(w, r)
	})
}

// wireRecover tries to make a complete response of a broken one.
func wireRecover(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if recover() == nil {
				return
			}
			w.WriteHeader(500)
			_, _ = io.WriteString(w, "x") // could be the byte that is missing
			_ = http.NewResponseController(w).Flush()
		}()
		next.ServeHTTP(w, r)
	})
}

func wireRegistry(t testing.TB, retry bool, bindings ...sqlreq.Binding) *sqlreq.Registry {
	reg := sqlreqtest.NewRegistry(t, bindings...)
	reg.HoldLimit = wireLimit
	if retry {
		reg.Retry.Attempts = 2
	}
	return reg
}

func TestG10ResponsesAreThoseOfTheBareHandler(t *testing.T) {
	cases := wireCases(t)
	for proto, start := range wireProtocols {
		bare := start(t, wireVariant{bare: true}.handler(t, nil, cases))
		for _, v := range []wireVariant{{}, {last: true}, {retry: true}, {retry: true, last: true}} {
			v.query = sqlreqtest.InsertWork
			if proto == "TLS HTTP/1.0" && (v.retry || v.last) {
				continue // a handshake for each request takes its time
			}
			t.Run(strings.ReplaceAll(proto, "/", "")+","+v.String(), func(t *testing.T) {
				db := sqlreqtest.OpenDB(t)
				ask := start(t, v.handler(t, wireRegistry(t, v.retry, sqlreq.Binding{DB: db}), cases))
				asked := 0
				for n, c := range cases {
					size := 0 // of the body of the GET
					for _, method := range []string{"GET", "HEAD"} {
						if c.http1 && proto == "HTTP/2" {
							continue
						}
						want, got := bare(method, fmt.Sprint("/", n)), ask(method, fmt.Sprint("/", n))
						if c.own != 0 {
							if got.status != c.own || got.err != nil || method == "GET" && got.body != "conflict\n" {
								t.Errorf("%s %s:\n got %v\nwant %d", method, c.name, got, c.own)
							}
							continue
						}
						asked++
						if !got.same(want) {
							t.Errorf("%s %s:\n got %v\nwant %v", method, c.name, got, want)
						}
						size = max(size, len(got.body))
						told := got.header.Get("Content-Length")
						if told != "" && told != want.header.Get("Content-Length") && told != strconv.Itoa(size) {
							t.Errorf("%s %s: Content-Length is %s, want %d", method, c.name, told, size)
						}
					}
				}
				if rows := sqlreqtest.Count(t, db, "work"); rows != asked {
					t.Errorf("%d rows, want one for each of the %d requests", rows, asked)
				}
			})
		}
	}
}

func TestG1NoFailedCommitLooksLikeSuccess(t *testing.T) {
	cases := wireCases(t)
	for proto, start := range wireProtocols {
		for _, v := range []wireVariant{{}, {last: true}, {retry: true}, {recover: true}, {recover: true, last: true}, {recover: true, retry: true}} {
			v.query = sqlreqtest.BreakCommit
			if proto == "TLS HTTP/1.0" && (v.retry || v.last) {
				continue
			}
			t.Run(strings.ReplaceAll(proto, "/", "")+","+v.String(), func(t *testing.T) {
				db := sqlreqtest.OpenDB(t)
				ask := start(t, v.handler(t, wireRegistry(t, v.retry, sqlreq.Binding{DB: db}), cases))
				for n, c := range cases {
					for _, method := range []string{"POST", "HEAD"} {
						got := ask(method, fmt.Sprint("/", n))
						if c.own != 0 {
							if got.status != c.own {
								t.Errorf("%s %s:\n got %v\nwant %d: the rollback was asked for", method, c.name, got, c.own)
							}
							continue
						}
						if complaint := got.success(method); complaint != "" {
							t.Errorf("%s %s: %s: got %v", method, c.name, complaint, got)
						}
					}
				}
				if rows := sqlreqtest.Count(t, db, "child"); rows != 0 {
					t.Errorf("%d rows stayed", rows)
				}
				wireIdle(t, db)
			})
		}
	}
}

// success says what makes a look like the success of a handler above, "" if
// nothing does.
func (a wireAnswer) success(method string) string {
	if a.err != nil {
		return ""
	}
	if a.status != 500 {
		return "a complete answer with another status than 500"
	}
	if a.body != "Internal Server Error\n" && method != http.MethodHead || a.body != "" && method == http.MethodHead {
		return "not the body of the error"
	}
	for k := range a.header {
		switch k {
		case "Date", "Content-Length", "Content-Type", "X-Content-Type-Options", "Connection":
		case "X-Outside":
			if !slices.Equal(a.header[k], []string{"1"}) {
				return "header of the outside changed"
			}
		case "X-Outside-2":
			if !slices.Equal(a.header[k], []string{"2"}) {
				return "header of the outside changed"
			}
		default:
			return "header " + k + " is not that of the error"
		}
	}
	if a.header["X-Outside"] == nil || a.header.Get("Content-Type") != "text/plain; charset=utf-8" {
		return "a header is missing"
	}
	if len(a.trailer) > 0 {
		return "trailers"
	}
	return ""
}

// wireIdle waits until no connection of db is in use: a client may have its
// answer a moment before the handler has returned.
func wireIdle(t testing.TB, db interface{ Stats() sql.DBStats }) {
	t.Helper()
	for end := time.Now().Add(wirePatience); db.Stats().InUse != 0; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d connections in use", db.Stats().InUse)
		}
	}
}

// wirePoints is how far a response has got when its handler fails.
var wirePoints = []struct {
	name    string
	respond func(w http.ResponseWriter)
	out     bool // the header has left
}{
	{"before the header", func(w http.ResponseWriter) {}, false},
	{"after the header", func(w http.ResponseWriter) { w.WriteHeader(201) }, false},
	{"after a write", func(w http.ResponseWriter) { _, _ = io.WriteString(w, wireSmall) }, false},
	{"when complete", func(w http.ResponseWriter) {
		wireSetLength(w, len(wireSmall))
		_, _ = io.WriteString(w, wireSmall)
		wireFlush(w)
	}, false},
	{"after a flush", func(w http.ResponseWriter) { wireFlush(w) }, true},
	{"after a flushed write", func(w http.ResponseWriter) {
		_, _ = io.WriteString(w, wireSmall)
		wireFlush(w)
	}, true},
	{"in the middle of a stream", func(w http.ResponseWriter) { wirePieces(w, wireLarge, 1000) }, true},
	{"at the end of a stream with length", func(w http.ResponseWriter) {
		wireSetLength(w, len(wireLarge))
		wirePieces(w, wireLarge, 1000)
		wireFlush(w)
	}, true},
	{"after copying", func(w http.ResponseWriter) {
		wireSetLength(w, len(wireLarge))
		_, _ = io.Copy(w, wireReader{strings.NewReader(wireLarge)})
	}, true},
	{"with trailers", func(w http.ResponseWriter) {
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, wireLarge)
		w.Header().Set("X-Sum", "abc")
	}, true},
}

var wireFailures = []struct {
	name  string
	fail  func(r *http.Request) error
	panic bool // nobody answers but the middlewares outside
}{
	{"error", func(*http.Request) error { return sqlreqtest.ErrTest }, false},
	{"Fail", func(r *http.Request) error { return errors.Join(sqlreq.Fail(r.Context(), sqlreqtest.ErrTest)) }, false},
	{"Rollback behind sqlreq's back", func(r *http.Request) error {
		tx, err := sqlreq.Tx(r.Context())
		if err != nil {
			return err
		}
		_ = tx.Rollback()
		return nil
	}, false},
	{"panic", func(*http.Request) error { panic(sqlreqtest.ErrTest) }, true},
	{"ErrAbortHandler", func(*http.Request) error { panic(http.ErrAbortHandler) }, true},
	{"Goexit", func(*http.Request) error { runtime.Goexit(); return nil }, true},
}

func TestG1FailedHandlerIsNoSuccessAtAnyPoint(t *testing.T) {
	h := sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
			t.Error(err)
		}
		point, failure, _ := strings.Cut(r.URL.Path[1:], "/")
		p, _ := strconv.Atoi(point)
		f, _ := strconv.Atoi(failure)
		w.Header().Set("X-Case", "1")
		wirePoints[p].respond(w)
		return wireFailures[f].fail(r)
	})
	for proto, start := range wireProtocols {
		for _, recovers := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,recover=%t", strings.ReplaceAll(proto, "/", ""), recovers), func(t *testing.T) {
				db := sqlreqtest.OpenDB(t)
				app := wireRegistry(t, false, sqlreq.Binding{DB: db}).Middleware(h)
				if recovers {
					app = wireRecover(app)
				}
				ask := start(t, app)
				for p, point := range wirePoints {
					for f, failure := range wireFailures {
						got := ask("GET", fmt.Sprintf("/%d/%d", p, f))
						switch {
						case got.err != nil && (point.out || failure.panic):
						case got.err == nil && !point.out && got.status == 500 && got.header.Get("X-Case") == "":
						case got.err == nil && !point.out && failure.name == "Goexit" && recovers:
						default:
							t.Errorf("%s %s: got %v, want an error, without a trace of the handler's", failure.name, point.name, got)
						}
					}
				}
				if rows := sqlreqtest.Count(t, db, "work"); rows != 0 {
					t.Errorf("%d rows stayed", rows)
				}
				wireIdle(t, db)
			})
		}
	}
}

func TestG1DownloadCompletesOnlyWhenCounted(t *testing.T) {
	file := wireFile(t, wireLarge)
	for name, query := range map[string]string{"works": sqlreqtest.InsertWork, "fails": sqlreqtest.BreakCommit} {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := wireRegistry(t, false, sqlreq.Binding{DB: db})
			srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.ServeFile(w, r, file)
				if _, err := sqlreqtest.Main.ExecContext(r.Context(), query); err != nil {
					t.Error(err)
				}
			})))
			status, body, err := sqlreqtest.Get(t, srv.URL)
			if query == sqlreqtest.InsertWork && (status != 200 || body != wireLarge || err != nil || sqlreqtest.Count(t, db, "work") != 1) {
				t.Errorf("got %d, %d bytes, %v, want all of it", status, len(body), err)
			}
			if query == sqlreqtest.BreakCommit && (status == 200 && err != io.ErrUnexpectedEOF || body == wireLarge) {
				t.Errorf("got %d, %d bytes, %v, want a broken transfer", status, len(body), err)
			}
		})
	}
}

func TestG1HTTP10WithoutLengthEndsInReset(t *testing.T) {
	reg := wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	ask := wireProtocols["HTTP/1.0"](t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		_, _ = io.WriteString(w, wireLarge)
		return sqlreqtest.ErrTest
	})))
	if got := ask("GET", "/"); !errors.Is(got.err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a connection reset: the end of the connection would be that of the response", got)
	}
}

// An attempt that is given up must not answer for the request, whatever one of
// its goroutines does later.
func TestG1AbandonedAttemptCannotAnswer(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := wireRegistry(t, true, sqlreq.Binding{DB: db})
	reg.Retry.Retryable = func(err error) bool { return errors.Is(err, sqlreqtest.ErrTest) }
	reg.Retry.Backoff = func(int) time.Duration { return 0 }
	var first http.ResponseWriter
	srv := sqlreqtest.Serve(t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if first == nil {
			first = w
			return sqlreqtest.ErrTest
		}
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.BreakCommit); err != nil {
			t.Error(err)
		}
		first.Header().Set("X-Stray", "1")
		first.WriteHeader(201)
		_, _ = io.WriteString(first, "created")
		_ = http.NewResponseController(first).Flush()
		_, _ = io.WriteString(w, "created")
		return nil
	})))
	res, err := http.Get(srv.URL)
	if err != nil {
		return // broken: no success
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && (res.StatusCode != 500 || strings.Contains(string(body), "created") || res.Header.Get("X-Stray") != "") {
		t.Errorf("got %d %q, want a 500: the commit failed", res.StatusCode, body)
	}
}

// wireUnder is an underlying ResponseWriter that remembers what it is given.
type wireUnder struct {
	httptest.ResponseRecorder
	sources []io.Reader
	ends    []int64 // of the body, by sources that are limited; else -1
	first   []*byte // of each Write
	look    func(what string)
}

func wireRecorder() *wireUnder { return &wireUnder{ResponseRecorder: *httptest.NewRecorder()} }

func (u *wireUnder) Write(p []byte) (int, error) {
	if u.look != nil {
		u.look("Write")
	}
	if len(p) > 0 {
		u.first = append(u.first, &p[0])
	}
	if len(p) > 1<<20 {
		return len(p), nil
	}
	return u.ResponseRecorder.Write(p)
}

func (u *wireUnder) WriteHeader(status int) {
	if u.look != nil {
		u.look("WriteHeader")
	}
	u.ResponseRecorder.WriteHeader(status)
}

func (u *wireUnder) ReadFrom(src io.Reader) (int64, error) {
	u.sources = append(u.sources, src)
	n := int64(-1)
	if l, ok := src.(*io.LimitedReader); ok {
		n = int64(u.Body.Len()) + l.N
	}
	u.ends = append(u.ends, n)
	return io.Copy(u.Body, src)
}

func TestG3CopyReachesTheConnectionAsAFile(t *testing.T) {
	name := wireFile(t, wireLarge)
	size := int64(len(wireLarge))
	copies := map[string]struct {
		respond func(w http.ResponseWriter, r *http.Request)
		end     int64 // what the underlying ReadFrom must not go beyond; -1: no limit
	}{
		"ServeFile": {func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, name) }, size - 1},
		"Copy": {func(w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge))
			w.WriteHeader(200)
			wireCopyFile(t, w, name)
		}, size - 1},
		"Copy without a status": {func(w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge))
			wireCopyFile(t, w, name)
		}, size - 1},
		"Copy without length": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			wireCopyFile(t, w, name)
		}, -1},
	}
	for name, c := range copies {
		for _, begins := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,transaction=%t", name, begins), func(t *testing.T) {
				under, db := wireRecorder(), sqlreqtest.OpenDB(t)
				wireRegistry(t, false, sqlreq.Binding{DB: db}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if begins {
						_, _ = sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork)
					}
					c.respond(w, r)
				})).ServeHTTP(under, httptest.NewRequest("GET", "/", nil))
				if len(under.sources) != 1 {
					t.Fatalf("the underlying writer got %d readers, want one", len(under.sources))
				}
				src := under.sources[0]
				if l, ok := src.(*io.LimitedReader); ok {
					src = l.R
				}
				if _, ok := src.(interface {
					syscall.Conn
					io.Seeker
				}); !ok || under.ends[0] != c.end {
					t.Errorf("ReadFrom got a %T of a %T up to byte %d, want a file up to %d", under.sources[0], src, under.ends[0], c.end)
				}
				if body := under.Body.String(); body != wireLarge {
					t.Errorf("got %d bytes of the body, want all %d", len(body), len(wireLarge))
				}
				if db.Stats().OpenConnections > 1 || !begins && db.Stats().InUse > 0 {
					t.Errorf("connections were taken: %+v", db.Stats())
				}
			})
		}
	}
}

func TestG1LargeWriteIsNotCopied(t *testing.T) {
	big := make([]byte, 64<<20)
	for _, length := range []int{-1, len(big)} {
		under := wireRecorder()
		wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
				t.Error(err)
			}
			if length >= 0 {
				wireSetLength(w, length)
			}
			_, _ = w.Write(big)
		})).ServeHTTP(under, httptest.NewRequest("GET", "/", nil))
		if len(under.first) == 0 || under.first[0] != &big[0] {
			t.Errorf("Content-Length %d: the underlying writer got other memory than the handler's", length)
		}
	}
}

// wireDiscard is a client that is never slow.
type wireDiscard struct{ header http.Header }

func (d *wireDiscard) Header() http.Header         { return d.header }
func (d *wireDiscard) Write(p []byte) (int, error) { return len(p), nil }
func (d *wireDiscard) WriteHeader(int)             {}

func TestG1StreamTakesNoMemory(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	piece := make([]byte, 32<<10)
	stream := func(w http.ResponseWriter, r *http.Request) {
		if _, err := sqlreq.Tx(r.Context()); err != nil && !errors.Is(err, sqlreq.ErrNoRegistry) {
			t.Error(err)
		}
		for range 64 << 20 / len(piece) {
			_, _ = w.Write(piece)
		}
		_, _ = io.CopyN(w, wireZeros{}, 64<<20)
	}
	allocated := func(h http.Handler) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		h.ServeHTTP(&wireDiscard{make(http.Header)}, httptest.NewRequest("GET", "/", nil))
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	h := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(http.HandlerFunc(stream))
	allocated(h) // opens the connection
	bare, with := allocated(http.HandlerFunc(stream)), allocated(h)
	if with > bare+1<<20 {
		t.Errorf("128 MiB streamed took %d bytes of memory, %d without sqlreq", with, bare)
	}
}

// wireZeros never ends.
type wireZeros struct{}

func (wireZeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestG5TransactionIsOverBeforeTheResponse(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	cases := map[string]struct {
		respond func(w http.ResponseWriter)
		query   string
		last    bool // only the last Write completes the response
	}{
		"body":          {func(w http.ResponseWriter) { _, _ = io.WriteString(w, wireSmall) }, sqlreqtest.InsertWork, false},
		"204":           {func(w http.ResponseWriter) { w.WriteHeader(204) }, sqlreqtest.InsertWork, false},
		"rollback":      {func(w http.ResponseWriter) { http.Error(w, "no", 404) }, sqlreqtest.InsertWork, false},
		"failed commit": {func(w http.ResponseWriter) { _, _ = io.WriteString(w, wireSmall) }, sqlreqtest.BreakCommit, false},
		"stream with length": {func(w http.ResponseWriter) {
			wireSetLength(w, len(wireLarge))
			wirePieces(w, wireLarge, 1<<10)
		}, sqlreqtest.InsertWork, true},
	}
	for name, c := range cases {
		under, used, looks := wireRecorder(), 0, 0
		under.look = func(string) {
			looks++
			used = db.Stats().InUse
			if used != 0 && !c.last {
				t.Errorf("%s: %d connections in use while the client is waited for", name, used)
			}
		}
		reg := wireRegistry(t, false, sqlreq.Binding{DB: db})
		reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := sqlreqtest.Main.ExecContext(r.Context(), c.query); err != nil {
				t.Error(err)
			}
			c.respond(w)
		})).ServeHTTP(under, httptest.NewRequest("GET", "/", nil))
		if looks == 0 || used != 0 {
			t.Errorf("%s: %d connections in use at the last of %d writes, want none", name, used, looks)
		}
	}
}

// wireBody tells when it is read, and how.
type wireBody struct {
	io.ReadCloser
	reads func()
}

func (b wireBody) Read(p []byte) (int, error) { b.reads(); return b.ReadCloser.Read(p) }

func TestG5TxFuncWaitsForASmallBody(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reading := make(chan int, 100) // connections in use when the body is read
	app := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		if db.Stats().InUse != 1 {
			t.Errorf("the function runs with %d connections, want its own", db.Stats().InUse)
		}
		if _, err := tx.ExecContext(r.Context(), `INSERT INTO work (note) VALUES (?)`, string(body)); err != nil {
			return err
		}
		_, err = w.Write(body)
		return err
	}))
	srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = wireBody{r.Body, func() { reading <- db.Stats().InUse }}
		app.ServeHTTP(w, r)
	}))
	conn := wireDial(t, srv.Listener.Addr().String(), nil)
	defer conn.Close()
	fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nfirst")
	for range 2 { // the first half is read, then the second is waited for
		if used := <-reading; used != 0 {
			t.Errorf("%d connections in use while the body is waited for, want none", used)
		}
	}
	fmt.Fprint(conn, " half")
	if got := wireRead(bufio.NewReader(conn), "POST"); got.body != "first half" || got.err != nil {
		t.Errorf("got %v, want the whole body", got)
	}
}

func TestG10WriterIsAWriter(t *testing.T) {
	for proto, start := range wireProtocols {
		t.Run(strings.ReplaceAll(proto, "/", ""), func(t *testing.T) {
			ask := start(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, flusher := w.(http.Flusher)
				_, hijacker := w.(http.Hijacker)
				_, readerFrom := w.(io.ReaderFrom)
				_, stringWriter := w.(io.StringWriter)
				_, closeNotifier := w.(interface{ CloseNotify() <-chan bool })
				_, pusher := w.(http.Pusher)
				if !flusher || !hijacker || !readerFrom || !stringWriter || !closeNotifier || pusher {
					t.Errorf("Flusher %t, Hijacker %t, ReaderFrom %t, StringWriter %t, CloseNotifier %t, want true; Pusher %t, want false",
						flusher, hijacker, readerFrom, stringWriter, closeNotifier, pusher)
				}
				rc := http.NewResponseController(w)
				far := time.Now().Add(wirePatience)
				if err := errors.Join(rc.SetReadDeadline(far), rc.SetWriteDeadline(far), rc.EnableFullDuplex()); err != nil {
					t.Error(err)
				}
				if err := rc.Flush(); err != nil {
					t.Error(err)
				}
			})))
			if got := ask("GET", "/"); got.err != nil || got.status != 200 {
				t.Errorf("got %v, want 200", got)
			}
		})
	}
}

func TestG10FlushReachesTheClientAtOnce(t *testing.T) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/2"} {
		seen, db := make(chan struct{}), sqlreqtest.OpenDB(t)
		h := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
				t.Error(err)
			}
			_, _ = io.WriteString(w, "first")
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			select {
			case <-seen:
			case <-r.Context().Done():
				t.Errorf("%s: the client has not seen what was flushed", proto)
			}
		}))
		srv := wireTLS(t, h)
		client := srv.Client()
		if proto == "HTTP/1.1" {
			srv = sqlreqtest.Serve(t, h)
			client = srv.Client()
		}
		client.Timeout = wirePatience
		res, err := client.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		first := make([]byte, 5)
		if _, err := io.ReadFull(res.Body, first); err != nil || string(first) != "first" {
			t.Errorf("%s: got %q %v before the handler returned, want first", proto, first, err)
		}
		close(seen)
		if _, err := io.ReadAll(res.Body); err != nil {
			t.Error(err)
		}
		res.Body.Close()
	}
}

func TestG10Deadlines(t *testing.T) {
	app := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc, past := http.NewResponseController(w), time.Unix(1, 0)
		if r.URL.Path == "/write" {
			if err := rc.SetWriteDeadline(past); err != nil {
				t.Error(err)
			}
			return
		}
		if err := rc.SetReadDeadline(past); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadAll(r.Body); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("reading the body: got %v, want the deadline", err)
		}
	}))
	srv := sqlreqtest.Serve(t, app)
	conn := wireDial(t, srv.Listener.Addr().String(), nil)
	defer conn.Close()
	fmt.Fprint(conn, "POST /read HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf")
	if got := wireRead(bufio.NewReader(conn), "POST"); got.status != 200 {
		t.Errorf("got %v, want an answer", got)
	}
	if got := wireRaw(t, srv.Listener.Addr().String(), "1.1", nil)("GET", "/write"); got.err == nil {
		t.Errorf("got %v, want a broken transfer: the deadline is over", got)
	}
}

func TestG10FullDuplex(t *testing.T) {
	srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := rc.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		for range 3 {
			b := make([]byte, 4)
			if _, err := io.ReadFull(r.Body, b); err != nil {
				t.Error(err)
			}
			_, _ = w.Write(b)
			if err := rc.Flush(); err != nil {
				t.Error(err)
			}
		}
	})))
	conn := wireDial(t, srv.Listener.Addr().String(), nil)
	defer conn.Close()
	fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 12\r\n\r\nping")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		b := make([]byte, 4)
		if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != "ping" {
			t.Fatalf("turn %d: got %q %v, want ping", i, b, err)
		}
		if i < 2 {
			fmt.Fprint(conn, "ping")
		}
	}
}

func TestG10Hijack(t *testing.T) {
	cases := map[string]struct {
		before func(w http.ResponseWriter)
		want   string // on the wire
	}{
		"before anything":                 {func(http.ResponseWriter) {}, "raw"},
		"with a header that was not sent": {func(w http.ResponseWriter) { w.Header().Set("X-Case", "1") }, "raw"},
		"after a 101": {func(w http.ResponseWriter) {
			w.Header().Set("Upgrade", "echo")
			w.Header().Set("Connection", "Upgrade")
			w.WriteHeader(101)
		}, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nraw"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
					t.Error(err)
				}
				w.Header()["Date"] = nil
				c.before(w)
				conn, rw, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				if sqlreqtest.Count(t, db, "work") != 1 || db.Stats().InUse != 0 {
					t.Error("the transaction is still open after the Hijack")
				}
				if _, err := w.Write([]byte("x")); err != http.ErrHijacked {
					t.Errorf("Write after Hijack: got %v, want ErrHijacked", err)
				}
				if _, _, err := w.(http.Hijacker).Hijack(); err == nil {
					t.Error("a second Hijack succeeds")
				}
				_, _ = rw.WriteString("raw")
				_ = rw.Flush()
			})))
			conn := wireDial(t, srv.Listener.Addr().String(), nil)
			defer conn.Close()
			fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
			if got, err := io.ReadAll(conn); string(got) != c.want || err != nil {
				t.Errorf("got %q %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestG1FailedHijackIsAnswered(t *testing.T) {
	cases := map[string]struct {
		proto  string
		query  string
		before func(w http.ResponseWriter)
		status int
	}{
		"commit fails":             {"HTTP/1.1", sqlreqtest.BreakCommit, func(http.ResponseWriter) {}, 500},
		"commit fails after a 101": {"HTTP/1.1", sqlreqtest.BreakCommit, func(w http.ResponseWriter) { w.WriteHeader(101) }, 500},
		"HTTP/2 has none":          {"HTTP/2", sqlreqtest.InsertWork, func(http.ResponseWriter) {}, 200},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			ask := wireProtocols[c.proto](t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := sqlreqtest.Main.ExecContext(r.Context(), c.query); err != nil {
					t.Error(err)
				}
				c.before(w)
				_, _, err := http.NewResponseController(w).Hijack()
				var commit *sqlreq.CommitError
				if c.status == 500 && !errors.As(err, &commit) || c.status == 200 && !errors.Is(err, http.ErrNotSupported) {
					t.Errorf("Hijack: got %v", err)
				}
				if c.status == 200 {
					_, _ = io.WriteString(w, "still held")
					if db.Stats().InUse != 1 {
						t.Error("a Hijack that cannot be has ended the transaction")
					}
				}
			})))
			if got := ask("GET", "/"); got.status != c.status || got.err != nil {
				t.Errorf("got %v, want %d", got, c.status)
			}
		})
	}
}

func TestG10CloseNotify(t *testing.T) {
	app := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		gone := w.(interface{ CloseNotify() <-chan bool }).CloseNotify()
		if r.URL.Path == "/plain" {
			r.Context().Value(wireCancel{}).(context.CancelFunc)()
		} else {
			_ = http.NewResponseController(w).Flush()
		}
		select {
		case <-gone:
		case <-time.After(wirePatience):
			t.Errorf("%s: nobody tells that the client has gone", r.URL.Path)
		}
		if r.URL.Path != "/plain" {
			r.Context().Value(wireCancel{}).(context.CancelFunc)()
		}
	}))
	ctx, cancel := context.WithCancel(context.Background())
	ctx = context.WithValue(ctx, wireCancel{}, cancel)
	func() {
		defer func() { _ = recover() }() // the client has gone: whatever the end of the request says
		app.ServeHTTP(struct{ http.ResponseWriter }{httptest.NewRecorder()}, httptest.NewRequest("GET", "/plain", nil).WithContext(ctx))
	}()

	done, finished := context.WithCancel(context.Background())
	srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		app.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), wireCancel{}, finished)))
	}))
	conn := wireDial(t, srv.Listener.Addr().String(), nil)
	fmt.Fprint(conn, "GET /conn HTTP/1.1\r\nHost: test\r\n\r\n")
	if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil {
		t.Error(err)
	}
	conn.Close()
	<-done.Done()
}

type wireCancel struct{}

func TestG10TooLargeBodyClosesTheConnection(t *testing.T) {
	read := func(w http.ResponseWriter, r *http.Request) error {
		_, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 3))
		return err
	}
	handlers := map[string]http.Handler{
		"returned": sqlreq.HandlerFunc(read),
		"answered": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if read(w, r) != nil {
				http.Error(w, "too large", http.StatusRequestEntityTooLarge)
			}
		}),
	}
	for name, h := range handlers {
		app := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(h)
		srv1, srv2 := sqlreqtest.Serve(t, app), wireTLS(t, app)
		for proto, srv := range map[string]*httptest.Server{"HTTP/1.1": srv1, "HTTP/2": srv2} {
			var reused bool
			for range 2 {
				ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
					GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused },
				})
				req, _ := http.NewRequestWithContext(ctx, "POST", srv.URL, strings.NewReader("hello"))
				res, err := srv.Client().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if res.StatusCode != 413 || res.Close != (proto == "HTTP/1.1") {
					t.Errorf("%s, %s: got %d, Connection: close %t", name, proto, res.StatusCode, res.Close)
				}
			}
			if reused != (proto == "HTTP/2") {
				t.Errorf("%s, %s: the connection was used again: %t", name, proto, reused)
			}
		}
	}
}

func TestG10PlainUnderlyingWriter(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	rec := httptest.NewRecorder()
	sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("X-Case", "1")
		_, _ = io.WriteString(w, "hello")
		rc := http.NewResponseController(w)
		_, _, hijack := rc.Hijack()
		far := time.Now().Add(time.Hour)
		for what, err := range map[string]error{
			"Flush": rc.Flush(), "Hijack": hijack, "SetReadDeadline": rc.SetReadDeadline(far),
			"SetWriteDeadline": rc.SetWriteDeadline(far), "EnableFullDuplex": rc.EnableFullDuplex(),
		} {
			if !errors.Is(err, http.ErrNotSupported) {
				t.Errorf("%s: got %v, want ErrNotSupported", what, err)
			}
		}
		return sqlreqtest.ErrTest
	})).ServeHTTP(struct{ http.ResponseWriter }{rec}, httptest.NewRequest("GET", "/", nil))
	if rec.Code != 500 || rec.Body.String() != "Internal Server Error\n" || rec.Header().Get("X-Case") != "" {
		t.Errorf("got %d %q %v, want a bare 500", rec.Code, rec.Body, rec.Header())
	}
}

func TestG10InvalidStatusPanicsInTheHandler(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	for _, status := range []int{-1, 0, 99, 1000, 1 << 16} {
		want := fmt.Sprintf("invalid WriteHeader code %d", status)
		func() {
			defer func() {
				if v := recover(); v != want {
					t.Errorf("%d: got the panic %v, want %q", status, v, want)
				}
			}()
			sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
					t.Error(err)
				}
				w.WriteHeader(status)
				t.Errorf("%d: WriteHeader returned", status)
			})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		}()
	}
	if n := sqlreqtest.Count(t, db, "work"); n != 0 {
		t.Errorf("%d rows stayed", n)
	}
}

// A superfluous WriteHeader does nothing in net/http, whatever its status.
func TestG10SuperfluousInvalidStatusIsIgnored(t *testing.T) {
	for _, body := range []string{wireSmall, wireLarge} {
		srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, body)
			w.WriteHeader(0)
		})))
		if status, got, err := sqlreqtest.Get(t, srv.URL); status != 200 || got != body || err != nil {
			t.Errorf("got %d, %d bytes, %v, want 200 as without sqlreq", status, len(got), err)
		}
	}
}

func TestG10RouteAndFormAreCopiedBack(t *testing.T) {
	for _, retry := range []bool{false, true} {
		for _, panics := range []bool{false, true} {
			var pattern, name string
			mux := http.NewServeMux()
			mux.HandleFunc("POST /up/{id}", func(w http.ResponseWriter, r *http.Request) {
				if err := r.ParseMultipartForm(1); err != nil {
					t.Error(err)
					return
				}
				f, err := r.MultipartForm.File["f"][0].Open()
				if err != nil {
					t.Error(err)
					return
				}
				defer f.Close()
				if panics {
					panic(sqlreqtest.ErrTest)
				}
			})
			app := wireRegistry(t, retry, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(mux)
			done := make(chan struct{})
			srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(done)
				defer func() {
					_ = recover()
					pattern = r.Pattern
					if r.MultipartForm == nil {
						t.Error("the caller's request has no form")
						return
					}
					f, err := r.MultipartForm.File["f"][0].Open()
					if err != nil {
						t.Error(err)
						return
					}
					defer f.Close()
					if file, ok := f.(*os.File); ok {
						name = file.Name()
					}
				}()
				app.ServeHTTP(w, r)
			}))
			var form bytes.Buffer
			parts := multipart.NewWriter(&form)
			part, _ := parts.CreateFormFile("f", "f.txt")
			_, _ = io.WriteString(part, strings.Repeat("x", 100<<10))
			_ = parts.Close()
			res, err := http.Post(srv.URL+"/up/1", parts.FormDataContentType(), &form)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			<-done
			srv.Close() // waits for net/http to be done with the request
			if pattern != "POST /up/{id}" || name == "" {
				t.Errorf("retry %t, panic %t: outside, Pattern is %q, the file %q", retry, panics, pattern, name)
			}
			if _, err := os.Stat(name); name != "" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("retry %t, panic %t: the temporary file is still there (%v)", retry, panics, err)
			}
		}
	}
}

func TestG10ServesSeveralRanges(t *testing.T) {
	file := wireFile(t, wireLarge)
	srv := sqlreqtest.Serve(t, wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, file)
	})))
	req, _ := http.NewRequest("GET", srv.URL, nil)
	req.Header.Set("Range", "bytes=0-9,100-20099,-5")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	_, params, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	parts := multipart.NewReader(res.Body, params["boundary"])
	for _, want := range []string{wireLarge[:10], wireLarge[100:20100], wireLarge[len(wireLarge)-5:]} {
		part, err := parts.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(part); string(got) != want || err != nil {
			t.Errorf("got %d bytes %v, want %d", len(got), err, len(want))
		}
	}
	if _, err := parts.NextPart(); res.StatusCode != 206 || err != io.EOF {
		t.Errorf("got %d %v, want a complete 206", res.StatusCode, err)
	}
}

func TestG7WriteAfterTheEnd(t *testing.T) {
	for _, retry := range []bool{false, true} {
		app := wireRegistry(t, retry, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
		var writers []http.ResponseWriter
		h := app.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			writers = append(writers, w)
			_, _ = io.WriteString(w, "in time ")
		}))
		recs := []*httptest.ResponseRecorder{httptest.NewRecorder(), httptest.NewRecorder()}
		for _, rec := range recs {
			h.ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
		}
		for i, w := range writers {
			fmt.Fprint(w, i)
			_, _ = io.WriteString(w, " late")
			_, _ = io.Copy(w, wireReader{strings.NewReader(" and later")})
		}
		for i, rec := range recs {
			if want := fmt.Sprint("in time ", i, " late and later"); rec.Body.String() != want {
				t.Errorf("retry %t: response %d is %q, want %q", retry, i, rec.Body, want)
			}
		}
	}
}

// The ErrorHandler's response is held by the same writer.
func TestG10ErrorHandlerHasAWriterToo(t *testing.T) {
	for proto, start := range wireProtocols {
		reg := wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
		reg.ErrorHandler = func(w http.ResponseWriter, r *http.Request, err error) {
			w.Header().Set("X-Error", "1")
			if r.URL.Path == "/large" {
				w.WriteHeader(503)
				wirePieces(w, wireLarge, 1000)
				wireFlush(w)
			}
			if r.URL.Path == "/hijack" {
				if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
					conn.Close()
				}
			}
		}
		ask := start(t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			w.Header().Set("X-Case", "1")
			return sqlreqtest.ErrTest
		})))
		if got := ask("GET", "/"); got.status != 500 || got.header.Get("X-Case") != "" || got.err != nil {
			t.Errorf("%s: got %v, want a 500 of the ErrorHandler that wrote nothing", proto, got)
		}
		if got := ask("GET", "/large"); got.status != 503 || got.header.Get("X-Error") != "1" || got.body != wireLarge || got.err != nil {
			t.Errorf("%s: got %v, want the whole error page", proto, got)
		}
		if got := ask("GET", "/hijack"); got.err == nil && got.status != 500 {
			t.Errorf("%s: got %v, want no success", proto, got)
		}
	}
}

// wireBuffering is a middleware outside, like one that compresses from a certain
// size on: it adds a header when the status is known, and sends at the end.
type wireBuffering struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (b *wireBuffering) WriteHeader(status int) {
	b.status = status
	b.Header().Set("X-Stamp", "1")
}

func (b *wireBuffering) Write(p []byte) (int, error) { return b.body.Write(p) }

func TestG10HeadersOfABufferingMiddlewareOutsideStay(t *testing.T) {
	for _, retry := range []bool{false, true} {
		rec := httptest.NewRecorder()
		b := &wireBuffering{ResponseWriter: rec}
		wireRegistry(t, retry, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			w.WriteHeader(201)
			w.Header().Set("X-Case", "late")
			_, _ = io.WriteString(w, "hello")
		})).ServeHTTP(b, httptest.NewRequest("GET", "/", nil))
		if b.status != 201 || b.body.String() != "hello" || rec.Header().Get("X-Stamp") != "1" {
			t.Errorf("retry %t: got %d %q %v, want X-Stamp", retry, b.status, &b.body, rec.Header())
		}
	}
}

// wireOpaque is a middleware's writer that cannot be looked through, but passes
// on what websocket and streaming handlers ask for.
type wireOpaque struct {
	http.ResponseWriter
	http.Flusher
	http.Hijacker
}

func TestG1AbortNeedsNoUnwrap(t *testing.T) {
	for _, length := range []int{-1, len(wireLarge)} {
		app := wireRecover(wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			if length >= 0 {
				wireSetLength(w, length)
			}
			_, _ = io.WriteString(w, wireLarge)
			return sqlreqtest.ErrTest
		})))
		ask := wireProtocols["HTTP/1.1"](t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			app.ServeHTTP(wireOpaque{w, w.(http.Flusher), w.(http.Hijacker)}, r)
		}))
		if got := ask("GET", "/"); got.err == nil {
			t.Errorf("Content-Length %d: got %v, want a broken transfer", length, got)
		}
	}
}

// A compressed response has another length on the wire than the handler declared.
func TestG1CompressionOutside(t *testing.T) {
	for name, query := range map[string]string{"works": sqlreqtest.InsertWork, "fails": sqlreqtest.BreakCommit} {
		app := wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := sqlreqtest.Main.ExecContext(r.Context(), query); err != nil {
				t.Error(err)
			}
			wireSetLength(w, len(wireLarge))
			_, _ = io.WriteString(w, wireLarge)
		}))
		srv := sqlreqtest.Serve(t, wireRecover(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			zip := &wireZip{ResponseWriter: w}
			zip.zip = gzip.NewWriter(w)
			defer zip.zip.Close() // also when the handler panics: gzip's own end must not help either
			app.ServeHTTP(zip, r)
		})))
		_, body, err := sqlreqtest.Get(t, srv.URL)
		if query == sqlreqtest.InsertWork && (body != wireLarge || err != nil) || query == sqlreqtest.BreakCommit && err == nil {
			t.Errorf("commit %s: got %d bytes, %v", name, len(body), err)
		}
	}
}

type wireZip struct {
	http.ResponseWriter
	zip *gzip.Writer
}

func (z *wireZip) Unwrap() http.ResponseWriter { return z.ResponseWriter }

func (z *wireZip) WriteHeader(status int) {
	z.Header().Del("Content-Length")
	z.Header().Set("Content-Encoding", "gzip")
	z.ResponseWriter.WriteHeader(status)
}

func (z *wireZip) Write(p []byte) (int, error) { return z.zip.Write(p) }

func TestG1RollbackThatWasAskedForIsNoFailure(t *testing.T) {
	large := func(w http.ResponseWriter, status int) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, wireLarge)
	}
	cases := map[string]struct {
		handler  sqlreq.HandlerFunc
		commitIf func(int, http.Header) bool
		status   int
	}{
		"status":                 {func(w http.ResponseWriter, r *http.Request) error { large(w, 404); return nil }, nil, 404},
		"error after the answer": {func(w http.ResponseWriter, r *http.Request) error { large(w, 404); return sqlreqtest.ErrTest }, nil, 404},
		"Rollback": {func(w http.ResponseWriter, r *http.Request) error {
			large(w, 200)
			return sqlreq.Rollback(r.Context())
		}, nil, 200},
		"CommitIf": {func(w http.ResponseWriter, r *http.Request) error { large(w, 200); return nil },
			func(int, http.Header) bool { return false }, 200},
	}
	for name, c := range cases {
		for proto, start := range wireProtocols {
			db := sqlreqtest.OpenDB(t)
			reg := wireRegistry(t, false, sqlreq.Binding{DB: db})
			reg.CommitIf = c.commitIf
			ask := start(t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
					t.Error(err)
				}
				return c.handler(w, r)
			})))
			if got := ask("GET", "/"); got.status != c.status || got.body != wireLarge || got.err != nil {
				t.Errorf("%s, %s: got %v, want a complete %d", proto, name, got, c.status)
			}
			if n := sqlreqtest.Count(t, db, "work"); n != 0 {
				t.Errorf("%s, %s: %d rows stayed", proto, name, n)
			}
		}
	}
}

func TestG1FailedCommitOverridesEveryStatus(t *testing.T) {
	for _, explicit := range []bool{false, true} {
		for _, body := range []string{wireSmall, wireLarge} {
			for proto, start := range wireProtocols {
				reg := wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
				reg.CommitIf = func(int, http.Header) bool { return true }
				ask := start(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.BreakCommit); err != nil {
						t.Error(err)
					}
					w.Header().Set("X-Case", "1")
					w.WriteHeader(404)
					_, _ = io.WriteString(w, body)
					if explicit && sqlreq.Commit(r.Context()) == nil {
						t.Error("Commit succeeded")
					}
				})))
				got := ask("GET", "/")
				if body == wireSmall && (got.status != 500 || got.header.Get("X-Case") != "" || got.err != nil) || body == wireLarge && got.err == nil {
					t.Errorf("%s, explicit %t: got %v, want an error", proto, explicit, got)
				}
			}
		}
	}
}

// What a middleware outside has set counts as well: net/http does not ask who
// declared the length.
func TestG1FramingSetOutside(t *testing.T) {
	outside := map[string]func(h http.Header){
		"Content-Length":              func(h http.Header) { h.Set("Content-Length", strconv.Itoa(len(wireLarge))) },
		"Transfer-Encoding: identity": func(h http.Header) { h.Set("Transfer-Encoding", "identity") },
	}
	answers := map[string]func(w http.ResponseWriter){
		"written": func(w http.ResponseWriter) { _, _ = io.WriteString(w, wireLarge) },
		"copied":  func(w http.ResponseWriter) { _, _ = io.Copy(w, wireReader{strings.NewReader(wireLarge)}) },
		"flushed": func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, wireLarge[:wireLimit])
			wireFlush(w)
			_, _ = io.WriteString(w, wireLarge[wireLimit:])
			wireFlush(w)
		},
	}
	for header, set := range outside {
		for answer, respond := range answers {
			for query, fails := range map[string]bool{sqlreqtest.InsertWork: false, sqlreqtest.BreakCommit: true} {
				app := wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					respond(w)
					if _, err := sqlreqtest.Main.ExecContext(r.Context(), query); err != nil {
						t.Error(err)
					}
				}))
				ask := wireProtocols["HTTP/1.1"](t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					set(w.Header())
					app.ServeHTTP(w, r)
				}))
				if got := ask("GET", "/"); (got.err != nil) != fails || !fails && got.body != wireLarge {
					t.Errorf("%s outside, %s, commit fails %t: got %v", header, answer, fails, got)
				}
			}
		}
	}
}

// net/http drops a length that it cannot read, but not in HTTP/1.0, where a
// client may be able to read it.
func TestG1InvalidLengthInHTTP10(t *testing.T) {
	ask := wireProtocols["HTTP/1.0"](t, wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(" ", len(wireLarge)))
		_, _ = io.WriteString(w, wireLarge)
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.BreakCommit); err != nil {
			t.Error(err)
		}
	})))
	if got := ask("GET", "/"); got.err == nil {
		t.Errorf("got %v, want a broken transfer", got)
	}
}

func TestG1AbortIsErrAbortHandler(t *testing.T) {
	cases := map[string]struct {
		body string
		want any
	}{"held": {wireSmall, nil}, "streaming": {wireLarge, http.ErrAbortHandler}}
	for name, c := range cases {
		func() {
			defer func() {
				if got := recover(); got != c.want {
					t.Errorf("%s: got the panic %v, want %v", name, got, c.want)
				}
			}()
			wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				_, _ = io.WriteString(w, c.body)
				return sqlreqtest.ErrTest
			})).ServeHTTP(wireRecorder(), httptest.NewRequest("GET", "/", nil))
		}()
	}
}
