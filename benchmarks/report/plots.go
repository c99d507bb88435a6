package main

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// style is how a contender looks in every plot: a colour of Okabe and Ito's
// palette, which the colour-blind can tell apart, and a shape for the rest.
type style struct {
	by    string
	color color.RGBA
	shape draw.GlyphDrawer
	width vg.Length
}

var styles = []style{
	{"hand", color.RGBA{0, 0, 0, 255}, draw.CircleGlyph{}, 1.2},
	{"eager", color.RGBA{0, 114, 178, 255}, draw.BoxGlyph{}, 1.2},
	{"buffered", color.RGBA{110, 110, 110, 255}, strokes{{-1, 0, 1, 0}, {0, -1, 0, 1}}, 1.2},
	{"bun", color.RGBA{86, 180, 233, 255}, draw.PyramidGlyph{}, 1.2},
	{"gorm", color.RGBA{0, 158, 115, 255}, strokes{{-.8, -.8, .8, -.8, .8, .8, -.8, .8, -.8, -.8}}, 1.2},
	{"crdb", color.RGBA{204, 121, 167, 255}, strokes{{-1, -.7, 1, -.7, 0, 1, -1, -.7}}, 1.2},
	{"trm", color.RGBA{230, 159, 0, 255}, strokes{{-.8, -.8, .8, .8}, {-.8, .8, .8, -.8}}, 1.2},
	{"sqlreq", color.RGBA{213, 94, 0, 255}, diamond{}, 2.5},
}

func (s style) glyph() draw.GlyphStyle {
	return draw.GlyphStyle{Color: s.color, Shape: s.shape, Radius: 3 + s.width}
}

func (s style) line() draw.LineStyle {
	return draw.LineStyle{Color: s.color, Width: s.width}
}

// strokes is a shape of lines, each a list of x and y: gonum's are too thin to
// tell their colours.
type strokes [][]float64

func (g strokes) DrawGlyph(c *draw.Canvas, s draw.GlyphStyle, at vg.Point) {
	for _, line := range g {
		var points []vg.Point
		for i := 0; i < len(line); i += 2 {
			points = append(points, vg.Point{X: at.X + s.Radius*vg.Length(line[i]), Y: at.Y + s.Radius*vg.Length(line[i+1])})
		}
		c.StrokeLines(draw.LineStyle{Color: s.Color, Width: 1.8}, points)
	}
}

type diamond struct{}

func (diamond) DrawGlyph(c *draw.Canvas, s draw.GlyphStyle, at vg.Point) {
	r := s.Radius
	c.FillPolygon(s.Color, []vg.Point{{X: at.X - r, Y: at.Y}, {X: at.X, Y: at.Y - r}, {X: at.X + r, Y: at.Y}, {X: at.X, Y: at.Y + r}})
}

func writePlots(r *results, dir string) error {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	cost, err := costPlot(r)
	if err != nil {
		return err
	}
	median, err := clientsPlot(r, "p50-ns", "Median, 4 connections,\na fifth of the requests use the database")
	if err != nil {
		return err
	}
	worst, err := clientsPlot(r, "p99-ns", "99th percentile, 4 connections,\na fifth of the requests use the database")
	if err != nil {
		return err
	}
	memory, err := memoryPlot(r)
	if err != nil {
		return err
	}
	slow, err := slowPlot(r)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name  string
		plots []*plot.Plot
		w, h  vg.Length
	}{
		{"cost", []*plot.Plot{cost}, 760, 460},
		{"clients", []*plot.Plot{median, worst}, 900, 380},
		{"memory", []*plot.Plot{memory}, 700, 400},
		{"slow", []*plot.Plot{slow}, 760, 340},
	} {
		if err := save(filepath.Join(dir, f.name+".svg"), f.w, f.h, f.name != "slow", f.plots...); err != nil {
			return err
		}
	}
	return overview(r, filepath.Join(dir, "overview.svg"))
}

