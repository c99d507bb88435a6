package integration

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// inserter inserts the number that its path is.
func inserter(w http.ResponseWriter, r *http.Request) error {
	if _, err := key.ExecContext(r.Context(), "INSERT INTO line VALUES ("+strings.TrimPrefix(r.URL.Path, "/")+")"); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// stoppable is a server.
type stoppable interface {
	Start() error
	Stop() error
}

// A server is restarted under load. An answer is 201, and the row is there; 503 with Retry-After, and it is not;
// or 500, and it is not unless that is said to be unknown.
func TestG4Restart(t *testing.T) {
	p, m := servers.NewPostgres(t), servers.NewMariaDB(t)
	for _, c := range []struct {
		driver, dsn string
		server      stoppable
	}{{"pgx", p.DSN, p}, {"postgres", p.DSN, p}, {"mysql", m.DSN, m}} {
		t.Run(c.driver, func(t *testing.T) { restartUnderLoad(t, c.driver, c.dsn, c.server) })
	}
}

// load sends requests, each with a number of its own, and counts the answers.
type load struct {
	s *service

	mu      sync.Mutex
	answers map[int]answer
	counts  map[int]int // by status
}

func (l *load) client(ctx context.Context, next func() int) {
	for ctx.Err() == nil {
		id := next()
		a, err := l.s.ask(context.Background(), fmt.Sprint("/", id))
		if err != nil {
			l.s.t.Errorf("request %d: %v", id, err)
		}
		l.mu.Lock()
		l.answers[id] = a
		l.counts[a.status]++
		l.mu.Unlock()
	}
}

func (l *load) count(status int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts[status]
}

// more waits until there are n more answers with a status.
func (l *load) more(t *testing.T, n, status int) {
	t.Helper()
	before := l.count(status)
	eventually(t, fmt.Sprintf("%d more answers of %d", n, status), func() bool { return l.count(status) >= before+n })
}

func restartUnderLoad(t *testing.T, driver, dsn string, server stoppable) {
	db := openDSN(t, driver, dsn)
	db.SetMaxOpenConns(8)
	second := openDSN(t, driver, dsn)
	second.SetMaxIdleConns(-1) // its connections would die with the server
	tables(t, second, "line (id INTEGER PRIMARY KEY)")
	l := &load{s: newService(t, sqlreq.Binding{DB: db}, sqlreq.Retry{Attempts: 3}, inserter), answers: make(map[int]answer), counts: make(map[int]int)}
	var last int
	var mu sync.Mutex
	next := func() int {
		mu.Lock()
		defer mu.Unlock()
		last++
		return last
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { l.client(ctx, next) })
	}
	rounds := 2
	if *long {
		rounds = 20
	}
	for range rounds {
		l.more(t, 50, http.StatusCreated)
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
		l.more(t, 20, http.StatusServiceUnavailable)
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
	}
	l.more(t, 50, http.StatusCreated)
	stop()
	wg.Wait()
	idle(t, db)
	l.are(t, second)
}

// are compares the answers with the rows.
func (l *load) are(t *testing.T, db *sql.DB) {
	t.Helper()
	there := make(map[int]bool)
	rows, err := db.Query("SELECT id FROM line")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		there[id] = true
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	unknown := 0
	for id, a := range l.answers {
		r := l.s.of(fmt.Sprint("/", id))
		want, hook := false, "r"
		switch {
		case a.status == http.StatusCreated && !a.retryAfter:
			want, hook = true, "c"
		case a.status == http.StatusServiceUnavailable && a.retryAfter:
		case a.status == http.StatusInternalServerError && !a.retryAfter:
			if r.ambiguous() {
				want, hook = there[id], ""
				unknown++
			}
		default:
			t.Errorf("request %d: %+v", id, a)
		}
		if there[id] != want {
			t.Errorf("request %d: %+v, its row is there: %t (%s, %v)", id, a, there[id], outcomesOf(r), r.last().Err)
		}
		if r.hooks != hook {
			t.Errorf("request %d: %+v, hooks %q, want %q (%s, %v)", id, a, r.hooks, hook, outcomesOf(r), r.last().Err)
		}
	}
	t.Logf("answers: %v; of unknown outcome: %d", l.counts, unknown)
}

