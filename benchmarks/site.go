package benchmarks

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/avito-tech/go-transaction-manager/trm/v2/manager"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/sqlreq/sqlreq"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"github.com/uptrace/bun/dialect/sqlitedialect"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/gorm/utils/tests"
	_ "modernc.org/sqlite"
)

// poolSize is how many connections each application has.
const poolSize = 4

// PostgresEnv names the environment variable with the DSN of a PostgreSQL
// database that the benchmarks may use. Their tables begin with sqlreq_bench.
const PostgresEnv = "SQLREQ_BENCH_POSTGRES"

// site is a database, and what the contenders have made of its pool.
type site struct {
	db    *sql.DB
	rival *sql.DB // of another program, which causes the conflicts

	bun  *bun.DB
	gorm *gorm.DB
	trm  *manager.Manager
	pop  sync.Locker

	extra []*sql.DB // further databases of the application

	dsn  string        // of PostgreSQL
	pool *pgxpool.Pool // of pgx's own; nil unless openPgx has opened it

	// snapshot is the isolation level at which a rival's write is a conflict.
	snapshot *sql.TxOptions
}

// openSQLite returns a new file in WAL mode. With synchronous=NORMAL COMMIT does
// not wait for the disk, which hides everything else.
func openSQLite(t testing.TB) *site { return openFile(t, "NORMAL") }

// openDurable returns one with SQLite's default, synchronous=FULL: after COMMIT
// the work is on the disk.
func openDurable(t testing.TB) *site { return openFile(t, "FULL") }

func openFile(t testing.TB, synchronous string) *site {
	t.Helper()
	dsn := "file:" + filepath.ToSlash(filepath.Join(t.TempDir(), "bench.db")) +
		"?_pragma=foreign_keys(1)&_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(" + synchronous + ")"
	s := &site{db: openPool(t, "sqlite", dsn), rival: openPool(t, "sqlite", dsn), pop: new(sync.Mutex)}
	s.create(t, "")
	s.bun = bun.NewDB(s.db, sqlitedialect.New())
	s.wrap(t)
	return s
}

func openPostgres(t testing.TB, dsn string) *site {
	t.Helper()
	s := &site{db: openPool(t, "pgx", dsn), rival: openPool(t, "pgx", dsn), pop: noLock{}, dsn: dsn}
	s.create(t, "DROP TABLE IF EXISTS sqlreq_bench_key, sqlreq_bench_child, sqlreq_bench_parent, sqlreq_bench_work, sqlreq_bench_item, sqlreq_bench_counter;")
	s.snapshot = &sql.TxOptions{Isolation: sql.LevelRepeatableRead}
	s.bun = bun.NewDB(s.db, pgdialect.New())
	s.wrap(t)
	return s
}

func openPool(t testing.TB, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(poolSize)
	db.SetMaxIdleConns(poolSize)
	t.Cleanup(func() { db.Close() })
	return db
}

// create makes tables for work, one of 100 items to be read, one row to quarrel
// about, and a constraint that fails at COMMIT only.
func (s *site) create(t testing.TB, before string) {
	t.Helper()
	ctx := context.Background()
	_, err := s.db.ExecContext(ctx, before+fmt.Sprintf(`
CREATE TABLE sqlreq_bench_work (note TEXT NOT NULL);
CREATE TABLE sqlreq_bench_item (id INTEGER PRIMARY KEY, note TEXT NOT NULL);
CREATE TABLE sqlreq_bench_counter (n INTEGER NOT NULL);
CREATE TABLE sqlreq_bench_parent (id INTEGER PRIMARY KEY);
CREATE TABLE sqlreq_bench_child (parent INTEGER REFERENCES sqlreq_bench_parent(id) DEFERRABLE INITIALLY DEFERRED);
INSERT INTO sqlreq_bench_counter VALUES (0);
WITH RECURSIVE numbers(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM numbers WHERE i + 1 < %d)
INSERT INTO sqlreq_bench_item SELECT i, 'something to be read' FROM numbers;`, items))
	if err != nil {
		t.Fatal(err)
	}
}

func (s *site) wrap(t testing.TB) {
	t.Helper()
	var err error
	s.gorm, err = gorm.Open(dialector{}, &gorm.Config{ConnPool: s.db, Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	s.trm = newTRM(s.db)
}

// dialector is as much of a gorm driver as transactions need: the pure Go ones
// register a second driver by the name of "sqlite".
type dialector struct{ tests.DummyDialector }

func (dialector) SavePoint(tx *gorm.DB, name string) error {
	return tx.Exec("SAVEPOINT " + name).Error
}

func (dialector) RollbackTo(tx *gorm.DB, name string) error {
	return tx.Exec("ROLLBACK TO SAVEPOINT " + name).Error
}

// done counts what the works have left in the database.
func (s *site) done(t testing.TB) int {
	t.Helper()
	var rows, n int
	err := errors.Join(
		s.db.QueryRow("SELECT count(*) FROM sqlreq_bench_work").Scan(&rows),
		s.db.QueryRow("SELECT n FROM sqlreq_bench_counter").Scan(&n))
	if err != nil {
		t.Fatal(err)
	}
	return rows + n
}

// inUse returns how many connections the application holds.
func (s *site) inUse() int {
	n := s.db.Stats().InUse
	if s.pool != nil {
		n += int(s.pool.Stat().AcquiredConns())
	}
	return n
}

// inUseOfAll counts those of further databases, too.
func (s *site) inUseOfAll() int {
	n := s.inUse()
	for _, db := range s.extra {
		n += db.Stats().InUse
	}
	return n
}

func keyName(i int) sqlreq.Key { return sqlreq.Key(fmt.Sprintf("extra%d", i)) }

// extraPools returns n more databases. They are opened when they are used.
func extraPools(t testing.TB, n int) []*sql.DB {
	t.Helper()
	dir := filepath.ToSlash(t.TempDir())
	var pools []*sql.DB
	for i := range n {
		pools = append(pools, openPool(t, "sqlite", fmt.Sprintf("file:%s/%d.db", dir, i)))
	}
	return pools
}
