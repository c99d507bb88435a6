package recipes

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/a-h/templ"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

var errPlain = errors.New("on purpose")

// chi: what looks at the response is outside, and so is sqlreq of the router: chi keeps where it is in a pointer, which
// a further attempt would find as the first has left it.
func TestChi(t *testing.T) {
	s := adaptertest.NewSite(t)
	s.Reg.Retry = sqlreqtest.Retries(3)
	attempts := 0
	notes := chi.NewRouter()
	notes.Post("/{id}", func(w http.ResponseWriter, r *http.Request) {
		attempts++
		if err := s.Insert(r.Context()); err != nil {
			t.Error(err)
		}
		switch id := chi.URLParam(r, "id"); {
		case id == "invalid":
			w.WriteHeader(422)
		case attempts == 1:
			_ = sqlreq.Fail(r.Context(), sqlreqtest.Conflict{})
		}
	})
	router := chi.NewRouter()
	router.Mount("/notes", notes)
	h := middleware.Recoverer(s.Reg.Middleware(router))
	url := s.Serve(t, h)
	want(t, s, url+"/notes/7", 200, 1)
	if attempts != 2 {
		t.Errorf("got %d attempts, want 2", attempts)
	}
	want(t, s, url+"/notes/invalid", 422, 1)

	// With Use the second attempt is routed with what is left of the path, and finds nothing.
	s = adaptertest.NewSite(t)
	s.Reg.Retry = sqlreqtest.Retries(3)
	attempts = 0
	inner := chi.NewRouter()
	inner.Post("/{id}", func(_ http.ResponseWriter, r *http.Request) {
		if attempts++; attempts == 1 {
			_ = sqlreq.Fail(r.Context(), sqlreqtest.Conflict{})
		}
	})
	router = chi.NewRouter()
	router.Use(s.Reg.Middleware)
	router.Mount("/notes", inner)
	if got := s.Send(t, "POST", s.Serve(t, router)+"/notes/7"); got.Status != 404 {
		t.Errorf("got %d after %d attempts: chi routes a second attempt now; the recipe can be simpler", got.Status, attempts)
	}
}

// huma writes the status of an error, which decides.
func TestHuma(t *testing.T) {
	s := adaptertest.NewSite(t)
	mux := http.NewServeMux()
	api := humago.New(mux, huma.DefaultConfig("notes", "1"))
	for path, err := range map[string]error{"/ok": nil, "/invalid": huma.Error422UnprocessableEntity("no"), "/plain": errPlain} {
		huma.Post(api, path, func(ctx context.Context, _ *struct{}) (*struct{}, error) {
			if err := s.Insert(ctx); err != nil {
				return nil, err
			}
			return nil, err
		})
	}
	url := s.Serve(t, s.Reg.Middleware(mux))
	want(t, s, url+"/ok", 204, 1)
	want(t, s, url+"/invalid", 422, 1)
	want(t, s, url+"/plain", 500, 1)
}

// templ renders into a buffer, and answers the error of a component with a 500.
func TestTempl(t *testing.T) {
	s := adaptertest.NewSite(t)
	page := func(fails error, opts ...func(*templ.ComponentHandler)) http.Handler {
		return templ.Handler(templ.ComponentFunc(func(ctx context.Context, w io.Writer) error {
			_, err := io.WriteString(w, "<p>half")
			return errors.Join(err, s.Insert(ctx), fails)
		}), opts...)
	}
	// With streaming the status is sent before: the error has to be told.
	tell := templ.WithErrorHandler(func(r *http.Request, err error) http.Handler {
		return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { _ = sqlreq.Fail(r.Context(), err) })
	})
	mux := http.NewServeMux()
	mux.Handle("/ok", page(nil))
	mux.Handle("/fails", page(errPlain))
	mux.Handle("/streams", page(errPlain, templ.WithStreaming(), tell))
	url := s.Serve(t, s.Reg.Middleware(mux))
	want(t, s, url+"/ok", 200, 1)
	want(t, s, url+"/fails", 500, 1)
	want(t, s, url+"/streams", 500, 1)
}
