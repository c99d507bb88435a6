package benchmarks

import (
	"net/http"
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

func takeTurns(b *testing.B, s *site, j work) {
	by := named("hand", "eager", "sqlreq")
	handlers := make([]http.Handler, len(by))
	for i, c := range by {
		handlers[i] = c.handler(s, j)
		verify(b, s, j, handlers[i], "/")
	}
	want := s.done(b)
	r := newRequest(b, "/")
	w := &sink{header: make(http.Header)}
	bad := 0
	take := func(h http.Handler, n int) time.Duration {
		start := time.Now()
		for range n {
			clear(w.header)
			w.status, w.n = 0, 0
			h.ServeHTTP(w, r)
			if w.status != http.StatusOK || w.n != j.bytes {
				bad++
			}
		}
		want += n * j.rows
		return time.Since(start)
	}
	// So many requests that the one that takes longest has its turn.
	n := 1
	for take(handlers[1], n) < turn {
		n *= 2
	}
	var times [3][]float64
	for round := 0; b.Loop(); round++ {
		for i := range handlers {
			k := (i + round) % len(handlers)
			times[k] = append(times[k], float64(take(handlers[k], n))/float64(n))
		}
	}
	if got := s.done(b); bad > 0 || got != want {
		b.Fatalf("%d requests failed, the database has seen %d of %d", bad, got, want)
	}
	b.ReportMetric(middle(times[2]), "ns/op")
	b.ReportMetric(middle(quotients(times[2], times[0])), "of-hand")
	b.ReportMetric(middle(quotients(times[2], times[1])), "of-eager")
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
