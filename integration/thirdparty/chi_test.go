package thirdparty

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
)

// answerText answers with n bytes of plain text.
func answerText(n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set(markHeader, mark)
		io.WriteString(w, mark+text(n))
	}
}

var sizes = []struct {
	name string
	n    int
}{{"small", small}, {"large", large}}

// chiSites builds a router with mw inside Middleware and outside of it.
var chiSites = []struct {
	name  string
	build func(s *site, mw func(http.Handler) http.Handler, h http.Handler) http.Handler
}{
	{"inside", func(s *site, mw func(http.Handler) http.Handler, h http.Handler) http.Handler {
		router := chi.NewRouter()
		router.Use(s.reg.Middleware, mw)
		router.Method("POST", "/notes/{id}", h)
		return router
	}},
	{"outside", func(s *site, mw func(http.Handler) http.Handler, h http.Handler) http.Handler {
		router := chi.NewRouter()
		router.Use(mw, s.reg.Middleware)
		router.Method("POST", "/notes/{id}", h)
		return router
	}},
}

// eachChi runs test for every protocol, place and size of answer.
func eachChi(t *testing.T, test func(t *testing.T, proto string, build func(*site, func(http.Handler) http.Handler, http.Handler) http.Handler, n int)) {
	for _, proto := range protocols {
		for _, place := range chiSites {
			for _, size := range sizes {
				t.Run(proto+" "+place.name+" "+size.name, func(t *testing.T) { test(t, proto, place.build, size.n) })
			}
		}
	}
}

func TestChiCompress(t *testing.T) {
	eachChi(t, func(t *testing.T, proto string, build func(*site, func(http.Handler) http.Handler, http.Handler) http.Handler, n int) {
		for _, commitFails := range []bool{false, true} {
			t.Run(fmt.Sprintf("COMMIT fails %t", commitFails), func(t *testing.T) {
				s := newSite(t)
				srv := serve(t, proto, build(s, middleware.Compress(5), s.adding(commitFails, answerText(n))))
				req := newRequest(t, "POST", srv.URL+"/notes/1", "")
				req.Header.Set("Accept-Encoding", "gzip")
				got := readAnswer(srv.Client().Do(req))
				if commitFails {
					if n > small {
						got.wantBroken(t)
					} else {
						got = got.decompressed(t)
						got.wantError(t)
					}
					s.wantNotes(t, 0)
					return
				}
				if encoding := got.header.Get("Content-Encoding"); encoding != "gzip" {
					t.Errorf("Content-Encoding: got %q, want gzip", encoding)
				}
				got = got.decompressed(t)
				got.wantStatus(t, 200)
				if want := mark + text(n); got.body != want {
					t.Errorf("body: got %d bytes, want %d others", len(got.body), len(want))
				}
				s.wantNotes(t, 1)
			})
		}
	})
}

// decompressed is a as a browser shows it.
func (a answer) decompressed(t *testing.T) answer {
	t.Helper()
	if a.err != nil || a.header.Get("Content-Encoding") != "gzip" {
		return a
	}
	unzip, err := gzip.NewReader(strings.NewReader(a.body))
	if err != nil {
		t.Fatalf("gzip: %v in %.80q", err, a.body)
	}
	body, err := io.ReadAll(unzip)
	a.body, a.err = string(body), err
	return a
}

// quietly is middleware.Recoverer, which prints the stack unless it is given a log entry.
func quietly(next http.Handler) http.Handler {
	recoverer := middleware.Recoverer(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		recoverer.ServeHTTP(w, middleware.WithLogEntry(r, quiet{}))
	})
}

type quiet struct{ middleware.LogEntry }

func (quiet) Panic(any, []byte) {}

func TestChiRecovererAnswersPanics(t *testing.T) {
	panics := map[string]http.HandlerFunc{
		"before anything is written": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			panic("on purpose")
		},
		"after a small answer": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, mark)
			panic("on purpose")
		},
	}
	for _, proto := range protocols {
		for _, place := range chiSites {
			for when, h := range panics {
				t.Run(proto+" "+place.name+" "+when, func(t *testing.T) {
					s := newSite(t)
					srv := serve(t, proto, place.build(s, quietly, s.adding(false, h)))
					send(t, srv, "POST", "/notes/1").wantError(t)
					s.wantNotes(t, 0)
				})
			}
		}
	}
}

