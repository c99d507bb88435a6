// G9 503 with Retry-After: 1 when sqlreq itself waited in vain for the pool or the
// database: a database that cannot be reached (a network error or ErrBadConn from
// BEGIN, SQLSTATE 08xxx, 53300, 57P01 to 57P03, MySQL 1040 and 1203, a pool that was
// closed; each met by a begin: BEGIN, Guard's savepoint, Route; a statement's is a
// 500). Where something is committed, or may be, there is no Retry-After, and no 503.
// Retry-After is in the header before a custom ErrorHandler is called. An error that
// is a typed nil, or whose methods panic, is a 500 and harms nobody.

package guarantees

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/mysqlite"
)

// away are errors of a database that cannot be reached.
func away() map[string]error {
	return map[string]error{
		"refused":         &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)},
		"reset":           &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)},
		"no such host":    &net.DNSError{Err: "no such host", Name: "db", IsNotFound: true},
		"EOF":             io.EOF,
		"ErrBadConn":      driver.ErrBadConn,
		"08001":           mysqlite.State("08001"),
		"08006":           mysqlite.State("08006"),
		"53300":           mysqlite.State("53300"),
		"57P01":           mysqlite.State("57P01"),
		"57P02":           mysqlite.State("57P02"),
		"57P03":           mysqlite.State("57P03"),
		"MySQL 1040":      &mysqlite.MySQL{Number: 1040},
		"MySQL 1203":      &mysqlite.MySQL{Number: 1203},
		"a conn that was": sql.ErrConnDone,
		"wrapped":         fmt.Errorf("tenant 7: %w", mysqlite.State("57P03")),
	}
}

// Each kind, met by each begin, in a request and in a Do.
func TestG9DatabaseThatCannotBeReached(t *testing.T) {
	bindings := map[string]func(t *testing.T, err error) sqlreq.Binding{
		"BEGIN": func(t *testing.T, err error) sqlreq.Binding {
			return sqlreq.Binding{DB: (&fakedb.DB{Begin: func(context.Context) error { return err }}).Open(t)}
		},
		"BEGIN, with Guard": func(t *testing.T, err error) sqlreq.Binding {
			return sqlreq.Binding{DB: (&fakedb.DB{Begin: func(context.Context) error { return err }}).Open(t), Guard: true}
		},
		"a new connection": func(t *testing.T, err error) sqlreq.Binding {
			return sqlreq.Binding{DB: (&fakedb.DB{Connect: func(context.Context) error { return err }}).Open(t)}
		},
		"Guard's savepoint": func(t *testing.T, err error) sqlreq.Binding {
			return sqlreq.Binding{DB: answering(map[string]error{"SAVEPOINT": err}).Open(t), Guard: true}
		},
		"Route": func(_ *testing.T, err error) sqlreq.Binding {
			return sqlreq.Binding{Route: func(context.Context, *http.Request) (*sql.DB, error) { return nil, err }}
		},
	}
	for kind, err := range away() {
		for where, bind := range bindings {
			for name, use := range sqlreqtest.Uses() {
				t.Run(kind+"/"+where+"/"+name, func(t *testing.T) {
					reg := sqlreqtest.NewRegistry(t, bind(t, err))
					rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error { return use(r.Context()) })))
					if after := rec.Header().Get("Retry-After"); rec.Code != 503 || after != "1" {
						t.Errorf("got %d with Retry-After %q, want 503 with 1", rec.Code, after)
					}
					if done := reg.Do(t.Context(), use); sqlreq.StatusCode(done) != 503 || !errors.Is(done, err) {
						t.Errorf("Do: got %v (%d), want 503", done, sqlreq.StatusCode(done))
					}
				})
			}
		}
	}
}

func TestG9PoolThatWasClosed(t *testing.T) {
	db := (&fakedb.DB{}).Open(t)
	db.Close()
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		return sqlreqtest.Uses()["Exec"](r.Context())
	})))
	if rec.Code != 503 || rec.Header().Get("Retry-After") != "1" {
		t.Errorf("got %d with %v, want 503 with Retry-After", rec.Code, rec.Header())
	}
}

// What a statement, or COMMIT, meets is a 500: the work is lost, or may be there.
func TestG9DatabaseThatIsLostLater(t *testing.T) {
	for kind, err := range away() {
		for _, at := range []string{"UPDATE", "COMMIT"} {
			for _, guard := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/Guard %t", kind, at, guard), func(t *testing.T) {
					reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: answering(map[string]error{at: err}).Open(t), Guard: guard})
					rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
						_, err := sqlreqtest.Main.ExecContext(r.Context(), "UPDATE")
						return err
					})))
					if after := rec.Header().Get("Retry-After"); rec.Code != 500 || after != "" {
						t.Errorf("got %d with Retry-After %q, want 500 without", rec.Code, after)
					}
				})
			}
		}
	}
}

