// Package pgconn has the shape of the errors of github.com/jackc/pgx/v5 and its pgconn, for tests.
package pgconn

import "errors"

// Errors with pgx's texts.
var (
	ErrTxCommitRollback = errors.New("commit unexpectedly resulted in rollback")
	ErrConnClosed       = errors.New("conn closed")
)

// PgError has the SQLSTATE in a field and in a method.
type PgError struct {
	Severity string
	Code     string
	Message  string
}

// Error panics on a nil receiver, as the driver's does.
func (pe *PgError) Error() string { return pe.Severity + ": " + pe.Message }

// SQLState returns the SQLSTATE.
func (pe *PgError) SQLState() string { return pe.Code }
