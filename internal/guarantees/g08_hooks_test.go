// G8 Hooks tell the truth. AfterCommit functions run exactly once, after a COMMIT that
// succeeded, before the response is released, in order; AfterRollback ones after a
// rollback. With no transaction begun, the end of the request decides as it would
// have for one; a read-only transaction that ended well counts as committed. One that
// panics is logged with its stack, the others still run and the response stays as it
// is. Those registered inside a Savepoint that is rolled back are dropped; those
// inside one that is released belong to the level above. After a COMMIT of unknown
// outcome neither kind runs. AfterRollback runs for each failed attempt, before the
// backoff. A COMMIT that the server answers with ROLLBACK is a failure.

package guarantees

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// releasedWriter tells whether anything was released.
type releasedWriter struct {
	*httptest.ResponseRecorder
	released bool
}

func (w *releasedWriter) WriteHeader(status int) {
	w.released = true
	w.ResponseRecorder.WriteHeader(status)
}

func (w *releasedWriter) Write(p []byte) (int, error) {
	w.released = true
	return w.ResponseRecorder.Write(p)
}

func TestG8HooksRunInOrderBeforeTheResponse(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "other", DB: sqlreqtest.OpenDB(t)})
	w := &releasedWriter{ResponseRecorder: httptest.NewRecorder()}
	var log sqlreqtest.Recorder
	h := reg.Middleware(http.HandlerFunc(func(hw http.ResponseWriter, r *http.Request) {
		hw.WriteHeader(201)
		_, _ = io.WriteString(hw, "done")
		for i := range 6 {
			k := []sqlreq.Key{sqlreqtest.Main, "other"}[i%2]
			sqlreqtest.Exec(t, r.Context(), k, sqlreqtest.InsertWork)
			if err := k.AfterCommit(r.Context(), func(context.Context) {
				if w.released {
					t.Error("the response was released before the hook")
				}
				if n := sqlreqtest.Count(t, db, "work"); n != 3 {
					t.Errorf("another connection sees %d rows in the hook, want 3", n)
				}
				log.Add(strconv.Itoa(i))
			}); err != nil {
				t.Error(err)
			}
		}
	}))
	h.ServeHTTP(w, httptest.NewRequest("POST", "/", nil))
	if !w.released || log.Words() != "0 1 2 3 4 5" || w.Code != 201 || w.Body.String() != "done" {
		t.Errorf("got hooks %q, then %d %q", log.Words(), w.Code, w.Body)
	}
}

