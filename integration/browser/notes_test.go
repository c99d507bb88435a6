package browser

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/dom"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// addNote adds one over the API.
func addNote(t *testing.T, s *Service, title, body string, tags ...string) {
	t.Helper()
	if err := postNote(s, title, body, tags...); err != nil {
		t.Fatal(err)
	}
}

func postNote(s *Service, title, body string, tags ...string) error {
	note, err := json.Marshal(map[string]any{"title": title, "body": body, "tags": tags})
	if err != nil {
		return err
	}
	answer, err := http.Post(s.URL+"/api/notes", "application/json", strings.NewReader(string(note)))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusCreated {
		return fmt.Errorf("the note %q is answered with %s", title, answer.Status)
	}
	return nil
}

// seedNotes adds notes that are hard to show, and more than go on a page.
func seedNotes(t *testing.T, s *Service) {
	t.Helper()
	for i := range 25 {
		addNote(t, s, fmt.Sprintf("Note %d", i), "What was bought.", "shop")
	}
	addNote(t, s, strings.Repeat("long", 25), strings.Repeat("x", 400)+"\n\n"+strings.Repeat("many words ", 200),
		"abcdefghij-klmnopqrs", "abcdefghij-klmnopqrt", "a", "b", "c", "d", "e", "f")
	addNote(t, s, `<b>"Bold" & 'quoted'</b>`, "<script>alert(1)</script>")
}

// noteCSV has a line that is refused, with a long word in it.
const noteCSV = "title,body,tags\nRice,,shop\n" + `Half,,"NOT A TAG"` + "\n,without a title,\nBeans,,shop\n"

// TestNotesPages looks at every page that a link leads to, empty and full.
func TestNotesPages(t *testing.T) {
	t.Parallel()
	s := start(t, "notes")
	empty := person{t, open(t, Views[0])}
	for _, path := range []string{"/", "/admin/", "/admin/audit/"} {
		found, err := Visit(empty.Page, s.URL+path)
		empty.must(err)
		for _, problem := range found {
			t.Errorf("%s, empty: %s", path, problem)
		}
	}
	seedNotes(t, s)
	crawl(t, s, "/", "/notes/new", "/import", "/counter", "/demo", "/demo/once", "/admin/", "/admin/audit/",
		"/notes/27", "/?page=2", "/admin/notes/27/delete")
}

// TestNotesErrors looks at pages that no link leads to.
func TestNotesErrors(t *testing.T) {
	t.Parallel()
	s := start(t, "notes")
	p := person{t, open(t, Views[0])}
	for path, want := range map[string]int{"/nowhere": 404, "/notes/7": 404, "/?page=none": 400, "/admin/nowhere": 404} {
		p.goTo(s.URL+path, want)
		p.looks()
	}
}

// TestNotesLifeByKeyboard is a note's whole life without a mouse: it is written wrongly, written, read and deleted.
func TestNotesLifeByKeyboard(t *testing.T) {
	t.Parallel()
	s := start(t, "notes")
	p := person{t, open(t, Views[0])}
	p.goTo(s.URL+"/", 200)
	p.follow("New note", 200)
	if at := p.focus(); at != "Title" {
		t.Errorf("the focus is on %q, want the first field", at)
	}
	p.overwrite("Milk")
	p.fill("Text", "Two bottles")
	p.fill("Tags", "NOT A TAG")
	p.follow("Save", 422)
	p.reads("won't do", "Nothing was saved")
	if at := p.focus(); at != "Tags" {
		t.Errorf("the focus is on %q, want the field that is wrong", at)
	}
	p.overwrite("shop")
	p.looks()
	p.follow("Save", 200)
	p.reads("Milk", "Two bottles", "shop")
	p.looks()
	p.follow("All notes", 200)
	p.reads("1 note")
	p.follow("Milk", 200)
	p.reads("Two bottles")

	p.follow("Admin", 200)
	p.reads("1 note", "Milk")
	p.follow("Delete Milk", 200)
	p.reads("Delete “Milk”?")
	p.looks()
	p.follow("Keep it", 200)
	p.reads("1 note", "Milk")
	p.looks()
	p.follow("Delete Milk", 200)
	p.follow("Delete it", 200)
	p.reads("0 notes")
	p.follow("Audit log", 200)
	p.reads("delete note", "add note", "rolled back", "committed")
	p.looks()
}

// TestNotesImportByKeyboard imports a file. Only the file itself is not chosen by keys: that is a window of the system's.
func TestNotesImportByKeyboard(t *testing.T) {
	t.Parallel()
	s := start(t, "notes")
	path := filepath.Join(t.TempDir(), strings.Repeat("a-long-name-", 8)+".csv")
	if err := os.WriteFile(path, []byte(noteCSV), 0o600); err != nil {
		t.Fatal(err)
	}
	p := person{t, open(t, Views[0])}
	p.goTo(s.URL+"/", 200)
	p.follow("Import", 200)
	p.tabTo("File")
	p.must(p.chooseFile(path))
	p.follow("Import", 200)
	p.reads("2 added, 2 refused")
	p.looks()
}

