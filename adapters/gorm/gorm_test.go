package sqlreqgorm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/gorm/utils/tests"
	_ "modernc.org/sqlite"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

// dialector is SQLite's, as far as the tests need it: gorm's own need a driver in C.
type dialector struct {
	tests.DummyDialector
	pool gorm.ConnPool
}

func (d dialector) Initialize(db *gorm.DB) error {
	db.ConnPool = d.pool
	return d.DummyDialector.Initialize(db)
}

func (dialector) SavePoint(tx *gorm.DB, name string) error { return tx.Exec("SAVEPOINT " + name).Error }
func (dialector) RollbackTo(tx *gorm.DB, name string) error {
	return tx.Exec("ROLLBACK TO " + name).Error
}

func open(t testing.TB, pool gorm.ConnPool, prepare bool) *gorm.DB {
	db, err := gorm.Open(dialector{pool: pool}, &gorm.Config{Logger: logger.Discard, PrepareStmt: prepare})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// row is one of the table "work", with one of "child" that has no parent, if it is asked for.
type row struct {
	ID    int64
	Note  string
	Twin  *twin `gorm:"foreignKey:ID"`
	after func(tx *gorm.DB) error
}

func (row) TableName() string { return "work" }

// AfterCreate is gorm's hook.
func (r *row) AfterCreate(tx *gorm.DB) error {
	if r.after != nil {
		return r.after(tx)
	}
	return nil
}

// twin is a row of the same table that a row has.
type twin struct {
	ID   int64
	Note string
}

func (twin) TableName() string { return "work" }

func newWork(prepare bool) func(t testing.TB, s *adaptertest.Site) adaptertest.Work {
	return func(t testing.TB, s *adaptertest.Site) adaptertest.Work {
		dbs := map[sqlreq.Key]*gorm.DB{sqlreq.DefaultKey: open(t, s.DB, prepare), adaptertest.Reports: open(t, s.ReportsDB, prepare)}
		return adaptertest.Work{
			Insert: func(ctx context.Context, k sqlreq.Key) error {
				return DB(ctx, dbs[k], k).Create(&row{Note: "x"}).Error
			},
			BreakCommit: func(ctx context.Context) error {
				return DB(ctx, dbs[sqlreq.DefaultKey], sqlreq.DefaultKey).Exec(sqlreqtest.BreakCommit).Error
			},
		}
	}
}

func TestCells(t *testing.T) {
	adaptertest.Run(t, adaptertest.Plain(newWork(false)).Tests(), nil)
}

func TestCellsWithPrepareStmt(t *testing.T) {
	adaptertest.Run(t, adaptertest.Plain(newWork(true)).Tests(), nil)
}

// uses are ways to write a row that gorm has. Each gets a session of DB.
var uses = map[string]func(db *gorm.DB) error{
	"Create": func(db *gorm.DB) error { return db.Create(&row{Note: "a"}).Error },
	"Session with PrepareStmt": func(db *gorm.DB) error {
		return db.Session(&gorm.Session{PrepareStmt: true}).Create(&row{Note: "a"}).Error
	},
	"Session with PrepareStmt, a new DB": func(db *gorm.DB) error {
		return db.Session(&gorm.Session{PrepareStmt: true, NewDB: true}).Create(&row{Note: "a"}).Error
	},
	"a statement prepared on the pool before": func(db *gorm.DB) error {
		return db.Session(&gorm.Session{PrepareStmt: true}).Exec("INSERT INTO work (note) VALUES ('warm')").Error
	},
	"Transaction": func(db *gorm.DB) error {
		return db.Transaction(func(tx *gorm.DB) error { return tx.Create(&row{Note: "a"}).Error })
	},
	"Transaction in a Transaction": func(db *gorm.DB) error {
		return db.Transaction(func(tx *gorm.DB) error {
			return tx.Transaction(func(tx *gorm.DB) error { return tx.Create(&row{Note: "a"}).Error })
		})
	},
	"Transaction with PrepareStmt": func(db *gorm.DB) error {
		return db.Session(&gorm.Session{PrepareStmt: true}).Transaction(func(tx *gorm.DB) error { return tx.Create(&row{Note: "a"}).Error })
	},
	"SavePoint": func(db *gorm.DB) error {
		return errors.Join(db.SavePoint("a").Error, db.Create(&row{Note: "a"}).Error)
	},
	"a hook": func(db *gorm.DB) error {
		return db.Create(&row{Note: "a", after: func(tx *gorm.DB) error { return tx.Create(&twin{Note: "b"}).Error }}).Error
	},
	"an association": func(db *gorm.DB) error { return db.Create(&row{ID: 7, Twin: &twin{ID: 7, Note: "b"}}).Error },
	"FindInBatches": func(db *gorm.DB) error {
		if err := db.Create([]*row{{Note: "a"}, {Note: "a"}, {Note: "a"}}).Error; err != nil {
			return err
		}
		var found []row
		return db.Where("note = ?", "a").FindInBatches(&found, 1, func(tx *gorm.DB, _ int) error { return tx.Create(&twin{Note: "b"}).Error }).Error
	},
	"preloads": func(db *gorm.DB) error {
		if err := db.Create(&row{Note: "a"}).Error; err != nil {
			return err
		}
		var found []row
		if err := db.Preload("Twin").Find(&found).Error; err != nil {
			return err
		}
		if len(found) == 0 || found[0].Twin == nil {
			return errors.New("the row of the same transaction was not preloaded")
		}
		return nil
	},
	"CreateInBatches": func(db *gorm.DB) error { return db.CreateInBatches([]*row{{Note: "a"}, {Note: "a"}}, 1).Error },
	"Save":            func(db *gorm.DB) error { return db.Save(&row{ID: 7, Note: "a"}).Error },
	"WithContext":     func(db *gorm.DB) error { return db.WithContext(db.Statement.Context).Create(&row{Note: "a"}).Error },
	"Debug": func(db *gorm.DB) error {
		return db.Session(&gorm.Session{FullSaveAssociations: true}).Create(&row{Note: "a"}).Error
	},
}

// In a request that answers 422 no row stays, whatever was used; in one that answers 200 each stays.
func TestNoRowOfARequestThatFails(t *testing.T) {
	for name, use := range uses {
		for _, prepare := range []bool{false, true} {
			for _, status := range []int{422, 200} {
				t.Run(fmt.Sprint(name, ", PrepareStmt ", prepare, ", ", status), func(t *testing.T) {
					s := adaptertest.NewSite(t)
					db := open(t, s.DB, prepare)
					warm := db.Session(&gorm.Session{PrepareStmt: true})
					for _, query := range []string{"INSERT INTO work (note) VALUES ('warm')", "DELETE FROM work"} {
						if err := warm.Exec(query).Error; err != nil {
							t.Fatal(err)
						}
					}
					url := s.Serve(t, s.Reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if err := use(DB(r.Context(), db, sqlreq.DefaultKey)); err != nil {
							t.Errorf("got %v", err)
						}
						w.WriteHeader(status)
					})))
					if got := s.Send(t, "POST", url+"/"); got.Status != status {
						t.Errorf("got %d, want %d", got.Status, status)
					}
					rows := sqlreqtest.Count(t, s.DB, "work")
					if status == 422 && rows != 0 || status == 200 && rows == 0 {
						t.Errorf("%d rows have stayed", rows)
					}
					sqlreqtest.Idle(t, s.DB)
					if status == 200 { // and the program's own DB works on
						if err := db.Create(&row{Note: "own"}).Error; err != nil || sqlreqtest.Count(t, s.DB, "work") != rows+1 {
							t.Errorf("the program's own DB: %v", err)
						}
					}
				})
			}
		}
	}
}

