package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

func TestI1OnceForEachKey(t *testing.T) {
	db := open(t)
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), new(work))
	want(t, post(t, srv.URL, "k1", "x"), "201 order 1")
	for range 3 {
		want(t, post(t, srv.URL, "k1", "x"), "201 order 1 (replayed)")
	}
	want(t, post(t, srv.URL, `"k1"`, "x"), "201 order 1 (replayed)")
	want(t, post(t, srv.URL, "k2", "x"), "201 order 2")
	rows(t, db, 2, 2)
	sqlreqtest.Idle(t, db)
}

// breaker breaks the nth call of a driver, before or after it was carried out.
type breaker struct {
	mu     sync.Mutex
	n      int
	after  bool
	err    error
	broken string // the call
}

func (b *breaker) hit(text string, after bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if after != b.after {
		return nil
	}
	if b.n--; b.n != 0 {
		return nil
	}
	b.broken = text
	return b.err
}

// attach makes b break the calls of d until stop is called.
func (b *breaker) attach(d *fakedb.DB) (stop func()) {
	d.Change(func(d *fakedb.DB) {
		d.Step = func(_ context.Context, text string) error { return b.hit(text, false) }
		d.Stepped = func(_ context.Context, text string) error { return b.hit(text, true) }
	})
	return func() { d.Change(func(d *fakedb.DB) { d.Step, d.Stepped = nil, nil }) }
}

// eachBreak calls fn with each call of the driver broken, until none is left. Those
// named must be among them.
func eachBreak(t *testing.T, calls []string, fn func(t *testing.T, d *fakedb.DB, b *breaker)) {
	t.Helper()
	var broken []string
	for name, err := range map[string]error{"connection lost": io.ErrUnexpectedEOF, "conflict": sqlreqtest.Conflict{}} {
		for _, after := range []bool{false, true} {
			for n, more := 1, true; more; n++ {
				t.Run(fmt.Sprint(name, "/after=", after, "/", n), func(t *testing.T) {
					b := &breaker{n: n, after: after, err: err}
					fn(t, new(fakedb.DB), b)
					more = b.broken != ""
					broken = append(broken, b.broken)
				})
			}
		}
	}
	for _, call := range calls {
		if !slices.ContainsFunc(broken, func(b string) bool { return strings.HasPrefix(b, call) }) {
			t.Errorf("%s was never broken", call)
		}
	}
}

func TestI1EachDriverCallBroken(t *testing.T) {
	for _, retries := range []int{1, 3} {
		t.Run(fmt.Sprint("attempts=", retries), func(t *testing.T) {
			eachBreak(t, []string{"BEGIN", "INSERT INTO idem", "INSERT INTO work", "UPDATE", "SELECT", "COMMIT"}, func(t *testing.T, d *fakedb.DB, b *breaker) {
				db := withTable(t, sqlreqtest.OpenFaulty(t, d))
				stop := b.attach(d)
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
				reg.Retry = sqlreqtest.Retries(retries)
				srv := serve(t, reg, newOnce(), new(work))
				answers := make(map[string]bool)
				for len(answers) == 0 {
					got := post(t, srv.URL, "k", "x")
					if got.status == 201 {
						answers[got.body] = true
					} else if got.status < 500 {
						t.Fatalf("%s broken: got %v", b.broken, got)
					}
				}
				for range 2 { // the calls of a repeat are broken too
					if got := post(t, srv.URL, "k", "x"); got.status == 201 {
						answers[got.body] = true
					} else if got.status < 500 {
						t.Fatalf("%s broken: got %v", b.broken, got)
					}
				}
				if len(answers) != 1 {
					t.Errorf("%s broken: got the answers %v, want one", b.broken, answers)
				}
				stop()
				rows(t, db, 1, 1)
				sqlreqtest.Idle(t, db)
			})
		})
	}
}

func TestI1EachDriverCallBrokenInDo(t *testing.T) {
	eachBreak(t, []string{"BEGIN", "INSERT INTO idem", "INSERT INTO work", "UPDATE", "SELECT", "COMMIT"}, func(t *testing.T, d *fakedb.DB, b *breaker) {
		db := withTable(t, sqlreqtest.OpenFaulty(t, d))
		stop := b.attach(d)
		reg, once := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce()
		done := false
		for range 4 {
			first, err := once.Do(t.Context(), reg, "queue", "m1", func(ctx context.Context) error {
				_, err := main.ExecContext(ctx, sqlreqtest.InsertWork)
				return err
			})
			switch {
			case err != nil && first:
				t.Errorf("%s broken: first is true with the error %v", b.broken, err)
			case err != nil && !errors.Is(err, b.err):
				t.Errorf("%s broken: got %v", b.broken, err)
			case err == nil && first && done:
				t.Errorf("%s broken: first is true twice", b.broken)
			case err == nil:
				done = true
			}
		}
		stop()
		rows(t, db, 1, 1)
		sqlreqtest.Idle(t, db)
	})
}

func TestI1Duplicates(t *testing.T) {
	for _, processes := range []int{1, 5} {
		t.Run(fmt.Sprint("processes=", processes), func(t *testing.T) {
			db := open(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			h := new(work)
			var urls []string
			for range processes {
				urls = append(urls, serve(t, reg, newOnce(), h).URL)
			}
			got := make(map[string]int)
			var mu sync.Mutex
			var wg sync.WaitGroup
			for i := range 50 {
				wg.Go(func() {
					r := post(t, urls[i%processes], "k", "x")
					mu.Lock()
					defer mu.Unlock()
					got[r.String()]++
				})
			}
			wg.Wait()
			if got["201 order 1"] != 1 || got["201 order 1 (replayed)"] != 49 {
				t.Errorf("got %v, want one answer, and 49 times its repeat", got)
			}
			rows(t, db, 1, 1)
			sqlreqtest.Idle(t, db)
		})
	}
}