// A begin that meets a database that is not there is a 503, and says when to come again.
func TestG4NotThere(t *testing.T) {
	postgres := servers.NewPostgres(t, "max_connections = 10", "superuser_reserved_connections = 0")
	maria := servers.NewMariaDB(t, "max_connections=10", "max_user_connections=100") // it cannot be set at run time if it is 0 here
	t.Run("1203", func(t *testing.T) { tooManyOfUser(t, maria.DSN) })
	for _, driver := range postgresDrivers {
		t.Run("57P03/"+driver, func(t *testing.T) { shuttingDown(t, driver, postgres) })
	}
	// These last: what comes after them would meet a server that still counts their connections.
	for _, driver := range postgresDrivers {
		t.Run("53300/"+driver, func(t *testing.T) { tooMany(t, driver, postgres.DSN, "53300", 10) })
	}
	t.Run("1040", func(t *testing.T) { tooMany(t, "mysql", maria.DSN, "1040", 11) }) // root has one more than max_connections
	for driver, dsn := range map[string]string{"pgx": postgres.DSN, "postgres": postgres.DSN, "mysql": maria.DSN} {
		t.Run("a closed pool/"+driver, func(t *testing.T) {
			db := openDSN(t, driver, dsn)
			db.Close()
			unavailable(t, db, "database is closed")
		})
	}
	stopped := servers.NewMariaDB(t)
	if err := stopped.Stop(); err != nil {
		t.Error(err)
	}
	if err := postgres.Stop(); err != nil {
		t.Error(err)
	}
	for driver, dsn := range map[string]string{"pgx": postgres.DSN, "postgres": postgres.DSN, "mysql": stopped.DSN} {
		t.Run("TCP refused/"+driver, func(t *testing.T) { unavailable(t, openDSN(t, driver, dsn), "refused") })
	}
}

// unavailable sends a request and fails the test if it is not a 503, for a reason that the text names.
func unavailable(t *testing.T, db *sql.DB, text string) {
	t.Helper()
	var met error
	for _, guard := range []bool{false, true} {
		s := newService(t, sqlreq.Binding{DB: db, Guard: guard}, sqlreq.Retry{Attempts: 3}, func(w http.ResponseWriter, r *http.Request) error {
			_, met = key.ExecContext(r.Context(), "SELECT 1")
			return met
		})
		got, err := s.ask(context.Background(), "/")
		if want := (answer{http.StatusServiceUnavailable, true}); got != want || err != nil {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
		if r := s.of("/"); len(r.events) != 0 || r.hooks != "r" {
			t.Errorf("events %v, hooks %q, want none and r", r.events, r.hooks)
		}
		if !strings.Contains(fmt.Sprint(met), text) {
			t.Errorf("got %v, want an error with %q", met, text)
		}
	}
	idle(t, db)
}

// tooMany takes all connections that a server has, n of them.
func tooMany(t *testing.T, driver, dsn, text string, n int) {
	others := openDSN(t, driver, dsn)
	defer others.Close()
	db := openDSN(t, driver, dsn)
	taken := 0
	// The server still counts connections that clients closed a moment ago. While it does, it refuses before n are taken.
	eventually(t, fmt.Sprint(n, " connections are taken"), func() bool {
		conn, err := others.Conn(context.Background())
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			taken++
		} else if !strings.Contains(err.Error(), text) {
			t.Error(err)
		}
		return taken == n
	})
	if conn, err := others.Conn(context.Background()); err == nil {
		conn.Close()
		t.Fatalf("%d connections were taken, and there is another one", n)
	}
	unavailable(t, db, text)
}

// tooManyOfUser takes all connections that a user may have.
func tooManyOfUser(t *testing.T, dsn string) {
	admin := openDSN(t, "mysql", dsn)
	exec(t, admin, "CREATE USER one", "GRANT ALL ON sqlreq.* TO one", "SET GLOBAL max_user_connections = 1")
	c, err := mysql.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	c.User = "one"
	conn, err := openDSN(t, "mysql", c.FormatDSN()).Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	unavailable(t, openDSN(t, "mysql", c.FormatDSN()), "1203")
}

// shuttingDown makes a server refuse new connections because one client still has to leave.
func shuttingDown(t *testing.T, driver string, p *servers.Postgres) {
	others := restartable(t, driver, p.DSN)
	conn, err := others.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	dir := text(t, others, "SHOW data_directory")
	lines, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(lines), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Stop(); err != nil { // which waits for no client; when the last one leaves, the server ends by itself
			t.Error(err)
		}
		conn.Close()
		others.Close()
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
	}()
	eventually(t, "the server refuses connections", func() bool { return others.Ping() != nil })
	unavailable(t, openDSN(t, driver, p.DSN), "57P03")
}
