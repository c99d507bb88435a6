// Package pgx tests adapters/pgx with what programs of pgx use: code that sqlc
// generates, scany, squirrel, River, otelpgx.
package pgx
