package browser

import (
	"bytes"
	"flag"
	"image/png"
	"os"
	"path/filepath"
	"testing"
)

var picturesFolder = flag.String("pictures", "", "the `folder` that the pictures of the papers are written to")

// picture is one of them.
type picture struct {
	file     string
	path     string // of the page
	view     View
	from, to string // what of the page it shows; "" for all
}

// examplePictures are those of the examples, by what they show.
var examplePictures = map[string][]picture{
	"notes": {
		{"notes-1280.png", "/", View{Width: 1280}, "", ""},
		{"notes-390.png", "/", View{Width: 390}, "", ""},
		{"demo-1280.png", "/demo", View{Width: 1280}, "", ""},
		{"demo-390.png", "/demo", View{Width: 390}, "", ""},
		{"once-1280.png", "/demo/once", View{Width: 1280}, "", ""},
		{"once-390.png", "/demo/once", View{Width: 390}, "", ""},
		{"admin-390-dark.png", "/admin/", View{Width: 390, Dark: true}, "", ""},
	},
	"orders": {
		{"orders-1280.png", "/acme/", View{Width: 1280}, "", ""},
		{"orders-390.png", "/acme/", View{Width: 390}, "", ""},
		{"orders-admin-1280-dark.png", "/admin/", View{Width: 1280, Dark: true}, "", ""},
	},
}

func take(t *testing.T, s *Service, folder string, pictures []picture) {
	t.Helper()
	p := open(t, Views[0])
	for _, c := range pictures {
		if c.from == "" {
			c.from, c.to = "html", "html"
		}
		if err := p.Show(c.view); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Open(s.URL + c.path); err != nil {
			t.Fatal(err)
		}
		data, err := p.Picture(c.from, c.to)
		if err != nil {
			t.Fatalf("%s: %v", c.file, err)
		}
		decoded, err := png.Decode(bytes.NewReader(data))
		if err != nil {
			t.Fatalf("%s: %v", c.file, err)
		}
		if size := decoded.Bounds().Size(); size.X != c.view.Width || size.Y < 200 {
			t.Errorf("%s is %v, want a width of %d", c.file, size, c.view.Width)
		}
		if err := os.WriteFile(filepath.Join(folder, c.file), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
