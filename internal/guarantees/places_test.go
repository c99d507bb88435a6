package guarantees

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/mysqlite"
)

// placeTable tells what is seen of one story in every place in which a transaction can
// stand. It has a row for each way, and in it four cells:
//
//	through the Key, with Guard, through its *sql.Tx, with Guard
//
// A cell is what is seen there, or "never: " and the reason why it cannot exist.
type placeTable map[string][4]string

// everyWay are the rows: how the transaction ends, or what it stands in.
var everyWay = []string{"end", "Commit", "Rollback", "Savepoint", "Hijack", "Retry", "Do", "Binding.Tx", "nested", "two keys"}

// never marks a cell that cannot exist; the reason follows.
const never = "never: "

// all is a row whose cells are the same.
func all(cell string) [4]string { return [4]string{cell, cell, cell, cell} }

// unguarded is a row in which Guard changes nothing.
func unguarded(key, tx string) [4]string { return [4]string{key, key, tx, tx} }

// place is one cell of a placeTable.
type place struct {
	way   string // one of everyWay
	tx    bool   // statements run on the *sql.Tx of the key, otherwise through the Key
	guard bool
}

func (p place) String() string {
	return fmt.Sprintf("%s/%s/Guard %t", p.way, map[bool]string{false: "Key", true: "*sql.Tx"}[p.tx], p.guard)
}

// run tells the story in each place that can exist; cells is how many there are.
func (table placeTable) run(t *testing.T, cells int, story func(*testing.T, place) string) {
	t.Helper()
	ran := 0
	for _, way := range everyWay {
		for i, want := range table[way] {
			p := place{way: way, tx: i >= 2, guard: i%2 == 1}
			if why, impossible := strings.CutPrefix(want, never); want == "" || impossible && why == "" {
				t.Errorf("%v: the table says neither what is seen nor why it cannot exist", p)
				continue
			} else if impossible {
				continue
			}
			ran++
			t.Run(p.String(), func(t *testing.T) {
				if got := story(t, p); got != want {
					t.Errorf("got  %q\nwant %q", got, want)
				}
			})
		}
	}
	if len(table) != len(everyWay) || ran != cells {
		t.Errorf("%d rows, %d cells were run; want %d and %d", len(table), ran, len(everyWay), cells)
	}
}

// exec runs a statement in the transaction of DefaultKey.
func (p place) exec(ctx context.Context, query string) error {
	return p.execOn(ctx, sqlreqtest.Main, query)
}

func (p place) execOn(ctx context.Context, k sqlreq.Key, query string) error {
	if !p.tx {
		_, err := k.ExecContext(ctx, query)
		return err
	}
	tx, err := k.Tx(ctx)
	if err == nil {
		_, err = tx.ExecContext(ctx, query)
	}
	return err
}

// binding binds DefaultKey as the place says. Under Binding.Tx Guard does nothing.
func (p place) binding(t *testing.T, db *sql.DB) sqlreq.Binding {
	if p.way == "Binding.Tx" {
		return sqlreq.Binding{Tx: testTx(t, db), Guard: p.guard}
	}
	return sqlreq.Binding{DB: db, Guard: p.guard}
}

// scene is a story in its place.
type scene struct {
	place
	main   sqlreq.Binding   // of DefaultKey
	more   []sqlreq.Binding // of other keys
	client context.Context  // of the request; nil: that of the test
	log    sqlreqtest.Recorder
	reg    *sqlreq.Registry // set by play
}

// play does the work in a unit of work, in its first attempt, and ends it as the place
// says: the first error of that and the work is the handler's. It returns what is seen:
// the status (of a Do that of its error), the events and the hooks. Next attempts
// insert "again" and go well.
func (s *scene) play(t *testing.T, work func(context.Context) error) string {
	t.Helper()
	other := sqlreq.Binding{Key: "other", DB: (&fakedb.DB{}).Open(t)}
	bindings := append(s.more, s.main)
	if s.way == "two keys" {
		bindings = append(bindings, other)
	}
	reg := sqlreqtest.NewRegistry(t, bindings...)
	s.reg = reg
	outermost := reg
	if s.way == "nested" {
		outermost = sqlreqtest.NewRegistry(t, other)
		s.log.Watch(outermost)
	}
	s.log.Watch(reg)
	if s.way == "Retry" {
		reg.Retry = sqlreqtest.Retries(3)
	}
	if s.client == nil {
		s.client = t.Context()
	}
	var hijacked bool
	attempt := 0
	handle := func(w http.ResponseWriter, ctx context.Context) error {
		s.log.Hooks(t, ctx, sqlreqtest.Main, "")
		if attempt++; attempt > 1 {
			return s.exec(ctx, "INSERT again")
		}
		if s.way == "nested" { // begun before, as a rule by a middleware
			sqlreqtest.Exec(t, ctx, "other", "INSERT")
		}
		err := s.end(w, ctx, work)
		hijacked = s.way == "Hijack" && err == nil
		if s.way == "two keys" { // begun after
			sqlreqtest.Exec(t, ctx, "other", "INSERT")
		}
		return err
	}
	if s.way == "Do" {
		err := reg.Do(s.client, func(ctx context.Context) error { return handle(nil, ctx) })
		return s.seen(statusOf(err))
	}
	h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { return handle(w, r.Context()) }))
	if outermost != reg {
		h = outermost.Middleware(h)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(pipe{rec}, httptest.NewRequestWithContext(s.client, "POST", "/", nil))
	switch {
	case hijacked:
		return s.seen("hijacked")
	case rec.Header().Get("Retry-After") != "":
		return s.seen(fmt.Sprintf("%d Retry-After", rec.Code))
	}
	return s.seen(fmt.Sprint(rec.Code))
}

