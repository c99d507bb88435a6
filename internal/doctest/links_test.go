package doctest

import (
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"unicode"
)

// root is the repository, seen from this package.
const root = "../.."

// papers are the files whose links are checked, as patterns of fs.Glob. One that
// matches nothing is not missed: README.md is asked for apart.
var papers = []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "ARCHITECTURE.md", "docs/*.md"}

func TestLinksOfThePapers(t *testing.T) {
	repo := os.DirFS(root)
	var files []string
	for _, pattern := range papers {
		matches, err := fs.Glob(repo, pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, matches...)
	}
	if !slices.Contains(files, "README.md") {
		t.Fatalf("no README.md among %q", files)
	}
	links := 0
	for _, file := range files {
		n, faults := check(t, repo, file)
		links += n
		for _, fault := range faults {
			t.Error(fault)
		}
	}
	if links == 0 {
		t.Errorf("no link found in %q: the test reads them wrongly", files)
	}
}

// planted is a text for docs/x.md, each with one kind of link, sound or broken.
var planted = []struct {
	name, text string
	links      int
	want       string // a part of the only fault; "" if there is none
}{
	{"file", "[x](guide.md)", 1, ""},
	{"no such file", "[x](gide.md)", 1, `"gide.md": no such file`},
	{"a file in another case", "[x](Guide.md)", 1, "no such file"},
	{"file above", "[x](../main.go)", 1, ""},
	{"file from the root", "[x](/main.go)", 1, ""},
	{"folder", "[x](../docs/)", 1, ""},
	{"no such folder", "[x](../dogs/)", 1, "no such file"},
	{"out of the repository", "[x](../../other/README.md)", 1, "leads out of the repository"},
	{"image", "![x](none.svg)", 1, "no such file"},
	{"image in a link", "[![x](none.svg)](guide.md)", 2, "none.svg"},
	{"with a title", "[x](none.md \"a title\")", 1, "none.md"},
	{"over a line end", "[a\nb](none.md)", 1, "none.md"},
	{"in angle brackets", "[x](<no ne.md>)", 1, "no ne.md"},
	{"escaped", "[x](gu%69de.md)", 1, ""},
	{"reference", "[x][r]\n\n[r]: none.md", 1, "none.md"},
	{"HTML", `<a href="none.md">x</a> <img src='guide.md'>`, 2, "none.md"},
	{"anchor", "[x](guide.md#a-guide-in-code)", 1, ""},
	{"no such anchor", "[x](guide.md#a-guide)", 1, `no heading "a-guide" in docs/guide.md`},
	{"anchor in capitals", "[x](guide.md#Twice)", 1, `no heading "Twice"`},
	{"anchor of the second heading", "[x](guide.md#twice-1)", 1, ""},
	{"anchor of a third heading", "[x](guide.md#twice-2)", 1, "twice-2"},
	{"anchor of an underlined heading", "[x](guide.md#set-ext)", 1, ""},
	{"anchor of a comment in code", "[x](guide.md#no-heading)", 1, "no-heading"},
	{"anchor set by hand", "[x](guide.md#by-hand)", 1, ""},
	{"anchor in the same file", "# Here & there\n\n[x](#here--there)", 1, ""},
	{"no such anchor in the same file", "# Here\n\n[x](#there)", 1, "there"},
	{"line of a source file", "[x](../main.go#L3)", 1, ""},
	{"lines of a source file", "[x](../main.go#L1-L3)", 1, ""},
	{"line beyond the end", "[x](../main.go#L9)", 1, "no line"},
	{"heading of a source file", "[x](../main.go#main)", 1, `"main" is no line`},
	{"line end of Windows", "Here\r\n====\r\n\r\n[x](#here)\r\n", 1, ""},
	{"address outside", "[x](https://example.com/a#b) <https://example.com>", 1, ""},
	{"a space, which makes it no link", "[x](https://exa mple.com:port)", 0, ""},
	{"broken address", "[x](https://example.com:port/)", 1, "invalid port"},
	{"address without a host", "[x](https:///a)", 1, "no host"},
	{"inline code", "`[x](none.md)` and ``[x](`none.md`)``", 0, ""},
	{"code block", "```go\n[x](none.md)\n```\n~~~\n[x](none.md)\n~~~\n", 0, ""},
	{"after a code block", "```\n```\n[x](none.md)", 1, "none.md"},
}

