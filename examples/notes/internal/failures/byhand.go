package failures

import (
	"context"
	"database/sql"
	"log/slog"
	"net/http"

	"github.com/sqlreq/sqlreq"
)

// byHand gives each request a transaction. In this form it is in many services, and each of the five failures is in
// one line of it. ctx ends with the service: a client that leaves must not take its work along.
func byHand(ctx context.Context, db *sql.DB, log *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			http.Error(w, "no database", http.StatusServiceUnavailable)
			return
		}
		sw := &statusWriter{ResponseWriter: w}
		next.ServeHTTP(sw, r.WithContext(context.WithValue(r.Context(), txKey{}, tx)))
		if sw.status >= 400 {
			tx.Rollback()
			return
		}
		if err := tx.Commit(); err != nil {
			log.Error("COMMIT failed, and the client has its answer", "err", err)
		}
	})
}

type txKey struct{}

// statusWriter remembers the first status that the handler has set.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// bySQLReq takes the place of all that.
func bySQLReq(reg *sqlreq.Registry, next http.Handler) http.Handler {
	reg.Retry = sqlreq.Retry{Attempts: 20}
	return reg.Middleware(next)
}

// querier is what handlers use: a *sql.Tx, or a sqlreq.Key.
type querier interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
}

// finder finds the querier of a request. It is all that differs between the two handlers.
type finder func(context.Context) querier

func txByHand(ctx context.Context) querier { return ctx.Value(txKey{}).(*sql.Tx) }

func keyBySQLReq(context.Context) querier { return sqlreq.DefaultKey }
