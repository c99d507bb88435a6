// G4 No success by accident. A client that had gone before COMMIT was sent commits
// nothing that is still open, and gives the connection back to the pool clean and,
// where the driver lets us, alive. Once COMMIT is sent it is seen through: no
// cancellation can make a committed transaction look like a failed one.

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// TestG4ClientGone: a client that has left before COMMIT was sent.
func TestG4ClientGone(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	for name, commit := range map[string]bool{"at the end": false, "before an explicit Commit": true} {
		t.Run(name, func(t *testing.T) {
			entered, over := make(chan struct{}), make(chan struct{})
			h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				close(entered)
				<-r.Context().Done()
				if commit {
					if err := sqlreq.Commit(r.Context()); !errors.Is(err, context.Canceled) {
						t.Errorf("Commit: got %v, want context.Canceled", err)
					}
				}
				w.WriteHeader(201)
			}))
			srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(over)
				h.ServeHTTP(w, r)
			}))
			conn, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			<-entered
			conn.Close()
			<-over
			if n := sqlreqtest.Count(t, db, "work"); n != 0 {
				t.Errorf("got %d rows, want none", n)
			}
			sqlreqtest.Idle(t, db)
		})
	}
}

// A client that leaves, at each moment: the database, the event and the hooks
// tell the same, and the pool has all its connections.
func TestG4ClientLeaves(t *testing.T) {
	type moment struct {
		leave func() // ends the connection and waits until net/http has noticed
		r     *http.Request
		t     *testing.T
	}
	tests := map[string]struct {
		handler func(m *moment)
		set     func(m *moment, reg *sqlreq.Registry, faults *fakedb.DB)
		pool    bool // of one, in use by somebody else until the end
		events  string
		hooks   string
		rows    int
	}{
		"waiting for a connection": {
			pool: true,
			handler: func(m *moment) {
				go m.leave()
				if _, err := sqlreq.Tx(m.r.Context()); !errors.Is(err, context.Canceled) {
					m.t.Errorf("got %v, want that the context was cancelled", err)
				}
			},
			hooks: "rollback",
		},
		"during BEGIN": {
			set: func(m *moment, _ *sqlreq.Registry, faults *fakedb.DB) {
				faults.Begin = func(ctx context.Context) error {
					m.leave()
					return fakedb.UntilDone(ctx)
				}
			},
			handler: func(m *moment) { _, _ = sqlreq.Tx(m.r.Context()) },
			hooks:   "rollback",
		},
		"during a statement": {
			handler: func(m *moment) {
				sqlreqtest.Exec(m.t, m.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				_, err := sqlreqtest.Main.ExecContext(m.r.Context(), "INSERT INTO work (note) "+endless(m.leave))
				if err == nil {
					m.t.Error("the statement was not interrupted")
				}
			},
			events: "main RolledBack 1", hooks: "rollback",
		},
		"between statements": {
			handler: func(m *moment) {
				sqlreqtest.Exec(m.t, m.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				m.leave()
				if _, err := sqlreqtest.Main.ExecContext(m.r.Context(), sqlreqtest.InsertWork); !errors.Is(err, context.Canceled) {
					m.t.Errorf("got %v, want that the context was cancelled", err)
				}
			},
			events: "main RolledBack 1", hooks: "rollback",
		},
		"between statements, unnoticed by the handler": {
			handler: func(m *moment) {
				sqlreqtest.Exec(m.t, m.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				m.leave()
				sqlreqtest.Exec(m.t, context.WithoutCancel(m.r.Context()), sqlreqtest.Main, sqlreqtest.InsertWork)
			},
			events: "main RolledBack 1", hooks: "rollback",
		},
		"before an explicit Commit": {
			handler: func(m *moment) {
				sqlreqtest.Exec(m.t, m.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				m.leave()
				if err := sqlreq.Commit(context.WithoutCancel(m.r.Context())); err == nil {
					m.t.Error("Commit succeeded")
				}
			},
			events: "main RolledBack 1", hooks: "rollback",
		},
		"in a Savepoint": {
			handler: func(m *moment) {
				_ = sqlreq.Savepoint(m.r.Context(), func(ctx context.Context) error {
					sqlreqtest.Exec(m.t, ctx, sqlreqtest.Main, sqlreqtest.InsertWork)
					m.leave()
					return ctx.Err()
				})
			},
			events: "main RolledBack 1", hooks: "rollback",
		},
		"after the handler": {
			handler: func(m *moment) { sqlreqtest.Exec(m.t, m.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork) },
			set: func(m *moment, reg *sqlreq.Registry, _ *fakedb.DB) {
				reg.CommitIf = func(int, http.Header) bool { m.leave(); return true }
			},
			events: "main RolledBack 1", hooks: "rollback",
		},
		"before COMMIT runs": {
			handler: func(m *moment) { sqlreqtest.Exec(m.t, m.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork) },
			set: func(m *moment, _ *sqlreq.Registry, faults *fakedb.DB) {
				faults.Commit = func() error { m.leave(); return nil }
			},
			events: "main Committed 1", hooks: "commit", rows: 1,
		},
		"after COMMIT ran": {
			handler: func(m *moment) { sqlreqtest.Exec(m.t, m.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork) },
			set: func(m *moment, _ *sqlreq.Registry, faults *fakedb.DB) {
				faults.Committed = func() error { m.leave(); return nil }
			},
			events: "main Committed 1", hooks: "commit", rows: 1,
		},
		"while an explicit COMMIT runs": {
			handler: func(m *moment) {
				sqlreqtest.Exec(m.t, m.r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				if err := sqlreq.Commit(m.r.Context()); err != nil {
					m.t.Errorf("the Commit that was sent: %v", err)
				}
			},
			set: func(m *moment, _ *sqlreq.Registry, faults *fakedb.DB) {
				faults.Commit = func() error { m.leave(); return nil }
			},
			events: "main Committed 1", hooks: "commit", rows: 1,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			faults := &fakedb.DB{}
			db := sqlreqtest.OpenFaulty(t, faults)
			db.SetMaxOpenConns(1)
			if err := db.Ping(); err != nil {
				t.Fatal(err)
			}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			reg.Retry = sqlreqtest.Retries(5)
			var events sqlreqtest.Recorder
			var log sqlreqtest.Recorder
			reg.Observe = events.Observe
			m := &moment{t: t}
			if tt.set != nil {
				tt.set(m, reg, faults)
			}
			if tt.pool {
				conn, err := db.Conn(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				defer func() { db.SetMaxOpenConns(2) }()
			}
			served := make(chan struct{})
			connected := make(chan net.Conn, 1)
			inner := reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				m.r = r
				log.Hooks(t, r.Context(), sqlreqtest.Main, "")
				tt.handler(m)
			}))
			srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(served)
				m.leave = func() {
					_ = (<-connected).Close()
					<-r.Context().Done()
				}
				inner.ServeHTTP(w, r)
			}))
			conn, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			connected <- conn
			if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			<-served
			if events.Events() != tt.events || log.Words() != tt.hooks {
				t.Errorf("got events %q, hooks %q; want %q, %q", events.Events(), log.Words(), tt.events, tt.hooks)
			}
			stats := db.Stats()
			wantInUse := 0
			if tt.pool {
				wantInUse = 1
				db.SetMaxOpenConns(2)
			}
			if stats.InUse != wantInUse || stats.OpenConnections != 1 {
				t.Errorf("%d connections in use of %d, want %d of the one", stats.InUse, stats.OpenConnections, wantInUse)
			}
			if n := sqlreqtest.Count(t, db, "work"); n != tt.rows {
				t.Errorf("%d rows, want %d", n, tt.rows)
			}
		})
	}
}

