package sqlreqgin

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

// panicsWith returns what f panics with.
func panicsWith(f func()) (v any) {
	defer func() { v = recover() }()
	f()
	return nil
}

func TestWrapAsksOnceAtSetUp(t *testing.T) {
	s := adaptertest.NewSite(t)
	asked := 0
	engine := gin.New()
	engine.Use(Wrap(func(next http.Handler) http.Handler {
		asked++
		return s.Reg.Middleware(next)
	}))
	engine.POST("/", work(s))
	for range 3 {
		if rec := sqlreqtest.Do(pathless(engine)); rec.Code != 201 {
			t.Errorf("got %d", rec.Code)
		}
	}
	if asked != 1 {
		t.Errorf("the middleware was asked %d times, want once", asked)
	}
	if v := panicsWith(func() { Wrap(nil) }); v == nil || !strings.Contains(v.(string), "Wrap(reg.Middleware)") {
		t.Errorf("Wrap(nil): got panic %v, want one that says what to do", v)
	}
}

// pathless asks for "/" whatever was asked for.
func pathless(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Path = "/"
		h.ServeHTTP(w, r)
	})
}

// A status without a body decides, and so do gin's own 404 and 405, whose bodies stay.
func TestStatusAlone(t *testing.T) {
	s := adaptertest.NewSite(t)
	engine := newEngine(s)
	engine.POST("/422", work(s, func(c *gin.Context) { c.Status(422) }))
	engine.POST("/known", work(s))
	url := s.Serve(t, engine)
	for _, test := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", "/422", "", 422},
		{"POST", "/unknown", "404 page not found", 404},
		{"PUT", "/known", "405 method not allowed", 405},
	} {
		got := s.Send(t, test.method, url+test.path)
		if got.Status != test.status || got.Body != test.body || got.Header.Get("X-Outside") != "1" {
			t.Errorf("%s: got %d %q %v, want %d %q", test.path, got.Status, got.Body, got.Header, test.status, test.body)
		}
	}
	s.WantRows(t, 0)
	if got := s.Accessed(); !slices.Equal(got, []int{422, 404, 405}) {
		t.Errorf("the access log has %v", got)
	}
}

// A handler for unknown paths that adds a row: gin's 404 rolls it back, a 200 commits.
func TestNoRoute(t *testing.T) {
	for status, rows := range map[int]int{404: 0, 200: 1} {
		s := adaptertest.NewSite(t)
		engine := newEngine(s)
		engine.NoRoute(work(s, func(c *gin.Context) { c.Status(status) }))
		if got := s.Send(t, "POST", s.Serve(t, engine)+"/unknown"); got.Status != status {
			t.Errorf("got %d, want %d", got.Status, status)
		}
		s.WantRows(t, rows)
	}
}

// Recovery inside, behind a page that is half written: gin would leave its 200.
func TestRecoveryInside(t *testing.T) {
	s := adaptertest.NewSite(t)
	engine := newEngine(s)
	engine.Use(gin.RecoveryWithWriter(io.Discard))
	panics := func(*gin.Context) { panic("on purpose") }
	engine.POST("/page", work(s, func(c *gin.Context) { c.String(200, "half") }, panics))
	engine.POST("/large", work(s, func(c *gin.Context) { c.Data(200, "text/plain", make([]byte, adaptertest.Large)) }, panics))
	engine.POST("/abort", work(s, func(*gin.Context) { panic(http.ErrAbortHandler) })) // no status of Recovery's
	url := s.Serve(t, engine)
	if got := s.Send(t, "POST", url+"/page"); got.Status != 500 || got.Body != "" || got.Err != nil {
		t.Errorf("got %d %q %v, want an empty 500", got.Status, got.Body, got.Err)
	}
	if got := s.Send(t, "POST", url+"/large"); got.Err == nil {
		t.Errorf("got a complete %d, want a broken transfer", got.Status)
	}
	if got := s.Send(t, "POST", url+"/abort"); got.Status != 500 {
		t.Errorf("got %d, want 500", got.Status)
	}
	s.WantRows(t, 0)
}