// TestBrokenLinksAreFound shows the check red on each kind of broken link.
func TestBrokenLinksAreFound(t *testing.T) {
	repo := fstest.MapFS{
		"README.md":     {Data: []byte("# sqlreq\n")},
		"main.go":       {Data: []byte("package main\n\nfunc main() {}\n")},
		"docs/guide.md": {Data: []byte("# A guide, *in* `code`\n\n## Twice\n\n## Twice\n\nSet ext\n=======\n\n```\n# no heading\n```\n\n<a id=\"by-hand\"></a>\n")},
	}
	for _, test := range planted {
		t.Run(test.name, func(t *testing.T) {
			repo["docs/x.md"] = &fstest.MapFile{Data: []byte(test.text)}
			links, faults := check(t, repo, "docs/x.md")
			if links != test.links {
				t.Errorf("found %d links in %q, want %d", links, test.text, test.links)
			}
			switch {
			case test.want == "" && len(faults) > 0:
				t.Errorf("%q: got %q, want no fault", test.text, faults)
			case test.want != "" && (len(faults) != 1 || !strings.Contains(faults[0], test.want)):
				t.Errorf("%q: got %q, want one fault with %q", test.text, faults, test.want)
			}
		})
	}
}

// check returns how many links the file has, and what is wrong with them.
func check(t *testing.T, repo fs.FS, file string) (links int, faults []string) {
	t.Helper()
	text, err := read(repo, file)
	if err != nil {
		t.Fatal(err)
	}
	targets := linksIn(text)
	for _, target := range targets {
		if err := resolve(repo, file, target); err != nil {
			faults = append(faults, fmt.Sprintf("%s: link to %q: %v", file, target, err))
		}
	}
	return len(targets), faults
}

// read returns a text with "\n" at its line ends, whatever git has made of them.
func read(repo fs.FS, name string) (string, error) {
	b, err := fs.ReadFile(repo, name)
	return strings.ReplaceAll(string(b), "\r\n", "\n"), err
}

// The kinds of links: inline, image or not; a definition that others refer to;
// HTML. The text of an inline link is not needed to find its target.
var linkPatterns = []*regexp.Regexp{
	regexp.MustCompile(`\]\(\s*<([^>\n]*)>[^)]*\)`),
	regexp.MustCompile(`\]\(\s*([^<\s()][^\s()]*|)(?:\s+"[^"]*"|\s+'[^']*')?\s*\)`),
	regexp.MustCompile(`(?m)^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)>?`),
	regexp.MustCompile(`<(?:a|img)\s[^>]*?(?:href|src)=["']([^"']*)["']`),
}

// linksIn returns the targets of the links of a Markdown text.
func linksIn(text string) (targets []string) {
	text = inlineCode.ReplaceAllString(withoutBlocks(text), "")
	for _, pattern := range linkPatterns {
		for _, match := range pattern.FindAllStringSubmatch(text, -1) {
			targets = append(targets, match[1])
		}
	}
	return targets
}

// inlineCode has up to two backticks around it; more are not used in prose.
var inlineCode = regexp.MustCompile("``(?:[^`]|`[^`])+``|`[^`]+`")

// withoutBlocks leaves the fenced blocks of code out.
func withoutBlocks(text string) string {
	var b strings.Builder
	fence := ""
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		switch {
		case fence != "":
			if strings.HasPrefix(trimmed, fence) && strings.Trim(trimmed, fence[:1]) == "" {
				fence = ""
			}
		case strings.HasPrefix(trimmed, "```"):
			fence = "```"
		case strings.HasPrefix(trimmed, "~~~"):
			fence = "~~~"
		default:
			b.WriteString(line)
		}
	}
	return b.String()
}

