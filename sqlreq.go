package sqlreq

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"time"
	"unsafe"

	"github.com/sqlreq/sqlreq/internal/held"
	"github.com/sqlreq/sqlreq/internal/replay"
	"github.com/sqlreq/sqlreq/internal/retry"
	"github.com/sqlreq/sqlreq/internal/sqlerr"
	"github.com/sqlreq/sqlreq/internal/txn"
	"github.com/sqlreq/sqlreq/internal/unit"
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
	// the handler's headers, but Retry-After where another try may help; where
	// MayHaveCommitted(err) is true, the client must not simply try again. A Write
	// without WriteHeader has the status of StatusCode(err), and if it writes nothing
	// the default answer is given, which is the status text of StatusCode(err). It may
	// be called while other requests' are running. The transactions are over: they
	// return ErrFinished. An ErrorHandler that answers also logs it: sqlreq then logs
	// no error but those of a COMMIT that failed and of work that may have stayed.
	// With nil a writer given to Middleware that has a method
	// AnswerError(*http.Request, error) bool, as an adapter's, is asked first; true
	// means that it has answered.
	ErrorHandler func(w http.ResponseWriter, r *http.Request, err error)

	// HoldLimit is the size in bytes up to which a response is held until COMMIT
	// has succeeded; 0 means 64 KiB. A larger one streams. There is no "no limit": -1
	// is a mistake, by which Middleware panics. To hold larger ones name a size, which
	// each request under way may take in memory.
	HoldLimit int

	// Retry says which requests are run again after a conflict; by default none.
	Retry Retry

	// Observe is called for every transaction that was begun, when it and those
	// that end with it have ended, in the goroutine that ended them. Its context is
	// the request's or the Do's; the transaction's functions return ErrFinished in
	// it, and a Do in it does not keep the request from being run again.
	Observe func(context.Context, Event)

	// Logger gets the failures, at the level of what the client was sent: from a
	// status of 500 up, and for a response that was broken off, as errors, else for
	// debugging; work that may have stayed as a warning at least. With an ErrorHandler
	// it gets those that the ErrorHandler did not answer, and what is named there. nil
	// means slog.Default(), which hides lines for debugging unless its level is changed.
	Logger *slog.Logger

	bindings map[Key]*binding
	main     *binding // of DefaultKey; nil if it is not bound
}

// Retry says when and how often a request, or a [Registry.Do], is run again
// because of a serialization conflict, a deadlock or a busy database. Everything
// that the handler does outside of the database is repeated. A request is not run
// again when a byte of the response has left (1xx responses aside), the connection was
// hijacked, anything was committed (by Commit, by one of several databases, by a
// Do under the request, but not one in Route, TxOptions, AfterRollback or Observe), an
// AfterCommit function has run, the body outgrew BodyLimit, the outcome of a COMMIT
// or a ROLLBACK is unknown ([MayHaveCommitted]; but see package idempotency, whose
// record tells), or Within is over.
//
// How many attempts are enough depends on how many clients meet. On SQLite a
// transaction that reads first and then writes fails at once when another one has
// written in between (SQLITE_BUSY_SNAPSHOT); no busy_timeout waits for that. With the
// default Backoff one row that all clients change took 4 attempts with 2 clients, 7
// with 8 and 17 with 32. With _txlock=immediate in the data source name
// transactions that may write take turns at BEGIN, and one attempt is enough.
type Retry struct {
	Attempts  int                             // in all; 0 and 1: no retry
	BodyLimit int64                           // bytes of a body kept for the replay; 0: 64 KiB
	Within    time.Duration                   // no attempt begins later than this after the first; 0: 10 s
	Backoff   func(attempt int) time.Duration // after the given failed attempt, from 1; nil: exponential with full jitter, 5 ms to 500 ms
	When      func(*http.Request) bool        // nil: every request; false for routes with effects outside the database
	Retryable func(error) bool                // nil: IsRetryable
}

// Event tells what became of a transaction. There is one for each that was begun,
// also for one that nobody was given because [Binding].Guard's savepoint failed.
type Event struct {
	Key     Key           // that began it
	Outcome Outcome       // how it ended
	Err     error         // why it failed, or what a ROLLBACK without an answer returned; nil if it ended as asked
	Attempt int           // at the request, from 1
	Wait    time.Duration // for a connection and BEGIN
	Open    time.Duration // from then to its end
	End     time.Duration // COMMIT or ROLLBACK
	Began   time.Time     // when the use asked for the transaction
}