func TestWriterAndRequestArePutBack(t *testing.T) {
	s := adaptertest.NewSite(t)
	engine := gin.New()
	engine.Use(func(c *gin.Context) {
		w, r := c.Writer, c.Request
		defer func() {
			_ = recover()
			if c.Writer != w || c.Request != r {
				t.Error("gin's writer or request is another one behind Wrap")
			}
		}()
		c.Next()
	}, Wrap(s.Reg.Middleware))
	engine.POST("/ok", work(s))
	engine.POST("/panic", work(s, func(*gin.Context) { panic("on purpose") }))
	url := s.Serve(t, engine)
	s.Send(t, "POST", url+"/ok")
	s.Send(t, "POST", url+"/panic")
}

// asking is a writer of a middleware outside that asks the context when the status is set.
type asking struct {
	gin.ResponseWriter
	c    *gin.Context
	seen *int // the context's status in a Write
}

func (w *asking) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *asking) WriteHeader(status int) {
	w.c.Header("X-Status", fmt.Sprint(status))
	w.ResponseWriter.WriteHeader(status)
}

func (w *asking) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	*w.seen = w.c.Writer.Status()
	return n, err
}

func TestWriterOfOutsideAsksTheContext(t *testing.T) {
	s := adaptertest.NewSite(t)
	engine := gin.New()
	var seen int
	engine.Use(func(c *gin.Context) { c.Writer = &asking{c.Writer, c, &seen} }, Wrap(s.Reg.Middleware))
	engine.POST("/", work(s, done))
	engine.POST("/commit", work(s, func(c *gin.Context) { _ = s.BreakCommit(c.Request.Context()) }, done))
	engine.POST("/large", work(s, func(c *gin.Context) { c.Data(200, "text/plain", make([]byte, adaptertest.Large)) }))
	url := s.Serve(t, engine)
	for path, status := range map[string]int{"/": 201, "/commit": 500, "/large": 200} {
		got := s.Send(t, "POST", url+path)
		if got.Status != status || got.Header.Get("X-Status") != fmt.Sprint(status) {
			t.Errorf("%s: got %d %v, want %d", path, got.Status, got.Header, status)
		}
	}
	s.WantRows(t, 2)
	s.Reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { http.Error(w, "custom", http.StatusTeapot) }
	if got := s.Send(t, "POST", url+"/commit"); got.Status != 418 || seen != 418 {
		t.Errorf("got %d, the writer outside saw %d, want 418", got.Status, seen)
	}
}

// Without a middleware outside that writes one, a failed request has no body. The
// registry's ErrorHandler writes it, unless AbortWithError has sent the status already.
func TestBodyOfAnError(t *testing.T) {
	s := adaptertest.NewSite(t)
	engine := gin.New()
	engine.Use(Wrap(s.Reg.Middleware))
	engine.POST("/error", work(s, func(c *gin.Context) { _ = c.Error(errors.New("on purpose")) }))
	engine.POST("/fail", work(s, func(c *gin.Context) { _ = sqlreq.Fail(c.Request.Context(), errors.New("on purpose")) }))
	engine.POST("/abort", work(s, func(c *gin.Context) { _ = c.AbortWithError(500, errors.New("on purpose")) }))
	url := s.Serve(t, engine)
	want := func(path, body string) {
		t.Helper()
		if got := s.Send(t, "POST", url+path); got.Status != 500 || got.Body != body {
			t.Errorf("%s: got %d %q, want 500 %q", path, got.Status, got.Body, body)
		}
	}
	want("/error", "")
	want("/fail", "")
	want("/abort", "")
	s.Reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { _, _ = io.WriteString(w, "custom") }
	want("/error", "custom")
	want("/fail", "custom")
	want("/abort", "")
	s.WantRows(t, 0)
}

// What runs between the handler and the end of the transaction cannot answer any more.
func TestBeforeCommitCannotAnswer(t *testing.T) {
	s := adaptertest.NewSite(t)
	engine := newEngine(s)
	engine.POST("/", work(s, func(c *gin.Context) {
		_ = s.BreakCommit(c.Request.Context())
		_ = sqlreq.BeforeCommit(c.Request.Context(), func(context.Context) error { c.String(200, "too early"); return nil })
	}))
	got := s.Send(t, "POST", s.Serve(t, engine)+"/")
	if got.Status != 500 || got.Body != errorJSON(500) {
		t.Errorf("got %d %q, want 500", got.Status, got.Body)
	}
	s.WantRows(t, 0)
}

