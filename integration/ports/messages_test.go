package ports

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/gin-gonic/gin"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/integration/ports/messages"
	after "github.com/sqlreq/sqlreq/integration/ports/messages/after"
	before "github.com/sqlreq/sqlreq/integration/ports/messages/before"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

func init() {
	gin.SetMode(gin.ReleaseMode)
	gin.DefaultErrorWriter = io.Discard // of Recovery
}

// notified are the messages that the clients of users were sent.
type notified struct {
	mu   sync.Mutex
	sent []string
}

func (n *notified) Notify(userID uint, m *messages.Message) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sent = append(n.sent, fmt.Sprintf("%d %s", userID, m.Message))
}

func (n *notified) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.sent, ", ")
}

// messagesEdition is an edition at work.
type messagesEdition struct {
	name string
	*httptest.Server
	db   *sql.DB
	sent notified
}

func startMessages(t *testing.T) []*messagesEdition {
	var all []*messagesEdition
	for _, name := range []string{"before", "after"} {
		e := &messagesEdition{name: name, db: openDB(t, "")}
		var h http.Handler
		var err error
		if name == "before" {
			h, err = before.New(e.db, &e.sent)
		} else {
			h, err = after.New(e.db, &e.sent)
		}
		if err != nil {
			t.Fatal(err)
		}
		seedMessages(t, e.db)
		e.Server = sqlreqtest.Serve(t, h)
		all = append(all, e)
	}
	return all
}

// seedMessages adds what the requests begin with, and the names by which they fail: "no plugin" in the second of two
// statements, "no commit" at COMMIT, "no end" when a user is deleted.
func seedMessages(t *testing.T, db *sql.DB) {
	t.Helper()
	if _, err := db.Exec(`
		INSERT INTO users (name) VALUES ('ann'), ('no end');
		INSERT INTO clients (token, user_id) VALUES ('ann', 1);
		INSERT INTO applications (token, user_id, name, sort_key) VALUES ('backup', 1, 'Backup', 1), ('cron', 2, 'Cron', 1);
		INSERT INTO messages (application_id, message) VALUES (2, 'Done');
		CREATE TRIGGER no_plugin BEFORE INSERT ON plugin_confs WHEN (SELECT name FROM users WHERE id = NEW.user_id) = 'no plugin'
			BEGIN SELECT RAISE(ABORT, 'on purpose'); END;
		CREATE TRIGGER no_end BEFORE DELETE ON users WHEN OLD.name = 'no end' BEGIN SELECT RAISE(ABORT, 'on purpose'); END;
		CREATE TRIGGER no_commit AFTER INSERT ON applications WHEN NEW.name = 'no commit'
			BEGIN INSERT INTO orphans (parent) VALUES (404); END;`); err != nil {
		t.Fatal(err)
	}
}

// by is a request with a token.
func by(token, line, body string) request {
	return request{line, body, []string{"X-Gotify-Key", token, "Content-Type", "application/json"}}
}

var messagesRequests = []request{
	by("ann", "GET /application", ""),
	by("", "GET /application", ""),
	by("ann", "POST /application", `{"name":"Shop","token":"shop"}`),
	by("ann", "POST /application", `{"name":"Shop","token":"shop"}`),
	by("ann", "POST /application", `{"token":"x"}`),
	by("ann", "POST /application/import", `{"name":"Old","token":"old","messages":["one","two"]}`),
	by("ann", "POST /application/import", `{"name":"Old","token":"old","messages":["one"]}`),
	by("ann", "GET /message", ""),
	by("shop", "POST /message", `{"message":"sold"}`),
	by("shop", "POST /message", `{`),
	by("nobody", "POST /message", `{"message":"sold"}`),
	by("ann", "POST /user", `{"name":"bob"}`),
	by("ann", "POST /user", `{"name":"bob"}`),
	by("ann", "PUT /application/1", `{"name":"archive"}`),
	by("ann", "PUT /application/404", `{"name":"archive"}`),
	by("ann", "DELETE /application/404", ""),
	by("ann", "DELETE /application/1", ""),
	by("ann", "DELETE /user/x", ""),
	by("ann", "DELETE /user/3", ""),
	by("ann", "GET /message", ""),
	by("ann", "GET /application", ""),
	by("ann", "GET /nothing", ""),
	by("ann", "POST /user", `{"name":"no plugin"}`),
	by("backup", "POST /message", `{"message":"`+strings.Repeat("long ", 1000)+`"}`),
	by("shop", "POST /message", `{"message":"`+strings.Repeat("long ", 1000)+`"}`),
}

