// G8 Hooks tell the truth, and so do Observe and CommitError: Observe is called for
// every transaction that was begun, when it has ended. After a COMMIT of unknown
// outcome neither kind of hook runs. A COMMIT that the server answers with ROLLBACK is
// a failure.

package guarantees

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"modernc.org/sqlite"
)

// A COMMIT that the server answered with ROLLBACK is a failure with known outcome.
func TestG8CommitErrors(t *testing.T) {
	tests := map[string]struct {
		err       error
		ambiguous bool
		hooks     string
	}{
		"pgx, answered with ROLLBACK":   {errors.New("commit unexpectedly resulted in rollback"), false, "rollback"},
		"lib/pq, answered with it":      {errors.New("pq: Could not complete operation in a failed transaction"), false, "rollback"},
		"lib/pq, taken for a sound one": {errors.New("pq: unexpected command tag ROLLBACK"), false, "rollback"},
		"an SQLSTATE":                   {fmt.Errorf("commit: %w", sqlreqtest.Conflict{}), false, "rollback"},
		"a bad connection":              {driver.ErrBadConn, true, ""},
		"a network error":               {&net.OpError{Op: "read", Net: "tcp", Err: errors.New("reset")}, true, ""},
		"anything else":                 {sqlreqtest.ErrTest, true, ""},
		"both":                          {errors.Join(sqlreqtest.Conflict{}, driver.ErrBadConn), true, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenFaulty(t, &fakedb.DB{Commit: func() error { return tt.err }})
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			var events sqlreqtest.Recorder
			reg.Observe = events.Observe
			var failure *sqlreq.CommitError
			reg.ErrorHandler = func(_ http.ResponseWriter, _ *http.Request, err error) { errors.As(err, &failure) }
			var log sqlreqtest.Recorder
			rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				log.Hooks(t, r.Context(), sqlreqtest.Main, "")
				w.WriteHeader(201)
			})))
			if rec.Code < 500 || log.Words() != tt.hooks || events.Events() != "main CommitFailed 1" {
				t.Errorf("got %d, hooks %q, events %q; want a failure, hooks %q", rec.Code, log.Words(), events.Events(), tt.hooks)
			}
			if failure == nil || failure.Ambiguous != tt.ambiguous || !errors.Is(failure, tt.err) {
				t.Errorf("got %+v, want ambiguous: %t", failure, tt.ambiguous)
			}
			sqlreqtest.Idle(t, db)
		})
	}
	t.Run("a constraint of SQLite", func(t *testing.T) {
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
		err := reg.Do(context.Background(), func(ctx context.Context) error {
			_, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.BreakCommit)
			return err
		})
		var failure *sqlreq.CommitError
		var answer *sqlite.Error
		if !errors.As(err, &failure) || failure.Ambiguous || !errors.As(err, &answer) || answer.Code() != 787 {
			t.Errorf("got %v, want a CommitError of code 787 that is not ambiguous", err)
		}
	})
}

// endedBy ends the transaction by the methods of *sql.Tx.
func endedBy(end func(*sql.Tx) error) func(*testing.T, http.ResponseWriter, *http.Request) error {
	return func(_ *testing.T, _ http.ResponseWriter, r *http.Request) error {
		tx, err := sqlreq.Tx(r.Context())
		if err != nil {
			return err
		}
		return end(tx)
	}
}

