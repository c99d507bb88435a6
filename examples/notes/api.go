package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/notes/internal/audit"
	"github.com/sqlreq/sqlreq/examples/notes/internal/notesdb"
)

// The API is made of views: a resource is a type, and each of its methods answers the HTTP method of the same name.
// Others get 405 with the right Allow header.
type (
	notesAPI struct{ *server }
	noteAPI  struct{ *server }
)

type noteJSON struct {
	ID        int64     `json:"id"`
	Title     string    `json:"title"`
	Body      string    `json:"body"`
	Tags      []string  `json:"tags"`
	CreatedAt time.Time `json:"created_at"`
}

func toJSON(n notesdb.TaggedNote) noteJSON {
	return noteJSON{n.ID, n.Title, n.Body, strings.Fields(n.Tags), n.CreatedAt}
}

func (a notesAPI) Get(w http.ResponseWriter, r *http.Request) error {
	page, err := a.page(r)
	if err != nil {
		return err
	}
	notes := make([]noteJSON, len(page.Notes))
	for i, n := range page.Notes {
		notes[i] = toJSON(n)
	}
	return writeJSON(w, http.StatusOK, map[string]any{
		"notes": notes, "page": page.Page, "pages": page.Pages, "total": page.Total,
	})
}

func (a notesAPI) Post(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Title string   `json:"title"`
		Body  string   `json:"body"`
		Tags  []string `json:"tags"`
	}
	if err := decode(r.Body, &in); err != nil {
		return badRequest("This is not the JSON of a note", err)
	}
	if err := audit.Record(r.Context(), a.reg, "add note", in.Title); err != nil {
		return err
	}
	note, err := a.add(r.Context(), draft(in))
	if err != nil {
		return err
	}
	w.Header().Set("Location", fmt.Sprintf("/api/notes/%d", note.ID))
	return writeJSON(w, http.StatusCreated, toJSON(note))
}

func (a noteAPI) Get(w http.ResponseWriter, r *http.Request) error {
	note, err := a.find(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, toJSON(note))
}

func (a noteAPI) Delete(w http.ResponseWriter, r *http.Request) error {
	if err := audit.Record(r.Context(), a.reg, "delete note", r.PathValue("id")); err != nil {
		return err
	}
	id, err := parseID(r.PathValue("id"))
	if err != nil {
		return err
	}
	n, err := a.notes.DeleteNote(r.Context(), id)
	if err != nil {
		return err
	}
	if n == 0 {
		return sqlreq.Errorf(http.StatusNotFound, "There is no such note.")
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// decode reads exactly one JSON value.
func decode(body io.Reader, v any) error {
	dec := json.NewDecoder(body)
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	// The error's own text names types of Go.
	if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
		return fmt.Errorf("got %s for %s", wrong.Value, cmp.Or(wrong.Field, "the whole"))
	}
	if err == io.EOF {
		return errors.New("it is empty")
	}
	if err != nil {
		return err
	}
	switch _, err := dec.Token(); {
	case err == io.EOF:
		return nil
	case errors.As(err, new(*http.MaxBytesError)):
		return err
	}
	return errors.New("there is something after it")
}
