package thirdparty

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/gin-gonic/gin"

	"github.com/sqlreq/sqlreq"
	sqlreqgin "github.com/sqlreq/sqlreq/adapters/gin"
)

func init() { gin.SetMode(gin.ReleaseMode) }

// newGin is an engine with gin's own Recovery and the handlers that the tests ask for, each writing a note first.
func newGin(s *site, commitFails bool, more ...gin.HandlerFunc) *gin.Engine {
	engine := gin.New()
	engine.Use(gin.RecoveryWithWriter(io.Discard))
	engine.Use(more...)
	engine.Use(func(c *gin.Context) {
		if err := s.add(c.Request.Context(), commitFails); err != nil {
			unexpected(c.Writer, err)
			c.Abort()
		}
	})
	engine.POST("/json", func(c *gin.Context) {
		c.Header(markHeader, mark)
		c.JSON(http.StatusCreated, gin.H{"note": mark})
	})
	engine.POST("/status", func(c *gin.Context) { c.Status(http.StatusNoContent) })
	engine.POST("/nothing", func(c *gin.Context) {})
	engine.POST("/large", func(c *gin.Context) { c.String(http.StatusOK, "%s", text(large)) })
	engine.POST("/bind", func(c *gin.Context) {
		var in struct {
			Text string `json:"text" binding:"required"`
		}
		if c.BindJSON(&in) != nil { // has answered 400
			return
		}
		c.Status(http.StatusCreated)
	})
	engine.POST("/teapot", func(c *gin.Context) { c.AbortWithError(http.StatusTeapot, errors.New("on purpose")) })
	engine.POST("/panic", func(c *gin.Context) { panic("on purpose") })
	engine.POST("/abort", func(c *gin.Context) { panic(http.ErrAbortHandler) })
	engine.POST("/late/panic", func(c *gin.Context) {
		c.Header(markHeader, mark)
		c.String(http.StatusOK, mark)
		panic("on purpose")
	})
	engine.POST("/late/error", func(c *gin.Context) {
		c.Header(markHeader, mark)
		c.String(http.StatusOK, mark)
		c.Error(errors.New("on purpose"))
	})
	engine.POST("/late/status", func(c *gin.Context) {
		c.Header(markHeader, mark)
		c.String(http.StatusOK, mark)
		c.AbortWithError(http.StatusBadGateway, errors.New("on purpose"))
	})
	engine.POST("/late/abort", func(c *gin.Context) {
		c.String(http.StatusOK, mark)
		panic(http.ErrAbortHandler)
	})
	engine.POST("/large/panic", func(c *gin.Context) {
		c.String(http.StatusOK, "%s", text(large))
		panic("on purpose")
	})
	engine.POST("/large/error", func(c *gin.Context) {
		c.String(http.StatusOK, "%s", text(large))
		c.Error(errors.New("on purpose"))
	})
	return engine
}

