//go:build linux

package loadtest

import (
	"context"
	"database/sql"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"
)

// size is how large a round is.
type size struct {
	orders  int // at least
	kills   int // of processes
	clients int
}

// stock is how many of each product there are. That of the hot one is sold out first.
func (s size) stock() int { return s.orders }

// load has clients order while processes are killed, half of them before whatever is done in the middle, and half
// after it. It returns when all orders are answered and the hot product is sold out.
func load(t *testing.T, s *service, c *clients, k *killer, of size, middle func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience+time.Duration(of.kills+of.orders/20)*time.Second)
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	until := func(err error) { // the first error ends all
		if err != nil {
			fail(err)
		}
	}
	enough, over := make(chan struct{}), make(chan struct{})
	var wg, watch sync.WaitGroup
	if c.watched {
		watch.Go(func() { until(c.watch(ctx, over)) })
	}
	for i := range of.clients {
		wg.Go(func() {
			err := c.shop(ctx, i, enough)
			if err == nil {
				err = c.sellOut(ctx, i, of.stock())
			}
			until(err)
		})
	}
	until(k.kill(ctx, of.kills/2))
	if ctx.Err() == nil && middle != nil {
		until(middle(ctx))
	}
	until(k.kill(ctx, of.kills-of.kills/2))
	until(c.wait(ctx, func() bool { return len(c.answers) >= of.orders }))
	close(enough)
	wg.Wait()
	close(over)
	watch.Wait()
	if ctx.Err() != nil {
		t.Fatalf("%v\n%s", context.Cause(ctx), s.log.tail())
	}
}

// report tells what was done.
func report(t *testing.T, c *clients, k *killer, took time.Duration) {
	created := 0
	for _, a := range c.answers {
		if a.status == 201 {
			created++
		}
	}
	t.Logf("%d keys, %d of them ordered and %d sold out, and %d payments, in %d requests and %v; %d processes were killed while they served, %d while not",
		len(c.answers), created, len(c.answers)-created, len(c.paid), c.asked, took.Round(time.Millisecond), k.met, k.missed)
	t.Logf("clients went away %d times, %d requests were broken, answers after which they asked again: %v; the statistics were right %d times", c.left, c.broken, c.others, c.looks)
}

// fine fails the test for everything that must not be.
func fine(t *testing.T, found []finding) {
	t.Helper()
	for i, f := range found {
		if i == 20 {
			t.Errorf("and so on: %v", count(found))
			break
		}
		t.Error(fmt.Sprint(f.kind, ": ", f.text))
	}
}

// round is one load on one service, from its start to what is stored at its end.
type round struct {
	size
	cmd     func(testing.TB) *exec.Cmd
	middle  func(context.Context) error // nil: nothing
	driver  string
	dsn     func() string // of the database, when all is over
	queries queries
	byHand  bool // it has no statistics
}

// run runs it, and returns what must not be.
func (r round) run(t *testing.T) []finding {
	t.Helper()
	s := startService(t, r.cmd(t))
	c := newClients(s.url)
	c.watched = !r.byHand
	k := &killer{service: s, clients: c, every: max(1, r.orders/r.kills)}
	began := time.Now()
	load(t, s, c, k, r.size, r.middle)
	report(t, c, k, time.Since(began))
	s.stop()
	db, err := sql.Open(r.driver, r.dsn())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	found := check(r.queries.read(t, db), c.answers, c.paid, r.stock())
	for _, text := range c.unlike {
		found = append(found, finding{"unlike", text})
	}
	return found
}

// sizes are those of the rounds, one after the other.
func sizes() []size {
	if *long {
		return slices.Repeat([]size{{orders: 1500, kills: 25, clients: 8}}, 3)
	}
	return []size{{orders: 300, kills: 8, clients: 8}}
}

// Three processes serve. They are killed, and so is the primary of their database, while a COMMIT waits for the
// standby that takes over; clients ask again until they are answered, and some go away in between. No order that was
// acknowledged is lost, none is there twice, nothing is sold that was not there, each has one payment, one
// job and one event, and no payment is booked twice.
func TestLoadPostgres(t *testing.T) {
	for i, of := range sizes() {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			found := onCluster(newCluster(t), of, func(t testing.TB, c *cluster) *exec.Cmd {
				return orders(t, of.stock(), "-dsn", c.dsn, "-reader", c.standby.DSN)
			}).run(t)
			fine(t, found)
		})
	}
}

// onCluster is a round on PostgreSQL, in the middle of which the standby takes over.
func onCluster(c *cluster, of size, cmd func(testing.TB, *cluster) *exec.Cmd) round {
	return round{
		size: of, cmd: func(t testing.TB) *exec.Cmd { return cmd(t, c) }, middle: c.failOver,
		driver: "pgx", dsn: func() string { return c.standby.DSN }, queries: postgresQueries,
	}
}

// The same on one SQLite file, that three processes have open.
func TestLoadSQLite(t *testing.T) {
	for i, of := range sizes() {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "orders.db")
			found := round{
				size: of, cmd: func(t testing.TB) *exec.Cmd { return orders(t, of.stock(), "-db", path) },
				driver: "sqlite", dsn: func() string { return "file:" + path }, queries: sqliteQueries,
			}.run(t)
			fine(t, found)
		})
	}
}

// What the usual service with transactions by hand makes of the same: it is counted, not judged.
func TestLoadByHand(t *testing.T) {
	if !*long {
		t.Skip("for -long")
	}
	of := sizes()[0]
	for _, keys := range []bool{false, true} {
		t.Run(fmt.Sprint("keys=", keys), func(t *testing.T) {
			r := onCluster(newCluster(t), of, func(_ testing.TB, c *cluster) *exec.Cmd {
				return byHand{DSN: c.dsn, Stock: int64(of.stock()), Keys: keys}.command()
			})
			r.byHand = true
			found := r.run(t)
			t.Logf("found: %v", count(found))
		})
	}
}
