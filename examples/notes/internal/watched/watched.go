// Package watched opens a SQLite file by connections that count the transactions on them. The demo tells from it what
// was done to a database, whoever did it.
package watched

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"net/url"
	"path/filepath"
	"sync/atomic"

	"modernc.org/sqlite"
)

// DB is a pool of connections to one file.
type DB struct {
	*sql.DB
	Begun       atomic.Int64 // transactions, since the file was opened
	afterCommit func()
}

// Open opens a file with its tables in place. The pool has at most conns connections. afterCommit is called when a
// COMMIT has succeeded, before anybody is told; nil: nothing is.
func Open(path, schema string, conns int, afterCommit func()) (*DB, error) {
	path = filepath.ToSlash(path)
	if path[0] != '/' {
		path = "/" + path // C:/…
	}
	pragmas := url.Values{"_pragma": {"busy_timeout(5000)", "journal_mode(WAL)", "foreign_keys(1)"}}
	d := &DB{afterCommit: afterCommit}
	d.DB = sql.OpenDB(connector{d, "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + pragmas.Encode()})
	d.SetMaxOpenConns(conns)
	d.SetMaxIdleConns(conns)
	if _, err := d.Exec(schema); err != nil {
		d.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return d, nil
}

type connector struct {
	db  *DB
	dsn string
}

func (c connector) Driver() driver.Driver { return &sqlite.Driver{} }

func (c connector) Connect(context.Context) (driver.Conn, error) {
	raw, err := c.Driver().Open(c.dsn)
	if err != nil {
		return nil, err
	}
	return conn{raw.(sqliteConn), c.db}, nil
}

// sqliteConn is what database/sql asks of the driver's connections.
type sqliteConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

type conn struct {
	sqliteConn
	db *DB
}

func (c conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	t, err := c.sqliteConn.BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	c.db.Begun.Add(1)
	return tx{t, c.db}, nil
}

type tx struct {
	driver.Tx
	db *DB
}

func (t tx) Commit() error {
	if err := t.Tx.Commit(); err != nil {
		return err
	}
	if t.db.afterCommit != nil {
		t.db.afterCommit()
	}
	return nil
}
