package sqlreqsqlx_test

import (
	"context"

	"github.com/jmoiron/sqlx"

	"github.com/sqlreq/sqlreq"
	sqlreqsqlx "github.com/sqlreq/sqlreq/adapters/sqlx"
)

type note struct{ Text string }

// The line of sqlreq's README.md: New once, the methods in each request.
func ExampleNew() {
	_ = func(ctx context.Context, sqlxDB *sqlx.DB, query string) (all []note, err error) {
		notes := sqlreqsqlx.New(sqlxDB, sqlreq.DefaultKey)
		return all, notes.SelectContext(ctx, &all, query)
	}
}
