// G11 A rollback that was none. Whether the request fails, rolls back by its status or
// by Rollback, is retried or not, sqlreq looks whether there was still something to
// roll back: Guard's savepoint first; without Guard the answer to ROLLBACK. What that
// says decides, together with whether a Key's statement of this transaction met an
// error that may have ended it (E) and whether its *sql.Tx was ever handed out (H):
//
//	says                       rolled back                     outcome unknown
//	done, it was there         always                          never
//	there is none              E and not H                     otherwise
//	nothing: no answer, lost   without Guard; with, if not H   with Guard and H
//
// Where the outcome is unknown: the request has failed, Event says Ended, neither hook
// runs, nothing is retried, no Retry-After is sent, Rollback returns an error that is
// ErrTxEnded, Do returns fn's error joined with one that is, and it is logged as a
// warning at least, whatever the status. A handler's own answer of 400 or more stands,
// and so does the code of a *StatusError; sqlreq's own 503 becomes a 500.

package guarantees

import (
	"bufio"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/mysqlite"
)

// A cell is one of the table, with what else decides.
type cell struct {
	says    string // what Guard's savepoint, or without Guard ROLLBACK, says
	guard   bool
	e, h    bool
	unknown bool // the outcome is; otherwise it is a rollback

	own func(*sql.Tx) error // the handler's own end of the transaction; nil: none
}

var cells = []cell{
	{says: "done", guard: false, e: false, h: false, unknown: false},
	{says: "done", guard: false, e: false, h: true, unknown: false},
	{says: "done", guard: false, e: true, h: false, unknown: false},
	{says: "done", guard: false, e: true, h: true, unknown: false},
	{says: "done", guard: true, e: false, h: false, unknown: false},
	{says: "done", guard: true, e: false, h: true, unknown: false},
	{says: "done", guard: true, e: true, h: false, unknown: false},
	{says: "done", guard: true, e: true, h: true, unknown: false},
	{says: "none", guard: false, e: false, h: false, unknown: true},
	{says: "none", guard: false, e: false, h: true, unknown: true},
	{says: "none", guard: false, e: true, h: false, unknown: false},
	{says: "none", guard: false, e: true, h: true, unknown: true},
	{says: "none", guard: true, e: false, h: false, unknown: true},
	{says: "none", guard: true, e: false, h: true, unknown: true},
	{says: "none", guard: true, e: true, h: false, unknown: false},
	{says: "none", guard: true, e: true, h: true, unknown: true},
	{says: "nothing", guard: false, e: false, h: false, unknown: false},
	{says: "nothing", guard: false, e: false, h: true, unknown: false},
	{says: "nothing", guard: false, e: true, h: false, unknown: false},
	{says: "nothing", guard: false, e: true, h: true, unknown: false},
	{says: "nothing", guard: true, e: false, h: false, unknown: false},
	{says: "nothing", guard: true, e: false, h: true, unknown: true},
	{says: "nothing", guard: true, e: true, h: false, unknown: false},
	{says: "nothing", guard: true, e: true, h: true, unknown: true},

	// Beside the table: the handler itself has ended the transaction.
	{says: "tx.Commit()", guard: false, h: true, unknown: true, own: (*sql.Tx).Commit},
	{says: "tx.Commit()", guard: true, h: true, unknown: true, own: (*sql.Tx).Commit},
	{says: "tx.Rollback()", guard: false, h: true, unknown: true, own: (*sql.Tx).Rollback},
	{says: "tx.Rollback()", guard: true, h: true, unknown: true, own: (*sql.Tx).Rollback},
}

func (c cell) String() string {
	name := c.says
	if c.guard {
		name += " Guard"
	}
	if c.e {
		name += " E"
	}
	if c.h {
		name += " H"
	}
	return name
}

const guardCheck = "ROLLBACK TO SAVEPOINT sqlreq_guard"

