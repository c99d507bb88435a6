// G6 One request, one outcome, one transaction for each pool. With Binding.Tx all
// requests run inside one transaction that the test rolls back: a request's commit
// releases its savepoint, a rollback (also of a read-only one) goes back to it;
// requests take turns, and waiting for one's turn ends with the context. Turns belong
// to the *sql.Tx: keys and registries on the same one share one savepoint in a
// request. Do inside a request nests there and shares the test's fate.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// testTx is the transaction of a test, rolled back at its end.
func testTx(t testing.TB, db *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	return tx
}

func TestG6BindingTxLeavesNothing(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	test := testTx(t, db)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test})
	var events sqlreqtest.Recorder
	reg.Observe = events.Observe
	var log sqlreqtest.Recorder
	steps := []struct {
		path, sees, hooks, event string
		code                     int
	}{
		{"/one", "", "commit", "main Committed 1", 200},
		{"/fails", "one", "rollback", "main RolledBack 1", 500},
		{"/two", "one", "commit", "main Committed 1", 200},
		{"/readonly", "one two", "commit", "main Committed 1", 200},
		{"/panics", "one two", "rollback", "main RolledBack 1", 0},
		{"/savepoint", "one two", "commit", "main Committed 1", 200},
		{"/explicit", "one two savepoint", "commit", "main Committed 1, main RolledBack 1, main Committed 1", 200},
		{"/three", "one two savepoint explicit last", "commit", "main Committed 1", 200},
	}
	h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		log.Hooks(t, r.Context(), sqlreqtest.Main, "")
		name := r.URL.Path[1:]
		if name == "readonly" {
			if _, err := sqlreq.BeginTx(r.Context(), &sql.TxOptions{ReadOnly: true}); err != nil {
				return err
			}
		}
		tx, err := sqlreq.Tx(r.Context())
		if err != nil {
			return err
		}
		_, _ = io.WriteString(w, sqlreqtest.Notes(t, tx))
		sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, name)
		switch name {
		case "fails":
			return sqlreqtest.ErrTest
		case "panics":
			panic(http.ErrAbortHandler)
		case "savepoint":
			_ = sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
				sqlreqtest.Note(t, ctx, sqlreqtest.Main, "never")
				return sqlreqtest.ErrTest
			})
		case "explicit":
			err := sqlreq.Commit(r.Context())
			sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "never")
			err = errors.Join(err, sqlreq.Rollback(r.Context()))
			sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "last")
			return err
		}
		return nil
	}))
	for _, step := range steps {
		events.Reset()
		log.Reset()
		rec := httptest.NewRecorder()
		func() {
			defer func() { _ = recover() }()
			h.ServeHTTP(rec, httptest.NewRequest("POST", step.path, nil))
		}()
		if step.code != 0 && rec.Code != step.code || step.code == 200 && rec.Body.String() != step.sees {
			t.Errorf("%s: got %d %q, want %d %q", step.path, rec.Code, rec.Body, step.code, step.sees)
		}
		if log.Words() != step.hooks || events.Events() != step.event {
			t.Errorf("%s: hooks %q, events %q; want %q, %q", step.path, log.Words(), events.Events(), step.hooks, step.event)
		}
	}
	if err := test.Rollback(); err != nil {
		t.Error(err)
	}
	if got := sqlreqtest.Notes(t, db); got != "" {
		t.Errorf("%q stayed", got)
	}
	sqlreqtest.Idle(t, db)
}

