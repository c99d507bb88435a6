package integration

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
)

// cutProxy stands between a pool and its server. Armed, it carries the next COMMIT out,
// keeps the answer, ends all connections, and lets some come in vain before it works again.
type cutProxy struct {
	t      testing.TB
	server string
	addr   string

	mu    sync.Mutex
	armed bool
	vain  int // how many connections are still refused
	conns []net.Conn
}

func newCutProxy(t testing.TB, server string) *cutProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &cutProxy{t: t, server: server, addr: l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.endAll()
		wg.Wait()
	})
	return p
}

func (p *cutProxy) arm(vain int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed, p.vain = true, vain
}

// spent reports whether the COMMIT has come, and all refusals are used.
func (p *cutProxy) spent() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.armed && p.vain == 0
}

func (p *cutProxy) refuses() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.armed || p.vain == 0 {
		return false
	}
	p.vain--
	return true
}

// fires reports whether a message from the client is the COMMIT to be cut.
func (p *cutProxy) fires(message []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.armed || !bytes.Contains(bytes.ToUpper(message), []byte("COMMIT")) {
		return false
	}
	p.armed = false
	return true
}

func (p *cutProxy) keep(c net.Conn) net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, c)
	return c
}

func (p *cutProxy) endAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

func (p *cutProxy) serve(client net.Conn) {
	defer p.keep(client).Close()
	if p.refuses() {
		return
	}
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		p.t.Error(err)
		return
	}
	defer p.keep(server).Close()
	cut := make(chan struct{})
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		b := make([]byte, 64<<10)
		for {
			n, err := server.Read(b)
			if err != nil {
				client.Close()
				return
			}
			select {
			case <-cut: // the answer to COMMIT
				return
			default:
			}
			client.Write(b[:n])
		}
	}()
	b := make([]byte, 64<<10)
	for {
		n, err := client.Read(b)
		if err != nil {
			server.Close()
			break
		}
		fires := p.fires(b[:n])
		if fires {
			close(cut)
		}
		server.Write(b[:n])
		if fires {
			<-answered
			p.endAll()
			break
		}
	}
	<-answered
}

// behind returns the address of the server of a DSN, and the DSN with another one.
func behind(t testing.TB, driver, dsn string) (server string, with func(addr string) string) {
	t.Helper()
	if driver == "mysql" {
		c, err := mysql.ParseDSN(dsn)
		if err != nil {
			t.Fatal(err)
		}
		return c.Addr, func(addr string) string {
			c := c.Clone()
			c.Net, c.Addr = "tcp", addr
			return c.FormatDSN()
		}
	}
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host, func(addr string) string {
		u := *u
		u.Host = addr
		return u.String()
	}
}

func TestOnceLostCommit(t *testing.T) {
	for _, d := range databases {
		if onceDialect(d.driver) == idempotency.SQLite {
			continue // it has no connection to lose
		}
		for _, attempts := range []int{1, 2} {
			t.Run(fmt.Sprint(d.name, "/attempts=", attempts), func(t *testing.T) {
				direct := openOnce(t, d)
				server, with := behind(t, d.driver, d.dsn(t))
				p := newCutProxy(t, server)
				db := openDSN(t, d.driver, with(p.addr))
				if err := db.Ping(); err != nil {
					t.Fatal(err)
				}
				p.arm(2)
				lostCommit(t, d, db, attempts, p)
				if n := number(t, direct, "SELECT count(*) FROM sqlreq_work"); n != 1 {
					t.Errorf("got %d rows of work, want 1", n)
				}
			})
		}
	}
}

// lostCommit sends one request. With Retry a plain client gets its answer, without it one
// with a Transport.
func lostCommit(t *testing.T, d database, db *sql.DB, attempts int, p *cutProxy) {
	t.Helper()
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		t.Fatal(err)
	}
	reg.Logger = slog.New(slog.DiscardHandler)
	reg.Retry = sqlreq.Retry{Attempts: attempts, Within: patience}
	srv := httptest.NewServer(reg.Middleware(newOnce(d).Handler(order(t, 10))))
	t.Cleanup(srv.Close)
	client := http.DefaultClient
	if attempts == 1 {
		client = &http.Client{Transport: &idempotency.Transport{Attempts: 100, Backoff: func(int) time.Duration { return 0 }}}
	}
	req, _ := http.NewRequestWithContext(context.Background(), http.MethodPost, srv.URL, strings.NewReader("x"))
	req.Header.Set("Idempotency-Key", "k")
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if res.StatusCode != 201 || !strings.HasPrefix(string(body), "order 1 ") || res.Header.Get("Idempotent-Replayed") != "true" || err != nil {
		t.Errorf("got %d %.20q %v %v, want the first answer again", res.StatusCode, body, res.Header, err)
	}
	if !p.spent() {
		t.Error("the COMMIT was not cut, or the database has come back too early")
	}
}
