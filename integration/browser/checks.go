package browser

import (
	_ "embed"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

//go:embed checks.js
var checksJS string

// checkJS is an expression that calls a function of checks.js.
func checkJS(function string, args ...any) string {
	var texts []string
	for _, arg := range args {
		texts = append(texts, fmt.Sprintf("%#v", arg))
	}
	return fmt.Sprintf("(%s).%s(%s)", strings.TrimSpace(checksJS), function, strings.Join(texts, ", "))
}

// Check is something that holds for each page.
type Check struct {
	Name string
	Says string // what holds
	// ByColour says that it is made light and dark. The others see no colours, and are made once at each width.
	ByColour bool
	// Run returns what is wrong with the page, as it is shown now.
	Run func(p *Page) ([]string, error)
}

// fingertip is the height and width, in CSS pixels, that a finger needs: WCAG 2.2, 2.5.5 Target Size (Enhanced).
const fingertip = 44

// Checks are all of them.
var Checks = []Check{
	{"script", "no script fails, and nothing that the page loads or does is refused", true, (*Page).Errors},
	{"overflow", "no page is wider than the window; only code, and a figure that has a name and is reached by keyboard, scrolls sideways", false,
		func(p *Page) ([]string, error) { return Eval[[]string](p, checkJS("overflow", p.view.Width)) }},
	{"words", "no word of up to 16 letters is broken", false,
		func(p *Page) ([]string, error) { return Eval[[]string](p, checkJS("words")) }},
	{"targets", "buttons and fields are 44 px high at least", false,
		func(p *Page) ([]string, error) { return Eval[[]string](p, checkJS("targets", fingertip)) }},
	{"scheme", "the page is dark for who prefers that, and light otherwise", true,
		func(p *Page) ([]string, error) { return Eval[[]string](p, checkJS("scheme", p.view.Dark)) }},
	{"contrast", "axe-core's rule color-contrast, and it could tell for every text", true,
		(*Page).contrast},
	{"accessibility", "axe-core's other rules for WCAG 2.2 A and AA, and its best practices", false,
		func(p *Page) ([]string, error) {
			return p.axe(`{type: "tag", values: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}`, false)
		}},
	{"links", "links lead somewhere", false,
		func(p *Page) ([]string, error) { return Eval[[]string](p, checkJS("links")) }},
	{"icon", "there is an icon, so that no browser asks for /favicon.ico", false, (*Page).icon},
	{"skip", "the first stop of the Tab key leads past the navigation", false,
		func(p *Page) ([]string, error) { return Eval[[]string](p, checkJS("skip")) }},
	{"current", "the navigation says which page this is", false,
		func(p *Page) ([]string, error) { return Eval[[]string](p, checkJS("current")) }},
	{"keyboard", "the Tab key reaches every control and leaves it again, and one sees where it is", false, (*Page).keyboard},
}

// Inspect makes all checks on the page as it is shown now, with all that is folded away unfolded, and returns what is wrong.
func Inspect(p *Page) (found []string, err error) {
	if _, err := Eval[bool](p, checkJS("openDetails")); err != nil {
		return nil, err
	}
	for _, check := range Checks {
		if p.view.Dark && !check.ByColour {
			continue
		}
		problems, err := check.Run(p)
		if err != nil {
			return found, fmt.Errorf("check %s: %w", check.Name, err)
		}
		for _, problem := range problems {
			found = append(found, check.Name+": "+problem)
		}
	}
	_, err = Eval[bool](p, checkJS("closeDetails"))
	return found, err
}

// InspectAll makes all checks in every view, without loading the page again: for pages that are the answer to a form.
// It leaves the window as it was.
func InspectAll(p *Page) (found []string, err error) {
	before := p.view
	for _, view := range Views {
		if err := p.Show(view); err != nil {
			return found, err
		}
		problems, err := Inspect(p)
		if err != nil {
			return found, fmt.Errorf("%s: %w", view, err)
		}
		for _, problem := range problems {
			found = append(found, view.String()+": "+problem)
		}
	}
	return found, p.Show(before)
}

//go:embed testdata/axe-core-4.14.1/axe.min.js
var axeJS string

// violation is what axe-core says about a rule that is broken.
type violation struct {
	Id, Help string
	Nodes    []struct {
		Target         []string
		FailureSummary string
	}
}

func (p *Page) icon() ([]string, error) {
	icons, err := Eval[[]string](p, `[...document.querySelectorAll("link[rel~=icon]")].map((link) => link.href)`)
	if err != nil {
		return nil, err
	}
	if len(icons) == 0 {
		return []string{"the page names none"}, nil
	}
	var found []string
	for _, icon := range icons {
		answer, err := http.Get(icon)
		if err != nil {
			return nil, err
		}
		_ = answer.Body.Close()
		if kind := answer.Header.Get("Content-Type"); answer.StatusCode != http.StatusOK || !strings.HasPrefix(kind, "image/") {
			found = append(found, fmt.Sprintf("%s is answered with %d, %s", icon, answer.StatusCode, kind))
		}
	}
	return found, nil
}

func (p *Page) contrast() (found []string, err error) {
	if _, err := Eval[bool](p, checkJS("unfold")); err != nil {
		return nil, err
	}
	found, err = p.axe(`{type: "rule", values: ["color-contrast"]}`, true)
	if err != nil {
		return nil, err
	}
	_, err = Eval[bool](p, checkJS("fold"))
	return found, err
}

// axe runs rules of axe-core. With sure also what it could not decide is taken for wrong.
func (p *Page) axe(only string, sure bool) (found []string, err error) {
	there, err := Eval[bool](p, `typeof axe === "object"`)
	if err != nil {
		return nil, err
	}
	if !there {
		if _, err := Eval[bool](p, axeJS+"\n;true"); err != nil {
			return nil, fmt.Errorf("load axe-core: %w", err)
		}
	}
	results, err := Eval[struct{ Violations, Incomplete []violation }](p, fmt.Sprintf(
		`axe.run(document, {runOnly: %s, resultTypes: ["violations", "incomplete"]}).then(({violations, incomplete}) => ({
			Violations: violations, Incomplete: incomplete}))`, only))
	if err != nil {
		return nil, err
	}
	broken := results.Violations
	if sure {
		broken = slices.Concat(broken, results.Incomplete)
	}
	for _, v := range broken {
		if v.Id == "color-contrast" && !sure {
			continue // it has a check of its own
		}
		for _, node := range v.Nodes[:min(3, len(v.Nodes))] {
			found = append(found, fmt.Sprintf("%s: %s: %s: %s", v.Id, v.Help, strings.Join(node.Target, " "),
				strings.Join(strings.Fields(node.FailureSummary), " ")))
		}
	}
	return found, nil
}
