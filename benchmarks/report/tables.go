package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"time"
)

const (
	begin = "<!-- report: begin -->"
	end   = "<!-- report: end -->"
)

// contenders in the order of the tables.
var contenders = []string{"hand", "eager", "buffered", "bun", "gorm", "crdb", "trm", "sqlreq", "sqlreq-key"}

var databases = []struct{ name, title string }{{"sqlite", "SQLite"}, {"postgres", "PostgreSQL"}}

func writeTables(r *results, name string) error { return between(name, tables(r)) }

// between replaces what is between the markers of a file.
func between(name, text string) error {
	file, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(file, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		return fmt.Errorf("%s has no %s and %s", name, begin, end)
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s%s\n\n%s\n%s%s", before, begin, strings.TrimSpace(text), end, after)
	return os.WriteFile(name, out.Bytes(), 0o666)
}

func tables(r *results) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s with %s on %s/%s, %s, %s CPUs; medians of %s rounds. In parentheses: the ratio to `hand`, the median of the rounds' own ratios.\n\n",
		r.config["date"], r.config["go"], r.config["goos"], r.config["goarch"], r.config["cpu"], r.config["cpus"], r.config["rounds"])
	b.WriteString("### The bar\n\n" + bar(r))
	b.WriteString(budget(r, "sqlite"))
	b.WriteString("### Where sqlreq loses\n\n" + losses(r))
	for _, db := range databases {
		if !r.has(db.name) {
			continue
		}
		fmt.Fprintf(&b, "### %s\n\n", db.title)
		b.WriteString(inTurns(r, db.name))
		b.WriteString(onceInTurns(r, db.name))
		for _, t := range sections {
			b.WriteString(t.write(r, db.name))
		}
	}
	return b.String()
}

// section is a table with a row for each contender.
type section struct {
	title   string
	group   string
	columns []column
}

type column struct {
	title string
	work  string
	units []string
	show  func(v []float64) string
	ratio bool // of the first unit
}

func timed(title, work string) column { return column{title, work, []string{"ns/op"}, duration, true} }

func allocated(title, work string) column {
	return column{title, work, []string{"B/op", "allocs/op"}, func(v []float64) string { return fmt.Sprintf("%.0f B, %.0f", v[0], v[1]) }, false}
}

// columns returns a column for each n.
func columns(f func(title, work string) column, pattern string, ns ...string) []column {
	var all []column
	for _, n := range ns {
		all = append(all, f(n, fmt.Sprintf(pattern, n)))
	}
	return all
}

func single(unit string, show func(v []float64) string, ratio bool) func(title, work string) column {
	return func(title, work string) column { return column{title, work, []string{unit}, show, ratio} }
}

var sizes = []string{"1KiB", "64KiB", "1MiB", "64MiB"}
var counts = []string{"1", "4", "16", "64", "256"}

