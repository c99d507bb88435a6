// G4 No success by accident. A panic (same value, original stack, no recover in
// between), http.ErrAbortHandler, runtime.Goexit, an error returned by a handler,
// Fail, a status of 400 or more (also one set after a first status or a first Write),
// a CommitIf that says no, a failed explicit Commit that the handler ignored, a
// transaction ended behind sqlreq's back (defer tx.Rollback(), tx.Commit()), a client
// that had gone before COMMIT was sent: none of them commits what is still open, all
// give the connection back to the pool clean and, where the driver lets us, alive.
// Once COMMIT is sent it is seen through: no cancellation can make a committed
// transaction look like a failed one.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"net/http"
	"runtime"
	"testing"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// TestG4Statements shows the exact statements that each end of a request sends.
func TestG4Statements(t *testing.T) {
	insert := func(t *testing.T, r *http.Request) {
		t.Helper()
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
	}
	plain := func(f func(*testing.T, http.ResponseWriter, *http.Request)) func(*testing.T) http.Handler {
		return func(t *testing.T) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f(t, w, r) })
		}
	}
	type w = http.ResponseWriter
	type r = *http.Request
	tests := []struct {
		name    string
		binding sqlreq.Binding
		status  func(int, http.Header) bool
		handler func(*testing.T) http.Handler
		code    int // 0: no answer
		stmts   []string
	}{
		{"no use", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {}), 200, nil},
		{"commit", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 200, []string{"BEGIN", "INSERT", "COMMIT"}},
		{"commit of a begin alone", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { _, _ = sqlreq.Tx(r.Context()) }), 200, []string{"BEGIN", "COMMIT"}},
		{"redirect commits", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r); http.Redirect(w, r, "/x", http.StatusSeeOther) }), 303, []string{"BEGIN", "INSERT", "COMMIT"}},
		{"failed commit", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 500, []string{"BEGIN", "INSERT", "COMMIT!"}},
		{"status 400", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r); w.WriteHeader(400) }), 400, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"status before the work", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { w.WriteHeader(404); insert(t, r) }), 404, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"second status", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { w.WriteHeader(201); insert(t, r); w.WriteHeader(502) }), 502, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"status after a write", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			_, _ = io.WriteString(w, "half a page")
			insert(t, r)
			http.Error(w, "broken", 500)
		}), 500, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"second status below 400 is ignored", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r); w.WriteHeader(404); w.WriteHeader(200) }), 404, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"returned error", sqlreq.Binding{}, nil, func(t *testing.T) http.Handler {
			return sqlreq.HandlerFunc(func(w w, r r) error { insert(t, r); return sqlreqtest.ErrTest })
		}, 500, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"returned status error", sqlreq.Binding{}, nil, func(t *testing.T) http.Handler {
			return sqlreq.HandlerFunc(func(w w, r r) error {
				insert(t, r)
				w.WriteHeader(201)
				return sqlreq.Errorf(409, "taken")
			})
		}, 409, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"Fail", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			if err := sqlreq.Fail(r.Context(), sqlreqtest.ErrTest); err != nil {
				t.Error(err)
			}
			w.WriteHeader(201)
		}), 500, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"Fail of nil", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r); _ = sqlreq.Fail(r.Context(), nil) }), 200, []string{"BEGIN", "INSERT", "COMMIT"}},
		{"Fail before the work", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { _ = sqlreq.Fail(r.Context(), sqlreqtest.ErrTest); insert(t, r) }), 500, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"explicit Commit after Fail", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			_ = sqlreq.Fail(r.Context(), sqlreqtest.ErrTest)
			if err := sqlreq.Commit(r.Context()); err == nil {
				t.Error("Commit of a request that has failed: got nil, want an error")
			}
		}), 500, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"panic", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r); panic(sqlreqtest.ErrTest) }), 0, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"Goexit", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r); runtime.Goexit() }), 0, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"CommitIf says no", sqlreq.Binding{}, func(int, http.Header) bool { return false }, plain(func(t *testing.T, w w, r r) { insert(t, r); w.WriteHeader(201) }), 201, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"CommitIf says yes", sqlreq.Binding{}, func(int, http.Header) bool { return true }, plain(func(t *testing.T, w w, r r) { insert(t, r); w.WriteHeader(503) }), 503, []string{"BEGIN", "INSERT", "COMMIT"}},
		{"CommitIf says yes, and COMMIT fails", sqlreq.Binding{}, func(int, http.Header) bool { return true }, plain(func(t *testing.T, w w, r r) { insert(t, r); w.WriteHeader(404) }), 500, []string{"BEGIN", "INSERT", "COMMIT!"}},
		{"CommitIf panics", sqlreq.Binding{}, func(int, http.Header) bool { panic(sqlreqtest.ErrTest) }, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 0, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"read-only", sqlreq.Binding{TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnly)}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 200, []string{"BEGIN READ ONLY", "INSERT", "ROLLBACK"}},
		{"read-only whose ROLLBACK fails", sqlreq.Binding{TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnly)}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 200, []string{"BEGIN READ ONLY", "INSERT", "ROLLBACK!"}},
		{"read-only serializable", sqlreq.Binding{TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnlySerializable)}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 200, []string{"BEGIN Serializable READ ONLY", "INSERT", "COMMIT"}},
		{"read-only serializable, failed commit", sqlreq.Binding{TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnlySerializable)}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 500, []string{"BEGIN Serializable READ ONLY", "INSERT", "COMMIT!"}},
		{"read-only by method", sqlreq.Binding{TxOptions: sqlreq.ReadOnlySafeMethods}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 200, []string{"BEGIN READ ONLY", "INSERT", "ROLLBACK"}},
		{"options that are nil", sqlreq.Binding{TxOptions: sqlreqtest.Options(nil)}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 200, []string{"BEGIN", "INSERT", "COMMIT"}},
		{"BeginTx", sqlreq.Binding{TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnly)}, nil, plain(func(t *testing.T, w w, r r) {
			if _, err := sqlreq.BeginTx(r.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead}); err != nil {
				t.Error(err)
			}
			insert(t, r)
		}), 200, []string{"BEGIN Repeatable Read", "INSERT", "COMMIT"}},
		{"BeginTx with nil replaces the binding's", sqlreq.Binding{TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnly)}, nil, plain(func(t *testing.T, w w, r r) {
			if _, err := sqlreq.BeginTx(r.Context(), nil); err != nil {
				t.Error(err)
			}
			insert(t, r)
		}), 200, []string{"BEGIN", "INSERT", "COMMIT"}},
		{"explicit commit and going on", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			if err := sqlreq.Commit(r.Context()); err != nil {
				t.Error(err)
			}
			insert(t, r)
		}), 200, []string{"BEGIN", "INSERT", "COMMIT", "BEGIN", "INSERT", "COMMIT"}},
		{"explicit commit, then an error", sqlreq.Binding{}, nil, func(t *testing.T) http.Handler {
			return sqlreq.HandlerFunc(func(w w, r r) error {
				insert(t, r)
				if err := sqlreq.Commit(r.Context()); err != nil {
					t.Error(err)
				}
				insert(t, r)
				return sqlreqtest.ErrTest
			})
		}, 500, []string{"BEGIN", "INSERT", "COMMIT", "BEGIN", "INSERT", "ROLLBACK"}},
		{"explicit rollback and going on", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			if err := sqlreq.Rollback(r.Context()); err != nil {
				t.Error(err)
			}
			insert(t, r)
		}), 200, []string{"BEGIN", "INSERT", "ROLLBACK", "BEGIN", "INSERT", "COMMIT"}},
		{"explicit ends with nothing open", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			if err := errors.Join(sqlreq.Commit(r.Context()), sqlreq.Rollback(r.Context())); err != nil {
				t.Error(err)
			}
			insert(t, r)
			if err := errors.Join(sqlreq.Commit(r.Context()), sqlreq.Commit(r.Context()), sqlreq.Rollback(r.Context())); err != nil {
				t.Error(err)
			}
		}), 200, []string{"BEGIN", "INSERT", "COMMIT"}},
		{"failed explicit commit ignored", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			var c *sqlreq.CommitError
			if err := sqlreq.Commit(r.Context()); !errors.As(err, &c) || !errors.Is(err, sqlreqtest.ErrTest) {
				t.Errorf("got %v, want a CommitError", err)
			}
			w.WriteHeader(201)
		}), 500, []string{"BEGIN", "INSERT", "COMMIT!"}},
		{"failed explicit commit ignored, handler goes on", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			_ = sqlreq.Commit(r.Context())
			insert(t, r)
		}), 500, []string{"BEGIN", "INSERT", "COMMIT!", "BEGIN", "INSERT", "ROLLBACK"}},
		{"failed explicit commit ignored, and tried again", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			_ = sqlreq.Commit(r.Context())
			insert(t, r)
			if err := sqlreq.Commit(r.Context()); err == nil {
				t.Error("second Commit: got nil, want an error")
			}
		}), 500, []string{"BEGIN", "INSERT", "COMMIT!", "BEGIN", "INSERT", "ROLLBACK"}},
		{"failed explicit commit, status 404", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			_ = sqlreq.Commit(r.Context())
			w.WriteHeader(404)
		}), 500, []string{"BEGIN", "INSERT", "COMMIT!"}},
		{"failed BEGIN", sqlreq.Binding{}, nil, func(t *testing.T) http.Handler {
			return sqlreq.TxFunc(func(w w, r r, tx *sql.Tx) error { t.Error("called without a transaction"); return nil })
		}, 500, []string{"BEGIN!"}},
		{"failed BEGIN and another try", sqlreq.Binding{}, nil, plain(func(t *testing.T, w w, r r) {
			if _, err := sqlreq.Tx(r.Context()); !errors.Is(err, sqlreqtest.ErrTest) {
				t.Errorf("got %v, want sqlreqtest.ErrTest", err)
			}
			insert(t, r)
		}), 200, []string{"BEGIN!", "BEGIN", "INSERT", "COMMIT"}},
		{"Guard", sqlreq.Binding{Guard: true}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 200,
			[]string{"BEGIN", "SAVEPOINT sqlreq_guard", "INSERT", "RELEASE SAVEPOINT sqlreq_guard", "COMMIT"}},
		{"Guard and rollback", sqlreq.Binding{Guard: true}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r); w.WriteHeader(404) }), 404,
			[]string{"BEGIN", "SAVEPOINT sqlreq_guard", "INSERT", "ROLLBACK TO SAVEPOINT sqlreq_guard", "ROLLBACK"}},
		{"Guard and explicit rollback", sqlreq.Binding{Guard: true}, nil, plain(func(t *testing.T, w w, r r) {
			insert(t, r)
			if err := sqlreq.Rollback(r.Context()); err != nil {
				t.Error(err)
			}
		}), 200, []string{"BEGIN", "SAVEPOINT sqlreq_guard", "INSERT", "ROLLBACK TO SAVEPOINT sqlreq_guard", "ROLLBACK"}},
		{"Guard, read-only", sqlreq.Binding{Guard: true, TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnly)}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 200,
			[]string{"BEGIN READ ONLY", "SAVEPOINT sqlreq_guard", "INSERT", "ROLLBACK TO SAVEPOINT sqlreq_guard", "ROLLBACK"}},
		{"Guard cannot be laid", sqlreq.Binding{Guard: true}, nil, func(t *testing.T) http.Handler {
			return sqlreq.TxFunc(func(w w, r r, tx *sql.Tx) error { return nil })
		}, 500, []string{"BEGIN", "SAVEPOINT sqlreq_guard!", "ROLLBACK"}},
		{"Guard finds out", sqlreq.Binding{Guard: true}, nil, plain(func(t *testing.T, w w, r r) { insert(t, r) }), 500,
			[]string{"BEGIN", "SAVEPOINT sqlreq_guard", "INSERT", "RELEASE SAVEPOINT sqlreq_guard!", "ROLLBACK"}},
	}
	for _, test := range tests {
		for _, script := range scripts() {
			t.Run(test.name+"/"+script.name, func(t *testing.T) {
				b := test.binding
				b.DB = script.open(t, test.stmts)
				reg := sqlreqtest.NewRegistry(t, b)
				reg.CommitIf = test.status
				o := sqlreqtest.AskGet(reg.Middleware(test.handler(t)), "/")
				switch {
				case o.Returned != (test.code != 0):
					t.Errorf("returned %v (panic %v), want %v", o.Returned, o.Panicked, test.code != 0)
				case o.Returned && o.Code != test.code:
					t.Errorf("got status %d, want %d", o.Code, test.code)
				}
				script.check(t)
			})
		}
	}
}

