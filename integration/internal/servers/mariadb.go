package servers

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "github.com/go-sql-driver/mysql" // to see when a server is ready
)

// MariaDB is a MariaDB server, alone or a node of a Galera cluster.
type MariaDB struct {
	DSN string

	account *account
	argv    []string
	log     string
	process *process
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
	return sharedMariaDB.get(t, func() (*MariaDB, error) {
		m, err := newMariaDB("mariadb", nil)
		if err != nil {
			return nil, err
		}
		return m, m.createDatabase()
	})
}

// SharedGalera returns the nodes of a cluster that the tests leave as it is.
func SharedGalera(t testing.TB) []*MariaDB {
	t.Helper()
	if dsns := strings.Fields(os.Getenv(GaleraDSNs)); len(dsns) > 0 {
		var nodes []*MariaDB
		for _, dsn := range dsns {
			nodes = append(nodes, &MariaDB{DSN: dsn})
		}
		return nodes
	}
	return sharedGalera.get(t, func() ([]*MariaDB, error) { return newGalera(3) })
}

// Own reports whether the server is one that tests may stop.
func (m *MariaDB) Own() bool { return m.process != nil }

// Kill kills the server.
func (m *MariaDB) Kill() { m.process.kill() }

// Rejoin starts a node again that was killed, not the first, and waits until it
// has what it has missed.
func (m *MariaDB) Rejoin() error {
	if err := m.start(); err != nil {
		return err
	}
	return m.synced()
}

// start starts the server and waits until it answers.
func (m *MariaDB) start() error {
	var err error
	if m.process, err = start(m.account, "kill", m.log, m.argv...); err != nil {
		return err
	}
	db, err := sql.Open("mysql", m.DSN)
	if err != nil {
		return err
	}
	defer db.Close()
	return m.process.ready(func(ctx context.Context) error { return db.PingContext(ctx) })
}

// newMariaDB starts a server with settings beside those that all have.
func newMariaDB(name string, settings []string, args ...string) (*MariaDB, error) {
	install, err := program("mariadb-install-db")
	if err != nil {
		return nil, &errMissing{"MariaDB", "mariadb-server"}
	}
	daemon, err := program("mariadbd")
	if err != nil {
		return nil, &errMissing{"MariaDB", "mariadb-server"}
	}
	u, err := accountOf("mysql")
	if err != nil {
		return nil, err
	}
	dir, err := u.folder(name)
	if err != nil {
		return nil, err
	}
	free, err := ports(1)
	if err != nil {
		return nil, err
	}
	conf := append([]string{
		"[mysqld]",
		"datadir=" + filepath.Join(dir, "data"),
		"socket=" + filepath.Join(dir, "s.sock"),
		"pid-file=" + filepath.Join(dir, "pid"),
		"log-error=" + filepath.Join(dir, "log"),
		fmt.Sprintf("port=%d", free[0]),
		"bind-address=127.0.0.1",
		"skip-name-resolve",
		"default_storage_engine=InnoDB",
		"innodb_flush_log_at_trx_commit=2",
		"innodb_flush_method=nosync",
		"innodb_doublewrite=0",
		"innodb_buffer_pool_size=64M",
		"innodb_log_file_size=32M",
		"performance_schema=OFF",
	}, settings...)
	file := filepath.Join(dir, "my.cnf")
	if err := u.write(file, strings.Join(conf, "\n")+"\n"); err != nil {
		return nil, err
	}
	if err := u.run(dir, install, "--no-defaults", "--datadir="+filepath.Join(dir, "data"), "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"); err != nil {
		return nil, err
	}
	m := &MariaDB{
		DSN:     fmt.Sprintf("root@tcp(127.0.0.1:%d)/", free[0]),
		account: u,
		argv:    append([]string{daemon, "--defaults-file=" + file}, args...),
		log:     filepath.Join(dir, "log"),
	}
	return m, m.start()
}

// createDatabase makes a database, and m.DSN one that names it.
func (m *MariaDB) createDatabase() error {
	db, err := sql.Open("mysql", m.DSN)
	if err != nil {
		return err
	}
	defer db.Close()
	m.DSN += "sqlreq"
	_, err = db.Exec("CREATE DATABASE IF NOT EXISTS sqlreq")
	return err
}
