//go:build linux

package loadtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync"
	"time"
)

// The products that the service sells to each of its tenants. The last one is asked for more often than
// there is of it.
const (
	products = 5
	hot      = products
)

var tenants = []string{"acme", "globex"}

// order is what a client asks for, under its key.
type order struct {
	Key      string `json:"-"`
	Tenant   string `json:"-"`
	Product  int    `json:"product"`
	Quantity int    `json:"quantity"`
}

// receipt is the service's answer to an order.
type receipt struct {
	ID       json.Number `json:"id"`
	Product  int         `json:"product"`
	Quantity int         `json:"quantity"`
	Total    int64       `json:"total"`
}

// payment is what a provider of payments tells the service, under a key of its own.
type payment struct {
	Tenant string      `json:"tenant"`
	Order  json.Number `json:"order"`
	Amount int64       `json:"amount"`
}

// answer is a final one: 201 with a receipt, or 409 for what is sold out.
type answer struct {
	order
	status  int
	receipt receipt
	body    string
}

// exchange is a request, from its first byte to the last of its answer.
type exchange struct {
	left, broken bool // by the client; by the service
}

// clients send orders until they are answered. Whoever gets no answer, or one that is not final, asks again
// with the same key.
type clients struct {
	url     string
	http    *http.Client
	watched bool // the service has statistics

	mu       sync.Mutex         // guards what follows
	underway map[*exchange]bool // requests whose header was sent
	answers  map[string]answer  // the first final one, by the key
	paid     map[string]bool    // webhooks that were answered, by the key
	unlike   []string           // repeats that had another answer than the first
	changed  chan struct{}      // closed when something of it has changed
	asked    int                // how many requests were sent
	left     int                // by clients that went away
	broken   int                // without an answer
	others   map[int]int        // answers that were not final, by status
	looks    int                // at the statistics
}

func newClients(url string) *clients {
	return &clients{
		url: url,
		// Each request has a connection of its own, so that a broken one tells that its request was met.
		http:     &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience},
		underway: make(map[*exchange]bool), answers: make(map[string]answer), paid: make(map[string]bool),
		changed: make(chan struct{}), others: make(map[int]int),
	}
}

// change changes fields, and wakes who waits for that.
func (c *clients) change(fn func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fn()
	close(c.changed)
	c.changed = make(chan struct{})
}

// wait waits until ok, which is called with c.mu.
func (c *clients) wait(ctx context.Context, ok func() bool) error {
	for {
		c.mu.Lock()
		done, changed := ok(), c.changed
		c.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// more waits until n more orders are answered.
func (c *clients) more(ctx context.Context, n int) error {
	before := -1
	return c.wait(ctx, func() bool {
		if before < 0 {
			before = len(c.answers)
		}
		return len(c.answers) >= before+n
	})
}

// meets waits until the requests that are under way now have ended, after what is done, and returns whether
// one of them was broken.
func (c *clients) meets(ctx context.Context, do func()) (met bool, err error) {
	c.mu.Lock()
	var under []*exchange
	for e := range c.underway {
		under = append(under, e)
	}
	c.mu.Unlock()
	do()
	err = c.wait(ctx, func() bool {
		return !slices.ContainsFunc(under, func(e *exchange) bool { return c.underway[e] })
	})
	return slices.ContainsFunc(under, func(e *exchange) bool { return e.broken }), err
}

// send sends a request once. leave has the client go away when the request was written.
func (c *clients) send(ctx context.Context, path, key string, body any, leave bool) (status int, header http.Header, answer []byte, err error) {
	b, err := json.Marshal(body)
	if err != nil {
		return 0, nil, nil, err
	}
	e := &exchange{left: leave}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	moment := time.Duration(rand.Int64N(int64(4 * time.Millisecond)))
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaders: func() { c.change(func() { c.underway[e] = true }) },
		WroteRequest: func(httptrace.WroteRequestInfo) {
			if leave {
				time.AfterFunc(moment, cancel)
			}
		},
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+path, bytes.NewReader(b))
	if err != nil {
		return 0, nil, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Idempotency-Key", `"`+key+`"`)
	}
	res, err := c.http.Do(req)
	if err == nil {
		defer res.Body.Close()
		status, header = res.StatusCode, res.Header
		answer, err = io.ReadAll(res.Body)
	}
	c.change(func() {
		c.asked++
		delete(c.underway, e)
		switch {
		case err == nil:
		case leave:
			c.left++
		default:
			e.broken = true
			c.broken++
		}
	})
	return status, header, answer, err
}

// until sends a request until its answer is final: without one, after 5xx, 429 and a 409 that says when
// to come again, it is sent again.
func (c *clients) until(ctx context.Context, path, key string, body any) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	last := "nothing"
	for {
		status, header, answer, err := c.send(ctx, path, key, body, chance(8))
		if ctx.Err() != nil {
			return 0, nil, fmt.Errorf("POST %s with key %s is not answered, the last answer was %s: %w", path, key, last, errors.Join(context.Cause(ctx), err))
		}
		again := err != nil || status >= 500 || status == http.StatusTooManyRequests || status == http.StatusConflict && header.Get("Retry-After") != ""
		if !again {
			return status, answer, nil
		}
		if err == nil {
			last = fmt.Sprintf("%d %q", status, answer)
			c.change(func() { c.others[status]++ })
		}
		pause(ctx, time.Duration(rand.Int64N(int64(20*time.Millisecond))))
	}
}

