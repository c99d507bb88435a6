package browser

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// tooManyTabs ends a tour through a page that has no end.
const tooManyTabs = 500

// keyboard presses Tab until it has been everywhere.
func (p *Page) keyboard() ([]string, error) {
	found, err := Eval[[]string](p, checkJS("clickable"))
	if err != nil {
		return nil, err
	}
	stops, err := Eval[int](p, checkJS("beginTour"))
	if err != nil {
		return nil, err
	}
	outside := 0
	for range tooManyTabs {
		if err := p.Press(kb.Tab); err != nil {
			return nil, err
		}
		at, err := Eval[string](p, checkJS("tour"))
		if err != nil {
			return nil, err
		}
		switch at {
		case "":
			outside++
		case "stays":
			if stops > 1 {
				where, err := Eval[string](p, checkJS("focusedInfo"))
				if err != nil {
					return nil, err
				}
				found = append(found, "the Tab key does not leave "+where)
			}
		}
		// The tour is at an end where it has been before. A page without any stop is left and entered again.
		if at == "again" || at == "stays" || outside > 2 {
			rest, err := Eval[[]string](p, checkJS("endTour"))
			return append(found, rest...), err
		}
	}
	return append(found, fmt.Sprintf("the Tab key finds no end after %d times", tooManyTabs)), nil
}

// Press presses a key, or types a text.
func (p *Page) Press(keys string, options ...chromedp.KeyOption) error {
	return p.within(func(ctx context.Context) error {
		return chromedp.Do(ctx, chromedp.KeyEvent(keys, options...))
	})
}

// PressAndLoad presses a key that loads a page, and returns the status of it.
func (p *Page) PressAndLoad(key string) (status int, err error) {
	return p.load(chromedp.KeyEvent(key))
}

// TabTo presses Tab until the control with that name has the focus: the text of a link or a button, the label of a field.
func (p *Page) TabTo(name string) error {
	return p.tabTo(strconv.Quote(name), func(at string) bool { return at == name })
}

// TabToPrefix is like TabTo with the beginning of a name.
func (p *Page) TabToPrefix(prefix string) error {
	return p.tabTo(strconv.Quote(prefix)+"…", func(at string) bool { return strings.HasPrefix(at, prefix) })
}

func (p *Page) tabTo(name string, is func(string) bool) error {
	var been []string
	for begin := true; ; begin = false {
		if err := p.Press(kb.Tab); err != nil {
			return err
		}
		at, err := Eval[*string](p, checkJS("searched", begin))
		switch {
		case err != nil:
			return err
		case at == nil || len(been) == tooManyTabs:
			return fmt.Errorf("the Tab key does not reach %s, but %q", name, been)
		case is(*at):
			return nil
		}
		been = append(been, *at)
	}
}
