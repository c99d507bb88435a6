// Package admin is an application of its own, mounted under the notes: it brings its own registry, its own templates
// and its own error page, and knows neither where it is mounted nor how its host opens the notes.
package admin

import (
	"database/sql"
	"embed"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"strconv"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/notes/internal/audit"
	"github.com/sqlreq/sqlreq/examples/notes/internal/auditdb"
	"github.com/sqlreq/sqlreq/examples/notes/internal/dialect"
	"github.com/sqlreq/sqlreq/examples/notes/internal/notesdb"
)

//go:embed *.html
var files embed.FS

var pages = template.Must(template.ParseFS(files, "*.html"))

type app struct {
	reg   *sqlreq.Registry
	notes *notesdb.Queries
	log   *auditdb.Queries
}

// New returns the application for a host that serves it under prefix. The notes are the host's: [sqlreq.DefaultKey]
// is not bound here and therefore found further out, and a request has one transaction there, whoever uses it. The
// audit database is bound here, for reading.
func New(prefix string, auditDB *sql.DB) (http.Handler, error) {
	reg, err := sqlreq.New(sqlreq.Binding{Key: audit.Key, DB: auditDB, TxOptions: sqlreq.ReadOnlySafeMethods})
	if err != nil {
		return nil, err
	}
	a := &app{reg: reg, notes: notesdb.New(dialect.DBTX{Key: sqlreq.DefaultKey}), log: auditdb.New(dialect.DBTX{Key: audit.Key})}
	reg.ErrorHandler = a.renderError

	mux := http.NewServeMux()
	mux.Handle("GET /{$}", sqlreq.HandlerFunc(a.index))
	mux.Handle("GET /notes/{id}/delete", sqlreq.HandlerFunc(a.askDelete))
	mux.Handle("POST /notes/{id}/delete", sqlreq.HandlerFunc(a.deleteNote))
	mux.Handle("GET /audit/{$}", sqlreq.HandlerFunc(a.audit))
	mux.Handle("/", sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		return sqlreq.Errorf(http.StatusNotFound, "There is no such page.")
	}))
	return reg.Mount(prefix, mux), nil
}

func (a *app) index(w http.ResponseWriter, r *http.Request) error {
	total, err := a.notes.CountNotes(r.Context())
	if err != nil {
		return err
	}
	newest, err := a.notes.ListNotes(r.Context(), notesdb.ListNotesParams{Limit: 50})
	if err != nil {
		return err
	}
	return render(w, r, http.StatusOK, "index.html", map[string]any{"Title": "Notes", "Total": total, "Notes": newest})
}

// askDelete asks before anything is deleted, by a page: that works without a script.
func (a *app) askDelete(w http.ResponseWriter, r *http.Request) error {
	id, err := parseID(r)
	if err != nil {
		return err
	}
	note, err := a.notes.GetNote(r.Context(), id)
	if errors.Is(err, sql.ErrNoRows) {
		return sqlreq.Errorf(http.StatusNotFound, "Note %d was not there any more.", id)
	}
	if err != nil {
		return err
	}
	return render(w, r, http.StatusOK, "delete.html", map[string]any{"Title": "Delete a note", "Note": note})
}

func parseID(r *http.Request) (int64, error) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		return 0, sqlreq.Errorf(http.StatusNotFound, "%q is no number.", r.PathValue("id"))
	}
	return id, nil
}

func (a *app) deleteNote(w http.ResponseWriter, r *http.Request) error {
	if err := audit.Record(r.Context(), a.reg, "delete note", r.PathValue("id")); err != nil {
		return err
	}
	id, err := parseID(r)
	if err != nil {
		return err
	}
	n, err := a.notes.DeleteNote(r.Context(), id)
	if err != nil {
		return err
	}
	if n == 0 {
		return sqlreq.Errorf(http.StatusNotFound, "Note %d was not there any more.", id)
	}
	// The path that this handler sees begins inside of the prefix; the browser's does not.
	http.Redirect(w, r, sqlreq.Prefix(r.Context())+"/", http.StatusSeeOther)
	return nil
}

func (a *app) audit(w http.ResponseWriter, r *http.Request) error {
	entries, err := a.log.Latest(r.Context(), 100)
	if err != nil {
		return err
	}
	return render(w, r, http.StatusOK, "audit.html", map[string]any{"Title": "Audit log", "Entries": entries})
}

func (a *app) renderError(w http.ResponseWriter, r *http.Request, err error) {
	code := sqlreq.StatusCode(err)
	if code >= 500 && r.Context().Err() == nil {
		slog.ErrorContext(r.Context(), "admin: request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	message, kept := http.StatusText(code), "Nothing was changed."
	if status := (*sqlreq.StatusError)(nil); errors.As(err, &status) && status.Code < 500 {
		message = status.Err.Error() // written for whoever reads the page; other errors are for the log only
	}
	if sqlreq.MayHaveCommitted(err) {
		kept = "Whether this was done is not known. Please look before you try again."
	}
	if err := render(w, r, code, "error.html", map[string]any{
		"Title": message, "Code": code, "Message": message, "Kept": kept, "Safe": r.Method == http.MethodGet || r.Method == http.MethodHead,
	}); err != nil {
		slog.ErrorContext(r.Context(), "admin: error page", "err", err)
	}
}

// render gives every template the Prefix that its links begin with, and its own name.
func render(w http.ResponseWriter, r *http.Request, code int, page string, data map[string]any) error {
	data["Prefix"], data["Page"] = sqlreq.Prefix(r.Context()), page
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(code)
	return pages.ExecuteTemplate(w, page, data)
}