// database answers what is sent to roll back as the cell says, once: what comes
// after a retry goes well. The statement DEADLOCK meets MySQL's 1213.
func (c cell) database() *fakedb.DB {
	answers := map[string]error{}
	switch {
	case c.says == "none" && c.guard:
		answers[guardCheck] = &mysqlite.MySQL{Number: 1305} // and ROLLBACK succeeds, as MySQL's does
	case c.says == "none":
		answers["ROLLBACK"] = &mysqlite.SQLite{Result: 1}
	case c.says == "nothing" && c.guard:
		answers[guardCheck], answers["ROLLBACK"] = driver.ErrBadConn, driver.ErrBadConn
	case c.says == "nothing":
		answers["ROLLBACK"] = driver.ErrBadConn
	}
	return &fakedb.DB{Step: func(_ context.Context, text string) error {
		if text == "DEADLOCK" {
			return &mysqlite.MySQL{Number: 1213}
		}
		if text == "BROKEN" {
			return &mysqlite.SQLite{Result: 2067}
		}
		err := answers[text]
		if text == "ROLLBACK" {
			clear(answers)
		}
		return err
	}}
}

// work brings the transaction of k to where the cell begins.
func (c cell) work(t *testing.T, ctx context.Context, k sqlreq.Key) {
	t.Helper()
	sqlreqtest.Exec(t, ctx, k, "INSERT")
	if c.h {
		tx, err := k.Tx(ctx)
		if err == nil && c.own != nil {
			err = c.own(tx)
		}
		if err != nil {
			t.Error(err)
		}
	}
	if c.e {
		if _, err := k.ExecContext(ctx, "DEADLOCK"); !errors.As(err, new(*mysqlite.MySQL)) {
			t.Errorf("got %v, want the driver's error", err)
		}
	}
}

// seen is what a unit of work has shown.
type seen struct {
	code   int // 0: no answer
	events string
	hooks  string
}

// A way is how a transaction comes to be rolled back.
type way struct {
	name       string
	needs      func(cell) bool // nil: every cell can exist
	why        string          // the others cannot
	attempts   int
	handler    func(t *testing.T, c cell, w http.ResponseWriter, r *http.Request) error
	do         bool // in a Do: the code is 0
	rolledBack seen
	unknown    seen
}

const (
	back  = "main RolledBack 1"
	ended = "main Ended 1"
)

func ways() []way {
	work := func(end func(w http.ResponseWriter, r *http.Request) error) func(*testing.T, cell, http.ResponseWriter, *http.Request) error {
		return func(t *testing.T, c cell, w http.ResponseWriter, r *http.Request) error {
			c.work(t, r.Context(), sqlreqtest.Main)
			return end(w, r)
		}
	}
	returns := func(err error) func(http.ResponseWriter, *http.Request) error {
		return func(http.ResponseWriter, *http.Request) error { return err }
	}
	firstAttempt := func(t *testing.T, c cell, w http.ResponseWriter, r *http.Request) error {
		if r.Header.Get("Again") != "" {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "AGAIN")
			return nil
		}
		c.work(t, r.Context(), sqlreqtest.Main)
		return sqlreqtest.Conflict{}
	}
	return []way{
		{
			name: "returned error", handler: work(returns(sqlreqtest.ErrTest)),
			rolledBack: seen{500, back, "rollback"}, unknown: seen{500, ended, ""},
		},
		{
			name: "StatusError", handler: work(returns(sqlreq.Errorf(409, "taken"))),
			rolledBack: seen{409, back, "rollback"}, unknown: seen{409, ended, ""},
		},
		{
			name: "status", handler: work(func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(422); return nil }),
			rolledBack: seen{422, back, "rollback"}, unknown: seen{422, ended, ""},
		},
		{
			name: "sqlreq's own 503", handler: work(returns(sqlreqtest.Conflict{})),
			rolledBack: seen{503, back, "rollback"}, unknown: seen{500, ended, ""},
		},
		{
			name: "Retry", handler: firstAttempt, attempts: 3,
			rolledBack: seen{200, back + ", main Committed 2", "rollback commit"}, unknown: seen{500, ended, ""},
		},
		{
			name: "panic", handler: work(func(http.ResponseWriter, *http.Request) error { panic(http.ErrAbortHandler) }),
			rolledBack: seen{0, back, "rollback"}, unknown: seen{0, ended, ""},
		},
		{
			name: "Rollback",
			handler: func(t *testing.T, c cell, w http.ResponseWriter, r *http.Request) error {
				c.work(t, r.Context(), sqlreqtest.Main)
				if err := sqlreq.Rollback(r.Context()); errors.Is(err, sqlreq.ErrTxEnded) != c.unknown || err != nil && !c.unknown {
					t.Errorf("Rollback returned %v, want ErrTxEnded: %t", err, c.unknown)
				}
				return nil
			},
			rolledBack: seen{200, back, "rollback"}, unknown: seen{500, ended, ""},
		},
		{
			name: "Commit", needs: func(c cell) bool { return c.e || c.own != nil }, why: "COMMIT is sent",
			handler: func(t *testing.T, c cell, w http.ResponseWriter, r *http.Request) error {
				c.work(t, r.Context(), sqlreqtest.Main)
				if err := sqlreq.Commit(r.Context()); err == nil || errors.Is(err, sqlreq.ErrTxEnded) != c.unknown {
					t.Errorf("Commit returned %v, want an error that is ErrTxEnded: %t", err, c.unknown)
				}
				return nil
			},
			rolledBack: seen{503, back, "rollback"}, unknown: seen{500, ended, ""},
		},
		{
			name: "end", needs: func(c cell) bool { return c.e || c.own != nil }, why: "COMMIT is sent",
			handler:    work(func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(201); return nil }),
			rolledBack: seen{503, back, "rollback"}, unknown: seen{500, ended, ""},
		},
		{
			name: "Hijack after a status of 400",
			handler: work(func(w http.ResponseWriter, _ *http.Request) error {
				w.WriteHeader(400)
				conn, _, err := http.NewResponseController(w).Hijack()
				if err == nil {
					conn.Close()
				}
				return err
			}),
			rolledBack: seen{0, back, "rollback"}, unknown: seen{0, ended, ""},
		},
		{
			name: "Do", do: true, handler: work(returns(sqlreqtest.ErrTest)),
			rolledBack: seen{0, back, "rollback"}, unknown: seen{0, ended, ""},
		},
		{
			name: "RollbackOnly",
			handler: work(func(w http.ResponseWriter, r *http.Request) error {
				return sqlreq.RollbackOnly(r.Context(), sqlreqtest.ErrTest)
			}),
			rolledBack: seen{200, back, "rollback"}, unknown: seen{200, ended, ""},
		},
	}
}

