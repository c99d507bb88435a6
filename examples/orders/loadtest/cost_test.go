//go:build linux

package loadtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"slices"
	"strconv"
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
	again   []float64 // transactions that were rolled back, for each order
}

// How long a contender is measured in a round, and how often.
const (
	costRounds      = 9
	costTime        = 2 * time.Second
	costClients     = 8
	costConnections = 16         // of each process
	costStock       = 10_000_000 // there is always enough
)

// What the service costs beside one that has the same statements, roles, isolation and jobs, and transactions by hand:
// without keys, and with answers kept under their keys by a second transaction. They are measured in turns.
func TestCost(t *testing.T) {
	if !*cost {
		t.Skip("for -cost")
	}
	server := servers.NewPostgres(t, "fsync = on", "max_connections = 300") // fsync as a real one has it
	admin := open(t, server.DSN)
	var contenders []*contender
	for _, c := range candidates(t) {
		database := fmt.Sprint("orders_", len(contenders))
		if _, err := admin.Exec("CREATE DATABASE " + database); err != nil {
			t.Fatal(err)
		}
		dsn, err := url.Parse(server.DSN)
		if err != nil {
			t.Fatal(err)
		}
		dsn.Path = "/" + database
		plain := dsn.String()
		dsn.RawQuery += "&pool_max_conns=" + strconv.Itoa(c.connections)
		contenders = append(contenders, &contender{name: c.name, service: startService(t, c.command(dsn.String())), db: open(t, plain)})
	}
	for round := range costRounds + 1 {
		for _, c := range contenders {
			if c.measure(t, round); round == 0 { // it warms up
				c.rates, c.p99, c.again = nil, nil, nil
			}
		}
	}
	base := contenders[0]
	t.Logf("%d clients, %d processes, medians of %d rounds:", costClients, processCount, costRounds)
	for _, c := range contenders {
		t.Logf("%-40s %5.0f requests/s (%.2f)   p99 %6.1f ms (%.2f)   %.2f rollbacks for each order", c.name, median(c.rates), median(c.rates)/median(base.rates),
			float64(median(c.p99))/1e6, float64(median(c.p99))/float64(median(base.p99)), median(c.again))
		c.service.stop()
	}
}

// candidate is a service to be compared, and how many connections each of its pools has in a process.
type candidate struct {
	name        string
	connections int
	command     func(dsn string) *exec.Cmd
}

// candidates are the services. Those by hand have a pool for requests and one for jobs.
func candidates(t *testing.T) []candidate {
	return []candidate{
		{"by hand, without keys", costConnections / 2, func(dsn string) *exec.Cmd {
			return byHand{DSN: dsn, Stock: costStock}.command()
		}},
		{"by hand, keys by a second transaction", costConnections / 2, func(dsn string) *exec.Cmd {
			return byHand{DSN: dsn, Stock: costStock, Keys: true}.command()
		}},
		{"examples/orders", costConnections, func(dsn string) *exec.Cmd {
			return orders(t, costStock, "-dsn", dsn)
		}},
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
func (c *contender) measure(t *testing.T, round int) {
	t.Helper()
	before := c.rollbacks(t)
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
	c.rates = append(c.rates, float64(len(joined))/took.Seconds())
	c.p99 = append(c.p99, joined[len(joined)*99/100])
	c.again = append(c.again, (c.rollbacks(t)-before)/float64(len(joined)))
}

// rollbacks is how many transactions were rolled back, those of jobs too. A session tells it when it is idle.
func (c *contender) rollbacks(t *testing.T) (n float64) {
	t.Helper()
	if err := c.db.QueryRow("SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func median[T float64 | time.Duration](values []T) T {
	return slices.Sorted(slices.Values(values))[len(values)/2]
}
