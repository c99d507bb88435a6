package thirdparty

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"github.com/sqlreq/sqlreq"
)

// patience ends a test that would hang; no test waits for it to pass.
const patience = 30 * time.Second

// retry is what the registries of a run are set to.
var retry sqlreq.Retry

// The tests run twice: as sqlreq comes, and with retries, which hand each handler a copy of the request, a view of its
// body and a header map of its own.
func TestMain(m *testing.M) {
	for _, retry.Attempts = range []int{1, 3} {
		if code := m.Run(); code != 0 {
			fmt.Fprintf(os.Stderr, "with Retry.Attempts = %d\n", retry.Attempts)
			os.Exit(code)
		}
	}
}

// site is a database file and the registry that serves it.
type site struct {
	db      *sql.DB // the registry's pool
	outside *sql.DB // another pool on the same file: it sees what is committed and nothing else
	reg     *sqlreq.Registry
}

// newSite makes an empty database. When the test has ended and its servers are closed, no connection may be left in use.
func newSite(t *testing.T) *site {
	t.Helper()
	dsn := "file:" + filepath.Join(t.TempDir(), "site.db") +
		"?_pragma=journal_mode(wal)&_pragma=busy_timeout(20000)&_pragma=foreign_keys(1)&_txlock=immediate"
	open := func() *sql.DB {
		db, err := sql.Open("sqlite", dsn)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return db
	}
	s := &site{db: open(), outside: open()}
	if _, err := s.db.Exec(`
		CREATE TABLE author (id INTEGER PRIMARY KEY);
		CREATE TABLE note (
			id     INTEGER PRIMARY KEY,
			text   TEXT NOT NULL,
			author INTEGER REFERENCES author (id) DEFERRABLE INITIALLY DEFERRED
		)`); err != nil {
		t.Fatal(err)
	}
	reg, err := sqlreq.New(sqlreq.Binding{DB: s.db})
	if err != nil {
		t.Fatal(err)
	}
	reg.Logger = slog.New(slog.DiscardHandler)
	reg.Retry = retry
	s.reg = reg
	t.Cleanup(func() {
		if n := s.db.Stats().InUse; n != 0 {
			t.Errorf("connections in use after the test: got %d, want 0", n)
		}
	})
	return s
}

// author returns the author of a note: nobody's id, which makes COMMIT fail, or none.
func author(commitFails bool) *int64 {
	if !commitFails {
		return nil
	}
	id := int64(999)
	return &id
}

// add writes one note through the Key.
func (s *site) add(ctx context.Context, commitFails bool) error {
	_, err := sqlreq.DefaultKey.ExecContext(ctx, "INSERT INTO note (text, author) VALUES ('third party', ?)", author(commitFails))
	return err
}

