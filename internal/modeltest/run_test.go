package modeltest

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/modeltest/mysqlite"
)

// programErrors are what programs return and give to Fail.
var programErrors = []error{
	errors.New("program error"),
	fmt.Errorf("wrapped: %w", StateError("40001")),
	&sqlreq.StatusError{Code: 404},
	&sqlreq.StatusError{Code: 503, Err: errors.New("full")},
	sqlreq.Errorf(409, "wrapped: %w", StateError("40001")),
}

const programPanic = "program panic"

// class says as much about an error as the contract does.
func class(err error) string {
	var commit *sqlreq.CommitError
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &commit):
		return fmt.Sprintf("commit %s, ambiguous %v, committed %v", commit.Key, commit.Ambiguous, commit.Committed)
	}
	is := func(target error) func(error) bool { return func(err error) bool { return errors.Is(err, target) } }
	for _, known := range []struct {
		name string
		is   func(error) bool
	}{
		{"finished", is(sqlreq.ErrFinished)},
		{"ended", is(sqlreq.ErrTxEnded)},
		{"unknown key", is(sqlreq.ErrUnknownKey)},
		{"begun", is(sqlreq.ErrBegun)},
		{"program 0", is(programErrors[0])},
		{"program 1", is(programErrors[1])},
		{"program 2", is(programErrors[2])},
		{"program 3", is(programErrors[3])},
		{"program 4", is(programErrors[4])},
		{"done", is(sql.ErrTxDone)},
		{"canceled", is(context.Canceled)},
		{"bad", is(driver.ErrBadConn)},
		{"plain", is(ErrFault)},
		{"full", as[*mysqlite.Full]},
		{"no transaction", as[*mysqlite.NoTx]},
		{"no savepoint", as[*mysqlite.NoSavepoint]},
		{"no savepoint", as[*mysqlite.DoesNotExist]},
		{"no transaction", is(StateError("25P01"))},
		{"no savepoint", is(StateError("3B001"))},
		{"aborted", is(StateError("25P02"))},
		{"rolled back", is(ErrRolledBack)},
		{"I/O error", as[*mysqlite.IOErr]},
		{"timeout", as[*mysqlite.Timeout]},
		{"deadlock", as[*mysqlite.Deadlock]},
		{"conflict", is(StateError("40001"))},
		{"constraint", is(StateError("23503"))},
	} {
		if known.is(err) {
			return known.name
		}
	}
	return "other: " + err.Error()
}

func as[T error](err error) bool {
	var target T
	return errors.As(err, &target)
}

// seen is what came of a program.
type seen struct {
	trace     []string // statements, results and hooks, in order
	events    []string
	responses []response
	data      [3]map[string]string
	faulty    []string // never right, whatever the model says

	behind         int // requests in which a transaction was ended behind the library's back
	behindByServer int // by the server
}

// response is what a client got.
type response struct {
	complete bool
	nothing  bool // not even a status
	noBody   bool // the protocol sends none
	status   int
	body     string
	handler  []string // X-Handler
	retry    string   // Retry-After
	left     string   // how the outermost handler was left
	inUse    int      // connections in use when the first byte was sent
}

// world is an application that runs.
type world struct {
	seen
	p       *program
	servers [3]*Server
	dbs     [3]*sql.DB
	regs    [2]*sqlreq.Registry

	client  *Client  // of all servers
	units   int      // how many there were
	current *attempt // in which the program is
}

func newWorld(p *program) *world {
	x := &world{p: p, client: new(Client)}
	for i := range x.servers {
		x.servers[i] = newServer(p, i, x.note)
		x.servers[i].Client = x.client
		x.dbs[i] = sql.OpenDB(Connector{x.servers[i]})
		x.dbs[i].SetMaxIdleConns(10)
	}
	if p.one {
		x.dbs[0].SetMaxOpenConns(1)
	}
	for i := range x.regs {
		x.regs[i] = x.registry(i)
	}
	return x
}

func newServer(p *program, i int, log func(string)) *Server {
	return &Server{Name: "db" + strconv.Itoa(i), Faults: p.faults[i], Engine: p.engine, Every: p.every, Client: new(Client), Log: log}
}

func (x *world) note(line string) { x.trace = append(x.trace, line) }

func (x *world) wrong(format string, args ...any) {
	x.faulty = append(x.faulty, fmt.Sprintf(format, args...))
}

