package main

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/sqlreq/sqlreq/internal/servers"
)

func TestMain(m *testing.M) { os.Exit(servers.Run(m)) }

const docs = "../../docs"

func newService(t *testing.T) *service {
	t.Helper()
	s, err := startOn(t.Context(), servers.SharedPostgres(t).DSN)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func committedTraces(t *testing.T) []span {
	t.Helper()
	file, err := os.Open(filepath.Join(docs, traceData))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	spans, err := readTraces(file)
	if err != nil {
		t.Fatal(err)
	}
	return spans
}

func committedDashboard(t *testing.T) []numbers {
	t.Helper()
	file, err := os.Open(filepath.Join(docs, dashboardData))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	all, err := readDashboard(file)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// wantSpans is what docs/observability.md says of the four requests.
const wantSpans = `a note: 201
  transaction main COMMIT committed 1
a note without a text: 422
  transaction main ROLLBACK rolled_back 1
a note beside another one: 201
  transaction main ROLLBACK rolled_back 1 error 40001
  transaction main COMMIT committed 2
a note of no author: 500 error
  transaction main COMMIT commit_failed 1 error 23503
`

// shape is what of spans is the same in each run. It fails the test where the times are in
// another order than things happened.
func shape(t *testing.T, spans []span) string {
	t.Helper()
	var b strings.Builder
	var request, before span
	for _, s := range spans {
		failed := ""
		if s.Failed {
			failed = " error"
		}
		if !s.isTransaction() {
			request, before = s, span{}
			if s.Name != "POST /notes" || s.Start != 0 {
				t.Errorf("%s: got the span %q at %d, want POST /notes at 0", s.Request, s.Name, s.Start)
			}
			fmt.Fprintf(&b, "%s%s\n", s.Request, failed)
			continue
		}
		times := []int64{before.End, s.Start, s.Begun, s.Ending, s.End, request.End}
		if !slices.IsSorted(times) || s.Request != request.Request {
			t.Errorf("%s, attempt %s: got the times %d, want each before the next", s.Request, s.Attempt, times)
		}
		before = s
		fmt.Fprintln(&b, strings.TrimSpace(strings.Join([]string{" ", s.Name, s.Operation, s.Outcome, s.Attempt + failed, s.ErrorType}, " ")))
	}
	return strings.ReplaceAll(b.String(), "\ntransaction", "\n  transaction")
}

// The data of the picture, and a run on a real server, have the same spans.
func TestTraces(t *testing.T) {
	if got := shape(t, committedTraces(t)); got != wantSpans {
		t.Errorf("%s: got\n%swant\n%s", traceData, got, wantSpans)
	}
	s := newService(t)
	spans, err := traces(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if got := shape(t, spans); got != wantSpans {
		t.Errorf("a run: got\n%swant\n%s", got, wantSpans)
	}
	// What the dashboard counts are these requests, and the one beside the third.
	now, err := s.scrape(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(now.count, " again ", now.again)
	if want := "map[commit_failed:1 committed:3 rolled_back:2] again 1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for name, h := range map[string]histogram{"wait": now.wait, "use": now.use} {
		if n := h.total(); n != 6 {
			t.Errorf("%s: got %g transactions, want 6", name, n)
		}
	}
}

// The data that is written can be read.
func TestDataIsReadAsItIsWritten(t *testing.T) {
	for name, write := range map[string]func(*bytes.Buffer) error{
		traceData:     func(b *bytes.Buffer) error { return writeTraces(b, committedTraces(t)) },
		dashboardData: func(b *bytes.Buffer) error { return writeDashboard(b, committedDashboard(t)) },
	} {
		want, err := os.ReadFile(filepath.Join(docs, name))
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := write(&got); err != nil || got.String() != string(want) {
			t.Errorf("%s: got %v, and other text", name, err)
		}
	}
}

func TestPicturesAreDrawnFromTheData(t *testing.T) {
	drawn, err := pictures(os.DirFS(docs))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{tracePicture, dashboardPicture} {
		got, err := os.ReadFile(filepath.Join(docs, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, drawn[name]) {
			t.Errorf("%s is another picture than that of the data beside it: go run .", name)
		}
	}
}

// Each of the four numbers says what it is for: it is highest where that happened.
func TestDashboardData(t *testing.T) {
	all := committedDashboard(t)
	if len(all) != len(phases)*phaseSeconds {
		t.Fatalf("got %d seconds, want %d", len(all), len(phases)*phaseSeconds)
	}
	medians := make([]numbers, len(phases))
	for i, p := range phases {
		part := all[i*phaseSeconds : (i+1)*phaseSeconds]
		for j, n := range part {
			if n.Phase != p.name || n.Second != i*phaseSeconds+j+1 {
				t.Errorf("second %d: got %d, %q, want %q", i*phaseSeconds+j+1, n.Second, n.Phase, p.name)
			}
		}
		settled := part[window:] // without what was before
		for j, v := range medians[i].values() {
			var of []float64
			for _, n := range settled {
				of = append(of, *n.values()[j])
			}
			slices.Sort(of)
			*v = of[len(of)/2]
		}
	}
	everyDay, holding, conflicts, refused := medians[0], medians[1], medians[2], medians[3]
	for name, holds := range map[string]bool{
		"waiting for the pool":              holding.Wait > 5*everyDay.Wait,
		"holding a connection":              holding.Use > 5*everyDay.Use,
		"nothing is run again every day":    everyDay.Again == 0 && holding.Again == 0 && refused.Again == 0,
		"run again":                         conflicts.Again > 0,
		"what is run again was rolled back": conflicts.RolledBack >= conflicts.Again,
		"no COMMIT fails but those":         everyDay.CommitFailed == 0 && holding.CommitFailed == 0 && conflicts.CommitFailed == 0,
		"COMMIT fails":                      refused.CommitFailed > 0,
		"a 422 is rolled back":              everyDay.RolledBack > 0,
		"nobody knows the end of none":      everyDay.Ended+holding.Ended+conflicts.Ended+refused.Ended == 0,
	} {
		if !holds {
			t.Errorf("%s: the medians of the phases are %+v", name, medians)
		}
	}
}

// A run has a line for each second of each phase.
func TestRun(t *testing.T) {
	all, err := observe(t.Context(), newService(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range phases {
		if i >= len(all) || all[i].Phase != p.name || all[i].Second != i+1 {
			t.Errorf("second %d: got %+v, want %q", i+1, all, p.name)
		}
	}
	if len(all) != len(phases) {
		t.Errorf("got %d seconds, want %d", len(all), len(phases))
	}
}

// As Prometheus has it, worked out by hand.
func TestQuantile(t *testing.T) {
	bounds := []float64{1, 5, 10, math.Inf(1)}
	for _, test := range []struct {
		q      float64
		counts []float64
		want   float64
	}{
		{0.5, []float64{10, 0, 0, 0}, 0.5},
		{0.5, []float64{4, 8, 0, 0}, 2},       // the 6th of 12: 2 of 8 into 1 to 5
		{0.99, []float64{0, 0, 100, 0}, 9.95}, // 99 of 100 into 5 to 10
		{0.99, []float64{1, 0, 0, 9}, 10},     // beyond
		{0.99, []float64{0, 0, 0, 0}, math.NaN()},
	} {
		got := quantile(test.q, histogram{bounds, test.counts})
		if math.Abs(got-test.want) > 1e-9 || math.IsNaN(got) != math.IsNaN(test.want) {
			t.Errorf("%g of %v: got %g, want %g", test.q, test.counts, got, test.want)
		}
	}
}

// The document shows both pictures, with the panels' names in its table of the numbers, and
// its queries are of metrics that there are.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(docs, "observability.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{tracePicture, dashboardPicture} {
		if !regexp.MustCompile(`!\[[^\]]{40,}\]\(` + regexp.QuoteMeta(name) + `\)`).Match(text) {
			t.Errorf("observability.md does not show %s with a text for those who do not see it", name)
		}
	}
	for _, p := range panels {
		what, _, _ := strings.Cut(strings.TrimSuffix(p.title, ", a second"), ":")
		if !strings.Contains(string(text), "\n| "+what+" | ") {
			t.Errorf("observability.md has no number named %q", what)
		}
	}
	s := newService(t)
	if _, err := s.post(t.Context(), shared, "a"); err != nil {
		t.Fatal(err)
	}
	var data metricdata.ResourceMetrics
	if err := s.reader.Collect(t.Context(), &data); err != nil {
		t.Fatal(err)
	}
	exported := make(map[string]bool)
	for _, scope := range data.ScopeMetrics {
		for _, m := range scope.Metrics {
			name := strings.ReplaceAll(m.Name, ".", "_")
			switch m.Data.(type) {
			case metricdata.Histogram[float64]:
				exported[name+"_seconds_bucket"] = true
			case metricdata.Sum[int64]:
				exported[name+"_total"] = true
			}
		}
	}
	queried := regexp.MustCompile(`\b(db_client|sqlreq)_\w+(_bucket|_total)\b`).FindAllString(string(text), -1)
	if len(queried) < 4 {
		t.Errorf("observability.md queries %q, want four", queried)
	}
	for _, name := range queried {
		if !exported[name] {
			t.Errorf("observability.md queries %s, which is not exported: %v", name, exported)
		}
	}
}

// What is no data of a run is an error, not an empty picture.
func TestDataThatIsNone(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "other columns": "a,b\n1,2\n"} {
		if _, err := readTraces(strings.NewReader(text)); err == nil {
			t.Errorf("%s: traces: got nil", name)
		}
		if _, err := readDashboard(strings.NewReader(text)); err == nil {
			t.Errorf("%s: dashboard: got nil", name)
		}
	}
	for _, row := range []string{"x,,1,1,1,1,1,1", "1,,x,1,1,1,1,1"} {
		if _, err := readDashboard(strings.NewReader(strings.Join(dashboardColumns, ",") + "\n" + row + "\n")); err == nil {
			t.Errorf("%s: got nil", row)
		}
	}
}
