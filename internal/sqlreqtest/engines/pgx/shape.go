// Package pgx has a driver whose type's path is like that of the real one, for tests.
package pgx

import "database/sql/driver"

// Driver opens nothing.
type Driver struct{ driver.Driver }
