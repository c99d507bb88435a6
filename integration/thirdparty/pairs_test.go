package thirdparty

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/NYTimes/gziphandler"
	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/gorilla/handlers"
	"github.com/labstack/echo/v4"
	echomiddleware "github.com/labstack/echo/v4/middleware"
	"github.com/slok/go-http-metrics/metrics"
	slok "github.com/slok/go-http-metrics/middleware"
	slokstd "github.com/slok/go-http-metrics/middleware/std"
	"github.com/urfave/negroni/v3"

	sentryhttp "github.com/getsentry/sentry-go/http"
	gingzip "github.com/gin-contrib/gzip"
)

type wrap struct {
	name string
	wrap func(http.Handler) http.Handler
}

// recovering recover what a handler panics with, most of them http.ErrAbortHandler too.
var recovering = []wrap{
	{"chi", quietly},
	{"gorilla", handlers.RecoveryHandler(handlers.RecoveryLogger(discardLog))},
	{"sentry", sentryhttp.New(sentryhttp.Options{}).Handle},
	{"negroni", func(h http.Handler) http.Handler {
		recovery := negroni.NewRecovery()
		recovery.Logger, recovery.PrintStack = discardLog, false
		n := negroni.New(recovery)
		n.UseHandler(h)
		return n
	}},
	{"gin", func(h http.Handler) http.Handler {
		e := gin.New()
		e.Use(gin.RecoveryWithWriter(io.Discard))
		e.GET("/", gin.WrapH(h))
		return e
	}},
	{"echo", func(h http.Handler) http.Handler {
		e := echo.New()
		e.Logger.SetOutput(io.Discard)
		e.Use(echomiddleware.Recover())
		e.GET("/", echo.WrapHandler(h))
		return e
	}},
}

// between hand on a writer of their own, many without Unwrap.
var between = []wrap{
	{"slok", func(h http.Handler) http.Handler {
		return slokstd.Handler("", slok.New(slok.Config{Recorder: metrics.Dummy}), h)
	}},
	{"chi's Compress", middleware.Compress(5)},
	{"gorilla's CompressHandler", handlers.CompressHandler},
	{"gorilla's LoggingHandler", func(h http.Handler) http.Handler { return handlers.CombinedLoggingHandler(io.Discard, h) }},
	{"gziphandler", gziphandler.GzipHandler},
	{"negroni", func(h http.Handler) http.Handler {
		n := negroni.New()
		n.UseHandler(h)
		return n
	}},
	{"gin with gzip", func(h http.Handler) http.Handler {
		e := gin.New()
		e.Use(gingzip.Gzip(gingzip.DefaultCompression))
		e.GET("/", gin.WrapH(h))
		return e
	}},
}

// TestPairsOutside: a stream that has failed is no complete success, whoever recovers and whatever hides the writer.
func TestPairsOutside(t *testing.T) {
	cells := 0
	for _, proto := range protocols {
		for _, outer := range recovering {
			for _, inner := range between {
				t.Run(fmt.Sprintf("%s, %s, %s", proto, outer.name, inner.name), func(t *testing.T) {
					s := tableSite(t)
					srv := serve(t, proto, outer.wrap(inner.wrap(s.reg.Middleware(plain(s)))))
					for _, do := range []string{"large, commit", "large, error", "large, panic"} {
						srv.Client().CloseIdleConnections()
						if success, seen := get(t, srv, do); success {
							t.Errorf("%s: client got %s", do, seen)
						}
						cells++
					}
					if success, seen := get(t, srv, "large"); !success {
						t.Errorf("client got %s", seen)
					}
					s.wantNotes(t, 1)
				})
			}
		}
	}
	if want := len(protocols) * len(recovering) * len(between) * 3; cells != want {
		t.Errorf("%d cells ran, want %d", cells, want)
	}
}