// inWords are the contenders of the overview, as a reader knows them who has seen
// nothing else.
var inWords = []struct{ by, words string }{
	{"hand", "by hand, in the handler"},
	{"eager", "a middleware that begins for each request"},
	{"sqlreq", "sqlreq"},
}

// overviewWorks are the works of the overview, from the top down.
var overviewWorks = []string{"nothing", "read", "durable"}

// overview is the plot of the README: three ways at three works, with a legend in
// words and a number at each mark. It is narrow, for a phone.
func overview(r *results, name string) error {
	p := newPlot("", "", "")
	p.X.Tick.Label.Font.Size, p.Y.Tick.Label.Font.Size = 13, 13
	names(&p.Y, []string{"no use of\nthe database", "100 rows\nread", "one INSERT,\non the disk"})
	logarithmic(&p.X, 8, 1e7, 10, func(v float64) string {
		if e := math.Round(math.Log10(v)); e == 1 || e == 3 || e == 5 {
			return timeLabel(v)
		}
		return ""
	})
	grid(p, true, false)
	for n, work := range overviewWorks {
		for i, c := range inWords {
			v, ok := r.median(id{"sqlite", "Request", work, c.by}, "ns/op")
			if !ok {
				continue
			}
			at := plotter.XY{X: math.Log10(v), Y: float64(len(overviewWorks)-1-n) + 0.28*float64(1-i)}
			g, err := plotter.NewScatter(plotter.XYs{at})
			if err != nil {
				return err
			}
			g.GlyphStyle = styleOf(c.by).glyph()
			l, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{at}, Labels: []string{duration([]float64{v})}})
			if err != nil {
				return err
			}
			l.TextStyle[0].Font, l.Offset = p.X.Tick.Label.Font, vg.Point{X: 9, Y: -4}
			p.Add(g, l)
		}
	}
	legend := plot.NewLegend()
	legend.Top, legend.Left = true, true
	legend.TextStyle.Font.Size, legend.Padding = 14, 5
	for _, c := range inWords {
		legend.Add(c.words, thumbnail{styleOf(c.by)})
	}
	canvas := vgsvg.New(460, 330)
	all := draw.New(canvas)
	all.SetColor(color.White)
	all.Fill(all.Rectangle.Path())
	legend.Draw(draw.Crop(all, 8, -8, 0, -8))
	p.Draw(draw.Crop(all, 8, -12, 8, -78))
	return write(name, canvas)
}

func styleOf(by string) style {
	return styles[slices.IndexFunc(styles, func(s style) bool { return s.by == by })]
}

// save draws the plots side by side, with the legend on their right.
func save(name string, w, h vg.Length, legend bool, plots ...*plot.Plot) error {
	canvas := vgsvg.New(w, h)
	all := draw.New(canvas)
	all.SetColor(color.White)
	all.Fill(all.Rectangle.Path())
	area := draw.Crop(all, 8, -8, 8, -8)
	if legend {
		const width = 92
		key := draw.Crop(area, area.Size().X-width, 0, 0, -24)
		area = draw.Crop(area, 0, -width, 0, 0)
		l := plot.NewLegend()
		l.Top, l.Left = true, true
		l.TextStyle.Font.Size = 12
		l.Padding = 5
		for _, s := range styles {
			l.Add(s.by, thumbnail{s})
		}
		l.Draw(key)
	}
	each := area.Size().X / vg.Length(len(plots))
	for i, p := range plots {
		p.Draw(draw.Crop(area, vg.Length(i)*each, vg.Length(i+1)*each-area.Size().X-8, 0, 0))
	}
	return write(name, canvas)
}

func write(name string, canvas *vgsvg.Canvas) error {
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return err
	}
	// The first has the measures that the plots were laid out with.
	out := bytes.ReplaceAll(svg.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;"))
	return os.WriteFile(name, out, 0o666)
}

type thumbnail struct{ style }

func (t thumbnail) Thumbnail(c *draw.Canvas) {
	y := c.Center().Y
	c.StrokeLine2(t.line(), c.Min.X, y, c.Max.X, y)
	c.DrawGlyph(t.glyph(), c.Center())
}

