package main

import (
	"context"
	"database/sql"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
)

func open(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// Where a request goes that needs no word from a server.
func TestRoute(t *testing.T) {
	const nowhere = "postgres://127.0.0.1:1/nowhere?connect_timeout=1"
	dbs := &replicas{open(t, nowhere), open(t, nowhere)}
	for _, c := range []struct {
		name, method, cookie string
		want                 *sql.DB
	}{
		{"reads", "GET", "", dbs.standby},
		{"asks for the header", "HEAD", "", dbs.standby},
		{"writes", "POST", "", dbs.primary},
		{"deletes", "DELETE", "", dbs.primary},
		{"has written, and the standby does not answer", "GET", "0/16B3748", dbs.primary},
		{"has a cookie that is no position", "GET", "'; DROP TABLE entry", dbs.primary},
	} {
		r := httptest.NewRequest(c.method, "/", nil)
		if c.cookie != "" {
			r.Header.Set("Cookie", cookieName+"="+url.QueryEscape(c.cookie))
		}
		if got, err := dbs.route(t.Context(), r); got != c.want || err != nil {
			t.Errorf("%s: got the standby: %v, %v", c.name, got == dbs.standby, err)
		}
	}
	if got, err := dbs.route(t.Context(), nil); got != dbs.primary || err != nil {
		t.Errorf("without a request: got %v, %v, want the primary", got, err)
	}
}

// visitor is a browser.
type visitor struct {
	t      *testing.T
	url    string
	client *http.Client
}

func newVisitor(t *testing.T, url string) *visitor {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &visitor{t, url, &http.Client{Jar: jar}}
}

// read returns which server answers, and the entries.
func (v *visitor) read(res *http.Response, err error) (server, body string) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		v.t.Fatalf("got %d, %v\n%s", res.StatusCode, err, b)
	}
	_, server, _ = strings.Cut(string(b), "From the ")
	server, _, _ = strings.Cut(server, ":")
	return server, string(b)
}

// wants fails the test if another server answers, or the words are there or not there.
func (v *visitor) wants(who string, res *http.Response, err error, server, words string, there bool) {
	v.t.Helper()
	got, body := v.read(res, err)
	if got != server || strings.Contains(body, words) != there {
		v.t.Errorf("%s: the answer is the %s's, %q in it: %v; want the %s's, %v", who, got, words, strings.Contains(body, words), server, there)
	}
}

// A standby that is behind: who has written reads it from the primary, others what
// the standby has; when it has caught up, all read from it.
func TestReadYourWrites(t *testing.T) {
	primaryDSN, standbyDSN := os.Getenv("REPLICAS_PRIMARY_DSN"), os.Getenv("REPLICAS_STANDBY_DSN")
	if primaryDSN == "" || standbyDSN == "" {
		t.Skip("no REPLICAS_PRIMARY_DSN and REPLICAS_STANDBY_DSN; go test -C integration -run TestReplicas . starts both")
	}
	dbs := &replicas{open(t, primaryDSN), open(t, standbyDSN)}
	exec(t, dbs.primary, schema)
	t.Cleanup(func() { exec(t, dbs.primary, "DROP TABLE replicas_entry") })
	caughtUp(t, dbs)
	handler, err := newHandler(dbs)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	writer, other := newVisitor(t, srv.URL), newVisitor(t, srv.URL)
	const words = "I was here"
	get := func(v *visitor) (*http.Response, error) { return v.client.Get(srv.URL) }

	exec(t, dbs.standby, "SELECT pg_wal_replay_pause()")
	t.Cleanup(func() { exec(t, dbs.standby, "SELECT pg_wal_replay_resume()") })
	res, err := writer.client.PostForm(srv.URL, url.Values{"words": {words}}) // follows the redirect
	writer.wants("the writer, while the standby is behind", res, err, "primary", words, true)
	res, err = get(other)
	other.wants("somebody else, while the standby is behind", res, err, "standby", words, false)

	exec(t, dbs.standby, "SELECT pg_wal_replay_resume()")
	caughtUp(t, dbs)
	for who, v := range map[string]*visitor{"the writer": writer, "somebody else": other} {
		res, err = get(v)
		v.wants(who+", when the standby has caught up", res, err, "standby", words, true)
	}
}

// Nothing that fails may send the client to the primary for a minute.
func TestFailedWriteSetsNoCookie(t *testing.T) {
	const nowhere = "postgres://127.0.0.1:1/nowhere?connect_timeout=1"
	handler, err := newHandler(&replicas{open(t, nowhere), open(t, nowhere)})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	for words, want := range map[string]int{"": http.StatusUnprocessableEntity, "x": http.StatusServiceUnavailable} {
		res, err := http.PostForm(srv.URL, url.Values{"words": {words}})
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want || len(res.Cookies()) != 0 {
			t.Errorf("%q: got %d, cookies %v, want %d, none", words, res.StatusCode, res.Cookies(), want)
		}
	}
}

func exec(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.Exec(statement); err != nil {
		t.Errorf("%s: %v", statement, err)
	}
}

// caughtUp waits until the standby has what the primary has.
func caughtUp(t *testing.T, dbs *replicas) {
	t.Helper()
	var at string
	if err := dbs.primary.QueryRow("SELECT pg_current_wal_lsn()").Scan(&at); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var there bool
		if err := dbs.standby.QueryRowContext(ctx, "SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn", at).Scan(&there); err != nil {
			t.Fatal(err)
		}
		if there {
			return
		}
		<-tick.C
	}
}
