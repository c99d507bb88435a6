// Package fakedb is a database/sql driver for tests: it answers as it is told,
// remembers what it was asked, and counts. It imports the standard library only,
// so that tests of every package can use it.
package fakedb

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// DB is a database. Its zero value answers every call with success, and every
// query with one row of the number 1.
//
// The functions are called before the call has an effect; an error of one is the
// driver's answer. They may wait (for a channel, or for the end of the context),
// panic, or end their goroutine. They are called without a lock, from whatever
// goroutine calls the driver. They are set before the first use, or by Change.
type DB struct {
	// Step is called for each call that is in the log, with its text: "BEGIN" with
	// the options, a statement, "PREPARE" and a statement, "COMMIT", "ROLLBACK".
	Step func(ctx context.Context, text string) error
	// Stepped is called when such a call was carried out, with the same text: an error
	// is an answer that was lost.
	Stepped func(ctx context.Context, text string) error

	Connect   func(context.Context) error               // a new connection
	Begin     func(context.Context) error               // BEGIN
	Begun     func(context.Context)                     // after BEGIN, which the driver has not yet answered
	Stmt      func(ctx context.Context, q string) error // a statement: executed, queried or prepared
	Commit    func() error                              // COMMIT; after an error ROLLBACK is done in its place
	Committed func() error                              // after COMMIT: an answer that was lost
	Rollback  func() error                              // ROLLBACK, which is done whatever it returns
	Reset     func(context.Context) error               // a connection that is about to be used again
	Close     func() error                              // the end of a connection

	// Rows are the rows of a query; nil: one row of the number 1.
	Rows func(q string) [][]driver.Value

	// Affected is how many rows a statement has changed; nil: 1.
	Affected func(q string) int64

	// Behind is a real database, which is asked whatever no function fails; nil: none.
	Behind driver.Driver
	// DSN opens connections to it.
	DSN string

	// Named is the driver that the pool says it is of; nil: Behind.
	Named driver.Driver
	// Keeps is whether a transaction stays open whose COMMIT or ROLLBACK has failed.
	Keeps bool

	mu     sync.Mutex
	log    []string
	counts Counts
}

// Counts are numbers of connections and transactions.
type Counts struct {
	Opened int // connections opened
	Closed int // and closed
	Open   int // transactions begun and not yet ended
	Dirty  int // connections that were given back inside of a transaction
}

// Open returns a pool of connections to d, closed at the end of the test.
func (d *DB) Open(t testing.TB) *sql.DB {
	db := sql.OpenDB(d.Connector())
	t.Cleanup(func() { db.Close() })
	return db
}

// Connector opens connections to d, for a program that is no test.
func (d *DB) Connector() driver.Connector { return connector{d, cmp.Or(d.Named, d.Behind)} }

// Change changes the functions of d while it is in use.
func (d *DB) Change(change func(*DB)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(d)
}

// Log returns the text of each call, in order.
func (d *DB) Log() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.log)
}

// Count returns how often the log has a text that begins with prefix.
func (d *DB) Count(prefix string) (n int) {
	for _, text := range d.Log() {
		if strings.HasPrefix(text, prefix) {
			n++
		}
	}
	return n
}

// Counts returns the numbers of connections and transactions.
func (d *DB) Counts() Counts {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts
}

// Check fails the test if the log is another, or a connection was lost.
func (d *DB) Check(t testing.TB, want ...string) {
	t.Helper()
	d.CheckLog(t, want...)
	d.CheckClean(t)
}

// CheckLog fails the test if the log is another.
func (d *DB) CheckLog(t testing.TB, want ...string) {
	t.Helper()
	if got := d.Log(); !slices.Equal(got, want) {
		t.Errorf("the driver was asked %q, want %q", got, want)
	}
}

// CheckClean fails the test if a transaction is open or a connection was lost.
func (d *DB) CheckClean(t testing.TB) {
	t.Helper()
	if c := d.Counts(); c.Open != 0 || c.Closed != 0 || c.Dirty != 0 {
		t.Errorf("got %d open transactions, %d closed and %d dirty connections, want none", c.Open, c.Closed, c.Dirty)
	}
}

// Script returns a Step for a list of texts in which those that end in "!" fail
// with err, and the list without the marks. Calls beyond the list succeed.
func Script(err error, texts []string) (step func(context.Context, string) error, bare []string) {
	for _, text := range texts {
		bare = append(bare, strings.TrimSuffix(text, "!"))
	}
	var mu sync.Mutex
	n := 0
	return func(_ context.Context, text string) error {
		mu.Lock()
		defer mu.Unlock()
		n++
		if n <= len(texts) && texts[n-1] == text+"!" {
			return err
		}
		return nil
	}, bare
}

// Point is a call at which a test and the driver meet. Make one with NewPoint.
type Point struct {
	reached, release chan struct{}
	reach, goOn      func()
}