func (x *world) registry(i int) *sqlreq.Registry {
	a := &x.p.apps[i]
	var bindings []sqlreq.Binding
	for _, b := range a.bindings {
		opts := b.options()
		bound := sqlreq.Binding{
			Key: sqlreq.Key(b.key), DB: x.dbs[b.server], OnDemand: b.onDemand, Guard: b.guard,
			TxOptions: func(context.Context, *http.Request) *sql.TxOptions { return opts },
		}
		if b.route {
			bound.DB = nil
			bound.Route = func(context.Context, *http.Request) (*sql.DB, error) { return x.dbs[b.server], nil }
		}
		bindings = append(bindings, bound)
	}
	reg, err := sqlreq.New(bindings...)
	if err != nil {
		panic(err)
	}
	reg.HoldLimit = holdLimit
	reg.Logger = slog.New(slog.DiscardHandler)
	if f := commitIfs[a.commitIf]; f != nil {
		reg.CommitIf = func(status int, _ http.Header) bool { return f(status) }
	}
	if a.custom {
		reg.ErrorHandler = func(w http.ResponseWriter, r *http.Request, err error) {
			if len(w.Header()["X-Handler"]) > 0 {
				x.wrong("the ErrorHandler found the handler's header")
			}
			_, _ = fmt.Fprintf(w, "custom %d", i)
		}
	}
	reg.Retry = sqlreq.Retry{Attempts: a.attempts, Within: time.Hour, BodyLimit: bodyLimit, Backoff: func(int) time.Duration { return 0 }}
	if a.never {
		reg.Retry.When = func(*http.Request) bool { return false }
	}
	reg.Observe = func(_ context.Context, e sqlreq.Event) {
		what := class(e.Err)
		if e.Outcome == sqlreq.RolledBack && e.Err != nil {
			what = "failed"
		}
		x.events = append(x.events, fmt.Sprintf("app %d, %s, %v, attempt %d: %s", i, e.Key, e.Outcome, e.Attempt, what))
	}
	return reg
}

func (b *binding) options() *sql.TxOptions {
	if !b.readOnly && !b.serial {
		return nil
	}
	return txOptions(b.readOnly, b.serial)
}

func txOptions(readOnly, serial bool) *sql.TxOptions {
	opts := &sql.TxOptions{ReadOnly: readOnly}
	if serial {
		opts.Isolation = sql.LevelSerializable
	}
	return opts
}

// exchange is a request that is served.
type exchange struct {
	*world
	req     *request
	job     job
	attempt int
	cancel  context.CancelFunc
	left    string
	last    context.Context // of the handler
	done    chan struct{}
	sent    string // body
	touched bool   // the response, in this attempt
	conn    net.Conn
}

// env is where an operation runs.
type env struct {
	ctx     context.Context // of the innermost function
	base    context.Context // of the handler, or the Do
	w       http.ResponseWriter
	r       *http.Request
	handles map[string]*sql.Tx // as the program got them last
	attempt int
}

func (x *exchange) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	x.cancel = cancel
	for _, s := range x.servers {
		s.Gone = cancel
	}
	defer close(x.done)
	defer func() {
		if x.conn != nil {
			x.conn.Close()
		}
	}()
	x.left = "exit"
	defer func() {
		v := recover()
		switch {
		case v == nil:
			return
		case v == http.ErrAbortHandler:
			x.left = "abort"
		default:
			x.left = fmt.Sprint(v)
		}
		if !x.req.recover {
			panic(v)
		}
		http.Error(w, "recovered", 500)
	}()
	x.regs[0].Middleware(x.handler(x.req.plain, x.handle)).ServeHTTP(w, r.WithContext(ctx))
	x.left = "returned"
}

// handler makes f a HandlerFunc or, in the way that programs do it, a plain one.
func (x *exchange) handler(plain bool, f func(http.ResponseWriter, *http.Request) error) http.Handler {
	if !plain {
		return sqlreq.HandlerFunc(f)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := f(w, r); err != nil {
			x.touched = true
			w.Header().Del("Content-Length")
			w.WriteHeader(500)
		}
	})
}

func (x *exchange) handle(w http.ResponseWriter, r *http.Request) error {
	x.attempt++
	x.enter(&x.job)
	x.last, x.touched = r.Context(), false
	w.Header().Add("X-Handler", strconv.Itoa(x.attempt))
	if x.req.declare {
		w.Header().Set("Content-Length", strconv.Itoa(x.req.block.total()))
	}
	e := &env{ctx: r.Context(), base: r.Context(), w: w, r: r, handles: make(map[string]*sql.Tx), attempt: x.attempt}
	return x.block(e, &x.req.block)
}

