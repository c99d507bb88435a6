package modeltest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"database/sql/driver"
)

// The model says what must come of a program. It is the contract read aloud:
// one goroutine, no contexts, no database/sql, and databases of its own that
// fail in the same way.
type model struct {
	seen
	p       *program
	servers [3]*Server
	want    []answer
	req     *request
	gone    bool // the client
	read    int  // bytes of the request's body that the handler was given in one attempt
}

// answer is what a client may get.
type answer struct {
	complete bool
	silent   bool // nothing may have left
	streamed bool // it was sent before the end of the transaction
	statuses []int
	bodies   []string
	written  string // of which a broken transfer is a part
	handler  string // X-Handler
	left     string
}

// failure is an error as the contract tells them apart.
type failure struct {
	class       string // "!" is any
	retry       bool   // retryable
	status      int    // of a StatusError
	unavailable bool   // a database could not be reached, or a Do gave up
}

func (f *failure) String() string {
	if f == nil {
		return "ok"
	}
	return f.class
}

// any makes f one whose text is nobody's business.
func (f *failure) any() *failure { return &failure{"!", f.retry, f.status, f.unavailable} }

var (
	finished   = &failure{class: "finished"}
	txEnded    = &failure{class: "ended"}
	unknownKey = &failure{class: "unknown key"}
	begun      = &failure{class: "begun"}
	txDone     = &failure{class: "done"}
	canceled   = &failure{class: "canceled"}
	refused    = &failure{class: "!"}
	modelErrs  = []*failure{{class: "program 0"}, {class: "program 1", retry: true}, {class: "program 2", status: 404}, {class: "program 3", status: 503}, {class: "program 4", retry: true, status: 409}}
)

// failed is the failure of an error of a Server.
func failed(err error) *failure {
	if err == nil {
		return nil
	}
	name := class(err)
	if strings.HasPrefix(name, "other") {
		name = "!"
	}
	return &failure{class: name, retry: name == "conflict" || name == "deadlock" || name == "timeout"}
}

// mayEnd is what G11 lists.
func (f *failure) mayEnd() bool {
	return f.class == "full" || f.class == "deadlock" || f.class == "timeout" || f.class == "bad"
}

// tx is a transaction.
type tx struct {
	session  *Session
	server   int
	app      int
	by       *binding
	readOnly bool
	serial   bool
	names    int
	points   []*point // open savepoints
	broken   *failure // may have been ended by the server: E of G11
	handed   bool     // its *sql.Tx was handed out: H of G11
	vanished bool     // there was no such savepoint when one was to be gone back to
	behind   bool     // ended through *sql.Tx
	over     bool     // of no use to those who still have it
}

func (t *tx) run(query string) *failure {
	_, err := t.session.Run(query, func() {})
	return failed(err)
}

// reads reports whether it ends with ROLLBACK, whatever happens.
func (t *tx) reads() bool { return t.readOnly && !t.serial }

type point struct {
	tx   *tx
	name string
}

type hook struct {
	op     *op
	commit bool
	server int
	point  *point // nil outside of savepoints
	unit   *unit
}

// unit is an attempt at a request, or at a Do.
type unit struct {
	*model
	app          int
	parent       *unit
	attempt      int
	gone         *bool
	open         []*tx // in the order of their BEGINs
	hooks        []*hook
	apps         []int // entered
	err          *failure
	errApps      []int // whose ErrorHandler may answer
	only         bool  // by RollbackOnly: the answer stands
	commitFailed bool
	unknown      bool // nobody knows how a transaction has ended
	committed    bool // no retry
	repeats      bool // it runs for each attempt of the parent, by its nature
	met          bool // a statement met a conflict
	waited       bool // for a BEGIN, in vain
	answered     bool // something was written, or the connection hijacked
	finished     bool
	panicked     bool
	begun        bool // a transaction was begun, also one that Guard's savepoint refused
	late         bool // see reply.late
	hijacked     bool // nothing begins any more
}

type menv struct {
	*unit
	doors   []door // innermost last
	points  []*point
	base    []*point
	handles map[string]*tx
	body    *int // what is left of it
	res     *reply
}

