package unit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"github.com/sqlreq/sqlreq/internal/txn"
)

var (
	background  = context.Background()
	errPlain    = errors.New("plain")
	errConflict = errors.New("conflict")
	errRefused  = answered("23505")
	canceled    = func() context.Context { // a context that has ended
		ctx, cancel := context.WithCancel(background)
		cancel()
		return ctx
	}()
)

// answered is an error of PostgreSQL's shape: the server's own answer.
type answered string

func (a answered) Error() string    { return "answered " + string(a) }
func (a answered) SQLState() string { return string(a) }

// commitError is what a binding makes of an error of COMMIT.
type commitError struct {
	key       string
	committed []string
	ambiguous bool
	err       error
}

func (c *commitError) Error() string {
	return fmt.Sprintf("commit of %s after %v, ambiguous %v: %v", c.key, c.committed, c.ambiguous, c.err)
}
func (c *commitError) Unwrap() error { return c.err }

// world is a unit with a fake host, and what its databases and bindings saw.
type world struct {
	Unit
	t        testing.TB
	ctx      context.Context // the host's
	leave    context.CancelFunc
	around   *Unit
	within   Within
	commits  func(status int, joined []any) bool // nil: yes
	answered bool

	mu     sync.Mutex
	log    []string
	faults map[string]func(context.Context) error // by an entry of the log
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, faults: map[string]func(context.Context) error{}}
	w.ctx, w.leave = context.WithCancel(background)
	t.Cleanup(w.leave)
	w.Init(w, 1)
	return w
}

// inside returns the world of a unit inside of that of w.
func (w *world) inside() *world {
	inner := newWorld(w.t)
	inner.around = &w.Unit
	return inner
}

func (w *world) Context() context.Context { return w.ctx }
func (w *world) Outer() *Unit             { return w.around }
func (w *world) Within() Within           { return w.within }
func (w *world) Retryable(err error) bool { return errors.Is(err, errConflict) }
func (w *world) Answered() bool           { return w.answered }
func (w *world) Commits(status int, joined []any) bool {
	return w.commits == nil || w.commits(status, joined)
}

// note adds an entry to the log and does what was set for it.
func (w *world) note(ctx context.Context, entry string) error {
	w.mu.Lock()
	w.log = append(w.log, entry)
	fault := w.faults[entry]
	w.mu.Unlock()
	if fault == nil || fakedb.ByDatabaseSQL() {
		return nil
	}
	return fault(ctx)
}

// at sets what happens at an entry of the log.
func (w *world) at(entry string, fault func(context.Context) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults[entry] = fault
}

// saw returns what came into the log, and empties it.
func (w *world) saw() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := strings.Join(w.log, "; ")
	w.log = nil
	return text
}

// asked returns what the drivers were asked, and empties the log.
func (w *world) asked() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	calls := slices.DeleteFunc(w.log, func(entry string) bool { return !strings.Contains(entry, ": ") })
	w.log = nil
	return strings.Join(calls, "; ")
}

// check fails the test if something else came into the log.
func (w *world) check(want string) {
	w.t.Helper()
	if got := w.saw(); got != want {
		w.t.Errorf("got  %s\nwant %s", got, want)
	}
}

// binding is a key with a database of its own.
type binding struct {
	w        *world
	name     string // of the key
	guard    bool
	db       *sql.DB
	tx       *sql.Tx
	engine   txn.Engine
	route    func(ctx, at context.Context) (*sql.DB, error)
	options  func(ctx, at context.Context) *sql.TxOptions
	named    func() // called by Name
	observed bool
	hookCtx  context.Context // of the last hook that ran

	afterBegin func(ctx, at context.Context, tx *sql.Tx) error
}

// bind returns a binding of the name with a database of its own.
func (w *world) bind(name string) *binding {
	return &binding{w: w, name: name, db: w.open(name), observed: true}
}

// open opens a database whose calls are in the log with its name.
func (w *world) open(name string) *sql.DB {
	d := &fakedb.DB{Step: func(ctx context.Context, text string) error { return w.note(ctx, name+": "+text) }}
	return d.Open(w.t)
}

// inTest returns a binding of a test's transaction, in which units are savepoints.
func (w *world) inTest(name string) *binding {
	tx := must(w.open(name).BeginTx(background, nil))(w.t)
	w.t.Cleanup(func() { tx.Rollback() })
	w.saw()
	return &binding{w: w, name: name, tx: tx, observed: true}
}