func TestG6BindingTxRequestsTakeTurns(t *testing.T) {
	test := testTx(t, sqlreqtest.OpenDB(t))
	one, two := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test}), sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "two", Tx: test})
	first, goOn := make(chan struct{}), make(chan struct{})
	waiting := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		rec := sqlreqtest.Do(one.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "first")
			close(first)
			<-goOn
			sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "first")
			return sqlreqtest.ErrTest
		})))
		if rec.Code != 500 {
			t.Errorf("the first: %d", rec.Code)
		}
	})
	<-first
	// Its context ends while it waits for its turn.
	rec := sqlreqtest.Do(two.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		ctx, cancel := context.WithCancel(r.Context())
		go cancel()
		_, err := sqlreq.Key("two").Tx(ctx)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want that the wait was cancelled", err)
		}
		return nil
	})))
	if rec.Code != 200 {
		t.Errorf("the one that gave up: %d", rec.Code)
	}
	wg.Go(func() {
		rec := sqlreqtest.Do(two.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
			close(waiting)
			_, err := sqlreq.Key("two").ExecContext(r.Context(), "INSERT INTO work (note) VALUES ('second')")
			return err
		})))
		if rec.Code != 200 {
			t.Errorf("the second: %d", rec.Code)
		}
	})
	<-waiting
	close(goOn)
	wg.Wait()
	if got := sqlreqtest.Notes(t, test); got != "second" {
		t.Errorf("got %q, want what the second one wrote: the first was rolled back", got)
	}
	for range 20 {
		wg.Go(func() {
			sqlreqtest.Do(one.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				runtime.Gosched()
				return sqlreqtest.ErrTest
			})))
		})
	}
	wg.Wait()
	if got := sqlreqtest.Notes(t, test); got != "second" {
		t.Errorf("got %q after many requests at once", got)
	}
}

func TestG6BindingTxIsSharedByKeysAndRegistries(t *testing.T) {
	for _, fail := range []error{nil, sqlreqtest.ErrTest} {
		t.Run(fmt.Sprint(fail), func(t *testing.T) {
			test := testTx(t, sqlreqtest.OpenDB(t))
			outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "a", Tx: test}, sqlreq.Binding{Key: "b", Tx: test})
			inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "c", Tx: test})
			var events sqlreqtest.Recorder
			outer.Observe, inner.Observe = events.Observe, events.Observe
			sqlreqtest.Do(outer.Middleware(inner.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				for _, k := range []sqlreq.Key{"b", "a", "c"} {
					sqlreqtest.Note(t, r.Context(), k, string(k))
				}
				return fail
			}))))
			want, wantEvents := "b a c", "b Committed 1"
			if fail != nil {
				want, wantEvents = "", "b RolledBack 1"
			}
			if got := sqlreqtest.Notes(t, test); got != want || events.Events() != wantEvents {
				t.Errorf("got %q, events %q; want %q, %q", got, events.Events(), want, wantEvents)
			}
		})
	}
}

func TestG6BindingTxDoNests(t *testing.T) {
	tests := map[string]struct {
		before           bool // a statement of the request, before the Do
		do, request      error
		notes, doOutcome string
	}{
		"both":                    {true, nil, nil, "request do request", "Committed"},
		"Do fails":                {true, sqlreqtest.ErrTest, nil, "request request", "RolledBack"},
		"Do alone":                {false, nil, nil, "do request", "Committed"},
		"Do alone fails":          {false, sqlreqtest.ErrTest, nil, "request", "RolledBack"},
		"Do alone, request fails": {false, nil, sqlreqtest.ErrTest, "do", "Committed"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			test := testTx(t, db)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test})
			var events sqlreqtest.Recorder
			reg.Observe = events.Observe
			sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				if tt.before {
					sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "request")
				}
				err := reg.Do(r.Context(), func(ctx context.Context) error {
					sqlreqtest.Note(t, ctx, sqlreqtest.Main, "do")
					return tt.do
				})
				if !errors.Is(err, tt.do) {
					t.Errorf("Do returned %v, want %v", err, tt.do)
				}
				sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "request")
				return tt.request
			})))
			if got := sqlreqtest.Notes(t, test); got != tt.notes || !strings.HasPrefix(events.Events(), "main "+tt.doOutcome+" 1, ") {
				t.Errorf("got %q, events %q; want %q", got, events.Events(), tt.notes)
			}
			_ = test.Rollback()
			if got := sqlreqtest.Notes(t, db); got != "" {
				t.Errorf("%q stayed", got)
			}
		})
	}
}

