// Package firebirdsql has a driver whose type's path is like that of the real one, for tests.
package firebirdsql

import "database/sql/driver"

// Driver opens nothing.
type Driver struct{ driver.Driver }
