package idempotency_test

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/modernc.org/sqlite"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

func TestI15Clean(t *testing.T) {
	var d fakedb.DB
	db := withTable(t, sqlreqtest.OpenFaulty(t, &d))
	once := newOnce()
	now := time.Now().Unix()
	if _, err := db.Exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
		INSERT INTO idempotency_keys (scope, idempotency_key, kind, created_at) SELECT 's', i, i % 2, CASE WHEN i <= 2500 THEN ? ELSE ? END FROM n`,
		now-7200, now-3000); err != nil {
		t.Fatal(err)
	}
	n, err := once.Clean(t.Context(), db, time.Hour)
	if n != 2500 || err != nil {
		t.Errorf("got %d %v, want 2500", n, err)
	}
	rows(t, db, 0, 500)
	if got := d.Count("DELETE"); got != 3 {
		t.Errorf("got %d statements, want 3", got)
	}
	if n, err := once.Clean(t.Context(), db, 24*time.Hour); n != 0 || err != nil {
		t.Errorf("got %d %v, want nothing", n, err)
	}
	if _, err := once.Clean(t.Context(), db, -1); err == nil {
		t.Error("a negative age: got no error")
	}
	failing(&d, "DELETE")
	if _, err := once.Clean(t.Context(), db, 0); err == nil {
		t.Error("got no error of the database")
	}
}

func TestI15AKeyIsHonouredUntilThen(t *testing.T) {
	db := open(t)
	once := newOnce()
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), once, new(work))
	want(t, post(t, srv.URL, "k", "x"), "201 order 1")
	var created int64
	must(t, db.QueryRow("SELECT created_at FROM idempotency_keys").Scan(&created))
	if age := time.Now().Unix() - created; age < 0 || age > 60 {
		t.Errorf("created_at is %d seconds ago", age)
	}
	if _, err := db.Exec("UPDATE idempotency_keys SET created_at = 1"); err != nil {
		t.Fatal(err)
	}
	want(t, post(t, srv.URL, "k", "x"), "201 order 1 (replayed)")
	if n, err := once.Clean(t.Context(), db, time.Hour); n != 1 || err != nil {
		t.Errorf("got %d %v", n, err)
	}
	want(t, post(t, srv.URL, "k", "x"), "201 order 2")
}

// Clean takes what is committed, and waits for no key that is in progress: no request
// fails beside it, and none is done twice because of it.
func TestI15CleanBesideRequests(t *testing.T) {
	db := open(t)
	once := newOnce()
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), once, new(work))
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_, err := once.Clean(context.Background(), db, time.Hour)
				must(t, err)
			}
		}
	}()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 5 {
				key := fmt.Sprint(i, ".", j)
				first := post(t, srv.URL, key, "x")
				if again := post(t, srv.URL, key, "x"); first.status != 201 || again.String() != first.String()+" (replayed)" {
					t.Errorf("got %v, then %v", first, again)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	<-stopped
	rows(t, db, 20, 20)
}

func TestI16WaitsOutsideOfThePool(t *testing.T) {
	db := open(t)
	db.SetMaxOpenConns(2)
	once := newOnce()
	var waiting atomic.Int32
	once.OnWait(func() { waiting.Add(1) })
	g := newGate(new(work))
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), once, g)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if got := post(t, srv.URL, "k", "x"); got.status != 201 || got.body != "order 1" {
				t.Errorf("got %v", got)
			}
		})
	}
	<-g.reached
	sqlreqtest.Until(func() bool { return waiting.Load() == 49 })
	if s := db.Stats(); s.InUse != 1 || s.WaitCount != 0 {
		t.Errorf("got %d connections in use and %d waits, want 1 and none", s.InUse, s.WaitCount)
	}
	close(g.release)
	wg.Wait()
	rows(t, db, 1, 1)
}

func TestI16WithATransactionOpenTheDatabaseWaits(t *testing.T) {
	for _, key := range []sqlreq.Key{"main", "other"} {
		t.Run(string(key), func(t *testing.T) {
			var d fakedb.DB
			db, other := withTable(t, sqlreqtest.OpenFaulty(t, &d)), sqlreqtest.OpenDB(t)
			once := newOnce()
			once.OnWait(func() { t.Error("a request waits in the process with a transaction open") })
			g := newGate(new(work))
			h := once.Handler(g)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "other", DB: other})
			reg.Retry = sqlreqtest.Retries(10)
			srv := sqlreqtest.Serve(t, reg.Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
				if _, err := key.Tx(r.Context()); err != nil {
					t.Error(err)
				}
				h.ServeHTTP(w, r)
			})))
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					if got := post(t, srv.URL, "k", "x"); got.status != 201 || got.body != "order 1" {
						t.Errorf("got %v", got)
					}
				})
			}
			<-g.reached
			sqlreqtest.Until(func() bool { return d.Count("INSERT INTO idempotency_keys") >= 2 })
			close(g.release)
			wg.Wait()
			rows(t, db, 1, 1)
		})
	}
}

func TestI16TheBodyIsReadBeforeBegin(t *testing.T) {
	var d fakedb.DB
	db := withTable(t, sqlreqtest.OpenFaulty(t, &d))
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), new(work))
	reader, writer := io.Pipe()
	req, _ := http.NewRequest("POST", srv.URL, reader)
	req.Header.Set("Idempotency-Key", "k")
	got := make(chan reply)
	go func() {
		r, err := send(req)
		if err != nil {
			t.Error(err)
		}
		got <- r
	}()
	fmt.Fprint(writer, strings.Repeat("x", 1000))
	if d.Count("BEGIN") != 0 {
		t.Error("the transaction has begun before the body has come")
	}
	writer.Close()
	want(t, <-got, "201 order 1")
}

func TestI17Statements(t *testing.T) {
	for dialect, c := range map[idempotency.Dialect][3]string{
		idempotency.SQLite: {
			"INSERT INTO idempotency_keys (scope, idempotency_key, kind, created_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
			"SELECT status, fingerprint, header, body FROM idempotency_keys WHERE scope = ? AND idempotency_key = ? AND kind = ?",
			"UPDATE idempotency_keys SET status = ?, fingerprint = ?, header = ?, body = ? WHERE scope = ? AND idempotency_key = ? AND kind = ?",
		},
		idempotency.PostgreSQL: {
			"INSERT INTO idempotency_keys (scope, idempotency_key, kind, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
			"SELECT status, fingerprint, header, body FROM idempotency_keys WHERE scope = $1 AND idempotency_key = $2 AND kind = $3",
			"UPDATE idempotency_keys SET status = $1, fingerprint = $2, header = $3, body = $4 WHERE scope = $5 AND idempotency_key = $6 AND kind = $7",
		},
		idempotency.MySQL: {
			"INSERT IGNORE INTO idempotency_keys (scope, idempotency_key, kind, created_at) VALUES (?, ?, ?, ?)",
			"SELECT status, fingerprint, header, body FROM idempotency_keys WHERE scope = ? AND idempotency_key = ? AND kind = ? LOCK IN SHARE MODE",
			"UPDATE idempotency_keys SET status = ?, fingerprint = ?, header = ?, body = ? WHERE scope = ? AND idempotency_key = ? AND kind = ?",
		},
	} {
		t.Run(fmt.Sprint(dialect), func(t *testing.T) {
			var d fakedb.DB
			once := &idempotency.Once{Dialect: dialect, Scope: noScope}
			status := 201
			h := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)}).Middleware(once.Handler(handle(func(w http.ResponseWriter, r *http.Request) {
				insertWork(t, r.Context())
				w.WriteHeader(status)
			})))
			ask(t.Context(), h)
			first := []string{"BEGIN", c[0], sqlreqtest.InsertWork, c[2], "COMMIT"}
			d.Check(t, first...)
			status = 409
			ask(t.Context(), h)
			d.Check(t, append(first, "BEGIN", c[0], sqlreqtest.InsertWork, "ROLLBACK")...)
			insert, read, update, _ := once.Statements()
			if insert != c[0] || read != c[1] || update != c[2] {
				t.Errorf("got %q %q %q", insert, read, update)
			}
		})
	}
}

func TestI17Repeat(t *testing.T) {
	var d fakedb.DB
	db := withTable(t, sqlreqtest.OpenFaulty(t, &d))
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), new(work))
	want(t, post(t, srv.URL, "k", "x"), "201 order 1")
	n := len(d.Log())
	want(t, post(t, srv.URL, "k", "x"), "201 order 1 (replayed)")
	insert, read, _, _ := newOnce().Statements()
	if got := strings.Join(d.Log()[n:], "; "); got != "BEGIN; "+insert+"; "+read+"; ROLLBACK" {
		t.Errorf("got %q", got)
	}
}

// TestI17Allocations compares with the same two statements by hand.
func TestI17Allocations(t *testing.T) {
	d := fakedb.DB{Named: sqlite.Driver{}}
	db := d.Open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	insert, _, update, _ := newOnce().Statements()
	measure := func(h http.Handler) float64 {
		r, _ := http.NewRequest("POST", "/orders", nil)
		r.Header.Set("Idempotency-Key", "k")
		h = reg.Middleware(h)
		// The least of many single runs: a collection that empties a sync.Pool, and the race detector, which makes
		// pools forget at random, only add to the count, and to each mean.
		least := math.Inf(1)
		for range 1000 {
			least = min(least, testing.AllocsPerRun(1, func() { h.ServeHTTP(nowhere{make(http.Header)}, r.Clone(context.Background())) }))
		}
		return least
	}
	answer := func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(201)
		io.WriteString(w, `{"id": 1}`)
	}
	byHand := measure(handle(func(w http.ResponseWriter, r *http.Request) {
		main.ExecContext(r.Context(), insert, "", "k", 0, time.Now().Unix())
		answer(w)
		main.ExecContext(r.Context(), update, 201, []byte("x"), []byte("x"), []byte("x"), "", "k", 0)
	}))
	for name, o := range map[string]*idempotency.Once{"set": newOnce(), "found": found()} {
		once := measure(o.Handler(handle(func(w http.ResponseWriter, r *http.Request) { answer(w) })))
		t.Logf("the Dialect is %s: %v allocations, %v by hand", name, once, byHand)
		if once-byHand > 30 {
			t.Errorf("the Dialect is %s: got %v allocations more than by hand, want at most 30", name, once-byHand)
		}
	}
}
