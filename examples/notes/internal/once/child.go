package once

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/sqlreq/sqlreq/examples/notes/internal/watched"
)

// A server process is this program again, with these in its environment.
const (
	envWay  = "NOTES_ONCE_WAY"  // hand or ours
	envFile = "NOTES_ONCE_FILE" // the database
	envStop = "NOTES_ONCE_STOP" // "yes": stop after the first COMMIT of an order, and wait to be killed
)

// IsServer reports whether this process was started by [Run] to be one of its servers. Then the program has nothing
// to do but to call [Serve].
func IsServer() bool { return os.Getenv(envWay) != "" }

// Serve serves orders until the process that has started this one ends, or kills it, and returns the exit code.
func Serve() int {
	go func() {
		io.Copy(io.Discard, os.Stdin) // ends with the process at its other end, however that ends
		os.Exit(0)
	}()
	if err := serve(os.Getenv(envWay), os.Getenv(envFile), os.Getenv(envStop) == "yes"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func serve(way, file string, stop bool) error {
	var ready atomic.Bool
	afterCommit := func() {
		if stop && ready.Load() {
			// The order is committed, and nobody was told. Here the process dies.
			fmt.Println(committed)
			select {}
		}
	}
	db, err := watched.Open(file, schema, 4, afterCommit)
	if err != nil {
		return err
	}
	h, err := handler(context.Background(), way, db.DB)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ready.Store(true)
	fmt.Println(listening, l.Addr())
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	return srv.Serve(l)
}

// What a server process tells on its standard output.
const (
	listening = "listening"
	committed = "committed"
)
