package idempotency

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/repeat"
)

// claim is the row of a key in a unit of work.
type claim struct {
	once   *Once
	id     recordID
	ctx    context.Context             // of the claim, for what follows a Rollback
	write  func(context.Context) error // writes the record
	flight flight
	sql    *statements // of the table; set by take, as what follows
	scope  any         // of id, as arguments of the statements
	key    any

	mu         sync.Mutex // guards what follows
	gone       bool       // the row went with an explicit Rollback
	over       bool       // nothing is to be inserted again
	registered bool       // write is to be called before COMMIT; that may have been done
	written    bool       // write was called
	answered   bool       // write is to be called, or need not: nothing is committed at the end of the unit before
}

func newClaim(ctx context.Context, o *Once, id recordID, unit repeat.Unit) claim {
	return claim{once: o, id: id, ctx: ctx, flight: flight{id: id, unit: unit}}
}

// take inserts the row. If there is one already it returns that, or ErrInProgress if
// its transaction does not end in time. The transaction is begun apart: how long that
// may take is another matter.
func (c *claim) take(most time.Duration) (*row, error) {
	engine, err := repeat.Of(c.ctx).Begin(c.ctx, string(c.once.database()))
	if err == nil {
		err = c.speak(engine)
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(c.ctx, max(most, c.once.wait()/10)) // the last moment of a wait is no time for a statement
	defer cancel()
	for range 3 { // a row may be cleaned in between
		first, err := c.insert(ctx)
		if first || err != nil {
			return nil, c.waited(ctx, err)
		}
		r, err := c.read(ctx)
		if r != nil || err != nil {
			return r, c.waited(ctx, err)
		}
	}
	return nil, ErrInProgress
}

// speak chooses the dialect: with a Route each pool may have another.
func (c *claim) speak(engine repeat.Engine) error {
	d, err := c.once.Dialect.on(engine)
	if err != nil {
		return fmt.Errorf("idempotency: key %q: %w", c.once.database(), err)
	}
	c.sql, c.scope, c.key = &c.once.sql[d], d.text(c.id.scope), d.text(c.id.key)
	return nil
}

// waited makes the error of a statement that has waited in vain ErrInProgress.
func (c *claim) waited(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil || c.ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w: %v", ErrInProgress, err)
}

// insert reports whether the row is a new one.
func (c *claim) insert(ctx context.Context) (first bool, err error) {
	o := c.once
	n, err := affected(o.database().ExecContext(ctx, c.sql.insert, c.scope, c.key, c.id.kind, time.Now().Unix()))
	if err != nil {
		return false, fmt.Errorf("idempotency: insert the key into %s: %w", o.table(), err)
	}
	return n == 1, nil
}

func affected(result sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// read returns the row that is there, nil if there is none.
func (c *claim) read(ctx context.Context) (*row, error) {
	o, r := c.once, new(row)
	err := o.database().QueryRowContext(ctx, c.sql.read, c.scope, c.key, c.id.kind).
		Scan(&r.status, &r.fingerprint, &r.header, &r.body)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("idempotency: read the record in %s: %w", o.table(), err)
	}
	return r, nil
}

// watch has the row inserted again after an explicit Rollback, which takes it along.
func (c *claim) watch() error {
	return c.once.database().AfterRollback(c.ctx, func(context.Context) { c.rolledBack() })
}

func (c *claim) rolledBack() {
	again, registered := c.noteRollback()
	if !again {
		return
	}
	err := c.watch()
	if err == nil {
		err = c.once.database().BeforeCommit(c.ctx, c.insertAgain)
	}
	if err == nil && registered { // the handler has returned: what follows is of a layer outside
		err = c.record()
	}
	if err != nil && !errors.Is(err, sqlreq.ErrFinished) { // at the end there is no next transaction
		_ = sqlreq.Fail(c.ctx, err)
	}
}

func (c *claim) noteRollback() (again, registered bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	registered = c.registered
	c.gone, c.registered, c.written = true, false, false
	return !c.over, registered
}

// insertAgain is a BeforeCommit function.
func (c *claim) insertAgain(ctx context.Context) error {
	first, err := c.insert(ctx)
	if err != nil {
		return err
	}
	if !first {
		return ErrInProgress
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = false
	return nil
}

// forget ends the claim: nothing is inserted again.
func (c *claim) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over, c.answered = true, true
}

func (c *claim) noteAnswered() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered = true
}

func (c *claim) isUnanswered() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.answered
}

// record has c.write called before COMMIT, when all other functions have run. Where an
// explicit Commit has committed the row, and nothing has begun since, a transaction
// begins for it.
func (c *claim) record() error {
	db := c.once.database()
	register, gone := c.mayRegister()
	if !register {
		return nil
	}
	if !gone && !db.Begun(c.ctx) {
		if _, err := repeat.Of(c.ctx).Begin(c.ctx, string(db)); err != nil {
			return err
		}
	}
	return db.BeforeCommit(repeat.Record(c.ctx), c.write)
}

// mayRegister reports whether write is to be registered: it is not if it is already,
// and has not run.
func (c *claim) mayRegister() (register, gone bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	register = !c.registered || c.written
	c.registered, c.written = true, false
	return register, c.gone
}

func (c *claim) noteWritten() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.written = true
}

// update writes the record.
func (c *claim) update(ctx context.Context, r row) error {
	c.noteWritten()
	o := c.once
	n, err := affected(o.database().ExecContext(ctx, c.sql.update, r.status, r.fingerprint, r.header, r.body,
		c.scope, c.key, c.id.kind))
	switch {
	case err != nil:
		return fmt.Errorf("idempotency: write the record into %s: %w", o.table(), err)
	case n != 1:
		return fmt.Errorf("idempotency: write the record into %s: the row of the key has gone; only Clean may remove it", o.table())
	}
	return nil
}
