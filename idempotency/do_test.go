package idempotency_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

var errTest = sqlreqtest.ErrTest

// job adds a row, and returns an error.
func job(t *testing.T, calls *int, err error) func(context.Context) error {
	return func(ctx context.Context) error {
		*calls++
		insertWork(t, ctx)
		return err
	}
}

func TestI1Do(t *testing.T) {
	db := open(t)
	reg, once := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce()
	calls := 0
	for i, want := range []struct {
		scope, id string
		err       error
		first     bool
	}{
		{"q", "1", errTest, false}, {"q", "1", nil, true}, {"q", "1", nil, false}, {"q", "1", errTest, false},
		{"Q", "1", nil, true}, {"", "1", nil, true}, {"q", "1 ", nil, true}, {"q", `"1"`, nil, true}, {"q", "ä", nil, true},
	} {
		ran := calls
		first, err := once.Do(t.Context(), reg, want.scope, want.id, job(t, &calls, want.err))
		if first != want.first || calls > ran && !errors.Is(err, want.err) || calls == ran && err != nil {
			t.Errorf("%d: got %v %v, want %v", i, first, err, want.first)
		}
	}
	rows(t, db, 6, 6)
	sqlreqtest.Idle(t, db)
}

func TestI6IDOfDo(t *testing.T) {
	var d fakedb.DB
	reg, once := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)}), newOnce()
	calls := 0
	for _, id := range []string{"", strings.Repeat("x", 256), "\xff", "a\x00"} {
		if first, err := once.Do(t.Context(), reg, "", id, job(t, &calls, nil)); first || err == nil {
			t.Errorf("%q: got %v %v, want an error", id, first, err)
		}
	}
	if first, err := once.Do(t.Context(), reg, "\xff", "a", job(t, &calls, nil)); first || err == nil {
		t.Errorf("scope: got %v %v, want an error", first, err)
	}
	d.Check(t)
}

func TestI6AnIDIsNoKeyOfARequest(t *testing.T) {
	db := open(t)
	reg, once := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce()
	srv := serve(t, reg, once, handle(func(w http.ResponseWriter, r *http.Request) {
		calls := 0
		if first, err := once.Do(r.Context(), reg, "", "k", job(t, &calls, nil)); !first || err != nil {
			t.Errorf("got %v %v", first, err)
		}
	}))
	want(t, post(t, srv.URL, "k", "x"), "200 ")
	want(t, post(t, srv.URL, "k", "x"), "200  (replayed)")
	rows(t, db, 1, 2)
}

func TestI3DoInAUnitSharesItsFate(t *testing.T) {
	for name, c := range map[string]struct {
		after         error // of the unit around
		inner         error // of the job
		work, records int
	}{"both well": {nil, nil, 2, 1}, "the unit fails": {errTest, nil, 0, 0}, "the job fails": {nil, errTest, 1, 0}} {
		t.Run(name, func(t *testing.T) {
			db := open(t)
			reg, once := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce()
			calls := 0
			err := reg.Do(t.Context(), func(ctx context.Context) error {
				insertWork(t, ctx)
				first, err := once.Do(ctx, reg, "q", "1", job(t, &calls, c.inner))
				if first != (c.inner == nil) || !errors.Is(err, c.inner) {
					t.Errorf("got %v %v", first, err)
				}
				if c.inner == nil {
					if first, err := once.Do(ctx, reg, "q", "1", job(t, &calls, nil)); first || err != nil {
						t.Errorf("again: got %v %v", first, err)
					}
				}
				return c.after
			})
			if !errors.Is(err, c.after) || calls != 1 {
				t.Errorf("got %v, %d calls", err, calls)
			}
			rows(t, db, c.work, c.records)
		})
	}
}

