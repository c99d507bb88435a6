// Package store is the store as wtf has it: a transaction in each method.
package store

import (
	"context"
	"database/sql"
	"net/http"

	"github.com/sqlreq/sqlreq/integration/ports/dials"
)

// DB is the database of the services.
type DB struct {
	db           *sql.DB
	EventService dials.EventService
}

// New returns the program.
func New(db *sql.DB, events dials.EventService) (http.Handler, *DB, error) {
	store := &DB{db: db, EventService: events}
	server := &dials.Server{UserService: &UserService{store}, DialService: &DialService{store}, MembershipService: &MembershipService{store}}
	server.HandleForm = (&Form{server}).ServeHTTP
	return server.Handler(), store, nil
}

// Tx is a transaction, and where it is from.
type Tx struct {
	*sql.Tx
	db *DB
}

// BeginTx begins a transaction.
func (db *DB) BeginTx(ctx context.Context, opts *sql.TxOptions) (*Tx, error) {
	tx, err := db.db.BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	return &Tx{Tx: tx, db: db}, nil
}

// Stats counts what is there, for the metrics: a ticker calls it.
func (db *DB) Stats(ctx context.Context) (users, dials int, err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return 0, 0, err
	}
	defer tx.Rollback()

	if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM users`).Scan(&users); err != nil {
		return 0, 0, err
	}
	err = tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM dials`).Scan(&dials)
	return users, dials, err
}
