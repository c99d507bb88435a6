package drivers

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	mssql "github.com/microsoft/go-mssqldb"
	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// What SQL Server's driver sends, in order.

// request serves one request on s and returns the status and what the server was sent.
func (s *sqlServer) request(t *testing.T, b sqlreq.Binding, method string, handler sqlreq.HandlerFunc) (code int, sent string) {
	t.Helper()
	a := sqlreqtest.Ask(sqlreqtest.NewRegistry(t, b).Middleware(handler), httptest.NewRequest(method, "/", nil))
	s.mu.Lock()
	defer s.mu.Unlock()
	return a.Code, strings.Join(s.log, "; ")
}

func TestSQLServerSavepoint(t *testing.T) {
	s := &sqlServer{}
	code, sent := s.request(t, sqlreq.Binding{DB: s.open(t)}, "POST", func(_ http.ResponseWriter, r *http.Request) error {
		insert := func(row string, err error) func(context.Context) error {
			return func(ctx context.Context) error {
				return errors.Join(byKey(ctx, "INSERT INTO work VALUES ("+row+")"), err)
			}
		}
		err := insert("1", nil)(r.Context())
		err = errors.Join(err, sqlreq.Savepoint(r.Context(), insert("2", nil)))
		if sqlreq.Savepoint(r.Context(), insert("3", sqlreqtest.ErrTest)) == nil {
			t.Error("no error of the second Savepoint")
		}
		return err
	})
	want := "BEGIN; INSERT INTO work VALUES (1); SAVE TRANSACTION sqlreq_1; INSERT INTO work VALUES (2); " +
		"SAVE TRANSACTION sqlreq_2; INSERT INTO work VALUES (3); ROLLBACK TRANSACTION sqlreq_2; COMMIT"
	if code != 200 || sent != want || s.Stored() != "1 2" {
		t.Errorf("got %d after %q, stored %q", code, sent, s.Stored())
	}
}

func TestSQLServerGuard(t *testing.T) {
	for _, row := range []struct {
		err  error
		code int
		sent string
	}{
		{nil, 200, "BEGIN; INSERT INTO work VALUES (1); SELECT XACT_STATE(); COMMIT"},
		{sqlreq.Errorf(422, "no"), 422, "BEGIN; INSERT INTO work VALUES (1); SELECT XACT_STATE(); ROLLBACK"},
	} {
		s := &sqlServer{}
		code, sent := s.request(t, sqlreq.Binding{DB: s.open(t), Guard: true}, "POST", func(_ http.ResponseWriter, r *http.Request) error {
			return errors.Join(byTx(r.Context(), "INSERT INTO work VALUES (1)"), row.err)
		})
		if code != row.code || sent != row.sent {
			t.Errorf("got %d after %q", code, sent)
		}
	}
}

// The driver refuses the read-only flag, so it is left out, and nothing is stored all the same.
func TestSQLServerReadOnly(t *testing.T) {
	for _, opts := range []*sql.TxOptions{sqlreqtest.ReadOnly, sqlreqtest.ReadOnlySerializable} {
		s := &sqlServer{}
		db := s.open(t)
		if _, err := db.BeginTx(t.Context(), opts); err == nil {
			t.Error("the driver takes the flag: it need not be left out")
		}
		code, sent := s.request(t, sqlreq.Binding{DB: db, TxOptions: sqlreqtest.Options(opts)}, "GET", func(_ http.ResponseWriter, r *http.Request) error {
			return byKey(r.Context(), "INSERT INTO work VALUES (1)")
		})
		if code != 200 || sent != "BEGIN; INSERT INTO work VALUES (1); ROLLBACK" || s.Stored() != "" {
			t.Errorf("got %d after %q, stored %q", code, sent, s.Stored())
		}
	}
}

// In a test's transaction each request is a savepoint.
func TestSQLServerInATestsTransaction(t *testing.T) {
	s := &sqlServer{}
	tx, err := s.open(t).Begin()
	if err != nil {
		t.Fatal(err)
	}
	b := sqlreq.Binding{Tx: tx}
	for _, row := range []struct {
		query string
		err   error
	}{{"INSERT INTO work VALUES (1)", nil}, {"INSERT INTO work VALUES (2)", sqlreqtest.ErrTest}} {
		s.request(t, b, "POST", func(_ http.ResponseWriter, r *http.Request) error {
			return errors.Join(byKey(r.Context(), row.query), row.err)
		})
	}
	if err := tx.Commit(); err != nil {
		t.Error(err)
	}
	s.mu.Lock()
	sent := regexp.MustCompile(`sqlreq_tx_\d+`).ReplaceAllString(strings.Join(s.log, "; "), "n") // counted in the whole process
	s.mu.Unlock()
	want := "BEGIN; SAVE TRANSACTION n; INSERT INTO work VALUES (1); SAVE TRANSACTION n; INSERT INTO work VALUES (2); ROLLBACK TRANSACTION n; COMMIT"
	if sent != want || s.Stored() != "1" {
		t.Errorf("sent %q, stored %q", sent, s.Stored())
	}
}

// A client leaves while a statement runs: the driver sends an attention, the transaction is rolled back, and the
// connection is used again.
func TestSQLServerClientLeaves(t *testing.T) {
	s := &sqlServer{waiting: make(chan struct{})}
	db := s.open(t)
	db.SetMaxOpenConns(1)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var log sqlreqtest.Recorder
	log.Watch(reg)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	go func() {
		<-s.waiting
		leave()
	}()
	sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		log.Hooks(t, r.Context(), sqlreqtest.Main, "")
		return errors.Join(byKey(r.Context(), "INSERT INTO work VALUES (1)"), byKey(r.Context(), "WAITFOR DELAY '01:00'"))
	})), httptest.NewRequestWithContext(ctx, "POST", "/", nil))
	err := reg.Do(t.Context(), func(ctx context.Context) error { return byKey(ctx, "INSERT INTO work VALUES (2)") })
	if err != nil || log.Words() != "rollback" || s.Stored() != "2" {
		t.Errorf("got %v, hooks %q, stored %q", err, log.Words(), s.Stored())
	}
}

// The driver itself refuses what comes after the server has ended the transaction, as it does from v1.10.0 on: before
// that the INSERT was stored by itself.
func TestSQLServerDriverRefusesAfterTheEnd(t *testing.T) {
	s := &sqlServer{}
	tx, err := s.open(t).Begin()
	if err != nil {
		t.Fatal(err)
	}
	_, err = tx.Exec("UPDATE deadlock SET n = 1")
	var told mssql.Error
	if !errors.As(err, &told) || told.Number != 1205 {
		t.Errorf("got %v, want the deadlock", err)
	}
	if _, err := tx.Exec("INSERT INTO work VALUES (1)"); err == nil {
		t.Error("a statement was taken")
	}
	if err := tx.Commit(); err == nil {
		t.Error("COMMIT was taken")
	}
	if s.Stored() != "" {
		t.Errorf("%q is stored", s.Stored())
	}
}
