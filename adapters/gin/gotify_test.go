package sqlreqgin

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

var noDeadline time.Time

// TestGotify is the case of gotify/server: an access log, CORS and a middleware that
// renders c.Errors as JSON. Wrapped as a whole they are all inside of sqlreq, and see a
// response that is not sent; behind Wrap they are outside.
func TestGotify(t *testing.T) {
	program := func(s *adaptertest.Site, wrap ...gin.HandlerFunc) *gin.Engine {
		engine := gin.New()
		engine.Use(func(c *gin.Context) {
			c.Next()
			s.Access(c.Writer.Status())
		}, gin.RecoveryWithWriter(io.Discard), renderErrors, func(c *gin.Context) {
			c.Header("Access-Control-Allow-Origin", "https://app.example")
		})
		engine.Use(wrap...)
		engine.POST("/commit", work(s, func(c *gin.Context) { _ = s.BreakCommit(c.Request.Context()) }, done))
		engine.POST("/error", work(s, func(c *gin.Context) {
			// What a handler does that knows nothing of gin.
			_ = sqlreq.Fail(c.Request.Context(), sqlreq.Errorf(409, "%w", errors.New("taken")))
		}))
		return engine
	}
	row := func(s *adaptertest.Site, got adaptertest.Answer) string {
		seen := s.Accessed()
		return fmt.Sprintf("sent %d, logged %d, CORS %q, %s %s", got.Status, seen[len(seen)-1],
			got.Header.Get("Access-Control-Allow-Origin"), got.Header.Get("Content-Type"), got.Body)
	}
	for _, test := range []struct {
		name  string
		start func(s *adaptertest.Site) http.Handler
		want  map[string]string
	}{
		{"the engine wrapped as a whole", func(s *adaptertest.Site) http.Handler { return s.Reg.Middleware(program(s)) }, map[string]string{
			"/commit": `sent 500, logged 201, CORS "", text/plain; charset=utf-8 Internal Server Error` + "\n",
			"/error":  `sent 409, logged 200, CORS "", text/plain; charset=utf-8 Conflict` + "\n",
		}},
		{"Wrap", func(s *adaptertest.Site) http.Handler { return program(s, Wrap(s.Reg.Middleware)) }, map[string]string{
			"/commit": `sent 500, logged 500, CORS "https://app.example", application/json; charset=utf-8 {"error":500}`,
			"/error":  `sent 409, logged 409, CORS "https://app.example", application/json; charset=utf-8 {"error":409}`,
		}},
	} {
		s := adaptertest.NewSite(t)
		url := s.Serve(t, test.start(s))
		for path, want := range test.want {
			if got := row(s, s.Send(t, "POST", url+path)); got != want {
				t.Errorf("%s, %s:\ngot  %s\nwant %s", test.name, path, got, want)
			}
		}
		s.WantRows(t, 0)
	}
}
