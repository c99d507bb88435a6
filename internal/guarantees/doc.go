// Package guarantees has no code, only tests: each file begins with the guarantee
// that it guards, and each test has its number in its name. What a test needs more
// than a registry and a handler comes from internal/sqlreqtest.
package guarantees
