package unit

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/sqlreq/sqlreq/internal/txn"
)

const (
	itself = ` uses the key "a" and would wait for itself; use what it is given, another key, or Registry.Do`
	circle = `, which waits for it in turn; they would wait for each other`
)

// beginning returns an AfterBegin that uses the key b, and returns the error of that.
func (w *world) beginning(b *binding) func(ctx, at context.Context, tx *sql.Tx) error {
	return func(ctx, _ context.Context, _ *sql.Tx) error {
		_, err := w.use(ctx, b)
		return err
	}
}

// routing is the same as a Route.
func (w *world) routing(b *binding, db *sql.DB) func(ctx, at context.Context) (*sql.DB, error) {
	return func(ctx, _ context.Context) (*sql.DB, error) {
		_, err := w.use(ctx, b)
		return db, err
	}
}

// A function that uses the key that it is asked for gets an error that names the mistake.
func TestUnitAsksItself(t *testing.T) {
	const begin = `sqlreq: begin on key "a": `
	for _, row := range []struct {
		name string
		set  func(w *world, a *binding)
		want string
	}{
		{"Route", func(w *world, a *binding) { a.route = w.routing(a, a.db); a.db = nil },
			begin + begin + `the Route or TxOptions of key "a"` + itself},
		{"TxOptions", func(w *world, a *binding) {
			a.options = func(ctx, _ context.Context) *sql.TxOptions {
				_, err := w.use(ctx, a)
				w.Fail(ctx, err)
				return nil
			}
		}, begin + `the Route or TxOptions of key "a"` + itself},
		{"AfterBegin", func(w *world, a *binding) { a.afterBegin = w.beginning(a) },
			begin + begin + `the AfterBegin of key "a"` + itself},
		{"AfterBegin, Commit", func(w *world, a *binding) {
			a.afterBegin = func(ctx, at context.Context, _ *sql.Tx) error { return w.EndNow(ctx, at, at, a, true) }
		}, begin + `the AfterBegin of key "a"` + itself},
		{"AfterBegin, Rollback", func(w *world, a *binding) {
			a.afterBegin = func(ctx, at context.Context, _ *sql.Tx) error { return w.EndNow(ctx, at, at, a, false) }
		}, begin + `the AfterBegin of key "a"` + itself},
		{"AfterBegin, Savepoint", func(w *world, a *binding) {
			a.afterBegin = func(ctx, at context.Context, _ *sql.Tx) error { return w.Savepoint(ctx, at, a, fails(nil)) }
		}, begin + begin + `the AfterBegin of key "a"` + itself},
		{"AfterBegin, Atomic", func(w *world, a *binding) {
			a.afterBegin = func(ctx, at context.Context, _ *sql.Tx) error { return w.Atomic(ctx, at, fails(nil)) }
		}, begin + `the AfterBegin of key "a"` + itself},
		{"AfterBegin, another key of the pool", func(w *world, a *binding) {
			b := w.bind("b")
			b.db = a.db
			a.afterBegin = w.beginning(b)
		}, begin + `sqlreq: begin on key "b": the AfterBegin of key "a"` + itself},
		{"through another key", func(w *world, a *binding) {
			b := w.routed("b")
			b.route = w.routing(a, w.open("b"))
			a.afterBegin = w.beginning(b)
		}, begin + `sqlreq: begin on key "b": ` + begin + `the Route or TxOptions of key "b"` + itself},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t)
			a := w.bind("a")
			row.set(w, a)
			_, err := w.use(background, a)
			if row.name == "TxOptions" {
				err = w.Err()
			}
			if errText(err) != row.want {
				t.Errorf("got  %v\nwant %s", err, row.want)
			}
			w.Abandon()
		})
	}
}

