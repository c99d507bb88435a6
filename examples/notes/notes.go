package main

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/notes/internal/notesdb"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// draft is a note that somebody wants to add: by a form, over the API, or as a line of a file.
type draft struct {
	Title, Body string
	Tags        []string
}

// Errors that are the client's fault carry their status from here on, and a text that the client may read.
func (d draft) check() error {
	switch {
	case strings.TrimSpace(d.Title) == "":
		return wrong("title", "A note needs a title.")
	case utf8.RuneCountInString(d.Title) > 100:
		return wrong("title", "A title has at most 100 characters.")
	case utf8.RuneCountInString(d.Body) > 10_000:
		return wrong("body", "A note has at most 10,000 characters.")
	case !isText(d.Title):
		return wrong("title", "A note is text in UTF-8.")
	case !isText(d.Body):
		return wrong("body", "A note is text in UTF-8.")
	case !isText(strings.Join(d.Tags, "")):
		return wrong("tags", "A note is text in UTF-8.")
	}
	return nil
}

// fieldError is an error in one field of a draft, for the form to mark it.
type fieldError struct {
	field string // title, body or tags
	error
}

func (e *fieldError) Unwrap() error { return e.error }

func wrong(field, format string, args ...any) error {
	return &fieldError{field, sqlreq.Errorf(http.StatusUnprocessableEntity, format, args...)}
}

// isText reports whether every database takes s as a text: PostgreSQL refuses the zero byte.
func isText(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

// add writes a note and its tags in the request's transaction. When a tag is refused by the database, the note
// stands there already; whoever called takes it back by returning the error.
func (s *server) add(ctx context.Context, d draft) (notesdb.TaggedNote, error) {
	var none notesdb.TaggedNote
	if err := d.check(); err != nil {
		return none, err
	}
	id, err := s.notes.CreateNote(ctx, notesdb.CreateNoteParams{Title: strings.TrimSpace(d.Title), Body: d.Body})
	if err != nil {
		return none, err
	}
	for _, tag := range d.Tags {
		err := s.notes.AddTag(ctx, notesdb.AddTagParams{NoteID: id, Tag: tag})
		if isConstraint(err) {
			return none, wrong("tags",
				"The tag %q won't do: small letters, digits and hyphens, at most 20 of them, and each tag once.", tag)
		}
		if err != nil {
			return none, err
		}
	}
	note, err := s.notes.GetNote(ctx, id)
	if err != nil {
		return none, err
	}
	// Browsers may only hear of a note that is there to stay.
	return note, sqlreq.AfterCommit(ctx, func(context.Context) { s.feed.announce(note) })
}

func (s *server) find(ctx context.Context, id string) (notesdb.TaggedNote, error) {
	n, err := parseID(id)
	if err != nil {
		return notesdb.TaggedNote{}, err
	}
	note, err := s.notes.GetNote(ctx, n)
	return note, noSuch("note", err)
}

func parseID(s string) (int64, error) {
	id, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, sqlreq.Errorf(http.StatusNotFound, "%q is no number.", s)
	}
	return id, nil
}

// noSuch turns "no rows" into a 404, and leaves every other error what it is.
func noSuch(what string, err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return sqlreq.Errorf(http.StatusNotFound, "There is no such %s.", what)
	}
	return err
}

func isConstraint(err error) bool {
	var lite *sqlite.Error
	var pg *pgconn.PgError
	return errors.As(err, &lite) && lite.Code()&0xff == sqlite3.SQLITE_CONSTRAINT ||
		errors.As(err, &pg) && strings.HasPrefix(pg.Code, "23") // integrity constraint violation
}

// badRequest is for input that could not even be read. A body beyond the limit stays the 413 that it is.
func badRequest(what string, err error) error {
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return err
	}
	return sqlreq.Errorf(http.StatusBadRequest, "%s: %w.", what, err)
}

// message is what the client may read of an error: the text of a StatusError was written for it, any other is for
// the log only.
func message(err error) string {
	var status *sqlreq.StatusError
	if errors.As(err, &status) && status.Code < 500 {
		return status.Err.Error()
	}
	return http.StatusText(sqlreq.StatusCode(err))
}
