package thirdparty

import (
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/NYTimes/gziphandler"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	sentryhttp "github.com/getsentry/sentry-go/http"
	gingzip "github.com/gin-contrib/gzip"
	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/gorilla/handlers"
	"github.com/labstack/echo/v4"
	echomiddleware "github.com/labstack/echo/v4/middleware"
	echo5 "github.com/labstack/echo/v5"
	echo5middleware "github.com/labstack/echo/v5/middleware"
	"github.com/slok/go-http-metrics/metrics"
	slok "github.com/slok/go-http-metrics/middleware"
	slokstd "github.com/slok/go-http-metrics/middleware/std"
	"github.com/urfave/negroni/v3"
	"golang.org/x/net/http2"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/integration/thirdparty/oapi"
)

// library is a program of others, inside or outside of Middleware.
type library struct {
	name    string
	outside func(s *site, next http.Handler) http.Handler // the library around next, which is Middleware and the handler
	inside  func(s *site) http.Handler                    // what Middleware is around
	scripts []script                                      // nil: those of a plain handler
	only    string                                        // a protocol
	limits  map[string]limit                              // by place and script: what the contract leaves to the program
}

// limit is what a library makes of a failure of a plain handler inside of it, told or not.
type limit struct {
	why                string
	success, committed bool
}

// script is one call, and what a client of it must see.
type script struct {
	name  string
	fails bool // no success, and nothing is committed
	call  func(t *testing.T, srv *httptest.Server, name string) (success bool, seen string)
}

var errOnPurpose = errors.New("on purpose")

// plainScripts are calls of a plain handler: see plain.
var plainScripts = []script{
	{"ok", false, get}, {"large", false, get}, {"head", false, head},
	{"error", true, get}, {"commit", true, get}, {"panic", true, get},
	{"large, error", true, get}, {"large, commit", true, get}, {"large, panic", true, get},
}

// plain is a handler that knows nothing of libraries: it writes a note, and does what the query says.
func plain(s *site) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		do := r.URL.Query().Get("do")
		if do != "read" {
			if err := s.add(r.Context(), strings.HasSuffix(do, "commit")); err != nil {
				unexpected(w, err)
				return
			}
		}
		if strings.HasPrefix(do, "large") {
			_, _ = io.WriteString(w, text(tableLarge))
		} else if do != "error" {
			_, _ = io.WriteString(w, text(small))
		}
		switch {
		case strings.HasSuffix(do, "error"):
			http.Error(w, "on purpose", http.StatusInternalServerError)
		case strings.HasSuffix(do, "panic"):
			panic(errOnPurpose)
		}
	})
}

// get asks for what plain does. A success has a whole body, packed or not.
func get(t *testing.T, srv *httptest.Server, name string) (success bool, seen string) {
	t.Helper()
	req := newRequest(t, "GET", srv.URL+"/?do="+strings.ReplaceAll(name, ", ", "-"), "")
	req.Header.Set("Accept-Encoding", "gzip")
	a := readAnswer(srv.Client().Do(req))
	if a.err == nil && a.header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(strings.NewReader(a.body))
		if err == nil {
			var b []byte
			b, err = io.ReadAll(z)
			a.body = string(b)
		}
		a.err = err
	}
	seen = fmt.Sprintf("%d, %d bytes, %v", a.status, len(a.body), a.err)
	want := small
	if strings.HasPrefix(name, "large") {
		want = tableLarge
	}
	if success = a.err == nil && a.status < 400; success && name != "panic" && len(a.body) < want && !strings.HasSuffix(name, "panic") {
		t.Errorf("a success without its body: %s", seen)
	}
	return success, seen
}

// head asks for the head of that. A length must be that of the GET.
func head(t *testing.T, srv *httptest.Server, _ string) (success bool, seen string) {
	ask := func(method, do string) answer {
		req := newRequest(t, method, srv.URL+"/?do="+do, "")
		req.Header.Set("Accept-Encoding", "gzip")
		return readAnswer(srv.Client().Do(req))
	}
	a, get := ask("HEAD", "ok"), ask("GET", "read")
	if told := a.header.Get("Content-Length"); told != "" && told != fmt.Sprint(len(get.body)) {
		t.Errorf("Content-Length %s of a HEAD, want none or %d", told, len(get.body))
	}
	if kind, want := a.header.Get("Content-Type"), get.header.Get("Content-Type"); kind != want {
		t.Errorf("Content-Type %q of a HEAD, want %q", kind, want)
	}
	return a.err == nil && a.status == 200, fmt.Sprint(a.status, " ", a.err)
}

// wrapping is a library that is a middleware.
func wrapping(name string, wrap func(http.Handler) http.Handler) library {
	return library{
		name:    name,
		outside: func(_ *site, next http.Handler) http.Handler { return wrap(next) },
		inside:  func(s *site) http.Handler { return wrap(plain(s)) },
	}
}

