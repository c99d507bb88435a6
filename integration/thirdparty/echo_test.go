package thirdparty

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"

	sqlreqecho4 "github.com/sqlreq/sqlreq/adapters/echo4"
)

// newEcho is an echo with its own Recover and the handlers that the tests ask for, each writing a note first.
func newEcho(s *site, commitFails bool, more ...echo.MiddlewareFunc) *echo.Echo {
	e := echo.New()
	e.Logger.SetOutput(io.Discard)
	e.Use(middleware.Recover())
	e.Use(more...)
	e.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			if err := s.add(c.Request().Context(), commitFails); err != nil {
				unexpected(c.Response(), err)
				return nil
			}
			return next(c)
		}
	})
	handle := func(path string, h echo.HandlerFunc) { e.POST(path, h) }
	handle("/json", func(c echo.Context) error {
		c.Response().Header().Set(markHeader, mark)
		return c.JSON(http.StatusCreated, mark)
	})
	handle("/status", func(c echo.Context) error { return c.NoContent(http.StatusNoContent) })
	handle("/nothing", func(c echo.Context) error { return nil })
	handle("/large", func(c echo.Context) error { return c.String(http.StatusOK, text(large)) })
	handle("/conflict", func(c echo.Context) error { return echo.NewHTTPError(http.StatusConflict, "on purpose") })
	handle("/error", func(c echo.Context) error { return errors.New("on purpose") })
	handle("/panic", func(c echo.Context) error { panic("on purpose") })
	handle("/late/error", func(c echo.Context) error {
		c.Response().Header().Set(markHeader, mark)
		return errors.Join(c.String(http.StatusOK, mark), errors.New("on purpose"))
	})
	handle("/late/panic", func(c echo.Context) error {
		c.Response().Header().Set(markHeader, mark)
		c.String(http.StatusOK, mark)
		panic("on purpose")
	})
	handle("/large/error", func(c echo.Context) error {
		return errors.Join(c.String(http.StatusOK, text(large)), errors.New("on purpose"))
	})
	handle("/large/panic", func(c echo.Context) error {
		c.String(http.StatusOK, text(large))
		panic("on purpose")
	})
	return e
}

// wrapped is newEcho with sqlreq in its chain.
func wrapped(s *site, commitFails bool) *echo.Echo {
	return newEcho(s, commitFails, sqlreqecho4.Wrap(s.reg.Middleware))
}

func TestEchoCompleteMeansCommitted(t *testing.T) {
	for _, proto := range protocols {
		for _, c := range []struct {
			path   string
			status int
		}{{"/json", 201}, {"/status", 204}, {"/nothing", 200}, {"/large", 200}} {
			t.Run(proto+" "+c.path, func(t *testing.T) {
				s := newSite(t)
				works := serve(t, proto, wrapped(s, false))
				fails := serve(t, proto, wrapped(s, true))
				got := send(t, fails, "POST", c.path)
				if c.path == "/large" {
					got.wantBroken(t)
				} else {
					got.wantError(t)
				}
				s.wantNotes(t, 0)
				send(t, works, "POST", c.path).wantStatus(t, c.status)
				s.wantNotes(t, 1)
			})
		}
	}
}

func TestEchoFailuresRollBack(t *testing.T) {
	for _, proto := range protocols {
		for _, c := range []struct {
			path   string
			status int // 0: a broken transfer
		}{
			{"/conflict", 409},
			{"/missing", 404},
			{"/error", 500},
			{"/panic", 500},
			{"/late/error", 500},
			{"/late/panic", 500},
			{"/large/error", 0},
			{"/large/panic", 0},
		} {
			t.Run(proto+" "+c.path, func(t *testing.T) {
				s := newSite(t)
				srv := serve(t, proto, wrapped(s, false))
				got := send(t, srv, "POST", c.path)
				if c.status == 0 {
					got.wantBroken(t)
				} else {
					got.wantStatus(t, c.status)
					got.wantUnmarked(t)
				}
				s.wantNotes(t, 0)
			})
		}
	}
}

// Why echo is not wrapped as a whole: it shows sqlreq a plain success.
func TestEchoAloneHidesLateFailures(t *testing.T) {
	for _, path := range []string{"/late/error", "/late/panic"} {
		t.Run(path, func(t *testing.T) {
			s := newSite(t)
			srv := serve(t, "HTTP/1.1", s.reg.Middleware(newEcho(s, false)))
			send(t, srv, "POST", path).wantStatus(t, 200)
			s.wantNotes(t, 1)
		})
	}
}

// Why sqlreqecho4.Wrap and not echo.WrapMiddleware: there the handler has returned, and the transaction is committed,
// before echo makes an error answer of the handler's error.
func TestEchoWrapMiddlewareDecidesTooEarly(t *testing.T) {
	s := newSite(t)
	e := echo.New()
	e.Logger.SetOutput(io.Discard)
	e.Use(echo.WrapMiddleware(s.reg.Middleware))
	e.POST("/error", func(c echo.Context) error {
		if err := s.add(c.Request().Context(), false); err != nil {
			unexpected(c.Response(), err)
			return nil
		}
		return errors.New("on purpose")
	})
	srv := serve(t, "HTTP/1.1", e)
	send(t, srv, "POST", "/error")
	s.wantNotes(t, 1)
}

func TestEchoStream(t *testing.T) {
	for _, proto := range protocols {
		for _, commitFails := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s COMMIT fails %t", proto, commitFails), func(t *testing.T) {
				s := newSite(t)
				asked := make(chan struct{}, 1)
				e := wrapped(s, commitFails)
				stream := events(asked, func(w http.ResponseWriter) { w.(http.Flusher).Flush() })
				e.GET("/stream", func(c echo.Context) error {
					stream.ServeHTTP(c.Response(), c.Request())
					return nil
				})
				srv := serve(t, proto, e)
				asked <- struct{}{}
				wantEvents(t, s, srv, "/stream", asked, commitFails)
			})
		}
	}
}

func TestEchoWebsocket(t *testing.T) {
	for _, library := range websockets {
		for _, commitFails := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s COMMIT fails %t", library.name, commitFails), func(t *testing.T) {
				s := newSite(t)
				e := wrapped(s, commitFails)
				e.GET("/", func(c echo.Context) error {
					library.echo(c.Response(), c.Request())
					return nil
				})
				h, left := finishing(e)
				srv := serve(t, "HTTP/1.1", h)
				if commitFails {
					resp, err := gorillaTalk(srv.URL, func() { t.Error("the connection was upgraded") })
					wantRefused(t, resp, err)
				} else if _, err := gorillaTalk(srv.URL, func() { s.wantNotes(t, 1) }); err != nil {
					t.Errorf("talk: %v", err)
				}
				await(t, left, "the handler to return")
				s.wantNotes(t, map[bool]int{false: 1, true: 0}[commitFails])
			})
		}
	}
}
