package sqlreq

import (
	"bufio"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sqlreq/sqlreq/internal/held"
	"github.com/sqlreq/sqlreq/internal/replay"
	"github.com/sqlreq/sqlreq/internal/sqlerr"
	"github.com/sqlreq/sqlreq/internal/turn"
)

// Registry holds the databases of an application by key, and what happens to
// the requests that use them. Get one from [New]. Its fields are set before the
// first use, like those of [http.Server]; after that it may be used from several
// goroutines at once.
type Registry struct {
	// CommitIf decides by the response whether the request commits; nil means a
	// status below 400. It is asked once, at the end, when nothing has failed. Of
	// nested registries with a CommitIf each one may veto.
	CommitIf func(status int, header http.Header) bool

	// ErrorHandler answers a request that failed before a byte of its response had
	// left, unless the handler had answered it with 400 or more. It finds none of
	// the handler's headers; a Write without WriteHeader has the status of
	// StatusCode(err), and if it writes nothing the default answer is given, which
	// is the status text of StatusCode(err). It may be called while other requests'
	// are running. The transactions are over: they return ErrFinished.
	ErrorHandler func(w http.ResponseWriter, r *http.Request, err error)

	// HoldLimit is the size in bytes up to which a response is held until COMMIT
	// has succeeded; 0 means 64 KiB. A larger one streams.
	HoldLimit int

	// Retry says which requests are run again after a conflict; by default none.
	Retry Retry

	// Observe is called for every transaction that was begun, when it has ended,
	// with the context of the request or the Do, in its goroutine.
	Observe func(context.Context, Event)

	// Logger gets the failures from 500 up and those of streaming responses; nil
	// means slog.Default().
	Logger *slog.Logger

	bindings map[Key]*binding
	main     *binding // of DefaultKey; nil if it is not bound
}

// Retry says when and how often a request, or a [Registry.Do], is run again
// because of a serialization conflict, a deadlock or a busy database. Everything
// that the handler does outside of the database is repeated. A request is not run
// again when a byte of the response has left (1xx responses aside), the connection was
// hijacked, anything was committed (by Commit, by one of several databases, by a
// Do under the request), an AfterCommit function has run, the body outgrew
// BodyLimit, the outcome of a COMMIT is unknown, or Within is over.
type Retry struct {
	Attempts  int                             // in all; 0 and 1: no retry
	BodyLimit int64                           // bytes of a body kept for the replay; 0: 64 KiB
	Within    time.Duration                   // no attempt begins later than this after the first; 0: 10 s
	Backoff   func(attempt int) time.Duration // after the given failed attempt, from 1; nil: exponential with full jitter, 5 ms to 500 ms
	When      func(*http.Request) bool        // nil: every request; false for routes with effects outside the database
	Retryable func(error) bool                // nil: IsRetryable
}

// Event tells what became of a transaction.
type Event struct {
	Key     Key           // that began it
	Outcome Outcome       // how it ended
	Err     error         // why it failed; nil if it ended as asked
	Attempt int           // at the request, from 1
	Wait    time.Duration // for a connection and BEGIN
	Open    time.Duration // from then to its end
	End     time.Duration // COMMIT or ROLLBACK
}

// Outcome is how a transaction ended.
type Outcome int

const (
	// Committed: COMMIT succeeded; or the transaction was read-only and ended well.
	Committed Outcome = iota + 1
	// RolledBack: ROLLBACK was sent, because it was asked for or something failed.
	RolledBack
	// CommitFailed: COMMIT was sent and returned an error, a [*CommitError].
	CommitFailed
	// Ended: the transaction was ended through *sql.Tx, nobody knows how.
	Ended
)

// String returns the name of the constant.
func (o Outcome) String() string {
	switch o {
	case Committed:
		return "Committed"
	case RolledBack:
		return "RolledBack"
	case CommitFailed:
		return "CommitFailed"
	case Ended:
		return "Ended"
	}
	return fmt.Sprintf("Outcome(%d)", int(o))
}

var (
	// ErrNoRegistry: the context is not that of a request in a registry.
	ErrNoRegistry error = errors.New("sqlreq: no registry in this context; wrap the handler in Registry.Middleware or Registry.With, or use Registry.Do")
	// ErrUnknownKey: the key is not bound, or not opened for this handler.
	ErrUnknownKey error = errors.New("sqlreq: unknown key")
	// ErrDuplicateKey: two bindings of a registry have the same key.
	ErrDuplicateKey error = errors.New("sqlreq: duplicate key")
	// ErrBegun: a transaction is open already, so its options cannot be chosen any more.
	ErrBegun error = errors.New("sqlreq: the transaction has begun")
	// ErrFinished: the request, or the Do, is over, or this is one of its hooks.
	ErrFinished error = errors.New("sqlreq: the request is finished; for later work use Registry.Do(context.WithoutCancel(ctx), ...)")
	// ErrTxEnded: the transaction was committed or rolled back through *sql.Tx.
	ErrTxEnded error = errors.New("sqlreq: the transaction was ended through *sql.Tx; delete the defer tx.Rollback() or tx.Commit(), and use sqlreq.Commit or sqlreq.Rollback to end it early")
)

// because returns an error with a text of its own that is also one of the above.
func because(is error, format string, args ...any) error {
	return &reason{fmt.Sprintf(format, args...), is}
}

type reason struct {
	text string
	is   error
}

func (r *reason) Error() string { return r.text }
func (r *reason) Unwrap() error { return r.is }

func endedError(k Key) error {
	return because(ErrTxEnded, "sqlreq: key %q: %s", k, strings.TrimPrefix(ErrTxEnded.Error(), "sqlreq: "))
}

// CommitError is a COMMIT that did not succeed.
type CommitError struct {
	Key       Key   // that began the transaction
	Committed []Key // of several databases, those already committed: there is no two-phase commit
	Ambiguous bool  // the server's answer is not known: the work may be there
	Err       error
}

// Error names the key, what is committed, and whether the outcome is known.
func (e *CommitError) Error() string {
	if e == nil {
		return "<nil>"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "sqlreq: commit on key %q failed", e.Key)
	if e.Ambiguous {
		b.WriteString(" with unknown outcome")
	}
	if len(e.Committed) > 0 {
		fmt.Fprintf(&b, " (committed before: %s)", list(slices.Clone(e.Committed)))
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	return b.String()
}

// Unwrap returns the driver's error.
func (e *CommitError) Unwrap() error {
	if e == nil {
		return nil
	}
	return e.Err
}

// IsRetryable reports whether err, or an error in its chain, is a serialization
// conflict, a deadlock or a busy database in the shape of one of the common
// drivers: SQLSTATE 40001 and 40P01 (pgx, lib/pq), SQLITE_BUSY and SQLITE_LOCKED
// (modernc, mattn), MySQL 1213, 1205 and 1020 (go-sql-driver).
func IsRetryable(err error) bool { return sqlerr.Retryable(err) }

// Middleware returns next with a transaction for each request, for every key
// that is not OnDemand. It may be called under another registry's, or its own.
func (reg *Registry) Middleware(next http.Handler) http.Handler {
	if next == nil {
		panic("sqlreq: Middleware(nil); give it the handler to wrap")
	}
	return &middleware{door{reg: reg}, next}
}

// With is Middleware for the given keys only, OnDemand or not, as a decorator of
// single handlers. It works with Middleware outside or alone, and panics on a key that
// is not bound.
func (reg *Registry) With(keys ...Key) func(http.Handler) http.Handler {
	d := reg.with(keys)
	return func(next http.Handler) http.Handler {
		if next == nil {
			panic(fmt.Sprintf("sqlreq: With(%s)(nil); give it the handler to wrap", list(slices.Clone(keys))))
		}
		return &middleware{d, next}
	}
}

type middleware struct {
	door door
	next http.Handler
}

func (m *middleware) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	outer := scopeOf(r.Context())
	if outer != nil && outer.work.exchange != nil && !outer.over() {
		m.nested(outer, w, r)
		return
	}
	if retry := &m.door.reg.Retry; retry.Attempts > 1 && (retry.When == nil || retry.When(r)) {
		m.serveAttempts(outer, w, r)
		return
	}
	x := new(struct {
		req http.Request // the first: runtime.SetFinalizer takes no other pointer
		exchange
	})
	x.init(&m.door, outer, w, r, 1)
	x.req = *r.WithContext(&x.work.root) // which is inlined: its own copy stays on the stack
	x.work.root.req = &x.req
	x.serve(m.next, w, r, nil)
}

