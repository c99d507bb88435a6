// Package mysql has a driver whose type's path is like that of the real one, for tests.
package mysql

import "database/sql/driver"

// Driver opens nothing.
type Driver struct{ driver.Driver }
