package modeltest

import (
	"errors"
	"fmt"
	"net/http"
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
	class  string // "!" is any
	retry  bool   // retryable
	status int    // of a StatusError
}

func (f *failure) String() string {
	if f == nil {
		return "ok"
	}
	return f.class
}

// any makes f one whose text is nobody's business.
func (f *failure) any() *failure { return &failure{"!", f.retry, f.status} }

var (
	txEnded    = &failure{class: "ended"}
	unknownKey = &failure{class: "unknown key"}
	begun      = &failure{class: "begun"}
	txDone     = &failure{class: "done"}
	canceled   = &failure{class: "canceled"}
	refused    = &failure{class: "!"}
	modelErrs  = []*failure{{"program 0", false, 0}, {"program 1", true, 0}, {"program 2", false, 404}, {"program 3", false, 503}, {"program 4", true, 409}}
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
	return &failure{class: name, retry: name == "conflict" || name == "deadlock"}
}

// mayEnd is what G11 lists.
func (f *failure) mayEnd() bool { return f.class == "full" || f.class == "deadlock" }

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
	broken   *failure // may have been ended by the server
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
	commitFailed bool
	committed    bool // no retry
	met          bool // a statement met a conflict
	waited       bool // for a BEGIN, in vain
	answered     bool // something was written, or the connection hijacked
	finished     bool
	panicked     bool
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

// exit is how a function is left otherwise than by return.
type exit int

const (
	stays exit = iota
	panics
	exits
)

