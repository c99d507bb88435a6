package adapters

import (
	"context"
	"testing"

	"github.com/georgysavva/scany/v2/sqlscan"
	"github.com/jmoiron/sqlx"

	"github.com/sqlreq/sqlreq"
	sqlreqsqlx "github.com/sqlreq/sqlreq/adapters/sqlx"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

// scany reads by a Key, and by the adapter of sqlx, what the request has written.
func TestScany(t *testing.T) {
	type row struct {
		ID   int64
		Note string
	}
	for name, open := range map[string]func(*adaptertest.Site) sqlscan.Querier{
		"a Key": func(*adaptertest.Site) sqlscan.Querier { return sqlreq.DefaultKey },
		"the adapter of sqlx": func(s *adaptertest.Site) sqlscan.Querier {
			return sqlreqsqlx.New(sqlx.NewDb(s.DB, "sqlite3"), sqlreq.DefaultKey)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := adaptertest.NewSite(t)
			db := open(s)
			work := func(ctx context.Context, then error) error {
				return s.Reg.Do(ctx, func(ctx context.Context) error {
					sqlreqtest.Exec(t, ctx, sqlreq.DefaultKey, "INSERT INTO work (note) VALUES ('a'), ('b')")
					var all []row
					var one row
					if err := sqlscan.Select(ctx, db, &all, "SELECT id, note FROM work ORDER BY id"); err != nil {
						return err
					}
					if err := sqlscan.Get(ctx, db, &one, "SELECT id, note FROM work WHERE note = 'b'"); err != nil {
						return err
					}
					if len(all) != 2 || one.Note != "b" || all[1] != one {
						t.Errorf("got %v and %v, want both rows of this transaction", all, one)
					}
					return then
				})
			}
			if err := work(t.Context(), errPlain); err != errPlain {
				t.Errorf("got %v", err)
			}
			s.WantRows(t, 0)
			if err := work(t.Context(), nil); err != nil {
				t.Error(err)
			}
			s.WantRows(t, 2)
		})
	}
}
