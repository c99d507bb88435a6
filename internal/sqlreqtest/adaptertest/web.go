package adaptertest

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// Reports is the key of the second database of a Site, which With opens.
const Reports sqlreq.Key = "reports"

// Large is more than a registry holds.
const Large = 200 << 10

// Site is what a program of a test runs on: two SQLite files with the tables of
// sqlreqtest, a registry, what was logged and observed.
type Site struct {
	DB, ReportsDB *sql.DB
	Reg           *sqlreq.Registry
	Once          *idempotency.Once
	Log           sqlreqtest.Recorder
	Entered       chan struct{} // for a handler to tell that it runs
	Returned      chan struct{} // told when the server's handler has returned

	mu     sync.Mutex
	access []int
}

// NewSite returns a Site with Retry off.
func NewSite(t testing.TB) *Site {
	s := &Site{DB: sqlreqtest.OpenDB(t), ReportsDB: sqlreqtest.OpenDB(t), Entered: make(chan struct{}), Returned: make(chan struct{}, 1000)}
	s.Reg = sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: s.DB}, sqlreq.Binding{Key: Reports, DB: s.ReportsDB, OnDemand: true})
	s.Log.Watch(s.Reg)
	s.Once = &idempotency.Once{Dialect: idempotency.SQLite, Scope: func(*http.Request) (string, error) { return "", nil }}
	for _, statement := range idempotency.SQLite.Schema("") {
		if _, err := s.DB.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// Access is for the access log of the program: the status that it has seen.
func (s *Site) Access(status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.access = append(s.access, status)
}

// Accessed returns what the access log has seen.
func (s *Site) Accessed() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]int(nil), s.access...)
}

// Insert adds a row to the table "work".
func (s *Site) Insert(ctx context.Context) error {
	_, err := sqlreq.DefaultKey.ExecContext(ctx, sqlreqtest.InsertWork)
	return err
}

// BreakCommit makes COMMIT fail.
func (s *Site) BreakCommit(ctx context.Context) error {
	_, err := sqlreq.DefaultKey.ExecContext(ctx, sqlreqtest.BreakCommit)
	return err
}

// WantRows fails the test if the table "work" has another number of rows, or a
// connection is in use.
func (s *Site) WantRows(t testing.TB, want int) {
	t.Helper()
	if got := sqlreqtest.Count(t, s.DB, "work"); got != want {
		t.Errorf("got %d rows, want %d", got, want)
	}
	sqlreqtest.Idle(t, s.DB)
	sqlreqtest.Idle(t, s.ReportsDB)
}

// WantNoErrorLine fails the test if something was logged at error level.
func (s *Site) WantNoErrorLine(t testing.TB) {
	t.Helper()
	for _, line := range s.Log.Records() {
		if line["level"] == "ERROR" {
			t.Errorf("got the line %v, want none at error level", line)
		}
	}
}

// Answer is what a client got.
type Answer struct {
	Status int
	Header http.Header
	Body   string
	Err    error // of a broken transfer
}

// Serve starts h, and returns its address. Returned is told of each request's end.
func (s *Site) Serve(t testing.TB, h http.Handler) string {
	return sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { s.Returned <- struct{}{} }()
		h.ServeHTTP(w, r)
	})).URL
}

// Send sends a request with the body "body", and the header fields given in pairs,
// and waits until the server's handler has returned.
func (s *Site) Send(t testing.TB, method, url string, header ...string) Answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		<-s.Returned
		return Answer{Err: err}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	<-s.Returned
	return Answer{Status: res.StatusCode, Header: res.Header, Body: string(body), Err: err}
}

// Gone sends a GET, waits until a handler tells Entered, leaves, and waits for the end.
func (s *Site) Gone(t testing.TB, url string) {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() {
		res, err := http.DefaultTransport.RoundTrip(req)
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
		over <- err
	}()
	<-s.Entered
	leave()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the client's own leaving", err)
	}
	<-s.Returned
}

