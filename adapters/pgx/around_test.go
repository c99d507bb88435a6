package sqlreqpgx_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/sqlreq/sqlreq"
	sqlreqpgx "github.com/sqlreq/sqlreq/adapters/pgx"
	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// A write in a read-only transaction is refused; reads work, and its end is one.
func TestReadOnly(t *testing.T) {
	s := newSite(t, onBinding(func(b *sqlreq.Binding) {
		b.TxOptions = func(context.Context, *http.Request) *sql.TxOptions { return &sql.TxOptions{ReadOnly: true} }
	}))
	for _, kind := range kinds {
		id := fresh()
		s.want(500, false, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
			err := insert(r.Context(), key, kind, id, "text")
			if !hasState(err, "25006") {
				t.Errorf("%s: got %v, want 25006", kind, err)
			}
			return err
		})
	}
	a := s.want(200, false, nil, func(_ http.ResponseWriter, r *http.Request) error {
		return key.QueryRow(r.Context(), "SELECT 1").Scan(new(int))
	})
	if a.last().Outcome != sqlreq.Committed {
		t.Errorf("got %v, want Committed", a.events)
	}
}

// The options of database/sql are those of stdlib.
func TestIsolationLevels(t *testing.T) {
	j := newJudge(t)
	s := newSiteOn(t, j, newPool(t, j.dsn+"&default_transaction_isolation=serializable"))
	plain := stdlib.OpenDBFromPool(s.pool)
	defer plain.Close()
	for level := sql.LevelDefault; level <= sql.LevelLinearizable; level++ {
		for _, readOnly := range []bool{false, true} {
			var got [2]string
			for i, db := range []*sql.DB{s.db, plain} {
				tx, err := db.BeginTx(context.Background(), &sql.TxOptions{Isolation: level, ReadOnly: readOnly})
				if err != nil {
					got[i] = "refused"
					continue
				}
				if err := tx.QueryRow("SELECT current_setting('transaction_isolation') || current_setting('transaction_read_only')").Scan(&got[i]); err != nil {
					t.Fatal(err)
				}
				if err := tx.Rollback(); err != nil {
					t.Fatal(err)
				}
			}
			if got[0] != got[1] || got[0] == "" {
				t.Errorf("%v, read-only %v: got %q, stdlib has %q", level, readOnly, got[0], got[1])
			}
		}
	}
}

// Route chooses among databases of OpenDB.
func TestRoute(t *testing.T) {
	var other *judge
	s := newSite(t, func(s *site, b *sqlreq.Binding, _ *sqlreq.Registry) {
		if b == nil {
			return
		}
		other = newJudge(t)
		dbs := map[string]*sql.DB{"here": s.db, "there": sqlreqpgx.OpenDB(other.Pool)}
		b.DB, b.Route = nil, func(ctx context.Context, _ *http.Request) (*sql.DB, error) {
			return dbs[ctx.Value(whereKey{}).(string)], nil
		}
	})
	for _, where := range []string{"here", "there"} {
		id := fresh()
		s.want(200, where == "here", []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
			return insert(context.WithValue(r.Context(), whereKey{}, where), key, "SendBatch", id, "text")
		})
		if got := other.stored(id); got != (where == "there") {
			t.Errorf("%s: stored there: %v", where, got)
		}
	}
}

type whereKey struct{}