// chooseFile is what the system's window for files does for the field that has the focus.
func (p *Page) chooseFile(path string) error {
	object, err := chromedp.Run(p.ctx, chromedp.Evaluate[*runtime.RemoteObject]("document.activeElement"))
	if err != nil {
		return err
	}
	return p.run(command(dom.SetFileInputFiles, dom.SetFileInputFilesParams{Files: []string{path}, ObjectID: object.ObjectID}))
}

// TestNotesCounterByKeyboard presses the buttons, and the result is said.
func TestNotesCounterByKeyboard(t *testing.T) {
	t.Parallel()
	s := start(t, "notes")
	p := person{t, open(t, Views[0])}
	p.goTo(s.URL+"/counter", 200)
	p.follow("Add one", 200)
	p.must(p.Listen())
	p.tabTo("Add a hundred at once")
	p.must(p.Press(" "))
	p.must(p.WaitSaid("100 of 100 answered 200; the counter went from 1 to 101"))
	p.looks()
}

// listening waits until the service has the window among those that it announces notes to.
func listening(t *testing.T, window *Page) {
	t.Helper()
	if err := window.Wait("source.readyState === EventSource.OPEN"); err != nil {
		t.Fatal(err)
	}
}

// TestNotesAnnouncedAfterCommit has a note and a form that fail after the note was written, and then one that does not.
func TestNotesAnnouncedAfterCommit(t *testing.T) {
	t.Parallel()
	s := start(t, "notes")
	window, writer := open(t, Views[0]), person{t, open(t, Views[0])}
	if _, err := window.Open(s.URL + "/"); err != nil {
		t.Fatal(err)
	}
	listening(t, window)
	refuse := func() error {
		writer.goTo(s.URL+"/notes/new", 200)
		writer.overwrite("Half a note")
		writer.fill("Tags", "NOT A TAG")
		writer.follow("Save", 422)
		writer.goTo(s.URL+"/demo", 200)
		writer.follow("Write a note and fail", 500)
		writer.looks()
		return nil
	}
	commit := func() error {
		writer.goTo(s.URL+"/notes/new", 200)
		writer.overwrite("A whole note")
		return writer.Press(kb.Enter)
	}
	found, err := Announced(window, []string{"Half a note", "You will never see this note"}, "A whole note", refuse, commit)
	if err != nil {
		t.Fatal(err)
	}
	said, _ := window.Said()
	t.Logf("the window said %q", said)
	for _, problem := range found {
		t.Error(problem)
	}
	reader := person{t, window}
	reader.looks()
	reader.follow("New: A whole note", 200)
}

// TestNotesDemoByKeyboard makes each failure happen, and what it looks like when it goes well: all at once, and each card
// by the buttons of its own.
func TestNotesDemoByKeyboard(t *testing.T) {
	t.Parallel()
	s := start(t, "notes")
	p := person{t, open(t, Views[0])}
	p.goTo(s.URL+"/", 200)
	p.follow("Demo", 200)
	for button, trouble := range map[string]bool{"Make all five happen": true, "All five, when it goes well": false} {
		p.follow(button, 200)
		p.verdicts(5, trouble)
		p.looks()
	}
	p.follow("Demo", 200)
	ids, err := Eval[[]string](p.Page, `[...document.querySelectorAll(".card")].map((card) => card.id)`)
	p.must(err)
	if len(ids) != 5 {
		t.Fatalf("the cards are %q, want five", ids)
	}
	for i := range ids {
		for button, trouble := range map[string]bool{"Make it happen": true, "When it goes well": false} {
			p.follow("Demo", 200)
			for range i + 1 {
				p.must(p.TabToPrefix(button))
			}
			p.enter(200)
			p.verdicts(1, trouble)
			cards, err := p.Cards()
			p.must(err)
			t.Logf("%s: %+v", ids[i], cards)
		}
	}
	p.follow("Exactly once", 200)
	for button, trouble := range map[string]bool{"Order, and kill the server": true, "When it goes well: the server answers first": false} {
		p.follow(button, 200)
		p.verdicts(1, trouble)
		p.looks()
	}
}

// verdicts looks at the cards that have been run.
func (p person) verdicts(n int, trouble bool) {
	p.t.Helper()
	cards, err := p.Cards()
	p.must(err)
	if len(cards) != n {
		p.t.Errorf("%d cards have been run, want %d", len(cards), n)
	}
	for _, problem := range Verdicts(cards, trouble) {
		p.t.Error(problem)
	}
}