func TestI3JobThatFailedRunsAgainInTheSameUnit(t *testing.T) {
	db := open(t)
	reg, once := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce()
	calls := 0
	must(t, reg.Do(t.Context(), func(ctx context.Context) error {
		if first, err := once.Do(ctx, reg, "q", "1", job(t, &calls, errTest)); first || !errors.Is(err, errTest) {
			t.Errorf("got %v %v", first, err)
		}
		first, err := once.Do(ctx, reg, "q", "1", job(t, &calls, nil))
		if !first {
			t.Error("the job was not done again")
		}
		return err
	}))
	rows(t, db, 1, 1)
}

func TestI12DoEndsItsUnitEarly(t *testing.T) {
	for name, c := range map[string]struct {
		fn            func(context.Context) error
		first         bool
		err           error
		again         bool // first of a repeat
		againErr      error
		work, records int
	}{
		"Commit":            {func(ctx context.Context) error { return sqlreq.Commit(ctx) }, true, nil, false, nil, 1, 1},
		"Commit, a failure": {func(ctx context.Context) error { return errors.Join(sqlreq.Commit(ctx), errTest) }, false, errTest, false, idempotency.ErrInProgress, 1, 1},
		"Rollback":          {func(ctx context.Context) error { return sqlreq.Rollback(ctx) }, true, nil, true, nil, 1, 1},
		"Rollback, work": {func(ctx context.Context) error {
			err := sqlreq.Rollback(ctx)
			insertWork(t, ctx)
			return err
		}, true, nil, false, nil, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			db := open(t)
			reg, once := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce()
			first, err := once.Do(t.Context(), reg, "q", "1", func(ctx context.Context) error {
				insertWork(t, ctx)
				return c.fn(ctx)
			})
			if first != c.first || !errors.Is(err, c.err) {
				t.Errorf("got %v %v", first, err)
			}
			calls := 0
			again, err := once.Do(t.Context(), reg, "q", "1", job(t, &calls, nil))
			if again != c.again || !errors.Is(err, c.againErr) {
				t.Errorf("again: got %v %v", again, err)
			}
			rows(t, db, c.work, c.records)
		})
	}
}

func TestI4DoWaits(t *testing.T) {
	db := open(t)
	reg, once := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce()
	var waiting atomic.Int32
	once.OnWait(func() { waiting.Add(1) })
	results := make(chan bool, 5)
	var ran atomic.Int32
	release := make(chan struct{})
	for range 5 {
		go func() {
			first, err := once.Do(context.Background(), reg, "q", "1", func(ctx context.Context) error {
				ran.Add(1)
				insertWork(t, ctx)
				<-release
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			results <- first
		}()
	}
	sqlreqtest.Until(func() bool { return waiting.Load() == 4 && ran.Load() == 1 })
	if n := db.Stats().InUse; n != 1 {
		t.Errorf("got %d connections in use", n)
	}
	close(release)
	firsts := 0
	for range 5 {
		if <-results {
			firsts++
		}
	}
	if firsts != 1 || ran.Load() != 1 {
		t.Errorf("got %d firsts and %d runs, want one of each", firsts, ran.Load())
	}
	rows(t, db, 1, 1)
}

func TestI4DoIsInProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d fakedb.DB
		reg, once := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)}), newOnce()
		release := make(chan struct{})
		go once.Do(context.Background(), reg, "q", "1", func(context.Context) error {
			<-release
			return nil
		})
		synctest.Wait()
		if first, err := once.Do(t.Context(), reg, "q", "1", func(context.Context) error { return nil }); first || !errors.Is(err, idempotency.ErrInProgress) {
			t.Errorf("got %v %v, want ErrInProgress", first, err)
		}
		close(release)
	})
}

func TestI14DoIsRunAgainAfterAConflict(t *testing.T) {
	db := open(t)
	reg, once := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce()
	reg.Retry = sqlreqtest.Retries(3)
	calls := 0
	first, err := once.Do(t.Context(), reg, "q", "1", func(ctx context.Context) error {
		insertWork(t, ctx)
		if calls++; calls < 3 {
			return sqlreqtest.Conflict{}
		}
		return nil
	})
	if !first || err != nil || calls != 3 {
		t.Errorf("got %v %v after %d calls", first, err, calls)
	}
	rows(t, db, 1, 1)
}

