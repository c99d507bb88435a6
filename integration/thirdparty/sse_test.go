package thirdparty

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// events sends three events, each after the client has asked for it. asked tells that a client waits for the next one.
func events(asked <-chan struct{}, flush func(http.ResponseWriter)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Cache-Control", "no-store")
		for i := range 3 {
			select {
			case <-asked:
			case <-r.Context().Done():
				return
			}
			fmt.Fprintf(w, "data: %d\n\n", i)
			flush(w)
		}
	})
}

var flushers = []struct {
	name  string
	flush func(http.ResponseWriter)
}{
	{"http.Flusher", func(w http.ResponseWriter) { w.(http.Flusher).Flush() }},
	{"http.ResponseController", func(w http.ResponseWriter) {
		if err := http.NewResponseController(w).Flush(); err != nil {
			panic(fmt.Sprintf("Flush: got %v, want nil", err))
		}
	}},
}

// readEvents asks for the three events, reads each before it asks for the next, and returns what ended the stream.
func readEvents(t *testing.T, s *site, body io.Reader, ask chan<- struct{}) error {
	t.Helper()
	in := bufio.NewReader(body)
	for i := range 3 {
		if i > 0 { // the first was asked for before there was a response
			ask <- struct{}{}
		}
		for _, want := range []string{fmt.Sprintf("data: %d\n", i), "\n"} {
			if got, err := in.ReadString('\n'); err != nil || got != want {
				t.Fatalf("event %d: got %q, %v, want %q", i, got, err, want)
			}
		}
		if i < 2 { // after the last one the handler may have returned
			s.wantNotes(t, 0)
		}
	}
	_, err := in.ReadByte()
	return err
}

// wantEvents gets a stream of three events that ends well if COMMIT works and is broken off if it fails. The first
// event has been asked for.
func wantEvents(t *testing.T, s *site, srv *httptest.Server, path string, ask chan<- struct{}, commitFails bool) {
	t.Helper()
	resp, err := srv.Client().Get(srv.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	end := readEvents(t, s, resp.Body, ask)
	switch {
	case commitFails && end == io.EOF:
		t.Error("the stream ended as if complete, want it broken")
	case !commitFails && end != io.EOF:
		t.Errorf("end of the stream: got %v, want EOF", end)
	}
	s.wantNotes(t, map[bool]int{false: 1, true: 0}[commitFails])
}

func eachStream(t *testing.T, test func(t *testing.T, proto string, flush func(http.ResponseWriter))) {
	for _, proto := range protocols {
		for _, f := range flushers {
			t.Run(proto+" "+f.name, func(t *testing.T) { test(t, proto, f.flush) })
		}
	}
}

func TestServerSentEventsArriveOneByOne(t *testing.T) {
	eachStream(t, func(t *testing.T, proto string, flush func(http.ResponseWriter)) {
		for _, commitFails := range []bool{false, true} {
			t.Run(fmt.Sprintf("COMMIT fails %t", commitFails), func(t *testing.T) {
				s := newSite(t)
				asked := make(chan struct{}, 1)
				srv := serve(t, proto, s.reg.Middleware(s.adding(commitFails, events(asked, flush))))
				asked <- struct{}{}
				wantEvents(t, s, srv, "/", asked, commitFails)
			})
		}
	})
}

func TestServerSentEventsClientLeaves(t *testing.T) {
	eachStream(t, func(t *testing.T, proto string, flush func(http.ResponseWriter)) {
		s := newSite(t)
		asked := make(chan struct{}, 1)
		h, left := finishing(s.reg.Middleware(s.adding(false, events(asked, flush))))
		srv := serve(t, proto, h)
		asked <- struct{}{}
		resp, err := srv.Client().Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || got != "data: 0\n" {
			t.Errorf("first event: got %q, %v", got, err)
		}
		resp.Body.Close()
		await(t, left, "the handler to notice")
		s.wantNotes(t, 0)
	})
}
