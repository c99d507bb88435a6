package main

import (
	"bytes"
	"fmt"
	"image/color"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// mark is how a number of orders looks: a colour of Okabe and Ito's palette, which the colour-blind can tell apart,
// and a shape.
type mark struct {
	orders int
	words  string
	color  color.RGBA
	shape  draw.GlyphDrawer
}

var marks = []mark{
	{0, "the order was lost", color.RGBA{0, 0, 0, 255}, draw.PyramidGlyph{}},
	{1, "the order was made once", color.RGBA{0, 114, 178, 255}, draw.CircleGlyph{}},
	{2, "the order was made twice", color.RGBA{190, 70, 0, 255}, filledBox{}},
}

func (m mark) glyph(r vg.Length) draw.GlyphStyle {
	return draw.GlyphStyle{Color: m.color, Shape: m.shape, Radius: r}
}

// Thumbnail draws the mark in the legend.
func (m mark) Thumbnail(c *draw.Canvas) { c.DrawGlyph(m.glyph(7), c.Center()) }

// filledBox is a square as high as the circle beside it.
type filledBox struct{}

func (filledBox) DrawGlyph(c *draw.Canvas, s draw.GlyphStyle, at vg.Point) {
	r := s.Radius * 0.92
	c.FillPolygon(s.Color, []vg.Point{{X: at.X - r, Y: at.Y - r}, {X: at.X + r, Y: at.Y - r}, {X: at.X + r, Y: at.Y + r}, {X: at.X - r, Y: at.Y + r}})
}

// drawFigure lays the outcomes out as a table: a line for each point, a column for each way, a mark in each.
func drawFigure(rows []row) ([]byte, error) {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	p := plot.New()
	p.X.Min, p.X.Max = -0.5, float64(len(ways))+0.6
	p.Y.Min, p.Y.Max = -0.6, float64(len(points))-0.4
	p.X.LineStyle.Width, p.Y.LineStyle.Width = 0, 0
	p.X.Tick.Length, p.Y.Tick.Length = 0, 0
	p.X.Tick.Marker = plot.ConstantTicks(nil)
	var ticks []plot.Tick
	for i, at := range points {
		ticks = append(ticks, plot.Tick{Value: y(i), Label: string(at)})
	}
	p.Y.Tick.Marker = plot.ConstantTicks(ticks)
	p.Y.Tick.Label.Font.Size = 13
	p.Y.Padding = 4
	used := map[int]bool{}
	for i, at := range points {
		line, err := plotter.NewLine(plotter.XYs{{X: p.X.Min, Y: y(i)}, {X: float64(len(ways)) - 0.5, Y: y(i)}})
		if err != nil {
			return nil, err
		}
		line.LineStyle = draw.LineStyle{Color: color.Gray{200}, Width: 0.5}
		p.Add(line)
		var seen []string
		for n, by := range ways {
			met := of(rows, at, by)
			if len(met) == 0 {
				return nil, fmt.Errorf("nothing is known of %s, %s", at, by)
			}
			for k, r := range met {
				if r.orders >= len(marks) {
					return nil, fmt.Errorf("%d orders at %s, %s", r.orders, at, by)
				}
				used[r.orders] = true
				// One mark in the middle, or one beside the other with how often each was met.
				x := float64(n) + 0.3*(float64(k)-float64(len(met)-1)/2)
				if err := addMark(p, plotter.XY{X: x, Y: y(i)}, marks[r.orders], r.kills, len(met) > 1); err != nil {
					return nil, err
				}
				if words := sees(r.first); !strings.Contains(strings.Join(seen, " or "), words) {
					seen = append(seen, words)
				}
			}
		}
		if err := addText(p, plotter.XY{X: float64(len(ways)), Y: y(i)}, strings.Join(seen, " or "), color.Black); err != nil {
			return nil, err
		}
	}
	return compose(p, used, rows)
}

func y(i int) float64 { return float64(len(points) - 1 - i) }

// sees is what the client saw, as the figure says it.
func sees(first string) string {
	if first == whole {
		return "the answer"
	}
	return first
}

func of(rows []row, at point, by way) (met []row) {
	for _, r := range rows {
		if r.point == at && r.way == by {
			met = append(met, r)
		}
	}
	return met
}

func addMark(p *plot.Plot, at plotter.XY, m mark, kills int, several bool) error {
	g, err := plotter.NewScatter(plotter.XYs{at})
	if err != nil {
		return err
	}
	g.GlyphStyle = m.glyph(10)
	p.Add(g)
	label := fmt.Sprint(m.orders)
	if several {
		label = fmt.Sprintf("%d (%d)", m.orders, kills)
	}
	return addText(p, at, label, color.White)
}

func addText(p *plot.Plot, at plotter.XY, words string, c color.Color) error {
	l, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{at}, Labels: []string{words}})
	if err != nil {
		return err
	}
	l.TextStyle[0].Font = font.From(plot.DefaultFont, 13)
	l.TextStyle[0].XAlign, l.TextStyle[0].YAlign, l.TextStyle[0].Color = text.XCenter, text.YCenter, c
	l.Offset = vg.Point{Y: 1.5} // the middle of a line is not that of its digits
	p.Add(l)
	return nil
}

// compose puts the heads of the columns and the legend above the plot, on white: it is read in dark surroundings too.
func compose(p *plot.Plot, used map[int]bool, rows []row) ([]byte, error) {
	const width, height = 700, 420
	for n, words := range []string{"no keys", "keys in a second\ntransaction", "keys by\nidempotency", "the client saw\nat first"} {
		x := float64(n)
		if err := addText(p, plotter.XY{X: x, Y: float64(len(points)) - 0.05}, words, color.Black); err != nil {
			return nil, err
		}
	}
	p.Y.Max = float64(len(points)) + 0.4
	legend := plot.NewLegend()
	legend.Top, legend.Left = true, true
	legend.TextStyle.Font.Size, legend.Padding = 13, 5
	for _, m := range marks {
		if used[m.orders] {
			legend.Add(m.words, m)
		}
	}
	canvas := vgsvg.New(width, height)
	all := draw.New(canvas)
	all.SetColor(color.White)
	all.Fill(all.Rectangle.Path())
	title := draw.TextStyle{Color: color.Black, Font: font.From(plot.DefaultFont, 15), Handler: p.Title.TextStyle.Handler, YAlign: text.YTop}
	all.FillText(title, vg.Point{X: 8, Y: height - 8}, fmt.Sprintf("A server is killed at one point of a request, and the client repeats it (%d kills for each mark)", killsOf(rows)))
	legend.Draw(draw.Crop(all, 8, -8, 0, -32))
	p.Draw(draw.Crop(all, 8, -8, 8, -80))
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return nil, err
	}
	// The first has the measures that the figure was laid out with.
	return bytes.ReplaceAll(svg.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;")), nil
}

func killsOf(rows []row) (n int) {
	for _, r := range of(rows, points[0], ways[0]) {
		n += r.kills
	}
	return n
}