func (x *exchange) block(e *env, b *block) error {
	for _, o := range b.ops {
		if o.attempt != 0 && o.attempt != e.attempt {
			continue
		}
		result, err := x.do(e, o)
		x.note(fmt.Sprintf("%d %s = %s%s", o.id, o, class(err), result))
		if err != nil && o.must {
			return err
		}
	}
	switch b.end {
	case endError:
		return programErrors[b.err]
	case endPanic:
		panic(programPanic)
	case endExit:
		runtime.Goexit()
	}
	return nil
}

func (x *exchange) do(e *env, o *op) (result string, err error) {
	key := sqlreq.Key(o.key)
	if o.outside && slices.Contains(takeContext, o.kind) {
		e = &env{ctx: e.base, base: e.base, w: e.w, r: e.r, handles: e.handles, attempt: e.attempt}
	}
	switch o.kind {
	case opExec, opQuery, opRaw:
		return x.statement(e, o)
	case opRawEnd:
		tx := e.handles[o.key]
		x.client.Raw = true
		defer func() { x.client.Raw = false }()
		switch {
		case tx == nil:
			return " no tx", nil
		case o.n%2 == 0:
			return "", tx.Rollback()
		}
		return "", tx.Commit()
	case opTx:
		return "", e.keep(o.key, func() (*sql.Tx, error) { return key.Tx(e.ctx) })
	case opBeginTx:
		return "", e.keep(o.key, func() (*sql.Tx, error) {
			if o.n%4 == 0 {
				return key.BeginTx(e.ctx, nil)
			}
			return key.BeginTx(e.ctx, txOptions(o.n&1 != 0, o.n&2 != 0))
		})
	case opSavepoint:
		return x.recovering(o, func() error { return x.savepoint(e, o) })
	case opCommit, opRollback:
		return "", x.endNow(e.ctx, o)
	case opFail:
		if o.rollbackOnly() {
			x.current.only = true
			return "", sqlreq.RollbackOnly(e.ctx, programErrors[o.n%errorKinds])
		}
		return "", sqlreq.Fail(e.ctx, programErrors[o.n%errorKinds])
	case opAfterCommit:
		h := x.noteHook(e.ctx, o)
		return "", key.AfterCommit(e.ctx, func(ctx context.Context) { x.hook(ctx, h) })
	case opAfterRollback:
		h := x.noteHook(e.ctx, o)
		return "", key.AfterRollback(e.ctx, func(ctx context.Context) { x.hook(ctx, h) })
	case opSub:
		return x.recovering(o, func() error { return x.sub(e, o) })
	case opDo:
		return x.recovering(o, func() error { return x.doUnit(e, o) })
	case opCancel:
		x.cancel()
		return "", nil
	case opWrite:
		x.touched = true
		_, err := io.WriteString(e.w, o.text())
		return "", err
	case opStatus:
		status := statuses[o.n%len(statuses)]
		if status >= 400 {
			e.w.Header().Del("Content-Length") // as http.Error does
		}
		x.touched = true
		e.w.WriteHeader(status)
		return "", nil
	case opFlush:
		if x.conn != nil {
			return " not tried", nil // net/http panics
		}
		x.touched = true
		return "", http.NewResponseController(e.w).Flush()
	case opHijack:
		if x.touched && x.conn == nil {
			return " not tried", nil
		}
		return "", x.hijack(e)
	case opRead:
		if x.conn != nil {
			return " not tried", nil
		}
		b, err := io.ReadAll(e.r.Body)
		if !strings.HasSuffix(x.sent, string(b)) {
			x.wrong("read %q of %q", b, x.sent)
		}
		return fmt.Sprintf(" %d bytes", len(b)), err
	}
	panic("unknown operation")
}

// hijack answers by itself.
func (x *exchange) hijack(e *env) error {
	conn, _, err := http.NewResponseController(e.w).Hijack()
	if err != nil {
		return err
	}
	x.conn = conn
	x.current.hijacked = true
	_, err = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhijacked")
	return err
}

func (e *env) keep(key string, get func() (*sql.Tx, error)) error {
	tx, err := get()
	if err == nil {
		e.handles[key] = tx
	}
	return err
}

// recovering is what a handler does that survives a panic of what it calls.
func (x *exchange) recovering(o *op, f func() error) (result string, err error) {
	if o.recover {
		defer func() {
			if v := recover(); v != nil {
				result = fmt.Sprintf(" recovered %v", v)
			}
		}()
	}
	return "", f()
}