// adding is next after one statement, so that a program which knows nothing of databases runs with a transaction open.
func (s *site) adding(commitFails bool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.add(r.Context(), commitFails); err != nil {
			unexpected(w, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// unexpected answers with a status that no test wants.
func unexpected(w http.ResponseWriter, err error) {
	http.Error(w, err.Error(), 599)
}

// notes counts the committed notes.
func (s *site) notes(t *testing.T) int {
	t.Helper()
	var n int
	if err := s.outside.QueryRow("SELECT count(*) FROM note").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (s *site) wantNotes(t *testing.T, want int) {
	t.Helper()
	if got := s.notes(t); got != want {
		t.Errorf("committed notes: got %d, want %d", got, want)
	}
}

// discardLog is for servers and proxies whose failures the tests provoke.
var discardLog = log.New(io.Discard, "", 0)

var protocols = []string{"HTTP/1.1", "HTTP/2.0"}

// serve starts h on loopback. The server's client keeps redirects and compressed bodies as they are.
func serve(t *testing.T, proto string, h http.Handler) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = discardLog
	if proto == "HTTP/2.0" {
		srv.EnableHTTP2 = true
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	client := srv.Client()
	client.Timeout = patience
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client.Transport.(*http.Transport).DisableCompression = true
	return srv
}

// answer is what a client got. err is set if there was no response, or not the whole of it.
type answer struct {
	status  int
	proto   string
	header  http.Header
	trailer http.Header
	body    string
	err     error
}

// readAnswer takes what client.Do or http.ReadResponse returned.
func readAnswer(resp *http.Response, err error) answer {
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Proto, resp.Header, resp.Trailer, string(body), err}
}

func newRequest(t *testing.T, method, url, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// send makes a request without a body.
func send(t *testing.T, srv *httptest.Server, method, path string) answer {
	t.Helper()
	return readAnswer(srv.Client().Do(newRequest(t, method, srv.URL+path, "")))
}

// exchange writes a request as it is to a connection of its own, which the request asks to be closed, and fails the
// test if anything follows the response.
func exchange(t *testing.T, srv *httptest.Server, method, request string) answer {
	t.Helper()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	a := readAnswer(http.ReadResponse(in, &http.Request{Method: method}))
	if rest, err := io.ReadAll(in); a.err == nil && (len(rest) > 0 || err != nil) {
		t.Errorf("after the response: got %.80q, %v, want the end of the connection", rest, err)
	}
	return a
}

// The mark that handlers leave in header and body, to be looked for where nothing of theirs may be.
const (
	markHeader = "X-Handler"
	mark       = "written by the handler"
)

func (a answer) wantStatus(t *testing.T, want int) {
	t.Helper()
	if a.err != nil || a.status != want {
		t.Errorf("answer: got %d %.200q, %v, want a complete %d", a.status, a.body, a.err, want)
	}
}

// wantError is the answer of a request that failed while its response was held: an error, and nothing of the handler's.
func (a answer) wantError(t *testing.T) {
	t.Helper()
	a.wantStatus(t, http.StatusInternalServerError)
	a.wantUnmarked(t)
}

func (a answer) wantUnmarked(t *testing.T) {
	t.Helper()
	if got := a.header.Get(markHeader); got != "" {
		t.Errorf("%s in an error answer: got %q, want none", markHeader, got)
	}
	if strings.Contains(a.body, mark) {
		t.Errorf("body of an error answer: got %.200q, want nothing of the handler's", a.body)
	}
}

// wantBroken is the answer of a request that failed while its response was streaming.
func (a answer) wantBroken(t *testing.T) {
	t.Helper()
	if a.err == nil {
		t.Errorf("answer: got a complete %d of %d bytes, want a broken transfer", a.status, len(a.body))
	}
}

// wantSame compares with what the client gets without sqlreq. How the length is told may differ.
func (a answer) wantSame(t *testing.T, plain answer) {
	t.Helper()
	if plain.err != nil {
		t.Fatalf("without sqlreq: %v", plain.err)
	}
	if a.err != nil {
		t.Errorf("error: got %v, want none", a.err)
	}
	if a.status != plain.status || a.proto != plain.proto {
		t.Errorf("status: got %s %d, want %s %d", a.proto, a.status, plain.proto, plain.status)
	}
	wantSameHeader(t, "header", a.header, plain.header)
	wantSameHeader(t, "trailer", a.trailer, plain.trailer)
	if a.body != plain.body {
		t.Errorf("body: got %d bytes, %.120q, want %d bytes, %.120q", len(a.body), a.body, len(plain.body), plain.body)
	}
}

func wantSameHeader(t *testing.T, what string, got, want http.Header) {
	t.Helper()
	for name := range want {
		if _, ok := got[name]; !ok && name != "Content-Length" {
			t.Errorf("%s %s: got none, want %q", what, name, want[name])
		}
	}
	for name := range got {
		if name == "Date" || name == "Content-Length" && want[name] == nil {
			continue
		}
		if got, want := strings.Join(got[name], "|"), strings.Join(want[name], "|"); got != want {
			t.Errorf("%s %s: got %q, want %q", what, name, got, want)
		}
	}
}

// text returns up to large bytes that compress to no less than half.
func text(n int) string { return letters()[:n] }

var letters = sync.OnceValue(func() string {
	const alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
	random := rand.New(rand.NewPCG(1, 2))
	out := make([]byte, large)
	for i := range out {
		out[i] = alphabet[random.IntN(len(alphabet))]
	}
	return string(out)
})

const (
	small = 1 << 10
	large = 256 << 10 // four times the HoldLimit
)

// finishing is h with a channel that gets a value when a request has left it, panicking or not.
func finishing(h http.Handler) (http.Handler, <-chan struct{}) {
	left := make(chan struct{}, 16)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { left <- struct{}{} }()
		h.ServeHTTP(w, r)
	}), left
}

// await receives from c, or fails the test after a while.
func await[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}
