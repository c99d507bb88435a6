package sqlreq

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/sqlreq/sqlreq/internal/held"
	"github.com/sqlreq/sqlreq/internal/reason"
	"github.com/sqlreq/sqlreq/internal/repeat"
	"github.com/sqlreq/sqlreq/internal/txn"
	"github.com/sqlreq/sqlreq/internal/unit"
)

// scope is the context of the handlers behind a middleware. Scopes nest: keys are
// looked up from the innermost outward.
type scope struct {
	context.Context
	outer  *scope // nil for the outermost
	access *access
	unit   *unit.Unit
	req    *http.Request // as handed to the handlers; nil in Do
}

type scopeKey struct{}

func (s *scope) Value(key any) any {
	switch key.(type) {
	case scopeKey:
		return s
	case repeat.Key:
		return asked{s}
	}
	return s.Context.Value(key)
}

// asked is a scope as package repeat asks for it.
type asked struct{ *scope }

func (a asked) Unit() repeat.Unit { return a.unit }

func (a asked) Begin(ctx context.Context, key string) (repeat.Engine, error) {
	o, err := Key(key).begin(ctx, txn.ForStatement, nil)
	if err != nil {
		return 0, err
	}
	defer o.Done()
	return o.Engine(), nil
}

func (a asked) HasErrorHandler() bool { return a.access.reg.ErrorHandler != nil }

// scopeOf returns the innermost scope of ctx, nil if there is none.
func scopeOf(ctx context.Context) *scope {
	s, _ := ctx.Value(scopeKey{}).(*scope)
	return s
}

// host is what a unit of work belongs to: an attempt at a request, or at a Do.
type host interface {
	unit.Host
	root() *scope // the outermost of the unit; its Context is the caller's
}

// root returns the outermost scope of the unit.
func (s *scope) root() *scope { return s.unit.Host().(host).root() }

// outerUnit returns the unit around that of s, which is the outermost of its own,
// nil if there is none.
func (s *scope) outerUnit() *unit.Unit {
	if s.outer == nil {
		return nil
	}
	return s.outer.unit
}

// within reports whether reg was entered by the unit of s.
func (s *scope) within(reg *Registry) bool {
	for c := s; c != nil; c = c.inUnit() {
		if c.access.reg == reg {
			return true
		}
	}
	return false
}

// howWithin says how the unit of s, which is its outermost scope, is inside of the
// unit around it.
func (s *scope) howWithin() (w unit.Within) {
	if s.outer == nil {
		return w
	}
	asked, running := s.outer.unit.Asking(s.Context)
	if c := s.outer.access.closed; c != nil {
		asked, running = c.repeats, c.running.Load()
	}
	w.Repeats = asked && running // afterwards its context is the handler's, if it was kept and handed on
	// Where no context ends there is no channel to compare: context.WithoutCancel,
	// which is for later, looks the same.
	own := repeat.Unmarked(s.Context) == context.Context(s.outer) || txn.IsGiven(s.Context)
	around := s.outer.root().Context.Done()
	w.Waits = running || own || s.outer.unit.Deciding(s.Context) || around != nil && around == s.Context.Done()
	return w
}

// living is a context with the values of one and the life of another.
type living struct {
	context.Context
	life context.Context
}

func (l living) Deadline() (time.Time, bool) { return l.life.Deadline() }
func (l living) Done() <-chan struct{}       { return l.life.Done() }
func (l living) Err() error                  { return l.life.Err() }

// over reports whether the transactions of s are no longer to be used.
func (s *scope) over() bool { return s.access.closed != nil || s.unit.Over() }

// after is s for a function that must not use the transactions any more. repeats
// is whether it runs for each attempt, by its nature.
func (s *scope) after(ctx context.Context, repeats bool) *scope {
	a := *s.access
	a.closed = &closed{repeats: repeats}
	return &scope{Context: ctx, outer: s, access: &a, unit: s.unit, req: s.req}
}

