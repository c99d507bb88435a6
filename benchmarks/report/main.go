// Command report runs the benchmarks, interleaved so that a noisy machine hits
// all contenders alike, and writes what came of them: the raw results into
// results/, the tables into README.md, the plots into plots/.
//
//	go run -C benchmarks ./report          15 minutes at most
//	go run -C benchmarks ./report -quick   2 minutes
//	go run -C benchmarks ./report -group Once  one Benchmark function again; the other results stay
//	go run -C benchmarks ./report -render  tables and plots of the results that are there
//
// PostgreSQL takes part if SQLREQ_BENCH_POSTGRES is the DSN of a database.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/sqlreq/sqlreq/benchmarks"
)

func main() {
	rounds := flag.Int("rounds", 7, "how often everything is measured; a round takes about 100 s")
	quick := flag.Bool("quick", false, "one round, for a first look")
	render := flag.Bool("render", false, "run nothing, write the tables and plots again")
	group := flag.String("group", "", "run the benchmarks of this function only, and keep the other results")
	flag.Parse()
	if *quick {
		*rounds = 1
	}
	if err := report(*rounds, *render, *group); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func report(rounds int, render bool, group string) error {
	if _, err := os.Stat("report/main.go"); err != nil {
		return errors.New("run it in the folder benchmarks: go run -C benchmarks ./report")
	}
	if !render {
		all, budget := benchmarks.All(os.Getenv(benchmarks.PostgresEnv)), time.Duration(rounds)*100*time.Second
		if group != "" {
			all = slices.DeleteFunc(all, func(b benchmarks.Benchmark) bool { return b.Group != group })
			budget = time.Duration(rounds) * 10 * time.Second
		}
		if len(all) == 0 {
			return fmt.Errorf("no benchmarks of the group %q", group)
		}
		if err := run(all, group, budget, rounds); err != nil {
			return err
		}
	}
	r, err := load("results")
	if err != nil {
		return err
	}
	if err := writeTables(r, "README.md"); err != nil {
		return err
	}
	return writePlots(r, "plots")
}
