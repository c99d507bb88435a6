// G2. After Hijack nothing begins any more: Tx, BeginTx, statements, Savepoint, the
// functions that register hooks, Commit, Rollback return an error that is ErrFinished
// and says to use Registry.Do for each message; Begun is false; DB and Prefix work;
// Fail only logs; Do works, Atomic is Do; a begin under way in another goroutine is
// given up as at the end. A Middleware reached through a hijacked request is
// outermost again.

package guarantees_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// hijackAsk serves one GET of target with h, and returns what came over the connection.
func hijackAsk(t *testing.T, h http.Handler, target string) string {
	t.Helper()
	served := make(chan struct{})
	conn := wireDial(t, sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(served)
		h.ServeHTTP(w, r)
	})), nil)
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: test\r\n\r\n", target)
	got, err := io.ReadAll(conn)
	if err != nil {
		t.Error(err)
	}
	<-served
	return string(got)
}

// hijack takes the connection of w over.
func hijack(t testing.TB, w http.ResponseWriter) net.Conn {
	t.Helper()
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Fatalf("Hijack: %v", err)
	}
	return conn
}

// hijacked says what is wrong with the error of a use after Hijack, "" if it is right.
func hijacked(err error) string {
	if errors.Is(err, sqlreq.ErrFinished) && strings.Contains(err.Error(), "hijacked") && strings.Contains(err.Error(), "Registry.Do") {
		return ""
	}
	return fmt.Sprintf("got %v, want ErrFinished, and that it was hijacked, and to use Registry.Do", err)
}

func TestG2NothingBeginsAfterHijack(t *testing.T) {
	nothing := func(context.Context) error { return nil }
	calls := sqlreqtest.Uses()
	for name, call := range sqlreqtest.Ends() {
		calls[name] = call
	}
	delete(calls, "Fail")
	calls["BeforeCommit"] = func(ctx context.Context) error { return sqlreq.BeforeCommit(ctx, nothing) }
	calls["a routed key"] = func(ctx context.Context) error { _, err := sqlreq.Key("routed").Tx(ctx); return err }
	calls["a key not used yet"] = func(ctx context.Context) error { _, err := sqlreq.Key("other").Tx(ctx); return err }
	for _, used := range []bool{false, true} {
		t.Run(fmt.Sprintf("used before %v", used), func(t *testing.T) {
			db, other := sqlreqtest.OpenDB(t), sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "other", DB: other},
				sqlreq.Binding{Key: "routed", Route: func(context.Context, *http.Request) (*sql.DB, error) { return other, nil }})
			var rec sqlreqtest.Recorder
			rec.Watch(reg)
			hijackAsk(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ctx := r.Context()
				if used {
					sqlreqtest.Exec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
				}
				conn := hijack(t, w)
				defer conn.Close()
				for _, k := range []sqlreq.Key{sqlreqtest.Main, "routed"} {
					if pool, err := k.DB(ctx); pool == nil || err != nil {
						t.Errorf("DB of %q: got %v, %v", k, pool, err)
					}
				}
				for name, call := range calls {
					if wrong := hijacked(call(ctx)); wrong != "" {
						t.Errorf("%s: %s", name, wrong)
					}
				}
				if sqlreq.Begun(ctx) {
					t.Error("Begun is true")
				}
			})), "/")
			want := ""
			if used {
				want = "main Committed 1"
			}
			if rec.Events() != want || len(rec.Records()) != 0 {
				t.Errorf("got events %q, log %v; want %q and none", rec.Events(), rec.Records(), want)
			}
			sqlreqtest.Idle(t, db)
			sqlreqtest.Idle(t, other)
		})
	}
}

func TestG2DoAfterHijack(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	db.SetMaxOpenConns(1)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var rec sqlreqtest.Recorder
	rec.Watch(reg)
	hijackAsk(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Note(t, r.Context(), sqlreqtest.Main, "before")
		conn := hijack(t, w)
		defer conn.Close()
		for name, do := range map[string]func(context.Context, func(context.Context) error) error{"Do": reg.Do, "Atomic": reg.Atomic} {
			if err := do(r.Context(), func(ctx context.Context) error {
				sqlreqtest.Note(t, ctx, sqlreqtest.Main, "message")
				if !sqlreq.Begun(ctx) {
					t.Errorf("%s: Begun is false", name)
				}
				return nil
			}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if err := do(r.Context(), func(ctx context.Context) error {
				sqlreqtest.Note(t, ctx, sqlreqtest.Main, "refused")
				return sqlreqtest.ErrTest
			}); err != sqlreqtest.ErrTest {
				t.Errorf("%s: got %v, want the function's error", name, err)
			}
		}
		if notes := sqlreqtest.Notes(t, db); notes != "before message message" {
			t.Errorf("got the notes %q while the handler runs", notes)
		}
	})), "/")
	sqlreqtest.Idle(t, db)
}