// serveAttempts serves a request that may be run again. r stays as it arrived.
func (m *middleware) serveAttempts(outer *scope, w http.ResponseWriter, r *http.Request) {
	t := &tries{retry: &m.door.reg.Retry, start: time.Now()}
	if r.Body != nil && r.Body != http.NoBody {
		limit := t.retry.BodyLimit
		if limit <= 0 {
			limit = 64 << 10
		}
		t.body = replay.New(r.Body, limit)
		t.view = t.body.View()
		defer t.body.Stop()
	}
	for t.n = 1; ; t.n++ {
		x := new(exchange)
		x.init(&m.door, outer, w, r, t.n)
		x.OwnHeader()
		req := r.Clone(&x.work.root)
		req.Trailer = r.Trailer // net/http adds to the map when the body has been read
		if t.body != nil {
			req.Body = t.view
		}
		x.work.root.req = req
		if again := x.serve(m.next, w, r, t); !again {
			return
		}
	}
}

// exchange is an attempt at a request: the response, the context and the unit of
// work in one piece, and with the copy of the request in one of 512 bytes, so that
// a request that asks for nothing pays for one allocation of the largest size for
// which Go keeps the pointers in a bitmap. The handler keeps pointers into it: it is
// never used again.
type exchange struct {
	held.Writer
	work work
}

func (x *exchange) init(d *door, outer *scope, w http.ResponseWriter, r *http.Request, attempt int) {
	limit := d.reg.HoldLimit
	if limit <= 0 {
		limit = 64 << 10
	}
	x.Init(w, r, limit)
	x.work.exchange = x
	x.work.init(r.Context(), d, outer, attempt)
}

func (w *work) init(ctx context.Context, d *door, outer *scope, attempt int) {
	s := &w.root
	s.Context, s.outer, s.door, s.work = ctx, outer, d, w
	w.attempt = int32(attempt)
}

// serve runs the handler, ends the unit of work and answers. It returns true if
// nothing was answered and the request is to be run again.
func (x *exchange) serve(next http.Handler, w http.ResponseWriter, r *http.Request, t *tries) (again bool) {
	over := false
	defer func() {
		if !again { // the next attempt gets the request as it arrived
			copyBack(r, x.work.root.req)
		}
		if !over {
			x.unwind()
		}
	}()
	next.ServeHTTP(x, x.work.root.req)
	again, abort := x.finish(w, r, t)
	over = true
	if abort {
		panic(http.ErrAbortHandler)
	}
	return again
}

// copyBack gives the caller's request what the handler's copy has learned.
func copyBack(r, inner *http.Request) {
	if r == inner {
		return
	}
	if inner.Pattern != "" {
		r.Pattern = inner.Pattern
	}
	if r.MultipartForm == nil {
		r.MultipartForm = inner.MultipartForm
	}
}

// unwind ends the attempt when the handler, or a function of the program called
// at the end, panics or exits the goroutine. There is no recover: the panic goes
// on with its value and stack.
func (x *exchange) unwind() {
	state := x.HandlerDone()
	_ = x.work.end(false)
	switch {
	case state.Hijacked:
	case state.Held:
		x.Reset()
	default:
		x.Abort() // a middleware outside may recover, and net/http complete the response
	}
	x.Close()
}

// finish ends the attempt when the handler has returned.
func (x *exchange) finish(rw http.ResponseWriter, r *http.Request, t *tries) (again, abort bool) {
	w := &x.work
	state := x.HandlerDone()
	err := w.endAs(state.Status, x.SentHeader)
	if t != nil && state.Held && t.again(w, state.Status, err) {
		x.Reset() // and no Close: what this attempt has left running must not write to the next one's response
		if f := x.work.root.req.MultipartForm; f != nil && r.MultipartForm == nil {
			_ = f.RemoveAll()
			x.work.root.req.MultipartForm = nil
		}
		return true, false
	}
	if err != nil {
		err = w.mark(err, t != nil || x.work.root.door.reg.Retry.Attempts <= 1)
	}
	switch {
	case err == nil:
		x.Release()
	case state.Hijacked, state.Status >= 400 && !w.commitFailed:
		if StatusCode(err) >= 500 {
			logFailure(w.failedAt().req, w.failedAt().door.reg.logger(), int(w.attempt), err)
		}
		x.Release() // the handler's answer stands
	case state.Held:
		x.Reset()
		x.answer(rw, r, err)
		x.Close()
	default:
		logFailure(w.failedAt().req, w.failedAt().door.reg.logger(), int(w.attempt), err)
		x.Abort()
		x.Close()
		abort = true
	}
	return false, abort
}

// answer lets the ErrorHandler answer, by a writer that makes sure that silence
// is no success.
func (x *exchange) answer(rw http.ResponseWriter, r *http.Request, err error) {
	s := x.work.failedAt()
	reg := s.door.reg
	w := new(exchange) // of which only the writer is used
	w.init(s.door, x.work.root.outer, rw, r, 1)
	w.work.finished = true
	w.DefaultStatus(StatusCode(err))
	answered := false
	defer func() {
		if !answered {
			w.unwind()
		}
	}()
	if reg.ErrorHandler != nil {
		reg.ErrorHandler(w, s.req, err)
	}
	if w.Untouched() {
		answer(w, s.req, reg.logger(), int(x.work.attempt), err)
	}
	answered = true
	w.HandlerDone()
	w.Release()
}

// Hijack commits what is open and takes the connection over. It fails, and
// leaves the connection alone, if that is impossible or the commit fails.
func (x *exchange) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return x.HijackAfter(func(status int) error {
		return x.work.endOpen(status < 400)
	})
}

func (reg *Registry) logger() *slog.Logger {
	if reg.Logger != nil {
		return reg.Logger
	}
	return slog.Default()
}

// logFailure logs the error of a request. A client that has gone is nobody's
// fault, a COMMIT that failed is somebody's all the same.
func logFailure(r *http.Request, logger *slog.Logger, attempt int, err error) {
	ctx, level := r.Context(), slog.LevelError
	client := ctx
	if s := scopeOf(ctx); s != nil {
		client = s.work.root.Context // a middleware in between may have cancelled its own
	}
	if c := (*CommitError)(nil); errors.Is(client.Err(), context.Canceled) && !errors.As(err, &c) {
		level = slog.LevelDebug
	}
	logger.LogAttrs(context.WithoutCancel(ctx), level, "sqlreq: request failed",
		slog.String("method", r.Method), slog.String("path", r.URL.Path),
		slog.String("key", string(keyOf(ctx, err))), slog.Int("attempt", attempt), slog.Any("err", err))
}

// keyOf returns the key that err is about, or else the first one used.
func keyOf(ctx context.Context, err error) Key {
	var c *CommitError
	var b *beginError
	switch {
	case errors.As(err, &c):
		return c.Key
	case errors.As(err, &b):
		return b.key
	}
	if s := scopeOf(ctx); s != nil {
		return s.work.firstKey()
	}
	return ""
}

// work is a unit of work: an attempt at a request, or at a Do. It ends once.
type work struct {
	root     scope     // the outermost; its Context is the caller's
	exchange *exchange // nil in Do

	mu           sync.Mutex // guards what follows, and the ledger; never held while anybody is waited for
	attempt      int32
	begun        int32 // transactions so far
	finished     bool
	commitFailed bool // a COMMIT was tried, and failed
	committed    bool // something is committed, or may be, or an AfterCommit function ran: no retry
	met          bool // a statement, or a begin, met a conflict
	waited       bool // for a transaction, in vain

	failed *failure // the first; nil if nothing has failed
	ledger *ledger  // of a unit that asked for something
}

// failure is why a unit of work fails.
type failure struct {
	err error
	at  *scope // whose registry answers and logs it
}

// outer returns the unit that a Do, or a request, is inside of, nil if there is none.
func (w *work) outer() *work {
	if s := w.root.outer; s != nil {
		return s.work
	}
	return nil
}

