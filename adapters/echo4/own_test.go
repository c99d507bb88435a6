package sqlreqecho4

import (
	"testing"

	"github.com/labstack/echo/v4"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

func response(c echo.Context) *echo.Response { return c.Response() }

// A handler that gives its error to c.Error and returns nil, as middleware.Recover does.
func TestErrorOfTheContext(t *testing.T) {
	s := adaptertest.NewSite(t)
	e := newEcho(s)
	e.POST("/", work(s, func(c echo.Context) error {
		c.Error(echo.NewHTTPError(422, "on purpose"))
		c.Error(errPlain) // the first counts
		return nil
	}))
	e.POST("/late", work(s, done, func(c echo.Context) error {
		c.Error(errPlain)
		return nil
	}))
	url := s.Serve(t, e)
	if got := s.Send(t, "POST", url+"/"); got.Status != 422 || got.Body != errorJSON(422) {
		t.Errorf("got %d %q", got.Status, got.Body)
	}
	if got := s.Send(t, "POST", url+"/late"); got.Status != 500 || got.Body != errorJSON(500) {
		t.Errorf("got %d %q", got.Status, got.Body)
	}
	s.WantRows(t, 0)
}

// A program's own context, set outside or inside, is what its handlers get.
func TestOwnContext(t *testing.T) {
	type own struct{ echo.Context }
	set := func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error { return next(&own{c}) }
	}
	for name, chain := range map[string]func(*adaptertest.Site) []echo.MiddlewareFunc{
		"outside": func(s *adaptertest.Site) []echo.MiddlewareFunc {
			return []echo.MiddlewareFunc{set, Wrap(s.Reg.Middleware)}
		},
		"inside": func(s *adaptertest.Site) []echo.MiddlewareFunc {
			return []echo.MiddlewareFunc{Wrap(s.Reg.Middleware), set}
		},
	} {
		s := adaptertest.NewSite(t)
		e := echo.New()
		e.Use(chain(s)...)
		e.POST("/", work(s, func(c echo.Context) error {
			if _, ok := c.(*own); !ok {
				t.Errorf("%s: the handler got a %T", name, c)
			}
			return done(c)
		}))
		if got := s.Send(t, "POST", s.Serve(t, e)+"/"); got.Status != 201 {
			t.Errorf("%s: got %d", name, got.Status)
		}
		s.WantRows(t, 1)
	}
}
