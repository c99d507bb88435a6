package held

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"
)

var errClient = errors.New("the client has gone")

// client is an underlying writer of which every part can be looked at. It may be
// used by several goroutines.
type client struct {
	mu       sync.Mutex
	header   http.Header
	early    []int
	status   int
	sent     http.Header
	body     bytes.Buffer
	flushes  int
	deadline time.Time
	conn     net.Conn
	fail     error
	block    func() // called by Write, outside of the lock
}

func newClient() *client { return &client{header: make(http.Header)} }

func (c *client) Header() http.Header { return c.header }

func (c *client) WriteHeader(status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case status < 200 && status != 101:
		c.early = append(c.early, status)
	case c.status == 0:
		c.status, c.sent = status, c.header.Clone()
	}
}

func (c *client) Write(p []byte) (int, error) {
	if c.block != nil {
		c.block()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		return 0, c.fail
	}
	if c.status == 0 {
		c.status, c.sent = 200, c.header.Clone()
	}
	return c.body.Write(p)
}

func (c *client) Flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flushes++
}

func (c *client) SetReadDeadline(time.Time) error { return nil }
func (c *client) EnableFullDuplex() error         { return nil }

func (c *client) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return nil
}

func (c *client) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if c.conn == nil {
		return nil, nil, errClient
	}
	return c.conn, nil, nil
}

func (c *client) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("%d %v %q flushed %d", c.status, c.sent, c.body.String(), c.flushes)
}

func request(method string) *http.Request { return httptest.NewRequest(method, "/", nil) }

func writer(c http.ResponseWriter, r *http.Request, limit int) *Writer {
	w := new(Writer)
	w.Init(c, r, limit)
	return w
}

func (w *Writer) finish() {
	w.HandlerDone()
	w.Release()
	w.Close()
}

type onlyReader struct{ io.Reader }

func writeEach(w *Writer, body string) {
	for i := range body {
		_, _ = w.Write([]byte{body[i]})
	}
}

type noHeader struct{ *client }

func (noHeader) Header() http.Header { return nil }

type badReader struct{}

func (badReader) Read([]byte) (int, error) { return 0, errClient }

// wrapped is a middleware's writer that can be looked through.
type wrapped struct{ http.ResponseWriter }

func (w wrapped) Unwrap() http.ResponseWriter { return w.ResponseWriter }

type notifier struct {
	*client
	c chan bool
}

func (n notifier) CloseNotify() <-chan bool { return n.c }

// lingering records how a connection was closed.
type lingering struct {
	net.Conn
	linger int
	closed bool
}

func (l *lingering) SetLinger(sec int) error { l.linger = sec; return nil }
func (l *lingering) Close() error            { l.closed = true; return nil }

func quiet(h http.Handler) *httptest.Server {
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.Start()
	return srv
}

// panicky is a writer of a middleware outside that panics when it is told to.
type panicky struct {
	*client
	at string
}

func (p *panicky) on(what string) {
	if p.at == what {
		panic(what)
	}
}

func (p *panicky) Header() http.Header {
	p.on("Header")
	return p.client.Header()
}

func (p *panicky) WriteHeader(status int) {
	p.on("WriteHeader")
	p.client.WriteHeader(status)
}

func (p *panicky) Write(b []byte) (int, error) {
	p.on("Write")
	return p.client.Write(b)
}

func (p *panicky) Flush() {
	p.on("Flush")
	p.client.Flush()
}

func (p *panicky) CloseNotify() <-chan bool {
	p.on("CloseNotify")
	return nil
}