// Recoverer outside cannot complete a response that had begun to stream when the handler panicked.
func TestChiRecovererOutsideCannotCompleteAStream(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			s := newSite(t)
			router := chi.NewRouter()
			router.Use(quietly, s.reg.Middleware)
			router.Method("POST", "/", s.adding(false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, text(large))
				panic("on purpose")
			})))
			srv := serve(t, proto, router)
			send(t, srv, "POST", "/").wantBroken(t)
			s.wantNotes(t, 0)
		})
	}
}

func TestChiRecovererCommitFails(t *testing.T) {
	eachChi(t, func(t *testing.T, proto string, build func(*site, func(http.Handler) http.Handler, http.Handler) http.Handler, n int) {
		s := newSite(t)
		srv := serve(t, proto, build(s, quietly, s.adding(true, answerText(n))))
		got := send(t, srv, "POST", "/notes/1")
		if n > small {
			got.wantBroken(t)
		} else {
			got.wantError(t)
		}
		s.wantNotes(t, 0)
	})
}

// Both at once, in the order in which most services have them.
func TestChiCompressAndRecovererTogether(t *testing.T) {
	both := func(next http.Handler) http.Handler { return quietly(middleware.Compress(5)(next)) }
	eachChi(t, func(t *testing.T, proto string, build func(*site, func(http.Handler) http.Handler, http.Handler) http.Handler, n int) {
		for _, commitFails := range []bool{false, true} {
			t.Run(fmt.Sprintf("COMMIT fails %t", commitFails), func(t *testing.T) {
				s := newSite(t)
				srv := serve(t, proto, build(s, both, s.adding(commitFails, answerText(n))))
				req := newRequest(t, "POST", srv.URL+"/notes/1", "")
				req.Header.Set("Accept-Encoding", "gzip")
				got := readAnswer(srv.Client().Do(req)).decompressed(t)
				switch {
				case !commitFails:
					got.wantStatus(t, 200)
					s.wantNotes(t, 1)
					return
				case n > small:
					got.wantBroken(t)
				default:
					got.wantError(t)
				}
				s.wantNotes(t, 0)
			})
		}
	})
}

// A middleware outside that watches the response sees what the client gets.
func TestChiWrapResponseWriterOutsideSeesTheOutcome(t *testing.T) {
	for _, proto := range protocols {
		for _, commitFails := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s COMMIT fails %t", proto, commitFails), func(t *testing.T) {
				s := newSite(t)
				seen := make(chan [2]int, 1)
				inside := s.reg.Middleware(s.adding(commitFails, answerText(small)))
				srv := serve(t, proto, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					watched := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
					inside.ServeHTTP(watched, r)
					seen <- [2]int{watched.Status(), watched.BytesWritten()}
				}))
				got := send(t, srv, "POST", "/")
				if status, bytes := got.status, len(got.body); await(t, seen, "the middleware") != [2]int{status, bytes} {
					t.Errorf("what the middleware saw differs from what the client got: %d with %d bytes", status, bytes)
				}
				if want := map[bool]int{false: 200, true: 500}[commitFails]; got.status != want {
					t.Errorf("status: got %d, want %d", got.status, want)
				}
			})
		}
	}
}

// TestChiURLParam has the line of README.md.
func TestChiURLParam(t *testing.T) {
	s := newSite(t)
	r, reg := chi.NewRouter(), s.reg
	r.Use(middleware.Logger, middleware.Recoverer, reg.Middleware)
	r.Method("GET", "/notes/{id}", s.adding(false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, chi.URLParam(r, "id"))
	})))
	srv := serve(t, "HTTP/1.1", r)
	if got := send(t, srv, "GET", "/notes/42"); got.body != "42" {
		t.Errorf("id: got %q, want 42", got.body)
	}
	s.wantNotes(t, 1)
}
