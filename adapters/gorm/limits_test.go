package sqlreqgorm

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"gorm.io/gorm"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// What DB's comment says cannot be seen: if this test fails, gorm has changed, and the
// comment, the README.md and docs/frameworks.md say too little of the adapter.
func TestConnectionOfPreparedStatementsLeaves(t *testing.T) {
	for _, prepare := range []bool{false, true} {
		s := adaptertest.NewSite(t)
		db := open(t, s.DB, prepare)
		err := s.Reg.Do(t.Context(), func(ctx context.Context) error {
			session := DB(ctx, db, sqlreq.DefaultKey).Session(&gorm.Session{PrepareStmt: true})
			err := session.Connection(func(tx *gorm.DB) error { return tx.Create(&row{Note: "left"}).Error })
			return errors.Join(err, sqlreqtest.ErrTest)
		})
		if !errors.Is(err, sqlreqtest.ErrTest) {
			t.Error(err)
		}
		s.WantRows(t, 1)
	}
}

// Savepoints of gorm's Transaction are gorm's: their rollback drops no hooks of sqlreq's,
// and none is released.
func TestSavepointsOfGorm(t *testing.T) {
	s := adaptertest.NewSite(t)
	db := open(t, s.DB, false)
	err := s.Reg.Do(t.Context(), func(ctx context.Context) error {
		session := DB(ctx, db, sqlreq.DefaultKey)
		failed := session.Transaction(func(tx *gorm.DB) error {
			s.Log.Hooks(t, ctx, sqlreq.DefaultKey, "")
			return errors.Join(tx.Create(&row{Note: "undone"}).Error, sqlreqtest.ErrTest)
		})
		if !errors.Is(failed, sqlreqtest.ErrTest) {
			t.Errorf("got %v", failed)
		}
		return nil
	})
	if err != nil || s.Log.Words() != "commit" {
		t.Errorf("got %v and the hooks %q, want the commit's, which sqlreq.Savepoint would have dropped", err, s.Log.Words())
	}
	s.WantRows(t, 0)

	f := &fakedb.DB{}
	pool := f.Open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: pool})
	db = open(t, pool, false)
	err = reg.Do(t.Context(), func(ctx context.Context) error {
		session := DB(ctx, db, sqlreq.DefaultKey)
		if err := session.Exec("INSERT").Error; err != nil {
			return err
		}
		return session.Transaction(func(*gorm.DB) error { return nil })
	})
	if err != nil {
		t.Error(err)
	}
	log := strings.Join(f.Log(), ", ")
	if strings.Count(log, ", SAVEPOINT ") != 1 || strings.Contains(log, "RELEASE") {
		t.Errorf("got %s, want one savepoint that is not released", log)
	}
}

// gorm prepares with a lock held that all its sessions wait for, without a context. If that
// is the first statement of a request it waits for a connection, and whoever has that one,
// and prepares the same, for gorm: DB's comment says to begin before. If this test fails,
// gorm has changed, and the comment says too much.
func TestPrepareStmtWaitsForAConnection(t *testing.T) {
	for name, beginFirst := range map[string]bool{"as it comes": false, "begun before": true} {
		t.Run(name, func(t *testing.T) {
			db := open(t, (&fakedb.DB{}).Open(t), false)
			db.Session(&gorm.Session{PrepareStmt: true}) // starts a goroutine of gorm's, which never ends
			synctest.Test(t, func(t *testing.T) {
				const query = "INSERT INTO work (note) VALUES ('x')"
				pool := (&fakedb.DB{}).Open(t)
				pool.SetMaxOpenConns(1)
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: pool})
				prepared := func(ctx context.Context) error {
					if beginFirst {
						if _, err := sqlreq.Tx(ctx); err != nil {
							return err
						}
					}
					return DB(ctx, db, sqlreq.DefaultKey).Session(&gorm.Session{PrepareStmt: true}).Exec(query).Error
				}
				has, goOn := make(chan struct{}), make(chan struct{})
				first, second := make(chan error, 1), make(chan error, 1)
				go func() {
					first <- reg.Do(t.Context(), func(ctx context.Context) error {
						if _, err := sqlreq.Tx(ctx); err != nil {
							return err
						}
						close(has)
						<-goOn
						return prepared(ctx)
					})
				}()
				<-has
				ctx, leave := context.WithCancel(t.Context())
				go func() { second <- reg.Do(ctx, prepared) }()
				synctest.Wait() // it waits for the connection
				close(goOn)
				synctest.Wait()
				if done := len(first) == 1; done != beginFirst {
					t.Errorf("the first has ended %t, want %t", done, beginFirst)
				}
				leave()
				<-first
				<-second
			})
		})
	}
}
