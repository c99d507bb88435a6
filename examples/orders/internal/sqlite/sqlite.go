// Package sqlite keeps the shop in a SQLite file, so that it runs without a server. What PostgreSQL does for package
// postgres is done by hand here: each query names the tenant, and jobs have a table and a small worker of their own.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
	"github.com/sqlreq/sqlreq/examples/orders/internal/tenant"
	"github.com/sqlreq/sqlreq/idempotency"
	_ "modernc.org/sqlite" // the driver
)

// InMemory is the path of a database that is gone when the process ends.
const InMemory = ":memory:"

// Store is a shop.Store.
type Store struct {
	queries
	db *sql.DB
}

var _ shop.Store = (*Store)(nil)

// Open opens a file, and brings its tables up to date. Of what is not in stock yet it puts stock there.
func Open(ctx context.Context, path string, stock int64) (*Store, error) {
	// _txlock=immediate makes transactions that may write queue up at BEGIN; those that only read run beside them.
	settings := url.Values{
		"_txlock": {"immediate"},
		"_pragma": {"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)"},
	}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?"+settings.Encode())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(8)
	if path == InMemory {
		// Each connection to :memory: is a database of its own, so there must be exactly one, for ever.
		db.SetMaxOpenConns(1)
		db.SetMaxIdleConns(1)
	}
	s := &Store{db: db}
	s.wake = make(chan struct{}, 1)
	if err := migrate(ctx, db, stock); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), db.Close())
	}
	return s, nil
}

// Close closes the file.
func (s *Store) Close() error { return s.db.Close() }

// Ping says whether the file can be used.
func (s *Store) Ping(ctx context.Context) error { return s.db.PingContext(ctx) }

// Dialect is SQLite's.
func (s *Store) Dialect() idempotency.Dialect { return idempotency.SQLite }

// Retryable is true for a file that another process has locked.
func (s *Store) Retryable(err error) bool { return sqlreq.IsRetryable(err) }

// Clean runs outside of any request.
func (s *Store) Clean(ctx context.Context, once *idempotency.Once, age time.Duration) error {
	_, err := once.Clean(ctx, s.db, age)
	return err
}

// Binding is the database as the registry needs it. SQLite's transactions are serializable without being asked.
func (s *Store) Binding() sqlreq.Binding {
	return sqlreq.Binding{DB: s.db, TxOptions: sqlreq.ReadOnlySafeMethods}
}

//go:embed migrations/*.sql
var migrations embed.FS

// migrate brings the tables up to date in one transaction, for which other processes wait.
func migrate(ctx context.Context, db *sql.DB, stock int64) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var done int
	if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&done); err != nil {
		return err
	}
	names, err := fs.Glob(migrations, "migrations/*.sql") // in the order of their names
	if err != nil {
		return err
	}
	for _, name := range names[min(done, len(names)):] {
		text, err := migrations.ReadFile(name)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, string(text)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	queries := append(idempotency.SQLite.Schema(""), fmt.Sprintf("PRAGMA user_version = %d", max(done, len(names))))
	for _, query := range queries {
		if _, err := tx.ExecContext(ctx, query); err != nil {
			return err
		}
	}
	for _, name := range tenant.All {
		for _, p := range shop.Assortment(stock) {
			if _, err := tx.ExecContext(ctx, "INSERT INTO products (tenant, id, name, price, stock, initial) VALUES (?, ?, ?, ?, ?, ?) "+
				"ON CONFLICT DO NOTHING", name, p.ID, p.Name, p.Price, p.Stock, p.Initial); err != nil {
				return err
			}
		}
	}
	return tx.Commit()
}
