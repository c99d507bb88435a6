package failures

import (
	"fmt"
	"net/http"
	"net/url"
)

var hint = Failure{
	ID:    "hint",
	Title: "An early hint taken for the answer",
	Lead:  "A handler writes a note, tells the browser what to load (103 Early Hints), and then the database refuses a tag: 422.",
	Why:   "The first status is 103, which is below 400, so the middleware commits what the 422 should have undone.",
	Mend:  "Let only a status from 200 up count, and 101.",
	Well:  "The tag is fine",
	Doc:   "10-the-writer-stays-a-writer",

	guilty: "if w.status == 0", file: "hint.go", handler: "addWithHint",
	conns: 2,
	schema: `CREATE TABLE notes (id INTEGER PRIMARY KEY, title TEXT NOT NULL);
CREATE TABLE tags (note INTEGER NOT NULL REFERENCES notes, tag TEXT NOT NULL CHECK (tag NOT GLOB '*[^a-z]*'));`,
	serve: func(_ *stage, find finder) http.Handler { return addWithHint(find) },
	play: func(s *stage, trouble bool) (o outcome, err error) {
		tag := "shop"
		if trouble {
			tag = "NOT A TAG"
		}
		a := s.ask(s.ctx, "POST", "/notes", url.Values{"title": {"Milk"}, "tag": {tag}})
		notes, err := count(s.ctx, s.db.DB, `SELECT count(*) FROM notes`)
		if err != nil {
			return o, err
		}
		tags, err := count(s.ctx, s.db.DB, `SELECT count(*) FROM tags`)
		o.told = []Answer{a}
		o.facts = []Fact{{"notes in the database", fmt.Sprint(notes)}, {"tags", fmt.Sprint(tags)}}
		saved := a.code == http.StatusCreated
		switch o.good = notes == tags && saved == (notes == 1); {
		case !o.good:
			o.verdict = "Half a note was saved, and the client was told that none was."
		case saved:
			o.verdict = "The note and its tag are there, and the client knows."
		default:
			o.verdict = "Nothing was saved, and the client knows."
		}
		return o, err
	},
}

func addWithHint(find finder) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, db := r.Context(), find(r.Context())
		if _, err := db.ExecContext(ctx, `INSERT INTO notes (id, title) VALUES (1, ?)`, r.PostFormValue("title")); err != nil {
			http.Error(w, "not saved", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Link", "</static/style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		if _, err := db.ExecContext(ctx, `INSERT INTO tags VALUES (1, ?)`, r.PostFormValue("tag")); err != nil {
			http.Error(w, "not saved: a tag has small letters only", http.StatusUnprocessableEntity)
			return
		}
		w.WriteHeader(http.StatusCreated)
	}
}
