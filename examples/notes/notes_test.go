package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/notes/internal/auditdb"
	"github.com/sqlreq/sqlreq/examples/notes/internal/notesdb"
	"github.com/sqlreq/sqlreq/examples/notes/internal/once"
)

func TestMain(m *testing.M) {
	if once.IsServer() {
		os.Exit(once.Serve())
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil))) // failures are what many tests are about
	os.Exit(m.Run())
}

// TestSqlcOnAKey: what sqlc generates takes a key, as README.md says.
func TestSqlcOnAKey(t *testing.T) {
	s := start(t)
	queries := notesdb.New(sqlreq.DefaultKey)
	err := s.reg.Do(t.Context(), func(ctx context.Context) error {
		n, err := queries.CountNotes(ctx)
		if n != 0 {
			t.Errorf("%d notes at the start", n)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := queries.CountNotes(t.Context()); !errors.Is(err, sqlreq.ErrNoRegistry) {
		t.Errorf("without a request: %v", err)
	}
}

// service is the real handler behind a real listener, over files that are gone after the test.
type service struct {
	*server
	t   *testing.T
	dbs databases
	url string
}

func start(t *testing.T) *service {
	t.Helper()
	return startOn(t, filepath.Join(t.TempDir(), "notes.db"))
}

func startOn(t *testing.T, path string) *service {
	t.Helper()
	dbs, err := openDatabases(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newServer(dbs)
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewUnstartedServer(nil)
	ts.Config = newHTTPServer(s)
	ts.Start()
	t.Cleanup(func() {
		s.feed.close()
		ts.Close() // returns when all requests have ended
		if n := dbs.notes.Stats().InUse + dbs.audit.Stats().InUse; n != 0 {
			t.Errorf("%d connections are still in use after the last request", n)
		}
		if err := dbs.close(); err != nil {
			t.Error(err)
		}
	})
	return &service{s, t, dbs, ts.URL}
}

// reply is an answer that was read to its end.
type reply struct {
	*http.Response
	body string
}

func (s *service) do(req *http.Request) reply {
	s.t.Helper()
	resp, err := http.DefaultTransport.RoundTrip(req) // follows no redirect
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatalf("%s %s: %v after %d bytes", req.Method, req.URL, err, len(body))
	}
	return reply{resp, string(body)}
}

func (s *service) request(method, path, contentType, body string) *http.Request {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return req
}

func (s *service) get(path string) reply {
	s.t.Helper()
	return s.do(s.request("GET", path, "", ""))
}

func (s *service) form(path string, values url.Values) reply {
	s.t.Helper()
	return s.do(s.request("POST", path, "application/x-www-form-urlencoded", values.Encode()))
}

func (s *service) json(method, path, body string) reply {
	s.t.Helper()
	return s.do(s.request(method, path, "application/json", body))
}

// count asks the database, past the service.
func (s *service) count(query string, args ...any) (n int) {
	s.t.Helper()
	if err := s.dbs.notes.QueryRow(query, args...).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *service) fill(n int) {
	s.t.Helper()
	if _, err := s.dbs.notes.Exec(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
		INSERT INTO notes (title, body) SELECT 'note ' || i, 'text' FROM n`, n); err != nil {
		s.t.Fatal(err)
	}
}

func (s *service) auditLog() []auditdb.AuditLog {
	s.t.Helper()
	log, err := auditdb.New(s.dbs.audit).Latest(context.Background(), 100)
	if err != nil {
		s.t.Fatal(err)
	}
	return log
}

func (r reply) is(t *testing.T, status int, contains ...string) {
	t.Helper()
	if r.StatusCode != status {
		t.Fatalf("%s %s: got %s, want %d\n%s", r.Request.Method, r.Request.URL, r.Status, status, r.body)
	}
	for _, want := range contains {
		if !strings.Contains(r.body, want) {
			t.Fatalf("%s %s: want %q in\n%s", r.Request.Method, r.Request.URL, want, r.body)
		}
	}
}

func (r reply) leadsTo(t *testing.T, location string) {
	t.Helper()
	if got := r.Header.Get("Location"); got != location {
		t.Fatalf("%s %s: Location is %q, want %q", r.Request.Method, r.Request.URL, got, location)
	}
}

func TestListHasPages(t *testing.T) {
	s := start(t)
	s.get("/").is(t, 200, "Nothing here yet")
	s.fill(45)
	for _, c := range []struct {
		path        string
		first, last int
		links, none []string
	}{
		{"/", 45, 26, []string{`href="/?page=2"`, "Page 1 of 3", "45 notes"}, []string{"Newer"}},
		{"/?page=2", 25, 6, []string{`href="/?page=1"`, `href="/?page=3"`}, nil},
		{"/?page=3", 5, 1, []string{`href="/?page=2"`}, []string{"Older"}},
		{"/?page=9", 0, 0, []string{"nothing on this page", `href="/?page=3"`}, []string{"Older"}},
	} {
		got := s.get(c.path)
		got.is(t, 200, c.links...)
		for _, none := range c.none {
			if strings.Contains(got.body, none) {
				t.Errorf("%s contains %q", c.path, none)
			}
		}
		for id := 1; id <= 45; id++ {
			want := c.last <= id && id <= c.first
			if has := strings.Contains(got.body, fmt.Sprintf(`href="/notes/%d"`, id)); has != want {
				t.Errorf("%s shows note %d: %v, want %v", c.path, id, has, want)
			}
		}
	}
	for _, page := range []string{"0", "-1", "x", "99999999999999999999"} {
		s.get("/?page="+page).is(t, 400)
	}
}

func TestFormIsRedirectedAfterPost(t *testing.T) {
	s := start(t)
	s.get("/notes/new").is(t, 200, `action="/notes"`)
	got := s.form("/notes", url.Values{"title": {"Milk"}, "body": {"two litres"}, "tags": {"shop home"}})
	got.is(t, http.StatusSeeOther)
	got.leadsTo(t, "/notes/1")
	s.get("/notes/1").is(t, 200, "Milk", "two litres", "<li>home</li><li>shop</li>")
	s.get("/").is(t, 200, "1 note", "Milk")
}

func TestFormWithABadTagIsRolledBackAndKeepsTheInput(t *testing.T) {
	s := start(t)
	got := s.form("/notes", url.Values{"title": {"Milk"}, "body": {"two litres"}, "tags": {"shop NO"}})
	got.is(t, 422, `role="alert"`, "The tag &#34;NO&#34;", `value="Milk"`, ">two litres</textarea>", `value="shop NO"`)
	if notes, tags := s.count(`SELECT count(*) FROM notes`), s.count(`SELECT count(*) FROM tags`); notes+tags != 0 {
		t.Errorf("%d notes and %d tags were kept, want none", notes, tags)
	}
}

func TestAPI(t *testing.T) {
	s := start(t)
	got := s.json("POST", "/api/notes", `{"title": " Milk ", "body": "two litres", "tags": ["shop"]}`)
	got.is(t, 201)
	got.leadsTo(t, "/api/notes/1")
	var note noteJSON
	if err := json.Unmarshal([]byte(got.body), &note); err != nil {
		t.Fatal(err)
	}
	if note.ID != 1 || note.Title != "Milk" || note.Body != "two litres" || fmt.Sprint(note.Tags) != "[shop]" || note.CreatedAt.IsZero() {
		t.Errorf("created %+v", note)
	}
	if again := s.get("/api/notes/1"); again.body != got.body {
		t.Errorf("GET answers %s, POST had answered %s", again.body, got.body)
	}
	s.get("/api/notes").is(t, 200, `"total":1`, `"pages":1`, `"title":"Milk"`)
	s.json("DELETE", "/api/notes/1", "").is(t, 204)
	s.get("/api/notes").is(t, 200, `"notes":[]`)
}

func TestAPIAnswersErrorsInJSONAndRollsBack(t *testing.T) {
	s := start(t)
	for _, c := range []struct {
		method, path, body string
		status             int
		text               string
	}{
		{"POST", "/api/notes", `{"title": ""}`, 422, "A note needs a title."},
		{"POST", "/api/notes", `{"title": "Milk", "tags": ["a", "NOT A TAG"]}`, 422, `The tag \"NOT A TAG\"`},
		{"POST", "/api/notes", `{"title": "Milk", "tags": ["a", "a"]}`, 422, "each tag once"},
		{"POST", "/api/notes", `{"title": "` + strings.Repeat("x", 101) + `"}`, 422, "100 characters"},
		{"POST", "/api/notes", `{"title": `, 400, "not the JSON of a note"},
		{"POST", "/api/notes", `{"titel": "Milk"}`, 400, "titel"},
		{"POST", "/api/notes", `{"title": "Milk"} and more`, 400, "there is something after it"},
		{"POST", "/api/notes", `{"title": "Milk"}` + strings.Repeat(" ", 70_000), 413, "Too Large"},
		{"POST", "/api/notes", `{"title": 7}`, 400, "got number for title"},
		{"POST", "/api/notes", `[]`, 400, "got array for the whole"},
		{"POST", "/api/notes", ``, 400, "it is empty"},
		{"POST", "/api/notes", `{"title": "` + strings.Repeat("x", 70_000) + `"}`, 413, "Too Large"},
		{"GET", "/api/notes/7", ``, 404, "no such note"},
		{"GET", "/api/notes/x", ``, 404, "no number"},
		{"DELETE", "/api/notes/7", ``, 404, "no such note"},
		{"GET", "/api/nothing", ``, 404, "no such page"},
	} {
		got := s.json(c.method, c.path, c.body)
		got.is(t, c.status, c.text)
		var answer struct{ Error string }
		if err := json.Unmarshal([]byte(got.body), &answer); err != nil || answer.Error == "" {
			t.Errorf("%s %s answers %q, want JSON with an error", c.method, c.path, got.body)
		}
		if got := got.Header.Get("Content-Type"); got != "application/json" {
			t.Errorf("%s %s answers with Content-Type %q", c.method, c.path, got)
		}
		if loc := got.Header.Get("Location"); loc != "" {
			t.Errorf("%s %s: the error answer has a Location, %q", c.method, c.path, loc)
		}
	}
	if n := s.count(`SELECT (SELECT count(*) FROM notes) + (SELECT count(*) FROM tags)`); n != 0 {
		t.Errorf("%d rows were kept, want none", n)
	}
	got := s.json("PUT", "/api/notes/1", "{}")
	got.is(t, 405)
	if allow := got.Header.Get("Allow"); !strings.Contains(allow, "DELETE") || !strings.Contains(allow, "GET") {
		t.Errorf("PUT is answered with Allow: %q", allow)
	}
}

func TestAuditLogSurvivesRollback(t *testing.T) {
	s := start(t)
	s.json("POST", "/api/notes", `{"title": "good"}`).is(t, 201)
	s.json("POST", "/api/notes", `{"title": "bad", "tags": ["NO"]}`).is(t, 422)
	s.form("/demo/fail", nil).is(t, 500)
	var got []string
	for _, e := range s.auditLog() {
		got = append(got, e.Action+" "+e.Detail+": "+e.Outcome)
	}
	want := []string{"add note one that will fail: rolled back", "add note bad: rolled back", "add note good: committed"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the log says %q, want %q", got, want)
	}
	if n := s.count(`SELECT count(*) FROM notes`); n != 1 {
		t.Errorf("%d notes, want 1", n)
	}
	s.get("/admin/audit/").is(t, 200, "one that will fail", "rolled back", "committed")
}

func TestAdminIsAtHomeUnderItsPrefix(t *testing.T) {
	s := start(t)
	s.fill(1)
	for path, location := range map[string]string{
		"/admin":           "/admin/",
		"/admin?x=1":       "/admin/?x=1",
		"/admin/audit":     "/admin/audit/",
		"/admin/x/../":     "/admin/",
		"/admin//audit/":   "/admin/audit/",
		"/admin/audit?x=1": "/admin/audit/?x=1",
	} {
		got := s.get(path)
		if got.StatusCode/100 != 3 {
			t.Errorf("GET %s: %s, want a redirect", path, got.Status)
		}
		got.leadsTo(t, location)
	}
	s.get("/admin/").is(t, 200, `href="/admin/audit/"`, `href="/admin/notes/1/delete"`, `href="/"`, "note 1")
	s.get("/admin/nothing").is(t, 404, `href="/admin/"`)
	// Delete asks, and nothing is gone by asking.
	s.get("/admin/notes/1/delete").is(t, 200, "note 1", `method="post" action="/admin/notes/1/delete"`, `href="/admin/"`)
	s.get("/notes/1").is(t, 200)
	s.get("/admin/notes/7/delete").is(t, 404, "Note 7 was not there any more.")
	s.get("/admin/notes/x/delete").is(t, 404, "is no number")

	got := s.form("/admin/notes/1/delete", nil)
	got.is(t, http.StatusSeeOther)
	got.leadsTo(t, "/admin/")
	s.form("/admin/notes/1/delete", nil).is(t, 404, `href="/admin/"`)
	s.get("/notes/1").is(t, 404)
	log := s.auditLog()
	if len(log) != 2 || log[1].Outcome != "committed" || log[0].Outcome != "rolled back" {
		t.Errorf("the audit log says %+v", log)
	}
}

func TestErrorPageOfARolledBackRequest(t *testing.T) {
	s := start(t)
	got := s.form("/demo/fail", nil)
	got.is(t, 500, "Internal Server Error", "Nothing of what this request wrote was kept.", "<h1")
	if strings.Contains(got.body, "promised") {
		t.Errorf("the page tells the error, which is for the log:\n%s", got.body)
	}
	if n := s.count(`SELECT count(*) FROM notes`); n != 0 {
		t.Errorf("%d notes, want none", n)
	}
	s.get("/notes/7").is(t, 404, "There is no such note.")
	s.get("/nothing").is(t, 404, "There is no such page.")
}

func TestPostsOfOtherSitesAreRefused(t *testing.T) {
	s := start(t)
	for name, value := range map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"} {
		req := s.request("POST", "/notes", "application/x-www-form-urlencoded", "title=Milk")
		req.Header.Set(name, value)
		s.do(req).is(t, 403, "another site")
	}
	req := s.request("POST", "/api/counter", "", "")
	req.Header.Set("Sec-Fetch-Site", "same-site")
	s.do(req).is(t, 403, `"error"`)

	req = s.request("POST", "/notes", "application/x-www-form-urlencoded", "title=Milk")
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	s.do(req).is(t, 303)
	if n := s.count(`SELECT count(*) FROM notes`); n != 1 {
		t.Errorf("%d notes, want 1", n)
	}
}

func TestOtherHostsAreRefused(t *testing.T) {
	s := start(t)
	for host, status := range map[string]int{
		"evil.example": 421, "evil.example:8087": 421, "127.0.0.1.evil.example": 421, "8.8.8.8": 421,
		"localhost": 200, "localhost:8087": 200, "[::1]:8087": 200, "[::1]": 200, "127.0.0.1": 200,
	} {
		req := s.request("GET", "/", "", "")
		req.Host = host
		if got := s.do(req); got.StatusCode != status {
			t.Errorf("Host: %s is answered with %s, want %d", host, got.Status, status)
		}
	}
}

func TestEverythingIsEscaped(t *testing.T) {
	s := start(t)
	const evil = `<script>alert("1")</script>`
	s.form("/notes", url.Values{"title": {evil}, "body": {evil}}).is(t, 303)
	s.form("/notes", url.Values{"title": {evil}, "body": {evil}, "tags": {evil}}).is(t, 422)
	for _, path := range []string{"/", "/notes/1", "/admin/", "/admin/audit/", "/api/notes/1"} {
		got := s.get(path)
		got.is(t, 200, "alert(")
		if strings.Contains(got.body, "<script>") {
			t.Errorf("%s contains the script:\n%s", path, got.body)
		}
		if csp := got.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "script-src 'self'") {
			t.Errorf("%s has the Content-Security-Policy %q", path, csp)
		}
	}
}

func TestOneConnectionInMemoryIsEnough(t *testing.T) {
	s := startOn(t, inMemory)
	stream := s.listen("/events?after=0")
	s.json("POST", "/api/notes", `{"title": "Milk", "tags": ["shop"]}`).is(t, 201)
	if e := stream.next(); e.Title != "Milk" {
		t.Errorf("the stream announces %+v", e)
	}
	s.form("/demo/fail", nil).is(t, 500)
	s.form("/demo/all", nil).is(t, 200, "✗", "✓")
	s.get("/admin/audit/").is(t, 200, "rolled back")
	s.get("/notes.csv").is(t, 200, "Milk")
	s.form("/counter", nil).is(t, 303)
	s.form("/admin/notes/1/delete", nil).is(t, 303)
	s.get("/").is(t, 200, "0 notes")
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}
