// G6 One request, one outcome, one transaction for each pool. However many
// middlewares, decorators, mounted applications and keys take part, the outermost
// decides once, for all of them. Keys bound to the same *sql.DB share one transaction
// in a request. With several databases the transactions commit in the order of their
// BEGINs; after a failed COMMIT the rest are rolled back, and the CommitError names
// those already committed (there is no two-phase commit).

package guarantees

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// TestG6SeveralDatabases shows the order of the ends, and what a CommitError
// tells when one of them fails.
func TestG6SeveralDatabases(t *testing.T) {
	tests := []struct {
		name      string
		fails     string
		ends      []string
		key       sqlreq.Key
		committed []sqlreq.Key
	}{
		{"all commit", "", []string{"b COMMIT", "c COMMIT", "a COMMIT"}, "", nil},
		{"the first fails", "b COMMIT", []string{"b COMMIT", "c ROLLBACK", "a ROLLBACK"}, "b", nil},
		{"the second fails", "c COMMIT", []string{"b COMMIT", "c COMMIT", "a ROLLBACK"}, "c", []sqlreq.Key{"b"}},
		{"the last fails", "a COMMIT", []string{"b COMMIT", "c COMMIT", "a COMMIT"}, "a", []sqlreq.Key{"b", "c"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var log []string
			var bindings []sqlreq.Binding
			for _, k := range []sqlreq.Key{"a", "b", "c"} {
				f := &fakedb.DB{Step: func(_ context.Context, stmt string) error {
					log = append(log, string(k)+" "+stmt)
					if log[len(log)-1] == test.fails {
						return sqlreqtest.ErrTest
					}
					return nil
				}}
				bindings = append(bindings, sqlreq.Binding{Key: k, DB: f.Open(t)})
			}
			reg := sqlreqtest.NewRegistry(t, bindings...)
			var failure error
			reg.ErrorHandler = func(_ http.ResponseWriter, _ *http.Request, err error) { failure = err }
			o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for _, k := range []sqlreq.Key{"b", "c", "a"} {
					sqlreqtest.Exec(t, r.Context(), k, "INSERT")
				}
				w.WriteHeader(201)
			})), "/")
			if got := log[len(log)-3:]; !slices.Equal(got, test.ends) {
				t.Errorf("ends: got %q, want %q", got, test.ends)
			}
			if test.fails == "" {
				if o.Code != 201 || failure != nil {
					t.Errorf("got %d, %v, want 201", o.Code, failure)
				}
				return
			}
			var c *sqlreq.CommitError
			if !errors.As(failure, &c) || c.Key != test.key || !slices.Equal(c.Committed, test.committed) || !errors.Is(failure, sqlreqtest.ErrTest) {
				t.Errorf("got %#v, want key %q, committed %q", failure, test.key, test.committed)
			}
			for _, k := range test.committed {
				if !strings.Contains(failure.Error(), fmt.Sprintf("%q", k)) {
					t.Errorf("%v does not name %q", failure, k)
				}
			}
			if o.Code != 500 {
				t.Errorf("got %d, want 500", o.Code)
			}
		})
	}
}

// TestG6SeveralDatabasesSqlmock is the same with expectations told beforehand.
func TestG6SeveralDatabasesSqlmock(t *testing.T) {
	for _, test := range []struct {
		name          string
		first, second []string
	}{
		{"the first fails", []string{"BEGIN", "INSERT", "COMMIT!"}, []string{"BEGIN", "INSERT", "ROLLBACK"}},
		{"the second fails", []string{"BEGIN", "INSERT", "COMMIT"}, []string{"BEGIN", "INSERT", "COMMIT!"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			one, two := scripts()[0], scripts()[0]
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "one", DB: one.open(t, test.first)}, sqlreq.Binding{Key: "two", DB: two.open(t, test.second)})
			o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), "one", "INSERT")
				sqlreqtest.Exec(t, r.Context(), "two", "INSERT")
			})), "/")
			if o.Code != 500 {
				t.Errorf("got %d, want 500", o.Code)
			}
			one.check(t)
			two.check(t)
		})
	}
}

