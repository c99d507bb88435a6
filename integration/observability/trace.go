package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// span is one of a trace, as it was exported. Times are microseconds since the beginning
// of the request.
type span struct {
	Request   string // what was asked for, and what was answered
	Name      string
	Start     int64
	Begun     int64 // of a transaction only, as all below
	Ending    int64
	End       int64
	Operation string
	Outcome   string
	Attempt   string
	ErrorType string
	Failed    bool // the span's status is an error
}

// isTransaction reports whether it is one of sqlreq's.
func (s span) isTransaction() bool { return s.Outcome != "" }

// noAuthor is one that does not exist.
const noAuthor = authors + 1

// contended is the author of two notes that are sent at the same time.
const contended = authors

// traces sends four requests to a service of its own, and returns their spans: one that
// commits, one that a 422 rolls back, one that meets a conflict and is run again, one
// whose COMMIT is refused.
func traces(ctx context.Context, s *service) ([]span, error) {
	var all []span
	for _, what := range []struct {
		name, text   string
		author, want int
	}{
		{"a note", "a", 1, http.StatusCreated},
		{"a note without a text", "", 1, http.StatusUnprocessableEntity},
		{"a note beside another one", "a", contended, http.StatusCreated},
		{"a note of no author", "a", noAuthor, http.StatusInternalServerError},
	} {
		s.spans.Reset()
		send := s.post
		if what.author == contended {
			send = s.postTwo
		}
		status, err := send(ctx, what.author, what.text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what.name, err)
		}
		if status != what.want {
			return nil, fmt.Errorf("%s: got %d, want %d", what.name, status, what.want)
		}
		spans, err := longest(s.spans.GetSpans(), fmt.Sprintf("%s: %d", what.name, status))
		if err != nil {
			return nil, err
		}
		all = append(all, spans...)
	}
	return all, nil
}

// postTwo sends the same note twice at the same time. Each has read before the other one
// writes, so one of them meets a conflict.
func (s *service) postTwo(ctx context.Context, author int, text string) (int, error) {
	var arrived sync.WaitGroup
	arrived.Add(2)
	left := make(chan struct{}, 2) // for those who wait: no further attempt does
	left <- struct{}{}
	left <- struct{}{}
	between := func(context.Context) {
		select {
		case <-left:
			arrived.Done()
			arrived.Wait()
		default:
		}
	}
	s.between.Store(&between)
	defer s.between.Store(nil)
	type answer struct {
		status int
		err    error
	}
	answers := make(chan answer)
	for range 2 {
		go func() {
			status, err := s.post(ctx, author, text)
			answers <- answer{status, err}
		}()
	}
	first, second := <-answers, <-answers
	return max(first.status, second.status), errors.Join(first.err, second.err)
}

// longest returns the spans of the trace that has the most of them, the request's first.
func longest(exported tracetest.SpanStubs, request string) ([]span, error) {
	byTrace := make(map[trace.TraceID]tracetest.SpanStubs)
	for _, s := range exported {
		id := s.SpanContext.TraceID()
		byTrace[id] = append(byTrace[id], s)
	}
	var found tracetest.SpanStubs
	for _, t := range byTrace {
		if len(t) > len(found) {
			found = t
		}
	}
	root := slices.IndexFunc(found, func(s tracetest.SpanStub) bool { return s.SpanKind == trace.SpanKindServer })
	if root < 0 || len(found) < 2 {
		return nil, fmt.Errorf("%s: %d spans were exported, want the request's and those of its transactions", request, len(found))
	}
	slices.SortFunc(found, func(a, b tracetest.SpanStub) int { return a.StartTime.Compare(b.StartTime) })
	began := found[0].StartTime
	if found[0].SpanKind != trace.SpanKindServer {
		return nil, fmt.Errorf("%s: %s began before the request", request, found[0].Name)
	}
	var spans []span
	for _, s := range found {
		if s.SpanKind != trace.SpanKindServer && s.Parent.SpanID() != found[0].SpanContext.SpanID() {
			return nil, fmt.Errorf("%s: %s is not below the request's span", request, s.Name)
		}
		since := func(t time.Time) int64 { return t.Sub(began).Microseconds() }
		one := span{
			Request: request, Name: s.Name, Start: since(s.StartTime), End: since(s.EndTime),
			Operation: value(s.Attributes, "db.operation.name"), Outcome: value(s.Attributes, "sqlreq.outcome"),
			Attempt: value(s.Attributes, "sqlreq.attempt"), ErrorType: value(s.Attributes, "error.type"),
			Failed: s.Status.Code == codes.Error,
		}
		for _, e := range s.Events {
			switch e.Name {
			case "begun":
				one.Begun = since(e.Time)
			case "ending":
				one.Ending = since(e.Time)
			}
		}
		spans = append(spans, one)
	}
	return spans, nil
}

func value(attrs []attribute.KeyValue, key string) string {
	for _, a := range attrs {
		if string(a.Key) == key {
			return a.Value.String()
		}
	}
	return ""
}

var traceColumns = []string{"request", "span", "start_us", "begun_us", "ending_us", "end_us", "db.operation.name", "sqlreq.outcome", "sqlreq.attempt", "error.type", "error"}

func writeTraces(w io.Writer, spans []span) error {
	rows := [][]string{traceColumns}
	for _, s := range spans {
		number := func(n int64) string { return strconv.FormatInt(n, 10) }
		rows = append(rows, []string{s.Request, s.Name, number(s.Start), number(s.Begun), number(s.Ending), number(s.End),
			s.Operation, s.Outcome, s.Attempt, s.ErrorType, strconv.FormatBool(s.Failed)})
	}
	return csv.NewWriter(w).WriteAll(rows)
}

func readTraces(r io.Reader) ([]span, error) {
	rows, err := readCSV(r, traceColumns)
	if err != nil {
		return nil, err
	}
	var spans []span
	for _, row := range rows {
		s := span{Request: row[0], Name: row[1], Operation: row[6], Outcome: row[7], Attempt: row[8], ErrorType: row[9], Failed: row[10] == "true"}
		for i, to := range []*int64{&s.Start, &s.Begun, &s.Ending, &s.End} {
			if *to, err = strconv.ParseInt(row[2+i], 10, 64); err != nil {
				return nil, err
			}
		}
		spans = append(spans, s)
	}
	return spans, nil
}

// readCSV returns the rows below the columns named.
func readCSV(r io.Reader, columns []string) ([][]string, error) {
	rows, err := csv.NewReader(r).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 || !slices.Equal(rows[0], columns) {
		return nil, fmt.Errorf("the file does not begin with the columns %q", columns)
	}
	return rows[1:], nil
}
