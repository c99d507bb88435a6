package adapters

import (
	"compress/gzip"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/getsentry/sentry-go"
	sentryecho "github.com/getsentry/sentry-go/echo"
	sentrygin "github.com/getsentry/sentry-go/gin"
	gingzip "github.com/gin-contrib/gzip"
	"github.com/gin-gonic/gin"
	"github.com/labstack/echo/v4"
	echomiddleware "github.com/labstack/echo/v4/middleware"
	echo5 "github.com/labstack/echo/v5"
	echo5middleware "github.com/labstack/echo/v5/middleware"
	_ "modernc.org/sqlite"

	sqlreqecho4 "github.com/sqlreq/sqlreq/adapters/echo4"
	sqlreqecho5 "github.com/sqlreq/sqlreq/adapters/echo5"
	sqlreqgin "github.com/sqlreq/sqlreq/adapters/gin"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

func init() { gin.SetMode(gin.ReleaseMode) }

var (
	errPlain = errors.New("on purpose")
	large    = unpackable(adaptertest.Large)
)

// unpackable returns text that gzip makes little smaller, so that it outgrows what sqlreq
// holds also where it is packed inside.
func unpackable(size int) []byte {
	source := rand.NewChaCha8([32]byte{})
	b := make([]byte, size/2)
	_, _ = source.Read(b)
	return []byte(hex.EncodeToString(b))
}

// step is a part of what a handler does, in its order.
type step string

const (
	insert      step = "insert"
	breakCommit step = "breakCommit"
	page        step = "page"
	stream      step = "stream" // more than sqlreq holds
	fail        step = "fail"
	panics      step = "panic"
)

// route is a POST and what comes of it.
type route struct {
	path     string
	steps    []step
	status   int // 0: a broken transfer
	itPanics bool
}

var routes = []route{
	{"/ok", []step{insert, page}, 201, false},
	{"/large", []step{insert, stream}, 200, false},
	{"/fails", []step{insert, fail}, 500, false},
	{"/late", []step{insert, page, fail}, 500, false},
	{"/large/late", []step{insert, stream, fail}, 0, false},
	{"/panic", []step{insert, panics}, 500, true},
	{"/late/panic", []step{insert, page, panics}, 500, true},
	{"/large/panic", []step{insert, stream, panics}, 0, true},
	{"/commit", []step{insert, breakCommit, page}, 500, false},
	{"/large/commit", []step{insert, breakCommit, stream}, 0, false},
}

// framework is a program with the middleware of a library.
type framework struct {
	name string
	// open returns it. with is that of the library, outside of sqlreq or inside.
	open func(s *adaptertest.Site, library string, outside bool) http.Handler
}

var frameworks = []framework{{"gin", openGin}, {"echo 4", openEcho4}, {"echo 5", openEcho5}}

func openGin(s *adaptertest.Site, library string, outside bool) http.Handler {
	engine := gin.New()
	engine.Use(func(c *gin.Context) {
		c.Next()
		s.Access(c.Writer.Status())
	}, gin.RecoveryWithWriter(io.Discard))
	chain := []gin.HandlerFunc{sqlreqgin.Wrap(s.Reg.Middleware)}
	switch library {
	case "gzip":
		chain = append(chain, gingzip.Gzip(gingzip.DefaultCompression))
	case "sentry":
		chain = append(chain, sentrygin.New(sentrygin.Options{Repanic: true}))
	}
	if outside {
		slices.Reverse(chain)
	}
	engine.Use(chain...)
	for _, r := range routes {
		engine.POST(r.path, func(c *gin.Context) {
			err := run(s, r.steps, c.Request, func(status int, body []byte) error {
				c.Data(status, "text/plain", body)
				return nil
			})
			if err != nil {
				_ = c.Error(err)
			}
		})
	}
	return engine
}

func openEcho4(s *adaptertest.Site, library string, outside bool) http.Handler {
	e := echo.New()
	e.Logger.SetOutput(io.Discard)
	e.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			if err := next(c); err != nil {
				c.Error(err)
			}
			s.Access(c.Response().Status)
			return nil
		}
	}, echomiddleware.Recover())
	chain := []echo.MiddlewareFunc{sqlreqecho4.Wrap(s.Reg.Middleware)}
	if library == "gzip" {
		chain = append(chain, echomiddleware.Gzip())
	}
	if outside {
		slices.Reverse(chain)
	}
	e.Use(chain...)
	for _, r := range routes {
		e.POST(r.path, func(c echo.Context) error {
			return run(s, r.steps, c.Request(), func(status int, body []byte) error { return c.Blob(status, "text/plain", body) })
		})
	}
	return e
}

func openEcho5(s *adaptertest.Site, library string, outside bool) http.Handler {
	e := echo5.New()
	e.Logger = slog.New(slog.DiscardHandler)
	e.Use(func(next echo5.HandlerFunc) echo5.HandlerFunc {
		return func(c *echo5.Context) error {
			err := next(c)
			if err != nil {
				e.HTTPErrorHandler(c, err)
			}
			if r, unwrap := echo5.UnwrapResponse(c.Response()); unwrap == nil {
				s.Access(r.Status)
			}
			return nil
		}
	}, echo5middleware.Recover())
	chain := []echo5.MiddlewareFunc{sqlreqecho5.Wrap(s.Reg.Middleware)}
	switch library {
	case "gzip":
		chain = append(chain, echo5middleware.Gzip())
	case "sentry":
		chain = append(chain, sentryecho.New(sentryecho.Options{Repanic: true}))
	}
	if outside {
		slices.Reverse(chain)
	}
	e.Use(chain...)
	for _, r := range routes {
		e.POST(r.path, func(c *echo5.Context) error {
			return run(s, r.steps, c.Request(), func(status int, body []byte) error { return c.Blob(status, "text/plain", body) })
		})
	}
	return e
}

