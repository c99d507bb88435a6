package dialect

import "testing"

func TestNumber(t *testing.T) {
	for query, want := range map[string]string{
		"SELECT 1":                       "SELECT 1",
		"SELECT * FROM t WHERE id = ?":   "SELECT * FROM t WHERE id = $1",
		"INSERT INTO t VALUES (?, ?, ?)": "INSERT INTO t VALUES ($1, $2, $3)",
		"?":                              "$1",
	} {
		if got := number(query); got != want {
			t.Errorf("%s: got %s, want %s", query, got, want)
		}
	}
}
