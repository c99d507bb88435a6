package guarantees

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	clickhousego "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/clickhouse-go"
	duckdbgo "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/duckdb-go"
	glebarez "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/glebarez/go-sqlite"
	golibsql "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-libsql"
	gomssqldb "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-mssqldb"
	goora "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-ora"
	gosqlspanner "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-sql-spanner"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/godror"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/gorqlite"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/gosnowflake"
	ncruces "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/ncruces/go-sqlite3"
	trinogoclient "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/trino-go-client"
	ydbgosdk "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/ydb-go-sdk"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/mysqlite"
)

// through runs a statement through the Key or its *sql.Tx.
type through func(ctx context.Context, q string) error

func throughKey(ctx context.Context, q string) error {
	_, err := sqlreqtest.Main.ExecContext(ctx, q)
	return err
}

func throughTx(ctx context.Context, q string) error {
	tx, err := sqlreq.Tx(ctx)
	if err == nil {
		_, err = tx.ExecContext(ctx, q)
	}
	return err
}

// What a request's end is on engines beside SQLite, MySQL and PostgreSQL: the client,
// the hooks and the database tell the same.
func TestG11OtherEngines(t *testing.T) {
	type want struct {
		code   int
		hooks  string
		stored string
	}
	fine := want{201, "commit", "INSERT 1"}
	failed := func(code int) want { return want{code, "rollback", ""} }
	for _, row := range []struct {
		name    string
		handler func(ctx context.Context, run through) error
		want    map[string]want // "engine", "engine Key", "engine Tx", each with " Guard" or without, the most special first
	}{
		{"all is well", func(ctx context.Context, run through) error { return run(ctx, "INSERT 1") },
			map[string]want{"": fine}},
		{"a 422", func(ctx context.Context, run through) error {
			return errors.Join(run(ctx, "INSERT 1"), sqlreq.Errorf(422, "no"))
		}, map[string]want{"": failed(422)}},
		{"a constraint error that is returned", func(ctx context.Context, run through) error {
			return errors.Join(run(ctx, "INSERT 1"), run(ctx, "BROKEN"))
		}, map[string]want{"": failed(500)}},
		{"a constraint error that is dealt with", func(ctx context.Context, run through) error {
			err := run(ctx, "INSERT 1")
			_ = run(ctx, "BROKEN")
			return err
		}, map[string]want{"": fine, "DuckDB": failed(500)}},
		{"a conflict in a statement", func(ctx context.Context, run through) error {
			return errors.Join(run(ctx, "INSERT 1"), run(ctx, "CONFLICT"))
		}, map[string]want{
			"": failed(503), // whose ROLLBACK succeeds
			// The server has rolled back, and nothing ran after that.
			"SQL Server Key": failed(503),
			// Nobody can tell what ran after that.
			"SQL Server Tx": {500, "", ""},
		}},
		{"a conflict in a statement that is dealt with", func(ctx context.Context, run through) error {
			err := run(ctx, "INSERT 1")
			_ = run(ctx, "CONFLICT")
			_ = run(ctx, "INSERT 2")
			return err
		}, map[string]want{
			"Oracle":         {201, "commit", "INSERT 1, INSERT 2"},
			"DuckDB Key":     failed(503),
			"DuckDB Tx":      failed(500), // of the check before COMMIT, which says no more than that it is aborted
			"SQL Server Key": failed(503),
			"SQL Server Tx":  {500, "", "INSERT 2"},
		}},
		{"a COMMIT that is refused", func(ctx context.Context, run through) error {
			return errors.Join(run(ctx, "INSERT 1"), run(ctx, "LATE"))
		}, map[string]want{"": failed(503)}},
		{"the transaction is committed by a statement", func(ctx context.Context, run through) error {
			return errors.Join(run(ctx, "INSERT 1"), run(ctx, "RAW COMMIT"))
		}, map[string]want{
			"": {500, "", "INSERT 1"},
			// Its COMMIT succeeds, with nothing to commit.
			"Oracle": fine,
		}},
		{"committed by a statement, then a 422", func(ctx context.Context, run through) error {
			return errors.Join(run(ctx, "INSERT 1"), run(ctx, "RAW COMMIT"), sqlreq.Errorf(422, "no"))
		}, map[string]want{
			"": {422, "", "INSERT 1"},
			// Its ROLLBACK succeeds as well: only DDL ends a transaction there, and nobody is told.
			"Oracle": {422, "rollback", "INSERT 1"},
		}},
	} {
		for _, e := range engines() {
			for way, run := range map[string]through{"Key": throughKey, "Tx": throughTx} {
				for _, guard := range []bool{false, true} {
					if guard && !e.guards {
						continue // TestEnginesAreRefused
					}
					t.Run(fmt.Sprintf("%s/%s/%s/Guard %t", row.name, e.name, way, guard), func(t *testing.T) {
						e := pick(e.name)
						reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: e.db(t), Guard: guard})
						var log sqlreqtest.Recorder
						log.Watch(reg)
						a := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
							log.Hooks(t, r.Context(), sqlreqtest.Main, "")
							err := row.handler(r.Context(), run)
							if err == nil {
								w.WriteHeader(201)
							}
							return err
						})), httptest.NewRequest("POST", "/", nil))
						wanted, ok := row.want[e.name+" "+way]
						if !ok {
							if wanted, ok = row.want[e.name]; !ok {
								wanted = row.want[""]
							}
						}
						if got := (want{a.Code, log.Words(), e.Stored()}); got != wanted {
							t.Errorf("got %+v, want %+v; events %q", got, wanted, log.Events())
						}
					})
				}
			}
		}
	}
}

