package benchmarks

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"
)

// promises are what a handler keeps that does one INSERT by hand. Each of them has its price, whoever keeps it: what
// sqlreq takes beyond all of them is its own.
type promises struct {
	life   bool // the wait for BEGIN ends with the request's context, the life of the transaction does not
	held   bool // no byte leaves before COMMIT has succeeded, whoever writes
	found  bool // code that has the request's context finds the transaction in it
	shared bool // the first use begins, from any goroutine, and what errors say of the transaction is kept
	ended  bool // a panic or Goexit rolls back; what goroutines do after the end is refused; hooks run once it is known
}

// steps are the rungs of the budget: each keeps what the one before keeps, and one promise more.
var steps = []struct {
	name string
	promises
}{
	{"hand", promises{}},
	{"life", promises{life: true}},
	{"held", promises{life: true, held: true}},
	{"found", promises{life: true, held: true, found: true}},
	{"shared", promises{life: true, held: true, found: true, shared: true}},
	{"ended", promises{life: true, held: true, found: true, shared: true, ended: true}},
}

// program is one of those that are compared in turns.
type program struct {
	name    string
	handler http.Handler
}

// budget compares programs in turns, in one process: the first is the measure of the others.
func budget() []Benchmark {
	var all []Benchmark
	for _, w := range []struct {
		j        work
		open     func(testing.TB) *site
		programs func(*site, work) []program
	}{
		{nothing(), openSQLite, idle},
		{inserts(1), openSQLite, ladder},
		{durable(), openDurable, ladder},
		{rows(), openSQLite, ladder},
		{read(), openSQLite, ladder},
		{retried(), openSQLite, withRetry},
	} {
		all = append(all, Benchmark{"Budget", "sqlite", w.j.name, "sqlreq", func(b *testing.B) {
			s := w.open(b)
			takeSteps(b, s, w.j, w.programs(s, w.j))
		}})
	}
	return all
}

// alone is each program of the INSERT by itself, for profiles and counts: nothing is compared.
func alone() []Benchmark {
	j := inserts(1)
	var all []Benchmark
	for _, step := range BudgetSteps(j.name) {
		all = append(all, Benchmark{"Program", "sqlite", j.name, step.Name, func(b *testing.B) {
			s := openSQLite(b)
			t := newTurn(b, s, j)
			t.fresh = true
			for _, p := range ladder(s, j) {
				if p.name != step.Name {
					continue
				}
				t.start(b)
				for b.Loop() {
					t.take(p.handler, 1)
				}
			}
			t.check(b)
		}})
	}
	return all
}

// ladder is each step, and sqlreq.
func ladder(s *site, j work) []program {
	var all []program
	for _, step := range steps {
		all = append(all, program{step.name, step.handler(s, j)})
	}
	return append(all, program{"sqlreq", named("sqlreq")[0].handler(s, j)})
}

// idle compares a request without a use for the database with the bare handler, and with one that is given a copy of
// the request in an allocation of 512 bytes, as much as sqlreq makes.
func idle(s *site, j work) []program {
	bare := byHand(s, j)
	copied := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := new(copyOfRequest)
		c.req = *r.WithContext(r.Context())
		bare.ServeHTTP(w, &c.req)
	})
	return []program{{"copied", copied}, {"hand", bare}, {"sqlreq", named("sqlreq")[0].handler(s, j)}}
}

type copyOfRequest struct {
	req http.Request
	_   [512 - unsafe.Sizeof(http.Request{}) - unsafe.Sizeof(uintptr(0))]byte
	_   *int
}

// retried is one INSERT that may be run again, and meets no conflict.
func retried() work {
	j := inserts(1)
	j.name, j.attempts = "retried", 3
	return j
}

func withRetry(s *site, j work) []program {
	once := j
	once.attempts = 0
	c := named("sqlreq")[0]
	without := c.handler(s, once)
	apart := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		without.ServeHTTP(&ownHeader{ResponseWriter: w, header: w.Header().Clone()}, r.Clone(r.Context()))
	})
	return []program{{"without", without}, {"apart", apart}, {"sqlreq", c.handler(s, j)}}
}

// ownHeader is a response whose header is that of an attempt: it is the client's when the status is known.
type ownHeader struct {
	http.ResponseWriter
	header http.Header
	known  bool
}

func (w *ownHeader) Header() http.Header { return w.header }

func (w *ownHeader) WriteHeader(status int) {
	w.take()
	w.ResponseWriter.WriteHeader(status)
}

func (w *ownHeader) Write(p []byte) (int, error) {
	w.take()
	return w.ResponseWriter.Write(p)
}