// Web is a program in a framework. Outside of sqlreq it has a middleware that sets the
// header X-Outside, one that calls Site.Access with the status, and one that recovers
// from panics; inside of it these routes, each of which adds a row first:
//
//	POST /ok            answers 201 "done" and the header X-Inside
//	POST /nothing       answers 204
//	POST /returned      fails with an error of 422, as the framework has it
//	POST /written       writes a 422 with the body "invalid"
//	POST /fails         fails with a plain error
//	POST /late          writes 200 "done" and then fails
//	POST /late/large    writes Large bytes and then fails
//	POST /panic         panics
//	POST /late/panic    writes 200 "done", and panics
//	POST /large/panic   writes Large bytes, and panics
//	POST /commit        makes COMMIT fail, and answers as /ok
//	GET  /gone          tells Entered, waits for the end of the request's context, answers 200
//	POST /large         writes Large bytes
//	POST /large/commit  makes COMMIT fail and writes Large bytes
//	POST /conflict      fails with a conflict when it is called for the first time, then answers as /ok
//	POST /group/ok      in a group that opens Reports: adds a row there too, and answers as /ok
//	POST /group/fails   the same, and fails as /returned
//	POST /group/commit  the same, and makes COMMIT fail
//	POST /once/ok       in a group behind Once.Handler: as /ok
//	POST /once/fails    in that group: as /returned
type Web struct {
	New func(t testing.TB, s *Site) http.Handler
	// Error is the framework's own answer to an error.
	Error func(status int) string
	// Retry is true if the chain of handlers can be run again.
	Retry bool
}

// Tests returns a test for each cell.
func (web Web) Tests() map[string]func(*testing.T) {
	return map[string]func(*testing.T){
		"ok":                    web.ok,
		"4xx returned":          web.returned,
		"4xx written":           web.written,
		"5xx":                   web.fails,
		"late error":            web.late,
		"panic":                 web.panics,
		"failed COMMIT":         web.commit,
		"client gone":           web.gone,
		"stream over HoldLimit": web.stream,
		"Retry":                 web.retry,
		"nested":                web.nested,
		"once":                  web.once,
	}
}

// check fails the test if the answer is another, if something of the handler is in an
// error's, or if the access log or the header of outside say something else.
func (web Web) check(t testing.TB, s *Site, got Answer, status int, body string) {
	t.Helper()
	if got.Err != nil || got.Status != status || got.Body != body {
		t.Errorf("got %d %.60q %v, want %d %.60q", got.Status, got.Body, got.Err, status, body)
	}
	if got.Header.Get("X-Outside") != "1" {
		t.Errorf("got header %v, want that of the middleware outside", got.Header)
	}
	if inside := got.Header.Get("X-Inside") != ""; inside != (status == 201) {
		t.Errorf("got header %v for %d", got.Header, status)
	}
	if seen := s.Accessed(); len(seen) == 0 || seen[len(seen)-1] != status {
		t.Errorf("the access log has %v, want %d at its end", seen, status)
	}
}

// checkBroken fails the test if the answer can be taken for a complete one.
func checkBroken(t testing.TB, got Answer) {
	t.Helper()
	if got.Err == nil {
		t.Errorf("got a complete %d of %d bytes, want a broken transfer", got.Status, len(got.Body))
	}
}

func (web Web) start(t *testing.T) (s *Site, url string) {
	s = NewSite(t)
	return s, s.Serve(t, web.New(t, s))
}

func (web Web) ok(t *testing.T) {
	s, url := web.start(t)
	got := s.Send(t, "POST", url+"/ok")
	web.check(t, s, got, 201, "done")
	s.WantRows(t, 1)
	web.check(t, s, s.Send(t, "POST", url+"/nothing"), 204, "")
	s.WantRows(t, 2)
	s.WantNoErrorLine(t)
	if got := s.Log.Events(); got != "main Committed 1, main Committed 1" {
		t.Errorf("got events %q", got)
	}
}

func (web Web) returned(t *testing.T) {
	s, url := web.start(t)
	web.check(t, s, s.Send(t, "POST", url+"/returned"), 422, web.Error(422))
	s.WantRows(t, 0)
	s.WantNoErrorLine(t)
	if got := s.Log.Events(); got != "main RolledBack 1" {
		t.Errorf("got events %q", got)
	}
}

func (web Web) written(t *testing.T) {
	s, url := web.start(t)
	web.check(t, s, s.Send(t, "POST", url+"/written"), 422, "invalid")
	s.WantRows(t, 0)
	s.WantNoErrorLine(t)
}

func (web Web) fails(t *testing.T) {
	s, url := web.start(t)
	web.check(t, s, s.Send(t, "POST", url+"/fails"), 500, web.Error(500))
	s.WantRows(t, 0)
}

func (web Web) late(t *testing.T) {
	s, url := web.start(t)
	web.check(t, s, s.Send(t, "POST", url+"/late"), 500, web.Error(500))
	checkBroken(t, s.Send(t, "POST", url+"/late/large"))
	s.WantRows(t, 0)
}

