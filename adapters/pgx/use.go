package sqlreqpgx

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// use is what stays open on a connection after the call that has opened it: rows, the
// results of a batch, a copy.
type use struct {
	conn   *conn
	tx     *transaction
	scope  scope
	ctx    context.Context
	what   string       // for errors
	finish func() error // ends it early, and returns what it met; with mu of the connection

	over atomic.Bool // from false to true, with mu
	err  error       // why; written before over
	lost bool        // the connection was lost by then; written before over
}

// enter begins a step, unless the use is over. Then its error is returned.
func (u *use) enter() error {
	if !u.over.Load() {
		u.conn.mu.Lock()
		if !u.over.Load() {
			return nil
		}
		u.conn.mu.Unlock()
	}
	if u.err != nil {
		return u.err
	}
	return errClosed
}

var errClosed = errors.New("sqlreqpgx: closed already")

func (u *use) leave() { u.conn.mu.Unlock() }

// end notes that the use is over. The caller has mu of the connection.
func (u *use) end(err error) {
	if u.over.Load() {
		return
	}
	u.noteLost(err)
	u.err = err
	u.over.Store(true)
	u.conn.use.CompareAndSwap(u, nil)
}

// noteLost notes that the connection was lost, if it was. The caller has mu.
func (u *use) noteLost(err error) {
	if err == nil || !u.conn.Conn.Conn().IsClosed() {
		return
	}
	u.lost = true
	if u.tx.lost == nil && err != errEndedEarly {
		u.tx.lost = err
	}
}

// met returns err, which is to be told, also if it is not the first one: that may be of a
// Scan, and a conflict comes after it. The caller has mu.
func (u *use) met(err error) error {
	u.noteLost(err)
	return err
}

// tell tells sqlreq an error that came after the call which has opened the use, by a
// statement that only returns it: it may be a conflict, or the end of the transaction. The caller
// does not have mu.
func (u *use) tell(err error) {
	if err == nil || u.tx == nil || u.tx.ended.Load() {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(u.scope.context(u.ctx)))
	defer cancel()
	s := scope{key: u.scope.key, bound: u.tx}
	_ = s.send(ctx, func(c *conn) error {
		return s.with(c, func(*transaction) error {
			if u.lost {
				cancel() // so that it counts as a statement whose context has ended meanwhile, whatever err is
			}
			return err
		})
	})
}

// rows are those of a Query, or of a query in a batch.
type rows struct {
	*use        // of the rows, or of the batch
	own    use  // of the rows, if they are not of a batch
	batch  bool // they are of a batch
	inner  pgx.Rows
	fields []pgconn.FieldDescription // a copy: pgx keeps them in the connection
	closed atomic.Bool               // by Next, Scan or Close

	// Written before closed.
	err error
	tag pgconn.CommandTag
}

// fieldsOf copies what describes the columns of rows, which is known when they are opened.
func fieldsOf(rows pgx.Rows) []pgconn.FieldDescription { return slices.Clone(rows.FieldDescriptions()) }

// failedRows are those of a query that failed.
func failedRows(err error) *rows {
	r := &rows{err: err}
	r.closed.Store(true)
	return r
}

// end ends the rows early.
func (r *rows) end() error {
	r.inner.Close()
	return r.inner.Err()
}

// shut notes that the rows are closed, and returns their error if it is to be told. The
// caller has mu of the connection.
func (r *rows) shut() error {
	r.inner.Close()
	r.err, r.tag = r.inner.Err(), r.inner.CommandTag()
	r.closed.Store(true)
	if !r.batch {
		r.use.end(r.err)
	}
	return r.met(r.err)
}

// Next is that of [pgx.Rows].
func (r *rows) Next() bool {
	if r.closed.Load() || r.enter() != nil {
		return false
	}
	more, err := r.next()
	r.tell(err)
	return more
}

func (r *rows) next() (more bool, err error) {
	defer r.leave()
	if r.inner.Next() {
		return true, nil
	}
	return false, r.shut()
}

// Scan is that of [pgx.Rows].
func (r *rows) Scan(dest ...any) error {
	if r.closed.Load() {
		return r.whyClosed()
	}
	if err := r.enter(); err != nil {
		return err
	}
	failed, err := r.scan(dest)
	r.tell(err)
	return failed
}

func (r *rows) scan(dest []any) (failed, tell error) {
	defer r.leave() // also if a Scanner panics
	if failed = r.inner.Scan(dest...); failed != nil {
		return failed, r.shut()
	}
	return nil, nil
}

