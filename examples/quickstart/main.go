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
	db, err := sql.Open("sqlite", "file:notes.db?_pragma=busy_timeout(5000)")
	if err != nil {
		log.Fatal(err)
	}
	if _, err := db.Exec(`CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)`); err != nil {
		log.Fatal(err)
	}
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		log.Fatal(err)
	}

	mux := http.NewServeMux()
	mux.Handle("POST /notes", sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		tx, err := sqlreq.Tx(r.Context()) // BEGIN, now
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(r.Context(), `INSERT INTO notes (text) VALUES (?)`, r.FormValue("text")); err != nil {
			return err
		}
		if r.FormValue("text") == "" {
			return sqlreq.Errorf(http.StatusUnprocessableEntity, "a note without a text") // ROLLBACK
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintln(w, "saved") // held until COMMIT has succeeded
		return nil
	}))
	mux.HandleFunc("GET /ping", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "pong") // asks for no transaction, and pays for none
	})
	log.Fatal(http.ListenAndServe("localhost:8080", reg.Middleware(mux)))
}
