package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/sqlreq/sqlreq/benchmarks"
)

// instructions are what ./instructions has counted for an INSERT: by part, and for each part by program.
type instructions struct {
	parts []string
	count map[string]map[string]int
}

func loadInstructions(name string) (in instructions, err error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return in, nil
	}
	if err != nil {
		return in, err
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return in, err
	}
	in.count = make(map[string]map[string]int)
	for _, row := range rows[1:] {
		n, err := strconv.Atoi(row[2])
		if err != nil {
			return in, fmt.Errorf("%s: %w", name, err)
		}
		if in.count[row[1]] == nil {
			in.parts = append(in.parts, row[1])
			in.count[row[1]] = make(map[string]int)
		}
		in.count[row[1]][row[0]] = n
	}
	return in, nil
}

// table shows the parts, and what they are together.
func (in instructions) table() string {
	if len(in.parts) == 0 {
		return ""
	}
	steps := benchmarks.BudgetSteps("insert")
	var b strings.Builder
	b.WriteString("\nWhere it goes, in instructions of the processor (`go run -C benchmarks ./instructions`). The columns are the lines above:\n\n|")
	for _, step := range steps {
		fmt.Fprintf(&b, " | %s", step.Name)
	}
	b.WriteString(" |\n| ---" + strings.Repeat(" | ---:", len(steps)) + " |\n")
	all := make(map[string]int)
	for _, part := range in.parts {
		fmt.Fprintf(&b, "| %s", part)
		for _, step := range steps {
			n := in.count[part][step.Name]
			all[step.Name] += n
			fmt.Fprintf(&b, " | %d", n)
		}
		b.WriteString(" |\n")
	}
	b.WriteString("| together")
	for _, step := range steps {
		fmt.Fprintf(&b, " | %d", all[step.Name])
	}
	b.WriteString(" |\n| of the first")
	for _, step := range steps {
		fmt.Fprintf(&b, " | %.3f", float64(all[step.Name])/float64(all[steps[0].Name]))
	}
	return b.String() + " |\n"
}
