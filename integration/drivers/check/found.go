// Package check has what the tests of several packages ask of a driver.
package check

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"sync/atomic"
	"testing"

	"contrib.go.opencensus.io/integrations/ocsql"
	xsam "github.com/XSAM/otelsql"
	"github.com/luna-duclos/instrumentedsql"
	"github.com/ngrok/sqlmw"
	"github.com/qustavo/sqlhooks/v2"
	sqldblogger "github.com/simukti/sqldb-logger"
	"github.com/sqlreq/sqlreq/internal/dialect"
	uptrace "github.com/uptrace/opentelemetry-go-extra/otelsql"
	nhatthm "go.nhat.io/otelsql"
)

// Driver is one of those that docs/databases.md names.
type Driver struct {
	Name string          // as it registers itself
	DSN  string          // which it takes; nobody need be there
	Want dialect.Dialect // Standard is any that is treated as the standard's
}

// wrappers wrap a driver, which is then opened by name.
var wrappers = map[string]func(driver.Driver) driver.Driver{
	"XSAM/otelsql":    func(d driver.Driver) driver.Driver { return xsam.WrapDriver(d) },
	"go.nhat.io":      func(d driver.Driver) driver.Driver { return nhatthm.Wrap(d) },
	"sqlmw":           func(d driver.Driver) driver.Driver { return sqlmw.Driver(d, sqlmw.NullInterceptor{}) },
	"instrumentedsql": func(d driver.Driver) driver.Driver { return instrumentedsql.WrapDriver(d) },
	"ocsql":           func(d driver.Driver) driver.Driver { return ocsql.Wrap(d) },
	"sqlhooks":        func(d driver.Driver) driver.Driver { return sqlhooks.Wrap(d, nil) },
}

// connectors wrap a connector.
var connectors = map[string]func(driver.Connector) *sql.DB{
	"XSAM/otelsql": func(c driver.Connector) *sql.DB { return xsam.OpenDB(c) },
	"uptrace":      func(c driver.Connector) *sql.DB { return uptrace.OpenDB(c) },
	"ocsql":        func(c driver.Connector) *sql.DB { return sql.OpenDB(ocsql.WrapConnector(c)) },
}

// whole open a pool of a driver by themselves.
var whole = map[string]func(dsn string, d driver.Driver) *sql.DB{
	"sqldb-logger": func(dsn string, d driver.Driver) *sql.DB { return sqldblogger.OpenDriver(dsn, d, noLog{}) },
}

// registered counts the names that were given to database/sql.
var registered atomic.Int32

// Pools is how many pools Found asks of each driver: as it is, by six wrappers of drivers alone and below another one, by a
// logger, and by three wrappers of connectors.
const Pools = 1 + 2*6 + 1 + 3

// Found checks that internal/dialect finds the driver, opened by its name and below each wrapper, and returns how many
// pools were asked.
func (d Driver) Found(t *testing.T) (pools int) {
	t.Helper()
	db, err := sql.Open(d.Name, d.DSN)
	if err != nil {
		t.Errorf("%s: %v", d.Name, err)
		return 0
	}
	named := db.Driver()
	pools += d.Asks(t, "as it is", db)
	for how, wrap := range wrappers {
		pools += d.Below(t, how, named, wrap)
	}
	for how, open := range whole {
		pools += d.Asks(t, how, open(d.DSN, named))
	}
	for how, open := range connectors {
		c, err := d.connector(named)
		if err != nil {
			t.Errorf("%s: %v", d.Name, err)
			continue
		}
		pools += d.Asks(t, "the connector of "+how, open(c))
	}
	return pools
}

// Below checks that the driver is found below a wrapper, and below that one in another.
func (d Driver) Below(t *testing.T, how string, named driver.Driver, wrap func(driver.Driver) driver.Driver) (pools int) {
	t.Helper()
	wrapped := wrap(named)
	name := fmt.Sprint("wrapped ", registered.Add(1))
	sql.Register(name, wrapped)
	db, err := sql.Open(name, d.DSN)
	if err != nil {
		t.Errorf("%s, %s: %v", d.Name, how, err)
		return 0
	}
	return d.Asks(t, how, db) + d.Asks(t, how+" below sqlmw", sql.OpenDB(byDSN{d.DSN, sqlmw.Driver(wrapped, sqlmw.NullInterceptor{})}))
}

// Asks checks what is found in a pool, which it closes.
func (d Driver) Asks(t *testing.T, how string, db *sql.DB) (pools int) {
	t.Helper()
	defer db.Close()
	if got := dialect.Of(db); got != d.Want && (d.Want != dialect.Standard || !standard(got)) {
		t.Errorf("%s, %s: got %d, want %d; its driver is a %T", d.Name, how, got, d.Want, db.Driver())
	}
	return 1
}

// standard reports whether nothing that sqlreq does differs from the standard.
func standard(d dialect.Dialect) bool {
	const s = dialect.Standard
	return d.Savepoint("a") == s.Savepoint("a") && d.Release("a") == s.Release("a") && d.RollbackTo("a") == s.RollbackTo("a") &&
		d.Refuses(true, true) == nil && d.NoSavepoints() == nil && d.GuardsBySavepoint() && !d.IgnoresReadOnly() && !d.KeepsRefused()
}

// connector returns what database/sql opens connections of the driver with.
func (d Driver) connector(of driver.Driver) (driver.Connector, error) {
	if of, ok := of.(driver.DriverContext); ok {
		return of.OpenConnector(d.DSN)
	}
	return byDSN{d.DSN, of}, nil
}

// byDSN is database/sql's connector for a driver that has none.
type byDSN struct {
	dsn string
	d   driver.Driver
}

func (c byDSN) Connect(context.Context) (driver.Conn, error) { return c.d.Open(c.dsn) }
func (c byDSN) Driver() driver.Driver                        { return c.d }

// noLog is a logger.
type noLog struct{}

func (noLog) Log(context.Context, sqldblogger.Level, string, map[string]any) {}