// door is what a middleware opened.
type door struct {
	app  int
	keys []string // nil: every key that is not OnDemand
	all  bool     // of a Do
}

func (d *door) opens(b *binding) bool {
	if d.keys != nil {
		return slices.Contains(d.keys, b.key)
	}
	return d.all || !b.onDemand
}

// unreachable is f as that of a begin.
func unreachable(f *failure) *failure {
	return &failure{f.class, f.retry, f.status, f.class == "bad"}
}

// exit is how a function is left otherwise than by return.
type exit int

const (
	stays exit = iota
	panics
	exits
)

// fail makes the unit fail. One whose connection was hijacked only logs.
func (u *unit) fail(f *failure, apps ...int) {
	if u.err == nil && f != nil && !u.hijacked {
		u.err, u.errApps = f, apps
	}
}

func (u *unit) meet(f *failure) { u.met = u.met || f != nil && f.retry }

func (u *unit) on(server int) *tx {
	for _, t := range u.open {
		if t.server == server {
			return t
		}
	}
	return nil
}

// find looks a key up from the innermost registry outward.
func (e *menv) find(key string) (app int, b *binding) {
	for i := len(e.doors) - 1; i >= 0; i-- {
		app := e.doors[i].app
		bound := e.p.apps[app].bindings
		at := slices.IndexFunc(bound, func(b binding) bool { return b.key == key })
		if at < 0 {
			continue
		}
		for _, d := range e.doors {
			if d.app == app && d.opens(&bound[at]) {
				return app, &bound[at]
			}
		}
		return 0, nil
	}
	return 0, nil
}

// use is what a transaction is wanted for.
type use int

const (
	forStatement use = iota
	forSavepoint
	forCaller
)

func (e *menv) begin(key string, why use) (*tx, *failure) {
	app, b := e.find(key)
	if b == nil {
		return nil, unknownKey
	}
	t := e.on(b.server)
	switch {
	case t == nil:
		t, f := e.beginNow(app, b, b.readOnly, b.serial)
		if f == nil {
			t.handed = why == forCaller
		}
		return t, f
	case t.by != b && (t.readOnly != b.readOnly || t.serial != b.serial || t.by.guard != b.guard):
		return nil, begun
	case t.broken != nil:
		return nil, t.broken.any()
	case why != forStatement && t.behind:
		return nil, txEnded
	case why != forSavepoint && !e.inInnermost(t):
		return nil, refused
	case t.behind && *e.gone:
		return nil, refused // for either reason
	case t.behind:
		return nil, txEnded
	}
	t.handed = t.handed || why == forCaller
	return t, nil
}

// inInnermost reports whether e is inside of the innermost savepoint of t.
func (e *menv) inInnermost(t *tx) bool {
	var top *point
	if len(t.points) > 0 {
		top = t.points[len(t.points)-1]
	}
	return innermost(e.points, t) == top
}

// starves reports whether e needs a connection that a unit around it has, the only one.
func (e *menv) starves(server int) bool {
	if server != 0 || !e.p.one {
		return false
	}
	for u := e.parent; u != nil; u = u.parent {
		if u.on(server) != nil {
			return true
		}
	}
	return false
}

func (e *menv) beginNow(app int, b *binding, readOnly, serial bool) (*tx, *failure) {
	e.waited = e.waited || *e.gone
	switch {
	case e.starves(b.server):
		return nil, refused
	case *e.gone:
		return nil, canceled
	}
	query := pick(readOnly, "BEGIN READ ONLY", "BEGIN")
	t := &tx{server: b.server, app: app, by: b, readOnly: readOnly, serial: serial}
	for range 3 { // database/sql tries that often to find a connection that lives
		t.session = e.servers[b.server].Open()
		_, err := t.session.Run(query, nil)
		if err == nil {
			break
		}
		if f := failed(err); !errors.Is(err, driver.ErrBadConn) {
			e.meet(f)
			return nil, f
		}
		t.session = nil
	}
	if t.session == nil {
		return nil, unreachable(failed(driver.ErrBadConn))
	}
	e.begun = true
	if e.res != nil {
		e.heedLate(e.res)
	}
	if b.guard {
		if f := t.run("SAVEPOINT guard"); f != nil {
			e.meet(f)
			t.run("ROLLBACK")
			e.event(end{t: t, outcome: "RolledBack", err: f})
			return nil, unreachable(f)
		}
	}
	e.open = append(e.open, t)
	return t, nil
}

