package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if isServer() {
		os.Exit(serveOrders())
	}
	os.Exit(m.Run())
}

func committed(t *testing.T) []row {
	t.Helper()
	rows, err := readCSV("../" + csvFile)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// outcomes are rows without how often each was met.
func outcomes(rows []row) []string {
	var all []string
	for _, r := range rows {
		all = append(all, fmt.Sprintf("%+v", r.outcome))
	}
	slices.Sort(all)
	return all
}

// TestOutcomesAreThoseOfTheFile kills three servers at each point.
func TestOutcomesAreThoseOfTheFile(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("TMP", os.Getenv("TMPDIR")) // Windows
	rows, err := measure(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := outcomes(rows), outcomes(committed(t)); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant those of %s\n%s", strings.Join(got, "\n"), csvFile, strings.Join(want, "\n"))
	}
	for _, r := range rows {
		if r.kills != 3 {
			t.Errorf("%+v was met %d times of 3", r.outcome, r.kills)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "*")); len(left) > 0 {
		t.Errorf("files are left: %q", left)
	}
}

// TestTheFileIsWhole: each point and way was killed at a hundred times. What is promised of the keys is in the file.
func TestTheFileIsWhole(t *testing.T) {
	rows := committed(t)
	for _, at := range points {
		for _, by := range ways {
			kills := 0
			for _, r := range of(rows, at, by) {
				kills += r.kills
				if by == inOne && r.orders != 1 {
					t.Errorf("%d orders by %s, killed %s", r.orders, by, at)
				}
				if r.first == whole != (at == afterAnswer) {
					t.Errorf("killed %s the client saw %q", at, r.first)
				}
			}
			if kills != 100 {
				t.Errorf("%s, %s: %d kills, want 100", at, by, kills)
			}
		}
	}
}

// TestTheFigureIsThatOfTheFile: both copies are what the command draws.
func TestTheFigureIsThatOfTheFile(t *testing.T) {
	want, err := drawFigure(committed(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range svgFiles {
		got, err := os.ReadFile("../" + name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not drawn from %s: run go run -C benchmarks ./crashpoints -render", name, csvFile)
		}
	}
}

func TestFileThatIsNone(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x.csv")
	for _, text := range []string{"", "a,b\n", strings.Join(head, ",") + "\nbefore BEGIN,no keys,many,,,1\n"} {
		if err := os.WriteFile(name, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		if _, err := readCSV(name); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

// TestMixedOutcomesAreDrawn: if a point has two outcomes the figure has both, with how often each was met.
func TestMixedOutcomesAreDrawn(t *testing.T) {
	rows := committed(t)
	rows[0].kills = 97
	other := rows[0]
	other.kills, other.orders, other.first = 3, 0, half
	svg, err := drawFigure(append(rows, other))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{">1 (97)<", ">0 (3)<", "the order was lost", "no answer or half an answer"} {
		if !bytes.Contains(svg, []byte(want)) {
			t.Errorf("the figure has no %q", want)
		}
	}
	if _, err := drawFigure(rows[1:]); err == nil {
		t.Error("a point of which nothing is known was drawn")
	}
}
