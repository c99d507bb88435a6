package sqlreqpgx

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/sqlreq/sqlreq"
)

// OpenDB returns a database of the pool's connections, for [sqlreq.Binding].DB. Like
// stdlib.OpenDBFromPool it keeps no connection that is not in use, and closing it does
// not close the pool. It may be used from several goroutines, and beside the pool.
//
// Never call SetMaxOpenConns on it: with a limit database/sql hands connections from
// waiter to waiter, and starves the pool's other users. The limit is the pool's
// MaxConns, which sqlreq does not know: a [sqlreq.Registry.Do] inside of a request needs a
// connection beside the request's, and where there is none it waits until its context
// ends. Its Stats say nothing; pool.Stat does. (*sql.Conn).Raw gives something that has
// the method Conn() *pgx.Conn, but is no *stdlib.Conn.
func OpenDB(pool *pgxpool.Pool, opts ...stdlib.OptionOpenDB) *sql.DB {
	db := sql.OpenDB(connector{stdlib.GetPoolConnector(pool, opts...)})
	db.SetMaxIdleConns(0)
	return db
}

// Key is a [sqlreq.Key] whose statements are pgx's own. They run in the transaction of
// the request that ctx belongs to, begun by the first of them, on the connection that
// the sqlreq.Key of the same name and its *sql.Tx use. Its database must be one of
// [OpenDB]; on another one every method returns an error that says so.
//
// A Key is the DBTX of code that sqlc generates for pgx/v5, the Querier of scany, and
// has the Begin that pgx.BeginFunc wants. It may be used from several goroutines, which
// wait for each other, except that rows and batches must be closed, and a copy must have
// ended, before the next statement: until then that is an error, which changes nothing.
//
// Errors are pgx's own, unwrapped, and those that a method of sqlreq.Key returns.
type Key sqlreq.Key

// DefaultKey is the Key of [sqlreq.DefaultKey].
const DefaultKey = Key(sqlreq.DefaultKey)

// Exec runs a statement. It returns when the statement has ended.
func (k Key) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return scope{key: k}.exec(ctx, sql, args)
}

// Query sends a query. The rows are never nil: with an error they are closed, and Err
// returns it. They must be closed (Next does it at the end) before the next statement,
// a [sqlreq.Savepoint] or an explicit [sqlreq.Commit]. A transaction that ends while
// they are open ends them early, which only their Err tells. An error that rows meet later counts
// for the request as one of Query does.
func (k Key) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return scope{key: k}.query(ctx, sql, args)
}

// QueryRow returns a row whose Scan runs the query, and returns its errors, or
// pgx.ErrNoRows. Without Scan nothing is sent. What Scan scans into must not use
// the Key: it would wait for itself.
func (k Key) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return scope{key: k}.queryRow(ctx, sql, args)
}

// CopyFrom copies rows into a table by PostgreSQL's copy protocol, and returns how many
// there were. A statement that the source of the rows runs on the Key is an error.
func (k Key) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error) {
	return scope{key: k}.copyFrom(ctx, table, columns, rows)
}

// SendBatch sends all queries of b at once. The results must be closed, as pgx wants it,
// before the next statement. Functions of queued queries run in their Close, in its goroutine; a
// statement that one of them runs on the Key is an error. A transaction that ends while the
// results are open reads what is left of them, without those functions.
func (k Key) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	return scope{key: k}.sendBatch(ctx, b)
}

// Begin begins a savepoint in the request's transaction, and that too if it is not
// begun yet: pgx.BeginFunc(ctx, key, fn) is for services what it is with a pool. Its
// Commit releases the savepoint, its Rollback goes back to it and releases it, also if
// ctx has ended, and ends what is open; after either, and after a Rollback of a savepoint
// around it, all methods return pgx.ErrTxClosed. A Commit while a savepoint inside of it is
// open is an error. A Commit that fails goes back too, and the rest of the transaction lives. If going back fails, the
// request can only roll back, and so it does if a savepoint is open when the
// transaction is to be committed.
//
// Savepoints of several goroutines lie one inside another, in the order of their Begins: a
// Rollback also undoes what the others have done since. Let one goroutine at a time begin one.
//
// Hooks that were registered meanwhile stay after a Rollback; [sqlreq.Savepoint] drops them.
func (k Key) Begin(ctx context.Context) (pgx.Tx, error) {
	return scope{key: k}.begin(ctx)
}

