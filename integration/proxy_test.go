package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// proxy is a network between a client and a server, which can begin to swallow
// everything: connections stay open, and nothing arrives any more.
type proxy struct {
	net.Listener
	server string
	dead   atomic.Bool

	mu    sync.Mutex
	conns []net.Conn
}

func newProxy(t *testing.T, server string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l, server: server}
	var wg sync.WaitGroup
	wg.Go(func() { p.accept(&wg) })
	t.Cleanup(func() {
		l.Close()
		p.cut()
		wg.Wait()
	})
	return p
}

func (p *proxy) accept(wg *sync.WaitGroup) {
	for {
		client, err := p.Accept()
		if err != nil {
			return
		}
		p.keep(client)
		if p.dead.Load() {
			wg.Go(func() { _, _ = io.Copy(io.Discard, client) })
			continue
		}
		server, err := net.Dial("tcp", p.server)
		if err != nil {
			client.Close()
			continue
		}
		p.keep(server)
		wg.Go(func() { p.pipe(server, client) })
		wg.Go(func() { p.pipe(client, server) })
	}
}

func (p *proxy) keep(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, c)
}

// cut ends all connections, as TCP does when it gives up.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
}

// pipe carries what one side sends to the other. On a dead network nobody is told that the other side has gone.
func (p *proxy) pipe(to, from net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if p.dead.Load() {
			if err != nil {
				return
			}
			continue
		}
		if err == nil {
			_, err = to.Write(buf[:n])
		}
		if err != nil {
			to.Close()
			from.Close()
			return
		}
	}
}

// through returns a DSN of the same server by way of a new proxy.
func through(t *testing.T, dsn string) (string, *proxy) {
	t.Helper()
	if c, err := mysql.ParseDSN(dsn); err == nil && !strings.HasPrefix(dsn, "postgres:") {
		p := newProxy(t, c.Addr)
		c.Addr = p.Addr().String()
		return c.FormatDSN(), p
	}
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, u.Host)
	u.Host = p.Addr().String()
	return u.String(), p
}

// The network swallows everything, and the client leaves. ROLLBACK, or ROLLBACK TO,
// is given up: the goroutine is back, and the connection is not used again. The
// driver of MariaDB does not heed that for a ROLLBACK, and lib/pq for nothing: it waits for the server, to which
// it has sent a request to cancel. These are back when TCP gives up.
func TestG4DeadNetwork(t *testing.T) {
	for driver, dsn := range map[string]func(testing.TB) string{
		"pgx":      func(t testing.TB) string { return servers.SharedPostgres(t).DSN },
		"postgres": func(t testing.TB) string { return servers.SharedPostgres(t).DSN },
		"mysql":    func(t testing.TB) string { return servers.SharedMariaDB(t).DSN },
	} {
		for _, guard := range []bool{false, true} {
			for _, savepoint := range []bool{false, true} {
				server := dsn(t)
				t.Run(fmt.Sprintf("%s/Guard %t/Savepoint %t", driver, guard, savepoint), func(t *testing.T) {
					t.Parallel() // they wait for the same two seconds
					deadNetwork(t, driver, server, guard, savepoint)
				})
			}
		}
	}
}

func deadNetwork(t *testing.T, driver, dsn string, guard, savepoint bool) {
	second := openDSN(t, driver, dsn)
	table := fmt.Sprintf("line_%s_%t_%t", driver, guard, savepoint)
	tables(t, second, table+" (id INTEGER PRIMARY KEY)")
	proxied, p := through(t, dsn)
	db := openDSN(t, driver, proxied)
	client, leave := context.WithCancel(context.Background())
	errDead := errors.New("the network is dead")
	die := func(ctx context.Context) error {
		p.dead.Store(true)
		leave()
		<-ctx.Done() // net/http has noticed
		return errDead
	}
	s := newService(t, sqlreq.Binding{DB: db, Guard: guard}, sqlreq.Retry{Attempts: 3}, func(w http.ResponseWriter, r *http.Request) error {
		if _, err := key.ExecContext(r.Context(), "INSERT INTO "+table+" VALUES (1)"); err != nil {
			return err
		}
		if savepoint {
			return sqlreq.Savepoint(r.Context(), die)
		}
		return die(r.Context())
	})
	if _, err := s.post(client, "/"); !errors.Is(err, context.Canceled) {
		t.Errorf("the client that left: got %v", err)
	}
	if driver == "postgres" || driver == "mysql" && !guard && !savepoint {
		p.cut()
	}
	s.close() // returns when the handler's goroutine is back
	idle(t, db)
	outcome, hooks := "RolledBack", "r"
	if guard && savepoint {
		outcome, hooks = "Ended", "" // no answer to either question whether there was something to go back to
	}
	if r := s.of("/"); outcomesOf(r) != outcome || r.hooks != hooks || r.last().Err == nil {
		t.Errorf("got %s, hooks %q, %v, want %s, hooks %q, and an error", outcomesOf(r), r.hooks, r.last().Err, outcome, hooks)
	}
	p.cut()                                                                        // the server is told
	if _, err := second.Exec("INSERT INTO " + table + " VALUES (1)"); err != nil { // it waits for the end of the transaction
		t.Errorf("the server has not rolled back: %v", err)
	}
	p.dead.Store(false)
	if n := number(t, db, "SELECT count(*) FROM "+table); n != 1 {
		t.Errorf("%d rows, want the other session's", n)
	}
}

// A client that has left long before does not cost its connection.
func TestG4ClientLeftBefore(t *testing.T) {
	for _, driver := range postgresDrivers {
		t.Run(driver, func(t *testing.T) {
			db := openDSN(t, driver, servers.SharedPostgres(t).DSN)
			tables(t, db, "line (id INTEGER PRIMARY KEY)")
			db.SetMaxOpenConns(1)
			before := number(t, db, "SELECT pg_backend_pid()")
			client, leave := context.WithCancel(context.Background())
			s := newService(t, sqlreq.Binding{DB: db}, sqlreq.Retry{}, func(w http.ResponseWriter, r *http.Request) error {
				if _, err := key.ExecContext(r.Context(), "INSERT INTO line VALUES (1)"); err != nil {
					return err
				}
				leave()
				<-r.Context().Done()
				return nil
			})
			if _, err := s.post(client, "/"); !errors.Is(err, context.Canceled) {
				t.Errorf("the client that left: got %v", err)
			}
			s.close()
			if r := s.of("/"); outcomesOf(r) != "RolledBack" || r.hooks != "r" || r.last().Err == nil {
				t.Errorf("got %s, hooks %q, %v, want RolledBack, hooks r, and why", outcomesOf(r), r.hooks, r.last().Err)
			}
			if after := number(t, db, "SELECT pg_backend_pid()"); after != before {
				t.Errorf("the connection of backend %d was lost, there is %d", before, after)
			}
			if n := number(t, db, "SELECT count(*) FROM line"); n != 0 {
				t.Errorf("%d rows, want none", n)
			}
		})
	}
}
