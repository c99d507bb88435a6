package sqlreqsqlx

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/jmoiron/sqlx/reflectx"
	_ "modernc.org/sqlite"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// note is a row of the table "work", with names that only a mapper of one's own has.
type note struct {
	Number int64  `col:"id"`
	Words  string `col:"note"`
}

var mapper = reflectx.NewMapper("col")

// open returns a DB with question marks, and the mapper of note.
func open(pool *sql.DB, k sqlreq.Key) *DB {
	db := sqlx.NewDb(pool, "sqlite3")
	db.Mapper = mapper
	return New(db, k)
}

func newWork(_ testing.TB, s *adaptertest.Site) adaptertest.Work {
	dbs := map[sqlreq.Key]*DB{sqlreq.DefaultKey: open(s.DB, sqlreq.DefaultKey), adaptertest.Reports: open(s.ReportsDB, adaptertest.Reports)}
	return adaptertest.Work{
		Insert: func(ctx context.Context, k sqlreq.Key) error {
			_, err := dbs[k].NamedExecContext(ctx, "INSERT INTO work (note) VALUES (:note)", note{Words: "x"})
			return err
		},
		BreakCommit: func(ctx context.Context) error {
			_, err := dbs[sqlreq.DefaultKey].ExecContext(ctx, sqlreqtest.BreakCommit)
			return err
		},
	}
}

func TestCells(t *testing.T) {
	adaptertest.Run(t, adaptertest.Plain(newWork).Tests(), nil)
}

// do runs fn in a unit of work that rolls back.
func do(t *testing.T, s *adaptertest.Site, fn func(ctx context.Context, db *DB)) {
	t.Helper()
	err := s.Reg.Do(t.Context(), func(ctx context.Context) error {
		db := open(s.DB, sqlreq.DefaultKey)
		for _, words := range []string{"a", "b"} {
			if _, err := db.ExecContext(ctx, "INSERT INTO work (note) VALUES (?)", words); err != nil {
				t.Fatal(err)
			}
		}
		fn(ctx, db)
		return sqlreqtest.ErrTest
	})
	if !errors.Is(err, sqlreqtest.ErrTest) {
		t.Error(err)
	}
	s.WantRows(t, 0)
}

var both = []note{{1, "a"}, {2, "b"}}

// Every way to read sees what the transaction has written, and nothing of it stays.
func TestReads(t *testing.T) {
	const query = "SELECT id, note FROM work"
	scanAll := func(rows *sqlx.Rows, err error) (all []note, _ error) {
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		for rows.Next() {
			var n note
			if err := rows.StructScan(&n); err != nil {
				return nil, err
			}
			all = append(all, n)
		}
		return all, rows.Err()
	}
	one := func(n note, err error) ([]note, error) { return []note{n, both[1]}, err }
	reads := map[string]func(ctx context.Context, db *DB) ([]note, error){
		"SelectContext": func(ctx context.Context, db *DB) (all []note, err error) {
			err = db.SelectContext(ctx, &all, query)
			return all, err
		},
		"QueryxContext": func(ctx context.Context, db *DB) ([]note, error) { return scanAll(db.QueryxContext(ctx, query)) },
		"NamedQueryContext": func(ctx context.Context, db *DB) ([]note, error) {
			return scanAll(db.NamedQueryContext(ctx, query+" WHERE id < :id", note{Number: 9}))
		},
		"GetContext": func(ctx context.Context, db *DB) ([]note, error) {
			var n note
			err := db.GetContext(ctx, &n, query)
			return one(n, err)
		},
		"QueryRowxContext": func(ctx context.Context, db *DB) ([]note, error) {
			var n note
			err := db.QueryRowxContext(ctx, query).StructScan(&n)
			return one(n, err)
		},
		"PreparexContext": func(ctx context.Context, db *DB) ([]note, error) {
			stmt, err := db.PreparexContext(ctx, query)
			if err != nil {
				return nil, err
			}
			defer stmt.Close()
			return scanAll(stmt.QueryxContext(ctx))
		},
	}
	for name, read := range reads {
		s := adaptertest.NewSite(t)
		do(t, s, func(ctx context.Context, db *DB) {
			all, err := read(ctx, db)
			if err != nil || !reflect.DeepEqual(all, both) {
				t.Errorf("%s: got %v %v, want %v", name, all, err, both)
			}
		})
	}
}

