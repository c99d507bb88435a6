package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// commits notes the COMMITs and the records of several databases in their order.
type commits struct {
	mu  sync.Mutex
	log []string
}

// open returns a database whose COMMIT fails with err.
func (c *commits) open(t *testing.T, name string, err error) *fakedb.DB {
	return &fakedb.DB{Step: func(_ context.Context, text string) error {
		switch {
		case text == "COMMIT":
			c.add(text + " " + name)
			return err
		case strings.HasPrefix(text, "UPDATE"):
			c.add("record")
		}
		return nil
	}}
}

func (c *commits) add(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log = append(c.log, s)
}

func (c *commits) check(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(c.log, want) {
		t.Errorf("got %q, want %q", c.log, want)
	}
}

func TestI13TheRecordCommitsLast(t *testing.T) {
	type layer func(w http.ResponseWriter, r *http.Request, next http.Handler, add func(string))
	other := sqlreq.Key("other")
	before := func(t *testing.T, r *http.Request, k sqlreq.Key, fn func(context.Context)) {
		must(t, k.BeforeCommit(r.Context(), func(ctx context.Context) error {
			fn(ctx)
			return nil
		}))
	}
	cases := map[string]struct {
		outer layer
		want  []string
	}{
		"the other is begun before": {func(w http.ResponseWriter, r *http.Request, next http.Handler, add func(string)) {
			sqlreqtest.Exec(t, r.Context(), other, "x")
			next.ServeHTTP(w, r)
		}, []string{"record", "COMMIT other", "COMMIT main"}},
		"the other is begun behind": {func(w http.ResponseWriter, r *http.Request, next http.Handler, add func(string)) {
			next.ServeHTTP(w, r)
			sqlreqtest.Exec(t, r.Context(), other, "x")
		}, []string{"record", "COMMIT other", "COMMIT main"}},
		"a function registered behind the record": {func(w http.ResponseWriter, r *http.Request, next http.Handler, add func(string)) {
			sqlreqtest.Exec(t, r.Context(), other, "x")
			next.ServeHTTP(w, r)
			before(t, r, other, func(context.Context) { add("function") })
			before(t, r, main, func(context.Context) { add("function") })
		}, []string{"function", "function", "record", "COMMIT other", "COMMIT main"}},
		"a function that registers another": {func(w http.ResponseWriter, r *http.Request, next http.Handler, add func(string)) {
			next.ServeHTTP(w, r)
			before(t, r, main, func(ctx context.Context) {
				add("function")
				sqlreqtest.Exec(t, ctx, other, "x")
				before(t, r.WithContext(ctx), other, func(context.Context) { add("another") })
			})
		}, []string{"function", "another", "record", "COMMIT other", "COMMIT main"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var log commits
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: log.open(t, "main", nil).Open(t)}, sqlreq.Binding{Key: "other", DB: log.open(t, "other", nil).Open(t)})
			h := newOnce().Handler(new(work))
			rec := ask(t.Context(), reg.Middleware(handle(func(w http.ResponseWriter, r *http.Request) { c.outer(w, r, h, log.add) })))
			if rec.Code != 201 {
				t.Errorf("got %d", rec.Code)
			}
			log.check(t, c.want...)
		})
	}
}

func TestI13NoRecordIfAnotherFails(t *testing.T) {
	var log commits
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: log.open(t, "main", nil).Open(t)}, sqlreq.Binding{Key: "other", DB: log.open(t, "other", errors.New("refused")).Open(t)})
	rec := ask(t.Context(), reg.Middleware(newOnce().Handler(handle(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), "other", "x")
	}))))
	if rec.Code != 500 {
		t.Errorf("got %d, want 500", rec.Code)
	}
	log.check(t, "record", "COMMIT other")
}

// lossy loses the answer to the first COMMIT, after it was carried out or in its place,
// and then lets nobody in for a while.
type lossy struct {
	fakedb.DB
	before bool          // COMMIT was not carried out
	away   time.Duration // how long BEGIN finds no database after that
	lost   time.Time
}

