package browser

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// TestCrawl finds every kind of page once, what is broken on one of them, and links that lead nowhere.
func TestCrawl(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	page := func(path, body string) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			html := strings.Replace(good, `href="/good" aria-current="page"`, fmt.Sprintf(`href="%s" aria-current="page"`, r.URL.Path), 1)
			html = strings.ReplaceAll(strings.ReplaceAll(html, `href="/other"`, `href="/"`), `href="/more"`, `href="/"`)
			fmt.Fprint(w, strings.Replace(html, "<details>", "<p>"+body+"</p><details>", 1))
		})
	}
	mux.HandleFunc("GET /icon.svg", icon)
	page("/{$}", `<a href="/notes/1">one</a> <a href="/notes/2">two</a> <a href="/notes.csv">all</a> <a href="/file" download>a file</a>
		<a href="https://example.com/">elsewhere</a> <a href="https://github.com/sqlreq/sqlreq/blob/main/README.md">read me</a>
		<a href="https://github.com/sqlreq/sqlreq/blob/main/docs/none.md#x">no such document</a> <a href="/#main">here</a>`)
	page("/notes/{id}", `<a href="/gone">gone</a> <a href="/notes/7?page=2">the second page</a> <a href="/wide">wide</a>`)
	page("/wide", `<span style="display: block; width: 1300px">wide</span>`)
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)

	paths, found, err := Crawl(open(t, Views[0]), srv.URL, "../..")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/", "/notes/1", "/gone", "/notes/7?page=2", "/wide"}; !slices.Equal(paths, want) {
		t.Errorf("visited %q, want %q", paths, want)
	}
	for path, want := range map[string][]string{
		"/":     {"docs/none.md"},
		"/gone": {"it answers 404", "it was found on /notes/1"},
		"/wide": {"1280 px light: overflow: the page is 1300 px wide", "390 px light: overflow"},
	} {
		for _, text := range want {
			if !slices.ContainsFunc(found[path], func(problem string) bool { return strings.Contains(problem, text) }) {
				t.Errorf("%s: found %q, want …%s…", path, found[path], text)
			}
		}
		delete(found, path)
	}
	if len(found) > 0 {
		t.Errorf("found something else, too: %q", found)
	}
}
