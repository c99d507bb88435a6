package thirdparty

import (
	"errors"
	"net/http"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/labstack/echo/v4"

	"github.com/sqlreq/sqlreq"
)

var errPanicked = errors.New("the handler panicked")

// GinErrors is for tests that wrap gin as a whole, from outside, as no program should any more: its logs and CORS are
// inside then. It tells sqlreq about failures that gin hides: an error given to c.Error, and a panic. It goes inside of
// gin.Recovery.
func GinErrors(c *gin.Context) {
	returned := false
	defer func() {
		if last := c.Errors.Last(); !returned {
			// Not recovered: gin.Recovery logs the stack of the panic itself.
			sqlreq.Fail(c.Request.Context(), errPanicked)
		} else if last != nil {
			sqlreq.Fail(c.Request.Context(), last.Err)
		}
	}()
	c.Next()
	returned = true
}

// EchoErrors is for tests that wrap echo as a whole, from outside, as no program should any more. It tells sqlreq about
// every error that reaches echo's error handler, whose own does nothing once a response has begun.
func EchoErrors(e *echo.Echo) {
	render := e.HTTPErrorHandler
	e.HTTPErrorHandler = func(err error, c echo.Context) {
		sqlreq.Fail(c.Request().Context(), err)
		render(err, c)
	}
}

// TestWrappedAsAWhole: programs that still do so lose no work, only what their own middlewares see.
func TestWrappedAsAWhole(t *testing.T) {
	for name, start := range map[string]func(s *site) http.Handler{
		"gin": func(s *site) http.Handler { return newGin(s, false, GinErrors) },
		"echo": func(s *site) http.Handler {
			e := newEcho(s, false)
			EchoErrors(e)
			return e
		},
	} {
		for _, path := range []string{"/late/panic", "/late/error"} {
			s := newSite(t)
			send(t, serve(t, "HTTP/1.1", s.reg.Middleware(start(s))), "POST", path).wantStatus(t, 500)
			if s.notes(t) != 0 {
				t.Errorf("%s %s: a note has stayed", name, path)
			}
		}
	}
}