// Two that ask each other's key: in one goroutine, and in two.
func TestUnitAsksInACircle(t *testing.T) {
	for _, kind := range []string{"Route", "AfterBegin"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			a, b := w.bind("a"), w.bind("b")
			what := w.circleOf(kind, a, b)
			_, err := w.use(background, a)
			const begins = `sqlreq: begin on key "a": sqlreq: begin on key "b": sqlreq: begin on key "a": `
			if text := errText(err); text != begins+"the "+what+` of key "b" waits for the `+what+` of key "a"`+circle && text != begins+"the "+what+` of key "b"`+itself {
				t.Errorf("%s: got %s", kind, text)
			}
			w.Abandon()

			w = newWorld(t)
			a, b = w.bind("a"), w.bind("b")
			what = w.circleOf(kind, a, b)
			goOn := map[*binding]chan bool{a: make(chan bool), b: make(chan bool)}
			got := map[*binding]chan error{a: make(chan error, 1), b: make(chan error, 1)}
			for _, key := range []*binding{a, b} {
				w.at(key.name+": "+kind, func(context.Context) error { <-goOn[key]; return nil })
				go func() { _, err := w.use(background, key); got[key] <- err }()
			}
			synctest.Wait()
			close(goOn[a])
			synctest.Wait()
			if len(got[a]) > 0 {
				t.Errorf("%s: the first did not wait for the second", kind)
			}
			close(goOn[b])
			want := `sqlreq: begin on key "b": sqlreq: begin on key "a": the ` + what + ` of key "b" waits for the ` + what + ` of key "a"` + circle
			if err := <-got[b]; errText(err) != want {
				t.Errorf("%s, the second: got %v", kind, err)
			}
			// The first goes on: b is asked anew for it, or has said no.
			<-got[a]
			w.Abandon()
		})
	}
}

// circleOf makes a and b use each other from a function of the kind. It returns the
// word for that in errors.
func (w *world) circleOf(kind string, a, b *binding) string {
	if kind == "AfterBegin" {
		a.afterBegin, b.afterBegin = w.beginning(b), w.beginning(a)
		return "AfterBegin"
	}
	a.route, b.route = w.routing(b, a.db), w.routing(a, b.db)
	a.db, b.db = nil, nil
	return "Route or TxOptions"
}

// Who waits for each other is found over any number of others; who waits for the
// same is no circle.
func TestAskedWaitsFor(t *testing.T) {
	a, b, c, d, e := &asked{}, &asked{}, &asked{}, &asked{}, &asked{}
	a.waits = []*asked{b, c}
	b.waits = []*asked{d}
	c.waits = []*asked{d, a} // a circle beside
	for i, row := range []struct {
		from, to *asked
		want     bool
	}{{a, d, true}, {a, b, true}, {b, a, false}, {d, a, false}, {c, b, true}, {a, e, false}, {a, a, true}} {
		if got := row.from.waitsFor(row.to, nil); got != row.want {
			t.Errorf("%d: got %v", i, got)
		}
	}
}

// Who has waited waits no more, so that the other way round is no circle then.
func TestUnitStopsWaiting(t *testing.T) {
	w := newWorld(t)
	w.Join("x") // so that something is used
	a, b := &asked{function: "A", binding: w.bind("a")}, &asked{function: "B", binding: w.bind("b")}
	w.ask(background, a, func(inA context.Context) {
		done, err := w.mayWait(inA, b)
		again, errAgain := w.mayWait(inA, b)
		if err != nil || errAgain != nil || len(a.waits) != 2 {
			t.Fatalf("got %v, %v, %d waits", err, errAgain, len(a.waits))
		}
		done()
		w.ask(background, b, func(inB context.Context) {
			if _, err := w.mayWait(inB, a); errText(err) != `the B of key "b" waits for the A of key "a"`+circle {
				t.Errorf("while one wait is left: got %v", err)
			}
			again()
			if len(a.waits) != 0 {
				t.Errorf("%d waits are left", len(a.waits))
			}
			done, err := w.mayWait(inB, a)
			if err != nil {
				t.Errorf("then: got %v", err)
			}
			done()
		})
	})
	if done, err := w.mayWait(background, a); err != nil {
		t.Errorf("who is not asked: got %v", err)
	} else {
		done()
	}
}

// The context of a function that has returned is one as any other.
func TestUnitAskingIsOver(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	a := w.bind("a")
	var kept context.Context
	a.afterBegin = func(ctx, _ context.Context, _ *sql.Tx) error {
		kept = ctx
		asked, running := w.Asking(ctx)
		if !asked || !running {
			t.Errorf("got %v, %v", asked, running)
		}
		if asked, running := other.Asking(ctx); asked || running {
			t.Errorf("another unit: got %v, %v", asked, running)
		}
		return nil
	}
	w.begin(a)
	if n := w.used.Load().asking.Load(); n != 0 {
		t.Errorf("%d are being asked", n)
	}
	if asked, running := w.Asking(kept); !asked || running {
		t.Errorf("afterwards: got %v, %v", asked, running)
	}
	if asked, running := w.Asking(background); asked || running {
		t.Errorf("another context: got %v, %v", asked, running)
	}
	w.ask(background, new(asked), func(context.Context) { // while another one is asked
		if _, err := w.Begin(kept, background, a, txn.ForCaller, nil); err != nil {
			t.Errorf("with the context that was kept: got %v", err)
		}
	})
	if err := w.EndNow(kept, background, background, a, true); err != nil {
		t.Errorf("Commit with it: got %v", err)
	}
	w.Abandon()
}

