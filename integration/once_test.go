package integration

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
)

// onceTable is the table of records in these tests.
const onceTable = "sqlreq_once"

func onceDialect(driver string) idempotency.Dialect {
	switch driver {
	case "pgx", "sqlreqpgx", "postgres":
		return idempotency.PostgreSQL
	case "mysql":
		return idempotency.MySQL
	}
	return idempotency.SQLite
}

// newOnce returns what a process has: a Once of its own on the same table.
func newOnce(database) *idempotency.Once {
	return &idempotency.Once{ // the Dialect is told by the driver
		Table: onceTable,
		Scope: func(r *http.Request) (string, error) { return strings.TrimSuffix(r.Header.Get("X-User"), "|"), nil }, // a header has no blank at its end
	}
}

// openOnce returns the database with the tables of work and of records.
func openOnce(t *testing.T, d database) *sql.DB {
	t.Helper()
	db := d.open(t)
	tables(t, db, "sqlreq_work (id INTEGER)")
	exec(t, db, "DROP TABLE IF EXISTS "+onceTable)
	for range 2 { // it may be there already
		if err := newOnce(d).CreateTable(t.Context(), db); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { exec(t, db, "DROP TABLE IF EXISTS "+onceTable) })
	return db
}

func onceServer(t *testing.T, db *sql.DB, once *idempotency.Once, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	once.Wait = patience
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		t.Fatal(err)
	}
	reg.Logger = slog.New(slog.DiscardHandler)
	reg.Retry = sqlreq.Retry{Attempts: 100, Within: patience}
	srv := httptest.NewServer(reg.Middleware(once.Handler(h)))
	t.Cleanup(srv.Close)
	return srv
}

// order does some work and answers with bytes that no text has.
func order(t *testing.T, size int) http.HandlerFunc {
	var mu sync.Mutex
	n := 0
	return func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n++
		mine := n
		mu.Unlock()
		if _, err := key.ExecContext(r.Context(), "INSERT INTO sqlreq_work (id) VALUES (1)"); err != nil {
			_ = sqlreq.Fail(r.Context(), err)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "order %d \x00\xff%s", mine, strings.Repeat("x", size))
	}
}

// postOnce returns status, body and whether that was replayed.
func postOnce(t *testing.T, url, user, k, body string) (status int, answer string, replayed bool) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Idempotency-Key", k)
	req.Header.Set("X-User", user)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Error(err)
		return 0, "", false
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Error(err)
	}
	return res.StatusCode, string(b), res.Header.Get("Idempotent-Replayed") == "true"
}

func TestOnce(t *testing.T) {
	for _, d := range append(databases, variants...) {
		t.Run(d.name, func(t *testing.T) {
			d := d.fixed(t)
			db := openOnce(t, d)
			once := newOnce(d)
			srv := onceServer(t, db, once, order(t, 100_000))
			first := make(map[string]string)
			pairs := [][2]string{{"ann", "k"}, {"ANN", "k"}, {"ann", "K"}, {"ann |", "k"}, {"ann", `"k "`}, {"ä", "k"}, {"a", "k"}, {"", "k"}, {strings.Repeat("ä", 127), strings.Repeat("k", 255)}}
			for round := range 3 {
				for _, p := range pairs {
					status, body, replayed := postOnce(t, srv.URL, p[0], p[1], "x")
					if status != 201 || replayed != (round > 0) || round > 0 && body != first[p[0]+"/"+p[1]] {
						t.Errorf("%q: got %d, %d bytes, replayed %v in round %d", p, status, len(body), replayed, round)
					}
					first[p[0]+"/"+p[1]] = body
				}
			}
			if n := number(t, db, "SELECT count(*) FROM sqlreq_work"); n != len(pairs) {
				t.Errorf("got %d rows of work, want %d", n, len(pairs))
			}
			if status, _, _ := postOnce(t, srv.URL, "ann", "k", "y"); status != 422 {
				t.Errorf("got %d for another request, want 422", status)
			}
			if n, err := once.Clean(t.Context(), db, time.Hour); n != 0 || err != nil {
				t.Errorf("Clean: got %d %v", n, err)
			}
			exec(t, db, "UPDATE "+onceTable+" SET created_at = 1 WHERE idempotency_key <> 'K'")
			if n, err := once.Clean(t.Context(), db, time.Hour); n != int64(len(pairs)-1) || err != nil {
				t.Errorf("Clean: got %d %v, want %d", n, err, len(pairs)-1)
			}
		})
	}
}

func TestOnceDo(t *testing.T) {
	for _, d := range append(databases, variants...) {
		t.Run(d.name, func(t *testing.T) {
			d := d.fixed(t)
			db := openOnce(t, d)
			reg, err := sqlreq.New(sqlreq.Binding{DB: db})
			if err != nil {
				t.Fatal(err)
			}
			once := newOnce(d)
			for i := range 3 {
				first, err := once.Do(t.Context(), reg, "q", "m1", func(ctx context.Context) error {
					_, err := key.ExecContext(ctx, "INSERT INTO sqlreq_work (id) VALUES (1)")
					return err
				})
				if first != (i == 0) || err != nil {
					t.Errorf("got %v %v", first, err)
				}
			}
			if n := number(t, db, "SELECT count(*) FROM sqlreq_work"); n != 1 {
				t.Errorf("got %d rows of work", n)
			}
		})
	}
}