// running returns fn, of the program, as one that the unit of s waits for.
func (s *scope) running(fn func()) func() {
	return func() {
		running := &s.access.closed.running
		running.Store(true)
		defer running.Store(false)
		fn()
	}
}

// inUnit returns the scope around s in the same unit of work, or nil: what is
// outside of a Do is none of its business.
func (s *scope) inUnit() *scope {
	if s.outer == nil || s.outer.unit != s.unit {
		return nil
	}
	return s.outer
}

// find returns the scope of the registry that binds k, looked up from s outward,
// and the binding, if it is opened here.
func (k Key) find(s *scope) (*scope, *binding, error) {
	if b := s.access.reg.binding(k); b != nil && s.access.opens(b) {
		return s, b, nil
	}
	return k.findOutward(s)
}

// findOutward looks k up in the registries around. The first that binds it decides,
// also if nobody opened it: a registry further out would be another database.
func (k Key) findOutward(s *scope) (*scope, *binding, error) {
	for c := s; c != nil; c = c.inUnit() {
		b := c.access.reg.binding(k)
		if b == nil {
			continue
		}
		for d := s; d != nil; d = d.inUnit() {
			if d.access.opens(b) {
				return c, b, nil
			}
		}
		if b.OnDemand {
			return nil, nil, reason.New(ErrUnknownKey, "sqlreq: key %q is bound OnDemand; open it with With(%q) (open here: %s)", k, k, list(s.open()))
		}
		return nil, nil, reason.New(ErrUnknownKey, "sqlreq: key %q is bound, but not opened for this handler; wrap it in Middleware or With(%q) (open here: %s)", k, k, list(s.open()))
	}
	if k == "" {
		return nil, nil, reason.New(ErrUnknownKey, "sqlreq: the empty Key is not valid; use DefaultKey (open here: %s)", list(s.open()))
	}
	return nil, nil, reason.New(ErrUnknownKey, "sqlreq: key %q is not bound; add a Binding for it to New (open here: %s)", k, list(s.open()))
}

// nested serves a request that is in a unit of work already: the outermost
// middleware decides about it, this one only opens its keys.
func (m *middleware) nested(outer *scope, w http.ResponseWriter, r *http.Request) {
	s, req := outer, r
	// A scope of its own is needed where a prefix was stripped (http.StripPrefix makes
	// a new URL), or where there are keys to open.
	if outer.req.URL != r.URL || !outer.entered(&m.access) {
		s = &scope{Context: r.Context(), outer: outer, access: &m.access, unit: outer.unit}
		req = r.WithContext(s)
		s.req = req
		s.join()
	}
	returned := false
	defer func() {
		copyBack(r, req)
		if !returned {
			s.panicked()
		}
	}()
	m.next.ServeHTTP(w, req)
	returned = true
}

// entered reports whether all that a opens is open, and not hidden by another
// registry in between: a registry entered twice is entered once.
func (s *scope) entered(a *access) bool {
	for c := s; c != nil && c.access.reg == a.reg; c = c.inUnit() {
		if c.access.covers(a) {
			return true
		}
	}
	return false
}

// join notes that the registry of s takes part in the decision, if it has a CommitIf.
func (s *scope) join() {
	if reg := s.access.reg; reg.CommitIf != nil && reg != s.root().access.reg {
		s.unit.Join(reg)
	}
}

