// Package thirdparty runs programs that others wrote through sqlreq: websocket libraries, file servers, proxies,
// routers, ORMs. Most run unchanged. This file holds what the others need: a few lines each, to be copied.
package thirdparty

import (
	"context"
	"errors"

	"github.com/gin-gonic/gin"
	"github.com/jmoiron/sqlx"
	"github.com/labstack/echo/v4"
	"gorm.io/gorm"

	"github.com/sqlreq/sqlreq"
)

var errPanicked = errors.New("the handler panicked")

// GinErrors tells sqlreq about failures that gin hides: an error given to c.Error, and a panic. gin's writer drops a
// status that comes after the first byte, so that gin.Recovery leaves a half written 200 as it is, and it recovers
// http.ErrAbortHandler without an answer. Put it inside Recovery and wrap the engine as a whole, so that sqlreq sees
// what gin made of the request:
//
//	engine := gin.New()
//	engine.Use(gin.Recovery(), GinErrors)
//	http.ListenAndServe(addr, reg.Middleware(engine))
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

// EchoErrors tells sqlreq about every error that reaches echo's error handler, from handlers, from middlewares, from
// middleware.Recover. echo's own does nothing once a response has begun, and a half written 200 would stay one. Wrap
// echo as a whole; inside echo.WrapMiddleware sqlreq would decide before echo has dealt with the handler's error:
//
//	e := echo.New()
//	EchoErrors(e)
//	http.ListenAndServe(addr, reg.Middleware(e))
func EchoErrors(e *echo.Echo) {
	render := e.HTTPErrorHandler
	e.HTTPErrorHandler = func(err error, c echo.Context) {
		sqlreq.Fail(c.Request().Context(), err)
		render(err, c)
	}
}

// Gorm returns a session of db that runs its statements in the request's transaction, which the first of them
// begins. db.Transaction in it makes a savepoint. db itself was opened on the pool:
//
//	db, err := gorm.Open(sqlite.New(sqlite.Config{Conn: pool}), &gorm.Config{})
//
// Never make the Key itself gorm's connection: gorm commits the request's transaction after each write then, and the
// row of a request that fails stays. Statements with another context than ctx, by WithContext, need one from inside
// the request; in a sqlreq.Savepoint call Gorm again with the context that its function is given.
func Gorm(ctx context.Context, db *gorm.DB) *gorm.DB {
	session := db.Session(&gorm.Session{NewDB: true, Context: ctx})
	session.Statement.ConnPool = &gormConn{sqlreq.DefaultKey}
	return session
}

// gormConn is a Key as gorm wants the connection of an open transaction: without BeginTx, or gorm would begin and end
// a transaction for each write, and with the two methods by which it recognizes one.
type gormConn struct{ gorm.ConnPool }

func (*gormConn) Commit() error {
	return errors.New("gorm: the transaction is the request's; use sqlreq.Commit")
}

func (*gormConn) Rollback() error {
	return errors.New("gorm: the transaction is the request's; use sqlreq.Rollback")
}

// Sqlx returns the request's transaction as sqlx has it, with db's mapping of names. Named queries get question marks:
// for PostgreSQL, bind them with db.BindNamed first.
func Sqlx(ctx context.Context, db *sqlx.DB) (*sqlx.Tx, error) {
	tx, err := sqlreq.Tx(ctx)
	if err != nil {
		return nil, err
	}
	return &sqlx.Tx{Tx: tx, Mapper: db.Mapper}, nil
}