// pause keeps a client that asks again from taking the processor from those that it waits for.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// chance is true once in n times.
func chance(n int) bool { return rand.IntN(n) == 0 }

// place orders until there is a final answer, and returns the first one that the key had.
func (c *clients) place(ctx context.Context, o order) (answer, error) {
	status, body, err := c.until(ctx, "/"+o.Tenant+"/api/orders", o.Key, o)
	if err != nil {
		return answer{}, err
	}
	got := answer{order: o, status: status, body: string(body)}
	switch status {
	case http.StatusCreated:
		if err := json.Unmarshal(body, &got.receipt); err != nil {
			return answer{}, fmt.Errorf("order %v: %w in %q", o, err, body)
		}
		if got.receipt.ID == "" || got.receipt.Product != o.Product || got.receipt.Quantity != o.Quantity {
			return answer{}, fmt.Errorf("order %v: got %s", o, body)
		}
	case http.StatusConflict:
		got.body = "" // it is not kept, and may say how much is left
	default:
		return answer{}, fmt.Errorf("order %v: got %d %q", o, status, body)
	}
	var first answer
	c.change(func() {
		if _, ok := c.answers[o.Key]; !ok {
			c.answers[o.Key] = got
		}
		if first = c.answers[o.Key]; first != got {
			c.unlike = append(c.unlike, fmt.Sprintf("order %v: got %d %q, and before %d %q", o, status, body, first.status, first.body))
		}
	})
	return first, nil
}

// pay has the provider of payments tell that an order is paid.
func (c *clients) pay(ctx context.Context, a answer) error {
	key := "pay-" + a.Key
	status, body, err := c.until(ctx, "/webhooks/payments", key, payment{a.Tenant, a.receipt.ID, a.receipt.Total})
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("the payment of order %v: got %d %q", a.order, status, body)
	}
	c.change(func() { c.paid[key] = true })
	return nil
}

// draw draws what a client orders.
func draw(client, i int) order {
	o := order{Key: fmt.Sprintf("%d-%d-%08x", client, i, rand.Uint32()), Tenant: tenants[rand.IntN(len(tenants))], Product: 1 + rand.IntN(products-1), Quantity: 1}
	if chance(3) {
		o.Product, o.Quantity = hot, 1+rand.IntN(5)
	}
	return o
}

// shop is a client's life: it orders, some orders twice at once, pays, and asks for some that it has
// ordered before. It ends when enough is closed.
func (c *clients) shop(ctx context.Context, client int, enough <-chan struct{}) error {
	var placed []answer
	for i := 0; ; i++ {
		select {
		case <-enough:
			return nil
		default:
		}
		a, err := c.both(ctx, draw(client, i))
		if err != nil {
			return err
		}
		placed = append(placed, a)
		if a.status == http.StatusCreated {
			if err := c.pay(ctx, a); err != nil {
				return err
			}
		}
		if chance(8) {
			if _, err := c.place(ctx, placed[rand.IntN(len(placed))].order); err != nil {
				return err
			}
		}
	}
}

// both places an order, one of eight twice at once.
func (c *clients) both(ctx context.Context, o order) (answer, error) {
	if !chance(8) {
		return c.place(ctx, o)
	}
	var second error
	var wg sync.WaitGroup
	wg.Go(func() { _, second = c.place(ctx, o) })
	a, err := c.place(ctx, o)
	wg.Wait()
	return a, errors.Join(err, second)
}

// sellOut orders the hot product until there is none of it left, and no more often than there ever was of it.
func (c *clients) sellOut(ctx context.Context, client, stock int) error {
	for _, tenant := range tenants {
		for i, quantity := 0, 10; quantity > 0 && i <= stock; i++ {
			a, err := c.place(ctx, order{Key: fmt.Sprintf("last-%s-%d-%d", tenant, client, i), Tenant: tenant, Product: hot, Quantity: quantity})
			if err != nil {
				return err
			}
			if a.status == http.StatusConflict {
				quantity /= 2
			}
		}
	}
	return nil
}

// statistics are what the service says of itself.
type statistics struct{ Orders, Payments, Jobs, Outbox, Sold, Stock, Initial int64 }

// watch asks for the statistics until enough is closed, and once more until there is an answer. There is a payment, a
// job and an event for each order at any moment, also while processes and servers are killed.
func (c *clients) watch(ctx context.Context, enough <-chan struct{}) error {
	for last := false; ; {
		s, err := c.look(ctx)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("GET /api/stats is not answered: %w", errors.Join(context.Cause(ctx), err))
		case err == nil && (s.Orders != s.Payments || s.Orders != s.Jobs || s.Orders != s.Outbox || s.Sold+s.Stock != s.Initial || s.Initial == 0):
			return fmt.Errorf("GET /api/stats: got %+v", s)
		case err == nil && last:
			return nil
		}
		select {
		case <-enough:
			last = true
		default:
			pause(ctx, 50*time.Millisecond)
		}
	}
}

func (c *clients) look(ctx context.Context) (s statistics, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"/api/stats", nil)
	if err != nil {
		return s, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return s, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return s, fmt.Errorf("got %d", res.StatusCode)
	}
	if err := json.NewDecoder(res.Body).Decode(&s); err != nil {
		return s, err
	}
	c.change(func() { c.looks++ })
	return s, nil
}