// end does the work, and then what the way says.
func (s *scene) end(w http.ResponseWriter, ctx context.Context, work func(context.Context) error) error {
	switch s.way {
	case "Savepoint":
		return sqlreq.Savepoint(ctx, work)
	case "Commit":
		err := work(ctx)
		return errors.Join(sqlreq.Commit(ctx), err)
	case "Rollback":
		err := work(ctx)
		return errors.Join(sqlreq.Rollback(ctx), err)
	case "Hijack":
		_ = work(ctx)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			conn.Close()
		}
		return err
	}
	return work(ctx)
}

func statusOf(err error) string {
	if err == nil {
		return "200"
	}
	return fmt.Sprint(sqlreq.StatusCode(err))
}

func (s *scene) seen(status string) string {
	return status + "; " + cmp.Or(s.log.Events(), "no event") + "; " + cmp.Or(s.log.Words(), "no hook")
}

// server is a database that ends transactions by itself, as MariaDB does, and knows
// what is stored: "DDL" commits, "DEADLOCK" rolls back and is answered with 1213, and so
// does "TIMEOUT", with 1205 (innodb_rollback_on_timeout is on). What follows is stored at
// once, there are no savepoints any more, and COMMIT and ROLLBACK go well.
type server struct {
	fakedb.DB
	mu     sync.Mutex
	open   bool
	marks  []mark   // the savepoints
	rows   []string // of the open transaction
	stored []string
}

type mark struct {
	name string
	rows int
}

func newServer() *server {
	s := &server{}
	s.Step = func(_ context.Context, text string) error { return s.answer(text) }
	return s
}

func (s *server) answer(text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	verb, name, _ := strings.Cut(text, "SAVEPOINT ")
	switch {
	case text == "BEGIN":
		s.open = true
	case text == "COMMIT", text == "DDL":
		s.stored = append(s.stored, s.rows...)
		s.over()
	case text == "ROLLBACK":
		s.over()
	case text == "DEADLOCK":
		s.over()
		return &mysqlite.MySQL{Number: 1213}
	case text == "TIMEOUT":
		s.over()
		return &mysqlite.MySQL{Number: 1205}
	case strings.HasPrefix(text, "INSERT "):
		s.insert(strings.TrimPrefix(text, "INSERT "))
	case name != "" && verb == "" && s.open:
		s.marks = append(s.marks, mark{name, len(s.rows)})
	case verb == "RELEASE ", verb == "ROLLBACK TO ":
		return s.end(verb, name)
	}
	return nil
}

func (s *server) over() { s.open, s.marks, s.rows = false, nil, nil }

func (s *server) insert(row string) {
	if !s.open {
		s.stored = append(s.stored, row)
		return
	}
	s.rows = append(s.rows, row)
}

func (s *server) end(verb, name string) error {
	i := slices.IndexFunc(s.marks, func(m mark) bool { return m.name == name })
	if i < 0 {
		return &mysqlite.MySQL{Number: 1305}
	}
	if verb == "ROLLBACK TO " {
		s.rows = s.rows[:s.marks[i].rows]
		i++ // it is still there
	}
	s.marks = s.marks[:i]
	return nil
}

// told returns what is stored. What a test's transaction would commit counts.
func (s *server) told() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rows := append(slices.Clone(s.stored), s.rows...); len(rows) > 0 {
		return "; stored: " + strings.Join(rows, " ")
	}
	return "; nothing stored"
}

// postgres is a database on which a statement meets err and aborts the transaction, as
// PostgreSQL does: everything else is refused with 25P02 until something is rolled back,
// and COMMIT is answered with ROLLBACK.
func postgres(statement string, err error) *fakedb.DB {
	aborted := false
	return &fakedb.DB{Step: func(_ context.Context, text string) error {
		switch {
		case text == statement:
			aborted = true
			return err
		case strings.HasPrefix(text, "ROLLBACK"):
			aborted = false
		case aborted && text == "COMMIT":
			aborted = false
			return errors.New("commit unexpectedly resulted in rollback")
		case aborted:
			return mysqlite.State("25P02")
		}
		return nil
	}}
}
