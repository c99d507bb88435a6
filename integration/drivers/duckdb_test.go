package drivers

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	_ "github.com/duckdb/duckdb-go/v2"
)

// duckDBEngine is the real engine, in memory.
func duckDBEngine() engine {
	return engine{name: "DuckDB", file: "duckdb.txt", guards: true, cells: 256, open: func(t *testing.T) world {
		db, err := sql.Open("duckdb", "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		exec := func(query string) {
			t.Helper()
			if _, err := db.Exec(query); err != nil {
				t.Errorf("%s: %v", query, err)
			}
		}
		exec("CREATE TABLE work (n INTEGER); CREATE TABLE parent (id INTEGER PRIMARY KEY); CREATE TABLE counter (n INTEGER); INSERT INTO parent VALUES (1); INSERT INTO counter VALUES (0)")
		// Another transaction commits in between.
		conflict := func(ctx context.Context, run run) error {
			exec("UPDATE counter SET n = n + 1")
			return run(ctx, "UPDATE counter SET n = n + 1")
		}
		sameKey := func(ctx context.Context, run run) error {
			err := run(ctx, "INSERT INTO parent VALUES (2)")
			exec("INSERT INTO parent VALUES (2)")
			return err
		}
		return world{
			db:     db,
			insert: func(n int) string { return fmt.Sprintf("INSERT INTO work VALUES (%d)", n) },
			stored: func() string { return readWork(t, db) },
			events: append(common(),
				statement("a constraint", "INSERT INTO parent VALUES (1)", true),
				statement("a table that is not there", "INSERT INTO nothing VALUES (1)", true),
				event{"a conflict", conflict, true},
				event{"a COMMIT that is refused", sameKey, false},
				statement("a raw COMMIT", "COMMIT", false),
				statement("a raw ROLLBACK", "ROLLBACK", false),
				event{"a raw COMMIT and a 422", then422("COMMIT"), true},
				event{"a raw ROLLBACK and a 422", then422("ROLLBACK"), true},
			),
		}
	}}
}

func readWork(t *testing.T, db *sql.DB) string {
	t.Helper()
	rows, err := db.Query("SELECT n FROM work ORDER BY n")
	if err != nil {
		t.Errorf("what is stored: %v", err)
		return "?"
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var n string
		err = errors.Join(err, rows.Scan(&n))
		all = append(all, n)
	}
	if err := errors.Join(err, rows.Err()); err != nil {
		t.Errorf("what is stored: %v", err)
	}
	return strings.Join(all, " ")
}