// ledger is what a unit of work has used. Most use one key of one pool: the first
// of each is part of it, the others follow.
type ledger struct {
	use    use
	pool   pool
	hooks  []hook
	vetoes *veto
}

// veto is a nested registry whose CommitIf is asked. The last one entered comes first.
type veto struct {
	reg  *Registry
	next *veto
}

func (w *work) book() *ledger {
	if w.ledger == nil {
		w.ledger = new(ledger)
	}
	return w.ledger
}

// firstPool returns the first of the pools that the unit has used, nil if there
// is none. The caller holds the lock, or lets nobody add one.
func (w *work) firstPool() *pool {
	if w.ledger == nil || w.ledger.pool.work == nil {
		return nil
	}
	return &w.ledger.pool
}

// over reports whether the transactions of s are no longer to be used.
func (s *scope) over() bool {
	s.work.mu.Lock()
	defer s.work.mu.Unlock()
	return s.door.closed || s.work.finished
}

// enter notes that a nested registry takes part.
func (w *work) enter(reg *Registry) {
	if reg.CommitIf == nil || reg == w.root.door.reg {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.book()
	for v := l.vetoes; v != nil; v = v.next {
		if v.reg == reg {
			return
		}
	}
	l.vetoes = &veto{reg, l.vetoes}
}

// commitsLocked asks every CommitIf, if nothing has failed; if there is none, the
// status decides. The caller holds the lock, which is given up while they are
// asked, and for good if one of them panics.
func (w *work) commitsLocked(status int, header func() http.Header) bool {
	root, vetoes := w.root.door.reg, (*veto)(nil)
	if w.ledger != nil {
		vetoes = w.ledger.vetoes
	}
	switch {
	case w.failed != nil:
		return false
	case root.CommitIf == nil && vetoes == nil:
		return status < 400
	}
	regs := []*Registry{root}
	for v := vetoes; v != nil; v = v.next {
		regs = slices.Insert(regs, 1, v.reg) // in the order in which they were entered
	}
	w.mu.Unlock()
	commit := true
	for _, reg := range regs {
		commit = commit && (reg.CommitIf == nil || reg.CommitIf(status, header()))
	}
	w.mu.Lock()
	return commit
}

// Fail makes the request fail with err, as if its handler had returned it: for
// handlers that cannot. The handler goes on. The first error counts; nil does
// nothing. Errors are [ErrNoRegistry] and [ErrFinished]. In a Do it makes that fail.
func Fail(ctx context.Context, err error) error {
	s := scopeOf(ctx)
	if s == nil {
		return ErrNoRegistry
	}
	return s.fail(err)
}

func (s *scope) fail(err error) error {
	w := s.work
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.door.closed || w.finished {
		return ErrFinished
	}
	w.failLocked(s, err)
	return nil
}

func (w *work) failLocked(s *scope, err error) {
	if w.failed == nil && err != nil {
		w.failed = &failure{err, s}
	}
}

// errLocked returns the first failure. The caller holds the lock.
func (w *work) errLocked() error {
	if w.failed == nil {
		return nil
	}
	return w.failed.err
}

func (w *work) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.errLocked()
}

// failedAt returns the scope whose registry answers and logs the failure.
func (w *work) failedAt() *scope {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed == nil {
		return &w.root
	}
	return w.failed.at
}

var errPanicked = errors.New("sqlreq: a handler panicked")

// panicked notes that a handler in s did not return. Should something outside
// of it recover, the request fails all the same.
func (w *work) panicked(s *scope) { _ = s.fail(errPanicked) }

// mark adds to the error of a unit what StatusCode needs to know: that the
// context has ended, or that it met a conflict which only another request can
// mend. Where something is committed, or may have had effects outside of the
// database (Retry.When), nobody is told to come again.
func (w *work) mark(err error, repeatable bool) error {
	if w.root.Context.Err() != nil || repeatable && !w.hasCommitted() && w.retryable(err) {
		return &unavailable{err}
	}
	return err
}

func (w *work) hasCommitted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.committed
}

func (w *work) retryable(err error) bool {
	if b := (*beginError)(nil); errors.As(err, &b) && (errors.Is(b, context.Canceled) || errors.Is(b, context.DeadlineExceeded)) {
		return false // a wait for the pool was long enough
	}
	if f := w.root.door.reg.Retry.Retryable; f != nil {
		return f(err)
	}
	return sqlerr.Retryable(err)
}

// tries is what the attempts at a request, or at a Do, share.
type tries struct {
	retry *Retry
	start time.Time
	n     int // the attempt under way
	body  *replay.Body
	view  io.ReadCloser // of the body, for the next attempt
}

// again reports whether a unit that has ended is to be run again, and waits
// before it says so. status is that of the response, 0 in a Do.
func (t *tries) again(w *work, status int, err error) bool {
	conflict := err != nil && w.retryable(err)
	// A plain handler, or one that hid the cause: the statements have told.
	hidden := StatusCode(err) >= 500 || err == nil && status >= 500
	w.mu.Lock()
	conflict = conflict || hidden && w.met
	ok := conflict && !w.committed && t.n < t.retry.Attempts
	w.mu.Unlock()
	if ok && t.body != nil {
		// The view first: it keeps what still reads of this attempt from the body.
		t.view = t.body.View()
		ok = t.body.Replayable()
	}
	return ok && t.wait(w.root.Context)
}

