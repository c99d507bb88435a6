package sqlreq

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/sqlreq/sqlreq/internal/held"
	"github.com/sqlreq/sqlreq/internal/reason"
	"github.com/sqlreq/sqlreq/internal/repeat"
	"github.com/sqlreq/sqlreq/internal/replay"
	"github.com/sqlreq/sqlreq/internal/txn"
	"github.com/sqlreq/sqlreq/internal/unit"
)

// HandlerFunc is an [http.Handler] that returns an error. The error rolls back
// the request's transactions, as [Fail] does, and is answered by the
// ErrorHandler of the innermost registry when the request ends. A panic that
// leaves it rolls back too, even if something outside recovers it. Without a
// registry the error is logged and answered by the same mapping, [StatusCode].
type HandlerFunc func(http.ResponseWriter, *http.Request) error

// ServeHTTP calls f.
func (f HandlerFunc) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := scopeOf(r.Context())
	returned := false
	defer func() {
		if !returned && s != nil {
			s.panicked()
		}
	}()
	err := f(w, r)
	returned = true
	if err == nil {
		return
	}
	logger := slog.Default()
	if s != nil {
		if s.fail(err) == nil && s.root().req != nil {
			return
		}
		logger = s.access.reg.logger() // in a Do, or after the end: nobody else answers
	}
	if r.Context().Err() != nil {
		err = &unit.Unavailable{Err: err}
	}
	if s != nil {
		err = mark(s.unit, err, false) // what a Do has committed is not to be done again
	}
	answer(w, r, logger, 1, err)
}

// TxFunc is an [http.Handler] that is handed the transaction of [DefaultKey];
// for another key see [Key.Handler]. Otherwise it is a [HandlerFunc].
//
// Before it takes the transaction it reads up to 64 KiB of the request's body,
// so that a client that sends a form slowly holds no connection of the pool; the
// function gets the whole body all the same. A handler of larger uploads should
// call [Tx] when it needs it.
type TxFunc func(http.ResponseWriter, *http.Request, *sql.Tx) error

// ServeHTTP calls f with the transaction of DefaultKey.
func (f TxFunc) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	DefaultKey.Handler(f).ServeHTTP(w, r)
}

// Handler returns f as a handler that is handed the transaction of k.
func (k Key) Handler(f TxFunc) http.Handler {
	return HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		readAhead(r)
		tx, err := k.Tx(r.Context())
		if err != nil {
			return err
		}
		return f(w, r, tx)
	})
}

// aheadLimit is how many bytes of a body TxFunc reads before it begins.
const aheadLimit = 64 << 10

// readAhead reads a small body into memory. An error comes back from the Read that
// gets so far.
func readAhead(r *http.Request) {
	if r.Body == nil || r.Body == http.NoBody {
		return
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{replay.Ahead(r.Body, aheadLimit, r.ContentLength), r.Body}
}

// View returns a handler that calls the method of v named after the request's:
// Get, Head, Post, Put, Patch, Delete or Options. Each may have the shape of an
// [http.HandlerFunc], a [HandlerFunc] or a [TxFunc]. HEAD falls back to Get,
// OPTIONS is answered with the Allow header, any other method gets 405 with it.
//
// View panics if v has no such method, or one of another shape.
func View(v any) http.Handler { return DefaultKey.View(v) }

// View is the function [View] with the transactions of another database.
func (k Key) View(v any) http.Handler {
	if v == nil {
		panic("sqlreq: View(nil); give it a value with methods such as Get(http.ResponseWriter, *http.Request) error")
	}
	value := reflect.ValueOf(v)
	view := &view{handlers: make(map[string]http.Handler)}
	for _, name := range []string{"Get", "Head", "Post", "Put", "Patch", "Delete", "Options"} {
		m := value.MethodByName(name)
		if !m.IsValid() {
			if _, ok := reflect.PointerTo(value.Type()).MethodByName(name); ok {
				panic(fmt.Sprintf("sqlreq: View: method %s of %T has a pointer receiver; give View a pointer", name, v))
			}
			continue
		}
		method := strings.ToUpper(name)
		switch f := m.Interface().(type) {
		case func(http.ResponseWriter, *http.Request):
			view.handlers[method] = HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				f(w, r)
				return nil
			})
		case func(http.ResponseWriter, *http.Request) error:
			view.handlers[method] = HandlerFunc(f)
		case func(http.ResponseWriter, *http.Request, *sql.Tx) error:
			view.handlers[method] = k.Handler(f)
		default:
			panic(fmt.Sprintf("sqlreq: View: method %s of %T is a %T; it must be a func(http.ResponseWriter, *http.Request), with an error as its result or not, or a func(http.ResponseWriter, *http.Request, *sql.Tx) error", name, v, f))
		}
	}
	if len(view.handlers) == 0 {
		panic(fmt.Sprintf("sqlreq: View: %T has none of the methods Get, Head, Post, Put, Patch, Delete, Options", v))
	}
	if get := view.handlers[http.MethodGet]; get != nil && view.handlers[http.MethodHead] == nil {
		view.handlers[http.MethodHead] = get
	}
	allow := []string{http.MethodOptions}
	for method := range view.handlers {
		allow = append(allow, method)
	}
	slices.Sort(allow)
	view.allow = strings.Join(slices.Compact(allow), ", ")
	return view
}

