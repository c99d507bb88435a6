// Package repeat is how package idempotency asks the unit of work of a request, and
// tells it that a repeat of the request is safe, without a name of its own in the
// public package. The root's context answers Of; package unit implements Unit and
// looks for the mark of Record.
package repeat

import (
	"context"
	"database/sql"

	"github.com/sqlreq/sqlreq/internal/dialect"
)

// Request is a request, or a Registry.Do, as a context knows it.
type Request interface {
	Unit() Unit

	// Begin begins the transaction of a database if there is none, as a statement does.
	// It returns the engine of the database. That is all: unlike the functions of the
	// public package it gives nobody the transaction.
	Begin(ctx context.Context, key string) (Engine, error)

	HasErrorHandler() bool // whether the innermost registry has one
}

// Engine is what is known of a database engine.
type Engine = dialect.Dialect

// The engines whose SQL others may take, too: see Engine.Speaks.
const (
	SQLite     = dialect.SQLite
	PostgreSQL = dialect.PostgreSQL
	MySQL      = dialect.MySQL
)

// EngineOf returns the engine of a pool, which the type of its driver tells.
func EngineOf(db *sql.DB) Engine { return dialect.Of(db) }

// Unit is the unit of work of a request. Two of them are the same if they are equal.
type Unit interface {
	// Opened reports whether a transaction is open or being begun, on whatever
	// database, in this unit or in one around it: who waits then for another unit may
	// wait for locks that it holds itself, which no database sees.
	Opened() bool

	// AtEnd has e told when the transactions of the unit have ended, whatever became
	// of them, before its hooks run. It returns false if the unit is over already.
	AtEnd(e Ender) bool

	// BeforeEnd has c asked at the end of the unit whether what is open may be
	// committed, when nothing begins any more. Explicit Commits and Hijack do not ask.
	// It returns false if the unit is over already.
	BeforeEnd(c Checker) bool
}

// Ender is told of the end of a unit.
type Ender interface{ UnitEnded() }

// Checker says why a unit must not commit at its end, nil if it may.
type Checker interface{ MayCommit() error }

// Key is the key by which a context is asked for its Request.
type Key struct{}

// Of returns the request of ctx, nil if there is none.
func Of(ctx context.Context) Request {
	r, _ := ctx.Value(Key{}).(Request)
	return r
}

type recordKey struct{}

// Record returns ctx for the registration of a BeforeCommit function that writes
// the record of the request: it runs when no other function is left, its database is
// the last to commit, and if the answer to that COMMIT is lost the request may be
// repeated, since the record tells what has become of it.
func Record(ctx context.Context) context.Context {
	return context.WithValue(ctx, recordKey{}, true)
}

// IsRecord reports whether ctx is one of Record.
func IsRecord(ctx context.Context) bool { return ctx.Value(recordKey{}) != nil }

// Marked is a context of a request that has a mark, a pointer, as a key with the value
// true. It is no other context to the unit.
type Marked struct {
	context.Context
	Mark any
}

// Value returns true for the mark.
func (m *Marked) Value(key any) any {
	if key == m.Mark {
		return true
	}
	return m.Context.Value(key)
}

// Unmarked returns ctx without its marks.
func Unmarked(ctx context.Context) context.Context {
	for {
		m, ok := ctx.(*Marked)
		if !ok {
			return ctx
		}
		ctx = m.Context
	}
}

// Later is an error that is answered with Retry-After: the same request may go well
// a little later.
type Later struct{ Text string }

// Error returns the text.
func (l *Later) Error() string { return l.Text }
