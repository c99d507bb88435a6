// Package dialect spells the statements about savepoints (ISO/IEC 9075-2, 17.5
// to 17.7). The names are made by this library and need no quoting.
package dialect

// Savepoint returns the statement that begins a savepoint.
func Savepoint(name string) string { return "SAVEPOINT " + name }

// Release returns the statement that ends a savepoint and keeps what was done in it.
func Release(name string) string { return "RELEASE SAVEPOINT " + name }

// RollbackTo returns the statement that undoes what was done in a savepoint. The
// savepoint stays open.
func RollbackTo(name string) string { return "ROLLBACK TO SAVEPOINT " + name }
