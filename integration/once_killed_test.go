package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// front stands before several processes. It gives each request to one that lives, on a
// connection of its own, and waits while there is none.
type front struct {
	transport *http.Transport

	mu      sync.Mutex // guards what follows, and what it points to
	members map[*shopProcess]*member
	changed chan struct{} // closed when something of it has changed
}

// member is what the front knows of a process.
type member struct {
	process *shopProcess
	begun   int                // requests whose header was sent
	broken  int                // those of them that have ended without the last byte of the answer
	under   map[*exchange]bool // those under way
}

// exchange is a request at a member, from before its first byte.
type exchange struct{ begun, broken bool }

func newFront() *front {
	return &front{
		transport: &http.Transport{DisableKeepAlives: true}, // so that no request meets a connection that is dead already
		members:   make(map[*shopProcess]*member),
		changed:   make(chan struct{}),
	}
}

// change changes fields, and wakes who waits for that.
func (f *front) change(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
	close(f.changed)
	f.changed = make(chan struct{})
}

// wait waits until ok, which is called with f.mu. stop ends the wait.
func (f *front) wait(stop <-chan struct{}, ok func() bool) bool {
	for {
		f.mu.Lock()
		done, changed := ok(), f.changed
		f.mu.Unlock()
		if done {
			return true
		}
		select {
		case <-changed:
		case <-stop:
			return false
		}
	}
}

func (f *front) add(p *shopProcess) *member {
	m := &member{process: p, under: make(map[*exchange]bool)}
	f.change(func() { f.members[p] = m })
	return m
}

// remove gives a member no more requests, and returns when those that it had have ended.
func (f *front) remove(m *member) {
	f.change(func() { delete(f.members, m.process) })
	f.wait(nil, func() bool { return len(m.under) == 0 })
}

// meet waits until more than n requests have begun at a member, and some are under way,
// and returns these; none if stop ends the wait.
func (f *front) meet(stop <-chan struct{}, m *member, n int) (begun []*exchange) {
	f.wait(stop, func() bool {
		begun = nil
		for e := range m.under {
			if e.begun {
				begun = append(begun, e)
			}
		}
		return len(begun) > 0 && m.begun > n
	})
	return begun
}

// broken reports whether one of the exchanges, which have ended, was broken off.
func (f *front) broken(exchanges []*exchange) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(exchanges, func(e *exchange) bool { return e.broken })
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e := new(exchange)
	var m *member
	picked := f.wait(r.Context().Done(), func() bool {
		if len(f.members) == 0 {
			return false
		}
		m = slices.Collect(maps.Values(f.members))[rand.IntN(len(f.members))]
		m.under[e] = true
		return true
	})
	if !picked {
		return // the client has gone
	}
	ctx := httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{WroteHeaders: func() {
		f.change(func() { e.begun = true; m.begun++ })
	}})
	sent, err := f.pass(ctx, w, r, m.process.url)
	f.change(func() {
		delete(m.under, e)
		if e.broken = err != nil; e.begun && e.broken {
			m.broken++
		}
	})
	switch {
	case err != nil && sent:
		panic(http.ErrAbortHandler)
	case err != nil:
		w.WriteHeader(http.StatusBadGateway)
	}
}

// pass has a member answer. sent tells whether the answer has begun.
func (f *front) pass(ctx context.Context, w http.ResponseWriter, r *http.Request, url string) (sent bool, err error) {
	out, err := http.NewRequestWithContext(ctx, r.Method, url+r.URL.Path, r.Body)
	if err != nil {
		return false, err
	}
	out.Header, out.ContentLength = r.Header.Clone(), r.ContentLength
	res, err := f.transport.RoundTrip(out)
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	maps.Copy(w.Header(), res.Header)
	w.WriteHeader(res.StatusCode)
	_, err = io.Copy(w, res.Body)
	return true, err
}

// killer kills processes and starts others in their place. A kill counts if a request was
// between its first and its last byte.
type killer struct {
	t      *testing.T
	front  *front
	config shopConfig
	enough chan struct{} // closed when there are enough kills

	mu                    sync.Mutex
	outside, inside       int // how many are still to come, by SIGKILL from outside and by the process itself
	didOutside, didInside int
	missed                int            // kills that met no request
	at                    map[string]int // where the processes have killed themselves
}

// draw draws how the next process is to end; not at all if there are enough.
func (k *killer) draw() (self, more bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	outside, inside := max(k.outside-k.didOutside, 0), max(k.inside-k.didInside, 0)
	if outside+inside == 0 {
		return false, false
	}
	return rand.IntN(outside+inside) >= outside, true
}

// note counts a kill.
func (k *killer) note(self, counts bool, said string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	before := k.didOutside >= k.outside && k.didInside >= k.inside
	switch {
	case !counts:
		k.missed++
	case self:
		k.didInside++
		k.at[strings.TrimPrefix(said, "killed at ")]++
	default:
		k.didOutside++
	}
	if !before && k.didOutside >= k.outside && k.didInside >= k.inside {
		close(k.enough)
	}
}

// driverCalls is up to which number the call is drawn at which a process kills itself:
// that of some fifteen requests.
const driverCalls = 120

// place runs one process after the other until there are enough kills, and then one that
// stays. It ends with ctx.
func (k *killer) place(ctx context.Context) error {
	for ctx.Err() == nil {
		self, more := k.draw()
		if err := k.run(ctx, self, more); err != nil {
			return err
		}
	}
	return nil
}

