package main

import (
	"fmt"
	"strings"

	"github.com/sqlreq/sqlreq/benchmarks"
)

// inBudget are the works of the budget.
var inBudget = []struct {
	work, title string
	promises    string  // the program that keeps them by hand
	aim         float64 // how many times as long as the first sqlreq should take at most
	promised    float64 // by the contract; 0: nothing
}{
	{"insert", "one INSERT, synchronous=NORMAL", "ended", 1.06, 1.08},
	{"durable", "one INSERT, synchronous=FULL (SQLite's default)", "ended", 1.03, 1.05},
	{"rows", "100 rows read and written one by one into a held response", "ended", 1.04, 1.05},
	{"read", "the same rows in a read-only transaction (`TxOptions`)", "ended", 1.04, 0},
	{"retried", "one INSERT that meets no conflict", "apart", 1.02, 0},
	{"nothing", "no use for the database", "", 1.8, 0},
}

// budget shows what each promise costs who keeps it by hand, and what sqlreq takes with all of them.
func budget(r *results, database string) string {
	var b strings.Builder
	for _, w := range inBudget {
		k := id{database, "Budget", w.work, "sqlreq"}
		if !r.hasWork(k) {
			continue
		}
		at := func(unit string) float64 {
			v, _ := r.median(k, unit)
			return v
		}
		fmt.Fprintf(&b, "%s%s:\n\n| | time | of the first | quartiles | memory | allocations |\n| --- | ---: | ---: | ---: | ---: | ---: |\n", strings.ToUpper(w.title[:1]), w.title[1:])
		for _, step := range benchmarks.BudgetSteps(w.work) {
			fmt.Fprintf(&b, "| %s | %s | %.3f | %.2f to %.2f | %.0f B | %.0f |\n", step.Title, duration([]float64{at(step.Name + "-ns")}), at(step.Name+"-ratio"), at(step.Name+"-low"), at(step.Name+"-high"), at(step.Name+"-B"), at(step.Name+"-allocs"))
		}
		if w.work == "insert" {
			b.WriteString(r.instructions.tables())
		}
		if w.work == "durable" {
			b.WriteString(cold(r.instructions, at("hand-ns"), at("sqlreq-ratio"), w.aim))
		}
		fmt.Fprintf(&b, "\nThe aim is %.2f at most: %s.\n\n", w.aim, reached(w.aim, at("sqlreq-ratio"), at(w.promises+"-ratio")))
	}
	if b.Len() == 0 {
		return ""
	}
	return "### The budget\n\nWhat a request takes whose handler keeps the promises of sqlreq by hand, one more in each line, in turns in one process, beside 64 MiB that are live on the heap. The last line but one is what the promises cost whoever keeps them; what sqlreq takes beyond it is its own. Each request has a context of its own, as from net/http; where there is no use for the database all have one.\n\n" + b.String()
}

// cold says what a line of code costs where each request has waited for the disk.
func cold(in instructions, hand, sqlreq, aim float64) string {
	first := in.linesOf("hand")
	if first == 0 {
		return ""
	}
	more := in.linesOf("sqlreq") - first
	line := (sqlreq - 1) * hand / float64(more)
	return fmt.Sprintf("\nWhile a request waits for the disk, what it is to carry out next leaves the nearest caches of the processor, so that time goes with the lines of code: by hand %d, the promises by hand %d more, sqlreq %d more, about %.0f ns each. The aim leaves room for %.0f.\n", first, in.linesOf("ended")-first, more, line, (aim-1)*hand/line)
}

// reached says whether an aim is.
func reached(aim, sqlreq, promises float64) string {
	switch {
	case sqlreq <= aim:
		return "reached"
	case promises > aim:
		return fmt.Sprintf("out of reach, because the promises alone take %.3f whoever keeps them; %.1f %% are sqlreq's own", promises, 100*(sqlreq/promises-1))
	}
	return fmt.Sprintf("missed by %.1f %%", 100*(sqlreq/aim-1))
}

func (r *results) hasWork(k id) bool { return r.values[k] != nil }
