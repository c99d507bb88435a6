package sqlreqpgx_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sqlreq/sqlreq"
	sqlreqpgx "github.com/sqlreq/sqlreq/adapters/pgx"
)

// waits reports whether a statement of the schema waits inside of the trigger.
func (s *site) sleeping() bool {
	return s.number("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()") > 0
}

// A context that ends during each kind of call, and is swallowed: a 500, nothing there,
// and the outcome is known. The context may be the program's own, or the request's.
func TestContextEndsDuringCall(t *testing.T) {
	s := newSite(t)
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			before, id := fresh(), fresh()
			a := s.want(500, false, []int{before, id}, func(_ http.ResponseWriter, r *http.Request) error {
				if err := insert(r.Context(), key, kind, before, "text"); err != nil {
					return err
				}
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				go func() {
					eventually(t, "the statement sleeps", s.sleeping)
					cancel()
				}()
				if err := insert(ctx, key, kind, id, "sleep"); !errors.Is(err, context.Canceled) {
					t.Errorf("got %v, want a cancelled context", err)
				}
				return nil // swallowed
			})
			if a.ambiguous() || a.last().Outcome != sqlreq.RolledBack {
				t.Errorf("got %v, want a rollback", a.events)
			}
			eventually(t, "the statement has ended", func() bool { return !s.sleeping() })
		})
		t.Run(kind+"/client gone", func(t *testing.T) {
			id := fresh()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			over := make(chan struct{})
			a := s.requestWith(ctx, func(_ http.ResponseWriter, r *http.Request) error {
				defer close(over)
				go func() {
					eventually(t, "the statement sleeps", s.sleeping)
					cancel()
				}()
				_ = insert(r.Context(), key, kind, id, "sleep")
				return nil
			})
			<-over
			eventually(t, "the connections given back", func() bool { return s.pool.Stat().AcquiredConns() == 0 })
			if a.status != 0 || s.stored(id) {
				t.Errorf("got %d, stored %v", a.status, s.stored(id))
			}
		})
	}
}

// A context that ends while rows are read, or left open, and is swallowed.
func TestContextEndsWhileOpen(t *testing.T) {
	s := newSite(t)
	for name, end := range map[string]func(pgx.Rows, context.CancelFunc) error{
		"read": func(rows pgx.Rows, cancel context.CancelFunc) error {
			cancel()
			for rows.Next() {
			}
			return rows.Err()
		},
		"left open": func(_ pgx.Rows, cancel context.CancelFunc) error { cancel(); return context.Canceled },
		"closed":    func(rows pgx.Rows, cancel context.CancelFunc) error { cancel(); rows.Close(); return rows.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			id := fresh()
			a := s.want(500, false, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
				if err := insert(r.Context(), key, "Exec", id, "text"); err != nil {
					return err
				}
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				rows, err := key.Query(ctx, "SELECT repeat('x', 1000), CASE g WHEN 100000 THEN pg_sleep(600)::text END FROM generate_series(1, 100000) g")
				if err != nil {
					return err
				}
				if !rows.Next() {
					return fmt.Errorf("no row: %w", rows.Err())
				}
				if err := end(rows, cancel); !errors.Is(err, context.Canceled) {
					t.Errorf("got %v, want a cancelled context", err)
				}
				return nil
			})
			if a.ambiguous() {
				t.Errorf("the outcome is unknown: %v", a.events)
			}
		})
	}
}

