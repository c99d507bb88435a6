package sales

import "errors"

// Schema is that of the database.
const Schema = `
CREATE TABLE users (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, email TEXT NOT NULL UNIQUE);
CREATE TABLE products (id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL REFERENCES users (id), name TEXT NOT NULL);
CREATE TABLE audits (object TEXT NOT NULL, action TEXT NOT NULL);`

// User sells products.
type User struct {
	ID    int    `db:"id" json:"id"`
	Name  string `db:"name" json:"name"`
	Email string `db:"email" json:"email"`
}

// Product is sold.
type Product struct {
	ID     int    `db:"id" json:"id"`
	UserID int    `db:"user_id" json:"userID"`
	Name   string `db:"name" json:"name"`
}

// NewTran is a user with the first product.
type NewTran struct {
	User    User    `json:"user"`
	Product Product `json:"product"`
}

// What the business of users and products returns.
var (
	ErrNotFound    = errors.New("user not found")
	ErrUniqueEmail = errors.New("email is not unique")
	ErrNoName      = errors.New("a product needs a name")
)
