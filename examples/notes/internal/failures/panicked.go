package failures

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

var panicked = Failure{
	ID:    "panic",
	Title: "A connection leaked on a panic",
	Lead:  "A handler has a bug, and two requests meet it. The pool has two connections. Then somebody wants to read.",
	Why:   "A panic leaves the function between BEGIN and COMMIT. net/http survives it; the transaction stays open, with its connection and its locks.",
	Mend:  "End the transaction in a deferred function, which runs at a panic and at runtime.Goexit too.",
	Well:  "No panic",
	Doc:   "4-no-success-by-accident",

	guilty: "next.ServeHTTP(", file: "panicked.go", handler: "addTagged",
	conns:  2,
	schema: `CREATE TABLE notes (title TEXT NOT NULL, tag TEXT NOT NULL);`,
	serve: func(_ *stage, find finder) http.Handler {
		mux := http.NewServeMux()
		mux.Handle("POST /notes", addTagged(find))
		mux.Handle("GET /notes", countNotes(find))
		return mux
	},
	play: func(s *stage, trouble bool) (o outcome, err error) {
		tags := "shop"
		if trouble {
			tags = "" // the handler takes the first of them
		}
		for _, title := range []string{"Milk", "Bread"} {
			o.told = append(o.told, s.ask(s.ctx, "POST", "/notes", url.Values{"title": {title}, "tags": {tags}}))
		}
		inUse, pool := s.db.Stats().InUse, s.db.Stats().MaxOpenConnections
		last := s.askOrWait("GET", "/notes")
		o.told = append(o.told, last)
		o.facts = []Fact{{"connections still in use after the two", fmt.Sprintf("%d of %d", inUse, pool)}}
		switch o.good = last.code == http.StatusOK && inUse == 0; {
		case !o.good:
			o.verdict = "No request is answered any more, until the service is started again."
		case trouble:
			o.verdict = "Two requests failed, the service goes on."
		default:
			o.verdict = "All three were answered."
		}
		return o, nil
	},
}

func addTagged(find finder) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		tags := strings.Fields(r.PostFormValue("tags"))
		if _, err := find(r.Context()).ExecContext(r.Context(), `INSERT INTO notes VALUES (?, ?)`, r.PostFormValue("title"), tags[0]); err != nil {
			http.Error(w, "not saved", http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusCreated)
	}
}

func countNotes(find finder) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var n int
		if err := find(r.Context()).QueryRowContext(r.Context(), `SELECT count(*) FROM notes`).Scan(&n); err != nil {
			http.Error(w, "not read", http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "Notes:", n)
	}
}