var sections = []section{
	{"Time for a request, in-process", "Request", []column{
		timed("no database", "nothing"), timed("and three headers", "headers"), timed("one INSERT", "insert"),
		timed("on the disk", "durable"), timed("ten statements", "statements=10"), timed("100 rows read", "read")}},
	{"Memory and allocations for a request, in-process", "Request", []column{
		allocated("no database", "nothing"), allocated("and three headers", "headers"), allocated("one INSERT", "insert"),
		allocated("ten statements", "statements=10"), allocated("100 rows read", "read")}},
	{"One INSERT, with so many databases in the application", "Request", columns(timed, "keys=%s", "1", "10", "1000")},
	{"One INSERT, with so many applications under each other", "Request", columns(timed, "nested=%s", "1", "3", "10")},
	{"A row read and written, with so many conflicts in 100 requests", "Request", columns(timed, "conflicts=%s", "0", "10", "50")},
	{"Time for an answer of that size over HTTP, transaction open", "Server", columns(timed, "answer=%s", sizes...)},
	{"Most memory in use for it", "Server", columns(single("held-B", memory, false), "answer=%s", sizes...)},
	{"An answer of 1 GiB, transaction open", "Stream", []column{
		timed("time", "answer=1GiB"), {"speed", "answer=1GiB", []string{"MB/s"}, func(v []float64) string { return fmt.Sprintf("%.0f MB/s", v[0]) }, false},
		{"allocated", "answer=1GiB", []string{"B/op"}, memory, false}, {"most in use", "answer=1GiB", []string{"held-B"}, memory, false}}},
	{"Requests a second with so many clients, 4 connections, a fifth of the requests use the database", "Server", columns(single("req/s", rate, true), "clients=%s", counts...)},
	{"Their median latency", "Server", columns(single("p50-ns", duration, true), "clients=%s", counts...)},
	{"Their latency at the 99th percentile", "Server", columns(single("p99-ns", duration, true), "clients=%s", counts...)},
	{"Everybody else beside 100 slow clients, 4 connections", "SlowClients", []column{
		{"median", "slow=100", []string{"p50-ns"}, duration, true}, {"99th percentile", "slow=100", []string{"p99-ns"}, duration, true},
		{"gave up after 1 s", "slow=100", []string{"late-%"}, func(v []float64) string { return fmt.Sprintf("%.0f %%", v[0]) }, false},
		{"answered", "slow=100", []string{"req/s"}, func(v []float64) string { return rate(v) + "/s" }, false}}},
}

func (s section) write(r *results, database string) string {
	var rows strings.Builder
	used := make([]bool, len(s.columns))
	for _, by := range contenders {
		for i, c := range s.columns {
			if _, ok := r.median(id{database, s.group, c.work, by}, c.units[0]); ok {
				used[i] = true
			}
		}
	}
	var head, rule strings.Builder
	for i, c := range s.columns {
		if used[i] {
			fmt.Fprintf(&head, " %s |", c.title)
			rule.WriteString(" ---: |")
		}
	}
	if head.Len() == 0 {
		return ""
	}
	for _, by := range contenders {
		cells, some := "", false
		for i, c := range s.columns {
			if !used[i] {
				continue
			}
			cell := c.cell(r, id{database, s.group, c.work, by})
			some = some || cell != ""
			cells += " " + cell + " |"
		}
		if some {
			fmt.Fprintf(&rows, "| `%s` |%s\n", by, cells)
		}
	}
	return fmt.Sprintf("%s:\n\n| |%s\n| --- |%s\n%s\n", s.title, head.String(), rule.String(), rows.String())
}

func (c column) cell(r *results, k id) string {
	var v []float64
	for _, unit := range c.units {
		m, ok := r.median(k, unit)
		if !ok {
			return ""
		}
		v = append(v, m)
	}
	text := c.show(v)
	if c.ratio && k.by != "hand" {
		if q, ok := r.ratio(k, "hand", c.units[0]); ok {
			text += " (" + times(q) + ")"
		}
	}
	return text
}

func times(q float64) string {
	switch {
	case q < 0.2:
		return fmt.Sprintf("%.3f", q)
	case q < 10:
		return fmt.Sprintf("%.2f", q)
	case q < 100:
		return fmt.Sprintf("%.1f", q)
	}
	return fmt.Sprintf("%.0f", q)
}

// duration shows nanoseconds in three digits.
func duration(v []float64) string {
	d := time.Duration(v[0])
	for _, unit := range []struct {
		d    time.Duration
		name string
	}{{time.Second, "s"}, {time.Millisecond, "ms"}, {time.Microsecond, "µs"}} {
		if d >= unit.d {
			return digits(v[0]/float64(unit.d)) + " " + unit.name
		}
	}
	return digits(v[0]) + " ns"
}

func digits(v float64) string {
	switch {
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func rate(v []float64) string { return fmt.Sprintf("%.0f", v[0]) }

func memory(v []float64) string {
	for _, unit := range []struct {
		n    float64
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if v[0] >= unit.n {
			return digits(v[0]/unit.n) + " " + unit.name
		}
	}
	return fmt.Sprintf("%.0f B", v[0])
}