// pipe is a response that can be hijacked.
type pipe struct{ *httptest.ResponseRecorder }

func (pipe) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, other := net.Pipe()
	other.Close()
	return c, bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c)), nil
}

// serve runs the handler of the way, and returns what it has shown and the error
// that was given to ErrorHandler, or returned by Do.
func (w way) serve(t *testing.T, reg *sqlreq.Registry, c cell, log *sqlreqtest.Recorder, wrap func(http.Handler) http.Handler) (s seen, rec *httptest.ResponseRecorder, given error) {
	t.Helper()
	reg.Retry = sqlreqtest.Retries(w.attempts)
	log.Watch(reg)
	reg.ErrorHandler = func(rw http.ResponseWriter, _ *http.Request, err error) {
		given = err
		rw.WriteHeader(sqlreq.StatusCode(err))
	}
	rec = httptest.NewRecorder()
	attempt := 0
	handle := func(rw http.ResponseWriter, r *http.Request) error {
		if attempt++; attempt > 1 {
			r.Header.Set("Again", "yes")
		}
		log.Hooks(t, r.Context(), sqlreqtest.Main, "")
		return w.handler(t, c, rw, r)
	}
	if w.do {
		given = reg.Do(t.Context(), func(ctx context.Context) error {
			return handle(nil, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		})
		return seen{0, log.Events(), log.Words()}, rec, given
	}
	h := wrap(reg.Middleware(sqlreq.HandlerFunc(handle)))
	panicked := sqlreqtest.Panicked(func() { h.ServeHTTP(pipe{rec}, httptest.NewRequest("POST", "/", nil)) })
	if s.code = rec.Code; panicked != nil || strings.HasPrefix(w.name, "Hijack") {
		s.code = 0
	}
	s.events, s.hooks = log.Events(), log.Words()
	return s, rec, given
}

func plainly(h http.Handler) http.Handler { return h }

func TestG11TableOfARollbackThatWasNone(t *testing.T) {
	for _, w := range ways() {
		for _, c := range cells {
			if w.needs != nil && !w.needs(c) {
				continue // w.why
			}
			t.Run(w.name+"/"+c.String(), func(t *testing.T) {
				d := c.database()
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: c.guard})
				var log sqlreqtest.Recorder
				got, rec, given := w.serve(t, reg, c, &log, plainly)
				checkWay(t, w, c, got, given, rec, &log)
				if n := d.Counts().Open; n != 0 {
					t.Errorf("%d transactions are open", n)
				}
			})
		}
	}
}

