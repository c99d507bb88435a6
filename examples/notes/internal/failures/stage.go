package failures

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sqlreq/sqlreq/examples/notes/internal/watched"
)

// patience bounds what should take milliseconds. Its tests have more, for they run on machines that are busy.
var patience = 10 * time.Second

// stage is a server on loopback, with a database and a log of its own. It serves one run.
type stage struct {
	ctx      context.Context // ends with the service
	end      context.CancelFunc
	db       *watched.DB
	log      *lines
	dir, url string
	srv      *http.Server
	client   *http.Client

	met      chan struct{} // closed when both clients of a conflict have read
	meeting  sync.Mutex
	readers  int
	reading  chan struct{} // gets a token when a report has begun to read
	finished chan struct{} // closed when the report may end
}

func open(ctx context.Context, schema string, conns int, build func(*stage, *slog.Logger) (http.Handler, error)) (_ *stage, err error) {
	s := &stage{
		log:    &lines{},
		client: &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}},
		met:    make(chan struct{}), reading: make(chan struct{}, 1), finished: make(chan struct{}),
	}
	s.ctx, s.end = context.WithTimeout(ctx, patience)
	defer func() {
		if err != nil {
			err = s.close(err)
		}
	}()
	if s.dir, err = os.MkdirTemp("", "notes-demo-"); err != nil {
		return s, err
	}
	if s.db, err = watched.Open(filepath.Join(s.dir, "demo.db"), schema, conns, nil); err != nil {
		return s, err
	}
	logger := slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{ReplaceAttr: untimed}))
	handler, err := build(s, logger)
	if err != nil {
		return s, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return s, err
	}
	s.url = "http://" + listener.Addr().String()
	s.srv = &http.Server{Handler: handler, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelError), ReadHeaderTimeout: patience}
	go s.srv.Serve(listener)
	return s, nil
}

// close ends everything, whatever state it is in: a transaction that was left behind ends with the service's context.
func (s *stage) close(err error) error {
	s.end()
	if s.srv != nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		err = errors.Join(err, s.srv.Shutdown(ctx), s.srv.Close())
	}
	if s.db != nil {
		until(context.Background(), func() bool { return s.db.Stats().InUse == 0 })
		err = errors.Join(err, s.db.Close())
	}
	if s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}

// until waits until ok, for a while.
func until(ctx context.Context, ok func() bool) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for !ok() && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
}

// ask makes a request, and returns what the client was told.
func (s *stage) ask(ctx context.Context, method, path string, form url.Values) Answer {
	a := Answer{Request: strings.TrimSpace(method + " " + path + " " + readable(form))}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		a.Early = fmt.Sprintf("%d %s, Link: %s", code, http.StatusText(code), h.Get("Link"))
		return nil
	}})
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, strings.NewReader(form.Encode()))
	if err != nil {
		a.Status = err.Error()
		return a
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := s.client.Do(req)
	if err != nil {
		a.Status = "no answer: the connection was closed"
		return a
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1000))
	a.code, a.Status, a.Body = resp.StatusCode, resp.Status, strings.TrimSpace(string(body))
	if err != nil {
		a.Status += ", and then the connection broke"
	}
	return a
}

// askOrWait makes a request that may find no connection to the database. It gives up as soon as the request waits for
// one: nobody is there to give one back, so it would wait for ever.
func (s *stage) askOrWait(method, path string) Answer {
	before := s.db.Stats().WaitCount
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	answered := make(chan Answer, 1)
	go func() { answered <- s.ask(ctx, method, path, nil) }()
	var a Answer
	done := false
	until(s.ctx, func() bool {
		select {
		case a = <-answered:
			done = true
		default:
		}
		return done || s.db.Stats().WaitCount > before
	})
	if done {
		return a
	}
	cancel()
	a = <-answered
	a.Status = "no answer: it waits for a connection to the database"
	return a
}

func readable(form url.Values) string {
	text, _ := url.QueryUnescape(form.Encode())
	return text
}

// lines is a log.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, strings.TrimSpace(string(p)))
	return len(p), nil
}

func (l *lines) read() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all
}

// untimed leaves out the time, and of a text of several lines, such as a stack, all but the first.
func untimed(_ []string, a slog.Attr) slog.Attr {
	switch {
	case a.Key == slog.TimeKey:
		return slog.Attr{}
	case a.Value.Kind() == slog.KindString:
		if first, _, more := strings.Cut(a.Value.String(), "\n"); more {
			a.Value = slog.StringValue(first + " …")
		}
	}
	return a
}
