package sqlreqecho5

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
	"time"

	"github.com/labstack/echo/v5"
	"github.com/labstack/echo/v5/middleware"

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
	e := echo.New()
	e.Use(Wrap(func(next http.Handler) http.Handler {
		asked++
		return s.Reg.Middleware(next)
	}))
	e.POST("/", work(s))
	url := s.Serve(t, e)
	for range 3 {
		if got := s.Send(t, "POST", url+"/"); got.Status != 201 {
			t.Errorf("got %d", got.Status)
		}
	}
	if asked != 1 {
		t.Errorf("the middleware was asked %d times, want once", asked)
	}
	if v := panicsWith(func() { Wrap(nil) }); v == nil || !strings.Contains(v.(string), "Wrap(reg.Middleware)") {
		t.Errorf("Wrap(nil): got panic %v, want one that says what to do", v)
	}
}

// The framework's error handler runs once, when the transaction is over, also with Retry.
func TestErrorHandlerRunsOnceAndLast(t *testing.T) {
	for _, attempts := range []int{1, 3} {
		s := adaptertest.NewSite(t)
		s.Reg.Retry = sqlreqtest.Retries(attempts)
		e := newEcho(s)
		calls := 0
		var told error
		e.HTTPErrorHandler = func(c *echo.Context, err error) {
			calls++
			told = err
			if _, err := sqlreq.Tx(c.Request().Context()); !errors.Is(err, sqlreq.ErrNoRegistry) {
				t.Errorf("Tx in the error handler: got %v, want ErrNoRegistry: it is outside", err)
			}
			if n := s.DB.Stats().InUse; n != 0 {
				t.Errorf("%d connections are in use", n)
			}
			echo.DefaultHTTPErrorHandler(false)(c, err)
		}
		ran := 0
		e.POST("/conflict", work(s, func(*echo.Context) error { ran++; return sqlreqtest.Conflict{} }))
		e.POST("/commit", work(s, func(c *echo.Context) error { return s.BreakCommit(c.Request().Context()) }, done))
		url := s.Serve(t, e)
		got := s.Send(t, "POST", url+"/conflict")
		if got.Status != 503 || got.Header.Get("Retry-After") != "1" || calls != 1 || ran != attempts || !sqlreq.IsRetryable(told) {
			t.Errorf("%d attempts: got %d %v, %d calls, %d runs, error %v", attempts, got.Status, got.Header, calls, ran, told)
		}
		calls = 0
		got = s.Send(t, "POST", url+"/commit")
		var commit *sqlreq.CommitError
		if got.Status != 500 || calls != 1 || !errors.As(told, &commit) || sqlreq.MayHaveCommitted(told) {
			t.Errorf("%d attempts: got %d, %d calls, error %v, want one *CommitError", attempts, got.Status, calls, told)
		}
		s.WantRows(t, 0)
	}
}

// The status that echo answers is the one that is logged, and a handler's error comes to
// the error handler as it was returned.
func TestStatusOfAnError(t *testing.T) {
	plain := errors.New("on purpose")
	tests := []struct {
		name    string
		err     error
		status  int
		level   string
		message string
		same    bool
	}{
		{"HTTPError", echo.NewHTTPError(418, "short"), 418, "DEBUG", "short", true},
		{"Errorf", sqlreq.Errorf(409, "secret"), 409, "DEBUG", "Conflict", false},
		{"a plain one", plain, 500, "ERROR", "Internal Server Error", true},
		{"HTTPError of 500", echo.NewHTTPError(500, "gone wrong"), 500, "ERROR", "gone wrong", true},
		{"too large", &http.MaxBytesError{}, 413, "DEBUG", "Request Entity Too Large", false},
	}
	for _, test := range append(tests, own...) {
		s := adaptertest.NewSite(t)
		e := newEcho(s)
		var told error
		e.HTTPErrorHandler = func(c *echo.Context, err error) {
			told = err
			echo.DefaultHTTPErrorHandler(false)(c, err)
		}
		e.POST("/", work(s, func(*echo.Context) error { return test.err }))
		got := s.Send(t, "POST", s.Serve(t, e)+"/")
		if want := fmt.Sprintf("{\"message\":%q}\n", test.message); got.Status != test.status || got.Body != want {
			t.Errorf("%s: got %d %q, want %d %q", test.name, got.Status, got.Body, test.status, want)
		}
		if lines := s.Log.Records(); len(lines) != 1 || lines[0]["level"] != test.level || lines[0]["status"] != fmt.Sprint(test.status) {
			t.Errorf("%s: got log %v, want one line at %s with %d", test.name, lines, test.level, test.status)
		}
		if !errors.Is(told, test.err) || test.same != (told == test.err) {
			t.Errorf("%s: the error handler got %v", test.name, told)
		}
		s.WantRows(t, 0)
	}
}

