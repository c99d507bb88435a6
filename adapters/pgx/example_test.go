package sqlreqpgx_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sqlreq/sqlreq"
	sqlreqpgx "github.com/sqlreq/sqlreq/adapters/pgx"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// exampleT is what the starters of servers need of a test.
type exampleT struct{ testing.TB }

func (exampleT) Helper()           {}
func (exampleT) Skip(args ...any)  { panic(fmt.Sprint(args...)) }
func (exampleT) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// examplePool is the pool of a program, whose database has one table.
func examplePool() *pgxpool.Pool {
	pool, err := pgxpool.New(context.Background(), servers.SharedPostgres(exampleT{}).DSN)
	if err != nil {
		panic(err)
	}
	if _, err := pool.Exec(context.Background(), "DROP TABLE IF EXISTS lines; CREATE TABLE lines (text TEXT NOT NULL CHECK (text <> ''))"); err != nil {
		panic(err)
	}
	return pool
}

// post sends a request.
func post(h http.Handler, path string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", path, nil))
	fmt.Println(path, w.Code)
}

// Statements run in the request's transaction: one that fails leaves nothing.
func ExampleKey() {
	pool := examplePool()
	defer pool.Close()
	reg, err := sqlreq.New(sqlreq.Binding{DB: sqlreqpgx.OpenDB(pool)})
	if err != nil {
		panic(err)
	}
	h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if _, err := sqlreqpgx.DefaultKey.Exec(r.Context(), "INSERT INTO lines VALUES ($1)", r.URL.Path); err != nil {
			return err
		}
		if r.URL.Path == "/refused" {
			return sqlreq.Errorf(http.StatusConflict, "not today")
		}
		return nil
	}))
	post(h, "/refused")
	post(h, "/done")

	rows, _ := pool.Query(context.Background(), "SELECT text FROM lines")
	fmt.Println(pgx.CollectRows(rows, pgx.RowTo[string]))
	// Output:
	// /refused 409
	// /done 200
	// [/done] <nil>
}

// Begin is a savepoint: a line that is refused is undone alone.
func ExampleKey_Begin() {
	pool := examplePool()
	defer pool.Close()
	reg, err := sqlreq.New(sqlreq.Binding{DB: sqlreqpgx.OpenDB(pool)})
	if err != nil {
		panic(err)
	}
	err = reg.Do(context.Background(), func(ctx context.Context) error {
		for _, line := range []string{"one", "", "three"} {
			err := pgx.BeginFunc(ctx, sqlreqpgx.DefaultKey, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "INSERT INTO lines VALUES ($1)", line)
				return err
			})
			if err != nil {
				fmt.Println("left out:", err)
			}
		}
		return nil
	})
	fmt.Println(err)

	rows, _ := pool.Query(context.Background(), "SELECT text FROM lines")
	fmt.Println(pgx.CollectRows(rows, pgx.RowTo[string]))
	// Output:
	// left out: ERROR: new row for relation "lines" violates check constraint "lines_text_check" (SQLSTATE 23514)
	// <nil>
	// [one three] <nil>
}

// enqueue is what a library does with the transaction that it is given: it may use a
// context of its own.
func enqueue(tx pgx.Tx, job string) error {
	_, err := tx.Exec(context.Background(), "INSERT INTO lines VALUES ($1)", job)
	return err
}

// Tx is for libraries that want a pgx.Tx, as River's InsertTx.
func ExampleTx() {
	pool := examplePool()
	defer pool.Close()
	reg, err := sqlreq.New(sqlreq.Binding{DB: sqlreqpgx.OpenDB(pool)})
	if err != nil {
		panic(err)
	}
	h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		tx, err := sqlreqpgx.Tx(r.Context())
		if err != nil {
			return err
		}
		return enqueue(tx, "send mail")
	}))
	post(h, "/jobs")
	var n int
	fmt.Println(pool.QueryRow(context.Background(), "SELECT count(*) FROM lines").Scan(&n), n)
	// Output:
	// /jobs 200
	// <nil> 1
}

// A copy is in the request's transaction as well.
func ExampleKey_CopyFrom() {
	pool := examplePool()
	defer pool.Close()
	reg, err := sqlreq.New(sqlreq.Binding{DB: sqlreqpgx.OpenDB(pool)})
	if err != nil {
		panic(err)
	}
	err = reg.Do(context.Background(), func(ctx context.Context) error {
		n, err := sqlreqpgx.DefaultKey.CopyFrom(ctx, pgx.Identifier{"lines"}, []string{"text"},
			pgx.CopyFromSlice(1000, func(i int) ([]any, error) { return []any{fmt.Sprint("line ", i)}, nil }))
		fmt.Println(n, err)
		return err
	})
	fmt.Println(err)
	// Output:
	// 1000 <nil>
	// <nil>
}
