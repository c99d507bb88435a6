package main

import (
	"bytes"
	"fmt"
	"image/color"
	"io/fs"
	"math"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// The files in docs/.
const (
	traceData, tracePicture         = "trace.csv", "trace.svg"
	dashboardData, dashboardPicture = "dashboard.csv", "dashboard.svg"
)

// Colours of Okabe and Ito's palette, which the colour-blind can tell apart.
var (
	black  = color.RGBA{0, 0, 0, 255}
	gray   = color.RGBA{190, 190, 190, 255}
	orange = color.RGBA{230, 159, 0, 255}
	blue   = color.RGBA{0, 114, 178, 255}
	green  = color.RGBA{0, 158, 115, 255}
	red    = color.RGBA{213, 94, 0, 255}
	purple = color.RGBA{204, 121, 167, 255}
)

// pictures makes both of the data in docs.
func pictures(docs fs.FS) (map[string][]byte, error) {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	file, err := docs.Open(traceData)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	spans, err := readTraces(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", traceData, err)
	}
	file, err = docs.Open(dashboardData)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	all, err := readDashboard(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dashboardData, err)
	}
	trace, err := drawTraces(spans)
	if err != nil {
		return nil, err
	}
	dashboard, err := drawDashboard(all)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{tracePicture: trace, dashboardPicture: dashboard}, nil
}

// sheet is a white picture.
type sheet struct {
	draw.Canvas
	svg *vgsvg.Canvas
}

func newSheet(w, h vg.Length) sheet {
	svg := vgsvg.New(w, h)
	c := draw.New(svg)
	c.SetColor(color.White)
	c.Fill(c.Rectangle.Path())
	return sheet{c, svg}
}

func (s sheet) bytes() ([]byte, error) {
	var b bytes.Buffer
	if _, err := s.svg.WriteTo(&b); err != nil {
		return nil, err
	}
	// The first has the measures that the picture was laid out with.
	return bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;")), nil
}

// words writes a line of text; x is where it begins, y its middle.
func (s sheet) words(x, y vg.Length, size vg.Length, c color.Color, line string) {
	s.FillText(text.Style{Color: c, Font: fontOf(size), YAlign: text.YCenter, Handler: plot.DefaultTextHandler}, vg.Point{X: x, Y: y}, line)
}

// centered writes a line of text around x.
func (s sheet) centered(x, y vg.Length, line string) {
	s.words(x-widthOf(line, small)/2, y, small, black, line)
}

// box draws a bar around the height y.
func (s sheet) box(from, to, y, height vg.Length, fill color.Color) {
	s.FillPolygon(fill, []vg.Point{{X: from, Y: y - height/2}, {X: to, Y: y - height/2}, {X: to, Y: y + height/2}, {X: from, Y: y + height/2}})
}

// frame draws the outline of a bar.
func (s sheet) frame(from, to, y, height vg.Length) {
	low, high := y-height/2-1, y+height/2+1
	s.StrokeLines(draw.LineStyle{Color: red, Width: 2},
		[]vg.Point{{X: from, Y: low}, {X: to, Y: low}, {X: to, Y: high}, {X: from, Y: high}, {X: from, Y: low}})
}

// part is a piece of a transaction's bar.
type part struct {
	words string
	fill  color.Color
}

var parts = []part{
	{"a request (otelhttp)", gray},
	{"a transaction: waits for a connection and BEGIN", orange},
	{"is open", blue},
	{"COMMIT or ROLLBACK", green},
}

