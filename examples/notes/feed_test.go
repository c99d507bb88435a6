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

func TestEventsOutliveTheServersTimeouts(t *testing.T) {
	const timeout = time.Second // enough for a busy machine to begin the stream in
	s := startOn(t, filepath.Join(t.TempDir(), "notes.db"), func(srv *http.Server) {
		srv.ReadHeaderTimeout, srv.ReadTimeout, srv.WriteTimeout = timeout, timeout, timeout
	})
	stream := s.listen("/events?after=0")
	// A client that never ends its request is thrown out when the time for reading is over. It came after the
	// stream, so the stream's time would be over too by then.
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\n")
	io.Copy(io.Discard, conn)

	// Not by way of the listener, whose time would hold for this answer too.
	rec := httptest.NewRecorder()
	newHTTPServer(s.server).Handler.ServeHTTP(rec, s.request("POST", "/api/notes", "application/json", `{"title": "Milk"}`))
	equal(t, "status", rec.Code, 201)
	equal(t, "announced", stream.next().Title, "Milk")
}

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
