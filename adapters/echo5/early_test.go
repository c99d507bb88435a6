package sqlreqecho5

import (
	"context"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"testing"

	"github.com/labstack/echo/v5"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

// An early hint leaves at once, and decides nothing: echo's response would keep its status
// for the answer, and a COMMIT that fails behind it would be an empty 200.
func TestEarlyHint(t *testing.T) {
	s := adaptertest.NewSite(t)
	e := newEcho(s)
	hint := func(c *echo.Context) error {
		c.Response().WriteHeader(http.StatusEarlyHints)
		return nil
	}
	e.POST("/ok", work(s, hint, done))
	e.POST("/fails", work(s, hint, func(*echo.Context) error { return errPlain }))
	e.POST("/commit", work(s, hint, func(c *echo.Context) error { return s.BreakCommit(c.Request().Context()) }, done))
	url := s.Serve(t, e)
	for path, status := range map[string]int{"/ok": 201, "/fails": 500, "/commit": 500} {
		hints := 0
		trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
			if code == http.StatusEarlyHints {
				hints++
			}
			return nil
		}}
		req, err := http.NewRequestWithContext(httptrace.WithClientTrace(context.WithoutCancel(t.Context()), trace), http.MethodPost, url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		<-s.Returned
		if res.StatusCode != status || hints != 1 {
			t.Errorf("%s: got %d behind %d hints, want %d behind one", path, res.StatusCode, hints, status)
		}
	}
	s.WantRows(t, 1)
}

// notFailing is an error with a status that is none of an error.
type notFailing struct{ error }

func (notFailing) StatusCode() int { return http.StatusFound }

// An error rolls back, so its answer is no success, whatever its code.
func TestErrorWithTheStatusOfASuccess(t *testing.T) {
	for _, err := range []error{echo.NewHTTPError(200, "done"), echo.NewHTTPError(302, "moved"), notFailing{errPlain}} {
		s := adaptertest.NewSite(t)
		e := newEcho(s)
		e.POST("/", work(s, func(*echo.Context) error { return err }))
		if got := s.Send(t, "POST", s.Serve(t, e)+"/"); got.Status != 500 || got.Body != errorJSON(500) {
			t.Errorf("%v: got %d %q, want 500", err, got.Status, got.Body)
		}
		s.WantRows(t, 0)
	}
}