// Mount returns h as an application under prefix: [http.StripPrefix] and
// [Registry.Middleware] in one. It also answers the prefix itself with a redirect
// to prefix + "/", and puts the prefix back on the redirects that an
// [http.ServeMux] in h makes to clean a path or to add a slash, which would
// lead out of the application. Redirects of the application's own are left
// alone: it has [Prefix].
//
// Mount panics if prefix does not begin with exactly one slash, ends in one, or has a
// wildcard ({}), a space or a backslash in it.
func (reg *Registry) Mount(prefix string, h http.Handler) http.Handler {
	reg.check()
	if !strings.HasPrefix(prefix, "/") || strings.HasPrefix(prefix, "//") || strings.HasSuffix(prefix, "/") {
		panic(fmt.Sprintf("sqlreq: Mount(%q): the prefix must begin with one slash and not end in one, as in %q", prefix, "/"+cmp.Or(strings.Trim(prefix, "/"), "admin")))
	}
	if strings.ContainsAny(prefix, "{} \\") {
		panic(fmt.Sprintf("sqlreq: Mount(%q): the prefix is compared as it stands; it must have no wildcard, space or backslash", prefix))
	}
	if h == nil {
		panic(fmt.Sprintf("sqlreq: Mount(%q): the handler is nil", prefix))
	}
	return &mount{prefix: prefix, next: reg.Middleware(muxRedirects{h})}
}

type mount struct {
	prefix string
	next   http.Handler
}

func (m *mount) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest, rawRest, ok := cutPrefix(r.URL, m.prefix)
	switch {
	case !ok:
		http.NotFound(w, r)
	case rest == "":
		to := prefixOf(r, scopeOf(r.Context())) + singleSlash(r.URL.EscapedPath()) + "/"
		if r.URL.RawQuery != "" {
			to += "?" + r.URL.RawQuery
		}
		http.Redirect(w, r, to, http.StatusTemporaryRedirect)
	default:
		r2 := new(http.Request)
		*r2 = *r
		r2.URL = new(url.URL)
		*r2.URL = *r.URL
		r2.URL.Path, r2.URL.RawPath = rest, rawRest
		defer copyBack(r, r2)
		m.next.ServeHTTP(w, r2)
	}
}

// cutPrefix takes prefix off the path of u at a slash. Where the path has an
// escaped form of its own, as many segments are taken off that.
func cutPrefix(u *url.URL, prefix string) (rest, rawRest string, ok bool) {
	rest, ok = strings.CutPrefix(u.Path, prefix)
	if !ok || rest != "" && rest[0] != '/' {
		return "", "", false
	}
	if u.RawPath == "" {
		return rest, "", true
	}
	end := 0
	for range strings.Count(prefix, "/") {
		if end == len(u.RawPath) {
			return "", "", false // it has fewer segments than the prefix
		}
		next := strings.IndexByte(u.RawPath[end+1:], '/')
		if next < 0 {
			next = len(u.RawPath) - end - 1
		}
		end += 1 + next
	}
	if cut, err := url.PathUnescape(u.RawPath[:end]); err != nil || cut != prefix {
		return "", "", false // a slash of the prefix is an escaped one here
	}
	return rest, u.RawPath[end:], true
}

// muxRedirects puts the prefix back on redirects of an http.ServeMux.
type muxRedirects struct{ http.Handler }

func (m muxRedirects) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var hw *held.Writer
	switch x := w.(type) {
	case *attempt:
		hw = &x.Writer
	case *held.Writer: // of an ErrorHandler
		hw = x
	default:
		hw = held.PassThrough(w, r) // a writer of a middleware in between
		defer hw.Close()
		w = hw
	}
	before := hw.Rewrite(func(status int, h http.Header) bool {
		to := h.Get("Location")
		if to == "" || !isMuxRedirect(r, status, to) {
			return false
		}
		h.Set("Location", Prefix(r.Context())+to)
		for _, k := range []string{"Content-Type", "Content-Length", "Content-Encoding"} {
			h.Del(k) // the body is a link to the wrong place
		}
		return true
	})
	defer hw.Rewrite(before)
	m.Handler.ServeHTTP(w, r)
}