func TestG8WhichHooksRun(t *testing.T) {
	gone := func(r *http.Request) { r.Context().Value(cancelKey{}).(context.CancelFunc)() }
	tests := map[string]struct {
		want    string
		faults  *fakedb.DB
		binding sqlreq.Binding
		handler func(t *testing.T, log *sqlreqtest.Recorder, w http.ResponseWriter, r *http.Request) error
	}{
		"commit": {want: "commit", handler: func(t *testing.T, _ *sqlreqtest.Recorder, _ http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return nil
		}},
		"status": {want: "rollback", handler: func(t *testing.T, _ *sqlreqtest.Recorder, w http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			w.WriteHeader(400)
			return nil
		}},
		"error": {want: "rollback", handler: func(t *testing.T, _ *sqlreqtest.Recorder, _ http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return sqlreqtest.ErrTest
		}},
		"panic": {want: "rollback", handler: func(t *testing.T, _ *sqlreqtest.Recorder, _ http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			panic(http.ErrAbortHandler)
		}},
		"client gone": {want: "rollback", handler: func(t *testing.T, _ *sqlreqtest.Recorder, _ http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			gone(r)
			return nil
		}},
		"failed COMMIT": {want: "rollback", handler: func(t *testing.T, _ *sqlreqtest.Recorder, _ http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.BreakCommit)
			return nil
		}},
		"failed explicit Commit": {want: "rollback", handler: func(t *testing.T, _ *sqlreqtest.Recorder, _ http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.BreakCommit)
			_ = sqlreq.Commit(r.Context())
			return nil
		}},
		"COMMIT of unknown outcome": {want: "", faults: &fakedb.DB{Committed: func() error { return sqlreqtest.ErrTest }},
			handler: func(t *testing.T, _ *sqlreqtest.Recorder, _ http.ResponseWriter, r *http.Request) error {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				return nil
			}},
		"explicit Commit": {want: "commit then commit2", handler: func(t *testing.T, log *sqlreqtest.Recorder, _ http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			if err := sqlreq.Commit(r.Context()); err != nil {
				t.Error(err)
			}
			log.Add("then")
			log.Hooks(t, r.Context(), sqlreqtest.Main, "2")
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return nil
		}},
		"explicit Commit, then an error": {want: "commit then rollback2", handler: func(t *testing.T, log *sqlreqtest.Recorder, _ http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			_ = sqlreq.Commit(r.Context())
			log.Add("then")
			log.Hooks(t, r.Context(), sqlreqtest.Main, "2")
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return sqlreqtest.ErrTest
		}},
		"explicit Rollback": {want: "rollback then commit2", handler: func(t *testing.T, log *sqlreqtest.Recorder, _ http.ResponseWriter, r *http.Request) error {
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			if err := sqlreq.Rollback(r.Context()); err != nil {
				t.Error(err)
			}
			log.Add("then")
			log.Hooks(t, r.Context(), sqlreqtest.Main, "2")
			sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
			return nil
		}},
		"Commit and Rollback with nothing open": {want: "then commit", handler: func(t *testing.T, log *sqlreqtest.Recorder, _ http.ResponseWriter, r *http.Request) error {
			if err := errors.Join(sqlreq.Commit(r.Context()), sqlreq.Rollback(r.Context())); err != nil {
				t.Error(err)
			}
			log.Add("then")
			return nil
		}},
		"nothing begun": {want: "commit", handler: func(*testing.T, *sqlreqtest.Recorder, http.ResponseWriter, *http.Request) error { return nil }},
		"nothing begun, status": {want: "rollback", handler: func(_ *testing.T, _ *sqlreqtest.Recorder, w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(404)
			return nil
		}},
		"nothing begun, error": {want: "rollback", handler: func(*testing.T, *sqlreqtest.Recorder, http.ResponseWriter, *http.Request) error {
			return sqlreqtest.ErrTest
		}},
		"nothing begun, Fail": {want: "rollback", handler: func(_ *testing.T, _ *sqlreqtest.Recorder, _ http.ResponseWriter, r *http.Request) error {
			return sqlreq.Fail(r.Context(), sqlreqtest.ErrTest)
		}},
		"nothing begun, client gone": {want: "rollback", handler: func(_ *testing.T, _ *sqlreqtest.Recorder, _ http.ResponseWriter, r *http.Request) error {
			gone(r)
			return nil
		}},
		"nothing begun, panic": {want: "rollback", handler: func(*testing.T, *sqlreqtest.Recorder, http.ResponseWriter, *http.Request) error {
			panic(http.ErrAbortHandler)
		}},
		"read-only": {want: "commit", handler: func(_ *testing.T, _ *sqlreqtest.Recorder, _ http.ResponseWriter, r *http.Request) error {
			_, err := sqlreq.BeginTx(r.Context(), &sql.TxOptions{ReadOnly: true})
			return err
		}},
		"read-only, serializable": {want: "commit", handler: func(_ *testing.T, _ *sqlreqtest.Recorder, _ http.ResponseWriter, r *http.Request) error {
			_, err := sqlreq.BeginTx(r.Context(), &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelSerializable})
			return err
		}},
		"read-only, status": {want: "rollback", handler: func(_ *testing.T, _ *sqlreqtest.Recorder, w http.ResponseWriter, r *http.Request) error {
			_, err := sqlreq.BeginTx(r.Context(), &sql.TxOptions{ReadOnly: true})
			w.WriteHeader(404)
			return err
		}},
		"read-only, explicit Commit": {want: "commit then", handler: func(_ *testing.T, log *sqlreqtest.Recorder, _ http.ResponseWriter, r *http.Request) error {
			_, err := sqlreq.BeginTx(r.Context(), &sql.TxOptions{ReadOnly: true})
			err = errors.Join(err, sqlreq.Commit(r.Context()))
			log.Add("then")
			return err
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenFaulty(t, tt.faults)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			var log sqlreqtest.Recorder
			h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				log.Hooks(t, r.Context(), sqlreqtest.Main, "")
				return tt.handler(t, &log, w, r)
			}))
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			ctx = context.WithValue(ctx, cancelKey{}, cancel)
			func() {
				defer func() { _ = recover() }()
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "POST", "/", nil))
			}()
			if log.Words() != tt.want {
				t.Errorf("got %q, want %q", log.Words(), tt.want)
			}
			sqlreqtest.Idle(t, db)
		})
	}
}