var errRefused = &net.OpError{Op: "dial", Err: errors.New("connection refused")}

func (l *lossy) arm() {
	lose := func(text string, before bool) error {
		if text != "COMMIT" || before != l.before || !l.lost.IsZero() {
			return nil
		}
		l.lost = time.Now()
		return io.ErrUnexpectedEOF
	}
	l.Change(func(d *fakedb.DB) {
		d.Step = func(_ context.Context, text string) error { return lose(text, true) }
		d.Stepped = func(_ context.Context, text string) error { return lose(text, false) }
		d.Begin = func(context.Context) error {
			if !l.lost.IsZero() && time.Since(l.lost) < l.away {
				return errRefused
			}
			return nil
		}
	})
}

func TestI14NobodySeesTheFailover(t *testing.T) {
	for _, before := range []bool{false, true} {
		t.Run(fmt.Sprint("before=", before), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &lossy{before: before, away: 3 * time.Second}
				db := withTable(t, sqlreqtest.OpenFaulty(t, &l.DB))
				l.arm()
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
				reg.Retry.Attempts = 2
				h := new(work)
				rec := ask(t.Context(), reg.Middleware(newOnce().Handler(h)))
				want, calls := "order 1", int32(1)
				if before {
					want, calls = "order 2", 2
				}
				if rec.Code != 201 || rec.Body.String() != want || h.calls.Load() != calls || (rec.Header().Get("Idempotent-Replayed") != "") == before {
					t.Errorf("got %d %q %v after %d calls", rec.Code, rec.Body, rec.Header(), h.calls.Load())
				}
				rows(t, db, 1, 1)
			})
		})
	}
}

func TestI14WithoutADatabaseUntilWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lossy{away: time.Hour}
		db := withTable(t, sqlreqtest.OpenFaulty(t, &l.DB))
		l.arm()
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
		reg.Retry.Attempts, reg.Retry.Within = 2, time.Minute
		start := time.Now()
		rec := ask(t.Context(), reg.Middleware(newOnce().Handler(new(work))))
		if d := time.Since(start); rec.Code != 503 || rec.Header().Get("Retry-After") != "1" || d < 59*time.Second || d > time.Minute {
			t.Errorf("got %d with Retry-After %q after %v", rec.Code, rec.Header().Get("Retry-After"), d)
		}
	})
}

func TestI14WithoutRetryTheClientIsToldToRepeat(t *testing.T) {
	for name, retry := range map[string]sqlreq.Retry{"none": {}, "not for this request": {Attempts: 3, When: func(*http.Request) bool { return false }}} {
		t.Run(name, func(t *testing.T) {
			var l lossy
			db := withTable(t, sqlreqtest.OpenFaulty(t, &l.DB))
			l.arm()
			var log sqlreqtest.Recorder
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			log.Watch(reg)
			reg.Retry = retry
			var told error
			reg.ErrorHandler = func(w http.ResponseWriter, r *http.Request, err error) {
				told = err
				w.WriteHeader(sqlreq.StatusCode(err))
			}
			srv := serve(t, reg, newOnce(), new(work))
			if got := post(t, srv.URL, "k", "x"); got.status != 503 || got.header.Get("Retry-After") != "1" || got.header.Get("Location") != "" {
				t.Errorf("got %v %v, want a 503", got, got.header)
			}
			if !sqlreq.MayHaveCommitted(told) {
				t.Errorf("MayHaveCommitted(%v) is false", told)
			}
			if got := log.Events(); got != "main CommitFailed 1" {
				t.Errorf("got the events %q", got)
			}
			want(t, post(t, srv.URL, "k", "x"), "201 order 1 (replayed)")
			rows(t, db, 1, 1)
		})
	}
}

