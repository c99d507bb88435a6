package main

import (
	"fmt"
	"image/color"
	"math"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// growers are the contenders of Growth, in words.
var growers = []struct {
	style
	words string
}{
	{styleOf("hand"), "by hand, in the handler"},
	{styleOf("eager"), "a middleware that begins for each request"},
	{styleOf("buffered"), "the same, with the answer held until COMMIT"},
	{style{"transactor", color.RGBA{86, 180, 233, 255}, draw.PyramidGlyph{}, 1.2}, "with transactor"},
	{styleOf("trm"), "with go-transaction-manager"},
	{style{"popmw", color.RGBA{0, 158, 115, 255}, strokes{{-.8, -.8, .8, -.8, .8, .8, -.8, .8, -.8, -.8}}, 1.2}, "popmw's way"},
	{styleOf("sqlreq"), "sqlreq"},
	{style{"pgxpool", color.RGBA{204, 121, 167, 255}, strokes{{-1, -.7, 1, -.7, 0, 1, -1, -.7}}, 1.2}, "by hand on pgxpool"},
	{style{"sqlreqpgx", color.RGBA{120, 60, 160, 255}, draw.CircleGlyph{}, 2.5}, "sqlreq with sqlreqpgx"},
}

// axis is what grows.
type axis struct {
	title  string
	work   string
	values []string
	bends  string // why its curves bend
}

var axes = []axis{
	{"Clients, of whom every eighth reads slowly", "clients", []string{"1", "8", "64", "512"},
		"Who begins for each request keeps a connection while a slow client reads: from 64 clients on four of these have the pool, and everybody waits for them. popmw's way with SQLite waits from the second client on, because one transaction at a time has its lock. For the others the curve bends at two processors: from there on a request waits for its turn."},
	{"Databases of the application", "keys", []string{"1", "10", "1000"},
		"A middleware that begins for each request begins on each of them, and holds a connection of each. sqlreq and the handler use the one that is asked for: theirs is flat."},
	{"Headers of the answer", "headers", []string{"0", "4", "32"},
		"Nothing bends: net/http writes and parses each header, in client and server; sqlreq's note of what they were at WriteHeader is a small part of that."},
	{"Size of the answer, transaction open", "answer", []string{"0B", "1KiB", "64KiB", "1MiB", "1GiB"},
		"Up to 64 KiB the price of a request and its INSERT hides the bytes; beyond, it is their copying through the socket. The memory of sqlreq grows up to the 64 KiB that it holds back and not beyond; that of the middleware that holds the answer grows for ever."},
	{"Savepoints, each with an INSERT", "savepoints", []string{"1", "100", "10000"},
		"From 100 on it is three statements for each, whoever sends them, and the 10,000th costs what the first did: nothing is kept of one that has ended. sqlreq adds a name for each, a context for its end, which no end of the request's cancels, and the locks that keep others out: a tenth of the time or so. On PostgreSQL each is a subtransaction with a number of its own."},
	{"Conflicts in 100 requests", "conflicts", []string{"0", "10", "25", "50"},
		"Nothing bends: a conflict is one more attempt and the other program's UPDATE."},
	{"Repeats in 100 requests with an Idempotency-Key", "repeats", []string{"0", "1", "50"},
		"Nothing bends: a repeat reads its answer, which takes a fraction of the work."},
}

func (a axis) id(database string, value int, by string) id {
	return id{database, growth, a.work + "=" + a.values[value], by}
}

func growthTables(r *results) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s with %s on %s/%s, %s, %s CPUs; medians of %s rounds.\n\n",
		r.growth["date"], r.growth["go"], r.growth["goos"], r.growth["goarch"], r.growth["cpu"], r.growth["cpus"], r.growth["rounds"])
	for _, a := range axes {
		fmt.Fprintf(&b, "## %s\n\n%s\n\n", a.title, a.bends)
		for _, q := range questions {
			if q.axis == a.work {
				fmt.Fprintf(&b, "![%s](plots/%s)\n\n", q.text, q.file())
			}
		}
		for _, db := range databases {
			b.WriteString(a.table(r, db.name, db.title))
		}
	}
	return b.String()
}

// table has what was measured in each cell.
func (a axis) table(r *results, database, title string) string {
	var rows strings.Builder
	for _, c := range growers {
		row, some := "| `"+c.by+"` |", false
		for i := range a.values {
			cell := ""
			at := func(unit string) []float64 { v, _ := r.median(a.id(database, i, c.by), unit); return []float64{v} }
			if _, ok := r.median(a.id(database, i, c.by), "p50-ns"); ok {
				some = true
				cell = fmt.Sprintf("%s/s<br>%s, %s<br>%s, %.0f", digits(at("req/s")[0]), duration(at("p50-ns")), duration(at("p99-ns")), memory(at("live-B")), at("conns")[0])
			}
			row += " " + cell + " |"
		}
		if some {
			rows.WriteString(row + "\n")
		}
	}
	if rows.Len() == 0 {
		return ""
	}
	return fmt.Sprintf("%s:\n\n| | %s |\n| --- |%s\n%s\n", title, strings.Join(a.values, " | "), strings.Repeat(" ---: |", len(a.values)), rows.String())
}

