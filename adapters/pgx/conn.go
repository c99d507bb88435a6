package sqlreqpgx

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// connector is that of stdlib for a pool. Its connections are those of this package.
type connector struct{ driver.Connector }

// Connect takes a connection of the pool.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	dc, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	sc := dc.(*stdlib.Conn)
	return &conn{Conn: sc, net: sc.Conn().PgConn().Conn()}, nil
}

// conn is a connection of database/sql that native statements run on, too.
//
// Statements run with the lock of database/sql for the connection, and take mu for their
// time; if it is taken, or a use is open, they are refused. What is open longer than the
// call that has opened it, a use, takes mu for each of its steps, without that lock.
type conn struct {
	*stdlib.Conn
	net net.Conn // below it

	mu    sync.Mutex          // held by who uses the connection
	use   atomic.Pointer[use] // what is open; written with mu
	tx    *transaction        // that is open, the last one if none is; written by statements, with mu
	names int                 // how many names of savepoints were used; with mu
}

// open notes that u is open, and what ends it early. The caller has mu.
func (c *conn) open(u *use, s scope, ctx context.Context, what string, end func() error) {
	*u = use{conn: c, tx: c.tx, scope: s, ctx: ctx, what: what, finish: end}
	c.use.Store(u)
}

// take takes mu for a statement. It is an error, which changes nothing, if something is open.
func (c *conn) take() error {
	if !c.mu.TryLock() {
		return c.busy()
	}
	if c.use.Load() == nil && !c.Conn.Conn().PgConn().IsBusy() {
		return nil
	}
	c.mu.Unlock()
	return c.busy()
}

func (c *conn) busy() error {
	if u := c.use.Load(); u != nil {
		return fmt.Errorf("sqlreqpgx: key %q: %s of this transaction are open; close them before the next statement", u.scope.key, u.what)
	}
	return errors.New("sqlreqpgx: rows of this transaction are open, or something else uses its connection; close them before the next statement")
}

// kill makes what uses the connection fail, whoever it is.
func (c *conn) kill() { _ = c.net.Close() }

// wait takes mu for the end of a transaction, which waits for a step of a use that is
// under way. It gives up, and kills the connection, when ctx ends, or the context of that use, with
// which pgx closes the connection: the use may be waiting for the program.
func (c *conn) wait(ctx context.Context) error {
	if c.mu.TryLock() {
		return nil
	}
	using := context.Background()
	if u := c.use.Load(); u != nil {
		using = u.ctx
	}
	taken := make(chan struct{})
	go func() {
		c.mu.Lock()
		close(taken)
	}()
	var err error
	select {
	case <-taken:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-using.Done():
		err = using.Err()
	}
	c.kill()
	go func() {
		<-taken
		c.mu.Unlock()
	}()
	return err
}

// endUse ends what is open, and returns the error that it met. The caller has mu. It is
// given up when ctx ends.
func (c *conn) endUse(ctx context.Context) error {
	u := c.use.Load()
	if u == nil {
		return nil
	}
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(killed)
		c.kill()
	})
	defer func() {
		if !stop() {
			<-killed // the connection may be somebody else's later
		}
	}()
	err := u.finish()
	u.end(errEndedEarly)
	return err
}

var errEndedEarly = errors.New("sqlreqpgx: ended early: the transaction, or its savepoint, has ended meanwhile; close rows and batches before")

// ExecContext runs a statement, or calls the function of a native one.
func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if len(args) == 1 {
		if fn, ok := args[0].Value.(call); ok {
			return driver.ResultNoRows, fn(c)
		}
	}
	if verb, name := savepointOf(query); verb != "" && len(args) == 0 {
		return c.execSavepoint(ctx, verb, name, query)
	}
	if err := c.take(); err != nil {
		return nil, err
	}
	defer c.mu.Unlock()
	return c.Conn.ExecContext(ctx, query, args)
}

// QueryContext runs a query.
func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.take(); err != nil {
		return nil, err
	}
	defer c.mu.Unlock()
	return c.Conn.QueryContext(ctx, query, args)
}

// Prepare is that of [driver.Conn].
func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// PrepareContext prepares a statement.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if err := c.take(); err != nil {
		return nil, err
	}
	defer c.mu.Unlock()
	s, err := c.Conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return &stmt{s.(*stdlib.Stmt), c}, nil
}

// stmt is a prepared statement of database/sql.
type stmt struct {
	*stdlib.Stmt
	conn *conn
}

// ExecContext is that of [driver.StmtExecContext].
func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if err := s.conn.take(); err != nil {
		return nil, err
	}
	defer s.conn.mu.Unlock()
	return s.Stmt.ExecContext(ctx, args)
}

// QueryContext is that of [driver.StmtQueryContext].
func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if err := s.conn.take(); err != nil {
		return nil, err
	}
	defer s.conn.mu.Unlock()
	return s.Stmt.QueryContext(ctx, args)
}

