package thirdparty

import (
	"database/sql"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sqlreq/sqlreq"
)

// watchedBody knows whether the client has begun to send it.
type watchedBody struct {
	io.Reader
	sent atomic.Bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.sent.Store(true)
	return b.Reader.Read(p)
}

// sendExpecting posts a body that the client keeps back until the server asks for it with 100 Continue.
func sendExpecting(t *testing.T, srv *httptest.Server, body string) (got answer, asked, sent bool) {
	t.Helper()
	srv.Client().Transport.(*http.Transport).ExpectContinueTimeout = 2 * patience // that is, never by itself
	watched := &watchedBody{Reader: strings.NewReader(body)}
	req, err := http.NewRequest("POST", srv.URL, watched)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = int64(len(body))
	req.Header.Set("Expect", "100-continue")
	var continues atomic.Bool
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		Got100Continue: func() { continues.Store(true) },
	}))
	got = readAnswer(srv.Client().Do(req))
	return got, continues.Load(), watched.sent.Load()
}

func TestExpectContinue(t *testing.T) {
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	deaf := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "not read") })
	txFunc := func(commitFails, read bool) http.Handler {
		return sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
			if _, err := tx.ExecContext(r.Context(), "INSERT INTO note (text, author) VALUES ('tx', ?)", author(commitFails)); err != nil {
				return err
			}
			if read {
				_, err := io.Copy(w, r.Body)
				return err
			}
			_, err := io.WriteString(w, "not read")
			return err
		})
	}
	for _, proto := range protocols {
		for _, c := range []struct {
			name    string
			handler func(s *site, commitFails bool) http.Handler
			reads   bool // before it answers
			body    string
		}{
			{"read", func(s *site, commitFails bool) http.Handler { return s.adding(commitFails, echo) }, true, "hello"},
			{"not read", func(s *site, commitFails bool) http.Handler { return s.adding(commitFails, deaf) }, false, "not read"},
			{"TxFunc reads a small body before it begins", func(s *site, commitFails bool) http.Handler { return txFunc(commitFails, true) }, true, "hello"},
			{"TxFunc even for a handler that does not", func(s *site, commitFails bool) http.Handler { return txFunc(commitFails, false) }, true, "not read"},
		} {
			for _, commitFails := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s %s, COMMIT fails %t", proto, c.name, commitFails), func(t *testing.T) {
					s := newSite(t)
					srv := serve(t, proto, s.reg.Middleware(c.handler(s, commitFails)))
					got, asked, sent := sendExpecting(t, srv, "hello")
					if asked != c.reads || sent != c.reads {
						t.Errorf("the body: asked for %t, sent %t, want %t", asked, sent, c.reads)
					}
					if commitFails {
						got.wantError(t)
						s.wantNotes(t, 0)
						return
					}
					got.wantStatus(t, 200)
					if got.body != c.body {
						t.Errorf("answer: got %q, want %q", got.body, c.body)
					}
					s.wantNotes(t, 1)
				})
			}
		}
	}
}

func TestExpectContinueIsTheSameWithoutTransaction(t *testing.T) {
	handlers := map[string]http.HandlerFunc{
		"read":     func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) },
		"not read": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusAccepted) },
		"refused": func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		},
	}
	for _, proto := range protocols {
		for name, h := range handlers {
			t.Run(proto+" "+name, func(t *testing.T) {
				s := newSite(t)
				body := strings.Repeat("x", large)
				want, wantAsked, wantSent := sendExpecting(t, serve(t, proto, h), body)
				got, asked, sent := sendExpecting(t, serve(t, proto, s.reg.Middleware(h)), body)
				got.wantSame(t, want)
				if asked != wantAsked || sent != wantSent {
					t.Errorf("the body: asked for %t, sent %t, want %t, %t", asked, sent, wantAsked, wantSent)
				}
			})
		}
	}
}

// A client that keeps its body back for ever holds no connection of the pool while TxFunc waits for the body.
func TestExpectContinueTxFuncWaitsWithoutAConnection(t *testing.T) {
	s := newSite(t)
	srv := serve(t, "HTTP/1.1", s.reg.Middleware(sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
		_, err := tx.ExecContext(r.Context(), "INSERT INTO note (text) VALUES ('tx')")
		return err
	})))
	body, client := io.Pipe()
	asked := make(chan struct{})
	req, err := http.NewRequest("POST", srv.URL, body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = 5
	req.Header.Set("Expect", "100-continue")
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		Got100Continue: func() { close(asked) },
	}))
	srv.Client().Transport.(*http.Transport).ExpectContinueTimeout = 2 * patience
	done := make(chan answer, 1)
	go func() { done <- readAnswer(srv.Client().Do(req)) }()
	await(t, asked, "100 Continue")
	if got := s.db.Stats().InUse; got != 0 {
		t.Errorf("connections in use while the body is awaited: got %d, want 0", got)
	}
	client.Write([]byte("hello"))
	client.Close()
	got := await(t, done, "the answer")
	got.wantStatus(t, 200)
	s.wantNotes(t, 1)
}
