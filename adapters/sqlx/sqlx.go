// Package sqlreqsqlx runs sqlx in the transaction of a request.
package sqlreqsqlx

import (
	"context"
	"database/sql"
	"fmt"
	"reflect"

	"github.com/jmoiron/sqlx"
	"github.com/jmoiron/sqlx/reflectx"

	"github.com/sqlreq/sqlreq"
)

// DB is a *sqlx.DB whose statements run in the transaction of the request, or Do, that
// their context belongs to; the first of them begins it. It is an sqlx.ExtContext, with
// the driver's name, the mapper and the placeholders of the *sqlx.DB that it was made of.
//
// Call its methods GetContext, SelectContext, NamedExecContext, not sqlx's functions of
// these names, which take the default mapper for a type that they do not know. That the
// *sqlx.DB is one of Unsafe is not taken over. It holds no state of a request: it may be
// used from several goroutines, as far as the driver lets statements of one transaction
// overlap. Errors are those of the driver, and those of sqlreq.Tx.
type DB struct {
	db  *sqlx.DB
	key sqlreq.Key
}

var (
	_ sqlx.ExtContext      = (*DB)(nil)
	_ sqlx.PreparerContext = (*DB)(nil)
)

// New returns a DB for the database of key. db is the program's, opened on the same pool.
// It panics if db is nil.
func New(db *sqlx.DB, key sqlreq.Key) *DB {
	if db == nil {
		panic("sqlreqsqlx: New(nil); give it the program's *sqlx.DB")
	}
	return &DB{db, key}
}

// DriverName is that of the *sqlx.DB.
func (d *DB) DriverName() string { return d.db.DriverName() }

// Rebind replaces question marks by the driver's placeholders.
func (d *DB) Rebind(query string) string { return d.db.Rebind(query) }

// BindNamed replaces names by the driver's placeholders.
func (d *DB) BindNamed(query string, arg any) (string, []any, error) {
	return d.db.BindNamed(query, arg)
}

// ExecContext runs a statement.
func (d *DB) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return d.key.ExecContext(ctx, query, args...)
}

// QueryContext runs a query.
func (d *DB) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return d.key.QueryContext(ctx, query, args...)
}

// QueryxContext runs a query whose rows can be scanned into a struct.
func (d *DB) QueryxContext(ctx context.Context, query string, args ...any) (*sqlx.Rows, error) {
	rows, err := d.key.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return &sqlx.Rows{Rows: rows, Mapper: d.db.Mapper}, nil
}

// QueryRowxContext runs a query for one row. A *sqlx.Row can only be had from a *sqlx.Tx,
// so sqlreq does not see the query's error, a conflict for instance, unless the handler
// returns it: use GetContext.
func (d *DB) QueryRowxContext(ctx context.Context, query string, args ...any) *sqlx.Row {
	tx, err := d.key.Tx(ctx)
	if err != nil {
		// sql.Tx asks a context that has ended for its error, before all else.
		ctx, tx = ended{context.Background(), err}, new(sql.Tx)
	}
	return (&sqlx.Tx{Tx: tx, Mapper: d.db.Mapper}).QueryRowxContext(ctx, query, args...)
}

// ended is a context that has ended with err.
type ended struct {
	context.Context
	err error
}

var closed = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func (e ended) Done() <-chan struct{} { return closed }
func (e ended) Err() error            { return e.err }

// SelectContext runs a query and scans all its rows into dest, a pointer to a slice.
func (d *DB) SelectContext(ctx context.Context, dest any, query string, args ...any) error {
	return sqlx.SelectContext(ctx, d, dest, query, args...)
}

// GetContext runs a query and scans its first row into dest, a pointer to a struct or to
// something with one column. Without a row it returns sql.ErrNoRows.
func (d *DB) GetContext(ctx context.Context, dest any, query string, args ...any) error {
	rows, err := d.QueryxContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	if !rows.Next() {
		if err := rows.Err(); err != nil {
			return err
		}
		return sql.ErrNoRows
	}
	if err := d.scan(rows, dest); err != nil {
		return err
	}
	return rows.Close()
}

func (d *DB) scan(rows *sqlx.Rows, dest any) error {
	v := reflect.ValueOf(dest)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return fmt.Errorf("sqlreqsqlx: GetContext into a %T; give it a pointer that is not nil", dest)
	}
	base := reflectx.Deref(v.Type())
	if !d.isOneColumn(base) {
		return rows.StructScan(dest)
	}
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	if len(columns) > 1 {
		return fmt.Errorf("sqlreqsqlx: GetContext of %d columns into a %T; give it a struct, or select one", len(columns), dest)
	}
	return rows.Scan(dest)
}

// isOneColumn reports whether sqlx scans one column into a t, not the fields of a struct.
func (d *DB) isOneColumn(t reflect.Type) bool {
	return t.Kind() != reflect.Struct || reflect.PointerTo(t).Implements(reflect.TypeFor[sql.Scanner]()) ||
		len(d.db.Mapper.TypeMap(t).Index) == 0 // a time.Time
}

// NamedExecContext runs a statement with names, whose values are those of a struct's
// fields, a map, or a slice of these.
func (d *DB) NamedExecContext(ctx context.Context, query string, arg any) (sql.Result, error) {
	query, args, err := d.BindNamed(query, arg)
	if err != nil {
		return nil, err
	}
	return d.ExecContext(ctx, query, args...)
}

// NamedQueryContext runs a query with names.
func (d *DB) NamedQueryContext(ctx context.Context, query string, arg any) (*sqlx.Rows, error) {
	query, args, err := d.BindNamed(query, arg)
	if err != nil {
		return nil, err
	}
	return d.QueryxContext(ctx, query, args...)
}

// PrepareContext prepares a statement, which is closed with the transaction.
func (d *DB) PrepareContext(ctx context.Context, query string) (*sql.Stmt, error) {
	return d.key.PrepareContext(ctx, query)
}

// PreparexContext prepares a statement, which is closed with the transaction. sqlreq does
// not see the errors of its methods.
func (d *DB) PreparexContext(ctx context.Context, query string) (*sqlx.Stmt, error) {
	stmt, err := d.key.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return &sqlx.Stmt{Stmt: stmt, Mapper: d.db.Mapper}, nil
}
