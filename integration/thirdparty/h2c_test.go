package thirdparty

//lint:file-ignore SA1019 Programs use it: net/http has it only since Go 1.24.

import (
	"net/http"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
)

// overH2C serves h over HTTP/2 without TLS, by hijacking what an HTTP/1.1 server was asked.
func overH2C(h http.Handler) http.Handler { return h2c.NewHandler(h, &http2.Server{}) }

// TestH2CInside: a connection is no request. With h2c inside of Middleware, and none inside of h2c, each request is
// told that nothing can be begun, and is no success.
func TestH2CInside(t *testing.T) {
	for name, app := range map[string]func(h http.Handler) http.Handler{
		"x/net": overH2C,
		"gin": func(h http.Handler) http.Handler {
			e := gin.New()
			e.UseH2C = true
			e.GET("/", gin.WrapH(h))
			return e.Handler()
		},
	} {
		s := newSite(t)
		srv := tableServer(t, "HTTP/2.0", true, s.reg.Middleware(app(plain(s))))
		for range 3 {
			if a := send(t, srv, "GET", "/?do=ok"); a.err != nil || a.proto != "HTTP/2.0" || a.status != 599 || !strings.Contains(a.body, "hijacked") {
				t.Errorf("%s: got %s %d %q, %v; want an error that says why", name, a.proto, a.status, a.body, a.err)
			}
		}
		srv.Client().CloseIdleConnections()
		s.wantNotes(t, 0)
	}
}
