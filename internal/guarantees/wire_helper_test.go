package guarantees_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
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
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	_ "modernc.org/sqlite"
)

// wireLimit is the HoldLimit of these tests, above what net/http buffers by itself.
const wireLimit = 8 << 10

// wirePatience is when a test gives up on a peer that says nothing. Only a test
// that fails waits so long, so it is far above what a loaded machine needs.
const wirePatience = time.Minute

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

// wireAsk sends a request and returns what came back.
type wireAsk func(method, path string) wireAnswer

// wireProtocol is a version of HTTP.
type wireProtocol struct {
	name  string
	serve func(testing.TB, http.Handler) *httptest.Server
	ask   func(testing.TB, *httptest.Server) wireAsk
}

// start serves h and returns how to ask it.
func (p wireProtocol) start(t testing.TB, h http.Handler) wireAsk {
	t.Helper()
	return p.ask(t, p.serve(t, h))
}

var (
	wireHTTP10 = wireProtocol{"http1.0", sqlreqtest.Serve, func(t testing.TB, srv *httptest.Server) wireAsk {
		return wireRaw(t, srv, "1.0", nil)
	}}
	wireHTTP11 = wireProtocol{"http1.1", sqlreqtest.Serve, func(t testing.TB, srv *httptest.Server) wireAsk {
		return wireRaw(t, srv, "1.1", nil)
	}}
	wireHTTP2 = wireProtocol{"http2", wireTLS, wireAskHTTP2}
	wireTLS10 = wireProtocol{"tls1.0", wireTLS, func(t testing.TB, srv *httptest.Server) wireAsk {
		return wireRaw(t, srv, "1.0", &tls.Config{InsecureSkipVerify: true})
	}}
)

// wireEach runs a test with each version of HTTP.
func wireEach(t *testing.T, test func(t *testing.T, p wireProtocol)) {
	for _, p := range []wireProtocol{wireHTTP10, wireHTTP11, wireHTTP2, wireTLS10} {
		t.Run(p.name, func(t *testing.T) { test(t, p) })
	}
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

func wireDial(t testing.TB, srv *httptest.Server, config *tls.Config) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
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
func wireRaw(t testing.TB, srv *httptest.Server, version string, config *tls.Config) wireAsk {
	return func(method, path string) (a wireAnswer) {
		t.Helper()
		conn := wireDial(t, srv, config)
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

func wireAskHTTP2(_ testing.TB, srv *httptest.Server) wireAsk {
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
		reg.Retry.Attempts, reg.Retry.Within = 2, time.Hour
	}
	return reg
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
