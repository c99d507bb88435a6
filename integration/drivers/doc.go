// Package drivers has tests that import every driver which docs/databases.md names, and ten wrappers: each driver's type
// is found by internal/dialect, and its errors are read by internal/sqlerr. SQL Server's driver talks to a server of the
// test's, Oracle's types stand before a database of the test's, and DuckDB runs.
package drivers
