package servers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// MariaDB is a MariaDB server, alone or a node of a Galera cluster.
type MariaDB struct {
	// DSN is for go-sql-driver/mysql.
	DSN string

	*server // nil if DSN is from the environment
}

var (
	sharedMariaDB once[*MariaDB]
	sharedGalera  once[[]*MariaDB]
)

// SharedMariaDB returns the server that all tests use which leave it as it is.
func SharedMariaDB(t testing.TB) *MariaDB {
	t.Helper()
	if dsn := os.Getenv(MariaDBDSN); dsn != "" {
		return &MariaDB{DSN: dsn}
	}
	return sharedMariaDB.get(t, func() (*MariaDB, error) { return StartMariaDB() })
}

// NewMariaDB starts a server of the test's own.
func NewMariaDB(t testing.TB, settings ...string) *MariaDB {
	t.Helper()
	m, err := StartMariaDB(settings...)
	need(t, err)
	removeAfter(t, m.server)
	return m
}

// StartMariaDB starts a server.
func StartMariaDB(settings ...string) (*MariaDB, error) {
	m, err := newMariaDB("mariadb", settings)
	if err != nil {
		return nil, err
	}
	if err := m.Start(); err != nil {
		return nil, err
	}
	return m, m.createDatabase()
}

// newMariaDB returns a server that has its system tables and still has to be started.
func newMariaDB(name string, settings []string) (*MariaDB, error) {
	install, err := program("mariadb-install-db")
	if err != nil {
		return nil, &errMissing{"MariaDB", "mariadb-server"}
	}
	daemon, err := program("mariadbd")
	if err != nil {
		return nil, &errMissing{"MariaDB", "mariadb-server"}
	}
	s, err := newServer(name, "mysql")
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(s.dir, "my.cnf")
	if err := s.account.write(conf, mariadbConf(s.dir, s.port, settings)); err != nil {
		return nil, err
	}
	if err := s.account.run(s.dir, install, "--no-defaults", "--datadir="+filepath.Join(s.dir, "data"), "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"); err != nil {
		return nil, err
	}
	s.argv = []string{daemon, "--defaults-file=" + conf}
	m := &MariaDB{DSN: fmt.Sprintf("root@tcp(127.0.0.1:%d)/sqlreq", s.port), server: s}
	s.ready = func(ctx context.Context) error {
		_, err := m.client(ctx, "mariadb-admin", "ping")
		return err
	}
	return m, nil
}

func mariadbConf(dir string, port int, settings []string) string {
	return strings.Join(append([]string{
		"[mysqld]",
		"datadir=" + dir + "/data",
		"socket=" + dir + "/s.sock",
		"pid-file=" + dir + "/pid",
		"port=" + strconv.Itoa(port),
		"bind-address=127.0.0.1",
		"skip-name-resolve",
		"default_storage_engine=InnoDB",
		"innodb_flush_log_at_trx_commit=2",
		"innodb_flush_method=nosync",
		"innodb_doublewrite=0",
		"innodb_buffer_pool_size=64M",
		"innodb_log_file_size=32M",
		"performance_schema=OFF",
	}, settings...), "\n") + "\n"
}

// client runs a client program on the server.
func (m *MariaDB) client(ctx context.Context, name string, args ...string) (string, error) {
	return client(ctx, append([]string{name, "--no-defaults", "--protocol=tcp", "--host=127.0.0.1", fmt.Sprintf("--port=%d", m.port),
		"--user=root", "--connect-timeout=5"}, args...)...)
}

// query returns what the client prints for a statement, without names of columns.
func (m *MariaDB) query(ctx context.Context, statement string) (string, error) {
	return m.client(ctx, "mariadb", "--skip-column-names", "--batch", "--execute="+statement)
}

// createDatabase makes the database that m.DSN names.
func (m *MariaDB) createDatabase() error {
	_, err := m.query(context.Background(), "CREATE DATABASE IF NOT EXISTS sqlreq")
	return err
}
