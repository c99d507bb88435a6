package browser

import (
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// person is somebody with a keyboard and no mouse. What they can't do ends the test.
type person struct {
	t *testing.T
	*Page
}

func (p person) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// goTo types an address.
func (p person) goTo(address string, want int) {
	p.t.Helper()
	status, err := p.Open(address)
	p.must(err)
	if status != want {
		p.t.Fatalf("%s is answered with %d, want %d", address, status, want)
	}
}

// tabTo goes on by the Tab key to the control of that name.
func (p person) tabTo(name string) {
	p.t.Helper()
	p.must(p.TabTo(name))
}

// follow goes to a link or a button by the Tab key and presses Enter, and the page that comes has that status.
func (p person) follow(name string, want int) {
	p.t.Helper()
	p.tabTo(name)
	p.enter(want)
}

// enter presses Enter, which loads a page.
func (p person) enter(want int) {
	p.t.Helper()
	status, err := p.PressAndLoad(kb.Enter)
	p.must(err)
	if status != want {
		text, _ := Eval[string](p.Page, "document.body.innerText")
		p.t.Fatalf("the answer is %d, want %d: %s", status, want, text)
	}
}

// fill goes to a field by the Tab key and types, instead of what is there.
func (p person) fill(name, text string) {
	p.t.Helper()
	p.tabTo(name)
	p.overwrite(text)
}

// overwrite types into the field that has the focus, instead of what is there.
func (p person) overwrite(text string) {
	p.t.Helper()
	p.must(p.Press("a", chromedp.KeyModifiers(kb.ModifierCtrl)))
	p.must(p.Press(text))
}

// focus is the name of what has the focus.
func (p person) focus() string {
	p.t.Helper()
	name, err := Eval[string](p.Page, checkJS("focused"))
	p.must(err)
	return name
}

// reads ends the test if the page does not say something.
func (p person) reads(texts ...string) {
	p.t.Helper()
	page, err := Eval[string](p.Page, "document.body.innerText.replace(/\\s+/g, ' ')")
	p.must(err)
	for _, text := range texts {
		if !strings.Contains(page, text) {
			p.t.Fatalf("the page does not say %q, but: %s", text, page)
		}
	}
}

// looks makes all checks on the page as it is, in every view.
func (p person) looks() {
	p.t.Helper()
	found, err := InspectAll(p.Page)
	p.must(err)
	for _, problem := range found {
		p.t.Errorf("%s: %s", p.title(), problem)
	}
}

func (p person) title() string {
	title, _ := Eval[string](p.Page, "document.title")
	return title
}