// libraries are those of the table; others add to it.
var libraries = []library{
	wrapping("chi", func(h http.Handler) http.Handler {
		r := chi.NewRouter()
		r.Use(middleware.RequestID, quietly, middleware.Compress(5))
		r.Handle("/", h)
		return r
	}),
	wrapping("gorilla/handlers", func(h http.Handler) http.Handler {
		return handlers.CompressHandler(handlers.RecoveryHandler(handlers.RecoveryLogger(discardLog))(handlers.CombinedLoggingHandler(io.Discard, h)))
	}),
	lateStatusDropped(wrapping("NYTimes/gziphandler", gziphandler.GzipHandler)),
	wrapping("slok/go-http-metrics", func(h http.Handler) http.Handler {
		return slokstd.Handler("", slok.New(slok.Config{Recorder: metrics.Dummy}), h)
	}),
	sentryLibrary(),
	negroniLibrary(),
	ginLibrary(),
	lateStatusDropped(library{name: "echo 4", outside: func(_ *site, next http.Handler) http.Handler { return echo4(next) },
		inside: func(s *site) http.Handler { return echo4(plain(s)) }}),
	lateStatusDropped(library{name: "echo 5", outside: func(_ *site, next http.Handler) http.Handler { return echo5App(next) },
		inside: func(s *site) http.Handler { return echo5App(plain(s)) }}),
	{name: "huma", inside: func(s *site) http.Handler { return humaApp(s, nil) },
		outside: func(s *site, _ http.Handler) http.Handler { return humaApp(s, s.reg.Middleware) }, scripts: typedScripts},
	{name: "oapi-codegen", inside: func(s *site) http.Handler { return oapiApp(s, nil) },
		outside: func(s *site, _ http.Handler) http.Handler { return oapiApp(s, s.reg.Middleware) }, scripts: typedScripts},
	{name: "x/net h2c", only: "h2c", outside: func(_ *site, next http.Handler) http.Handler { return overH2C(next) },
		inside: func(s *site) http.Handler { return overH2C(s.reg.Middleware(plain(s))) }},
}

// sentryLibrary: sentry's middleware recovers, as it comes, and answers nothing.
func sentryLibrary() library {
	l := wrapping("sentryhttp", sentryhttp.New(sentryhttp.Options{}).Handle)
	l.limits = map[string]limit{
		"inside, panic":        {"recovered without an answer", true, true},
		"inside, large, panic": {"recovered without an answer", true, true},
		"outside, panic":       {"recovered without an answer, which is a 200: set Repanic", true, false},
	}
	return l
}

func ginLibrary() library {
	engine := func(h http.Handler, more ...gin.HandlerFunc) http.Handler {
		e := gin.New()
		e.Use(gin.RecoveryWithWriter(io.Discard))
		e.Use(more...)
		e.Use(gingzip.Gzip(gingzip.DefaultCompression))
		e.Match([]string{"GET", "HEAD"}, "/", gin.WrapH(h))
		return e
	}
	return library{
		name:    "gin with gzip",
		outside: func(_ *site, next http.Handler) http.Handler { return engine(next) },
		inside:  func(s *site) http.Handler { return engine(plain(s), GinErrors) },
		limits:  map[string]limit{"inside, large, error": {"gin drops a late status, gzip the end of what it packs", false, true}},
	}
}

// negroniLibrary: negroni's Recovery answers nothing where a byte was written, and its writer drops a late status.
func negroniLibrary() library {
	l := lateStatusDropped(wrapping("negroni", func(h http.Handler) http.Handler {
		recovery := negroni.NewRecovery()
		recovery.Logger, recovery.PrintStack = discardLog, false
		n := negroni.New(recovery)
		n.UseHandler(h)
		return n
	}))
	l.limits["inside, panic"] = limit{"recovered without an answer", true, true}
	l.limits["inside, large, panic"] = limit{"recovered without an answer", true, true}
	return l
}

// lateStatusDropped is for libraries whose writer keeps a status that comes late from those outside.
func lateStatusDropped(l library) library {
	l.limits = map[string]limit{"inside, large, error": {"its writer drops a late status", true, true}}
	return l
}

func echo4(h http.Handler) http.Handler {
	e := echo.New()
	e.Logger.SetOutput(io.Discard)
	e.Use(echomiddleware.Recover(), echomiddleware.Gzip())
	e.Match([]string{"GET", "HEAD"}, "/", echo.WrapHandler(h))
	EchoErrors(e)
	return e
}

// echo5App has EchoErrors for echo 5.
func echo5App(h http.Handler) http.Handler {
	e := echo5.New()
	e.Logger = slog.New(slog.DiscardHandler)
	render := e.HTTPErrorHandler
	e.HTTPErrorHandler = func(c *echo5.Context, err error) {
		sqlreq.Fail(c.Request().Context(), err)
		render(c, err)
	}
	e.Use(echo5middleware.Recover(), echo5middleware.Gzip())
	e.Match([]string{"GET", "HEAD"}, "/", echo5.WrapHandler(h))
	return e
}

// typedScripts are those of plain that a library with typed operations can have: it writes the body itself.
var typedScripts = []script{
	{"ok", false, get}, {"large", false, get},
	{"error", true, get}, {"commit", true, get}, {"panic", true, get}, {"large, commit", true, get},
}

