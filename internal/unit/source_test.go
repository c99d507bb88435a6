package unit

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq/internal/txn"
)

func readOnly(_, _ context.Context) *sql.TxOptions { return &sql.TxOptions{ReadOnly: true} }

// routed returns a binding whose Route answers with a database of its own.
func (w *world) routed(name string) *binding {
	db := w.open(name)
	return &binding{w: w, name: name, observed: true, route: func(context.Context, context.Context) (*sql.DB, error) { return db, nil }}
}

// Route and TxOptions are asked once in a unit, at the first use that needs them.
func TestUnitAsksOnce(t *testing.T) {
	w := newWorld(t)
	a := w.routed("a")
	a.options = readOnly
	db := must(w.DB(background, background, a))(t)
	w.check("a: Route")
	if again := must(w.DB(background, background, a))(t); again != db || db == nil {
		t.Errorf("got %v, then %v", db, again)
	}
	w.begin(a)
	must(0, w.commit(a))(t)
	w.begin(a, a)
	w.Finish(200)
	w.check("a: TxOptions; a: BEGIN READ ONLY; a: ROLLBACK; a was committed; a: BEGIN READ ONLY; a: ROLLBACK; a was committed")
}

// In a unit whose connection was hijacked nothing begins, so that a use asks neither
// Route nor TxOptions; DB does.
func TestUnitAsksNothingAfterAHijack(t *testing.T) {
	w := newWorld(t)
	a := w.routed("a")
	a.options = readOnly
	w.Hijacked()
	if _, err := w.use(background, a); err != ErrHijacked {
		t.Errorf("got %v", err)
	}
	w.check("")
	must(w.DB(background, background, a))(t)
	w.check("a: Route")
	if _, err := w.use(background, a); err != ErrHijacked {
		t.Errorf("got %v", err)
	}
	w.check("")
}

// Options that are given are not asked for; the binding's are, for the next use.
func TestUnitGivenOptions(t *testing.T) {
	w := newWorld(t)
	a := w.bind("a")
	a.options = readOnly
	given := &sql.TxOptions{Isolation: sql.LevelSerializable}
	must(w.Begin(background, background, a, txn.WithOptions, given))(t)
	if _, err := w.Begin(background, background, a, txn.WithOptions, given); !errors.Is(err, txn.ErrBegun) {
		t.Errorf("as new, twice: got %v", err)
	}
	must(0, w.commit(a))(t)
	must(w.Begin(background, background, a, txn.WithOptions, nil))(t)
	must(0, w.rollback(a))(t)
	w.begin(a)
	w.Abandon()
	w.check("a: BEGIN Serializable; a: COMMIT; a was committed; a: BEGIN; a: ROLLBACK; a was rolled back; " +
		"a: TxOptions; a: BEGIN READ ONLY; a: ROLLBACK; a was rolled back")
}

// TxOptions alone, and Route alone, are asked; what is not there is not.
func TestUnitAsksWhatIsThere(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.routed("a"), w.bind("b"), w.bind("c")
	b.options = func(context.Context, context.Context) *sql.TxOptions { return &sql.TxOptions{} }
	w.begin(a, b, c)
	w.check("a: Route; a: BEGIN; b: TxOptions; b: BEGIN; c: BEGIN")
	w.Abandon()
}

// They are given the contexts of the use and of the registry.
func TestUnitAsksWithTheContexts(t *testing.T) {
	w := newWorld(t)
	ctx, at := context.WithValue(background, nameKey{}, "use"), context.WithValue(background, nameKey{}, "registry")
	seen := func(c, r context.Context) {
		if c.Value(nameKey{}) != "use" || r != at || askingIn(c) == nil {
			t.Errorf("got %v and %v", c.Value(nameKey{}), r.Value(nameKey{}))
		}
	}
	a := w.routed("a")
	route := a.route
	a.route = func(c, r context.Context) (*sql.DB, error) { seen(c, r); return route(c, r) }
	a.options = func(c, r context.Context) *sql.TxOptions { seen(c, r); return nil }
	must(w.useAt(ctx, at, a))(t)
	w.Abandon()
}