// Of two databases that a Hijack commits the second one panics: the error tells
// that the first one is committed.
func TestG6CommitOfTheSecondPanics(t *testing.T) {
	first, second := &fakedb.DB{}, &fakedb.DB{Commit: func() error { panic("driver") }}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: first.Open(t)}, sqlreq.Binding{Key: "second", DB: second.Open(t)})
	var got *sqlreq.CommitError
	reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
		errors.As(err, &got)
		w.WriteHeader(sqlreq.StatusCode(err))
	}
	rec := httptest.NewRecorder()
	reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
		sqlreqtest.Exec(t, r.Context(), "second", "INSERT")
		sqlreqtest.Panicked(func() { _, _, _ = http.NewResponseController(w).Hijack() })
	})).ServeHTTP(hijackable{rec}, httptest.NewRequest("GET", "/", nil))
	if rec.Code != 500 || got == nil || got.Key != "second" || !got.Ambiguous || !slices.Equal(got.Committed, []sqlreq.Key{sqlreqtest.Main}) {
		t.Errorf("got %d and %+v, want 500 and that the first one is committed", rec.Code, got)
	}
	first.CheckLog(t, "BEGIN", "INSERT", "COMMIT")
	second.CheckLog(t, "BEGIN", "INSERT", "COMMIT")
}

// hijackable is a response that could be hijacked, if it came to that.
type hijackable struct{ *httptest.ResponseRecorder }

func (hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return nil, nil, sqlreqtest.ErrTest
}

// TestG6OnePoolOneTransaction: keys of one pool share the transaction, unless
// they want different ones.
func TestG6OnePoolOneTransaction(t *testing.T) {
	f := &fakedb.DB{}
	db := f.Open(t)
	route := func(context.Context, *http.Request) (*sql.DB, error) { return db, nil }
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "same", DB: db}, sqlreq.Binding{Key: "routed", Route: route},
		sqlreq.Binding{Key: "readonly", DB: db, TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnly)}, sqlreq.Binding{Key: "guarded", DB: db, Guard: true})
	inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "nested", DB: db})
	o := sqlreqtest.AskGet(reg.Middleware(inner.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tx, err := sqlreq.Tx(r.Context())
		if err != nil {
			t.Error(err)
		}
		for _, k := range []sqlreq.Key{"same", "routed", "nested"} {
			if got, err := k.Tx(r.Context()); got != tx || err != nil {
				t.Errorf("key %q: got another transaction, or %v", k, err)
			}
		}
		for _, k := range []sqlreq.Key{"readonly", "guarded"} {
			if _, err := k.Tx(r.Context()); !errors.Is(err, sqlreq.ErrBegun) {
				t.Errorf("key %q: got %v, want ErrBegun", k, err)
			}
		}
		for _, k := range []sqlreq.Key{sqlreqtest.Main, "same", "readonly"} {
			if _, err := k.BeginTx(r.Context(), nil); !errors.Is(err, sqlreq.ErrBegun) {
				t.Errorf("BeginTx of key %q: got %v, want ErrBegun", k, err)
			}
		}
		if err := sqlreq.Key("same").Commit(r.Context()); err != nil {
			t.Error(err)
		}
		sqlreqtest.Exec(t, r.Context(), "guarded", "INSERT")
		if _, err := sqlreq.Tx(r.Context()); !errors.Is(err, sqlreq.ErrBegun) {
			t.Errorf("got %v, want ErrBegun", err)
		}
		if err := sqlreq.Key("nested").Commit(r.Context()); err != nil { // not the one that began it
			t.Error(err)
		}
	}))), "/")
	if o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	f.Check(t, "BEGIN", "COMMIT", "BEGIN", "SAVEPOINT sqlreq_guard", "INSERT", "RELEASE SAVEPOINT sqlreq_guard", "COMMIT")
}