// TestG4NothingOpenAndTheClientLeaves: a stream whose work is committed ends like any
// other when its client leaves, also if it asked for a transaction once more; a
// handler that gave up waiting and answered nothing does not end in an empty 200.
func TestG4NothingOpenAndTheClientLeaves(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	db.SetMaxOpenConns(1)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	for _, test := range []struct {
		name   string
		stream bool
		want   int
	}{{"streamed", true, 200}, {"gave up", false, 503}} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if test.stream {
					_, _ = io.WriteString(w, "event")
					if err := http.NewResponseController(w).Flush(); err != nil {
						t.Error(err)
					}
				}
				cancel()
				if _, err := sqlreq.Tx(r.Context()); err == nil {
					t.Error("got a transaction, want an error")
				}
			}))
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx))
			if rec.Code != test.want {
				t.Errorf("got %d, want %d", rec.Code, test.want)
			}
		})
	}
}

// TestG4Deadline: a context with a deadline set outside has ended before COMMIT;
// its client is still there.
func TestG4Deadline(t *testing.T) {
	for name, options := range map[string]*sql.TxOptions{"BEGIN": nil, "BEGIN READ ONLY": sqlreqtest.ReadOnly} {
		f := &fakedb.DB{}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t), TxOptions: sqlreqtest.Options(options)})
		srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, expire := sqlreqtest.Deadline(r.Context())
			reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
				expire()
				w.WriteHeader(201)
			})).ServeHTTP(w, r.WithContext(ctx))
		}))
		res, err := http.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 503 || res.Header.Get("Retry-After") != "1" {
			t.Errorf("%s: got %d %v, want 503 with Retry-After: 1", name, res.StatusCode, res.Header)
		}
		f.Check(t, name, "INSERT", "ROLLBACK")
	}
}

// TestG4DeadlineAndNothingOpen: what is committed, or was never begun, needs no error.
func TestG4DeadlineAndNothingOpen(t *testing.T) {
	f := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
	for _, use := range []bool{false, true} {
		ctx, expire := sqlreqtest.Deadline(context.Background())
		o := sqlreqtest.Ask(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if use {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
				if err := sqlreq.Commit(r.Context()); err != nil {
					t.Error(err)
				}
			}
			expire()
			w.WriteHeader(201)
		})), httptest.NewRequest("POST", "/", nil).WithContext(ctx))
		if o.Code != 201 {
			t.Errorf("got %d, want 201", o.Code)
		}
	}
	f.Check(t, "BEGIN", "INSERT", "COMMIT")
}

