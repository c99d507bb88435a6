package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
)

// The event is in the outbox if and only if the order is there, and says what is stored.
func TestOutbox(t *testing.T) {
	onBoth(t, 5, func(t *testing.T, s *service) {
		s.order("acme", "k1", `{"product": 3, "quantity": 2}`).is(t, 201)
		var payload string
		if err := s.judge.QueryRow("SELECT payload FROM outbox WHERE tenant = 'acme' AND topic = 'order.placed'").Scan(&payload); err != nil {
			t.Fatal(err)
		}
		var event map[string]int64
		if err := json.Unmarshal([]byte(payload), &event); err != nil {
			t.Fatal(err)
		}
		equal(t, "the event's order", event["order"], s.number("SELECT id FROM orders"))
		equal(t, "the event's total", event["total"], 900)

		// No event, no order.
		if s.postgres {
			execute(t, s.judge, "ALTER TABLE outbox ADD CHECK (topic <> 'order.placed') NOT VALID")
		} else {
			execute(t, s.judge, "CREATE TRIGGER full BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'full'); END")
		}
		before := s.stats()
		s.order("acme", "k2", `{"product": 3, "quantity": 2}`).is(t, 500)
		equal(t, "stats", s.stats(), before)
		equal(t, "keys", s.number("SELECT count(*) FROM idempotency_keys"), 1)
	})
}

// refuseCommits makes each COMMIT with an order fail.
func (s *service) refuseCommits() {
	s.t.Helper()
	if s.postgres {
		execute(s.t, s.judge, "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$",
			"CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()")
		return
	}
	execute(s.t, s.judge, "CREATE TABLE orphans (id INTEGER REFERENCES orders (id) DEFERRABLE INITIALLY DEFERRED)",
		"CREATE TRIGGER refuse AFTER INSERT ON orders BEGIN INSERT INTO orphans VALUES (-1); END")
}

// A COMMIT that fails is never answered with success, neither to a program nor to a browser, and leaves nothing.
func TestFailedCommit(t *testing.T) {
	onBoth(t, 5, func(t *testing.T, s *service) {
		s.work()
		s.refuseCommits()
		a := s.order("acme", "k1", `{"product": 1, "quantity": 1}`).is(t, 500)
		equal(t, "Location", a.header.Get("Location"), "")
		a.has(t, `{"error":`)
		s.form("/acme/orders", keyField, "k2", "product", "1", "quantity", "1").is(t, 500).has(t, "Nothing of this request was kept.")
		equal(t, "stats", s.stats(), shop.Stats{Stock: 50, Initial: 50})
		equal(t, "keys", s.number("SELECT count(*) FROM idempotency_keys"), 0)
	})
}

// attempts are the outcomes of a request's transactions, by attempt.
func (s *service) attempts(outcome string) (n int) {
	for _, span := range s.spans.GetSpans() {
		for _, attribute := range span.Attributes {
			if attribute.Key == "sqlreq.outcome" && attribute.Value.AsString() == outcome {
				n++
			}
		}
	}
	return n
}

// A conflict of serializable transactions is run again, and the client does not notice.
func TestConflictIsRetried(t *testing.T) {
	s := onPostgres(t, 5)
	other, err := s.judge.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback()
	if _, err := other.Exec("UPDATE products SET stock = stock - 1 WHERE tenant = 'acme' AND id = 1"); err != nil {
		t.Fatal(err)
	}
	answered := make(chan answer, 1)
	go func() { answered <- s.order("acme", "k1", `{"product": 1, "quantity": 2}`) }()
	eventually(t, "the request waits for the row", func() bool {
		return s.number("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") > 0
	})
	if err := other.Commit(); err != nil {
		t.Fatal(err)
	}
	(<-answered).is(t, 201)
	equal(t, "left", s.number("SELECT stock FROM products WHERE tenant = 'acme' AND id = 1"), 2)
	equal(t, "attempts rolled back", s.attempts("rolled_back"), 1)
	equal(t, "attempts committed", s.attempts("committed"), 1)
}

// A job is there if and only if its order is, and it is done once, however many work.
func TestJobs(t *testing.T) {
	onBoth(t, 100, func(t *testing.T, s *service) {
		s.work()
		s.work() // another one, as in another process
		got := each(12, func(i int) answer {
			return s.order("globex", fmt.Sprint("k", i), fmt.Sprintf(`{"product": %d, "quantity": 1}`, i%7)) // 0 and 6 there are not
		})
		equal(t, "orders", int64(got[201]), s.stats().Orders)
		equal(t, "refused", got[422], 3)
		eventually(t, "all confirmed", func() bool { return s.number("SELECT count(*) FROM orders WHERE confirmed = 0") == 0 })
		equal(t, "confirmed twice", s.number("SELECT count(*) FROM orders WHERE confirmed <> 1"), 0)
		equal(t, "jobs", s.stats().Jobs, int64(got[201]))
	})
}

// A job that fails after it has written is rolled back, and done again.
func TestJobThatFails(t *testing.T) {
	onBoth(t, 5, func(t *testing.T, s *service) {
		s.order("acme", "k1", `{"product": 1, "quantity": 1}`).is(t, 201)
		var attempts atomic.Int64
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() {
			done <- s.server.store.Work(ctx, s.server.reg, func(ctx context.Context, job shop.Job) error {
				if err := s.server.shop.Confirm(ctx, job); err != nil {
					return err
				}
				if attempts.Add(1) == 1 {
					return errors.New("the first time")
				}
				return nil
			})
		}()
		eventually(t, "a second attempt that commits", func() bool {
			return attempts.Load() == 2 && s.number("SELECT confirmed FROM orders") > 0
		})
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		equal(t, "confirmed", s.number("SELECT confirmed FROM orders"), 1)
	})
}