func pick(name string) *engine {
	for _, e := range engines() {
		if e.name == name {
			return e
		}
	}
	return nil
}

// A conflict is retried on each of them, met by a statement or by COMMIT.
func TestG9OtherEngines(t *testing.T) {
	for _, where := range []string{"CONFLICT", "LATE"} {
		for _, e := range engines() {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: e.db(t)})
			reg.Retry = sqlreqtest.Retries(3)
			var log sqlreqtest.Recorder
			log.Watch(reg)
			attempt := 0
			a := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				attempt++
				err := throughKey(r.Context(), fmt.Sprint("INSERT ", attempt))
				if attempt == 1 {
					err = errors.Join(err, throughKey(r.Context(), where))
				}
				return err
			})), httptest.NewRequest("POST", "/", nil))
			if a.Code != 200 || attempt != 2 || e.Stored() != "INSERT 2" {
				t.Errorf("%s, %s: got %d after %d attempts, stored %q, events %q", e.name, where, a.Code, attempt, e.Stored(), log.Events())
			}
		}
	}
}

// Savepoints as each has them; where there are none an error says so, nothing is sent,
// and the transaction lives.
func TestG11SavepointsOfOtherEngines(t *testing.T) {
	for _, e := range engines() {
		for _, first := range []string{"INSERT 0", ""} {
			t.Run(e.name+"/"+first, func(t *testing.T) {
				e := pick(e.name)
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: e.db(t)})
				for name, savepoint := range map[string]func(context.Context, func(context.Context) error) error{"Savepoint": sqlreq.Savepoint, "Atomic": reg.Atomic} {
					if name == "Atomic" && first == "" {
						continue // it lays none
					}
					e.stored = nil
					want := strings.TrimPrefix(first+", INSERT 1, INSERT 3", ", ")
					if !e.savepoints {
						want = strings.TrimPrefix(first+", INSERT 3", ", ")
					}
					err := reg.Do(t.Context(), func(ctx context.Context) error {
						if first != "" {
							if err := throughKey(ctx, first); err != nil {
								return err
							}
						}
						kept := savepoint(ctx, func(ctx context.Context) error { return throughKey(ctx, "INSERT 1") })
						undone := savepoint(ctx, func(ctx context.Context) error {
							return errors.Join(throughKey(ctx, "INSERT 2"), sqlreqtest.ErrTest)
						})
						for _, err := range []error{kept, undone} {
							if told := err != nil && strings.Contains(err.Error(), "has no savepoints"); told == e.savepoints {
								t.Errorf("%s: got %v", name, err)
							}
						}
						return throughKey(ctx, "INSERT 3")
					})
					if err != nil || e.Stored() != want {
						t.Errorf("%s: got %v, stored %q, want %q", name, err, e.Stored(), want)
					}
				}
			})
		}
	}
}

