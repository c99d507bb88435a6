// Orders is what a real service on sqlreq looks like: two shops that sell, with stock, payments, jobs and an outbox, on
// PostgreSQL or, without a server, on SQLite.
//
// Start it with go run -C examples/orders . and open the address that it prints.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/sqlreq/sqlreq/examples/orders/internal/postgres"
	"github.com/sqlreq/sqlreq/examples/orders/internal/processes"
	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
	"github.com/sqlreq/sqlreq/examples/orders/internal/sqlite"
	"github.com/sqlreq/sqlreq/examples/orders/internal/telemetry"
)

// config is what the flags say.
type config struct {
	addr, db, dsn, reader, otel string
	processes                   int
	stock                       int64
}

func main() {
	var c config
	// Loopback: there are no users and no passwords here, so nobody gets in from outside by default.
	flag.StringVar(&c.addr, "addr", "localhost:8081", "`address` to listen on")
	flag.StringVar(&c.db, "db", "orders.db", "SQLite `file`; :memory: for one that is gone when the program ends")
	flag.StringVar(&c.dsn, "dsn", "", "PostgreSQL instead: `postgres://…` of the primary")
	flag.StringVar(&c.reader, "reader", "", "`postgres://…` of a standby, for what only reads")
	flag.IntVar(&c.processes, "processes", 1, "how many processes serve, behind one port")
	flag.Int64Var(&c.stock, "stock", 100, "how many of each product a new database has")
	flag.StringVar(&c.otel, "otel", "off", "where traces go: off or stdout")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second interrupt ends the program at once
	if err := run(ctx, os.Stdout, c); err != nil {
		slog.Error("orders", "error", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, out io.Writer, c config) error {
	switch {
	case c.processes < 1:
		return fmt.Errorf("-processes %d: it takes one at least", c.processes)
	case c.processes > 1 && c.dsn == "" && c.db == sqlite.InMemory:
		return errors.New("-processes: a database in memory belongs to one process; name a file by -db, or PostgreSQL by -dsn")
	case c.reader != "" && c.dsn == "":
		return errors.New("-reader: a standby needs its primary, by -dsn")
	case processes.IsChild():
		ctx, listener, err := processes.Inherit(ctx)
		if err != nil {
			return err
		}
		return serve(ctx, out, c, listener)
	}
	listener, err := net.Listen("tcp", c.addr)
	if err != nil {
		return fmt.Errorf("%w; choose another address by -addr, with port 0 for any that is free", err)
	}
	greet(out, c, listener.Addr())
	if c.processes == 1 {
		return serve(ctx, out, c, listener)
	}
	// A database that is not there, or a mistake in its address, ends the program here, not each child again and again.
	store, err := open(ctx, c)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	if err := store.Close(); err != nil {
		return errors.Join(err, listener.Close())
	}
	return processes.Run(ctx, c.processes, listener.(*net.TCPListener))
}

// open chooses between the two stores.
func open(ctx context.Context, c config) (shop.Store, error) {
	if c.dsn != "" {
		return postgres.Open(ctx, c.dsn, c.reader, c.stock)
	}
	return sqlite.Open(ctx, c.db, c.stock)
}

// serve is one process: it answers requests and works jobs until ctx ends.
func serve(ctx context.Context, out io.Writer, c config, listener net.Listener) (err error) {
	store, err := open(ctx, c)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	otel, err := telemetry.New(c.otel, out)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer func() { err = errors.Join(err, otel.Close(context.WithoutCancel(ctx))) }()
	s, err := newServer(store, otel)
	if err != nil {
		return errors.Join(err, listener.Close())
	}

	ctx, cancel := context.WithCancel(ctx) // also when the server fails
	defer cancel()
	worked := make(chan error, 1)
	go func() {
		defer cancel()
		worked <- store.Work(ctx, s.reg, s.shop.Confirm)
	}()
	go s.clean(ctx)

	srv := &http.Server{
		Handler: s.handler(),
		// A client that dribbles a request or never reads its answer must not hold a connection for ever.
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
	}
	served := make(chan error, 1)
	go func() {
		defer cancel()
		served <- srv.Serve(listener)
	}()
	<-ctx.Done()
	return errors.Join(shutdown(srv), <-worked, ignoreClosed(<-served))
}

// shutdown waits for the requests under way, for 10 seconds.
func shutdown(srv *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		return errors.Join(err, srv.Close()) // whoever is still reading has had their time
	}
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// remembered is how long the answer to a key is kept: longer than any client repeats.
const remembered = 7 * 24 * time.Hour

// clean forgets old answers, once an hour.
func (s *server) clean(ctx context.Context) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		if err := s.store.Clean(ctx, s.once, remembered); err != nil && ctx.Err() == nil {
			slog.ErrorContext(ctx, "orders: clean", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func greet(out io.Writer, c config, bound net.Addr) {
	host, _, _ := net.SplitHostPort(c.addr)
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	_, port, _ := net.SplitHostPort(bound.String())
	self := "http://" + net.JoinHostPort(host, port)
	fmt.Fprintf(out, `Orders: %s/

  curl -i %s/acme/api/orders -H 'Idempotency-Key: first' -d '{"product": 1, "quantity": 2}'
  curl %s/api/stats

`, self, self, self)
}
