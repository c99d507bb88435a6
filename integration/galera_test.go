package integration

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// cluster returns a pool for each node.
func cluster(t *testing.T, nodes []*servers.MariaDB) (dbs []*sql.DB) {
	t.Helper()
	for _, n := range nodes {
		dbs = append(dbs, openDSN(t, "mysql", n.DSN))
	}
	return dbs
}

// everywhere creates tables on the first node and waits until all have them, with what is in them.
func everywhere(t *testing.T, dbs []*sql.DB, definitions, statements []string) {
	t.Helper()
	tables(t, dbs[0], definitions...)
	exec(t, dbs[0], statements...)
	for _, db := range dbs[1:] {
		last, _, _ := strings.Cut(definitions[len(definitions)-1], " ")
		eventually(t, "the tables are on every node", func() bool {
			var n int
			return fresh(db, "SELECT count(*) FROM "+last, &n) == nil
		})
	}
}

// fresh runs a query for one value after everything that the cluster has committed.
func fresh(db *sql.DB, query string, into any) error {
	conn, err := db.Conn(context.Background())
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(context.Background(), "SET SESSION wsrep_sync_wait = 1"); err != nil {
		return err
	}
	defer func() { _, _ = conn.ExecContext(context.Background(), "SET SESSION wsrep_sync_wait = 0") }()
	return conn.QueryRowContext(context.Background(), query).Scan(into)
}

// told is what the clients were told, by the path of the request.
type told struct {
	mu       sync.Mutex
	complete map[string]bool
	statuses map[int]int
}

func newTold() *told {
	return &told{complete: make(map[string]bool), statuses: make(map[int]int)}
}

// post sends a request and notes whether it was a complete success.
func (a *told) post(s *service, path string) {
	status, err := s.post(context.Background(), path)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.complete[path] = err == nil && status < 400
	a.statuses[status]++
}

// is compares with the rows of the table "done", which have the paths.
func (a *told) is(t *testing.T, db *sql.DB, services []*service) {
	t.Helper()
	there := make(map[string]bool)
	rows, err := db.Query("SELECT path FROM done")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var path string
		if err := rows.Scan(&path); err != nil {
			t.Fatal(err)
		}
		there[path] = true
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	var ambiguous int
	for path, complete := range a.complete {
		var r record
		for _, s := range services {
			if found := s.of(path); len(found.events) > 0 {
				r = found
			}
		}
		switch {
		case r.ambiguous() && complete:
			t.Errorf("%s: a success of unknown outcome", path)
		case r.ambiguous():
			ambiguous++
		case there[path] != complete:
			t.Errorf("%s: told of success: %v, there: %v (%v)", path, complete, there[path], r.events)
		}
	}
	t.Logf("%d requests, statuses %v (0: the connection broke), %d ambiguous, %d rows", len(a.complete), a.statuses, ambiguous, len(there))
}

// 3 nodes × 4 clients increment the same rows, each node with a server of its own.
func TestG9GaleraIncrements(t *testing.T) {
	const clients, each, counters = 4, 15, 3
	nodes := servers.SharedGalera(t)
	dbs := cluster(t, nodes)
	everywhere(t, dbs, []string{"done (path VARCHAR(50) PRIMARY KEY)", "counter (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)"},
		[]string{"INSERT INTO counter VALUES (0, 0), (1, 0), (2, 0)"})
	var size, name string
	if err := dbs[0].QueryRow("SHOW STATUS LIKE 'wsrep_cluster_size'").Scan(&name, &size); err != nil || size != fmt.Sprint(len(nodes)) {
		t.Fatalf("the cluster has %s nodes, %v, want %d", size, err, len(nodes))
	}
	var atCommit atomic.Int32
	var services []*service
	for _, db := range dbs {
		s := newService(t, sqlreq.Binding{DB: db}, sqlreq.Retry{Attempts: 1000, Within: patience}, func(w http.ResponseWriter, r *http.Request) error {
			ctx, path := r.Context(), r.URL.Path
			id := int(path[len(path)-1]) % counters
			var n int
			// FOR UPDATE: InnoDB's snapshot does not notice that it has become old, and neither does an UPDATE by it.
			if err := key.QueryRowContext(ctx, "SELECT n FROM counter WHERE id = ? FOR UPDATE", id).Scan(&n); err != nil {
				return err
			}
			if _, err := key.ExecContext(ctx, "UPDATE counter SET n = ? WHERE id = ?", n+1, id); err != nil {
				return err
			}
			_, err := key.ExecContext(ctx, "INSERT INTO done VALUES (?)", path)
			return err
		})
		observe := s.Observe
		s.Observe = func(ctx context.Context, e sqlreq.Event) {
			if e.Outcome == sqlreq.CommitFailed {
				atCommit.Add(1)
			}
			observe(ctx, e)
		}
		services = append(services, s)
	}
	answers := newTold()
	var wg sync.WaitGroup
	for node, s := range services {
		for c := range clients {
			wg.Go(func() {
				for i := range each {
					answers.post(s, fmt.Sprintf("/%d-%d-%d", node, c, i))
				}
			})
		}
	}
	wg.Wait()
	const requests = 3 * clients * each
	if got := answers.statuses[http.StatusOK]; got != requests {
		t.Errorf("%d requests of %d succeeded: %v", got, requests, answers.statuses)
	}
	for i, db := range dbs {
		var sum int
		if err := fresh(db, "SELECT sum(n) FROM counter", &sum); err != nil || sum != requests {
			t.Errorf("node %d: %d increments, %v, want %d", i+1, sum, err, requests)
		}
		idle(t, db)
	}
	answers.is(t, dbs[0], services)
	transactions := 0
	for _, s := range services {
		transactions += s.transactions()
	}
	t.Logf("%d transactions for %d requests, %d failed at COMMIT", transactions, requests, atCommit.Load())
	if transactions == requests {
		t.Error("there was no conflict")
	}
}