// Outcome is how a transaction ended.
type Outcome int

const (
	// Committed: COMMIT succeeded; or the transaction was read-only and ended well.
	Committed Outcome = iota + 1
	// RolledBack: ROLLBACK was sent, because it was asked for or something failed; or
	// the server had rolled back before, and nothing ran since then.
	RolledBack
	// CommitFailed: COMMIT was sent and returned an error, a [*CommitError].
	CommitFailed
	// Ended: not by sqlreq, but through *sql.Tx or by the server; nobody knows how.
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
	ErrNoRegistry error = errors.New("sqlreq: no registry in this context; wrap the handler in Registry.Middleware or Registry.With and pass the request's context on (gin: c.Request.Context(), not c), or use Registry.Do")
	// ErrUnknownKey: the key is not bound, or not opened for this handler.
	ErrUnknownKey error = errors.New("sqlreq: unknown key")
	// ErrDuplicateKey: two bindings of a registry have the same key.
	ErrDuplicateKey error = errors.New("sqlreq: duplicate key")
	// ErrBegun: a transaction is open already, and BeginTx comes too late, or the key
	// that began it on the same pool has other options or another Guard. The text says
	// which.
	ErrBegun error = txn.ErrBegun
	// ErrFinished: the request, or the Do, is over or was hijacked, or this is a hook.
	ErrFinished error = txn.ErrFinished
	// ErrTxEnded: the transaction was committed or rolled back through *sql.Tx; or
	// when it was to be rolled back the server had ended it already, so that what ran
	// since then may have been committed. The text says which. Neither kind of hook
	// runs, the request is not run again, and MayHaveCommitted is true.
	ErrTxEnded error = txn.ErrTxEnded
)

// IsRetryable reports whether err, or an error in its chain, is a serialization
// conflict, a deadlock or a busy database in the shape of one of the common
// drivers: SQLSTATE 40001 and 40P01 (pgx, lib/pq), SQLITE_BUSY and SQLITE_LOCKED
// (modernc, mattn), MySQL 1213, 1205 and 1020 (go-sql-driver).
func IsRetryable(err error) bool { return sqlerr.Retryable(err) }

// Middleware returns next with a transaction for each request, for every key
// that is not OnDemand. It may be called under another registry's, or its own. It
// panics if the registry is nil (New returned an error), or a limit of it negative,
// as With, Mount and Do do.
func (reg *Registry) Middleware(next http.Handler) http.Handler {
	reg.check()
	if next == nil {
		panic("sqlreq: Middleware(nil); give it the handler to wrap")
	}
	return &middleware{access{reg: reg}, next}
}

// With is Middleware for the given keys only, OnDemand or not, as a decorator of
// single handlers. It works with Middleware outside or alone, and panics on a key that
// is not bound.
func (reg *Registry) With(keys ...Key) func(http.Handler) http.Handler {
	reg.check()
	a := reg.with(keys)
	return func(next http.Handler) http.Handler {
		if next == nil {
			panic(fmt.Sprintf("sqlreq: With(%s)(nil); give it the handler to wrap", list(slices.Clone(keys))))
		}
		return &middleware{a, next}
	}
}

// check panics if the registry cannot be used.
func (reg *Registry) check() {
	if reg == nil {
		panic("sqlreq: the *Registry is nil; look at the error that New returned")
	}
	switch {
	case reg.HoldLimit < 0:
		panic("sqlreq: Registry.HoldLimit is negative; 0 means 64 KiB")
	case reg.Retry.Attempts < 0:
		panic("sqlreq: Registry.Retry.Attempts is negative; 0 and 1 mean no retry")
	case reg.Retry.BodyLimit < 0:
		panic("sqlreq: Registry.Retry.BodyLimit is negative; 0 means 64 KiB")
	case reg.Retry.Within < 0:
		panic("sqlreq: Registry.Retry.Within is negative; 0 means 10 s")
	}
}

type middleware struct {
	access access
	next   http.Handler
}

func (m *middleware) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	outer := scopeOf(r.Context())
	if outer != nil && outer.unit.Refused() == unit.ErrHijacked {
		outer = nil // r came over a connection that was hijacked: it is a request of its own
	}
	if outer != nil && outer.root().req != nil && !outer.over() {
		m.nested(outer, w, r)
		return
	}
	if p := &m.access.reg.Retry; p.Attempts > 1 && (p.When == nil || p.When(r)) {
		m.serveAttempts(outer, w, r)
		return
	}
	x := new(firstAttempt)
	x.init(&m.access, outer, w, r, 1)
	x.req = *r.WithContext(&x.scope) // WithContext is inlined: the copy that it makes stays on the stack
	x.scope.req = &x.req
	x.serve(m.next, w, r, nil)
}