func newPlot(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text = title
	p.Title.TextStyle.Font.Size = 13
	p.Title.Padding = 6
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		a.Label.TextStyle.Font.Size = 12
		a.Tick.Label.Font.Size = 11
		a.Padding = 0
	}
	p.X.Label.Text, p.Y.Label.Text = x, y
	return p
}

// grid draws lines at the ticks with labels.
func grid(p *plot.Plot, vertical, horizontal bool) {
	g := plotter.NewGrid()
	light := draw.LineStyle{Color: color.Gray{220}, Width: 0.5}
	g.Vertical, g.Horizontal = light, light
	if !vertical {
		g.Vertical.Color = nil
	}
	if !horizontal {
		g.Horizontal.Color = nil
	}
	p.Add(g)
}

// logarithmic makes an axis for logarithms, with a label at every power of
// base. plot.LogScale would not know where the middle is, for the axis' label.
func logarithmic(a *plot.Axis, low, high, base float64, label func(float64) string) {
	var ticks []plot.Tick
	for e := math.Floor(math.Log(low) / math.Log(base)); ; e++ {
		v := math.Pow(base, e)
		if v > high*1.001 {
			break
		}
		if v >= low*0.999 {
			ticks = append(ticks, plot.Tick{Value: math.Log10(v), Label: label(v)})
		}
		for m := 2.0; base == 10 && m < 10; m++ {
			if minor := m * v; minor >= low && minor <= high {
				ticks = append(ticks, plot.Tick{Value: math.Log10(minor)})
			}
		}
	}
	logTicks(a, low, high, ticks...)
}

// logTicks is logarithmic with ticks of one's own.
func logTicks(a *plot.Axis, low, high float64, ticks ...plot.Tick) {
	a.Tick.Marker = plot.ConstantTicks(ticks)
	a.Min, a.Max = math.Log10(low), math.Log10(high)
}

// names makes an axis of names, from the last to the first.
func names(a *plot.Axis, names []string) {
	var ticks []plot.Tick
	for i, name := range names {
		ticks = append(ticks, plot.Tick{Value: float64(len(names) - 1 - i), Label: name})
	}
	a.Tick.Marker = plot.ConstantTicks(ticks)
	// Room for a font that is wider than the one known here.
	a.Tick.Length, a.Tick.Color = 8, color.Transparent
	a.Min, a.Max = -0.5, float64(len(names))-0.5
}

func timeLabel(v float64) string { return round(duration([]float64{v * 1.000001})) }

func sizeLabel(v float64) string { return round(memory([]float64{v})) }

func round(label string) string {
	return strings.Replace(strings.Replace(label, ".00 ", " ", 1), ".0 ", " ", 1)
}

// line adds a contender's line with points.
func line(p *plot.Plot, s style, points plotter.XYs) error {
	if len(points) == 0 {
		return nil
	}
	l, g, err := plotter.NewLinePoints(points)
	if err != nil {
		return err
	}
	l.LineStyle, g.GlyphStyle = s.line(), s.glyph()
	p.Add(l, g)
	return nil
}

// costPlot has a band for each work, and a row in it for each contender.
func costPlot(r *results) (*plot.Plot, error) {
	p := newPlot("Time for a request, in-process, SQLite (median)", "time for a request (log scale)", "")
	works := []string{"nothing", "headers", "insert", "statements=10", "read"}
	names(&p.Y, []string{"no database", "no database,\nthree headers", "one INSERT", "ten statements", "100 rows read"})
	logarithmic(&p.X, 10, 1e6, 10, timeLabel)
	grid(p, true, false)
	for n, work := range works {
		band := float64(len(works) - 1 - n)
		if n > 0 {
			l, err := plotter.NewLine(plotter.XYs{{X: p.X.Min, Y: band + 0.5}, {X: p.X.Max, Y: band + 0.5}})
			if err != nil {
				return nil, err
			}
			l.LineStyle = draw.LineStyle{Color: color.Gray{150}, Width: 0.5}
			p.Add(l)
		}
		for i, s := range styles {
			v, ok := r.median(id{"sqlite", "Request", work, s.by}, "ns/op")
			if !ok {
				continue
			}
			y := band + 0.36 - 0.72*float64(i)/float64(len(styles)-1)
			g, err := plotter.NewScatter(plotter.XYs{{X: math.Log10(v), Y: y}})
			if err != nil {
				return nil, err
			}
			g.GlyphStyle = s.glyph()
			p.Add(g)
		}
	}
	return p, nil
}

