package guarantees

import (
	"database/sql"
	"strings"
	"testing"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// script is a database that is expected to get the statements of a list in
// that order; those that end in "!" fail with sqlreqtest.ErrTest.
type script struct {
	name  string
	open  func(t *testing.T, want []string) *sql.DB
	check func(t *testing.T)
}

// scripts are the two that the tables run on: sqlmock is told beforehand, the
// recorder also shows a ROLLBACK that nobody expected.
func scripts() []*script {
	m := &script{name: "sqlmock"}
	m.open = func(t *testing.T, want []string) *sql.DB {
		db, mock, err := sqlmock.New(sqlmock.QueryMatcherOption(sqlmock.QueryMatcherEqual))
		if err != nil {
			t.Fatal(err)
		}
		for _, stmt := range want {
			expect(mock, stmt)
		}
		m.check = func(t *testing.T) {
			t.Helper()
			if err := mock.ExpectationsWereMet(); err != nil {
				t.Error(err)
			}
		}
		t.Cleanup(func() { mock.ExpectClose(); db.Close() })
		return db
	}
	r := &script{name: "recorder"}
	r.open = func(t *testing.T, want []string) *sql.DB {
		step, bare := fakedb.Script(sqlreqtest.ErrTest, want)
		f := &fakedb.DB{Step: step}
		r.check = func(t *testing.T) { t.Helper(); f.Check(t, bare...) }
		return f.Open(t)
	}
	return []*script{m, r}
}

func expect(mock sqlmock.Sqlmock, stmt string) {
	bare, fails := strings.CutSuffix(stmt, "!")
	var err error
	if fails {
		err = sqlreqtest.ErrTest
	}
	switch {
	case strings.HasPrefix(bare, "BEGIN"):
		mock.ExpectBegin().WillReturnError(err)
	case bare == "COMMIT":
		mock.ExpectCommit().WillReturnError(err)
	case bare == "ROLLBACK":
		mock.ExpectRollback().WillReturnError(err)
	default:
		e := mock.ExpectExec(bare)
		if fails {
			e.WillReturnError(err)
		} else {
			e.WillReturnResult(sqlmock.NewResult(1, 1))
		}
	}
}
