package txn

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
)

// beside is another slot on the test's transaction of w.
func (w *world) beside(nest func() *Nest) *world {
	other := &world{t: w.t, outer: w.outer, key: key{"other", false}, nest: nest}
	other.Init(nil, w.outer, 0)
	return other
}

// innest is what a unit inside of that of w nests in.
func (w *world) innest() *Nest { return w.Nest(w.outer) }

// In a test's transaction the units' transactions are savepoints, each of a name
// of its own, and so are their savepoints.
func TestSlotInATest(t *testing.T) {
	w := newWorld(t, testGuard)
	if tx := w.begin(); tx != w.outer {
		t.Error("it is not the test's transaction")
	}
	must(0, w.save(background).Release("k"))(t)
	w.End(true)
	w.begin()
	must(0, w.save(background).RollBack("k"))(t)
	w.End(false)
	w.d.CheckLog(t, "BEGIN",
		saveTx, "SAVEPOINT sqlreq_tx_1_1", "RELEASE SAVEPOINT sqlreq_tx_1_1", releaseTx,
		"SAVEPOINT sqlreq_tx_2", "SAVEPOINT sqlreq_tx_2_1", "ROLLBACK TO SAVEPOINT sqlreq_tx_2_1", "RELEASE SAVEPOINT sqlreq_tx_2_1", "ROLLBACK TO SAVEPOINT sqlreq_tx_2", "RELEASE SAVEPOINT sqlreq_tx_2")
}

const deadText = `sqlreq: begin on key "other": the test's transaction (Binding.Tx) has ended in an earlier request, nothing runs in it any more; begin a new one for each test: `

// Units that share a test's transaction wait for each other, also where the end
// of one panics.
func TestSlotTurnsInATest(t *testing.T) {
	for _, row := range []struct {
		fault func(context.Context) error
		came  string
		dead  string // what the other gets
	}{{nil, "returned", ""}, {panics, "panicked", ""}, {exits, "exited", ""}, {fails(errRefused), "returned", ""}, {fails(errNetwork), "returned", deadText + "unexpected EOF"}} {
		for _, well := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, test)
				other := w.beside(nil)
				w.begin()
				got := make(chan error, 1)
				go func() { _, err := other.use(background); got <- err }()
				synctest.Wait()
				if len(got) > 0 {
					t.Error("two are in the test's transaction at once")
				}
				if row.fault != nil {
					w.at(releaseTx, row.fault)
					w.at(rollbackToTx, row.fault)
				}
				if came := called(func() { w.End(well) }); came != row.came {
					t.Errorf("it %s, want %s", came, row.came)
				}
				w.well()
				if err := <-got; errText(err) != row.dead {
					t.Errorf("the other: got %v, want %s", err, row.dead)
				}
				if row.dead == "" {
					other.inState("open")
					other.End(true)
				}
				other.inState("idle")
				w.endedOnce(t)
			})
		}
	}
}

// Who waits for a test's transaction stops when a context ends, and then has no turn to give back.
func TestSlotWaitInATest(t *testing.T) {
	for _, who := range []string{"caller", "unit"} {
		for _, nested := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, test)
				w.begin()
				first := w
				var nest *Nest
				var within func() *Nest
				if nested {
					nest, within = w.Nest(w.outer), w.innest
					first = w.beside(within)
					first.begin()
				}
				waits := w.beside(within)
				ctx, end := context.WithCancel(background)
				caller, a := background, waits.ask(ForStatement)
				if who == "unit" {
					a.Unit = ctx
				} else {
					caller = ctx
				}
				got := make(chan error, 1)
				go func() { _, err := waits.Use(caller, a); got <- err }()
				synctest.Wait()
				if len(got) > 0 {
					t.Error("it did not wait")
				}
				end()
				var b *BeginError
				if err := <-got; !errors.As(err, &b) || b.Err != context.Canceled || a.Refused != nil {
					t.Errorf("got %v", err)
				}
				waits.inState("idle")
				if nested {
					if !nest.turn.Taken() {
						t.Error("who waited gave back another's turn")
					}
					first.End(true)
					if nest.turn.Taken() {
						t.Error("the turn at the savepoint was not given back")
					}
				}
				w.End(true)
				w.endedOnce(t)
			})
		}
	}
}

