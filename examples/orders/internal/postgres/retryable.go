package postgres

import (
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sqlreq/sqlreq"
)

// Retryable says whether a request that failed with err may run again: after a conflict, and also when a statement has met
// the end of its connection or its server. That is safe because nothing is committed by then: what may be committed sqlreq
// does not run again, unless package idempotency can tell.
func (s *Store) Retryable(err error) bool {
	var network *net.OpError
	var answer *pgconn.PgError
	return sqlreq.IsRetryable(err) || pgconn.SafeToRetry(err) ||
		errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &network) ||
		errors.As(err, &answer) && strings.HasPrefix(answer.Code, "57P") // the server is shutting down, or starting
}