// wait waits for the time of the next attempt, unless that is too late or ctx ends.
func (t *tries) wait(ctx context.Context) bool {
	var pause time.Duration
	if t.retry.Backoff != nil {
		pause = t.retry.Backoff(t.n)
	} else {
		pause = backoff(t.n)
	}
	within := t.retry.Within
	if within <= 0 {
		within = 10 * time.Second
	}
	if ctx.Err() != nil || time.Since(t.start)+pause > within {
		return false
	}
	if pause <= 0 {
		return true
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// backoff is exponential with full jitter: clients that met in a conflict do not
// meet again.
func backoff(attempt int) time.Duration {
	const first, most = 5 * time.Millisecond, 500 * time.Millisecond
	ceiling := most
	if shift := attempt - 1; shift < 7 {
		ceiling = min(first<<shift, most)
	}
	return rand.N(ceiling) + 1
}

// Do runs fn as a unit of work of its own: a nil result commits, an error or a
// panic rolls back; hooks, savepoints and retries work as in a request, and every
// key of the registry is open. It returns fn's error, a [*CommitError], or that of
// ctx if it ended before COMMIT was sent.
//
// Inside a request it is independent of the request's transaction, an audit
// record that must survive a rollback for instance: it takes a second
// connection. With a pool of one, or as a second writer on one SQLite file, it
// waits for the request until ctx ends; use a second database there. A database
// bound by Binding.Tx is the exception: there it nests in the request's savepoint.
func (reg *Registry) Do(ctx context.Context, fn func(context.Context) error) error {
	outer := scopeOf(ctx)
	t := &tries{retry: &reg.Retry, n: 1}
	if reg.Retry.Attempts > 1 {
		t.start = time.Now()
	}
	for ; ; t.n++ {
		w, err := reg.doOnce(ctx, outer, t.n, fn)
		if err == nil {
			return nil
		}
		if !t.again(w, 0, err) {
			if isUnavailable(err) {
				return err
			}
			return w.mark(err, true)
		}
	}
}

func (reg *Registry) doOnce(ctx context.Context, outer *scope, attempt int, fn func(context.Context) error) (*work, error) {
	w := new(work)
	w.init(ctx, &door{reg: reg, every: true}, outer, attempt)
	over := false
	defer func() {
		if !over {
			_ = w.end(false)
		}
	}()
	_ = w.root.fail(fn(&w.root))
	err := w.end(true)
	over = true
	return w, err
}

// use is a key in a unit of work.
type use struct {
	next    *use
	binding *binding
	scope   *scope  // of the registry that bound it
	pool    *pool   // nil until Route has answered
	choice  *choice // nil if the binding has nothing to choose
}

// choice is what Route and TxOptions have said.
type choice struct {
	gate   gate
	routed bool  // Route was asked
	err    error // of Route
	opted  bool  // TxOptions was asked
	opts   *sql.TxOptions
}

// settled reports whether all that is needed is known. The caller holds the lock.
func (u *use) settled(opts bool) bool {
	return u.choice == nil || u.pool != nil && (u.choice.opted || !opts)
}

// options returns those of the binding; nil are the driver's defaults.
func (u *use) options() *sql.TxOptions {
	if u.choice == nil {
		return nil
	}
	return u.choice.opts
}

// chosen returns a copy of opts, nil if they are the driver's defaults.
func chosen(opts *sql.TxOptions) *sql.TxOptions {
	if opts == nil || *opts == (sql.TxOptions{}) {
		return nil
	}
	o := *opts
	return &o
}

func sameOptions(a, b *sql.TxOptions) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// pool is a database in a unit of work: its *sql.DB, or the test's *sql.Tx, and
// the transaction that is open on it.
type pool struct {
	next   *pool
	work   *work
	db     *sql.DB
	within *within            // nil for a *sql.DB
	gate   gate               // whoever begins, ends or nests the transaction is through it
	cancel context.CancelFunc // of a BEGIN that is under way; nil otherwise

	tx     *sql.Tx        // nil when none is open
	by     *use           // that began it
	opts   *sql.TxOptions // it was begun with
	point  *savepoint     // the innermost open one
	broken error          // the server may have ended the transaction: only a rollback is left
	times  *times         // nil if nobody wants to know
	number int32          // in the order of the BEGINs
	names  int32          // of savepoints used
	fate   Outcome        // how its last transaction ended; 0 if nobody knows
	late   bool           // begun when its context had ended: database/sql rolls it back too
}

// within is the test's transaction (Binding.Tx) that those of units of work are
// savepoints of.
type within struct {
	tx   *sql.Tx
	name string    // of the savepoint
	nest turn.Turn // for what nests in the savepoint
	free func()    // gives the turn at tx back
}

// times are for the Event.
type times struct {
	wait  time.Duration
	began time.Time
}

// test returns the test's transaction, nil if there is none.
func (p *pool) test() *sql.Tx {
	if p.within == nil {
		return nil
	}
	return p.within.tx
}

// gate lets one goroutine through at a time, without a lock being held
// meanwhile. work.mu guards it.
type gate struct {
	busy bool
	free chan struct{} // closed when it is free again; nil if nobody waits
}

// pass goes through g, or returns the error of the context that ended first.
func (w *work) pass(ctx context.Context, g *gate) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.passLocked(ctx, g)
}

// passLocked is pass for who holds the lock. It is given up during a wait.
func (w *work) passLocked(ctx context.Context, g *gate) error {
	for {
		if w.finished {
			return ErrFinished
		}
		if !g.busy {
			g.busy = true
			return nil
		}
		free := g.waitLocked()
		w.mu.Unlock()
		var err error
		select {
		case <-free:
		case <-ctx.Done():
			err = ctx.Err()
		case <-w.root.Context.Done():
			err = w.root.Context.Err()
		}
		w.mu.Lock()
		if err != nil {
			return err
		}
	}
}

func (g *gate) waitLocked() <-chan struct{} {
	if g.free == nil {
		g.free = make(chan struct{})
	}
	return g.free
}

func (w *work) leave(g *gate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	g.leaveLocked()
}

func (g *gate) leaveLocked() {
	g.busy = false
	if g.free != nil {
		close(g.free)
		g.free = nil
	}
}

// beginError is what a use of a key gets when there is no transaction for it.
type beginError struct {
	key Key
	err error
}

func (b *beginError) Error() string { return fmt.Sprintf("sqlreq: begin on key %q: %v", b.key, b.err) }
func (b *beginError) Unwrap() error { return b.err }

// useLocked returns the use of b in the unit, a new one if there is none. The
// caller holds the lock.
func (w *work) useLocked(c *scope, b *binding) (*use, error) {
	if w.ledger != nil {
		for u := &w.ledger.use; u != nil; u = u.next {
			if u.binding == b {
				return u, nil
			}
		}
	}
	if w.finished {
		return nil, ErrFinished
	}
	u := &w.book().use
	if u.binding != nil {
		u.next = &use{next: u.next}
		u = u.next
	}
	u.binding, u.scope = b, c
	if b.Route == nil {
		u.pool = w.poolLocked(b.DB, b.Tx)
	}
	if b.Route != nil || b.TxOptions != nil {
		u.choice = &choice{routed: b.Route == nil, opted: b.TxOptions == nil}
	}
	return u, nil
}

// poolLocked returns the pool of db, or of tx: several keys may share it.
func (w *work) poolLocked(db *sql.DB, tx *sql.Tx) *pool {
	for p := w.firstPool(); p != nil; p = p.next {
		if p.db == db && p.test() == tx {
			return p
		}
	}
	p := &w.book().pool
	if p.work != nil {
		p.next = &pool{next: p.next}
		p = p.next
	}
	p.work, p.db = w, db
	if tx != nil {
		p.within = &within{tx: tx}
	}
	return p
}

func (w *work) firstKey() Key {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ledger == nil || w.ledger.use.binding == nil {
		return ""
	}
	return w.ledger.use.binding.Key
}

// resolve returns the use of b with its pool known, and its options if opts is true.
func (w *work) resolve(ctx context.Context, c *scope, b *binding, opts bool) (*use, error) {
	w.mu.Lock()
	u, err := w.resolveLocked(ctx, c, b, opts)
	w.mu.Unlock()
	return u, err
}

// resolveLocked is resolve for who holds the lock. It is given up while the
// binding's functions are asked, and for good if one of them panics.
func (w *work) resolveLocked(ctx context.Context, c *scope, b *binding, opts bool) (*use, error) {
	u, err := w.useLocked(c, b)
	if err != nil || u.settled(opts) {
		return u, err
	}
	w.mu.Unlock()
	err = w.choose(ctx, c.req, u, opts)
	w.mu.Lock()
	return u, err
}

// choose asks Route, and TxOptions if opts is true, where that was not done yet.
func (w *work) choose(ctx context.Context, r *http.Request, u *use, opts bool) error {
	b, c := u.binding, u.choice
	if err := w.pass(ctx, &c.gate); err != nil {
		return w.beginFailed(ctx, b.Key, err)
	}
	defer w.leave(&c.gate)
	if !c.routed {
		db, err := b.Route(ctx, r)
		if err == nil && db == nil {
			err = errors.New("the Route returned no *sql.DB and no error")
		}
		if err != nil {
			err = w.beginFailed(ctx, b.Key, err)
			if ctx.Err() != nil {
				return err // the next one, with time left, asks again
			}
		}
		w.mu.Lock()
		c.routed, c.err = true, err
		if err == nil {
			u.pool = w.poolLocked(db, nil)
		}
		w.mu.Unlock()
	}
	if c.err != nil {
		return c.err
	}
	if opts && !c.opted {
		o := chosen(b.TxOptions(ctx, r))
		w.mu.Lock()
		c.opted, c.opts = true, o
		w.mu.Unlock()
	}
	return nil
}

// open is a transaction as a use of a key found it.
type open struct {
	pool *pool
	tx   *sql.Tx
}

// purpose is what a transaction is asked for.
type purpose int

const (
	forStatement purpose = iota // which tells by its error if the transaction was ended
	forCaller                   // who gets the *sql.Tx
	withOptions                 // given ones instead of the binding's: it must be new
)

// begin returns the transaction of k, begun if there is none.
func (k Key) begin(ctx context.Context, why purpose, opts *sql.TxOptions) (open, error) {
	s, c, b, err := k.use(ctx)
	if err != nil {
		return open{}, err
	}
	w := s.work
	w.mu.Lock()
	u, err := w.resolveLocked(ctx, c, b, why != withOptions)
	if err != nil {
		w.mu.Unlock()
		return open{}, err
	}
	p := u.pool
	if err := w.passLocked(ctx, &p.gate); err != nil {
		w.mu.Unlock()
		return open{}, w.beginFailed(ctx, k, err)
	}
	if p.tx != nil {
		return p.share(k, u, why)
	}
	p.by, p.opts = u, u.options()
	if why == withOptions {
		p.opts = chosen(opts)
	}
	wait, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.cancel = cancel
	w.mu.Unlock()
	tx, err := p.begin(ctx, wait, b)
	if err != nil {
		return open{}, w.beginFailed(ctx, k, err)
	}
	return open{pool: p, tx: tx}, nil
}

// share returns the transaction that is open, if u may use it. The caller is
// through the gate and holds the lock; both are given up.
func (p *pool) share(k Key, u *use, why purpose) (open, error) {
	w, o := p.work, open{pool: p, tx: p.tx}
	err := p.clash(k, u, why)
	if err == nil && why == forCaller {
		w.mu.Unlock() // a statement may keep the *sql.Tx busy
		if ended(o.tx) {
			err = endedError(k)
		}
		w.mu.Lock()
	}
	if err == nil && p.broken != nil {
		err = fmt.Errorf("sqlreq: key %q: an error may have ended the transaction, no further statement runs; call Rollback to begin anew: %w", k, p.broken)
	}
	p.gate.leaveLocked()
	w.mu.Unlock()
	return o, err
}

// clash says why u may not share the transaction that is open.
func (p *pool) clash(k Key, u *use, why purpose) error {
	switch by := p.by.binding.Key; {
	case why == withOptions:
		return because(ErrBegun, "sqlreq: key %q: BeginTx, but a transaction is open already on this pool (begun by key %q); call BeginTx before any other use", k, by)
	case p.by != u && (!sameOptions(p.opts, u.options()) || p.by.binding.guards() != u.binding.guards()):
		return because(ErrBegun, "sqlreq: key %q: the transaction open on this pool was begun by key %q with other options; keys of one pool share a transaction, give them the same TxOptions and Guard", k, by)
	}
	return nil
}

// beginFailed returns the error of a use, marked if it waited in vain.
func (w *work) beginFailed(ctx context.Context, k Key, err error) error {
	if err == ErrFinished {
		return err
	}
	if ended := cmp.Or(ctx.Err(), w.root.Context.Err()); ended != nil {
		// The context of the BEGIN only knows that it was cancelled, and drivers have
		// errors of their own for it ("canceling statement due to user request").
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			err = ended
		} else {
			err = fmt.Errorf("%w: %w", ended, err)
		}
	}
	err = &beginError{k, err}
	w.meet(err)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || w.root.Context.Err() != nil {
		w.mu.Lock()
		w.waited = true
		w.mu.Unlock()
		return &unavailable{err}
	}
	return err
}

