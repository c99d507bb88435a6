package failures

import (
	"fmt"
	"net/http"
	"net/url"
)

// The constraint is checked at COMMIT. That is the easiest way to make one fail; others are a full disk, a
// serialization conflict, a server that is restarted, a connection that breaks.
var commit = Failure{
	ID:    "commit",
	Title: "A 201 before COMMIT fails",
	Lead:  "Somebody adds a note. The handler answers 201, and then the database refuses the COMMIT.",
	Why:   "The handler has written to the client when the middleware commits. Nobody is left to tell but the log.",
	Mend:  "Hold the answer back until COMMIT has succeeded, with its headers, up to a limit, and break it off beyond.",
	Well:  "COMMIT works",
	Doc:   "1-no-client-gets-a-complete-success-for-work-that-is-not-committed",

	guilty: "tx.Commit()", file: "commit.go", handler: "addNote",
	conns: 2,
	schema: `CREATE TABLE authors (id INTEGER PRIMARY KEY);
INSERT INTO authors VALUES (1);
CREATE TABLE notes (title TEXT NOT NULL, author INTEGER NOT NULL REFERENCES authors DEFERRABLE INITIALLY DEFERRED);`,
	serve: func(_ *stage, find finder) http.Handler { return addNote(find) },
	play: func(s *stage, trouble bool) (o outcome, err error) {
		author := "1"
		if trouble {
			author = "2" // there is no such author, which SQLite finds out at COMMIT
		}
		a := s.ask(s.ctx, "POST", "/notes", url.Values{"title": {"Milk"}, "author": {author}})
		n, err := count(s.ctx, s.db.DB, `SELECT count(*) FROM notes`)
		o.told, o.facts = []Answer{a}, []Fact{{"notes in the database", fmt.Sprint(n)}}
		saved := a.code == http.StatusCreated
		switch o.good = saved == (n == 1); {
		case !o.good:
			o.verdict = "The client was told of a note that does not exist."
		case saved:
			o.verdict = "The note is there, and the client knows."
		default:
			o.verdict = "The note is not there, and the client knows."
		}
		return o, err
	},
}

func addNote(find finder) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		title := r.PostFormValue("title")
		if _, err := find(r.Context()).ExecContext(r.Context(), `INSERT INTO notes VALUES (?, ?)`, title, r.PostFormValue("author")); err != nil {
			http.Error(w, "not saved", http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "Saved: %s\n", title)
	}
}