// own are errors that this version alone has.
var own = []struct {
	name    string
	err     error
	status  int
	level   string
	message string
	same    bool
}{
	{"echo's own", echo.ErrNotFound, 404, "DEBUG", "Not Found", true},
	{"one that knows its status", coded{}, 423, "DEBUG", "Locked", true},
}

type coded struct{}

func (coded) Error() string   { return "coded" }
func (coded) StatusCode() int { return 423 }

func TestOwnNotFound(t *testing.T) {
	s := adaptertest.NewSite(t)
	e := newEcho(s)
	e.POST("/known", work(s))
	url := s.Serve(t, e)
	if got := s.Send(t, "POST", url+"/unknown"); got.Status != 404 || got.Body != "{\"message\":\"Not Found\"}\n" {
		t.Errorf("got %d %q", got.Status, got.Body)
	}
	if got := s.Send(t, "PUT", url+"/known"); got.Status != 405 {
		t.Errorf("got %d %q", got.Status, got.Body)
	}
	s.WantNoErrorLine(t)
	if got := s.Accessed(); !slices.Equal(got, []int{404, 405}) {
		t.Errorf("the access log has %v", got)
	}
}

// Recover behind Wrap, behind a page that is half written.
func TestRecoverInside(t *testing.T) {
	s := adaptertest.NewSite(t)
	e := newEcho(s)
	e.Use(middleware.RecoverWithConfig(middleware.RecoverConfig{DisablePrintStack: true}))
	panics := func(*echo.Context) error { panic("on purpose") }
	e.POST("/page", work(s, func(c *echo.Context) error { return c.String(200, "half") }, panics))
	e.POST("/large", work(s, func(c *echo.Context) error { return c.Blob(200, "text/plain", make([]byte, adaptertest.Large)) }, panics))
	url := s.Serve(t, e)
	if got := s.Send(t, "POST", url+"/page"); got.Status != 500 || got.Body != errorJSON(500) {
		t.Errorf("got %d %q %v, want echo's 500", got.Status, got.Body, got.Err)
	}
	if got := s.Send(t, "POST", url+"/large"); got.Err == nil {
		t.Errorf("got a complete %d, want a broken transfer", got.Status)
	}
	s.WantRows(t, 0)
}

// Before the router there is no path yet: Wrap stands there, too.
func TestPre(t *testing.T) {
	s := adaptertest.NewSite(t)
	e := echo.New()
	e.Pre(Wrap(s.Reg.Middleware))
	e.POST("/ok/:name", work(s, func(c *echo.Context) error { return c.String(200, c.Param("name")) }))
	e.POST("/fails", work(s, func(c *echo.Context) error { return echo.NewHTTPError(422, "on purpose") }))
	url := s.Serve(t, e)
	if got := s.Send(t, "POST", url+"/ok/me"); got.Status != 200 || got.Body != "me" {
		t.Errorf("got %d %q", got.Status, got.Body)
	}
	if got := s.Send(t, "POST", url+"/fails"); got.Status != 422 {
		t.Errorf("got %d", got.Status)
	}
	s.WantRows(t, 1)
}

