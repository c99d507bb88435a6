package main

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/sqlreq/sqlreq"
	_ "modernc.org/sqlite"
)

var (
	//go:embed internal/notesdb/schema.sql
	notesSchema string
	//go:embed internal/auditdb/schema.sql
	auditSchema string
	//go:embed internal/notesdb/schema_postgres.sql
	notesSchemaPostgres string
	//go:embed internal/auditdb/schema_postgres.sql
	auditSchemaPostgres string
)

// The audit log has a file of its own. SQLite lets one transaction write to a file at a time, so a record that is
// written while the request's own transaction is open could only wait for it, in the same file.
type databases struct {
	notes, audit *sql.DB
	numbered     bool // placeholders are $1, $2, … there, and the queries were generated for SQLite
}

func openDatabases(path string) (dbs databases, err error) {
	if isPostgres(path) {
		return openPostgres(path)
	}
	audit := path
	if path != inMemory {
		ext := filepath.Ext(path)
		audit = strings.TrimSuffix(path, ext) + "-audit" + ext
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dbs.close())
		}
	}()
	if dbs.notes, err = openDatabase(path, notesSchema); err != nil {
		return dbs, err
	}
	dbs.audit, err = openDatabase(audit, auditSchema)
	return dbs, err
}

func (dbs databases) close() error {
	var errs []error
	for _, db := range []*sql.DB{dbs.notes, dbs.audit} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

func isPostgres(path string) bool {
	return strings.HasPrefix(path, "postgres://") || strings.HasPrefix(path, "postgresql://")
}

// openPostgres opens one database by two pools: a request that records something holds a connection of each, and
// with one pool a crowd of requests could hold all of its connections and wait for another each.
//
// Ids are not given in the order of the COMMITs there: a browser that asks for "what came after 17" misses a 16 that
// was committed later.
func openPostgres(dsn string) (dbs databases, err error) {
	dbs.numbered = true
	defer func() {
		if err != nil {
			err = errors.Join(err, dbs.close())
		}
	}()
	for _, db := range []struct {
		pool   **sql.DB
		schema string
	}{{&dbs.notes, notesSchemaPostgres}, {&dbs.audit, auditSchemaPostgres}} {
		if *db.pool, err = sql.Open("pgx", dsn); err != nil {
			return dbs, err
		}
		(*db.pool).SetMaxOpenConns(8)
		(*db.pool).SetMaxIdleConns(8)
		if _, err = (*db.pool).Exec(db.schema); err != nil {
			return dbs, err
		}
	}
	return dbs, nil
}

// txOptions makes requests that only read read-only. The others are isolated: PostgreSQL has to be asked to notice
// that what a transaction has read was changed meanwhile, and SQLite, which always does, doesn't mind.
func (databases) txOptions(ctx context.Context, r *http.Request) *sql.TxOptions {
	if opts := sqlreq.ReadOnlySafeMethods(ctx, r); opts != nil {
		return opts
	}
	return &sql.TxOptions{Isolation: sql.LevelRepeatableRead}
}

const inMemory = ":memory:"

// openDatabase opens a file, or a database in memory, with its tables in place.
//
// There is no _txlock=immediate here, which is what most services on SQLite want: it makes transactions that may
// write queue up at BEGIN. Deferred ones run side by side, and one that has read what another has changed meanwhile
// fails with SQLITE_BUSY_SNAPSHOT when it comes to write. That is what other databases do when they are asked for
// serializable transactions, and with [sqlreq.Retry] nobody notices: /counter is there to be hammered.
func openDatabase(path, schema string) (*sql.DB, error) {
	pragmas := url.Values{"_pragma": {"busy_timeout(5000)", "journal_mode(WAL)", "foreign_keys(1)"}}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?"+pragmas.Encode())
	if err != nil {
		return nil, err
	}
	// One transaction writes at a time; more connections only make for more conflicts.
	db.SetMaxOpenConns(8)
	if path == inMemory {
		// Each connection to :memory: is a database of its own, so there must be exactly one, for ever. The other
		// way, cache=shared, locks whole tables without waiting: a reader would be an error for every writer.
		// The price: all requests take turns, and one download that is not read holds up everybody.
		db.SetMaxOpenConns(1)
		db.SetMaxIdleConns(1)
	}
	if _, err := db.Exec(schema); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), db.Close())
	}
	return db, nil
}