func (e *menv) block(b *block) (*failure, exit) {
	for _, o := range b.ops {
		if o.attempt != 0 && o.attempt != e.attempt {
			continue
		}
		result, f, ex := e.op(o)
		if ex != stays {
			return nil, ex
		}
		e.trace = append(e.trace, fmt.Sprintf("%d %s = %v%s", o.id, o, f, result))
		if f != nil && o.must {
			return f, stays
		}
	}
	switch b.end {
	case endError:
		return modelErrs[b.err], stays
	case endPanic:
		return nil, panics
	case endExit:
		return nil, exits
	}
	return nil, stays
}

func (e *menv) op(o *op) (result string, f *failure, ex exit) {
	if o.outside && slices.Contains(takeContext, o.kind) {
		outside := *e
		outside.points = e.base
		e = &outside
	}
	if e.hijacked && slices.Contains(useTx, o.kind) {
		return "", finished, stays
	}
	switch o.kind {
	case opExec, opQuery:
		result, f = e.exec(o, o.statement(e.attempt))
	case opRaw:
		result, f = e.raw(o)
	case opRawEnd:
		result, f = e.rawEnd(o)
	case opTx:
		t, err := e.begin(o.key, forCaller)
		if err == nil {
			e.handles[o.key] = t
		}
		f = err
	case opBeginTx:
		f = e.beginTx(o)
	case opSavepoint:
		f, ex = e.savepoint(o)
	case opCommit, opRollback:
		f = e.endNow(o)
	case opFail:
		e.only = e.only || e.err == nil && !e.hijacked && o.rollbackOnly()
		e.fail(modelErrs[o.n%errorKinds], e.innermost())
	case opAfterCommit, opAfterRollback:
		f = e.after(o)
	case opSub:
		f, ex = e.sub(o)
	case opDo:
		f, ex = e.do(o.n%2, func(e *menv) (*failure, exit) { return e.block(&o.block) })
	case opCancel:
		e.model.gone = true
	case opWrite:
		f = e.res.write(o.text())
	case opStatus:
		e.res.writeHeader(statuses[o.n%len(statuses)])
		e.heedLate(e.res)
	case opFlush:
		if e.res.hijacked {
			return " not tried", nil, stays
		}
		e.res.flush(!e.mayVeto())
	case opHijack:
		if e.res.status != 0 && !e.res.hijacked {
			return " not tried", nil, stays
		}
		f = e.hijack()
	case opRead:
		if e.res.hijacked {
			return " not tried", nil, stays
		}
		n := *e.body
		*e.body = 0
		e.read += n
		result = fmt.Sprintf(" %d bytes", n)
	}
	if ex == panics && o.recover {
		return " recovered " + programPanic, nil, stays
	}
	return result, f, ex
}

func (e *menv) innermost() int {
	return e.doors[len(e.doors)-1].app
}

// exec is a statement by the Key, which sees what comes of it.
func (e *menv) exec(o *op, query string) (string, *failure) {
	t, f := e.begin(o.key, forStatement)
	if f != nil {
		return "", f
	}
	if *e.gone {
		return "", canceled // it never ran
	}
	late := false
	v, err := t.session.Run(query, func() { late = true })
	if err != nil {
		f := failed(err)
		e.meet(f)
		if f.mayEnd() || late {
			t.broken = f
		}
		return "", f
	}
	if strings.HasPrefix(query, "GET") {
		return " " + v, nil
	}
	return "", nil
}