// cancelKey finds the function that ends the request's context.
type cancelKey struct{}

func TestG8HooksFollowTheirDatabase(t *testing.T) {
	for _, failing := range []sqlreq.Key{"a", "b", "c"} {
		t.Run(string(failing), func(t *testing.T) {
			keys := []sqlreq.Key{"a", "b", "c"}
			dbs := make(map[sqlreq.Key]*sql.DB)
			var bindings []sqlreq.Binding
			for _, k := range keys {
				dbs[k] = sqlreqtest.OpenDB(t)
				bindings = append(bindings, sqlreq.Binding{Key: k, DB: dbs[k]})
			}
			bindings = append(bindings, sqlreq.Binding{Key: "alias", DB: dbs["a"]})
			reg := sqlreqtest.NewRegistry(t, bindings...)
			var failure *sqlreq.CommitError
			reg.ErrorHandler = func(_ http.ResponseWriter, _ *http.Request, err error) { errors.As(err, &failure) }
			var log sqlreqtest.Recorder
			rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				for _, k := range keys {
					sqlreqtest.Exec(t, r.Context(), k, sqlreqtest.InsertWork)
					log.Hooks(t, r.Context(), k, string(k))
				}
				log.Hooks(t, r.Context(), "alias", "alias")
				sqlreqtest.Exec(t, r.Context(), failing, sqlreqtest.BreakCommit)
			})))
			var want []string
			var committed []sqlreq.Key
			for i, k := range keys {
				if i < slices.Index(keys, failing) {
					want, committed = append(want, "commit"+string(k)), append(committed, k)
				} else {
					want = append(want, "rollback"+string(k))
				}
				rows := sqlreqtest.Count(t, dbs[k], "work")
				if wantRows := len(committed) - i; rows != max(0, wantRows) {
					t.Errorf("key %s: %d rows", k, rows)
				}
			}
			want = append(want, strings.TrimSuffix(want[0], "a")+"alias")
			if log.Words() != strings.Join(want, " ") {
				t.Errorf("got hooks %q, want %q", log.Words(), want)
			}
			if rec.Code != 500 || failure == nil || failure.Key != failing || !slices.Equal(failure.Committed, committed) || failure.Ambiguous {
				t.Errorf("got %d and %+v, want key %q and committed %q", rec.Code, failure, failing, committed)
			}
		})
	}
}

func TestG8HooksRollUpOneLevelAtATime(t *testing.T) {
	tests := map[string]struct {
		one, two, request error
		want              string
	}{
		"released":                      {nil, nil, nil, "commit0 commit1 commit2"},
		"inner rolled back":             {nil, sqlreqtest.ErrTest, nil, "commit0 commit1"},
		"released into one rolled back": {sqlreqtest.ErrTest, nil, nil, "commit0"},
		"both rolled back":              {sqlreqtest.ErrTest, sqlreqtest.ErrTest, nil, "commit0"},
		"released, request fails":       {nil, nil, sqlreqtest.ErrTest, "rollback0 rollback1 rollback2"},
		"rolled back, request fails":    {nil, sqlreqtest.ErrTest, sqlreqtest.ErrTest, "rollback0 rollback1"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
			var log sqlreqtest.Recorder
			sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				log.Hooks(t, r.Context(), sqlreqtest.Main, "0")
				_ = sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
					log.Hooks(t, ctx, sqlreqtest.Main, "1")
					_ = sqlreq.Savepoint(ctx, func(ctx context.Context) error {
						log.Hooks(t, ctx, sqlreqtest.Main, "2")
						return tt.two
					})
					return tt.one
				})
				return tt.request
			})))
			if log.Words() != tt.want {
				t.Errorf("got %q, want %q", log.Words(), tt.want)
			}
		})
	}
}

func TestG8HookPanics(t *testing.T) {
	for _, when := range []string{"at the end", "explicit"} {
		t.Run(when, func(t *testing.T) {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
			var out bytes.Buffer
			reg.Logger = slog.New(slog.NewTextHandler(&out, nil))
			var log sqlreqtest.Recorder
			rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				_ = sqlreq.AfterCommit(r.Context(), panickingHook)
				log.Hooks(t, r.Context(), sqlreqtest.Main, "")
				if when == "explicit" {
					if err := sqlreq.Commit(r.Context()); err != nil {
						t.Error(err)
					}
				}
				w.WriteHeader(201)
				_, _ = io.WriteString(w, "created")
			})))
			if rec.Code != 201 || rec.Body.String() != "created" || log.Words() != "commit" {
				t.Errorf("got %d %q, hooks %q", rec.Code, rec.Body, log.Words())
			}
			for _, part := range []string{"panic=boom", "panickingHook", "method=POST", "path=/path"} {
				if !strings.Contains(out.String(), part) {
					t.Errorf("the log has no %s: %s", part, &out)
				}
			}
		})
	}
}