// A backend that is killed during each kind of call, swallowed: the outcome is known.
func TestKilledBackend(t *testing.T) {
	s := newSite(t)
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			before, id := fresh(), fresh()
			a := s.want(500, false, []int{before, id}, func(_ http.ResponseWriter, r *http.Request) error {
				if err := insert(r.Context(), key, kind, before, "text"); err != nil {
					return err
				}
				if err := insert(r.Context(), key, kind, id, "kill"); err == nil {
					t.Error("no error")
				}
				return nil
			})
			if a.ambiguous() || a.last().Outcome != sqlreq.RolledBack {
				t.Errorf("got %v, want a rollback", a.events)
			}
		})
	}
	// What is open, and not at its end: that is found out before COMMIT.
	const endless = "SELECT repeat('x', 100), CASE g WHEN 5000 THEN pg_sleep(600)::text END FROM generate_series(1, 5000) g"
	for what, open := range map[string]func(context.Context) error{
		"rows": func(ctx context.Context) error { return second(key.Query(ctx, endless)) },
		"batch": func(ctx context.Context) error {
			var b pgx.Batch
			b.Queue(endless)
			key.SendBatch(ctx, &b)
			return nil
		},
	} {
		t.Run(what, func(t *testing.T) {
			id := fresh()
			a := s.want(500, false, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
				tx, err := key.Tx(r.Context())
				if err != nil {
					return err
				}
				if err := errors.Join(insert(r.Context(), tx, "Exec", id, "text"), open(r.Context())); err != nil {
					return err
				}
				eventually(t, "the statement sleeps", s.sleeping)
				s.number("SELECT count(pg_terminate_backend($1, 60000))", tx.Conn().PgConn().PID())
				return nil
			})
			if a.ambiguous() {
				t.Errorf("COMMIT was not sent, and the outcome is unknown: %v", a.events)
			}
		})
	}
}

// The reply of COMMIT is lost: the only outcome that nobody knows.
func TestLostReplyOfCommit(t *testing.T) {
	j := newJudge(t)
	p := newWire(t, j.dsn)
	s := newSiteOn(t, j, newPool(t, p.dsn), twice)
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			id, attempts := fresh(), 0
			a := s.want(500, true, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
				attempts++
				p.cutAfter("commit")
				return insert(r.Context(), key, kind, id, "text")
			})
			if !a.ambiguous() || a.last().Outcome != sqlreq.CommitFailed || attempts != 1 {
				t.Errorf("got %v after %d attempts, want one ambiguous COMMIT", a.events, attempts)
			}
		})
	}
}

// wire is a network between the pool and the server, which loses the answer to a statement.
type wire struct {
	net.Listener
	dsn  string
	word atomic.Pointer[string]
}

func newWire(t *testing.T, dsn string) *wire {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := u.Host
	u.Host = l.Addr().String()
	w := &wire{Listener: l, dsn: u.String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { w.serve(client, server) })
		}
	})
	t.Cleanup(func() { l.Close() })
	return w
}

// cutAfter cuts the connection on which the statement was sent, when it was answered.
func (w *wire) cutAfter(statement string) { w.word.Store(&statement) }

func (w *wire) serve(client net.Conn, server string) {
	defer client.Close()
	up, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	defer up.Close()
	var cut atomic.Bool
	go func() {
		defer client.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := up.Read(buf)
			if err != nil || cut.Load() {
				return
			}
			if _, err := client.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		if word := w.word.Load(); word != nil && strings.Contains(string(buf[:n]), *word) {
			w.word.Store(nil)
			cut.Store(true)
		}
		if _, err := up.Write(buf[:n]); err != nil {
			return
		}
	}
}

