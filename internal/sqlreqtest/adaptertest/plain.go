package adaptertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// Work is how a program of net/http uses its databases, through the adapter of a
// library for databases.
type Work struct {
	Insert      func(ctx context.Context, k sqlreq.Key) error // a row into the table "work"
	BreakCommit func(ctx context.Context) error               // a row that makes COMMIT of the DefaultKey fail
}

// Plain is a program of net/http whose work is done through an adapter.
func Plain(work func(t testing.TB, s *Site) Work) Web {
	return Web{
		New:   func(t testing.TB, s *Site) http.Handler { return newPlain(s, work(t, s)) },
		Error: func(status int) string { return http.StatusText(status) + "\n" },
		Retry: true,
	}
}

var errPlain = errors.New("on purpose")

func newPlain(s *Site, work Work) http.Handler {
	mux := http.NewServeMux()
	var conflicts atomic.Int32
	handle := func(path string, then sqlreq.HandlerFunc) {
		mux.Handle("POST "+path, s.Reg.Middleware(work.first(then)))
	}
	for path, then := range map[string]sqlreq.HandlerFunc{"/ok": done, "/fails": returned, "/commit": work.breaks(done)} {
		mux.Handle("POST /group"+path, s.Reg.Middleware(s.Reg.With(Reports)(work.firstInBoth(then))))
		mux.Handle("POST /once"+path, s.Reg.Middleware(s.Once.Handler(work.first(then))))
	}
	handle("/ok", done)
	handle("/nothing", func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(204); return nil })
	handle("/returned", returned)
	handle("/fails", fails)
	handle("/written", writes(422, []byte("invalid"), nil))
	handle("/late", writes(200, []byte("done"), fails))
	handle("/large", writes(200, large, nil))
	handle("/late/large", writes(200, large, fails))
	handle("/panic", panics)
	handle("/late/panic", writes(200, []byte("done"), panics))
	handle("/large/panic", writes(200, large, panics))
	handle("/commit", work.breaks(done))
	handle("/large/commit", work.breaks(writes(200, large, nil)))
	handle("/conflict", func(w http.ResponseWriter, r *http.Request) error {
		if conflicts.Add(1) == 1 {
			return sqlreqtest.Conflict{}
		}
		return done(w, r)
	})
	mux.Handle("GET /gone", s.Reg.Middleware(work.first(func(w http.ResponseWriter, r *http.Request) error {
		s.Entered <- struct{}{}
		<-r.Context().Done()
		return done(w, r)
	})))
	return s.Outside(mux)
}

var large = bytes.Repeat([]byte("x"), Large)

func done(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("X-Inside", "1")
	w.WriteHeader(http.StatusCreated)
	_, err := io.WriteString(w, "done")
	return err
}

func returned(http.ResponseWriter, *http.Request) error {
	return sqlreq.Errorf(422, "on purpose")
}

func fails(http.ResponseWriter, *http.Request) error  { return errPlain }
func panics(http.ResponseWriter, *http.Request) error { panic("on purpose") }

// writes answers, and goes on.
func writes(status int, body []byte, then sqlreq.HandlerFunc) sqlreq.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		w.WriteHeader(status)
		if _, err := w.Write(body); err != nil || then == nil {
			return err
		}
		return then(w, r)
	}
}

// first inserts a row, and goes on.
func (work Work) first(then sqlreq.HandlerFunc) http.Handler {
	return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if err := work.Insert(r.Context(), sqlreq.DefaultKey); err != nil {
			return err
		}
		return then(w, r)
	})
}

func (work Work) firstInBoth(then sqlreq.HandlerFunc) http.Handler {
	return work.first(func(w http.ResponseWriter, r *http.Request) error {
		if err := work.Insert(r.Context(), Reports); err != nil {
			return err
		}
		return then(w, r)
	})
}

func (work Work) breaks(then sqlreq.HandlerFunc) sqlreq.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := work.BreakCommit(r.Context()); err != nil {
			return err
		}
		return then(w, r)
	}
}

// Outside is what stands outside of sqlreq in a program of net/http: the header
// X-Outside, the access log, a middleware that recovers.
func (s *Site) Outside(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Outside", "1")
		rec := &statusWriter{ResponseWriter: w}
		defer func() {
			v := recover()
			if v == http.ErrAbortHandler {
				panic(v)
			}
			if v != nil {
				http.Error(rec, http.StatusText(500), 500)
			}
			s.Access(rec.status)
		}()
		h.ServeHTTP(rec, r)
	})
}

// statusWriter is that of an access log.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}