func TestG8ObserveIsToldOfEveryTransaction(t *testing.T) {
	conflict := sqlreqtest.Conflict{}
	tests := map[string]struct {
		want    string
		errs    []error // of the events
		set     func(*sqlreq.Registry)
		faults  *fakedb.DB
		handler func(t *testing.T, w http.ResponseWriter, r *http.Request) error
	}{
		"nothing begun": {want: "", handler: func(_ *testing.T, _ http.ResponseWriter, r *http.Request) error {
			return sqlreq.AfterCommit(r.Context(), func(context.Context) {})
		}},
		"commit": {want: "main Committed 1", errs: []error{nil}, handler: func(t *testing.T, _ http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return nil
		}},
		"status": {want: "main RolledBack 1", errs: []error{nil}, handler: func(t *testing.T, w http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			w.WriteHeader(404)
			return nil
		}},
		"error": {want: "main RolledBack 1", errs: []error{sqlreqtest.ErrTest}, handler: func(t *testing.T, _ http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return sqlreqtest.ErrTest
		}},
		"panic": {want: "main RolledBack 1", handler: func(t *testing.T, _ http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			panic(http.ErrAbortHandler)
		}},
		"failed COMMIT": {want: "main CommitFailed 1", errs: []error{sqlreqtest.ErrTest}, faults: &fakedb.DB{Commit: func() error { return sqlreqtest.ErrTest }},
			handler: func(t *testing.T, _ http.ResponseWriter, r *http.Request) error {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				return nil
			}},
		"ended by Commit":   {want: "main Ended 1", errs: []error{sqlreq.ErrTxEnded}, handler: endedBy((*sql.Tx).Commit)},
		"ended by Rollback": {want: "main Ended 1", errs: []error{sqlreq.ErrTxEnded}, handler: endedBy((*sql.Tx).Rollback)},
		"read-only": {want: "main Committed 1", errs: []error{nil}, handler: func(_ *testing.T, _ http.ResponseWriter, r *http.Request) error {
			_, err := sqlreq.BeginTx(r.Context(), &sql.TxOptions{ReadOnly: true})
			return err
		}},
		"explicit": {want: "main Committed 1, main RolledBack 1, main Committed 1", errs: []error{nil, nil, nil},
			handler: func(t *testing.T, _ http.ResponseWriter, r *http.Request) error {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				err := sqlreq.Commit(r.Context())
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				err = errors.Join(err, sqlreq.Rollback(r.Context()))
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				return err
			}},
		"retries": {want: "main RolledBack 1, main RolledBack 2, main RolledBack 3", errs: []error{conflict, conflict, conflict},
			set: func(reg *sqlreq.Registry) {
				reg.Retry = sqlreqtest.Retries(3)
			},
			handler: func(t *testing.T, _ http.ResponseWriter, r *http.Request) error {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				return conflict
			}},
		"failed BEGIN": {want: "", faults: &fakedb.DB{Begin: func(context.Context) error { return sqlreqtest.ErrTest }},
			handler: func(_ *testing.T, _ http.ResponseWriter, r *http.Request) error {
				_, err := sqlreq.Tx(r.Context())
				return err
			}},
		"several": {want: "other Committed 1, main CommitFailed 1, third RolledBack 1", faults: &fakedb.DB{Commit: func() error { return sqlreqtest.ErrTest }},
			handler: func(t *testing.T, _ http.ResponseWriter, r *http.Request) error {
				sqlreqtest.Exec(t, r.Context(), "other", sqlreqtest.InsertWork)
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				sqlreqtest.Exec(t, r.Context(), "third", sqlreqtest.InsertWork)
				return nil
			}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenFaulty(t, tt.faults)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "alias", DB: db},
				sqlreq.Binding{Key: "other", DB: sqlreqtest.OpenDB(t)}, sqlreq.Binding{Key: "third", DB: sqlreqtest.OpenDB(t)})
			if tt.set != nil {
				tt.set(reg)
			}
			var events sqlreqtest.Recorder
			reg.Observe = events.Observe
			func() {
				defer func() { _ = recover() }()
				sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
					return tt.handler(t, w, r)
				})))
			}()
			if events.Events() != tt.want {
				t.Errorf("got %q, want %q", events.Events(), tt.want)
			}
			for i, e := range events.Told() {
				if e.Wait < 0 || e.Open < 0 || e.End < 0 || e.Wait > time.Hour || e.Open > time.Hour || e.End > time.Hour {
					t.Errorf("durations %v, %v, %v", e.Wait, e.Open, e.End)
				}
				if i < len(tt.errs) && (!errors.Is(e.Err, tt.errs[i]) || (e.Err == nil) != (tt.errs[i] == nil)) {
					t.Errorf("event %d: got %v, want %v", i, e.Err, tt.errs[i])
				}
			}
			sqlreqtest.Idle(t, db)
		})
	}
}

func TestG8ObserveIsToldTheKeyThatBegan(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "inner", DB: sqlreqtest.OpenDB(t)})
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "alias", DB: db})
	var events, innerEvents sqlreqtest.Recorder
	reg.Observe, inner.Observe = events.Observe, innerEvents.Observe
	sqlreqtest.Do(reg.Middleware(inner.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), "alias", sqlreqtest.InsertWork)
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		sqlreqtest.Exec(t, r.Context(), "inner", sqlreqtest.InsertWork)
		if err := sqlreq.Commit(r.Context()); err != nil { // of the other key's
			t.Error(err)
		}
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
	}))))
	if want := "alias Committed 1, main Committed 1"; events.Events() != want {
		t.Errorf("got %q, want %q", events.Events(), want)
	}
	if want := "inner Committed 1"; innerEvents.Events() != want {
		t.Errorf("nested: got %q, want %q", innerEvents.Events(), want)
	}
}

