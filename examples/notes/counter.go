package main

import (
	"context"
	"net/http"

	"github.com/sqlreq/sqlreq/examples/notes/internal/notesdb"
)

const clicks = "clicks"

// increment reads, adds in Go, and writes: the textbook way to lose increments. Here none is lost. Of two requests
// that have read the same value, the second one to write gets a conflict from SQLite, is rolled back, and runs again
// from its beginning (see [sqlreq.Retry] in newServer). There is nothing to see of it in this function, but that it
// must not do anything that may not happen twice.
func (s *server) increment(ctx context.Context) (int64, error) {
	n, err := s.notes.GetCounter(ctx, clicks)
	if err != nil {
		return 0, err
	}
	n++
	return n, s.notes.SetCounter(ctx, notesdb.SetCounterParams{Name: clicks, Value: n})
}

// count is what the page and the API show.
type count struct {
	Value int64 `json:"value"`
	Again int64 `json:"again"` // transactions begun again since the start, here and elsewhere in the service
}

func (s *server) count(ctx context.Context) (c count, err error) {
	c.Value, err = s.notes.GetCounter(ctx, clicks)
	c.Again = s.again.Load()
	return c, err
}

type counterPage struct{ *server }

func (p counterPage) Get(w http.ResponseWriter, r *http.Request) error {
	c, err := p.count(r.Context())
	if err != nil {
		return err
	}
	return p.render(w, http.StatusOK, "counter", map[string]any{"Count": c, "Host": r.Host})
}

func (p counterPage) Post(w http.ResponseWriter, r *http.Request) error {
	if _, err := p.increment(r.Context()); err != nil {
		return err
	}
	http.Redirect(w, r, "/counter", http.StatusSeeOther)
	return nil
}

type counterAPI struct{ *server }

func (a counterAPI) Get(w http.ResponseWriter, r *http.Request) error {
	c, err := a.count(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, c)
}

func (a counterAPI) Post(w http.ResponseWriter, r *http.Request) error {
	n, err := a.increment(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, count{n, a.again.Load()})
}
