// Package shop is what the service does: it takes orders and payments. Its functions run in the transaction of the
// context that they are given, whether that is a request's or a job's, and know no database.
package shop

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/orders/internal/tenant"
)

// The errors that a client can do something about. Each has the status of its answer, and rolls back.
var (
	ErrNoProduct = sqlreq.Errorf(http.StatusUnprocessableEntity, "There is no such product.")
	ErrQuantity  = sqlreq.Errorf(http.StatusUnprocessableEntity, "The quantity must be from 1 to %d.", maxQuantity)
	ErrSoldOut   = sqlreq.Errorf(http.StatusConflict, "There are not that many left.")
	ErrNoOrder   = sqlreq.Errorf(http.StatusNotFound, "There is no such order.")
	ErrAmount    = sqlreq.Errorf(http.StatusUnprocessableEntity, "The amount must be from 1 to %d.", maxAmount)
)

const (
	maxQuantity = 1000
	maxAmount   = 1_000_000_000_000 // in cents; what an order has received is a sum of these, and must not overflow
)

// Shop takes orders and payments.
type Shop struct{ Store Store }

// PlaceOrder takes the goods out of the stock and writes the order, its payment, the job that confirms it and the event
// that tells others of it: all of them or, if anything fails until COMMIT has succeeded, nothing.
func (s Shop) PlaceOrder(ctx context.Context, product, quantity int64) (Order, error) {
	if quantity < 1 || quantity > maxQuantity {
		return Order{}, ErrQuantity
	}
	price, err := s.Store.TakeStock(ctx, product, quantity)
	if err != nil {
		return Order{}, err
	}
	order := Order{Tenant: tenant.Of(ctx), Product: product, Quantity: quantity, Total: price * quantity}
	if order.ID, err = s.Store.AddOrder(ctx, order); err != nil {
		return Order{}, err
	}
	if err := s.Store.AddPayment(ctx, order.ID, order.Total); err != nil {
		return Order{}, err
	}
	if err := s.Store.AddJob(ctx, Job{Tenant: order.Tenant, Order: order.ID}); err != nil {
		return Order{}, err
	}
	return order, s.announce(ctx, order)
}

// announce writes the event of an order to the outbox as the last thing before COMMIT: what reads the outbox in the order
// of its ids waits less for a transaction that took a lower id and has not ended. That reader, which sends the events on,
// is not a part of this example.
func (s Shop) announce(ctx context.Context, order Order) error {
	payload, err := json.Marshal(map[string]int64{
		"order": order.ID, "product": order.Product, "quantity": order.Quantity, "total": order.Total,
	})
	if err != nil {
		return err
	}
	return sqlreq.BeforeCommit(ctx, func(ctx context.Context) error {
		return s.Store.AddEvent(ctx, "order.placed", payload)
	})
}

// Confirm is the job of an order. It runs in the transaction in which the job is marked as done.
func (s Shop) Confirm(ctx context.Context, job Job) error {
	return s.Store.Confirm(ctx, job.Order)
}

// Receive books what the payment provider says to have received. It adds: that a repeated message does not add twice is
// the work of package idempotency, and would show here if it failed.
func (s Shop) Receive(ctx context.Context, order, amount int64) error {
	if amount < 1 || amount > maxAmount {
		return ErrAmount
	}
	return s.Store.Receive(ctx, order, amount)
}

// Money writes cents as an amount.
func Money(cents int64) string { return fmt.Sprintf("€ %d.%02d", cents/100, cents%100) }
