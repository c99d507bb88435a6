package main

import (
	"context"
	"database/sql"
	"log"
	"net/http"
	"regexp"
	"sync"

	"github.com/sqlreq/sqlreq"
)

// replicas are a primary and its hot standby, which is always a little behind.
type replicas struct{ primary, standby *sql.DB }

// safe reports whether the request only reads. It has to agree with
// [sqlreq.ReadOnlySafeMethods].
func safe(r *http.Request) bool {
	return r != nil && sqlreq.ReadOnlySafeMethods(r.Context(), r) != nil
}

// route is a Binding.Route: the standby for requests that only read, unless it has
// not yet replayed what their sender has written; the primary for all others, and
// for work without a request.
func (dbs *replicas) route(ctx context.Context, r *http.Request) (*sql.DB, error) {
	if !safe(r) {
		return dbs.primary, nil
	}
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return dbs.standby, nil // has written nothing of late
	}
	if !lsn.MatchString(cookie.Value) {
		return dbs.primary, nil
	}
	var replayed bool
	err = dbs.standby.QueryRowContext(ctx, "SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn", cookie.Value).Scan(&replayed)
	if err != nil || !replayed {
		return dbs.primary, nil // a standby that does not answer is no reason to fail
	}
	return dbs.standby, nil
}

const cookieName = "written"

// lsn is the text of a position in PostgreSQL's log, a pg_lsn.
var lsn = regexp.MustCompile(`^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$`)

// position is where in the log a request's write ends.
type position struct {
	mu  sync.Mutex
	lsn string
}

type positionKey struct{}

// remember notes the position of each request that may write, right after its
// COMMIT: before that the record of the COMMIT, which makes the write visible, is not
// in the log. It belongs inside of Middleware.
func (dbs *replicas) remember(next http.Handler) http.Handler {
	return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if p, ok := r.Context().Value(positionKey{}).(*position); ok && !safe(r) {
			err := sqlreq.AfterCommit(r.Context(), func(ctx context.Context) {
				p.mu.Lock()
				defer p.mu.Unlock()
				if err := dbs.primary.QueryRowContext(ctx, "SELECT pg_current_wal_lsn()").Scan(&p.lsn); err != nil {
					log.Print("the next read may be stale: ", err)
				}
			})
			if err != nil {
				return err
			}
		}
		next.ServeHTTP(w, r)
		return nil
	})
}

// setCookie tells the client the position. The response comes by here after COMMIT,
// for it belongs outside of Middleware; only one that outgrows HoldLimit comes before, and gets no cookie.
func setCookie(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := new(position)
		next.ServeHTTP(&cookieWriter{ResponseWriter: w, position: p}, r.WithContext(context.WithValue(r.Context(), positionKey{}, p)))
	})
}

type cookieWriter struct {
	http.ResponseWriter
	position *position
	done     bool
}

func (w *cookieWriter) WriteHeader(status int) {
	w.cookie(status)
	w.ResponseWriter.WriteHeader(status)
}

func (w *cookieWriter) Write(b []byte) (int, error) {
	w.cookie(http.StatusOK)
	return w.ResponseWriter.Write(b)
}

func (w *cookieWriter) cookie(status int) {
	if w.done || status < 200 {
		return
	}
	w.done = true
	w.position.mu.Lock()
	defer w.position.mu.Unlock()
	if w.position.lsn != "" {
		http.SetCookie(w, &http.Cookie{
			Name:     cookieName,
			Value:    w.position.lsn,
			Path:     "/",
			MaxAge:   60, // seconds: by then a standby that is well has it
			HttpOnly: true,
			SameSite: http.SameSiteLaxMode,
		})
	}
}

// Unwrap is for http.ResponseController.
func (w *cookieWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