// typed does what plain does before the answer.
func (s *site) typed(ctx context.Context, do string) (string, error) {
	if err := s.add(ctx, strings.HasSuffix(do, "commit")); err != nil {
		return "", err
	}
	switch {
	case do == "error":
		return "", errOnPurpose
	case do == "panic":
		panic(errOnPurpose)
	case strings.HasPrefix(do, "large"):
		return text(tableLarge), nil
	}
	return text(small), nil
}

type humaInput struct {
	Do string `query:"do"`
}

type humaOutput struct {
	ContentType string `header:"Content-Type"`
	Body        []byte
}

// humaApp has each between huma and its operation, if it is not nil.
func humaApp(s *site, each func(http.Handler) http.Handler) http.Handler {
	mux := http.NewServeMux()
	config := huma.DefaultConfig("notes", "1")
	api := humago.New(mux, config)
	huma.Register(api, huma.Operation{OperationID: "get-note", Method: "GET", Path: "/"}, func(ctx context.Context, in *humaInput) (*humaOutput, error) {
		body, err := s.typed(ctx, in.Do)
		return &humaOutput{"text/plain", []byte(body)}, err
	})
	if each == nil {
		return mux
	}
	return each(mux) // huma's own middlewares see no http.Handler
}

type oapiServer struct{ s *site }

func (o oapiServer) GetNote(ctx context.Context, in oapi.GetNoteRequestObject) (oapi.GetNoteResponseObject, error) {
	body, err := o.s.typed(ctx, in.Params.Do)
	return oapi.GetNote200TextResponse(body), err
}

func oapiApp(s *site, each func(http.Handler) http.Handler) http.Handler {
	options := oapi.StdHTTPServerOptions{}
	if each != nil {
		options.Middlewares = []oapi.MiddlewareFunc{each}
	}
	return oapi.HandlerWithOptions(oapi.NewStrictHandler(oapiServer{s}, nil), options)
}

// tableLarge is beyond the HoldLimit of a tableSite: to pack more takes its time.
const tableLarge = 48 << 10

func tableSite(t *testing.T) *site {
	s := newSite(t)
	s.reg.HoldLimit = 8 << 10
	return s
}

// tableCells is how many cells the table has; a run of fewer fails.
const tableCells = 590

// TestTableOfLibraries runs each library inside and outside of Middleware, over each protocol.
func TestTableOfLibraries(t *testing.T) {
	cells := 0
	for _, l := range append(libraries, rpcLibraries...) {
		if l.scripts == nil {
			l.scripts = plainScripts
		}
		for _, place := range []string{"outside", "inside"} {
			for _, proto := range protocols {
				if l.only == "" || l.only == "h2c" || l.only == proto {
					t.Run(fmt.Sprintf("%s %s, %s", l.name, place, proto), func(t *testing.T) { cells += tableRow(t, l, place, proto) })
				}
			}
		}
	}
	t.Logf("%d cells, Attempts %d", cells, retry.Attempts)
	if cells != tableCells {
		t.Errorf("%d cells ran, want %d", cells, tableCells)
	}
}

// tableRow runs the scripts of a library on one server.
func tableRow(t *testing.T, l library, place, proto string) (cells int) {
	s := tableSite(t)
	var app http.Handler
	if place == "outside" {
		app = l.outside(s, s.reg.Middleware(plain(s)))
	} else {
		app = s.reg.Middleware(l.inside(s))
	}
	app, left := finishing(app)
	srv := tableServer(t, proto, l.only == "h2c", app)
	for _, c := range l.scripts {
		t.Run(c.name, func(t *testing.T) {
			before := s.notes(t)
			srv.Client().CloseIdleConnections() // one whose handler has panicked is closed, which the client may not know
			success, seen := c.call(t, srv, c.name)
			if l.only != "h2c" { // there the handler of the connection leaves when the client does
				await(t, left, "the handler")
			}
			if c.name == "head" && l.only != "h2c" { // has asked twice
				await(t, left, "the handler")
			}
			c.check(t, l.limits[place+", "+c.name], success, seen, s.notes(t)-before)
			cells++
		})
	}
	return cells
}

// check looks at what the client has seen, and at how many notes more are committed.
func (c script) check(t *testing.T, is limit, success bool, seen string, notes int) {
	want := limit{success: !c.fails, committed: !c.fails}
	if is.why != "" {
		t.Log(is.why)
		want = is
	}
	if success != want.success || notes != map[bool]int{true: 1}[want.committed] {
		t.Errorf("client got %s, %d notes committed; want success %t, committed %t", seen, notes, want.success, want.committed)
	}
}

// tableServer is serve, for h2c with a client that needs no TLS.
func tableServer(t *testing.T, proto string, clear bool, app http.Handler) *httptest.Server {
	if !clear {
		return serve(t, proto, app)
	}
	srv := serve(t, "HTTP/1.1", app)
	if proto == "HTTP/2.0" {
		transport := &http2.Transport{AllowHTTP: true, DisableCompression: true, DialTLSContext: func(_ context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
			return net.Dial(network, addr)
		}}
		srv.Client().Transport = transport
		t.Cleanup(transport.CloseIdleConnections)
	}
	return srv
}
