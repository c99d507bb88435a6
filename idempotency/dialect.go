package idempotency

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sqlreq/sqlreq/internal/repeat"
)

// Dialect is how a database wants its statements. The zero Dialect is the one that the
// driver of the database tells: see Once.Dialect.
type Dialect int

const (
	SQLite     Dialect = iota + 1
	PostgreSQL         // and CockroachDB, YugabyteDB
	MySQL              // and MariaDB
)

func (d Dialect) valid() bool { return d >= SQLite && d <= MySQL }

// on returns d if it was chosen, otherwise the dialect of a database's engine.
func (d Dialect) on(e repeat.Engine) (Dialect, error) {
	if d != 0 {
		return d, nil
	}
	switch e.Speaks() {
	case repeat.SQLite:
		return SQLite, nil
	case repeat.PostgreSQL:
		return PostgreSQL, nil
	case repeat.MySQL:
		return MySQL, nil
	}
	if name := e.Name(); name != "" {
		return 0, fmt.Errorf("there is no dialect for %s; keep the work, and with it the record, in SQLite, PostgreSQL or MySQL, and name that in Once.Database, or set Once.Dialect if this takes the SQL of one of these", name)
	}
	return 0, errors.New("the driver does not tell which dialect the database speaks; set Once.Dialect to SQLite, PostgreSQL or MySQL")
}

const defaultTable = "idempotency_keys"

// checkTable panics if table cannot be written into a statement as it is.
func checkTable(what, table string) {
	schema, name, dot := strings.Cut(table, ".")
	if !isName(schema) || dot && !isName(name) {
		panic(fmt.Sprintf("idempotency: %s %q has other characters than letters, digits, _ and one dot for a schema", what, table))
	}
}

func isName(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlpha(c) && c != '_' && (i == 0 || !isDigit(c)) {
			return false
		}
	}
	return s != ""
}

// statements are those of a table.
type statements struct {
	insert string // scope, idempotency_key, kind, created_at; no row if the key is there
	read   string // by scope, idempotency_key, kind: the row as it is committed, or of this transaction
	update string // status, fingerprint, header, body; by scope, idempotency_key, kind
	clean  string // created_at; up to cleanAtOnce rows
}

// cleanAtOnce is how many rows are removed by one statement: no lock is held for long.
const cleanAtOnce = 1000

func (d Dialect) statements(table string) statements {
	const columns = " (scope, idempotency_key, kind, created_at) VALUES (?, ?, ?, ?)"
	const is = " WHERE scope = ? AND idempotency_key = ? AND kind = ?"
	s := statements{
		insert: "INSERT INTO " + table + columns + " ON CONFLICT DO NOTHING",
		read:   "SELECT status, fingerprint, header, body FROM " + table + is,
		update: "UPDATE " + table + " SET status = ?, fingerprint = ?, header = ?, body = ?" + is,
		clean: "DELETE FROM " + table + " WHERE (scope, idempotency_key, kind) IN (SELECT scope, idempotency_key, kind FROM " + table +
			" WHERE created_at < ? LIMIT " + strconv.Itoa(cleanAtOnce) + ")",
	}
	switch d {
	case MySQL:
		// With ON DUPLICATE KEY UPDATE and clientFoundRows=true a duplicate would count as a row.
		s.insert = "INSERT IGNORE INTO " + table + columns
		// Under REPEATABLE READ a plain SELECT reads a snapshot, without the row perhaps.
		// INSERT IGNORE has left a shared lock: FOR UPDATE would be a deadlock of two repeats.
		s.read += " LOCK IN SHARE MODE"
		s.clean = "DELETE FROM " + table + " WHERE created_at < ? LIMIT " + strconv.Itoa(cleanAtOnce)
	case PostgreSQL:
		for _, q := range []*string{&s.insert, &s.read, &s.update, &s.clean} {
			*q = numbered(*q)
		}
	}
	return s
}

// numbered makes the placeholders PostgreSQL's.
func numbered(query string) string {
	var b strings.Builder
	for i := 1; ; i++ {
		before, after, ok := strings.Cut(query, "?")
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		b.WriteString("$" + strconv.Itoa(i))
		query = after
	}
}

// text returns s as an argument. MySQL compares the columns byte by byte only with bytes.
func (d Dialect) text(s string) any {
	if d == MySQL {
		return []byte(s)
	}
	return s
}

