package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq/benchmarks"
)

const sample = `go: go1.99
date: 2030-01-02
rounds: 3
cpu: Example
BenchmarkRequest/sqlite/insert/by=hand-2     	    1000	     50000 ns/op	     900 B/op	      21 allocs/op
BenchmarkRequest/sqlite/insert/by=sqlreq-2   	    1000	     55000 ns/op	    2500 B/op	      31 allocs/op
BenchmarkRequest/sqlite/insert/by=sqlreq-2   	    1000	    110000 ns/op	    2500 B/op	      31 allocs/op
BenchmarkRequest/sqlite/insert/by=hand-2     	    1000	    100000 ns/op	     900 B/op	      21 allocs/op
BenchmarkRequest/sqlite/insert/by=hand-2     	    1000	     60000 ns/op	     900 B/op	      21 allocs/op
BenchmarkRequest/sqlite/insert/by=sqlreq-2   	    1000	     60000 ns/op	    2500 B/op	      31 allocs/op
BenchmarkSlowClients/sqlite/slow=100/by=hand-2	 1	 1500000000 ns/op	 0 late-%	 1000 p10-ns	 2000 p50-ns	 900000 p99-ns	 61 req/s
BenchmarkServer/sqlite/clients=64/by=hand-2  	    1000	     60000 ns/op	 3e+06 p50-ns	 4e+07 p99-ns	 12000 req/s
BenchmarkServer/sqlite/answer=1KiB/by=hand-2 	    1000	     60000 ns/op	 17 MB/s	 0 held-B	     900 B/op	      21 allocs/op
`

func loadSample(t *testing.T) *results {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "sqlite.txt"), []byte(sample), 0o666); err != nil {
		t.Fatal(err)
	}
	r, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestMedianAndRatioOfTheRounds(t *testing.T) {
	r := loadSample(t)
	k := id{"sqlite", "Request", "insert", "sqlreq"}
	if got, _ := r.median(k, "ns/op"); got != 60000 {
		t.Errorf("median %v, want 60000", got)
	}
	// 55/50, 110/100, 60/60: the second round was slow for both.
	if got, _ := r.ratio(k, "hand", "ns/op"); got != 1.1 {
		t.Errorf("ratio %v, want 1.1", got)
	}
	if r.config["cpu"] != "Example" {
		t.Errorf("config %v", r.config)
	}
}

func TestLineThatIsNoResult(t *testing.T) {
	r := &results{config: make(map[string]string), values: make(map[id]map[string][]float64)}
	for _, line := range []string{"BenchmarkRequest/sqlite/insert-2 1 1 ns/op", "BenchmarkRequest/sqlite/insert/by=hand-2 1 x ns/op"} {
		if err := r.line(line); err == nil {
			t.Errorf("%q was taken", line)
		}
	}
}

