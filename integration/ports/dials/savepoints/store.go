// Package store is the store with its methods as they were: what a method begins is a savepoint of the request's
// transaction now.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/integration/ports/dials"
)

// DB is the database of the services.
type DB struct {
	reg          *sqlreq.Registry
	begun        atomic.Int64 // names of savepoints
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

// Tx is a part of the request's transaction, in a savepoint. It is for one goroutine.
type Tx struct {
	sqlreq.Key
	db        *DB
	ctx       context.Context // of the request, without the end of a method's own: a savepoint must end
	savepoint string
	hooks     []func(context.Context)
	over      bool
}

// BeginTx begins a part of the request's transaction.
func (db *DB) BeginTx(ctx context.Context, _ *sql.TxOptions) (*Tx, error) {
	savepoint := fmt.Sprintf("part_%d", db.begun.Add(1))
	if _, err := sqlreq.DefaultKey.ExecContext(ctx, "SAVEPOINT "+savepoint); err != nil {
		return nil, err
	}
	return &Tx{Key: sqlreq.DefaultKey, db: db, ctx: context.WithoutCancel(ctx), savepoint: savepoint}, nil
}

// AfterCommit runs fn after the COMMIT of the request, if the part is not rolled back.
func (tx *Tx) AfterCommit(fn func(context.Context)) { tx.hooks = append(tx.hooks, fn) }

// Commit leaves what the part did to the request.
func (tx *Tx) Commit() error {
	if tx.over {
		return sql.ErrTxDone
	}
	if _, err := tx.ExecContext(tx.ctx, "RELEASE SAVEPOINT "+tx.savepoint); err != nil {
		return err // a Rollback follows
	}
	tx.over = true
	for _, fn := range tx.hooks {
		if err := sqlreq.AfterCommit(tx.ctx, fn); err != nil {
			return err
		}
	}
	return nil
}

// Rollback undoes what the part did, if it is not over. What it cannot undo must not be committed.
func (tx *Tx) Rollback() error {
	if tx.over {
		return sql.ErrTxDone
	}
	tx.over = true
	_, err := tx.ExecContext(tx.ctx, "ROLLBACK TO SAVEPOINT "+tx.savepoint)
	if err == nil {
		_, err = tx.ExecContext(tx.ctx, "RELEASE SAVEPOINT "+tx.savepoint)
	}
	if err != nil {
		return errors.Join(err, sqlreq.Fail(tx.ctx, err))
	}
	return nil
}

// Stats counts what is there, for the metrics: a ticker calls it.
func (db *DB) Stats(ctx context.Context) (users, dials int, err error) {
	err = db.reg.Do(ctx, func(ctx context.Context) error {
		users, dials, err = db.stats(ctx)
		return err
	})
	return users, dials, err
}

func (db *DB) stats(ctx context.Context) (users, dials int, err error) {
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
