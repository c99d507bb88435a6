package integration

import (
	"bufio"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq/internal/servers"
)

// buildNotes builds examples/notes.
func buildNotes(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "notes")
	cmd := osexec.Command("go", "build", "-o", bin, "./notes")
	cmd.Dir = "../examples"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// startNotes starts it and returns its URL, when it answers there.
func startNotes(t *testing.T, bin, db string) (cmd *osexec.Cmd, url string) {
	t.Helper()
	cmd = osexec.Command(bin, "-addr", "127.0.0.1:0", "-db", db)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	url = regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindString(line)
	if err != nil || url == "" {
		_ = cmd.Wait()
		t.Fatalf("no URL in %q: %v\n%s", line, err, &stderr)
	}
	go func() { _, _ = io.Copy(io.Discard, stdout) }()
	return cmd, url
}

// sent are the notes that were posted, by title, each with the status of the
// answer; 0 if there was none, or not a whole one.
type sent struct {
	mu     sync.Mutex
	status map[string]int
}

// post posts a note and returns the status.
func (s *sent) post(client *http.Client, url, title string) int {
	body, err := json.Marshal(map[string]any{"title": title, "tags": []string{"one", "two"}})
	if err != nil {
		panic(err)
	}
	status := 0
	res, err := client.Post(url+"/api/notes", "application/json", strings.NewReader(string(body)))
	if err == nil {
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err == nil {
			status = res.StatusCode
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status[title] = status
	return status
}

// examples/notes is killed under load and started again, twenty times. Every note
// whose POST was answered with success is there, once, and with its tags.
func TestG1NotesKilledSQLite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notes.db")
	killNotes(t, path, func() *sql.DB { return openDSN(t, "sqlite", "file:"+path) })
}

func TestG1NotesKilledPostgres(t *testing.T) {
	dsn := notesDatabase(t)
	killNotes(t, dsn, func() *sql.DB { return openDSN(t, "pgx", dsn) })
}

// notesDatabase returns the DSN of a new database for the service, which has its tables in it.
func notesDatabase(t *testing.T) string {
	t.Helper()
	dsn := servers.SharedPostgres(t).DSN
	admin := openDSN(t, "pgx", dsn)
	exec(t, admin, "DROP DATABASE IF EXISTS sqlreq_notes WITH (FORCE)", "CREATE DATABASE sqlreq_notes")
	t.Cleanup(func() { exec(t, admin, "DROP DATABASE IF EXISTS sqlreq_notes WITH (FORCE)") })
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/sqlreq_notes"
	return u.String()
}

// The service does on PostgreSQL what its own tests see on SQLite.
func TestNotesOnPostgres(t *testing.T) {
	dsn := notesDatabase(t)
	_, base := startNotes(t, buildNotes(t), dsn)
	ask := func(method, path, contentType, body string, want int) string {
		t.Helper()
		req, err := http.NewRequest(method, base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		got, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != want {
			t.Errorf("%s %s: got %d, %v, want %d\n%s", method, path, res.StatusCode, err, want, got)
		}
		return string(got)
	}
	const form = "application/x-www-form-urlencoded"
	ask("POST", "/api/notes", "", `{"title": "Milk", "tags": ["shop", "food"]}`, http.StatusCreated)
	ask("POST", "/api/notes", "", `{"title": "Half a note", "tags": ["NOT A TAG"]}`, http.StatusUnprocessableEntity)
	ask("POST", "/api/notes", "", `{"title": "Zero \u0000"}`, http.StatusUnprocessableEntity)
	ask("POST", "/notes", form, "title=Bread&body=fresh&tags=food", http.StatusOK) // after the redirect
	ask("POST", "/import", "multipart/form-data; boundary=x", "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.csv\"\r\n\r\n"+
		"title,tags\nEggs,food\nBad,NO TAG\nJam,food\n\r\n--x--\r\n", http.StatusOK)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 5 {
				ask("POST", "/api/counter", "", "", http.StatusOK)
			}
		})
	}
	wg.Wait()
	for path, want := range map[string][]string{
		"/":             {"Milk", "Bread", "Eggs", "Jam"},
		"/notes.csv":    {"Milk", "food shop", "Bread", "Eggs", "Jam"},
		"/api/notes/1":  {`"tags":["food","shop"]`},
		"/api/counter":  {`"value":100`},
		"/admin/":       {"Milk"},
		"/admin/audit/": {"Half a note", "rolled back", "committed"},
		"/demo":         {"<form"},
	} {
		got := ask("GET", path, "", "", http.StatusOK)
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("GET %s: no %q in it\n%s", path, w, got)
			}
		}
	}
	db := openDSN(t, "pgx", dsn)
	for query, want := range map[string]int{"SELECT count(*) FROM notes": 4, "SELECT count(*) FROM bad_lines": 1, "SELECT count(*) FROM tags": 5} {
		if got := number(t, db, query); got != want {
			t.Errorf("%s: got %d, want %d", query, got, want)
		}
	}
}