// TestG2FailAfterHijackOnlyLogs: so does an error of the handler, and RollbackOnly.
func TestG2FailAfterHijackOnlyLogs(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var rec sqlreqtest.Recorder
	rec.Watch(reg)
	failed := 0
	reg.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { failed++ }
	got := hijackAsk(t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		rec.Hooks(t, r.Context(), sqlreqtest.Main, "")
		conn := hijack(t, w)
		defer conn.Close()
		err := errors.Join(
			sqlreq.Fail(r.Context(), sqlreq.Errorf(500, "first")),
			sqlreq.Fail(r.Context(), nil),
			sqlreq.Fail(r.Context(), sqlreq.Errorf(422, "second")),
			sqlreq.RollbackOnly(r.Context(), errors.New("third")))
		if err != nil {
			t.Error(err)
		}
		return errors.New("fourth")
	})), "/")
	if got != "" || failed != 0 || rec.String() != "ERROR sqlreq: request failed, DEBUG sqlreq: request failed, DEBUG sqlreq: request failed, ERROR sqlreq: request failed, commit" {
		t.Errorf("got %q, %d calls of the ErrorHandler, and %s", got, failed, rec.String())
	}
}

// TestG2PanicAfterHijack: it goes on, and nobody logs it twice.
func TestG2PanicAfterHijack(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	var rec sqlreqtest.Recorder
	rec.Watch(reg)
	var got any
	hijackAsk(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { got = recover() }()
		reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
			_ = hijack(t, w).Close()
			panic("boom")
		})).ServeHTTP(w, r)
	}), "/")
	if got != "boom" || rec.String() != "" {
		t.Errorf("got the panic %v and %q, want boom and no line", got, rec.String())
	}
}

// TestG2BeginUnderWayAtHijackIsGivenUp: nobody waits for it.
func TestG2BeginUnderWayAtHijackIsGivenUp(t *testing.T) {
	for name, beginAnyway := range map[string]bool{"BEGIN ends": false, "BEGIN succeeds all the same": true} {
		t.Run(name, func(t *testing.T) {
			begins, hooked := make(chan struct{}), make(chan struct{})
			d := &fakedb.DB{Begin: func(ctx context.Context) error {
				close(begins)
				<-ctx.Done()
				if beginAnyway {
					return nil
				}
				return ctx.Err()
			}}
			late := d.Open(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}, sqlreq.Binding{Key: "late", DB: late})
			hijackAsk(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				got := make(chan error, 1)
				// The hook runs in the Hijack, when what was open has been committed.
				if err := sqlreq.AfterCommit(r.Context(), func(context.Context) {
					go func() {
						_, err := sqlreq.Key("late").Tx(r.Context())
						got <- err
					}()
					<-begins
					close(hooked)
				}); err != nil {
					t.Error(err)
				}
				conn := hijack(t, w)
				defer conn.Close()
				<-hooked
				if wrong := hijacked(<-got); wrong != "" {
					t.Error(wrong)
				}
			})), "/")
			sqlreqtest.Idle(t, late)
			if n := d.Counts().Open; n != 0 {
				t.Errorf("%d transactions are open", n)
			}
		})
	}
}

// TestG2BegunAtHijackIsRolledBack: what another goroutine has begun since the commit.
func TestG2BegunAtHijackIsRolledBack(t *testing.T) {
	db, other := sqlreqtest.OpenDB(t), sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "other", DB: other})
	var rec sqlreqtest.Recorder
	rec.Watch(reg)
	hijackAsk(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		if err := sqlreq.AfterCommit(r.Context(), func(context.Context) {
			sqlreqtest.Exec(t, r.Context(), "other", sqlreqtest.InsertWork) // not with its own context
			rec.Hooks(t, r.Context(), "other", "")
		}); err != nil {
			t.Error(err)
		}
		conn := hijack(t, w)
		defer conn.Close()
		if got := rec.Events(); got != "main Committed 1, other RolledBack 1" || rec.Words() != "rollback" {
			t.Errorf("got events %q, hooks %q, before the handler returns", got, rec.Words())
		}
		sqlreqtest.Idle(t, other)
	})), "/")
	if sqlreqtest.Count(t, db, "work") != 1 || sqlreqtest.Count(t, other, "work") != 0 {
		t.Error("want one row in the first database, and none in the other")
	}
}

