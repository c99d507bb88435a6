package modeltest

import (
	"fmt"
	"slices"
	"strings"
)

// A program is an application, what will fail in its databases, and the requests
// that are made to it. Everything in it was chosen by bytes.
type program struct {
	apps     [2]app // the second is nested under the first
	engine   Engine // of all its databases
	every    int    // Server.Every of them
	one      bool   // the pool of main has one connection
	faults   [3][]Fault
	requests []*request
}

// app is a Registry.
type app struct {
	commitIf int // 0: none, else one of commitIfs
	attempts int
	never    bool // Retry.When says no
	custom   bool // an ErrorHandler
	bindings []binding
}

type binding struct {
	key      string
	server   int
	readOnly bool
	serial   bool // serializable
	onDemand bool
	guard    bool
	route    bool
}

var commitIfs = []func(status int) bool{
	nil,
	func(int) bool { return true },
	func(status int) bool { return status < 300 },
	func(int) bool { return false },
}

const (
	holdLimit = 64
	bodyLimit = 32
)

type request struct {
	method  string
	old     bool // HTTP/1.0
	body    int  // bytes
	recover bool // a middleware outside recovers panics and answers 500
	declare bool // a Content-Length of all that the program could write
	plain   bool // an http.HandlerFunc, not a HandlerFunc
	block   block
}

// block is the body of a function.
type block struct {
	ops []*op
	end ending
	err int // which, for endError
}

type ending int

const (
	endNil ending = iota
	endError
	endPanic
	endExit // runtime.Goexit
)

type kind int

const (
	opExec kind = iota // by the Key
	opQuery
	opRaw    // on the last *sql.Tx of the key
	opRawEnd // Commit or Rollback on it
	opTx
	opBeginTx
	opSavepoint
	opCommit
	opRollback
	opFail
	opAfterCommit
	opAfterRollback
	opSub // a handler called by the handler
	opDo
	opCancel // the client goes
	opWrite
	opStatus
	opFlush
	opRead
	opHijack // if nothing was written so far
)

type op struct {
	kind    kind
	id      int
	key     string
	n       int  // its meaning depends on the kind
	attempt int  // only in this one; 0: in all
	must    bool // if it fails, so does the function
	recover bool
	outside bool // with the context of the handler, not of the innermost savepoint
	block   block
}

// Variants of opSub.
const (
	subPlain   = iota // a function
	subHandler        // HandlerFunc
	subTxFunc
	subNested      // the nested application, with a HandlerFunc
	subNestedPlain // the nested application, with an http.HandlerFunc
	subSame        // the same registry once more
	subWith        // With("lazy")
	subWithNested  // the nested application, opening one key only
	subKinds
)

// Variants of hooks.
const (
	hookNotes = iota
	hookPanics
	hookUses // the transaction, which is finished
	hookDoes // a Do
	hookKinds
)

var (
	keys       = []string{"main", "alias", "other", "ro", "serial", "lazy", "sub"}
	statuses   = []int{200, 201, 204, 304, 400, 404, 409, 500, 503}
	sizes      = []int{1, 20, holdLimit, holdLimit + 1, 5000}
	errorKinds = 5
)

// source is where choices come from: bytes, and then nothing but zeros.
type source struct {
	bytes []byte
	ids   int
	room  int // how many operations may still be made

	routed bool // some key has a Route
	dense  bool // the requests do little but use one database, much
}

// n chooses one of n.
func (s *source) n(n int) int {
	if len(s.bytes) == 0 {
		return 0
	}
	b := s.bytes[0]
	s.bytes = s.bytes[1:]
	return int(b) % n
}

// odds is true once in n times, and false when the bytes have run out.
func (s *source) odds(n int) bool { return s.n(n) == n-1 }