func TestGinCompleteMeansCommitted(t *testing.T) {
	for _, proto := range protocols {
		for _, c := range []struct {
			path   string
			status int
		}{{"/json", 201}, {"/status", 204}, {"/nothing", 200}, {"/large", 200}} {
			t.Run(proto+" "+c.path, func(t *testing.T) {
				s := newSite(t)
				works := serve(t, proto, newGin(s, false, sqlreqgin.Wrap(s.reg.Middleware)))
				fails := serve(t, proto, newGin(s, true, sqlreqgin.Wrap(s.reg.Middleware)))
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

func TestGinFailuresRollBack(t *testing.T) {
	for _, proto := range protocols {
		for _, c := range []struct {
			path   string
			status int // 0: a broken transfer
		}{
			{"/bind", 400},
			{"/teapot", 418},
			{"/missing", 404},
			{"/panic", 500},
			{"/abort", 500},
			{"/late/panic", 500},
			{"/late/error", 500},
			{"/late/status", 502},
			{"/late/abort", 500},
			{"/large/panic", 0},
			{"/large/error", 0},
		} {
			t.Run(proto+" "+c.path, func(t *testing.T) {
				s := newSite(t)
				srv := serve(t, proto, newGin(s, false, sqlreqgin.Wrap(s.reg.Middleware)))
				got := send(t, srv, "POST", c.path)
				if c.status == 0 {
					got.wantBroken(t)
				} else {
					got.wantStatus(t, c.status)
					if c.path != "/late/status" { // the handler's own answer, with its header
						got.wantUnmarked(t)
					}
				}
				s.wantNotes(t, 0)
			})
		}
	}
}

// Why gin is not wrapped as a whole: it shows sqlreq a plain success.
func TestGinAloneHidesLateFailures(t *testing.T) {
	for _, path := range []string{"/abort", "/late/panic", "/late/error", "/late/status"} {
		t.Run(path, func(t *testing.T) {
			s := newSite(t)
			srv := serve(t, "HTTP/1.1", s.reg.Middleware(newGin(s, false)))
			send(t, srv, "POST", path).wantStatus(t, 200)
			s.wantNotes(t, 1)
		})
	}
}

func TestGinStream(t *testing.T) {
	for _, proto := range protocols {
		for _, commitFails := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s COMMIT fails %t", proto, commitFails), func(t *testing.T) {
				s := newSite(t)
				asked := make(chan struct{}, 1)
				engine := newGin(s, commitFails, sqlreqgin.Wrap(s.reg.Middleware))
				engine.GET("/stream", func(c *gin.Context) {
					i := 0
					c.Stream(func(w io.Writer) bool {
						select {
						case <-asked:
						case <-c.Request.Context().Done():
							return false
						}
						fmt.Fprintf(w, "data: %d\n\n", i)
						i++
						return i < 3
					})
				})
				srv := serve(t, proto, engine)
				asked <- struct{}{}
				wantEvents(t, s, srv, "/stream", asked, commitFails)
			})
		}
	}
}

// c.Stream ends by CloseNotify when the client leaves: its step here never does.
func TestGinStreamClientLeaves(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			s := newSite(t)
			gone := make(chan bool, 1)
			engine := newGin(s, false, sqlreqgin.Wrap(s.reg.Middleware))
			engine.GET("/stream", func(c *gin.Context) {
				gone <- c.Stream(func(w io.Writer) bool {
					io.WriteString(w, "data: again\n\n")
					return true
				})
			})
			h, left := finishing(engine)
			srv := serve(t, proto, h)
			resp, err := srv.Client().Get(srv.URL + "/stream")
			if err != nil {
				t.Fatal(err)
			}
			if got, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || got != "data: again\n" {
				t.Errorf("first event: got %q, %v", got, err)
			}
			resp.Body.Close()
			if !await(t, gone, "c.Stream to end") {
				t.Error("c.Stream: got false, want true, as for a client that has gone")
			}
			await(t, left, "the request to end")
			s.wantNotes(t, 0)
		})
	}
}

// gin holds the 101 of coder/websocket in a writer of its own and hides the error answer that follows a failed Hijack.
func TestGinWebsocket(t *testing.T) {
	for _, library := range websockets {
		for _, commitFails := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s COMMIT fails %t", library.name, commitFails), func(t *testing.T) {
				s := newSite(t)
				engine := newGin(s, commitFails, sqlreqgin.Wrap(s.reg.Middleware))
				engine.GET("/", func(c *gin.Context) { library.echo(c.Writer, c.Request) })
				h, left := finishing(engine)
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

// gin around Middleware instead: its Recovery recovers http.ErrAbortHandler, too, and returns as if nothing had been.
func TestGinOutsideCannotCompleteAnAbortedResponse(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			s := newSite(t)
			engine := gin.New()
			engine.Use(gin.RecoveryWithWriter(io.Discard))
			engine.POST("/small", gin.WrapH(s.reg.Middleware(s.adding(true, answerText(small)))))
			engine.POST("/large", gin.WrapH(s.reg.Middleware(s.adding(true, answerText(large)))))
			srv := serve(t, proto, engine)
			send(t, srv, "POST", "/small").wantError(t)
			send(t, srv, "POST", "/large").wantBroken(t)
			s.wantNotes(t, 0)
		})
	}
}

// A handler of gin that tells sqlreq itself needs no recipe.
func TestGinHandlerCallsFail(t *testing.T) {
	s := newSite(t)
	engine := newGin(s, false)
	engine.POST("/gone", func(c *gin.Context) {
		c.String(http.StatusOK, mark)
		sqlreq.Fail(c.Request.Context(), sqlreq.Errorf(http.StatusGone, "on purpose"))
	})
	srv := serve(t, "HTTP/1.1", s.reg.Middleware(engine))
	got := send(t, srv, "POST", "/gone")
	got.wantStatus(t, http.StatusGone)
	got.wantUnmarked(t)
	s.wantNotes(t, 0)
}