// Close is that of [driver.Stmt]. While something is open the statement stays prepared
// on the connection, where the next Prepare of the same text finds it.
func (s *stmt) Close() error {
	if err := s.conn.take(); err != nil {
		return err
	}
	defer s.conn.mu.Unlock()
	return s.Stmt.Close()
}

// Ping is that of [driver.Pinger].
func (c *conn) Ping(ctx context.Context) error {
	if err := c.take(); err != nil {
		return err
	}
	defer c.mu.Unlock()
	return c.Conn.Ping(ctx)
}

// ResetSession is that of [driver.SessionResetter].
func (c *conn) ResetSession(ctx context.Context) error {
	if !c.mu.TryLock() {
		return driver.ErrBadConn
	}
	defer c.mu.Unlock()
	return c.Conn.ResetSession(ctx)
}

// Close gives the connection back to the pool, as soon as nothing uses it.
func (c *conn) Close() error {
	if c.mu.TryLock() {
		return c.giveBack()
	}
	go func() { // an end has given up to wait for it, and killed the connection
		c.mu.Lock()
		_ = c.giveBack()
	}()
	return nil
}

// giveBack gives the connection back. The caller has mu, which is given back too.
func (c *conn) giveBack() error {
	defer c.mu.Unlock()
	if u := c.use.Load(); u != nil {
		u.end(errEndedEarly) // its next step must not touch what belongs to the pool
	}
	return c.Conn.Close()
}

// Begin is that of [driver.Conn].
func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// BeginTx is that of stdlib, which keeps the pgx.Tx to itself.
func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if err := c.take(); err != nil {
		return nil, err
	}
	defer c.mu.Unlock()
	if c.Conn.Conn().IsClosed() {
		return nil, driver.ErrBadConn
	}
	o, err := optionsOf(opts)
	if err != nil {
		return nil, err
	}
	tx, err := c.Conn.Conn().BeginTx(ctx, o)
	if err != nil {
		return nil, err
	}
	c.tx = &transaction{c: c, pgx: tx, ctx: ctx}
	return c.tx, nil
}

func optionsOf(opts driver.TxOptions) (o pgx.TxOptions, err error) {
	switch level := sql.IsolationLevel(opts.Isolation); level {
	case sql.LevelDefault:
	case sql.LevelReadUncommitted:
		o.IsoLevel = pgx.ReadUncommitted
	case sql.LevelReadCommitted:
		o.IsoLevel = pgx.ReadCommitted
	case sql.LevelRepeatableRead, sql.LevelSnapshot:
		o.IsoLevel = pgx.RepeatableRead
	case sql.LevelSerializable:
		o.IsoLevel = pgx.Serializable
	default:
		return o, fmt.Errorf("sqlreqpgx: PostgreSQL has no isolation level %v", level)
	}
	if opts.ReadOnly {
		o.AccessMode = pgx.ReadOnly
	}
	return o, nil
}

// transaction is one of the connection; or a request's in a test's transaction
// (Binding.Tx), which is a savepoint of that.
type transaction struct {
	c     *conn
	pgx   pgx.Tx
	ctx   context.Context // of BEGIN, whose end gives up ROLLBACK
	name  string          // of the savepoint in a test's transaction; "" for a real one
	outer *transaction    // around it, in a test's transaction

	ended atomic.Bool // or is about to; no statement of a bound scope runs any more

	// With mu of the connection.
	lost error    // the error with which the connection was lost
	open []string // the names of open savepoints, the innermost last
}

// within reports whether t is tx, or a savepoint of it.
func (t *transaction) within(tx *transaction) bool {
	for ; t != nil; t = t.outer {
		if t == tx {
			return true
		}
	}
	return false
}

// Commit sends COMMIT. If that was not sent, the error says that nothing was committed.
func (t *transaction) Commit() error {
	t.ended.Store(true)
	if err := t.c.wait(t.ctx); err != nil {
		return notSent("a statement was under way when its context, or the request's, ended", err)
	}
	defer t.c.mu.Unlock()
	if err := t.mayCommit(t.ctx); err != nil {
		if !t.c.Conn.Conn().IsClosed() {
			_ = t.pgx.Rollback(t.ctx)
		}
		return err
	}
	// pgconn.SafeToRetry says nothing here: pgx's error for a COMMIT whose answer is lost is that of
	// a closed connection, which counts as one that nothing was sent on.
	return t.pgx.Commit(t.ctx)
}

// mayCommit ends what is open, and returns an error if COMMIT would be no end of what
// the program was told. The caller has mu.
func (t *transaction) mayCommit(ctx context.Context) error {
	if err := t.c.endUse(ctx); err != nil {
		return notSent("rows or a batch that were open have met an error", err)
	}
	if t.c.Conn.Conn().IsClosed() {
		return notSent("the connection was lost before COMMIT", t.lost)
	}
	if t.c.Conn.Conn().PgConn().IsBusy() {
		return notSent("a call that panicked has left the connection in the middle of a batch", nil)
	}
	if t.hasOpen("") {
		return notSent("a savepoint of Begin is open; call its Commit or Rollback", nil)
	}
	return nil
}

