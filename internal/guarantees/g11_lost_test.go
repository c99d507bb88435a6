// G11 Errors that end transactions: MySQL 1213, 1020, 1206, and 1205; SQLite FULL,
// IOERR, NOMEM, INTERRUPT, ABORT_ROLLBACK; a lost connection, after which the server
// rolls back what is open: COMMIT is not tried, ROLLBACK is sent all the same. Guard's
// RELEASE: if it fails because there is no such savepoint or no transaction, so does
// the request, with Ambiguous true; any other answer of the server (25P02: aborted)
// means that nothing is committed: roll back, Ambiguous false, retried as without
// Guard. A COMMIT answered with SQLite's code 1 or 10, and a RELEASE under Binding.Tx
// answered with "no such savepoint", are Ambiguous.

package guarantees

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/mysqlite"
)

// answering is a database on which a statement, or another text of the log, fails.
func answering(failures map[string]error) *fakedb.DB {
	return &fakedb.DB{Step: func(_ context.Context, text string) error {
		for prefix, err := range failures {
			if strings.HasPrefix(text, prefix) {
				return err
			}
		}
		return nil
	}}
}

// After each of these a Key's statement has perhaps lost the transaction: the
// handler ignores it, and nothing is committed.
func TestG11ErrorsThatEndATransaction(t *testing.T) {
	errs := map[string]error{
		"ErrBadConn":  driver.ErrBadConn,
		"EOF":         io.EOF,
		"57P01":       mysqlite.State("57P01"),
		"57P02":       mysqlite.State("57P02"),
		"25P03":       mysqlite.State("25P03"),
		"08006":       mysqlite.State("08006"),
		"MySQL 1213":  &mysqlite.MySQL{Number: 1213},
		"MySQL 1020":  &mysqlite.MySQL{Number: 1020},
		"MySQL 1205":  &mysqlite.MySQL{Number: 1205},
		"MySQL 1206":  &mysqlite.MySQL{Number: 1206},
		"SQLite 13":   &mysqlite.SQLite{Result: 13},
		"SQLite 10":   &mysqlite.SQLite{Result: 10},
		"SQLite 1034": &mysqlite.SQLite{Result: 1034},
		"SQLite 7":    &mysqlite.SQLite{Result: 7},
		"SQLite 9":    &mysqlite.SQLite{Result: 9},
		"SQLite 516":  &mysqlite.SQLite{Result: 516},
	}
	for name, cause := range errs {
		for statement, run := range slowStatements {
			for _, guard := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/Guard %t", name, statement, guard), func(t *testing.T) {
					d := answering(map[string]error{"SLOW": cause, "PREPARE SLOW": cause})
					reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: guard})
					var log sqlreqtest.Recorder
					log.Watch(reg)
					err := reg.Do(t.Context(), func(ctx context.Context) error {
						log.Hooks(t, ctx, sqlreqtest.Main, "")
						sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
						if err := run(ctx); !errors.Is(err, cause) {
							t.Errorf("got %v, want %v", err, cause)
						}
						if _, err := sqlreqtest.Main.ExecContext(ctx, "INSERT"); !errors.Is(err, cause) {
							t.Errorf("the next statement: got %v, want %v", err, cause)
						}
						return nil
					})
					if !errors.Is(err, cause) || errors.Is(err, sqlreq.ErrTxEnded) || log.Events() != back || log.Words() != "rollback" {
						t.Errorf("got %v, events %q, hooks %q; want the cause, and an ordinary rollback", err, log.Events(), log.Words())
					}
					if d.Count("COMMIT") > 0 || d.Count("RELEASE") > 0 {
						t.Errorf("the driver was asked %q, want no COMMIT", d.Log())
					}
					if log := d.Log(); log[len(log)-1] != "ROLLBACK" {
						t.Errorf("the driver was asked %q, want ROLLBACK at the end", log)
					}
				})
			}
		}
	}
}

