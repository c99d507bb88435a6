package thirdparty

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/sqlreq/sqlreq"
	sqlreqgorm "github.com/sqlreq/sqlreq/adapters/gorm"
	sqlreqsqlx "github.com/sqlreq/sqlreq/adapters/sqlx"
)

// note is a row as each of them wants it described.
type note struct {
	bun.BaseModel `bun:"table:note" gorm:"-" db:"-"`
	ID            int64  `bun:",pk,autoincrement" db:"id"`
	Text          string `db:"text"`
	Author        *int64 `db:"author"`
}

func (note) TableName() string { return "note" } // for gorm

// mapper writes a note and reads the last one back.
type mapper func(ctx context.Context, in note) (out note, err error)

var mappers = []struct {
	name string
	open func(t *testing.T, s *site) mapper
}{
	{"sqlx on the Key", func(t *testing.T, s *site) mapper {
		return func(ctx context.Context, in note) (out note, err error) {
			query, args, err := sqlx.Named("INSERT INTO note (text, author) VALUES (:text, :author)", in)
			if err != nil {
				return out, err
			}
			if _, err := sqlreq.DefaultKey.ExecContext(ctx, query, args...); err != nil {
				return out, err
			}
			rows, err := sqlreq.DefaultKey.QueryContext(ctx, "SELECT * FROM note ORDER BY id DESC LIMIT 1")
			if err != nil {
				return out, err
			}
			defer rows.Close()
			var list []note
			if err := sqlx.StructScan(rows, &list); err != nil {
				return out, err
			}
			return list[0], nil
		}
	}},
	{"sqlx by its adapter", func(t *testing.T, s *site) mapper {
		db := sqlreqsqlx.New(sqlx.NewDb(s.db, "sqlite3"), sqlreq.DefaultKey) // sqlx knows the placeholders of this name
		return func(ctx context.Context, in note) (out note, err error) {
			if _, err := db.NamedExecContext(ctx, "INSERT INTO note (text, author) VALUES (:text, :author)", in); err != nil {
				return out, err
			}
			return out, db.GetContext(ctx, &out, "SELECT * FROM note ORDER BY id DESC LIMIT 1")
		}
	}},
	{"bun on the Key", func(t *testing.T, s *site) mapper {
		db := bun.NewDB(s.db, sqlitedialect.New())
		return func(ctx context.Context, in note) (out note, err error) {
			if _, err := db.NewInsert().Model(&in).Conn(sqlreq.DefaultKey).Exec(ctx); err != nil {
				return out, err
			}
			return out, db.NewSelect().Model(&out).Conn(sqlreq.DefaultKey).Order("id DESC").Limit(1).Scan(ctx)
		}
	}},
	{"bun on the transaction", func(t *testing.T, s *site) mapper {
		db := bun.NewDB(s.db, sqlitedialect.New())
		return func(ctx context.Context, in note) (out note, err error) {
			tx, err := sqlreq.Tx(ctx)
			if err != nil {
				return out, err
			}
			if _, err := db.NewInsert().Model(&in).Conn(tx).Exec(ctx); err != nil {
				return out, err
			}
			return out, db.NewSelect().Model(&out).Conn(tx).Order("id DESC").Limit(1).Scan(ctx)
		}
	}},
	{"gorm by its adapter", func(t *testing.T, s *site) mapper {
		db := openGorm(t, s)
		return func(ctx context.Context, in note) (out note, err error) {
			session := sqlreqgorm.DB(ctx, db, sqlreq.DefaultKey)
			if err := session.Create(&in).Error; err != nil {
				return out, err
			}
			return out, session.Last(&out).Error
		}
	}},
}

func openGorm(t *testing.T, s *site) *gorm.DB {
	t.Helper()
	db, err := gorm.Open(sqlite.New(sqlite.Config{Conn: s.db}), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// mapping writes a note, shows the one it read, and answers with the status that the path asks for.
func mapping(run mapper, commitFails bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		if err != nil {
			unexpected(w, err)
			return
		}
		out, err := run(r.Context(), note{Text: mark, Author: author(commitFails)})
		if err != nil {
			unexpected(w, err)
			return
		}
		w.WriteHeader(status)
		io.WriteString(w, out.Text)
	})
}

func TestMappersWorkInTheRequestsTransaction(t *testing.T) {
	for _, m := range mappers {
		t.Run(m.name, func(t *testing.T) {
			s := newSite(t)
			run := m.open(t, s)
			works := serve(t, "HTTP/1.1", s.reg.Middleware(mapping(run, false)))
			fails := serve(t, "HTTP/1.1", s.reg.Middleware(mapping(run, true)))
			for _, c := range []struct {
				status, notes int
			}{{201, 1}, {303, 2}, {404, 2}, {500, 2}} {
				got := send(t, works, "POST", "/"+strconv.Itoa(c.status))
				got.wantStatus(t, c.status)
				if got.body != mark {
					t.Errorf("note read back: got %q, want %q", got.body, mark)
				}
				s.wantNotes(t, c.notes)
			}
			send(t, fails, "POST", "/201").wantError(t)
			s.wantNotes(t, 2)
			if got := s.db.Stats().InUse; got != 0 {
				t.Errorf("connections in use: got %d, want 0", got)
			}
		})
	}
}

