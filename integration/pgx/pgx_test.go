package pgx

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/Masterminds/squirrel"
	"github.com/exaring/otelpgx"
	"github.com/georgysavva/scany/v2/pgxscan"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/sqlreq/sqlreq"
	sqlreqpgx "github.com/sqlreq/sqlreq/adapters/pgx"
	"github.com/sqlreq/sqlreq/integration/pgx/notesdb"
	"github.com/sqlreq/sqlreq/internal/servers"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

const key = sqlreqpgx.DefaultKey

func TestMain(m *testing.M) { os.Exit(servers.Run(m)) }

// service is a service on a pool, and a pool of its own that looks at what is stored.
type service struct {
	t     testing.TB
	pool  *pgxpool.Pool
	judge *pgxpool.Pool
	reg   *sqlreq.Registry
	outer func(http.Handler) http.Handler // around the middleware; nil: nothing
}

func newPool(t testing.TB, set func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	c, err := pgxpool.ParseConfig(servers.SharedPostgres(t).DSN)
	if err != nil {
		t.Fatal(err)
	}
	set(c)
	pool, err := pgxpool.NewWithConfig(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func newService(t testing.TB, set func(*pgxpool.Config)) *service {
	t.Helper()
	s := &service{t: t, pool: newPool(t, set), judge: newPool(t, func(*pgxpool.Config) {})}
	schema, err := os.ReadFile("schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	s.exec("DROP TABLE IF EXISTS sqlc_notes", string(schema))
	if s.reg, err = sqlreq.New(sqlreq.Binding{DB: sqlreqpgx.OpenDB(s.pool)}); err != nil {
		t.Fatal(err)
	}
	s.reg.Logger = slog.New(slog.DiscardHandler)
	return s
}

func (s *service) exec(statements ...string) {
	s.t.Helper()
	for _, statement := range statements {
		if _, err := s.judge.Exec(context.Background(), statement); err != nil {
			s.t.Fatalf("%s: %v", statement, err)
		}
	}
}

func (s *service) number(query string) (n int) {
	s.t.Helper()
	if err := s.judge.QueryRow(context.Background(), query).Scan(&n); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
	return n
}

// want serves one request.
func (s *service) want(status int, h sqlreq.HandlerFunc) {
	s.t.Helper()
	served := s.reg.Middleware(h)
	if s.outer != nil {
		served = s.outer(served)
	}
	srv := httptest.NewServer(served)
	defer srv.Close()
	res, err := http.Get(srv.URL)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if res.StatusCode != status || err != nil {
		s.t.Errorf("got %d %q, %v, want %d", res.StatusCode, body, err, status)
	}
}

// both runs do in a request that commits, and in one that fails: the rows that the query
// counts are stored by the first only.
func (s *service) both(count string, rows int, do func(context.Context) error) {
	s.t.Helper()
	for _, status := range []int{409, 200} {
		before := s.number(count)
		s.want(status, func(w http.ResponseWriter, r *http.Request) error {
			if err := do(r.Context()); err != nil {
				return err
			}
			w.WriteHeader(status)
			return nil
		})
		want := 0
		if status == 200 {
			want = rows
		}
		if got := s.number(count) - before; got != want {
			s.t.Errorf("after %d: got %d rows more, want %d", status, got, want)
		}
	}
}

const countNotes = "SELECT count(*) FROM sqlc_notes"

// Code that sqlc generates for pgx/v5, made once for all requests: every kind of query.
func TestSqlc(t *testing.T) {
	s := newService(t, func(*pgxpool.Config) {})
	queries := notesdb.New(key)
	s.both(countNotes, 4, func(ctx context.Context) error {
		n, err := queries.AddNote(ctx, notesdb.AddNoteParams{Text: "one", Tags: []string{"a", "b"}})
		if err != nil {
			return err
		}
		if copied, err := queries.CopyNotes(ctx, []notesdb.CopyNotesParams{{Text: "two", Tags: []string{}}, {Text: "three", Tags: []string{}}}); err != nil || copied != 2 {
			t.Errorf("CopyNotes: %d, %v", copied, err)
		}
		var ids []int64
		queries.AddNotes(ctx, []notesdb.AddNotesParams{{Text: "four", Tags: []string{}}, {Text: "five", Tags: []string{}}}).QueryRow(func(_ int, id int64, err error) {
			if err != nil {
				t.Error(err)
			}
			ids = append(ids, id)
		})
		queries.RenameNotes(ctx, []notesdb.RenameNotesParams{{ID: ids[0], Text: "six"}}).Exec(func(_ int, err error) {
			if err != nil {
				t.Error(err)
			}
		})
		queries.NotesLike(ctx, []string{"six", "t%"}).Query(func(i int, notes []notesdb.SqlcNote, err error) {
			if err != nil || len(notes) == 0 {
				t.Errorf("NotesLike: %v, %v", notes, err)
			}
		})
		if changed, err := queries.Rename(ctx, notesdb.RenameParams{ID: n.ID, Text: "1"}); err != nil || changed != 1 {
			t.Errorf("Rename: %d, %v", changed, err)
		}
		if err := queries.DeleteNote(ctx, n.ID); err != nil {
			return err
		}
		_, err = queries.Notes(ctx)
		return err
	})
	// WithTx, as generated code has it, takes a Begin.
	s.both(countNotes, 1, func(ctx context.Context) error {
		return pgx.BeginFunc(ctx, key, func(tx pgx.Tx) error {
			_, err := queries.WithTx(tx).AddNote(ctx, notesdb.AddNoteParams{Text: "in a Begin", Tags: []string{}})
			return err
		})
	})
}

// scany takes a Key, and a Tx.
func TestScany(t *testing.T) {
	s := newService(t, func(*pgxpool.Config) {})
	for name, of := range map[string]func(context.Context) (pgxscan.Querier, error){
		"Key": func(context.Context) (pgxscan.Querier, error) { return key, nil },
		"Tx":  func(ctx context.Context) (pgxscan.Querier, error) { return sqlreqpgx.Tx(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			s.both(countNotes, 2, func(ctx context.Context) error {
				q, err := of(ctx)
				if err != nil {
					return err
				}
				var one notesdb.SqlcNote
				var all []notesdb.SqlcNote
				err = errors.Join(
					pgxscan.Get(ctx, q, &one, "INSERT INTO sqlc_notes (text) VALUES ($1) RETURNING *", "one"),
					pgxscan.Select(ctx, q, &all, "INSERT INTO sqlc_notes (text) VALUES ($1) RETURNING *", "two"),
					pgxscan.Select(ctx, q, &all, "SELECT * FROM sqlc_notes ORDER BY id"))
				if one.Text != "one" || len(all) < 2 {
					t.Errorf("got %v, %v", one, all)
				}
				if err := pgxscan.Get(ctx, q, &one, "SELECT * FROM sqlc_notes WHERE id < 0"); !pgxscan.NotFound(err) {
					t.Errorf("got %v, want not found", err)
				}
				return err
			})
		})
	}
}

// squirrel makes the text of a statement.
func TestSquirrel(t *testing.T) {
	s := newService(t, func(*pgxpool.Config) {})
	psql := squirrel.StatementBuilder.PlaceholderFormat(squirrel.Dollar)
	s.both(countNotes, 1, func(ctx context.Context) error {
		text, args, err := psql.Insert("sqlc_notes").Columns("text").Values("one").Suffix("RETURNING id").ToSql()
		if err != nil {
			return err
		}
		var id int64
		if err := key.QueryRow(ctx, text, args...).Scan(&id); err != nil {
			return err
		}
		if text, args, err = psql.Select("text").From("sqlc_notes").Where(squirrel.Eq{"id": []int64{id}}).ToSql(); err != nil {
			return err
		}
		rows, _ := key.Query(ctx, text, args...)
		texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if len(texts) != 1 {
			t.Errorf("got %v", texts)
		}
		return err
	})
}

// jobArgs is a job.
type jobArgs struct {
	Note int `json:"note" river:"unique"`
}

func (jobArgs) Kind() string { return "note" }

type worker struct {
	river.WorkerDefaults[jobArgs]
}

func (worker) Work(context.Context, *river.Job[jobArgs]) error { return nil }

// River's driver for pgx inserts jobs in the request's transaction, also with a context
// that is not the request's.
func TestRiver(t *testing.T) {
	ctx := context.Background()
	s := newService(t, func(*pgxpool.Config) {})
	migrator, err := rivermigrate.New(riverpgxv5.New(s.judge), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		t.Fatal(err)
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, worker{})
	client, err := river.NewClient(riverpgxv5.New(s.pool), &river.Config{Workers: workers, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	many := func() (jobs []river.InsertManyParams) {
		for i := range 5 {
			jobs = append(jobs, river.InsertManyParams{Args: jobArgs{i}})
		}
		return jobs
	}
	for name, insert := range map[string]func(context.Context, pgx.Tx) error{
		"InsertTx": func(ctx context.Context, tx pgx.Tx) error {
			for i := range 5 {
				if _, err := client.InsertTx(ctx, tx, jobArgs{i}, nil); err != nil {
					return err
				}
			}
			return nil
		},
		"InsertManyTx": func(ctx context.Context, tx pgx.Tx) error {
			_, err := client.InsertManyTx(ctx, tx, many())
			return err
		},
		"InsertManyFastTx": func(ctx context.Context, tx pgx.Tx) error {
			_, err := client.InsertManyFastTx(ctx, tx, many())
			return err
		},
		"InsertTx, another context": func(_ context.Context, tx pgx.Tx) error {
			for i := range 5 {
				if _, err := client.InsertTx(context.Background(), tx, jobArgs{i}, nil); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			s.both("SELECT count(*) FROM river_job", 5, func(ctx context.Context) error {
				tx, err := sqlreqpgx.Tx(ctx)
				if err != nil {
					return err
				}
				return insert(ctx, tx)
			})
		})
	}
	// A unique job in a Begin that is rolled back: the note and the job go together.
	s.both("SELECT count(*) FROM river_job WHERE args->>'note' = '77'", 0, func(ctx context.Context) error {
		err := pgx.BeginFunc(ctx, key, func(tx pgx.Tx) error {
			if _, err := client.InsertTx(ctx, tx, jobArgs{77}, &river.InsertOpts{UniqueOpts: river.UniqueOpts{ByArgs: true}}); err != nil {
				return err
			}
			return errUndone
		})
		if err == errUndone {
			return nil
		}
		return err
	})
}

var errUndone = errors.New("undone")

// otelpgx has the spans that it has for the same by native pgx, under the request's, and
// none of them is an error.
func TestOtelpgx(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	provider := trace.NewTracerProvider(trace.WithSpanProcessor(spans))
	tracer := provider.Tracer("test")
	s := newService(t, func(c *pgxpool.Config) {
		c.MaxConns = 1 // the same connection for both
		c.ConnConfig.Tracer = otelpgx.NewTracer(otelpgx.WithTracerProvider(provider))
	})
	work := func(ctx context.Context, db interface {
		notesdb.DBTX
		Begin(context.Context) (pgx.Tx, error)
	}) error {
		queries := notesdb.New(db)
		_, err := queries.AddNote(ctx, notesdb.AddNoteParams{Text: "one", Tags: []string{}})
		_, copied := queries.CopyNotes(ctx, []notesdb.CopyNotesParams{{Text: "two", Tags: []string{}}})
		var batched error
		queries.RenameNotes(ctx, []notesdb.RenameNotesParams{{ID: 1, Text: "x"}}).Exec(func(_ int, err error) { batched = errors.Join(batched, err) })
		return errors.Join(err, copied, batched, pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error { return queries.WithTx(tx).DeleteNote(ctx, 1) }))
	}
	native := func() {
		ctx, span := tracer.Start(context.Background(), "request")
		defer span.End()
		if err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error { return work(ctx, tx) }); err != nil {
			t.Fatal(err)
		}
	}
	native() // prepares the statements
	counted := func() map[string]int {
		count := map[string]int{}
		for _, span := range spans.Ended() {
			if span.Status().Code == codes.Error {
				t.Errorf("%s: %v", span.Name(), span.Status())
			}
			if span.Name() != "request" && !span.Parent().IsValid() {
				t.Errorf("%s has no parent", span.Name())
			}
			count[span.Name()]++
		}
		spans.Reset()
		return count
	}
	counted()
	native()
	want := counted()
	s.outer = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, span := tracer.Start(r.Context(), "request")
			defer span.End()
			next.ServeHTTP(w, r.WithContext(ctx))
		})
	}
	s.want(200, func(_ http.ResponseWriter, r *http.Request) error { return work(r.Context(), key) })
	if got := counted(); !maps.Equal(got, want) || len(got) < 5 {
		t.Errorf("got the spans %v, by native pgx they are %v", got, want)
	}
}