// These end nothing: a statement may be refused for what it says.
func TestG11ErrorsThatEndNothing(t *testing.T) {
	for _, err := range []error{mysqlite.State("23505"), mysqlite.State("40003"), mysqlite.State("53200"), &mysqlite.MySQL{Number: 1062}, &mysqlite.SQLite{Result: 1}, &mysqlite.SQLite{Result: 19}, &mysqlite.SQLite{Result: 4}, sqlreqtest.ErrTest} {
		d := answering(map[string]error{"SLOW": err})
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
		got := reg.Do(t.Context(), func(ctx context.Context) error {
			_, _ = sqlreqtest.Main.ExecContext(ctx, "SLOW")
			_, err := sqlreqtest.Main.ExecContext(ctx, "INSERT")
			return err
		})
		if got != nil {
			t.Errorf("%v: got %v, want that it ends nothing", err, got)
		}
		d.Check(t, "BEGIN", "SLOW", "INSERT", "COMMIT")
	}
}

// A connection that was lost, by a Key (E), which ROLLBACK meets too: with Guard the
// outcome is unknown only where the *sql.Tx was handed out.
func TestG11LostConnection(t *testing.T) {
	tests := map[string]struct {
		guard, h bool
		want     string
	}{
		"plain":                {false, false, back},
		"handed out":           {false, true, back},
		"Guard":                {true, false, back},
		"Guard and handed out": {true, true, ended},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			lost := driver.ErrBadConn
			d := answering(map[string]error{"SLOW": lost, "ROLLBACK": lost})
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: tt.guard})
			var log sqlreqtest.Recorder
			log.Watch(reg)
			rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
				if tt.h {
					if _, err := sqlreq.Tx(r.Context()); err != nil {
						t.Error(err)
					}
				}
				_, _ = sqlreqtest.Main.ExecContext(r.Context(), "SLOW")
			})))
			if rec.Code != 500 || log.Events() != tt.want {
				t.Errorf("got %d, events %q; want 500 and %q", rec.Code, log.Events(), tt.want)
			}
			if d.Count("COMMIT")+d.Count("RELEASE") > 0 || d.Count("ROLLBACK") == 0 {
				t.Errorf("the driver was asked %q, want ROLLBACK and no COMMIT", d.Log())
			}
		})
	}
}

// A rollback without an answer counts as one: the Event has the error.
func TestG11RollbackWithoutAnAnswer(t *testing.T) {
	for _, cause := range []error{nil, sqlreqtest.ErrTest} {
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: answering(map[string]error{"ROLLBACK": driver.ErrBadConn}).Open(t)})
		var log sqlreqtest.Recorder
		log.Watch(reg)
		rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
			if cause == nil {
				w.WriteHeader(404)
			}
			return cause
		})))
		if log.Events() != back || !errors.Is(log.Told()[0].Err, driver.ErrBadConn) {
			t.Errorf("%v: got %d, events %q with %v; want a rollback with the driver's error", cause, rec.Code, log.Events(), log.Told()[0].Err)
		}
	}
}