func TestMessagesNormalAnswers(t *testing.T) {
	all := startMessages(t)
	sameAnswers(t, []*httptest.Server{all[0].Server, all[1].Server}, []string{"before", "after"}, messagesRequests)
	for _, e := range all {
		idle(e.db)
		if got, want := e.sent.String(), all[0].sent.String(); got != want || got == "" {
			t.Errorf("%s: the clients are sent %q, before %q", e.name, got, want)
		}
	}
}

// TestMessagesFaults: what goes wrong before the port, and right after it.
func TestMessagesFaults(t *testing.T) {
	const rows = `SELECT COUNT(*) FROM `
	for _, fault := range []struct {
		name, line, body string
		before, after    int // the status
		query            string
		left, leftAfter  int // what it finds
	}{
		{"the second statement fails, and the first stays", "POST /user", `{"name":"no plugin"}`, 500, 500, rows + `users`, 3, 2},
		{"the last statement fails, and the others stay", "DELETE /user/2", "", 500, 500, rows + `messages`, 0, 1},
		{"a panic commits half of the work", "POST /application/import", `{"name":"x","token":"x","messages":["one",""]}`, 500, 500, rows + `messages`, 2, 1},
		{"a COMMIT that fails is answered 200", "POST /application/import", `{"name":"no commit","token":"x"}`, 200, 500, rows + `applications`, 2, 2},
	} {
		for _, e := range startMessages(t) {
			got := send(t, e.Server, by("ann", fault.line, fault.body))
			idle(e.db)
			status, left := fault.after, fault.leftAfter
			if e.name == "before" {
				status, left = fault.before, fault.left
			}
			if n := number(t, e.db, fault.query); got.status != status || n != left {
				t.Errorf("%s: %s: got %d and %d rows, want %d and %d", fault.name, e.name, got.status, n, status, left)
			}
			if got.header.Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("%s: %s: the header of the middleware outside is lost: %v", fault.name, e.name, got)
			}
			// What a client does that was told of an error.
			if fault.line == "POST /user" {
				again := send(t, e.Server, by("ann", fault.line, fault.body))
				if e.name == "before" && !strings.Contains(again.body, "already exists") || e.name == "after" && again.body != got.body {
					t.Errorf("%s: sent again: %v", e.name, again)
				}
			}
		}
	}
}

// TestMessagesLastUsed: what the authentication writes stays in both editions, also if the request is answered with an
// error.
func TestMessagesLastUsed(t *testing.T) {
	for _, e := range startMessages(t) {
		if got := send(t, e.Server, by("ann", "DELETE /application/404", "")); got.status != 404 {
			t.Errorf("%s: got %v", e.name, got)
		}
		idle(e.db)
		if n := number(t, e.db, `SELECT COUNT(*) FROM clients WHERE last_used IS NOT NULL`); n != 1 {
			t.Errorf("%s: the use of the client was not noted", e.name)
		}
	}
}

