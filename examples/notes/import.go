package main

import (
	"bufio"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/notes/internal/audit"
	"github.com/sqlreq/sqlreq/examples/notes/internal/notesdb"
)

const maxLines = 1000

func (s *server) importForm(w http.ResponseWriter, _ *http.Request) error {
	return s.render(w, http.StatusOK, "import", importPage{Lines: maxLines})
}

// importPage is the form, with what was wrong about the file.
type importPage struct {
	Lines   int
	Problem string
}

// importNotes shows the form again if the file is no good. The status of that page rolls back what was added.
func (s *server) importNotes(w http.ResponseWriter, r *http.Request) error {
	err := s.importFile(w, r)
	if status := (*sqlreq.StatusError)(nil); errors.As(err, &status) && status.Code == http.StatusUnprocessableEntity {
		return s.render(w, status.Code, "import", importPage{maxLines, message(err)})
	}
	return err
}

// importFile adds the notes of a CSV file. Each line runs in a savepoint: a bad one is rolled back alone, with all
// that it had written. The good ones, and the report of the bad ones, are committed together at the end.
func (s *server) importFile(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	// The whole file arrives before the first statement: a slow upload holds no connection.
	file, header, err := r.FormFile("file")
	if errors.Is(err, http.ErrMissingFile) {
		return sqlreq.Errorf(http.StatusUnprocessableEntity, "Choose a file first.")
	}
	if err != nil {
		return badRequest("The upload could not be read", err)
	}
	defer file.Close()
	if err := audit.Record(ctx, s.reg, "import", header.Filename); err != nil {
		return err
	}

	lines, err := newDrafts(file)
	if err != nil {
		return err
	}
	var added int64
	var bad []notesdb.AddBadLineParams
	for n := 1; ; n++ {
		d, at, err := lines.next()
		if err == io.EOF {
			break
		}
		if n > maxLines {
			return sqlreq.Errorf(http.StatusUnprocessableEntity, "A file may have at most %d notes.", maxLines)
		}
		if err == nil {
			err = sqlreq.Savepoint(ctx, func(ctx context.Context) error {
				_, err := s.add(ctx, d)
				return err
			})
		}
		var status *sqlreq.StatusError
		switch {
		case err == nil:
			added++
		case errors.As(err, &status):
			bad = append(bad, notesdb.AddBadLineParams{Line: int64(at), Problem: message(err)})
		default:
			return err // not the line's fault: the whole import is rolled back, and perhaps retried
		}
	}

	id, err := s.notes.CreateImport(ctx, notesdb.CreateImportParams{File: header.Filename, Added: added})
	if err != nil {
		return err
	}
	for _, line := range bad {
		line.ImportID = id
		if err := s.notes.AddBadLine(ctx, line); err != nil {
			return err
		}
	}
	http.Redirect(w, r, fmt.Sprintf("/imports/%d", id), http.StatusSeeOther)
	return nil
}

func (s *server) importReport(w http.ResponseWriter, r *http.Request) error {
	id, err := parseID(r.PathValue("id"))
	if err != nil {
		return err
	}
	report, err := s.notes.GetImport(r.Context(), id)
	if err != nil {
		return noSuch("import", err)
	}
	bad, err := s.notes.ListBadLines(r.Context(), id)
	if err != nil {
		return err
	}
	return s.render(w, http.StatusOK, "report", map[string]any{"Import": report, "Bad": bad})
}

// drafts reads a CSV file whose first line names the columns, in any order. What export writes can be read back.
type drafts struct {
	csv               *csv.Reader
	title, body, tags int // columns; -1: not in this file
	columns           int
}

func newDrafts(r io.Reader) (*drafts, error) {
	in := bufio.NewReader(r)
	if mark, _ := in.Peek(3); string(mark) == "\ufeff" { // Excel begins its files with one
		in.Discard(3)
	}
	d := &drafts{csv: csv.NewReader(in)}
	d.csv.FieldsPerRecord = -1
	head, err := d.csv.Read()
	if err != nil {
		return nil, sqlreq.Errorf(http.StatusUnprocessableEntity, "The first line has to name the columns.")
	}
	d.columns = len(head)
	d.title, d.body, d.tags = slices.Index(head, "title"), slices.Index(head, "body"), slices.Index(head, "tags")
	if d.title < 0 {
		return nil, sqlreq.Errorf(http.StatusUnprocessableEntity, `The first line names no column "title".`)
	}
	return d, nil
}

// next returns a note and the line that it begins on.
func (d *drafts) next() (draft, int, error) {
	record, err := d.csv.Read()
	if parse := (*csv.ParseError)(nil); errors.As(err, &parse) {
		return draft{}, parse.StartLine, sqlreq.Errorf(http.StatusUnprocessableEntity, "This is no CSV: %w.", parse.Err)
	}
	if err != nil {
		return draft{}, 0, err
	}
	line, _ := d.csv.FieldPos(0)
	if len(record) != d.columns {
		return draft{}, line, sqlreq.Errorf(http.StatusUnprocessableEntity,
			"%d columns, but the first line names %d.", len(record), d.columns)
	}
	field := func(column int) string {
		if column < 0 {
			return ""
		}
		return uncell(record[column])
	}
	return draft{field(d.title), field(d.body), strings.Fields(field(d.tags))}, line, nil
}
