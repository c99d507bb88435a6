package main

import (
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	_ "modernc.org/sqlite"
)

var (
	//go:embed internal/notesdb/schema.sql
	notesSchema string
	//go:embed internal/auditdb/schema.sql
	auditSchema string
)

// The audit log has a file of its own. SQLite lets one transaction write to a file at a time, so a record that is
// written while the request's own transaction is open could only wait for it, in the same file.
type databases struct{ notes, audit, demo *sql.DB }

func openDatabases(path string) (dbs databases, err error) {
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
	if dbs.audit, err = openDatabase(audit, auditSchema); err != nil {
		return dbs, err
	}
	dbs.demo, err = openDatabase(inMemory, demoSchema)
	return dbs, err
}

func (dbs databases) close() error {
	var errs []error
	for _, db := range []*sql.DB{dbs.notes, dbs.audit, dbs.demo} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
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