type view struct {
	handlers map[string]http.Handler
	allow    string
}

func (v *view) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch h := v.handlers[r.Method]; {
	case h != nil:
		h.ServeHTTP(w, r)
	case r.Method == http.MethodOptions:
		w.Header().Set("Allow", v.allow)
		w.WriteHeader(http.StatusNoContent)
	default:
		w.Header().Set("Allow", v.allow)
		http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
	}
}

// Fail makes the request fail with err, as if its handler had returned it: for
// handlers that cannot. The handler goes on. The first error counts; nil does
// nothing. Errors are [ErrNoRegistry] and [ErrFinished]. In a Do it makes that fail.
// When the connection was hijacked it only logs err.
func Fail(ctx context.Context, err error) error {
	s := scopeOf(ctx)
	if s == nil {
		return ErrNoRegistry
	}
	return s.fail(err)
}

// RollbackOnly makes the request roll back at its end, whatever its status: every
// transaction, of every key. Its response stands, held or streaming. It is for
// protocols whose errors have the status 200 (gRPC, connect, GraphQL, JSON-RPC):
// call it in an interceptor, with the error that the handler has answered as the
// cause; nil is an error as well. AfterRollback functions run, and AfterCommit
// functions do not, also where nothing was begun; a retryable cause is run again as
// long as the response is held. What an explicit [Commit] has committed stays; a
// later one is refused; Hijack rolls back and takes the connection. The first of it
// and [Fail] counts. It is logged at debug level. Errors are [ErrNoRegistry] and
// [ErrFinished]; after Hijack it only logs. In a Do its cause is the error of the Do.
// It may be called from any goroutine.
func RollbackOnly(ctx context.Context, cause error) error {
	s := scopeOf(ctx)
	switch {
	case s == nil:
		return ErrNoRegistry
	case s.access.closed != nil:
		return ErrFinished
	case cause == nil:
		cause = errRollbackOnly
	}
	refused := s.unit.RollbackOnly(s, harmless(cause))
	if refused == unit.ErrHijacked {
		s.logOnly(cause, true)
		return nil
	}
	return refused
}

var errRollbackOnly = errors.New("sqlreq: RollbackOnly was called without a cause")

// StatusError is an error with the status code to answer it with. Only codes
// from 400 to 599 are heeded.
type StatusError struct {
	Code int
	Err  error
}

// Error returns the text of Err, or of the code if there is none.
func (e *StatusError) Error() string {
	switch {
	case e == nil:
		return "<nil>"
	case e.Err == nil:
		return statusText(e.Code)
	}
	return e.Err.Error()
}

// Unwrap returns Err.
func (e *StatusError) Unwrap() error {
	if e == nil {
		return nil
	}
	return e.Err
}

// Errorf returns a [*StatusError] with an error made as [fmt.Errorf] does, %w
// included. The text is for the log: the default answer is that of the code. With
// a code outside of 400 to 599 the error is a 500 whose text says so.
func Errorf(code int, format string, args ...any) error {
	if code < 400 || code > 599 {
		return &StatusError{Code: http.StatusInternalServerError, Err: fmt.Errorf("sqlreq: Errorf(%d): a status code of an error is from 400 to 599: %w", code, fmt.Errorf(format, args...))}
	}
	return &StatusError{Code: code, Err: fmt.Errorf(format, args...)}
}