func clientsPlot(r *results, unit, name string) (*plot.Plot, error) {
	p := newPlot(name, "clients (log scale)", "latency of a request (log scale)")
	logarithmic(&p.X, 0.85, 300, 4, func(v float64) string { return fmt.Sprintf("%.0f", v) })
	logarithmic(&p.Y, 1e6, 1e9, 10, timeLabel)
	grid(p, true, true)
	for _, s := range styles {
		var points plotter.XYs
		for _, n := range counts {
			if v, ok := r.median(id{"sqlite", "Server", "clients=" + n, s.by}, unit); ok {
				x, err := strconv.ParseFloat(n, 64)
				if err != nil {
					return nil, err
				}
				points = append(points, plotter.XY{X: math.Log10(x), Y: math.Log10(v)})
			}
		}
		if err := line(p, s, points); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func memoryPlot(r *results) (*plot.Plot, error) {
	p := newPlot("Memory in use for an answer, transaction open", "size of the answer (log scale)", "most memory in use (log scale)")
	works := []struct {
		group, name string
		size        float64
	}{{"Server", "1KiB", 1 << 10}, {"Server", "64KiB", 64 << 10}, {"Server", "1MiB", 1 << 20}, {"Server", "64MiB", 64 << 20}, {"Stream", "1GiB", 1 << 30}}
	var ticks []plot.Tick
	for _, w := range works {
		ticks = append(ticks, plot.Tick{Value: math.Log10(w.size), Label: sizeLabel(w.size)})
	}
	const least = 1 << 10
	logTicks(&p.X, 1<<10*0.8, 1<<30*1.4, ticks...)
	logarithmic(&p.Y, least, 1<<28, 16, sizeLabel)
	grid(p, true, true)
	for _, s := range styles {
		var points plotter.XYs
		for _, w := range works {
			if v, ok := r.median(id{"sqlite", w.group, "answer=" + w.name, s.by}, "held-B"); ok {
				points = append(points, plotter.XY{X: math.Log10(w.size), Y: math.Log10(max(v, least))})
			}
		}
		if err := line(p, s, points); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// slowPlot has a row for each contender: from the 10th to the 99th percentile,
// and the median.
func slowPlot(r *results) (*plot.Plot, error) {
	p := newPlot("Everybody else beside 100 clients that read 32 KiB at 1 KiB/s, 4 connections",
		"latency (log scale): 10th percentile, median (mark), 99th percentile; after 1 s they give up", "")
	var all []string
	for _, s := range styles {
		all = append(all, s.by)
	}
	names(&p.Y, all)
	logarithmic(&p.X, 1e5, 2e9, 10, timeLabel)
	grid(p, true, false)
	for i, s := range styles {
		k := id{"sqlite", "SlowClients", "slow=100", s.by}
		var points plotter.XYs
		for _, q := range []string{"p10-ns", "p50-ns", "p99-ns"} {
			if v, ok := r.median(k, q); ok {
				points = append(points, plotter.XY{X: math.Log10(v), Y: float64(len(styles) - 1 - i)})
			}
		}
		if len(points) < 3 {
			continue
		}
		l, err := plotter.NewLine(points)
		if err != nil {
			return nil, err
		}
		l.LineStyle = s.line()
		l.LineStyle.Width = 3
		g, err := plotter.NewScatter(points[1:2])
		if err != nil {
			return nil, err
		}
		g.GlyphStyle = s.glyph()
		g.GlyphStyle.Radius = 6
		p.Add(l, g)
	}
	return p, nil
}
