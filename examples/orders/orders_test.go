package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
)

// each runs n at once, and counts their answers by status.
func each(n int, do func(i int) answer) map[int]int {
	var mu sync.Mutex
	count := map[int]int{}
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			a := do(i)
			mu.Lock()
			defer mu.Unlock()
			count[a.status]++
		})
	}
	all.Wait()
	return count
}

func TestOrder(t *testing.T) {
	onBoth(t, 10, func(t *testing.T, s *service) {
		a := s.order("acme", "k1", `{"product": 2, "quantity": 3}`).is(t, 201)
		var got map[string]int64
		a.json(t, &got)
		equal(t, "product", got["product"], 2)
		equal(t, "quantity", got["quantity"], 3)
		equal(t, "total", got["total"], 3*14900)
		equal(t, "Location", a.header.Get("Location"), fmt.Sprintf("/acme/api/orders/%d", got["id"]))

		var order shop.Order
		s.get(a.header.Get("Location")).is(t, 200).json(t, &order)
		equal(t, "payment", order.Payment, shop.Pending)
		equal(t, "state", order.State, shop.Placed)
		var list struct{ Products []shop.Product }
		s.get("/acme/api/products").is(t, 200).json(t, &list)
		equal(t, "products", len(list.Products), 5)
		equal(t, "stock", list.Products[1].Stock, 7)
		equal(t, "stats", s.stats(), shop.Stats{Orders: 1, Payments: 1, Jobs: 1, Outbox: 1, Sold: 3, Stock: 97, Initial: 100})
	})
}

// A client that repeats, all at once and afterwards, has one order, and the same answer each time.
func TestRepeatOrdersOnce(t *testing.T) {
	onBoth(t, 10, func(t *testing.T, s *service) {
		body := `{"product": 1, "quantity": 1}`
		equal(t, "answers of 201", each(8, func(int) answer { return s.order("acme", "k1", body) })[201], 8)
		first, again := s.order("acme", "k1", body), s.order("acme", `"k1"`, body)
		equal(t, "the answers", first.body, again.body)
		equal(t, "replayed", again.header.Get("Idempotent-Replayed"), "true")
		equal(t, "stats", s.stats(), shop.Stats{Orders: 1, Payments: 1, Jobs: 1, Outbox: 1, Sold: 1, Stock: 99, Initial: 100})

		s.order("acme", "k1", `{"product": 1, "quantity": 2}`).is(t, 422) // another order with the key
		s.order("globex", "k1", body).is(t, 201)                          // the same key of somebody else
		equal(t, "orders", s.stats().Orders, 2)
	})
}

// Of what there is five times, five are sold, however many come at once.
func TestNothingIsOversold(t *testing.T) {
	onBoth(t, 5, func(t *testing.T, s *service) {
		got := each(12, func(i int) answer { return s.order("acme", fmt.Sprint("k", i), `{"product": 1, "quantity": 1}`) })
		equal(t, "sold", got[201], 5)
		equal(t, "sold out", got[409], 7)
		equal(t, "stats", s.stats(), shop.Stats{Orders: 5, Payments: 5, Jobs: 5, Outbox: 5, Sold: 5, Stock: 45, Initial: 50})
		equal(t, "left", s.number("SELECT stock FROM products WHERE tenant = 'acme' AND id = 1"), 0)
		// What was sold out has left its key free.
		s.order("acme", "again", `{"product": 1, "quantity": 1}`).is(t, 409)
		s.order("acme", "again", `{"product": 2, "quantity": 1}`).is(t, 201)
	})
}