// A server that does not answer does not keep a request whose client has gone: going
// back to a savepoint and ROLLBACK are given up, also while rows wait for an answer.
func TestRollbackIsGivenUp(t *testing.T) {
	j := newJudge(t)
	p := newWire(t, j.dsn)
	s := newSiteOn(t, j, newPool(t, p.dsn))
	lock := newConn(t, j.dsn)
	for name, h := range map[string]func(context.Context, int) error{
		"rows under way": func(ctx context.Context, id int) error {
			rows, err := key.Query(context.WithoutCancel(ctx), "SELECT repeat('x', 100), CASE g WHEN 5000 THEN pg_advisory_xact_lock($1)::text END FROM generate_series(1, 5000) g", id)
			if err != nil {
				return err
			}
			entered := make(chan struct{})
			go func() {
				close(entered)
				for rows.Next() {
				}
			}()
			<-entered
			return nil
		},
		"rows left open": func(ctx context.Context, id int) error {
			_, err := key.Query(context.WithoutCancel(ctx), "SELECT repeat('x', 100), CASE g WHEN 5000 THEN pg_advisory_xact_lock($1)::text END FROM generate_series(1, 5000) g", id)
			return err
		},
		"Rollback of Begin": func(ctx context.Context, id int) error {
			sp, err := key.Begin(ctx)
			if err != nil {
				return err
			}
			if _, err := sp.Query(context.WithoutCancel(ctx), "SELECT repeat('x', 100), CASE g WHEN 5000 THEN pg_advisory_xact_lock($1)::text END FROM generate_series(1, 5000) g", id); err != nil {
				return err
			}
			<-ctx.Done()
			return sp.Rollback(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			id := fresh()
			if _, err := lock.Exec(context.Background(), "SELECT pg_advisory_lock($1)", id); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			s.requestWith(ctx, func(_ http.ResponseWriter, r *http.Request) error {
				if err := insert(r.Context(), key, "Exec", id, "text"); err != nil {
					t.Error(err)
				}
				go func() {
					eventually(t, "the query waits", func() bool {
						return s.number("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == 1
					})
					cancel()
				}()
				if err := h(r.Context(), id); err != nil && name != "Rollback of Begin" {
					t.Error(err)
				}
				<-r.Context().Done()
				return nil
			}) // which waits for the connections
			if s.stored(id) {
				t.Error("stored")
			}
			if _, err := lock.Exec(context.Background(), "SELECT pg_advisory_unlock_all()"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A COMMIT beside a copy whose source waits for the program is refused when the copy's
// context ends; the connection is given back when the copy has ended.
func TestCommitInsideOfCopy(t *testing.T) {
	s := newSite(t)
	id := fresh()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	committed := make(chan error, 1)
	s.requestWith(ctx, func(_ http.ResponseWriter, r *http.Request) error {
		_, err := key.CopyFrom(r.Context(), pgx.Identifier{"notes"}, []string{"id", "text"},
			pgx.CopyFromSlice(1, func(int) ([]any, error) {
				go cancel()
				committed <- sqlreq.Commit(context.WithoutCancel(r.Context())) // waits for itself
				return []any{id, "text"}, nil
			}))
		if err == nil {
			t.Error("the copy has succeeded")
		}
		return nil
	})
	if err := <-committed; err == nil {
		t.Error("Commit has succeeded")
	}
	eventually(t, "the connections given back", func() bool { return s.pool.Stat().AcquiredConns() == 0 })
	if s.stored(id) {
		t.Error("stored")
	}
}

// valuer is a driver.Valuer.
type valuer func() (driver.Value, error)

func (v valuer) Value() (driver.Value, error) { return v() }

// Panics in a Valuer, a Scanner and the function of a batch hang nothing, commit
// nothing, and cost no connection for ever; also if the handler recovers and goes on.
// panicker is a tracer that panics at the results of a batch.
type panicker struct{}

func (panicker) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}
func (panicker) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) { panic("boom") }
func (panicker) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}
func (panicker) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (panicker) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A tracer that panics in a step of a batch leaves no lock behind: the request comes to its end.
func TestTracerPanicsInBatch(t *testing.T) {
	j := newJudge(t)
	s := newSiteOn(t, j, newPool(t, j.dsn, func(c *pgxpool.Config) { c.ConnConfig.Tracer = panicker{} }))
	for name, step := range map[string]func(pgx.BatchResults){
		"Exec":  func(r pgx.BatchResults) { _, _ = r.Exec() },
		"Query": func(r pgx.BatchResults) { _, _ = r.Query() },
		"Close": func(r pgx.BatchResults) { _ = r.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			s.want(0, false, nil, func(_ http.ResponseWriter, r *http.Request) error {
				var b pgx.Batch
				b.Queue("SELECT 1/0")
				results := key.SendBatch(r.Context(), &b)
				step(results)
				panic(http.ErrAbortHandler) // where the step has no trace
			})
		})
	}
}

func TestPanics(t *testing.T) {
	s := newSite(t)
	boom := valuer(func() (driver.Value, error) { panic("boom") })
	scan := scanner(func() error { panic("boom") })
	calls := map[string]func(context.Context, querier) error{
		"Valuer/Exec":  func(ctx context.Context, q querier) error { return second(q.Exec(ctx, "SELECT $1::text", boom)) },
		"Valuer/Query": func(ctx context.Context, q querier) error { return second(q.Query(ctx, "SELECT $1::text", boom)) },
		"Valuer/QueryRow": func(ctx context.Context, q querier) error {
			return q.QueryRow(ctx, "SELECT $1::text", boom).Scan(new(string))
		},
		"Valuer/SendBatch": func(ctx context.Context, q querier) error {
			var b pgx.Batch
			b.Queue("SELECT $1::text", boom)
			return q.SendBatch(ctx, &b).Close()
		},
		"Scanner/QueryRow": func(ctx context.Context, q querier) error {
			return q.QueryRow(ctx, "SELECT generate_series(1, 10000)").Scan(scan)
		},
		"Scanner/Query": func(ctx context.Context, q querier) error {
			rows, err := q.Query(ctx, "SELECT generate_series(1, 10000)")
			if err != nil {
				return err
			}
			rows.Next()
			return rows.Scan(scan)
		},
		"function/SendBatch": func(ctx context.Context, q querier) error {
			var b pgx.Batch
			b.Queue("SELECT generate_series(1, 10000)").Query(func(pgx.Rows) error { panic("boom") })
			b.Queue("SELECT 1").Exec(func(pgconn.CommandTag) error { panic("boom") })
			return q.SendBatch(ctx, &b).Close()
		},
	}
	for name, call := range calls {
		for _, by := range []string{"Key", "Tx", "Begin"} {
			t.Run(name+"/"+by, func(t *testing.T) {
				id := fresh()
				of := func(ctx context.Context) (q querier, err error) {
					switch q = key; by {
					case "Tx":
						q, err = sqlreqpgx.Tx(ctx)
					case "Begin":
						q, err = key.Begin(ctx)
					}
					return q, err
				}
				s.want(0, false, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
					q, err := of(r.Context())
					if err != nil {
						return err
					}
					if err := insert(r.Context(), q, "Exec", id, "text"); err != nil {
						return err
					}
					defer func() {
						if v := recover(); v != "boom" {
							t.Errorf("got the panic %v", v)
						}
						panic(http.ErrAbortHandler)
					}()
					return call(r.Context(), q)
				})
				// A handler that recovers, and goes back to a savepoint.
				s.want(200, true, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
					if err := insert(r.Context(), key, "Exec", id, "text"); err != nil {
						return err
					}
					if strings.HasSuffix(name, "SendBatch") {
						return nil // pgx leaves the connection in the middle of a batch; what happens then is below
					}
					sp, err := key.Begin(r.Context())
					if err != nil {
						return err
					}
					func() {
						defer func() { _ = recover() }()
						_ = call(r.Context(), sp)
					}()
					return sp.Rollback(r.Context())
				})
			})
		}
		t.Run(name+"/swallowed", func(t *testing.T) {
			id := fresh()
			h := func(_ http.ResponseWriter, r *http.Request) error {
				if err := insert(r.Context(), key, "Exec", id, "text"); err != nil {
					return err
				}
				func() {
					defer func() { _ = recover() }()
					_ = call(r.Context(), key)
				}()
				return nil
			}
			a := s.request(h)
			if stored := s.stored(id); stored != (a.status == 200) || a.ambiguous() {
				t.Errorf("got %d, stored %v (events %v)", a.status, stored, a.events)
			}
		})
	}
}

// What a copy's source panics with ends the process, as with pgx alone, but its error does not.
func TestSourceFails(t *testing.T) {
	s := newSite(t)
	id := fresh()
	s.want(500, false, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
		if err := insert(r.Context(), key, "Exec", id, "text"); err != nil {
			return err
		}
		_, err := key.CopyFrom(r.Context(), pgx.Identifier{"notes"}, []string{"id", "text"},
			pgx.CopyFromFunc(func() ([]any, error) { return nil, io.ErrUnexpectedEOF }))
		if err == nil {
			t.Error("no error")
		}
		return nil
	})
}
