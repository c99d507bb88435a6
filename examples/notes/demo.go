package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/notes/internal/audit"
)

// The constraint is checked at COMMIT. That is the easiest way to make one fail; others are a full disk, a
// serialization conflict, a server that is restarted, a connection that breaks.
const demoSchema = `
CREATE TABLE authors (id INTEGER PRIMARY KEY);
INSERT INTO authors VALUES (1);
CREATE TABLE notes (
    request TEXT NOT NULL,
    title   TEXT NOT NULL,
    author  INTEGER NOT NULL REFERENCES authors (id) DEFERRABLE INITIALLY DEFERRED
);`

const (
	authorWhoExists = "1"
	authorNobody    = "2"
)

// demo sends the same request to the same handler over the same database, in two different hands.
type demo struct {
	db     *sql.DB
	reg    *sqlreq.Registry
	client *http.Client
}

func newDemo(db *sql.DB) (*demo, error) {
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	// Without keep-alive: an idle connection to ourselves would only be in the way of a shutdown.
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return &demo{db: db, reg: reg, client: client}, err
}

// addNote is the handler. It has its transaction from begin, and everything it can see goes well.
func addNote(begin func(context.Context) (*sql.Tx, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		title := r.PostFormValue("title")
		tx, err := begin(r.Context())
		if err == nil {
			_, err = tx.ExecContext(r.Context(), `INSERT INTO notes (request, title, author) VALUES (?, ?, ?)`,
				r.PostFormValue("request"), title, r.PostFormValue("author"))
		}
		if err != nil {
			http.Error(w, "The note could not be written.", http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "Saved: %s\n", title)
	}
}

// sqlreq answers when COMMIT has.
func (d *demo) sqlreq() http.Handler {
	return d.reg.Middleware(addNote(sqlreq.Tx))
}

// byHand is the middleware that is in many services. It looks right: the transaction is committed if the handler
// went well, and rolled back otherwise. But the handler has written to the client by then.
func (d *demo) byHand() http.Handler {
	type key struct{}
	next := addNote(func(ctx context.Context) (*sql.Tx, error) { return ctx.Value(key{}).(*sql.Tx), nil })

	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tx, err := d.db.BeginTx(r.Context(), nil)
		if err != nil {
			http.Error(w, "No database.", http.StatusServiceUnavailable)
			return
		}
		defer tx.Rollback()
		status := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(status, r.WithContext(context.WithValue(r.Context(), key{}, tx)))
		if status.status >= 400 {
			return
		}
		if err := tx.Commit(); err != nil {
			// The 201 has left the handler. There is nobody to tell but the log.
			slog.Warn("demo: the hand-written middleware has answered 201, and now COMMIT fails", "err", err)
		}
	})
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// told is what came of one request.
type told struct {
	Name   string
	Status string // what the client was told
	Body   string
	OK     bool // it was told that the note is there
	Rows   int  // what the database holds
}

func (t told) True() bool { return t.OK == (t.Rows > 0) }

// try makes a real request over the network, and then looks into the database.
func (d *demo) try(ctx context.Context, name, endpoint, author string) (t told, err error) {
	t.Name = name
	request := rand.Text()
	form := url.Values{"request": {request}, "title": {"Buy milk"}, "author": {author}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return t, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := d.client.Do(req)
	if err != nil {
		return t, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1000))
	if err != nil {
		return t, err
	}
	t.Status, t.Body, t.OK = resp.Status, string(body), resp.StatusCode < 400

	err = d.db.QueryRowContext(ctx, `SELECT count(*) FROM notes WHERE request = ?`, request).Scan(&t.Rows)
	if err != nil {
		return t, err
	}
	_, err = d.db.ExecContext(ctx, `DELETE FROM notes WHERE request = ?`, request)
	return t, err
}

// demoPage asks for no transaction while it makes its requests, so it holds no connection that they would need.
func (s *server) demoPage(w http.ResponseWriter, r *http.Request) error {
	author, works := authorNobody, false
	if r.URL.Query().Get("author") == "exists" {
		author, works = authorWhoExists, true
	}
	// The address that this request came in on, which is ours whatever its Host header says.
	self := "http://" + r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()
	byHand, err := s.demo.try(r.Context(), "A middleware by hand", self+"/demo/by-hand", author)
	if err != nil {
		return err
	}
	bySQLReq, err := s.demo.try(r.Context(), "The same with sqlreq", self+"/demo/sqlreq", author)
	if err != nil {
		return err
	}
	return s.render(w, http.StatusOK, "demo", map[string]any{"Tries": []told{byHand, bySQLReq}, "Works": works})
}

// failAfterInsert shows the error page. The note is written, and then something goes wrong.
func (s *server) failAfterInsert(_ http.ResponseWriter, r *http.Request) error {
	if err := audit.Record(r.Context(), s.reg, "add note", "one that will fail"); err != nil {
		return err
	}
	if _, err := s.add(r.Context(), draft{Title: "You will never see this note"}); err != nil {
		return err
	}
	return errors.New("something went wrong after the note was written, as this button promised")
}