// Hooks follow a transaction of native statements only.
func TestHooks(t *testing.T) {
	s := newSite(t)
	for _, fails := range []bool{false, true} {
		var ran []string
		id, outbox := fresh(), fresh()
		s.want(map[bool]int{false: 200, true: 500}[fails], !fails, []int{id, outbox}, func(_ http.ResponseWriter, r *http.Request) error {
			err := errors.Join(
				sqlreq.BeforeCommit(r.Context(), func(ctx context.Context) error { return insert(ctx, key, "SendBatch", outbox, "text") }),
				sqlreq.AfterCommit(r.Context(), func(ctx context.Context) {
					ran = append(ran, "commit")
					if err := insert(ctx, key, "Exec", fresh(), "text"); !errors.Is(err, sqlreq.ErrFinished) {
						t.Errorf("in a hook: got %v, want ErrFinished", err)
					}
					if err := key.QueryRow(ctx, "SELECT 1").Scan(new(int)); !errors.Is(err, sqlreq.ErrFinished) {
						t.Errorf("in a hook: got %v, want ErrFinished", err)
					}
				}),
				sqlreq.AfterRollback(r.Context(), func(context.Context) { ran = append(ran, "rollback") }),
				insert(r.Context(), key, "CopyFrom", id, "text"))
			if fails {
				err = errors.Join(err, errNo)
			}
			return err
		})
		if want := map[bool]string{false: "commit", true: "rollback"}[fails]; !slices.Equal(ran, []string{want}) {
			t.Errorf("got the hooks %v, want %s", ran, want)
		}
	}
}

// AfterBegin with native statements: row-level security by SET LOCAL.
func TestAfterBegin(t *testing.T) {
	s := newSite(t, onBinding(func(b *sqlreq.Binding) {
		b.AfterBegin = func(ctx context.Context, _ *http.Request, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "SELECT set_config('app.tenant', $1, true)", "t1")
			return err
		}
	}))
	s.want(200, false, nil, func(_ http.ResponseWriter, r *http.Request) error {
		var got string
		for range 2 { // also in the next transaction
			if err := key.QueryRow(r.Context(), "SELECT current_setting('app.tenant')").Scan(&got); err != nil || got != "t1" {
				t.Errorf("got %q, %v", got, err)
			}
			if err := sqlreq.Commit(r.Context()); err != nil {
				return err
			}
		}
		return nil
	})
	// Row-level security: a native statement sees, and writes, the tenant's rows only.
	if _, err := s.Exec(context.Background(), `
		DROP ROLE IF EXISTS sqlreqpgx_tenants; CREATE ROLE sqlreqpgx_tenants;
		CREATE TABLE owned (tenant TEXT, n INT); INSERT INTO owned VALUES ('t1', 1), ('t2', 2);
		ALTER TABLE owned ENABLE ROW LEVEL SECURITY;
		CREATE POLICY own ON owned USING (tenant = current_setting('app.tenant'));
		GRANT ALL ON owned TO sqlreqpgx_tenants;
		DO $$ BEGIN EXECUTE format('GRANT USAGE ON SCHEMA %I TO sqlreqpgx_tenants', current_schema()); END $$`); err != nil {
		t.Fatal(err)
	}
	judge := s.judge
	t.Cleanup(func() {
		if _, err := judge.Exec(context.Background(), "DROP OWNED BY sqlreqpgx_tenants; DROP ROLE sqlreqpgx_tenants"); err != nil {
			t.Error(err)
		}
	})
	s.want(500, false, nil, func(_ http.ResponseWriter, r *http.Request) error {
		if _, err := sqlreq.DefaultKey.ExecContext(r.Context(), "SET LOCAL ROLE sqlreqpgx_tenants"); err != nil {
			return err
		}
		rows, _ := key.Query(r.Context(), "SELECT n FROM owned")
		if got, err := pgx.CollectRows(rows, pgx.RowTo[int]); !slices.Equal(got, []int{1}) || err != nil {
			t.Errorf("got the rows %v, %v, want those of t1", got, err)
		}
		_, err := key.Exec(r.Context(), "INSERT INTO owned VALUES ('t2', 3)")
		if !hasState(err, "42501") {
			t.Errorf("another tenant's row: got %v, want 42501", err)
		}
		return err
	})
	// A native statement in AfterBegin uses the key that is being begun: an error, and no wait for itself.
	s = newSite(t, onBinding(func(b *sqlreq.Binding) {
		b.AfterBegin = func(ctx context.Context, _ *http.Request, _ *sql.Tx) error {
			return insert(ctx, key, "Exec", fresh(), "text")
		}
	}))
	s.want(500, false, nil, func(_ http.ResponseWriter, r *http.Request) error {
		return insert(r.Context(), key, "Exec", fresh(), "text")
	})
}

