package conformance

import (
	"database/sql"
	"strings"
	"testing"

	_ "modernc.org/sqlite"
)

// TestDeferredConstraintsAreShownFirst: a database that does not check them is told
// apart before sqlreq is blamed for it, also if one connection of its pool does.
func TestDeferredConstraintsAreShownFirst(t *testing.T) {
	for _, test := range []struct {
		name, settings string
		dialect        Dialect
		once           string // run on one connection
		want           string // a part of the error; "" if there is none
	}{
		{"switched on", "?_pragma=foreign_keys(1)", SQLite, "", ""},
		{"switched off", "", SQLite, "", "_pragma=foreign_keys(1)"},
		{"on for one connection", "", SQLite, "PRAGMA foreign_keys = 1", "_pragma=foreign_keys(1)"},
		{"off for one connection", "?_pragma=foreign_keys(1)", SQLite, "PRAGMA foreign_keys = 0", "_pragma=foreign_keys(1)"},
		{"no such thing", "", Dialect{ID: SQLite.ID}, "", ""},
		{"not deferred", "?_pragma=foreign_keys(1)", Dialect{ID: SQLite.ID, Deferred: "NOT DEFERRABLE"}, "", "NOT DEFERRABLE"},
	} {
		t.Run(test.name, func(t *testing.T) {
			db, err := sql.Open("sqlite", "file:"+t.TempDir()+"/test.db"+test.settings)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			s := &suite{db: db, dialect: test.dialect}
			s.create(t)
			if _, err := db.Exec(test.once); err != nil {
				t.Fatal(err)
			}
			err = s.deferredIsChecked(t.Context())
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
			var left int
			if err := db.QueryRow("SELECT count(*) FROM sqlreq_child").Scan(&left); err != nil || left != 0 {
				t.Errorf("%d rows left (%v), want none", left, err)
			}
			if n := db.Stats().InUse; n != 0 {
				t.Errorf("%d connections in use, want none", n)
			}
		})
	}
}
