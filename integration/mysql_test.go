package integration

import (
	"io"
	"log"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/sqlreq/sqlreq/integration/conformance"
	"github.com/sqlreq/sqlreq/internal/servers"
)

func init() {
	// The driver logs every connection that breaks, and here they do by the dozen.
	_ = mysql.SetLogger(log.New(io.Discard, "", 0))
	databases = append(databases, database{
		name:    "MariaDB, go-sql-driver/mysql",
		driver:  "mysql",
		dsn:     func(t testing.TB) string { return servers.SharedMariaDB(t).DSN },
		dialect: conformance.MySQL,
		leftOut: 2,
	})
}