// drawTraces draws the traces one below the other, on one scale.
func drawTraces(spans []span) ([]byte, error) {
	const (
		width, row, bar = 860, 22, 13
		left, right     = 190, 600 // of the bars
		top             = 62
	)
	var longest int64
	rows := 0
	for i, s := range spans {
		longest = max(longest, s.End)
		rows++
		if i > 0 && s.Request != spans[i-1].Request {
			rows++
		}
	}
	height := vg.Length(top + row*rows + 40)
	c := newSheet(width, height)
	legend(c, height-18, parts)
	c.frame(14, 32, height-42, 10)
	c.words(38, height-42, normal, black, "red frame: the span's status is an error")

	step, ticks := scale(longest, 8)
	at := func(us int64) vg.Length { return left + vg.Length(us)*(right-left)/vg.Length(step*int64(ticks)) }
	bottom := height - top - vg.Length(row*rows)
	for i := range ticks + 1 {
		x := at(step * int64(i))
		c.StrokeLine2(draw.LineStyle{Color: color.Gray{220}, Width: 0.5}, x, bottom, x, height-top+6)
		c.centered(x, bottom-9, fmt.Sprintf("%g", float64(step*int64(i))/1000))
	}
	c.centered((left+right)/2, bottom-25, "milliseconds since the request arrived")
	y := height - top - row/2
	for i, s := range spans {
		if i > 0 && s.Request != spans[i-1].Request {
			y -= row
		}
		if !s.isTransaction() {
			c.words(14, y, normal, black, s.Name)
			c.box(at(s.Start), at(s.End), y, bar, gray)
			c.words(right+8, y, normal, black, s.Request)
		} else {
			drawTransaction(c, s, at, y, bar, right+8)
		}
		y -= row
	}
	return c.bytes()
}

func drawTransaction(c sheet, s span, at func(int64) vg.Length, y, bar, x vg.Length) {
	c.words(30, y, normal, black, fmt.Sprintf("%s, attempt %s", s.Name, s.Attempt))
	from := s.Start
	for i, to := range []int64{s.Begun, s.Ending, s.End} {
		c.box(at(from), at(to), y, bar, parts[1+i].fill)
		from = to
	}
	words, ink := s.Operation+": "+s.Outcome, color.Color(black)
	if s.Failed {
		words, ink = words+", "+s.ErrorType, red
		c.frame(at(s.Start), at(s.End), y, bar)
	}
	c.words(x, y, normal, ink, words)
}

// legend writes what the colours mean, in a line.
func legend(c sheet, y vg.Length, all []part) {
	x := vg.Length(14)
	for _, p := range all {
		c.box(x, x+18, y, 12, p.fill)
		c.words(x+24, y, normal, black, p.words)
		x += 24 + widthOf(p.words, normal) + 22
	}
}

// scale returns the distance of the ticks of an axis that is as long as that many
// units at least, and their number, which is limited.
func scale(longest, most int64) (step int64, ticks int) {
	for power := int64(1); ; power *= 10 {
		for _, factor := range []int64{1, 2, 5} {
			if step = factor * power; longest <= most*step {
				return step, int((longest + step - 1) / step)
			}
		}
	}
}

// drawDashboard draws the four numbers one below the other, each above an axis of time.
func drawDashboard(all []numbers) ([]byte, error) {
	const (
		width, height    = 860, 700
		top, left, right = 66, 14, 22
		axis             = 46 // from the left edge of a panel to its axis
	)
	c := newSheet(width, height)
	c.words(left, height-14, normal, black, fmt.Sprintf("%d clients, a pool of %d connections; percentiles and rates are of the last %d s", clients, connections, window))
	first, last := all[0].Second-1, all[len(all)-1].Second
	at := func(second int) vg.Length {
		return left + axis + vg.Length(second-first)*(width-left-right-axis)/vg.Length(last-first)
	}
	for i, n := range all {
		if i == 0 || n.Phase != all[i-1].Phase {
			for line, text := range wrap(n.Phase, 180) {
				c.words(at(n.Second-1)+4, height-36-vg.Length(14*line), normal, black, text)
			}
			border(c, at(n.Second-1), height-28, height-60)
		}
	}
	each := vg.Length(height-top-26) / vg.Length(len(panels))
	for i, p := range panels {
		upper := height - top - vg.Length(i)*each
		p.draw(c, all, at, upper-each+16, upper)
	}
	for second := first; second <= last; second += 5 {
		label := fmt.Sprint(second)
		if second == last {
			label += " s"
		}
		c.centered(at(second), 14, label)
	}
	return c.bytes()
}

// series is a line of a panel.
type series struct {
	name  string
	color color.Color
	of    func(numbers) float64
}

// panel is one of the four numbers.
type panel struct {
	title  string
	isTime bool // milliseconds, on a logarithmic scale
	series []series
}