// firstAttempt is an attempt and the copy of the request that its handler gets.
// Together they have the largest size, 512 bytes, for which Go keeps the pointers
// of an object in a bitmap beside it (runtime, minSizeForMallocHeader), so that a
// request that asks for nothing pays for one small allocation. What is needed
// seldom goes behind a pointer. There is no pool of them: what a handler has left
// running may keep pointers into it.
type firstAttempt struct {
	req http.Request // comes first: runtime.SetFinalizer takes no other pointer
	attempt
}

// This does not compile when a firstAttempt has more than 512 bytes.
const _ = 512 - unsafe.Sizeof(firstAttempt{})

// attempt is an attempt at a request: the response, the context and the unit of
// work in one piece.
type attempt struct {
	held.Writer
	scope scope // the outermost; its Context is the caller's
	unit  unit.Unit
}

func (x *attempt) init(a *access, outer *scope, w http.ResponseWriter, r *http.Request, n int) {
	x.Init(w, r, a.reg.holdLimit())
	s := &x.scope // field by field: a composite literal would be built apart and copied
	s.Context, s.outer, s.access, s.unit = r.Context(), outer, a, &x.unit
	x.unit.Init(x, n)
}

func (reg *Registry) holdLimit() int {
	if reg.HoldLimit <= 0 {
		return 64 << 10
	}
	return reg.HoldLimit
}

// serveAttempts serves a request that may be run again. Each attempt gets a clone,
// so that r stays as it arrived.
func (m *middleware) serveAttempts(outer *scope, w http.ResponseWriter, r *http.Request) {
	t := newAttempts(&m.access.reg.Retry)
	if r.Body != nil && r.Body != http.NoBody {
		t.body = replay.New(r.Body, m.access.reg.Retry.bodyLimit())
		t.body.CloseAs(r)
		t.view = t.body.View()
		defer t.body.Stop()
	}
	for again := true; again; {
		x := new(attempt)
		x.init(&m.access, outer, w, r, t.Attempt)
		x.OwnHeader()
		t.prepare(&x.unit)
		x.scope.req = r.Clone(&x.scope)
		x.scope.req.Trailer = r.Trailer // net/http adds to the map when the body has been read
		if t.body != nil {
			x.scope.req.Body = t.view
		}
		again = x.serve(m.next, w, r, &t)
	}
}

func (p *Retry) bodyLimit() int64 {
	if p.BodyLimit <= 0 {
		return 64 << 10
	}
	return p.BodyLimit
}