// net/http removes the files of the request that it knows.
func TestFilesOfAFormAreRemoved(t *testing.T) {
	for _, replaced := range []bool{false, true} {
		s := adaptertest.NewSite(t)
		t.Setenv("TMPDIR", t.TempDir())
		engine := newEngine(s)
		engine.MaxMultipartMemory = 1
		engine.POST("/", func(c *gin.Context) {
			if replaced { // as tracing middlewares do
				c.Request = c.Request.WithContext(c.Request.Context())
			}
			if _, err := c.FormFile("f"); err != nil {
				t.Errorf("FormFile: %v", err)
			}
			if left, _ := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "multipart-*")); len(left) != 1 {
				t.Errorf("got files %v while the handler runs, want one", left)
			}
		})
		var body bytes.Buffer
		form := multipart.NewWriter(&body)
		part, _ := form.CreateFormFile("f", "f")
		_, _ = part.Write(make([]byte, 11<<20)) // beyond the 10 MiB that net/http keeps in any case
		form.Close()
		srv := sqlreqtest.Serve(t, engine)
		res, err := http.Post(srv.URL+"/", form.FormDataContentType(), &body)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		srv.Close() // waits for the end of the request
		if left, _ := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "multipart-*")); len(left) != 0 {
			t.Errorf("request replaced %t: got files %v, want none", replaced, left)
		}
	}
}

// An error that was there before Wrap is none of its requests' failures.
func TestErrorsFromBefore(t *testing.T) {
	s := adaptertest.NewSite(t)
	engine := gin.New()
	engine.Use(func(c *gin.Context) { _ = c.Error(errors.New("a remark")) }, Wrap(s.Reg.Middleware))
	engine.POST("/", work(s))
	if got := s.Send(t, "POST", s.Serve(t, engine)+"/"); got.Status != 201 {
		t.Errorf("got %d, want 201", got.Status)
	}
	s.WantRows(t, 1)
}

// What a middleware answers by itself ends the chain.
func TestOwnAnswer(t *testing.T) {
	s := adaptertest.NewSite(t)
	engine := newEngine(s)
	busy := func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "busy", http.StatusServiceUnavailable) })
	}
	engine.POST("/", Wrap(busy), work(s))
	if got := s.Send(t, "POST", s.Serve(t, engine)+"/"); got.Status != 503 || got.Body != "busy\n" {
		t.Errorf("got %d %q, want the 503", got.Status, got.Body)
	}
	s.WantRows(t, 0)
}

// The error of a COMMIT comes to the middleware outside as it is.
func TestCommitErrorIsTold(t *testing.T) {
	s := adaptertest.NewSite(t)
	var told []error
	engine := gin.New()
	engine.Use(func(c *gin.Context) {
		c.Next()
		for _, e := range c.Errors {
			told = append(told, e)
		}
	}, Wrap(s.Reg.Middleware))
	engine.POST("/", work(s, func(c *gin.Context) { _ = s.BreakCommit(c.Request.Context()) }, done))
	engine.POST("/error", work(s, func(c *gin.Context) { _ = c.Error(errors.New("on purpose")) }))
	url := s.Serve(t, engine)
	if got := s.Send(t, "POST", url+"/error"); got.Status != 500 || len(told) != 1 {
		t.Errorf("got %d, told %v, want 500 and the handler's error once", got.Status, told)
	}
	told = nil
	got := s.Send(t, "POST", url+"/")
	var commit *sqlreq.CommitError
	if got.Status != 500 || got.Body != "" || len(told) != 1 || !errors.As(told[0], &commit) || sqlreq.MayHaveCommitted(told[0]) {
		t.Errorf("got %d %q, told %v, want one *CommitError that has committed nothing", got.Status, got.Body, told)
	}
}

