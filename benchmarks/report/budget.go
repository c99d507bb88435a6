package main

import (
	"fmt"
	"strings"

	"github.com/sqlreq/sqlreq/benchmarks"
)

// budget shows what each promise costs who keeps it by hand, and what sqlreq takes with all of them.
func budget(r *results, database string) string {
	var b strings.Builder
	for _, w := range []struct{ work, title string }{
		{"insert", "One INSERT, synchronous=NORMAL"},
		{"durable", "One INSERT, synchronous=FULL"},
		{"rows", "100 rows read and written one by one"},
		{"read", "The same in a read-only transaction (`TxOptions`)"},
		{"retried", "One INSERT that meets no conflict"},
		{"nothing", "No use for the database"},
	} {
		k := id{database, "Budget", w.work, "sqlreq"}
		if !r.hasWork(k) {
			continue
		}
		fmt.Fprintf(&b, "%s:\n\n| | time | of the first | quartiles | memory | allocations |\n| --- | ---: | ---: | ---: | ---: | ---: |\n", w.title)
		for _, step := range benchmarks.BudgetSteps(w.work) {
			at := func(unit string) float64 {
				v, _ := r.median(k, step.Name+unit)
				return v
			}
			fmt.Fprintf(&b, "| %s | %s | %.3f | %.2f to %.2f | %.0f B | %.0f |\n", step.Title, duration([]float64{at("-ns")}), at("-ratio"), at("-low"), at("-high"), at("-B"), at("-allocs"))
		}
		b.WriteString("\n")
	}
	if b.Len() == 0 {
		return ""
	}
	return "### The budget\n\nWhat a request takes whose handler keeps the promises of sqlreq by hand, one more in each line, in turns in one process, beside 64 MiB that are live on the heap. The last line but one is what the promises cost whoever keeps them; what sqlreq takes beyond it is its own. Measured apart, on 2026-11-26, on another processor.\n\n" + b.String()
}

func (r *results) hasWork(k id) bool { return r.values[k] != nil }