// Schema returns the statements that create a table of that name, "" for
// idempotency_keys, and its index, where they do not exist: for a migration tool. It
// panics if the Dialect or the name is not valid.
//
// Columns are scope and idempotency_key (text), kind (0: a request, 1: a message of
// Do), created_at (Unix seconds by the clock of the process), status (0: no answer yet;
// negative: answered, but not kept), fingerprint, header and body (bytes, may be NULL).
func (d Dialect) Schema(table string) []string {
	if !d.valid() {
		panic("idempotency: Schema of a Dialect that is not SQLite, PostgreSQL or MySQL; only a database can tell what the zero Dialect is: see CreateTable")
	}
	if table == "" {
		table = defaultTable
	}
	checkTable("Schema: the table", table)
	schema, name, ok := strings.Cut(table, ".")
	if !ok {
		schema, name = "", table
	}
	index := name + "_created_at"
	switch d {
	case PostgreSQL:
		return []string{createTable(table, `text COLLATE "C"`, "smallint", "bigint", "integer", "bytea", "bytea", "bytea", "") + ")",
			"CREATE INDEX IF NOT EXISTS " + index + " ON " + table + " (created_at)"}
	case MySQL:
		return []string{createTable(table, "VARBINARY(255)", "SMALLINT", "BIGINT", "INT", "VARBINARY(64)", "MEDIUMBLOB", "LONGBLOB", ", KEY "+index+" (created_at)") + ") ENGINE=InnoDB"}
	}
	if schema != "" {
		index = schema + "." + index // SQLite has the schema at the index
	}
	return []string{createTable(table, "TEXT", "INTEGER", "INTEGER", "INTEGER", "BLOB", "BLOB", "BLOB", "") + ")",
		"CREATE INDEX IF NOT EXISTS " + index + " ON " + name + " (created_at)"}
}

func createTable(table, text, small, big, integer, fingerprint, header, body, more string) string {
	return fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s (scope %[2]s NOT NULL, idempotency_key %[2]s NOT NULL, kind %s NOT NULL DEFAULT 0, created_at %s NOT NULL, "+
		"status %s NOT NULL DEFAULT 0, fingerprint %s, header %s, body %s, PRIMARY KEY (scope, idempotency_key, kind)%s",
		table, text, small, big, integer, fingerprint, header, body, more)
}

// dialectOf returns the dialect of a pool, and what was to be done in the error.
func (o *Once) dialectOf(db *sql.DB, what string) (Dialect, error) {
	d, err := o.Dialect.on(repeat.EngineOf(db))
	if err != nil {
		return 0, fmt.Errorf("idempotency: %s the table %s: %w", what, o.table(), err)
	}
	return d, nil
}

// CreateTable creates the table and its index where they do not exist. It returns an
// error where Once.Dialect is zero and the driver tells of none.
func (o *Once) CreateTable(ctx context.Context, db *sql.DB) error {
	o.prepare()
	d, err := o.dialectOf(db, "create")
	if err != nil {
		return err
	}
	for _, query := range d.Schema(o.table()) {
		if _, err := db.ExecContext(ctx, query); err != nil {
			return fmt.Errorf("idempotency: create the table %s: %w", o.table(), err)
		}
	}
	return nil
}

// Clean removes the records that are older than age, a thousand at a time, and returns
// how many they were, also with an error. Nothing else removes a record: until then a
// key is honoured, however old. After it the same key is a new one, so age must be
// longer than any client repeats. It takes connections of db, outside of any request.
func (o *Once) Clean(ctx context.Context, db *sql.DB, age time.Duration) (int64, error) {
	o.prepare()
	if age < 0 {
		return 0, errors.New("idempotency: Clean of a negative age; it is how old a record may become")
	}
	d, err := o.dialectOf(db, "clean")
	if err != nil {
		return 0, err
	}
	before := time.Now().Add(-age).Unix()
	for total := int64(0); ; {
		result, err := db.ExecContext(ctx, o.sql[d].clean, before)
		if err != nil {
			return total, fmt.Errorf("idempotency: clean the table %s: %w", o.table(), err)
		}
		n, err := result.RowsAffected()
		if err != nil {
			return total, fmt.Errorf("idempotency: clean the table %s: %w", o.table(), err)
		}
		if total += n; n < cleanAtOnce {
			return total, nil
		}
	}
}
