package benchmarks

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
)

// querier is a transaction in Growth: database/sql's or pgx's.
type querier interface {
	exec(ctx context.Context, query string) error
	each(ctx context.Context, query string, fn func(note []byte) error) error
	savepoint(ctx context.Context, fn func(context.Context) error) error
}

// deed is what a request does in its transaction.
type deed func(ctx context.Context, q querier, w http.ResponseWriter) error

type sqlQuerier struct {
	tx dbtx
	in savepoint
}

func (q sqlQuerier) exec(ctx context.Context, query string) error {
	_, err := q.tx.ExecContext(ctx, query)
	return err
}

func (q sqlQuerier) each(ctx context.Context, query string, fn func([]byte) error) error {
	rows, err := q.tx.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	var raw sql.RawBytes
	for rows.Next() {
		if err := rows.Scan(&raw); err != nil {
			return err
		}
		if err := fn(raw); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (q sqlQuerier) savepoint(ctx context.Context, fn func(context.Context) error) error {
	return q.in(ctx, q.tx, fn)
}

// does returns the application in which a request does d. probe is called while its
// transaction is open.
func (c contender) does(s *site, j work, d deed, probe func()) http.Handler {
	probed := func(ctx context.Context, q querier, w http.ResponseWriter) error {
		err := d(ctx, q, w)
		probe()
		return err
	}
	if s.pool != nil {
		return c.nativeHandler(s, j, probed)
	}
	in := c.savepoint(s)
	j.use = func(ctx context.Context, tx dbtx, w http.ResponseWriter) error {
		return probed(ctx, sqlQuerier{tx, in}, w)
	}
	return c.handler(s, j)
}

// lookUp reads one row.
func lookUp(ctx context.Context, q querier, _ http.ResponseWriter) error {
	n := 0
	err := q.each(ctx, "SELECT note FROM sqlreq_bench_item WHERE id = 7", func([]byte) error { n++; return nil })
	if err == nil && n != 1 {
		err = fmt.Errorf("%d rows", n)
	}
	return err
}

// readAll answers with the 100 rows as it reads them.
func readAll(ctx context.Context, q querier, w http.ResponseWriter) error {
	var note []byte
	return q.each(ctx, "SELECT note FROM sqlreq_bench_item", func(raw []byte) error {
		note = append(append(note[:0], raw...), '\n')
		_, err := w.Write(note)
		return err
	})
}

// insert is one INSERT, with a further deed.
func insert(then deed) deed {
	return func(ctx context.Context, q querier, w http.ResponseWriter) error {
		if err := q.exec(ctx, insertWork); err != nil {
			return err
		}
		return then(ctx, q, w)
	}
}

// inSavepoints is n INSERTs, each in a savepoint of its own.
func inSavepoints(n int) deed {
	return func(ctx context.Context, q querier, _ http.ResponseWriter) error {
		for range n {
			if err := q.savepoint(ctx, func(ctx context.Context) error { return q.exec(ctx, insertWork) }); err != nil {
				return err
			}
		}
		return nil
	}
}

// addToCounter reads a row and writes it. When armed is set, another program writes it in
// between.
func addToCounter(s *site, armed *atomic.Bool) deed {
	return func(ctx context.Context, q querier, _ http.ResponseWriter) error {
		if err := q.each(ctx, "SELECT n FROM sqlreq_bench_counter", func([]byte) error { return nil }); err != nil {
			return err
		}
		const add = "UPDATE sqlreq_bench_counter SET n = n + 1"
		if armed.CompareAndSwap(true, false) {
			if _, err := s.rival.ExecContext(ctx, add); err != nil {
				return err
			}
		}
		return q.exec(ctx, add)
	}
}

// point is a service at one value of an axis, and those who use it.
type point struct {
	work    string
	clients int // who send a request when they have the answer to the last
	slow    int // others, who read answers of 32 KiB slowly from /slow
	by      []contender
	start   func(t testing.TB, s *site, c contender, probe func()) service
}

// service is what is used.
type service struct {
	handler http.Handler
	// request is the n-th, for those whose requests are not alike.
	request func(n int) request
}

// request is one, and what comes of it.
type request struct {
	path, key string // a POST with a key unless that is ""
	bytes     int64  // of the answer
	headers   int    // x0, x1, … in the answer
	rows      int    // left in the database
}

func always(r request) func(int) request { return func(int) request { return r } }

func anyTime(percent, n int) bool { return (n+1)*percent/100 > n*percent/100 }

// growers are those that are compared as a service grows.
func growers() []contender {
	all := named("hand", "eager", "buffered")
	all = append(all, imitated[0])
	all = append(all, named("trm")...)
	all = append(all, imitated[1])
	return append(all, named("sqlreq")...)
}

func pick(from []contender, names ...string) []contender {
	var some []contender
	for _, c := range from {
		for _, name := range names {
			if c.name == name {
				some = append(some, c)
			}
		}
	}
	return some
}

// points are the values of all axes. Where clients would wait for each other to write,
// which SQLite does by sleeping, there is one.
func points() []point {
	var all []point
	all = append(all, byClients()...)
	all = append(all, byKeys()...)
	all = append(all, byHeaders()...)
	all = append(all, byAnswers()...)
	all = append(all, bySavepoints()...)
	all = append(all, byConflicts()...)
	return append(all, byRepeats()...)
}

// fewClients is how many the axes have that are about something else.
const fewClients = 8

// byClients: a fifth of the requests read 100 rows. Every eighth client reads slowly.
func byClients() []point {
	var all []point
	for _, n := range []int{1, 8, 64, 512} {
		all = append(all, point{fmt.Sprintf("clients=%d", n), n - n/8, n / 8, append(growers(), natives...), func(_ testing.TB, s *site, c contender, probe func()) service {
			j := work{when: func(r *http.Request) bool { return r.URL.Path != "/nothing" }}.answering()
			slow := j
			slow.answer = page32KiB
			mux := http.NewServeMux()
			mux.Handle("/", c.does(s, j, readAll, probe))
			mux.Handle("/slow", c.does(s, slow, readAll, probe))
			return service{mux, func(n int) request {
				if n%5 == 0 {
					return request{path: "/read", bytes: rowBytes + int64(len(page1KiB))}
				}
				return request{path: "/nothing", bytes: int64(len(page1KiB))}
			}}
		}})
	}
	return all
}

const rowBytes = items * int64(len("something to be read\n"))

// byKeys: an application with so many databases, of which a request uses one.
func byKeys() []point {
	var all []point
	for _, n := range []int{1, 10, 1000} {
		by := pick(growers(), "hand", "sqlreq")
		if n <= 10 { // others begin on each of them
			by = pick(growers(), "hand", "eager", "buffered", "sqlreq")
		}
		all = append(all, point{fmt.Sprintf("keys=%d", n), fewClients, 0, by, func(t testing.TB, s *site, c contender, probe func()) service {
			j := work{}.answering()
			s.extra = extraPools(t, n-1)
			j.extra = s.extra
			return service{c.does(s, j, lookUp, probe), always(request{path: "/", bytes: j.bytes})}
		}})
	}
	return all
}

func byHeaders() []point {
	var all []point
	for _, n := range []int{0, 4, 32} {
		var names []string
		for i := range n {
			names = append(names, "X"+strconv.Itoa(i))
		}
		all = append(all, point{fmt.Sprintf("headers=%d", n), fewClients, 0, append(growers(), natives...), func(_ testing.TB, s *site, c contender, probe func()) service {
			j := work{header: func(h http.Header) {
				for _, name := range names {
					h.Set(name, "a value of some length")
				}
			}}.answering()
			return service{c.does(s, j, lookUp, probe), always(request{path: "/", bytes: j.bytes, headers: n})}
		}})
	}
	return all
}

// byAnswers: an INSERT, then an answer of that size while the transaction is open.
func byAnswers() []point {
	var all []point
	for _, size := range []int64{0, 1 << 10, 64 << 10, 1 << 20, 1 << 30} {
		by := append(growers(), natives...)
		if size == 1<<30 { // others hold it, or are like one of these
			by = append(pick(growers(), "hand", "eager", "sqlreq"), natives...)
		}
		all = append(all, point{"answer=" + sizeName(size), 1, 0, by, func(_ testing.TB, s *site, c contender, probe func()) service {
			d := insert(func(_ context.Context, _ querier, w http.ResponseWriter) error {
				w.WriteHeader(http.StatusOK)
				return writeAnswer(w, size, probe)
			})
			return service{c.does(s, work{}, d, probe), always(request{path: "/", bytes: size, rows: 1})}
		}})
	}
	return all
}

func bySavepoints() []point {
	var all []point
	for _, n := range []int{1, 100, 10_000} {
		all = append(all, point{fmt.Sprintf("savepoints=%d", n), 1, 0, append(growers(), natives...), func(_ testing.TB, s *site, c contender, probe func()) service {
			j := work{}.answering()
			return service{c.does(s, j, inSavepoints(n), probe), always(request{path: "/", bytes: j.bytes, rows: n})}
		}})
	}
	return all
}

// byConflicts: in so many requests of a hundred another program writes the row in
// between, at the first attempt. transactor and popmw take no isolation level, without
// which that is no conflict on PostgreSQL.
func byConflicts() []point {
	var all []point
	for _, percent := range []int{0, 10, 25, 50} {
		by := append(pick(growers(), "hand", "eager", "buffered", "trm", "sqlreq"), natives...)
		all = append(all, point{fmt.Sprintf("conflicts=%d", percent), 1, 0, by, func(_ testing.TB, s *site, c contender, probe func()) service {
			j := work{options: options{tx: s.snapshot, attempts: 3}}.answering()
			var armed atomic.Bool
			return service{c.does(s, j, addToCounter(s, &armed), probe), func(n int) request {
				r := request{path: "/", bytes: j.bytes, rows: 1}
				if anyTime(percent, n) {
					armed.Store(true)
					r.rows = 2 // one by the other program
				}
				return r
			}}
		}})
	}
	return all
}

// byRepeats: requests with an Idempotency-Key, so many of a hundred with that of the
// request before.
func byRepeats() []point {
	var all []point
	for _, percent := range []int{0, 1, 50} {
		all = append(all, point{fmt.Sprintf("repeats=%d", percent), 1, 0, pick(growers(), "hand", "sqlreq"), func(t testing.TB, s *site, c contender, probe func()) service {
			o := onceOn(t, s, probe)
			h := o.with
			if c.name == "hand" {
				h = o.twoTransactions()
			}
			keys := 0
			return service{h, func(n int) request {
				r := request{path: "/", bytes: int64(len(page1KiB))}
				if !anyTime(percent, n) {
					keys++
					r.rows = 1
				}
				r.key = strconv.Itoa(keys)
				return r
			}}
		}})
	}
	return all
}

// growth is each point by each contender.
func growth(database string, open func(testing.TB) *site) []Benchmark {
	var all []Benchmark
	for _, p := range points() {
		for _, c := range p.by {
			if c.native() && database == "sqlite" {
				continue
			}
			all = append(all, Benchmark{"Growth", database, p.work, c.name, func(b *testing.B) { p.measure(b, open(b), c) }})
		}
	}
	return all
}

func (c contender) native() bool { return len(pick(natives, c.name)) > 0 }
