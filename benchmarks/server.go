package benchmarks

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// serve starts h on a TCP connection and returns its URL.
func serve(t testing.TB, h http.Handler, listen func(net.Listener) net.Listener) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	if listen != nil {
		srv.Listener = listen(srv.Listener)
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.URL
}

func newClient(t testing.TB, conns int) *http.Client {
	t.Helper()
	tr := &http.Transport{MaxIdleConns: conns, MaxIdleConnsPerHost: conns, DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// get returns how many bytes were answered.
func get(ctx context.Context, client *http.Client, url string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("answered %s", res.Status)
	}
	return n, err
}

// largeAnswers are written while a transaction is open.
func largeAnswers() []Benchmark {
	var all []Benchmark
	for _, size := range []int64{1 << 10, 64 << 10, 1 << 20, 64 << 20} {
		for _, c := range contenders {
			all = append(all, Benchmark{"Server", "sqlite", "answer=" + sizeName(size), c.name, func(b *testing.B) {
				answerOf(b, c, size)
			}})
		}
	}
	return all
}

// stream is the same with 1 GiB, for those that do not hold it.
func stream() []Benchmark {
	var all []Benchmark
	for _, c := range named("hand", "eager", "sqlreq") {
		all = append(all, Benchmark{"Stream", "sqlite", "answer=1GiB", c.name, func(b *testing.B) {
			answerOf(b, c, 1<<30)
		}})
	}
	return all
}

// answerOf measures an answer of that size and, as held-B, the most memory that
// is in use while it is written.
func answerOf(b *testing.B, c contender, size int64) {
	const large = 64 << 20 // of which no request is made but those that are timed
	s := openSQLite(b)
	var measure atomic.Bool
	var before, most uint64
	j := answers(size, func() {
		if measure.Load() {
			most = max(most, liveMemory())
		}
	})
	h := c.handler(s, j)
	if size <= large {
		verify(b, s, j, h, "/")
	}
	mux := http.NewServeMux()
	mux.Handle("/", h)
	mux.Handle("/warm", c.handler(s, answers(1<<10, nil)))
	client := newClient(b, 1)
	url := serve(b, mux, nil)
	request := func() {
		if n, err := get(b.Context(), client, url); n != size || err != nil {
			b.Fatalf("got %d of %d bytes, %v", n, size, err)
		}
	}
	if _, err := get(b.Context(), client, url+"/warm"); err != nil {
		b.Fatal(err)
	}
	before = liveMemory()
	measure.Store(true)
	if size <= large {
		request()
		measure.Store(false)
	}
	done, n := s.done(b), 0
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		request()
		n++
	}
	if got := s.done(b) - done; got != n {
		b.Fatalf("%d rows, want %d", got, n)
	}
	b.ReportMetric(max(0, float64(most)-float64(before)), "held-B")
}

// liveMemory returns the bytes on the heap that are in use. Two collections
// also empty what sync.Pool keeps for a while.
func liveMemory() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// upstream is how long the handlers of manyClients wait for something that is
// not the database.
const upstream = 2 * time.Millisecond

// manyClients send their requests one after the other, a fifth of which read
// from the database. All of them wait for something else as well.
func manyClients(database string, open func(testing.TB) *site, counts ...int) []Benchmark {
	var all []Benchmark
	for _, clients := range counts {
		for _, c := range contenders {
			all = append(all, Benchmark{"Server", database, fmt.Sprintf("clients=%d", clients), c.name, func(b *testing.B) {
				s := open(b)
				j := read()
				verify(b, s, j, c.handler(s, j), "/read")
				j.when = func(r *http.Request) bool { return r.URL.Path == "/read" }
				j.answer, j.bytes = page1KiB, 0
				crowd(b, c.handler(s, slowed(j)), clients)
			}})
		}
	}
	return all
}

// slowed waits before it answers, and not in the transaction when that is
// written by hand.
func slowed(j work) work {
	j.header = func(http.Header) { time.Sleep(upstream) }
	return j
}

func crowd(b *testing.B, h http.Handler, clients int) {
	client := newClient(b, clients)
	url := serve(b, h, nil)
	took := make([][]time.Duration, clients)
	var turn atomic.Int64
	var failed atomic.Pointer[error]
	one := func(i int, n int64) {
		path := "/nothing"
		if n%5 == 0 {
			path = "/read"
		}
		start := time.Now()
		if _, err := get(b.Context(), client, url+path); err != nil {
			failed.Store(&err)
		}
		took[i] = append(took[i], time.Since(start))
	}
	each := func(f func(i int)) {
		var wg sync.WaitGroup
		for i := range clients {
			wg.Go(func() { f(i) })
		}
		wg.Wait()
	}
	each(func(i int) { one(i, int64(i)) }) // connects
	for i := range took {
		took[i] = took[i][:0]
	}
	b.ResetTimer()
	each(func(i int) {
		for n := turn.Add(1); n <= int64(b.N); n = turn.Add(1) {
			one(i, n)
		}
	})
	b.StopTimer()
	if err := failed.Load(); err != nil {
		b.Fatal(*err)
	}
	report(b, slices.Concat(took...))
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
}

// quantiles are those of the latency that the benchmarks report.
var quantiles = []int{10, 25, 50, 75, 90, 95, 99}

// report reports how long the requests took.
func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	for _, q := range quantiles {
		b.ReportMetric(float64(took[(len(took)-1)*q/100]), fmt.Sprintf("p%d-ns", q))
	}
}