func TestRetryPanicsWithASentence(t *testing.T) {
	s := adaptertest.NewSite(t)
	s.Reg.Retry = sqlreqtest.Retries(3)
	var recovered any
	engine := gin.New()
	engine.Use(gin.CustomRecoveryWithWriter(io.Discard, func(c *gin.Context, v any) { recovered = v; c.AbortWithStatus(500) }), Wrap(s.Reg.Middleware))
	engine.POST("/", work(s, func(c *gin.Context) { _ = c.Error(sqlreqtest.Conflict{}) }))
	if got := s.Send(t, "POST", s.Serve(t, engine)+"/"); got.Status != 500 || recovered != again {
		t.Errorf("got %d and the panic %v, want the sentence about Retry.When", got.Status, recovered)
	}
	s.WantRows(t, 0)
}

// HandleContext gives the answer to net/http's writer, around sqlreq.
func TestHandleContextIsRefused(t *testing.T) {
	s := adaptertest.NewSite(t)
	var recovered any
	engine := gin.New()
	engine.Use(gin.CustomRecoveryWithWriter(io.Discard, func(c *gin.Context, v any) { recovered = v; c.AbortWithStatus(500) }))
	engine.GET("/plain", done) // not behind Wrap
	wrapped := engine.Group("/", Wrap(s.Reg.Middleware))
	wrapped.POST("/ok", work(s))
	forward := func(path, method string) gin.HandlerFunc {
		return work(s, func(c *gin.Context) {
			_ = c.Error(errors.New("forgotten by HandleContext"))
			c.Request.URL.Path, c.Request.Method = path, method
			engine.HandleContext(c)
		})
	}
	wrapped.POST("/to/wrapped", forward("/ok", "POST"))
	wrapped.POST("/to/plain", forward("/plain", "GET"))
	url := s.Serve(t, engine)
	for _, path := range []string{"/to/wrapped", "/to/plain"} {
		recovered = nil
		got := s.Send(t, "POST", url+path)
		if got.Err == nil && got.Status < 400 || recovered != reentered {
			t.Errorf("%s: got %d %v and the panic %v, want no success and the sentence", path, got.Status, got.Err, recovered)
		}
	}
	s.WantRows(t, 0)
	// Before Wrap it works.
	engine.POST("/before", func(c *gin.Context) {
		c.Request.URL.Path = "/ok"
		engine.HandleContext(c)
	})
	if got := s.Send(t, "POST", url+"/before"); got.Status != 201 {
		t.Errorf("HandleContext before Wrap: got %d, want 201", got.Status)
	}
	s.WantRows(t, 1)
}

