// G4 No success by accident, inside of a transaction: an error or a panic of a
// Savepoint's function rolls back to it, and the rollback runs even if the context
// given to the function has ended. It never takes a second connection. If going back
// fails, the request can only roll back. Savepoints nest by context: one begun with a
// context that is not the innermost open one's is an error, and so are Commit,
// Rollback, BeginTx and Hijack inside.

package guarantees

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

func TestG4SavepointNestsToAnyDepth(t *testing.T) {
	const depth = 25
	for _, failing := range []int{0, 1, 7, depth - 1, depth} {
		t.Run(strconv.Itoa(failing), func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			db.SetMaxOpenConns(1)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			var nest func(ctx context.Context, level int) error
			nest = func(ctx context.Context, level int) error {
				err := sqlreq.Savepoint(ctx, func(ctx context.Context) error {
					sqlreqtest.Exec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
					if level+1 < depth {
						if err := nest(ctx, level+1); err != nil {
							return err
						}
					}
					if level == failing {
						return sqlreqtest.ErrTest
					}
					return nil
				})
				if want := level == failing; errors.Is(err, sqlreqtest.ErrTest) != want {
					t.Errorf("level %d: got %v, want an error: %t", level, err, want)
				}
				return nil
			}
			rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				_ = nest(r.Context(), 0)
			})))
			if n := sqlreqtest.Count(t, db, "work"); rec.Code != 200 || n != failing {
				t.Errorf("got %d and %d rows, want 200 and %d", rec.Code, n, failing)
			}
			sqlreqtest.Idle(t, db)
		})
	}
}

func TestG4SavepointRolledBackThoughItsContextEnded(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "before")
		ctx, cancel := context.WithCancel(r.Context())
		err := sqlreq.Savepoint(ctx, func(ctx context.Context) error {
			sqlreqtest.Note(t, ctx, sqlreqtest.Main, "inside")
			cancel()
			_, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
			return err
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want that the context was cancelled", err)
		}
		sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "after")
	})))
	if got := sqlreqtest.Notes(t, db); rec.Code != 200 || got != "before after" {
		t.Errorf("got %d and %q", rec.Code, got)
	}
}

func TestG4SavepointPanics(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	h := reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		panicIn := func(ctx context.Context) {
			_ = sqlreq.Savepoint(ctx, func(ctx context.Context) error {
				sqlreqtest.Note(t, ctx, sqlreqtest.Main, "inside")
				panic(sqlreqtest.ErrTest)
			})
		}
		if r.URL.Path == "/whole" {
			panicIn(r.Context())
		}
		func() {
			defer func() {
				if v := recover(); v != sqlreqtest.ErrTest {
					t.Errorf("recovered %v, want %v", v, sqlreqtest.ErrTest)
				}
			}()
			panicIn(r.Context())
		}()
		exited := make(chan struct{})
		go func() {
			defer close(exited)
			_ = sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
				sqlreqtest.Note(t, ctx, sqlreqtest.Main, "exited")
				runtime.Goexit()
				return nil
			})
		}()
		<-exited
		sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "after")
	}))
	if rec, got := sqlreqtest.Do(h), sqlreqtest.Notes(t, db); rec.Code != 200 || got != "after" {
		t.Errorf("recovered inside: got %d and %q, want 200 and only what came after", rec.Code, got)
	}
	func() {
		defer func() {
			if v := recover(); v != sqlreqtest.ErrTest {
				t.Errorf("got panic %v, want %v", v, sqlreqtest.ErrTest)
			}
		}()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/whole", nil))
	}()
	if got := sqlreqtest.Notes(t, db); got != "after" {
		t.Errorf("after a panic through everything: got %q", got)
	}
	sqlreqtest.Idle(t, db)
}