func generate(data []byte) *program {
	s := &source{bytes: data, room: 40}
	n := s.n(256)
	p := &program{engine: []Engine{MariaDB, SQLite, PostgreSQL, SQLite}[n%4], one: s.odds(4)}
	if n >= 100 {
		p.every = 1 + n/4%5
		s.dense = n >= 150
	}
	p.apps[0] = s.app(
		binding{key: "main", server: 0},
		binding{key: "alias", server: 0},
		binding{key: "other", server: 1, route: s.odds(2)},
		binding{key: "ro", server: 1, readOnly: true},
		binding{key: "serial", server: 2, readOnly: true, serial: true},
		binding{key: "lazy", server: 2, onDemand: true},
	)
	p.apps[1] = s.app(
		binding{key: "main", server: 2},
		binding{key: "sub", server: 0, route: s.odds(2)},
		binding{key: "deep", server: 1},
	)
	for _, a := range p.apps {
		s.routed = s.routed || slices.ContainsFunc(a.bindings, func(b binding) bool { return b.route })
	}
	for i := range p.faults {
		p.faults[i] = s.faults()
	}
	for range 1 + s.n(2) {
		p.requests = append(p.requests, s.request())
	}
	return p
}

func (s *source) app(bindings ...binding) app {
	a := app{commitIf: 0, attempts: []int{0, 2, 3}[s.n(3)], never: s.odds(8), custom: s.odds(2)}
	if s.odds(4) {
		a.commitIf = 1 + s.n(len(commitIfs)-1)
	}
	if s.odds(2) {
		for i := range bindings {
			bindings[i].guard = true
		}
		if s.odds(4) {
			bindings[1].guard = false
		}
	}
	a.bindings = bindings
	return a
}

func (s *source) faults() (all []Fault) {
	for range []int{0, 1, 1, 2, 3}[s.n(5)] {
		call := []Call{Exec, Commit, Begin, Exec, Commit, Save, Release, Back, Rollback}[s.n(9)]
		f := Fault{Call: call, Nth: s.n(4)}
		if n := s.n(256); n < 160 {
			f.What = Possible[call][n%len(Possible[call])]
		} else {
			f.What = Behind[call][n%len(Behind[call])]
		}
		all = append(all, f)
	}
	return all
}

func (s *source) request() *request {
	r := &request{method: []string{"GET", "POST", "HEAD"}[s.n(3)], old: s.odds(6), recover: s.odds(4), declare: s.odds(5), plain: s.odds(3)}
	if r.method == "POST" {
		r.body = []int{0, 10, 100}[s.n(3)]
	}
	r.block = s.block(0, false)
	return r
}

// block makes the body of a function. In a Do there is no response.
func (s *source) block(depth int, do bool) (b block) {
	n := s.n(6 - depth)
	if s.dense {
		n += 3 - depth
	}
	for ; n > 0 && s.room > 0; n-- {
		s.room--
		b.ops = append(b.ops, s.op(depth, do))
	}
	switch s.n(10) {
	case 7, 8:
		b.end, b.err = endError, s.n(errorKinds)
	case 9:
		b.end = endPanic
		if s.odds(4) {
			b.end = endExit
		}
	}
	return b
}

// weights are how often an operation is chosen.
var weights = []kind{
	opExec, opExec, opExec, opExec, opExec, opExec, opExec, opExec, opQuery, opQuery, opQuery, opRaw, opRaw, opRaw, opRaw,
	opRawEnd, opTx, opTx, opTx, opTx, opBeginTx, opSavepoint, opSavepoint, opSavepoint, opSavepoint, opCommit, opCommit, opRollback, opRollback,
	opFail, opAfterCommit, opAfterCommit, opAfterCommit, opAfterRollback, opAfterRollback, opAfterRollback, opSub, opSub, opSub, opDo, opDo,
	opCancel, opWrite, opWrite, opWrite, opStatus, opStatus, opStatus, opFlush, opRead, opHijack,
}

// denseWeights are those of dense requests.
var denseWeights = []kind{
	opExec, opExec, opExec, opExec, opRaw, opRaw, opRaw, opTx, opTx, opSavepoint, opCommit, opRollback,
	opFail, opAfterCommit, opAfterCommit, opAfterRollback, opAfterRollback, opSub, opDo, opStatus,
}

// takeContext are those that may be done with the context of outside, too.
var takeContext = []kind{opExec, opQuery, opTx, opBeginTx, opAfterCommit, opAfterRollback}