// TestOnceDuplicates sends 50 duplicates at once to one process and to three, at each
// isolation level, with and without a snapshot taken before.
func TestOnceDuplicates(t *testing.T) {
	for _, d := range append(tappable(), variants...) {
		t.Run(d.name, func(t *testing.T) {
			d := d.fixed(t)
			db := openShop(t, d)
			var urls []string
			for range 3 {
				p, err := startShop(t, shopConfig{Driver: d.driver, DSN: d.dsn(t)})
				if err != nil {
					t.Fatal(err)
				}
				urls = append(urls, p.url)
			}
			levels := isolationLevels
			if onceDialect(d.driver) == idempotency.SQLite {
				levels = levels[:1] // it has one
			}
			answers := make(map[string]reply)
			for _, processes := range []int{1, 3} {
				atEachLevel(t, levels, fmt.Sprint("processes=", processes), urls[:processes], answers)
			}
			checkShop(t, db, answers)
		})
	}
}

// atEachLevel sends duplicates, and notes their answers.
func atEachLevel(t *testing.T, levels []sql.IsolationLevel, where string, urls []string, answers map[string]reply) {
	t.Helper()
	for _, level := range levels {
		for _, snapshot := range []string{"", "yes"} {
			name := fmt.Sprint(where, "/", level, "/snapshot=", snapshot)
			t.Run(name, func(t *testing.T) {
				c := &shopClient{Client: http.DefaultClient, header: http.Header{"X-Isolation": {level.String()}, "X-Snapshot": {snapshot}}}
				answers[name] = duplicates(t, c, urls, name)
			})
		}
	}
}

// duplicates sends an order 50 times at once, and returns its answer, which must be the
// same each time and a repeat but once.
func duplicates(t *testing.T, c *shopClient, urls []string, name string) (answer reply) {
	t.Helper()
	var mu sync.Mutex
	answers, firsts := make(map[reply]int), 0
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			got, replayed, err := c.once(t.Context(), urls[i%len(urls)], name)
			mu.Lock()
			defer mu.Unlock()
			if got.status != 201 || err != nil {
				t.Errorf("got %v, %v", got, err)
				return
			}
			answers[got]++
			if answer = got; !replayed {
				firsts++
			}
		})
	}
	wg.Wait()
	if len(answers) != 1 || firsts != 1 {
		t.Errorf("got %d answers, %d of them first ones", len(answers), firsts)
	}
	return answer
}

func TestOnceClientFoundRows(t *testing.T) {
	for _, d := range databases {
		if d.driver != "mysql" {
			continue
		}
		db := openOnce(t, d)
		sep := "?"
		if strings.Contains(d.dsn(t), "?") {
			sep = "&"
		}
		for _, parameters := range []string{"clientFoundRows=true", "clientFoundRows=true&interpolateParams=true", "charset=latin1"} {
			other := openDSN(t, d.driver, d.dsn(t)+sep+parameters)
			srv := onceServer(t, other, newOnce(d), order(t, 100_000))
			k := fmt.Sprint(len(parameters))
			for i := range 2 {
				if status, _, replayed := postOnce(t, srv.URL, "ä", k, "x"); status != 201 || replayed != (i == 1) {
					t.Errorf("%s: got %d, replayed %v", parameters, status, replayed)
				}
			}
		}
		if n := number(t, db, "SELECT count(*) FROM sqlreq_work"); n != 3 {
			t.Errorf("got %d rows of work", n)
		}
	}
}

// TestOnceAborted: the handler answers 409 by itself after a unique violation, which has
// aborted PostgreSQL's transaction.
func TestOnceAborted(t *testing.T) {
	for _, d := range append(databases, variants...) {
		t.Run(d.name, func(t *testing.T) {
			d := d.fixed(t)
			db := openOnce(t, d)
			exec(t, db, "CREATE UNIQUE INDEX sqlreq_work_id ON sqlreq_work (id)", "INSERT INTO sqlreq_work (id) VALUES (1)")
			srv := onceServer(t, db, newOnce(d), func(w http.ResponseWriter, r *http.Request) {
				if _, err := key.ExecContext(r.Context(), "INSERT INTO sqlreq_work (id) VALUES (1)"); err != nil {
					http.Error(w, "taken", http.StatusConflict)
				}
			})
			for range 2 {
				if status, body, replayed := postOnce(t, srv.URL, "ann", "k", "x"); status != 409 || body != "taken\n" || replayed {
					t.Errorf("got %d %q, replayed %v", status, body, replayed)
				}
			}
		})
	}
}
