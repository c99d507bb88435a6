package integration

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// bothHosts returns a DSN for pgx of whichever server takes writes.
func bothHosts(t *testing.T, primary, standby *servers.Postgres) string {
	t.Helper()
	u, err := url.Parse(primary.DSN)
	if err != nil {
		t.Fatal(err)
	}
	second, err := url.Parse(standby.DSN)
	if err != nil {
		t.Fatal(err)
	}
	u.Host += "," + second.Host
	return withOption(t, u.String(), "target_session_attrs", "read-write")
}

// counted counts what it sends, and how that was answered.
type counted struct {
	http.RoundTripper
	mu      sync.Mutex
	answers map[int]int // by status; 0: an error
}

func (c *counted) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := c.RoundTripper.RoundTrip(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.answers[0]++
	} else {
		c.answers[res.StatusCode]++
	}
	return res, err
}

// failoverAttempts is how often the clients' Transport sends an order: with its waits of up
// to 5 s that is longer than any failover here.
const failoverAttempts = 30

// The primary is killed under load while COMMITs wait for the standby, which takes over.
// No order that was acknowledged is lost, and each is there once.
func TestOnceFailover(t *testing.T) {
	rounds := 1
	if *long {
		rounds = 10
	}
	for round := range rounds {
		t.Run(fmt.Sprint(round), failover)
	}
}

func failover(t *testing.T) {
	const clients, each = 8, 60
	primary, standby := servers.NewPair(t, "synchronous_commit = on")
	d := database{driver: "pgx", dsn: func(testing.TB) string { return bothHosts(t, primary, standby) }}
	admin := restartable(t, "pgx", primary.DSN)
	setup := openShop(t, d)
	setup.SetMaxIdleConns(-1) // its connections die with the primary

	base := &counted{RoundTripper: &http.Transport{MaxIdleConnsPerHost: clients}, answers: make(map[int]int)}
	client := &shopClient{
		Client: &http.Client{Transport: &idempotency.Transport{Base: base, Attempts: failoverAttempts}},
		mayBe:  []int{http.StatusInternalServerError},
	}
	answers := &answered{answers: make(map[string]reply)}
	var urls []string
	for _, attempts := range []int{1, 100} {
		db := openDSN(t, d.driver, d.dsn(t))
		db.SetMaxOpenConns(clients)
		h, err := newShop(d, db, attempts)
		if err != nil {
			t.Fatal(err)
		}
		srv := httptest.NewServer(h)
		t.Cleanup(srv.Close)
		urls = append(urls, srv.URL)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var done atomic.Int32
	third := make(chan struct{})
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for j := range each {
				if err := answers.ask(ctx, client, urls[i%len(urls)], fmt.Sprint(i, "-", j)); err != nil {
					t.Error(err)
					return
				}
				if done.Add(1) == clients*each/3 {
					close(third)
				}
			}
		})
	}
	<-third
	eventually(t, "a COMMIT waits for the standby", func() bool {
		return number(t, admin, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") > 0
	})
	primary.Kill()
	acknowledged, killed := int(done.Load()), time.Now()
	if err := standby.Promote(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	took := time.Since(killed)
	if acknowledged >= clients*each || base.answers[http.StatusServiceUnavailable] == 0 {
		t.Errorf("nobody has noticed that the primary was killed: %d acknowledged before, %v", acknowledged, base.answers)
	}
	db := openDSN(t, "pgx", standby.DSN)
	checkShop(t, db, answers.answers)
	for name, first := range answers.answers {
		if got, replayed, err := client.once(ctx, urls[0], name); got != first || !replayed || err != nil {
			t.Errorf("order %s: got %+.100q, replayed %v, %v, and before %+.100q", name, got, replayed, err, first)
		}
	}
	t.Logf("%d of %d orders were acknowledged when the primary was killed, the others within %v; answers to the Transport: %v; to its clients: %v",
		acknowledged, clients*each, took.Round(time.Millisecond), base.answers, client.others)
}
