package browser

import (
	"bytes"
	"flag"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var (
	picturesFolder = flag.String("pictures", "", "the `folder` that the pictures of the papers are written to")
	everyPage      = flag.Bool("every", false, "write pictures of the pages at both widths as well")
)

// picture is one that is taken.
type picture struct {
	file     string // without .png
	path     string // of the page
	press    string // a button that is pressed before; "" for none
	view     View
	from, to string // what of the page it shows, from the top of one element to the bottom of another; "" for all
}

// papers are the pictures in docs/, which the README and other papers show, by the example that they are of.
var papers = map[string][]picture{
	"notes": {
		{"demo", "/demo", "Make it happen", View{Width: 760}, "#commit h2", "#commit .sides"},
		{"once", "/demo/once", "Order, and kill the server", View{Width: 760}, "#result h2", "#result .sides"},
	},
	"orders": {
		{"orders", "/acme/", "", View{Width: 760}, "header", "main"},
	},
}

// pages are pictures of whole pages, each taken at both widths.
var pages = map[string][]picture{
	"notes": {
		{file: "notes", path: "/"},
		{file: "demo-before", path: "/demo"},
		{file: "demo-after", path: "/demo", press: "Make all five happen"},
		{file: "once-before", path: "/demo/once"},
		{file: "once-after", path: "/demo/once", press: "Order, and kill the server"},
		{file: "notes-admin", path: "/admin/"},
		{file: "notes-audit", path: "/admin/audit/"},
	},
	"orders": {
		{file: "orders-home", path: "/"},
		{file: "orders-shop", path: "/acme/"},
		{file: "orders-order", path: "/acme/", press: "Order"},
		{file: "orders-admin", path: "/admin/"},
	},
}

// TestPictures takes the pictures of the papers. Without the flag they are looked at and thrown away.
func TestPictures(t *testing.T) {
	t.Parallel()
	folder := *picturesFolder
	if folder == "" {
		folder = t.TempDir()
	}
	notes, orders := start(t, "notes", "-db", ":memory:"), start(t, "orders", "-db", ":memory:")
	for _, title := range []string{"Milk", "Rice", "Beans"} {
		addNote(t, notes, title, "What is left to buy.", "shop")
	}
	for i, key := range []string{"first", "second"} {
		order(t, orders, "acme", key, 1, 1+i)
	}
	for example, s := range map[string]*Service{"notes": notes, "orders": orders} {
		p := person{t, open(t, Views[0])}
		for _, c := range papers[example] {
			p.take(s, c, folder)
		}
		if !*everyPage {
			continue
		}
		for _, c := range pages[example] {
			for _, view := range Views {
				c.view = view
				whole := c
				whole.file += "-" + strings.ReplaceAll(view.String(), " ", "-")
				p.take(s, whole, folder)
			}
		}
	}
}

func (p person) take(s *Service, c picture, folder string) {
	p.t.Helper()
	if c.from == "" {
		c.from, c.to = "html", "html"
	}
	p.must(p.Show(c.view))
	p.goTo(s.URL+c.path, 200)
	if c.press != "" {
		p.tabTo(c.press)
		p.enter(200)
	}
	data, err := p.Picture(c.from, c.to)
	p.must(err)
	decoded, err := png.Decode(bytes.NewReader(data))
	p.must(err)
	if size := decoded.Bounds().Size(); size.X > c.view.Width || size.X < c.view.Width*3/4 || size.Y < 200 {
		p.t.Errorf("%s is %v, want nearly a width of %d", c.file, size, c.view.Width)
	}
	p.must(os.WriteFile(filepath.Join(folder, c.file+".png"), data, 0o644))
}

// TestPicturesOfPapers finds an entry for each picture in docs/, and a picture for each entry: none is made by hand.
func TestPicturesOfPapers(t *testing.T) {
	var there, made []string
	files, err := filepath.Glob("../../docs/*.png")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		there = append(there, strings.TrimSuffix(filepath.Base(file), ".png"))
	}
	for _, pictures := range papers {
		for _, c := range pictures {
			made = append(made, c.file)
		}
	}
	slices.Sort(made)
	if !slices.Equal(there, made) {
		t.Errorf("docs/ has the pictures %q, and the table above %q", there, made)
	}
}