// What is said to Guard's RELEASE before COMMIT.
func TestG11GuardsRelease(t *testing.T) {
	tests := map[string]struct {
		answer    error
		h         bool
		ambiguous bool
		events    string
		hooks     string
	}{
		"25P02":                    {mysqlite.State("25P02"), false, false, "main CommitFailed 1", "rollback"},
		"25P02, handed out":        {mysqlite.State("25P02"), true, false, "main CommitFailed 1", "rollback"},
		"3B001":                    {mysqlite.State("3B001"), false, true, "main CommitFailed 1", ""},
		"25P01":                    {mysqlite.State("25P01"), false, true, "main CommitFailed 1", ""},
		"MySQL 1305":               {&mysqlite.MySQL{Number: 1305}, false, true, "main CommitFailed 1", ""},
		"SQLite 1":                 {&mysqlite.SQLite{Result: 1}, false, true, "main CommitFailed 1", ""},
		"another code":             {&mysqlite.SQLite{Result: 5}, true, false, "main CommitFailed 1", "rollback"},
		"no answer":                {driver.ErrBadConn, false, false, "main CommitFailed 1", "rollback"},
		"no answer and handed out": {driver.ErrBadConn, true, true, "main CommitFailed 1", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := answering(map[string]error{"RELEASE SAVEPOINT sqlreq_guard": tt.answer})
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: true})
			var log sqlreqtest.Recorder
			log.Watch(reg)
			err := reg.Do(t.Context(), func(ctx context.Context) error {
				log.Hooks(t, ctx, sqlreqtest.Main, "")
				sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
				if tt.h {
					_, err := sqlreq.Tx(ctx)
					return err
				}
				return nil
			})
			var c *sqlreq.CommitError
			if !errors.As(err, &c) || c.Ambiguous != tt.ambiguous || !errors.Is(err, tt.answer) {
				t.Errorf("got %v, want a CommitError, ambiguous: %t", err, tt.ambiguous)
			}
			if log.Events() != tt.events || log.Words() != tt.hooks {
				t.Errorf("got events %q, hooks %q; want %q, %q", log.Events(), log.Words(), tt.events, tt.hooks)
			}
			if log := d.Log(); log[len(log)-1] != "ROLLBACK" || d.Count("COMMIT") > 0 {
				t.Errorf("the driver was asked %q, want ROLLBACK and no COMMIT", log)
			}
		})
	}
}

// A conflict that was dealt with has aborted PostgreSQL's transaction: Guard's
// RELEASE is refused with 25P02, and the request is run again, as without Guard,
// where COMMIT is answered with ROLLBACK.
func TestG11AbortedTransactionIsRunAgain(t *testing.T) {
	for _, guard := range []bool{false, true} {
		attempt := 0
		refused := map[string]error{"RELEASE": mysqlite.State("25P02"), "COMMIT": errors.New("commit unexpectedly resulted in rollback")}
		d := &fakedb.DB{Step: func(_ context.Context, text string) error {
			switch {
			case attempt > 1:
				return nil
			case text == "UPDATE":
				return sqlreqtest.Conflict{}
			case strings.HasPrefix(text, "RELEASE"):
				return refused["RELEASE"]
			}
			return refused[text]
		}}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: guard})
		reg.Retry = sqlreqtest.Retries(3)
		var log sqlreqtest.Recorder
		log.Watch(reg)
		rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			attempt++
			log.Hooks(t, r.Context(), sqlreqtest.Main, "")
			_, _ = sqlreqtest.Main.ExecContext(r.Context(), "UPDATE")
			w.WriteHeader(201)
		})))
		if want := "main CommitFailed 1, main Committed 2"; rec.Code != 201 || log.Events() != want || log.Words() != "rollback commit" {
			t.Errorf("Guard %t: got %d, events %q, hooks %q; want 201 by the second attempt, %q", guard, rec.Code, log.Events(), log.Words(), want)
		}
	}
}

