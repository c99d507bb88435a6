package shop

import (
	"context"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
)

// Store is where the shop is kept. There are two: package sqlite and package postgres. Its first two groups of methods
// run in the transaction of their context and see the rows of its tenant; that they find them by the context alone is why
// no *sql.Tx is handed from function to function.
type Store interface {
	Products(context.Context) ([]Product, error)
	Order(ctx context.Context, id int64) (Order, error) // ErrNoOrder
	// TakeStock takes quantity out of the stock, which is never below 0, and returns the price of one: ErrNoProduct, ErrSoldOut.
	TakeStock(ctx context.Context, product, quantity int64) (price int64, err error)
	AddOrder(context.Context, Order) (id int64, err error)
	AddPayment(ctx context.Context, order, amount int64) error
	AddJob(context.Context, Job) error
	AddEvent(ctx context.Context, topic string, payload []byte) error
	Confirm(ctx context.Context, order int64) error         // ErrNoOrder
	Receive(ctx context.Context, order, amount int64) error // ErrNoOrder

	// These see all tenants, and need a context of tenant.Every.
	Stats(context.Context) (Stats, error)
	Stock(context.Context) ([]Product, error)
	LatestOrders(ctx context.Context, n int64) ([]Order, error)
	LatestJobs(ctx context.Context, n int64) ([]Job, error)

	Binding() sqlreq.Binding      // for the registry
	Dialect() idempotency.Dialect // for idempotency.Once
	Retryable(error) bool         // for sqlreq.Retry
	Ping(context.Context) error

	// Work works jobs until ctx ends, each in a transaction of reg in which it is also marked as done. It returns when
	// none is under way any more.
	Work(ctx context.Context, reg *sqlreq.Registry, do func(context.Context, Job) error) error
	// Clean forgets the answers of requests that nobody will repeat any more.
	Clean(ctx context.Context, once *idempotency.Once, age time.Duration) error
	Close() error
}

// Product is something to buy. Its price is in cents.
type Product struct {
	Tenant  string `json:"-"`
	ID      int64  `json:"id"`
	Name    string `json:"name"`
	Price   int64  `json:"price"`
	Stock   int64  `json:"stock"`
	Initial int64  `json:"-"`
}

// The states of an order, and of its payment.
const (
	Placed    = "placed"
	Confirmed = "confirmed"

	Pending = "pending"
	Paid    = "paid"
)

// Order is an order with its payment. Its total, and what was received for it, are in cents.
type Order struct {
	ID        int64     `json:"id"`
	Tenant    string    `json:"-"`
	Product   int64     `json:"product"`
	Name      string    `json:"-"` // of the product
	Quantity  int64     `json:"quantity"`
	Total     int64     `json:"total"`
	State     string    `json:"state"`
	Confirmed int64     `json:"confirmed"` // how often the job has confirmed it: 0, and then 1
	Payment   string    `json:"payment"`   // the state of the payment
	Received  int64     `json:"received"`
	CreatedAt time.Time `json:"created_at"`
}

// Job is the job to confirm an order.
type Job struct {
	ID     int64  `json:"-"`
	Tenant string `json:"tenant"`
	Order  int64  `json:"order"`
	State  string `json:"-"`
}

// Stats count what is stored, over all tenants. Orders, Payments, Jobs and Outbox are always the same number, and Stock
// and Sold together are Initial.
type Stats struct {
	Orders   int64 `json:"orders"`
	Payments int64 `json:"payments"`
	Jobs     int64 `json:"jobs"` // done ones too
	Outbox   int64 `json:"outbox"`
	Sold     int64 `json:"sold"`
	Stock    int64 `json:"stock"`
	Initial  int64 `json:"initial"`
}

// Assortment is what each tenant sells when its database is new, with as many of each in stock.
func Assortment(stock int64) []Product {
	products := []Product{
		{ID: 1, Name: "Anvil", Price: 8900},
		{ID: 2, Name: "Rocket skates", Price: 14900},
		{ID: 3, Name: "Bird seed", Price: 450},
		{ID: 4, Name: "Giant magnet", Price: 23900},
		{ID: 5, Name: "Tunnel paint", Price: 1290},
	}
	for i := range products {
		products[i].Stock, products[i].Initial = stock, stock
	}
	return products
}

type freshKey struct{}

// Fresh returns a context whose reads must see what was committed before: a standby, which is always a little behind, is
// not asked.
func Fresh(ctx context.Context) context.Context { return context.WithValue(ctx, freshKey{}, true) }

// IsFresh says whether ctx is one of Fresh.
func IsFresh(ctx context.Context) bool { return ctx.Value(freshKey{}) != nil }
