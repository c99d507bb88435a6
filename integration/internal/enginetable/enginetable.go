// Package enginetable is the table of engines in docs/databases.md. Its lines are written by the tests
// that have run on the engine, and for those that are not run here by the table below, which
// names where it is from.
package enginetable

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sqlreq/sqlreq/integration/conformance"
)

// run are the engines that tests run on, each by the name that they use, in the order of the table.
var run = []string{
	"PostgreSQL, pgx",
	"PostgreSQL, pgxpool by adapters/pgx",
	"PostgreSQL, lib/pq",
	"MariaDB, go-sql-driver/mysql",
	"SQLite, modernc.org/sqlite",
	"SQLite, mattn/go-sqlite3",
	"SQLite, ncruces/go-sqlite3",
	"SQLite, glebarez/go-sqlite",
	"DuckDB, duckdb/duckdb-go",
}

// Read is an engine that is not run here.
type Read struct {
	Name   string
	Cells  []string // conformance.Capabilities: "run once", "read" or "no"
	Tested string
	Source string // where it is from
}

const (
	once = "run once"
	read = "read"
	none = "no"
)

// NotRun are the engines that are not run here.
var NotRun = []Read{
	{"SQL Server, go-mssqldb", []string{read, read, read, read, read, read, read}, "read; in CI a test's server with its documented answers",
		"https://learn.microsoft.com/sql/t-sql/language-elements/save-transaction-transact-sql"},
	{"Oracle, go-ora", []string{read, read, read, read, none, read, none}, "read; in CI a test's server with its documented answers",
		"https://docs.oracle.com/en/database/oracle/oracle-database/19/sqlrf/SAVEPOINT.html"},
	{"Oracle, godror", []string{read, read, read, read, none, read, none}, "read", "https://github.com/godror/godror"},
	{"TiDB, go-sql-driver/mysql", []string{once, once, once, once, once, once, none}, "run once; in CI its error codes",
		"https://docs.pingcap.com/tidb/stable/error-codes/"},
	{"CockroachDB, pgx", []string{read, read, read, read, read, read, read}, "read; in CI its error codes",
		"https://www.cockroachlabs.com/docs/stable/transaction-retry-error-reference"},
	{"Firebird, firebirdsql", []string{once, once, once, read, once, once, read}, "run once; in CI its error codes",
		"https://github.com/nakagami/firebirdsql"},
	{"libSQL, go-libsql", []string{once, once, none, once, read, read, read}, "run once", "https://github.com/tursodatabase/go-libsql"},
	{"Snowflake, gosnowflake", []string{read, none, none, read, none, none, none}, "read", "https://docs.snowflake.com/en/sql-reference/transactions"},
	{"Spanner, go-sql-spanner", []string{read, none, none, read, none, none, none}, "read", "https://github.com/googleapis/go-sql-spanner"},
	{"YDB, ydb-go-sdk", []string{read, none, none, read, none, none, none}, "read", "https://github.com/ydb-platform/ydb-go-sdk"},
	{"Trino, trino-go-client", []string{read, none, none, read, none, none, none}, "read", "https://github.com/trinodb/trino-go-client"},
	{"rqlite, gorqlite", []string{none, none, none, none, none, none, none}, "read: New refuses it", "https://github.com/rqlite/gorqlite"},
	{"ClickHouse, clickhouse-go", []string{none, none, none, none, none, none, none}, "read: New refuses it", "https://github.com/ClickHouse/clickhouse-go"},
}

const (
	begin = "<!-- written by TestConformance and TestEngineTable: begin -->\n"
	end   = "<!-- end -->\n"
)

// Compare returns an error if the line of an engine in file is another than that of its report. With update it
// writes the line instead.
func Compare(file, name string, r conformance.Report, update bool) error {
	if !slices.Contains(run, name) {
		return fmt.Errorf("enginetable: %q is in no place of the table; name it in run", name)
	}
	return compare(file, name, conformance.Line(name, append(r.Cells("run in CI"), "in CI")...), update)
}

// CompareNotRun is Compare for those of NotRun. It also returns an error if the table has other lines, or another
// order.
func CompareNotRun(file string, update bool) error {
	names := slices.Clone(run)
	for _, e := range NotRun {
		names = append(names, e.Name)
		line := conformance.Line(e.Name, append(slices.Clone(e.Cells), fmt.Sprintf("[%s](%s)", e.Tested, e.Source))...)
		if err := compare(file, e.Name, line, update); err != nil {
			return err
		}
	}
	_, table, _, err := cut(file)
	if err != nil {
		return err
	}
	want := conformance.Header()
	if !strings.HasPrefix(table, want) {
		return fmt.Errorf("%s: the table does not begin with\n%s", file, want)
	}
	var have []string
	for line := range strings.Lines(strings.TrimPrefix(table, want)) {
		have = append(have, nameOf(line))
	}
	if !slices.Equal(have, names) {
		return fmt.Errorf("%s: the table has the lines %q, want %q", file, have, names)
	}
	return nil
}

func compare(file, name, line string, update bool) error {
	before, table, after, err := cut(file)
	if err != nil {
		return err
	}
	lines := slices.Collect(strings.Lines(table))
	i := slices.IndexFunc(lines, func(l string) bool { return nameOf(l) == name })
	switch {
	case i >= 0 && lines[i] == line:
		return nil
	case !update:
		return fmt.Errorf("%s: the line of %s is another; if that is right: go test with -update\nwant %s", file, name, line)
	case i >= 0:
		lines[i] = line
	default:
		lines = append(lines, line)
	}
	return os.WriteFile(file, []byte(before+begin+ordered(lines)+end+after), 0o644)
}

// ordered returns the table with its head, and its lines in their order.
func ordered(lines []string) string {
	var b strings.Builder
	b.WriteString(conformance.Header())
	names := slices.Clone(run)
	for _, e := range NotRun {
		names = append(names, e.Name)
	}
	for _, name := range names {
		for _, line := range lines {
			if nameOf(line) == name {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// nameOf returns the first cell of a line.
func nameOf(line string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " | ")
	return name
}

func cut(file string) (before, table, after string, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", "", "", err
	}
	before, rest, ok1 := strings.Cut(string(text), begin)
	table, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return "", "", "", fmt.Errorf("%s has no place for the table of engines: want %s%s", file, begin, end)
	}
	return before, table, after, nil
}

// CompareFound returns an error if what TestDSN prints of a report is not what the file in dir says, whose name
// is that of the engine. With update it writes the file instead.
func CompareFound(dir, name string, r conformance.Report, update bool) error {
	file := filepath.Join(dir, FoundFile(name))
	got := r.String()
	old, err := os.ReadFile(file)
	switch {
	case err == nil && string(old) == got:
		return nil
	case update:
		return os.WriteFile(file, []byte(got), 0o644)
	case err != nil:
		return err
	}
	return fmt.Errorf("%s: what is found is another; if that is right: go test with -update\ngot\n%s\nwant\n%s", file, got, old)
}

// FoundFile returns the name of an engine's file.
func FoundFile(name string) string {
	return strings.NewReplacer(", ", "-", "/", "-", " ", "-").Replace(name) + ".md"
}
