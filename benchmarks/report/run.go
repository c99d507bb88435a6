package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/sqlreq/sqlreq/benchmarks"
	"github.com/sqlreq/sqlreq/benchmarks/internal/testbinary"
)

// turns is how many times as long as others a comparison in turns takes: three
// contenders, and a median of many short measurements.
const turns = 6

// run runs every benchmark, or those of a group, once in each round, those of one work one after the
// other, in another order each time. Each has a process of its own: none finds
// the heap that another has left.
func run(all []benchmarks.Benchmark, group string, budget time.Duration, rounds int) error {
	dir, binary, err := testbinary.Build()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	files, err := newFiles("results", rounds, group)
	if err != nil {
		return err
	}
	defer files.close()

	benchtime := share(all, budget, rounds)
	start := time.Now()
	for round := range rounds {
		for _, work := range works(all) {
			fmt.Fprintf(os.Stderr, "%4.0f s: round %d of %d, %s on %s\n", time.Since(start).Seconds(), round+1, rounds, work[0].Work, work[0].Database)
			for i := range work {
				b := work[(i+round)%len(work)]
				out, err := runOne(binary, b, benchtime)
				if err != nil {
					return err
				}
				if err := files.add(fileOf(b), out); err != nil {
					return err
				}
			}
		}
	}
	fmt.Fprintf(os.Stderr, "%4.0f s: done\n", time.Since(start).Seconds())
	return nil
}

// share divides the budget. What is not b.Loop takes about twice the time it is
// given; a process takes some to start; slow clients and the stream take theirs.
func share(all []benchmarks.Benchmark, budget time.Duration, rounds int) time.Duration {
	left := budget / time.Duration(rounds)
	parts := 0
	for _, b := range all {
		left -= 60 * time.Millisecond
		switch b.Group {
		case "SlowClients":
			left -= 2 * time.Second
		case "Stream":
			left -= 4 * time.Second
		case growth:
			left -= growthOverhead(b)
			parts++
		case "Server":
			parts += 2
		case "Turns", "Budget", "Once":
			parts += turns
		default:
			parts++
		}
	}
	return max(left/time.Duration(max(parts, 1)), 20*time.Millisecond).Round(time.Millisecond)
}

// growthOverhead is what a service takes beside the time that it is given: to be set up,
// once more for the look at its memory, and until the last request is answered. What a
// request of a second or so takes is more than that time anyway.
func growthOverhead(b benchmarks.Benchmark) time.Duration {
	d := 100 * time.Millisecond
	switch b.Work {
	case "clients=512", "savepoints=10000", "answer=1GiB":
		d += 2 * time.Second
	}
	return d
}

// fileOf is the name of the file for results.
func fileOf(b benchmarks.Benchmark) string {
	if b.Group == growth {
		return "growth-" + b.Database
	}
	return b.Database
}

// works are the benchmarks by work.
func works(all []benchmarks.Benchmark) [][]benchmarks.Benchmark {
	var works [][]benchmarks.Benchmark
	for i, b := range all {
		if i == 0 || b.Group != all[i-1].Group || b.Work != all[i-1].Work || b.Database != all[i-1].Database {
			works = append(works, nil)
		}
		works[len(works)-1] = append(works[len(works)-1], b)
	}
	return works
}

func runOne(binary string, b benchmarks.Benchmark, benchtime time.Duration) ([]byte, error) {
	at := benchtime.String()
	switch b.Group {
	case "SlowClients":
		at = "1x" // a fixed time
	case "Stream":
		at = "8x" // a fixed size, of which one says little
	case "Turns", "Budget", "Once":
		at = (turns * benchtime).String()
	}
	pattern := fmt.Sprintf("^Benchmark%s$/^%s$/^%s$/^by=%s$", b.Group, b.Database, b.Work, b.By)
	cmd := exec.Command(binary, "-test.run=^$", "-test.bench="+pattern, "-test.benchtime="+at)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s%s", b.Name(), err, out, stderr.Bytes())
	}
	return out, nil
}

// files are the raw results by name, in the format of go test -bench.
type files struct {
	dir    string
	header string
	open   map[string]*os.File
}

// newFiles removes what is measured again. With a group the results of the others stay, and what
// the files say about the machine and the day is about those, except for Growth, which has files of its own.
func newFiles(dir string, rounds int, group string) (*files, error) {
	if group != "" && group != growth {
		return keepFiles(dir, group)
	}
	old, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return nil, err
	}
	for _, name := range old {
		if ofGrowth(name) == (group == growth) {
			if err := os.Remove(name); err != nil {
				return nil, err
			}
		}
	}
	header := fmt.Sprintf("go: %s\ncpus: %d\ndate: %s\nrounds: %d\n", runtime.Version(), runtime.NumCPU(), time.Now().UTC().Format(time.DateOnly), rounds)
	return &files{dir: dir, header: header, open: make(map[string]*os.File)}, os.MkdirAll(dir, 0o777)
}

// ofGrowth reports whether a file has results of Growth.
func ofGrowth(name string) bool { return strings.HasPrefix(filepath.Base(name), "growth-") }

func keepFiles(dir, group string) (*files, error) {
	f := &files{dir: dir, open: make(map[string]*os.File)}
	names, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if ofGrowth(name) {
			continue
		}
		old, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		file, err := os.Create(name)
		if err != nil {
			return nil, err
		}
		f.open[strings.TrimSuffix(filepath.Base(name), ".txt")] = file
		for line := range strings.Lines(string(old)) {
			if strings.HasPrefix(line, "Benchmark"+group+"/") {
				continue
			}
			if _, err := file.WriteString(line); err != nil {
				return nil, err
			}
		}
	}
	return f, nil
}

// add keeps the result, and what the first one says about the machine.
func (f *files) add(name string, out []byte) error {
	file := f.open[name]
	first := file == nil
	if first {
		var err error
		if file, err = os.Create(filepath.Join(f.dir, name+".txt")); err != nil {
			return err
		}
		f.open[name] = file
		if _, err := file.WriteString(f.header); err != nil {
			return err
		}
	}
	for line := range strings.Lines(string(out)) {
		switch {
		case strings.HasPrefix(line, "Benchmark"):
		case first && strings.Contains(line, ": "):
		default:
			continue
		}
		if _, err := file.WriteString(line); err != nil {
			return err
		}
	}
	return nil
}

func (f *files) close() {
	for _, file := range f.open {
		_ = file.Close()
	}
}