func TestG4SavepointMisuse(t *testing.T) {
	nothing := func(context.Context) error { return nil }
	tests := map[string]struct {
		do   func(w http.ResponseWriter, outer, inner context.Context) error
		text string
	}{
		"context of the request": {func(_ http.ResponseWriter, o, _ context.Context) error { return sqlreq.Savepoint(o, nothing) }, "innermost"},
		"Commit":                 {func(_ http.ResponseWriter, _, i context.Context) error { return sqlreq.Commit(i) }, "inside a Savepoint"},
		"Commit outside":         {func(_ http.ResponseWriter, o, _ context.Context) error { return sqlreq.Commit(o) }, "inside a Savepoint"},
		"Rollback":               {func(_ http.ResponseWriter, _, i context.Context) error { return sqlreq.Rollback(i) }, "inside a Savepoint"},
		"Rollback outside":       {func(_ http.ResponseWriter, o, _ context.Context) error { return sqlreq.Rollback(o) }, "inside a Savepoint"},
		"BeginTx": {func(_ http.ResponseWriter, _, i context.Context) error {
			_, err := sqlreq.BeginTx(i, nil)
			if !errors.Is(err, sqlreq.ErrBegun) {
				return nil
			}
			return err
		}, "open already"},
		"Hijack": {func(w http.ResponseWriter, _, _ context.Context) error {
			_, _, err := http.NewResponseController(w).Hijack()
			return err
		}, "inside a Savepoint"},
		"the context of a savepoint that was rolled back": {func(_ http.ResponseWriter, _, i context.Context) error {
			var old context.Context
			_ = sqlreq.Savepoint(i, func(ctx context.Context) error { old = ctx; return sqlreqtest.ErrTest })
			return sqlreq.Savepoint(old, nothing)
		}, "innermost"},
		"the context of a savepoint that has returned": {func(_ http.ResponseWriter, _, i context.Context) error {
			var old context.Context
			_ = sqlreq.Savepoint(i, func(ctx context.Context) error { old = ctx; return nil })
			return sqlreq.Savepoint(old, nothing)
		}, "innermost"},
		"the context of one that was released into one rolled back": {func(_ http.ResponseWriter, _, i context.Context) error {
			var old context.Context
			_ = sqlreq.Savepoint(i, func(ctx context.Context) error {
				_ = sqlreq.Savepoint(ctx, func(ctx context.Context) error { old = ctx; return nil })
				return sqlreqtest.ErrTest
			})
			return sqlreq.Savepoint(old, nothing)
		}, "innermost"},
		"a hook in one that was rolled back": {func(_ http.ResponseWriter, _, i context.Context) error {
			var old context.Context
			_ = sqlreq.Savepoint(i, func(ctx context.Context) error { old = ctx; return sqlreqtest.ErrTest })
			return sqlreq.AfterCommit(old, func(context.Context) {})
		}, "rolled back"},
		"a hook in one that was released into one rolled back": {func(_ http.ResponseWriter, _, i context.Context) error {
			var old context.Context
			_ = sqlreq.Savepoint(i, func(ctx context.Context) error {
				_ = sqlreq.Savepoint(ctx, func(ctx context.Context) error { old = ctx; return nil })
				return sqlreqtest.ErrTest
			})
			return sqlreq.AfterCommit(old, func(context.Context) {})
		}, "rolled back"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
					sqlreqtest.Exec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
					if err := tt.do(w, r.Context(), ctx); err == nil || !strings.Contains(err.Error(), tt.text) {
						t.Errorf("got %v, want an error with %q", err, tt.text)
					}
					sqlreqtest.Exec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
					return nil
				})
				if err != nil {
					t.Error(err)
				}
				_, _ = io.WriteString(w, "fine")
			})))
			if code, body, err := sqlreqtest.Get(t, srv.URL); code != 200 || body != "fine" || err != nil {
				t.Errorf("got %d %q %v, want a misuse to harm nothing else", code, body, err)
			}
			if n := sqlreqtest.Count(t, db, "work"); n != 2 {
				t.Errorf("%d rows, want 2", n)
			}
		})
	}
}

// TestG4StatementInASavepointThatHasReturned: where none is open any more, the context of one that was rolled
// back is refused with the reason, and that of one that was released is as good as the one around it.
func TestG4StatementInASavepointThatHasReturned(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	for _, fails := range []error{nil, sqlreqtest.ErrTest} {
		err := reg.Do(t.Context(), func(ctx context.Context) error {
			var old context.Context
			_ = sqlreq.Savepoint(ctx, func(ctx context.Context) error { old = ctx; return fails })
			_, err := sqlreqtest.Main.ExecContext(old, sqlreqtest.InsertWork)
			return err
		})
		if fails == nil && err != nil || fails != nil && (err == nil || !strings.Contains(err.Error(), "the Savepoint of this context was rolled back")) {
			t.Errorf("after a Savepoint that returned %v: got %v", fails, err)
		}
	}
	if n := sqlreqtest.Count(t, db, "work"); n != 1 {
		t.Errorf("got %d rows, want 1", n)
	}
}

