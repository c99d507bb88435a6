//go:build linux

package loadtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq/internal/servers"
)

// contender is a service that is measured beside others.
type contender struct {
	name    string
	service *service
	db      *sql.DB
	rates   []float64 // orders in a second, by round
	p99     []time.Duration
}

// How long a contender is measured in a round, and how often.
const (
	costRounds  = 5
	costTime    = 2 * time.Second
	costClients = 2
	costStock   = 10_000_000 // there is always enough
)

// What the service costs beside one that has the same statements, roles, isolation and jobs, and transactions by hand:
// without keys, and with answers kept under their keys by a second transaction. They are measured in turns.
func TestCost(t *testing.T) {
	if !*cost {
		t.Skip("for -cost")
	}
	server := servers.NewPostgres(t, "fsync = on") // as a real one has it
	admin := open(t, server.DSN)
	var contenders []*contender
	for name, command := range commands(t) {
		database := fmt.Sprint("orders_", len(contenders))
		if _, err := admin.Exec("CREATE DATABASE " + database); err != nil {
			t.Fatal(err)
		}
		dsn, err := url.Parse(server.DSN)
		if err != nil {
			t.Fatal(err)
		}
		dsn.Path = "/" + database
		contenders = append(contenders, &contender{name: name, service: startService(t, command(dsn.String())), db: open(t, dsn.String())})
	}
	for round := range costRounds + 1 {
		for _, c := range contenders {
			rate, p99 := c.measure(t, round)
			if round > 0 { // the first one warms up
				c.rates, c.p99 = append(c.rates, rate), append(c.p99, p99)
			}
		}
	}
	base := contenders[0]
	t.Logf("%d clients, %d processes, medians of %d rounds:", costClients, processCount, costRounds)
	for _, c := range contenders {
		t.Logf("%-45s %5.0f requests/s (%.2f)   p99 %5.1f ms (%.2f)", c.name, median(c.rates), median(c.rates)/median(base.rates),
			float64(median(c.p99))/1e6, float64(median(c.p99))/float64(median(base.p99)))
		c.service.stop()
	}
}

// commands yields what is compared.
func commands(t *testing.T) iter.Seq2[string, func(dsn string) *exec.Cmd] {
	return func(yield func(string, func(string) *exec.Cmd) bool) {
		_ = yield("by hand, without keys", func(dsn string) *exec.Cmd {
			return byHand{DSN: dsn, Stock: costStock}.command()
		}) && yield("by hand, keys by a second transaction", func(dsn string) *exec.Cmd {
			return byHand{DSN: dsn, Stock: costStock, Keys: true}.command()
		}) && yield("examples/orders", func(dsn string) *exec.Cmd {
			return orders(t, costStock, "-dsn", dsn)
		})
	}
}

func open(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// rest takes away the jobs that a round has left, which would be worked while the next one is measured.
func (c *contender) rest(t *testing.T) {
	t.Helper()
	if _, err := c.db.Exec("DELETE FROM river_job WHERE state = 'available'"); err != nil {
		t.Fatal(err)
	}
	c.service.eventually("no job is under way", func() bool {
		var n int
		return c.db.QueryRow("SELECT count(*) FROM river_job WHERE state <> 'completed'").Scan(&n) == nil && n == 0
	})
}

// measure has clients order as fast as they can. Every answer must be a 201.
func (c *contender) measure(t *testing.T, round int) (rate float64, p99 time.Duration) {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: costClients}
	defer transport.CloseIdleConnections()
	all := newClients(c.service.url)
	all.http = &http.Client{Transport: transport, Timeout: patience}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	latencies := make([][]time.Duration, costClients)
	errs := make([]error, costClients)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range costClients {
		wg.Go(func() {
			for n := 0; time.Since(began) < costTime && errs[i] == nil; n++ {
				o := draw(i, n)
				o.Key = fmt.Sprintf("%s-%d-%s", c.name, round, o.Key)
				sent := time.Now()
				status, _, body, err := all.send(ctx, "/"+o.Tenant+"/api/orders", o.Key, o, false)
				latencies[i] = append(latencies[i], time.Since(sent))
				if err != nil || status != http.StatusCreated {
					errs[i] = fmt.Errorf("%s: got %d %q %v", c.name, status, body, err)
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("%v\n%s", err, c.service.log.tail())
	}
	c.rest(t)
	joined := slices.Sorted(slices.Values(slices.Concat(latencies...)))
	return float64(len(joined)) / took.Seconds(), joined[len(joined)*99/100]
}

func median[T float64 | time.Duration](values []T) T {
	return slices.Sorted(slices.Values(values))[len(values)/2]
}
