package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// phase is a part of the run.
type phase struct {
	name    string // for the picture
	between func(ctx context.Context)
	author  func(client int) int
}

// clients is how many send notes, each the next one a pause after the answer.
const (
	clients = 16
	pause   = 60 * time.Millisecond
)

// withoutText is how seldom a client forgets the text: every tenth note.
const withoutText = 10

// phases are those of the run, each as long as the others.
var phases = []phase{
	{"every day", nil, own},
	{"handlers ask another service, with the transaction open", func(ctx context.Context) { wait(ctx, 60*time.Millisecond) }, own},
	{"all notes are of one author: conflicts", nil, func(int) int { return shared }},
	{"a quarter of the notes is of no author: COMMIT is refused", nil, func(client int) int {
		if client%4 == 0 {
			return noAuthor
		}
		return own(client)
	}},
}

// shared is the author that all clients have together.
const shared = 1

// own is the author that a client has for itself.
func own(client int) int { return 2 + client }

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// numbers are the four of the dashboard, over the interval before a second.
type numbers struct {
	Second       int
	Phase        string
	Wait         float64 // seconds, the 99th percentile; NaN: there was nothing
	Use          float64 // likewise
	RolledBack   float64 // a second
	CommitFailed float64 // a second
	Ended        float64 // a second
	Again        float64 // a second
}

// window is the interval that rates are of: the [5m] of the queries.
const window = 3

// observe sends requests through all phases, each of so many seconds, and returns the
// numbers of each second.
func observe(ctx context.Context, s *service, seconds int) ([]numbers, error) {
	var scrapes []scrape
	first, err := s.scrape(ctx)
	if err != nil {
		return nil, err
	}
	scrapes = append(scrapes, first)
	var all []numbers
	for _, p := range phases {
		if p.between != nil {
			s.between.Store(&p.between)
		}
		running, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		failed := make(chan error, clients)
		for client := range clients {
			wg.Go(func() { failed <- s.send(running, client, p.author(client)) })
		}
		tick := time.NewTicker(time.Second)
		for range seconds {
			<-tick.C
			now, err := s.scrape(ctx)
			if err != nil {
				stop()
				return nil, err
			}
			scrapes = append(scrapes, now)
			n := between(scrapes[max(0, len(scrapes)-1-window)], now)
			n.Second, n.Phase = len(scrapes)-1, p.name
			all = append(all, n)
		}
		tick.Stop()
		stop()
		wg.Wait()
		s.between.Store(nil)
		for range clients {
			if err := <-failed; err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	return all, nil
}

// send sends notes until ctx ends.
func (s *service) send(ctx context.Context, client, author int) error {
	for n := 1; ; n++ {
		text := "a"
		if n%withoutText == 0 {
			text = ""
		}
		status, err := s.post(ctx, author, text)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case !mayBe(status, author):
			return fmt.Errorf("client %d, a note of author %d: got %d", client, author, status)
		}
		wait(ctx, pause)
	}
}

// mayBe reports whether a note of that author may be answered so: COMMIT refuses those of
// noAuthor, and a conflict of those that all write may outlast its attempts.
func mayBe(status, author int) bool {
	switch status {
	case http.StatusCreated:
		return author != noAuthor
	case http.StatusUnprocessableEntity:
		return true
	case http.StatusInternalServerError:
		return author == noAuthor
	}
	return status == http.StatusServiceUnavailable && author == shared
}

// scrape is what the exporter of a program answers, as far as the four numbers need it.
type scrape struct {
	at        time.Time
	wait, use histogram
	count     map[string]float64 // transactions, by outcome
	again     float64            // those that are not the first attempt
}

// histogram has the counts up to each bound, the last one being infinite.
type histogram struct {
	bounds []float64
	counts []float64
}

func (s *service) scrape(ctx context.Context) (scrape, error) {
	var data metricdata.ResourceMetrics
	if err := s.reader.Collect(ctx, &data); err != nil {
		return scrape{}, err
	}
	now := scrape{at: time.Now(), count: make(map[string]float64)}
	for _, scope := range data.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch m.Name {
			case "db.client.connection.wait_time":
				now.wait.add(m.Data)
			case "db.client.connection.use_time":
				now.use.add(m.Data)
			case "sqlreq.transactions":
				now.addTransactions(m.Data)
			}
		}
	}
	return now, nil
}

