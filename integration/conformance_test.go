package integration

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	osexec "os/exec"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq/integration/conformance"
	"github.com/sqlreq/sqlreq/integration/internal/enginetable"
)

var (
	update      = flag.Bool("update", false, "write what the tests have found into README.md, docs/databases.md and testdata")
	dsnFlag     = flag.String("dsn", "", "data source name for TestDSN")
	driverFlag  = flag.String("driver", "pgx", "driver for TestDSN")
	dialectFlag = flag.String("dialect", "postgresql", "dialect for TestDSN: postgresql, mysql, sqlite or duckdb")
)

// TestDSN runs the suite on the database of whoever calls it, and prints what it has found.
func TestDSN(t *testing.T) {
	if *dsnFlag == "" {
		t.Skip("no -dsn: see README.md")
	}
	dialect, ok := map[string]conformance.Dialect{
		"postgresql": conformance.PostgreSQL,
		"mysql":      conformance.MySQL,
		"sqlite":     conformance.SQLite,
		"duckdb":     conformance.DuckDB,
	}[*dialectFlag]
	if !ok {
		t.Fatalf("-dialect=%s: it is postgresql, mysql, sqlite or duckdb", *dialectFlag)
	}
	fmt.Print("\n", conformance.Run(t, openDSN(t, *driverFlag, *dsnFlag), dialect), "\n")
}

// TestSwitchedOffForeignKeysAreToldApart: on an SQLite whose foreign keys are switched off no check runs,
// and the failure says what to set; with the data source name of README.md all run.
func TestSwitchedOffForeignKeysAreToldApart(t *testing.T) {
	found, err := os.ReadFile("testdata/found/" + enginetable.FoundFile("SQLite, modernc.org/sqlite"))
	if err != nil {
		t.Fatal(err)
	}
	const wal = "&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)"
	for _, test := range []struct {
		settings      string
		passes        bool
		want, wantNot string
	}{
		{"?_pragma=foreign_keys(0)" + wal, false, "_pragma=foreign_keys(1)", "G1_"},
		{"?_pragma=foreign_keys(1)" + wal, true, "--- PASS: TestDSN/G1_", "_pragma=foreign_keys(1)"},
		{"?_pragma=foreign_keys(1)" + wal, true, "\n\n" + string(found) + "\n", "failed"},
	} {
		cmd := osexec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDSN$", "-test.v", "-driver=sqlite", "-dialect=sqlite", "-dsn=file:"+file(t)+test.settings)
		out, err := cmd.CombinedOutput()
		if (err == nil) != test.passes || !strings.Contains(string(out), test.want) || strings.Contains(string(out), test.wantNot) {
			t.Errorf("%s: got %v, want a pass: %t, with %q and without %q:\n%s", test.settings, err, test.passes, test.want, test.wantNot, out)
		}
	}
}

// TestEngineTable compares the lines of docs/databases.md that are about engines which are not run, and the order.
func TestEngineTable(t *testing.T) {
	if err := enginetable.CompareNotRun("../docs/databases.md", *update); err != nil {
		t.Error(err)
	}
}

// TestConformance runs the suite on every driver. Its results are the table in README.md.
func TestConformance(t *testing.T) {
	results := make(map[string][]conformance.Result)
	complete := true
	for _, d := range databases {
		complete = t.Run(d.name, func(t *testing.T) {
			report := conformance.Run(t, openDSN(t, cmp.Or(d.leaving, d.driver), d.dsn(t)), d.dialect)
			if !report.Complete() {
				return
			}
			results[d.name] = report.Results
			if n := report.LeftOut(); n != d.leftOut {
				t.Errorf("%d checks are of what it does not have, want %d", n, d.leftOut)
			}
			if err := errors.Join(enginetable.Compare("../docs/databases.md", d.name, report, *update), enginetable.CompareFound("testdata/found", d.name, report, *update)); err != nil {
				t.Error(err)
			}
		}) && len(results[d.name]) > 0 && complete
	}
	if !complete || len(databases) < 5 {
		return // a driver failed, was skipped, or left out with -run: half a table is none
	}
	const begin, end = "<!-- written by TestConformance: begin -->\n", "<!-- end -->\n"
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(text), begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("README.md has no place for the table: want %s%s", begin, end)
	}
	got := table(results)
	if old == got {
		return
	}
	if !*update {
		t.Fatalf("the table in README.md is another; if that is right: go test -run TestConformance . -update\ngot\n%s\nwant\n%s", got, old)
	}
	if err := os.WriteFile("README.md", []byte(before+begin+got+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// table is the results, drivers by checks, with the notes below.
func table(results map[string][]conformance.Result) string {
	var b strings.Builder
	b.WriteString("| | what is checked |")
	for _, d := range databases {
		b.WriteString(" " + strings.Replace(d.name, ", ", "<br>", 1) + " |")
	}
	b.WriteString("\n| --- | --- |" + strings.Repeat(" --- |", len(databases)) + "\n")
	var notes []string
	numbers := make(map[string]int)
	for i, check := range results[databases[0].name] {
		fmt.Fprintf(&b, "| %s | %s |", check.Guarantee, check.Check)
		for _, d := range databases {
			r := results[d.name][i]
			if r.Note == "" {
				fmt.Fprintf(&b, " %s |", r.Verdict)
				continue
			}
			if numbers[r.Note] == 0 {
				notes = append(notes, r.Note)
				numbers[r.Note] = len(notes)
			}
			fmt.Fprintf(&b, " %s (%d) |", r.Verdict, numbers[r.Note])
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	for i, note := range notes {
		fmt.Fprintf(&b, "%d. %s.\n", i+1, strings.ToUpper(note[:1])+note[1:])
	}
	return b.String()
}

// TestConflictInCommitOfSQLite: in rollback mode a reader makes COMMIT fail, where the suite's
// files are in WAL mode.
func TestConflictInCommitOfSQLite(t *testing.T) {
	for driver, settings := range map[string]string{
		"sqlite":  "?_pragma=busy_timeout(0)&_pragma=journal_mode(DELETE)",
		"sqlite3": "?_busy_timeout=0&_journal_mode=DELETE",
	} {
		t.Run(driver, func(t *testing.T) {
			report := conformance.Run(t, openDSN(t, driver, "file:"+file(t)+settings), conformance.SQLiteRollback, "a conflict in COMMIT")
			if len(report.Results) != 1 || report.LeftOut() != 0 {
				t.Errorf("got %+v, want one check", report.Results)
			}
		})
	}
}
