// Package app is the program as the original has it: a middleware of its framework begins, commits and rolls back.
package app

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"

	"github.com/jmoiron/sqlx"

	"github.com/sqlreq/sqlreq/integration/ports/sales"
)

// CommitRollbacker is a transaction.
type CommitRollbacker interface {
	Commit() error
	Rollback() error
}

type tranKey struct{}

// GetTran returns the transaction of the request, as stores need it.
func GetTran(ctx context.Context) (sqlx.ExtContext, error) {
	tx, ok := ctx.Value(tranKey{}).(CommitRollbacker)
	if !ok {
		return nil, errors.New("transaction not found in context")
	}
	ec, ok := tx.(sqlx.ExtContext)
	if !ok {
		return nil, fmt.Errorf("transactor %T is no *sqlx.Tx", tx)
	}
	return ec, nil
}

// BeginCommitRollback gives a request a transaction.
func BeginCommitRollback(db *sqlx.DB) sales.MidFunc {
	return func(next sales.HandlerFunc) sales.HandlerFunc {
		return func(ctx context.Context, r *http.Request) sales.Encoder {
			tx, err := db.Beginx()
			if err != nil {
				return sales.NewError(http.StatusInternalServerError, fmt.Errorf("BEGIN TRANSACTION: %w", err))
			}
			defer func() {
				if err := tx.Rollback(); err != nil && !errors.Is(err, sql.ErrTxDone) {
					fmt.Println("ROLLBACK TRANSACTION", err)
				}
			}()
			resp := next(context.WithValue(ctx, tranKey{}, tx), r)
			if sales.CheckIsError(resp) != nil {
				return resp
			}
			if err := tx.Commit(); err != nil {
				return sales.NewError(http.StatusInternalServerError, fmt.Errorf("COMMIT TRANSACTION: %w", err))
			}
			return resp
		}
	}
}

// Panics makes errors of panics.
func Panics(next sales.HandlerFunc) sales.HandlerFunc {
	return func(ctx context.Context, r *http.Request) (resp sales.Encoder) {
		defer func() {
			if rec := recover(); rec != nil {
				resp = sales.NewError(http.StatusInternalServerError, fmt.Errorf("PANIC [%v] TRACE[%s]", rec, debug.Stack()))
			}
		}()
		return next(ctx, r)
	}
}