func TestBadInput(t *testing.T) {
	onBoth(t, 5, func(t *testing.T, s *service) {
		for _, c := range []struct {
			path, key, body string
			status          int
		}{
			{"/acme/api/orders", "", `{"product": 1, "quantity": 1}`, 400},
			{"/acme/api/orders", "two words", `{"product": 1, "quantity": 1}`, 400},
			{"/acme/api/orders", "k", ``, 400},
			{"/acme/api/orders", "k", `{"product": 1, "quantity": 1} and more`, 400},
			{"/acme/api/orders", "k", `{"product": 1, "quantity": 1}{}`, 400},
			{"/acme/api/orders", "k", `[]`, 400},
			{"/acme/api/orders", "k", `{"product": "1", "quantity": 1}`, 400},
			{"/acme/api/orders", "k", `{"product": 1, "quantity": 1, "price": 0}`, 400},
			{"/acme/api/orders", "k", `{"product": 1, "quantity": 0}`, 422},
			{"/acme/api/orders", "k", `{"product": 1, "quantity": -1}`, 422},
			{"/acme/api/orders", "k", `{"product": 1, "quantity": 1001}`, 422},
			{"/acme/api/orders", "k", `{"product": 6, "quantity": 1}`, 422},
			{"/acme/api/orders", "k", `{"product": 1, "quantity": 6}`, 409},
			{"/acme/api/orders", "k", fmt.Sprintf(`{"product": %70000d, "quantity": 1}`, 1), 413},
			{"/nobody/api/orders", "k", `{"product": 1, "quantity": 1}`, 404},
			{"/webhooks/payments", "", `{"tenant": "acme", "order": 1, "amount": 1}`, 400},
			{"/webhooks/payments", "k", `{}`, 422},
			{"/webhooks/payments", "k", `{"tenant": "acme", "order": 1, "amount": 1}`, 404},
			{"/webhooks/payments", "k", `{"tenant": "acme", "order": 1, "amount": 0}`, 422},
			{"/webhooks/payments", "k", `{"tenant": "acme", "order": 1, "amount": 9223372036854775807}`, 422},
		} {
			a := s.do("POST", c.path, c.key, "application/json", c.body)
			var problem struct{ Error string }
			if err := json.Unmarshal([]byte(a.body), &problem); a.status != c.status || err != nil || problem.Error == "" {
				t.Errorf("%s %.70s: got %d %s, want %d and an error in JSON", c.path, c.body, a.status, a.body, c.status)
			}
			if strings.Contains(problem.Error, "Go ") {
				t.Errorf("%.70s: the answer names types of Go: %s", c.body, problem.Error)
			}
		}
		equal(t, "stats", s.stats(), shop.Stats{Stock: 50, Initial: 50})
		equal(t, "keys", s.number("SELECT count(*) FROM idempotency_keys"), 0)
	})
}

// A body that is too large, or not as HTTP has it, is the client's mistake.
func TestBrokenBody(t *testing.T) {
	s := onSQLite(t, 5)
	for _, path := range []string{"/acme/api/orders", "/acme/orders", "/webhooks/payments", "/provider/pay"} {
		kind := "application/json"
		if path == "/acme/orders" || path == "/provider/pay" {
			kind = "application/x-www-form-urlencoded"
		}
		head := "POST " + path + " HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: k\r\nContent-Type: " + kind + "\r\n"
		for body, want := range map[string]int{
			"Transfer-Encoding: chunked\r\n\r\nno number\r\n":             400,
			"Content-Length: 70000\r\n\r\n" + strings.Repeat(" ", 70_000): 413,
		} {
			conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			conn.SetDeadline(time.Now().Add(time.Minute))
			if _, err := io.WriteString(conn, head+body); err != nil {
				t.Fatal(err)
			}
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			conn.Close()
			if err != nil {
				t.Errorf("%s %.40q: %v", path, body, err)
			} else if res.StatusCode != want {
				t.Errorf("%s %.40q: got %s, want %d", path, body, res.Status, want)
			}
		}
	}
	equal(t, "stats", s.stats(), shop.Stats{Stock: 50, Initial: 50})
}

// What the provider sends twice is booked once; another payment is another one.
func TestWebhookTwice(t *testing.T) {
	onBoth(t, 5, func(t *testing.T, s *service) {
		s.order("acme", "k", `{"product": 3, "quantity": 2}`).is(t, 201)
		id := s.number("SELECT id FROM orders")
		event := fmt.Sprintf(`{"tenant": "acme", "order": %d, "amount": 450}`, id)
		send := func(key string) answer { return s.do("POST", "/webhooks/payments", key, "application/json", event) }
		received := func() int64 { return s.number("SELECT received FROM payments") }

		equal(t, "answers of 200", each(6, func(int) answer { return send("event-1") })[200], 6)
		send("event-1").is(t, 200)
		equal(t, "received", received(), 450)
		s.get(fmt.Sprintf("/acme/api/orders/%d", id)).has(t, `"payment":"pending"`) // half of it
		send("event-2").is(t, 200)
		equal(t, "received", received(), 900)
		s.get(fmt.Sprintf("/acme/api/orders/%d", id)).has(t, `"payment":"paid"`)
	})
}
