package app

import (
	"context"
	"fmt"

	"github.com/jmoiron/sqlx"

	"github.com/sqlreq/sqlreq/integration/ports/sales"
)

// Products is the business of products, on their store.
type Products struct {
	users UserBusiness
	db    sqlx.ExtContext
}

// Create adds a product of a user.
func (b *Products) Create(ctx context.Context, product *sales.Product) error {
	if _, err := b.users.QueryByID(ctx, product.UserID); err != nil {
		return fmt.Errorf("user.querybyid: %w", err)
	}
	if product.Name == "" {
		return sales.ErrNoName
	}
	result, err := sqlx.NamedExecContext(ctx, b.db, `INSERT INTO products (user_id, name) VALUES (:user_id, :name)`, product)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	id, err := result.LastInsertId()
	product.ID = int(id)
	return err
}