// A begin that cannot be reached after something was committed is no 503.
func TestG9NoRetryAfterWhereSomethingIsCommitted(t *testing.T) {
	committing := map[string]func(reg *sqlreq.Registry, ctx context.Context) error{
		"Commit": func(_ *sqlreq.Registry, ctx context.Context) error {
			sqlreqtest.Uses()["Exec"](ctx)
			return sqlreq.Commit(ctx)
		},
		"a Do": func(reg *sqlreq.Registry, ctx context.Context) error { return reg.Do(ctx, sqlreqtest.Uses()["Exec"]) },
		"an AfterCommit function": func(_ *sqlreq.Registry, ctx context.Context) error {
			_ = sqlreq.AfterCommit(ctx, func(context.Context) {})
			sqlreqtest.Uses()["Exec"](ctx)
			return sqlreq.Commit(ctx)
		},
		"nothing": func(*sqlreq.Registry, context.Context) error { return nil },
	}
	failures := map[string]func(ctx context.Context) error{
		"unreachable": func(ctx context.Context) error { _, err := sqlreq.Key("away").Tx(ctx); return err },
		"conflict":    func(context.Context) error { return sqlreqtest.Conflict{} },
		"unreachable in a Do": func(ctx context.Context) error {
			return sqlreqtest.NewRegistry(nopTB{}, sqlreq.Binding{Route: func(context.Context, *http.Request) (*sql.DB, error) { return nil, io.EOF }}).
				Do(ctx, func(ctx context.Context) error { _, err := sqlreq.Tx(ctx); return err })
		},
	}
	for what, commit := range committing {
		for why, fail := range failures {
			t.Run(what+"/"+why, func(t *testing.T) {
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)},
					sqlreq.Binding{Key: "away", Route: func(context.Context, *http.Request) (*sql.DB, error) { return nil, io.EOF }})
				work := func(ctx context.Context) error {
					if err := commit(reg, ctx); err != nil {
						t.Error(err)
					}
					return fail(ctx)
				}
				want, wantAfter := 500, ""
				if what == "nothing" {
					want, wantAfter = 503, "1"
				}
				rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error { return work(r.Context()) })))
				if after := rec.Header().Get("Retry-After"); rec.Code != want || after != wantAfter {
					t.Errorf("got %d with Retry-After %q, want %d with %q", rec.Code, after, want, wantAfter)
				}
				if err := reg.Do(t.Context(), work); sqlreq.StatusCode(err) != want {
					t.Errorf("Do: got %d, want %d", sqlreq.StatusCode(err), want)
				}
			})
		}
	}
}

// nopTB is for a registry that a handler makes.
type nopTB struct{ testing.TB }

func (nopTB) Helper() {}

// A deadline outside passes while COMMIT is under way, which is then answered, is
// refused, or is lost.
func TestG9DeadlineDuringCommit(t *testing.T) {
	tests := map[string]struct {
		answer error
		code   int
	}{
		"success": {nil, 200},
		"refused": {mysqlite.State("23503"), 503}, // nothing stays: the client has not waited to the end
		"lost":    {driver.ErrBadConn, 500},
	}
	for name, tt := range tests {
		for _, explicit := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/explicit %t", name, explicit), func(t *testing.T) {
				ctx, expire := sqlreqtest.Deadline(t.Context())
				d := &fakedb.DB{Commit: func() error { expire(); return tt.answer }}
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
				a := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
					sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
					if explicit {
						return sqlreq.Commit(r.Context())
					}
					return nil
				})), httptest.NewRequestWithContext(ctx, "GET", "/", nil))
				if after := a.Header().Get("Retry-After"); a.Code != tt.code || (after != "") != (tt.code == 503) {
					t.Errorf("got %d with Retry-After %q, want %d", a.Code, after, tt.code)
				}
			})
		}
	}
}

// The first of two databases is committed when the deadline passes: no 503.
func TestG9DeadlineBetweenTwoCommits(t *testing.T) {
	ctx, expire := sqlreqtest.Deadline(t.Context())
	one := &fakedb.DB{Committed: func() error { expire(); return nil }}
	two := &fakedb.DB{Commit: func() error { return sqlreqtest.Conflict{} }}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "one", DB: one.Open(t)}, sqlreq.Binding{Key: "two", DB: two.Open(t)})
	reg.Retry = sqlreqtest.Retries(3)
	a := sqlreqtest.Ask(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), "one", "INSERT")
		sqlreqtest.Exec(t, r.Context(), "two", "INSERT")
	})), httptest.NewRequestWithContext(ctx, "GET", "/", nil))
	if after := a.Header().Get("Retry-After"); a.Code != 500 || after != "" {
		t.Errorf("got %d with Retry-After %q, want 500 without", a.Code, after)
	}
}

// Retry-After is there when a custom ErrorHandler is called, and is its to delete.
func TestG9RetryAfterBeforeTheErrorHandler(t *testing.T) {
	for _, del := range []bool{false, true} {
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Route: func(context.Context, *http.Request) (*sql.DB, error) { return nil, io.EOF }})
		var before string
		reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
			before = w.Header().Get("Retry-After")
			if del {
				w.Header().Del("Retry-After")
			}
			http.Error(w, "mine", sqlreq.StatusCode(err))
		}
		rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
			_, err := sqlreq.Tx(r.Context())
			return err
		})))
		if after := rec.Header().Get("Retry-After"); rec.Code != 503 || before != "1" || (after == "1") == del {
			t.Errorf("got %d, Retry-After %q before and %q after; want it to be there, deleted: %t", rec.Code, before, after, del)
		}
	}
}

