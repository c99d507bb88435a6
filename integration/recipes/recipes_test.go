package recipes

import (
	"context"
	"database/sql"
	"net/http"
	"testing"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"
	_ "modernc.org/sqlite"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

// note is a row as bun has it.
type note struct {
	bun.BaseModel `bun:"table:work"`
	ID            int64  `bun:",pk,autoincrement"`
	Note          string `bun:"note"`
}

// bun takes a Key as its connection.
func TestBun(t *testing.T) {
	cells(t, func(s *adaptertest.Site) func(context.Context, sqlreq.Key) error {
		dbs := map[sqlreq.Key]*bun.DB{
			sqlreq.DefaultKey:   bun.NewDB(s.DB, sqlitedialect.New()),
			adaptertest.Reports: bun.NewDB(s.ReportsDB, sqlitedialect.New()),
		}
		return func(ctx context.Context, k sqlreq.Key) error {
			in := note{Note: "x"}
			if _, err := dbs[k].NewInsert().Model(&in).Conn(k).Exec(ctx); err != nil {
				return err
			}
			return dbs[k].NewSelect().Model(new(note)).Conn(k).Where("id = ?", in.ID).Scan(ctx) // it sees its own row
		}
	})
}

// DBTX, Queries and New are what sqlc writes for database/sql.
type DBTX interface {
	ExecContext(context.Context, string, ...interface{}) (sql.Result, error)
	PrepareContext(context.Context, string) (*sql.Stmt, error)
	QueryContext(context.Context, string, ...interface{}) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...interface{}) *sql.Row
}

func New(db DBTX) *Queries { return &Queries{db: db} }

type Queries struct{ db DBTX }

const createNote = `-- name: CreateNote :one
INSERT INTO work (note) VALUES (?) RETURNING id
`

func (q *Queries) CreateNote(ctx context.Context, note string) (int64, error) {
	row := q.db.QueryRowContext(ctx, createNote, note)
	var id int64
	err := row.Scan(&id)
	return id, err
}

// What sqlc generates takes a Key as its DBTX.
func TestSqlc(t *testing.T) {
	queries := map[sqlreq.Key]*Queries{sqlreq.DefaultKey: New(sqlreq.DefaultKey), adaptertest.Reports: New(adaptertest.Reports)}
	cells(t, func(*adaptertest.Site) func(context.Context, sqlreq.Key) error {
		return func(ctx context.Context, k sqlreq.Key) error {
			_, err := queries[k].CreateNote(ctx, "x")
			return err
		}
	})
}

// cells runs the tests that adapters have.
func cells(t *testing.T, open func(*adaptertest.Site) func(context.Context, sqlreq.Key) error) {
	web := adaptertest.Plain(func(_ testing.TB, s *adaptertest.Site) adaptertest.Work {
		return adaptertest.Work{Insert: open(s), BreakCommit: s.BreakCommit}
	})
	for name, test := range web.Tests() {
		t.Run(name, test)
	}
}

// want sends a POST, and compares the status and the number of rows.
func want(t *testing.T, s *adaptertest.Site, url string, status, rows int) adaptertest.Answer {
	t.Helper()
	got := s.Send(t, http.MethodPost, url, "Content-Type", "application/json")
	if got.Status != status {
		t.Errorf("%s: got %d %q %v, want %d", url, got.Status, got.Body, got.Err, status)
	}
	s.WantRows(t, rows)
	return got
}
