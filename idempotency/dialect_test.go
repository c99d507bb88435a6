package idempotency_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	duckdbgo "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/duckdb-go"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/firebirdsql"
	glebarez "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/glebarez/go-sqlite"
	golibsql "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-libsql"
	gomssqldb "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-mssqldb"
	goora "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-ora"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-sql-driver/mysql"
	gosqlspanner "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-sql-spanner"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/godror"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/gosnowflake"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/lib/pq"
	ncruces "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/ncruces/go-sqlite3"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/pgx"
	trinogoclient "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/trino-go-client"
	ydbgosdk "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/ydb-go-sdk"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// found is a Once whose Dialect is told by the driver.
func found() *idempotency.Once { return &idempotency.Once{Scope: noScope} }

// around hides a driver or a connector, as tracers do.
type around struct {
	name string
	in   driver.Driver
}

func (around) Open(string) (driver.Conn, error) { return nil, errors.New("opens nothing") }

type traced struct{ driver.Connector }

func (traced) Driver() driver.Driver { return around{} }

// What is found of a SQLite file behind a wrapper serves all functions of the package.
func TestDialectIsFound(t *testing.T) {
	var d fakedb.DB
	plain := sqlreqtest.OpenFaulty(t, &d)
	wrapped := sql.OpenDB(traced{file{d.Behind, d.DSN}})
	t.Cleanup(func() { wrapped.Close() })
	for name, db := range map[string]*sql.DB{"plain": plain, "wrapped": wrapped} {
		t.Run(name, func(t *testing.T) {
			ctx, once := t.Context(), found()
			once.Table = name
			if err := once.CreateTable(ctx, db); err != nil {
				t.Fatal(err)
			}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			srv := serve(t, reg, once, new(work))
			want(t, post(t, srv.URL, "k", ""), "201 order 1")
			want(t, post(t, srv.URL, "k", ""), "201 order 1 (replayed)")
			for _, wanted := range []bool{true, false} {
				if first, err := once.Do(ctx, reg, "", "id", func(context.Context) error { return nil }); first != wanted || err != nil {
					t.Errorf("Do: got %v, %v, want %v", first, err, wanted)
				}
			}
			tx, err := db.Begin()
			if err != nil {
				t.Fatal(err)
			}
			inTest := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{Tx: tx}), once, new(work))
			want(t, post(t, inTest.URL, "in-a-test", ""), "201 order 1")
			want(t, post(t, inTest.URL, "in-a-test", ""), "201 order 1 (replayed)")
			if err := tx.Rollback(); err != nil {
				t.Error(err)
			}
			if _, err := db.Exec("UPDATE " + name + " SET created_at = 0"); err != nil {
				t.Fatal(err)
			}
			if n, err := once.Clean(ctx, db, time.Hour); n != 2 || err != nil {
				t.Errorf("Clean: got %d, %v, want 2", n, err)
			}
		})
	}
}

// file is a connector to a file.
type file struct {
	driver driver.Driver
	dsn    string
}

func (f file) Driver() driver.Driver { return nil }

func (f file) Connect(context.Context) (driver.Conn, error) { return f.driver.Open(f.dsn) }

// engine is a fake database of a driver.
type engine struct {
	name   string
	driver driver.Driver
	insert string // a part of the statement that the dialect has
}

var spoken = []engine{
	{"pgx", pgx.Driver{}, "VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"},
	{"lib/pq", &pq.Driver{}, "VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"},
	{"pgx behind two wrappers", around{"a", around{"b", &pgx.Driver{}}}, "VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"},
	{"MySQL", mysql.Driver{}, "INSERT IGNORE"},
	{"MySQL behind a wrapper", &around{"a", mysql.Driver{}}, "INSERT IGNORE"},
	{"SQLite by glebarez", glebarez.Driver{}, "VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"},
	{"SQLite by ncruces", ncruces.Driver{}, "VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"},
	{"libSQL", golibsql.Driver{}, "VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"},
}

func (e engine) check(t *testing.T, d *fakedb.DB, wanted string) {
	t.Helper()
	if log := strings.Join(d.Log(), "\n"); strings.Count(log, "INSERT") != 1 || !strings.Contains(log, wanted) {
		t.Errorf("%s: got %q, want one INSERT with %q", e.name, log, wanted)
	}
}

// Each driver has its statements, whichever function sends them.
func TestDialectOfEachDriver(t *testing.T) {
	for _, e := range spoken {
		d := &fakedb.DB{Named: e.driver}
		db := d.Open(t)
		once := found()
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
		srv := serve(t, reg, once, handle(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "done") }))
		want(t, post(t, srv.URL, "k", ""), "200 done")
		e.check(t, d, e.insert)

		d = &fakedb.DB{Named: e.driver}
		reg = sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
		if first, err := once.Do(t.Context(), reg, "", "id", func(context.Context) error { return nil }); !first || err != nil {
			t.Errorf("%s: got %v, %v", e.name, first, err)
		}
		e.check(t, d, e.insert)
	}
}

type unknown struct{ driver.Driver }

