package sqlreqecho5

import (
	"net/http"
	"testing"

	"github.com/labstack/echo/v5"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

// A status of 400 or more that is set behind the first byte is a failure, though echo
// drops it.
func TestLateStatus(t *testing.T) {
	s := adaptertest.NewSite(t)
	e := newEcho(s)
	for path, late := range map[string]echo.HandlerFunc{
		"/json":   func(c *echo.Context) error { return c.JSON(404, "none") },
		"/string": func(c *echo.Context) error { return c.String(404, "none") },
		"/header": func(c *echo.Context) error { c.Response().WriteHeader(404); return nil },
	} {
		e.POST(path, work(s, done, late))
		e.POST("/large"+path, work(s, func(c *echo.Context) error {
			return c.Blob(200, "text/plain", make([]byte, adaptertest.Large))
		}, late))
	}
	e.POST("/success", work(s, done, func(c *echo.Context) error { return c.JSON(200, "more") }))
	url := s.Serve(t, e)
	for _, r := range e.Router().Routes() {
		got := s.Send(t, r.Method, url+r.Path)
		switch {
		case r.Path == "/success":
			if got.Status != 201 {
				t.Errorf("%s: got %d, want the first status", r.Path, got.Status)
			}
			s.WantRows(t, 1)
			empty(t, s)
		case len(r.Path) > len("/large") && r.Path[:6] == "/large":
			if got.Err == nil {
				t.Errorf("%s: got a complete %d, want a broken transfer", r.Path, got.Status)
			}
		case got.Err != nil || got.Status != http.StatusNotFound:
			t.Errorf("%s: got %d %q %v, want 404", r.Path, got.Status, got.Body, got.Err)
		}
		s.WantRows(t, 0)
	}
}

func empty(t *testing.T, s *adaptertest.Site) {
	t.Helper()
	if _, err := s.DB.Exec("DELETE FROM work"); err != nil {
		t.Fatal(err)
	}
}
