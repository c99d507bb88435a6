//go:build linux

package loadtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/orders/internal/postgres"
	"github.com/sqlreq/sqlreq/examples/orders/internal/postgres/ordersdb"
	"github.com/sqlreq/sqlreq/examples/orders/internal/processes"
	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
	"github.com/sqlreq/sqlreq/examples/orders/internal/tenant"
)

// byHandVariable makes the test program the service with transactions by hand, in as many processes.
const byHandVariable = "ORDERS_BY_HAND"

// byHand is what a service is that has sqlreq and package idempotency for nothing but its jobs: in each handler a
// transaction, a deferred Rollback, the statements, Commit, and then the answer. Its statements, roles, isolation and
// jobs are those of the other one.
type byHand struct {
	DSN   string
	Stock int64
	Keys  bool // answers are kept under their keys, by a second transaction

	pool *pgxpool.Pool
	jobs *river.Client[pgx.Tx]
}

// command starts it.
func (b byHand) command() *exec.Cmd {
	value, err := json.Marshal(b)
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), byHandVariable+"="+string(value))
	return cmd
}

// runByHand is main of its processes.
func runByHand() int {
	var b byHand
	err := json.Unmarshal([]byte(os.Getenv(byHandVariable)), &b)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		defer stop()
		if processes.IsChild() {
			err = b.serve(ctx)
		} else {
			err = b.parent(ctx)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (b *byHand) parent(ctx context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", l.Addr())
	return processes.Run(ctx, processCount, l.(*net.TCPListener))
}

// serve is one process. Jobs are worked as in the other service.
func (b *byHand) serve(ctx context.Context) error {
	ctx, l, err := processes.Inherit(ctx)
	if err != nil {
		return err
	}
	store, err := postgres.Open(ctx, b.DSN, "", b.Stock)
	if err != nil {
		return err
	}
	defer store.Close()
	if b.pool, err = pgxpool.New(ctx, b.DSN); err != nil {
		return err
	}
	defer b.pool.Close()
	if _, err := b.pool.Exec(ctx, "CREATE TABLE IF NOT EXISTS answers (key text PRIMARY KEY, status int NOT NULL, body bytea NOT NULL)"); err != nil {
		var known *pgconn.PgError
		if !errors.As(err, &known) || known.Code != "23505" { // another process creates it at the same time
			return err
		}
	}
	if b.jobs, err = river.NewClient(riverpgxv5.New(b.pool), &river.Config{}); err != nil {
		return err
	}
	reg, err := sqlreq.New(store.Binding())
	if err != nil {
		return err
	}
	reg.Logger = slog.New(slog.DiscardHandler)
	reg.Retry = sqlreq.Retry{Attempts: byHandAttempts, Within: 20 * time.Second, Retryable: store.Retryable}
	worked := make(chan error, 1)
	go func() { worked <- store.Work(ctx, reg, shop.Shop{Store: store}.Confirm) }()
	srv := &http.Server{Handler: b.handler(store)}
	context.AfterFunc(ctx, func() { _ = srv.Shutdown(context.WithoutCancel(ctx)) })
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-worked
}

func (b *byHand) handler(store *postgres.Store) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if err := store.Ping(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("POST /{tenant}/api/orders", func(w http.ResponseWriter, r *http.Request) {
		b.answer(w, r, b.placeOrder)
	})
	mux.HandleFunc("POST /webhooks/payments", func(w http.ResponseWriter, r *http.Request) {
		b.answer(w, r, b.receive)
	})
	return mux
}

// answer answers with the result of do, or with the answer that its key had before.
func (b *byHand) answer(w http.ResponseWriter, r *http.Request, do func(*http.Request) (int, any, error)) {
	ctx := r.Context()
	key := r.URL.Path + " " + r.Header.Get("Idempotency-Key")
	if b.Keys {
		var status int
		var body []byte
		err := b.pool.QueryRow(ctx, "SELECT status, body FROM answers WHERE key = $1", key).Scan(&status, &body)
		if err == nil {
			write(w, status, body)
			return
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	status, result, err := do(r)
	switch {
	case errors.Is(err, shop.ErrSoldOut):
		http.Error(w, err.Error(), http.StatusConflict)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	body, err := json.Marshal(result)
	if err == nil && b.Keys {
		_, err = b.pool.Exec(ctx, "INSERT INTO answers (key, status, body) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", key, status, body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	write(w, status, body)
}

func write(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client has gone
}

// inTx runs fn in a transaction for a tenant, and again after a conflict.
func (b *byHand) inTx(ctx context.Context, name string, fn func(pgx.Tx) error) error {
	for attempt := 1; ; attempt++ {
		err := b.once(ctx, name, fn)
		var conflict *pgconn.PgError
		if err == nil || attempt == byHandAttempts || !errors.As(err, &conflict) || conflict.Code != "40001" && conflict.Code != "40P01" {
			return err
		}
		pause(ctx, rand.N(min(5*time.Millisecond<<min(attempt, 5), 50*time.Millisecond))) // as the other service does
	}
}

const byHandAttempts = 1000

func (b *byHand) once(ctx context.Context, name string, fn func(pgx.Tx) error) error {
	tx, err := b.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.Serializable})
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	if _, err := tx.Exec(ctx, "SELECT set_config('role', 'orders_app', true), set_config('app.tenant', $1, true)", name); err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// confirmArgs are those of the other service's job.
type confirmArgs shop.Job

func (confirmArgs) Kind() string { return "confirm" }

func (b *byHand) placeOrder(r *http.Request) (status int, result any, err error) {
	ctx, name := r.Context(), r.PathValue("tenant")
	if !tenant.Known(name) {
		return 0, nil, fmt.Errorf("no such tenant: %q", name)
	}
	var in struct{ Product, Quantity int64 }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return 0, nil, err
	}
	var order shop.Order
	err = b.inTx(ctx, name, func(tx pgx.Tx) error {
		q := ordersdb.New(tx)
		price, err := q.TakeStock(ctx, ordersdb.TakeStockParams{ID: in.Product, Quantity: in.Quantity})
		if errors.Is(err, pgx.ErrNoRows) {
			return shop.ErrSoldOut
		}
		if err != nil {
			return err
		}
		order = shop.Order{Tenant: name, Product: in.Product, Quantity: in.Quantity, Total: price * in.Quantity}
		if order.ID, err = q.AddOrder(ctx, ordersdb.AddOrderParams{Product: order.Product, Quantity: order.Quantity, Total: order.Total}); err != nil {
			return err
		}
		if err := q.AddPayment(ctx, ordersdb.AddPaymentParams{OrderID: order.ID, Amount: order.Total}); err != nil {
			return err
		}
		if _, err := b.jobs.InsertTx(ctx, tx, confirmArgs{Tenant: name, Order: order.ID}, nil); err != nil {
			return err
		}
		payload, err := json.Marshal(map[string]int64{"order": order.ID, "product": order.Product, "quantity": order.Quantity, "total": order.Total})
		if err != nil {
			return err
		}
		return q.AddEvent(ctx, ordersdb.AddEventParams{Topic: "order.placed", Payload: payload})
	})
	return http.StatusCreated, map[string]int64{"id": order.ID, "product": order.Product, "quantity": order.Quantity, "total": order.Total}, err
}

func (b *byHand) receive(r *http.Request) (status int, result any, err error) {
	var in struct {
		Tenant        string
		Order, Amount int64
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return 0, nil, err
	}
	err = b.inTx(r.Context(), in.Tenant, func(tx pgx.Tx) error {
		_, err := ordersdb.New(tx).Receive(r.Context(), ordersdb.ReceiveParams{OrderID: in.Order, Amount: in.Amount})
		return err
	})
	return http.StatusOK, map[string]bool{"received": true}, err
}
