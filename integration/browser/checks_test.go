package browser

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// broken is a page in which one thing is wrong: a piece of the good page is replaced.
type broken struct {
	name     string
	old, new string // in the good page
	check    string // the only check that finds something
	want     string // a part of what it finds
	view     View   // the view that it is found in; the zero value: 1280 px light
}

// good is a page that nothing is wrong with.
const good = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Good</title>
<link rel="icon" href="/icon.svg">
<style>
:root { color-scheme: light dark; }
body { margin: 0; background: #fff; color: #222; font: 1rem/1.5 sans-serif; }
a { color: #06c; }
:focus-visible { outline: 3px solid #06c; }
button, input, summary, select { font: inherit; min-height: 44px; min-width: 44px; box-sizing: border-box; }
pre { overflow-x: auto; }
nav a { display: inline-block; padding: .6rem; }
@media (prefers-color-scheme: dark) {
  body { background: #111; color: #eee; }
  a { color: #8cf; }
  :focus-visible { outline-color: #8cf; }
}
</style>
</head>
<body>
<nav aria-label="Main"><a href="#main">To the text</a> <a href="/good" aria-current="page">Good</a> <a href="/">Other</a></nav>
<main id="main">
<h1>A good page</h1>
<p id="text">Some words about a transaction that was committed, with <a href="/other">a link to another page</a> in them.</p>
<pre tabindex="0" aria-label="Code"><code>` + "SELECT a_very_long_line_of_code_that_is_wider_than_a_telephone_and_is_scrolled FROM notes;" + `</code></pre>
<div style="overflow-x: auto" tabindex="0" role="region" aria-label="A figure"><img src="/icon.svg" width="500" height="30" alt="An icon"></div>
<form>
<p><label for="title">Title</label> <input id="title" name="title" autocomplete="off"></p>
<p><input type="radio" name="kind" id="a" value="a"> <label for="a">A</label> <input type="radio" name="kind" id="b" value="b"> <label for="b">B</label></p>
<p><button type="button">Save</button></p>
</form>
<details><summary>More</summary><p>There is <a href="/more">more</a>.</p></details>
</main>
<script>document.title = "Good page";</script>
</body>
</html>`

var telephoneLight, desktopDark = View{Width: 390}, View{Width: 1280, Dark: true}

// brokenPages has each check at least once.
var brokenPages = []broken{
	{name: "a script throws", old: `document.title = "Good page";`, new: `nothing.here();`,
		check: "script", want: "ReferenceError"},
	{name: "a script does not parse", old: `document.title = "Good page";`, new: `let let = ;`,
		check: "script", want: "SyntaxError"},
	{name: "a promise is rejected", old: `document.title = "Good page";`, new: `Promise.reject(new Error("no luck"));`,
		check: "script", want: "no luck"},
	{name: "a script says that something is wrong", old: `document.title = "Good page";`, new: `console.error("it is wrong", 7);`,
		check: "script", want: `"it is wrong" 7`},
	{name: "a script is not there", old: `<script>`, new: `<script src="/none.js"></script><script>`,
		check: "script", want: "/none.js"},
	{name: "a script is forbidden", old: `<meta charset="utf-8">`,
		new:   `<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="script-src 'self'">`,
		check: "script", want: "Content Security Policy"},

	{name: "a wide box", old: `<p id="text">`, new: `<div style="width: 500px">wide</div><p id="text">`,
		check: "overflow", want: "in a window of 390", view: telephoneLight},
	{name: "a very wide box", old: `<p id="text">`, new: `<div style="width: 1500px">wide</div><p id="text">`,
		check: "overflow", want: `"wide"`},
	{name: "a wide box that is folded", old: `There is <a href="/more">`, new: `<span style="display: inline-block; width: 1500px">There is</span> <a href="/more">`,
		check: "overflow", want: "1280"},
	{name: "made for desktops", old: `<meta name="viewport" content="width=device-width, initial-scale=1">`, new: ``,
		check: "overflow", want: "980 px wide in a window of 390", view: telephoneLight},
	{name: "a box that scrolls in itself", old: `<p id="text">`,
		new:   `<div style="overflow-x: auto" tabindex="0" role="region" aria-label="A table"><div style="width: 500px">wide</div></div><p id="text">`,
		check: "overflow", want: "is to be scrolled sideways: 500 px", view: telephoneLight},

	{name: "a letter a line", old: `<p id="text">`, new: `<p style="overflow-wrap: anywhere; width: 1ch">Outcome</p><p id="text">`,
		check: "words", want: `"Outcome" is broken`},
	{name: "a letter a column", old: `<p id="text">`,
		new: `<table style="table-layout: fixed; width: 100%; overflow-wrap: anywhere"><tr><th style="width: 85%">What</th><th>Detail</th></tr>` +
			`<tr><td>add</td><td>committed</td></tr></table><p id="text">`,
		check: "words", want: `"committed" is broken over 2 lines`, view: telephoneLight},

	{name: "a word is cut", old: `<p id="text">`, new: `<p style="word-break: break-all; width: 10ch; font-family: monospace">Nothing committed</p><p id="text">`,
		check: "words", want: `"committed" is broken over 2 lines`},

	{name: "a small button", old: `<button type="button">`, new: `<button type="button" style="min-height: 30px">`,
		check: "targets", want: `<button> "Save" is`},
	{name: "a narrow button", old: `<button type="button">Save`, new: `<button type="button" style="min-width: 26px; padding: 0">x`,
		check: "targets", want: `px, at least 44 are wanted`},
	{name: "a small field", old: `name="title"`, new: `name="title" style="min-height: 30px"`,
		check: "targets", want: `<input#title>`, view: telephoneLight},

	{name: "not dark", old: `@media (prefers-color-scheme: dark)`, new: `@media (width < 1px)`,
		check: "scheme", want: "the page is light where dark ones are preferred", view: desktopDark},
	{name: "never light", old: `@media (prefers-color-scheme: dark)`, new: `@media all`,
		check: "scheme", want: "the page is dark where light ones are preferred"},

	{name: "grey on white", old: `<p id="text">`, new: `<p>Read me: <span style="color: #aaa">pale</span></p><p id="text">`,
		check: "contrast", want: "color-contrast"},
	{name: "dark on dark", old: `<p id="text">`, new: `<p style="color: #555">Read me</p><p id="text">`,
		check: "contrast", want: "color-contrast", view: desktopDark},
	{name: "on a picture", old: `<p id="text">`,
		new:   `<p style="background: linear-gradient(#fff, #000); color: #777">Read me</p><p id="text">`,
		check: "contrast", want: "color-contrast"},

	{name: "pale where it is folded", old: `There is <a href="/more">`, new: `<span style="color: #aaa">There is</span> <a href="/more">`,
		check: "contrast", want: "color-contrast"},
	{name: "pale code that is scrolled", old: `<code>`, new: `<code style="color: #aaa">`,
		check: "contrast", want: "insufficient color contrast", view: telephoneLight},

	{name: "a field without a label", old: `<label for="title">`, new: `<label for="other">`,
		check: "accessibility", want: "label:"},
	{name: "a button without a name", old: `Save</button>`, new: `</button>`, check: "accessibility", want: "button-name"},
	{name: "a picture without a text", old: `<p id="text">`, new: `<img src="/icon.svg" width="50" height="50"><p id="text">`,
		check: "accessibility", want: "image-alt"},
	{name: "no language", old: ` lang="en"`, new: ``, check: "accessibility", want: "html-has-lang"},
	{name: "headings out of order", old: `<p id="text">`, new: `<h4>Deep</h4><p id="text">`, check: "accessibility", want: "heading-order"},
	{name: "small links", old: `nav a { display: inline-block; padding: .6rem; }`, new: `nav a { display: block; font-size: 8px; line-height: 10px; width: 90px; }`,
		check: "accessibility", want: "target-size"},
	{name: "code that only a mouse scrolls", old: `<pre tabindex="0" aria-label="Code">`, new: `<pre tabindex="-1">`,
		check: "accessibility", want: "scrollable-region-focusable", view: telephoneLight},

	{name: "a link to nothing", old: `href="/other"`, new: `href="#"`, check: "links", want: "leads nowhere"},
	{name: "a link to a script", old: `href="/other"`, new: `href="javascript:void 0"`, check: "links", want: "leads nowhere"},
	{name: "a link into the void", old: `href="/other"`, new: `href="#none"`, check: "links", want: "#none, which is not on the page"},

	{name: "no icon", old: `<link rel="icon" href="/icon.svg">`, new: ``, check: "icon", want: "the page names none"},
	{name: "an icon that is not there", old: `href="/icon.svg"`, new: `href="/none.svg"`, check: "icon", want: "404"},
	{name: "an icon that is no picture", old: `href="/icon.svg"`, new: `href="/good"`, check: "icon", want: "text/html"},

	{name: "no way past the navigation", old: `<a href="#main">To the text</a>`, new: ``,
		check: "skip", want: "not a link to the main part"},
	{name: "past something else", old: `<a href="#main">`, new: `<a href="#foot">`,
		check: "skip", want: "not a link to the main part"},
	{name: "the current page is not marked", old: ` aria-current="page"`, new: ``,
		check: "current", want: `"Good" is not marked`},

	{name: "a focus that is not seen", old: `outline: 3px solid #06c`, new: `outline: none`,
		check: "keyboard", want: `does not show that it has the focus`},
	{name: "a trap", old: `document.title = "Good page";`,
		new:   `document.getElementById("title").addEventListener("keydown", (e) => { if (e.key === "Tab") e.preventDefault(); });`,
		check: "keyboard", want: "the Tab key does not leave <input#title>"},
	{name: "a circle", old: `document.title = "Good page";`,
		new: `document.querySelector("button").addEventListener("keydown", (e) => { if (e.key === "Tab") {
			e.preventDefault(); document.getElementById("title").focus(); } });`,
		check: "keyboard", want: `<summary> "More" is not reached by the Tab key`},
	{name: "for the mouse only", old: `<p id="text">`, new: `<div style="cursor: pointer" id="mouse">Click me</div><p id="text">`,
		check: "keyboard", want: `<div#mouse> "Click me" can be clicked`},
	{name: "a focus out of sight", old: `<p id="text">`,
		new:   `<a href="/away" style="position: absolute; left: -9999px">Away</a><p id="text">`,
		check: "keyboard", want: `"Away" has the focus and is not to be seen`},
}

func icon(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "image/svg+xml")
	fmt.Fprint(w, `<svg xmlns="http://www.w3.org/2000/svg" width="16" height="16"/>`)
}

// serveBroken serves the good page at /good, and the broken ones at their numbers.
func serveBroken(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /icon.svg", icon)
	html := func(page string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprint(w, page)
		}
	}
	mux.HandleFunc("GET /good", html(good))
	for i, b := range brokenPages {
		if strings.Count(good, b.old) != 1 {
			t.Fatalf("%s: %q stands %d times in the good page", b.name, b.old, strings.Count(good, b.old))
		}
		page := strings.Replace(good, b.old, b.new, 1)
		page = strings.Replace(page, `href="/good"`, fmt.Sprintf(`href="/%d"`, i), 1)
		if b.name == "past something else" {
			page = strings.Replace(page, "</body>", `<footer id="foot">The end</footer></body>`, 1)
		}
		mux.HandleFunc(fmt.Sprintf("GET /%d", i), html(page))
	}
	mux.HandleFunc("GET /missing", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, good)
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv.URL
}

// TestGoodPage shows that the checks find nothing where there is nothing, and that a page may answer with an error.
func TestGoodPage(t *testing.T) {
	t.Parallel()
	url := serveBroken(t)
	p := open(t, Views[0])
	for path, want := range map[string]int{"/good": 200, "/missing": 404} {
		status, err := p.Open(url + path)
		if err != nil || status != want {
			t.Fatalf("%s: status %d, %v, want %d", path, status, err, want)
		}
		found, err := InspectAll(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, problem := range found {
			t.Errorf("%s: %s", path, problem)
		}
	}
}

// TestBrokenPages shows each check red: it finds what is broken, and no other check finds anything.
func TestBrokenPages(t *testing.T) {
	t.Parallel()
	url := serveBroken(t)
	p := open(t, Views[0])
	for i, b := range brokenPages {
		t.Run(strings.ReplaceAll(b.name, " ", "-"), func(t *testing.T) {
			view := b.view
			if view == (View{}) {
				view = Views[0]
			}
			if err := p.Show(view); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Open(fmt.Sprintf("%s/%d", url, i)); err != nil {
				t.Fatal(err)
			}
			found, err := Inspect(p)
			if err != nil {
				t.Fatal(err)
			}
			if len(found) == 0 {
				t.Fatalf("nothing was found; want %s: …%s…", b.check, b.want)
			}
			hit := false
			for _, problem := range found {
				if !strings.HasPrefix(problem, b.check+": ") {
					t.Errorf("another check found something: %s", problem)
				}
				hit = hit || strings.Contains(problem, b.want)
			}
			if !hit {
				t.Errorf("found %q\nwant %s: …%s…", found, b.check, b.want)
			}
		})
	}
}

// TestEachCheckIsShownRed looks into the table above.
func TestEachCheckIsShownRed(t *testing.T) {
	for _, check := range Checks {
		if !slices.ContainsFunc(brokenPages, func(b broken) bool { return b.check == check.Name }) {
			t.Errorf("no page is broken in a way that the check %q finds", check.Name)
		}
	}
}

// TestTabTo reaches what is named by a text, a label or an attribute, and says where it has been otherwise.
func TestTabTo(t *testing.T) {
	t.Parallel()
	p := open(t, Views[0])
	if _, err := p.Open(serveBroken(t) + "/good"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"To the text", "Title", "Save", "Code", "A", "More"} {
		if err := p.TabTo(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"There is", "B", "more"} { // no control; not the first of its radio buttons; folded away
		err := p.TabTo(name)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("does not reach %q", name)) || !strings.Contains(err.Error(), `"Title"`) {
			t.Errorf("%q: %v, want an error that says where the focus was", name, err)
		}
	}
}

// TestAxe compares the file with what its makers have published: sri-history.json of the npm package.
func TestAxe(t *testing.T) {
	sum := sha256.Sum256([]byte(axeJS))
	if got, want := base64.StdEncoding.EncodeToString(sum[:]), "KTSJmUUM3yhJqOcLeRL8LahahJ2jnA0NU5T1HUqe2Vw="; got != want {
		t.Errorf("the SHA-256 of axe.min.js is %s, want %s", got, want)
	}
}
