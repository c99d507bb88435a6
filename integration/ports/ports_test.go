package ports

import (
	"database/sql"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// The programs log to the default logger, as programs do.
func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// openDB returns an SQLite file with a schema, whose COMMIT fails when a row was added to "orphans".
func openDB(t *testing.T, schema string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "test.db")+
		"?_pragma=foreign_keys(1)&_pragma=busy_timeout(20000)&_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if _, err := db.Exec(schema + `;
		CREATE TABLE orphans (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES orphans (id) DEFERRABLE INITIALLY DEFERRED);`); err != nil {
		t.Fatal(err)
	}
	return db
}

// number returns the first column of a query for one row.
func number(t *testing.T, db *sql.DB, query string, args ...any) (n int) {
	t.Helper()
	if err := db.QueryRow(query, args...).Scan(&n); err != nil {
		t.Fatal(query, err)
	}
	return n
}

// request is what a client sends: "POST /path", a body, and headers in turn with their values.
type request struct {
	line, body string
	header     []string
}

func (r request) new(t *testing.T, url string, body io.Reader) *http.Request {
	t.Helper()
	method, path, _ := strings.Cut(r.line, " ")
	req, err := http.NewRequest(method, url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for pair := range slices.Chunk(r.header, 2) {
		req.Header.Set(pair[0], pair[1])
	}
	return req
}

// answer is what the client gets, without the date.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) String() string { return fmt.Sprintf("%d %v %q", a.status, a.header, a.body) }

// client follows no redirect.
var client = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// send sends a request and returns the complete answer.
func send(t *testing.T, srv *httptest.Server, r request) answer {
	t.Helper()
	a, err := try(r.new(t, srv.URL, strings.NewReader(r.body)))
	if err != nil {
		t.Fatalf("%s: %v", r.line, err)
	}
	return a
}

func try(req *http.Request) (answer, error) {
	res, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	res.Header.Del("Date")
	return answer{res.StatusCode, res.Header, string(body)}, err
}

// sameAnswers sends the requests to the editions in turn, the first of which is that before the port, and compares.
func sameAnswers(t *testing.T, editions []*httptest.Server, names []string, requests []request) {
	t.Helper()
	statuses := make(map[int]int)
	for _, r := range requests {
		want := send(t, editions[0], r)
		statuses[want.status]++
		for i, edition := range editions[1:] {
			if got := send(t, edition, r); !reflect.DeepEqual(got, want) {
				t.Errorf("%s %s:\n%s answers %v\n%s answers %v", r.line, r.body, names[0], want, names[i+1], got)
			}
		}
	}
	t.Logf("%d requests, answered with %v", len(requests), statuses)
	if len(statuses) < 4 {
		t.Errorf("got the statuses %v only: the requests show too little", slices.Sorted(maps.Keys(statuses)))
	}
}

// files returns the code of a folder by the names of its files: lines without comments and empty ones.
func files(t *testing.T, dir string) map[string][]string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: no files, %v", dir, err)
	}
	all := make(map[string][]string)
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "//") {
				all[filepath.Base(name)] = append(all[filepath.Base(name)], line)
			}
		}
	}
	return all
}

// changed returns how many lines of code the first edition has, with what both share, and how many of them a port
// removes and adds.
func changed(t *testing.T, before, after, shared string) (lines, removed, added int) {
	t.Helper()
	a, b := files(t, before), files(t, after)
	for _, code := range files(t, shared) {
		lines += len(code)
	}
	for name, code := range a {
		lines += len(code)
		same := inBoth(code, b[name])
		removed += len(code) - same
		added += len(b[name]) - same
	}
	for name, code := range b {
		if a[name] == nil {
			added += len(code)
		}
	}
	return lines, removed, added
}

// inBoth returns the length of the longest common subsequence.
func inBoth(a, b []string) int {
	row := make([]int, len(b)+1)
	for i := range a {
		diagonal := 0
		for j := range b {
			above := row[j+1]
			if a[i] == b[j] {
				row[j+1] = diagonal + 1
			} else {
				row[j+1] = max(above, row[j])
			}
			diagonal = above
		}
	}
	return row[len(b)]
}

func TestInBoth(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"abc", "abc", 3}, {"abc", "", 0}, {"abcd", "bd", 2}, {"axbyc", "abc", 3}, {"abc", "cba", 1}, {"aab", "aba", 2}} {
		if got := inBoth(strings.Split(test.a, ""), strings.Split(test.b, "")); got != test.want && test.a != "" {
			t.Errorf("%q and %q: got %d, want %d", test.a, test.b, got, test.want)
		}
	}
}

// ported are the rows of the table in docs/migration.md. Where a place hung in the port there is a test that shows it.
var ported = []struct {
	name, before, after, shared string
	hung                        int
}{
	{"dials: [wtf](https://github.com/benbjohnson/wtf), by the savepoints above", "dials/before", "dials/savepoints", "dials", 0},
	{"dials, by `Atomic`", "dials/before", "dials/atomic", "dials", 0},
	{"messages: [Gotify](https://github.com/gotify/server)", "messages/before", "messages/after", "messages", 1}, // TestMessagesPoolOfOne
	{"sales: [service](https://github.com/ardanlabs/service)", "sales/before", "sales/after", "sales", 0},
}

// TestFiguresOfThePaper: docs/migration.md tells what was counted.
func TestFiguresOfThePaper(t *testing.T) {
	text, err := os.ReadFile("../../docs/migration.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ported {
		lines, removed, added := changed(t, p.before, p.after, p.shared)
		if row := fmt.Sprintf("| %s | %d | %d | %d | %d |\n", p.name, lines, removed, added, p.hung); !strings.Contains(string(text), row) {
			t.Errorf("docs/migration.md does not have the row\n%s", row)
		}
	}
}

// idle waits until no connection is in use: a client may be answered before the handler has returned.
func idle(db *sql.DB) { sqlreqtest.Until(func() bool { return db.Stats().InUse == 0 }) }
