package postgres

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/sqlreq/sqlreq/examples/orders/internal/postgres/ordersdb"
	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
)

// queries translate between the shop's types and those that sqlc has generated.
type queries struct{ db *ordersdb.Queries }

func (q *queries) Products(ctx context.Context) ([]shop.Product, error) {
	rows, err := q.db.Products(ctx)
	products := make([]shop.Product, len(rows))
	for i, row := range rows {
		products[i] = shop.Product{ID: row.ID, Name: row.Name, Price: row.Price, Stock: row.Stock}
	}
	return products, err
}

func (q *queries) Order(ctx context.Context, id int64) (shop.Order, error) {
	row, err := q.db.Order(ctx, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return shop.Order{}, shop.ErrNoOrder
	}
	return toOrder(row), err
}

func toOrder(row ordersdb.OrderRow) shop.Order {
	order := shop.Order{
		ID: row.Order.ID, Tenant: row.Order.Tenant, Product: row.Order.Product, Name: row.Name,
		Quantity: row.Order.Quantity, Total: row.Order.Total, State: shop.Placed, Confirmed: row.Order.Confirmed,
		Payment: row.Payment.State, Received: row.Payment.Received, CreatedAt: row.Order.CreatedAt,
	}
	if order.Confirmed > 0 {
		order.State = shop.Confirmed
	}
	return order
}

func (q *queries) TakeStock(ctx context.Context, product, quantity int64) (int64, error) {
	price, err := q.db.TakeStock(ctx, ordersdb.TakeStockParams{ID: product, Quantity: quantity})
	if !errors.Is(err, pgx.ErrNoRows) {
		return price, err
	}
	if there, err := q.db.HasProduct(ctx, product); err != nil {
		return 0, err
	} else if !there {
		return 0, shop.ErrNoProduct
	}
	return 0, shop.ErrSoldOut
}

func (q *queries) AddOrder(ctx context.Context, o shop.Order) (int64, error) {
	return q.db.AddOrder(ctx, ordersdb.AddOrderParams{Product: o.Product, Quantity: o.Quantity, Total: o.Total})
}

func (q *queries) AddPayment(ctx context.Context, order, amount int64) error {
	return q.db.AddPayment(ctx, ordersdb.AddPaymentParams{OrderID: order, Amount: amount})
}

func (q *queries) AddEvent(ctx context.Context, topic string, payload []byte) error {
	return q.db.AddEvent(ctx, ordersdb.AddEventParams{Topic: topic, Payload: payload})
}

func (q *queries) Confirm(ctx context.Context, order int64) error {
	n, err := q.db.Confirm(ctx, order)
	return wantOne(n, err)
}

func (q *queries) Receive(ctx context.Context, order, amount int64) error {
	n, err := q.db.Receive(ctx, ordersdb.ReceiveParams{OrderID: order, Amount: amount})
	return wantOne(n, err)
}

func wantOne(n int64, err error) error {
	if err == nil && n == 0 {
		return shop.ErrNoOrder
	}
	return err
}

func (q *queries) Stats(ctx context.Context) (shop.Stats, error) {
	row, err := q.db.Stats(ctx)
	return shop.Stats(row), err
}

func (q *queries) Stock(ctx context.Context) ([]shop.Product, error) {
	rows, err := q.db.Stock(ctx)
	products := make([]shop.Product, len(rows))
	for i, row := range rows {
		products[i] = shop.Product(row)
	}
	return products, err
}

func (q *queries) LatestOrders(ctx context.Context, n int64) ([]shop.Order, error) {
	rows, err := q.db.LatestOrders(ctx, int32(n))
	orders := make([]shop.Order, len(rows))
	for i, row := range rows {
		orders[i] = toOrder(ordersdb.OrderRow(row))
	}
	return orders, err
}

func (q *queries) LatestJobs(ctx context.Context, n int64) ([]shop.Job, error) {
	rows, err := q.db.LatestJobs(ctx, int32(n))
	jobs := make([]shop.Job, len(rows))
	for i, row := range rows {
		if err := json.Unmarshal(row.Args, &jobs[i]); err != nil {
			return nil, err
		}
		jobs[i].ID, jobs[i].State = row.ID, row.State
	}
	return jobs, err
}
