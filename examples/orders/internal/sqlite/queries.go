package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
	"github.com/sqlreq/sqlreq/examples/orders/internal/tenant"
)

// db runs statements in the transaction of the context that it is given, and begins it when the first one comes.
const db = sqlreq.DefaultKey

// queries are the shop's. SQLite has no row-level security: every query names the tenant, and none may forget it.
type queries struct {
	wake chan struct{} // has room for one: there is a new job
}

func (queries) Products(ctx context.Context) ([]shop.Product, error) {
	return collect(ctx, scanProduct, selectProduct+" WHERE tenant = ? ORDER BY id", tenant.Of(ctx))
}

func (queries) Order(ctx context.Context, id int64) (shop.Order, error) {
	order, err := scanOrder(db.QueryRowContext(ctx, selectOrder+" WHERE orders.tenant = ? AND orders.id = ?", tenant.Of(ctx), id).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return order, shop.ErrNoOrder
	}
	return order, err
}

func (queries) TakeStock(ctx context.Context, product, quantity int64) (price int64, err error) {
	err = db.QueryRowContext(ctx, "UPDATE products SET stock = stock - ?1 WHERE tenant = ?2 AND id = ?3 AND stock >= ?1 RETURNING price",
		quantity, tenant.Of(ctx), product).Scan(&price)
	if !errors.Is(err, sql.ErrNoRows) {
		return price, err
	}
	var there bool
	if err := db.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM products WHERE tenant = ? AND id = ?)",
		tenant.Of(ctx), product).Scan(&there); err != nil {
		return 0, err
	}
	if !there {
		return 0, shop.ErrNoProduct
	}
	return 0, shop.ErrSoldOut
}

func (queries) AddOrder(ctx context.Context, o shop.Order) (int64, error) {
	result, err := db.ExecContext(ctx, "INSERT INTO orders (tenant, product, quantity, total) VALUES (?, ?, ?, ?)",
		tenant.Of(ctx), o.Product, o.Quantity, o.Total)
	if err != nil {
		return 0, err
	}
	return result.LastInsertId()
}

func (queries) AddPayment(ctx context.Context, order, amount int64) error {
	_, err := db.ExecContext(ctx, "INSERT INTO payments (tenant, order_id, amount) VALUES (?, ?, ?)", tenant.Of(ctx), order, amount)
	return err
}

func (queries) AddEvent(ctx context.Context, topic string, payload []byte) error {
	_, err := db.ExecContext(ctx, "INSERT INTO outbox (tenant, topic, payload) VALUES (?, ?, ?)", tenant.Of(ctx), topic, string(payload))
	return err
}

func (queries) Confirm(ctx context.Context, order int64) error {
	return updateOne(ctx, "UPDATE orders SET confirmed = confirmed + 1 WHERE tenant = ? AND id = ?", tenant.Of(ctx), order)
}

func (queries) Receive(ctx context.Context, order, amount int64) error {
	return updateOne(ctx, "UPDATE payments SET received = received + ?1, "+
		"state = CASE WHEN received + ?1 >= amount THEN 'paid' ELSE 'pending' END WHERE tenant = ?2 AND order_id = ?3",
		amount, tenant.Of(ctx), order)
}

func updateOne(ctx context.Context, query string, args ...any) error {
	result, err := db.ExecContext(ctx, query, args...)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n == 1 {
		return err
	}
	return shop.ErrNoOrder
}

func (queries) Stats(ctx context.Context) (s shop.Stats, err error) {
	err = db.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM payments),
		(SELECT count(*) FROM jobs), (SELECT count(*) FROM outbox), (SELECT coalesce(sum(quantity), 0) FROM orders),
		coalesce(sum(stock), 0), coalesce(sum(initial), 0) FROM products`).
		Scan(&s.Orders, &s.Payments, &s.Jobs, &s.Outbox, &s.Sold, &s.Stock, &s.Initial)
	return s, err
}

func (queries) Stock(ctx context.Context) ([]shop.Product, error) {
	return collect(ctx, scanProduct, selectProduct+" ORDER BY tenant, id")
}

func (queries) LatestOrders(ctx context.Context, n int64) ([]shop.Order, error) {
	return collect(ctx, scanOrder, selectOrder+" ORDER BY orders.id DESC LIMIT ?", n)
}

func (queries) LatestJobs(ctx context.Context, n int64) ([]shop.Job, error) {
	return collect(ctx, scanJob, selectJob+" ORDER BY id DESC LIMIT ?", n)
}

const (
	selectProduct = "SELECT tenant, id, name, price, stock, initial FROM products"
	selectOrder   = `SELECT orders.id, orders.tenant, orders.product, products.name, orders.quantity, orders.total,
		orders.confirmed, orders.created_at, payments.state, payments.received
		FROM orders JOIN payments ON payments.order_id = orders.id
		JOIN products ON products.tenant = orders.tenant AND products.id = orders.product`
	selectJob = "SELECT id, tenant, order_id, state FROM jobs"
)

// A scanner makes a T of one row.
type scanner[T any] func(scan func(...any) error) (T, error)

func scanProduct(scan func(...any) error) (p shop.Product, err error) {
	err = scan(&p.Tenant, &p.ID, &p.Name, &p.Price, &p.Stock, &p.Initial)
	return p, err
}

func scanOrder(scan func(...any) error) (o shop.Order, err error) {
	var created int64
	err = scan(&o.ID, &o.Tenant, &o.Product, &o.Name, &o.Quantity, &o.Total, &o.Confirmed, &created, &o.Payment, &o.Received)
	o.CreatedAt, o.State = time.Unix(created, 0), shop.Placed
	if o.Confirmed > 0 {
		o.State = shop.Confirmed
	}
	return o, err
}

func scanJob(scan func(...any) error) (j shop.Job, err error) {
	err = scan(&j.ID, &j.Tenant, &j.Order, &j.State)
	return j, err
}

// collect reads all rows.
func collect[T any](ctx context.Context, scan scanner[T], query string, args ...any) (all []T, err error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		one, err := scan(rows.Scan)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}
