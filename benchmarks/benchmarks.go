package benchmarks

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// Benchmark is one work done by one contender on one database.
type Benchmark struct {
	Group    string // of the Benchmark function: Request, Turns, Budget, Program, Once, Server, SlowClients, Stream, Growth
	Database string
	Work     string
	By       string

	run func(*testing.B)
}

// Name is that of the sub-benchmark.
func (b Benchmark) Name() string { return b.Database + "/" + b.Work + "/by=" + b.By }

// All returns the benchmarks on SQLite, and those on the PostgreSQL database of
// dsn unless it is empty. Those of one work are in a row.
func All(dsn string) []Benchmark {
	var all []Benchmark
	all = append(all, requests("sqlite", openSQLite)...)
	all = append(all, durably()...)
	all = append(all, turns("sqlite", openSQLite, nothing(), headers(), inserts(1), inserts(10), read())...)
	all = append(all, turns("sqlite", openDurable, durable())...)
	all = append(all, budget()...)
	all = append(all, once()...)
	all = append(all, manyKeys()...)
	all = append(all, largeAnswers()...)
	all = append(all, manyClients("sqlite", openSQLite, 1, 4, 16, 64, 256)...)
	all = append(all, slowClients()...)
	all = append(all, stream()...)
	all = append(all, growth("sqlite", openSQLite)...)
	if dsn != "" {
		open := func(t testing.TB) *site { return openPostgres(t, dsn) }
		all = append(all, requests("postgres", open)...)
		all = append(all, turns("postgres", open, inserts(1), inserts(10), read())...)
		all = append(all, manyClients("postgres", open, 1, 16, 64)...)
		all = append(all, growth("postgres", open)...)
	}
	return all
}

// requests are the works that are done in-process.
func requests(database string, open func(testing.TB) *site) []Benchmark {
	var all []Benchmark
	add := func(by []contender, makeWork func(*site) work) {
		name := makeWork(&site{}).name
		for _, c := range by {
			all = append(all, Benchmark{"Request", database, name, c.name, func(b *testing.B) {
				s := open(b)
				j := makeWork(s)
				inProcess(b, s, j, c.handler(s, j), "/")
			}})
		}
	}
	fixed := func(j work) func(*site) work { return func(*site) work { return j } }
	withKey := append(contenders[:len(contenders):len(contenders)], sqlreqKey)
	if database == "sqlite" { // there is no difference
		add(contenders, fixed(nothing()))
		add(contenders, fixed(headers()))
	}
	add(withKey, fixed(inserts(1)))
	add(withKey, fixed(inserts(10)))
	add(withKey, fixed(read()))
	for _, percent := range []int{0, 10, 50} {
		// A retry of crdb goes back to a savepoint, and only CockroachDB gives it a new snapshot then.
		add(except("crdb"), func(s *site) work { return conflicts(s, percent) })
	}
	for _, depth := range []int{1, 3, 10} {
		for _, c := range named("hand", "eager", "bun", "gorm", "trm", "sqlreq") {
			all = append(all, Benchmark{"Request", database, fmt.Sprintf("nested=%d", depth), c.name, func(b *testing.B) {
				s := open(b)
				j := inserts(1)
				inProcess(b, s, j, c.nest(s, j, depth), nestedPath(depth))
			}})
		}
	}
	return all
}

// durably is one INSERT with SQLite's default of synchronous=FULL.
func durably() []Benchmark {
	var all []Benchmark
	for _, c := range contenders {
		all = append(all, Benchmark{"Request", "sqlite", durable().name, c.name, func(b *testing.B) {
			s := openDurable(b)
			inProcess(b, s, durable(), c.handler(s, durable()), "/")
		}})
	}
	return all
}

// manyKeys is an application that has many databases, and uses one in each
// request. A middleware that begins on each of them is not asked for 1,000.
func manyKeys() []Benchmark {
	var all []Benchmark
	for _, n := range []int{1, 10, 1000} {
		for _, c := range named("hand", "eager", "sqlreq") {
			if c.name == "eager" && n > 10 {
				continue
			}
			all = append(all, Benchmark{"Request", "sqlite", fmt.Sprintf("keys=%d", n), c.name, func(b *testing.B) {
				s := openSQLite(b)
				j := inserts(1)
				j.extra = extraPools(b, n-1)
				inProcess(b, s, j, c.handler(s, j), "/")
			}})
		}
	}
	return all
}

// sink is a response that counts.
type sink struct {
	header http.Header
	status int
	n      int64
}

func (w *sink) Header() http.Header { return w.header }

func (w *sink) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

func (w *sink) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	w.n += int64(len(p))
	return len(p), nil
}

// newRequest returns a request with a cancelable context, as net/http's are.
func newRequest(t testing.TB, path string) *http.Request {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return httptest.NewRequest(http.MethodGet, path, nil).WithContext(ctx)
}

// inProcess measures h, which has to do all of the work in every iteration.
func inProcess(b *testing.B, s *site, j work, h http.Handler, path string) {
	b.Helper()
	verify(b, s, j, h, path)
	want := s.done(b)
	r := newRequest(b, path)
	w := &sink{header: make(http.Header)}
	n, bad := 0, 0
	b.ReportAllocs()
	for b.Loop() {
		clear(w.header)
		w.status, w.n = 0, 0
		if j.before != nil {
			want += j.before(n)
		}
		h.ServeHTTP(w, r)
		if w.status != http.StatusOK || w.n != j.bytes {
			bad++
		}
		n++
	}
	if bad > 0 {
		b.Fatalf("%d of %d requests failed", bad, n)
	}
	if got := s.done(b); got != want+n*j.rows {
		b.Fatalf("the database has seen %d of %d", got-want, n*j.rows)
	}
}

// verify makes one request and checks what it did.
func verify(t testing.TB, s *site, j work, h http.Handler, path string) {
	t.Helper()
	before := s.done(t)
	if j.before != nil {
		before += j.before(0)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, newRequest(t, path))
	if rec.Code != http.StatusOK || int64(rec.Body.Len()) != j.bytes {
		t.Fatalf("answered %d with %d bytes, want 200 with %d", rec.Code, rec.Body.Len(), j.bytes)
	}
	if j.answer != nil && rec.Body.String() != string(j.answer) {
		t.Fatalf("answered %.40q, want %.40q", rec.Body.String(), j.answer)
	}
	if j.header != nil {
		want := make(http.Header)
		j.header(want)
		for k := range want {
			if got := rec.Header().Get(k); got != want.Get(k) {
				t.Fatalf("%s: %q, want %q", k, got, want.Get(k))
			}
		}
	}
	if got := s.done(t) - before; got != j.rows {
		t.Fatalf("%d rows, want %d", got, j.rows)
	}
	if n := s.db.Stats().InUse; n != 0 {
		t.Fatalf("%d connections in use", n)
	}
}

// group runs the benchmarks of a Benchmark function.
func group(b *testing.B, name, dsn string) {
	all := All(dsn)
	each(b, slices.DeleteFunc(all, func(bench Benchmark) bool { return bench.Group != name }))
}

func each(b *testing.B, all []Benchmark) {
	for _, bench := range all {
		b.Run(strings.TrimPrefix(bench.Name(), "/"), bench.run)
	}
}
