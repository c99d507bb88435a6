// Package postgres keeps the shop in PostgreSQL: by pgx, code that sqlc has generated, and jobs of River. Who may see
// which rows is the database's business: see tenants.go.
package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/sqlreq/sqlreq"
	sqlreqpgx "github.com/sqlreq/sqlreq/adapters/pgx"
	"github.com/sqlreq/sqlreq/examples/orders/internal/postgres/ordersdb"
	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
	"github.com/sqlreq/sqlreq/idempotency"
)

// Store is a shop.Store.
type Store struct {
	// queries run in the transaction of the context that they are given. They are made once, for all requests.
	*queries
	pool      *pgxpool.Pool // the primary's
	primary   *sql.DB
	readers   *pgxpool.Pool // the standby's; nil without one
	reader    *sql.DB       // primary, without a standby
	inserting *river.Client[pgx.Tx]
}

var _ shop.Store = (*Store)(nil)

// Open connects to a primary and, if readerDSN is not "", to a standby, and brings the tables up to date. Of what is not
// in stock yet it puts stock there.
func Open(ctx context.Context, dsn, readerDSN string, stock int64) (s *Store, err error) {
	s = &Store{queries: &queries{ordersdb.New(sqlreqpgx.DefaultKey)}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.pool, err = pgxpool.New(ctx, dsn); err != nil {
		return s, err
	}
	// The *sql.DB has no connections of its own: those are the pool's, and pool_max_conns of the DSN is their limit.
	s.primary = sqlreqpgx.OpenDB(s.pool)
	s.reader = s.primary
	if err := migrate(ctx, s.pool, stock); err != nil {
		return s, fmt.Errorf("migrate: %w", err)
	}
	if readerDSN != "" {
		if s.readers, err = pgxpool.New(ctx, readerDSN); err != nil {
			return s, fmt.Errorf("reader: %w", err)
		}
		s.reader = sqlreqpgx.OpenDB(s.readers)
	}
	s.inserting, err = newInserting(s.pool)
	return s, err
}

// Close closes the pools, and waits for the connections that are in use.
func (s *Store) Close() error {
	if s.readers != nil {
		s.readers.Close()
	}
	if s.pool != nil {
		s.pool.Close()
	}
	return nil
}

// Ping says whether the primary answers.
func (s *Store) Ping(ctx context.Context) error { return s.pool.Ping(ctx) }

// Dialect is PostgreSQL's.
func (s *Store) Dialect() idempotency.Dialect { return idempotency.PostgreSQL }

// Clean takes a connection of the pool's, outside of any request.
func (s *Store) Clean(ctx context.Context, once *idempotency.Once, age time.Duration) error {
	_, err := once.Clean(ctx, s.primary, age)
	return err
}

// Binding is the database as the registry needs it.
func (s *Store) Binding() sqlreq.Binding {
	return sqlreq.Binding{Route: s.route, TxOptions: txOptions, AfterBegin: setTenant}
}

// route sends to the standby what only reads, unless it has to see what was committed a moment ago. Jobs have no
// request.
func (s *Store) route(ctx context.Context, r *http.Request) (*sql.DB, error) {
	if r == nil || sqlreq.ReadOnlySafeMethods(ctx, r) == nil || shop.IsFresh(ctx) {
		return s.primary, nil
	}
	return s.reader, nil
}

// txOptions: what only reads is read-only, and a page sees one state of the database. The rest is serializable: what a
// handler has checked by reading still holds when it commits. The price are conflicts, which sqlreq.Retry runs again.
// (A standby cannot be asked for SERIALIZABLE.)
func txOptions(ctx context.Context, r *http.Request) *sql.TxOptions {
	if r != nil && sqlreq.ReadOnlySafeMethods(ctx, r) != nil {
		return &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelRepeatableRead}
	}
	return &sql.TxOptions{Isolation: sql.LevelSerializable}
}
