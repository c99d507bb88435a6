package app

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/sqlreq/sqlreq/integration/ports/sales"
)

// UserBusiness is what can be done with users.
type UserBusiness interface {
	Create(ctx context.Context, user *sales.User) error
	QueryByID(ctx context.Context, id int) (sales.User, error)
}

// Users is the business of users, on their store.
type Users struct{ db sqlx.ExtContext }

// Create adds a user.
func (b *Users) Create(ctx context.Context, user *sales.User) error {
	result, err := sqlx.NamedExecContext(ctx, b.db, `INSERT INTO users (name, email) VALUES (:name, :email)`, user)
	if err != nil && strings.Contains(err.Error(), "UNIQUE") {
		return sales.ErrUniqueEmail
	}
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	id, err := result.LastInsertId()
	user.ID = int(id)
	return err
}

// QueryByID finds a user.
func (b *Users) QueryByID(ctx context.Context, id int) (user sales.User, err error) {
	err = sqlx.GetContext(ctx, b.db, &user, `SELECT id, name, email FROM users WHERE id = ?`, id)
	if errors.Is(err, sql.ErrNoRows) {
		return user, sales.ErrNotFound
	}
	return user, err
}

// Audited is the business of users with a record of what was done.
type Audited struct {
	UserBusiness
	db sqlx.ExtContext
}

// Create applies auditing.
func (b *Audited) Create(ctx context.Context, user *sales.User) error {
	if err := b.UserBusiness.Create(ctx, user); err != nil {
		return err
	}
	_, err := b.db.ExecContext(ctx, `INSERT INTO audits (object, action) VALUES (?, 'created')`, user.Name)
	return err
}
