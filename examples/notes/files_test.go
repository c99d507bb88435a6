package main

import (
	"encoding/csv"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
)

func multipartFile(t *testing.T, content string) (body, contentType string) {
	t.Helper()
	var b strings.Builder
	form := multipart.NewWriter(&b)
	part, err := form.CreateFormFile("file", "notes.csv")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(part, content)
	if err := form.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String(), form.FormDataContentType()
}

func (s *service) upload(content string) reply {
	s.t.Helper()
	body, contentType := multipartFile(s.t, content)
	return s.do(s.request("POST", "/import", contentType, body))
}

func TestExportStreamsEveryNote(t *testing.T) {
	s := start(t)
	const n = 5000
	s.fill(n)
	got := s.get("/notes.csv")
	got.is(t, 200)
	if len(got.TransferEncoding) == 0 || got.TransferEncoding[0] != "chunked" {
		t.Errorf("the download was not streamed: Transfer-Encoding %q, Content-Length %d", got.TransferEncoding, got.ContentLength)
	}
	lines, err := csv.NewReader(strings.NewReader(got.body)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(lines) != n+1 {
		t.Fatalf("%d lines, want %d", len(lines), n+1)
	}
	for i, line := range lines[1:] {
		if line[0] != fmt.Sprint(i+1) || line[1] != fmt.Sprintf("note %d", i+1) || line[2] != "text" {
			t.Fatalf("line %d is %q", i+1, line)
		}
	}
}

func TestExportThatFailsHalfWayIsNoDownload(t *testing.T) {
	s := start(t)
	s.fill(5000)
	if _, err := s.dbs.notes.Exec(`INSERT INTO notes (title, body, created_at) VALUES ('broken', '', 'no time')`); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(s.url + "/notes.csv")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("read %d bytes without an error, want a download that breaks off", len(body))
	}
}

func TestExportThatNobodyReadsGivesItsConnectionBack(t *testing.T) {
	s := start(t)
	s.fill(20_000)
	for range cap(s.exports) {
		resp, err := http.Get(s.url + "/notes.csv")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close() // in the middle of it; the end of the test looks at the pool
	}
	for range cap(s.exports) {
		s.exports <- struct{}{} // waits until the downloads have ended
	}
}

func TestExportsAreFew(t *testing.T) {
	s := start(t)
	for range cap(s.exports) {
		s.exports <- struct{}{}
	}
	got := s.get("/notes.csv")
	got.is(t, 503)
	equal(t, "Retry-After", got.Header.Get("Retry-After"), "1")
	<-s.exports
	s.get("/notes.csv").is(t, 200)
	s.get("/notes.csv").is(t, 200) // the token came back
}

func TestImportRollsBackABadLineAlone(t *testing.T) {
	s := start(t)
	notes, stop := s.feed.subscribe()
	defer stop()
	got := s.upload("\ufefftags,title,body\n" +
		"shop,Milk,two litres\n" + // 2
		"shop NO,Bread,the note is written before the tag is refused\n" + // 3
		",\"Tea\nfor two\",\n" + // 4 and 5
		",,no title\n" + // 6
		"shop,too few\n" + // 7
		",a \"quote\" amiss,\n" + // 8
		"home,Soap,\n") // 9
	got.is(t, 303)
	got.leadsTo(t, "/imports/1")
	report := s.get("/imports/1")
	report.is(t, 200, "3 added, 4 refused", "notes.csv",
		"<td>3</td><td>The tag &#34;NO&#34;", "<td>6</td><td>A note needs a title.", "<td>7</td><td>2 columns", "<td>8</td><td>This is no CSV")
	equal(t, "notes", s.count(`SELECT count(*) FROM notes`), 3)
	equal(t, "notes of bad lines", s.count(`SELECT count(*) FROM notes WHERE title = 'Bread'`), 0)
	equal(t, "tags", s.count(`SELECT count(*) FROM tags`), 2)
	var announced []string
	for range 3 {
		announced = append(announced, (<-notes).Title)
	}
	equal(t, "announced", fmt.Sprintf("%q", announced), `["Milk" "Tea\nfor two" "Soap"]`)
	equal(t, "announced beyond that", len(notes), 0)
	s.get("/imports/2").is(t, 404)
}

func TestImportThatIsTooLongIsRolledBackAsAWhole(t *testing.T) {
	s := start(t)
	got := s.upload("title\n" + strings.Repeat("x\n", maxLines+1))
	got.is(t, 422, "at most 1000 notes", "Nothing was imported.", `aria-invalid="true" aria-describedby="problem"`)
	equal(t, "notes", s.count(`SELECT count(*) FROM notes`), 0)
	equal(t, "imports", s.count(`SELECT count(*) FROM imports`), 0)
	equal(t, "outcome", s.auditLog()[0].Outcome, "rolled back")
}

func TestImportRefusesWhatIsNoFile(t *testing.T) {
	s := start(t)
	s.upload("").is(t, 422, "name the columns")
	s.upload("a,b\n1,2\n").is(t, 422, "no column")
	s.upload("title\n"+strings.Repeat("x", 2<<20)).is(t, 413)
	s.form("/import", nil).is(t, 400)
	s.do(s.request("POST", "/import", "multipart/form-data; boundary=x", "--x--\r\n")).is(t, 422, "Choose a file first.", `aria-invalid="true"`)
}

func TestExportCanBeImportedAndRunsNoFormulas(t *testing.T) {
	s := start(t)
	for _, title := range []string{"=1+1", "+1", "-1", "@x", "'=quoted", "'tis", "plain", "a,\"b\"", "ünïcode"} {
		s.json("POST", "/api/notes", fmt.Sprintf(`{"title": %q, "body": "=%s", "tags": ["x", "-y"]}`, title, "a\\nb")).is(t, 201)
	}
	file := s.get("/notes.csv").body
	lines, err := csv.NewReader(strings.NewReader(file)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines[1:] {
		for _, cell := range line {
			if strings.ContainsAny(cell[:1], "=+-@\t\r\n") {
				t.Errorf("the cell %q is a formula to a spreadsheet", cell)
			}
		}
	}
	text := func() (all string) {
		if err := s.dbs.notes.QueryRow(`SELECT group_concat(title || char(1) || body || char(1) || tags, char(2)) FROM tagged_notes ORDER BY id`).Scan(&all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	before := text()
	if _, err := s.dbs.notes.Exec(`DELETE FROM notes`); err != nil {
		t.Fatal(err)
	}
	s.upload(file).is(t, 303)
	equal(t, "after the round trip", text(), before)
}
