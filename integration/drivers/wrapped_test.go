package drivers

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/duckdb/duckdb-go/v2"
	"github.com/glebarez/go-sqlite"
	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// wrapper is a program's own connector.
type wrapper[T any] struct {
	has     T // of the driver
	told    driver.Driver
	connect func(context.Context) (driver.Conn, error)
}

func (w wrapper[T]) Driver() driver.Driver                            { return w.told }
func (w wrapper[T]) Connect(ctx context.Context) (driver.Conn, error) { return w.connect(ctx) }

// unknown is a driver that nothing is known of.
type unknown struct{ driver.Driver }

// DuckDB's COMMIT answers with success in an aborted transaction. Where its driver is
// found below a wrapper, no client is told that.
func TestWrappedDuckDB(t *testing.T) {
	in, err := duckdb.NewConnector("", nil)
	if err != nil {
		t.Fatal(err)
	}
	type inside struct{ in driver.Connector }
	type both struct{ a, b driver.Driver }
	for name, c := range map[string]driver.Connector{
		"a field of its own type":     wrapper[*duckdb.Connector]{in, nil, in.Connect},
		"a field of DriverContext":    wrapper[driver.DriverContext]{duckdb.Driver{}, unknown{}, in.Connect},
		"a struct in the wrapper":     wrapper[inside]{inside{in}, nil, in.Connect},
		"behind an unknown driver":    wrapper[both]{both{unknown{}, in.Driver()}, nil, in.Connect},
		"one of several":              wrapper[[]driver.Connector]{[]driver.Connector{in}, nil, in.Connect},
		"Driver tells of another one": wrapper[driver.Connector]{in, &sqlite.Driver{}, in.Connect},
		"Driver tells":                wrapper[int]{0, in.Driver(), in.Connect},
	} {
		t.Run(name, func(t *testing.T) {
			db := sql.OpenDB(c)
			db.SetMaxOpenConns(1) // the last one to be closed takes the database along
			for _, query := range []string{"CREATE OR REPLACE TABLE work (n INTEGER PRIMARY KEY)", "INSERT INTO work VALUES (1)"} {
				if _, err := db.Exec(query); err != nil {
					t.Fatal(err)
				}
			}
			var log sqlreqtest.Recorder
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			a := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) error {
				log.Hooks(t, r.Context(), sqlreqtest.Main, "x")
				err := byTx(r.Context(), "INSERT INTO work VALUES (2)")
				_ = byTx(r.Context(), "INSERT INTO work VALUES (1)") // aborts the transaction
				rw.WriteHeader(201)
				return err
			})), httptest.NewRequest("POST", "/", nil))
			if stored := readWork(t, db); a.Code != 500 || log.Words() != "rollbackx" || stored != "1" {
				t.Errorf("got %d, the hooks %q, and %q is stored", a.Code, log.Words(), stored)
			}
		})
	}
}

// embedded is a driver with something of the program's own.
type embedded struct{ *sqlite.Driver }

func init() { sql.Register("embedded", embedded{new(sqlite.Driver)}) } // a test may run more than once

// glebarez gives a connection back inside of the transaction whose COMMIT was refused. Nobody
// gets it, also where the driver is embedded.
func TestEmbeddedGlebarez(t *testing.T) {
	db, err := sql.Open("embedded", "file:"+t.TempDir()+"/x.db?_pragma=foreign_keys(1)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	_, err = db.Exec("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
	if _, err2 := db.Exec("CREATE TABLE work (n INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)"); err != nil || err2 != nil {
		t.Fatal(errors.Join(err, err2))
	}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	a := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		return byKey(r.Context(), "INSERT INTO work VALUES (1)")
	})), httptest.NewRequest("POST", "/", nil))
	if stored := readWork(t, db); a.Code != 500 || stored != "" {
		t.Errorf("got %d, and the next one reads %q", a.Code, stored)
	}
}