func killNotes(t *testing.T, dsn string, open func() *sql.DB) {
	const rounds, clients = 20, 4
	bin := buildNotes(t)
	all := &sent{status: make(map[string]int)}
	for round := range rounds {
		cmd, url := startNotes(t, bin, dsn)
		client := &http.Client{Transport: new(http.Transport), Timeout: patience}
		progress := make(chan bool) // a note was posted, or its client gives up
		for c := range clients {
			go func() {
				for i := 0; ; i++ {
					ok := all.post(client, url, fmt.Sprintf("note %d-%d-%d", round, c, i)) == http.StatusCreated
					progress <- ok
					if !ok {
						return
					}
				}
			}()
		}
		timeout := time.After(patience)
		killed, successes := false, 0
		for running := clients; running > 0; {
			select {
			case ok := <-progress:
				if !ok {
					running--
				}
				successes++
			case <-timeout:
				t.Fatalf("round %d: %d successes, killed: %v, in %v", round, successes, killed, patience)
			}
			if !killed && successes >= 10+2*round { // another moment in each round
				killed = true
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if !killed {
			t.Fatalf("round %d: every client has given up before the service was killed: %v", round, all.status)
		}
		_ = cmd.Wait()
		client.CloseIdleConnections()
	}
	// It has to come up once more, and to work.
	cmd, url := startNotes(t, bin, dsn)
	if got := all.post(http.DefaultClient, url, "the last"); got != http.StatusCreated {
		t.Errorf("after %d restarts: got %d, want 201", rounds, got)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	all.are(t, open())
}

// are compares with what is in the database.
func (s *sent) are(t *testing.T, db *sql.DB) {
	t.Helper()
	rows, err := db.Query("SELECT title, (SELECT count(*) FROM tags WHERE note_id = notes.id) FROM notes")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	there := make(map[string]int)
	for rows.Next() {
		var title string
		var tags int
		if err := rows.Scan(&title, &tags); err != nil {
			t.Fatal(err)
		}
		there[title]++
		if _, ok := s.status[title]; !ok || tags != 2 {
			t.Errorf("%q is there with %d tags, sent: %v; want 2 tags, true", title, tags, ok)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	var answered, unanswered, kept int
	for title, status := range s.status {
		n := there[title]
		switch {
		case status/100 == 2:
			answered++
			if n != 1 {
				t.Errorf("%q was answered with %d, and is there %d times", title, status, n)
			}
		case n > 1:
			t.Errorf("%q is there %d times", title, n)
		case status != 0 && n != 0:
			t.Errorf("%q was answered with %d, and is there", title, status)
		default:
			unanswered++
			kept += n
		}
	}
	t.Logf("%d notes answered with success, %d not answered, %d of these are there", answered, unanswered, kept)
}