// checkWay checks what a way has shown.
func checkWay(t *testing.T, w way, c cell, got seen, given error, rec *httptest.ResponseRecorder, log *sqlreqtest.Recorder) {
	t.Helper()
	want := w.rolledBack
	if c.unknown {
		want = w.unknown
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if given != nil && (errors.Is(given, sqlreq.ErrTxEnded) != c.unknown || sqlreq.MayHaveCommitted(given) != c.unknown) {
		t.Errorf("the error is %v, MayHaveCommitted: %t; want that it is ErrTxEnded: %t", given, sqlreq.MayHaveCommitted(given), c.unknown)
	}
	if c.unknown && given != nil && strings.Contains(given.Error(), "defer tx.Rollback") != (c.own != nil) {
		t.Errorf("the error must speak of defer tx.Rollback(): %t; got %v", c.own != nil, given)
	}
	if w.do && !errors.Is(given, sqlreqtest.ErrTest) {
		t.Errorf("Do returned %v, want the error of its function, too", given)
	}
	if after := rec.Header().Get("Retry-After"); (after != "") != (got.code == 503) {
		t.Errorf("got Retry-After %q with %d", after, got.code)
	}
	if told := toldOfWhatStayed(log); told != c.unknown && !w.do {
		t.Errorf("logged that something may have stayed: %t, want %t: %v", told, c.unknown, log.Records())
	}
}

// toldOfWhatStayed reports whether a warning or worse says that work may be committed.
func toldOfWhatStayed(log *sqlreqtest.Recorder) bool {
	for _, rec := range log.Records() {
		if (rec["level"] == "WARN" || rec["level"] == "ERROR") && strings.Contains(rec["msg"]+rec["err"], "may be committed") {
			return true
		}
	}
	return false
}

// A Do that panics returns nothing: the log tells of what may have stayed.
func TestG11TableOfADoThatPanics(t *testing.T) {
	for _, c := range cells {
		t.Run(c.String(), func(t *testing.T) {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: c.database().Open(t), Guard: c.guard})
			var log sqlreqtest.Recorder
			log.Watch(reg)
			panicked := sqlreqtest.Panicked(func() {
				_ = reg.Do(t.Context(), func(ctx context.Context) error {
					log.Hooks(t, ctx, sqlreqtest.Main, "")
					c.work(t, ctx, sqlreqtest.Main)
					panic(sqlreqtest.ErrTest)
				})
			})
			want := seen{0, back, "rollback"}
			if c.unknown {
				want = seen{0, ended, ""}
			}
			if got := (seen{0, log.Events(), log.Words()}); got != want || panicked != sqlreqtest.ErrTest {
				t.Errorf("got %+v, panic %v; want %+v and that of the function", got, panicked, want)
			}
			if told := toldOfWhatStayed(&log); told != c.unknown {
				t.Errorf("logged that something may have stayed: %t, want %t: %v", told, c.unknown, log.Records())
			}
		})
	}
}

// The same under another registry's middleware, and where a second key is open:
// the first one decides for all, and what is open on the second is rolled back.
func TestG11TableNestedAndWithTwoKeys(t *testing.T) {
	for _, w := range ways() {
		if w.do {
			continue // a Do is never nested: it is a unit of its own
		}
		for _, c := range cells {
			if w.needs != nil && !w.needs(c) {
				continue // w.why
			}
			t.Run(w.name+"/"+c.String(), func(t *testing.T) {
				d, other := c.database(), &fakedb.DB{}
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: c.guard})
				outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "other", DB: other.Open(t)})
				outer.Retry = sqlreqtest.Retries(w.attempts)
				var log sqlreqtest.Recorder
				outer.Logger = log.Logger()
				got, rec, given := w.serve(t, reg, c, &log, func(next http.Handler) http.Handler {
					return outer.Middleware(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
						sqlreqtest.Exec(t, r.Context(), "other", "INSERT")
						next.ServeHTTP(rw, r)
					}))
				})
				checkWay(t, w, c, got, given, rec, &log)
				ends := []string{"BEGIN", "INSERT", "ROLLBACK"}
				switch want := w.rolledBack; {
				case !c.unknown && w.name == "Retry":
					ends = append(ends, "BEGIN", "INSERT", "COMMIT")
				case !c.unknown && w.name == "Rollback" && want.code == 200:
					ends[2] = "COMMIT" // Rollback is one key's
				}
				other.Check(t, ends...)
			})
		}
	}
}