func (x *exchange) statement(e *env, o *op) (result string, err error) {
	ctx, end := endable(e.ctx)
	defer end()
	query := o.statement(e.attempt)
	get := strings.HasPrefix(query, "GET")
	key, tx := sqlreq.Key(o.key), e.handles[o.key]
	x.client.Raw = o.kind == opRaw
	defer func() { x.client.Raw = false }()
	var rows *sql.Rows
	switch {
	case o.kind == opQuery:
		rows, err = key.QueryContext(ctx, query)
	case o.kind == opExec:
		_, err = key.ExecContext(ctx, query)
	case tx == nil:
		return " no tx", nil
	case get:
		rows, err = tx.QueryContext(ctx, query)
	default:
		_, err = tx.ExecContext(ctx, query)
	}
	if !get || err != nil {
		return "", err
	}
	defer rows.Close()
	var v string
	if !rows.Next() {
		return " no row", rows.Err()
	}
	err = rows.Scan(&v)
	return " " + v, err
}

// endable is ctx for one statement, which may end it.
func endable(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	end := func() { cancel() }
	return context.WithValue(ctx, EndKey{}, end), end
}

func (x *exchange) savepoint(e *env, o *op) error {
	ctx := e.ctx
	if o.outside {
		ctx = e.base
	}
	return sqlreq.Key(o.key).Savepoint(ctx, func(ctx context.Context) error {
		inner := *e
		inner.ctx = ctx
		return x.block(&inner, &o.block)
	})
}

func (x *exchange) hook(ctx context.Context, h *noted) {
	o := h.op
	h.ran++
	h.unit.ranHook = h.unit.ranHook || h.commit
	x.note(fmt.Sprintf("hook %d", o.id))
	if ctx.Err() != nil {
		x.wrong("the context of hook %d has ended", o.id)
	}
	switch o.n % hookKinds {
	case hookPanics:
		panic("hook panic")
	case hookUses:
		_, err := sqlreq.Key(o.key).Tx(ctx)
		x.note(fmt.Sprintf("hook %d: Tx = %s", o.id, class(err)))
	case hookDoes:
		j := h.unit.begin(!h.commit)
		err := x.regs[0].Do(ctx, func(ctx context.Context) error {
			defer x.enter(j)()
			ctx, end := endable(ctx)
			defer end()
			_, err := sqlreq.Key("lazy").ExecContext(ctx, fmt.Sprintf("PUT hook %d", o.id))
			return err
		})
		x.judgeDo(j, err)
		x.note(fmt.Sprintf("hook %d: Do = %s", o.id, class(err)))
	}
}

func (x *exchange) sub(e *env, o *op) error {
	body := func(w http.ResponseWriter, r *http.Request) error {
		inner := *e
		inner.ctx, inner.base, inner.w, inner.r = r.Context(), r.Context(), w, r
		return x.block(&inner, &o.block)
	}
	if x.conn != nil && o.entersMiddleware() {
		return nil // it would be a request of its own, without a response
	}
	var h http.Handler
	switch o.n % subKinds {
	case subPlain:
		return x.block(e, &o.block)
	case subHandler:
		h = x.handler(false, body)
	case subTxFunc:
		h = sqlreq.Key(o.key).Handler(func(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
			e.handles[o.key] = tx
			return body(w, r)
		})
	case subNested:
		h = x.regs[1].Middleware(x.handler(false, body))
	case subNestedPlain:
		h = x.regs[1].Middleware(x.handler(true, body))
	case subSame:
		h = x.regs[0].Middleware(x.handler(false, body))
	case subWith:
		h = x.regs[0].With("lazy")(x.handler(false, body))
	case subWithNested:
		h = x.regs[1].With("sub")(x.handler(false, body))
	}
	h.ServeHTTP(e.w, e.r.WithContext(e.ctx))
	return nil
}

func (x *exchange) doUnit(e *env, o *op) error {
	attempt := 0
	j := x.current.begin(false)
	err := x.regs[o.n%2].Do(e.ctx, func(ctx context.Context) error {
		defer x.enter(j)()
		attempt++
		return x.block(&env{ctx: ctx, base: ctx, handles: make(map[string]*sql.Tx), attempt: attempt}, &o.block)
	})
	x.judgeDo(j, err)
	return err
}

