package conformance

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/sqlreq/sqlreq"
)

// Exec runs a statement in a request's transaction.
type Exec func(ctx context.Context, query string, args ...any) error

// way is one to run statements in a request.
type way struct {
	name  string
	guard bool
	exec  Exec
	query func(ctx context.Context, query string) *sql.Row
}

func byKey(ctx context.Context, query string, args ...any) error {
	_, err := main.ExecContext(ctx, query, args...)
	return err
}

func byTx(ctx context.Context, query string, args ...any) error {
	tx, err := sqlreq.Tx(ctx)
	if err == nil {
		_, err = tx.ExecContext(ctx, query, args...)
	}
	return err
}

func queryByKey(ctx context.Context, query string) *sql.Row { return main.QueryRowContext(ctx, query) }

func queryByTx(ctx context.Context, query string) *sql.Row {
	tx, err := sqlreq.Tx(ctx)
	if err != nil {
		return main.QueryRowContext(ctx, query) // which has the same error
	}
	return tx.QueryRowContext(ctx, query)
}

// ways are all there are on the engine.
func (r *run) ways() []way {
	ways := []way{{"Key", false, byKey, queryByKey}, {"*sql.Tx", false, byTx, queryByTx}}
	if r.facts.noGuard == nil {
		ways = append(ways, way{"Key, Guard", true, byKey, queryByKey}, way{"*sql.Tx, Guard", true, byTx, queryByTx})
	}
	return ways
}

// told is what the client, the hooks and Observe were told of one request.
type told struct {
	status    int // 0: the transfer broke
	hooks     string
	outcomes  string
	ambiguous bool
}

// tell runs a request.
func (r *run) tell(w way, retry sqlreq.Retry, opts *sql.TxOptions, handler func(ctx context.Context) error) told {
	r.Helper()
	reg, events := r.registry(sqlreq.Binding{DB: r.db, Guard: w.guard, TxOptions: func(context.Context, *http.Request) *sql.TxOptions { return opts }})
	reg.Retry = retry
	var ran []string
	srv := r.serve(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) error {
		hooked(r, req.Context(), &ran)
		return handler(req.Context())
	})))
	defer srv.Close()
	a := post(srv.Client(), srv.URL, "")
	r.eventually("the connection is given back", func() bool { return r.db.Stats().InUse == 0 })
	return told{a.status, strings.Join(ran, " "), events.outcomes(), events.ambiguous()}
}

// stored returns how many rows of work are there, and removes them.
func (r *run) stored() int {
	r.Helper()
	n := r.count()
	r.exec("DELETE FROM sqlreq_work")
	return n
}

const insertX = "INSERT INTO sqlreq_work (note) VALUES ('x')"

// refused: each way to write, and each way to break COMMIT.
func refused(r *run) verdict {
	if r.dialect.Deferred == "" && r.dialect.Refuse == nil {
		return without("the suite knows no way to have COMMIT refused")
	}
	for _, w := range r.ways() {
		got := r.tell(w, sqlreq.Retry{}, nil, func(ctx context.Context) error {
			return errors.Join(w.exec(ctx, insertX), r.refuse(ctx, w.exec))
		})
		if n := r.stored(); got.status < 500 || got.hooks != "rollback" || got.outcomes != "CommitFailed" || got.ambiguous || n != 0 {
			r.Errorf("%s: got %+v and %d rows, want an error of the server's, which is known, and none", w.name, got, n)
		}
	}
	return yes
}

// swallowed: a handler makes nothing of a constraint error.
func swallowed(r *run) verdict {
	for _, explicit := range []bool{false, true} {
		for _, w := range r.ways() {
			var ended error
			got := r.tell(w, sqlreq.Retry{}, nil, func(ctx context.Context) error {
				if err := w.exec(ctx, insertX); err != nil {
					return err
				}
				if w.exec(ctx, duplicate) == nil {
					r.Errorf("%s: a duplicate key was accepted", w.name)
				}
				if explicit {
					ended = sqlreq.Commit(ctx)
				}
				return nil
			})
			want, rows := told{200, "commit", "Committed", false}, 1
			if r.facts.aborts {
				want, rows = told{500, "rollback", got.outcomes, false}, 0
			}
			if n := r.stored(); got != want || n != rows || strings.Contains(got.outcomes, "Committed") != (rows > 0) {
				r.Errorf("%s: got %+v and %d rows, want %+v and %d", w.name, got, n, want, rows)
			}
			if explicit && (ended == nil) != (rows > 0) {
				r.Errorf("%s: Commit has returned %v, and %d rows are there", w.name, ended, rows)
			}
		}
	}
	switch {
	case r.facts.lies:
		return but("an aborted transaction's COMMIT reports success there, and stores nothing; it is asked before")
	case r.facts.aborts:
		return but("COMMIT in an aborted transaction is an error there")
	}
	return but(livesOn)
}

const livesOn = "the transaction lives on and the rest is committed, as the handler asked for; return the error to fail"