// Another node wins a conflict while the handler is at work, which swallows the
// 1213 of its next statement and goes on.
func TestG11GaleraSwallowedConflict(t *testing.T) {
	dbs := cluster(t, servers.SharedGalera(t))
	runKey := func(ctx context.Context, query string) error {
		_, err := key.ExecContext(ctx, query)
		return err
	}
	runTx := func(ctx context.Context, query string) error {
		tx, err := sqlreq.Tx(ctx)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, query)
		return err
	}
	for _, c := range []struct {
		name   string
		guard  bool
		run    func(context.Context, string) error
		status int
		rows   string // of the handler's three
	}{
		{"through the Key", false, runKey, 503, ""},
		{"through the Key, with Guard", true, runKey, 503, ""},
		{"through Tx, with Guard", true, runTx, 500, "3"},
		// What the documentation warns of: the last statement commits by itself, COMMIT returns nil, and the client is told of success.
		{"through Tx, without Guard", false, runTx, 200, "3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			everywhere(t, dbs, []string{"half (n INTEGER PRIMARY KEY)", "counter (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)"},
				[]string{"INSERT INTO counter VALUES (1, 0)"})
			s := newService(t, sqlreq.Binding{DB: dbs[0], Guard: c.guard}, sqlreq.Retry{}, func(w http.ResponseWriter, r *http.Request) error {
				ctx := r.Context()
				if err := c.run(ctx, "INSERT INTO half VALUES (1)"); err != nil {
					return err
				}
				if err := c.run(ctx, "UPDATE counter SET n = 1 WHERE id = 1"); err != nil {
					return err
				}
				exec(t, dbs[1], "UPDATE counter SET n = 2 WHERE id = 1")
				eventually(t, "the other node's transaction is applied", func() bool {
					return number(t, dbs[0], "SELECT n FROM counter WHERE id = 1") == 2
				})
				if err := c.run(ctx, "INSERT INTO half VALUES (2)"); !sqlreq.IsRetryable(err) {
					t.Errorf("got %v, want a conflict", err)
				}
				_ = c.run(ctx, "INSERT INTO half VALUES (3)")
				return nil
			})
			s.want("/", c.status)
			var rows sql.NullString
			if err := fresh(dbs[1], "SELECT group_concat(n ORDER BY n) FROM half", &rows); err != nil || rows.String != c.rows {
				t.Errorf("rows %q, %v, want %q", rows.String, err, c.rows)
			}
			r := s.of("/")
			if want := c.status == 500; r.ambiguous() != want {
				t.Errorf("ambiguous: got %v, want %v (%v)", r.ambiguous(), want, r.last().Err)
			}
			if committed := r.hooks == "c"; committed != (c.status == 200) {
				t.Errorf("hooks %q with a status of %d", r.hooks, c.status)
			}
			idle(t, dbs[0])
		})
	}
}

// A node is killed under load. What its clients, and those of the others, were
// told must be what the rest of the cluster has.
func TestG1GaleraNodeKilled(t *testing.T) {
	const clients, each = 4, 40
	nodes := servers.SharedGalera(t)
	if !nodes[2].Own() {
		t.Skipf("%s is set, and those nodes are not this test's to kill", servers.GaleraDSNs)
	}
	dbs := cluster(t, nodes)
	everywhere(t, dbs, []string{"done (path VARCHAR(50) PRIMARY KEY)"}, nil)
	third, dead := make(chan struct{}), make(chan struct{})
	var done atomic.Int32
	var services []*service
	for _, db := range dbs {
		services = append(services, newService(t, sqlreq.Binding{DB: db}, sqlreq.Retry{Attempts: 10, Within: patience}, func(w http.ResponseWriter, r *http.Request) error {
			_, err := key.ExecContext(r.Context(), "INSERT INTO done VALUES (?)", r.URL.Path)
			if done.Add(1) == 3*clients*each/3 {
				close(third)
			}
			return err
		}))
	}
	answers := newTold()
	var wg sync.WaitGroup
	for node, s := range services {
		for c := range clients {
			wg.Go(func() {
				for i := range each {
					if node == 2 && c == 0 && i == each-1 {
						<-dead // however quick the others are, somebody notices
					}
					answers.post(s, fmt.Sprintf("/%d-%d-%d", node, c, i))
				}
			})
		}
	}
	<-third
	killed := time.Now()
	nodes[2].Kill()
	close(dead)
	t.Cleanup(func() {
		if err := nodes[2].Start(); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	t.Logf("a third was done when the node was killed; the rest took %v", time.Since(killed).Round(time.Millisecond))
	var n int
	for i, db := range dbs[:2] {
		if err := fresh(db, "SELECT count(*) FROM done", &n); err != nil {
			t.Errorf("node %d: %v", i+1, err)
		}
	}
	answers.is(t, dbs[0], services)
	for i, s := range services[:2] {
		s.want(fmt.Sprint("/afterwards-", i), http.StatusOK)
		idle(t, dbs[i])
	}
	if answers.statuses[http.StatusOK] == len(answers.complete) {
		t.Error("nobody has noticed that a node was killed")
	}
}