// A read-only transaction is begun without the flag where the driver refuses it, and
// ends with ROLLBACK all the same, a serializable one too.
func TestReadOnlyOnOtherEngines(t *testing.T) {
	for _, e := range engines() {
		for _, opts := range []*sql.TxOptions{sqlreqtest.ReadOnly, sqlreqtest.ReadOnlySerializable} {
			e.stored = nil
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: e.db(t), TxOptions: sqlreqtest.Options(opts)})
			var log sqlreqtest.Recorder
			log.Watch(reg)
			a := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				log.Hooks(t, r.Context(), sqlreqtest.Main, "")
				return throughKey(r.Context(), "INSERT 1")
			})), httptest.NewRequest("GET", "/", nil))
			if a.Code != 200 || log.Words() != "commit" || e.Stored() != "" {
				t.Errorf("%s, %+v: got %d, hooks %q, stored %q", e.name, *opts, a.Code, log.Words(), e.Stored())
			}
		}
	}
}

// What an engine cannot have is refused when it is bound, or begun by a Route, and the
// error says why.
func TestEnginesAreRefused(t *testing.T) {
	for _, row := range []struct {
		driver driver.Driver
		guard  string // what the error says with Guard; "" for none
		inTest string // and with Tx
		plain  string // and without both
	}{
		{gomssqldb.Driver{}, "", "", ""},
		{goora.Driver{}, "no Guard can be had on Oracle", "", ""},
		{godror.Driver{}, "no Guard can be had on Oracle", "", ""},
		{duckdbgo.Driver{}, "", "DuckDB has none", ""},
		{gosqlspanner.Driver{}, "no Guard can be had on Spanner", "Spanner has none", ""},
		{gosnowflake.Driver{}, "no Guard can be had on Snowflake", "Snowflake has none", ""},
		{ydbgosdk.Driver{}, "no Guard can be had on YDB", "YDB has none", ""},
		{trinogoclient.Driver{}, "no Guard can be had on Trino", "Trino has none", ""},
		{glebarez.Driver{}, "", "", ""},
		{ncruces.Driver{}, "", "", ""},
		{golibsql.Driver{}, "", "", ""},
		{gorqlite.Driver{}, "rqlite has no transactions", "rqlite has no transactions", "rqlite has no transactions"},
		{clickhousego.Driver{}, "ClickHouse has no transactions", "ClickHouse has no transactions", "ClickHouse has no transactions"},
	} {
		d := &fakedb.DB{Named: row.driver}
		db := d.Open(t)
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tx.Rollback() })
		for _, c := range []struct {
			name string
			b    sqlreq.Binding
			want string
		}{
			{"DB", sqlreq.Binding{Key: "k", DB: db}, row.plain},
			{"DB, Guard", sqlreq.Binding{Key: "k", DB: db, Guard: true}, row.guard},
			{"Tx", sqlreq.Binding{Key: "k", Tx: tx}, row.inTest},
			{"Tx, Guard", sqlreq.Binding{Key: "k", Tx: tx, Guard: true}, row.inTest}, // which has no need of it
		} {
			_, err := sqlreq.New(c.b)
			if c.want == "" != (err == nil) || err != nil && (!strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), `key "k"`)) {
				t.Errorf("%T, %s: got %v, want %q", row.driver, c.name, err, c.want)
			}
		}
		for guard, want := range map[bool]string{false: row.plain, true: row.guard} {
			begun := d.Count("BEGIN")
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Guard: guard, Route: func(context.Context, *http.Request) (*sql.DB, error) { return db, nil }})
			err := reg.Do(t.Context(), func(ctx context.Context) error { return throughKey(ctx, "INSERT") })
			if want == "" != (err == nil) || err != nil && (!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `key "main"`)) {
				t.Errorf("%T, Route, Guard %t: got %v, want %q", row.driver, guard, err, want)
			}
			if n := d.Count("BEGIN") - begun; want != "" && n != 0 {
				t.Errorf("%T, Route, Guard %t: begun %d times", row.driver, guard, n)
			}
		}
	}
}

