// G4 No success by accident. Fail, a CommitIf that says no, a failed explicit Commit
// that the handler ignored, a transaction ended behind sqlreq's back (defer
// tx.Rollback(), tx.Commit()): none of them commits what is still open.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// TestG4EndedElsewhereCommitsNothing: of two databases the second was ended
// behind our back; the first is still open, and must not be committed.
func TestG4EndedElsewhereCommitsNothing(t *testing.T) {
	one, two := &fakedb.DB{}, &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "one", DB: one.Open(t)}, sqlreq.Binding{Key: "two", DB: two.Open(t)})
	o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), "one", "INSERT")
		tx, err := sqlreq.Key("two").Tx(r.Context())
		if err != nil {
			t.Error(err)
			return
		}
		defer tx.Rollback()
	})), "/")
	if o.Code != 500 {
		t.Errorf("got %d, want 500", o.Code)
	}
	two.Check(t, "BEGIN", "ROLLBACK")
	one.Check(t, "BEGIN", "INSERT", "ROLLBACK")
}

// TestG4EndedElsewhere: a transaction ended through *sql.Tx fails the request,
// and everything that would use it before that.
func TestG4EndedElsewhere(t *testing.T) {
	ends := map[string]func(*sql.Tx) error{"Rollback": (*sql.Tx).Rollback, "Commit": (*sql.Tx).Commit}
	for name, end := range ends {
		t.Run("deferred "+name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			var failure error
			reg.ErrorHandler = func(_ http.ResponseWriter, _ *http.Request, err error) { failure = err }
			o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tx, err := sqlreq.Tx(r.Context())
				if err != nil {
					t.Error(err)
				}
				defer end(tx)
				_, _ = tx.Exec(sqlreqtest.InsertWork)
			})), "/")
			if o.Code != 500 {
				t.Errorf("got %d, want 500", o.Code)
			}
			checkEndedText(t, failure)
			sqlreqtest.Idle(t, db)
		})
		t.Run(name+" and going on", func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tx, err := sqlreq.Tx(r.Context())
				if err != nil {
					t.Error(err)
				}
				_ = end(tx)
				for what, use := range sqlreqtest.Uses() {
					if what == "BeginTx" { // finds one open, whatever became of it
						continue
					}
					if err := use(r.Context()); !errors.Is(err, sqlreq.ErrTxEnded) {
						t.Errorf("%s: got %v, want ErrTxEnded", what, err)
					} else {
						checkEndedText(t, err)
					}
				}
			})), "/")
			if o.Code != 500 {
				t.Errorf("got %d, want 500", o.Code)
			}
			sqlreqtest.Idle(t, db)
		})
	}
	t.Run("found by Commit and Rollback", func(t *testing.T) {
		for _, f := range []func(context.Context) error{sqlreq.Commit, sqlreq.Rollback} {
			db := sqlreqtest.OpenDB(t)
			o := sqlreqtest.AskGet(sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tx, _ := sqlreq.Tx(r.Context())
				_ = tx.Rollback()
				if err := f(r.Context()); !errors.Is(err, sqlreq.ErrTxEnded) {
					t.Errorf("got %v, want ErrTxEnded", err)
				}
			})), "/")
			if o.Code != 500 {
				t.Errorf("got %d, want 500", o.Code)
			}
			sqlreqtest.Idle(t, db)
		}
	})
}

func checkEndedText(t *testing.T, err error) {
	t.Helper()
	for _, part := range []string{"defer tx.Rollback()", "sqlreq.Commit", "Rollback", `"main"`} {
		if !errors.Is(err, sqlreq.ErrTxEnded) || !strings.Contains(err.Error(), part) {
			t.Errorf("got %v, want ErrTxEnded with %q in its text", err, part)
		}
	}
}

// TestG4FailWhileDeciding: a Fail that returned nil has to count, also when
// CommitIf is being asked.
func TestG4FailWhileDeciding(t *testing.T) {
	f := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
	var ctx context.Context
	reg.CommitIf = func(int, http.Header) bool {
		if err := sqlreq.Fail(ctx, sqlreqtest.ErrTest); err != nil {
			t.Errorf("Fail: %v", err)
		}
		return true
	}
	o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx = r.Context()
		sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
	})), "/")
	if o.Code != 500 {
		t.Errorf("got %d, want 500", o.Code)
	}
	f.Check(t, "BEGIN", "INSERT", "ROLLBACK")
}

// TestG4CommitFailsWhileDeciding: an explicit Commit of another goroutine fails
// when the handler has returned; nothing else is committed then.
func TestG4CommitFailsWhileDeciding(t *testing.T) {
	committing, release := make(chan struct{}), make(chan struct{})
	one := &fakedb.DB{Step: func(_ context.Context, stmt string) error {
		if stmt == "COMMIT" {
			close(committing)
			<-release
			return sqlreqtest.ErrTest
		}
		return nil
	}}
	two := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "one", DB: one.Open(t)}, sqlreq.Binding{Key: "two", DB: two.Open(t)})
	committed := make(chan error, 1)
	reg.CommitIf = func(int, http.Header) bool {
		close(release)
		return true
	}
	o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), "one", "INSERT")
		sqlreqtest.Exec(t, r.Context(), "two", "INSERT")
		go func() { committed <- sqlreq.Key("one").Commit(r.Context()) }()
		<-committing
	})), "/")
	if err := <-committed; !errors.Is(err, sqlreqtest.ErrTest) {
		t.Errorf("Commit: got %v, want sqlreqtest.ErrTest", err)
	}
	if o.Code != 500 {
		t.Errorf("got %d, want 500", o.Code)
	}
	one.Check(t, "BEGIN", "INSERT", "COMMIT")
	two.Check(t, "BEGIN", "INSERT", "ROLLBACK")
}

// A Commit that gave up its wait has failed like any other: what it was to
// commit must not be committed behind its back.
func TestG4CommitThatGaveUpItsWait(t *testing.T) {
	beginning, goOn := make(chan struct{}), make(chan struct{})
	db := sqlreqtest.OpenFaulty(t, &fakedb.DB{Begin: func(context.Context) error { close(beginning); <-goOn; return nil }})
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var log sqlreqtest.Recorder
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		log.Hooks(t, r.Context(), sqlreqtest.Main, "")
		inserted := make(chan error, 1)
		go func() { inserted <- sqlreqtest.Statements()["ExecContext"](r.Context()) }()
		<-beginning
		short, cancel := context.WithCancel(r.Context())
		defer cancel()
		if err := sqlreq.Commit(sqlreqtest.Asked{Context: short, OnDone: cancel}); !errors.Is(err, context.Canceled) {
			t.Errorf("Commit: got %v, want that its context was cancelled", err)
		}
		close(goOn)
		if err := <-inserted; err != nil {
			t.Error(err)
		}
		w.WriteHeader(201)
	})))
	if n := sqlreqtest.Count(t, db, "work"); rec.Code != 500 || n != 0 || log.Words() != "rollback" {
		t.Errorf("got %d, %d rows, hooks %q; want 500, none and a rollback", rec.Code, n, log.Words())
	}
	sqlreqtest.Idle(t, db)
}