// Rollback sends ROLLBACK.
func (t *transaction) Rollback() error {
	t.ended.Store(true)
	if err := t.c.wait(t.ctx); err != nil {
		return err
	}
	defer t.c.mu.Unlock()
	_ = t.c.endUse(t.ctx)
	return t.pgx.Rollback(t.ctx)
}

// notSentError is that of a COMMIT which was not sent, or of a RELEASE in its place: it is
// known that nothing is committed.
type notSentError struct {
	why   string
	cause error
}

func notSent(why string, cause error) error { return &notSentError{why, cause} }

// Error says that nothing is committed.
func (e *notSentError) Error() string {
	text := "sqlreqpgx: nothing is committed: " + e.why
	if e.cause != nil {
		text += ": " + e.cause.Error()
	}
	return text
}

// SQLState is that of a transaction_rollback, so that the outcome counts as known.
func (e *notSentError) SQLState() string { return "40000" }

// Unwrap returns an answer of the server, which may be a conflict; not the error of a
// lost connection, with which the outcome would count as unknown.
func (e *notSentError) Unwrap() error {
	if p := new(pgconn.PgError); errors.As(e.cause, &p) && !strings.HasPrefix(p.Code, "57P") && !strings.HasPrefix(p.Code, "08") {
		return e.cause
	}
	return nil
}

// The names of savepoints: those of Begin, and those of sqlreq, which are internal there
// (package txn): of a request in a test's transaction, with a number, of Binding.Guard,
// and others. Were they to change, open rows would not be ended early with Guard and
// Binding.Tx any more, and COMMIT would fail.
const (
	ours    = "sqlreqpgx_"
	sqlreqs = "sqlreq_"
	testTx  = "sqlreq_tx_"
	guard   = "sqlreq_guard"
)

// isRequests reports whether a savepoint is that of a request in a test's transaction, not
// one inside of it, which has a second number.
func isRequests(name string) bool {
	number, ok := strings.CutPrefix(name, testTx)
	return ok && !strings.Contains(number, "_")
}

// The statements about savepoints, as sqlreq spells them.
const (
	save       = "SAVEPOINT "
	release    = "RELEASE SAVEPOINT "
	rollbackTo = "ROLLBACK TO SAVEPOINT "
)

// savepointOf returns what a statement of sqlreq's does with which savepoint.
func savepointOf(query string) (verb, name string) {
	for _, verb := range [...]string{save, release, rollbackTo} {
		if name, ok := strings.CutPrefix(query, verb); ok && strings.HasPrefix(name, sqlreqs) {
			return verb, name
		}
	}
	return "", ""
}

// execSavepoint runs a statement of sqlreq's about a savepoint. One that ends a request's
// transaction, or goes back, ends what is open, as COMMIT and ROLLBACK do.
func (c *conn) execSavepoint(ctx context.Context, verb, name, query string) (driver.Result, error) {
	ends := isRequests(name) || name == guard
	if err := c.takeFor(ctx, verb, ends); err != nil {
		return nil, err
	}
	defer c.mu.Unlock()
	t := c.tx
	if t == nil {
		return c.Conn.ExecContext(ctx, query, nil)
	}
	var err error
	switch {
	case verb == rollbackTo:
		if name == t.name {
			t.ended.Store(true)
		}
		_ = c.endUse(ctx)
	case verb == release && name == t.name && t.ended.Swap(true): // what was gone back to is released
	case verb == release && ends:
		err = t.mayCommit(ctx)
	case verb == release && t.hasOpen(name):
		err = notSent("a savepoint of Begin is open; call its Commit or Rollback", nil)
	}
	if err != nil {
		return nil, err
	}
	r, err := c.Conn.ExecContext(ctx, query, nil)
	if err == nil {
		t.note(verb, name)
	}
	return r, err
}

// takeFor is take for a statement about a savepoint.
func (c *conn) takeFor(ctx context.Context, verb string, ends bool) error {
	switch {
	case verb != save && ends:
		return c.wait(ctx)
	case verb == rollbackTo && c.mu.TryLock():
		return nil
	}
	return c.take()
}

// note notes what became of savepoints. The caller has mu.
func (t *transaction) note(verb, name string) {
	at := slices.Index(t.open, name)
	switch {
	case verb == save && isRequests(name):
		t.c.tx = &transaction{c: t.c, pgx: t.pgx, ctx: t.ctx, name: name, outer: t}
	case verb == release && name == t.name:
		t.c.tx = t.outer
	case verb == save:
		t.open = append(t.open, name)
	case at < 0:
	case verb == release:
		t.open = t.open[:at]
	case verb == rollbackTo:
		t.open = t.open[:at+1]
	}
}

// hasOpen reports whether a savepoint of Begin is open inside of the one named, "" for the
// transaction itself.
func (t *transaction) hasOpen(in string) bool {
	inside := t.open[slices.Index(t.open, in)+1:]
	return slices.ContainsFunc(inside, func(name string) bool { return strings.HasPrefix(name, ours) })
}