// question is what a plot answers.
type question struct {
	text string
	axis string
	unit string
	show func(float64) string // of a power of the base
	base float64
}

var questions = []question{
	{"How many requests are answered, with more clients?", "clients", "req/s", countLabel, 10},
	{"How long does the slowest of 100 requests take, with more clients?", "clients", "p99-ns", timeLabel, 10},
	{"How many connections are in use, with more clients?", "clients", "conns", countLabel, 2},
	{"How long does a request take, with more databases?", "keys", "p50-ns", timeLabel, 10},
	{"How many connections are in use, with more databases?", "keys", "conns", countLabel, 4},
	{"How long does a request take, with more headers?", "headers", "p50-ns", timeLabel, 10},
	{"How long does a request take, with a larger answer?", "answer", "p50-ns", timeLabel, 10},
	{"How much memory does a larger answer take?", "answer", "live-B", sizeLabel, 16},
	{"How long does a request take, with more savepoints?", "savepoints", "p50-ns", timeLabel, 10},
	{"How many requests are answered, with more conflicts?", "conflicts", "req/s", countLabel, 10},
	{"How many requests are answered, with more repeats?", "repeats", "req/s", countLabel, 10},
}

// file is named after the axis and the unit.
func (q question) file() string {
	return "growth-" + q.axis + map[string]string{"req/s": "-rate", "p50-ns": "-median", "p99-ns": "-slowest", "conns": "-connections", "live-B": "-memory"}[q.unit] + ".svg"
}

func countLabel(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.0f,000", v/1000)
	}
	return fmt.Sprintf("%.0f", v)
}

func growthPlots(r *results, dir string) error {
	for _, q := range questions {
		if err := q.draw(r, dir); err != nil {
			return err
		}
	}
	return nil
}

// draw makes a plot for each database, side by side, with one legend for both.
func (q question) draw(r *results, dir string) error {
	var a axis
	for _, a = range axes {
		if a.work == q.axis {
			break
		}
	}
	low, high := math.Inf(1), math.Inf(-1)
	for _, db := range databases {
		for _, c := range growers {
			for i := range a.values {
				if v, ok := r.median(a.id(db.name, i, c.by), q.unit); ok {
					low, high = min(low, max(v, 0.7)), max(high, v)
				}
			}
		}
	}
	var plots []*plot.Plot
	used := make(map[string]bool)
	for _, db := range databases {
		p := newPlot(db.title, strings.ToLower(a.title[:1])+a.title[1:], "")
		var ticks []plot.Tick
		for i, v := range a.values {
			ticks = append(ticks, plot.Tick{Value: float64(i), Label: v})
		}
		p.X.Tick.Marker = plot.ConstantTicks(ticks)
		p.X.Min, p.X.Max = -0.2, float64(len(a.values))-0.8
		logarithmic(&p.Y, low/1.3, high*1.3, q.base, q.show)
		grid(p, true, true)
		some := false
		for _, c := range growers {
			var points plotter.XYs
			for i := range a.values {
				if v, ok := r.median(a.id(db.name, i, c.by), q.unit); ok {
					points = append(points, plotter.XY{X: float64(i), Y: math.Log10(max(v, 0.7))})
				}
			}
			if err := line(p, c.style, points); err != nil {
				return err
			}
			if len(points) > 0 {
				some, used[c.by] = true, true
			}
		}
		if some {
			plots = append(plots, p)
		}
	}
	return q.save(filepath.Join(dir, q.file()), plots, used)
}

func (q question) save(name string, plots []*plot.Plot, used map[string]bool) error {
	const each, key = 330, 300
	canvas := vgsvg.New(vg.Length(each*len(plots)+key), 340)
	all := draw.New(canvas)
	all.SetColor(color.White)
	all.Fill(all.Rectangle.Path())
	title := plot.New().Title.TextStyle
	title.Font.Size = 15
	all.FillText(title, vg.Point{X: all.Center().X, Y: all.Max.Y - 10}, q.text)
	area := draw.Crop(all, 8, -8, 8, -34)
	for i, p := range plots {
		p.Draw(draw.Crop(area, vg.Length(i*each), vg.Length((i+1)*each)-area.Size().X-10, 0, 0))
	}
	l := plot.NewLegend()
	l.Top, l.Left = true, true
	l.TextStyle.Font.Size, l.Padding = 12, 5
	for _, c := range growers {
		if used[c.by] {
			l.Add(c.words, thumbnail{c.style})
		}
	}
	l.Draw(draw.Crop(area, vg.Length(each*len(plots)), 0, 0, -16))
	return write(name, canvas)
}