func TestG4SavepointGoingBackFails(t *testing.T) {
	faults := &fakedb.DB{Stmt: func(_ context.Context, query string) error {
		if strings.HasPrefix(query, "ROLLBACK TO") {
			return sqlreqtest.ErrTest
		}
		return nil
	}}
	db := sqlreqtest.OpenFaulty(t, faults)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var events sqlreqtest.Recorder
	reg.Observe = events.Observe
	var cause error
	reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
		cause = err
		w.WriteHeader(sqlreq.StatusCode(err))
	}
	errInside := errors.New("inside")
	var log sqlreqtest.Recorder
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		log.Hooks(t, r.Context(), sqlreqtest.Main, "")
		err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
			sqlreqtest.Exec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
			return errInside
		})
		if !errors.Is(err, errInside) || !errors.Is(err, sqlreqtest.ErrTest) || !strings.Contains(err.Error(), "only roll back") {
			t.Errorf("got %v, want both errors and what follows", err)
		}
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); !errors.Is(err, sqlreqtest.ErrTest) {
			t.Errorf("a statement after it: got %v, want the cause", err)
		}
		w.WriteHeader(201)
	})))
	if rec.Code != 500 || !errors.Is(cause, sqlreqtest.ErrTest) {
		t.Errorf("got %d with %v, want 500 with the cause", rec.Code, cause)
	}
	if got := sqlreqtest.Notes(t, db); got != "" || log.Words() != "rollback" || events.Events() != "main RolledBack 1" {
		t.Errorf("got rows %q, hooks %q, events %q", got, log.Words(), events.Events())
	}
	sqlreqtest.Idle(t, db)
}

func TestG4SavepointReleaseFails(t *testing.T) {
	refuse := true // the first one; what goes back to the savepoint releases it, too
	faults := &fakedb.DB{Stmt: func(_ context.Context, query string) error {
		if strings.HasPrefix(query, "RELEASE") && refuse {
			refuse = false
			return sqlreqtest.ErrTest
		}
		return nil
	}}
	db := sqlreqtest.OpenFaulty(t, faults)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var log sqlreqtest.Recorder
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "before")
		err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
			log.Hooks(t, ctx, sqlreqtest.Main, "")
			sqlreqtest.Note(t, ctx, sqlreqtest.Main, "inside")
			return nil
		})
		if !errors.Is(err, sqlreqtest.ErrTest) || !strings.Contains(err.Error(), "close open rows first") {
			t.Errorf("got %v, want the cause and what to do", err)
		}
		sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "after")
	})))
	if got := sqlreqtest.Notes(t, db); rec.Code != 200 || got != "before after" || log.Words() != "" {
		t.Errorf("got %d, %q and hooks %q", rec.Code, got, log.Words())
	}
}

// With one in progress, a Savepoint of another goroutine is refused; without, it
// runs. Either way exactly the released ones are there.
func TestG4SavepointsOfSeveralGoroutines(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var released sqlreqtest.Recorder
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var wg sync.WaitGroup
		inside, refused := make(chan struct{}), make(chan struct{})
		wg.Go(func() {
			if err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
				close(inside)
				<-refused
				sqlreqtest.Exec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
				return nil
			}); err != nil {
				t.Error(err)
			}
			released.Add("x")
		})
		<-inside
		err := sqlreq.Savepoint(r.Context(), func(context.Context) error { t.Error("ran"); return nil })
		if err == nil {
			t.Error("a second one was not refused")
		}
		close(refused)
		wg.Wait()
		for range 8 {
			wg.Go(func() {
				err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
					_, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
					return err
				})
				if err == nil {
					released.Add("x")
				}
			})
		}
		wg.Wait()
	})))
	if got := sqlreqtest.Notes(t, db); rec.Code != 200 || got != released.Words() {
		t.Errorf("got %d and rows %q, want 200 and %q", rec.Code, got, released.Words())
	}
}