// A Transaction that fails undoes what was done in it, and nothing else.
func TestTransactionIsASavepoint(t *testing.T) {
	for _, prepare := range []bool{false, true} {
		s := adaptertest.NewSite(t)
		db := open(t, s.DB, prepare)
		err := s.Reg.Do(t.Context(), func(ctx context.Context) error {
			db := DB(ctx, db, sqlreq.DefaultKey)
			if err := db.Create(&row{Note: "before"}).Error; err != nil {
				return err
			}
			failed := db.Transaction(func(tx *gorm.DB) error {
				return errors.Join(tx.Create(&row{Note: "undone"}).Error, errors.New("on purpose"))
			})
			if failed == nil || failed.Error() != "on purpose" {
				t.Errorf("Transaction: got %v", failed)
			}
			return db.Create(&row{Note: "after"}).Error
		})
		if got := sqlreqtest.Notes(t, s.DB); err != nil || got != "before after" {
			t.Errorf("PrepareStmt %t: got %v and the rows %q, want before after", prepare, err, got)
		}
		if got := s.Log.Events(); got != "main Committed 1" {
			t.Errorf("got events %q, want one transaction", got)
		}
	}
}

func TestWhatIsRefusedSaysWhatToDo(t *testing.T) {
	s := adaptertest.NewSite(t)
	db := open(t, s.DB, false)
	err := s.Reg.Do(t.Context(), func(ctx context.Context) error {
		session := DB(ctx, db, sqlreq.DefaultKey)
		if err := session.Create(&row{Note: "a"}).Error; err != nil {
			return err
		}
		_, errDB := session.DB()
		for what, test := range map[string]struct {
			err  error
			want string
		}{
			"Begin":      {session.Begin().Error, "use Transaction"},
			"Commit":     {session.Session(&gorm.Session{}).Commit().Error, "sqlreq.Commit"},
			"Rollback":   {session.Session(&gorm.Session{}).Rollback().Error, "sqlreq.Rollback"},
			"DB":         {errDB, "opened on the pool"},
			"Connection": {session.Connection(func(*gorm.DB) error { t.Error("Connection ran"); return nil }), "opened on the pool"},
		} {
			if test.err == nil || !strings.Contains(test.err.Error(), test.want) || !strings.Contains(test.err.Error(), `"main"`) {
				t.Errorf("%s: got %v, want an error that names the key and says %q", what, test.err, test.want)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	s.WantRows(t, 1)
}

// What a condition of the program's DB says holds in the session.
func TestConditionsAreKept(t *testing.T) {
	s := adaptertest.NewSite(t)
	db := open(t, s.DB, false)
	for _, note := range []string{"mine", "yours"} {
		if err := db.Create(&row{Note: note}).Error; err != nil {
			t.Fatal(err)
		}
	}
	err := s.Reg.Do(t.Context(), func(ctx context.Context) error {
		return DB(ctx, db.Where("note = ?", "mine"), sqlreq.DefaultKey).Delete(&row{}).Error
	})
	if got := sqlreqtest.Notes(t, s.DB); err != nil || got != "yours" {
		t.Errorf("got %v and the rows %q, want yours alone", err, got)
	}
}

// Where nothing can be begun a prepared statement returns the error, and does not panic.
func TestNothingCanBeBegun(t *testing.T) {
	s := adaptertest.NewSite(t)
	db := open(t, s.DB, true)
	const query = "INSERT INTO work (note) VALUES ('x')"
	if err := db.Exec(query).Error; err != nil { // prepared, and kept by gorm
		t.Fatal(err)
	}
	var finished context.Context
	if err := s.Reg.Do(t.Context(), func(ctx context.Context) error { finished = ctx; return nil }); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		ctx  context.Context
		want error
	}{
		"no request":      {context.Background(), sqlreq.ErrNoRegistry},
		"it has finished": {finished, sqlreq.ErrFinished},
	} {
		for _, prepare := range []bool{false, true} {
			session := DB(test.ctx, db, sqlreq.DefaultKey).Session(&gorm.Session{PrepareStmt: prepare})
			if err := session.Exec(query).Error; !errors.Is(err, test.want) {
				t.Errorf("%s, Exec: got %v, want %v", name, err, test.want)
			}
			if _, err := session.Raw(query).Rows(); !errors.Is(err, test.want) {
				t.Errorf("%s, Rows: got %v, want %v", name, err, test.want)
			}
			var n int
			if err := session.Raw(query).Row().Scan(&n); !errors.Is(err, test.want) && !prepare {
				t.Errorf("%s, Row: got %v, want %v", name, err, test.want)
			}
		}
	}
	stmt := failing(sqlreq.ErrFinished)
	var n int
	if err := stmt.QueryRow().Scan(&n); !errors.Is(err, sqlreq.ErrFinished) {
		t.Errorf("QueryRow: got %v", err)
	}
	if err := stmt.Close(); err != nil && !errors.Is(err, sqlreq.ErrFinished) {
		t.Errorf("Close: got %v", err)
	}
	s.WantRows(t, 1)
}

// TestKeyAloneHarms is why there is an adapter: a Key has a BeginTx, by which gorm ends
// the request's transaction after each write.
func TestKeyAloneHarms(t *testing.T) {
	s := adaptertest.NewSite(t)
	db := open(t, s.DB, false)
	url := s.Serve(t, s.Reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		session := db.Session(&gorm.Session{Context: r.Context()})
		session.Statement.ConnPool = sqlreq.DefaultKey
		if err := session.Create(&row{Note: "a"}).Error; err != nil {
			t.Errorf("Create: %v", err)
		}
		w.WriteHeader(422)
	})))
	s.Send(t, "POST", url+"/")
	s.WantRows(t, 1)
}
