package drivers

import (
	"testing"

	_ "github.com/glebarez/go-sqlite"
	_ "github.com/nakagami/firebirdsql"
	_ "github.com/ncruces/go-sqlite3/driver"
	_ "github.com/rqlite/gorqlite/stdlib"
	"github.com/sqlreq/sqlreq/integration/drivers/check"
	"github.com/sqlreq/sqlreq/internal/dialect"
	_ "github.com/trinodb/trino-go-client/trino"
	_ "github.com/tursodatabase/go-libsql"
)

// The dialect of each real driver is found by its type, as it is and below each wrapper.
func TestFound(t *testing.T) {
	pools := 0
	for _, d := range []check.Driver{
		{Name: "sqlserver", DSN: "sqlserver://sa:x@127.0.0.1:1", Want: dialect.SQLServer},
		{Name: "mssql", DSN: "sqlserver://sa:x@127.0.0.1:1", Want: dialect.SQLServer},
		{Name: "oracle", DSN: "oracle://scott:tiger@127.0.0.1:1/x", Want: dialect.Oracle},
		{Name: "godror", DSN: `user="scott" password="tiger" connectString="127.0.0.1:1/x"`, Want: dialect.OracleC},
		{Name: "duckdb", DSN: "", Want: dialect.DuckDB},
		{Name: "trino", DSN: "http://u@127.0.0.1:1", Want: dialect.Trino},
		{Name: "sqlite", DSN: ":memory:", Want: dialect.Glebarez},
		{Name: "sqlite3", DSN: ":memory:", Want: dialect.Ncruces},
		{Name: "libsql", DSN: "file::memory:", Want: dialect.LibSQL},
		{Name: "rqlite", DSN: "http://127.0.0.1:1", Want: dialect.Rqlite},
		{Name: "firebirdsql", DSN: "sysdba:masterkey@127.0.0.1:1/x", Want: dialect.Standard},
	} {
		pools += d.Found(t)
	}
	if pools != 11*check.Pools {
		t.Errorf("%d pools were asked", pools)
	}
}