func TestG6BindingTxStatements(t *testing.T) {
	ok := sqlmock.NewResult(0, 0)
	db, mock, err := sqlmock.New(sqlmock.QueryMatcherOption(sqlmock.QueryMatcherRegexp))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	const tx = `sqlreq_tx_\d+$`
	mock.ExpectBegin()
	mock.ExpectExec("^SAVEPOINT " + tx).WillReturnResult(ok)
	mock.ExpectExec("^INSERT$").WillReturnResult(ok)
	mock.ExpectExec(`^SAVEPOINT sqlreq_tx_\d+_1$`).WillReturnResult(ok)
	mock.ExpectExec(`^RELEASE SAVEPOINT sqlreq_tx_\d+_1$`).WillReturnResult(ok)
	mock.ExpectExec("^RELEASE SAVEPOINT " + tx).WillReturnResult(ok)
	mock.ExpectExec("^SAVEPOINT " + tx).WillReturnResult(ok)
	mock.ExpectExec("^INSERT$").WillReturnError(sqlreqtest.ErrTest)
	mock.ExpectExec("^ROLLBACK TO SAVEPOINT " + tx).WillReturnResult(ok)
	mock.ExpectRollback()
	test, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test, Guard: true}) // of which there is no need here
	h := reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), "INSERT"); err != nil {
			return err
		}
		return sqlreq.Savepoint(r.Context(), func(context.Context) error { return nil })
	}))
	if codes := fmt.Sprint(sqlreqtest.Do(h).Code, sqlreqtest.Do(h).Code); codes != "200 500" {
		t.Errorf("got %s, want 200 500", codes)
	}
	_ = test.Rollback()
	if err := mock.ExpectationsWereMet(); err != nil {
		t.Error(err)
	}
}

func TestG6BindingTxMisuse(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	test := testTx(t, db)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: test})
	var events sqlreqtest.Recorder
	reg.Observe = events.Observe
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if _, err := sqlreq.DB(r.Context()); err == nil || !strings.Contains(err.Error(), "Binding.Tx") {
			t.Errorf("DB: got %v, want why there is none", err)
		}
		tx, err := sqlreq.Tx(r.Context())
		if err != nil {
			t.Error(err)
			return
		}
		_ = tx.Rollback() // of the test's transaction
	})))
	if rec.Code != 500 || events.Events() != "main Ended 1" {
		t.Errorf("got %d, events %q, want 500 and that it was ended", rec.Code, events.Events())
	}
	// Whoever comes next gets an error, and does not wait for a turn for ever.
	if rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		_, err := sqlreq.Tx(r.Context())
		return err
	}))); rec.Code != 500 {
		t.Errorf("the next request: got %d, want 500", rec.Code)
	}
	route := func(context.Context, *http.Request) (*sql.DB, error) { return db, nil }
	for i, b := range []sqlreq.Binding{{Tx: test, Route: route}, {Tx: test, DB: db}, {DB: db, Route: route}} {
		if _, err := sqlreq.New(b); err == nil {
			t.Errorf("binding %d has two databases, and no error", i)
		}
	}
}

// The turn at the test's transaction is given back also if the end panics.
func TestG6BindingTxTurnAfterAReleaseThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which tells if the second one waits for ever
		panics := once(func() { panic("driver") })
		d := &fakedb.DB{Stmt: func(_ context.Context, q string) error {
			if strings.HasPrefix(q, "RELEASE") {
				panics()
			}
			return nil
		}}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: testTx(t, d.Open(t))})
		use := func(ctx context.Context) error {
			_, err := sqlreqtest.Main.ExecContext(ctx, "INSERT")
			return err
		}
		if got := sqlreqtest.Panicked(func() { _ = reg.Do(context.Background(), use) }); got != "driver" {
			t.Errorf("got panic %v, want the driver's", got)
		}
		if err := reg.Do(context.Background(), use); err != nil {
			t.Errorf("the next one got %v", err)
		}
		if n := d.Count("INSERT"); n != 2 {
			t.Errorf("%d of them ran, want 2", n)
		}
	})
}