// Keys whose Route answers with the same database, or that are bound to it, share its transaction.
func TestUnitSharesADatabase(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.bind("a"), w.routed("b"), w.bind("c")
	b.route = func(context.Context, context.Context) (*sql.DB, error) { return a.db, nil }
	x, y, z := w.begin(a), w.begin(b), w.begin(c)
	if x.Tx != y.Tx || x.Tx == z.Tx {
		t.Error("they don't share what is one, or share what is not")
	}
	w.hooks(background, b)
	must(0, w.commit(b))(t)
	w.check("a: BEGIN; b: Route; c: BEGIN; a: COMMIT; a was committed; b +")
	if w.FirstKey() != "a" {
		t.Errorf("the first key is %q", w.FirstKey())
	}
	w.Abandon()
}

// An error of Route is that of each use; no database and no error is one as well.
func TestUnitRouteFails(t *testing.T) {
	for _, row := range []struct {
		err      error
		want     string
		conflict bool
		timedOut bool
	}{
		{errPlain, `sqlreq: begin on key "a": plain`, false, false},
		{nil, `sqlreq: begin on key "a": the Route returned no *sql.DB and no error`, false, false},
		{errConflict, `sqlreq: begin on key "a": conflict`, true, false},
		{context.DeadlineExceeded, `sqlreq: begin on key "a": context deadline exceeded`, false, true},
	} {
		w := newWorld(t)
		a := w.routed("a")
		a.route = func(context.Context, context.Context) (*sql.DB, error) { return nil, row.err }
		_, err := w.use(background, a)
		_, again := w.DB(background, background, a)
		if errText(err) != row.want || again != err || !errors.Is(err, row.err) && row.err != nil {
			t.Errorf("got %v, then %v, want %s", err, again, row.want)
		}
		w.check("a: Route")
		var unavailable *Unavailable
		if w.SawConflict() != row.conflict || errors.As(err, &unavailable) != row.timedOut || w.timedOut != row.timedOut {
			t.Errorf("%v: conflict %v, unavailable %v", row.err, w.SawConflict(), unavailable)
		}
		w.Finish(200)
	}
}

// An error of Route for a caller whose context had ended is not kept for the next one.
func TestUnitRouteAsksAgain(t *testing.T) {
	w := newWorld(t)
	a := w.routed("a")
	db := w.open("a")
	ctx, end := context.WithCancel(context.WithValue(background, nameKey{}, "first"))
	a.route = func(c context.Context, _ context.Context) (*sql.DB, error) {
		if c.Value(nameKey{}) != nil {
			end()
			return nil, errPlain
		}
		return db, nil
	}
	if _, err := w.use(ctx, a); errText(err) != "sqlreq: begin on key \"a\": context canceled: plain" {
		t.Errorf("got %v", err)
	}
	w.begin(a)
	w.check("a: Route; a: Route; a: BEGIN")
	w.Abandon()
}

// A Route, and a TxOptions, that panics is asked again by the next use.
func TestUnitRoutePanics(t *testing.T) {
	w := newWorld(t)
	a := w.routed("a")
	a.options = readOnly
	w.at("a: Route", panics)
	w.at("a: TxOptions", exits)
	for _, want := range []string{"panicked", "exited"} {
		if came := called(func() { w.use(background, a) }); came != want {
			t.Errorf("it %s, want %s", came, want)
		}
		w.at("a: Route", nil)
	}
	w.at("a: TxOptions", nil)
	w.begin(a)
	w.Finish(200)
	w.check("a: Route; a: Route; a: TxOptions; a: TxOptions; a: BEGIN READ ONLY; a: ROLLBACK; a was committed")
}

