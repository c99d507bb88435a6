package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/notes/internal/notesdb"
)

// feed passes committed notes on to the browsers that listen. The zero value is ready.
type feed struct {
	mu        sync.Mutex // guards the fields below, and sending to and closing of the channels
	listeners map[chan notesdb.TaggedNote]bool
	closed    bool
}

// subscribe returns a channel that ends when the listener was too slow, or the service shuts down, or stop is called.
func (f *feed) subscribe() (notes <-chan notesdb.TaggedNote, stop func()) {
	ch := make(chan notesdb.TaggedNote, 16)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.listeners == nil {
		f.listeners = make(map[chan notesdb.TaggedNote]bool)
	}
	f.listeners[ch] = true
	if f.closed {
		f.drop(ch)
	}
	return ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.drop(ch)
	}
}

// announce never waits: it runs before the response of whoever wrote the note is released. A listener that lags
// behind is dropped; its browser comes back and asks for what it missed.
func (f *feed) announce(n notesdb.TaggedNote) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ch := range f.listeners {
		select {
		case ch <- n:
		default:
			f.drop(ch)
		}
	}
}

func (f *feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for ch := range f.listeners {
		f.drop(ch)
	}
}

// drop is called with mu held.
func (f *feed) drop(ch chan notesdb.TaggedNote) {
	if f.listeners[ch] {
		delete(f.listeners, ch)
		close(ch)
	}
}

// A browser that does not take an event within writeWait is gone. One that sleeps is noticed at the next ping.
const (
	writeWait = 10 * time.Second
	pingEvery = 15 * time.Second
)

// events is a stream of server-sent events, one for each new note. It begins with those that the browser has missed
// since the note it names.
func (s *server) events(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	// First subscribe, then look at what is there already, so that no note falls in between.
	notes, stop := s.feed.subscribe()
	defer stop()

	after := r.Header.Get("Last-Event-ID") // sent by browsers that come back
	if after == "" {
		after = r.URL.Query().Get("after")
	}
	var last int64
	var missed []notesdb.TaggedNote
	if after != "" {
		var err error
		if last, err = strconv.ParseInt(after, 10, 64); err != nil {
			return badRequest("The last event is named by a number", err)
		}
		missed, err = s.notes.ListNotesAfter(ctx, notesdb.ListNotesAfterParams{ID: last, Limit: 100})
		if err != nil {
			return err
		}
		// This handler runs for hours. Without this line it would keep a connection for as long, and so would each
		// open browser, until there is none left.
		if err := sqlreq.Commit(ctx); err != nil {
			return err
		}
	}

	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	send := func(format string, args ...any) error {
		if err := allow(w, writeWait); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, format, args...); err != nil {
			return err
		}
		return http.NewResponseController(w).Flush()
	}
	event := func(n notesdb.TaggedNote) error {
		if n.ID <= last {
			return nil // it was among the missed ones
		}
		last = n.ID
		data, err := json.Marshal(toJSON(n))
		if err != nil {
			return err
		}
		return send("id: %d\ndata: %s\n\n", n.ID, data)
	}

	if err := send(": hello\n\n"); err != nil {
		return err
	}
	for _, n := range missed {
		if err := event(n); err != nil {
			return err
		}
	}
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case n, ok := <-notes:
			if !ok {
				return nil
			}
			err = event(n)
		case <-ping.C:
			err = send(": ping\n\n")
		}
		if err != nil {
			return nil // the browser has gone; nothing here can be lost with it
		}
	}
}