// Response.Before is for what a middleware outside sets when the answer leaves: it finds
// the response that is sent.
func TestBeforeFunctionsOfOutside(t *testing.T) {
	s := adaptertest.NewSite(t)
	s.Reg.Retry = sqlreqtest.Retries(3)
	before := 0
	e := echo.New()
	e.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			response(c).Before(func() {
				before++
				c.Response().Header().Set("X-Status", fmt.Sprint(response(c).Status))
			})
			return next(c)
		}
	}, Wrap(s.Reg.Middleware))
	n := 0
	e.POST("/", work(s, func(c *echo.Context) error {
		if n++; n == 1 {
			return sqlreqtest.Conflict{}
		}
		return done(c)
	}))
	e.POST("/commit", work(s, func(c *echo.Context) error { return s.BreakCommit(c.Request().Context()) }, done))
	e.POST("/large", work(s, func(c *echo.Context) error { return c.Blob(200, "text/plain", make([]byte, adaptertest.Large)) }))
	url := s.Serve(t, e)
	for path, status := range map[string]int{"/": 201, "/commit": 500, "/large": 200} {
		before = 0
		got := s.Send(t, "POST", url+path)
		if got.Status != status || got.Header.Get("X-Status") != fmt.Sprint(status) || before != 1 {
			t.Errorf("%s: got %d %v, Before ran %d times, want once, with %d", path, got.Status, got.Header, before, status)
		}
	}
	s.WantRows(t, 2)
	s.Reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(418) }
	if got := s.Send(t, "POST", url+"/commit"); got.Status != 418 || got.Header.Get("X-Status") != "418" {
		t.Errorf("got %d %v, want 418", got.Status, got.Header)
	}
}

// What runs between the handler and the end of the transaction cannot answer any more.
func TestBeforeCommitCannotAnswer(t *testing.T) {
	s := adaptertest.NewSite(t)
	e := newEcho(s)
	e.POST("/", work(s, func(c *echo.Context) error {
		_ = s.BreakCommit(c.Request().Context())
		return sqlreq.BeforeCommit(c.Request().Context(), func(context.Context) error { return c.String(200, "too early") })
	}))
	got := s.Send(t, "POST", s.Serve(t, e)+"/")
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
		files := func() []string {
			left, _ := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "multipart-*"))
			return left
		}
		e := newEcho(s)
		e.POST("/", func(c *echo.Context) error {
			if replaced { // as tracing middlewares do
				c.SetRequest(c.Request().WithContext(c.Request().Context()))
			}
			if err := c.Request().ParseMultipartForm(1); err != nil || len(files()) != 1 {
				t.Errorf("ParseMultipartForm: %v, files %v while the handler runs, want one", err, files())
			}
			return nil
		})
		var body bytes.Buffer
		form := multipart.NewWriter(&body)
		part, _ := form.CreateFormFile("f", "f")
		_, _ = part.Write(make([]byte, 11<<20)) // beyond the 10 MiB that net/http keeps in any case
		form.Close()
		srv := sqlreqtest.Serve(t, e)
		res, err := http.Post(srv.URL+"/", form.FormDataContentType(), &body)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		srv.Close() // waits for the end of the request
		if left := files(); len(left) != 0 {
			t.Errorf("request replaced %t: got files %v, want none", replaced, left)
		}
	}
}

// What a middleware answers by itself is not passed on.
func TestOwnAnswer(t *testing.T) {
	s := adaptertest.NewSite(t)
	e := newEcho(s)
	busy := func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "busy", http.StatusServiceUnavailable) })
	}
	e.POST("/", work(s), Wrap(busy))
	if got := s.Send(t, "POST", s.Serve(t, e)+"/"); got.Status != 503 || got.Body != "busy\n" {
		t.Errorf("got %d %q, want the 503", got.Status, got.Body)
	}
	s.WantRows(t, 0)
}

func TestWriterAndRequestArePutBack(t *testing.T) {
	s := adaptertest.NewSite(t)
	e := echo.New()
	e.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			w, r := c.Response(), c.Request()
			defer func() {
				_ = recover()
				if c.Response() != w || c.Request() != r {
					t.Error("echo's response or request is another one behind Wrap")
				}
			}()
			return next(c)
		}
	}, Wrap(s.Reg.Middleware))
	e.POST("/ok", work(s, func(c *echo.Context) error {
		if got := response(c).Status; got != 200 {
			t.Errorf("got status %d before the answer, want echo's 200", got)
		}
		return nil
	}))
	e.POST("/panic", work(s, func(*echo.Context) error { panic("on purpose") }))
	url := s.Serve(t, e)
	s.Send(t, "POST", url+"/ok")
	s.Send(t, "POST", url+"/panic")
}