func (u *unit) fail(f *failure, apps ...int) {
	if u.err == nil && f != nil {
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

func (e *menv) begin(key string) (*tx, *failure) {
	app, b := e.find(key)
	if b == nil {
		return nil, unknownKey
	}
	t := e.on(b.server)
	switch {
	case t == nil:
		return e.beginNow(app, b, b.readOnly, b.serial)
	case t.by != b && (t.readOnly != b.readOnly || t.serial != b.serial || t.by.guard != b.guard):
		return nil, begun
	case t.broken != nil:
		return nil, t.broken.any()
	case t.behind && *e.gone:
		return nil, refused // for either reason
	case t.behind:
		return nil, txEnded
	}
	return t, nil
}

func (e *menv) beginNow(app int, b *binding, readOnly, serial bool) (*tx, *failure) {
	if *e.gone {
		e.waited = true
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
		return nil, failed(driver.ErrBadConn)
	}
	if b.guard {
		if f := t.run("SAVEPOINT guard"); f != nil {
			e.meet(f)
			t.run("ROLLBACK")
			e.event(t, "RolledBack", true, f)
			return nil, f
		}
	}
	e.open = append(e.open, t)
	return t, nil
}

// endTx ends t as asked if that is possible, after those of the keys committed. fate is what its hooks follow.
func (u *unit) endTx(t *tx, commit bool, committed []string) (fate string, err *failure) {
	u.open = slices.DeleteFunc(u.open, func(o *tx) bool { return o == t })
	defer func() { t.over = true }()
	outcome, wrote := "", false
	switch {
	case t.behind:
		outcome, err, wrote = "Ended", txEnded, true
	case !commit:
		t.run("ROLLBACK")
		outcome, fate = "RolledBack", "rollback"
	case t.reads():
		outcome, fate = "Committed", "commit"
		if t.run("ROLLBACK") != nil || t.broken != nil {
			outcome, fate = "RolledBack", "rollback" // it did not end well, but what was read was read
		}
	case t.broken != nil:
		t.run("ROLLBACK")
		outcome, fate, err = "RolledBack", "rollback", t.broken.any()
	default:
		ambiguous := false
		if t.by.guard {
			if err = t.run("RELEASE SAVEPOINT guard"); err != nil {
				t.run("ROLLBACK")
				ambiguous = true
			}
		}
		if err == nil {
			err = t.run("COMMIT")
			ambiguous = err != nil && slices.Contains([]string{"bad", "plain"}, err.class)
		}
		outcome, fate, wrote = "Committed", "commit", true
		if err != nil {
			outcome, fate, wrote = "CommitFailed", pick(ambiguous, "", "rollback"), ambiguous
			err = &failure{fmt.Sprintf("commit %s, ambiguous %v, committed %v", t.by.key, ambiguous, committed), err.retry, 0}
		}
	}
	for v := u; wrote && v != nil; v = v.parent {
		v.committed = true
	}
	u.event(t, outcome, commit, err)
	return fate, err
}

func (u *unit) event(t *tx, outcome string, commit bool, err *failure) {
	what := err.String()
	if outcome == "RolledBack" {
		what = pick(u.err != nil || err != nil, "failed", "ok")
		if u.panicked || !u.finished {
			what = "!" // a panic has no error, and who asks for Rollback needs none
		}
	}
	u.events = append(u.events, fmt.Sprintf("app %d, %s, %s, attempt %d: %s", t.app, t.by.key, outcome, u.attempt, what))
}

// end ends the unit.
func (u *unit) end(commit bool) {
	u.finished = true
	if commit && *u.gone {
		commit = false
		if len(u.open) > 0 || u.waited && !u.answered {
			u.fail(canceled, 0, 1)
		}
	}
	fates, commit := u.endAll(commit)
	hooks := u.hooks
	u.hooks = nil
	for _, h := range hooks {
		fate, ok := fates[h.server]
		if !ok {
			fate = pick(commit, "commit", "rollback")
		}
		h.run(fate)
	}
}

// failedToEnd fails the unit because a transaction did not end as asked.
func (u *unit) failedToEnd(f *failure) {
	u.fail(f, 0, 1)
	u.commitFailed = u.commitFailed || strings.HasPrefix(f.class, "commit ")
}

// endAll ends all that is open, in the order of the BEGINs, until one fails: the rest are rolled back.
func (u *unit) endAll(commit bool) (fates map[int]string, all bool) {
	for _, t := range u.open {
		// One that is lost already keeps all from being committed.
		if commit && t.behind {
			u.fail(txEnded, 0, 1)
			commit = false
		} else if commit && t.broken != nil && !t.reads() {
			u.fail(t.broken.any(), 0, 1)
			commit = false
		}
	}
	fates = make(map[int]string)
	var committed []string
	for _, t := range slices.Clone(u.open) {
		fate, err := u.endTx(t, commit, committed)
		fates[t.server] = fate
		if err != nil {
			u.failedToEnd(err)
			commit = false
		} else if commit && !t.readOnly {
			committed = append(committed, t.by.key)
		}
	}
	return fates, commit
}

func (h *hook) run(fate string) {
	if fate != pick(h.commit, "commit", "rollback") {
		return
	}
	for v := h.unit; h.commit && v != nil; v = v.parent {
		v.committed = true // what it did must not be done again
	}
	m := h.unit.model
	m.trace = append(m.trace, fmt.Sprintf("hook %d", h.op.id))
	switch h.op.n % hookKinds {
	case hookUses:
		m.trace = append(m.trace, fmt.Sprintf("hook %d: Tx = finished", h.op.id))
	case hookDoes:
		lazy := &op{kind: opExec, key: "lazy", id: h.op.id, must: true}
		alive := false
		e := &menv{unit: &unit{model: m, parent: h.unit, gone: &alive}}
		f, _ := e.do(0, func(e *menv) (*failure, exit) {
			_, f := e.exec(lazy, fmt.Sprintf("PUT hook %d", h.op.id))
			return f, stays
		})
		m.trace = append(m.trace, fmt.Sprintf("hook %d: Do = %v", h.op.id, f))
	}
}

// do is Registry.Do of an application.
func (e *menv) do(app int, fn func(*menv) (*failure, exit)) (*failure, exit) {
	for n := 1; ; n++ {
		u := &unit{model: e.model, app: app, parent: e.unit, attempt: n, gone: e.gone}
		f, ex := fn(&menv{unit: u, doors: []door{{app: app, all: true}}, handles: make(map[string]*tx)})
		if ex != stays {
			u.panicked = true
			u.end(false)
			return nil, ex
		}
		u.fail(f)
		u.end(u.err == nil)
		if u.err == nil {
			return nil, stays
		}
		if !u.conflict(500) || u.committed || n >= e.p.apps[app].attempts || *u.gone {
			return u.err, stays
		}
	}
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
	switch o.kind {
	case opExec, opQuery:
		result, f = e.exec(o, o.statement(e.attempt))
	case opRaw:
		result, f = e.raw(o)
	case opRawEnd:
		result, f = e.rawEnd(o)
	case opTx:
		t, err := e.begin(o.key)
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
		e.fail(modelErrs[o.n%errorKinds], e.innermost())
	case opAfterCommit, opAfterRollback:
		f = e.after(o)
	case opSub:
		f, ex = e.sub(o)
	case opDo:
		if e.p.one {
			return " not tried", nil, stays
		}
		f, ex = e.do(o.n%2, func(e *menv) (*failure, exit) { return e.block(&o.block) })
	case opCancel:
		e.model.gone = true
	case opWrite:
		f = e.res.write(o.text())
	case opStatus:
		e.res.writeHeader(statuses[o.n%len(statuses)])
	case opFlush:
		if e.res.hijacked {
			return " not tried", nil, stays
		}
		e.res.flush()
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
	t, f := e.begin(o.key)
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
	fate, f := e.endTx(t, commit, nil)
	if f != nil {
		e.failedToEnd(f)
	}
	e.runHooks(t, fate)
	return f
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

// hijack commits what is open, and then takes the connection.
func (e *menv) hijack() *failure {
	switch {
	case e.res.hijacked:
		return refused
	case e.err != nil:
		return e.err.any()
	case *e.gone:
		return canceled
	}
	for _, t := range e.open {
		if len(t.points) > 0 {
			return refused
		}
	}
	open := slices.Clone(e.open)
	fates, _ := e.endAll(true)
	for _, t := range open {
		e.runHooks(t, fates[t.server])
	}
	if e.err != nil {
		return e.err
	}
	e.res.hijacked = true
	return nil
}

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
	t, f := e.begin(o.key)
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
			return &failure{"!", f.retry || b.retry, f.status}, stays
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
	t.broken = t.run("ROLLBACK TO SAVEPOINT " + s.name)
	return t.broken
}

// sub is a handler called by the handler.
func (e *menv) sub(o *op) (*failure, exit) {
	kind := o.n % subKinds
	if kind == subPlain {
		return e.block(&o.block)
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
		if t, f = inner.begin(o.key); f == nil {
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

// reply is the response as it is put together.
type reply struct {
	req       *request
	header    int // Content-Length in the header, -1: none
	declared  int // in the header as it was at WriteHeader
	status    int
	body      string
	written   int
	streaming bool
	hijacked  bool
}

func (r *reply) noBody() bool { return r.status == 204 || r.status == 304 }

func (r *reply) set(status int) {
	r.status, r.declared = status, r.header
}

func (r *reply) writeHeader(status int) {
	if status >= 400 {
		r.header = -1
	}
	switch {
	case r.hijacked:
	case r.status == 0:
		r.set(status)
	case status >= 400 && !r.streaming:
		r.body, r.written = "", 0
		r.set(status)
	}
}

func (r *reply) write(s string) *failure {
	if r.hijacked {
		return refused
	}
	if r.status == 0 {
		r.set(200)
	}
	if r.noBody() {
		return refused
	}
	r.written += len(s)
	if r.req.method != "HEAD" {
		r.body += s
		r.streaming = r.streaming || len(r.body) > holdLimit
	}
	return nil
}

func (r *reply) flush() {
	if r.status == 0 {
		r.set(200)
	}
	completes := r.req.method == "HEAD" || r.noBody() || r.declared >= 0 && r.written >= r.declared
	r.streaming = r.streaming || !completes
}

// complete reports whether the response is complete once it is let go.
func (r *reply) complete() bool {
	return r.declared < 0 || r.req.method == "HEAD" || r.noBody() || r.written == r.declared
}

// serve is what becomes of a request.
func (m *model) serve(req *request) {
	m.req, m.gone = req, false
	a := &m.p.apps[0]
	retries := a.attempts > 1 && !a.never
	over := false // the limit of the body
	for n := 1; ; n++ {
		u := &unit{model: m, attempt: n, gone: &m.gone, apps: []int{0}}
		res := &reply{req: req, header: -1, declared: -1}
		if req.declare {
			res.header = req.block.total()
		}
		body := req.body
		m.read = 0
		e := &menv{unit: u, doors: []door{{app: 0}}, handles: make(map[string]*tx), body: &body, res: res}
		f, ex := e.block(&req.block)
		over = over || m.read > bodyLimit
		if ex != stays {
			u.panicked = true
			u.end(false)
			m.want = append(m.want, m.left(res, ex))
			return
		}
		if f != nil && req.plain {
			res.writeHeader(500)
		} else {
			u.fail(f, 0)
		}
		u.answered = res.status != 0 || res.hijacked
		if res.status == 0 {
			res.set(200)
		}
		status := res.status
		u.end(u.err == nil && u.wants(status))
		if retries && !res.streaming && !res.hijacked && u.conflict(status) && !u.committed && n < a.attempts && !over && !m.gone {
			continue
		}
		m.want = append(m.want, u.answer(res, retries && !over))
		return
	}
}

// conflict reports whether that is what the unit failed on. A failure that looks like
// one of the server's own may hide one that a statement met; status is that of a plain handler.
func (u *unit) conflict(status int) bool {
	if u.err == nil {
		return status >= 500 && u.met
	}
	return u.err.retry || u.met && (u.err.status == 0 || u.err.status >= 500)
}

// wants asks who may veto.
func (u *unit) wants(status int) bool {
	asked := false
	for _, app := range u.apps {
		if f := commitIfs[u.p.apps[app].commitIf]; f != nil {
			asked = true
			if !f(status) {
				return false
			}
		}
	}
	return asked || status < 400
}

// left is the answer when a panic, or Goexit, left the middleware.
func (m *model) left(res *reply, ex exit) answer {
	if res.hijacked {
		return answer{complete: true, statuses: []int{200}, bodies: []string{"hijacked"}, left: pick(ex == panics, programPanic, "exit")}
	}
	a := answer{silent: !res.streaming, written: res.body, left: pick(ex == panics, programPanic, "exit")}
	if ex == panics && m.req.recover && !res.streaming {
		return answer{complete: true, statuses: []int{500}, bodies: []string{"recovered\n"}, left: a.left}
	}
	return a
}

func (u *unit) answer(res *reply, repeated bool) answer {
	stands := u.err == nil || res.status >= 400 && !u.commitFailed
	switch {
	case res.hijacked:
		return answer{complete: true, statuses: []int{200}, bodies: []string{"hijacked"}, left: "returned"}
	case stands && res.complete():
		a := answer{complete: true, statuses: []int{res.status}, bodies: []string{res.body}, handler: fmt.Sprint(u.attempt), left: "returned", streamed: res.streaming}
		return a
	case stands: // shorter than declared: net/http closes the connection
		return answer{written: res.body, left: "returned"}
	case res.streaming:
		return answer{written: res.body, left: "abort"}
	}
	a := answer{complete: true, left: "returned"}
	switch {
	case u.err.status > 0:
		a.statuses = []int{u.err.status}
	case *u.gone || u.err.retry && repeated && !u.committed:
		a.statuses = []int{503}
	case u.err.retry || u.met:
		a.statuses = []int{500, 503} // without a retry the contract does not say
	default:
		a.statuses = []int{500}
	}
	for _, app := range u.errApps {
		if u.p.apps[app].custom {
			a.bodies = append(a.bodies, fmt.Sprintf("custom %d", app))
			continue
		}
		for _, status := range a.statuses {
			a.bodies = append(a.bodies, http.StatusText(status)+"\n")
		}
	}
	return a
}

// expect returns what must come of p.
func expect(p *program) *model {
	m := &model{p: p}
	note := func(line string) { m.trace = append(m.trace, line) }
	for i := range m.servers {
		m.servers[i] = newServer(p, i, note)
		m.servers[i].Gone = func() { m.gone = true }
	}
	for _, req := range p.requests {
		note("request")
		m.serve(req)
	}
	for i, s := range m.servers {
		m.data[i] = s.Data()
	}
	return m
}