// CommitError is a COMMIT that did not succeed.
type CommitError struct {
	Key       Key   // that began the transaction
	Committed []Key // of several databases, those already committed: there is no two-phase commit
	Ambiguous bool  // it is not known what the server has stored: the work, or a part of it, may be there
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

// StatusCode returns the status that the default ErrorHandler answers err with:
// the code of the first [*StatusError] in its chain with one from 400 to 599; 413
// for an [*http.MaxBytesError]; 503 if sqlreq marked it because it waited in vain
// for the database or could not reach it, because a conflict outlasted the attempts,
// or because the request's context has ended, and nothing is or may be committed;
// 500 otherwise, and 200 for nil. No other type's method is asked: the 404 of an
// upstream is not that of this service. An error whose methods panic is a 500.
func StatusCode(err error) int {
	if err == nil {
		return http.StatusOK
	}
	err = harmless(err)
	if code := statusIn(err); code != 0 {
		return code
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) && tooLarge != nil {
		return http.StatusRequestEntityTooLarge
	}
	if isUnavailable(err) {
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// statusIn returns the first valid code of a *StatusError in the tree of err, 0
// if there is none.
func statusIn(err error) int {
	if s, ok := err.(*StatusError); ok && s != nil && s.Code >= 400 && s.Code <= 599 {
		return s.Code
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			return statusIn(inner)
		}
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			if code := statusIn(inner); code != 0 {
				return code
			}
		}
	}
	return 0
}

// mark adds to the error of a unit what StatusCode needs to know for a 503: that the
// context has ended, or that the unit met a conflict which another request may not
// meet. Where something is committed, or the work may have had effects outside of
// the database (repeatable is false: Retry.When), a conflict stays a 500 without
// Retry-After.
func mark(u *unit.Unit, err error, repeatable bool) error {
	switch {
	case u.RecordLost(): // a repeat finds the record, or does the work
		return &unit.Unavailable{Err: err}
	case u.Committed() && isUnavailable(err):
		return &committed{err}
	case u.Committed(), isUnavailable(err):
		return err
	case u.Host().Context().Err() != nil || repeatable && u.Host().Retryable(err):
		return &unit.Unavailable{Err: err}
	}
	return err
}

// committed marks an error of a unit of which something is stored, or may be.
type committed struct{ err error }

func (c *committed) Error() string { return c.err.Error() }
func (c *committed) Unwrap() error { return c.err }

// isUnavailable reports whether another try, a little later, may go well.
func isUnavailable(err error) bool {
	err = harmless(err)
	var u *unit.Unavailable
	var c *committed
	return errors.As(err, &u) && !errors.As(err, &c)
}

// MayHaveCommitted reports whether work of what failed with err may be in a
// database, so that it must not be repeated blindly: err is, or wraps, a
// [*CommitError] whose outcome is unknown or that names committed keys, or
// [ErrTxEnded]. False for nil, and for an error whose methods panic. It is for an
// ErrorHandler, a job runner, a client of [Registry.Do]. What an explicit [Commit]
// has committed before the failure it does not know.
func MayHaveCommitted(err error) bool {
	err = harmless(err)
	var c *CommitError
	if errors.As(err, &c) && c != nil && (c.Ambiguous || len(c.Committed) > 0) {
		return true
	}
	return errors.Is(err, ErrTxEnded)
}

// harmless returns err, or an error in its place if the methods of one in its
// tree panic: those of a typed nil often do.
func harmless(err error) (safe error) {
	if err == nil {
		return nil
	}
	defer func() {
		if recover() != nil {
			safe = fmt.Errorf("sqlreq: an error of type %T, whose methods panic", err)
		}
	}()
	_ = err.Error()
	_ = errors.Is(err, errProbe)
	var probe *probeError
	_ = errors.As(err, &probe)
	return err
}

// errProbe is in no tree of errors: looking for it calls every method there.
var errProbe error = new(probeError)

type probeError struct{ _ byte }

func (*probeError) Error() string { return "probe" }

// answer is the default ErrorHandler. The text of the error stays in the log.
func answer(w http.ResponseWriter, r *http.Request, logger *slog.Logger, attempt int, err error) {
	code := StatusCode(err)
	logFailure(r, logger, levelOf(code, err), code, attempt, err)
	retryAfter(w, err)
	http.Error(w, statusText(code), code)
}

// answeredOutside offers err to the writer that the middleware was given: that of an
// adapter lets its framework's error handler answer, and says whether it has. The
// writer is not looked for by Unwrap: what is between would miss the answer.
func (x *attempt) answeredOutside(rw http.ResponseWriter, at *scope, err error) bool {
	a, ok := rw.(interface {
		AnswerError(*http.Request, error) bool
	})
	if !ok {
		return false
	}
	retryAfter(rw, err)
	if !a.AnswerError(at.req, err) {
		return false
	}
	status := StatusCode(err)
	x.log(levelOf(status, err), status, err)
	return true
}

// retryAfter tells the client to come again where that may help.
func retryAfter(w http.ResponseWriter, err error) {
	err = harmless(err)
	var later *repeat.Later
	if StatusCode(err) == http.StatusServiceUnavailable && isUnavailable(err) || errors.As(err, &later) {
		w.Header().Set("Retry-After", "1") // seconds
	}
}

func (reg *Registry) logger() *slog.Logger {
	if reg.Logger != nil {
		return reg.Logger
	}
	return slog.Default()
}

// levelOf returns the level at which err is logged when the client was sent status.
func levelOf(status int, err error) slog.Level {
	switch {
	case status >= 500:
		return slog.LevelError
	case MayHaveCommitted(err):
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

func commitFailed(err error) bool {
	var c *CommitError
	return errors.As(harmless(err), &c) && c != nil
}

// logAnswered logs the error of a request whose handler's answer stands.
func (x *attempt) logAnswered(state held.State, err error) {
	status := state.Status
	level := levelOf(status, err)
	switch {
	case x.unit.AnswerStands():
		level = levelOf(http.StatusOK, err)
	case state.Hijacked:
		status = StatusCode(err)
		level = levelOf(status, err)
	}
	x.log(level, status, err)
}

func (x *attempt) log(level slog.Level, status int, err error) {
	at := x.failedAt()
	if x.unit.CommitFailed() {
		level = slog.LevelError
	}
	logFailure(at.req, at.access.reg.logger(), level, status, x.unit.Attempt(), err)
}

// logOnly logs an error that comes when the connection was hijacked, and fails
// nothing any more. quiet is that of RollbackOnly.
func (s *scope) logOnly(err error, quiet bool) {
	if err == nil {
		return
	}
	status := StatusCode(err)
	level := levelOf(status, err)
	if quiet {
		level = levelOf(http.StatusOK, err)
	}
	logFailure(s.req, s.access.reg.logger(), level, status, s.unit.Attempt(), err)
}

// logFailure logs the error of a request. A client that has gone is nobody's
// fault; a COMMIT that failed, and work that may have stayed, are somebody's all
// the same.
func logFailure(r *http.Request, logger *slog.Logger, level slog.Level, status, attempt int, err error) {
	ctx := r.Context()
	client := ctx
	if s := scopeOf(ctx); s != nil {
		client = s.root().Context // a middleware in between may have cancelled one of its own
	}
	err = harmless(err)
	text := "sqlreq: request failed"
	switch {
	case MayHaveCommitted(err):
		text = "sqlreq: request failed, and its work, or a part of it, may be committed"
	case errors.Is(client.Err(), context.Canceled) && !commitFailed(err):
		level = slog.LevelDebug
	}
	if !logger.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("method", r.Method), slog.String("path", pathOf(r)),
		slog.Int("status", status), slog.Int("attempt", attempt), slog.Any("err", err),
	}
	if key := keyOf(err); key != "" {
		attrs = append(attrs, slog.String("key", key))
	}
	logger.LogAttrs(context.WithoutCancel(ctx), level, text, attrs...)
}

// logSuperfluous logs a WriteHeader that comes too late, with who called it.
func (x *attempt) logSuperfluous(status int) {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	f, more := frames.Next()
	for more && strings.HasPrefix(f.Function, "net/http.") { // as of http.Redirect
		f, more = frames.Next()
	}
	r := x.scope.req
	x.scope.access.reg.logger().LogAttrs(context.WithoutCancel(r.Context()), slog.LevelWarn, "sqlreq: superfluous WriteHeader",
		slog.String("method", r.Method), slog.String("path", pathOf(r)), slog.Int("status", status),
		slog.String("caller", fmt.Sprintf("%s (%s:%d)", f.Function, path.Base(f.File), f.Line)))
}

// pathOf returns the path that the client has asked for, with every prefix that was
// stripped since.
func pathOf(r *http.Request) string {
	if u, err := url.ParseRequestURI(r.RequestURI); err == nil && u.Path != "" {
		return u.Path
	}
	prefix := Prefix(r.Context())
	if plain, err := url.PathUnescape(prefix); err == nil {
		prefix = plain
	}
	return prefix + r.URL.Path
}

// keyOf returns the key that err is about, "" if there is none.
func keyOf(err error) string {
	var c *CommitError
	var b *txn.BeginError
	switch {
	case errors.As(err, &c) && c != nil:
		return string(c.Key)
	case errors.As(err, &b):
		return b.Key
	}
	return reason.KeyOf(err)
}

// protect runs a hook or Observe: a panic of it is logged, and changes nothing. r
// is nil in a Do.
func (reg *Registry) protect(r *http.Request, what string, fn func()) {
	defer func() {
		if v := recover(); v != nil {
			reg.logPanic(r, what, v, debug.Stack())
		}
	}()
	fn()
}

func (reg *Registry) logPanic(r *http.Request, what string, v any, stack []byte) {
	attrs := []any{"panic", v, "stack", string(stack)}
	if r != nil {
		attrs = append(attrs, "method", r.Method, "path", pathOf(r))
	}
	reg.logger().Error("sqlreq: "+what+" panicked", attrs...)
}

func statusText(code int) string {
	if t := http.StatusText(code); t != "" {
		return t
	}
	return "Status " + strconv.Itoa(code)
}