// Do and Atomic, inside of a request and without one.
func TestDoAndAtomic(t *testing.T) {
	s := newSite(t)
	inDo, inRequest := fresh(), fresh()
	s.want(500, false, []int{inRequest}, func(_ http.ResponseWriter, r *http.Request) error {
		err := insert(r.Context(), key, "Query", inRequest, "text")
		if err == nil {
			err = s.reg.Do(r.Context(), func(ctx context.Context) error { return insert(ctx, key, "SendBatch", inDo, "text") })
		}
		return errors.Join(err, errNo)
	})
	if !s.stored(inDo) {
		t.Error("what Do has done is not stored")
	}
	kept, undone := fresh(), fresh()
	s.want(200, true, []int{kept}, func(_ http.ResponseWriter, r *http.Request) error {
		err := s.reg.Atomic(r.Context(), func(ctx context.Context) error {
			return errors.Join(insert(ctx, key, "CopyFrom", undone, "text"), errNo)
		})
		if !errors.Is(err, errNo) {
			return err
		}
		return s.reg.Atomic(r.Context(), func(ctx context.Context) error { return insert(ctx, key, "CopyFrom", kept, "text") })
	})
	if s.stored(undone) {
		t.Error("what Atomic has undone is stored")
	}
	outside := fresh()
	if err := s.reg.Do(context.Background(), func(ctx context.Context) error { return insert(ctx, key, "Exec", outside, "text") }); err != nil || !s.stored(outside) {
		t.Errorf("Do: %v, stored %v", err, s.stored(outside))
	}
	// A Tx of the request, used with the context of a Do, runs in neither: not in the Do, whose transaction is another one.
	id := fresh()
	s.want(200, false, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
		tx, err := sqlreqpgx.Tx(r.Context())
		if err != nil {
			return err
		}
		return s.reg.Do(r.Context(), func(ctx context.Context) error {
			if err := insert(ctx, tx, "Exec", id, "text"); !errors.Is(err, pgx.ErrTxClosed) {
				t.Errorf("got %v, want ErrTxClosed", err)
			}
			return nil
		})
	})
}

// A pool whose only connection the request has: the Do inside waits until its context
// ends (nobody can tell it sooner), and the request goes on.
func TestDoInsideOfSmallPool(t *testing.T) {
	j := newJudge(t)
	s := newSiteOn(t, j, newPool(t, j.dsn, func(c *pgxpool.Config) { c.MaxConns = 1 }))
	id := fresh()
	s.want(200, true, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
		if err := key.QueryRow(r.Context(), "SELECT 1").Scan(new(int)); err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		go func() {
			eventually(t, "the Do waits", func() bool { return s.db.Stats().OpenConnections == 2 })
			cancel()
		}()
		err := s.reg.Do(ctx, func(ctx context.Context) error { return key.QueryRow(ctx, "SELECT 1").Scan(new(int)) })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want the ended context", err)
		}
		return insert(r.Context(), key, "Exec", id, "text")
	})
}

// Finished is finished, for each kind, also for rows that were left to a goroutine.
func TestFinished(t *testing.T) {
	s := newSite(t)
	var ctx context.Context
	var rows pgx.Rows
	s.want(200, false, nil, func(_ http.ResponseWriter, r *http.Request) (err error) {
		ctx = context.WithoutCancel(r.Context())
		rows, err = key.Query(ctx, "SELECT generate_series(1, 10)")
		return err
	})
	for _, kind := range kinds {
		if err := insert(ctx, key, kind, fresh(), "text"); !errors.Is(err, sqlreq.ErrFinished) {
			t.Errorf("%s: got %v, want ErrFinished", kind, err)
		}
	}
	_, err := sqlreqpgx.Tx(ctx)
	if _, err2 := key.Begin(ctx); !errors.Is(err, sqlreq.ErrFinished) || !errors.Is(err2, sqlreq.ErrFinished) {
		t.Errorf("Tx, Begin: got %v, %v, want ErrFinished", err, err2)
	}
	if rows.Next() || rows.Err() == nil {
		t.Errorf("the rows go on, %v", rows.Err())
	}
	if err := insert(context.Background(), key, "Exec", fresh(), "text"); !errors.Is(err, sqlreq.ErrNoRegistry) {
		t.Errorf("without a registry: got %v", err)
	}
	if err := insert(context.Background(), sqlreqpgx.Key("other"), "SendBatch", fresh(), "text"); !errors.Is(err, sqlreq.ErrNoRegistry) {
		t.Errorf("without a registry: got %v", err)
	}
}