func TestG4StatementsOfSavepointGuardAndRetry(t *testing.T) {
	ok := sqlmock.NewResult(0, 0)
	failInside := func(ctx context.Context) {
		_ = sqlreq.Savepoint(ctx, func(context.Context) error { return sqlreqtest.ErrTest })
	}
	tests := map[string]struct {
		guard   bool
		expect  func(sqlmock.Sqlmock)
		handler func(http.ResponseWriter, *http.Request) error
	}{
		"savepoints": {
			expect: func(m sqlmock.Sqlmock) {
				m.ExpectBegin()
				m.ExpectExec("SAVEPOINT sqlreq_1").WillReturnResult(ok)
				m.ExpectExec("SAVEPOINT sqlreq_2").WillReturnResult(ok)
				m.ExpectExec("ROLLBACK TO SAVEPOINT sqlreq_2").WillReturnResult(ok)
				m.ExpectExec("RELEASE SAVEPOINT sqlreq_2").WillReturnResult(ok)
				m.ExpectExec("RELEASE SAVEPOINT sqlreq_1").WillReturnResult(ok)
				m.ExpectExec("SAVEPOINT sqlreq_3").WillReturnResult(ok)
				m.ExpectExec("ROLLBACK TO SAVEPOINT sqlreq_3").WillReturnResult(ok)
				m.ExpectExec("RELEASE SAVEPOINT sqlreq_3").WillReturnResult(ok)
				m.ExpectCommit()
			},
			handler: func(_ http.ResponseWriter, r *http.Request) error {
				err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error { failInside(ctx); return nil })
				failInside(r.Context())
				return err
			},
		},
		"guard": {
			guard: true,
			expect: func(m sqlmock.Sqlmock) {
				m.ExpectBegin()
				m.ExpectExec("SAVEPOINT sqlreq_guard").WillReturnResult(ok)
				m.ExpectExec("INSERT").WillReturnResult(ok)
				m.ExpectExec("RELEASE SAVEPOINT sqlreq_guard").WillReturnResult(ok)
				m.ExpectCommit()
			},
			handler: func(_ http.ResponseWriter, r *http.Request) error {
				_, err := sqlreqtest.Main.ExecContext(r.Context(), "INSERT")
				return err
			},
		},
		"guard, rolled back": {
			guard: true,
			expect: func(m sqlmock.Sqlmock) {
				m.ExpectBegin()
				m.ExpectExec("SAVEPOINT sqlreq_guard").WillReturnResult(ok)
				m.ExpectExec("ROLLBACK TO SAVEPOINT sqlreq_guard").WillReturnResult(ok)
				m.ExpectRollback()
			},
			handler: func(w http.ResponseWriter, r *http.Request) error {
				_, err := sqlreq.Tx(r.Context())
				w.WriteHeader(404)
				return err
			},
		},
		"retry": {
			expect: func(m sqlmock.Sqlmock) {
				m.ExpectBegin()
				m.ExpectExec("INSERT").WillReturnError(sqlreqtest.Conflict{})
				m.ExpectRollback()
				m.ExpectBegin()
				m.ExpectExec("INSERT").WillReturnResult(ok)
				m.ExpectCommit().WillReturnError(sqlreqtest.Conflict{})
				m.ExpectBegin()
				m.ExpectExec("INSERT").WillReturnResult(ok)
				m.ExpectCommit()
			},
			handler: func(_ http.ResponseWriter, r *http.Request) error {
				_, err := sqlreqtest.Main.ExecContext(r.Context(), "INSERT")
				return err
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db, mock, err := sqlmock.New(sqlmock.QueryMatcherOption(sqlmock.QueryMatcherEqual))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			tt.expect(mock)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, Guard: tt.guard})
			reg.Retry = sqlreqtest.Retries(3)
			sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(tt.handler)))
			if err := mock.ExpectationsWereMet(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestG4DoStatements: the ends of a Do are those of a request.
func TestG4DoStatements(t *testing.T) {
	insert := func(ctx context.Context) error { _, err := sqlreqtest.Main.ExecContext(ctx, "INSERT"); return err }
	tests := []struct {
		name  string
		fn    func(context.Context) error
		want  error
		stmts []string
	}{
		{"nothing", func(context.Context) error { return nil }, nil, nil},
		{"commit", insert, nil, []string{"BEGIN", "INSERT", "COMMIT"}},
		{"error", func(ctx context.Context) error { return errors.Join(insert(ctx), sqlreqtest.ErrTest) }, sqlreqtest.ErrTest, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"Fail", func(ctx context.Context) error { return errors.Join(insert(ctx), sqlreq.Fail(ctx, sqlreqtest.ErrTest)) }, sqlreqtest.ErrTest, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"failed commit", insert, sqlreqtest.ErrTest, []string{"BEGIN", "INSERT", "COMMIT!"}},
		{"failed begin", insert, sqlreqtest.ErrTest, []string{"BEGIN!"}},
		{"explicit commit", func(ctx context.Context) error { return errors.Join(insert(ctx), sqlreq.Commit(ctx), insert(ctx)) }, nil,
			[]string{"BEGIN", "INSERT", "COMMIT", "BEGIN", "INSERT", "COMMIT"}},
	}
	for _, test := range tests {
		for _, script := range scripts() {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: script.open(t, test.stmts)})
			if err := reg.Do(t.Context(), test.fn); !errors.Is(err, test.want) {
				t.Errorf("%s: got %v, want %v", test.name, err, test.want)
			}
			script.check(t)
		}
	}
}

// TestG4ErrorAfterAnAnswer: the handler's own answer of 400 or more stands.
func TestG4ErrorAfterAnAnswer(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	reg.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { t.Error("ErrorHandler was called") }
	o := sqlreqtest.AskGet(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("X-Inside", "1")
		http.Error(w, "mine", http.StatusUnprocessableEntity)
		return sqlreqtest.ErrTest
	})), "/")
	if o.Code != 422 || o.Body.String() != "mine\n" || o.Header().Get("X-Inside") != "1" {
		t.Errorf("got %d %q %v, want the handler's answer", o.Code, o.Body, o.Header())
	}
}