func TestI14LostCommitAroundADoIsNotRepeated(t *testing.T) {
	// The unit around has no record of its own: nobody knows what of it is there.
	var l lossy
	db := withTable(t, sqlreqtest.OpenFaulty(t, &l.DB))
	l.arm()
	reg, once := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce()
	reg.Retry = sqlreqtest.Retries(3)
	calls, around := 0, 0
	err := reg.Do(t.Context(), func(ctx context.Context) error {
		around++
		_, err := once.Do(ctx, reg, "q", "1", job(t, &calls, nil))
		return err
	})
	if around != 1 || !sqlreq.MayHaveCommitted(err) || sqlreq.StatusCode(err) != 500 {
		t.Errorf("got %v after %d attempts", err, around)
	}
	rows(t, db, 1, 1)
}

// A part of a request is over with its transaction, however long the request goes on:
// another one with the id does not wait for the request's end.
func TestI4DoInARequestThatGoesOn(t *testing.T) {
	for name, c := range map[string]struct {
		err error
		end func(w http.ResponseWriter, r *http.Request) error
		ran bool // the other one
	}{
		"Commit":   {nil, func(_ http.ResponseWriter, r *http.Request) error { return sqlreq.Commit(r.Context()) }, false},
		"Rollback": {nil, func(_ http.ResponseWriter, r *http.Request) error { return sqlreq.Rollback(r.Context()) }, true},
		"Hijack":   {nil, func(w http.ResponseWriter, _ *http.Request) error { return hijackAnswer(t, w) }, false},
		"it fails": {errTest, func(http.ResponseWriter, *http.Request) error { return nil }, true},
	} {
		t.Run(name, func(t *testing.T) {
			db := open(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			once := newOnce()
			once.OnWait(func() { t.Error("it waits") })
			calls := 0
			returned := make(chan struct{}) // after a Hijack the client has its answer before that
			srv := sqlreqtest.Serve(t, reg.Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
				defer close(returned)
				if _, err := once.Do(r.Context(), reg, "q", "1", job(t, &calls, c.err)); !errors.Is(err, c.err) {
					t.Errorf("got %v", err)
				}
				must(t, c.end(w, r))
				first, err := once.Do(context.WithoutCancel(t.Context()), reg, "q", "1", job(t, &calls, nil))
				if first != c.ran || err != nil {
					t.Errorf("got %v, %v beside the request, want %v", first, err, c.ran)
				}
			})))
			want(t, post(t, srv.URL, "", ""), map[bool]string{true: "200 ok", false: "200 "}[name == "Hijack"])
			<-returned
			rows(t, db, 1, 1)
		})
	}
}

// Who finds the message done by its own request keeps the others waiting: it is not
// committed.
func TestI16DoThatIsDoneInTheSameRequest(t *testing.T) {
	db := open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	once := newOnce()
	var waits atomic.Bool
	once.OnWait(func() { waits.Store(true) })
	calls := 0
	result := make(chan error, 1)
	must(t, reg.Do(t.Context(), func(ctx context.Context) error {
		for i := range 2 {
			if first, err := once.Do(ctx, reg, "q", "1", job(t, &calls, nil)); first != (i == 0) || err != nil {
				t.Errorf("got %v, %v", first, err)
			}
		}
		go func() {
			first, err := once.Do(t.Context(), reg, "q", "1", job(t, &calls, nil))
			if first {
				t.Error("it ran again")
			}
			result <- err
		}()
		sqlreqtest.Until(func() bool { return waits.Load() || db.Stats().InUse > 1 })
		if !waits.Load() {
			t.Error("it waits with a connection")
		}
		return nil
	}))
	must(t, <-result)
	rows(t, db, 1, 1)
}