// A 503 of the program's own has no Retry-After, but the one that it sets.
func TestG9OwnStatusHasNoRetryAfter(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return sqlreq.Errorf(503, "closed on Sundays") })))
	if after, ok := rec.Header()["Retry-After"]; rec.Code != 503 || ok {
		t.Errorf("got %d with Retry-After %q, want 503 without", rec.Code, after)
	}
}

// rude panics wherever it is asked something.
type rude struct{}

func (rude) Error() string { panic("Error") }
func (rude) Unwrap() error { panic("Unwrap") }
func (rude) Is(error) bool { panic("Is") }
func (rude) As(any) bool   { panic("As") }

// structErr panics as a typed nil, as most errors with fields do.
type structErr struct{ text string }

func (e *structErr) Error() string { return e.text }
func (e *structErr) Unwrap() error { return errors.New(e.text) }

// rudeErrors are errors that a program may return by mistake.
func rudeErrors() map[string]error {
	return map[string]error{
		"typed nil":               (*structErr)(nil),
		"typed nil CommitError":   (*sqlreq.CommitError)(nil),
		"typed nil StatusError":   (*sqlreq.StatusError)(nil),
		"typed nil MaxBytesError": (*http.MaxBytesError)(nil),
		"panics":                  rude{},
		"joined":                  errors.Join(sqlreqtest.ErrTest, rude{}),
		"StatusError of one":      &sqlreq.StatusError{Code: 404, Err: rude{}},
		"a StatusError's nil":     &sqlreq.StatusError{Code: 404, Err: (*structErr)(nil)},
	}
}

// Errors of a driver are not among them: database/sql itself calls their methods.
func TestG9ErrorsWhoseMethodsPanic(t *testing.T) {
	for name, rudeErr := range rudeErrors() {
		ways := map[string]func(ctx context.Context) error{
			"of a Route":   func(ctx context.Context) error { _, err := sqlreq.Key("routed").Tx(ctx); return err },
			"returned":     func(context.Context) error { return rudeErr },
			"Fail":         func(ctx context.Context) error { return sqlreq.Fail(ctx, rudeErr) },
			"RollbackOnly": func(ctx context.Context) error { return sqlreq.RollbackOnly(ctx, rudeErr) },
			"of a Savepoint": func(ctx context.Context) error {
				return sqlreq.Savepoint(ctx, func(context.Context) error { return rudeErr })
			},
		}
		for way, fail := range ways {
			for _, attempts := range []int{1, 3} {
				for _, logger := range []*slog.Logger{slog.New(slog.DiscardHandler), slog.New(slog.NewTextHandler(io.Discard, nil)), slog.New(slog.NewJSONHandler(io.Discard, nil))} {
					t.Run(fmt.Sprintf("%s/%s/attempts %d", name, way, attempts), func(t *testing.T) {
						d := &fakedb.DB{}
						route := func(context.Context, *http.Request) (*sql.DB, error) { return nil, rudeErr }
						reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)}, sqlreq.Binding{Key: "routed", Route: route})
						reg.Retry, reg.Logger = sqlreqtest.Retries(attempts), logger
						work := func(ctx context.Context) error {
							sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
							return fail(ctx)
						}
						a := sqlreqtest.AskGet(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error { return work(r.Context()) })), "/")
						want := 500
						if way == "RollbackOnly" {
							want = 200
						}
						if a.Panicked != nil || a.Code != want && !(strings.Contains(name, "StatusError") && a.Code == 404) {
							t.Errorf("got %d, panic %v; want %d", a.Code, a.Panicked, want)
						}
						var done error
						if panicked := sqlreqtest.Panicked(func() { done = reg.Do(t.Context(), work) }); panicked != nil || done == nil {
							t.Errorf("Do returned %T, panic %v; want an error", done, panicked)
						}
						if n := d.Count("COMMIT"); n > 0 {
							t.Errorf("%d were committed", n)
						}
						d.CheckClean(t)
					})
				}
			}
		}
	}
}

// A handler without a registry, and MayHaveCommitted and StatusCode themselves.
func TestG9ErrorsWhoseMethodsPanicOutside(t *testing.T) {
	logged := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil)))
	defer slog.SetDefault(logged)
	for name, err := range rudeErrors() {
		if panicked := sqlreqtest.Panicked(func() { sqlreq.StatusCode(err); sqlreq.MayHaveCommitted(err); sqlreq.IsRetryable(err) }); panicked != nil {
			t.Errorf("%s: StatusCode, MayHaveCommitted or IsRetryable panicked with %v", name, panicked)
		}
		a := sqlreqtest.AskGet(sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return err }), "/")
		if a.Panicked != nil || a.Code != 500 && a.Code != 404 {
			t.Errorf("%s: got %d, panic %v; want 500", name, a.Code, a.Panicked)
		}
	}
}
