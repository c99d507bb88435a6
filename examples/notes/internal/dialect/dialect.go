// Package dialect lets queries that sqlc has generated for SQLite run on PostgreSQL as well.
package dialect

import (
	"context"
	"database/sql"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/sqlreq/sqlreq"
)

// DBTX is a key whose queries have SQLite's placeholders, whatever database it is bound to.
type DBTX struct{ sqlreq.Key }

func (d DBTX) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return d.Key.ExecContext(ctx, d.translate(ctx, query), args...)
}

func (d DBTX) PrepareContext(ctx context.Context, query string) (*sql.Stmt, error) {
	return d.Key.PrepareContext(ctx, d.translate(ctx, query))
}

func (d DBTX) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return d.Key.QueryContext(ctx, d.translate(ctx, query), args...)
}

func (d DBTX) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	return d.Key.QueryRowContext(ctx, d.translate(ctx, query), args...)
}

// translate numbers the placeholders for PostgreSQL. The queries have no question marks but these.
func (d DBTX) translate(ctx context.Context, query string) string {
	db, err := d.Key.DB(ctx)
	if err != nil {
		return query // the key's method returns the error
	}
	if _, ok := db.Driver().(*stdlib.Driver); !ok {
		return query
	}
	return number(query)
}

func number(query string) string {
	var b strings.Builder
	n := 0
	for part := range strings.SplitSeq(query, "?") {
		if n > 0 {
			b.WriteString("$" + strconv.Itoa(n))
		}
		b.WriteString(part)
		n++
	}
	return b.String()
}
