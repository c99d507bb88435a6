// Package audit keeps a log of what was tried, in a database of its own.
package audit

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/notes/internal/auditdb"
	"github.com/sqlreq/sqlreq/examples/notes/internal/dialect"
)

// Key is the name of the audit database.
const Key sqlreq.Key = "audit"

// text leaves out what PostgreSQL refuses in a text.
var text = strings.NewReplacer("\x00", "\ufffd")

// Record writes down what the current request is about to try, and later how it ended. The registry must have Key
// bound, and ctx be a request's with a transaction on [sqlreq.DefaultKey].
//
// The record is committed before Record returns: [sqlreq.Registry.Do] is independent of the request's transaction, so
// that a rollback does not take it back. For the same reason a request that calls Record is never retried.
func Record(ctx context.Context, reg *sqlreq.Registry, action, detail string) error {
	log := auditdb.New(dialect.DBTX{Key: Key})
	var id int64
	if err := reg.Do(ctx, func(ctx context.Context) (err error) {
		id, err = log.Record(ctx, auditdb.RecordParams{
			Action: action,
			Detail: fmt.Sprintf("%.200s", text.Replace(strings.ToValidUTF8(detail, "\ufffd"))), // it is the client's, and nobody has looked at it yet
		})
		return err
	}); err != nil {
		return err
	}

	// Neither hook runs if the connection broke during COMMIT: the outcome stays "unknown", as it is.
	ended := func(outcome string) func(context.Context) {
		return func(ctx context.Context) {
			if err := reg.Do(ctx, func(ctx context.Context) error {
				return log.SetOutcome(ctx, auditdb.SetOutcomeParams{Outcome: outcome, ID: id})
			}); err != nil {
				slog.ErrorContext(ctx, "audit: outcome not recorded", "id", id, "outcome", outcome, "err", err)
			}
		}
	}
	if err := sqlreq.AfterCommit(ctx, ended("committed")); err != nil {
		return err
	}
	return sqlreq.AfterRollback(ctx, ended("rolled back"))
}