// An engine without what the record needs is refused by each function, before any statement.
func TestDialectIsNotFound(t *testing.T) {
	for _, e := range []engine{
		{name: "SQL Server", driver: gomssqldb.Driver{}},
		{name: "SQL Server", driver: around{"a", gomssqldb.Driver{}}},
		{name: "Oracle", driver: goora.Driver{}},
		{name: "Oracle", driver: godror.Driver{}},
		{name: "DuckDB", driver: duckdbgo.Driver{}},
		{name: "Spanner", driver: gosqlspanner.Driver{}},
		{name: "Snowflake", driver: gosnowflake.Driver{}},
		{name: "YDB", driver: ydbgosdk.Driver{}},
		{name: "Trino", driver: trinogoclient.Driver{}},
		{name: "Firebird", driver: firebirdsql.Driver{}},
		{name: "does not tell", driver: unknown{}},
		{name: "does not tell"}, // a connector without a driver
	} {
		for _, routed := range []bool{false, true} {
			d := &fakedb.DB{Named: e.driver}
			db := d.Open(t)
			binding := sqlreq.Binding{Key: "orders", DB: db}
			if routed {
				binding = sqlreq.Binding{Key: "orders", Route: func(context.Context, *http.Request) (*sql.DB, error) { return db, nil }}
			}
			reg := sqlreqtest.NewRegistry(t, binding)
			var log sqlreqtest.Recorder
			reg.Logger = log.Logger()
			once := found()
			once.Database = "orders"
			srv := serve(t, reg, once, handle(func(http.ResponseWriter, *http.Request) { t.Errorf("%s: the handler was called", e.name) }))
			want(t, post(t, srv.URL, "k", ""), "500 Internal Server Error")
			says := func(what, text, key string) {
				t.Helper()
				if !strings.Contains(text, e.name) || !strings.Contains(text, "set Once.Dialect") || !strings.Contains(text, key) {
					t.Errorf("%s, %s: got %q", e.name, what, text)
				}
			}
			says("a request", fmt.Sprint(log.Records()), `"orders"`)
			first, err := once.Do(t.Context(), reg, "", "id", func(context.Context) error {
				t.Errorf("%s: the function was called", e.name)
				return nil
			})
			if first {
				t.Errorf("%s: Do says that it was the first", e.name)
			}
			says("Do", fmt.Sprint(err), `"orders"`)
			says("CreateTable", fmt.Sprint(once.CreateTable(t.Context(), db)), "idempotency_keys")
			_, err = once.Clean(t.Context(), db, 0)
			says("Clean", fmt.Sprint(err), "idempotency_keys")
			d.CheckLog(t, "BEGIN", "ROLLBACK", "BEGIN", "ROLLBACK")
			d.CheckClean(t)
		}
	}
}

// A Dialect that is set is used whatever the driver is.
func TestDialectThatIsSet(t *testing.T) {
	for _, e := range []engine{{name: "DuckDB", driver: duckdbgo.Driver{}}, {name: "unknown", driver: unknown{}}, {name: "MySQL", driver: mysql.Driver{}}} {
		d := &fakedb.DB{Named: e.driver}
		db := d.Open(t)
		once := &idempotency.Once{Dialect: idempotency.PostgreSQL, Scope: noScope}
		srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), once, handle(func(http.ResponseWriter, *http.Request) {}))
		want(t, post(t, srv.URL, "k", ""), "200 ")
		e.check(t, d, "VALUES ($1, $2, $3, $4)")
		if err := once.CreateTable(t.Context(), db); err != nil {
			t.Error(err)
		}
		if _, err := once.Clean(t.Context(), db, 0); err != nil {
			t.Error(err)
		}
		if log := strings.Join(d.Log(), "\n"); !strings.Contains(log, `text COLLATE "C"`) || !strings.Contains(log, "created_at < $1") {
			t.Errorf("%s: got %q", e.name, log)
		}
	}
}

// With a Route each pool has the statements of its driver, in a second transaction of the request too.
func TestDialectOfARoute(t *testing.T) {
	pools := make(map[string]*sql.DB)
	fakes := make(map[string]*fakedb.DB)
	for _, e := range spoken {
		fakes[e.name] = &fakedb.DB{Named: e.driver}
		pools[e.name] = fakes[e.name].Open(t)
	}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Route: func(_ context.Context, r *http.Request) (*sql.DB, error) {
		return pools[r.Header.Get("Tenant")], nil
	}})
	srv := serve(t, reg, found(), handle(func(w http.ResponseWriter, r *http.Request) {
		if err := sqlreq.Rollback(r.Context()); err != nil { // takes the key along
			t.Error(err)
		}
		insertWork(t, r.Context())
	}))
	for _, e := range spoken {
		want(t, post(t, srv.URL, "k", "", "Tenant", e.name), "200 ")
		inserts := 0
		for _, text := range fakes[e.name].Log() {
			if strings.Contains(text, "idempotency_keys") && strings.Contains(text, "INSERT") {
				inserts++
				if !strings.Contains(text, e.insert) {
					t.Errorf("%s: got %q, want %q", e.name, text, e.insert)
				}
			}
		}
		if inserts != 2 {
			t.Errorf("%s: the key was inserted %d times, want twice", e.name, inserts)
		}
	}
}
