package benchmarks

import (
	"context"
	"net/http"
	"runtime"
	"slices"
	"testing"
	"time"
)

// turns compares sqlreq with two others that do the work in the same process, in
// turns of some milliseconds: what slows the machine down for longer than that
// slows all of them. The ratios of each round of turns are what counts, and of
// those the median.
func turns(database string, open func(testing.TB) *site, works ...work) []Benchmark {
	var all []Benchmark
	for _, j := range works {
		all = append(all, Benchmark{"Turns", database, j.name, "sqlreq", func(b *testing.B) { takeTurns(b, open(b), j) }})
	}
	return all
}

// turn is how long one lasts, about.
const turn = 3 * time.Millisecond

// turn is longer for what writes: each should have its share of SQLite's checkpoints, of which one comes after 1,000
// pages and takes milliseconds.
func (j work) turn() time.Duration {
	if j.rows > 0 {
		return 8 * turn
	}
	return turn
}

func takeTurns(b *testing.B, s *site, j work) {
	by := named("hand", "eager", "sqlreq")
	handlers := make([]http.Handler, len(by))
	for i, c := range by {
		handlers[i] = c.handler(s, j)
		verify(b, s, j, handlers[i], "/")
	}
	t := newTurn(b, s, j)
	t.fresh = j.use != nil
	t.start(b)
	// So many requests that the one that takes longest has its turn.
	n := 1
	for t.take(handlers[1], n) < j.turn() {
		n *= 2
	}
	var times [3][]float64
	for round := 0; b.Loop(); round++ {
		for i := range handlers {
			k := (i + round) % len(handlers)
			times[k] = append(times[k], float64(t.take(handlers[k], n))/float64(n))
		}
	}
	t.check(b)
	b.ReportMetric(middle(times[2]), "ns/op")
	b.ReportMetric(middle(quotients(times[2], times[0])), "of-hand")
	b.ReportMetric(middle(quotients(times[2], times[1])), "of-eager")
}

// taker makes requests, and counts what they leave in the database.
type taker struct {
	s         *site
	j         work
	r         *http.Request
	w         *sink
	fresh     bool // each request has a context of its own
	want, bad int
}

func newTurn(b *testing.B, s *site, j work) *taker {
	return &taker{s: s, j: j, r: newRequest(b, "/"), w: &sink{header: make(http.Header)}}
}

func (t *taker) start(b *testing.B) { t.want = t.s.done(b) }

// take makes n requests, and returns how long that took.
func (t *taker) take(h http.Handler, n int) time.Duration {
	start := time.Now()
	for range n {
		clear(t.w.header)
		t.w.status, t.w.n = 0, 0
		t.serve(h)
		if t.w.status != http.StatusOK || t.w.n != t.j.bytes {
			t.bad++
		}
	}
	t.want += n * t.j.rows
	return time.Since(start)
}

// serve makes one request. A context that many have had keeps what the first waits for its end have made in it; that of
// net/http is new for each request, and is cancelled when the handler has returned.
func (t *taker) serve(h http.Handler) {
	if !t.fresh {
		h.ServeHTTP(t.w, t.r)
		return
	}
	ctx, cancel := context.WithCancel(t.r.Context())
	defer cancel()
	h.ServeHTTP(t.w, t.r.WithContext(ctx))
}

// allocated returns the bytes and the allocations of a request, the least of several measurements: a pool that was
// emptied meanwhile adds to them.
func (t *taker) allocated(h http.Handler) (bytes, allocs float64) {
	const n = 20
	for i := range 10 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		t.take(h, n)
		runtime.ReadMemStats(&after)
		b, a := float64(after.TotalAlloc-before.TotalAlloc)/n, float64(after.Mallocs-before.Mallocs)/n
		if i == 0 || a < allocs {
			bytes, allocs = b, a
		}
	}
	return bytes, allocs
}

// check fails if a request failed, or the database has not seen them all.
func (t *taker) check(b *testing.B) {
	if got := t.s.done(b); t.bad > 0 || got != t.want {
		b.Fatalf("%d requests failed, the database has seen %d of %d", t.bad, got, t.want)
	}
}

func quotients(v, w []float64) []float64 {
	q := make([]float64, len(v))
	for i := range v {
		q[i] = v[i] / w[i]
	}
	return q
}

// middle returns the median.
func middle(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