// TestG2MiddlewareInsideHijackIsOutermost: as of h2c.NewHandler, each request of a
// hijacked connection is one of its own.
func TestG2MiddlewareInsideHijackIsOutermost(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	inner := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if p := sqlreq.Prefix(r.Context()); p != "" {
			t.Errorf("got the prefix %q, want none: that of the connection is another request's", p)
		}
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		if r.URL.Path == "/bad" {
			return sqlreqtest.ErrTest
		}
		w.WriteHeader(201)
		return nil
	}))
	hijackAsk(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn := hijack(t, w)
		defer conn.Close()
		rows := 0
		for path, want := range map[string]int{"/add": 201, "/bad": 500, "/more": 201} {
			// A request of the protocol on the connection, with the context of the first.
			req := httptest.NewRequest("POST", path, nil).WithContext(r.Context())
			rec := httptest.NewRecorder()
			inner.ServeHTTP(rec, req)
			if want == 201 {
				rows++
			}
			if n := sqlreqtest.Count(t, db, "work"); rec.Code != want || n != rows {
				t.Errorf("%s: got %d and %d rows, want %d and %d", path, rec.Code, n, want, rows)
			}
		}
	})), "/sub/add")
	sqlreqtest.Idle(t, db)
}

// TestG2HijackWithNothingOpenAsksNoContext: a client that has shut down its sending
// side is still there.
func TestG2HijackWithNothingOpenAsksNoContext(t *testing.T) {
	for name, prepare := range map[string]func(context.Context) error{
		"nothing used":     func(context.Context) error { return nil },
		"a hook":           func(ctx context.Context) error { return sqlreq.AfterCommit(ctx, func(context.Context) {}) },
		"committed before": func(ctx context.Context) error { return errors.Join(insert(ctx), sqlreq.Commit(ctx)) },
		"still open":       insert,
	} {
		t.Run(name, func(t *testing.T) {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
			prepared := make(chan struct{})
			srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if err := prepare(r.Context()); err != nil {
					t.Error(err)
				}
				close(prepared)
				<-r.Context().Done()
				conn, _, err := http.NewResponseController(w).Hijack()
				if (err == nil) == (name == "still open") {
					t.Errorf("got %v", err)
				}
				if err == nil {
					_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
					conn.Close()
				}
			})))
			conn := wireDial(t, srv, nil)
			defer conn.Close()
			fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
			<-prepared
			_ = conn.(*net.TCPConn).CloseWrite()
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, _ := io.ReadAll(res.Body); name != "still open" && string(body) != "hi" {
				t.Errorf("got %s %q", res.Status, body)
			}
		})
	}
}

func insert(ctx context.Context) error {
	_, err := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
	return err
}

// TestG2HijackAfterRollbackOnly: what is open is rolled back, the connection is the
// program's.
func TestG2HijackAfterRollbackOnly(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	var rec sqlreqtest.Recorder
	rec.Watch(reg)
	got := hijackAsk(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		rec.Hooks(t, r.Context(), sqlreqtest.Main, "")
		if err := sqlreq.RollbackOnly(r.Context(), sqlreqtest.ErrTest); err != nil {
			t.Error(err)
		}
		conn := hijack(t, w)
		defer conn.Close()
		_, _ = io.WriteString(conn, "raw")
	})), "/")
	if got != "raw" || rec.String() != "main RolledBack 1, rollback, DEBUG sqlreq: request failed" || sqlreqtest.Count(t, db, "work") != 0 {
		t.Errorf("got %q, %s and %d rows", got, rec.String(), sqlreqtest.Count(t, db, "work"))
	}
}

// TestG2PrefixAfterHijack: it works, as DB does.
func TestG2PrefixAfterHijack(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	hijackAsk(t, reg.Mount("/app", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = hijack(t, w).Close()
		if p := sqlreq.Prefix(r.Context()); p != "/app" {
			t.Errorf("got %q, want /app", p)
		}
	})), (&url.URL{Path: "/app/x"}).String())
}

