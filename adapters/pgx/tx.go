package sqlreqpgx

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sqlreq/sqlreq"
)

// handle is what a transaction and a savepoint have in common as a [pgx.Tx].
type handle struct {
	scope
	done atomic.Bool // Commit or Rollback was called; the scope's over
}

// Begin begins a savepoint.
func (h *handle) Begin(ctx context.Context) (pgx.Tx, error) { return h.begin(ctx) }

// Exec is that of [pgx.Tx].
func (h *handle) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return h.exec(ctx, sql, args)
}

// Query is that of [pgx.Tx].
func (h *handle) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return h.query(ctx, sql, args)
}

// QueryRow is that of [pgx.Tx]; the query runs in Scan.
func (h *handle) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return h.queryRow(ctx, sql, args)
}

// CopyFrom is that of [pgx.Tx].
func (h *handle) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error) {
	return h.copyFrom(ctx, table, columns, rows)
}

// SendBatch is that of [pgx.Tx].
func (h *handle) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	return h.sendBatch(ctx, b)
}

// Prepare is that of [pgx.Tx].
func (h *handle) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	return h.prepare(ctx, name, sql)
}

// LargeObjects goes past sqlreq.
func (h *handle) LargeObjects() pgx.LargeObjects { return h.bound.pgx.LargeObjects() }

// Conn goes past sqlreq.
func (h *handle) Conn() *pgx.Conn { return h.bound.c.Conn.Conn() }

// requestTx is the request's transaction.
type requestTx struct{ handle }

func newRequestTx(k Key, ctx context.Context, t *transaction) *requestTx {
	x := new(requestTx)
	x.scope = scope{key: k, ctx: ctx, bound: t, over: &x.done}
	return x
}

// Commit fails the request, unless the transaction has ended.
func (x *requestTx) Commit(context.Context) error { return x.end("Commit") }

// Rollback fails the request, unless the transaction has ended.
func (x *requestTx) Rollback(context.Context) error { return x.end("Rollback") }

func (x *requestTx) end(what string) error {
	if x.bound.ended.Load() || x.done.Swap(true) {
		return pgx.ErrTxClosed
	}
	err := fmt.Errorf("sqlreqpgx: key %q: %s was called on the request's transaction (Tx); delete it, sqlreq ends that by itself; for a transaction inside of it use sqlreqpgx.Key.Begin: %w", x.key, what, errEnded{})
	if sqlreq.Fail(x.ctx, err) != nil {
		return pgx.ErrTxClosed // the request is over
	}
	return err
}

// errEnded is sqlreq.ErrTxEnded with a shorter text, since that one's names other functions.
type errEnded struct{}

// Error says what the request can do.
func (errEnded) Error() string { return "the request can only roll back" }

// Is reports whether target is [sqlreq.ErrTxEnded].
func (errEnded) Is(target error) bool { return target == sqlreq.ErrTxEnded }

// savepoint is that of Begin.
type savepoint struct {
	handle
	name string
}

func (s scope) begin(ctx context.Context) (pgx.Tx, error) {
	sp := new(savepoint)
	err := s.run(ctx, func(t *transaction) error {
		t.c.names++
		sp.name = ours + strconv.Itoa(t.c.names)
		if _, err := t.pgx.Exec(ctx, save+sp.name); err != nil {
			return err
		}
		t.open = append(t.open, sp.name)
		sp.scope = scope{s.key, s.context(ctx), t, sp.name, &sp.done}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return sp, nil
}

// Commit releases the savepoint. If that fails, it goes back to it.
func (sp *savepoint) Commit(ctx context.Context) error {
	if sp.bound.ended.Load() || sp.done.Swap(true) {
		return pgx.ErrTxClosed
	}
	err := sp.open().run(ctx, func(t *transaction) error {
		if t.hasOpen(sp.name) {
			return notSent("a savepoint of Begin is open inside of it; call its Commit or Rollback", nil)
		}
		_, err := t.pgx.Exec(ctx, release+sp.name)
		if err == nil {
			t.forget(sp.name)
		}
		return err
	})
	if err == nil {
		return nil
	}
	if failed := sp.back(ctx); failed != nil && failed != pgx.ErrTxClosed {
		return errors.Join(err, failed)
	}
	return err
}

// Rollback goes back to the savepoint and releases it, also if ctx has ended.
func (sp *savepoint) Rollback(ctx context.Context) error {
	if sp.bound.ended.Load() || sp.done.Swap(true) {
		return pgx.ErrTxClosed
	}
	return sp.back(ctx)
}

// open is the scope without the look whether Commit or Rollback was called.
func (sp *savepoint) open() scope { return scope{sp.key, sp.ctx, sp.bound, sp.name, nil} }

// back goes back to the savepoint. If that fails, the request can only roll back.
func (sp *savepoint) back(ctx context.Context) error {
	ctx, cancel := patient(ctx, sp.ctx)
	defer cancel()
	s := sp.open()
	err := s.send(s.context(ctx), func(c *conn) error {
		if !c.mu.TryLock() {
			return c.busy()
		}
		defer c.mu.Unlock()
		return s.with(c, func(t *transaction) error {
			_ = c.endUse(ctx) // what it met is undone, or the connection is lost
			_, err := t.pgx.Exec(ctx, rollbackTo+sp.name+"; "+release+sp.name)
			if err == nil {
				t.forget(sp.name)
			}
			return err
		})
	})
	if err == nil || err == pgx.ErrTxClosed {
		return err
	}
	err = fmt.Errorf("sqlreqpgx: key %q: rollback to a savepoint of Begin failed, the request can only roll back: %w", sp.key, err)
	_ = sqlreq.Fail(sp.ctx, err) // if it is over, nothing is committed any more
	return err
}

// patience is how long going back may take when a context has ended.
const patience = 2 * time.Second

// patient returns ctx without its end. It ends some time after ctx or other has ended.
func patient(ctx, other context.Context) (context.Context, context.CancelFunc) {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	giveUp := func() { time.AfterFunc(patience, cancel) }
	stop := context.AfterFunc(ctx, giveUp)
	stopOther := context.AfterFunc(other, giveUp)
	return own, func() {
		stop()
		stopOther()
		cancel()
	}
}

// forget notes that a savepoint, and those inside of it, are gone. The caller has mu.
func (t *transaction) forget(name string) {
	if at := slices.Index(t.open, name); at >= 0 {
		t.open = t.open[:at]
	}
}