func TestG4SavepointsOfSeveralKeysCrosswise(t *testing.T) {
	tests := map[string]struct {
		fail    string // the level that fails
		a, b    string
		hooks   string
		aliases bool
	}{
		"none":           {"", "0 1 3", "2", "commit1 commit2 commit3", false},
		"the innermost":  {"3", "0 1", "2", "commit1 commit2", false},
		"the other's":    {"2", "0 1 3", "", "commit1 commit3", false},
		"the outermost":  {"1", "0", "2", "commit2", false},
		"one pool":       {"2", "0 1", "", "commit1", true},
		"one pool, none": {"", "0 1 2 3", "", "commit1 commit2 commit3", true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a, b := sqlreqtest.OpenDB(t), sqlreqtest.OpenDB(t)
			second := b
			if tt.aliases {
				second = a
			}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "a", DB: a}, sqlreq.Binding{Key: "b", DB: second})
			var log sqlreqtest.Recorder
			fails := func(level string) error {
				if tt.fail == level {
					return sqlreqtest.ErrTest
				}
				return nil
			}
			level := func(ctx context.Context, k sqlreq.Key, name string, inside func(context.Context)) {
				_ = k.Savepoint(ctx, func(ctx context.Context) error {
					sqlreqtest.Note(t, ctx, k, name)
					_ = k.AfterCommit(ctx, func(context.Context) { log.Add("commit" + name) })
					inside(ctx)
					return fails(name)
				})
			}
			rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				sqlreqtest.Note(t, r.Context(), "a", "0")
				level(r.Context(), "a", "1", func(ctx context.Context) {
					level(ctx, "b", "2", func(ctx context.Context) {
						level(ctx, "a", "3", func(context.Context) {})
					})
				})
			})))
			if gotA, gotB := sqlreqtest.Notes(t, a), sqlreqtest.Notes(t, b); rec.Code != 200 || gotA != tt.a || gotB != tt.b || log.Words() != tt.hooks {
				t.Errorf("got %d, a %q, b %q, hooks %q; want a %q, b %q, hooks %q", rec.Code, gotA, gotB, log.Words(), tt.a, tt.b, tt.hooks)
			}
		})
	}
}

// A goroutine that is still inside a Savepoint when the handler returns has not
// said yet whether its part is to stay.
func TestG4SavepointStillOpenAtTheEnd(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	inside, goOn, result := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		go func() {
			result <- sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
				sqlreqtest.Exec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
				close(inside)
				<-goOn
				sqlreqtest.Finished(t, ctx)
				return nil
			})
		}()
		<-inside
		w.WriteHeader(201)
	})))
	close(goOn)
	if err := <-result; !errors.Is(err, sqlreq.ErrFinished) {
		t.Errorf("Savepoint returned %v, want ErrFinished", err)
	}
	if n := sqlreqtest.Count(t, db, "work"); rec.Code != 500 || n != 0 {
		t.Errorf("got %d and %d rows, want 500 and none", rec.Code, n)
	}
	sqlreqtest.Idle(t, db)
}

func TestG4SavepointOfAnEndedTransaction(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var events sqlreqtest.Recorder
	reg.Observe = events.Observe
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
			tx, err := sqlreq.Tx(ctx)
			if err != nil {
				return err
			}
			return tx.Rollback()
		})
		if !errors.Is(err, sqlreq.ErrTxEnded) {
			t.Errorf("got %v, want ErrTxEnded", err)
		}
	})))
	if rec.Code != 500 || events.Events() != "main Ended 1" {
		t.Errorf("got %d, events %q", rec.Code, events.Events())
	}
}

// The inner one decides about its part only when it returns: the outer cannot
// release it before, nor can the request commit.
func TestG4SavepointReturnsBeforeTheInnerOne(t *testing.T) {
	tests := map[string]struct {
		outer, inner error
		stmts        string // that end the inner one
	}{
		"released":            {nil, nil, "RELEASE SAVEPOINT sqlreq_2"},
		"inner rolled back":   {nil, sqlreqtest.ErrTest, "ROLLBACK TO SAVEPOINT sqlreq_2, RELEASE SAVEPOINT sqlreq_2"},
		"outer is to go back": {sqlreqtest.ErrTest, nil, "RELEASE SAVEPOINT sqlreq_2"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := &fakedb.DB{}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
			inside, goOn, inner := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			err := reg.Do(t.Context(), func(ctx context.Context) error {
				err := sqlreq.Savepoint(ctx, func(ctx context.Context) error {
					go func() {
						inner <- sqlreq.Savepoint(ctx, func(ctx context.Context) error {
							close(inside)
							<-goOn
							sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
							return tt.inner
						})
					}()
					<-inside
					return tt.outer
				})
				if err == nil || !strings.Contains(err.Error(), "has not returned yet") {
					t.Errorf("the outer one: got %v, want that the inner one has not returned", err)
				}
				close(goOn)
				if err := <-inner; !errors.Is(err, tt.inner) || (err == nil) != (tt.inner == nil) {
					t.Errorf("the inner one: got %v, want %v", err, tt.inner)
				}
				return nil
			})
			if err == nil || !strings.Contains(err.Error(), "Savepoint is still open") {
				t.Errorf("got %v, want that the outer one is still open", err)
			}
			d.Check(t, strings.Split("BEGIN, SAVEPOINT sqlreq_1, SAVEPOINT sqlreq_2, INSERT, "+tt.stmts+", ROLLBACK", ", ")...)
		})
	}
}