func (s *source) op(depth int, do bool) *op {
	s.ids++
	from := weights
	if s.dense {
		from = denseWeights
	}
	o := &op{kind: from[s.n(len(from))], id: s.ids, must: s.odds(3)}
	if s.odds(8) {
		o.attempt = 1 + s.n(2)
	}
	// The first keys are the most interesting ones.
	o.key = keys[min(s.n(len(keys)), s.n(len(keys)))]
	if s.dense {
		o.key = "main"
	}
	o.n = s.n(256)
	if (o.kind == opAfterCommit || o.kind == opAfterRollback) && s.routed && (o.key == "other" || o.key == "sub") {
		o.key = "main" // which database a hook follows whose Route was not asked is nowhere said
	}
	if do && slices.Contains([]kind{opSub, opCancel, opWrite, opStatus, opFlush, opRead, opHijack}, o.kind) {
		o.kind = opExec
	}
	if (o.kind == opCancel || o.kind == opHijack) && s.n(3) > 0 {
		o.kind = opTx
	}
	o.outside = o.n >= 228 && slices.Contains(takeContext, o.kind)
	nested := o.kind == opSavepoint || o.kind == opSub || o.kind == opDo
	if nested && depth >= 3 {
		o.kind, nested = opExec, false
	}
	if nested {
		o.recover = s.odds(2)
		o.outside = s.odds(8)
		o.block = s.block(depth+1, do || o.kind == opDo)
	}
	return o
}

// total is how many bytes b could write.
func (b *block) total() (n int) {
	for _, o := range b.ops {
		if o.kind == opWrite {
			n += sizes[o.n%len(sizes)]
		}
		n += o.block.total()
	}
	return n
}

func (p *program) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v, each statement number %d ends its transaction, one connection %v\n", p.engine, p.every, p.one)
	for i, a := range p.apps {
		fmt.Fprintf(&b, "app %d: commitIf %d, attempts %d, never %v, custom %v", i, a.commitIf, a.attempts, a.never, a.custom)
		for _, k := range a.bindings {
			fmt.Fprintf(&b, ", %s: db%d%s%s", k.key, k.server, pick(k.guard, " guard", ""), pick(k.route, " route", ""))
		}
		b.WriteString("\n")
	}
	for i, f := range p.faults {
		for _, f := range f {
			fmt.Fprintf(&b, "db%d: %v #%d: %v\n", i, f.Call, f.Nth, f.What)
		}
	}
	for _, r := range p.requests {
		fmt.Fprintf(&b, "%s HTTP/1.0 %v, body %d, recover %v, declare %v, plain %v\n", r.method, r.old, r.body, r.recover, r.declare, r.plain)
		r.block.print(&b, "\t")
	}
	return b.String()
}

func (b *block) print(w *strings.Builder, indent string) {
	for _, o := range b.ops {
		fmt.Fprintf(w, "%s%v\n", indent, o)
		if o.kind == opSavepoint || o.kind == opSub || o.kind == opDo {
			o.block.print(w, indent+"\t")
		}
	}
	fmt.Fprintf(w, "%s%s\n", indent, [...]string{"return nil", fmt.Sprintf("return error %d", b.err), "panic", "Goexit"}[b.end])
}

