//go:build linux

package loadtest

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net/url"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq/internal/servers"
)

// killer kills the processes of a service. A kill counts if it met a request: one that was under way had
// no answer.
type killer struct {
	service     *service
	clients     *clients
	every       int // how many answers there are between two kills, on average
	met, missed int
}

// kill kills until n more kills count.
func (k *killer) kill(ctx context.Context, n int) error {
	for enough := k.met + n; k.met < enough; {
		if err := k.clients.more(ctx, 1+rand.IntN(2*k.every)); err != nil {
			return err
		}
		victims := k.service.children()
		if len(victims) == 0 {
			continue // the last one was killed a moment ago
		}
		met, err := k.clients.meets(ctx, victims[rand.IntN(len(victims))].kill)
		if err != nil {
			return err
		}
		if met {
			k.met++
		} else {
			k.missed++
		}
	}
	return nil
}

// cluster is a primary, its standby, which takes over, and the address of the one that takes writes.
type cluster struct {
	primary, standby *servers.Postgres
	proxy            *proxy
	dsn              string // by way of the proxy
}

// newCluster starts servers. A COMMIT is acknowledged when the standby has it.
func newCluster(t testing.TB) *cluster {
	t.Helper()
	primary, standby := servers.NewPair(t, "synchronous_commit = on")
	u, err := url.Parse(primary.DSN)
	if err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, u.Host)
	u.Host = p.Addr().String()
	return &cluster{primary, standby, p, u.String()}
}

// failOver kills the primary while a COMMIT waits for the standby, which takes over.
func (c *cluster) failOver(ctx context.Context) error {
	admin, err := sql.Open("pgx", c.primary.DSN)
	if err != nil {
		return err
	}
	defer admin.Close()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for waiting := 0; waiting == 0; <-tick.C {
		if err := admin.QueryRowContext(ctx, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").Scan(&waiting); err != nil {
			return fmt.Errorf("no COMMIT waits for the standby: %w", err)
		}
	}
	c.primary.Kill()
	c.proxy.moveTo("127.0.0.1:1") // nobody is there while none takes writes
	if err := c.standby.Promote(); err != nil {
		return err
	}
	u, err := url.Parse(c.standby.DSN)
	if err != nil {
		return err
	}
	c.proxy.moveTo(u.Host)
	return nil
}