// raw is a statement on *sql.Tx, of which sqlreq knows nothing.
func (e *menv) raw(o *op) (string, *failure) {
	t := e.handles[o.key]
	switch {
	case t == nil:
		return " no tx", nil
	case *e.gone:
		return "", canceled
	case t.over || t.behind:
		return "", txDone
	}
	query := o.statement(e.attempt)
	v, err := t.session.Run(query, func() {})
	if err != nil {
		return "", failed(err)
	}
	return pick(strings.HasPrefix(query, "GET"), " "+v, ""), nil
}

func (e *menv) rawEnd(o *op) (string, *failure) {
	t := e.handles[o.key]
	switch {
	case t == nil:
		return " no tx", nil
	case t.over || t.behind:
		return "", txDone
	}
	t.behind = true
	return "", t.run(pick(o.n%2 == 0, "ROLLBACK", "COMMIT"))
}

func (e *menv) beginTx(o *op) *failure {
	app, b := e.find(o.key)
	switch {
	case b == nil:
		return unknownKey
	case e.on(b.server) != nil:
		return begun
	}
	t, f := e.beginNow(app, b, o.n&1 != 0 && o.n%4 != 0, o.n&2 != 0)
	if f == nil {
		t.handed = true
		e.handles[o.key] = t
	}
	return f
}

func (e *menv) endNow(o *op) *failure {
	_, b := e.find(o.key)
	if b == nil {
		return unknownKey
	}
	t := e.on(b.server)
	commit := o.kind == opCommit
	switch {
	case t == nil:
		return nil
	case len(t.points) > 0:
		return refused
	case commit && *e.gone:
		e.fail(canceled, 0, 1)
		return canceled
	case commit && e.err != nil:
		return e.err.any()
	}
	d := e.endTx(t, commit, nil)
	e.event(d)
	e.runHooks(t, d.fate)
	return d.err
}

// runHooks runs those of a transaction that has ended early.
func (u *unit) runHooks(t *tx, fate string) {
	var mine, others []*hook
	for _, h := range u.hooks {
		if h.server == t.server {
			mine = append(mine, h)
		} else {
			others = append(others, h)
		}
	}
	u.hooks = others
	for _, h := range mine {
		h.run(fate)
	}
}

// hijack commits what is open, or rolls it back after RollbackOnly, and then takes
// the connection.
func (e *menv) hijack() *failure {
	switch {
	case e.res.hijacked:
		return refused
	case e.err != nil && !e.only:
		return e.err.any()
	case *e.gone && len(e.open) > 0 && !e.only:
		return canceled
	}
	for _, t := range e.open {
		if len(t.points) > 0 {
			return refused
		}
	}
	open := slices.Clone(e.open)
	fates, _ := e.endAll(!e.only)
	for _, t := range open {
		e.runHooks(t, fates[t.server])
	}
	if e.err != nil && !e.only {
		return e.err
	}
	e.res.hijacked, e.unit.hijacked = true, true
	return nil
}

// useTx are those that use transactions, or what follows their end.
var useTx = []kind{opExec, opQuery, opTx, opBeginTx, opSavepoint, opCommit, opRollback, opAfterCommit, opAfterRollback}

func (e *menv) after(o *op) *failure {
	_, b := e.find(o.key)
	if b == nil {
		return unknownKey
	}
	h := &hook{op: o, commit: o.kind == opAfterCommit, server: b.server, unit: e.unit}
	if t := e.on(b.server); t != nil {
		h.point = innermost(e.points, t)
	}
	e.hooks = append(e.hooks, h)
	return nil
}

// innermost returns the last of points that is one of t.
func innermost(points []*point, t *tx) *point {
	for i := len(points) - 1; i >= 0; i-- {
		if points[i].tx == t {
			return points[i]
		}
	}
	return nil
}