func (r *rows) whyClosed() error {
	if r.err != nil {
		return r.err
	}
	return errClosed
}

// Values is that of [pgx.Rows].
func (r *rows) Values() ([]any, error) {
	if r.closed.Load() {
		return nil, r.whyClosed()
	}
	if err := r.enter(); err != nil {
		return nil, err
	}
	values, failed, err := r.values()
	r.tell(err)
	return values, failed
}

func (r *rows) values() (values []any, failed, tell error) {
	defer r.leave()
	if values, failed = r.inner.Values(); failed != nil {
		return nil, failed, r.shut()
	}
	return values, nil, nil
}

// Close is that of [pgx.Rows].
func (r *rows) Close() {
	if r.closed.Load() || r.enter() != nil {
		return
	}
	r.tell(r.close())
}

func (r *rows) close() error {
	defer r.leave()
	return r.shut()
}

// Err is that of [pgx.Rows].
func (r *rows) Err() error {
	if r.closed.Load() {
		return r.err
	}
	if r.over.Load() {
		return r.use.err
	}
	return nil
}

// CommandTag is that of [pgx.Rows].
func (r *rows) CommandTag() (tag pgconn.CommandTag) {
	if r.closed.Load() {
		tag = r.tag
	}
	return tag
}

// FieldDescriptions is that of [pgx.Rows]. It takes no lock, so that a copy's source, a batch's
// function or a Scanner may call it, also of rows that are closed.
func (r *rows) FieldDescriptions() []pgconn.FieldDescription { return r.fields }

// RawValues is that of [pgx.Rows].
func (r *rows) RawValues() [][]byte {
	if r.closed.Load() || r.enter() != nil {
		return nil
	}
	defer r.leave()
	return r.inner.RawValues()
}

// Conn is that of [pgx.Rows].
func (r *rows) Conn() *pgx.Conn {
	if r.use == nil {
		return nil
	}
	return r.conn.Conn.Conn()
}

// TypeMap is that of [pgx.Rows].
func (r *rows) TypeMap() *pgtype.Map {
	if r.use == nil {
		return nil
	}
	return r.conn.Conn.Conn().TypeMap()
}

// results are those of a batch.
type results struct {
	use
	inner  pgx.BatchResults
	queued int
	last   *rows // of the last Query; with mu of the connection
}

// end ends the results early: what is left is read, without the functions of the queries.
func (r *results) end() error {
	if r.last != nil {
		r.last.inner.Close()
	}
	for range r.queued {
		if _, err := r.inner.Exec(); err != nil {
			break
		}
	}
	return r.inner.Close()
}

// Exec is that of [pgx.BatchResults].
func (r *results) Exec() (pgconn.CommandTag, error) {
	if err := r.enter(); err != nil {
		return pgconn.CommandTag{}, err
	}
	tag, err := r.exec()
	r.tell(err)
	return tag, err
}

func (r *results) exec() (pgconn.CommandTag, error) {
	defer r.leave() // also if a tracer panics
	tag, err := r.inner.Exec()
	return tag, r.met(err)
}

// Query is that of [pgx.BatchResults].
func (r *results) Query() (pgx.Rows, error) {
	rows, err := r.query()
	return rows, err
}

func (r *results) query() (*rows, error) {
	if err := r.enter(); err != nil {
		return failedRows(err), err
	}
	q, err := r.next()
	r.tell(err)
	return q, err
}

func (r *results) next() (*rows, error) {
	defer r.leave() // also if a tracer panics
	inner, err := r.inner.Query()
	q := &rows{use: &r.use, batch: true, inner: inner}
	r.last = q
	if err != nil {
		_ = q.shut()
		return q, err
	}
	q.fields = fieldsOf(inner)
	return q, nil
}

// QueryRow is that of [pgx.BatchResults].
func (r *results) QueryRow() pgx.Row {
	rows, _ := r.query() // Scan returns the error
	return batchRow{rows}
}

type batchRow struct{ rows *rows }

// Scan is that of [pgx.Row].
func (r batchRow) Scan(dest ...any) error { return scanOne(r.rows, dest) }

// Close is that of [pgx.BatchResults].
func (r *results) Close() error {
	if r.enter() != nil {
		return r.use.err
	}
	err, first := r.close()
	r.tell(first)
	return err
}

func (r *results) close() (err, tell error) {
	defer r.leave() // also if a function of a query panics
	err = r.inner.Close()
	r.use.end(err)
	return err, r.met(err)
}

// Tx is that of [pgx.BatchResults].
func (r *results) Tx() pgx.Tx { return r.inner.Tx() }
