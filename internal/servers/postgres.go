package servers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Postgres is a PostgreSQL server.
type Postgres struct {
	// DSN is for pgx and lib/pq.
	DSN string

	*server        // nil if DSN is from the environment
	bin     string // the folder of the programs
}

var (
	sharedPostgres once[*Postgres]
	sharedPair     once[[2]*Postgres]
)

// SharedPostgres returns the server that all tests use which leave it as it is.
func SharedPostgres(t testing.TB) *Postgres {
	t.Helper()
	if dsn := os.Getenv(PostgresDSN); dsn != "" {
		return &Postgres{DSN: dsn}
	}
	return sharedPostgres.get(t, func() (*Postgres, error) { return StartPostgres() })
}

// SharedPair returns a primary and its hot standby, which is synchronous for
// sessions that set synchronous_commit to on or remote_apply.
func SharedPair(t testing.TB) (primary, standby *Postgres) {
	t.Helper()
	if p, s := os.Getenv(PostgresDSN), os.Getenv(StandbyDSN); p != "" && s != "" {
		return &Postgres{DSN: p}, &Postgres{DSN: s}
	}
	pair := sharedPair.get(t, func() (pair [2]*Postgres, err error) {
		pair[0], pair[1], err = StartPair()
		return pair, err
	})
	return pair[0], pair[1]
}

// NewPostgres starts a server of the test's own.
func NewPostgres(t testing.TB, settings ...string) *Postgres {
	t.Helper()
	p, err := StartPostgres(settings...)
	need(t, err)
	removeAfter(t, p.server)
	return p
}

// NewPair starts a primary and a standby of the test's own. The settings are for both.
func NewPair(t testing.TB, settings ...string) (primary, standby *Postgres) {
	t.Helper()
	primary, standby, err := StartPair(settings...)
	need(t, err)
	removeAfter(t, primary.server)
	removeAfter(t, standby.server)
	return primary, standby
}

// removeAfter removes servers after the test, the last first.
func removeAfter(t testing.TB, s *server) {
	t.Cleanup(func() {
		if err := s.remove(); err != nil {
			t.Error(err)
		}
	})
}

// StartPostgres starts a server.
func StartPostgres(settings ...string) (*Postgres, error) {
	initdb, err := program("initdb", "/usr/lib/postgresql/*/bin")
	if err != nil {
		return nil, &errMissing{"PostgreSQL", "postgresql"}
	}
	p, err := newPostgres("postgres", filepath.Dir(initdb))
	if err != nil {
		return nil, err
	}
	if err := p.account.run(p.dir, initdb, "-D", p.data(), "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale", "C"); err != nil {
		return nil, err
	}
	if err := p.configure(postgresConf(p.port, settings)); err != nil {
		return nil, err
	}
	return p, p.Start()
}

// StartPair starts a primary and its hot standby, as [SharedPair]. The settings are for both.
func StartPair(settings ...string) (primary, standby *Postgres, err error) {
	primary, err = StartPostgres(append([]string{"wal_level = replica", "max_wal_senders = 5", "wal_keep_size = 64MB",
		"synchronous_commit = local", "synchronous_standby_names = '*'"}, settings...)...)
	if err != nil {
		return nil, nil, err
	}
	s, err := newPostgres("standby", primary.bin)
	if err != nil {
		return nil, nil, err
	}
	if err := s.account.run(s.dir, filepath.Join(s.bin, "pg_basebackup"), "-d", primary.DSN, "-D", s.data(), "-R", "-X", "stream", "-c", "fast", "--no-sync"); err != nil {
		return nil, nil, err
	}
	// The primary's settings are there already. The standby asks for what it has missed
	// at once, not after five seconds, when its primary comes back. It has no standby of its own.
	if err := s.configure(fmt.Sprintf("port = %d\nhot_standby = on\nwal_retrieve_retry_interval = 100ms\nsynchronous_standby_names = ''\n", s.port)); err != nil {
		return nil, nil, err
	}
	return primary, s, s.Start()
}

// Promote makes a standby a primary, whose COMMITs wait for no other server, and returns
// when it takes writes.
func (p *Postgres) Promote() error {
	return p.account.run(p.dir, filepath.Join(p.bin, "pg_ctl"), "promote", "-w", "-t", strconv.Itoa(int(readyWithin/time.Second)), "-D", p.data())
}

func newPostgres(name, bin string) (*Postgres, error) {
	s, err := newServer(name, "postgres")
	if err != nil {
		return nil, err
	}
	p := &Postgres{DSN: postgresDSN(s.port), server: s, bin: bin}
	s.argv = []string{filepath.Join(bin, "postgres"), "-D", p.data()}
	s.quit = syscall.SIGINT     // which does not wait for the clients to leave
	s.cleanup = syscall.SIGQUIT // all its processes have ended when the first has
	s.ready = func(ctx context.Context) error { return acceptsPostgres(ctx, bin, s.port) }
	return p, nil
}

func (p *Postgres) data() string { return filepath.Join(p.dir, "data") }

// configure appends to the file that is read last.
func (p *Postgres) configure(text string) error {
	path := filepath.Join(p.data(), "postgresql.auto.conf")
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return p.account.write(path, string(old)+text)
}

func postgresConf(port int, settings []string) string {
	return strings.Join(append([]string{
		"port = " + strconv.Itoa(port),
		"listen_addresses = '127.0.0.1'",
		"unix_socket_directories = ''",
		// A crash of the machine loses data then; one of the processes, which is all that tests do, does not.
		"fsync = off",
		"shared_buffers = 32MB",
		"max_connections = 100",
		"deadlock_timeout = 100ms",
	}, settings...), "\n") + "\n"
}

func postgresDSN(port int) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", port)
}

// acceptsPostgres succeeds if connections are accepted.
func acceptsPostgres(ctx context.Context, bin string, port int) error {
	_, err := client(ctx, filepath.Join(bin, "pg_isready"), "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-U", "postgres", "-d", "postgres")
	return err
}
