package dialect

import "testing"

// What commits by itself is told by its first word.
func TestMayCommit(t *testing.T) {
	for statement, want := range map[string]bool{
		"INSERT INTO t VALUES (1)":                   false,
		"insert into t values (1);\n":                false,
		"SELECT(1)":                                  false,
		"(SELECT 1) UNION (SELECT 2)":                false,
		"-- name: Add :exec\n# x\n/* y */\tUPDATE t": false,
		"WITH x AS (SELECT 1) DELETE FROM t":         false,
		"REPLACE INTO t VALUES (1)":                  false,
		"":                                           false,
		"--":                                         false,
		"/* TRUNCATE":                                false,
		"TRUNCATED":                                  false,
		"SAVEPOINT a":                                false,
		"/*! TRUNCATE t */":                          true,
		"/*M!100100 TRUNCATE t */":                   true,
		"TRUNCATE TABLE t":                           true,
		"truncate t":                                 true,
		"INSERT INTO t VALUES (1); TRUNCATE t":       true,
		"CREATE TABLE t (n INTEGER)":                 true,
		"COMMIT":                                     true,
		"CALL p()":                                   true,
	} {
		if got := MayCommit(statement); got != want {
			t.Errorf("%q: got %v, want %v", statement, got, want)
		}
	}
}
