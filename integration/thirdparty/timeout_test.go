package thirdparty

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
)

// expiring is a request's context, whose time is over when a test says so, and not by the clock: TimeoutHandler looks at
// a context of its own below it, which ends as this one does.
type expiring struct {
	context.Context
	over chan struct{}
}

func (e *expiring) Done() <-chan struct{} { return e.over }

func (e *expiring) Err() error {
	select {
	case <-e.over:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// timeout is a TimeoutHandler whose time is over when expire is called, which may be once.
func timeout(h func(expire func()) http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := &expiring{r.Context(), make(chan struct{})}
		inner := h(func() { close(e.over) })
		http.TimeoutHandler(inner, 2*patience, late).ServeHTTP(w, r.WithContext(e))
	})
}

const late = "too late"

func TestTimeoutHandlerWithinTheTime(t *testing.T) {
	for _, place := range timeoutSites {
		for _, proto := range protocols {
			t.Run(place.name+" "+proto, func(t *testing.T) {
				s := newSite(t)
				works := serve(t, proto, place.build(s, s.adding(false, answerText(large)), patience))
				got := send(t, works, "POST", "/")
				got.wantStatus(t, 200)
				if want := mark + text(large); got.body != want {
					t.Errorf("body: got %d bytes, want %d", len(got.body), len(want))
				}
				s.wantNotes(t, 1)

				fails := serve(t, proto, place.build(s, s.adding(true, answerText(small)), patience))
				send(t, fails, "POST", "/").wantError(t)
				s.wantNotes(t, 1)
			})
		}
	}
}

var timeoutSites = []struct {
	name  string
	build func(s *site, h http.Handler, d time.Duration) http.Handler
}{
	{"TimeoutHandler inside", func(s *site, h http.Handler, d time.Duration) http.Handler {
		return s.reg.Middleware(http.TimeoutHandler(h, d, late))
	}},
	{"TimeoutHandler outside", func(s *site, h http.Handler, d time.Duration) http.Handler {
		return http.TimeoutHandler(s.reg.Middleware(h), d, late)
	}},
}

// TimeoutHandler outside buffers the whole response, so that a stream which must not complete is never sent.
func TestTimeoutHandlerLargeAnswerWhenCommitFails(t *testing.T) {
	for _, place := range timeoutSites {
		for _, proto := range protocols {
			t.Run(place.name+" "+proto, func(t *testing.T) {
				s := newSite(t)
				srv := serve(t, proto, place.build(s, s.adding(true, answerText(large)), patience))
				if got := send(t, srv, "POST", "/"); got.err == nil && got.status < 500 {
					t.Errorf("answer: got a complete %d, want an error or a broken transfer", got.status)
				}
				s.wantNotes(t, 0)
			})
		}
	}
}

// The client has its 503 while the handler still runs. What the handler wrote is not committed, whenever it returns.
func TestTimeoutHandlerOutsideRollsBack(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			s := newSite(t)
			answered := make(chan struct{})
			left := make(chan struct{}, 1)
			srv := serve(t, proto, timeout(func(expire func()) http.Handler {
				inside := s.reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if err := s.add(r.Context(), false); err != nil {
						t.Errorf("statement in time: %v", err)
					}
					expire()
					<-answered
					w.WriteHeader(http.StatusCreated)
				}))
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer func() { left <- struct{}{} }()
					inside.ServeHTTP(w, r)
				})
			}))
			got := send(t, srv, "POST", "/")
			close(answered)
			got.wantStatus(t, http.StatusServiceUnavailable)
			if got.body != late {
				t.Errorf("body: got %q, want %q", got.body, late)
			}
			await(t, left, "the handler to return")
			s.wantNotes(t, 0)
		})
	}
}

// The request is over when TimeoutHandler has answered; the handler that still runs can't use its transaction.
func TestTimeoutHandlerInsideFinishesTheRequest(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			s := newSite(t)
			answered := make(chan struct{})
			statements := make(chan error, 3)
			srv := serve(t, proto, s.reg.Middleware(timeout(func(expire func()) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					statements <- s.add(r.Context(), false)
					expire()
					<-answered
					ctx := context.WithoutCancel(r.Context()) // what TimeoutHandler cancelled would tell by itself
					statements <- s.add(ctx, false)
					_, err := sqlreq.Tx(ctx)
					statements <- err
					io.WriteString(w, mark)
				})
			})))
			got := send(t, srv, "POST", "/")
			got.wantStatus(t, http.StatusServiceUnavailable)
			if got.body != late {
				t.Errorf("body: got %q, want %q", got.body, late)
			}
			close(answered)
			if err := await(t, statements, "the statement in time"); err != nil {
				t.Errorf("statement in time: %v", err)
			}
			for range 2 {
				if err := await(t, statements, "the statements that come late"); !errors.Is(err, sqlreq.ErrFinished) {
					t.Errorf("after the answer: got %v, want ErrFinished", err)
				}
			}
			s.wantNotes(t, 0)
		})
	}
}
