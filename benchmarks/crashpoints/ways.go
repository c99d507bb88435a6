package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
)

// way is how a server keeps a repeated request from making a second order.
type way string

const (
	noKeys way = "no keys"
	second way = "keys in a second transaction"
	inOne  way = "keys by idempotency"
)

var ways = []way{noKeys, second, inOne}

const schema = `CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, body TEXT NOT NULL);`

const keyHeader = "Idempotency-Key"

// newHandler returns what a server of the way serves.
func newHandler(ctx context.Context, by way, db *sql.DB) (http.Handler, error) {
	switch by {
	case noKeys:
		return handler(func(_ http.ResponseWriter, r *http.Request) (string, error) { return order(r, db) }), nil
	case second:
		return handler(func(w http.ResponseWriter, r *http.Request) (string, error) { return orderWithKey(w, r, db) }), nil
	}
	once := &idempotency.Once{Dialect: idempotency.SQLite, Scope: func(*http.Request) (string, error) { return "client", nil }}
	if err := once.CreateTable(ctx, db); err != nil {
		return nil, err
	}
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		return nil, err
	}
	return reg.Middleware(once.Handler(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		body, err := insert(r, sqlreq.DefaultKey)
		if err != nil {
			return err
		}
		w.WriteHeader(http.StatusCreated)
		_, err = fmt.Fprint(w, body)
		return err
	}))), nil
}

func handler(order func(http.ResponseWriter, *http.Request) (string, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := order(w, r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, body)
	})
}

type querier interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
}

func insert(r *http.Request, db querier) (string, error) {
	result, err := db.ExecContext(r.Context(), `INSERT INTO orders (item) VALUES (?)`, r.FormValue("item"))
	if err != nil {
		return "", err
	}
	id, err := result.LastInsertId()
	return fmt.Sprintf("order %d", id), err
}

// order makes the order in a transaction, and answers when it is committed.
func order(r *http.Request, db *sql.DB) (string, error) {
	tx, err := db.BeginTx(r.Context(), nil)
	if err != nil {
		return "", err
	}
	defer tx.Rollback()
	body, err := insert(r, tx)
	if err != nil {
		return "", err
	}
	return body, tx.Commit()
}

// orderWithKey looks for the key, and notes it with the answer when the order is committed.
func orderWithKey(w http.ResponseWriter, r *http.Request, db *sql.DB) (string, error) {
	var body string
	err := db.QueryRowContext(r.Context(), `SELECT body FROM answers WHERE key = ?`, r.Header.Get(keyHeader)).Scan(&body)
	if !errors.Is(err, sql.ErrNoRows) {
		w.Header().Set("Idempotent-Replayed", "true")
		return body, err
	}
	if body, err = order(r, db); err != nil {
		return "", err
	}
	_, err = db.ExecContext(r.Context(), `INSERT INTO answers VALUES (?, ?)`, r.Header.Get(keyHeader), body)
	return body, err
}
