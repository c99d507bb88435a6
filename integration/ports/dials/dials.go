// Package dials is what the editions of a program have in common: its types, its schema and its HTTP server. It is
// written in the shape of wtf by Ben Johnson (https://github.com/benbjohnson/wtf, MIT License), a service whose store
// begins, defers a rollback and commits in each method. The store stands three times: in before as wtf has it, in
// savepoints and in atomic after the port to sqlreq.
package dials

import (
	"context"
	"errors"
	"fmt"
)

// Schema is that of the database.
const Schema = `
CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL, api_key TEXT NOT NULL UNIQUE);
CREATE TABLE dials (
	id      INTEGER PRIMARY KEY AUTOINCREMENT,
	user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
	name    TEXT NOT NULL,
	value   INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE dial_values (dial_id INTEGER NOT NULL REFERENCES dials (id) ON DELETE CASCADE, value INTEGER NOT NULL);
CREATE TABLE dial_memberships (
	id      INTEGER PRIMARY KEY AUTOINCREMENT,
	dial_id INTEGER NOT NULL REFERENCES dials (id) ON DELETE CASCADE,
	user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
	value   INTEGER NOT NULL DEFAULT 0,
	UNIQUE (dial_id, user_id)
);`

// User owns dials.
type User struct {
	ID   int    `json:"id"`
	Name string `json:"name"`
}

// Dial is the mean of what its members set.
type Dial struct {
	ID          int           `json:"id"`
	UserID      int           `json:"userID"`
	Name        string        `json:"name"`
	Value       int           `json:"value"`
	Memberships []*Membership `json:"memberships,omitempty"`
}

// Membership is what a user has set a dial to.
type Membership struct {
	ID     int `json:"id"`
	DialID int `json:"dialID"`
	UserID int `json:"userID"`
	Value  int `json:"value"`
}

// Event tells the members of a dial of a change.
type Event struct {
	Type   string
	DialID int
	Value  int
}

// EventService sends events.
type EventService interface {
	PublishEvent(userID int, event Event)
}

// UserService is a store of users.
type UserService interface {
	FindUserByKey(ctx context.Context, key string) (*User, error)
}

// DialService is a store of dials.
type DialService interface {
	FindDialByID(ctx context.Context, id int) (*Dial, error)
	FindDials(ctx context.Context) ([]*Dial, error)
	CreateDial(ctx context.Context, dial *Dial) error
	DeleteDial(ctx context.Context, id int) error
	SetDialMembershipValue(ctx context.Context, dialID, value int) error
}

// MembershipService is a store of memberships.
type MembershipService interface {
	FindMemberships(ctx context.Context, dialID int) ([]*Membership, error)
	CreateMembership(ctx context.Context, membership *Membership) error
	DeleteMembership(ctx context.Context, id int) error
}

// The codes of errors.
const (
	EINVALID      = "invalid"
	EUNAUTHORIZED = "unauthorized"
	ENOTFOUND     = "not_found"
	ECONFLICT     = "conflict"
	EINTERNAL     = "internal"
)

// Error is an error that a client is told.
type Error struct{ Code, Message string }

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Errorf returns an Error.
func Errorf(code, format string, args ...any) error {
	return &Error{code, fmt.Sprintf(format, args...)}
}

// ErrorCode returns the code of err, EINTERNAL for an error of another type.
func ErrorCode(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return EINTERNAL
}

// ErrorMessage returns what a client is told of err.
func ErrorMessage(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Message
	}
	return "Internal error."
}

type userKey struct{}

// NewContextWithUser returns a context with the user of the request.
func NewContextWithUser(ctx context.Context, user *User) context.Context {
	return context.WithValue(ctx, userKey{}, user)
}

// UserIDFromContext returns the user of the request, 0 if there is none.
func UserIDFromContext(ctx context.Context) int {
	if user, ok := ctx.Value(userKey{}).(*User); ok {
		return user.ID
	}
	return 0
}