// A BEGIN that succeeds after the request is over, or after its context has
// ended, is rolled back by sqlreq, and told.
func TestG8ObserveIsToldOfALateBegin(t *testing.T) {
	for _, late := range []string{"the request is over", "its context has ended"} {
		t.Run(late, func(t *testing.T) {
			begun, goOn := make(chan struct{}), make(chan struct{})
			db := sqlreqtest.OpenFaulty(t, &fakedb.DB{Begun: func(context.Context) { close(begun); <-goOn }})
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			told := make(chan sqlreq.Event, 2)
			reg.Observe = func(_ context.Context, e sqlreq.Event) { told <- e }
			got := make(chan error, 1)
			rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				go func() {
					_, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
					got <- err
				}()
				<-begun
				if late == "its context has ended" {
					cancel()
					close(goOn)
					if err := <-got; !errors.Is(err, context.Canceled) {
						t.Errorf("got %v, want that the context was cancelled", err)
					}
				}
			})))
			if late == "the request is over" {
				close(goOn)
				if err := <-got; !errors.Is(err, sqlreq.ErrFinished) {
					t.Errorf("got %v, want ErrFinished", err)
				}
			}
			if e := <-told; e.Outcome != sqlreq.RolledBack || e.Key != sqlreqtest.Main {
				t.Errorf("got %+v, want that it was rolled back", e)
			}
			if n := sqlreqtest.Count(t, db, "work"); rec.Code != 200 || n != 0 {
				t.Errorf("got %d and %d rows", rec.Code, n)
			}
			// The rollback may be one of database/sql's own, in a goroutine that nobody can wait for.
			for db.Stats().InUse > 0 {
				runtime.Gosched()
			}
			sqlreqtest.Idle(t, db)
		})
	}
}

func TestG8ObserveMayPanicAndUseNothing(t *testing.T) {
	for _, explicit := range []bool{false, true} {
		t.Run(fmt.Sprint("explicit ", explicit), func(t *testing.T) {
			type valueKey struct{}
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			var out bytes.Buffer
			reg.Logger = slog.New(slog.NewTextHandler(&out, nil))
			told := 0
			reg.Observe = func(ctx context.Context, _ sqlreq.Event) {
				told++
				if ctx.Value(valueKey{}) != "value" {
					t.Error("the context is not that of the request")
				}
				sqlreqtest.Finished(t, ctx)
				panic("boom")
			}
			h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				if explicit {
					if err := sqlreq.Commit(r.Context()); err != nil {
						t.Error(err)
					}
				}
				w.WriteHeader(201)
			}))
			rec := httptest.NewRecorder()
			ctx := context.WithValue(context.Background(), valueKey{}, "value")
			h.ServeHTTP(rec, httptest.NewRequestWithContext(ctx, "POST", "/path", nil))
			if n := sqlreqtest.Count(t, db, "work"); rec.Code != 201 || n != 1 || told != 1 {
				t.Errorf("got %d, %d rows, %d events", rec.Code, n, told)
			}
			if !strings.Contains(out.String(), "panic=boom") || !strings.Contains(out.String(), "g08_outcome_test.go") {
				t.Errorf("the log lacks the panic or its stack: %s", &out)
			}
		})
	}
}

// What is told of the end of a transaction comes in this order: Observe, the
// hooks, the log.
func TestG8ObserveThenHooksThenLog(t *testing.T) {
	for want, err := range map[string]error{
		"main Committed 1, commit1, commit2":                                    nil,
		"main RolledBack 1, rollback1, rollback2, ERROR sqlreq: request failed": sqlreqtest.ErrTest,
	} {
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
		var told sqlreqtest.Recorder
		told.Watch(reg)
		sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
			told.Hooks(t, r.Context(), sqlreqtest.Main, "1")
			told.Hooks(t, r.Context(), sqlreqtest.Main, "2")
			return err
		})))
		if got := told.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