// Each of these is the answer that there is no savepoint, or no transaction.
func TestG11TableEachAnswerThatThereIsNone(t *testing.T) {
	answers := map[string]error{
		"MySQL 1305":     &mysqlite.MySQL{Number: 1305},
		"SQLSTATE 3B001": mysqlite.State("3B001"),
		"SQLSTATE 25P01": mysqlite.State("25P01"),
		"SQLite 1":       &mysqlite.SQLite{Result: 1},
		"lib/pq":         errors.New("pq: unexpected transaction status idle"),
	}
	for name, answer := range answers {
		for _, guard := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, Guard %t", name, guard), func(t *testing.T) {
				what := map[bool]string{false: "ROLLBACK", true: guardCheck}[guard]
				d := &fakedb.DB{Step: func(_ context.Context, text string) error {
					if text == what {
						return answer
					}
					return nil
				}}
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: guard})
				var log sqlreqtest.Recorder
				log.Watch(reg)
				err := reg.Do(t.Context(), func(ctx context.Context) error {
					sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
					return sqlreqtest.ErrTest
				})
				if !errors.Is(err, sqlreq.ErrTxEnded) || !errors.Is(err, sqlreqtest.ErrTest) || log.Events() != ended {
					t.Errorf("got %v, events %q; want both errors and %q", err, log.Events(), ended)
				}
			})
		}
	}
}

// statement runs one through the Key.
func statement(text string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := sqlreqtest.Main.ExecContext(ctx, text)
		return err
	}
}

// broken runs a statement that breaks a constraint of SQLite.
func broken(ctx context.Context) error {
	if _, err := sqlreqtest.Main.ExecContext(ctx, "BROKEN"); err == nil {
		return errors.New("no error")
	}
	return nil
}

// Whatever hands the *sql.Tx out is H: after a deadlock met by a Key, Guard's "there
// is none" is an unknown outcome. So is what may have ended the transaction before
// without telling, unless a savepoint from before was found. Anything else is not.
func TestG11TableWhatHandsTheTransactionOut(t *testing.T) {
	uses := map[string]struct {
		use func(context.Context) error
		h   bool
	}{
		"Tx":             {func(ctx context.Context) error { _, err := sqlreq.Tx(ctx); return err }, true},
		"BeginTx":        {func(ctx context.Context) error { _, err := sqlreq.BeginTx(ctx, nil); return err }, true},
		"PrepareContext": {sqlreqtest.Uses()["Prepare"], true},
		"Exec":           {sqlreqtest.Uses()["Exec"], false},
		"Query":          {sqlreqtest.Uses()["Query"], false},
		"QueryRow":       {sqlreqtest.Uses()["QueryRow"], false},
		"Savepoint":      {sqlreqtest.Uses()["Savepoint"], false},
		"DDL":            {statement("TRUNCATE"), true},
		"DDL by Query": {func(ctx context.Context) error {
			return sqlreqtest.Main.QueryRowContext(ctx, "CALL p()").Err()
		}, true},
		"a constraint of SQLite, broken": {broken, true},
		"one broken in a Savepoint that is rolled back": {func(ctx context.Context) error {
			if err := sqlreq.Savepoint(ctx, func(ctx context.Context) error { return errors.Join(broken(ctx), sqlreqtest.ErrTest) }); !errors.Is(err, sqlreqtest.ErrTest) {
				return err
			}
			return nil
		}, false},
		"DDL in a Savepoint that is released": {func(ctx context.Context) error {
			return sqlreq.Savepoint(ctx, statement("TRUNCATE"))
		}, false}, // it is there: nothing has committed
		"DDL, then a Savepoint": {func(ctx context.Context) error {
			return errors.Join(statement("TRUNCATE")(ctx), sqlreq.Savepoint(ctx, statement("INSERT")))
		}, true},
		"Tx of a key of the same pool": {func(ctx context.Context) error {
			_, err := sqlreq.Key("same").Tx(ctx)
			return err
		}, true},
	}
	for name, tt := range uses {
		for _, guard := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, Guard %t", name, guard), func(t *testing.T) {
				c := cell{says: "none", guard: guard, e: true}
				db := c.database().Open(t)
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, Guard: guard}, sqlreq.Binding{Key: "same", DB: db, Guard: guard})
				var log sqlreqtest.Recorder
				log.Watch(reg)
				err := reg.Do(t.Context(), func(ctx context.Context) error {
					if err := tt.use(ctx); err != nil {
						t.Error(err)
					}
					c.work(t, ctx, sqlreqtest.Main)
					return sqlreqtest.ErrTest
				})
				want := "RolledBack 1"
				if tt.h {
					want = "Ended 1"
				}
				if !strings.HasSuffix(log.Events(), want) || errors.Is(err, sqlreq.ErrTxEnded) != tt.h {
					t.Errorf("got events %q, %v; want %q", log.Events(), err, want)
				}
			})
		}
	}
}