// AfterBegin runs for the key that begins, with the contexts of the use and of the
// registry, and may use other keys.
func TestUnitAfterBegin(t *testing.T) {
	w := newWorld(t)
	a, b := w.bind("a"), w.bind("b")
	ctx, at := context.WithValue(background, nameKey{}, "use"), context.WithValue(background, nameKey{}, "registry")
	a.afterBegin = func(c, r context.Context, tx *sql.Tx) error {
		if c.Value(nameKey{}) != "use" || r != at || tx == nil {
			t.Errorf("got %v and %v", c.Value(nameKey{}), r.Value(nameKey{}))
		}
		if !w.Begun(a) {
			t.Error("not begun")
		}
		_, err := w.use(c, b)
		return err
	}
	for range 2 {
		must(w.useAt(ctx, at, a))(t)
		w.hooks(background, a)
	}
	must(0, w.commit(a))(t)
	must(w.useAt(ctx, at, a))(t)
	w.check("a: BEGIN; a: AfterBegin; b: BEGIN; a: COMMIT; a was committed; a +; a +; a: BEGIN; a: AfterBegin")
	w.Abandon()
}

// Its error is that of the use. What it began and rolled back is told, and is no
// transaction to the hooks.
func TestUnitAfterBeginFails(t *testing.T) {
	for _, row := range []struct {
		err         error
		came        string
		want        string
		unavailable bool
		conflict    bool
	}{
		{errPlain, "returned", `sqlreq: begin on key "a": plain`, false, false},
		{errConflict, "returned", `sqlreq: begin on key "a": conflict`, false, true},
		{context.DeadlineExceeded, "returned", `sqlreq: begin on key "a": context deadline exceeded`, true, false},
		{answered("57P03"), "returned", `sqlreq: begin on key "a": answered 57P03`, true, false},
		{nil, "panicked", "", false, false},
	} {
		w := newWorld(t)
		a := w.bind("a")
		a.afterBegin = func(context.Context, context.Context, *sql.Tx) error {
			if row.err == nil {
				panic("of the program")
			}
			return row.err
		}
		w.hooks(background, a)
		var err error
		came := called(func() { _, err = w.use(background, a) })
		if came != row.came || errText(err) != row.want || !errors.Is(err, row.err) {
			t.Errorf("it %s with %v, want %s", came, err, row.want)
		}
		var unavailable *Unavailable
		if errors.As(err, &unavailable) != row.unavailable || w.SawConflict() != row.conflict || w.Begun(a) {
			t.Errorf("%v: unavailable %v, conflict %v, begun %v", row.err, unavailable, w.SawConflict(), w.Begun(a))
		}
		w.check("a: BEGIN; a: AfterBegin; a: ROLLBACK; a was rolled back")
		a.afterBegin = func(context.Context, context.Context, *sql.Tx) error { return nil }
		w.begin(a)
		w.Finish(200)
		w.check("a: BEGIN; a: AfterBegin; a: COMMIT; a was committed; a +")
	}
}

// A Route may use an Atomic, which lays its savepoints where others have begun.
func TestUnitRouteUsesAtomic(t *testing.T) {
	w := newWorld(t)
	a, b := w.routed("a"), w.bind("b")
	w.begin(b)
	db := w.open("a")
	a.route = func(ctx, at context.Context) (*sql.DB, error) {
		return db, w.Atomic(ctx, at, func(ctx context.Context) error { _, err := w.use(ctx, b); return err })
	}
	w.begin(a)
	w.check("b: BEGIN; a: Route; b: SAVEPOINT sqlreq_1; b: RELEASE SAVEPOINT sqlreq_1; a: BEGIN")
	if n := len(w.beginOf(w.known(b)).waits); n != 0 || len(w.known(a).choice.asked.waits) != 0 {
		t.Error("somebody waits still")
	}
	w.Abandon()
}