func TestI14OnlyTheRecordsCommitCounts(t *testing.T) {
	cases := map[string]struct {
		h     func(w http.ResponseWriter, r *http.Request) // with main lossy, other sound
		noKey bool
		want  string
	}{
		"no key": {func(w http.ResponseWriter, r *http.Request) { insertWork(t, r.Context()) }, true, "500"},
		"another database has committed": {func(w http.ResponseWriter, r *http.Request) {
			sqlreqtest.Exec(t, r.Context(), "other", sqlreqtest.InsertWork)
		}, false, "500"},
		"an explicit Commit was lost": {func(w http.ResponseWriter, r *http.Request) {
			if err := sqlreq.Commit(r.Context()); err == nil {
				t.Error("the Commit went well")
			}
		}, false, "500"},
		"a Do has committed": {func(w http.ResponseWriter, r *http.Request) {
			other, _ := sqlreq.Key("other").DB(r.Context())
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: other})
			must(t, reg.Do(r.Context(), func(ctx context.Context) error {
				insertWork(t, ctx)
				return nil
			}))
		}, false, "500"},
		"a hook has run": {func(w http.ResponseWriter, r *http.Request) {
			must(t, sqlreq.Key("other").AfterCommit(r.Context(), func(context.Context) {}))
			sqlreqtest.Exec(t, r.Context(), "other", sqlreqtest.InsertWork)
			must(t, sqlreq.Key("other").Commit(r.Context()))
		}, false, "500"},
		"a byte has left": {func(w http.ResponseWriter, r *http.Request) {
			w.Write(make([]byte, 100_000))
		}, false, "broken"},
		"a read-only one has ended": {func(w http.ResponseWriter, r *http.Request) {
			_, err := sqlreq.Key("other").BeginTx(r.Context(), sqlreqtest.ReadOnly)
			must(t, err)
			w.WriteHeader(201)
		}, false, "201"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var l lossy
			db, other := withTable(t, sqlreqtest.OpenFaulty(t, &l.DB)), sqlreqtest.OpenDB(t)
			l.arm()
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "other", DB: other})
			reg.Retry = sqlreqtest.Retries(3)
			calls := 0
			srv := serve(t, reg, newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
				calls++
				c.h(w, r)
			}))
			key := "k"
			if c.noKey {
				key = ""
			}
			got, err := try(srv.URL, key, "x")
			switch {
			case c.want == "broken" && err == nil, c.want != "broken" && (err != nil || fmt.Sprint(got.status) != c.want):
				t.Errorf("got %v %v, want %s", got, err, c.want)
			case c.want == "500" && got.header.Get("Retry-After") != "":
				t.Error("the client is told to repeat")
			}
			if calls != 1 {
				t.Errorf("got %d calls, want one", calls)
			}
		})
	}
}

func TestI14EachAttemptClaimsAnew(t *testing.T) {
	var d fakedb.DB
	db := withTable(t, sqlreqtest.OpenFaulty(t, &d))
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	reg.Retry = sqlreqtest.Retries(3)
	calls := 0
	srv := serve(t, reg, newOnce(), sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		b, err := io.ReadAll(r.Body)
		if err != nil || string(b) != "x" {
			t.Errorf("got %q %v", b, err)
		}
		insertWork(t, r.Context())
		if calls++; calls < 3 {
			return sqlreqtest.Conflict{}
		}
		fmt.Fprint(w, "done")
		return nil
	}))
	want(t, post(t, srv.URL, "k", "x"), "200 done")
	want(t, post(t, srv.URL, "k", "x"), "200 done (replayed)")
	rows(t, db, 1, 1)
	if n := d.Count("INSERT INTO idempotency_keys"); n != 4 {
		t.Errorf("got %d claims, want 4", n)
	}
}

func TestI14DoFindsItsRecord(t *testing.T) {
	var l lossy
	db := withTable(t, sqlreqtest.OpenFaulty(t, &l.DB))
	l.arm()
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	reg.Retry = sqlreqtest.Retries(3)
	_, err := newOnce().Do(t.Context(), reg, "queue", "m", func(ctx context.Context) error {
		insertWork(t, ctx)
		return nil
	})
	must(t, err)
	rows(t, db, 1, 1)
}

var _ idempotency.Dialect
