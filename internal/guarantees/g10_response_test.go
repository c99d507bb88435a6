// G10. The writer stays a writer. What works on net/http's ResponseWriter works on
// the one handed to the handler: 1xx responses (which decide nothing), trailers
// (declared and http.TrailerPrefix), content-type sniffing, http.ServeContent,
// HTTP/2. Headers changed after WriteHeader are not sent. What cannot be:
// http.MaxBytesReader closes the connection through an unexported method, so sqlreq
// sends "Connection: close" with the 413 itself. After the handler, Pattern and
// MultipartForm are copied back to the caller's request, so that middlewares outside
// see the route and net/http removes the temporary files.

package guarantees_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

func TestG10ResponsesAreThoseOfTheBareHandler(t *testing.T) {
	cases := wireCases(t)
	wireEach(t, func(t *testing.T, p wireProtocol) {
		bare := p.start(t, wireVariant{bare: true}.handler(t, nil, cases))
		for _, v := range []wireVariant{{}, {last: true}, {retry: true}, {retry: true, last: true}} {
			v.query = sqlreqtest.InsertWork
			if p.name == wireTLS10.name && (v.retry || v.last) {
				continue // a handshake for each request takes its time
			}
			t.Run(v.String(), func(t *testing.T) {
				db := sqlreqtest.OpenDB(t)
				ask := p.start(t, v.handler(t, wireRegistry(t, v.retry, sqlreq.Binding{DB: db}), cases))
				asked := 0
				for n, c := range cases {
					size := 0 // of the body of the GET
					for _, method := range []string{"GET", "HEAD"} {
						if c.http1 && p.name == wireHTTP2.name {
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
	})
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
	// Only HTTP/1.1 has to close the connection: a stream of HTTP/2 ends by itself.
	test := func(t *testing.T, p wireProtocol, closes bool) {
		for name, h := range handlers {
			srv := p.serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(h))
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
				if res.StatusCode != 413 || res.Close != closes {
					t.Errorf("%s: got %d, Connection: close %t, want 413, %t", name, res.StatusCode, res.Close, closes)
				}
			}
			if reused == closes {
				t.Errorf("%s: the connection was used again: %t", name, reused)
			}
		}
	}
	t.Run(wireHTTP11.name, func(t *testing.T) { test(t, wireHTTP11, true) })
	t.Run(wireHTTP2.name, func(t *testing.T) { test(t, wireHTTP2, false) })
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

// The ErrorHandler's response is held by the same writer.
func TestG10ErrorHandlerHasAWriterToo(t *testing.T) {
	wireEach(t, func(t *testing.T, p wireProtocol) {
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
		ask := p.start(t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			w.Header().Set("X-Case", "1")
			return sqlreqtest.ErrTest
		})))
		if got := ask("GET", "/"); got.status != 500 || got.header.Get("X-Case") != "" || got.err != nil {
			t.Errorf("got %v, want a 500 of the ErrorHandler that wrote nothing", got)
		}
		if got := ask("GET", "/large"); got.status != 503 || got.header.Get("X-Error") != "1" || got.body != wireLarge || got.err != nil {
			t.Errorf("got %v, want the whole error page", got)
		}
		if got := ask("GET", "/hijack"); got.err == nil && got.status != 500 {
			t.Errorf("got %v, want no success", got)
		}
	})
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
