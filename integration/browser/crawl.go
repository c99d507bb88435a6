package browser

import (
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// Visit opens an address at each width, and makes all checks on it, light and dark.
func Visit(p *Page, address string) (found []string, err error) {
	for _, view := range Views {
		if err := p.Show(view); err != nil {
			return found, err
		}
		if !view.Dark {
			status, err := p.Open(address)
			if err != nil {
				return found, fmt.Errorf("open %s: %w", address, err)
			}
			if status >= 400 {
				return append(found, fmt.Sprintf("it answers %d", status)), nil
			}
		}
		problems, err := Inspect(p)
		if err != nil {
			return found, fmt.Errorf("%s, %s: %w", address, view, err)
		}
		for _, problem := range problems {
			found = append(found, view.String()+": "+problem)
		}
	}
	return found, nil
}

// tooManyPages ends a crawl through a service whose links have no end.
const tooManyPages = 100

// Crawl visits the page at base and all pages of the same service that links lead to, and returns the paths that it has
// seen and what is wrong, by path. Of pages whose addresses differ in numbers only it visits one. Where a page of the
// repository on GitHub is linked to, the file must be in repo, the root of a checkout.
func Crawl(p *Page, base, repo string) (paths []string, found map[string][]string, err error) {
	found = map[string][]string{}
	from := map[string]string{} // who links to an address
	met := map[string]bool{}
	for queue := []string{base + "/"}; len(queue) > 0; queue = queue[1:] {
		address := queue[0]
		where := strings.TrimPrefix(address, base)
		if len(paths) == tooManyPages {
			return paths, found, fmt.Errorf("more than %d pages, the last ones are %q", tooManyPages, paths[tooManyPages-10:])
		}
		paths = append(paths, where)
		problems, err := Visit(p, address)
		if err != nil {
			return paths, found, err
		}
		if len(problems) > 0 {
			found[where] = append(problems, "it was found on "+from[address])
		}
		links, err := Eval[[]string](p, checkJS("addresses"))
		if err != nil {
			return paths, found, err
		}
		for _, link := range links {
			switch {
			case inRepository(link) != "":
				if _, err := os.Stat(filepath.Join(repo, filepath.FromSlash(inRepository(link)))); err != nil {
					found[where] = append(found[where], fmt.Sprintf("the link %s: %v", link, err))
				}
			case strings.HasPrefix(link, base+"/") && isPage(link) && !met[pattern(link)]:
				met[pattern(link)] = true
				if link != base+"/" {
					from[link] = where
					queue = append(queue, link)
				}
			}
		}
	}
	return paths, found, nil
}

var numbers = regexp.MustCompile(`\d+`)

// pattern is an address without what differs in pages of one kind.
func pattern(address string) string { return numbers.ReplaceAllString(address, "0") }

// isPage tells pages from files that are downloaded, or look different from a page: their names have an end.
func isPage(address string) bool {
	u, err := url.Parse(address)
	return err == nil && (path.Ext(u.Path) == "" || path.Ext(u.Path) == ".html")
}

var repository = regexp.MustCompile(`^https://github\.com/sqlreq/sqlreq/(?:blob|tree|raw)/[^/]+/([^?]+)$`)

// inRepository is the path of the file that a link to GitHub shows, or "".
func inRepository(link string) string {
	if m := repository.FindStringSubmatch(link); m != nil {
		return m[1]
	}
	return ""
}
