// Package store is the store with Registry.Atomic in place of a transaction in each method.
package store

import (
	"context"
	"database/sql"
	"net/http"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/integration/ports/dials"
)

// DB is the database of the services.
type DB struct {
	reg          *sqlreq.Registry
	EventService dials.EventService
}

// New returns the program.
func New(db *sql.DB, events dials.EventService) (http.Handler, *DB, error) {
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		return nil, nil, err
	}
	store := &DB{reg: reg, EventService: events}
	server := &dials.Server{UserService: &UserService{store}, DialService: &DialService{store}, MembershipService: &MembershipService{store}}
	server.HandleForm = (&Form{server}).ServeHTTP
	return reg.Middleware(server.Handler()), store, nil
}

// Tx is the transaction that a method is in.
type Tx struct {
	sqlreq.Key
	db *DB
}

func (db *DB) tx() *Tx { return &Tx{sqlreq.DefaultKey, db} }

// atomic runs a method that writes: all of it stays or nothing.
func (db *DB) atomic(ctx context.Context, method func(ctx context.Context, tx *Tx) error) error {
	return db.reg.Atomic(ctx, func(ctx context.Context) error { return method(ctx, db.tx()) })
}

// Stats counts what is there, for the metrics: a ticker calls it.
func (db *DB) Stats(ctx context.Context) (users, dials int, err error) {
	err = db.atomic(ctx, func(ctx context.Context, tx *Tx) error {
		if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM users`).Scan(&users); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM dials`).Scan(&dials)
	})
	return users, dials, err
}
