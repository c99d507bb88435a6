package txn

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sqlreq/sqlreq/internal/modeltest/mysqlite"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// answered is an error of PostgreSQL's shape: the server's own answer.
type answered string

func (a answered) Error() string    { return "answered " + string(a) }
func (a answered) SQLState() string { return string(a) }

var (
	errRefused = answered("23505")
	errNetwork = io.ErrUnexpectedEOF // of COMMIT: the answer was lost
	errPlain   = errors.New("plain") // of no known shape
	errNoTx    = &mysqlite.NoTx{}    // there is no transaction, or no such savepoint
	errFull    = &mysqlite.Full{}    // of a statement: SQLite may have rolled back
	background = context.Background()
	canceled   = func() context.Context { // a context that has ended
		ctx, cancel := context.WithCancel(background)
		cancel()
		return ctx
	}()
)

// key is an Opener.
type key struct {
	name  string
	guard bool
}

func (k *key) Name() string  { return k.name }
func (k *key) Guarded() bool { return k.guard }

// world is a slot on a fake database.
type world struct {
	Slot
	t      testing.TB
	d      fakedb.DB
	pool   *sql.DB
	outer  *sql.Tx // a test's transaction, if there is one
	key    key
	opts   *sql.TxOptions
	timed  bool
	nest   func() *Nest // where the transactions nest; nil: nowhere
	begins atomic.Int32
	faults sync.Map // text of a call to func(context.Context) error
}

// kind is what the transactions of a slot are like.
type kind struct {
	test, guard, readOnly, serializable bool
	engine                              Engine
}

func newWorld(t testing.TB, k kind) *world {
	w := &world{t: t, key: key{"k", k.guard}}
	if k.readOnly || k.serializable {
		w.opts = &sql.TxOptions{ReadOnly: k.readOnly}
		if k.serializable {
			w.opts.Isolation = sql.LevelSerializable
		}
	}
	w.pool = w.d.Open(t)
	if k.test {
		w.outer = must(w.pool.BeginTx(background, nil))(t)
		t.Cleanup(func() { w.outer.Rollback() })
		names.Store(0) // so that the texts are known
		w.Init(nil, w.outer, k.engine)
	} else {
		w.Init(w.pool, nil, k.engine)
	}
	w.d.Step = func(ctx context.Context, text string) error {
		if fault, ok := w.faults.Load(text); ok {
			return fault.(func(context.Context) error)(ctx)
		}
		return nil
	}
	return w
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

// at sets what the driver does at the calls with the text.
func (w *world) at(text string, fault func(context.Context) error) {
	w.faults.Store(text, fault)
}

// well lets the driver answer every call with success again.
func (w *world) well() { w.faults.Clear() }

func (w *world) ask(why Purpose) *Ask {
	return &Ask{Opener: &w.key, Options: w.opts, Purpose: why, Timed: w.timed, Unit: background, Begins: &w.begins, Nest: w.nest}
}

// use is the use of a statement that has returned.
func (w *world) use(ctx context.Context) (*sql.Tx, error) {
	tx, err := w.Use(ctx, w.ask(ForStatement))
	if err == nil {
		w.Done()
	}
	return tx, err
}

// End ends the transaction of a unit whose context does not end.
func (w *world) End(well bool) { w.Slot.End(background, well) }

// begin begins the transaction.
func (w *world) begin() *sql.Tx {
	w.t.Helper()
	return must(w.use(background))(w.t)
}

func (w *world) save(ctx context.Context) *Savepoint {
	w.t.Helper()
	return must(w.Save(ctx, background, w.tx, "k"))(w.t)
}

// finish closes the slot, if nobody has, and ends what is open.
func (w *world) finish(well bool) {
	w.Slot.Close()
	if w.Open() {
		w.End(well)
	}
}

// inState fails the test if the slot is in another state, or its turn is taken.
func (w *world) inState(want string) {
	w.t.Helper()
	if got := w.describe(); got != want {
		w.t.Errorf("the slot is %s, want %s", got, want)
	}
}

// describe says in which state the slot is.
func (w *world) describe() string {
	turn := ""
	if w.turn.Taken() {
		turn = ", turn taken"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	text := [...]string{"idle", "beginning", "open", "aborted", "closed"}[w.state]
	if w.state == closed && w.tx != nil { // what is open is to be ended by who has closed the slot
		text = "closed, open"
		if w.reason != nil {
			text = "closed, aborted"
		}
	}
	for p := w.innermost; p != nil; p = p.outer {
		text += " saved"
	}
	if n := w.running.Load(); n != 0 {
		text += fmt.Sprintf(", %d running", n)
	}
	switch wrong := text + turn; {
	case w.state != closed && (w.state == aborted) != (w.reason != nil), w.tx == nil && w.reason != nil:
		return wrong + ", reason " + errText(w.reason)
	case (w.state == beginning || w.tx != nil) && w.cancel == nil:
		return wrong + ", without a cancel"
	case w.state == idle && w.tx != nil, w.tx == nil && w.innermost != nil:
		return wrong + ", though something is open"
	case (w.state == open || w.state == aborted) && w.tx == nil:
		return wrong + ", though nothing is open"
	}
	return text + turn
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func nothingAfter(context.Context, *sql.Tx) error { return nil }

// The faults of a driver.
func fails(err error) func(context.Context) error {
	return func(context.Context) error { return err }
}

// first fails at the first call, and not at the second, of each run of a test (go test -count).
func first(err error) func(context.Context) error {
	var later atomic.Bool
	return func(context.Context) error {
		if !later.CompareAndSwap(true, false) {
			later.Store(true)
			return err
		}
		return nil
	}
}

func panics(context.Context) error {
	if !fakedb.ByDatabaseSQL() {
		panic("a driver's panic")
	}
	return nil
}

func exits(context.Context) error {
	if !fakedb.ByDatabaseSQL() {
		runtime.Goexit()
	}
	return nil
}

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

// since returns what the driver was asked after the first n calls.
func (w *world) since(n int) string { return strings.Join(w.d.Log()[n:], "; ") }
