package benchmarks

import (
	"context"
	"database/sql"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/avito-tech/go-transaction-manager/trm/v2"
	"github.com/avito-tech/go-transaction-manager/trm/v2/settings"
	"github.com/sqlreq/sqlreq"
)

// imitated take part in the checks and in Growth. They are written here as the two
// libraries do it, without their query builders.
var imitated = []contender{
	{"transactor", around(runTransactor, false), transactorConn, sessionFail},
	{"popmw", around(runPop, false), sessionConn, sessionFail},
}

// runTransactor is WithinTransaction of github.com/Thiht/transactor on database/sql,
// with savepoints for what is nested: a panic does not roll back, the end of the
// request's context does.
func runTransactor(ctx context.Context, s *site, o options, fn func(context.Context) error) error {
	if outer := sessionOf(ctx); outer != nil {
		n := outer.native.(*nesting)
		if err := n.begin(ctx); err != nil {
			return err
		}
		if err := fn(ctx); err != nil {
			_ = n.rollback()
			return err
		}
		return n.commit()
	}
	tx, err := s.db.BeginTx(ctx, o.tx)
	if err != nil {
		return err
	}
	if err := fn(context.WithValue(ctx, sessionKey{}, &session{tx: tx, native: &nesting{Tx: tx}})); err != nil {
		_ = tx.Rollback()
		return err
	}
	return tx.Commit()
}

// nesting is a transaction with a number of savepoints that are open.
type nesting struct {
	*sql.Tx
	depth atomic.Int64
}

func (n *nesting) name() string { return "sp_" + strconv.FormatInt(n.depth.Load(), 10) }

func (n *nesting) begin(ctx context.Context) error {
	n.depth.Add(1)
	_, err := n.ExecContext(ctx, "SAVEPOINT "+n.name())
	return err
}

func (n *nesting) commit() error {
	defer n.depth.Add(-1)
	_, err := n.Exec("RELEASE SAVEPOINT " + n.name())
	return err
}

func (n *nesting) rollback() error {
	defer n.depth.Add(-1)
	_, err := n.Exec("ROLLBACK TO SAVEPOINT " + n.name())
	return err
}

func transactorConn(ctx context.Context) (dbtx, error) { return sessionOf(ctx).native.(*nesting), nil }

// runPop is what popmw.Transaction of github.com/gobuffalo/buffalo-pop makes of a
// request: it is not told of the request's context, and with SQLite one transaction at
// a time has a lock of the whole program, from before BEGIN until after COMMIT.
func runPop(ctx context.Context, s *site, o options, fn func(context.Context) error) error {
	s.pop.Lock()
	defer s.pop.Unlock()
	tx, err := s.db.BeginTx(context.Background(), o.tx)
	if err != nil {
		return err
	}
	defer tx.Rollback() // also after a panic
	if err := fn(context.WithValue(ctx, sessionKey{}, &session{tx: tx})); err != nil {
		return err
	}
	return tx.Commit()
}

// noLock is that of pop with PostgreSQL.
type noLock struct{}

func (noLock) Lock()   {}
func (noLock) Unlock() {}

var _ sync.Locker = noLock{}

// savepoint runs a function in a savepoint of a transaction.
type savepoint func(ctx context.Context, tx dbtx, fn func(context.Context) error) error

// savepoint is the library's, or written by hand where it has none.
func (c contender) savepoint(s *site) savepoint {
	switch c.name {
	case "sqlreq", "sqlreq-key":
		return func(ctx context.Context, _ dbtx, fn func(context.Context) error) error {
			return sqlreq.Savepoint(ctx, fn)
		}
	case "trm":
		nested := settings.Must(settings.WithPropagation(trm.PropagationNested))
		return func(ctx context.Context, _ dbtx, fn func(context.Context) error) error {
			return s.trm.DoWithSettings(ctx, nested, fn)
		}
	case "transactor":
		return func(ctx context.Context, _ dbtx, fn func(context.Context) error) error {
			return runTransactor(ctx, s, options{}, fn)
		}
	}
	return func(ctx context.Context, tx dbtx, fn func(context.Context) error) error {
		if _, err := tx.ExecContext(ctx, "SAVEPOINT work"); err != nil {
			return err
		}
		if err := fn(ctx); err != nil {
			_, _ = tx.ExecContext(ctx, "ROLLBACK TO SAVEPOINT work")
			return err
		}
		_, err := tx.ExecContext(ctx, "RELEASE SAVEPOINT work")
		return err
	}
}
