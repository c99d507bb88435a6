package servers

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // to see when a server is ready
)

// Postgres is a PostgreSQL server.
type Postgres struct {
	DSN string

	dir     string
	bin     string // the folder of the programs
	account *account
	process *process
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
	return sharedPostgres.get(t, func() (*Postgres, error) { return newPostgres() })
}

// SharedPair returns a primary and its hot standby, which is synchronous for
// sessions that set synchronous_commit to on or remote_apply.
func SharedPair(t testing.TB) (primary, standby *Postgres) {
	t.Helper()
	if p, s := os.Getenv(PostgresDSN), os.Getenv(StandbyDSN); p != "" && s != "" {
		return &Postgres{DSN: p}, &Postgres{DSN: s}
	}
	pair := sharedPair.get(t, newPair)
	return pair[0], pair[1]
}

// NewPair starts a primary and a standby of the test's own.
func NewPair(t testing.TB) (primary, standby *Postgres) {
	t.Helper()
	var own once[[2]*Postgres]
	pair := own.get(t, newPair)
	t.Cleanup(func() {
		pair[1].process.kill()
		pair[0].process.kill()
	})
	return pair[0], pair[1]
}

func newPostgres(settings ...string) (*Postgres, error) {
	initdb, err := program("initdb", "/usr/lib/postgresql/*/bin")
	if err != nil {
		return nil, &errMissing{"PostgreSQL", "postgresql"}
	}
	p := &Postgres{bin: filepath.Dir(initdb)}
	if p.account, err = accountOf("postgres"); err != nil {
		return nil, err
	}
	parent, err := p.account.folder("postgres")
	if err != nil {
		return nil, err
	}
	p.dir = filepath.Join(parent, "data")
	if err := p.account.run(parent, initdb, "-D", p.dir, "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale", "C"); err != nil {
		return nil, err
	}
	// Without fsync a crash of the machine loses data; one of the processes, which is all that tests do, does not.
	conf := "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\n" +
		"shared_buffers = 32MB\nmax_connections = 100\ndeadlock_timeout = 100ms\n"
	for _, s := range settings {
		conf += s + "\n"
	}
	if err := p.append("postgresql.auto.conf", conf); err != nil {
		return nil, err
	}
	return p, p.Start()
}

func newPair() (pair [2]*Postgres, err error) {
	primary, err := newPostgres("wal_level = replica", "max_wal_senders = 5", "wal_keep_size = 64MB",
		"synchronous_commit = local", "synchronous_standby_names = '*'")
	if err != nil {
		return pair, err
	}
	s := &Postgres{bin: primary.bin, account: primary.account}
	parent, err := s.account.folder("standby")
	if err != nil {
		return pair, err
	}
	s.dir = filepath.Join(parent, "data")
	if err := s.account.run(parent, filepath.Join(s.bin, "pg_basebackup"), "-d", primary.DSN, "-D", s.dir, "-R", "-X", "stream", "-c", "fast", "--no-sync"); err != nil {
		return pair, err
	}
	// The standby asks for what it has missed at once, not after five seconds, when its primary comes back.
	if err := s.append("postgresql.auto.conf", "hot_standby = on\nwal_retrieve_retry_interval = 100ms\n"); err != nil {
		return pair, err
	}
	return [2]*Postgres{primary, s}, s.Start()
}

func (p *Postgres) append(name, text string) error {
	path := filepath.Join(p.dir, name)
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := p.account.write(path, string(old)+text); err != nil {
		return err
	}
	return os.Chmod(path, 0o600)
}

// Start starts the server, for the first time or after Kill: then on the port that it had.
func (p *Postgres) Start() error {
	if p.DSN == "" {
		free, err := ports(1)
		if err != nil {
			return err
		}
		if err := p.append("postgresql.auto.conf", fmt.Sprintf("port = %d\n", free[0])); err != nil {
			return err
		}
		p.DSN = fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", free[0])
	}
	var err error
	p.process, err = start(p.account, "quit", filepath.Join(filepath.Dir(p.dir), "log"), filepath.Join(p.bin, "postgres"), "-D", p.dir)
	if err != nil {
		return err
	}
	db, err := sql.Open("pgx", p.DSN)
	if err != nil {
		return err
	}
	defer db.Close()
	return p.process.ready(func(ctx context.Context) error { return db.PingContext(ctx) })
}

// Kill ends the server as a crash does: PostgreSQL's immediate shutdown.
func (p *Postgres) Kill() {
	_ = p.process.cmd.Process.Signal(syscall.SIGQUIT)
	<-p.process.done
}