// meet remembers a conflict that a statement, or a BEGIN, met.
func (w *work) meet(err error) {
	if !w.retryable(err) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.met = true
}

// begin begins the transaction with wait, which cancel ends. The caller is through
// the gate, which is left, also if the driver panics.
//
// With BeginTx(ctx) the transaction's life would be bound to ctx as well:
// database/sql rolls it back when ctx ends (Tx.awaitDone), drops the connection
// of a driver without SessionResetter, and pgx reports commits that happened as
// cancelled. So ctx ends wait only while there is something to wait for.
func (p *pool) begin(ctx, wait context.Context, b *binding) (tx *sql.Tx, err error) {
	start := b.reg.now()
	var stop, stopRoot func() bool
	err = errPanicked // unless the driver returns
	defer func() {
		inTime := stop == nil || stop()
		inTime = (stopRoot == nil || stopRoot()) && inTime
		err = p.begun(tx, err, start, inTime)
	}()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if root := p.work.root.Context; ctx.Done() != root.Done() {
		if err := root.Err(); err != nil {
			return nil, err
		}
		stopRoot = context.AfterFunc(root, p.cancel)
	}
	stop = context.AfterFunc(ctx, p.cancel)
	if p.within != nil {
		return p.beginWithin(wait)
	}
	return p.beginDB(wait)
}

// begun notes what came of a BEGIN, and leaves the gate. inTime is whether no
// context has ended meanwhile.
func (p *pool) begun(tx *sql.Tx, err error, start time.Time, inTime bool) error {
	w := p.work
	if !start.IsZero() {
		now := time.Now()
		p.times = &times{wait: now.Sub(start), began: now}
	}
	w.mu.Lock()
	defer func() {
		p.cancel, p.late = nil, false // from here on, the end of the unit sees to it
		p.gate.leaveLocked()
		w.mu.Unlock()
	}()
	if err == nil {
		w.begun++
		p.tx, p.number, p.names = tx, w.begun, 0
		if !w.finished && inTime {
			return nil
		}
		err = context.Canceled // too late: nobody else would end it
		p.late = true
		w.unlocked(func() { _ = p.end(false, nil) })
	}
	if w.finished {
		return ErrFinished // and the wait was cancelled
	}
	return err
}

// unlocked runs f without the lock, and takes it again, also if f panics.
func (w *work) unlocked(f func()) {
	w.mu.Unlock()
	defer w.mu.Lock()
	f()
}

func (p *pool) beginDB(ctx context.Context) (*sql.Tx, error) {
	tx, err := p.db.BeginTx(ctx, p.opts)
	if err != nil || !p.by.binding.guards() {
		return tx, err
	}
	laid := false
	defer func() {
		if !laid { // also if the driver panics: nobody else would end it
			_ = tx.Rollback()
		}
	}()
	if _, err := tx.ExecContext(ctx, "SAVEPOINT sqlreq_guard"); err != nil {
		return nil, err
	}
	laid = true
	return tx, nil
}

// beginWithin makes the transaction a savepoint of the test's.
func (p *pool) beginWithin(ctx context.Context) (*sql.Tx, error) {
	t := p.within
	free, err := p.takeTurn(ctx)
	if err != nil {
		return nil, err
	}
	laid := false
	defer func() {
		if !laid {
			free()
		}
	}()
	t.name = fmt.Sprintf("sqlreq_tx_%d", outerNames.Add(1))
	if _, err := t.tx.ExecContext(ctx, "SAVEPOINT "+t.name); err != nil {
		return nil, err
	}
	t.free, t.nest = free, turn.New()
	laid = true
	return t.tx, nil
}

// giveBack gives the turn at the test's transaction back, if there is one.
func (p *pool) giveBack() {
	if p.within != nil && p.within.free != nil {
		p.within.free()
		p.within.free = nil
	}
}

// turns makes the units of work that share a test's transaction wait for each
// other, whatever registry they came by.
var turns turn.Table[*sql.Tx]

// outerNames numbers the savepoints of tests' transactions: a name is used once
// in a transaction, whoever uses it.
var outerNames atomic.Int64

// takeTurn waits for the turn at the test's transaction and returns how to give it back. A Do
// in a unit that has it nests there.
func (p *pool) takeTurn(ctx context.Context) (free func(), err error) {
	for w := p.work.outer(); w != nil; w = w.outer() {
		if nest := w.nestOf(p.within.tx); nest != nil {
			return nest.Take(ctx)
		}
	}
	return turns.Take(ctx, p.within.tx)
}

// nestOf returns the turn for what nests in the unit's transaction in tx, nil
// if it has none open.
func (w *work) nestOf(tx *sql.Tx) turn.Turn {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p := w.firstPool(); p != nil; p = p.next {
		if p.test() == tx && p.tx != nil {
			return p.within.nest
		}
	}
	return nil
}

// endAs ends the unit of work as the status of its response says.
func (w *work) endAs(status int, header func() http.Header) error {
	w.mu.Lock()
	return w.endLocked(w.commitsLocked(status, header))
}

// end ends the unit of work: it commits what is open, or rolls it back, and
// runs the hooks. Afterwards nothing can begin in it. It returns the first
// failure of the unit; a second call does nothing else.
func (w *work) end(commit bool) error {
	w.mu.Lock()
	return w.endLocked(commit)
}

