package idempotency_test

import (
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

var randomPrograms = flag.Int("programs", 60, "how many random programs TestI1RandomPrograms runs")

// program is a handler made of random steps. Each run of it notes its rows with the
// number of the run, which is in its answer too.
type program struct {
	t     *testing.T
	once  *idempotency.Once
	reg   *sqlreq.Registry
	steps []step
	runs  atomic.Int32
}

// step is a part of a handler; it returns false where the handler ends.
type step struct {
	name string
	do   func(p *program, run int, w http.ResponseWriter, r *http.Request) bool
}

func (p *program) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	run := int(p.runs.Add(1))
	w.Header().Set("X-Run", fmt.Sprint(run))
	for _, s := range p.steps {
		if !s.do(p, run, w, r) {
			return
		}
	}
	fmt.Fprintf(w, " run %d", run)
}

func note(ctx context.Context, run int) error {
	_, err := main.ExecContext(ctx, fmt.Sprintf("INSERT INTO work (note) VALUES ('run %d')", run))
	return err
}

// failed answers like most handlers do.
func failed(w http.ResponseWriter, err error) bool {
	if err != nil {
		http.Error(w, "failed", http.StatusInternalServerError)
	}
	return err == nil
}

var allSteps = []step{
	{"work", func(_ *program, run int, w http.ResponseWriter, r *http.Request) bool {
		return failed(w, note(r.Context(), run))
	}},
	{"work", func(_ *program, run int, w http.ResponseWriter, r *http.Request) bool {
		return failed(w, note(r.Context(), run))
	}},
	{"work, errors ignored", func(_ *program, run int, _ http.ResponseWriter, r *http.Request) bool {
		_ = note(r.Context(), run)
		return true
	}},
	{"Commit", func(_ *program, _ int, w http.ResponseWriter, r *http.Request) bool {
		return failed(w, sqlreq.Commit(r.Context()))
	}},
	{"Rollback", func(_ *program, _ int, w http.ResponseWriter, r *http.Request) bool {
		return failed(w, sqlreq.Rollback(r.Context()))
	}},
	{"Savepoint", func(_ *program, run int, w http.ResponseWriter, r *http.Request) bool {
		return failed(w, sqlreq.Savepoint(r.Context(), func(ctx context.Context) error { return note(ctx, run) }))
	}},
	{"Savepoint, undone", func(_ *program, run int, _ http.ResponseWriter, r *http.Request) bool {
		_ = sqlreq.Savepoint(r.Context(), func(ctx context.Context) error { return errors.Join(note(ctx, run), errors.New("undone")) })
		return true
	}},
	{"Atomic", func(p *program, run int, w http.ResponseWriter, r *http.Request) bool {
		return failed(w, p.reg.Atomic(r.Context(), func(ctx context.Context) error { return note(ctx, run) }))
	}},
	{"Once.Do", func(p *program, run int, w http.ResponseWriter, r *http.Request) bool {
		_, err := p.once.Do(r.Context(), p.reg, "q", r.Header.Get("Idempotency-Key"), func(ctx context.Context) error { return note(ctx, run) })
		return failed(w, err)
	}},
	{"BeforeCommit", func(_ *program, run int, w http.ResponseWriter, r *http.Request) bool {
		return failed(w, sqlreq.BeforeCommit(r.Context(), func(ctx context.Context) error { return note(ctx, run) }))
	}},
	{"BeforeCommit that fails at first", func(_ *program, run int, w http.ResponseWriter, r *http.Request) bool {
		return failed(w, sqlreq.BeforeCommit(r.Context(), func(context.Context) error {
			if run == 1 {
				return errors.New("not yet")
			}
			return nil
		}))
	}},
	{"Write", func(_ *program, run int, w http.ResponseWriter, _ *http.Request) bool {
		fmt.Fprint(w, "<", run)
		return true
	}},
	{"Flush", func(_ *program, _ int, w http.ResponseWriter, _ *http.Request) bool {
		_ = http.NewResponseController(w).Flush()
		return true
	}},
	{"201", func(_ *program, _ int, w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(201); return true }},
	{"a lot", func(_ *program, run int, w http.ResponseWriter, _ *http.Request) bool {
		_, _ = io.Copy(w, strings.NewReader(strings.Repeat(fmt.Sprint(run), 80_000)))
		return true
	}},
	{"trailer", func(_ *program, run int, w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set(http.TrailerPrefix+"X-Sum", fmt.Sprint(run))
		return true
	}},
	{"reads the body", func(_ *program, _ int, w http.ResponseWriter, r *http.Request) bool {
		_, err := io.Copy(io.Discard, r.Body)
		return failed(w, err)
	}},
	{"reads a byte of it", func(_ *program, _ int, _ http.ResponseWriter, r *http.Request) bool {
		_, _ = r.Body.Read(make([]byte, 1))
		return true
	}},
	{"Hijack", func(_ *program, run int, w http.ResponseWriter, _ *http.Request) bool {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return failed(w, err)
		}
		body := fmt.Sprint("hijacked by run ", run)
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		conn.Close()
		return false
	}},
	{"500 at first", func(_ *program, run int, w http.ResponseWriter, _ *http.Request) bool {
		return run > 1 || failed(w, errors.New("at first"))
	}},
	{"307 at first", func(_ *program, run int, w http.ResponseWriter, r *http.Request) bool {
		if run == 1 {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}
		return run > 1
	}},
	{"panic at first", func(_ *program, run int, _ http.ResponseWriter, _ *http.Request) bool {
		if run == 1 {
			panic(http.ErrAbortHandler)
		}
		return true
	}},
	{"Goexit at first", func(_ *program, run int, _ http.ResponseWriter, _ *http.Request) bool {
		if run == 1 {
			runtime.Goexit()
		}
		return true
	}},
	{"Fail at first", func(_ *program, run int, _ http.ResponseWriter, r *http.Request) bool {
		if run == 1 {
			_ = sqlreq.Fail(r.Context(), errors.New("at first"))
		}
		return true
	}},
	{"COMMIT refused at first", func(_ *program, run int, _ http.ResponseWriter, r *http.Request) bool {
		if run == 1 {
			_, _ = main.ExecContext(r.Context(), sqlreqtest.BreakCommit)
		}
		return true
	}},
	{"conflict at first", func(_ *program, run int, w http.ResponseWriter, r *http.Request) bool {
		if run == 1 {
			_ = sqlreq.Fail(r.Context(), sqlreqtest.Conflict{})
		}
		return true
	}},
}