// TestMessagesPanicLeaksTheConnection: before the port a panic between Begin and Commit leaves the only connection in use, and
// all later requests wait for it, for ever. After it they are answered.
func TestMessagesPanicLeaksTheConnection(t *testing.T) {
	for _, e := range startMessages(t) {
		if got := send(t, e.Server, by("ann", "PUT /application/1", `{"name":""}`)); got.status != 500 {
			t.Errorf("%s: got %v", e.name, got)
		}
		waits := e.db.Stats().WaitCount
		next := make(chan answer, 1)
		ctx, leave := context.WithCancel(t.Context())
		go func() {
			a, _ := try(by("ann", "GET /application", "").new(t, e.URL, nil).WithContext(ctx))
			next <- a
		}()
		if e.name == "before" {
			sqlreqtest.Pool(e.db, waits+1)
			if n := e.db.Stats().InUse; n != 1 {
				t.Errorf("before: %d connections are in use, want the one that the panic has left", n)
			}
			leave()
			e.db.Close() // ends the wait of the handler, which has no context
			<-next
			continue
		}
		if a := <-next; a.status != 200 || !strings.Contains(a.body, "Backup") {
			t.Errorf("after: got %v, want the old name", a)
		}
		leave()
		idle(e.db)
	}
}

// TestMessagesPoolOfOne: a function that still uses the pool when the request has its only connection waits for the
// request, which waits for it, and sqlreq cannot see that. Before the port it did not wait. A Do is told at once.
func TestMessagesPoolOfOne(t *testing.T) {
	const look, userLine, user = `SELECT COUNT(*) FROM users`, "POST /user", `{"name":"bob"}`
	db := openDB(t, "")
	var n int
	h, err := before.New(db, &notified{}, func(uint) error { return db.QueryRow(look).Scan(&n) })
	if err != nil {
		t.Fatal(err)
	}
	seedMessages(t, db)
	if got := send(t, sqlreqtest.Serve(t, h), by("ann", userLine, user)); got.status != 200 {
		t.Errorf("before: got %v", got)
	}

	// The only way out is that the function's own context ends: that of a store without a context never does.
	own, end := context.WithCancel(t.Context())
	defer end()
	db = openDB(t, "")
	h, err = after.New(db, &notified{}, func(context.Context, uint) error { return db.QueryRowContext(own, look).Scan(&n) })
	if err != nil {
		t.Fatal(err)
	}
	seedMessages(t, db)
	srv := sqlreqtest.Serve(t, h)
	waits := db.Stats().WaitCount
	stuck, others := make(chan answer, 1), make(chan error, 1)
	go func() { a, _ := try(by("ann", userLine, "").new(t, srv.URL, strings.NewReader(user))); stuck <- a }()
	sqlreqtest.Pool(db, waits+1)
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		_, err := try(by("ann", "GET /message", "").new(t, srv.URL, nil).WithContext(ctx))
		others <- err
	}()
	sqlreqtest.Pool(db, waits+2) // all other requests wait too
	leave()
	if err := <-others; err == nil {
		t.Error("another request was answered though the only connection is taken")
	}
	end()
	if got := <-stuck; got.status != 500 {
		t.Errorf("got %v", got)
	}
	idle(db)
	if got := number(t, db, look); got != 2 {
		t.Errorf("got %d users, want nothing of the request", got)
	}

	// A Do needs a connection of its own as well: sqlreq says so at once.
	db = openDB(t, "")
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var told error
	h, err = after.New(db, &notified{}, func(ctx context.Context, _ uint) error {
		told = reg.Do(ctx, func(ctx context.Context) error {
			return sqlreq.DefaultKey.QueryRowContext(ctx, look).Scan(&n)
		})
		return told
	})
	if err != nil {
		t.Fatal(err)
	}
	seedMessages(t, db)
	if got := send(t, sqlreqtest.Serve(t, h), by("ann", userLine, user)); got.status < 500 {
		t.Errorf("a Do: got %v", got)
	}
	if told == nil || !strings.Contains(told.Error(), "the pool has one connection (MaxOpenConnections is 1)") ||
		!strings.Contains(told.Error(), "use its transaction") {
		t.Errorf("a Do: got %v, want an error that says what to do", told)
	}
}