// Tx returns the request's transaction, begun now if it is not yet, for libraries that
// want a pgx.Tx: River's InsertTx. It may be given another context than ctx, for example
// context.Background: what its values do not tell is looked up in ctx. It ends with the
// transaction: after an explicit [sqlreq.Commit] it returns pgx.ErrTxClosed, and never
// runs anything in the next one.
//
// Do not call its Commit or Rollback, nor defer one: that fails the request with
// [sqlreq.ErrTxEnded], and nothing is committed. For a transaction inside of the
// request's use [Key.Begin]. After the transaction's end they return pgx.ErrTxClosed, and
// do nothing.
//
// Its Conn and its LargeObjects go past sqlreq: return their errors from the handler.
func (k Key) Tx(ctx context.Context) (pgx.Tx, error) {
	var t *transaction
	err := scope{key: k}.run(ctx, func(now *transaction) error {
		t = now
		return nil
	})
	if err != nil {
		return nil, err
	}
	return newRequestTx(k, ctx, t), nil
}

// Tx is [Key.Tx] of [DefaultKey].
func Tx(ctx context.Context) (pgx.Tx, error) { return DefaultKey.Tx(ctx) }

// scope is what statements run in: the transaction of a key, whichever is open, or a
// given one.
type scope struct {
	key   Key
	ctx   context.Context // where values are looked up that a call's own context does not have; nil: nowhere
	bound *transaction    // nil: whichever is open
	in    string          // the name of a savepoint of Begin, which must be open; "": of none
	over  *atomic.Bool    // the handle was closed; nil: it cannot be
}

// closed reports whether the transaction, or the savepoint, has ended.
func (s scope) closed() bool {
	return s.bound != nil && s.bound.ended.Load() || s.over != nil && s.over.Load()
}

// withValues is a context that looks values up in another one, too.
type withValues struct {
	context.Context
	values context.Context
}

func (c withValues) Value(key any) any {
	if v := c.Context.Value(key); v != nil {
		return v
	}
	return c.values.Value(key)
}

func (s scope) context(ctx context.Context) context.Context {
	if s.ctx == nil || s.ctx == ctx {
		return ctx
	}
	return withValues{ctx, s.ctx}
}

// nothing is the text of the statement that a call is an argument of. It is never sent.
const nothing = "SELECT 'sqlreqpgx'"

// call is the one argument that a connection of [OpenDB] knows: it calls the function,
// with what database/sql and sqlreq lock for a statement. Every other driver asks it for a
// value, or for another text of the statement, and gets an error before anything is sent.
type call func(*conn) error

var errOtherDriver = errors.New("the database of this key is not one of sqlreqpgx.OpenDB")

// Value is that of [driver.Valuer].
func (call) Value() (driver.Value, error) { return nil, errOtherDriver }

// RewriteQuery is that of [pgx.QueryRewriter].
func (call) RewriteQuery(context.Context, *pgx.Conn, string, []any) (string, []any, error) {
	return "", nil, errOtherDriver
}

// run calls fn as a statement of the key.
func (s scope) run(ctx context.Context, fn func(*transaction) error) error {
	return s.send(s.context(ctx), func(c *conn) error {
		if err := c.take(); err != nil {
			return err
		}
		defer c.mu.Unlock()
		return s.with(c, fn)
	})
}

func (s scope) send(ctx context.Context, fn call) error {
	if s.closed() {
		return pgx.ErrTxClosed
	}
	_, err := sqlreq.Key(s.key).ExecContext(ctx, nothing, fn)
	if err != nil && errors.Is(err, errOtherDriver) {
		return fmt.Errorf("sqlreqpgx: key %q: %w; bind sqlreqpgx.OpenDB(pool)", s.key, errOtherDriver)
	}
	return err
}

