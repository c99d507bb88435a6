// Package sqlreqgorm runs gorm in the transaction of a request.
package sqlreqgorm

import (
	"context"
	"database/sql"
	"fmt"

	"gorm.io/gorm"

	"github.com/sqlreq/sqlreq"
)

// DB returns a session of db that runs its statements in the transaction of key, of the
// request or Do that ctx belongs to; the first of them begins it. db is the program's,
// opened on the pool:
//
//	db, err := gorm.Open(sqlite.New(sqlite.Config{Conn: pool}), &gorm.Config{})
//
// Conditions, hooks and settings of db are kept. Transaction and SavePoint of the session
// are savepoints of the request's transaction, which gorm does not release, and whose
// rollback drops no hooks of sqlreq's; Begin, Commit and Rollback are errors that say what
// to do. Prepared statements (Session with PrepareStmt) run in the transaction, too: what their own
// errors say of a conflict, sqlreq learns only if the handler returns them. gorm prepares
// with a lock held that all its sessions wait for, without a context: begin before, by
// sqlreq.Tx or any other statement. As a request's first one it waits for a connection of
// the pool, and those who have one, for it, until its context ends.
//
// The session is for one goroutine and one context at a time: inside of sqlreq.Savepoint
// or Registry.Atomic call DB again with the context that the function is given. With a
// context that belongs to no request its statements return sqlreq.ErrNoRegistry. After the
// request they return sqlreq.ErrFinished. An error in db stays in the session.
//
// Session(&gorm.Session{PrepareStmt: true}).Connection(fn) takes a connection of its own,
// out of the transaction; gorm gives no way to see that.
func DB(ctx context.Context, db *gorm.DB, key sqlreq.Key) *gorm.DB {
	session := db.Session(&gorm.Session{Context: ctx, SkipDefaultTransaction: true})
	session.Statement.ConnPool = &pool{key} // a copy's, since there is a Context
	return session
}

// pool is a Key as gorm wants an open transaction: a gorm.Tx. It is a pointer, for gorm
// asks some of them whether they are nil.
type pool struct{ sqlreq.Key }

var (
	_ gorm.Tx               = (*pool)(nil)
	_ gorm.ConnPoolBeginner = (*pool)(nil)
	_ gorm.GetDBConnector   = (*pool)(nil)
)

func (p *pool) refuse(what, instead string) error {
	return fmt.Errorf("sqlreqgorm: %s: the transaction of key %q is the request's; %s", what, p.Key, instead)
}

// BeginTx is what gorm's Begin calls. It hides that of the Key, by which gorm would end
// the request's transaction after each write.
func (p *pool) BeginTx(context.Context, *sql.TxOptions) (gorm.ConnPool, error) {
	return p, p.refuse("Begin", "use Transaction of the session, which is a savepoint, or sqlreq.Savepoint")
}

// Commit is what gorm's Commit calls.
func (p *pool) Commit() error {
	return p.refuse("Commit", "it is committed at the end of the request; use sqlreq.Commit to do it before")
}

// Rollback is what gorm's Rollback calls.
func (p *pool) Rollback() error {
	return p.refuse("Rollback", "return an error, or use sqlreq.Rollback")
}

// GetDBConn is what gorm's DB and Connection call.
func (p *pool) GetDBConn() (*sql.DB, error) {
	return nil, p.refuse("DB or Connection", "for work outside of it use the gorm.DB that was opened on the pool")
}

// StmtContext returns stmt, which was prepared on the pool or in another transaction, as
// one of the request's transaction.
func (p *pool) StmtContext(ctx context.Context, stmt *sql.Stmt) *sql.Stmt {
	tx, err := p.Tx(ctx)
	if err != nil {
		return failing(err)
	}
	return tx.StmtContext(ctx, stmt)
}

// failing returns a statement whose methods return err. An empty sql.Stmt would panic.
// sql.Tx makes one when it is asked with a context that has ended, with the context's
// error.
func failing(err error) *sql.Stmt {
	return new(sql.Tx).StmtContext(ended{context.Background(), err}, nil)
}

// ended is a context that has ended with err.
type ended struct {
	context.Context
	err error
}

var closed = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func (e ended) Done() <-chan struct{} { return closed }
func (e ended) Err() error            { return e.err }
