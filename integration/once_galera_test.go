package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// galeraShop returns a database for each node of the cluster, which all have the tables
// of a shop, and a pool for each.
func galeraShop(t *testing.T) (nodes []database, dbs []*sql.DB) {
	t.Helper()
	for i, n := range servers.SharedGalera(t) {
		nodes = append(nodes, database{name: fmt.Sprint("node ", i+1), driver: "mysql", dsn: func(testing.TB) string { return n.DSN }})
	}
	dbs = append(dbs, openShop(t, nodes[0]))
	for _, d := range nodes[1:] {
		db := d.open(t)
		eventually(t, "the shop is on every node", func() bool {
			var n int
			return fresh(db, "SELECT count(*) FROM sqlreq_stock", &n) == nil && n == shelves
		})
		dbs = append(dbs, db)
	}
	return nodes, dbs
}

// checkGaleraShop waits until each node of those given has what was committed, and compares it.
func checkGaleraShop(t *testing.T, dbs []*sql.DB, answers map[string]reply) {
	t.Helper()
	for i, db := range dbs {
		var n int
		if err := fresh(db, "SELECT count(*) FROM sqlreq_order", &n); err != nil {
			t.Fatalf("node %d: %v", i+1, err)
		}
		checkShop(t, db, answers)
	}
}

// 50 duplicates are sent to the nodes of a cluster at once, at each isolation level, with
// and without a snapshot taken before. Each node has a process of its own.
func TestOnceGaleraDuplicates(t *testing.T) {
	nodes, dbs := galeraShop(t)
	var urls []string
	for _, d := range nodes {
		p, err := startShop(t, shopConfig{Driver: d.driver, DSN: d.dsn(t)})
		if err != nil {
			t.Fatal(err)
		}
		urls = append(urls, p.url)
	}
	answers := make(map[string]reply)
	atEachLevel(t, isolationLevels, "nodes", urls, answers)
	// A node that has not yet heard of an order finds out at COMMIT.
	c := &shopClient{Client: http.DefaultClient}
	for i := range 30 {
		name := fmt.Sprint("in turns ", i)
		for j := range urls {
			got, replayed, err := c.once(t.Context(), urls[(i+j)%len(urls)], name)
			if j == 0 {
				answers[name] = got
			}
			if got.status != http.StatusCreated || got != answers[name] || replayed != (j > 0) || err != nil {
				t.Errorf("order %s at node %d: got %v, replayed %v, %v", name, (i+j)%len(urls)+1, got, replayed, err)
			}
		}
	}
	checkGaleraShop(t, dbs, answers)
}

// The key of a request in progress does not block another node: certification decides, and
// the first to commit is the first. The other gets its answer: by Retry, or without it a
// 503, after which Transport gets it.
func TestOnceGaleraCertification(t *testing.T) {
	for _, attempts := range []int{1, 100} {
		t.Run(fmt.Sprint("attempts=", attempts), func(t *testing.T) {
			nodes, dbs := galeraShop(t)
			slow, err := sqlreq.New(sqlreq.Binding{DB: dbs[0]})
			if err != nil {
				t.Fatal(err)
			}
			slow.Logger = slog.New(slog.DiscardHandler)
			slow.Retry = sqlreq.Retry{Attempts: attempts, Within: patience}
			var unfinished error // of the transaction that was too late
			slow.Observe = func(_ context.Context, e sqlreq.Event) { unfinished = errors.Join(unfinished, e.Err) }
			begun, goOn := make(chan struct{}), make(chan struct{})
			first := httptest.NewServer(slow.Middleware(newOnce(nodes[0]).Handler(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				close(begun)
				<-goOn
				return takeOrder(w, r)
			}))))
			defer first.Close()
			h, err := newShop(nodes[1], dbs[1], 1)
			if err != nil {
				t.Fatal(err)
			}
			second := httptest.NewServer(h)
			defer second.Close()

			base := &counted{RoundTripper: &http.Transport{DisableKeepAlives: true}, answers: make(map[int]int)}
			c := &shopClient{Client: &http.Client{Transport: &idempotency.Transport{Base: base, Attempts: 3}}}
			late := make(chan reply, 1)
			go func() {
				got, replayed, err := c.once(t.Context(), first.URL, "k")
				if !replayed || err != nil {
					t.Errorf("the late one: replayed %v, %v", replayed, err)
				}
				late <- got
			}()
			<-begun
			got, replayed, err := c.once(t.Context(), second.URL, "k")
			if got.status != http.StatusCreated || replayed || err != nil {
				t.Errorf("got %v, replayed %v, %v", got, replayed, err)
			}
			close(goOn)
			if other := <-late; other != got {
				t.Errorf("got %v, want %v", other, got)
			}
			if !sqlreq.IsRetryable(unfinished) {
				t.Errorf("the late one met %v, want a conflict", unfinished)
			}
			if want := map[int]int{1: 1, 100: 0}[attempts]; base.answers[http.StatusServiceUnavailable] != want {
				t.Errorf("answers %v, want %d of 503", base.answers, want)
			}
			checkGaleraShop(t, dbs, map[string]reply{"k": got})
		})
	}
}

// A node is killed under load. Clients send their orders again, to whatever node: each
// is there once, and all its answers are the same.
func TestOnceGaleraNodeKilled(t *testing.T) {
	nodes, dbs := galeraShop(t)
	shared := servers.SharedGalera(t)
	if !shared[2].Own() {
		t.Skipf("%s is set, and those nodes are not this test's to kill", servers.GaleraDSNs)
	}
	var urls []string
	for i, db := range dbs {
		h, err := newShop(nodes[i], db, 3) // on the dead node a request is not to be tried for long
		if err != nil {
			t.Fatal(err)
		}
		srv := httptest.NewServer(h)
		defer srv.Close()
		urls = append(urls, srv.URL)
	}
	answers := &answered{answers: make(map[string]reply)}
	c := &shopClient{Client: http.DefaultClient, mayBe: []int{http.StatusServiceUnavailable, http.StatusConflict}}
	l := startOrders(t, 8, func(ctx context.Context, i, j int) error {
		for range 2 {
			if err := answers.askAt(ctx, c, func() string { return urls[rand.IntN(len(urls))] }, orderName(fmt.Sprint(i), j)); err != nil {
				return err
			}
		}
		return nil
	})
	l.more(60)
	shared[2].Kill()
	t.Cleanup(func() {
		if err := shared[2].Start(); err != nil {
			t.Error(err)
		}
	})
	l.more(100)
	l.finish()
	checkGaleraShop(t, dbs[:2], answers.answers)
	if len(c.others) == 0 {
		t.Error("nobody has noticed that a node was killed")
	}
	t.Logf("%d orders, asked for %d times; other answers: %v", len(answers.answers), c.asks, c.others)
}
