package modeltest

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
)

// Connector is a Server as a driver of database/sql.
type Connector struct{ *Server }

// Connect is that of driver.Connector.
func (c Connector) Connect(context.Context) (driver.Conn, error) { return &conn{c.Open()}, nil }

// Driver is that of driver.Connector.
func (c Connector) Driver() driver.Driver { return nil }

// EndKey is the key of a context's value that is the func() which ends the context.
type EndKey struct{}

type conn struct{ *Session }

func (c *conn) run(ctx context.Context, query string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	end, _ := ctx.Value(EndKey{}).(func())
	return c.Run(query, end)
}

func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	query := "BEGIN"
	if opts.ReadOnly {
		query = "BEGIN READ ONLY" // and not heeded
	}
	if _, err := c.run(ctx, query); err != nil {
		return nil, err
	}
	c.tx.ReadOnly = opts.ReadOnly
	c.tx.RollsBack = opts.ReadOnly && sql.IsolationLevel(opts.Isolation) != sql.LevelSerializable
	return c, nil
}

func (c *conn) Commit() error {
	_, err := c.Run("COMMIT", nil)
	return err
}

func (c *conn) Rollback() error {
	_, err := c.Run("ROLLBACK", nil)
	return err
}

func (c *conn) ExecContext(ctx context.Context, query string, _ []driver.NamedValue) (driver.Result, error) {
	_, err := c.run(ctx, query)
	return driver.ResultNoRows, err
}

func (c *conn) QueryContext(ctx context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	v, err := c.run(ctx, query)
	if err != nil {
		return nil, err
	}
	return &rows{value: v}, nil
}

func (c *conn) ResetSession(context.Context) error {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if c.layers != nil {
		c.server.faulty = append(c.server.faulty, c.server.Name+": a connection came out of the pool inside a transaction")
	}
	return nil
}

func (c *conn) Close() error {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.closed = true
	c.drop()
	return nil
}

func (c *conn) Begin() (driver.Tx, error)           { return nil, errors.ErrUnsupported }
func (c *conn) Prepare(string) (driver.Stmt, error) { return nil, errors.ErrUnsupported }

type rows struct {
	value string
	done  bool
}

func (r *rows) Columns() []string { return []string{"value"} }
func (r *rows) Close() error      { return nil }

func (r *rows) Next(dest []driver.Value) error {
	if r.done {
		return io.EOF
	}
	r.done, dest[0] = true, r.value
	return nil
}