func (b *binding) Name() string {
	if b.named != nil {
		b.named()
	}
	return b.name
}

func (b *binding) Guarded() bool                        { return b.guard }
func (b *binding) Pool() (*sql.DB, *sql.Tx, txn.Engine) { return b.db, b.tx, b.engine }
func (b *binding) Chooses() (route, opts bool)          { return b.route != nil, b.options != nil }
func (b *binding) Observed() bool                       { return b.observed }

func (b *binding) AskRoute(ctx, at context.Context) (*sql.DB, error) {
	_ = b.w.note(ctx, b.name+": Route")
	return b.route(ctx, at)
}

func (b *binding) AskTxOptions(ctx, at context.Context) *sql.TxOptions {
	_ = b.w.note(ctx, b.name+": TxOptions")
	return b.options(ctx, at)
}

func (b *binding) HasAfterBegin() bool { return b.afterBegin != nil }

func (b *binding) RunAfterBegin(ctx, at context.Context, tx *sql.Tx) error {
	_ = b.w.note(ctx, b.name+": AfterBegin")
	return b.afterBegin(ctx, at, tx)
}

func (b *binding) Observe(u *Unit, r txn.Result) {
	text := [...]string{"unknown", "committed", "rolled back", "refused", "ended"}[r.Outcome]
	_ = b.w.note(background, fmt.Sprintf("%s was %s", b.name, text))
}

func (b *binding) RunHook(ctx context.Context, fn func(context.Context)) {
	b.hookCtx = ctx
	fn(ctx)
}

func (b *binding) CommitError(committed []string, ambiguous bool, err error) error {
	return &commitError{b.name, committed, ambiguous, err}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// use is the use of a statement that has returned.
func (w *world) use(ctx context.Context, b *binding) (Open, error) {
	return w.useAt(ctx, background, b)
}

func (w *world) useAt(ctx, at context.Context, b *binding) (Open, error) {
	o, err := w.Begin(ctx, at, b, txn.ForStatement, nil)
	if err == nil {
		o.Done()
	}
	return o, err
}

// begin begins on b.
func (w *world) begin(b ...*binding) (last Open) {
	w.t.Helper()
	for _, b := range b {
		last = must(w.use(background, b))(w.t)
	}
	return last
}

// hook registers a function for the end of b's transaction that is noted by its name.
func (w *world) hook(ctx context.Context, b *binding, commit bool, name string) {
	w.t.Helper()
	fn := func(context.Context) { _ = w.note(background, name) }
	must(0, w.AddHook(ctx, background, background, b, commit, fn))(w.t)
}

// hooks registers one of each kind.
func (w *world) hooks(ctx context.Context, b *binding) {
	w.t.Helper()
	w.hook(ctx, b, true, b.name+" +")
	w.hook(ctx, b, false, b.name+" -")
}

// before registers a BeforeCommit function, which is noted by its name.
func (w *world) before(ctx context.Context, b *binding, name string, fn func(context.Context) error) {
	w.t.Helper()
	run := func(ctx context.Context) error {
		if err := w.note(ctx, name); err != nil || fn == nil {
			return err
		}
		return fn(ctx)
	}
	must(0, w.AddBefore(ctx, background, background, background, b, run))(w.t)
}

func (w *world) commit(b *binding) error {
	return w.EndNow(background, background, background, b, true)
}
func (w *world) rollback(b *binding) error {
	return w.EndNow(background, background, background, b, false)
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// The faults of a driver.
func fails(err error) func(context.Context) error {
	return func(context.Context) error { return err }
}

// first fails at the first call only.
func first(err error) func(context.Context) error {
	var later atomic.Bool
	return func(context.Context) error {
		if later.Swap(true) {
			return nil
		}
		return err
	}
}

func panics(context.Context) error      { panic("a driver's panic") }
func exits(context.Context) error       { runtime.Goexit(); return nil }
func untilDone(c context.Context) error { return fakedb.UntilDone(c) }

// called runs f in a goroutine of its own and says how it came back: "returned",
// "panicked" or "exited".
func called(f func()) string {
	how := make(chan string, 1)
	go func() {
		came := "exited"
		defer func() {
			if recover() != nil {
				came = "panicked"
			}
			how <- came
		}()
		f()
		came = "returned"
	}()
	return <-how
}
