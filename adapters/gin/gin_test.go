package sqlreqgin

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/gin-gonic/gin"
	_ "modernc.org/sqlite"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

func init() { gin.SetMode(gin.ReleaseMode) }

// newEngine is a program with what stands outside of sqlreq, and sqlreq.
func newEngine(s *adaptertest.Site) *gin.Engine {
	engine := gin.New()
	engine.HandleMethodNotAllowed = true
	engine.Use(func(c *gin.Context) {
		c.Header("X-Outside", "1")
		c.Next()
		s.Access(c.Writer.Status())
	}, gin.RecoveryWithWriter(io.Discard), renderErrors, Wrap(s.Reg.Middleware))
	return engine
}

// renderErrors is that of gotify, without its texts.
func renderErrors(c *gin.Context) {
	c.Next()
	if len(c.Errors) > 0 && !c.Writer.Written() {
		c.JSON(-1, gin.H{"error": c.Writer.Status()})
	}
}

func errorJSON(status int) string { return fmt.Sprintf(`{"error":%d}`, status) }

// work adds a row, and answers 201 if that is all.
func work(s *adaptertest.Site, then ...gin.HandlerFunc) gin.HandlerFunc {
	return func(c *gin.Context) {
		if err := s.Insert(c.Request.Context()); err != nil {
			_ = c.AbortWithError(http.StatusInternalServerError, err)
			return
		}
		for _, f := range then {
			f(c)
		}
		if len(then) == 0 {
			done(c)
		}
	}
}

func done(c *gin.Context) {
	c.Header("X-Inside", "1")
	c.String(http.StatusCreated, "done")
}

func newProgram(t testing.TB, s *adaptertest.Site) http.Handler {
	var (
		errPlain  = errors.New("on purpose")
		conflicts atomic.Int32
		returned  = func(c *gin.Context) { _ = c.AbortWithError(422, errPlain) }
		breaks    = func(c *gin.Context) { _ = s.BreakCommit(c.Request.Context()) }
		page      = func(c *gin.Context) { c.Header("X-Inside", "1"); c.String(200, "done") }
		large     = func(c *gin.Context) { c.Data(200, "text/plain", bytes.Repeat([]byte("x"), adaptertest.Large)) }
		fails     = func(c *gin.Context) { _ = c.Error(errPlain) }
		panics    = func(*gin.Context) { panic("on purpose") }
		reports   = func(c *gin.Context) {
			sqlreqtest.Exec(t, c.Request.Context(), adaptertest.Reports, sqlreqtest.InsertWork)
		}
	)
	engine := newEngine(s)
	engine.POST("/ok", work(s))
	engine.POST("/nothing", work(s, func(c *gin.Context) { c.Status(204) }))
	engine.POST("/returned", work(s, returned))
	engine.POST("/written", work(s, func(c *gin.Context) { c.String(422, "invalid") }))
	engine.POST("/fails", work(s, fails))
	engine.POST("/late", work(s, page, fails))
	engine.POST("/late/large", work(s, large, fails))
	engine.POST("/panic", work(s, panics))
	engine.POST("/late/panic", work(s, page, panics))
	engine.POST("/large/panic", work(s, large, panics))
	engine.POST("/commit", work(s, breaks, done))
	engine.GET("/gone", work(s, func(c *gin.Context) {
		s.Entered <- struct{}{}
		<-c.Request.Context().Done()
		c.String(200, "done")
	}))
	engine.POST("/large", work(s, large))
	engine.POST("/large/commit", work(s, breaks, large))
	engine.POST("/conflict", work(s, func(c *gin.Context) {
		if conflicts.Add(1) == 1 {
			_ = c.Error(sqlreqtest.Conflict{})
			return
		}
		done(c)
	}))
	group := engine.Group("/group", Wrap(s.Reg.With(adaptertest.Reports)))
	group.POST("/ok", work(s, reports, done))
	group.POST("/fails", work(s, reports, returned))
	group.POST("/commit", work(s, reports, breaks, done))
	once := engine.Group("/once", Wrap(s.Once.Handler))
	once.POST("/ok", work(s))
	once.POST("/fails", work(s, returned))
	return engine
}

func TestCells(t *testing.T) {
	adaptertest.Run(t, adaptertest.Web{New: newProgram, Error: errorJSON}.Tests(), nil)
}