// While Route is asked the other uses of the key wait for its answer, until a context ends.
func TestUnitRouteWaits(t *testing.T) {
	for _, who := range []string{"nobody", "caller", "host"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			a := w.routed("a")
			answer := make(chan struct{})
			w.at("a: Route", func(context.Context) error { <-answer; return nil })
			first := make(chan error, 1)
			go func() { _, err := w.use(background, a); first <- err }()
			synctest.Wait()
			ctx, end := context.WithCancel(background)
			second := make(chan error, 1)
			go func() { _, err := w.use(ctx, a); second <- err }()
			synctest.Wait()
			if len(second) > 0 {
				t.Error("it did not wait")
			}
			want := `sqlreq: begin on key "a": context canceled`
			switch who {
			case "nobody":
				want = ""
				close(answer)
			case "caller":
				end()
			case "host":
				w.leave()
			}
			if err := <-second; errText(err) != want {
				t.Errorf("%s: got %v, want %s", who, err, want)
			}
			if who != "nobody" {
				close(answer)
			}
			if err := <-first; (err != nil) != (who == "host") {
				t.Errorf("%s: the first got %v", who, err)
			}
			end()
			w.Abandon()
		})
	}
}

// A unit that ends while Route, or TxOptions, is asked begins nothing any more.
func TestUnitEndsWhileRouteIsAsked(t *testing.T) {
	for _, at := range []string{"a: Route", "a: TxOptions"} {
		w := newWorld(t)
		a := w.routed("a")
		a.options = readOnly
		w.at(at, func(context.Context) error { w.Finish(200); return nil })
		if _, err := w.use(background, a); err != txn.ErrFinished {
			t.Errorf("%s: got %v", at, err)
		}
		if _, err := w.use(background, a); err != txn.ErrFinished {
			t.Errorf("%s: then got %v", at, err)
		}
	}
}

// A failing Route whose unit has ended meanwhile is ErrFinished as well.
func TestUnitEndsWhileRouteFails(t *testing.T) {
	w := newWorld(t)
	a := w.routed("a")
	a.route = func(context.Context, context.Context) (*sql.DB, error) { w.Finish(200); return nil, errPlain }
	if _, err := w.use(background, a); err != txn.ErrFinished {
		t.Errorf("got %v", err)
	}
}

// A unit that has ended makes no new sources.
func TestUnitNoNewSource(t *testing.T) {
	w := newWorld(t)
	w.Finish(200)
	a := w.routed("a")
	if _, err := w.DB(background, background, a); err != txn.ErrFinished {
		t.Errorf("DB: got %v", err)
	}
	if _, err := w.use(background, a); err != txn.ErrFinished {
		t.Errorf("Begin: got %v", err)
	}
	if w.FirstKey() != "" {
		t.Errorf("the first key is %q", w.FirstKey())
	}
	w.check("")
}

// Many keys and databases: each is found again, and the first stays the first.
func TestUnitManyKeys(t *testing.T) {
	w := newWorld(t)
	var keys []*binding
	for _, name := range []string{"a", "b", "c", "d"} {
		keys = append(keys, w.bind(name))
	}
	w.begin(keys...)
	w.begin(keys...)
	w.check("a: BEGIN; b: BEGIN; c: BEGIN; d: BEGIN")
	if w.FirstKey() != "a" {
		t.Errorf("the first key is %q", w.FirstKey())
	}
	w.Finish(200)
	w.check("a: COMMIT; b: COMMIT; c: COMMIT; d: COMMIT; a was committed; b was committed; c was committed; d was committed")
}

// Only a joiner: nothing else was used.
func TestUnitFirstKeyOfNone(t *testing.T) {
	w := newWorld(t)
	w.Join("x")
	if w.FirstKey() != "" {
		t.Errorf("the first key is %q", w.FirstKey())
	}
}

// An explicit Commit asks Route where something is open, and returns its error.
func TestUnitCommitAsksRoute(t *testing.T) {
	w := newWorld(t)
	a, b := w.bind("a"), w.routed("b")
	b.route = func(context.Context, context.Context) (*sql.DB, error) { return nil, errPlain }
	if err := w.commit(b); err != nil {
		t.Errorf("with nothing open: got %v", err)
	}
	w.begin(a)
	if err := w.commit(b); errText(err) != `sqlreq: begin on key "b": plain` {
		t.Errorf("got %v", err)
	}
	w.check("a: BEGIN; b: Route")
	w.Abandon()
}

// nameKey is that of a name in a context.
type nameKey struct{}