func (w *ownHeader) take() {
	if !w.known {
		w.known = true
		maps.Copy(w.ResponseWriter.Header(), w.header)
	}
}

// liveHeap is what a service has on its heap while it answers: with a few KiB the garbage collector would run
// thousands of times a second, and be all that is measured.
const liveHeap = 64 << 20

func takeSteps(b *testing.B, s *site, j work, programs []program) {
	live := make([]byte, liveHeap)
	t := newTurn(b, s, j)
	t.fresh = j.use != nil
	for _, p := range programs {
		verify(b, s, j, p.handler, "/")
	}
	t.start(b)
	n := 1
	for t.step(programs[len(programs)-1].handler, n) < turn {
		n *= 2
	}
	times := make([][]float64, len(programs))
	random := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		for _, k := range random.Perm(len(programs)) { // none comes always after the same one, which leaves its garbage
			times[k] = append(times[k], float64(t.step(programs[k].handler, n))/float64(n))
		}
	}
	for k, p := range programs {
		bytes, allocs := t.allocated(p.handler)
		q := slices.Sorted(slices.Values(quotients(times[k], times[0])))
		b.ReportMetric(bytes, p.name+"-B")
		b.ReportMetric(allocs, p.name+"-allocs")
		b.ReportMetric(middle(times[k]), p.name+"-ns")
		b.ReportMetric(middle(q), p.name+"-ratio")
		b.ReportMetric(q[len(q)/4], p.name+"-low")
		b.ReportMetric(q[len(q)*3/4], p.name+"-high")
	}
	t.check(b)
	runtime.KeepAlive(live)
}

// step makes n requests, and returns how long that took: with the caches of the processor as they are while a program
// runs, which the first requests after another program do not find, and with the checkpoint that the requests take.
// SQLite makes one by itself after 1,000 pages, which takes as long as 200 requests: some turns would have it, by chance.
func (t *taker) step(h http.Handler, n int) time.Duration {
	t.take(h, 4)
	took := t.take(h, n)
	if t.j.rows == 0 {
		return took
	}
	start := time.Now()
	if _, err := t.s.db.Exec("PRAGMA wal_checkpoint(PASSIVE)"); err != nil {
		t.bad++
	}
	return took + time.Since(start)
}

// handler does the work by hand, and keeps the promises.
func (p promises) handler(s *site, j work) http.Handler {
	switch {
	case p.found:
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { serveHandmade(p, s, j, w, r) })
	case p.held:
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a := &answer{w: w}
			if err := p.once(r.Context(), s, j, a); err != nil {
				failed(w)
				return
			}
			a.release()
		})
	case p.life:
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := p.once(r.Context(), s, j, w); err != nil {
				failed(w)
			}
		})
	}
	return byHand(s, j)
}

func failed(w http.ResponseWriter) {
	http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
}