// Statements of goroutines wait for each other; rows that are open refuse those of
// others, which may try again.
func TestGoroutines(t *testing.T) {
	s := newSite(t)
	ids := make([]int, 24)
	for i := range ids {
		ids[i] = fresh()
	}
	s.want(200, true, ids, func(_ http.ResponseWriter, r *http.Request) error {
		tx, err := sqlreqpgx.Tx(r.Context())
		if err != nil {
			return err
		}
		var wg sync.WaitGroup
		for i, id := range ids {
			wg.Go(func() {
				q := []querier{key, tx}[i%2]
				for {
					switch err := insert(r.Context(), q, kinds[i%len(kinds)], id, "text"); {
					case err == nil:
						return
					case isBusy(err):
					default:
						t.Errorf("%s: %v", kinds[i%len(kinds)], err)
						return
					}
				}
			})
		}
		wg.Go(func() {
			for range 20 {
				_ = second(sqlreq.DefaultKey.ExecContext(r.Context(), "SELECT 1"))
			}
		})
		wg.Wait()
		return nil
	})
	// Exec and QueryRow alone are never refused.
	s.want(200, false, nil, func(_ http.ResponseWriter, r *http.Request) error {
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if err := key.QueryRow(r.Context(), "SELECT 1").Scan(new(int)); err != nil {
					t.Error(err)
				}
				if _, err := key.Exec(r.Context(), "SELECT 1"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		return nil
	})
	// A goroutine that the handler has left running: its statement is in, or ErrFinished.
	for range 20 {
		id := fresh()
		result := make(chan error, 1)
		s.want(200, false, nil, func(_ http.ResponseWriter, r *http.Request) error {
			if err := key.QueryRow(r.Context(), "SELECT 1").Scan(new(int)); err != nil {
				return err
			}
			go func() { result <- insert(context.WithoutCancel(r.Context()), key, "SendBatch", id, "text") }()
			return nil
		})
		if err := <-result; (err == nil) != s.stored(id) {
			t.Errorf("told %v, stored %v", err, s.stored(id))
		}
	}
}

var execModes = []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe,
	pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol}

// All modes, as the pool's and as an argument of one statement.
func TestQueryExecModes(t *testing.T) {
	j := newJudge(t)
	for _, mode := range execModes {
		t.Run(mode.String(), func(t *testing.T) {
			s := newSiteOn(t, j, newPool(t, j.dsn, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode }))
			everything(t, s)
			ids := []int{fresh(), fresh()}
			s.want(200, true, ids, func(_ http.ResponseWriter, r *http.Request) error {
				var got int
				_, err := key.Exec(r.Context(), insertNote, mode, ids[0], "text")
				err = errors.Join(err, key.QueryRow(r.Context(), insertNote+" RETURNING id", mode, ids[1], "text").Scan(&got),
					key.QueryRow(r.Context(), "SELECT @a::int", pgx.NamedArgs{"a": 7}).Scan(&got))
				if got != 7 {
					t.Errorf("named arguments: got %d", got)
				}
				return err
			})
		})
	}
}