func TestTablesReplaceThoseBefore(t *testing.T) {
	r := loadSample(t)
	name := filepath.Join(t.TempDir(), "README.md")
	if err := os.WriteFile(name, []byte("before\n"+begin+"\nstale\n"+end+"\nafter\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	var last string
	for range 2 {
		if err := writeTables(r, name); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if last != "" && last != string(b) {
			t.Errorf("written twice, it is\n%s\nand was\n%s", b, last)
		}
		last = string(b)
	}
	for _, want := range []string{"before\n" + begin, end + "\nafter\n", "Measured on 2030-01-02 with go1.99", "| `hand` | 60.0 µs |\n", "| `sqlreq` | 60.0 µs (1.10) |\n", "`insert`: `hand` 1.10.", "12000"} {
		if !strings.Contains(last, want) {
			t.Errorf("%q is missing in\n%s", want, last)
		}
	}
	if strings.Contains(last, "stale") {
		t.Error("the old tables are still there")
	}
}

func TestPlotsAreDrawn(t *testing.T) {
	dir := t.TempDir()
	if err := writePlots(loadSample(t), dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cost", "clients", "memory", "slow"} {
		b, err := os.ReadFile(filepath.Join(dir, name+".svg"))
		if err != nil || !strings.Contains(string(b), "log scale") || !strings.Contains(string(b), "sqlreq") {
			t.Errorf("%s.svg: %v, %d bytes without an axis or a legend", name, err, len(b))
		}
	}
}

// What the tables name must be what is run.
func TestEveryColumnIsMeasured(t *testing.T) {
	measured := make(map[string]bool)
	for _, b := range benchmarks.All("") {
		if b.Group == growth {
			continue
		}
		measured[b.Group+" "+b.Work] = true
		known := false
		for _, c := range contenders {
			known = known || c == b.By
		}
		if !known {
			t.Errorf("%s: the tables have no row for %s", b.Name(), b.By)
		}
	}
	for _, s := range sections {
		for _, c := range s.columns {
			if !measured[s.group+" "+c.work] {
				t.Errorf("%s: nothing measures %s %s", s.title, s.group, c.work)
			}
		}
	}
	for _, w := range why {
		found := false
		for name := range measured {
			found = found || strings.HasPrefix(name[strings.IndexByte(name, ' ')+1:], w.work)
		}
		if !found {
			t.Errorf("there is no work %s", w.work)
		}
	}
}

func TestWorksStayTogether(t *testing.T) {
	for _, work := range works(benchmarks.All("postgres://")) {
		for _, b := range work {
			if b.Work != work[0].Work || b.Database != work[0].Database {
				t.Errorf("%s is with %s", b.Name(), work[0].Name())
			}
		}
	}
}

// The README tells the numbers of its plot, and the ratios of the budget, which are measured in turns.
func TestReadmeTellsWhatItsPlotShows(t *testing.T) {
	r, err := load("../results")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	svg, err := os.ReadFile("../plots/overview.svg")
	if err != nil {
		t.Fatal(err)
	}
	for _, work := range overviewWorks {
		labels := make(map[string]string)
		for _, c := range inWords {
			v, ok := r.median(id{"sqlite", "Request", work, c.by}, "ns/op")
			if !ok {
				t.Fatalf("no result of %s by %s", work, c.by)
			}
			labels[c.by] = duration([]float64{v})
			if label := ">" + labels[c.by] + "<"; !strings.Contains(string(svg), label) {
				t.Errorf("%s by %s: overview.svg has not %q: run the report with -render", work, c.by, label)
			}
		}
		want := []string{fmt.Sprintf("%s, %s and %s", labels["hand"], labels["eager"], labels["sqlreq"])} // for who cannot see the plot
		if sentence, ok := map[string]string{"durable": "an INSERT on the disk takes %.0f %% longer", "read": "reading 100 rows %.0f %% longer"}[work]; ok {
			q, _ := r.median(id{"sqlite", "Budget", work, "sqlreq"}, "sqlreq-ratio")
			want = append(want, fmt.Sprintf(sentence, 100*(q-1)))
		}
		for _, want := range want {
			if !strings.Contains(string(readme), want) {
				t.Errorf("%s: README.md has not %q", work, want)
			}
		}
	}
}

// The axes and the legend of Growth are what is measured, no more and no less.
func TestEveryPointOfGrowthIsShown(t *testing.T) {
	shown, words := make(map[string]bool), make(map[string]bool)
	for _, a := range axes {
		for _, v := range a.values {
			shown[a.work+"="+v] = false
		}
	}
	for _, c := range growers {
		words[c.by] = false
	}
	for _, b := range benchmarks.All("postgres://") {
		if b.Group != growth {
			continue
		}
		if _, ok := shown[b.Work]; !ok {
			t.Errorf("%s is in no table", b.Work)
		}
		if _, ok := words[b.By]; !ok {
			t.Errorf("%s is in no legend", b.By)
		}
		shown[b.Work], words[b.By] = true, true
	}
	for _, m := range []map[string]bool{shown, words} {
		for name, measured := range m {
			if !measured {
				t.Errorf("nothing measures %s", name)
			}
		}
	}
}

const growthSample = `date: 2030-03-04
rounds: 1
BenchmarkGrowth/sqlite/clients=1/by=hand-2 1 50000 ns/op 1 conns 5000 live-B 1000000 p50-ns 2000000 p99-ns 990.5 req/s
BenchmarkGrowth/sqlite/clients=8/by=sqlreq-2 1 50000 ns/op 4 conns 6000 live-B 3000000 p50-ns 4000000 p99-ns 1234 req/s
`

// Growth has results, tables and plots of its own, beside those of the others.
func TestGrowthIsApart(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"sqlite": sample, "growth-sqlite": growthSample} {
		if err := os.WriteFile(filepath.Join(dir, name+".txt"), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	r, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if r.config["date"] != "2030-01-02" || r.growth["date"] != "2030-03-04" {
		t.Errorf("the dates are %s and %s", r.config["date"], r.growth["date"])
	}
	got := growthTables(r)
	for _, want := range []string{"| `hand` | 990/s<br>1.00 ms, 2.00 ms<br>4.88 KiB, 1 |", "| `sqlreq` |  | 1234/s<br>3.00 ms, 4.00 ms<br>5.86 KiB, 4 |", "SQLite:"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if strings.Contains(got, "PostgreSQL:") || strings.Contains(tables(r), "clients=8") {
		t.Error("something is shown that was not measured, or elsewhere")
	}
	if err := growthPlots(r, dir); err != nil {
		t.Fatal(err)
	}
	for _, q := range questions {
		b, err := os.ReadFile(filepath.Join(dir, q.file()))
		if err != nil || !strings.Contains(string(b), q.text) {
			t.Errorf("%s: %v, %d bytes without its question", q.file(), err, len(b))
		}
	}
	// A run of Growth removes its own results only, and one of the others only theirs.
	for group, stays := range map[string]string{growth: "sqlite.txt", "": "growth-sqlite.txt"} {
		if err := os.WriteFile(filepath.Join(dir, stays), []byte(sample), 0o666); err != nil {
			t.Fatal(err)
		}
		if _, err := newFiles(dir, 1, group); err != nil {
			t.Fatal(err)
		}
		if names, _ := filepath.Glob(filepath.Join(dir, "*.txt")); len(names) != 1 || filepath.Base(names[0]) != stays {
			t.Errorf("of group %q %v is left, want %s", group, names, stays)
		}
	}
}

func TestReached(t *testing.T) {
	for _, test := range []struct {
		aim, sqlreq, promises float64
		want                  string
	}{
		{1.04, 1.04, 1.02, "reached"},
		{1.04, 1.05, 1.02, "missed by 1.0 %"},
		{1.04, 1.10, 1.08, "out of reach, because the promises alone take 1.080 whoever keeps them; 1.9 % are sqlreq's own"},
	} {
		if got := reached(test.aim, test.sqlreq, test.promises); got != test.want {
			t.Errorf("%v: got %q, want %q", test, got, test.want)
		}
	}
}

func TestInstructions(t *testing.T) {
	name := filepath.Join(t.TempDir(), "instructions.csv")
	if in, err := loadInstructions(name); err != nil || in.tables() != "" || cold(in, 1000, 1.04, 1.03) != "" {
		t.Errorf("without a file: %v", err)
	}
	if err := os.WriteFile(name, []byte("program,part,instructions,lines\nhand,memory,100,10\nended,memory,110,12\nsqlreq,memory,120,15\nsqlreq,sqlreq: held,5,3\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	in, err := loadInstructions(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| memory | 100 | 0 | 0 | 0 | 0 | 110 | 120 |", "| sqlreq: held | 0 | 0 | 0 | 0 | 0 | 0 | 5 |", "| together | 100 | 0 | 0 | 0 | 0 | 110 | 125 |", "| 1.250 |\n", "| memory | 10 | 0 | 0 | 0 | 0 | 12 | 15 |", "| together | 10 | 0 | 0 | 0 | 0 | 12 | 18 |"} {
		if !strings.Contains(in.tables(), want) {
			t.Errorf("got\n%s\nwant %s", in.tables(), want)
		}
	}
	if got, want := cold(in, 1000, 1.04, 1.03), "by hand 10, the promises by hand 2 more, sqlreq 8 more, about 5 ns each. The aim leaves room for 6."; !strings.Contains(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestShareOfFixedWorks(t *testing.T) {
	all := []benchmarks.Benchmark{{Group: "Stream"}, {Group: "SlowClients"}}
	if got := share(all, time.Minute, 1); got <= 0 {
		t.Errorf("got %v, want some time, though all of them take as long as they take", got)
	}
}
