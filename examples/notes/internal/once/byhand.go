package once

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
)

// keysByHand keeps the answers in a table: a key that is there gets its answer again, one that is new is worked on,
// and then its answer is noted.
func keysByHand(db *sql.DB, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, key := r.Context(), r.Header.Get("Idempotency-Key")
		var status int
		var body []byte
		err := db.QueryRowContext(ctx, `SELECT status, body FROM answers WHERE key = ?`, key).Scan(&status, &body)
		switch {
		case err == nil:
			w.Header().Set("Idempotent-Replayed", "true")
		case errors.Is(err, sql.ErrNoRows):
			a := &answer{status: http.StatusOK, header: w.Header()}
			next.ServeHTTP(a, r)
			status, body = a.status, a.body.Bytes()
			_, err = db.ExecContext(ctx, `INSERT INTO answers VALUES (?, ?, ?)`, key, status, body)
		}
		if err != nil {
			http.Error(w, "no database", http.StatusInternalServerError)
			return
		}
		w.WriteHeader(status)
		w.Write(body)
	})
}

// answer holds an answer back until it was noted.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

// orderByHand commits before it answers, and answers only what is committed. Nothing is wrong with it.
func orderByHand(db *sql.DB) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		tx, err := db.BeginTx(r.Context(), nil)
		if err != nil {
			http.Error(w, "no database", http.StatusServiceUnavailable)
			return
		}
		defer tx.Rollback()
		_, err = tx.ExecContext(r.Context(), `INSERT INTO orders (item) VALUES (?)`, r.FormValue("item"))
		if err == nil {
			err = tx.Commit()
		}
		if err != nil {
			http.Error(w, "not ordered", http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintln(w, "Ordered:", r.FormValue("item"))
	}
}

// keysBySQLReq keeps the answer in the transaction of the order.
func keysBySQLReq(reg *sqlreq.Registry, once *idempotency.Once, next http.Handler) http.Handler {
	return reg.Middleware(once.Handler(next))
}

// orderBySQLReq has no BEGIN and no COMMIT.
func orderBySQLReq(w http.ResponseWriter, r *http.Request) error {
	_, err := sqlreq.DefaultKey.ExecContext(r.Context(), `INSERT INTO orders (item) VALUES (?)`, r.FormValue("item"))
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintln(w, "Ordered:", r.FormValue("item"))
	return nil
}

const schema = `CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, status INTEGER NOT NULL, body BLOB NOT NULL);`

// handler is what a server process of one of the two ways serves.
func handler(ctx context.Context, way string, db *sql.DB) (http.Handler, error) {
	if way == hand {
		return keysByHand(db, orderByHand(db)), nil
	}
	once := &idempotency.Once{
		Dialect: idempotency.SQLite,
		Scope:   func(*http.Request) (string, error) { return "the demo's only client", nil },
	}
	if err := once.CreateTable(ctx, db); err != nil {
		return nil, err
	}
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		return nil, err
	}
	return keysBySQLReq(reg, once, sqlreq.HandlerFunc(orderBySQLReq)), nil
}
