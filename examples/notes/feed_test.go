package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/notes/internal/notesdb"
)

// stream reads server-sent events.
type stream struct {
	t     *testing.T
	lines *bufio.Scanner
}

// listen returns when the service has subscribed the stream.
func (s *service) listen(path string, header ...string) *stream {
	s.t.Helper()
	req := s.request("GET", path, "", "")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { resp.Body.Close() })
	equal(s.t, "status", resp.StatusCode, 200)
	equal(s.t, "Content-Type", resp.Header.Get("Content-Type"), "text/event-stream")
	st := &stream{s.t, bufio.NewScanner(resp.Body)}
	if !st.lines.Scan() || st.lines.Text() != ": hello" {
		s.t.Fatalf("the stream begins with %q (%v)", st.lines.Text(), st.lines.Err())
	}
	return st
}

func (s *stream) next() (n noteJSON) {
	s.t.Helper()
	for s.lines.Scan() {
		if data, ok := strings.CutPrefix(s.lines.Text(), "data: "); ok {
			if err := json.Unmarshal([]byte(data), &n); err != nil {
				s.t.Fatal(err)
			}
			return n
		}
	}
	s.t.Fatalf("the stream has ended (%v)", s.lines.Err())
	return n
}

func TestEventsAnnounceOnlyWhatIsCommitted(t *testing.T) {
	s := start(t)
	stream := s.listen("/events")
	s.json("POST", "/api/notes", `{"title": "refused", "tags": ["NO"]}`).is(t, 422)
	s.form("/demo/fail", nil).is(t, 500)
	s.json("POST", "/api/notes", `{"title": "kept"}`).is(t, 201)
	got := stream.next()
	equal(t, "announced", got.Title, "kept")
}

func TestEventsWaitForCommit(t *testing.T) {
	s := start(t)
	notes, stop := s.feed.subscribe()
	defer stop()
	var early int
	handler := s.reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		_, err := s.add(r.Context(), draft{Title: "Milk"})
		early = len(notes) // announcing does not wait for anybody: it would be there by now
		return err
	}))
	handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil))
	equal(t, "announced before COMMIT", early, 0)
	equal(t, "announced after COMMIT", len(notes), 1)
}

func TestEventsCatchUp(t *testing.T) {
	s := start(t)
	s.fill(3)
	for _, stream := range []*stream{
		s.listen("/events?after=1"),
		s.listen("/events?after=0", "Last-Event-ID", "1"), // a browser that comes back repeats the old address
	} {
		equal(t, "first", stream.next().ID, 2)
		equal(t, "second", stream.next().ID, 3)
	}
	s.get("/events?after=x").is(t, 400)
}

func TestEventsHoldNoConnection(t *testing.T) {
	s := start(t)
	s.fill(1)
	for range 20 { // more than the pool has
		s.listen("/events?after=0").next()
	}
	equal(t, "connections in use", s.dbs.notes.Stats().InUse, 0)
	s.json("POST", "/api/notes", `{"title": "Milk"}`).is(t, 201)
}

// A stream of hours is not ended by the limits of the server. It runs in a bubble, on a connection in memory: there
// hours pass at once, and none passes while somebody works, however slow the machine is.
func TestEventsOutliveTheServersTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dbs, err := openDatabases(filepath.Join(t.TempDir(), "notes.db"))
		if err != nil {
			t.Fatal(err)
		}
		s, err := newServer(dbs)
		if err != nil {
			t.Fatal(err)
		}
		conn, end := net.Pipe()
		l := &oneConn{conns: make(chan net.Conn, 1)}
		l.conns <- end
		srv := newHTTPServer(s)
		go srv.Serve(l)

		io.WriteString(conn, "GET /events?after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		stream := &stream{t, bufio.NewScanner(resp.Body)}
		announced := make(chan string, 1)
		go func() {
			defer close(announced)
			for stream.lines.Scan() { // the pings as well, which wait for a reader
				if data, ok := strings.CutPrefix(stream.lines.Text(), "data: "); ok {
					announced <- data
				}
			}
		}()
		time.Sleep(2 * max(srv.ReadHeaderTimeout, srv.ReadTimeout, srv.WriteTimeout, srv.IdleTimeout)) // of the bubble
		rec := httptest.NewRecorder()
		r := httptest.NewRequest("POST", "/api/notes", strings.NewReader(`{"title": "Milk"}`))
		r.Header.Set("Content-Type", "application/json")
		srv.Handler.ServeHTTP(rec, r)
		equal(t, "status", rec.Code, 201)
		if got := <-announced; !strings.Contains(got, `"title":"Milk"`) {
			t.Errorf("announced %q (%v), want the note", got, stream.lines.Err())
		}

		conn.Close()
		srv.Shutdown(t.Context()) // when the stream has ended
		if err := dbs.close(); err != nil {
			t.Error(err)
		}
	})
}

// oneConn is a listener with one connection.
type oneConn struct {
	net.Listener
	conns chan net.Conn
}

func (l *oneConn) Accept() (net.Conn, error) {
	if c, ok := <-l.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error { close(l.conns); return nil }

func TestFeedDropsListenersThatLagBehind(t *testing.T) {
	var f feed
	lagging, stop := f.subscribe()
	defer stop()
	reading, stop := f.subscribe()
	defer stop()
	for id := range int64(100) {
		f.announce(notesdb.TaggedNote{ID: id})
		equal(t, "read", (<-reading).ID, id)
	}
	var n int
	for range lagging { // it is closed, so this ends
		n++
	}
	equal(t, "read by the one that lagged", n, 16)

	f.close()
	if _, open := <-reading; open {
		t.Error("a listener outlived the feed")
	}
	late, stop := f.subscribe()
	defer stop()
	if _, open := <-late; open {
		t.Error("a feed that is closed still takes listeners")
	}
}