func (o *op) String() string {
	s := fmt.Sprintf("%d: ", o.id)
	switch o.kind {
	case opExec, opQuery, opRaw:
		s += fmt.Sprintf("%s %s %s", [...]string{"exec", "query", "raw"}[o.kind], o.key, o.statement(0))
	case opRawEnd:
		s += fmt.Sprintf("raw %s %s", o.key, pick(o.n%2 == 0, "tx.Rollback", "tx.Commit"))
	case opBeginTx:
		s += fmt.Sprintf("BeginTx %s %s", o.key, [...]string{"nil", "read-only", "serializable", "read-only serializable"}[o.n%4])
	case opFail:
		s += fmt.Sprintf("%s %d", pick(o.rollbackOnly(), "RollbackOnly", "Fail"), o.n%errorKinds)
	case opAfterCommit, opAfterRollback:
		s += fmt.Sprintf("%s %s %s", pick(o.kind == opAfterCommit, "AfterCommit", "AfterRollback"), o.key, [...]string{"notes", "panics", "uses", "does"}[o.n%hookKinds])
	case opSub:
		s += [...]string{"function", "HandlerFunc", "TxFunc", "nested HandlerFunc", "nested plain", "same registry", "With lazy", "nested With"}[o.n%subKinds]
		if o.n%subKinds == subTxFunc {
			s += " " + o.key
		}
	case opDo:
		s += fmt.Sprintf("Do of app %d", o.n%2)
	case opWrite:
		s += fmt.Sprintf("write %d", sizes[o.n%len(sizes)])
	case opStatus:
		s += fmt.Sprintf("status %d", statuses[o.n%len(statuses)])
	case opTx, opSavepoint, opCommit, opRollback:
		s += map[kind]string{opTx: "Tx ", opSavepoint: "Savepoint ", opCommit: "Commit ", opRollback: "Rollback "}[o.kind] + o.key
	default:
		s += map[kind]string{opCancel: "client goes", opFlush: "flush", opRead: "read body", opHijack: "hijack"}[o.kind]
	}
	if o.attempt > 0 {
		s += fmt.Sprintf(", in attempt %d only", o.attempt)
	}
	return s + pick(o.must, ", must", "") + pick(o.recover, ", recover", "") + pick(o.outside, ", context of outside", "")
}

func pick(cond bool, a, b string) string {
	if cond {
		return a
	}
	return b
}

// rollbackOnly is for an opFail.
func (o *op) rollbackOnly() bool { return o.n/errorKinds%3 == 2 }

// entersMiddleware is for an opSub.
func (o *op) entersMiddleware() bool {
	return !slices.Contains([]int{subPlain, subHandler, subTxFunc}, o.n%subKinds)
}

// statement is what the operation sends.
func (o *op) statement(attempt int) string {
	k := []string{"a", "b", "c"}[o.n%3]
	switch {
	case o.kind == opQuery || o.kind == opRaw && o.n%8 == 7:
		return "GET " + k
	case o.n%8 == 6:
		return "DEL " + k
	}
	return fmt.Sprintf("PUT %s %d.%d", k, o.id, attempt)
}

// text is what the operation writes.
func (o *op) text() string {
	return strings.Repeat(string(rune('a'+o.id%26)), sizes[o.n%len(sizes)])
}

// smaller returns what is left of p when one thing is left out, for each thing.
func (p *program) smaller() []func() (undo func()) {
	var cuts []func() func()
	for i := range p.requests {
		cuts = append(cuts, cut(&p.requests, i))
	}
	for d := range p.faults {
		for i := range p.faults[d] {
			cuts = append(cuts, cut(&p.faults[d], i))
		}
	}
	for _, r := range p.requests {
		cuts = append(cuts, set(&r.recover, false), set(&r.old, false), set(&r.declare, false), set(&r.method, "GET"))
		cuts = append(cuts, r.block.smaller()...)
	}
	cuts = append(cuts, set(&p.one, false), set(&p.engine, MariaDB), set(&p.every, 0))
	for i := range p.apps {
		a := &p.apps[i]
		cuts = append(cuts, set(&a.commitIf, 0), set(&a.attempts, 0), set(&a.never, false), set(&a.custom, false))
		for j := range a.bindings {
			cuts = append(cuts, set(&a.bindings[j].guard, false), set(&a.bindings[j].route, false))
		}
	}
	return cuts
}

func (b *block) smaller() (cuts []func() func()) {
	for i := range b.ops {
		cuts = append(cuts, cut(&b.ops, i))
	}
	cuts = append(cuts, set(&b.end, endNil))
	for _, o := range b.ops {
		cuts = append(cuts, o.block.smaller()...)
		cuts = append(cuts, set(&o.must, false), set(&o.recover, false), set(&o.outside, false), set(&o.attempt, 0))
	}
	return cuts
}

func cut[T any](s *[]T, i int) func() func() {
	return func() func() {
		old := *s
		*s = slices.Delete(slices.Clone(old), i, i+1)
		return func() { *s = old }
	}
}

func set[T comparable](v *T, to T) func() func() {
	return func() func() {
		old := *v
		if old == to {
			return nil
		}
		*v = to
		return func() { *v = old }
	}
}