// everything sends a request with everything in it, and one that fails.
func everything(t *testing.T, s *site) {
	t.Helper()
	for _, status := range []int{200, 404} {
		var ids []int
		s.want(status, status == 200, ids, func(w http.ResponseWriter, r *http.Request) error {
			for _, kind := range kinds {
				id := fresh()
				ids = append(ids, id)
				if err := insert(r.Context(), key, kind, id, "text"); err != nil {
					return fmt.Errorf("%s: %w", kind, err)
				}
			}
			undone := fresh()
			if err := begin(r.Context(), key, false, func(tx pgx.Tx) error { return insert(r.Context(), tx, "SendBatch", undone, "text") }); err != nil {
				return err
			}
			rows, _ := key.Query(r.Context(), "SELECT id, text FROM notes WHERE id = ANY($1) ORDER BY id", ids)
			notes, err := pgx.CollectRows(rows, pgx.RowToStructByName[struct {
				ID   int
				Text string
			}])
			if err != nil || len(notes) != len(ids) || notes[0].Text != "text" {
				t.Errorf("CollectRows: got %v, %v", notes, err)
			}
			w.WriteHeader(status)
			return nil
		})
		for _, id := range ids {
			if got := s.stored(id); got != (status == 200) {
				t.Errorf("after %d: stored %v", status, got)
			}
		}
	}
}

// Types that the pool's AfterConnect registers are known.
func TestAfterConnectTypes(t *testing.T) {
	j := newJudge(t)
	if _, err := j.Exec(context.Background(), "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TABLE moods (m mood[])"); err != nil {
		t.Fatal(err)
	}
	s := newSiteOn(t, j, newPool(t, j.dsn, func(c *pgxpool.Config) {
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			types, err := conn.LoadTypes(ctx, []string{"mood", "_mood"})
			conn.TypeMap().RegisterTypes(types)
			return err
		}
	}))
	s.want(200, false, nil, func(_ http.ResponseWriter, r *http.Request) error {
		if _, err := key.CopyFrom(r.Context(), pgx.Identifier{"moods"}, []string{"m"}, pgx.CopyFromRows([][]any{{[]string{"sad", "glad"}}})); err != nil {
			return err
		}
		var got pgtype.FlatArray[string]
		err := key.QueryRow(r.Context(), "SELECT m FROM moods").Scan(&got)
		if len(got) != 2 || got[1] != "glad" {
			t.Errorf("got %v", got)
		}
		return err
	})
}

// pgbouncer in transaction mode, with one connection to the server.
func TestPgBouncer(t *testing.T) {
	p := servers.SharedPostgres(t)
	if !p.Own() {
		p = servers.NewPostgres(t)
	}
	j := newJudgeOn(t, p.DSN)
	b := servers.NewPgBouncer(t, p, "default_pool_size = 1")
	schema := j.dsn[strings.LastIndex(j.dsn, "=")+1:]
	for _, mode := range []string{"exec", "cache_describe", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			pool := newPool(t, b.DSN+"&default_query_exec_mode="+mode)
			s := newSiteOn(t, j, pool, onBinding(func(b *sqlreq.Binding) {
				b.AfterBegin = func(ctx context.Context, _ *http.Request, tx *sql.Tx) error {
					_, err := tx.ExecContext(ctx, "SET LOCAL search_path = "+schema)
					return err
				}
			}))
			everything(t, s)
		})
	}
}

// tracer counts what pgx tells a tracer.
type tracer struct {
	mu       sync.Mutex
	started  []string
	failures []error
}

func (x *tracer) start(ctx context.Context, what string) context.Context {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.started = append(x.started, what)
	return ctx
}

func (x *tracer) end(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err != nil {
		x.failures = append(x.failures, err)
	}
}

