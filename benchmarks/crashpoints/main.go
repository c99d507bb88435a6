// Command crashpoints kills a server at each point of a request that makes an order, lets the client repeat the
// request at the next server, and counts the orders: without keys, with keys in a second transaction, and with
// package idempotency. The servers are processes on a SQLite file.
//
//	go run -C benchmarks ./crashpoints            a hundred kills at each point, some minutes
//	go run -C benchmarks ./crashpoints -kills 3   for a first look
//	go run -C benchmarks ./crashpoints -render    the figure again, from what was counted
//
// It writes results/crashpoints.csv, and the figure into docs/ and into the notes, whose /demo/once shows it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
)

const csvFile = "results/crashpoints.csv"

// svgFiles are copies of one figure: the documents are read where the module is, the notes carry theirs with them.
var svgFiles = []string{"../docs/crashpoints.svg", "../examples/notes/static/crashpoints.svg"}

func main() {
	if isServer() {
		os.Exit(serveOrders())
	}
	kills := flag.Int("kills", 100, "how often a server is killed at each point")
	render := flag.Bool("render", false, "kill nobody, draw the figure again")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *kills, *render); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kills int, render bool) error {
	if _, err := os.Stat("crashpoints/main.go"); err != nil {
		return errors.New("run it in the folder benchmarks: go run -C benchmarks ./crashpoints")
	}
	if !render {
		rows, err := measure(ctx, kills)
		if err != nil {
			return err
		}
		if err := writeCSV(csvFile, rows); err != nil {
			return err
		}
	}
	rows, err := readCSV(csvFile)
	if err != nil {
		return err
	}
	svg, err := drawFigure(rows)
	if err != nil {
		return err
	}
	for _, name := range svgFiles {
		if err := os.WriteFile(name, svg, 0o666); err != nil {
			return err
		}
	}
	return nil
}
