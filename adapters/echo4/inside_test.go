package sqlreqecho4

import (
	"net/http"
	"testing"

	"github.com/labstack/echo/v4"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

// A Wrap that stands inside of a registry, by a mux, another Echo, or in a group of a Wrap: a
// status of 400 or more that comes behind the first byte fails there as elsewhere.
func TestLateStatusInsideOfARegistry(t *testing.T) {
	handlers := map[string]echo.HandlerFunc{
		"/json": func(c echo.Context) error { return c.JSON(409, "none") },
	}
	places := map[string]func(s *adaptertest.Site, e *echo.Echo) http.Handler{
		"mux": func(s *adaptertest.Site, e *echo.Echo) http.Handler {
			mux := http.NewServeMux()
			mux.Handle("/", e)
			return s.Reg.Middleware(mux)
		},
		"echo": func(s *adaptertest.Site, e *echo.Echo) http.Handler {
			outer := newEcho(s)
			outer.Any("/*", echo.WrapHandler(e))
			return outer
		},
		"group": func(s *adaptertest.Site, e *echo.Echo) http.Handler {
			e.Pre(Wrap(s.Reg.Middleware))
			return e
		},
	}
	for name, place := range places {
		t.Run(name, func(t *testing.T) {
			s := adaptertest.NewSite(t)
			e := echo.New()
			group := e.Group("", Wrap(s.Reg.With(adaptertest.Reports)))
			for path, late := range handlers {
				group.POST(path, work(s, done, late))
				group.POST("/large"+path, work(s, func(c echo.Context) error {
					return c.Blob(200, "text/plain", make([]byte, adaptertest.Large))
				}, late))
			}
			url := s.Serve(t, place(s, e))
			for path := range handlers {
				if got := s.Send(t, "POST", url+path); got.Status != 409 || got.Err != nil {
					t.Errorf("%s: got %d %q %v, want 409", path, got.Status, got.Body, got.Err)
				}
				if got := s.Send(t, "POST", url+"/large"+path); got.Err == nil {
					t.Errorf("/large%s: got a complete %d, want a broken transfer", path, got.Status)
				}
			}
			s.WantRows(t, 0)
		})
	}
}