// A unit inside of another one nests in its savepoint, and two of them wait for each other.
func TestSlotNest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, test)
		foreign := newWorld(t, test)
		if w.Nest(w.outer) != nil {
			t.Error("there is a turn before the transaction")
		}
		w.begin()
		nest := w.Nest(w.outer)
		if nest == nil || nest.turn.Taken() || w.Nest(foreign.outer) != nil {
			t.Fatal("the turn for what nests is not that of the open savepoint")
		}
		a, b := w.beside(w.innest), w.beside(w.innest)
		a.begin()
		if inner := a.Nest(w.outer); inner == nil || inner == nest {
			t.Error("what nests deeper has no turn of its own")
		}
		got := make(chan error, 1)
		go func() { _, err := b.use(background); got <- err }()
		synctest.Wait()
		if len(got) > 0 {
			t.Error("two nest at once")
		}
		a.End(false)
		must(0, <-got)(t)
		b.End(true)
		w.End(true)
		if w.Nest(w.outer) != nil {
			t.Error("there is a turn after the transaction")
		}
		w.begin()
		if again := w.Nest(w.outer); again == nil || again == nest {
			t.Error("the next transaction has the turn of the last one")
		}
		w.End(true)
		log := strings.Join(w.d.Log(), "; ")
		if want := "BEGIN; SAVEPOINT sqlreq_tx_1; SAVEPOINT sqlreq_tx_2; ROLLBACK TO SAVEPOINT sqlreq_tx_2; RELEASE SAVEPOINT sqlreq_tx_2; SAVEPOINT sqlreq_tx_3; RELEASE SAVEPOINT sqlreq_tx_3; RELEASE SAVEPOINT sqlreq_tx_1; SAVEPOINT sqlreq_tx_4; RELEASE SAVEPOINT sqlreq_tx_4"; log != want {
			t.Errorf("got  %s\nwant %s", log, want)
		}
	})
}

// A SAVEPOINT that fails, panics or exits gives the turn in a savepoint back too.
func TestSlotNestFaults(t *testing.T) {
	for _, fault := range []func(context.Context) error{fails(errPlain), panics, exits} {
		w := newWorld(t, test)
		w.begin()
		nest := w.Nest(w.outer)
		inner := w.beside(w.innest)
		w.at("SAVEPOINT sqlreq_tx_2", fault)
		called(func() { inner.use(background) })
		if nest.turn.Taken() {
			t.Error("the turn at the savepoint was not given back")
		}
		inner.inState("idle")
		w.End(true)
	}
}

// A slot is one on a pool, or on a test's transaction.
func TestSlotOf(t *testing.T) {
	p, q, a, b := newWorld(t, plain), newWorld(t, plain), newWorld(t, test), newWorld(t, test)
	for _, row := range []struct {
		s    *world
		db   *sql.DB
		tx   *sql.Tx
		want bool
	}{
		{p, p.pool, nil, true}, {p, q.pool, nil, false}, {p, nil, a.outer, false}, {p, nil, nil, false}, {p, p.pool, a.outer, false},
		{a, nil, a.outer, true}, {a, nil, b.outer, false}, {a, p.pool, nil, false}, {a, nil, nil, false}, {a, p.pool, a.outer, false},
	} {
		if got := row.s.Of(row.db, row.tx); got != row.want {
			t.Errorf("%v: got %v", row, got)
		}
	}
	if p.DB() != p.pool || a.DB() != nil || p.TestTx() != nil || a.TestTx() != a.outer {
		t.Error("DB and TestTx are not what Init was given")
	}
	if p.Nest(nil) != nil {
		t.Error("a slot on a pool has a turn for what nests")
	}
}

// A test's transaction that was ended is found by who wants it, and by nobody else.
func TestSlotInATestThatHasEnded(t *testing.T) {
	w := newWorld(t, test)
	w.begin()
	must(0, w.outer.Rollback())(t)
	if err := w.Lost(); err != nil {
		t.Errorf("Lost: got %v", err)
	}
	if tx, err := w.Use(background, w.ask(ForCaller)); word(err) != "ended" || tx != nil {
		t.Errorf("got %v, %v", tx, err)
	}
	w.End(true)
	if _, err := w.use(background); errText(err) != beginRefused+sql.ErrTxDone.Error() {
		t.Errorf("got %v", err)
	}
	w.endedOnce(t)
}