func panickingHook(context.Context) { panic("boom") }

func TestG8ContextOfAHook(t *testing.T) {
	type valueKey struct{}
	for _, when := range []string{"at the end", "explicit Commit", "explicit Rollback"} {
		t.Run(when, func(t *testing.T) {
			db, audit := sqlreqtest.OpenDB(t), sqlreqtest.OpenDB(t)
			db.SetMaxOpenConns(1) // the connection is back when hooks run
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "audit", DB: audit})
			ran := false
			hook := func(ctx context.Context) {
				ran = true
				if ctx.Value(valueKey{}) != "value" || ctx.Err() != nil || ctx.Done() != nil {
					t.Errorf("got value %v, error %v, done %v", ctx.Value(valueKey{}), ctx.Err(), ctx.Done())
				}
				sqlreqtest.Finished(t, ctx)
				if err := reg.Do(ctx, func(ctx context.Context) error {
					_, err := sqlreq.Key("audit").ExecContext(ctx, sqlreqtest.InsertWork)
					_, inMain := sqlreqtest.Main.ExecContext(ctx, sqlreqtest.InsertWork)
					return errors.Join(err, inMain)
				}); err != nil {
					t.Errorf("Do in a hook: %v", err)
				}
			}
			rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				ctx, cancel := context.WithCancel(context.WithValue(r.Context(), valueKey{}, "value"))
				register := sqlreq.AfterCommit
				if when == "explicit Rollback" {
					register = sqlreq.AfterRollback
				}
				if err := register(ctx, hook); err != nil {
					t.Error(err)
				}
				cancel()
				switch when {
				case "explicit Commit":
					_ = sqlreq.Commit(r.Context())
				case "explicit Rollback":
					_ = sqlreq.Rollback(r.Context())
				}
			})))
			if n := sqlreqtest.Count(t, audit, "work"); rec.Code != 200 || !ran || n != 1 {
				t.Errorf("got %d, hook ran: %t, %d rows of Do", rec.Code, ran, n)
			}
		})
	}
}

func TestG8AfterRollbackRunsBeforeTheBackoff(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	var log sqlreqtest.Recorder
	reg.Retry = sqlreq.Retry{Attempts: 3, Within: time.Hour, Backoff: func(n int) time.Duration {
		log.Add("backoff" + strconv.Itoa(n))
		return 0
	}}
	run := 0
	rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		run++
		log.Hooks(t, r.Context(), sqlreqtest.Main, strconv.Itoa(run))
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		if run < 3 {
			return sqlreqtest.Conflict{}
		}
		return nil
	})))
	if want := "rollback1 backoff1 rollback2 backoff2 commit3"; rec.Code != 200 || log.Words() != want {
		t.Errorf("got %d, %q, want %q", rec.Code, log.Words(), want)
	}
}

// A transaction that begins while the hooks of the one before run is none of their business.
func TestG8HooksRunThoughATransactionBegins(t *testing.T) {
	ends := map[string]struct {
		end  func(ctx context.Context, w http.ResponseWriter) error
		want string
	}{
		"Commit":   {func(ctx context.Context, _ http.ResponseWriter) error { return sqlreq.Commit(ctx) }, "commit1 commit2"},
		"Rollback": {func(ctx context.Context, _ http.ResponseWriter) error { return sqlreq.Rollback(ctx) }, "rollback1 rollback2"},
		"Hijack": {func(_ context.Context, w http.ResponseWriter) error {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = conn.Close()
			}
			return err
		}, "commit1 commit2"},
	}
	for name, tt := range ends {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			var log sqlreqtest.Recorder
			served := make(chan struct{})
			h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				log.Hooks(t, r.Context(), sqlreqtest.Main, "1")
				begin := func(context.Context) {
					begun := make(chan struct{})
					go func() {
						defer close(begun)
						sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
					}()
					<-begun
				}
				if err := errors.Join(sqlreq.AfterCommit(r.Context(), begin), sqlreq.AfterRollback(r.Context(), begin)); err != nil {
					t.Error(err)
				}
				log.Hooks(t, r.Context(), sqlreqtest.Main, "2")
				if err := tt.end(r.Context(), w); err != nil {
					t.Error(err)
				}
			}))
			srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(served)
				h.ServeHTTP(w, r)
			}))
			_, _, _ = sqlreqtest.Get(t, srv.URL)
			<-served
			if log.Words() != tt.want {
				t.Errorf("got %q, want %q", log.Words(), tt.want)
			}
		})
	}
}

