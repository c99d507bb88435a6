// Notes is the example service of sqlreq: pages and an API over SQLite or PostgreSQL, in which every request is one transaction.
//
// Start it with go run -C examples/notes . and open http://localhost:8087/demo. The first start compiles SQLite, which
// takes a minute or more without a word. If the port is taken, choose another: -addr localhost:8099.
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
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/sqlreq/sqlreq/examples/notes/internal/once"
)

func main() {
	if once.IsServer() {
		os.Exit(once.Serve()) // one of the processes of /demo/once
	}
	db := flag.String("db", "notes.db", "SQLite `file`, or postgres://…; :memory: for notes that are gone when the program ends")
	// Loopback: there are no users and no passwords here, so nobody gets in from outside by default.
	addr := flag.String("addr", "localhost:8087", "`address` to listen on")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second interrupt ends the program at once
	if err := run(ctx, os.Stdout, *db, *addr); err != nil {
		slog.Error("notes", "err", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, out io.Writer, path, addr string) (err error) {
	dbs, err := openDatabases(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dbs.close()) }()

	s, err := newServer(dbs)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("%w: if another program has the port, choose one with -addr, such as -addr localhost:8099", err)
	}
	if u, err := url.Parse(path); err == nil && isPostgres(path) {
		path = u.Redacted()
	}
	greet(out, addr, listener.Addr(), path)

	srv := newHTTPServer(s)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		return errors.Join(err, srv.Close()) // whoever is still reading has had their time
	}
	return nil
}

// newHTTPServer bounds how long a client may take: one that dribbles a request or never reads its answer must not
// hold a connection, let alone a transaction. The event stream and the download set limits of their own.
func newHTTPServer(s *server) *http.Server {
	srv := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
	}
	// Shutdown waits for requests to end, and event streams don't by themselves.
	srv.RegisterOnShutdown(s.feed.close)
	return srv
}

func greet(out io.Writer, addr string, bound net.Addr, db string) {
	host, _, _ := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	_, port, _ := net.SplitHostPort(bound.String())
	self := "http://" + net.JoinHostPort(host, port)
	fmt.Fprintf(out, `Notes in %s: %s/
Five failures, by hand and with sqlreq: %s/demo
Exactly once, with a server that is killed: %s/demo/once

  curl -i %s/api/notes -d '{"title": "Milk", "tags": ["shop"]}'
  curl -i %s/api/notes -d '{"title": "Half a note", "tags": ["NOT A TAG"]}'
  curl %s/notes.csv

`, db, self, self, self, self, self, self)
}