// endLocked is end for who holds the lock, which is given up.
func (w *work) endLocked(commit bool) error {
	if w.finished {
		defer w.mu.Unlock()
		return w.errLocked()
	}
	w.finished = true
	if w.ledger == nil {
		defer w.mu.Unlock()
		return w.errLocked()
	}
	var one [1]*pool
	open := one[:0]
	for p := w.firstPool(); p != nil; p = p.next {
		// A BEGIN under way ends itself when it sees that the unit is finished;
		// anything else is somebody's Commit, Rollback or Savepoint.
		if p.cancel != nil {
			p.cancel()
			continue
		}
		for p.gate.busy {
			free := p.gate.waitLocked()
			w.mu.Unlock()
			<-free
			w.mu.Lock()
		}
		if p.tx != nil {
			open = append(open, p)
		}
	}
	commit = commit && w.failed == nil
	if gone := w.root.Context.Err(); commit && gone != nil {
		commit = false
		if len(open) > 0 || w.gaveUp() {
			w.failLocked(&w.root, fmt.Errorf("sqlreq: the request's context ended before COMMIT: %w", gone))
		}
	}
	w.mu.Unlock()
	commit = w.endPools(open, commit)
	w.mu.Lock()
	err, hooks := w.errLocked(), w.ledger.hooks
	if len(hooks) == 0 {
		w.mu.Unlock()
		return err
	}
	w.ledger.hooks = nil
	decideLocked(hooks, open, commit)
	w.mu.Unlock()
	for _, h := range hooks {
		h.run()
	}
	return w.failure()
}

// gaveUp reports whether the handler waited for a transaction in vain and then
// answered nothing: an empty 200, or the nil of a Do, would be a lie. The caller
// holds the lock.
func (w *work) gaveUp() bool {
	return w.waited && (w.exchange == nil || w.exchange.Untouched())
}

// decideLocked decides about the last hooks: those of pools that were not open end
// as the unit does.
func decideLocked(hooks []hook, open []*pool, commit bool) {
	for i := range hooks {
		h := &hooks[i]
		h.fate = RolledBack
		if commit {
			h.fate = Committed
		}
		if p := h.use.pool; p != nil && slices.Contains(open, p) {
			h.fate = p.fate
		}
	}
}

// endPools ends the open transactions in the order of their BEGINs, until one
// fails: the rest are rolled back then. It returns whether all went as asked.
func (w *work) endPools(open []*pool, commit bool) bool {
	if len(open) > 1 {
		slices.SortFunc(open, func(a, b *pool) int { return cmp.Compare(a.number, b.number) })
	}
	if len(open) > 1 && commit {
		// One that cannot commit any more is better known before the first does.
		for _, p := range open {
			if err := p.lost(); err != nil {
				w.endFailed(p.by.scope, err)
				commit = false
			}
		}
	}
	returned := false
	defer func() {
		if !returned {
			for _, p := range open {
				p.abandon(false, nil)
			}
		}
	}()
	var committed []Key
	for _, p := range open {
		if err := p.end(commit, committed); err != nil {
			w.endFailed(p.by.scope, err)
			commit = false
		} else if len(open) > 1 && commit && !(p.opts != nil && p.opts.ReadOnly) {
			committed = append(committed, p.by.binding.Key)
		}
	}
	returned = true
	return commit
}

// abandon rolls back what is still open when a function of the program, or a
// driver, did not return. The unit fails, should somebody recover: work is lost,
// or, if it was to be committed, nobody knows what became of it.
func (p *pool) abandon(commit bool, committed []Key) {
	if p.tx == nil {
		return
	}
	w, key := p.work, p.by.binding.Key
	if !p.late {
		err := fmt.Errorf("sqlreq: key %q: the transaction was given up, its end panicked", key)
		if commit {
			err = &CommitError{Key: key, Committed: committed, Ambiguous: true, Err: err}
			w.keep()
			_ = w.hooksOf(p) // neither kind runs
		}
		w.endFailed(p.by.scope, err)
	}
	_ = p.rollback()
	w.mu.Lock()
	p.tx, p.point, p.broken, p.fate = nil, nil, nil, 0
	w.mu.Unlock()
	p.giveBack()
}

// endFailed notes that a transaction did not end as asked.
func (w *work) endFailed(s *scope, err error) {
	var c *CommitError
	tried := errors.As(err, &c)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.commitFailed = w.commitFailed || tried
	w.failLocked(s, err)
}

// endOpen commits, or rolls back, what is open, and lets the unit go on: before a Hijack.
func (w *work) endOpen(commit bool) error {
	w.mu.Lock()
	var pools []*pool
	err := w.errLocked()
	if err == nil && commit {
		err = w.root.Context.Err()
	}
	for p := w.firstPool(); p != nil; p = p.next {
		if p.point != nil && err == nil {
			err = insideError("Hijack", p.by.binding.Key)
		}
		pools = append(pools, p)
	}
	w.mu.Unlock()
	if err != nil {
		return err
	}
	hooks, err := w.endThrough(pools, commit)
	for _, h := range hooks {
		h.run()
	}
	return err
}

// endThrough goes through the gates of pools and ends what is open on them. The
// hooks are to be run outside of the gates.
func (w *work) endThrough(pools []*pool, commit bool) (hooks []hook, err error) {
	var open []*pool
	for _, p := range pools {
		if err := w.pass(w.root.Context, &p.gate); err != nil {
			return nil, err
		}
		defer w.leave(&p.gate)
		if p.tx != nil {
			open = append(open, p)
		}
	}
	if ok := w.endPools(open, commit); !ok && commit {
		err = w.failure()
	}
	for _, p := range open {
		hooks = append(hooks, w.hooksOf(p)...)
	}
	return hooks, err
}

// end commits the open transaction of p, or rolls it back. Nobody else can be
// at it: the caller is through the gate, or the unit is finished.
// committed are the keys that were committed with it.
func (p *pool) end(commit bool, committed []Key) error {
	returned := false
	defer func() {
		if !returned {
			p.abandon(commit, committed)
		}
	}()
	reg := p.by.binding.reg
	asked := reg.now()
	var outcome Outcome
	var err error
	if commit {
		outcome, err = p.commit(committed)
	} else {
		outcome, err = p.endBadly()
	}
	fate, stays := Committed, !p.readOnly()
	if outcome != Committed {
		fate, stays = fateOf(outcome, err)
	}
	w := p.work
	w.mu.Lock()
	p.tx, p.point, p.broken, p.fate = nil, nil, nil, fate
	w.committed = w.committed || stays
	w.mu.Unlock()
	if outer := w.outer(); stays && outer != nil {
		outer.keep()
	}
	p.giveBack()
	if reg.Observe != nil && p.times != nil {
		p.tell(outcome, err, asked)
	}
	returned = true
	return err
}

// tell tells Observe how the transaction has ended.
func (p *pool) tell(outcome Outcome, err error, asked time.Time) {
	w, b := p.work, p.by.binding
	if err == nil && outcome == RolledBack {
		err = w.failure()
	}
	event := Event{b.Key, outcome, err, int(w.attempt), p.times.wait, asked.Sub(p.times.began), time.Since(asked)}
	b.reg.protect(w.root.req, "Observe", func() { b.reg.Observe(w.root.after(&w.root), event) })
}

// endBadly rolls the transaction back because that was asked for or something failed.
func (p *pool) endBadly() (Outcome, error) {
	if errors.Is(p.rollback(), sql.ErrTxDone) && !p.late {
		return Ended, endedError(p.by.binding.Key)
	}
	return RolledBack, nil
}

// fateOf returns what a transaction that is not Committed means for its hooks,
// and whether something of it may have stayed.
func fateOf(outcome Outcome, err error) (fate Outcome, stays bool) {
	var c *CommitError
	if outcome == Ended || errors.As(err, &c) && c.Ambiguous {
		return 0, true
	}
	return RolledBack, false
}

// now is the time if somebody wants to know it.
func (reg *Registry) now() time.Time {
	if reg.Observe == nil {
		return time.Time{}
	}
	return time.Now()
}

