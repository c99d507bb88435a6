package integration

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// tap is one driver for all databases. It passes each call on to the driver behind it,
// by way of a function: that may leave the call out, fail it when it was carried out,
// or end the process.
type tap struct {
	behind driver.Driver
	dsn    string
	call   func(c *tapConn, name string, do func() error) error // c is nil for "connect"
}

// tappable are the databases whose driver database/sql opens by its name: in front of
// the connections of adapters/pgx, which are those of a pool, nothing can stand.
func tappable() []database {
	return slices.DeleteFunc(slices.Clone(databases), func(d database) bool { return d.driver == "sqlreqpgx" })
}

// openTap returns a pool whose calls go by way of call.
func openTap(name, dsn string, call func(c *tapConn, name string, do func() error) error) (*sql.DB, error) {
	plain, err := sql.Open(name, dsn)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	return sql.OpenDB(&tap{plain.Driver(), dsn, call}), nil
}

func (d *tap) Driver() driver.Driver { return d.behind }

func (d *tap) Connect(context.Context) (driver.Conn, error) {
	var c *tapConn
	err := d.call(nil, "connect", func() error {
		opened, err := d.behind.Open(d.dsn)
		if err != nil {
			return err
		}
		behind, ok := opened.(tapped)
		if !ok {
			return fmt.Errorf("a connection of type %T can do too little", opened)
		}
		c = &tapConn{d: d, behind: behind}
		return nil
	})
	if err != nil && c != nil {
		_ = c.Close() // whoever has lost the answer cannot close it
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// tapped is what a connection must be able to do.
type tapped interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
}

// tapConn is a connection, and its transaction.
type tapConn struct {
	d      *tap
	behind tapped
	tx     driver.Tx

	mu     sync.Mutex // guards what follows
	rows   int        // open ones
	lost   bool
	closed bool
}

// lose ends the connection, as a network does that breaks: the database rolls back.
func (c *tapConn) lose() {
	if c == nil {
		return // there is none yet
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost = true
	_ = c.closeBehind(false)
}

// closeBehind closes the connection behind, which modernc.org/sqlite bears only when all
// rows are closed. The caller holds c.mu.
func (c *tapConn) closeBehind(rowsToo bool) error {
	if c.closed || c.rows > 0 && !rowsToo {
		return nil
	}
	c.closed = true
	return c.behind.Close()
}

func (c *tapConn) isLost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost
}

// via makes a call, unless the connection is lost.
func (c *tapConn) via(name string, do func() error) error {
	if c.isLost() {
		return driver.ErrBadConn
	}
	return c.d.call(c, name, do)
}

// verb is a name for a call with a statement.
func verb(call, query string) string {
	word, rest, _ := strings.Cut(strings.TrimSpace(query), " ")
	if word == "INSERT" || word == "UPDATE" { // of which table
		for _, table := range []string{onceTable, "sqlreq_work", "sqlreq_order", "sqlreq_stock"} {
			if strings.Contains(rest, table) {
				return call + " " + word + " " + table
			}
		}
	}
	return call + " " + word
}

func (c *tapConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closeBehind(true)
}

func (c *tapConn) IsValid() bool {
	v, ok := c.behind.(driver.Validator)
	return !c.isLost() && (!ok || v.IsValid())
}

func (c *tapConn) ResetSession(ctx context.Context) error {
	return c.via("reset", func() error {
		if s, ok := c.behind.(driver.SessionResetter); ok {
			return s.ResetSession(ctx)
		}
		return nil
	})
}

func (c *tapConn) CheckNamedValue(v *driver.NamedValue) error {
	if check, ok := c.behind.(driver.NamedValueChecker); ok {
		return check.CheckNamedValue(v)
	}
	return driver.ErrSkip
}

func (c *tapConn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

func (c *tapConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	err := c.via("begin", func() (err error) {
		c.tx, err = c.behind.BeginTx(ctx, opts)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (c *tapConn) Commit() error   { return c.via("commit", func() error { return c.tx.Commit() }) }
func (c *tapConn) Rollback() error { return c.via("rollback", func() error { return c.tx.Rollback() }) }

func (c *tapConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (res driver.Result, err error) {
	err = c.via(verb("exec", query), func() (err error) {
		res, err = c.behind.ExecContext(ctx, query, args)
		return err
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

func (c *tapConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.query(verb("query", query), func() (driver.Rows, error) { return c.behind.QueryContext(ctx, query, args) })
}

// query makes a call that returns rows.
func (c *tapConn) query(name string, do func() (driver.Rows, error)) (driver.Rows, error) {
	var rows *tapRows
	err := c.via(name, func() error {
		behind, err := do()
		if err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.rows++
		rows = &tapRows{c: c, Rows: behind}
		return nil
	})
	if err != nil {
		if rows != nil {
			_ = rows.Close() // nobody else has them
		}
		return nil, err
	}
	return rows, nil
}

func (c *tapConn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

func (c *tapConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	var s *tapStmt
	err := c.via(verb("prepare", query), func() error {
		behind, err := c.behind.PrepareContext(ctx, query)
		if err != nil {
			return err
		}
		s = &tapStmt{c: c, Stmt: behind, query: query}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// tapStmt is a prepared statement.
type tapStmt struct {
	driver.Stmt
	c     *tapConn
	query string
}

func (s *tapStmt) CheckNamedValue(v *driver.NamedValue) error {
	if check, ok := s.Stmt.(driver.NamedValueChecker); ok {
		return check.CheckNamedValue(v)
	}
	return s.c.CheckNamedValue(v)
}

func (s *tapStmt) Close() error {
	if s.c.isLost() {
		return s.Stmt.Close() // the driver frees what it has
	}
	return s.c.via("close of a statement", s.Stmt.Close)
}

func (s *tapStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (res driver.Result, err error) {
	err = s.c.via(verb("execute", s.query), func() (err error) {
		res, err = s.Stmt.(driver.StmtExecContext).ExecContext(ctx, args)
		return err
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

func (s *tapStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.c.query(verb("execute", s.query), func() (driver.Rows, error) {
		return s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, args)
	})
}

// tapRows are rows of a query.
type tapRows struct {
	driver.Rows
	c      *tapConn
	closed bool
}

func (r *tapRows) Next(dest []driver.Value) error {
	return r.c.via("next", func() error { return r.Rows.Next(dest) })
}

func (r *tapRows) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	do := func() error {
		err := r.Rows.Close()
		r.c.mu.Lock()
		defer r.c.mu.Unlock()
		if r.c.rows--; r.c.lost {
			_ = r.c.closeBehind(false)
		}
		return err
	}
	if r.c.isLost() {
		return do() // the driver frees what it has
	}
	ran := false
	err := r.c.via("close of rows", func() error { ran = true; return do() })
	if !ran {
		_ = do()
	}
	return err
}

// breaking fails one call, the nth, with an error, before or after it was carried out,
// and ends its connection.
type breaking struct {
	mu    sync.Mutex
	n     int // 0: none any more
	after bool
	err   error
	name  string // of the call that was broken
}

// fires reports whether the call that begins, or has been carried out, is the one.
func (b *breaking) fires(name string, after bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if after != b.after || b.n == 0 {
		return false
	}
	if b.n--; b.n > 0 {
		return false
	}
	b.name = name
	return true
}

func (b *breaking) call(c *tapConn, name string, do func() error) error {
	if b.fires(name, false) {
		c.lose()
		return b.err
	}
	err := do()
	// ErrSkip is no answer of a database: database/sql goes another way.
	if err != driver.ErrSkip && b.fires(name, true) {
		c.lose()
		return b.err
	}
	return err
}

func (b *breaking) broken() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.name
}

// The driver in between changes nothing: the checks of a database are passed by way of it.
func TestTap(t *testing.T) {
	for _, d := range tappable() {
		t.Run(d.name, func(t *testing.T) {
			calls := make(map[string]int)
			var mu sync.Mutex
			db, err := openTap(d.driver, d.dsn(t), func(_ *tapConn, name string, do func() error) error {
				mu.Lock()
				calls[name]++
				mu.Unlock()
				return do()
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			tables(t, db, "sqlreq_work (id INTEGER)")
			exec(t, db, "INSERT INTO sqlreq_work VALUES (1)")
			if n := number(t, db, "SELECT count(*) FROM sqlreq_work"); n != 1 {
				t.Errorf("got %d rows", n)
			}
			if calls["connect"] == 0 || calls["exec INSERT sqlreq_work"] == 0 || calls["query SELECT"] == 0 || calls["next"] == 0 {
				t.Errorf("it has not heard of all calls: %v", calls)
			}
		})
	}
}