// run does the steps of a route. answer is the framework's.
func run(s *adaptertest.Site, steps []step, r *http.Request, answer func(status int, body []byte) error) error {
	for _, what := range steps {
		var err error
		switch what {
		case insert:
			err = s.Insert(r.Context())
		case breakCommit:
			err = s.BreakCommit(r.Context())
		case page:
			err = answer(http.StatusCreated, []byte("done"))
		case stream:
			err = answer(http.StatusOK, large)
		case fail:
			err = errPlain
		case panics:
			panic(errPlain)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// send sends a request that takes gzip, and unpacks the answer.
func send(t *testing.T, s *adaptertest.Site, url string) (got adaptertest.Answer, packed bool) {
	t.Helper()
	got = s.Send(t, http.MethodPost, url, "Accept-Encoding", "gzip")
	if packed = got.Header.Get("Content-Encoding") == "gzip"; !packed || got.Err != nil {
		return got, packed
	}
	z, err := gzip.NewReader(strings.NewReader(got.Body))
	if err != nil {
		got.Err = err
		return got, packed
	}
	body, err := io.ReadAll(z)
	got.Body, got.Err = string(body), err
	return got, packed
}

// check compares the answer to a route, what the access log has seen, and the rows.
func check(t *testing.T, s *adaptertest.Site, r route, got adaptertest.Answer, rowsBefore int) (rows int) {
	t.Helper()
	rows = rowsBefore
	switch {
	case r.status == 0:
		if got.Err == nil {
			t.Errorf("%s: got a complete %d of %d bytes, want a broken transfer", r.path, got.Status, len(got.Body))
		}
	case got.Err != nil || got.Status != r.status:
		t.Errorf("%s: got %d %.40q %v, want %d", r.path, got.Status, got.Body, got.Err, r.status)
	case r.status < 400:
		rows++
		want := "done"
		if slices.Contains(r.steps, stream) {
			want = string(large)
		}
		if got.Body != want {
			t.Errorf("%s: got %d bytes, want %d", r.path, len(got.Body), len(want))
		}
	case strings.Contains(got.Body, "done"):
		t.Errorf("%s: got %q, which has the page of a handler that failed", r.path, got.Body)
	}
	if seen := s.Accessed(); r.status != 0 && (len(seen) == 0 || seen[len(seen)-1] != r.status) {
		t.Errorf("%s: the access log has %v, want %d at its end", r.path, seen, r.status)
	}
	s.WantRows(t, rows)
	return rows
}

// Compression, outside of sqlreq, where it belongs, and inside: a success is whole, and
// is committed; what fails is no success, and nothing of it stays.
func TestCompression(t *testing.T) {
	for _, f := range frameworks {
		for place, outside := range map[string]bool{"outside": true, "inside": false} {
			t.Run(f.name+", "+place, func(t *testing.T) {
				s := adaptertest.NewSite(t)
				url := s.Serve(t, f.open(s, "gzip", outside))
				rows, packed := 0, 0
				for _, r := range routes {
					got, isPacked := send(t, s, url+r.path)
					rows = check(t, s, r, got, rows)
					if isPacked && got.Err == nil {
						packed++
					}
				}
				if packed == 0 {
					t.Error("no answer was packed")
				}
			})
		}
	}
}

// sentry's middlewares outside are told of each panic once, and of the status that was
// sent. Inside, with Repanic, they lose nothing of the guarantee.
func TestSentry(t *testing.T) {
	for _, f := range frameworks {
		if f.name == "echo 4" {
			continue // sentry has a middleware for echo 5 only
		}
		for place, outside := range map[string]bool{"outside": true, "inside": false} {
			t.Run(f.name+", "+place, func(t *testing.T) {
				transport := new(sentry.MockTransport)
				client, err := sentry.NewClient(sentry.ClientOptions{
					Dsn: "https://key@localhost/1", Transport: transport, EnableTracing: true, TracesSampleRate: 1,
				})
				if err != nil {
					t.Fatal(err)
				}
				hub := sentry.CurrentHub()
				before := hub.Client()
				hub.BindClient(client)
				defer hub.BindClient(before)
				s := adaptertest.NewSite(t)
				url := s.Serve(t, f.open(s, "sentry", outside))
				rows, told := 0, 0
				for _, r := range routes {
					got, _ := send(t, s, url+r.path)
					rows = check(t, s, r, got, rows)
					exceptions, status := sentryTold(transport.Events()[told:])
					told = len(transport.Events())
					want := 0
					if r.itPanics || outside && r.status == 0 { // it reports http.ErrAbortHandler, too
						want = 1
					}
					if exceptions != want {
						t.Errorf("%s: sentry was told of %d exceptions, want %d", r.path, exceptions, want)
					}
					sent := r.status
					if f.name == "echo 5" && slices.Contains(r.steps, fail) {
						sent = 200 // sentry knows no status of a plain error, with or without sqlreq
					}
					if outside && !r.itPanics && r.status != 0 && status != fmt.Sprint(sent) {
						t.Errorf("%s: sentry was told of the status %s, want %d", r.path, status, sent)
					}
				}
			})
		}
	}
}

// sentryTold returns how many exceptions are in events, and the status of the request.
func sentryTold(events []*sentry.Event) (exceptions int, status string) {
	for _, e := range events {
		exceptions += len(e.Exception)
		if trace, ok := e.Contexts["trace"]; ok && e.Type == "transaction" {
			data, _ := trace["data"].(map[string]any)
			status = fmt.Sprint(data["http.response.status_code"])
		}
	}
	return exceptions, status
}