// run runs a process until it was killed: by itself, from outside, or not at all if that is not to be.
func (k *killer) run(ctx context.Context, self, kill bool) error {
	c := k.config
	if kill && self {
		c.DieAt, c.DieAfter = 1+rand.IntN(driverCalls), rand.IntN(2) == 0
	}
	p, err := startShop(k.t, c)
	if err != nil {
		return err
	}
	m := k.front.add(p)
	var begun []*exchange
	if kill && !self {
		begun = k.kill(ctx, m)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil
	}
	k.front.remove(m)
	status := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !kill || status.Signal() != syscall.SIGKILL || self != strings.HasPrefix(p.said, "killed at ") || p.stderr.Len() > 0 {
		return fmt.Errorf("a process has ended with %v, %q\n%s", p.cmd.ProcessState, p.said, &p.stderr)
	}
	k.note(self, self && m.broken > 0 || k.front.broken(begun), p.said)
	return nil
}

// kill kills a process at a moment drawn at random, and returns what it was doing then.
func (k *killer) kill(ctx context.Context, m *member) (begun []*exchange) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // if it ends by itself
		select {
		case <-m.process.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	k.front.meet(ctx.Done(), m, rand.IntN(15))
	moment := time.NewTimer(time.Duration(rand.Int64N(int64(5 * time.Millisecond))))
	defer moment.Stop()
	<-moment.C
	begun = k.front.meet(ctx.Done(), m, 0)
	if ctx.Err() != nil {
		return nil
	}
	_ = m.process.cmd.Process.Kill()
	return begun
}

// orders sends orders, each twice at once, until enough is closed, and from time to time
// an old one again.
func (k *killer) orders(ctx context.Context, c *shopClient, url, client string, answers *answered) error {
	for i := 0; ; i++ {
		select {
		case <-k.enough:
			return nil
		default:
		}
		name := orderName(client, i)
		var wg sync.WaitGroup
		var errs [2]error
		for j := range errs {
			wg.Go(func() { errs[j] = answers.ask(ctx, c, url, name) })
		}
		wg.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			return err
		}
		if err := answers.ask(ctx, c, url, orderName(client, rand.IntN(i+1))); err != nil {
			return err
		}
	}
}

// orderName returns the name of a client's order. One of ten has a large answer.
func orderName(client string, i int) string {
	name := fmt.Sprint(client, "-", i)
	if i%10 == 0 {
		name += large
	}
	return name
}

// answered are the answers, by the name of the order.
type answered struct {
	mu      sync.Mutex
	answers map[string]reply
}

// ask sends an order until there is an answer, and compares that with the first.
func (a *answered) ask(ctx context.Context, c *shopClient, url, name string) error {
	return a.askAt(ctx, c, func() string { return url }, name)
}

// askAt is ask with another URL for each try.
func (a *answered) askAt(ctx context.Context, c *shopClient, url func() string, name string) error {
	got, err := c.until(ctx, url, name)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if first, ok := a.answers[name]; ok && first != got {
		return fmt.Errorf("order %s: got %v, and before %v", name, got, first)
	}
	a.answers[name] = got
	return nil
}

// Three processes are killed under load, half of them by themselves at a call of the
// driver drawn at random, half from outside. Each order is there once, and all its answers
// are the same.
func TestOnceKilled(t *testing.T) {
	tapped := tappable()
	for i, d := range append(tapped, variants...) {
		kills := 10
		switch {
		case i >= len(tapped) && !*long:
			continue
		case d.driver == "sqlite3", d.driver == "postgres":
			continue // one driver for each database
		case d.driver == "sqlite" && *long:
			kills = 1000
		case d.driver == "sqlite":
			kills = 30
		case *long:
			kills = 300
		}
		t.Run(d.name, func(t *testing.T) { killShops(t, d, kills) })
	}
}

func killShops(t *testing.T, d database, kills int) {
	d = d.fixed(t)
	db := openShop(t, d)
	k := &killer{
		t: t, front: newFront(), config: shopConfig{Driver: d.driver, DSN: d.dsn(t)}, enough: make(chan struct{}),
		outside: kills / 2, inside: kills - kills/2, at: make(map[string]int),
	}
	srv := httptest.NewServer(k.front)
	defer srv.Close()
	client := &shopClient{Client: srv.Client(), mayBe: []int{http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusConflict}}
	answers := &answered{answers: make(map[string]reply)}

	ctx, cancel := context.WithTimeout(t.Context(), 2*patience+time.Duration(kills)*3*time.Second)
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	until := func(err error) { // the first error ends all
		if err != nil {
			fail(err)
		}
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	var places, clients sync.WaitGroup
	for range 3 {
		places.Go(func() { until(k.place(running)) })
	}
	for i := range 4 {
		clients.Go(func() { until(k.orders(ctx, client, srv.URL, fmt.Sprint(i), answers)) })
	}
	clients.Wait()
	stop()
	places.Wait()
	if ctx.Err() != nil {
		t.Fatal(context.Cause(ctx))
	}
	checkShop(t, db, answers.answers)
	t.Logf("%d kills from outside, %d at a call of the driver, %d met no request; %d orders, asked for %d times; other answers: %v (0: the connection broke)",
		k.didOutside, k.didInside, k.missed, len(answers.answers), client.asks, client.others)
	t.Logf("they have killed themselves: %v", k.at)
}