// ended: a statement ends the transaction, and what follows is none of it.
func ended(r *run) verdict {
	for _, w := range r.ways() {
		for _, statement := range []string{"ROLLBACK", "COMMIT"} {
			for _, fails := range []bool{false, true} {
				name := fmt.Sprintf("%s, %s, fails %t", w.name, statement, fails)
				got := r.tell(w, sqlreq.Retry{Attempts: 3}, nil, func(ctx context.Context) error {
					err := errors.Join(w.exec(ctx, insertX), w.exec(ctx, statement), w.exec(ctx, insertX))
					if err == nil && fails {
						err = sqlreq.Errorf(http.StatusUnprocessableEntity, "no")
					}
					return err
				})
				rows := map[string]int{"ROLLBACK": 1, "COMMIT": 2}[statement]
				if n := r.stored(); n != rows {
					r.Errorf("%s: %d rows, want %d", name, n, rows)
				}
				want := told{500, "", "CommitFailed", true}
				switch {
				case fails && (w.guard || !r.facts.silentRollback):
					want = told{422, "", "Ended", false}
				case fails:
					want = told{422, "rollback", "RolledBack", false} // nobody tells
				case !w.guard && r.facts.silentCommit:
					want = told{200, "commit", "Committed", false} // nobody tells
				}
				if got != want {
					r.Errorf("%s: got %+v, want %+v", name, got, want)
				}
			}
		}
	}
	if r.facts.silentCommit || r.facts.silentRollback {
		return but("only with Guard: COMMIT and ROLLBACK report success there where no transaction is open")
	}
	return yes
}

// ddl: a request that has created a table and then fails, and one that ends well.
func ddl(r *run) verdict {
	for _, w := range r.ways() {
		for _, fails := range []bool{false, true} {
			name := fmt.Sprintf("%s, fails %t", w.name, fails)
			got := r.tell(w, sqlreq.Retry{Attempts: 3}, nil, func(ctx context.Context) error {
				err := errors.Join(w.exec(ctx, insertX), w.exec(ctx, createTable), w.exec(ctx, insertX))
				if err == nil && fails {
					err = sqlreq.Errorf(http.StatusUnprocessableEntity, "no")
				}
				return err
			})
			_, err := r.db.Exec("DELETE FROM sqlreq_ddl")
			r.dropTable(r, "ddl")
			want, rows, created := told{200, "commit", "Committed", false}, 2, true
			if fails {
				want, rows, created = told{422, "rollback", "RolledBack", false}, 0, false
			}
			if r.facts.ddlCommits {
				rows, created = 2, true
				switch {
				case fails && w.guard:
					want = told{422, "", "Ended", false}
				case w.guard:
					want = told{500, "", "CommitFailed", true}
				}
			}
			if n := r.stored(); got != want || n != rows || (err == nil) != created {
				r.Errorf("%s: got %+v, %d rows and the table %t (%v), want %+v, %d and %t", name, got, n, err == nil, err, want, rows, created)
			}
		}
	}
	if r.facts.ddlCommits {
		return but("DDL commits there what came before, and what follows commits by itself: found out with Guard only; keep it out of requests")
	}
	return yes
}

// lateConflict: COMMIT meets a conflict, and the request runs again.
func lateConflict(r *run) verdict {
	if r.dialect.Late == nil {
		return without(r.dialect.NoLate)
	}
	for _, w := range r.ways() {
		attempts := 0
		var undo func()
		got := r.tell(w, sqlreq.Retry{Attempts: 3}, &r.dialect.Conflict, func(ctx context.Context) (err error) {
			if attempts++; undo != nil {
				undo()
				undo = nil
			}
			if err := w.exec(ctx, insertX); err != nil || attempts > 1 {
				return err
			}
			undo, err = r.dialect.Late(ctx, w.exec, r.db, r.refused.Add(1))
			return err
		})
		want := told{200, "rollback commit", "CommitFailed Committed", false}
		if n := r.stored(); got != want || n != 1 || attempts != 2 {
			r.Errorf("%s: got %+v, %d rows in %d attempts, want %+v, one in two", w.name, got, n, attempts, want)
		}
	}
	return yes
}

// leavesDuring: the client leaves while a statement runs, and the handler goes on.
func leavesDuring(r *run) verdict {
	sleep := r.dialect.Sleep
	if sleep == "" {
		sleep = r.dialect.Work
	}
	for _, w := range r.ways() {
		for _, statement := range []string{sleep, "INSERT INTO sqlreq_work (note) " + sleep} {
			r.leavesDuring(w, statement)
		}
	}
	if r.dialect.Sleep == "" {
		return but("the driver does not interrupt the statement, or loses that where the client leaves right before it runs; what the request did is rolled back when it has returned")
	}
	return yes
}

func (r *run) leavesDuring(w way, statement string) {
	reg, events := r.registry(sqlreq.Binding{DB: r.db, Guard: w.guard})
	var ran []string
	r.leaves(reg, func(ctx context.Context, leave func()) {
		hooked(r, ctx, &ran)
		if err := w.exec(ctx, insertX); err != nil {
			r.Error(err)
		}
		switch {
		case r.dialect.Leaves != nil:
			r.dialect.Leaves(leave)
		case r.dialect.Sleeping != "":
			go func() {
				defer leave()
				r.eventually("the statement runs", func() bool {
					var n int
					return r.db.QueryRow(r.dialect.Sleeping).Scan(&n) == nil && n > 0
				})
			}()
		default:
			go leave()
		}
		var err error
		if strings.HasPrefix(statement, "INSERT") {
			err = w.exec(ctx, statement)
		} else {
			var v any
			err = w.query(ctx, statement).Scan(&v)
		}
		if err == nil && r.dialect.Sleep != "" {
			r.Errorf("%s: %s came to its end", w.name, statement)
		}
		<-ctx.Done()
		// This commits by itself where the database has ended the transaction.
		_ = w.exec(context.WithoutCancel(ctx), insertX)
	})
	got, rows := fmt.Sprint(events.outcomes(), ran), r.stored()
	byTx := strings.HasPrefix(w.name, "*sql.Tx")
	switch {
	case got == "RolledBack[rollback]" && rows == 0:
	case got == "Ended[]" && byTx: // an end that only the server knows, and what ran after it
	default:
		r.Errorf("%s, %s: %s, %d rows, want a rollback if there are none, and otherwise none", w.name, statement, got, rows)
	}
}