// serve runs the handler, ends the unit of work and answers. It returns true if
// nothing was answered and the request is to be run again.
func (x *attempt) serve(next http.Handler, w http.ResponseWriter, r *http.Request, t *attempts) (again bool) {
	over := false
	defer func() {
		if !again { // the next attempt gets the request as it arrived
			copyBack(r, x.scope.req)
		}
		if !over && x.unwind() == held.Exit {
			x.exit(recover(), debug.Stack())
		}
	}()
	next.ServeHTTP(x, x.scope.req)
	again, end := x.finish(w, r, t)
	over = true
	switch end {
	case held.Panic:
		panic(http.ErrAbortHandler)
	case held.Exit:
		runtime.Goexit()
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
// at the end, panics or exits the goroutine. The panic goes on with its value and
// stack, without a recover, unless only the end of the goroutine breaks the response.
func (x *attempt) unwind() held.End {
	state := x.HandlerDone()
	if err := x.unit.Abandon(); MayHaveCommitted(err) || x.unit.CommitFailed() {
		x.log(slog.LevelWarn, http.StatusInternalServerError, err) // nobody else learns of it
	}
	return drop(&x.Writer, state)
}

// drop makes sure that a response whose handler did not return is no success.
func drop(w *held.Writer, state held.State) (end held.End) {
	switch {
	case state.Hijacked:
	case state.Stands:
		w.Release() // with its trailers
	case state.Held:
		w.Reset()
	default:
		end = w.Abort() // a middleware outside may recover, and net/http complete the response
	}
	w.Close()
	return end
}

// exit ends the goroutine of a handler that panicked with v, nil if it exits already.
func (x *attempt) exit(v any, stack []byte) {
	if v != nil && v != http.ErrAbortHandler {
		x.scope.access.reg.logPanic(x.scope.req, "a handler", v, stack)
	}
	runtime.Goexit()
}

// finish ends the attempt when the handler has returned.
func (x *attempt) finish(rw http.ResponseWriter, r *http.Request, t *attempts) (again bool, end held.End) {
	if t == nil && x.scope.access.reg.CommitIf == nil && x.unit.FinishUnused() {
		x.Finish()
		return false, held.Return
	}
	state := x.HandlerDone()
	err := x.unit.Finish(state.Status)
	if t != nil && state.Held && t.shouldRetry(&x.unit, state.Status, err) {
		x.Reset() // but no Close, which would let what this attempt has left running write to the next one's response
		x.removeFiles(r)
		return true, held.Return
	}
	if err == nil {
		x.Release()
		return false, held.Return
	}
	return false, x.fail(rw, r, state, mark(&x.unit, err, t != nil || x.scope.access.reg.Retry.Attempts <= 1))
}

// fail answers for a unit of work that has failed with err.
func (x *attempt) fail(rw http.ResponseWriter, r *http.Request, state held.State, err error) (end held.End) {
	switch {
	case state.Hijacked, state.Stands, x.unit.AnswerStands(), state.Status >= 400 && !x.unit.CommitFailed():
		x.logAnswered(state, err)
		x.Release()
	case state.Held:
		x.Reset()
		x.answer(rw, r, err)
		x.Close()
	default:
		x.log(slog.LevelError, StatusCode(err), err)
		end = x.Abort()
		x.Close()
	}
	return end
}

// removeFiles removes the files of a form that the attempt has parsed: the caller
// of the middleware does not learn of them.
func (x *attempt) removeFiles(r *http.Request) {
	if f := x.scope.req.MultipartForm; f != nil && r.MultipartForm == nil {
		_ = f.RemoveAll()
		x.scope.req.MultipartForm = nil
	}
}

// answer lets the ErrorHandler answer, or the writer of an adapter. The status of a Write without WriteHeader is
// that of err, and if the ErrorHandler writes nothing the default answer is given:
// there is no 200 that nobody wrote.
func (x *attempt) answer(rw http.ResponseWriter, r *http.Request, err error) {
	at := x.failedAt()
	reg := at.access.reg
	if reg.ErrorHandler == nil && x.answeredOutside(rw, at, err) {
		return
	}
	w := new(held.Writer)
	w.Init(rw, r, reg.holdLimit())
	w.DefaultStatus(StatusCode(err))
	answered := false
	defer func() {
		if !answered && drop(w, w.HandlerDone()) == held.Exit {
			x.exit(recover(), debug.Stack())
		}
	}()
	retryAfter(w, err)
	if reg.ErrorHandler != nil {
		reg.ErrorHandler(w, at.req, err)
	}
	switch {
	case w.Untouched():
		answer(w, at.req, reg.logger(), x.unit.Attempt(), err)
	case MayHaveCommitted(err) || x.unit.CommitFailed():
		status, _, _ := w.Status()
		x.log(levelOf(status, err), status, err) // the rest is the ErrorHandler's business
	}
	answered = true
	w.HandlerDone()
	w.Release()
}

// failedAt returns the scope whose registry answers and logs the failure.
func (x *attempt) failedAt() *scope {
	if ctx := x.unit.FailedAt(); ctx != nil {
		return scopeOf(ctx)
	}
	return &x.scope
}

// WriteHeader sets the status. One of 400 or more that comes when another one has
// left is never part of a good response: the page that broke half-way.
func (x *attempt) WriteHeader(status int) {
	first, holds, streams := x.Status()
	if superfluous := first != 0 && (holds || streams) && (status < 100 || status == 101 || 200 <= status && status < 400); superfluous {
		x.logSuperfluous(status)
		return
	}
	if streams && first < 400 && status >= 400 {
		_ = x.unit.FailIfBegun(&x.scope, fmt.Errorf("sqlreq: status %d was set when the response had begun to stream with status %d", status, first))
	}
	x.Writer.WriteHeader(status)
}

// Flush is FlushError for http.Flusher.
func (x *attempt) Flush() { _ = x.FlushError() }

// FlushError sends what is there. An answer of 400 or more that no CommitIf can make
// a success is sent whole.
func (x *attempt) FlushError() error {
	if status, _, _ := x.Status(); status < 400 || x.scope.access.reg.CommitIf != nil || x.unit.Joined() {
		return x.Writer.FlushError()
	}
	return x.FlushAnswer()
}

// Hijack commits what is open and takes the connection over. It fails, and
// leaves the connection alone, if that is impossible or the commit fails. Nothing
// begins any more then.
func (x *attempt) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := x.HijackAfter(func(status int) error {
		return x.unit.EndOpen(status < 400)
	})
	if err == nil {
		x.unit.Hijacked()
	}
	return conn, rw, err
}

// Context, Outer, Within, Retryable, Commits and Answered make x the host of its unit.
func (x *attempt) Context() context.Context { return x.scope.Context }

func (x *attempt) Outer() *unit.Unit { return x.scope.outerUnit() }

func (x *attempt) Within() unit.Within { return x.scope.howWithin() }

func (x *attempt) Retryable(err error) bool { return x.scope.access.reg.Retry.retryable(err) }

// Commits asks every CommitIf, the root's first and the others in the order in
// which their registries were entered; if there is none, the status decides.
func (x *attempt) Commits(status int, joined []any) bool {
	root := x.scope.access.reg
	if root.CommitIf == nil && len(joined) == 0 {
		return status < 400
	}
	if root.CommitIf != nil && !root.CommitIf(status, x.SentHeader()) {
		return false
	}
	for _, reg := range joined {
		if !reg.(*Registry).CommitIf(status, x.SentHeader()) {
			return false
		}
	}
	return true
}

func (x *attempt) Answered() bool { return !x.Untouched() }

func (x *attempt) root() *scope { return &x.scope }

func (s *scope) fail(err error) error {
	if s.access.closed != nil {
		return ErrFinished
	}
	refused := s.unit.Fail(s, harmless(err))
	if refused == unit.ErrHijacked {
		s.logOnly(err, false)
		return nil
	}
	return refused
}

var errPanicked = errors.New("sqlreq: a handler panicked")

// panicked notes that a handler in s did not return. Should something outside
// of it recover, the request fails all the same.
func (s *scope) panicked() {
	if s.access.closed == nil {
		_ = s.unit.Fail(s, errPanicked)
	}
}

func (p *Retry) retryable(err error) bool {
	if err = harmless(err); isBeginTimeout(err) {
		return false // a wait for the pool was long enough
	}
	if p.Retryable != nil {
		return p.Retryable(err)
	}
	return sqlerr.Retryable(err)
}

func isBeginTimeout(err error) bool {
	var b *txn.BeginError
	return errors.As(err, &b) && (errors.Is(b, context.Canceled) || errors.Is(b, context.DeadlineExceeded))
}

// attempts is what the attempts at a request, or at a Do, share.
type attempts struct {
	retry.Loop
	body *replay.Body  // nil if there is none
	lost bool          // the COMMIT of a record had no answer: see package repeat
	view io.ReadCloser // of the body, for the next attempt
}

func newAttempts(p *Retry) attempts {
	t := attempts{Loop: retry.Loop{Attempts: p.Attempts, Within: p.Within, Backoff: p.Backoff, Attempt: 1}}
	if p.Attempts > 1 {
		t.Start = time.Now()
	}
	return t
}

// shouldRetry reports whether a unit that has ended is to be run again, and waits
// before it says so. status is that of the response, 0 in a Do.
func (t *attempts) shouldRetry(u *unit.Unit, status int, err error) bool {
	conflict := err != nil && u.Host().Retryable(err)
	// A plain handler returns no error, and others may not wrap the cause: if the
	// answer is one of 500 or more, a conflict that a statement met counts as its cause.
	hidden := StatusCode(err) >= 500 || err == nil && status >= 500
	conflict = conflict || hidden && u.SawConflict()
	t.lost = t.lost || u.RecordLost()
	if !conflict && !u.RecordLost() || u.Committed() || !t.Left() {
		return false
	}
	if t.body != nil {
		// The next view is made first: it cuts off this attempt's, of which a goroutine
		// may still read, so that what Replayable says stays true.
		t.view = t.body.View()
		if !t.body.Replayable() {
			return false
		}
	}
	return t.Wait(u.Host().Context()) && !u.Committed() // a Do in a goroutine may have, meanwhile
}

// prepare makes the unit of an attempt that follows a COMMIT without an answer wait
// for its database: there may be a failover.
func (t *attempts) prepare(u *unit.Unit) {
	if t.lost {
		u.PersistInBegin(t.Again)
	}
}