func TestHijack(t *testing.T) {
	s := adaptertest.NewSite(t)
	engine := newEngine(s)
	take := func(t *testing.T, c *gin.Context) error {
		conn, rw, err := c.Writer.Hijack()
		if err != nil {
			if c.Writer.Written() {
				t.Error("Written is true behind a Hijack that has failed")
			}
			c.String(426, "no")
			return err
		}
		defer conn.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello")
		return rw.Flush()
	}
	engine.GET("/", work(s, func(c *gin.Context) { _ = take(t, c) }))
	engine.GET("/commit", work(s, func(c *gin.Context) {
		_ = s.BreakCommit(c.Request.Context())
		if err := take(t, c); err == nil {
			t.Error("Hijack with a COMMIT that fails: got nil")
		}
	}))
	url := s.Serve(t, engine)
	got := s.Send(t, "GET", url+"/", "Connection", "Upgrade", "Upgrade", "x")
	if got.Status != 101 {
		t.Errorf("got %d %v, want 101", got.Status, got.Err)
	}
	s.WantRows(t, 1)
	if got := s.Send(t, "GET", url+"/commit"); got.Status < 400 || got.Err != nil {
		t.Errorf("got %d %v, want an error", got.Status, got.Err)
	}
	s.WantRows(t, 1)
	h2 := sqlreqtest.ServeHTTP2(t, engine) // gin's own writer panics there
	res, err := h2.Client().Get(h2.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 426 {
		t.Errorf("HTTP/2: got %d, want the handler's 426", res.StatusCode)
	}
	s.WantRows(t, 1)
}

// Some websocket libraries set the 101 before, and have gin write it.
func TestHijackAfter101(t *testing.T) {
	s := adaptertest.NewSite(t)
	engine := newEngine(s)
	engine.GET("/", work(s, func(c *gin.Context) {
		c.Header("Connection", "Upgrade")
		c.Header("Upgrade", "x")
		c.Writer.WriteHeader(http.StatusSwitchingProtocols)
		c.Writer.WriteHeaderNow()
		conn, _, err := c.Writer.Hijack()
		if err != nil {
			t.Errorf("Hijack: %v", err)
			return
		}
		conn.Close()
	}))
	if got := s.Send(t, "GET", s.Serve(t, engine)+"/", "Connection", "Upgrade", "Upgrade", "x"); got.Status != 101 {
		t.Errorf("got %d %v, want 101", got.Status, got.Err)
	}
	s.WantRows(t, 1)
}

// An early hint leaves at once, and decides nothing.
func TestEarlyHint(t *testing.T) {
	s := adaptertest.NewSite(t)
	engine := newEngine(s)
	engine.GET("/", work(s, func(c *gin.Context) {
		c.Writer.WriteHeader(http.StatusEarlyHints)
		if c.Writer.Written() || c.Writer.Status() != 200 {
			t.Errorf("behind an early hint: Written %t, status %d", c.Writer.Written(), c.Writer.Status())
		}
		c.Status(204)
	}))
	head, status, _, err := sqlreqtest.Raw(t, sqlreqtest.Serve(t, engine), "1.1")
	if err != nil || status != http.StatusNoContent || !strings.HasPrefix(head, "HTTP/1.1 103 Early Hints") {
		t.Errorf("got %d %q %v, want the 204 behind the 103", status, head, err)
	}
	s.WantRows(t, 1)
}

// gin's Recovery takes http.ErrAbortHandler for a client that has gone, and sets no status.
func TestErrAbortHandler(t *testing.T) {
	s := adaptertest.NewSite(t)
	engine := newEngine(s)
	engine.POST("/", work(s, func(*gin.Context) { panic(http.ErrAbortHandler) }))
	if got := s.Send(t, "POST", s.Serve(t, engine)+"/"); got.Status != 500 {
		t.Errorf("got %d %v, want no success", got.Status, got.Err)
	}
	s.WantRows(t, 0)
}

// A failed stream over HTTP/1.0 is reset, though gin refuses Hijack behind a body.
func TestHTTP10(t *testing.T) {
	s := adaptertest.NewSite(t)
	engine := newEngine(s)
	engine.GET("/", work(s, func(c *gin.Context) { _ = s.BreakCommit(c.Request.Context()) }, func(c *gin.Context) {
		_, _ = c.Writer.Write(make([]byte, adaptertest.Large)) // without a length
	}))
	_, status, size, err := sqlreqtest.Raw(t, sqlreqtest.Serve(t, engine), "1.0")
	if err == nil {
		t.Errorf("got a complete %d of %d bytes, want a reset", status, size)
	}
	s.WantRows(t, 0)
}

// The writer without a server below: gin's CloseNotify panics there.
func TestCloseNotifyWithoutAServer(t *testing.T) {
	s := adaptertest.NewSite(t)
	engine := newEngine(s)
	engine.GET("/", work(s, func(c *gin.Context) {
		c.Stream(func(w io.Writer) bool { _, _ = io.WriteString(w, "event"); return false })
	}))
	rec := httptest.NewRecorder()
	engine.ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	if rec.Code != 200 || rec.Body.String() != "event" {
		t.Errorf("got %d %q", rec.Code, rec.Body)
	}
	s.WantRows(t, 1)
}

// Events arrive while the handler runs, and their deadlines can be set.
func TestEvents(t *testing.T) {
	s := adaptertest.NewSite(t)
	engine := newEngine(s)
	step := make(chan struct{})
	engine.GET("/", work(s, func(c *gin.Context) {
		if err := http.NewResponseController(c.Writer).SetWriteDeadline(noDeadline); err != nil {
			t.Errorf("SetWriteDeadline: %v", err)
		}
		c.SSEvent("tick", 1)
		c.Writer.Flush()
		<-step
	}))
	res, err := http.Get(s.Serve(t, engine) + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	line, err := bufio.NewReader(res.Body).ReadString('\n')
	if err != nil || line != "event:tick\n" {
		t.Errorf("got %q %v while the handler runs", line, err)
	}
	close(step)
	<-s.Returned
	s.WantRows(t, 1)
}