func (x *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	return x.start(ctx, d.SQL)
}
func (x *tracer) TraceQueryEnd(_ context.Context, _ *pgx.Conn, d pgx.TraceQueryEndData) { x.end(d.Err) }
func (x *tracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return x.start(ctx, "batch")
}
func (x *tracer) TraceBatchQuery(_ context.Context, _ *pgx.Conn, d pgx.TraceBatchQueryData) {
	x.end(d.Err)
}
func (x *tracer) TraceBatchEnd(_ context.Context, _ *pgx.Conn, d pgx.TraceBatchEndData) { x.end(d.Err) }
func (x *tracer) TraceCopyFromStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceCopyFromStartData) context.Context {
	return x.start(ctx, "copy")
}
func (x *tracer) TraceCopyFromEnd(_ context.Context, _ *pgx.Conn, d pgx.TraceCopyFromEndData) {
	x.end(d.Err)
}

// A tracer sees each statement once, and no error that there is not.
func TestTracer(t *testing.T) {
	j := newJudge(t)
	x := new(tracer)
	s := newSiteOn(t, j, newPool(t, j.dsn, func(c *pgxpool.Config) { c.ConnConfig.Tracer = x }))
	s.want(200, false, nil, func(_ http.ResponseWriter, r *http.Request) error {
		for _, kind := range kinds {
			if err := insert(r.Context(), key, kind, fresh(), "text"); err != nil {
				return err
			}
		}
		return begin(r.Context(), key, true, func(tx pgx.Tx) error { return second(tx.Exec(r.Context(), "SELECT 'in Begin'")) })
	})
	want := []string{"begin", insertNote, insertNote + " RETURNING id", insertNote + " RETURNING id", "copy", "batch", "batch",
		"SAVEPOINT sqlreqpgx_1", "SELECT 'in Begin'", "RELEASE SAVEPOINT sqlreqpgx_1", "commit"}
	if !slices.Equal(x.started, want) {
		t.Errorf("got  %q\nwant %q", x.started, want)
	}
	if len(x.failures) != 0 {
		t.Errorf("got the errors %v", x.failures)
	}
	// An error is seen once, by its statement.
	s.want(500, false, nil, func(_ http.ResponseWriter, r *http.Request) error {
		rows, err := key.Query(r.Context(), "SELECT 1/(g - 500) FROM generate_series(1, 1000) g")
		if err != nil {
			return err
		}
		for rows.Next() {
		}
		return rows.Err()
	})
	if len(x.failures) != 1 || !hasState(x.failures[0], "22012") {
		t.Errorf("got the errors %v, want one 22012", x.failures)
	}
}

// A key whose database is another one: an error that says so, and nothing is sent.
func TestOtherDatabase(t *testing.T) {
	j := newJudge(t)
	plain := stdlib.OpenDBFromPool(j.Pool)
	defer plain.Close()
	s := newSiteOn(t, j, newPool(t, j.dsn), onBinding(func(b *sqlreq.Binding) { b.DB = plain }))
	s.want(200, false, nil, func(_ http.ResponseWriter, r *http.Request) error {
		failed := map[string]error{"Tx": second(sqlreqpgx.Tx(r.Context())), "Begin": second(key.Begin(r.Context()))}
		for _, kind := range kinds {
			failed[kind] = insert(r.Context(), key, kind, fresh(), "text")
		}
		for name, err := range failed {
			if err == nil || !strings.Contains(err.Error(), `key "main": the database of this key is not one of sqlreqpgx.OpenDB`) {
				t.Errorf("%s: got %v", name, err)
			}
		}
		_, err := sqlreq.DefaultKey.ExecContext(r.Context(), "SELECT 1") // the transaction lives
		return err
	})
}

