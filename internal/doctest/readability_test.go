package doctest

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A paper of another place or time may be counted as well:
//
//	go test ./internal/doctest -run TestFigures -v -paper /tmp/README.md
var paper = flag.String("paper", "", "print the figures of this file too")

// easy are the papers for a reader who is new: none of their sentences is long, and
// README.md fits on a few screens.
var easy = []string{
	"README.md", "doc.go", "docs/databases.md", "docs/faq.md", "docs/guarantees.md", "docs/limits.md", "docs/migration.md", "docs/testing.md",
}

const (
	sentenceWords = 25
	readmeLines   = 150
)

// figures are how a text reads. Code, headings and tables are no sentences; a list
// item is a paragraph; code in a sentence is one word.
type figures struct {
	lines, words, sentences, paragraphs, tables int
	long                                        []string // sentences of more than sentenceWords
	longest                                     int      // words of a paragraph
}

func (f figures) String() string {
	screens := max(float64(f.lines)/40, 1)
	return fmt.Sprintf("%3d lines, %4d words, %3d sentences, %2d of them over %d words, %.0f words a paragraph, %d in the longest, %.1f tables a screen of 40 lines",
		f.lines, f.words, f.sentences, len(f.long), sentenceWords, float64(f.words)/float64(max(f.paragraphs, 1)), f.longest, float64(f.tables)/screens)
}

var (
	listItem    = regexp.MustCompile(`^\s*(?:[-*]|\d+\.)\s+`)
	sentenceEnd = regexp.MustCompile(`[.!?]["')*_]*\s+`)
	image       = regexp.MustCompile(`!\[[^\]]*\]\([^)]*\)`)
)

func figuresOf(text string) (f figures) {
	f.lines = strings.Count(text, "\n")
	var paragraph []string
	inTable := false
	end := func() {
		f.paragraph(strings.Join(paragraph, " "))
		paragraph = nil
	}
	for line := range strings.Lines(withoutBlocks(text) + "\n") {
		line = strings.TrimRight(line, "\n")
		table := strings.HasPrefix(line, "|")
		if table && !inTable {
			f.tables++
		}
		inTable = table
		item := listItem.FindString(line)
		if line == "" || table || item != "" || strings.HasPrefix(line, "#") {
			end()
		}
		if !table && !strings.HasPrefix(line, "#") {
			paragraph = append(paragraph, line[len(item):])
		}
	}
	end()
	return f
}

func (f *figures) paragraph(text string) {
	text = image.ReplaceAllString(text, "")
	text = inlineCode.ReplaceAllString(text, "code")
	text = linkText.ReplaceAllString(text, "$1")
	n := len(strings.Fields(text))
	if n == 0 {
		return
	}
	f.paragraphs++
	f.words += n
	f.longest = max(f.longest, n)
	for _, sentence := range sentenceEnd.Split(text, -1) {
		words := len(strings.Fields(sentence))
		if words > 0 {
			f.sentences++
		}
		if words > sentenceWords {
			f.long = append(f.long, strings.TrimSpace(sentence))
		}
	}
}

func TestFigures(t *testing.T) {
	repo := os.DirFS(root)
	for _, name := range easy {
		text, err := read(repo, name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, ".go") {
			text = packageComment(text)
		}
		f := figuresOf(text)
		t.Logf("%-20s %v", name, f)
		for _, sentence := range f.long {
			t.Errorf("%s: a sentence of more than %d words: %s", name, sentenceWords, sentence)
		}
		if name == "README.md" && f.lines > readmeLines {
			t.Errorf("%s has %d lines, at most %d are allowed", name, f.lines, readmeLines)
		}
	}
	if *paper != "" {
		text, err := os.ReadFile(*paper)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%-20s %v", *paper, figuresOf(string(text)))
	}
}

// packageComment returns the comment that a Go file begins with, as a paper.
func packageComment(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		line, ok := strings.CutPrefix(line, "//")
		switch {
		case !ok:
			return b.String()
		case !strings.HasPrefix(line, "\t"): // code
			b.WriteString(strings.TrimPrefix(line, " "))
		}
	}
	return b.String()
}

// TestFiguresCount shows what is counted.
func TestFiguresCount(t *testing.T) {
	long := strings.Repeat("word ", sentenceWords)
	f := figuresOf("# A heading " + long + "\n\nOne two. Three `a b c`\nfour? [Five six](x.md#y) seven.\n\n- " + long + "more. Short.\n- e.g.\n\n" +
		"| a | b |\n| --- | --- |\n| " + long + "more | |\n\n```go\n" + long + "\n```\n")
	want := figures{lines: 15, words: 9 - 1 + 26 + 1 + 1, sentences: 6, paragraphs: 3, tables: 1, longest: 27, long: []string{long + "more"}}
	if fmt.Sprint(f) != fmt.Sprint(want) || !slices.Equal(f.long, want.long) {
		t.Errorf("got\n%v %q, want\n%v %q", f, f.long, want, want.long)
	}
}

// Phrases that readers had to read twice. The contract's headings are apart: programs
// and papers are linked to them.
var unclear = []string{
	"takes an early hint for the answer",
	"No use, no cost",
	"Slow clients hold no connection",
	"a cancelled context never ends a transaction",
	"a Write, a Flush or a cancelled context never",
	"adds the library and nothing else",
	"once and for all",
}

func TestNoUnclearPhrases(t *testing.T) {
	repo := os.DirFS(root)
	files := []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
	for _, pattern := range []string{"*.go", "docs/*.md", "idempotency/*.go"} {
		matches, err := fs.Glob(repo, pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, matches...)
	}
	for _, file := range files {
		text, err := read(repo, file)
		if err != nil {
			t.Fatal(err)
		}
		for _, phrase := range unclear {
			if file != "docs/contract.md" && containsPhrase(text, phrase) {
				t.Errorf("%s: %q has to be read twice", file, phrase)
			}
		}
	}
}

// containsPhrase looks for a phrase as a reader does: over line ends, in small letters
// and capitals, without the marks of Markdown and of comments.
func containsPhrase(text, phrase string) bool {
	return strings.Contains(plain(text), plain(phrase))
}

var (
	marks  = strings.NewReplacer("\n//", " ", "**", "", "`", "", "[", "", "]", "")
	spaces = regexp.MustCompile(`\s+`)
)

func plain(text string) string {
	return spaces.ReplaceAllString(strings.ToLower(marks.Replace(text)), " ")
}

func TestPhrasesAreFoundInParts(t *testing.T) {
	text := "// One **two**\n// `three` [Four] five\n"
	if !containsPhrase(text, "two three four FIVE") || containsPhrase(text, "two four") {
		t.Errorf("%q is read wrongly: %q", text, plain(text))
	}
}