// commit ends the transaction well, if that is still possible.
func (p *pool) commit(committed []Key) (Outcome, error) {
	if p.readOnly() {
		return p.endReadOnly()
	}
	key := p.by.binding.Key
	if err := p.doomed(); err != nil {
		if errors.Is(p.rollback(), sql.ErrTxDone) {
			return Ended, endedError(key)
		}
		return RolledBack, err
	}
	if p.by.binding.guards() {
		switch _, err := p.tx.ExecContext(context.Background(), "RELEASE SAVEPOINT sqlreq_guard"); {
		case errors.Is(err, sql.ErrTxDone):
			return Ended, endedError(key)
		case err != nil:
			_ = p.tx.Rollback()
			return CommitFailed, &CommitError{Key: key, Committed: committed, Ambiguous: true, Err: fmt.Errorf("the transaction was ended by the server before COMMIT: %w", err)}
		}
	}
	var err error
	if t := p.within; t != nil {
		_, err = t.tx.ExecContext(context.Background(), "RELEASE SAVEPOINT "+t.name)
	} else {
		err = p.tx.Commit()
	}
	if err == nil {
		return Committed, nil
	}
	if errors.Is(err, sql.ErrTxDone) {
		return Ended, endedError(key)
	}
	return CommitFailed, &CommitError{Key: key, Committed: committed, Ambiguous: !sqlerr.Answered(err), Err: err}
}

// endReadOnly ends a read-only transaction well: by ROLLBACK, so that nothing is
// persisted through it, also on a driver that ignores the flag.
func (p *pool) endReadOnly() (Outcome, error) {
	p.work.mu.Lock()
	broken := p.broken
	p.work.mu.Unlock()
	switch err := p.rollback(); {
	case errors.Is(err, sql.ErrTxDone):
		return Ended, endedError(p.by.binding.Key)
	case err != nil || broken != nil:
		return RolledBack, nil // what was read was read
	}
	return Committed, nil
}

// readOnly reports whether the transaction ends with ROLLBACK in any case.
// PostgreSQL counts the reads of a serializable one only at COMMIT.
func (p *pool) readOnly() bool {
	return p.opts != nil && p.opts.ReadOnly && p.opts.Isolation != sql.LevelSerializable
}

// doomed returns the reason why only a rollback is left.
func (p *pool) doomed() error {
	p.work.mu.Lock()
	broken, point := p.broken, p.point
	p.work.mu.Unlock()
	switch {
	case broken != nil:
		return fmt.Errorf("sqlreq: key %q: an earlier error may have ended the transaction, it was rolled back: %w", p.by.binding.Key, broken)
	case point != nil:
		return fmt.Errorf("sqlreq: key %q: a Savepoint is still open, the transaction was rolled back", p.by.binding.Key)
	}
	return nil
}

// lost returns the reason why the transaction cannot be committed any more, as
// far as that is known without a word to the driver.
func (p *pool) lost() error {
	if p.within == nil && ended(p.tx) {
		return endedError(p.by.binding.Key)
	}
	if p.readOnly() {
		return nil
	}
	return p.doomed()
}

func (p *pool) rollback() error {
	t := p.within
	if t == nil {
		return p.tx.Rollback()
	}
	_, err := t.tx.ExecContext(context.Background(), "ROLLBACK TO SAVEPOINT "+t.name)
	return err
}

// Commit commits the transaction of [DefaultKey] now; the next use of the key
// begins a new one. AfterCommit functions run before it returns. With nothing
// open it does nothing. If it fails, the request fails with the same error, and
// nothing more is committed. Close rows before: open ones end early, which only
// rows.Err() tells, and rows scanned into sql.RawBytes block it for ever.
//
// Inside a [Savepoint] it is an error, which changes nothing; when a context has
// ended or the request has failed already, it is refused. Once COMMIT was sent no context can make a committed transaction look like a failed one.
func Commit(ctx context.Context) error { return DefaultKey.Commit(ctx) }

// Commit is the function [Commit] for another database.
func (k Key) Commit(ctx context.Context) error { return k.endNow(ctx, true) }

// Rollback rolls the transaction of [DefaultKey] back now; the next use of the
// key begins a new one. The request does not fail by it. AfterRollback functions
// run before it returns. With nothing open it does nothing; inside a [Savepoint]
// it is an error.
func Rollback(ctx context.Context) error { return DefaultKey.Rollback(ctx) }

// Rollback is the function [Rollback] for another database.
func (k Key) Rollback(ctx context.Context) error { return k.endNow(ctx, false) }

func (k Key) endNow(ctx context.Context, commit bool) error {
	s, c, b, err := k.use(ctx)
	if err != nil {
		return err
	}
	w := s.work
	if open, err := w.hasOpen(); !open {
		return err
	}
	// Another key may have begun on the same pool.
	u, err := w.resolve(ctx, c, b, false)
	if err != nil {
		return err
	}
	hooks, err := u.pool.endNow(ctx, s, k, commit)
	for _, h := range hooks {
		h.run()
	}
	return err
}

// hasOpen reports whether a transaction is open in the unit, or being begun.
func (w *work) hasOpen() (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.finished {
		return false, ErrFinished
	}
	for p := w.firstPool(); p != nil; p = p.next {
		if p.tx != nil || p.gate.busy {
			return true, nil
		}
	}
	return false, nil
}

// endNow goes through the gate; the hooks it returns are to be run outside of it.
func (p *pool) endNow(ctx context.Context, s *scope, k Key, commit bool) ([]hook, error) {
	w := p.work
	if err := w.pass(ctx, &p.gate); err != nil {
		if commit && err != ErrFinished {
			err = fmt.Errorf("sqlreq: commit on key %q refused: %w", k, err)
			_ = s.fail(err)
		}
		return nil, err
	}
	defer w.leave(&p.gate)
	if p.tx == nil {
		return nil, nil
	}
	if p.point != nil {
		name := "Rollback"
		if commit {
			name = "Commit"
		}
		return nil, insideError(name, k)
	}
	if err := cmp.Or(ctx.Err(), w.root.Context.Err(), w.failure()); err != nil && commit {
		err = fmt.Errorf("sqlreq: commit on key %q refused: %w", k, err)
		_ = s.fail(err)
		return nil, err
	}
	err := p.end(commit, nil)
	if err != nil {
		w.endFailed(s, err)
	}
	return w.hooksOf(p), err
}

// savepoint is a Savepoint under way.
type savepoint struct {
	pool  *pool
	outer *savepoint // in the same transaction
	name  string
	gone  bool       // rolled back
	moved bool       // released: what it had belongs to outer
	ctx   *savepoint // the innermost one of any pool in the context around
}

type savepointKey struct{}

// in returns sp, or the innermost savepoint around it, that is one of p.
func (sp *savepoint) in(p *pool) *savepoint {
	for sp != nil && sp.pool != p {
		sp = sp.ctx
	}
	return sp
}

// pointOf returns the innermost savepoint of any pool that ctx is inside of.
func pointOf(ctx context.Context) *savepoint {
	sp, _ := ctx.Value(savepointKey{}).(*savepoint)
	return sp
}

func insideError(what string, k Key) error {
	return fmt.Errorf("sqlreq: %s inside a Savepoint of key %q; return from its function first", what, k)
}

// Savepoint runs fn inside of a savepoint of the transaction of [DefaultKey],
// begun if there is none: an error or a panic of fn rolls back what fn did, and
// nothing else, also if ctx has ended. The error of fn is returned. Savepoints
// nest by the context that fn is given; one begun with another context than that
// of the innermost open one is an error. It takes no second connection.
//
// If going back fails, the request can only roll back. With drivers for
// PostgreSQL and MySQL rows must be closed before a savepoint is begun or ends.
func Savepoint(ctx context.Context, fn func(context.Context) error) error {
	return DefaultKey.Savepoint(ctx, fn)
}

// Savepoint is the function [Savepoint] for another database.
func (k Key) Savepoint(ctx context.Context, fn func(context.Context) error) error {
	sp, err := k.save(ctx)
	if err != nil {
		return err
	}
	returned := false
	defer func() {
		if !returned {
			_ = sp.back(k)
		}
	}()
	err = fn(context.WithValue(ctx, savepointKey{}, sp))
	returned = true
	if err != nil {
		if e := sp.back(k); e != nil {
			return errors.Join(err, e)
		}
		return err
	}
	return sp.release(k)
}

// exec runs a statement about a savepoint. The caller is through the gate.
func (p *pool) exec(ctx context.Context, query string) error {
	_, err := p.tx.ExecContext(ctx, query)
	if errors.Is(err, sql.ErrTxDone) {
		return endedError(p.by.binding.Key)
	}
	return err
}