// A hook that was accepted runs once, however close to the end it was registered.
func TestG8HooksRegisteredAtTheEnd(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	h := reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		ran, registered := new(sqlreqtest.Recorder), make(chan error, 1)
		t.Cleanup(func() {
			want := "x"
			if err := <-registered; err != nil {
				want = ""
				if !errors.Is(err, sqlreq.ErrFinished) {
					t.Errorf("got %v", err)
				}
			}
			if ran.Words() != want {
				t.Errorf("ran %q, want %q", ran, want)
			}
		})
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
		go func() { registered <- sqlreq.AfterCommit(r.Context(), func(context.Context) { ran.Add("x") }) }()
		runtime.Gosched()
	}))
	for range 100 {
		sqlreqtest.Do(h)
	}
}

func TestG8HooksOfADoFollowIt(t *testing.T) {
	for _, fails := range []string{"request", "Do"} {
		t.Run(fails, func(t *testing.T) {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
			var log sqlreqtest.Recorder
			sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				log.Hooks(t, r.Context(), sqlreqtest.Main, "request")
				_ = reg.Do(r.Context(), func(ctx context.Context) error {
					sqlreqtest.Exec(t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
					log.Hooks(t, ctx, sqlreqtest.Main, "do")
					if fails == "Do" {
						return sqlreqtest.ErrTest
					}
					return nil
				})
				if fails == "request" {
					return sqlreqtest.ErrTest
				}
				return nil
			})))
			want := map[string]string{"request": "commitdo rollbackrequest", "Do": "rollbackdo commitrequest"}[fails]
			if log.Words() != want {
				t.Errorf("got %q, want %q", log.Words(), want)
			}
		})
	}
}

// Which database the hook's key has is known only when its Route was asked.
func TestG8HookOfAKeyWithARouteGoesWithItsSavepoint(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "routed", Route: func(context.Context, *http.Request) (*sql.DB, error) {
		return db, nil
	}})
	var log sqlreqtest.Recorder
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		log.Hooks(t, r.Context(), "routed", "outside")
		err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
			log.Hooks(t, ctx, "routed", "inside")
			sqlreqtest.Exec(t, ctx, "routed", sqlreqtest.InsertWork)
			return sqlreqtest.ErrTest
		})
		if !errors.Is(err, sqlreqtest.ErrTest) {
			t.Error(err)
		}
	})))
	if n := sqlreqtest.Count(t, db, "work"); rec.Code != 200 || n != 0 || log.Words() != "commitoutside" {
		t.Errorf("got %d, %d rows, hooks %q; want 200, none, and only the hook outside", rec.Code, n, log.Words())
	}
}

// The race detector is the judge of this one.
func TestG8RouteUnderWayAtTheEnd(t *testing.T) {
	asked, goOn, answering := make(chan struct{}), make(chan struct{}), make(chan struct{})
	routed := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}, sqlreq.Binding{Key: "routed", Route: func(context.Context, *http.Request) (*sql.DB, error) {
		close(asked)
		<-goOn
		close(answering)
		return routed, nil
	}})
	var log sqlreqtest.Recorder
	got := make(chan error, 1)
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		err := sqlreq.AfterCommit(r.Context(), func(context.Context) {
			close(goOn)
			<-answering
			for range 1000 { // a channel would order what must be safe without an order
				runtime.Gosched()
			}
		})
		if err != nil {
			t.Error(err)
		}
		log.Hooks(t, r.Context(), "routed", "")
		go func() {
			_, err := sqlreq.Key("routed").Tx(context.WithoutCancel(r.Context()))
			got <- err
		}()
		<-asked
	})))
	if err := <-got; !errors.Is(err, sqlreq.ErrFinished) {
		t.Errorf("got %v, want ErrFinished", err)
	}
	if rec.Code != 200 || log.Words() != "commit" {
		t.Errorf("got %d, hooks %q", rec.Code, log.Words())
	}
	sqlreqtest.Idle(t, routed)
}
