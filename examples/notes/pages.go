package main

import (
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/notes/internal/audit"
	"github.com/sqlreq/sqlreq/examples/notes/internal/notesdb"
)

const pageSize = 20

// pages has a template for each file, with a copy of the layout of its own.
var pages = parsePages()

func parsePages() map[string]*template.Template {
	layout := template.Must(template.New("").Funcs(template.FuncMap{
		"fields": strings.Fields,
		"at":     func(string) bool { return false }, // whether this is the page; each has its own
	}).
		ParseFS(files, "templates/layout.html"))
	names, err := fs.Glob(files, "templates/*.html")
	if err != nil {
		panic(err)
	}
	pages := make(map[string]*template.Template, len(names))
	for _, name := range names {
		self := strings.TrimSuffix(path.Base(name), ".html")
		page := template.Must(layout.Clone()).Funcs(template.FuncMap{"at": func(name string) bool { return name == self }})
		pages[self] = template.Must(page.ParseFS(files, name))
	}
	return pages
}

// notesPage is one page of all notes, the newest first.
type notesPage struct {
	Notes             []notesdb.TaggedNote
	Total             int64
	Page, Pages       int64
	Newer, Older      int64 // page numbers; 0: there is none
	Newest            int64 // the id after which the event stream has to go on
	NewestIsDisplayed bool
}

// page reads the count and the notes in one transaction: they belong to the same state of the database.
func (s *server) page(r *http.Request) (p notesPage, err error) {
	p.Page = 1
	if q := r.URL.Query().Get("page"); q != "" {
		if p.Page, err = strconv.ParseInt(q, 10, 32); err != nil || p.Page < 1 {
			return p, sqlreq.Errorf(http.StatusBadRequest, "%q is no page number.", q)
		}
	}
	if p.Total, err = s.notes.CountNotes(r.Context()); err != nil {
		return p, err
	}
	p.Pages = max(1, (p.Total+pageSize-1)/pageSize)
	p.Notes, err = s.notes.ListNotes(r.Context(), notesdb.ListNotesParams{Limit: pageSize, Offset: (p.Page - 1) * pageSize})
	if err != nil {
		return p, err
	}
	if p.Page > 1 {
		p.Newer = min(p.Page-1, p.Pages)
	}
	if p.Page < p.Pages {
		p.Older = p.Page + 1
	}
	if p.Page == 1 {
		p.NewestIsDisplayed = true
		if len(p.Notes) > 0 {
			p.Newest = p.Notes[0].ID
		}
	}
	return p, nil
}

func (s *server) list(w http.ResponseWriter, r *http.Request) error {
	page, err := s.page(r)
	if err != nil {
		return err
	}
	return s.render(w, http.StatusOK, "list", page)
}

// toList is for somebody who asks again for the address of a form that was refused.
func (s *server) toList(w http.ResponseWriter, r *http.Request) error {
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}

// noteForm is the form as it was sent, with what is wrong about it, and in which field: title, body or tags.
type noteForm struct{ Title, Body, Tags, Problem, Wrong string }

func (s *server) newNote(w http.ResponseWriter, _ *http.Request) error {
	return s.render(w, http.StatusOK, "new", noteForm{})
}

// createNote answers a post with a redirect, so that reloading the page does not add the note again.
func (s *server) createNote(w http.ResponseWriter, r *http.Request) error {
	if err := r.ParseForm(); err != nil {
		return badRequest("The form could not be read", err)
	}
	form := noteForm{Title: r.PostFormValue("title"), Body: r.PostFormValue("body"), Tags: r.PostFormValue("tags")}
	if err := audit.Record(r.Context(), s.reg, "add note", form.Title); err != nil {
		return err
	}
	note, err := s.add(r.Context(), draft{form.Title, form.Body, strings.Fields(form.Tags)})
	if status := (*sqlreq.StatusError)(nil); errors.As(err, &status) {
		// A page of our own for this error, with the form filled in. Its status rolls back like the error would.
		form.Problem, form.Wrong = message(err), "title"
		if field := (*fieldError)(nil); errors.As(err, &field) {
			form.Wrong = field.field
		}
		return s.render(w, status.Code, "new", form)
	}
	if err != nil {
		return err
	}
	http.Redirect(w, r, fmt.Sprintf("/notes/%d", note.ID), http.StatusSeeOther)
	return nil
}

func (s *server) showNote(w http.ResponseWriter, r *http.Request) error {
	note, err := s.find(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return s.render(w, http.StatusOK, "note", note)
}
