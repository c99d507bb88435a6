package sqlreqecho4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"
	_ "modernc.org/sqlite"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

// newEcho is a program with what stands outside of sqlreq, and sqlreq.
func newEcho(s *adaptertest.Site) *echo.Echo {
	e := echo.New()
	e.Logger.SetOutput(io.Discard)
	e.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			c.Response().Header().Set("X-Outside", "1")
			if err := next(c); err != nil {
				c.Error(err) // as middleware.Logger does
			}
			s.Access(c.Response().Status)
			return nil
		}
	}, middleware.Recover(), Wrap(s.Reg.Middleware))
	return e
}

func errorJSON(status int) string {
	if status == 422 {
		return `{"message":"on purpose"}` + "\n"
	}
	return fmt.Sprintf("{\"message\":%q}\n", http.StatusText(status))
}

var errPlain = errors.New("on purpose")

// work adds a row, and answers 201 if that is all.
func work(s *adaptertest.Site, then ...echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if err := s.Insert(c.Request().Context()); err != nil {
			return err
		}
		for _, f := range then {
			if err := f(c); err != nil {
				return err
			}
		}
		if len(then) == 0 {
			return done(c)
		}
		return nil
	}
}

func done(c echo.Context) error {
	c.Response().Header().Set("X-Inside", "1")
	return c.String(http.StatusCreated, "done")
}

func newProgram(t testing.TB, s *adaptertest.Site) http.Handler {
	var (
		conflicts atomic.Int32
		returned  = func(echo.Context) error { return echo.NewHTTPError(422, "on purpose") }
		breaks    = func(c echo.Context) error { return s.BreakCommit(c.Request().Context()) }
		fails     = func(echo.Context) error { return errPlain }
		panics    = func(echo.Context) error { panic("on purpose") }
		page      = func(c echo.Context) error {
			c.Response().Header().Set("X-Inside", "1")
			return c.String(200, "done")
		}
		large = func(c echo.Context) error {
			return c.Blob(200, "text/plain", bytes.Repeat([]byte("x"), adaptertest.Large))
		}
		reports = func(c echo.Context) error {
			sqlreqtest.Exec(t, c.Request().Context(), adaptertest.Reports, sqlreqtest.InsertWork)
			return nil
		}
	)
	e := newEcho(s)
	e.POST("/ok", work(s))
	e.POST("/nothing", work(s, func(c echo.Context) error { return c.NoContent(204) }))
	e.POST("/returned", work(s, returned))
	e.POST("/written", work(s, func(c echo.Context) error { return c.String(422, "invalid") }))
	e.POST("/fails", work(s, fails))
	e.POST("/late", work(s, page, fails))
	e.POST("/late/large", work(s, large, fails))
	e.POST("/panic", work(s, panics))
	e.POST("/late/panic", work(s, page, panics))
	e.POST("/large/panic", work(s, large, panics))
	e.POST("/commit", work(s, breaks, done))
	e.GET("/gone", work(s, func(c echo.Context) error {
		s.Entered <- struct{}{}
		<-c.Request().Context().Done()
		return c.String(200, "done")
	}))
	e.POST("/large", work(s, large))
	e.POST("/large/commit", work(s, breaks, large))
	e.POST("/conflict", work(s, func(c echo.Context) error {
		if conflicts.Add(1) == 1 {
			return sqlreqtest.Conflict{}
		}
		return done(c)
	}))
	group := e.Group("/group", Wrap(s.Reg.With(adaptertest.Reports)))
	group.POST("/ok", work(s, reports, done))
	group.POST("/fails", work(s, reports, returned))
	group.POST("/commit", work(s, reports, breaks, done))
	once := e.Group("/once", Wrap(s.Once.Handler))
	once.POST("/ok", work(s))
	once.POST("/fails", work(s, returned))
	return e
}

func TestCells(t *testing.T) {
	adaptertest.Run(t, adaptertest.Web{New: newProgram, Error: errorJSON, Retry: true}.Tests(), nil)
}