// NewPoint returns a Point that nobody has reached.
func NewPoint() *Point {
	p := &Point{reached: make(chan struct{}), release: make(chan struct{})}
	p.reach = sync.OnceFunc(func() { close(p.reached) })
	p.goOn = sync.OnceFunc(func() { close(p.release) })
	return p
}

// Wait is for the driver: it reaches the point and waits for Release.
func (p *Point) Wait() {
	p.reach()
	<-p.release
}

// WaitOr is Wait, and ends when ctx does, with its error.
func (p *Point) WaitOr(ctx context.Context) error {
	p.reach()
	select {
	case <-p.release:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Reached waits until the driver is at the point.
func (p *Point) Reached() { <-p.reached }

// Release lets the driver go on; it may be called before the driver comes, and again.
func (p *Point) Release() { p.goOn() }

// UntilDone waits for the end of ctx and returns its error, as a statement does
// that a context interrupts.
func UntilDone(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// ByDatabaseSQL reports whether the caller runs in the goroutine in which
// database/sql waits for the end of a transaction's context, to roll it back. A
// panic there ends the process.
func ByDatabaseSQL() bool {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs)])
	for {
		frame, more := frames.Next()
		if frame.Function == "database/sql.(*Tx).awaitDone" {
			return true
		}
		if !more {
			return false
		}
	}
}

// ask notes a call and asks Step, and then what it is given.
func (d *DB) ask(ctx context.Context, text string, get func(*DB) func() error) error {
	d.mu.Lock()
	d.log = append(d.log, text)
	step, own := d.Step, get(d)
	d.mu.Unlock()
	if step != nil {
		if err := step(ctx, text); err != nil {
			return err
		}
	}
	if own == nil {
		return nil
	}
	return own()
}

// hook returns a function of d as it is now.
func hook[F any](d *DB, get func(*DB) F) F {
	d.mu.Lock()
	defer d.mu.Unlock()
	return get(d)
}

func (d *DB) count(change func(*Counts)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.counts)
}

// done tells that a call was carried out.
func (d *DB) done(ctx context.Context, text string) error {
	if f := hook(d, func(d *DB) func(context.Context, string) error { return d.Stepped }); f != nil {
		return f(ctx, text)
	}
	return nil
}

type connector struct {
	d     *DB
	named driver.Driver
}

func (c connector) Driver() driver.Driver { return c.named }

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	if f := hook(c.d, func(d *DB) func(context.Context) error { return d.Connect }); f != nil {
		if err := f(ctx); err != nil {
			return nil, err
		}
	}
	n := &conn{d: c.d}
	if c.d.Behind != nil {
		opened, err := c.d.Behind.Open(c.d.DSN)
		if err != nil {
			return nil, err
		}
		behind, ok := opened.(realConn)
		if !ok {
			return nil, fmt.Errorf("fakedb: a connection of type %T can do too little", opened)
		}
		n.behind = behind
	}
	c.d.count(func(c *Counts) { c.Opened++ })
	return n, nil
}

// realConn is what a connection of a real database must be able to do.
type realConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

// conn is a connection, and its transaction.
type conn struct {
	d      *DB
	behind realConn  // nil: none
	tx     driver.Tx // of behind
	inTx   bool      // guarded by d.mu
}

func (c *conn) IsValid() bool             { return c.behind == nil || c.behind.IsValid() }
func (c *conn) Begin() (driver.Tx, error) { return c.BeginTx(context.Background(), driver.TxOptions{}) }
func (c *conn) Prepare(q string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), q)
}

func (c *conn) Close() error {
	c.d.count(func(n *Counts) {
		if n.Closed++; c.inTx && c.d.Keeps {
			c.inTx = false
			n.Open--
		}
	})
	if f := hook(c.d, func(d *DB) func() error { return d.Close }); f != nil {
		if err := f(); err != nil {
			return err
		}
	}
	if c.behind != nil {
		return c.behind.Close()
	}
	return nil
}

func (c *conn) ResetSession(ctx context.Context) error {
	c.d.count(func(n *Counts) {
		if c.inTx {
			n.Dirty++
		}
	})
	if f := hook(c.d, func(d *DB) func(context.Context) error { return d.Reset }); f != nil {
		if err := f(ctx); err != nil {
			return err
		}
	}
	if c.behind != nil {
		return c.behind.ResetSession(ctx)
	}
	return nil
}

func (c *conn) set(inTx bool) {
	c.d.count(func(n *Counts) {
		if c.inTx = inTx; inTx {
			n.Open++
		} else {
			n.Open--
		}
	})
}