func (s *scrape) addTransactions(data metricdata.Aggregation) {
	sum, _ := data.(metricdata.Sum[int64])
	for _, p := range sum.DataPoints {
		outcome, _ := p.Attributes.Value("sqlreq.outcome")
		attempt, _ := p.Attributes.Value("sqlreq.attempt")
		s.count[outcome.AsString()] += float64(p.Value)
		if attempt.AsInt64() != 1 {
			s.again += float64(p.Value)
		}
	}
}

// add adds all series of a metric: sum by (le, …).
func (h *histogram) add(data metricdata.Aggregation) {
	all, _ := data.(metricdata.Histogram[float64])
	for _, p := range all.DataPoints {
		if h.counts == nil {
			h.bounds, h.counts = append(p.Bounds[:len(p.Bounds):len(p.Bounds)], math.Inf(1)), make([]float64, len(p.BucketCounts))
		}
		for i, n := range p.BucketCounts {
			h.counts[i] += float64(n)
		}
	}
}

// between returns the numbers of what happened from one scrape to another.
func between(from, to scrape) numbers {
	seconds := to.at.Sub(from.at).Seconds()
	rate := func(outcome string) float64 { return (to.count[outcome] - from.count[outcome]) / seconds }
	return numbers{
		Wait: quantile(0.99, to.wait.since(from.wait)), Use: quantile(0.99, to.use.since(from.use)),
		RolledBack: rate("rolled_back"), CommitFailed: rate("commit_failed"), Ended: rate("ended"),
		Again: (to.again - from.again) / seconds,
	}
}

func (h histogram) since(before histogram) histogram {
	counts := make([]float64, len(h.counts))
	for i := range h.counts {
		counts[i] = h.counts[i]
		if before.counts != nil {
			counts[i] -= before.counts[i]
		}
	}
	return histogram{h.bounds, counts}
}

func (h histogram) total() (n float64) {
	for _, count := range h.counts {
		n += count
	}
	return n
}

// quantile is Prometheus' histogram_quantile: as if what is in a bucket were spread
// evenly over it. It is NaN for an empty histogram, and the highest finite bound for what
// is beyond.
func quantile(q float64, h histogram) float64 {
	total := h.total()
	if total == 0 {
		return math.NaN()
	}
	rank, seen, low := q*total, 0.0, 0.0
	for i, n := range h.counts {
		if seen+n >= rank && n > 0 {
			if math.IsInf(h.bounds[i], 1) {
				return low
			}
			return low + (h.bounds[i]-low)*(rank-seen)/n
		}
		seen, low = seen+n, h.bounds[i]
	}
	return low
}

var dashboardColumns = []string{"second", "phase", "wait_p99_s", "use_p99_s", "rolled_back_per_s", "commit_failed_per_s", "ended_per_s", "run_again_per_s"}

func writeDashboard(w io.Writer, all []numbers) error {
	rows := [][]string{dashboardColumns}
	for _, n := range all {
		row := []string{strconv.Itoa(n.Second), n.Phase}
		for _, v := range n.values() {
			row = append(row, strconv.FormatFloat(*v, 'g', 4, 64))
		}
		rows = append(rows, row)
	}
	return csv.NewWriter(w).WriteAll(rows)
}

func (n *numbers) values() []*float64 {
	return []*float64{&n.Wait, &n.Use, &n.RolledBack, &n.CommitFailed, &n.Ended, &n.Again}
}

func readDashboard(r io.Reader) ([]numbers, error) {
	rows, err := readCSV(r, dashboardColumns)
	if err != nil {
		return nil, err
	}
	var all []numbers
	for _, row := range rows {
		n := numbers{Phase: row[1]}
		var errs []error
		n.Second, err = strconv.Atoi(row[0])
		errs = append(errs, err)
		for i, v := range n.values() {
			*v, err = strconv.ParseFloat(strings.TrimSpace(row[2+i]), 64)
			errs = append(errs, err)
		}
		if err := errors.Join(errs...); err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}