var panels = []panel{
	{"waiting for the pool: 99th percentile", true, []series{{"", orange, func(n numbers) float64 { return n.Wait }}}},
	{"holding a connection: 99th percentile", true, []series{{"", blue, func(n numbers) float64 { return n.Use }}}},
	{"what did not commit, a second", false, []series{
		{"rolled_back", green, func(n numbers) float64 { return n.RolledBack }},
		{"commit_failed", red, func(n numbers) float64 { return n.CommitFailed }},
		{"ended", black, func(n numbers) float64 { return n.Ended }},
	}},
	{"run again, a second", false, []series{{"", purple, func(n numbers) float64 { return n.Again }}}},
}

// draw draws the panel between two heights.
func (p panel) draw(c sheet, all []numbers, at func(int) vg.Length, low, high vg.Length) {
	const heading = 20
	x := at(all[0].Second - 1)
	c.words(x, high-heading/2, large, black, p.title)
	next := x + widthOf(p.title, large) + 20
	for _, s := range p.series {
		if s.name != "" {
			c.StrokeLine2(draw.LineStyle{Color: s.color, Width: 2.5}, next, high-heading/2, next+20, high-heading/2)
			c.words(next+25, high-heading/2, normal, black, s.name)
			next += 25 + widthOf(s.name, normal) + 16
		}
	}
	up, ticks := p.axis(all)
	y := func(v float64) vg.Length { return low + vg.Length(up(v))*(high-heading-low) }
	for _, t := range ticks {
		label := fmt.Sprintf("%g", t)
		if p.isTime {
			label = fmt.Sprintf("%g ms", t*1000)
		}
		c.words(x-widthOf(label, small)-5, y(t), small, black, label)
		c.StrokeLine2(draw.LineStyle{Color: color.Gray{215}, Width: 0.5}, x, y(t), at(all[len(all)-1].Second), y(t))
	}
	for i, n := range all {
		if i == 0 || n.Phase != all[i-1].Phase {
			border(c, at(n.Second-1), low, high-heading)
		}
	}
	for _, s := range p.series {
		var line []vg.Point
		for _, n := range all {
			if v := s.of(n); !math.IsNaN(v) {
				line = append(line, vg.Point{X: at(n.Second), Y: y(v)})
			}
		}
		c.StrokeLines(draw.LineStyle{Color: s.color, Width: 2}, line)
	}
}

// axis returns what makes a share of the panel's height of a value, and where the ticks are.
func (p panel) axis(all []numbers) (up func(float64) float64, ticks []float64) {
	highest := 0.0
	for _, n := range all {
		for _, s := range p.series {
			if v := s.of(n); v > highest {
				highest = v
			}
		}
	}
	if p.isTime {
		const least = 0.0005
		decades := math.Ceil(math.Log10(highest/least)*2) / 2
		for t := 0.001; t <= least*math.Pow10(3)*math.Pow10(int(decades)); t *= 10 {
			if share := math.Log10(t/least) / decades; share <= 1 {
				ticks = append(ticks, t)
			}
		}
		return func(v float64) float64 { return math.Log10(max(v, least)/least) / decades }, ticks
	}
	step, n := scale(int64(math.Ceil(highest)), 4)
	for i := range n + 1 {
		ticks = append(ticks, float64(step*int64(i)))
	}
	return func(v float64) float64 { return v / float64(step*int64(n)) }, ticks
}

// wrap breaks a text into lines of a width.
func wrap(words string, width vg.Length) (lines []string) {
	for _, word := range strings.Fields(words) {
		if n := len(lines); n > 0 {
			longer := lines[n-1] + " " + word
			if widthOf(longer, normal) <= width {
				lines[n-1] = longer
				continue
			}
		}
		lines = append(lines, word)
	}
	return lines
}

// border is the line between two phases.
func border(c sheet, x, from, to vg.Length) {
	c.StrokeLine2(draw.LineStyle{Color: color.Gray{120}, Width: 0.7}, x, from, x, to)
}

// Sizes of text.
const (
	small  = vg.Length(11)
	normal = vg.Length(12)
	large  = vg.Length(13)
)

func widthOf(line string, size vg.Length) vg.Length {
	w, _, _ := plot.DefaultTextHandler.Box(line, fontOf(size))
	return w
}

func fontOf(size vg.Length) font.Font {
	f := plot.DefaultFont
	f.Size = size
	return f
}
