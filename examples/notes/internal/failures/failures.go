// Package failures shows five ways in which a transaction for each request goes wrong: it makes the same requests to
// the same handler on databases of their own, behind a middleware by hand and behind sqlreq. Nothing is simulated:
// there are servers that listen, files of SQLite, and what is told was counted afterwards.
package failures

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/notes/internal/source"
)

// Failure is one of the five.
type Failure struct {
	ID    string
	Title string // what goes wrong
	Lead  string // who it happens to
	Why   string // why it does, by hand
	Mend  string // what would have to be written by hand
	Well  string // the name of the run without trouble
	Doc   string // the part of docs/guarantees.md

	guilty  string // a text that is in the guilty line of the code, and in no other
	handler string // the function that makes the handler
	file    string

	schema string
	conns  int
	serve  func(*stage, finder) http.Handler
	play   func(*stage, bool) (outcome, error)
}

// All is the five of them.
var All = []*Failure{&commit, &panicked, &hint, &idle, &conflict}

// Find returns the failure with the id, or nil.
func Find(id string) *Failure {
	for _, f := range All {
		if f.ID == id {
			return f
		}
	}
	return nil
}

// The program shows its own source: what is compiled is what the page has.
//
//go:embed byhand.go commit.go panicked.go hint.go idle.go conflict.go
var sources embed.FS

// ByHand is the code of the middleware, with the line that is guilty of f.
func (f *Failure) ByHand() source.Code {
	guilty := func(line string) bool { return strings.Contains(line, f.guilty) }
	return source.Cut(sources, "byhand.go", guilty, "byHand", "statusWriter", "statusWriter.WriteHeader")
}

// BySQLReq is the code that takes its place.
func (f *Failure) BySQLReq() source.Code { return source.Cut(sources, "byhand.go", nil, "bySQLReq") }

// Handler is the code that both run.
func (f *Failure) Handler() source.Code { return source.Cut(sources, f.file, nil, f.handler) }

// Answer is what one client was told.
type Answer struct {
	Request string
	Early   string // what came before the answer, in words; "": nothing did
	Status  string // or, in words, why there was no answer
	Body    string
	code    int // 0: there was no answer
}

// Fact is something that was counted in the database, or at its pool.
type Fact struct{ Name, Value string }

// Side is what came of one of the two.
type Side struct {
	Name    string
	Told    []Answer
	Facts   []Fact
	Log     []string // what was logged, without the times
	Good    bool
	Verdict string
}

// outcome is what a play has found.
type outcome struct {
	told    []Answer
	facts   []Fact
	good    bool
	verdict string
}

// Result is one run.
type Result struct {
	Trouble bool
	Sides   [2]Side // by hand, by sqlreq
}

// Run makes the requests, on new databases that are gone when it returns. With trouble something goes wrong on the
// way; without it the same requests go well.
func (f *Failure) Run(ctx context.Context, trouble bool) (Result, error) {
	hand, err := f.side(ctx, "By hand", trouble, func(s *stage, log *slog.Logger) (http.Handler, error) {
		return byHand(s.ctx, s.db.DB, log, f.serve(s, txByHand)), nil
	})
	if err != nil {
		return Result{}, err
	}
	ours, err := f.side(ctx, "With sqlreq", trouble, func(s *stage, log *slog.Logger) (http.Handler, error) {
		reg, err := sqlreq.New(sqlreq.Binding{DB: s.db.DB})
		if err != nil {
			return nil, err
		}
		reg.Logger = log
		return bySQLReq(reg, f.serve(s, keyBySQLReq)), nil
	})
	return Result{Trouble: trouble, Sides: [2]Side{hand, ours}}, err
}

func (f *Failure) side(ctx context.Context, name string, trouble bool,
	build func(*stage, *slog.Logger) (http.Handler, error)) (side Side, err error) {
	s, err := open(ctx, f.schema, f.conns, build)
	if err != nil {
		return side, fmt.Errorf("%s, %s: %w", f.ID, name, err)
	}
	out, err := f.play(s, trouble)
	if err = s.close(err); err != nil {
		return side, fmt.Errorf("%s, %s: %w", f.ID, name, err)
	}
	side = Side{Name: name, Told: out.told, Facts: out.facts, Log: s.log.read(), Good: out.good, Verdict: out.verdict}
	for _, line := range side.Log {
		slog.WarnContext(ctx, "the demo has made this happen on purpose", "failure", f.ID, "side", name, "line", line)
	}
	return side, nil
}

// count asks the database for a number.
func count(ctx context.Context, db *sql.DB, query string) (n int, err error) {
	err = db.QueryRowContext(ctx, query).Scan(&n)
	return n, err
}
