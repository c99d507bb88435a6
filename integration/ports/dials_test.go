package ports

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/integration/ports/dials"
	atomically "github.com/sqlreq/sqlreq/integration/ports/dials/atomic"
	before "github.com/sqlreq/sqlreq/integration/ports/dials/before"
	savepoints "github.com/sqlreq/sqlreq/integration/ports/dials/savepoints"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// events are what the members of dials are told.
type events struct {
	mu   sync.Mutex
	told []string
}

func (e *events) PublishEvent(userID int, event dials.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told = append(e.told, fmt.Sprintf("%d %s %d", userID, event.Type, event.Value))
}

func (e *events) reset() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told = nil
}

func (e *events) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.told, ", ")
}

// dialsEdition is an edition at work.
type dialsEdition struct {
	name string
	*httptest.Server
	db     *sql.DB
	events events
	stats  func(ctx context.Context) (users, dials int, err error)
}

const (
	ann = "Authorization: Bearer ann"
	bob = "Authorization: Bearer bob"
)

// as is a request of a user.
func as(user, line, body string) request {
	name, value, _ := strings.Cut(user, ": ")
	return request{line, body, []string{name, value}}
}

// startDials starts the editions, each on a database of its own in which COMMIT fails if a value of 13 was set.
func startDials(t *testing.T, connections int) []*dialsEdition {
	var all []*dialsEdition
	for _, name := range []string{"before", "savepoints", "atomic"} {
		e := &dialsEdition{name: name}
		e.db = openDB(t, dials.Schema+`
			INSERT INTO users VALUES (1, 'Ann', 'ann'), (2, 'Bob', 'bob');
			CREATE TRIGGER unlucky AFTER UPDATE ON dial_memberships WHEN NEW.value = 13 BEGIN INSERT INTO orphans (parent) VALUES (404); END;`)
		e.db.SetMaxOpenConns(connections)
		var h http.Handler
		var err error
		switch name {
		case "before":
			var s *before.DB
			h, s, err = before.New(e.db, &e.events)
			e.stats = s.Stats
		case "savepoints":
			var s *savepoints.DB
			h, s, err = savepoints.New(e.db, &e.events)
			e.stats = s.Stats
		case "atomic":
			var s *atomically.DB
			h, s, err = atomically.New(e.db, &e.events)
			e.stats = s.Stats
		}
		if err != nil {
			t.Fatal(err)
		}
		e.Server = sqlreqtest.Serve(t, h)
		all = append(all, e)
	}
	return all
}

// dialsRequests are answered in the same way by every edition.
var dialsRequests = []request{
	as(ann, "GET /dials", ""),
	as("Authorization: Bearer nobody", "GET /dials", ""),
	as(ann, "POST /dials", `{"name":"build"}`),
	as(ann, "POST /dials", `{"name":"rollout","value":50}`),
	as(ann, "POST /dials", `{"name":""}`),
	as(ann, "POST /dials", `{`),
	as(ann, "POST /dials/new?name=review&value=10", ""),
	as(ann, "POST /dials/new?name=", ""),
	as(bob, "POST /dials/1/membership", ""),
	as(bob, "POST /dials/1/membership", ""),
	as(bob, "POST /dials/404/membership", ""),
	as(bob, "PUT /dials/1/membership", `{"value":80}`),
	as(bob, "PUT /dials/1/membership", `{"value":101}`),
	as(bob, "PUT /dials/2/membership", `{"value":1}`),
	as(bob, "PUT /dials/x/membership", `{"value":1}`),
	as(bob, "GET /dials/1", ""),
	as(bob, "DELETE /dials/1", ""),
	as(bob, "DELETE /dial-memberships/1", ""),
	as(ann, "DELETE /dial-memberships/4", ""),
	as(bob, "DELETE /dial-memberships/4", ""),
	as(bob, "GET /dials/1", ""),
	as(ann, "GET /dials", ""),
	as(ann, "DELETE /dials/1", ""),
	as(ann, "DELETE /dials/1", ""),
	as(ann, "PATCH /dials/1", ""),
	as(ann, "GET /nothing", ""),
	as(ann, "GET /dials", ""),
	as(ann, "POST /dials", `{"name":"`+strings.Repeat("long ", 1000)+`"}`),
	as(ann, "GET /dials", ""),
}