// compressed compresses what is written.
func compressed(next http.Handler) http.Handler {
	return handle(func(w http.ResponseWriter, r *http.Request) {
		z := gzip.NewWriter(w)
		next.ServeHTTP(zipped{w, z}, r)
		z.Close()
	})
}

type zipped struct {
	http.ResponseWriter
	z *gzip.Writer
}

func (z zipped) Write(p []byte) (int, error) { return z.z.Write(p) }

// layers stand outside of Handler, inside of Middleware; some of them inside of Handler.
var layers = map[string]func(p *program, next http.Handler) http.Handler{
	"nothing":        func(_ *program, next http.Handler) http.Handler { return next },
	"TimeoutHandler": func(_ *program, next http.Handler) http.Handler { return http.TimeoutHandler(next, time.Second, "") },
	"a recoverer":    func(_ *program, next http.Handler) http.Handler { return swallow(next) },
	"compression":    func(_ *program, next http.Handler) http.Handler { return compressed(next) },
	"a query": func(_ *program, next http.Handler) http.Handler {
		return handle(func(w http.ResponseWriter, r *http.Request) {
			var n int
			_ = main.QueryRowContext(r.Context(), "SELECT count(*) FROM work").Scan(&n)
			next.ServeHTTP(w, r)
		})
	},
	"a Savepoint": func(_ *program, next http.Handler) http.Handler {
		return handle(func(w http.ResponseWriter, r *http.Request) {
			err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error { next.ServeHTTP(w, r.WithContext(ctx)); return nil })
			_ = sqlreq.Fail(r.Context(), err)
		})
	},
	"Atomic": func(p *program, next http.Handler) http.Handler {
		return handle(func(w http.ResponseWriter, r *http.Request) {
			err := p.reg.Atomic(r.Context(), func(ctx context.Context) error { next.ServeHTTP(w, r.WithContext(ctx)); return nil })
			_ = sqlreq.Fail(r.Context(), err)
		})
	},
	"a nested application": func(p *program, next http.Handler) http.Handler { return p.reg.Middleware(next) },
	"a goroutine": func(_ *program, next http.Handler) http.Handler {
		return handle(func(w http.ResponseWriter, r *http.Request) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer func() { _ = recover() }()
				next.ServeHTTP(w, r)
			}()
			<-done
		})
	},
}

