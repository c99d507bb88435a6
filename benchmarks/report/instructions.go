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
	lines map[string]map[string]int // of code
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
	in.count, in.lines = make(map[string]map[string]int), make(map[string]map[string]int)
	for _, row := range rows[1:] {
		program, part := row[0], row[1]
		if in.count[part] == nil {
			in.parts = append(in.parts, part)
			in.count[part], in.lines[part] = make(map[string]int), make(map[string]int)
		}
		count, err := strconv.Atoi(row[2])
		if err != nil {
			return in, fmt.Errorf("%s: %w", name, err)
		}
		lines, err := strconv.Atoi(row[3])
		if err != nil {
			return in, fmt.Errorf("%s: %w", name, err)
		}
		in.count[part][program], in.lines[part][program] = count, lines
	}
	return in, nil
}

// linesOf returns the lines of code that a request of the program goes through.
func (in instructions) linesOf(program string) (n int) {
	for _, part := range in.parts {
		n += in.lines[part][program]
	}
	return n
}

// tables show the parts, and what they are together.
func (in instructions) tables() string {
	if len(in.parts) == 0 {
		return ""
	}
	return "\nWhere it goes, in instructions of the processor (`go run -C benchmarks ./instructions`). The columns are the lines above:\n\n" + in.table(in.count) +
		"\nAnd in lines of code, each of the 64 bytes that a processor fetches at once:\n\n" + in.table(in.lines)
}

func (in instructions) table(count map[string]map[string]int) string {
	steps := benchmarks.BudgetSteps("insert")
	var b strings.Builder
	b.WriteString("|")
	for _, step := range steps {
		fmt.Fprintf(&b, " | %s", step.Name)
	}
	b.WriteString(" |\n| ---" + strings.Repeat(" | ---:", len(steps)) + " |\n")
	all := make(map[string]int)
	for _, part := range in.parts {
		fmt.Fprintf(&b, "| %s", part)
		for _, step := range steps {
			n := count[part][step.Name]
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
