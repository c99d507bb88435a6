package browser

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"slices"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

// Picture returns a picture, as PNG, of what lies between the top left of the element that one selector finds and the
// bottom right of another's. A page is taken whole by "html".
func (p *Page) Picture(from, to string) ([]byte, error) {
	const margin = 16 // around an element
	box, err := Eval[struct{ Left, Top, Right, Bottom float64 }](p, fmt.Sprintf(`(() => {
		document.activeElement.blur();
		const boxes = [%q, %q].map((selector) => document.querySelector(selector).getBoundingClientRect());
		return {
			Left: Math.min(...boxes.map((box) => box.left)) + scrollX, Right: Math.max(...boxes.map((box) => box.right)) + scrollX,
			Top: boxes[0].top + scrollY, Bottom: boxes[1].bottom + scrollY,
		};
	})()`, from, to))
	if err != nil {
		return nil, err
	}
	if from != "html" {
		box.Left, box.Top = max(0, box.Left-margin), max(0, box.Top-margin)
		box.Right, box.Bottom = min(float64(p.view.Width), box.Right+margin), box.Bottom+margin
	}
	beyond := true
	var picture []byte
	err = p.within(func(ctx context.Context) error {
		_, err := chromedp.Run(ctx, func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
			result, err := cdp.Call(ctx, t, page.CaptureScreenshot, page.CaptureScreenshotParams{
				CaptureBeyondViewport: &beyond,
				Clip:                  &page.Viewport{X: box.Left, Y: box.Top, Width: box.Right - box.Left, Height: box.Bottom - box.Top, Scale: 1},
			})
			if err == nil {
				picture, err = smaller(result.Data)
			}
			return chromedp.Void{}, err
		})
		return err
	})
	return picture, err
}

// smaller gives a picture a palette: its pages are of few colours. Of more than 256 the most frequent ones are kept.
func smaller(picture []byte) ([]byte, error) {
	decoded, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		return nil, err
	}
	counts := map[color.Color]int{}
	box := decoded.Bounds()
	for y := box.Min.Y; y < box.Max.Y; y++ {
		for x := box.Min.X; x < box.Max.X; x++ {
			counts[color.RGBAModel.Convert(decoded.At(x, y))]++
		}
	}
	var colors color.Palette
	for c := range counts {
		colors = append(colors, c)
	}
	slices.SortFunc(colors, func(a, b color.Color) int {
		if n := counts[b] - counts[a]; n != 0 {
			return n
		}
		x, y := a.(color.RGBA), b.(color.RGBA)
		return slices.Compare([]uint8{x.R, x.G, x.B, x.A}, []uint8{y.R, y.G, y.B, y.A})
	})
	paletted := image.NewPaletted(box, colors[:min(256, len(colors))])
	draw.Draw(paletted, box, decoded, box.Min, draw.Src)
	var out bytes.Buffer
	err = (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, paletted)
	return out.Bytes(), err
}
