package servers

import (
	"context"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// PgBouncer is a connection pooler in front of a PostgreSQL server, in transaction
// mode: each transaction may run on another connection.
type PgBouncer struct {
	// DSN is for pgx and lib/pq. pgx needs default_query_exec_mode=exec, cache_describe
	// or simple_protocol in it: prepared statements do not survive a change of the connection.
	DSN string

	*server
}

// NewPgBouncer starts a pooler of the test's own.
func NewPgBouncer(t testing.TB, p *Postgres, settings ...string) *PgBouncer {
	t.Helper()
	b, err := StartPgBouncer(p, settings...)
	need(t, err)
	removeAfter(t, b.server)
	return b
}

// StartPgBouncer starts a pooler in front of a server that was started here. The
// settings are for the section [pgbouncer].
func StartPgBouncer(p *Postgres, settings ...string) (*PgBouncer, error) {
	daemon, err := program("pgbouncer")
	if err != nil {
		return nil, &errMissing{"PgBouncer", "pgbouncer"}
	}
	s, err := newServer("pgbouncer", "postgres")
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(s.dir, "pgbouncer.ini")
	for path, text := range map[string]string{
		conf:                          pgbouncerConf(s.dir, s.port, p.port, settings),
		filepath.Join(s.dir, "users"): `"postgres" ""` + "\n",
	} {
		if err := s.account.write(path, text); err != nil {
			return nil, err
		}
	}
	s.argv = []string{daemon, conf}
	s.ready = func(ctx context.Context) error { return acceptsPostgres(ctx, p.bin, s.port) }
	return &PgBouncer{postgresDSN(s.port), s}, s.Start()
}

func pgbouncerConf(dir string, port, server int, settings []string) string {
	return strings.Join(append([]string{
		"[databases]",
		"* = host=127.0.0.1 port=" + strconv.Itoa(server),
		"[pgbouncer]",
		"listen_addr = 127.0.0.1",
		"listen_port = " + strconv.Itoa(port),
		"unix_socket_dir =",
		"auth_type = trust",
		"auth_file = " + dir + "/users",
		"admin_users = postgres",
		"pool_mode = transaction",
		"ignore_startup_parameters = extra_float_digits", // lib/pq sends it
	}, settings...), "\n") + "\n"
}
