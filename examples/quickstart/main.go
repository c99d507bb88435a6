// Quickstart is the program on the first screen of the README.
package main

import (
	"database/sql"
	"fmt"
	"log"
	"net/http"

	"github.com/sqlreq/sqlreq"
	_ "modernc.org/sqlite"
)

func main() {
	db, err := sql.Open("sqlite", "file:notes.db?_txlock=immediate&_pragma=busy_timeout(5000)") // a second writer waits
	if err != nil {
		log.Fatal(err)
	}
	if _, err := db.Exec(`CREATE TABLE IF NOT EXISTS notes (text TEXT NOT NULL)`); err != nil {
		log.Fatal(err)
	}
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /notes", sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		var n int
		if err := sqlreq.DefaultKey.QueryRowContext(r.Context(), `SELECT count(*) FROM notes`).Scan(&n); err != nil {
			return err // the client gets a 500
		}
		fmt.Fprintln(w, "notes:", n)
		return nil
	}))
	mux.Handle("POST /notes", sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		text := r.FormValue("text")
		if _, err := sqlreq.DefaultKey.ExecContext(r.Context(), `INSERT INTO notes VALUES (?)`, text); err != nil {
			return err
		}
		if text == "" { // the note is inserted already: the 422 rolls it back
			return sqlreq.Errorf(http.StatusUnprocessableEntity, "a note is empty")
		}
		fmt.Fprintln(w, "saved") // sent when COMMIT has succeeded
		return nil
	}))
	log.Fatal(http.ListenAndServe("localhost:8080", reg.Middleware(mux)))
}