// H is of one transaction: the next one on the same connection begins without.
func TestG11TableOfTheNextTransaction(t *testing.T) {
	for _, guard := range []bool{false, true} {
		c := cell{says: "none", guard: guard, e: true}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: c.database().Open(t), Guard: guard})
		var log sqlreqtest.Recorder
		log.Watch(reg)
		err := reg.Do(t.Context(), func(ctx context.Context) error {
			if _, err := sqlreq.Tx(ctx); err != nil {
				return err
			}
			if err := sqlreq.Commit(ctx); err != nil {
				return err
			}
			c.work(t, ctx, sqlreqtest.Main)
			return sqlreqtest.ErrTest
		})
		if got, want := log.Events(), "main Committed 1, main RolledBack 1"; got != want || errors.Is(err, sqlreq.ErrTxEnded) {
			t.Errorf("Guard %t: got events %q, %v; want %q", guard, got, err, want)
		}
	}
}

// A read-only transaction that ended well, whose ROLLBACK says that there was none,
// is one of unknown outcome: on SQLite what it wrote has been committed.
func TestG11TableReadOnly(t *testing.T) {
	tests := map[bool]map[string]seen{
		false: {"done": {200, "main Committed 1", "commit"}, "none": {500, ended, ""}, "nothing": {200, back, "rollback"}},
		true:  {"done": {200, "main Committed 1", "commit"}, "none": {500, ended, ""}, "nothing": {200, back, "rollback"}},
	}
	for guard, rows := range tests {
		for says, want := range rows {
			t.Run(fmt.Sprintf("%s, Guard %t", says, guard), func(t *testing.T) {
				c := cell{says: says, guard: guard}
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: c.database().Open(t), Guard: guard, TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnly)})
				var log sqlreqtest.Recorder
				log.Watch(reg)
				rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					log.Hooks(t, r.Context(), sqlreqtest.Main, "")
					sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "x")
				})))
				if got := (seen{rec.Code, log.Events(), log.Words()}); got != want {
					t.Errorf("got %+v, want %+v", got, want)
				}
			})
		}
	}
}

// In a test's transaction (Binding.Tx) there is no Guard, and ROLLBACK TO the
// request's savepoint takes the place of ROLLBACK.
func TestG11TableInATestsTransaction(t *testing.T) {
	for _, c := range cells {
		if c.guard {
			continue // Binding.Tx has no need of it: each request is a savepoint
		}
		if c.own != nil {
			continue // it would be the end of the test's: TestG6BindingTxMisuse
		}
		t.Run(c.String(), func(t *testing.T) {
			answer := map[string]error{"none": &mysqlite.MySQL{Number: 1305}, "nothing": driver.ErrBadConn}[c.says]
			d := &fakedb.DB{Step: func(_ context.Context, text string) error {
				switch {
				case text == "DEADLOCK":
					return &mysqlite.MySQL{Number: 1213}
				case strings.HasPrefix(text, "ROLLBACK TO SAVEPOINT sqlreq_tx_"):
					return answer
				}
				return nil
			}}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: testTx(t, d.Open(t))})
			var log sqlreqtest.Recorder
			log.Watch(reg)
			err := reg.Do(t.Context(), func(ctx context.Context) error {
				log.Hooks(t, ctx, sqlreqtest.Main, "")
				c.work(t, ctx, sqlreqtest.Main)
				return sqlreqtest.ErrTest
			})
			want := seen{0, back, "rollback"}
			if c.unknown {
				want = seen{0, ended, ""}
			}
			if got := (seen{0, log.Events(), log.Words()}); got != want || errors.Is(err, sqlreq.ErrTxEnded) != c.unknown {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
		})
	}
}