// TestG4DoContextEnds: a context that ends before COMMIT rolls back; a later one changes nothing.
func TestG4DoContextEnds(t *testing.T) {
	f := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
	ctx, cancel := context.WithCancel(t.Context())
	err := reg.Do(ctx, func(ctx context.Context) error {
		sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "INSERT")
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	f.Check(t, "BEGIN", "INSERT", "ROLLBACK")
}

// TestG4CommitSeenThrough: no cancellation makes a committed transaction look
// like a failed one.
func TestG4CommitSeenThrough(t *testing.T) {
	for name, explicit := range map[string]bool{"at the end": false, "explicit": true} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			f := &fakedb.DB{Step: func(ctx context.Context, stmt string) error {
				if stmt == "COMMIT" {
					cancel()
				}
				return ctx.Err()
			}}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
			hooks := 0
			o := sqlreqtest.Ask(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
				if err := sqlreq.AfterCommit(r.Context(), func(context.Context) { hooks++ }); err != nil {
					t.Error(err)
				}
				if explicit {
					if err := sqlreq.Commit(r.Context()); err != nil {
						t.Errorf("Commit: %v", err)
					}
				}
				w.WriteHeader(201)
			})), httptest.NewRequest("POST", "/", nil).WithContext(ctx))
			if o.Code != 201 || hooks != 1 {
				t.Errorf("got %d and %d hooks, want 201 and 1", o.Code, hooks)
			}
			f.Check(t, "BEGIN", "INSERT", "COMMIT")
		})
	}
}

// A driver that keeps the context of BEGIN (pgx does) finds it alive at COMMIT,
// though the client goes meanwhile.
func TestG4ContextOfBeginStaysAlive(t *testing.T) {
	d := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
	ctx, cancel := context.WithCancelCause(context.Background())
	var kept, derived context.Context
	d.Begin = func(wait context.Context) error {
		kept = wait
		var stop context.CancelFunc
		derived, stop = context.WithCancel(wait)
		t.Cleanup(stop)
		return nil
	}
	d.Commit = func() error {
		cancel(sqlreqtest.ErrTest)
		for name, c := range map[string]context.Context{"kept": kept, "derived": derived} {
			if c.Err() != nil || context.Cause(c) != nil {
				t.Errorf("%s: Err %v, Cause %v", name, c.Err(), context.Cause(c))
			}
		}
		return kept.Err()
	}
	rec := httptest.NewRecorder()
	reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := sqlreq.Tx(r.Context()); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusCreated)
	})).ServeHTTP(rec, httptest.NewRequest("POST", "/", nil).WithContext(ctx))
	if rec.Code != http.StatusCreated {
		t.Errorf("got %d, want 201", rec.Code)
	}
	d.CheckLog(t, "BEGIN", "COMMIT")
}

// TestG4BeginWaitEnds: the wait for a connection, and for BEGIN, ends with the
// caller's context and with the request's.
func TestG4BeginWaitEnds(t *testing.T) {
	tests := []struct {
		name       string
		request    bool // the request's context ends, not only the caller's
		inBegin    bool // BEGIN waits, not the pool
		code       int
		retryAfter string
	}{
		{"caller, pool", false, false, 503, "1"},
		{"request, pool", true, false, 503, "1"},
		{"caller, BEGIN", false, true, 503, "1"},
		{"request, BEGIN", true, true, 503, "1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			beginning := make(chan struct{})
			f := &fakedb.DB{Step: func(ctx context.Context, stmt string) error {
				if stmt == "BEGIN" {
					close(beginning)
					<-ctx.Done()
					return errors.New("interrupted") // drivers have errors of their own for it
				}
				return nil
			}}
			db := f.Open(t)
			db.SetMaxOpenConns(1)
			if !test.inBegin {
				conn, err := db.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
			}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			root, expireRoot := sqlreqtest.Deadline(context.Background())
			o := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				ctx, expire := r.Context(), expireRoot
				if !test.request {
					ctx, expire = sqlreqtest.Deadline(ctx)
				}
				go func() {
					if test.inBegin {
						<-beginning
					} else {
						sqlreqtest.Pool(db, 1)
					}
					expire()
				}()
				_, err := sqlreq.Tx(ctx)
				if err == nil {
					t.Error("Tx: got nil, want an error")
				}
				return err
			})), httptest.NewRequest("POST", "/", nil).WithContext(root))
			if o.Code != test.code || o.Header().Get("Retry-After") != test.retryAfter {
				t.Errorf("got %d %v, want %d with Retry-After %q", o.Code, o.Header(), test.code, test.retryAfter)
			}
		})
	}
}