// What COMMIT's answer means.
func TestG11AnswersToCommit(t *testing.T) {
	tests := map[string]struct {
		answer    error
		ambiguous bool
	}{
		"SQLite 1":                  {&mysqlite.SQLite{Result: 1}, true},
		"SQLite 10":                 {&mysqlite.SQLite{Result: 10}, true},
		"SQLite 1034":               {&mysqlite.SQLite{Result: 1034}, true},
		"SQLite 5":                  {&mysqlite.SQLite{Result: 5}, false},
		"SQLite 787":                {&mysqlite.SQLite{Result: 787}, false},
		"lib/pq with nothing open":  {errors.New("pq: unexpected transaction status idle"), true},
		"no answer":                 {driver.ErrBadConn, true},
		"answered with ROLLBACK":    {errors.New("commit unexpectedly resulted in rollback"), false},
		"an error that says little": {sqlreqtest.ErrTest, true},
	}
	for name, tt := range tests {
		ends := map[string]func(context.Context) error{"end": func(context.Context) error { return nil }, "Commit": sqlreq.Commit}
		for end, commit := range ends {
			for _, guard := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/Guard %t", name, end, guard), func(t *testing.T) {
					d := answering(map[string]error{"COMMIT": tt.answer})
					reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), Guard: guard})
					var log sqlreqtest.Recorder
					log.Watch(reg)
					err := reg.Do(t.Context(), func(ctx context.Context) error {
						log.Hooks(t, ctx, sqlreqtest.Main, "")
						sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
						return commit(ctx)
					})
					checkCommitError(t, err, tt.ambiguous, &log)
				})
			}
		}
	}
}

// checkCommitError checks the error of a Do whose COMMIT failed, what was observed,
// and the hooks.
func checkCommitError(t *testing.T, err error, ambiguous bool, log *sqlreqtest.Recorder) {
	t.Helper()
	var c *sqlreq.CommitError
	if !errors.As(err, &c) || c.Ambiguous != ambiguous || sqlreq.MayHaveCommitted(err) != ambiguous {
		t.Errorf("got %v, want a CommitError, ambiguous: %t", err, ambiguous)
	}
	hooks := "rollback"
	if ambiguous {
		hooks = ""
	}
	if want := "main CommitFailed 1"; log.Events() != want || log.Words() != hooks {
		t.Errorf("got events %q, hooks %q; want %q, %q", log.Events(), log.Words(), want, hooks)
	}
}

// The same for RELEASE of a request's savepoint in a test's transaction.
func TestG11AnswersToReleaseInATestsTransaction(t *testing.T) {
	tests := map[string]struct {
		answer, goingBack error
		ambiguous         bool
		dead              bool // the test's transaction has ended
	}{
		"MySQL 1305":                       {&mysqlite.MySQL{Number: 1305}, &mysqlite.MySQL{Number: 1305}, true, true},
		"3B001":                            {mysqlite.State("3B001"), mysqlite.State("25P01"), true, true},
		"SQLite 1":                         {&mysqlite.SQLite{Result: 1}, &mysqlite.SQLite{Result: 1}, true, true},
		"lost":                             {driver.ErrBadConn, driver.ErrBadConn, true, true},
		"25P02, and it goes back":          {mysqlite.State("25P02"), nil, false, false},
		"25P02, and going back is refused": {mysqlite.State("25P02"), mysqlite.State("25P02"), false, false},
		"25P02, and going back is lost":    {mysqlite.State("25P02"), driver.ErrBadConn, true, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			fails := true
			d := &fakedb.DB{Step: func(_ context.Context, text string) error {
				switch {
				case !fails:
				case strings.HasPrefix(text, "RELEASE SAVEPOINT sqlreq_tx_"):
					fails = tt.goingBack != nil
					return tt.answer
				case strings.HasPrefix(text, "ROLLBACK TO SAVEPOINT sqlreq_tx_"):
					return tt.goingBack
				}
				return nil
			}}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: testTx(t, d.Open(t))})
			var log sqlreqtest.Recorder
			log.Watch(reg)
			err := reg.Do(t.Context(), func(ctx context.Context) error {
				log.Hooks(t, ctx, sqlreqtest.Main, "")
				sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
				return nil
			})
			checkCommitError(t, err, tt.ambiguous, &log)
			fails = false
			next := reg.Do(t.Context(), sqlreqtest.Uses()["Exec"])
			if dead := next != nil && strings.Contains(next.Error(), "Binding.Tx"); dead != tt.dead || !tt.dead && next != nil {
				t.Errorf("the next one: got %v, want that the test's transaction has ended: %t", next, tt.dead)
			}
		})
	}
}
