package drivers

import (
	"database/sql"
	"fmt"
	"testing"
)

// sqliteEngine is SQLite by a driver that gives a connection back inside of the transaction whose COMMIT was refused.
func sqliteEngine(name, file, driver, pragmas string) engine {
	return engine{name: name, file: file, guards: true, savepoints: true, cells: 288, lies: map[string]int{
		"a raw COMMIT, a BEGIN and a 422": 4, // without Guard and without a Savepoint nobody is asked
	}, open: func(t *testing.T) world {
		db, err := sql.Open(driver, "file:"+t.TempDir()+"/x.db"+pragmas)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		db.SetMaxOpenConns(1)
		for _, query := range []string{
			"PRAGMA foreign_keys = ON",
			"CREATE TABLE work (n INTEGER)",
			"CREATE TABLE parent (id INTEGER PRIMARY KEY)",
			"CREATE TABLE child (id INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)",
			"INSERT INTO parent VALUES (1)",
		} {
			if _, err := db.Exec(query); err != nil {
				t.Errorf("%s: %v", query, err)
			}
		}
		return world{
			db:     db,
			insert: func(n int) string { return fmt.Sprintf("INSERT INTO work VALUES (%d)", n) },
			stored: func() string { return readWork(t, db) },
			events: append(common(),
				statement("a constraint", "INSERT INTO parent VALUES (1)", true),
				statement("a constraint that rolls back", "INSERT OR ROLLBACK INTO parent VALUES (1)", true),
				statement("a table that is not there", "INSERT INTO nothing VALUES (1)", true),
				statement("a COMMIT that is refused", "INSERT INTO child VALUES (2)", false),
				statement("a raw COMMIT", "COMMIT", false),
				statement("a raw ROLLBACK", "ROLLBACK", false),
				event{"a raw COMMIT and a 422", then422("COMMIT"), true},
				event{"a raw COMMIT, a BEGIN and a 422", then422("COMMIT", "BEGIN"), true},
				event{"a raw ROLLBACK and a 422", then422("ROLLBACK"), true},
			),
		}
	}}
}
