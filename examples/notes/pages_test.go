package main

import (
	"net/url"
	"regexp"
	"strings"
	"testing"
)

// everyPage is each page of the service that a person comes by, with what its navigation marks as the current one.
var everyPage = map[string]string{
	"/": "/", "/notes/new": "/notes/new", "/notes/1": "", "/import": "/import", "/counter": "/counter", "/demo": "/demo",
	"/demo/once": "/demo/once", "/admin/": "/admin/", "/admin/audit/": "/admin/audit/", "/admin/notes/1/delete": "",
}

func TestEveryPage(t *testing.T) {
	s := start(t)
	s.fill(1)
	external := regexp.MustCompile(`<(?:script|img|link|iframe)[^>]*(?:src|href)="(?:https?:)?//`)
	current := regexp.MustCompile(`href="([^"]*)" aria-current="page"`)
	current2 := regexp.MustCompile(`aria-current="page"`)
	for path, marked := range everyPage {
		got := s.get(path)
		got.is(t, 200, `<html lang="en">`, `name="viewport"`, `href="/static/style.css"`, "</html>",
			`<a class="skip" href="#main">`, `<main id="main" tabindex="-1">`)
		if n := strings.Count(got.body, "<h1"); n != 1 {
			t.Errorf("%s has %d h1", path, n)
		}
		for _, inline := range []string{" style=", " onclick=", "<style", "<script>"} {
			if strings.Contains(got.body, inline) {
				t.Errorf("%s contains %q, which its Content-Security-Policy forbids", path, inline)
			}
		}
		if m := external.FindString(got.body); m != "" {
			t.Errorf("%s loads %q from elsewhere", path, m)
		}
		var at string
		if m := current.FindStringSubmatch(got.body); m != nil {
			at = m[1]
		}
		equal(t, path+" is marked", at, marked)
		if n := len(current2.FindAllString(got.body, -1)); n > 1 {
			t.Errorf("%s marks %d links as the current page", path, n)
		}
	}
}

func TestPagesLinkToTheDocuments(t *testing.T) {
	s := start(t)
	for _, path := range []string{"/", "/demo", "/demo/once"} {
		s.get(path).is(t, 200, `href="https://pkg.go.dev/github.com/sqlreq/sqlreq"`, "docs/guarantees.md", "docs/limits.md", "docs/faq.md")
	}
	s.get("/demo/once").is(t, 200, "docs/exactly-once.md")
}

func TestStaticFilesArrive(t *testing.T) {
	s := start(t)
	for path, kind := range map[string]string{
		"/static/style.css": "text/css", "/static/live.js": "text/javascript", "/static/counter.js": "text/javascript",
		"/static/icon.svg": "image/svg+xml", "/static/crashpoints.svg": "image/svg+xml",
	} {
		got := s.get(path)
		got.is(t, 200)
		if ct := got.Header.Get("Content-Type"); !strings.HasPrefix(ct, kind) || len(got.body) == 0 {
			t.Errorf("%s: %d bytes of %q, want %s", path, len(got.body), ct, kind)
		}
	}
}

// TestErrorsLookAlike: wherever one comes from, the page is a panel with the number, what is wrong, and a way back.
func TestErrorsLookAlike(t *testing.T) {
	s := start(t)
	foreign := s.request("POST", "/notes", "application/x-www-form-urlencoded", "title=Milk")
	foreign.Header.Set("Origin", "https://evil.example")
	for name, c := range map[string]struct {
		reply
		status int
		back   string
	}{
		"no page":          {s.get("/nothing"), 404, "/"},
		"no note":          {s.get("/notes/7"), 404, "/"},
		"no file":          {s.get("/static/nothing"), 404, "/"},
		"a folder":         {s.get("/static/"), 404, "/"},
		"another method":   {s.get("/counter/"), 404, "/"},
		"failed":           {s.form("/demo/fail", nil), 500, "/"},
		"another site":     {s.do(foreign), 403, "/"},
		"admin, no page":   {s.get("/admin/nothing"), 404, "/admin/"},
		"admin, no note":   {s.form("/admin/notes/7/delete", nil), 404, "/admin/"},
		"admin, no number": {s.get("/admin/notes/x/delete"), 404, "/admin/"},
	} {
		t.Run(name, func(t *testing.T) {
			c.is(t, c.status, `<section class="panel bad" aria-labelledby="problem">`, `<p class="code">`, `<h1 id="problem">`,
				`<a href="`+c.back+`">All notes</a>`)
		})
	}
}

// TestAddressesOfForms: who asks again for the address that a form was sent to, gets a page with the form on it.
func TestAddressesOfForms(t *testing.T) {
	s := start(t)
	for path, want := range map[string]string{"/notes": "/", "/demo/fail": "/demo", "/demo/all": "/demo", "/demo/hint": "/demo#hint"} {
		got := s.get(path)
		if got.Header.Get("Location") != want {
			t.Errorf("GET %s: %s, Location %q, want %q", path, got.Status, got.Header.Get("Location"), want)
		}
	}
	s.form("/demo/fail", nil).is(t, 500, `<a href="/demo">Back to the demo</a>`)
}

// TestFormMarksTheFieldThatIsWrong: it and no other, for those who don't see the colour too.
func TestFormMarksTheFieldThatIsWrong(t *testing.T) {
	s := start(t)
	invalid := regexp.MustCompile(`<(?:input|textarea) id="(\w+)"[^>]* autofocus aria-invalid="true" aria-describedby="problem( tags-help)?"`)
	for _, c := range []struct {
		title, body, tags string
		wrong             string
	}{
		{"", "", "", "title"},
		{strings.Repeat("x", 101), "", "", "title"},
		{"x\xff", "", "", "title"},
		{"x", strings.Repeat("x", 10_001), "", "body"},
		{"x", "\x00", "", "body"},
		{"x", "", "NO", "tags"},
		{"x", "", "a a", "tags"},
		{"x", "", "\xff", "tags"},
	} {
		got := s.form("/notes", url.Values{"title": {c.title}, "body": {c.body}, "tags": {c.tags}})
		got.is(t, 422, `role="alert" id="problem"`, "Nothing was saved.")
		m := invalid.FindAllStringSubmatch(got.body, -1)
		if len(m) != 1 || m[0][1] != c.wrong || strings.Count(got.body, "aria-invalid") != 1 || strings.Count(got.body, "autofocus") != 1 {
			t.Errorf("%.20q %.20q %q: marked %q, want %s alone", c.title, c.body, c.tags, m, c.wrong)
		}
	}
	if body := s.get("/notes/new").body; strings.Contains(body, "aria-invalid") || strings.Count(body, "autofocus") != 1 {
		t.Error("a new form marks a field as wrong")
	}
}