// with calls fn with the transaction that is open on c, if that is the one of s. The caller
// has mu, unless s is in no savepoint.
func (s scope) with(c *conn, fn func(*transaction) error) error {
	if s.bound != nil && (s.closed() || !c.tx.within(s.bound)) {
		return pgx.ErrTxClosed
	}
	if s.in != "" && !slices.Contains(s.bound.open, s.in) { // one around it was gone back to
		return pgx.ErrTxClosed
	}
	return fn(c.tx)
}

func (s scope) exec(ctx context.Context, sql string, args []any) (tag pgconn.CommandTag, err error) {
	err = s.run(ctx, func(t *transaction) (err error) {
		tag, err = t.pgx.Exec(ctx, sql, args...)
		return err
	})
	return tag, err
}

func (s scope) prepare(ctx context.Context, name, sql string) (d *pgconn.StatementDescription, err error) {
	err = s.run(ctx, func(t *transaction) (err error) {
		d, err = t.pgx.Prepare(ctx, name, sql)
		return err
	})
	return d, err
}

func (s scope) query(ctx context.Context, sql string, args []any) (pgx.Rows, error) {
	r := new(rows)
	r.use = &r.own
	err := s.run(ctx, func(t *transaction) (err error) {
		if r.inner, err = t.pgx.Query(ctx, sql, args...); err != nil {
			return err
		}
		r.fields = fieldsOf(r.inner)
		t.c.open(r.use, s, ctx, "the rows of a Query", r.end)
		return nil
	})
	if err != nil {
		return failedRows(err), err
	}
	return r, nil
}

func (s scope) queryRow(ctx context.Context, sql string, args []any) pgx.Row {
	return &row{s, ctx, sql, args}
}

// row is a query that is sent by Scan.
type row struct {
	scope
	ctx  context.Context
	sql  string
	args []any
}

// Scan is that of [pgx.Row].
func (r *row) Scan(dest ...any) error {
	none := false
	err := r.run(r.ctx, func(t *transaction) error {
		rows, err := t.pgx.Query(r.ctx, r.sql, r.args...)
		if err != nil {
			return err
		}
		defer rows.Close() // also if a Scanner panics
		if err = scanOne(rows, dest); err == pgx.ErrNoRows {
			none = true // no error of the database
			return nil
		}
		return err
	})
	if err == nil && none {
		return pgx.ErrNoRows
	}
	return err
}

// scanOne scans the first row, as the row of pgx.Conn.QueryRow does.
func scanOne(rows pgx.Rows, dest []any) error {
	for _, d := range dest {
		if _, ok := d.(*pgtype.DriverBytes); ok {
			rows.Close()
			return errors.New("cannot scan into *pgtype.DriverBytes from QueryRow")
		}
	}
	if !rows.Next() {
		if err := rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	_ = rows.Scan(dest...) // Err has it
	rows.Close()
	return rows.Err()
}

func (s scope) copyFrom(ctx context.Context, table pgx.Identifier, columns []string, source pgx.CopyFromSource) (n int64, err error) {
	u := new(use)
	var tx pgx.Tx
	err = s.run(ctx, func(t *transaction) error {
		tx = t.pgx
		t.c.open(u, s, ctx, "a copy", func() error { return nil })
		return nil
	})
	if err != nil {
		return 0, err
	}
	defer func() { u.tell(err) }()
	if err := u.enter(); err != nil {
		return 0, err // the transaction has ended since
	}
	defer u.leave()
	n, err = tx.CopyFrom(ctx, table, columns, source)
	u.end(err)
	return n, err
}

func (s scope) sendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	r := &results{queued: b.Len()}
	err := s.run(ctx, func(t *transaction) error {
		r.inner = t.pgx.SendBatch(ctx, b)
		t.c.open(&r.use, s, ctx, "the results of a batch", r.end)
		return nil
	})
	switch {
	case err != nil:
		return pgx.FailedBatchResults(b, err)
	case r.queued == 0:
		_ = r.Close() // nothing was sent
	}
	return r
}
