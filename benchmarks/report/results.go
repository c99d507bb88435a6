package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// results are the samples by database, work (with its group), contender and unit,
// in the order of the rounds.
type results struct {
	config map[string]string // what the files say about the machine and the day
	growth map[string]string // those of Growth
	values map[id]map[string][]float64
	order  []id // as they were run

	instructions instructions // of the budget
}

type id struct{ database, group, work, by string }

func load(dir string) (*results, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no results in %s", dir)
	}
	r := &results{config: make(map[string]string), growth: make(map[string]string), values: make(map[id]map[string][]float64)}
	for _, name := range names {
		if err := r.read(name); err != nil {
			return nil, err
		}
	}
	r.instructions, err = loadInstructions(filepath.Join(dir, "instructions.csv"))
	return r, err
}

func (r *results) read(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	of := r
	if ofGrowth(name) {
		of = &results{config: r.growth, values: r.values, order: r.order}
		defer func() { r.order = of.order }()
	}
	in := bufio.NewScanner(f)
	for in.Scan() {
		if err := of.line(in.Text()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return in.Err()
}

// line reads a line of go test -bench.
func (r *results) line(line string) error {
	fields := strings.Fields(line)
	if len(fields) == 0 {
		return nil
	}
	name, ok := strings.CutPrefix(fields[0], "Benchmark")
	if !ok {
		if key, value, ok := strings.Cut(line, ": "); ok {
			r.config[key] = value
		}
		return nil
	}
	if i := strings.LastIndexByte(name, '-'); i > strings.LastIndexByte(name, '/') {
		name = name[:i] // GOMAXPROCS
	}
	parts := strings.Split(name, "/")
	if len(parts) != 4 || len(fields)%2 != 0 {
		return fmt.Errorf("what is this? %q", line)
	}
	k := id{parts[1], parts[0], parts[2], strings.TrimPrefix(parts[3], "by=")}
	if r.values[k] == nil {
		r.values[k] = make(map[string][]float64)
		r.order = append(r.order, k)
	}
	for i := 2; i < len(fields); i += 2 {
		v, err := strconv.ParseFloat(fields[i], 64)
		if err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
		r.values[k][fields[i+1]] = append(r.values[k][fields[i+1]], v)
	}
	return nil
}

func median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	n := len(v)
	if n%2 == 1 {
		return v[n/2]
	}
	return (v[n/2-1] + v[n/2]) / 2
}

// median returns the median of the rounds.
func (r *results) median(k id, unit string) (float64, bool) {
	v := r.values[k][unit]
	if len(v) == 0 {
		return 0, false
	}
	return median(v), true
}

// ratios returns the ratios of each round, from the least up: what slows the
// machine down for a while slows both.
func (r *results) ratios(k id, than, unit string) []float64 {
	base := k
	base.by = than
	v, w := r.values[k][unit], r.values[base][unit]
	var ratios []float64
	for i := range min(len(v), len(w)) {
		if w[i] != 0 {
			ratios = append(ratios, v[i]/w[i])
		}
	}
	slices.Sort(ratios)
	return ratios
}

// ratio returns their median.
func (r *results) ratio(k id, than, unit string) (float64, bool) {
	ratios := r.ratios(k, than, unit)
	if len(ratios) == 0 {
		return 0, false
	}
	return median(ratios), true
}

func (r *results) has(database string) bool {
	for k := range r.values {
		if k.database == database && k.group != growth {
			return true
		}
	}
	return false
}

func (r *results) hasGrowth() bool { return len(r.growth) > 0 }
