// Package app is the program with sqlreq in the place of the middleware that began, committed and rolled back.
package app

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/integration/ports/sales"
)

// Transaction gives a request a transaction. The answer that a handler has returned is written when its COMMIT has
// succeeded. Registry.Retry stays off: it would run the handler again, whose body has been read.
func Transaction(reg *sqlreq.Registry) sales.MidFunc {
	return func(next sales.HandlerFunc) sales.HandlerFunc {
		return func(ctx context.Context, r *http.Request) (resp sales.Encoder) {
			err := reg.Do(ctx, func(ctx context.Context) error {
				resp = next(ctx, r)
				return sales.CheckIsError(resp)
			})
			if status := sqlreq.StatusCode(err); status == http.StatusServiceUnavailable || err != nil && sales.CheckIsError(resp) == nil {
				return sales.NewError(status, err)
			}
			return resp
		}
	}
}

// Panics makes errors of panics.
func Panics(next sales.HandlerFunc) sales.HandlerFunc {
	return func(ctx context.Context, r *http.Request) (resp sales.Encoder) {
		defer func() {
			if rec := recover(); rec == http.ErrAbortHandler {
				panic(rec)
			} else if rec != nil {
				resp = sales.NewError(http.StatusInternalServerError, fmt.Errorf("PANIC [%v] TRACE[%s]", rec, debug.Stack()))
			}
		}()
		return next(ctx, r)
	}
}
