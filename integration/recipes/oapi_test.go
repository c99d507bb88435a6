package recipes

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/integration/recipes/oapi"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

// notes is the server of a program.
type notes struct{ s *adaptertest.Site }

func (n notes) SaveNote(ctx context.Context, req oapi.SaveNoteRequestObject) (oapi.SaveNoteResponseObject, error) {
	if err := n.s.Insert(ctx); err != nil {
		return nil, err
	}
	switch req.What {
	case "invalid":
		return oapi.SaveNote422Response{}, nil
	case "fail":
		return nil, errPlain
	}
	return oapi.SaveNote201Response{}, nil
}

// oapi-codegen's strict server: a typed 4xx decides, an error is sqlreq's.
func TestOapiCodegen(t *testing.T) {
	s := adaptertest.NewSite(t)
	strict := oapi.NewStrictHandlerWithOptions(notes{s}, nil, oapi.StrictHTTPServerOptions{
		RequestErrorHandlerFunc:  func(w http.ResponseWriter, _ *http.Request, err error) { http.Error(w, err.Error(), 400) },
		ResponseErrorHandlerFunc: func(_ http.ResponseWriter, r *http.Request, err error) { _ = sqlreq.Fail(r.Context(), err) },
	})
	url := s.Serve(t, s.Reg.Middleware(oapi.Handler(strict)))
	want(t, s, url+"/notes/x", 201, 1)
	want(t, s, url+"/notes/invalid", 422, 1)
	if got := want(t, s, url+"/notes/fail", 500, 1); strings.Contains(got.Body, "on purpose") {
		t.Errorf("the client got the text of the error: %q", got.Body)
	}
}