// once is a transaction with a life of its own. What is held may be written before COMMIT.
func (p promises) once(ctx context.Context, s *site, j work, w http.ResponseWriter) error {
	tx, _, err := beginOwn(ctx, s.db, j.tx)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := j.use(ctx, tx, w); err != nil {
		return err
	}
	if p.held {
		j.reply(w)
		return tx.Commit()
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	j.reply(w)
	return nil
}

// beginOwn begins a transaction: the wait for it ends with ctx, its life does not.
func beginOwn(ctx context.Context, db *sql.DB, opts *sql.TxOptions) (*sql.Tx, context.CancelFunc, error) {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	tx, err := db.BeginTx(own, opts)
	if !stop() || err != nil {
		cancel()
		return nil, nil, errors.Join(err, ctx.Err())
	}
	return tx, cancel, nil
}

// answer is held until release.
type answer struct {
	w http.ResponseWriter

	writing sync.Mutex // guards what follows
	status  int
	body    *[]byte
}

// handmade is a request, its transaction and its answer.
type handmade struct {
	context.Context // of the caller; the request's own is this
	promises
	req  http.Request
	db   *sql.DB
	opts *sql.TxOptions
	answer

	mu      sync.Mutex // guards what follows
	state   int
	tx      *sql.Tx
	cancel  context.CancelFunc // for a rollback that is not answered
	failed  error
	hooks   []func()
	running atomic.Int32
}

const (
	unused = iota
	begun
	over
)

type handmadeKey struct{}

func (h *handmade) Value(key any) any {
	if key == (handmadeKey{}) {
		return h
	}
	return h.Context.Value(key)
}

func serveHandmade(p promises, s *site, j work, w http.ResponseWriter, r *http.Request) {
	h := &handmade{Context: r.Context(), promises: p, db: s.db, opts: j.tx, answer: answer{w: w}}
	h.req = *r.WithContext(h)
	if p.ended {
		defer h.close()
	}
	if err := h.serve(h.req.Context(), j, h); err != nil {
		failed(w)
		return
	}
	h.release()
}

func (h *handmade) serve(ctx context.Context, j work, w http.ResponseWriter) error {
	found := ctx.Value(handmadeKey{}).(*handmade)
	var conn dbtx = found
	if !h.shared {
		if err := found.begin(ctx); err != nil {
			return err
		}
		defer found.tx.Rollback()
		conn = found.tx
	}
	if err := j.use(ctx, conn, w); err != nil {
		return err
	}
	j.reply(w)
	if !h.shared {
		return h.tx.Commit()
	}
	return h.commit()
}

func (h *handmade) begin(ctx context.Context) (err error) {
	h.tx, h.cancel, err = beginOwn(ctx, h.db, h.opts)
	return err
}

func (h *handmade) commit() error {
	h.mu.Lock()
	failed, tx := h.failed, h.tx
	h.state, h.tx = over, nil
	h.mu.Unlock()
	switch {
	case failed != nil:
		_ = tx.Rollback()
		return failed
	case h.ended && h.Context.Err() != nil:
		_ = tx.Rollback()
		return h.Context.Err()
	}
	err := tx.Commit()
	h.mu.Lock()
	hooks := h.hooks
	h.hooks = nil
	h.mu.Unlock()
	for _, hook := range hooks {
		hook()
	}
	return err
}

// close rolls back what a panic has left open.
func (h *handmade) close() {
	h.mu.Lock()
	tx := h.tx
	h.state, h.tx = over, nil
	h.mu.Unlock()
	if tx != nil {
		_ = tx.Rollback()
	}
}

// use returns the transaction, begun if there is none.
func (h *handmade) use(ctx context.Context) (*sql.Tx, error) {
	h.mu.Lock()
	defer h.mu.Unlock() // a mutex that is held while a database is waited for: sqlreq has a lock there that a context can end
	switch h.state {
	case over:
		return nil, errors.New("the request is finished")
	case unused:
		if err := h.begin(ctx); err != nil {
			return nil, err
		}
		h.state = begun
	}
	h.running.Add(1)
	return h.tx, nil
}

func (h *handmade) note(err error) {
	h.running.Add(-1)
	if err != nil {
		h.mu.Lock()
		h.failed = err
		h.mu.Unlock()
	}
}

func (h *handmade) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	tx, err := h.use(ctx)
	if err != nil {
		return nil, err
	}
	result, err := tx.ExecContext(ctx, query, args...)
	h.note(err)
	return result, err
}

func (h *handmade) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	tx, err := h.use(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := tx.QueryContext(ctx, query, args...)
	h.note(err)
	return rows, err
}

var buffers = sync.Pool{New: func() any { return new([]byte) }}

func (a *answer) Header() http.Header { return a.w.Header() }

func (a *answer) WriteHeader(status int) {
	a.writing.Lock()
	defer a.writing.Unlock()
	if a.status == 0 {
		a.status = status
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.writing.Lock()
	defer a.writing.Unlock()
	if a.status == 0 {
		a.status = http.StatusOK
	}
	if a.body == nil {
		a.body = buffers.Get().(*[]byte)
	}
	*a.body = append(*a.body, p...)
	return len(p), nil
}

func (a *answer) release() {
	a.writing.Lock()
	body := a.body
	a.body = nil
	a.writing.Unlock()
	if body == nil {
		return
	}
	_, _ = a.w.Write(*body)
	*body = (*body)[:0]
	buffers.Put(body)
}

// Step is a program of the budget, in words.
type Step struct{ Name, Title string }

// BudgetSteps are the programs of a work of the budget, for the report.
func BudgetSteps(work string) []Step {
	switch work {
	case "nothing":
		return []Step{
			{"copied", "the bare handler, an allocation of 512 bytes, and a copy of the request in it"},
			{"hand", "the bare handler"},
			{"sqlreq", "sqlreq"},
		}
	case "retried":
		return []Step{
			{"without", "without Retry"},
			{"apart", "the same, and each attempt gets a clone of the request and a header of its own"},
			{"sqlreq", "with Retry"},
		}
	}
	return []Step{
		{"hand", "by hand, with `BeginTx(r.Context())`"},
		{"life", "and the wait for BEGIN ends with the request, the life of the transaction does not"},
		{"held", "and no byte leaves before COMMIT has succeeded"},
		{"found", "and code finds the transaction in the request's context"},
		{"shared", "and the first use begins, from any goroutine; errors are kept"},
		{"ended", "and a panic rolls back, a late use is refused, hooks run"},
		{"sqlreq", "sqlreq, with all that it promises besides"},
	}
}