// resolve returns what is wrong with a link in file. Addresses outside are only
// parsed: a test needs no network.
func resolve(repo fs.FS, file, target string) error {
	u, err := url.Parse(target)
	switch {
	case err != nil:
		return err
	case u.Scheme == "mailto":
		return nil
	case u.Scheme != "" && u.Host == "":
		return fmt.Errorf("no host in it")
	case u.Scheme != "" || u.Host != "":
		return nil
	}
	name := file
	switch {
	case strings.HasPrefix(u.Path, "/"): // on GitHub this is the root of the repository
		name = path.Join(".", u.Path[1:])
	case u.Path != "":
		name = path.Join(path.Dir(file), u.Path)
	}
	if !fs.ValidPath(name) {
		return fmt.Errorf("it leads out of the repository")
	}
	if !exists(repo, name) {
		return fmt.Errorf("no such file: %s", name)
	}
	if u.Fragment == "" {
		return nil
	}
	return resolveFragment(repo, name, u.Fragment)
}

// exists compares the names letter by letter, also on a file system that does not.
func exists(repo fs.FS, name string) bool {
	for ; name != "."; name = path.Dir(name) {
		entries, err := fs.ReadDir(repo, path.Dir(name))
		if err != nil {
			return false
		}
		same := func(e fs.DirEntry) bool { return e.Name() == path.Base(name) }
		if !slices.ContainsFunc(entries, same) {
			return false
		}
	}
	return true
}

// lineFragment is GitHub's for a line, or some lines, of a source file.
var lineFragment = regexp.MustCompile(`^L([0-9]+)(?:-L([0-9]+))?$`)

func resolveFragment(repo fs.FS, name, fragment string) error {
	text, err := read(repo, name)
	if err != nil {
		return err
	}
	if path.Ext(name) == ".md" {
		if !slices.Contains(anchorsIn(text), fragment) {
			return fmt.Errorf("no heading %q in %s", fragment, name)
		}
		return nil
	}
	match := lineFragment.FindStringSubmatch(fragment)
	if match == nil {
		return fmt.Errorf("%q is no line of %s", fragment, name)
	}
	lines := strings.Count(text, "\n")
	for _, digits := range match[1:] {
		if n, _ := strconv.Atoi(digits); digits != "" && (n < 1 || n > lines) {
			return fmt.Errorf("no line %d in %s, which has %d", n, name, lines)
		}
	}
	return nil
}

var (
	atxHeading = regexp.MustCompile(`(?m)^ {0,3}#{1,6}[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$|^([^\n#>|\-].*)\n(?:=+|-{2,})[ \t]*$`)
	anchorHTML = regexp.MustCompile(`<a\s[^>]*?(?:id|name)=["']([^"']+)["']`)
	linkText   = regexp.MustCompile(`!?\[([^\]]*)\]\([^)]*\)`)
)

// anchorsIn returns what a link to the Markdown text may have behind its #: the
// headings, by GitHub's rules, a number added to those that are there already, and
// the anchors of HTML.
func anchorsIn(text string) (anchors []string) {
	text = withoutBlocks(text)
	seen := make(map[string]int)
	for _, match := range atxHeading.FindAllStringSubmatch(text, -1) {
		anchor := anchorOf(match[1] + match[2])
		n := seen[anchor]
		seen[anchor]++
		if n > 0 {
			anchor = fmt.Sprintf("%s-%d", anchor, n)
		}
		anchors = append(anchors, anchor)
	}
	for _, match := range anchorHTML.FindAllStringSubmatch(text, -1) {
		anchors = append(anchors, match[1])
	}
	return anchors
}

// anchorOf is GitHub's rule: small letters; letters, marks, digits, "_" and "-"
// stay, a space becomes "-", everything else goes. Of a link its text counts.
func anchorOf(heading string) string {
	heading = linkText.ReplaceAllString(heading, "$1")
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-', r == '_', unicode.IsLetter(r), unicode.IsMark(r), unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, strings.TrimSpace(heading))
}