// One connection is enough for all of them together: they share the request's transaction.
func TestMappersShareOneTransaction(t *testing.T) {
	s := newSite(t)
	s.db.SetMaxOpenConns(1)
	var all []mapper
	for _, m := range mappers {
		all = append(all, m.open(t, s))
	}
	srv := serve(t, "HTTP/1.1", s.reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for i, run := range all {
			if _, err := run(r.Context(), note{Text: mark}); err != nil {
				unexpected(w, errors.Join(errors.New(mappers[i].name), err))
				return
			}
		}
		var seen int
		if err := sqlreq.DefaultKey.QueryRowContext(r.Context(), "SELECT count(*) FROM note").Scan(&seen); err != nil {
			unexpected(w, err)
			return
		}
		if seen != len(all) {
			http.Error(w, strconv.Itoa(seen), 500)
		}
	})))
	send(t, srv, "POST", "/").wantStatus(t, 200)
	s.wantNotes(t, len(all))
}

// gorm's Transaction is a savepoint of the request's.
func TestGormTransactionIsASavepoint(t *testing.T) {
	s := newSite(t)
	db := openGorm(t, s)
	errOnPurpose := errors.New("on purpose")
	srv := serve(t, "HTTP/1.1", s.reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		session := sqlreqgorm.DB(r.Context(), db, sqlreq.DefaultKey)
		if err := session.Create(&note{Text: "before"}).Error; err != nil {
			return err
		}
		if err := session.Transaction(func(inner *gorm.DB) error {
			return errors.Join(inner.Create(&note{Text: "lost"}).Error, errOnPurpose)
		}); !errors.Is(err, errOnPurpose) {
			return sqlreq.Errorf(599, "transaction that fails: got %v, want %v", err, errOnPurpose)
		}
		return session.Transaction(func(inner *gorm.DB) error {
			return inner.Create(&note{Text: "kept"}).Error
		})
	})))
	send(t, srv, "POST", "/").wantStatus(t, 200)
	var texts string
	if err := s.outside.QueryRow("SELECT group_concat(text, ', ' ORDER BY id) FROM note").Scan(&texts); err != nil {
		t.Fatal(err)
	}
	if want := "before, kept"; texts != want {
		t.Errorf("notes: got %q, want %q", texts, want)
	}
}

// What the adapter is for: a bare Key has BeginTx, so that gorm takes it for a pool, and begins and ends a transaction for each
// write: the request's. sqlreq notices, and the request fails, but its row stays.
func TestGormOnABareKeyIsFoundOut(t *testing.T) {
	s := newSite(t)
	db := openGorm(t, s)
	srv := serve(t, "HTTP/1.1", s.reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		session := db.WithContext(r.Context())
		session.Statement.ConnPool = sqlreq.DefaultKey
		if err := session.Create(&note{Text: mark}).Error; err != nil {
			return sqlreq.Errorf(599, "create: %w", err)
		}
		return sqlreq.Errorf(422, "a reason to roll back")
	})))
	send(t, srv, "POST", "/").wantStatus(t, 422)
	s.wantNotes(t, 1)
}

// With the adapter the row of a request that fails does not stay.
func TestGormRollsBackWithTheRequest(t *testing.T) {
	s := newSite(t)
	db := openGorm(t, s)
	srv := serve(t, "HTTP/1.1", s.reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if err := sqlreqgorm.DB(r.Context(), db, sqlreq.DefaultKey).Create(&note{Text: mark}).Error; err != nil {
			return sqlreq.Errorf(599, "create: %w", err)
		}
		return sqlreq.Errorf(422, "a reason to roll back")
	})))
	send(t, srv, "POST", "/").wantStatus(t, 422)
	s.wantNotes(t, 0)
}

// Code that was written for gorm may try to end the transaction; it is told to leave it.
func TestGormCannotEndTheRequestsTransaction(t *testing.T) {
	s := newSite(t)
	db := openGorm(t, s)
	srv := serve(t, "HTTP/1.1", s.reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		session := sqlreqgorm.DB(r.Context(), db, sqlreq.DefaultKey)
		if err := session.Create(&note{Text: mark}).Error; err != nil {
			return err
		}
		if session.Session(&gorm.Session{}).Commit().Error == nil || session.Session(&gorm.Session{}).Rollback().Error == nil {
			return sqlreq.Errorf(599, "Commit or Rollback by gorm: got nil, want an error")
		}
		return nil
	})))
	send(t, srv, "POST", "/").wantStatus(t, 200)
	s.wantNotes(t, 1)
}