// overtaken are the transactions of a round: the one that was committed from
// outside, and the Savepoint's; or only one, if that came too late.
var overtaken = regexp.MustCompile(`^(BEGIN, (COMMIT, BEGIN, )?SAVEPOINT sqlreq_\d+, INSERT, RELEASE SAVEPOINT sqlreq_\d+, (COMMIT, )?)+$`)

// A Savepoint that another goroutine's Commit overtakes is the next use, which
// begins anew: it lies in one transaction, with its statements. The moment is a
// short one, so that it is tried often.
func TestG4SavepointOvertakenByACommit(t *testing.T) {
	d := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
	err := reg.Do(t.Context(), func(ctx context.Context) error {
		for round := range manyRounds() {
			if _, err := sqlreq.Tx(ctx); err != nil {
				return err
			}
			var ready, start atomic.Bool
			committed := make(chan error, 1)
			go func() {
				ready.Store(true)
				for n := 0; !start.Load(); n++ {
					if n > 1000 { // nobody else may have a processor
						runtime.Gosched()
					}
				}
				committed <- sqlreq.Commit(ctx)
			}()
			sqlreqtest.Until(ready.Load)
			start.Store(true)
			for range round % 500 {
				start.Load()
			}
			if err := sqlreq.Savepoint(ctx, func(ctx context.Context) error {
				_, err := sqlreqtest.Main.ExecContext(ctx, "INSERT")
				return err
			}); err != nil {
				return fmt.Errorf("round %d: Savepoint: %w", round, err)
			}
			if err := <-committed; err != nil && !strings.Contains(err.Error(), "inside a Savepoint") {
				return fmt.Errorf("round %d: Commit: %w", round, err)
			}
			if err := sqlreq.Commit(ctx); err != nil {
				return fmt.Errorf("round %d: Commit afterwards: %w", round, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if log := strings.Join(append(d.Log(), ""), ", "); !overtaken.MatchString(log) {
		t.Errorf("got %.500s, which does not match %s", log, overtaken)
	}
	d.CheckClean(t)
}

// While another goroutine's SAVEPOINT is on its way, nothing commits under it.
func TestG4EndMeetsASavepoint(t *testing.T) {
	ends := map[string]func(http.ResponseWriter, *http.Request) error{
		"Commit":   func(_ http.ResponseWriter, r *http.Request) error { return sqlreq.Commit(r.Context()) },
		"Rollback": func(_ http.ResponseWriter, r *http.Request) error { return sqlreq.Rollback(r.Context()) },
		"Hijack": func(w http.ResponseWriter, _ *http.Request) error {
			_, _, err := http.NewResponseController(w).Hijack()
			return err
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			point := fakedb.NewPoint()
			d := &fakedb.DB{Stmt: func(_ context.Context, q string) error {
				if strings.HasPrefix(q, "SAVEPOINT") {
					point.Wait()
				}
				return nil
			}}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
			reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
				ended, savepoint := make(chan error, 1), make(chan error, 1)
				over := make(chan struct{})
				go func() {
					savepoint <- sqlreq.Savepoint(r.Context(), func(context.Context) error { <-over; return nil })
				}()
				point.Reached()
				asking := make(chan struct{})
				go func() {
					close(asking)
					ended <- end(w, r)
				}()
				<-asking
				for range 1000 { // it is refused whenever it comes; if it were not, it shall come while SAVEPOINT is on its way
					runtime.Gosched()
				}
				point.Release()
				if err := <-ended; err == nil {
					t.Error("it was not refused")
				}
				close(over)
				if err := <-savepoint; err != nil && name != "Hijack" { // which can only roll back by then
					t.Errorf("Savepoint: %v", err)
				}
				if n := d.Count("COMMIT"); n != 0 {
					t.Errorf("%d COMMITs under a Savepoint", n)
				}
			})).ServeHTTP(hijackable{httptest.NewRecorder()}, httptest.NewRequest("POST", "/", nil))
		})
	}
}