func TestDialsNormalAnswers(t *testing.T) {
	for _, connections := range []int{0, 1} { // 0: no limit
		all := startDials(t, connections)
		var servers []*httptest.Server
		var names []string
		for _, e := range all {
			servers, names = append(servers, e.Server), append(names, e.name)
		}
		sameAnswers(t, servers, names, dialsRequests)
		for _, e := range all {
			idle(e.db)
			if got, want := e.events.String(), all[0].events.String(); got != want || got == "" {
				t.Errorf("%s: the members are told %q, before %q", e.name, got, want)
			}
			users, n, err := e.stats(t.Context())
			if err != nil || users != 2 || n != 3 {
				t.Errorf("%s: a job counts %d users and %d dials, %v, want 2 and 3", e.name, users, n, err)
			}
		}
	}
}

// TestDialsFaults: what goes wrong before the port, and right after it.
func TestDialsFaults(t *testing.T) {
	const dial, value = `SELECT COUNT(*) FROM dials`, `SELECT value FROM dials`
	for _, fault := range []struct {
		name, line, body string
		status           int
		query            string // what is looked at
		before, after    int    // what it finds
		told             string // the events before; none after
	}{
		{"the second of two methods fails, and the first stays", "POST /dials", `{"name":"x","value":101}`, 400, dial, 2, 1, ""},
		{"the same told by a form, with the status 200", "POST /dials/new?name=x&value=101", "", 200, dial, 2, 1, ""},
		{"COMMIT fails in the second of two methods, and the first stays", "POST /dials", `{"name":"x","value":13}`, 500, dial, 2, 1, "1 dial:value_changed 13"},
		{"COMMIT fails, and the event has been sent", "PUT /dials/1/membership", `{"value":13}`, 500, value, 7, 7, "1 dial:value_changed 13"},
	} {
		for _, e := range startDials(t, 1) {
			send(t, e.Server, as(ann, "POST /dials", `{"name":"first","value":7}`))
			e.events.reset()
			got := send(t, e.Server, as(ann, fault.line, fault.body))
			idle(e.db)
			want, told := fault.after, ""
			if e.name == "before" {
				want, told = fault.before, fault.told
			}
			if n := number(t, e.db, fault.query); got.status != fault.status || n != want || e.events.String() != told {
				t.Errorf("%s: %s: got %d, %d and the events %q, want %d, %d and %q",
					fault.name, e.name, got.status, n, e.events.String(), fault.status, want, told)
			}
		}
	}
}