// OpenDB keeps no idle connections, and its Close leaves the pool open.
func TestOpenDB(t *testing.T) {
	s := newSite(t)
	for range 3 {
		if _, err := s.db.Exec("SELECT 1"); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.db.Stats().OpenConnections; got != 0 {
		t.Errorf("got %d connections, want 0", got)
	}
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.pool.Ping(context.Background()); err != nil {
		t.Error(err)
	}
}

// Package idempotency: the record and native statements are one transaction, and a
// second request with the key gets the answer without a second note.
func TestIdempotency(t *testing.T) {
	s := newSite(t)
	once := &idempotency.Once{Scope: func(*http.Request) (string, error) { return "ann", nil }}
	if err := once.CreateTable(context.Background(), s.db); err != nil {
		t.Fatal(err)
	}
	for _, fails := range []bool{true, false} {
		ran := 0
		id := fresh()
		h := once.Handler(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			ran++
			if err := insert(r.Context(), key, "SendBatch", id, "text"); err != nil {
				return err
			}
			if fails {
				return errNo
			}
			w.WriteHeader(201)
			return nil
		}))
		for range 2 {
			s.want(map[bool]int{true: 500, false: 201}[fails], !fails, []int{id}, func(w http.ResponseWriter, r *http.Request) error {
				r.Header.Set("Idempotency-Key", fmt.Sprintf("k%v", fails))
				h.ServeHTTP(w, r)
				return nil
			})
		}
		if want := map[bool]int{true: 2, false: 1}[fails]; ran != want {
			t.Errorf("fails %v: the handler has run %d times, want %d", fails, ran, want)
		}
	}
}

// A stream with rows open: what the handler reads goes out while the transaction is open,
// and an error that the rows meet late breaks the transfer off.
func TestStream(t *testing.T) {
	s := newSite(t, onRegistry(func(reg *sqlreq.Registry) { reg.HoldLimit = 1024 }))
	for last, status := range map[string]int{"'x'": 200, "(1/(g-20000))::text": 0} {
		id := fresh()
		a := s.want(status, status == 200, []int{id}, func(w http.ResponseWriter, r *http.Request) error {
			if err := insert(r.Context(), key, "Exec", id, "text"); err != nil {
				return err
			}
			rows, err := key.Query(r.Context(), "SELECT repeat('x', 100) || CASE g WHEN 20000 THEN "+last+" ELSE '' END FROM generate_series(1, 20000) g")
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var line string
				if err := rows.Scan(&line); err != nil {
					return err
				}
				if _, err := w.Write([]byte(line)); err != nil {
					return err
				}
			}
			return rows.Err()
		})
		if status == 200 && len(a.body) != 20000*100+1 {
			t.Errorf("got %d bytes", len(a.body))
		}
	}
}

// Two databases, each with a Key of its own, and a nested application: one outcome.
func TestKeysAndNestedApplication(t *testing.T) {
	reports := newJudge(t)
	db := sqlreqpgx.OpenDB(newPool(t, reports.dsn))
	t.Cleanup(func() { db.Close() })
	child, err := sqlreq.New(sqlreq.Binding{Key: "reports", DB: db})
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	for _, status := range []int{200, 404} {
		here, there := fresh(), fresh()
		s.want(status, status == 200, []int{here}, func(w http.ResponseWriter, r *http.Request) error {
			if err := insert(r.Context(), key, "SendBatch", here, "text"); err != nil {
				return err
			}
			child.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				rows, err := sqlreqpgx.Key("reports").Query(r.Context(), "SELECT generate_series(1, 10000)")
				if err != nil || !rows.Next() {
					return errors.Join(err, errNo)
				}
				// Rows of another database are open: that one's statements run.
				if err := insert(r.Context(), key, "Exec", fresh(), "text"); err != nil {
					return err
				}
				rows.Close()
				if err := insert(r.Context(), sqlreqpgx.Key("reports"), "CopyFrom", there, "text"); err != nil {
					return err
				}
				w.WriteHeader(status)
				return nil
			})).ServeHTTP(w, r)
			return nil
		})
		if got := reports.stored(there); got != (status == 200) {
			t.Errorf("after %d: stored in the other database: %v", status, got)
		}
	}
	s.want(200, false, nil, func(_ http.ResponseWriter, r *http.Request) error {
		if err := insert(r.Context(), sqlreqpgx.Key("reports"), "Exec", fresh(), "text"); !errors.Is(err, sqlreq.ErrUnknownKey) {
			t.Errorf("got %v, want ErrUnknownKey", err)
		}
		return nil
	})
}
