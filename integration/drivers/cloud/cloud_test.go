package cloud

import (
	"database/sql"
	"database/sql/driver"
	"fmt"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
	ddsql "github.com/DataDog/dd-trace-go/contrib/database/sql/v2"
	spanner "github.com/googleapis/go-sql-spanner"
	"github.com/newrelic/go-agent/v3/newrelic"
	"github.com/snowflakedb/gosnowflake"
	. "github.com/sqlreq/sqlreq/integration/drivers/check"
	"github.com/sqlreq/sqlreq/internal/dialect"
	_ "github.com/tursodatabase/libsql-client-go/libsql"
	_ "github.com/ydb-platform/ydb-go-sdk/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The dialect of each real driver is found by its type, as it is and below each wrapper.
func TestFound(t *testing.T) {
	pools := 0
	for _, d := range []Driver{
		{Name: "snowflake", DSN: "u:p@account/db", Want: dialect.Snowflake},
		{Name: "spanner", DSN: "projects/p/instances/i/databases/d", Want: dialect.Spanner},
		{Name: "ydb", DSN: "grpc://127.0.0.1:1/local?balancer=disable", Want: dialect.YDB},
		{Name: "clickhouse", DSN: "clickhouse://127.0.0.1:1/d", Want: dialect.ClickHouse},
		{Name: "libsql", DSN: "http://127.0.0.1:1", Want: dialect.LibSQL},
	} {
		pools += d.Found(t)
		db, err := sql.Open(d.Name, d.DSN)
		if err != nil {
			t.Error(err)
			continue
		}
		pools += d.Below(t, "newrelic", db.Driver(), func(d driver.Driver) driver.Driver {
			return newrelic.InstrumentSQLDriver(d, newrelic.SQLDriverSegmentBuilder{})
		})
		traced := fmt.Sprint("traced ", d.Name)
		ddsql.Register(traced, db.Driver())
		if db, err = ddsql.Open(traced, d.DSN); err != nil {
			t.Error(err)
			continue
		}
		pools += d.Asks(t, "dd-trace-go", db)
	}
	if pools != 5*(Pools+3) {
		t.Errorf("%d pools were asked", pools)
	}
}

// Nothing is read in their errors yet: a COMMIT that fails is Ambiguous, and Retry needs Retryable.
func TestErrors(t *testing.T) {
	for name, err := range map[string]error{
		"Snowflake":            &gosnowflake.SnowflakeError{Number: 625, SQLState: "57014", Message: "statement locked"},
		"Spanner, aborted":     status.Error(codes.Aborted, "transaction was aborted"),
		"Spanner, retry fails": spanner.ErrAbortedDueToConcurrentModification,
		"ClickHouse":           &clickhouse.Exception{Code: 60, Message: "no such table"},
	} {
		Nothing.Read(t, name, err)
	}
}