// serve makes a request of its own connection and waits until all is over.
func (x *world) serve(req *request) {
	e := &exchange{world: x, req: req, done: make(chan struct{}), sent: strings.Repeat("b", req.body)}
	client, server := net.Pipe()
	conn := &pipe{Conn: server, exchange: e}
	listener.conns <- conn
	go func() {
		proto := "HTTP/1.1"
		if req.old {
			proto = "HTTP/1.0"
		}
		fmt.Fprintf(client, "%s / %s\r\nHost: test\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", req.method, proto, req.body, e.sent)
	}()
	raw, _ := io.ReadAll(client) // the error is that of a connection that is gone
	<-e.done
	client.Close()
	res := parseResponse(raw, req.method)
	res.complete = res.complete && !conn.reset.Load()
	res.left, res.inUse = e.left, conn.inUse
	x.judge(&e.job, &res)
	x.responses = append(x.responses, res)
	x.checkOver(e.last)
}

func parseResponse(raw []byte, method string) (got response) {
	res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), &http.Request{Method: method})
	if err != nil {
		return response{nothing: true}
	}
	body, err := io.ReadAll(res.Body)
	return response{
		complete: err == nil, status: res.StatusCode, body: string(body),
		noBody:  method == "HEAD" || res.StatusCode == 204 || res.StatusCode == 304,
		handler: res.Header["X-Handler"], retry: res.Header.Get("Retry-After"),
	}
}

// checkOver looks for what a request has left behind.
func (x *world) checkOver(ctx context.Context) {
	for i, db := range x.dbs {
		if n := db.Stats().InUse; n != 0 {
			x.wrong("db%d: %d connections in use", i, n)
		}
	}
	for name, f := range map[string]func(sqlreq.Key) error{
		"Tx":         func(k sqlreq.Key) error { _, err := k.Tx(ctx); return err },
		"BeginTx":    func(k sqlreq.Key) error { _, err := k.BeginTx(ctx, nil); return err },
		"Exec":       func(k sqlreq.Key) error { _, err := k.ExecContext(ctx, "PUT late 1"); return err },
		"Commit":     func(k sqlreq.Key) error { return k.Commit(ctx) },
		"Rollback":   func(k sqlreq.Key) error { return k.Rollback(ctx) },
		"AfterWhich": func(k sqlreq.Key) error { return k.AfterCommit(ctx, func(context.Context) {}) },
		"Fail":       func(k sqlreq.Key) error { return sqlreq.Fail(ctx, programErrors[0]) },
	} {
		for _, k := range []sqlreq.Key{"main", "other"} {
			if err := f(k); !errors.Is(err, sqlreq.ErrFinished) {
				x.wrong("%s of %s after the request: %v", name, k, err)
			}
		}
	}
}

// run runs p and returns what was seen.
func run(p *program) seen {
	x := newWorld(p)
	for _, req := range p.requests {
		x.note("request")
		x.serve(req)
	}
	for i, s := range x.servers {
		x.data[i] = s.Data()
		x.faulty = append(x.faulty, s.Faulty()...)
		x.dbs[i].Close()
	}
	return x.seen
}

// pipe is the server's end of a connection in memory.
type pipe struct {
	net.Conn
	exchange *exchange
	began    bool
	inUse    int
	linger   atomic.Bool
	reset    atomic.Bool
}

func (c *pipe) Write(p []byte) (int, error) {
	if !c.began {
		c.began = true
		for _, db := range c.exchange.dbs {
			c.inUse += db.Stats().InUse
		}
	}
	return c.Conn.Write(p)
}

// SetLinger is that of net.TCPConn: closed with 0, it is reset.
func (c *pipe) SetLinger(int) error {
	c.linger.Store(true)
	return nil
}

func (c *pipe) Close() error {
	if c.linger.Load() {
		c.reset.Store(true)
	}
	return c.Conn.Close()
}

// listener gives connections in memory to one server for all tests.
var listener = &pipes{conns: make(chan net.Conn)}

type pipes struct{ conns chan net.Conn }

func (l *pipes) Accept() (net.Conn, error) { return <-l.conns, nil }
func (l *pipes) Close() error              { return nil }
func (l *pipes) Addr() net.Addr            { return &net.UnixAddr{Name: "pipes"} }

type exchangeKey struct{}

var startServer = sync.OnceFunc(func() {
	srv := &http.Server{
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, exchangeKey{}, c.(*pipe).exchange)
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Context().Value(exchangeKey{}).(*exchange).ServeHTTP(w, r)
		}),
	}
	go func() { _ = srv.Serve(listener) }()
})

func TestMain(m *testing.M) {
	startServer()
	m.Run()
}
