// Command report runs the benchmarks, interleaved so that a noisy machine hits
// all contenders alike, and writes what came of them: the raw results into
// results/, the tables into README.md, the plots into plots/.
//
//	go run -C benchmarks ./report          15 minutes at most
//	go run -C benchmarks ./report -quick   2 minutes
//	go run -C benchmarks ./report -group Once  one Benchmark function again; the other results stay
//	go run -C benchmarks ./report -group Growth  a service as it grows, 8 minutes at most; nothing else measures it
//	go run -C benchmarks ./report -render  tables and plots of the results that are there
//
// PostgreSQL takes part if SQLREQ_BENCH_POSTGRES is the DSN of a database, or with -postgres, which starts a server.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/sqlreq/sqlreq/benchmarks"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// growth is the group that is measured apart from the others, and has results of its own.
const growth = "Growth"

func main() {
	rounds := flag.Int("rounds", 0, "how often everything is measured; 0: 7 times, each about 100 s, and Growth 3 times")
	quick := flag.Bool("quick", false, "one round, for a first look")
	render := flag.Bool("render", false, "run nothing, write the tables and plots again")
	group := flag.String("group", "", "run the benchmarks of this function only, and keep the other results")
	postgres := flag.Bool("postgres", false, "start a PostgreSQL server for the benchmarks")
	flag.Parse()
	switch {
	case *quick:
		*rounds = 1
	case *rounds > 0:
	case *group == growth:
		*rounds = 3
	default:
		*rounds = 7
	}
	err := error(nil)
	if *postgres {
		err = startPostgres()
	}
	if err == nil {
		err = report(*rounds, *render, *group)
	}
	if err := errors.Join(err, servers.Stop()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// startPostgres starts a server that ends with the program.
func startPostgres() error {
	p, err := servers.StartPostgres()
	if err != nil {
		return err
	}
	return os.Setenv(benchmarks.PostgresEnv, p.DSN)
}

func report(rounds int, render bool, group string) error {
	if _, err := os.Stat("report/main.go"); err != nil {
		return errors.New("run it in the folder benchmarks: go run -C benchmarks ./report")
	}
	if !render {
		all, budget := benchmarks.All(os.Getenv(benchmarks.PostgresEnv)), time.Duration(rounds)*100*time.Second
		all = slices.DeleteFunc(all, func(b benchmarks.Benchmark) bool {
			return b.Group != group && (group != "" || b.Group == growth)
		})
		switch group {
		case "":
		case growth:
			budget = time.Duration(rounds) * 150 * time.Second
		case "Budget": // of which one percent is to be seen
			budget = time.Duration(rounds) * 40 * time.Second
		default:
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
	if err := writePlots(r, "plots"); err != nil {
		return err
	}
	if !r.hasGrowth() {
		return nil
	}
	if err := between("GROWTH.md", growthTables(r)); err != nil {
		return err
	}
	return growthPlots(r, "plots")
}