// TestDialsRecipe: the limits of the recipe for savepoints, which are none of Atomic's.
func TestDialsRecipe(t *testing.T) {
	sent := new(events)
	db := openDB(t, dials.Schema)
	_, store, err := savepoints.New(db, sent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.BeginTx(t.Context(), nil); !errors.Is(err, sqlreq.ErrNoRegistry) || !strings.Contains(err.Error(), "Registry.Do") {
		t.Errorf("without a request: got %v, want an error that says what to do", err)
	}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	publish := func(context.Context) { sent.PublishEvent(0, dials.Event{Type: "x"}) }
	add := func(ctx context.Context, tx *savepoints.Tx) {
		if _, err := tx.ExecContext(ctx, `INSERT INTO users (name, api_key) VALUES ('x', 'x')`); err != nil {
			t.Error(err)
		}
	}
	begin := func(ctx context.Context) *savepoints.Tx {
		tx, err := store.BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	for _, test := range []struct {
		name  string
		unit  func(ctx context.Context) error
		users int
		told  string
		fails bool
	}{
		{"rolled back: its rows and hooks go, the rest stays", func(ctx context.Context) error {
			part := begin(ctx)
			part.AfterCommit(publish)
			add(ctx, part)
			if err := part.Rollback(); err != nil {
				return err
			}
			sqlreqtest.Exec(t, ctx, sqlreq.DefaultKey, `INSERT INTO users (name, api_key) VALUES ('y', 'y')`)
			return part.Rollback()
		}, 0, "", true}, // by the ErrTxDone of the second one
		{"committed: a Rollback behind it does nothing", func(ctx context.Context) error {
			part := begin(ctx)
			part.AfterCommit(publish)
			add(ctx, part)
			if err := part.Commit(); err != nil {
				return err
			}
			if err := part.Rollback(); !errors.Is(err, sql.ErrTxDone) {
				t.Errorf("got %v, want ErrTxDone", err)
			}
			return nil
		}, 1, "0 x 0", false},
		{"a context of the method's own has ended", func(ctx context.Context) error {
			own, cancel := context.WithCancel(ctx)
			part := begin(own)
			add(own, part)
			cancel()
			return part.Rollback()
		}, 0, "", false},
		{"in a part of Atomic", func(ctx context.Context) error {
			return reg.Atomic(ctx, func(ctx context.Context) error {
				part := begin(ctx)
				defer part.Rollback()
				part.AfterCommit(publish)
				add(ctx, part)
				return part.Commit()
			})
		}, 1, "0 x 0", false},
		{"what cannot be undone is not committed", func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreq.DefaultKey, "SAVEPOINT around")
			part := begin(ctx)
			add(ctx, part)
			sqlreqtest.Exec(t, ctx, sqlreq.DefaultKey, "RELEASE SAVEPOINT around")
			if err := part.Rollback(); err == nil {
				t.Error("going back to a savepoint that is not there: got nil")
			}
			return nil
		}, 0, "", true},
		{"Atomic drops the hooks of a part in a part that fails; the recipe would not", func(ctx context.Context) error {
			_ = reg.Atomic(ctx, func(ctx context.Context) error {
				if err := reg.Atomic(ctx, func(ctx context.Context) error { return sqlreq.AfterCommit(ctx, publish) }); err != nil {
					t.Error(err)
				}
				return errOnPurpose
			})
			return nil
		}, 0, "", false},
		{"the recipe in a part that fails", func(ctx context.Context) error {
			outer := begin(ctx)
			inner := begin(ctx)
			inner.AfterCommit(publish)
			add(ctx, inner)
			return errors.Join(inner.Commit(), outer.Rollback())
		}, 0, "0 x 0", false},
	} {
		sent.reset()
		if _, err := db.Exec(`DELETE FROM users`); err != nil {
			t.Fatal(err)
		}
		err := reg.Do(t.Context(), test.unit)
		if n := number(t, db, `SELECT COUNT(*) FROM users`); (err != nil) != test.fails || n != test.users || sent.String() != test.told {
			t.Errorf("%s: got %v, %d users and the events %q, want %d and %q", test.name, err, n, sent, test.users, test.told)
		}
	}
}

// TestDialsRecipeBesideAtomic: what docs/migration.md says of the recipe's statements, and of several databases.
func TestDialsRecipeBesideAtomic(t *testing.T) {
	var statements []string
	fake := &fakedb.DB{Stmt: func(_ context.Context, q string) error { statements = append(statements, q); return nil }}
	db := fake.Open(t)
	_, store, err := savepoints.New(db, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Do(t.Context(), func(ctx context.Context) error {
		reads, err := store.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		return reads.Rollback()
	})
	if err != nil || len(statements) != 3 {
		t.Errorf("a method that reads: got %v and %q, want three statements", err, statements)
	}

	const other sqlreq.Key = "other"
	first, second := openDB(t, dials.Schema), openDB(t, dials.Schema)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: first}, sqlreq.Binding{Key: other, DB: second})
	add := func(ctx context.Context) error {
		_, err := other.ExecContext(ctx, `INSERT INTO users (name, api_key) VALUES ('x', 'x')`)
		return err
	}
	for users, method := range []func(ctx context.Context) error{
		func(ctx context.Context) error { // by Atomic
			err := reg.Atomic(ctx, func(ctx context.Context) error { return errors.Join(add(ctx), errOnPurpose) })
			if !errors.Is(err, errOnPurpose) {
				return err
			}
			return nil
		},
		func(ctx context.Context) error { // by the recipe
			part, err := store.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			return errors.Join(add(ctx), part.Rollback())
		},
	} {
		if err := reg.Do(t.Context(), method); err != nil {
			t.Error(err)
		}
		if n := number(t, second, `SELECT COUNT(*) FROM users`); n != users {
			t.Errorf("got %d users in the other database, want %d", n, users)
		}
	}
}

var errOnPurpose = errors.New("on purpose")
