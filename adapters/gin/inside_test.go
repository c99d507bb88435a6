package sqlreqgin

import (
	"io"
	"net/http"
	"testing"

	"github.com/gin-gonic/gin"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

// An engine with a Wrap that stands inside of a registry, in a mux or in another engine: a
// status of 400 or more that comes behind the first byte fails there as elsewhere.
func TestLateStatusInsideOfARegistry(t *testing.T) {
	handlers := map[string]gin.HandlerFunc{
		"/body":   func(c *gin.Context) { c.String(409, "failed") },
		"/status": func(c *gin.Context) { c.Status(409) },
		"/abort":  func(c *gin.Context) { c.AbortWithStatus(409) },
	}
	places := map[string]func(s *adaptertest.Site, engine *gin.Engine) http.Handler{
		"mux": func(s *adaptertest.Site, engine *gin.Engine) http.Handler {
			mux := http.NewServeMux()
			mux.Handle("/", engine)
			return s.Reg.Middleware(mux)
		},
		"engine": func(s *adaptertest.Site, engine *gin.Engine) http.Handler {
			outer := gin.New()
			outer.Use(gin.RecoveryWithWriter(io.Discard), Wrap(s.Reg.Middleware))
			outer.NoRoute(gin.WrapH(engine))
			return outer
		},
	}
	for name, place := range places {
		t.Run(name, func(t *testing.T) {
			s := adaptertest.NewSite(t)
			engine := gin.New()
			engine.Use(gin.RecoveryWithWriter(io.Discard), Wrap(s.Reg.With(adaptertest.Reports)))
			for path, late := range handlers {
				engine.POST(path, work(s, func(c *gin.Context) { c.String(200, "half ") }, late))
				engine.POST("/large"+path, work(s, func(c *gin.Context) {
					c.Data(200, "text/plain", make([]byte, adaptertest.Large))
				}, late))
			}
			url := s.Serve(t, place(s, engine))
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