// TestI1RandomPrograms runs random handlers under random layers with one call of the
// driver broken, from several clients at once. Whatever they are: the rows of at most one
// run stay, all answers of the key are the same, and there are no rows without a record.
func TestI1RandomPrograms(t *testing.T) {
	for seed := range *randomPrograms {
		rnd := rand.New(rand.NewPCG(uint64(seed), 13))
		ok := t.Run(fmt.Sprint(seed), func(t *testing.T) { runProgram(t, rnd) })
		if !ok {
			return
		}
	}
}

func pick[V any](rnd *rand.Rand, m map[string]V) (name string, v V) {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	// In a fixed order, so that a seed says what runs.
	for i := range names {
		for j := i + 1; j < len(names); j++ {
			if names[j] < names[i] {
				names[i], names[j] = names[j], names[i]
			}
		}
	}
	name = names[rnd.IntN(len(names))]
	return name, m[name]
}

func runProgram(t *testing.T, rnd *rand.Rand) {
	var d fakedb.DB
	db := withTable(t, sqlreqtest.OpenFaulty(t, &d))
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, Guard: rnd.IntN(4) == 0})
	reg.Retry = sqlreqtest.Retries(1 + rnd.IntN(3))
	once := newOnce()
	once.Limit = 1000 << rnd.IntN(12)
	p := &program{t: t, once: once, reg: reg}
	var names []string
	for range 1 + rnd.IntN(6) {
		s := allSteps[rnd.IntN(len(allSteps))]
		p.steps = append(p.steps, s)
		names = append(names, s.name)
	}
	inside, in := pick(rnd, layers)
	outside, out := pick(rnd, layers)
	b := &breaker{n: rnd.IntN(14), after: rnd.IntN(2) == 0, err: io.ErrUnexpectedEOF}
	if rnd.IntN(3) == 0 {
		b.err = sqlreqtest.Conflict{}
	}
	stop := b.attach(&d)
	srv := sqlreqtest.Serve(t, reg.Middleware(out(p, once.Handler(in(p, p)))))
	body := strings.Repeat("x", rnd.IntN(3)*50_000)

	var mu sync.Mutex
	answers := make(map[string]int)
	var wg sync.WaitGroup
	for range 1 + rnd.IntN(3) {
		wg.Go(func() {
			for range 6 {
				got, err := try(srv.URL, "k", body)
				if err != nil || got.status >= 400 || got.status == 307 {
					continue
				}
				mu.Lock()
				answers[fmt.Sprint(got.status, got.header["X-Run"], got.header["Content-Type"], got.trailer, got.body)]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	stop()
	what := fmt.Sprintf("%q, outside %s, inside %s, attempts %d, broken %q after %v", names, outside, inside, reg.Retry.Attempts, b.broken, b.after)
	// Where an explicit Rollback leaves nothing to commit there is no record, and each
	// request is a first one.
	if len(answers) > 1 && !slices.Contains(names, "Rollback") {
		for a := range answers {
			what += fmt.Sprintf("\n  %.200q", a)
		}
		t.Errorf("%d answers: %s", len(answers), what)
	}
	var runs, records int
	must(t, db.QueryRow("SELECT count(DISTINCT note) FROM work").Scan(&runs))
	must(t, db.QueryRow("SELECT count(*) FROM idempotency_keys WHERE kind = 0").Scan(&records))
	if runs > 1 || records > 1 || runs > records {
		t.Errorf("the rows of %d runs, %d records: %s", runs, records, what)
	}
	// What TimeoutHandler has left waiting may be about to begin, and is given up.
	sqlreqtest.Until(func() bool { return db.Stats().InUse == 0 })
	if sqlreqtest.Idle(t, db); t.Failed() {
		t.Log(what)
	}
}