// A driver that gives a connection back inside of the transaction whose end has failed
// does not get it back: it is closed, and the next request has another one.
func TestG4RefusedEndThatStaysOpen(t *testing.T) {
	for _, named := range []driver.Driver{glebarez.Driver{}, ncruces.Driver{}, golibsql.Driver{}} {
		for _, end := range []string{"COMMIT", "ROLLBACK", "BEGIN", ""} {
			for _, guard := range []bool{false, true} {
				d := &fakedb.DB{Named: named, Keeps: true}
				fails := true
				d.Step = func(_ context.Context, text string) error {
					if text == end && fails {
						fails = false
						return &mysqlite.SQLite{Result: 787}
					}
					return nil
				}
				db := d.Open(t)
				db.SetMaxOpenConns(1)
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db, Guard: guard})
				for n := range 2 {
					a := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
						err := throughKey(r.Context(), "INSERT")
						if end == "ROLLBACK" && n == 0 && err == nil {
							return sqlreq.Errorf(422, "no")
						}
						return err
					})), httptest.NewRequest("POST", "/", nil))
					want := 200
					if n == 0 && end == "ROLLBACK" {
						want = 422
					} else if n == 0 && end != "" {
						want = 500
					}
					if a.Code != want {
						t.Errorf("%T, %s, Guard %t, request %d: got %d, want %d", named, end, guard, n, a.Code, want)
					}
				}
				sqlreqtest.Idle(t, db)
				opened := 2
				if end == "" {
					opened = 1 // it was given back, and used again
				}
				if c := d.Counts(); c.Open != 0 || c.Dirty != 0 || c.Opened != opened || c.Closed != opened-1 {
					t.Errorf("%T, %s, Guard %t: %+v", named, end, guard, c)
				}
			}
		}
	}
}

// TiDB refuses the read-only flag by its error alone; other errors of BEGIN stand.
func TestReadOnlyOnTiDB(t *testing.T) {
	for _, row := range []struct {
		opts   *sql.TxOptions
		number uint16
		begins string
	}{
		{sqlreqtest.ReadOnly, 1235, "BEGIN READ ONLY BEGIN"},
		{sqlreqtest.ReadOnly, 1064, "BEGIN READ ONLY"},
		{sqlreqtest.ReadOnlySerializable, 1235, "BEGIN Serializable READ ONLY"}, // whose end is COMMIT
		{&sql.TxOptions{ReadOnly: true, Isolation: sql.LevelRepeatableRead}, 1235, "BEGIN Repeatable Read READ ONLY BEGIN Repeatable Read"},
		{nil, 1235, "BEGIN"},
	} {
		d := &fakedb.DB{Step: func(_ context.Context, text string) error {
			if strings.HasSuffix(text, "READ ONLY") || row.opts == nil && text == "BEGIN" {
				return &mysqlite.MySQL{Number: row.number}
			}
			return nil
		}}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), TxOptions: sqlreqtest.Options(row.opts)})
		err := reg.Do(t.Context(), func(ctx context.Context) error { return throughKey(ctx, "INSERT") })
		var begins []string
		for _, text := range d.Log() {
			if strings.HasPrefix(text, "BEGIN") {
				begins = append(begins, text)
			}
		}
		if got := strings.Join(begins, " "); got != row.begins || (err == nil) != (strings.Count(got, "BEGIN") == 2) {
			t.Errorf("%v, %d: got %v after %q, want %q", row.opts, row.number, err, got, row.begins)
		}
		if n := d.Count("COMMIT"); n != 0 {
			t.Errorf("%v, %d: COMMIT was sent", row.opts, row.number)
		}
	}
}