// muxStatus is the status with which the http.ServeMux of the running Go redirects:
// 301 up to Go 1.25, 307 since.
var muxStatus = sync.OnceValue(func() int {
	mux := http.NewServeMux()
	mux.Handle("/a/", http.NotFoundHandler())
	rec := &locationRecorder{header: make(http.Header)}
	mux.ServeHTTP(rec, &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/a"}})
	return rec.status
})

// isMuxRedirect reports whether to is, byte for byte, where http.ServeMux would
// redirect r to (net/http, ServeMux.findHandler): to the clean path, if that is
// another one, or to the path with a slash.
func isMuxRedirect(r *http.Request, status int, to string) bool {
	if status != muxStatus() {
		return false
	}
	asked := r.URL.EscapedPath()
	clean := cleanPath(asked)
	var paths []string
	if clean != asked {
		paths = append(paths, clean)
	}
	if !strings.HasSuffix(clean, "/") {
		paths = append(paths, cleanPath(r.URL.Path)+"/")
	}
	for _, p := range paths {
		u := url.URL{Path: p, RawQuery: r.URL.RawQuery}
		rec := &locationRecorder{header: make(http.Header)}
		http.Redirect(rec, r, u.String(), status)
		if rec.header.Get("Location") == to {
			return true
		}
	}
	return false
}

// locationRecorder lets http.Redirect compute a Location.
type locationRecorder struct {
	header http.Header
	status int
}

func (l *locationRecorder) Header() http.Header         { return l.header }
func (l *locationRecorder) Write(p []byte) (int, error) { return len(p), nil }
func (l *locationRecorder) WriteHeader(status int)      { l.status = status }

// cleanPath is that of net/http: path.Clean, with the slash at the end kept.
func cleanPath(p string) string {
	if p == "" || p[0] != '/' {
		p = "/" + p
	}
	clean := path.Clean(p)
	if strings.HasSuffix(p, "/") && clean != "/" {
		clean += "/"
	}
	return clean
}

// Prefix returns the part of the path that was stripped on the way to the
// innermost registry of ctx, in its escaped form: "/admin" inside an application
// under [Registry.Mount] or [http.StripPrefix], "" where nothing was. It begins
// with exactly one slash, does not end in one, and holds no backslash, so that
// Prefix(ctx) + "/path" is never a link to another host. It works in hooks and
// after the request too.
func Prefix(ctx context.Context) string { return scopeOf(ctx).prefix() }

func (s *scope) prefix() string {
	if s = s.withRequest(); s == nil {
		return ""
	}
	return prefixOf(s.req, s.outer)
}

// withRequest returns s, or the scope around it if s is that of a Do.
func (s *scope) withRequest() *scope {
	for s != nil && s.req == nil {
		s = s.outer
	}
	return s
}

// prefixOf compares the path of r with that in the scope outside or, where there
// is none, with what the client asked for.
func prefixOf(r *http.Request, outer *scope) string {
	here := r.URL.EscapedPath()
	if outer = outer.withRequest(); outer != nil {
		if there, ok := strings.CutSuffix(outer.req.URL.EscapedPath(), here); ok {
			return singleSlash(outer.prefix() + there)
		}
	}
	if u, err := url.ParseRequestURI(r.RequestURI); err == nil {
		if there, ok := strings.CutSuffix(u.EscapedPath(), here); ok {
			return singleSlash(there)
		}
	}
	return outer.prefix()
}

// singleSlash makes p a prefix that cannot name a host: browsers take "//host"
// and "/\host" for one.
func singleSlash(p string) string {
	p = strings.Trim(strings.ReplaceAll(p, `\`, "%5C"), "/")
	if p == "" {
		return ""
	}
	return "/" + p
}

// Do runs fn as a unit of work of its own: a nil result commits, an error or a
// panic rolls back; hooks, savepoints and retries work as in a request, and every
// key of the registry is open. It returns fn's error, a [*CommitError], or that of
// ctx if it ended before COMMIT was sent; [MayHaveCommitted] tells whether work of it
// may be there all the same, before it is done again. Where a rollback was none
// ([ErrTxEnded]), it returns fn's error joined with one that says so.
//
// Inside a request it is independent of the request's transaction, an audit
// record that must survive a rollback for instance: it takes a second
// connection. As a second writer on one SQLite file it waits for the request until
// ctx ends; use a second database there. With a pool of one connection
// (MaxOpenConnections is 1) that the request holds, a use in it is an error at once,
// if ctx is the request's or that of a hook that is running; with another context
// it waits too. With N requests on a pool of N nobody can know, and all wait. A
// database bound by Binding.Tx is the exception: there it nests in the request's
// savepoint.
//
// It panics if the registry is nil, or a limit of it is negative.
func (reg *Registry) Do(ctx context.Context, fn func(context.Context) error) error {
	reg.check()
	outer := scopeOf(ctx)
	t := newAttempts(&reg.Retry)
	for {
		d := new(doAttempt)
		d.scope = scope{Context: ctx, outer: outer, access: &access{reg: reg, every: true}, unit: &d.unit}
		d.unit.Init(d, t.Attempt)
		t.prepare(&d.unit)
		err := d.run(fn)
		if err == nil {
			return nil
		}
		if !t.shouldRetry(&d.unit, 0, err) {
			return mark(&d.unit, err, true)
		}
	}
}

// Atomic runs fn so that all of it stays or nothing, wherever it is called: for code
// that handlers, jobs and tests share. If ctx is that of a request, or Do, that has
// entered this registry and has not ended, fn is a part of that: a savepoint is laid
// on every transaction that is open there (none if none is), an error or a panic of
// fn undoes what fn did in every database, rolls back what fn has begun, and drops
// its hooks; otherwise what fn did belongs to the request, whose Retry sees its
// conflicts. Elsewhere, in hooks and after Hijack, Atomic is [Registry.Do]; with the
// context of a request, or Do, that has ended it is [ErrFinished], as Tx is.
//
// fn gets a context in which every key of the registry is open. While it runs,
// statements, Savepoint, BeginTx and Atomic with another context are refused, and
// Commit, Rollback and Hijack with any. With drivers for PostgreSQL and MySQL rows
// must be closed before.
func (reg *Registry) Atomic(ctx context.Context, fn func(context.Context) error) error {
	reg.check()
	s := scopeOf(ctx)
	if s == nil || s.access.closed != nil || !s.within(reg) {
		return reg.Do(ctx, fn)
	}
	switch refused := s.unit.Refused(); refused {
	case nil:
	case unit.ErrHijacked:
		return reg.Do(ctx, fn)
	default:
		return refused // a Do would commit beside the next attempt
	}
	part := &scope{Context: ctx, outer: s, access: &access{reg: reg, every: true}, unit: s.unit, req: s.req}
	return s.unit.Atomic(part, part, fn)
}

// doAttempt is an attempt at a Do.
type doAttempt struct {
	scope scope // its Context is the caller's, its req nil
	unit  unit.Unit
}

func (d *doAttempt) run(fn func(context.Context) error) error {
	over := false
	defer func() {
		if !over {
			d.abandon()
		}
	}()
	_ = d.scope.fail(fn(&d.scope))
	err := d.unit.Finish(http.StatusOK)
	over = true
	return err
}

// abandon ends the attempt when its function panics or exits the goroutine.
func (d *doAttempt) abandon() {
	if err := d.unit.Abandon(); MayHaveCommitted(err) {
		d.scope.access.reg.logger().LogAttrs(context.WithoutCancel(d.scope.Context), slog.LevelWarn,
			"sqlreq: Do did not return, and its work, or a part of it, may be committed",
			slog.String("key", keyOf(err)), slog.Int("attempt", d.unit.Attempt()), slog.Any("err", err))
	}
}

// Context, Outer, Within, Retryable, Commits and Answered make d the host of its unit.
func (d *doAttempt) Context() context.Context { return d.scope.Context }

func (d *doAttempt) Outer() *unit.Unit { return d.scope.outerUnit() }

func (d *doAttempt) Within() unit.Within { return d.scope.howWithin() }

func (d *doAttempt) Retryable(err error) bool { return d.scope.access.reg.Retry.retryable(err) }

func (d *doAttempt) Commits(int, []any) bool { return true } // its error is the failure of the unit

func (d *doAttempt) Answered() bool { return false }

func (d *doAttempt) root() *scope { return &d.scope }