func (web Web) panics(t *testing.T) {
	s, url := web.start(t)
	for _, path := range []string{"/panic", "/late/panic"} {
		got := s.Send(t, "POST", url+path)
		if got.Err != nil || got.Status != 500 || strings.Contains(got.Body, "done") || got.Header.Get("X-Inside") != "" || got.Header.Get("X-Outside") != "1" {
			t.Errorf("%s: got %d %q %v, want a 500 with nothing of the handler", path, got.Status, got.Body, got.Err)
		}
	}
	checkBroken(t, s.Send(t, "POST", url+"/large/panic"))
	s.WantRows(t, 0)
}

func (web Web) commit(t *testing.T) {
	s, url := web.start(t)
	web.check(t, s, s.Send(t, "POST", url+"/commit"), 500, web.Error(500))
	s.WantRows(t, 0)
	if lines := s.Log.Records(); len(lines) != 1 || lines[0]["level"] != "ERROR" || lines[0]["status"] != "500" {
		t.Errorf("got log %v, want one line at error level", lines)
	}
	// A custom ErrorHandler's answer stands.
	s, url = web.start(t)
	s.Reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
		w.WriteHeader(418)
		_, _ = io.WriteString(w, "custom")
	}
	web.check(t, s, s.Send(t, "POST", url+"/commit"), 418, "custom")
	web.check(t, s, s.Send(t, "POST", url+"/late"), 418, "custom")
	s.WantRows(t, 0)
}

func (web Web) gone(t *testing.T) {
	s, url := web.start(t)
	s.Gone(t, url+"/gone")
	s.WantRows(t, 0)
	s.WantNoErrorLine(t)
}

func (web Web) stream(t *testing.T) {
	s, url := web.start(t)
	got := s.Send(t, "POST", url+"/large")
	web.check(t, s, got, 200, string(bytes.Repeat([]byte("x"), Large)))
	s.WantRows(t, 1)
	checkBroken(t, s.Send(t, "POST", url+"/large/commit"))
	s.WantRows(t, 1)
}

func (web Web) retry(t *testing.T) {
	s := NewSite(t)
	s.Reg.Retry = sqlreqtest.Retries(3)
	url := s.Serve(t, web.New(t, s))
	got := s.Send(t, "POST", url+"/conflict")
	if web.Retry {
		web.check(t, s, got, 201, "done")
		s.WantRows(t, 1)
		web.check(t, s, s.Send(t, "POST", url+"/commit"), 500, web.Error(500))
		return
	}
	if got.Err != nil || got.Status != 500 {
		t.Errorf("got %d %q %v, want 500: the chain cannot be run again", got.Status, got.Body, got.Err)
	}
	s.WantRows(t, 0)
	s.Reg.Retry.When = func(*http.Request) bool { return false }
	s.Send(t, "POST", url+"/conflict")
	web.check(t, s, s.Send(t, "POST", url+"/ok"), 201, "done")
	s.WantRows(t, 2)
}

func (web Web) nested(t *testing.T) {
	s, url := web.start(t)
	rows := func(want int) {
		t.Helper()
		s.WantRows(t, want)
		if got := sqlreqtest.Count(t, s.ReportsDB, "work"); got != want {
			t.Errorf("got %d rows in reports, want %d", got, want)
		}
	}
	web.check(t, s, s.Send(t, "POST", url+"/group/ok"), 201, "done")
	rows(1)
	web.check(t, s, s.Send(t, "POST", url+"/group/fails"), 422, web.Error(422))
	rows(1)
	s.WantNoErrorLine(t)
	web.check(t, s, s.Send(t, "POST", url+"/group/commit"), 500, web.Error(500))
	rows(1)
}

func (web Web) once(t *testing.T) {
	s, url := web.start(t)
	for range 2 {
		got := s.Send(t, "POST", url+"/once/ok", "Idempotency-Key", "a")
		web.check(t, s, got, 201, "done")
		s.WantRows(t, 1)
	}
	for range 2 { // the work of a request that fails is not done, and nothing is recorded
		web.check(t, s, s.Send(t, "POST", url+"/once/fails", "Idempotency-Key", "b"), 422, web.Error(422))
		s.WantRows(t, 1)
	}
	got := s.Send(t, "POST", url+"/once/ok", "Idempotency-Key", "broken", "Idempotency-Key", `"a`)
	if got.Status != 400 || !strings.Contains(got.Body, "malformed") {
		t.Errorf("got %d %q, want once's own 400", got.Status, got.Body)
	}
	s.WantRows(t, 1)
}
