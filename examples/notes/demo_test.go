package main

import (
	"fmt"
	"html"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/notes/internal/failures"
)

// verdicts are the sides of the cards of a page, in order: "good" or "bad", as the colours are and as the marks are.
func verdicts(t *testing.T, body string) string {
	t.Helper()
	var all []string
	for _, m := range regexp.MustCompile(`(?s)<section class="side (good|bad)">.*?<p class="verdict">(✓|✗) ([^<]+)</p>`).FindAllStringSubmatch(body, -1) {
		if (m[1] == "good") != (m[2] == "✓") {
			t.Errorf("a side is %s and has the mark %s", m[1], m[2])
		}
		all = append(all, m[1])
	}
	return strings.Join(all, " ")
}

func TestDemoRunsNothingUnasked(t *testing.T) {
	s := start(t)
	body := s.get("/demo").body
	equal(t, "verdicts", verdicts(t, body), "")
	for _, f := range failures.All {
		if !strings.Contains(body, `action="/demo/`+f.ID+"#"+f.ID+`"`) || !strings.Contains(body, html.EscapeString(f.Title)) {
			t.Errorf("no card of %s", f.ID)
		}
	}
	equal(t, "verdicts", verdicts(t, s.get("/demo/once").body), "")
}

func TestDemoCards(t *testing.T) {
	s := start(t)
	for _, f := range failures.All {
		got := s.form("/demo/"+f.ID, url.Values{"run": {"trouble"}})
		got.is(t, 200, "20 lines by hand, 2 with sqlreq", "on purpose")
		equal(t, f.ID, verdicts(t, got.body), "bad good")
		// The result stands in its own card.
		_, after, _ := strings.Cut(got.body, `id="`+f.ID+`"`)
		own, _, _ := strings.Cut(after, `<section class="card"`)
		equal(t, f.ID+" in its card", verdicts(t, own), "bad good")

		got = s.form("/demo/"+f.ID, url.Values{"run": {"well"}})
		got.is(t, 200)
		equal(t, f.ID+" when it goes well", verdicts(t, got.body), "good good")
	}
	equal(t, "all", verdicts(t, s.form("/demo/all", nil).body), strings.TrimSpace(strings.Repeat("bad good ", len(failures.All))))
	s.form("/demo/nothing", nil).is(t, 404, "There is no such failure.")
}

func TestAddressesOfResultsLeadToTheirCards(t *testing.T) {
	s := start(t)
	for path, card := range map[string]string{"/demo/commit": "/demo#commit", "/demo/conflict": "/demo#conflict", "/demo/all": "/demo"} {
		got := s.get(path)
		got.is(t, 303)
		got.leadsTo(t, card)
	}
	s.get("/demo/nothing").is(t, 404, "There is no such failure.")
}

// TestDemoPageSaysWhatWasTold: statuses, counts and the log are on the page.
func TestDemoPageSaysWhatWasTold(t *testing.T) {
	s := start(t)
	rest := s.form("/demo/commit", nil).body
	for _, want := range []string{
		"By hand", "POST /notes", "<strong>201 Created</strong>", "Saved: Milk", "notes in the database", "<dd>0</dd>",
		"COMMIT failed, and the client has its answer", "✗",
		"With sqlreq", "<strong>500 Internal Server Error</strong>", "<dd>0</dd>", "sqlreq: request failed", "✓",
		"<mark>		if err := tx.Commit(); err != nil {</mark>", "(this line)", "return reg.Middleware(next)",
	} {
		_, after, found := strings.Cut(rest, want)
		if !found {
			t.Fatalf("want %q next, in\n%s", want, rest)
		}
		rest = after
	}
}

func TestOncePage(t *testing.T) {
	s := start(t)
	got := s.form("/demo/once", nil)
	got.is(t, 200, "Killed between COMMIT and the answer", "<dd>2</dd>", "<dd>1</dd>", "the connection is closed", `src="/static/crashpoints.svg"`)
	equal(t, "killed", verdicts(t, got.body), "bad good")
	equal(t, "not killed", verdicts(t, s.form("/demo/once", url.Values{"run": {"well"}}).body), "good good")
}

func TestDemosAreFew(t *testing.T) {
	s := start(t)
	for path, places := range map[string]chan struct{}{"/demo/all": s.demos, "/demo/once": s.kills} {
		for range cap(places) {
			places <- struct{}{}
		}
		got := s.form(path, nil)
		got.is(t, 429, "Others run the demo just now.")
		equal(t, "Retry-After", got.Header.Get("Retry-After"), "1")
		<-places
		s.form(path, nil).is(t, 200)
		s.form(path, nil).is(t, 200) // the place came back
	}
}

// TestDemoHoldsNoConnection: the page has a transaction to ask for, and does not.
func TestDemoHoldsNoConnection(t *testing.T) {
	s := start(t)
	s.dbs.notes.SetMaxOpenConns(1)
	conn, err := s.dbs.notes.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, path := range []string{"/demo/commit", "/demo/once"} {
		s.form(path, nil).is(t, 200)
	}
}

// conflict is an error for which sqlreq runs a request again.
type conflict struct{}

func (conflict) Error() string    { return "could not serialize access" }
func (conflict) SQLState() string { return "40001" }

// TestConflictInADemoIsNoConflictOfThePage: otherwise the whole demo would run again, up to fifty times.
func TestConflictInADemoIsNoConflictOfThePage(t *testing.T) {
	if !sqlreq.IsRetryable(conflict{}) {
		t.Fatal("not even the error itself is a conflict")
	}
	if err := failed(conflict{}); sqlreq.IsRetryable(err) || !strings.Contains(err.Error(), "serialize") {
		t.Errorf("%v is a conflict, or says nothing", err)
	}
}

func TestPortThatIsTaken(t *testing.T) {
	s := start(t)
	err := run(t.Context(), &strings.Builder{}, inMemory, strings.TrimPrefix(s.url, "http://"))
	if err == nil || !strings.Contains(fmt.Sprint(err), "choose one with -addr") {
		t.Errorf("got %v, want an error that names -addr", err)
	}
}