func TestGetContext(t *testing.T) {
	s := adaptertest.NewSite(t)
	do(t, s, func(ctx context.Context, db *DB) {
		var n int
		var text sql.NullString
		var when time.Time
		for query, dest := range map[string]any{
			"SELECT count(*) FROM work":              &n,
			"SELECT note FROM work WHERE id = 2":     &text,
			"SELECT CAST('2026-01-02' AS DATE)":      new(string),
			"SELECT id, note FROM work WHERE id = 1": new(note),
		} {
			if err := db.GetContext(ctx, dest, query); err != nil {
				t.Errorf("%s: %v", query, err)
			}
		}
		if n != 2 || text.String != "b" {
			t.Errorf("got %d %q, want 2 b", n, text.String)
		}
		if !db.isOneColumn(reflect.TypeOf(when)) {
			t.Error("a time.Time is taken for a struct with columns")
		}
		if err := db.GetContext(ctx, &n, "SELECT id FROM work WHERE id = 9"); !errors.Is(err, sql.ErrNoRows) {
			t.Errorf("no row: got %v, want sql.ErrNoRows", err)
		}
		for name, err := range map[string]error{
			"two columns":     db.GetContext(ctx, &n, "SELECT id, note FROM work"),
			"no pointer":      db.GetContext(ctx, n, "SELECT 1"),
			"a nil pointer":   db.GetContext(ctx, (*int)(nil), "SELECT 1"),
			"no such field":   db.GetContext(ctx, new(note), "SELECT 1 AS other"),
			"a wrong query":   db.GetContext(ctx, &n, "SELECT FROM"),
			"a wrong value":   db.GetContext(ctx, &n, "SELECT 'x'"),
			"no such name":    func() error { _, err := db.NamedExecContext(ctx, "SELECT :other", note{}); return err }(),
			"no such name, q": func() error { _, err := db.NamedQueryContext(ctx, "SELECT :other", note{}); return err }(),
		} {
			if err == nil {
				t.Errorf("%s: got nil", name)
			}
		}
		var rows int // and no rows were left open
		if err := db.GetContext(ctx, &rows, "SELECT count(*) FROM work"); err != nil || rows != 2 {
			t.Errorf("got %d %v", rows, err)
		}
	})
}

// The placeholders are the driver's: NamedExec of the recipe before failed on PostgreSQL.
func TestPlaceholdersOfTheDriver(t *testing.T) {
	var asked string
	f := &fakedb.DB{Stmt: func(_ context.Context, q string) error { asked = q; return nil }}
	pool := f.Open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: pool})
	for name, want := range map[string]string{"postgres": "UPDATE work SET note = $1 WHERE id = $2", "mysql": "UPDATE work SET note = ? WHERE id = ?"} {
		pg := sqlx.NewDb(pool, name)
		pg.Mapper = mapper
		db := New(pg, sqlreq.DefaultKey)
		err := reg.Do(t.Context(), func(ctx context.Context) error {
			_, err := db.NamedExecContext(ctx, "UPDATE work SET note = :note WHERE id = :id", note{})
			return err
		})
		if err != nil || asked != want || db.DriverName() != name || db.Rebind("?") == "?" == (name == "postgres") {
			t.Errorf("%s: the driver was asked %q, %v, want %q", name, asked, err, want)
		}
	}
}

// Where nothing can be begun each method returns the error.
func TestNothingCanBeBegun(t *testing.T) {
	s := adaptertest.NewSite(t)
	db := open(s.DB, sqlreq.DefaultKey)
	ctx := context.Background()
	var n note
	_, errExec := db.ExecContext(ctx, "SELECT 1")
	_, errQuery := db.QueryContext(ctx, "SELECT 1")
	_, errQueryx := db.QueryxContext(ctx, "SELECT 1")
	_, errPrepare := db.PrepareContext(ctx, "SELECT 1")
	_, errPreparex := db.PreparexContext(ctx, "SELECT 1")
	for name, err := range map[string]error{
		"Exec": errExec, "Query": errQuery, "Queryx": errQueryx, "Prepare": errPrepare, "Preparex": errPreparex,
		"Get": db.GetContext(ctx, &n, "SELECT 1"), "Select": db.SelectContext(ctx, &[]note{}, "SELECT 1"),
		"QueryRowx": db.QueryRowxContext(ctx, "SELECT 1").StructScan(&n),
	} {
		if !errors.Is(err, sqlreq.ErrNoRegistry) {
			t.Errorf("%s: got %v, want ErrNoRegistry", name, err)
		}
	}
	defer func() {
		if v, _ := recover().(string); !strings.Contains(v, "*sqlx.DB") {
			t.Errorf("New(nil): got panic %q", v)
		}
	}()
	New(nil, sqlreq.DefaultKey)
}

// A conflict that GetContext meets is seen by sqlreq, though the handler says nothing of it.
func TestConflictIsSeen(t *testing.T) {
	n := 0
	f := &fakedb.DB{
		Stmt: func(context.Context, string) error {
			if n++; n == 1 {
				return sqlreqtest.Conflict{}
			}
			return nil
		},
		Rows: func(string) [][]driver.Value { return [][]driver.Value{{int64(1)}} },
	}
	pool := f.Open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: pool})
	reg.Retry = sqlreqtest.Retries(3)
	db := open(pool, sqlreq.DefaultKey)
	for name, test := range map[string]struct {
		read     func(context.Context) error
		attempts int
	}{
		"GetContext": {func(ctx context.Context) error { return db.GetContext(ctx, new(int), "SELECT 1") }, 2},
		// Its comment says so: use GetContext.
		"QueryRowxContext": {func(ctx context.Context) error { return db.QueryRowxContext(ctx, "SELECT 1").Scan(new(int)) }, 1},
	} {
		n = 0
		err := reg.Do(t.Context(), func(ctx context.Context) error {
			if test.read(ctx) != nil {
				return sqlreqtest.ErrTest // not the conflict
			}
			return nil
		})
		if n != test.attempts || (err == nil) != (test.attempts == 2) {
			t.Errorf("%s: got %v after %d attempts, want %d", name, err, n, test.attempts)
		}
	}
}