func (e *menv) savepoint(o *op) (*failure, exit) {
	t, f := e.begin(o.key, forSavepoint)
	if f != nil {
		return f, stays
	}
	in := e.points
	if o.outside {
		in = e.base
	}
	var top *point
	if len(t.points) > 0 {
		top = t.points[len(t.points)-1]
	}
	switch {
	case innermost(in, t) != top:
		return refused, stays
	case *e.gone:
		return canceled, stays
	}
	t.names++
	s := &point{t, fmt.Sprintf("s%d", t.names)}
	if f := t.run("SAVEPOINT " + s.name); f != nil {
		e.meet(f)
		if f.mayEnd() {
			t.broken = f
		}
		return f, stays
	}
	t.points = append(t.points, s)
	inner := *e
	inner.points = append(slices.Clone(in), s)
	f, ex := inner.block(&o.block)
	switch {
	case ex != stays:
		e.back(s)
		return nil, ex
	case f != nil:
		if b := e.back(s); b != nil {
			return &failure{"!", f.retry || b.retry, f.status, f.unavailable}, stays
		}
		return f, stays
	case t.behind:
		t.points = t.points[:len(t.points)-1]
		return txEnded, stays
	case t.broken != nil:
		// The function says that all is well, and what it did may be gone.
		f := t.broken.any()
		e.back(s)
		return f, stays
	}
	if f := t.run("RELEASE SAVEPOINT " + s.name); f != nil {
		e.back(s)
		return f.any(), stays
	}
	t.points = t.points[:len(t.points)-1]
	for _, h := range e.hooks {
		if h.point == s {
			h.point = top
		}
	}
	return nil, stays
}

// back rolls back to s, the innermost savepoint of its transaction.
func (e *menv) back(s *point) *failure {
	t := s.tx
	t.points = t.points[:len(t.points)-1]
	e.hooks = slices.DeleteFunc(e.hooks, func(h *hook) bool { return h.point == s })
	if t.behind {
		t.broken = txEnded
		return txEnded
	}
	f := t.run("ROLLBACK TO SAVEPOINT " + s.name)
	if f == nil {
		f = t.run("RELEASE SAVEPOINT " + s.name)
	}
	// If no statement has told of an end, nobody knows what ran after it.
	t.handed = t.handed || f != nil && t.broken == nil
	t.broken = f
	t.vanished = f != nil && f.told() == wasGone
	return f
}

// sub is a handler called by the handler.
func (e *menv) sub(o *op) (*failure, exit) {
	kind := o.n % subKinds
	if kind == subPlain {
		return e.block(&o.block)
	}
	if e.hijacked && o.entersMiddleware() {
		return nil, stays
	}
	inner := *e
	inner.base = e.points
	switch kind {
	case subNested, subNestedPlain:
		inner.enter(door{app: 1})
	case subSame:
		inner.enter(door{app: 0})
	case subWith:
		inner.enter(door{app: 0, keys: []string{"lazy"}})
	case subWithNested:
		inner.enter(door{app: 1, keys: []string{"sub"}})
	}
	var f *failure
	ex := stays
	if kind == subTxFunc {
		left := *e.body
		*e.body = 0
		e.read += left
		inner.body = &left
		var t *tx
		if e.hijacked {
			f = finished
		} else if t, f = inner.begin(o.key, forCaller); f == nil {
			e.handles[o.key] = t
		}
	}
	if f == nil {
		f, ex = inner.block(&o.block)
	}
	switch {
	case ex != stays:
		e.fail(&failure{class: "!"}, 0, 1)
		e.panicked = true
	case f != nil && kind == subNestedPlain:
		e.res.writeHeader(500)
		e.heedLate(e.res)
	case f != nil:
		e.fail(f, inner.innermost())
	}
	return nil, ex
}

// enter opens what d opens, unless that is open already and not hidden by another registry.
func (e *menv) enter(d door) {
	for i := len(e.doors) - 1; i >= 0 && e.doors[i].app == d.app; i-- {
		if e.doors[i].covers(&d, e.p.apps[d.app].bindings) {
			return
		}
	}
	e.doors = append(slices.Clone(e.doors), d)
	e.apps = append(e.apps, d.app)
}

func (d *door) covers(o *door, bindings []binding) bool {
	for _, b := range bindings {
		if o.opens(&b) && !d.opens(&b) {
			return false
		}
	}
	return true
}
