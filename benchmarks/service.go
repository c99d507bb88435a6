package benchmarks

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// measure lets the clients of a point send requests for as long as -benchtime says, or
// that many each.
func (p point) measure(b *testing.B, s *site, c contender) {
	window, err := time.ParseDuration(flag.Lookup("test.benchtime").Value.String())
	if err != nil {
		window = 0
	}
	b.StopTimer()
	m := p.play(b, s, c, b.N, window, b.StartTimer, b.StopTimer)
	slices.Sort(m.took)
	mean := time.Duration(0)
	for _, d := range m.took {
		mean += d / time.Duration(len(m.took))
	}
	b.ReportMetric(float64(mean), "ns/op")
	for _, q := range []int{50, 99} {
		b.ReportMetric(float64(m.took[(len(m.took)-1)*q/100]), fmt.Sprintf("p%d-ns", q))
	}
	b.ReportMetric(float64(len(m.took))/m.elapsed.Seconds(), "req/s")
	b.ReportMetric(float64(m.live), "live-B")
	b.ReportMetric(float64(m.conns), "conns")
}

// measured is what came of it.
type measured struct {
	took    []time.Duration // of each request
	elapsed time.Duration
	live    uint64 // the most memory in use, above what was before
	conns   int64  // the most connections in use at a time
}

// meter looks at the service at each request: at its begin, and while its transaction is
// open.
type meter struct {
	s     *site
	exact bool        // memory at each look; otherwise when twice as many requests are under way
	on    atomic.Bool // looks at memory and all databases, too, which takes its time
	under atomic.Int64
	conns atomic.Int64 // the most

	mu   sync.Mutex
	next int64
	most uint64
}

func (m *meter) handler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.under.Add(1)
		defer m.under.Add(-1)
		m.look()
		h.ServeHTTP(w, r)
	})
}

func (m *meter) look() {
	if !m.on.Load() {
		m.saw(m.s.inUse())
		return
	}
	m.saw(m.s.inUseOfAll())
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.under.Load(); m.exact || n >= m.next {
		m.next = 2 * n
		m.most = max(m.most, liveMemory())
	}
}

func (m *meter) saw(conns int) {
	for {
		most := m.conns.Load()
		if int64(conns) <= most || m.conns.CompareAndSwap(most, int64(conns)) {
			return
		}
	}
}

// play serves the application and sends the requests: one by each client that looks at
// memory and connections, then those that are timed. Everything is checked.
func (p point) play(t testing.TB, s *site, c contender, each int, window time.Duration, start, stop func()) measured {
	t.Helper()
	if c.native() {
		s.openPgx(t)
	}
	m := &meter{s: s, exact: p.clients <= fewClients}
	svc := p.start(t, s, c, m.look)
	mux := http.NewServeMux()
	mux.Handle("/", m.handler(svc.handler))
	mux.Handle("/warm", c.does(s, work{}, lookUp, func() {}))
	var listen func(net.Listener) net.Listener
	if p.slow > 0 {
		listen = func(l net.Listener) net.Listener { return smallBuffers{l} }
	}
	u := &users{t: t, client: newClient(t, p.clients), url: serve(t, mux, listen), request: svc.request}
	before := s.done(t)
	u.all(p.clients, func(int) { u.check(request{path: "/warm"}) })
	ctx, cancel := context.WithCancel(context.Background())
	var slow sync.WaitGroup
	for range p.slow {
		slow.Go(func() { u.readSlowly(ctx) })
	}
	base := liveMemory()
	m.on.Store(true)
	u.all(p.clients, func(int) { u.next() })
	m.on.Store(false)

	took := make([][]time.Duration, p.clients)
	start()
	began := time.Now()
	u.all(p.clients, func(i int) {
		for n := 0; n < each || time.Since(began) < window; n++ {
			took[i] = append(took[i], u.next())
		}
	})
	elapsed := time.Since(began)
	stop()
	cancel()
	slow.Wait()
	if err := u.failed.Load(); err != nil {
		t.Fatal(*err)
	}
	for deadline := time.Now().Add(10 * time.Second); s.inUseOfAll() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections in use", s.inUseOfAll())
		}
	}
	if got := s.done(t) - before; got != u.rows {
		t.Fatalf("%d rows, want %d", got, u.rows)
	}
	return measured{slices.Concat(took...), elapsed, max(m.most, base) - base, m.conns.Load()}
}

// users send requests.
type users struct {
	t       testing.TB
	client  *http.Client
	url     string
	request func(n int) request
	failed  atomic.Pointer[error]

	mu   sync.Mutex
	n    int
	rows int // that the requests leave
}

func (u *users) all(clients int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// next sends the next request, and returns how long it took.
func (u *users) next() time.Duration {
	u.mu.Lock()
	r := u.request(u.n)
	u.n++
	u.rows += r.rows
	u.mu.Unlock()
	start := time.Now()
	u.check(r)
	return time.Since(start)
}

func (u *users) check(r request) {
	if err := u.send(r); err != nil {
		err = fmt.Errorf("%s: %w", r.path, err)
		u.failed.Store(&err)
	}
}

func (u *users) send(r request) error {
	method, body := http.MethodGet, io.Reader(nil)
	if r.key != "" {
		method, body = http.MethodPost, strings.NewReader(strings.Repeat("x", 100))
	}
	req, err := http.NewRequestWithContext(u.t.Context(), method, u.url+r.path, body)
	if err != nil {
		return err
	}
	if r.key != "" {
		req.Header.Set("Idempotency-Key", r.key)
	}
	res, err := u.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	if err != nil || res.StatusCode != http.StatusOK || n != r.bytes {
		return errors.Join(err, fmt.Errorf("answered %s with %d bytes, want 200 with %d", res.Status, n, r.bytes))
	}
	headers := 0
	for name := range res.Header {
		if name[0] == 'X' {
			headers++
		}
	}
	if headers != r.headers {
		return fmt.Errorf("%d headers, want %d", headers, r.headers)
	}
	return nil
}

const (
	slowPiece = 4 << 10
	slowPause = 2 * time.Millisecond // after each piece
)

// readSlowly asks for the slow answer again and again until ctx ends.
func (u *users) readSlowly(ctx context.Context) {
	dialer := net.Dialer{Control: smallWindow}
	tr := &http.Transport{DialContext: dialer.DialContext, DisableCompression: true}
	defer tr.CloseIdleConnections()
	for ctx.Err() == nil {
		if err := readPieces(ctx, &http.Client{Transport: tr}, u.url+"/slow"); err != nil && ctx.Err() == nil {
			u.failed.Store(&err)
			return
		}
	}
}

func readPieces(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	piece, total := make([]byte, slowPiece), 0
	for {
		n, err := io.ReadFull(res.Body, piece)
		total += n
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			if want := int(rowBytes) + len(page32KiB); res.StatusCode != http.StatusOK || total != want {
				return fmt.Errorf("answered %s with %d bytes, want 200 with %d", res.Status, total, want)
			}
			return nil
		}
		if err != nil {
			return err
		}
		time.Sleep(slowPause)
	}
}
