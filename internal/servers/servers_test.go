package servers

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Getenv("SQLREQ_TEST_DIE") != "" {
		die()
	}
	os.Exit(Run(m))
}

// A missing program must skip with the package's name, or fail where that is not allowed.
func TestMissingNamesThePackage(t *testing.T) {
	err := &errMissing{"PostgreSQL", "postgresql"}
	if got, want := err.Error(), "PostgreSQL is not installed: apt-get install postgresql"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for require, want := range map[string]string{"": "skip", "1": "fatal"} {
		t.Setenv(Require, require)
		r := &recorder{TB: t}
		need(r, err)
		if r.what != want {
			t.Errorf("%s=%q: got %q, want %q", Require, require, r.what, want)
		}
	}
	t.Setenv(Require, "")
	r := &recorder{TB: t}
	if need(r, fmt.Errorf("node 1: %w", net.ErrClosed)); r.what != "fatal" {
		t.Errorf("another error: got %q, want fatal", r.what)
	}
}

// recorder is a test that only notes how it would have ended.
type recorder struct {
	testing.TB
	what string
}

func (r *recorder) Skip(...any)  { r.what = "skip" }
func (r *recorder) Fatal(...any) { r.what = "fatal" }

// A DSN of the environment is used instead of a server, which is not the test's to stop.
func TestDSNsOfTheEnvironment(t *testing.T) {
	t.Setenv(PostgresDSN, "p")
	t.Setenv(StandbyDSN, "s")
	t.Setenv(MariaDBDSN, "m")
	t.Setenv(GaleraDSNs, "g1 g2")
	primary, standby := SharedPair(t)
	galera := SharedGalera(t)
	if len(galera) != 2 {
		t.Fatalf("got %d nodes, want 2", len(galera))
	}
	got := []string{SharedPostgres(t).DSN, primary.DSN, standby.DSN, SharedMariaDB(t).DSN, galera[0].DSN, galera[1].DSN}
	if want := []string{"p", "p", "s", "m", "g1", "g2"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if primary.Own() || SharedMariaDB(t).Own() {
		t.Error("a server of somebody else is said to be the test's own")
	}
	if own := (&Postgres{server: new(server)}); !own.Own() {
		t.Error("a server of the test's own is said to be somebody else's")
	}
}

func TestPorts(t *testing.T) {
	found, err := ports(20)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[int]bool)
	for _, port := range found {
		if seen[port] || port < 10000 || port >= 32768 {
			t.Errorf("port %d is there twice, or not between those of the system and of clients: %d", port, found)
		}
		seen[port] = true
	}
	if len(found) != 20 {
		t.Errorf("got %d ports, want 20", len(found))
	}
}

func TestProgram(t *testing.T) {
	dir := t.TempDir()
	for _, version := range []string{"14", "15"} {
		if err := os.MkdirAll(filepath.Join(dir, version), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, version, "sqlreq-test"), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got, err := program("sqlreq-test", filepath.Join(dir, "*"))
	if want := filepath.Join(dir, "15", "sqlreq-test"); got != want || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if got, err := program("sqlreq-test-of-none"); err == nil {
		t.Errorf("got %q, want an error", got)
	}
}

// What is given comes last and wins.
func TestConfigurations(t *testing.T) {
	for _, c := range []struct{ name, got, want string }{
		{"postgresql.auto.conf", postgresConf(5001, []string{"fsync = on"}), `port = 5001
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = off
shared_buffers = 32MB
max_connections = 100
deadlock_timeout = 100ms
fsync = on
`},
		{"pgbouncer.ini", pgbouncerConf("/d", 5002, 5001, []string{"default_pool_size = 1"}), `[databases]
* = host=127.0.0.1 port=5001
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = 5002
unix_socket_dir =
auth_type = trust
auth_file = /d/users
admin_users = postgres
pool_mode = transaction
ignore_startup_parameters = extra_float_digits
default_pool_size = 1
`},
		{"my.cnf", mariadbConf("/d", 5003, []string{"innodb_rollback_on_timeout=ON"}), `[mysqld]
datadir=/d/data
socket=/d/s.sock
pid-file=/d/pid
port=5003
bind-address=127.0.0.1
skip-name-resolve
default_storage_engine=InnoDB
innodb_flush_log_at_trx_commit=2
innodb_flush_method=nosync
innodb_doublewrite=0
innodb_buffer_pool_size=64M
innodb_log_file_size=32M
performance_schema=OFF
innodb_rollback_on_timeout=ON
`},
		{"my.cnf of a node", strings.Join(galeraSettings("/l.so", []int{1, 2, 3, 4, 5, 6}, 1), "\n"), `binlog_format=ROW
innodb_autoinc_lock_mode=2
wsrep_on=ON
wsrep_provider=/l.so
wsrep_cluster_name=sqlreq
wsrep_cluster_address=gcomm://127.0.0.1:1,127.0.0.1:4
wsrep_node_name=n2
wsrep_node_address=127.0.0.1:4
wsrep_sst_method=rsync
wsrep_sst_receive_address=127.0.0.1:6
wsrep_slave_threads=2
wsrep_provider_options="base_host=127.0.0.1;base_port=4;gmcast.listen_addr=tcp://127.0.0.1:4;ist.recv_addr=127.0.0.1:5;gcache.size=32M"`},
	} {
		if c.got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, c.got, c.want)
		}
	}
}