// save begins a savepoint. If another goroutine ends the transaction meanwhile,
// this is the next use, which begins a new one.
func (k Key) save(ctx context.Context) (*savepoint, error) {
	for {
		o, err := k.begin(ctx, forCaller, nil)
		if err != nil {
			return nil, err
		}
		if sp, err := o.save(ctx, k); sp != nil || err != nil {
			return sp, err
		}
	}
}

// save returns nil if the transaction is not the open one any more.
func (o open) save(ctx context.Context, k Key) (*savepoint, error) {
	p, w := o.pool, o.pool.work
	if err := w.pass(ctx, &p.gate); err != nil {
		return nil, err
	}
	defer w.leave(&p.gate)
	w.mu.Lock()
	sp := &savepoint{pool: p, outer: p.point, ctx: pointOf(ctx)}
	inside, tx := sp.ctx.in(p), p.tx
	p.names++
	sp.name = fmt.Sprintf("sqlreq_%d", p.names)
	if p.within != nil {
		sp.name = fmt.Sprintf("%s_%d", p.within.name, p.names)
	}
	w.mu.Unlock()
	switch {
	case tx != o.tx:
		return nil, nil
	case inside != sp.outer:
		return nil, fmt.Errorf("sqlreq: savepoint on key %q: its context is not that of the innermost open Savepoint; pass on the context that the function was given", k)
	}
	late := ctx.Err() != nil
	if err := p.exec(ctx, "SAVEPOINT "+sp.name); err != nil {
		return nil, fmt.Errorf("sqlreq: savepoint on key %q (close open rows first): %w", k, o.note(ctx, late, err))
	}
	w.mu.Lock()
	p.point = sp
	w.mu.Unlock()
	return sp, nil
}

// leave ends sp by a statement, which runs also if every context has ended; what
// its outcome means is up to settle.
func (sp *savepoint) leave(query string, settle func(error) error) error {
	p, w := sp.pool, sp.pool.work
	if err := w.pass(context.Background(), &p.gate); err != nil {
		return err // the unit has ended, and the savepoint with it
	}
	defer w.leave(&p.gate)
	if p.point != sp {
		return errors.New("sqlreq: a Savepoint inside of this one has not returned yet")
	}
	err := p.exec(context.Background(), query)
	w.mu.Lock()
	defer w.mu.Unlock()
	p.point = sp.outer
	return settle(err)
}

func (sp *savepoint) release(k Key) error {
	p := sp.pool
	p.work.mu.Lock()
	broken := p.broken
	p.work.mu.Unlock()
	if broken != nil {
		return errors.Join(fmt.Errorf("sqlreq: a savepoint on key %q is rolled back, an error may have ended the transaction: %w", k, broken), sp.back(k))
	}
	failed := false
	err := sp.leave("RELEASE SAVEPOINT "+sp.name, func(err error) error {
		if err != nil {
			failed = true
			p.point = sp // it is still there, to go back to
			return err
		}
		sp.moved = true
		return nil
	})
	if !failed {
		return err
	}
	return errors.Join(fmt.Errorf("sqlreq: release of a savepoint on key %q (close open rows first): %w", k, err), sp.back(k))
}

// back rolls back to sp. A transaction that may have been ended by the server is
// known to be alive when that succeeds.
func (sp *savepoint) back(k Key) error {
	p := sp.pool
	return sp.leave("ROLLBACK TO SAVEPOINT "+sp.name, func(err error) error {
		sp.gone = true
		p.work.dropHooks(sp)
		if err != nil {
			err = fmt.Errorf("sqlreq: rollback to a savepoint on key %q failed (close open rows first), the request can only roll back: %w", k, err)
			p.broken = err
			return err
		}
		p.broken = nil
		return nil
	})
}

// hook is a function to be run after the end of a transaction.
type hook struct {
	use    *use
	inside *savepoint // the innermost of any pool at its registration
	commit bool
	scope  *scope
	fn     func(context.Context)
	fate   Outcome // of its transaction; 0 if nobody knows
}

// AfterCommit registers fn to be run once after the COMMIT of the transaction of
// [DefaultKey], before the response is released, in the order of registration:
// for what must not happen for work that the database does not have. After a
// rollback, and after a COMMIT of unknown outcome, it is dropped. With no
// transaction begun, the end of the request decides as it would have for one.
// Inside a [Savepoint] that is rolled back it is dropped too.
//
// fn gets ctx with its values, but without its cancellation. The transaction's
// functions return [ErrFinished] in it; [Registry.Do] works. A panic is logged
// with its stack, and changes nothing.
func AfterCommit(ctx context.Context, fn func(context.Context)) error {
	return DefaultKey.AfterCommit(ctx, fn)
}

// AfterCommit is the function [AfterCommit] for another database.
func (k Key) AfterCommit(ctx context.Context, fn func(context.Context)) error {
	return k.after(ctx, true, fn)
}

// AfterRollback is [AfterCommit] for a rollback. It runs for each failed attempt.
func AfterRollback(ctx context.Context, fn func(context.Context)) error {
	return DefaultKey.AfterRollback(ctx, fn)
}

// AfterRollback is the function [AfterRollback] for another database.
func (k Key) AfterRollback(ctx context.Context, fn func(context.Context)) error {
	return k.after(ctx, false, fn)
}

// after is s for a function that must not use the transactions any more.
func (s *scope) after(ctx context.Context) *scope {
	d := *s.door
	d.closed = true
	return &scope{Context: ctx, outer: s, door: &d, work: s.work, req: s.req}
}

func (k Key) after(ctx context.Context, commit bool, fn func(context.Context)) error {
	if fn == nil {
		return fmt.Errorf("sqlreq: key %q: the function of a hook is nil", k)
	}
	s, c, b, err := k.use(ctx)
	if err != nil {
		return err
	}
	after := s.after(context.WithoutCancel(ctx))
	w := s.work
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.finished {
		return ErrFinished
	}
	u, err := w.useLocked(c, b)
	if err != nil {
		return err
	}
	h := hook{use: u, inside: pointOf(ctx), commit: commit, scope: after, fn: fn}
	sp := h.inside.in(u.pool)
	for sp != nil && sp.moved {
		sp = sp.outer
	}
	if sp != nil && sp.gone {
		return fmt.Errorf("sqlreq: key %q: the Savepoint of this context was rolled back; use the context around it", k)
	}
	w.ledger.hooks = append(w.ledger.hooks, h)
	return nil
}

// dropHooks forgets the hooks registered inside of sp. The caller holds the lock.
func (w *work) dropHooks(sp *savepoint) {
	w.ledger.hooks = slices.DeleteFunc(w.ledger.hooks, func(h hook) bool {
		for p := h.inside.in(sp.pool); p != nil && h.use.pool == sp.pool; p = p.outer {
			if p == sp {
				return true
			}
		}
		return false
	})
}

// hooksOf takes the hooks of a pool whose transaction has just ended. The caller
// is still through the gate.
func (w *work) hooksOf(p *pool) (hooks []hook) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ledger.hooks = slices.DeleteFunc(w.ledger.hooks, func(h hook) bool {
		if h.use.pool != p {
			return false
		}
		h.fate = p.fate
		hooks = append(hooks, h)
		return true
	})
	return hooks
}

// run runs h if it is for the end that its transaction took. What an AfterCommit
// function did must not be done again by a retry.
func (h hook) run() {
	want := RolledBack
	if h.commit {
		want = Committed
	}
	if h.fate != want {
		return
	}
	if h.commit {
		h.scope.work.keep()
	}
	h.use.binding.reg.protect(h.scope.req, "a hook", func() { h.fn(h.scope) })
}

// keep notes that something of w, and so of the units around it, stays: none of
// them is run again.
func (w *work) keep() {
	for ; w != nil; w = w.outer() {
		w.mu.Lock()
		w.committed = true
		w.mu.Unlock()
	}
}

// protect runs a function of the program that must not harm the request.
func (reg *Registry) protect(r *http.Request, what string, fn func()) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		attrs := []any{"panic", v, "stack", string(debug.Stack())}
		if r != nil {
			attrs = append(attrs, "method", r.Method, "path", r.URL.Path)
		}
		reg.logger().Error("sqlreq: "+what+" panicked", attrs...)
	}()
	fn()
}