func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	text := "BEGIN"
	if opts.Isolation != 0 {
		text += " " + sql.IsolationLevel(opts.Isolation).String()
	}
	if opts.ReadOnly {
		text += " READ ONLY"
	}
	err := c.d.ask(ctx, text, func(d *DB) func() error {
		if f := d.Begin; f != nil {
			return func() error { return f(ctx) }
		}
		return nil
	})
	if err == nil && c.behind != nil {
		// What the functions let through is seen through.
		c.tx, err = c.behind.BeginTx(context.WithoutCancel(ctx), opts)
	}
	if err != nil {
		return nil, err
	}
	c.set(true)
	if f := hook(c.d, func(d *DB) func(context.Context) { return d.Begun }); f != nil {
		f(ctx)
	}
	if err := c.d.done(ctx, text); err != nil {
		c.set(false) // whoever has lost the answer cannot end it
		if c.behind != nil {
			_ = c.tx.Rollback()
		}
		return nil, err
	}
	return c, nil
}

func (c *conn) Commit() error {
	err := c.d.ask(context.Background(), "COMMIT", func(d *DB) func() error { return d.Commit })
	if err != nil && c.d.Keeps {
		return err
	}
	c.set(false)
	if c.behind != nil {
		if err != nil {
			_ = c.tx.Rollback()
		} else {
			err = c.tx.Commit()
		}
	}
	if err != nil {
		return err
	}
	if f := hook(c.d, func(d *DB) func() error { return d.Committed }); f != nil {
		if err := f(); err != nil {
			return err
		}
	}
	return c.d.done(context.Background(), "COMMIT")
}

func (c *conn) Rollback() error {
	err := c.d.ask(context.Background(), "ROLLBACK", func(d *DB) func() error { return d.Rollback })
	if err != nil && c.d.Keeps {
		return err
	}
	c.set(false)
	if c.behind != nil {
		if e := c.tx.Rollback(); err == nil {
			err = e
		}
	}
	if err != nil {
		return err
	}
	return c.d.done(context.Background(), "ROLLBACK")
}

func (c *conn) statement(ctx context.Context, text, q string) error {
	return c.d.ask(ctx, text, func(d *DB) func() error {
		if f := d.Stmt; f != nil {
			return func() error { return f(ctx, q) }
		}
		return nil
	})
}

func (c *conn) ExecContext(ctx context.Context, q string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.statement(ctx, q, q); err != nil {
		return nil, err
	}
	if c.behind == nil {
		n := int64(1)
		if f := hook(c.d, func(d *DB) func(string) int64 { return d.Affected }); f != nil {
			n = f(q)
		}
		return driver.RowsAffected(n), c.d.done(ctx, q)
	}
	result, err := c.behind.ExecContext(ctx, q, args)
	if err == nil {
		err = c.d.done(ctx, q)
	}
	return result, err
}

func (c *conn) QueryContext(ctx context.Context, q string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.statement(ctx, q, q); err != nil {
		return nil, err
	}
	if c.behind != nil {
		rows, err := c.behind.QueryContext(ctx, q, args)
		if err != nil {
			return nil, err
		}
		if err := c.d.done(ctx, q); err != nil {
			_ = rows.Close()
			return nil, err
		}
		return rows, nil
	}
	if err := c.d.done(ctx, q); err != nil {
		return nil, err
	}
	if f := hook(c.d, func(d *DB) func(string) [][]driver.Value { return d.Rows }); f != nil {
		return newRows(f(q)), nil
	}
	return newRows([][]driver.Value{{int64(1)}}), nil
}

func (c *conn) PrepareContext(ctx context.Context, q string) (driver.Stmt, error) {
	if err := c.statement(ctx, "PREPARE "+q, q); err != nil {
		return nil, err
	}
	if c.behind != nil {
		return c.behind.PrepareContext(ctx, q)
	}
	return stmt{c, q}, nil
}

// stmt is a prepared statement of a database that is not real.
type stmt struct {
	c *conn
	q string
}

func (s stmt) Close() error  { return nil }
func (s stmt) NumInput() int { return -1 }

func (s stmt) Exec([]driver.Value) (driver.Result, error) {
	return s.c.ExecContext(context.Background(), s.q, nil)
}

func (s stmt) Query([]driver.Value) (driver.Rows, error) {
	return s.c.QueryContext(context.Background(), s.q, nil)
}

func (s stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.c.ExecContext(ctx, s.q, args)
}

func (s stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.c.QueryContext(ctx, s.q, args)
}

type rows struct {
	names []string
	left  [][]driver.Value
}

func newRows(all [][]driver.Value) *rows {
	r := &rows{names: []string{"c1"}, left: all}
	for i := 1; len(all) > 0 && i < len(all[0]); i++ {
		r.names = append(r.names, fmt.Sprint("c", i+1))
	}
	return r
}

func (r *rows) Columns() []string { return r.names }
func (r *rows) Close() error      { return nil }

func (r *rows) Next(dest []driver.Value) error {
	if len(r.left) == 0 {
		return io.EOF
	}
	copy(dest, r.left[0])
	r.left = r.left[1:]
	return nil
}