// TestG2HijackInRoute: the use that has asked the Route begins nothing either.
func TestG2HijackInRoute(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	var hijackNow func()
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Route: func(context.Context, *http.Request) (*sql.DB, error) {
		hijackNow()
		return db, nil
	}})
	hijackAsk(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hijackNow = func() { _ = hijack(t, w).Close() }
		if wrong := hijacked(insert(r.Context())); wrong != "" {
			t.Error(wrong)
		}
	})), "/")
	sqlreqtest.Idle(t, db)
}

// hijackWrapper has the method whatever is below, as the writers of many middlewares.
type hijackWrapper struct{ http.ResponseWriter }

func (w hijackWrapper) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	h, ok := w.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, errors.New("the writer below is no http.Hijacker")
	}
	return h.Hijack()
}

// TestG2HijackOverHTTP2CommitsNothing: it is impossible, also under a writer that has
// the method; what is open must not be committed, nor a status sent, to find that out.
func TestG2HijackOverHTTP2CommitsNothing(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	app := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		w.WriteHeader(http.StatusSwitchingProtocols)
		_, _, err := http.NewResponseController(w).Hijack()
		if !errors.Is(err, http.ErrNotSupported) {
			t.Errorf("got %v, want http.ErrNotSupported", err)
		}
		return err
	}))
	ask := wireHTTP2.start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		app.ServeHTTP(hijackWrapper{w}, r)
	}))
	if got := ask("GET", "/"); got.status != 500 || got.err != nil || len(got.early) > 0 {
		t.Errorf("got %v, want a 500", got)
	}
	if n := sqlreqtest.Count(t, db, "work"); n != 0 {
		t.Errorf("%d rows stayed of a request that failed", n)
	}
}

// The preface of a client that begins with HTTP/2 at once (RFC 9113, section 3.4) is handed
// out by net/http as a request of HTTP/2 on a connection of HTTP/1: what serves h2c hijacks it.
func TestG2HijackOfThePrefaceOfHTTP2(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Errorf("%s %s: %v", r.Method, r.Proto, err)
			return
		}
		io.WriteString(conn, "taken over")
		conn.Close()
	})))
	conn := sqlreqtest.Dial(t, srv)
	io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	if got, err := io.ReadAll(conn); string(got) != "taken over" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// A driver that panics when Hijack, or a Commit, ends the transaction leaves no hooks for the
// end of the request, also if COMMIT was refused before: nobody knows what they would be told.
func TestG2HijackAndADriverThatPanics(t *testing.T) {
	for name, inTest := range map[string]bool{"behind Guard's check": false, "in a test's transaction": true} {
		hijackAndADriverThatPanics(t, name+", Hijack", inTest, func(w http.ResponseWriter, _ *http.Request) {
			_, _, _ = http.NewResponseController(w).Hijack()
		})
		hijackAndADriverThatPanics(t, name+", Commit", inTest, func(_ http.ResponseWriter, r *http.Request) {
			_ = sqlreq.Commit(r.Context())
		})
	}
}

func hijackAndADriverThatPanics(t *testing.T, name string, inTest bool, end http.HandlerFunc) {
	t.Run(name, func(t *testing.T) {
		var ends bool
		a := &fakedb.DB{}
		a.Step = func(_ context.Context, query string) error {
			switch {
			case !ends:
			case strings.HasPrefix(query, "RELEASE"):
				return sqlreqtest.Conflict{}
			case strings.HasPrefix(query, "ROLLBACK"):
				panic("driver")
			}
			return nil
		}
		db := a.Open(t)
		b := sqlreq.Binding{DB: db, Guard: true}
		if inTest {
			tx, err := db.Begin()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { ends = false; _ = tx.Rollback() }()
			b = sqlreq.Binding{Tx: tx}
		}
		reg := sqlreqtest.NewRegistry(t, b)
		ran := ""
		srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := sqlreq.Tx(r.Context()); err != nil {
				t.Error(err)
			}
			_ = sqlreq.AfterCommit(r.Context(), func(context.Context) { ran += "AfterCommit " })
			_ = sqlreq.AfterRollback(r.Context(), func(context.Context) { ran += "AfterRollback " })
			defer func() {
				if v := recover(); v != "driver" {
					t.Errorf("the end panicked with %v, want the driver's panic", v)
				}
			}()
			ends = true
			end(w, r)
		})))
		if res, err := http.Get(srv.URL); err == nil {
			res.Body.Close()
		}
		srv.Close() // waits for the request
		if ran != "" {
			t.Errorf("ran %s", ran)
		}
	})
}
