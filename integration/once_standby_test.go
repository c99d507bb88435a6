package integration

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
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
// No order that was acknowledged is lost, and each is there once. With Retry no client notices
// anything.
func TestOnceFailover(t *testing.T) {
	rounds := 1
	if *long {
		rounds = 10
	}
	for round := range rounds {
		t.Run(fmt.Sprint(round), failover)
	}
}

// side is a service on the database, and the clients that it has.
type side struct {
	url    string
	base   *counted // below the Transport
	client *shopClient
}

func newSide(t *testing.T, d database, attempts int) *side {
	t.Helper()
	db := d.open(t)
	db.SetMaxOpenConns(8)
	h, err := newShop(d, db, attempts)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	s := &side{url: srv.URL, base: &counted{RoundTripper: &http.Transport{MaxIdleConnsPerHost: 8}, answers: make(map[int]int)}}
	s.client = &shopClient{Client: &http.Client{Transport: &idempotency.Transport{Base: s.base, Attempts: failoverAttempts}}}
	return s
}

func failover(t *testing.T) {
	const clients = 8
	primary, standby := servers.NewPair(t, "synchronous_commit = on")
	d := database{driver: "pgx", dsn: func(testing.TB) string { return bothHosts(t, primary, standby) }}
	admin := restartable(t, "pgx", primary.DSN)
	openShop(t, d).SetMaxIdleConns(-1) // its connections would die with the primary
	alone, retrying := newSide(t, d, 1), newSide(t, d, 100)

	answers := &answered{answers: make(map[string]reply)}
	l := startOrders(t, clients, func(ctx context.Context, i, j int) error {
		if i%2 == 0 { // without large answers, which cannot be tried again
			return answers.ask(ctx, retrying.client, retrying.url, fmt.Sprint(i, "-", j))
		}
		return answers.ask(ctx, alone.client, alone.url, orderName(fmt.Sprint(i), j))
	})
	l.more(150)
	eventually(t, "a COMMIT waits for the standby", func() bool {
		return number(t, admin, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") > 0
	})
	primary.Kill()
	killed, acknowledged := time.Now(), l.done.Load()
	if err := standby.Promote(); err != nil {
		t.Fatal(err)
	}
	l.more(150)
	took := time.Since(killed)
	l.finish()
	t.Logf("%d of %d orders were acknowledged when the primary was killed; 150 more took %v", acknowledged, l.done.Load(), took.Round(time.Millisecond))
	t.Logf("answers to Transport: %v, with Retry %v; to its clients, but for 201: %v, with Retry %v", alone.base.answers, retrying.base.answers, alone.client.others, retrying.client.others)
	if len(alone.base.answers) == 1 {
		t.Error("nobody has noticed that the primary was killed")
	}
	if len(retrying.base.answers) > 1 {
		t.Errorf("with Retry clients have seen %v of the failover", retrying.base.answers)
	}
	checkShop(t, openDSN(t, "pgx", standby.DSN), answers.answers)
	for name, first := range answers.answers {
		if got, replayed, err := alone.client.once(t.Context(), alone.url, name); got != first || !replayed || err != nil {
			t.Errorf("order %s: got %v, replayed %v, %v, and before %v", name, got, replayed, err, first)
		}
	}
}