// Options that are the driver's defaults are no other options than none.
func TestG6KeysOfAPoolWithDefaultOptions(t *testing.T) {
	d := &fakedb.DB{}
	db := d.Open(t)
	defaults := func(context.Context, *http.Request) *sql.TxOptions { return &sql.TxOptions{} }
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "other", DB: db, TxOptions: defaults})
	for _, keys := range [][]sqlreq.Key{{sqlreqtest.Main, "other"}, {"other", sqlreqtest.Main}} {
		sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			for _, k := range keys {
				sqlreqtest.Exec(t, r.Context(), k, "INSERT")
			}
		})))
	}
	d.CheckLog(t, "BEGIN", "INSERT", "INSERT", "COMMIT", "BEGIN", "INSERT", "INSERT", "COMMIT")
}

// TestG6BeginOnce: many goroutines, one BEGIN.
func TestG6BeginOnce(t *testing.T) {
	f := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
	o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var all sync.WaitGroup
		txs := make([]*sql.Tx, 50)
		for i := range txs {
			all.Go(func() {
				var err error
				if txs[i], err = sqlreq.Tx(r.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for _, tx := range txs {
			if tx != txs[0] {
				t.Error("got several transactions")
			}
		}
	})), "/")
	if o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	f.Check(t, "BEGIN", "COMMIT")
}

// TestG6BeginDelaysNoOtherKey: while one key waits, be it for Route or for BEGIN, another works.
func TestG6BeginDelaysNoOtherKey(t *testing.T) {
	waiting, release := make(chan struct{}, 2), make(chan struct{})
	slow := &fakedb.DB{Step: func(_ context.Context, stmt string) error {
		if stmt == "BEGIN" {
			waiting <- struct{}{}
			<-release
		}
		return nil
	}}
	fast := &fakedb.DB{}
	slowDB := slow.Open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: fast.Open(t)}, sqlreq.Binding{Key: "slow", DB: slowDB},
		sqlreq.Binding{Key: "routed", Route: func(context.Context, *http.Request) (*sql.DB, error) {
			waiting <- struct{}{}
			<-release
			return slowDB, nil
		}})
	o := sqlreqtest.AskGet(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var all sync.WaitGroup
		for _, k := range []sqlreq.Key{"slow", "routed"} {
			all.Go(func() { sqlreqtest.Exec(t, r.Context(), k, "INSERT") })
			<-waiting
		}
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
		if err := sqlreq.Commit(r.Context()); err != nil {
			t.Error(err)
		}
		close(release)
		all.Wait()
	})), "/")
	if o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	fast.Check(t, "BEGIN", "INSERT", "COMMIT")
	slow.Check(t, "BEGIN", "INSERT", "INSERT", "COMMIT")
}

// TestG6BeginWaiterTakesOver: who waits for somebody else's BEGIN begins itself
// when that one gives up; and may give up itself.
func TestG6BeginWaiterTakesOver(t *testing.T) {
	beginning, first := make(chan struct{}), true
	f := &fakedb.DB{Step: func(ctx context.Context, stmt string) error {
		if stmt == "BEGIN" && first {
			first = false
			close(beginning)
			return fakedb.UntilDone(ctx)
		}
		return nil
	}}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
	o := sqlreqtest.AskGet(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		one, giveUp := context.WithCancel(r.Context())
		beginner := make(chan error, 1)
		go func() { _, err := sqlreq.Tx(one); beginner <- err }()
		<-beginning

		two, leave := context.WithCancel(r.Context())
		watched, waiting := sqlreqtest.Watch(two)
		impatient := make(chan error, 1)
		go func() { _, err := sqlreq.Tx(watched); impatient <- err }()
		<-waiting
		leave()
		if err := <-impatient; !errors.Is(err, context.Canceled) {
			t.Errorf("a waiter that gave up: got %v, want context.Canceled", err)
		}

		three, waiting := sqlreqtest.Watch(r.Context())
		waiter := make(chan error, 1)
		go func() { _, err := sqlreq.Tx(three); waiter <- err }()
		<-waiting
		giveUp()
		if err := <-beginner; !errors.Is(err, context.Canceled) {
			t.Errorf("the beginner that gave up: got %v, want context.Canceled", err)
		}
		if err := <-waiter; err != nil {
			t.Errorf("the waiter: got %v, want a transaction", err)
		}
		return nil
	})), "/")
	if o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	f.Check(t, "BEGIN", "BEGIN", "COMMIT")
}
