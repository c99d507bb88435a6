// Command instructions counts what the processor carries out for one INSERT, for each program of the budget, and the lines
// of code that it goes through: unlike a time, a count is the same within one or two percent on a busy machine. It needs
// valgrind (Debian: apt-get install valgrind).
//
//	go run -C benchmarks ./instructions    some minutes
//
// It writes results/instructions.csv, of which ./report -render makes a table.
package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/sqlreq/sqlreq/benchmarks"
	"github.com/sqlreq/sqlreq/benchmarks/internal/testbinary"
)

const csvFile = "results/instructions.csv"

// few and many are the requests of two runs of a program: the difference is without what is done once.
const few, many = 200, 1200

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	if _, err := os.Stat("instructions/main.go"); err != nil {
		return errors.New("run it in the folder benchmarks: go run -C benchmarks ./instructions")
	}
	dir, binary, err := testbinary.Build()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	rows := [][]string{{"program", "part", "instructions", "lines"}}
	for _, step := range benchmarks.BudgetSteps("insert") {
		counts, err := perRequest(dir, binary, step.Name)
		if err != nil {
			return fmt.Errorf("%s: %w", step.Name, err)
		}
		for _, p := range parts {
			rows = append(rows, []string{step.Name, p.title, strconv.FormatFloat(counts.instructions[p.title], 'f', 0, 64), strconv.Itoa(len(counts.lines[p.title]))})
		}
	}
	f, err := os.Create(csvFile)
	if err != nil {
		return err
	}
	return errors.Join(csv.NewWriter(f).WriteAll(rows), f.Close())
}

// perRequest returns the counts of a request by part.
func perRequest(dir, binary, program string) (ofParts, error) {
	a, err := count(dir, binary, program, few)
	if err != nil {
		return ofParts{}, err
	}
	b, err := count(dir, binary, program, many)
	return difference(a, b, many-few), err
}

// count runs n requests of a program, and returns the instructions of each function of the process.
func count(dir, binary, program string, n int) (map[string]map[uint64]int64, error) {
	out := filepath.Join(dir, "callgrind.out")
	cmd := exec.Command("valgrind", "--tool=callgrind", "--dump-instr=yes", "--dump-line=no", "--callgrind-out-file="+out, binary, "-test.run=^$",
		"-test.bench=^BenchmarkProgram$/^sqlite$/^insert$/^by="+program+"$", "-test.benchtime="+strconv.Itoa(n)+"x")
	// One thread, and no collection, which would come at another request each time.
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1", "GOGC=off")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("valgrind: %w\n%s", err, text)
	}
	f, err := os.Open(out)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return selfCosts(f)
}