func TestHijack(t *testing.T) {
	s := adaptertest.NewSite(t)
	e := newEcho(s)
	take := func(c *echo.Context) error {
		conn, rw, err := response(c).Hijack()
		if err != nil {
			return c.String(426, "no")
		}
		defer conn.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello")
		return rw.Flush()
	}
	e.GET("/", work(s, take))
	e.GET("/commit", work(s, func(c *echo.Context) error { return s.BreakCommit(c.Request().Context()) }, take))
	url := s.Serve(t, e)
	if got := s.Send(t, "GET", url+"/", "Connection", "Upgrade", "Upgrade", "x"); got.Status != 101 {
		t.Errorf("got %d %v, want 101", got.Status, got.Err)
	}
	s.WantRows(t, 1)
	if got := s.Send(t, "GET", url+"/commit"); got.Status < 400 || got.Err != nil {
		t.Errorf("got %d %v, want an error", got.Status, got.Err)
	}
	s.WantRows(t, 1)
	h2 := sqlreqtest.ServeHTTP2(t, e)
	res, err := h2.Client().Get(h2.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 426 {
		t.Errorf("HTTP/2: got %d, want the handler's 426", res.StatusCode)
	}
	s.WantRows(t, 1) // it is not committed for a Hijack that cannot be
}

// A failed stream over HTTP/1.0 is reset.
func TestHTTP10(t *testing.T) {
	s := adaptertest.NewSite(t)
	e := newEcho(s)
	e.GET("/", work(s, func(c *echo.Context) error { return s.BreakCommit(c.Request().Context()) }, func(c *echo.Context) error {
		_, err := c.Response().Write(make([]byte, adaptertest.Large))
		return err
	}))
	if _, status, size, err := sqlreqtest.Raw(t, sqlreqtest.Serve(t, e), "1.0"); err == nil {
		t.Errorf("got a complete %d of %d bytes, want a reset", status, size)
	}
	s.WantRows(t, 0)
}

// Events arrive while the handler runs, and their deadlines can be set.
func TestEvents(t *testing.T) {
	s := adaptertest.NewSite(t)
	e := newEcho(s)
	step := make(chan struct{})
	e.GET("/", work(s, func(c *echo.Context) error {
		if err := http.NewResponseController(c.Response()).SetWriteDeadline(time.Time{}); err != nil {
			t.Errorf("SetWriteDeadline: %v", err)
		}
		_, _ = io.WriteString(c.Response(), "event: tick\n\n")
		response(c).Flush()
		<-step
		return nil
	}))
	res, err := http.Get(s.Serve(t, e) + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	line, err := bufio.NewReader(res.Body).ReadString('\n')
	if err != nil || line != "event: tick\n" {
		t.Errorf("got %q %v while the handler runs", line, err)
	}
	close(step)
	<-s.Returned
	s.WantRows(t, 1)
}

// In a group sqlreq is around echo's responses, too, which claim that every connection can
// be flushed.
func TestFlushInAGroup(t *testing.T) {
	s := adaptertest.NewSite(t)
	e := newEcho(s)
	var flushed error
	e.Group("/group", Wrap(s.Reg.With(adaptertest.Reports))).POST("/", work(s, func(c *echo.Context) error {
		response := c.Response().(interface{ Unwrap() http.ResponseWriter }).Unwrap() // echo's own would panic
		below := response.(*echo.Response).ResponseWriter
		flushed = http.NewResponseController(below).Flush()
		return done(c)
	}))
	w := struct{ http.ResponseWriter }{httptest.NewRecorder()} // has no Flush
	e.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/group/", nil))
	if !errors.Is(flushed, http.ErrNotSupported) {
		t.Errorf("Flush: got %v, want http.ErrNotSupported", flushed)
	}
	s.WantRows(t, 1)
}
