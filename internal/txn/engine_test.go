package txn

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq/internal/dialect"
	duckdbgo "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/duckdb-go"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/mysqlite"
)

// What is sent to each kind of engine, and what the answers mean.
func TestSlotEngines(t *testing.T) {
	const xact = "SELECT XACT_STATE()"
	for _, row := range []struct {
		name   string
		engine Engine
		guard  bool
		test   bool
		state  int64 // what the query answers
		fault  string
		err    error
		well   bool
		log    string
		want   Outcome
	}{
		{name: "SQL Server commits", engine: dialect.SQLServer, well: true, log: "BEGIN; COMMIT", want: Committed},
		{name: "SQL Server guarded", engine: dialect.SQLServer, guard: true, state: 1, well: true, log: "BEGIN; " + xact + "; COMMIT", want: Committed},
		{name: "SQL Server guarded, doomed", engine: dialect.SQLServer, guard: true, state: -1, well: true, log: "BEGIN; " + xact + "; ROLLBACK", want: Refused},
		{name: "SQL Server guarded, gone", engine: dialect.SQLServer, guard: true, state: 0, well: true, log: "BEGIN; " + xact + "; ROLLBACK", want: Unknown},
		{name: "SQL Server guarded, no answer", engine: dialect.SQLServer, guard: true, fault: xact, err: errNetwork, well: true, log: "BEGIN; " + xact + "; ROLLBACK", want: Refused},
		{name: "SQL Server guarded, rolled back", engine: dialect.SQLServer, guard: true, state: 1, log: "BEGIN; " + xact + "; ROLLBACK", want: RolledBack},
		{name: "SQL Server guarded, doomed, rolled back", engine: dialect.SQLServer, guard: true, state: -1, log: "BEGIN; " + xact + "; ROLLBACK", want: RolledBack},
		{name: "SQL Server guarded, gone before ROLLBACK", engine: dialect.SQLServer, guard: true, state: 0, log: "BEGIN; " + xact + "; ROLLBACK", want: Ended},
		{name: "SQL Server in a test", engine: dialect.SQLServer, test: true, well: true, log: "BEGIN; SAVE TRANSACTION sqlreq_tx_1", want: Committed},
		{name: "SQL Server in a test, rolled back", engine: dialect.SQLServer, test: true, log: "BEGIN; SAVE TRANSACTION sqlreq_tx_1; ROLLBACK TRANSACTION sqlreq_tx_1", want: RolledBack},
		{name: "DuckDB is asked before COMMIT", engine: dialect.DuckDB, well: true, log: "BEGIN; SELECT 1; COMMIT", want: Committed},
		{name: "DuckDB aborted", engine: dialect.DuckDB, fault: "SELECT 1", err: errRefused, well: true, log: "BEGIN; SELECT 1; ROLLBACK", want: Refused},
		{name: "DuckDB guarded", engine: dialect.DuckDB, guard: true, well: true, log: "BEGIN; SELECT 1; COMMIT", want: Committed},
		{name: "DuckDB guarded, rolled back", engine: dialect.DuckDB, guard: true, log: "BEGIN; ROLLBACK", want: RolledBack},
		{name: "DuckDB, none to roll back", engine: dialect.DuckDB, fault: "ROLLBACK", err: errNoTx, log: "BEGIN; ROLLBACK", want: Ended},
		{name: "Oracle commits", engine: dialect.Oracle, well: true, log: "BEGIN; COMMIT", want: Committed},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t, kind{guard: row.guard, test: row.test, engine: row.engine})
			w.d.Rows = func(string) [][]driver.Value { return [][]driver.Value{{row.state}} }
			if row.fault != "" {
				w.at(row.fault, fails(row.err))
			}
			w.begin()
			w.End(row.well)
			if got := strings.Join(w.d.Log(), "; "); got != row.log {
				t.Errorf("it was sent %q, want %q", got, row.log)
			}
			if r := w.Last(); r.Outcome != row.want {
				t.Errorf("got %s, want %d", describeResult(r, "returned"), row.want)
			}
		})
	}
}

// Savepoints where there is no RELEASE, and where there are none.
func TestSlotSavepointsOfEngines(t *testing.T) {
	for _, engine := range []Engine{dialect.SQLServer, dialect.Oracle} {
		w := newWorld(t, kind{engine: engine})
		tx := w.begin()
		for _, what := range []func(*Savepoint, string) error{(*Savepoint).Release, (*Savepoint).RollBack} {
			if err := what(w.save(background), "k"); err != nil {
				t.Error(err)
			}
			w.inState("open")
		}
		sp := w.save(background)
		must(0, tx.Rollback())(t)
		if err := sp.Release("k"); !strings.HasPrefix(errText(err), releaseFailed+endedText) {
			t.Errorf("of a transaction that was ended: got %v", err)
		}
		w.End(false)
		save, back := engine.Savepoint(""), engine.RollbackTo("")
		w.d.CheckLog(t, "BEGIN", save+"sqlreq_1", save+"sqlreq_2", back+"sqlreq_2", save+"sqlreq_3", "ROLLBACK")
	}
	w := newWorld(t, kind{engine: dialect.DuckDB})
	const none = `sqlreq: savepoint on key "k": DuckDB has no savepoints; undo the whole request instead, by an error or Rollback`
	if _, err := w.Use(background, w.ask(ForSavepoint)); errText(err) != none {
		t.Errorf("got %v", err)
	}
	w.inState("idle")
	tx := w.begin()
	if _, err := w.Save(background, background, tx, "k"); errText(err) != none {
		t.Errorf("got %v", err)
	}
	w.inState("open")
	w.End(true)
	w.d.CheckLog(t, "BEGIN", "SELECT 1", "COMMIT")
}

// The read-only flag is left out where it would be refused.
func TestSlotReadOnlyOfEngines(t *testing.T) {
	for _, row := range []struct {
		engine Engine
		opts   sql.TxOptions
		refuse error
		log    string
	}{
		{dialect.SQLServer, sql.TxOptions{ReadOnly: true}, nil, "BEGIN; ROLLBACK"},
		{dialect.SQLServer, sql.TxOptions{ReadOnly: true, Isolation: sql.LevelSerializable}, nil, "BEGIN Serializable; ROLLBACK"},
		{dialect.LibSQL, sql.TxOptions{ReadOnly: true}, nil, "BEGIN; ROLLBACK"},
		{dialect.Glebarez, sql.TxOptions{ReadOnly: true}, nil, "BEGIN READ ONLY; ROLLBACK"},
		{dialect.Standard, sql.TxOptions{ReadOnly: true}, nil, "BEGIN READ ONLY; ROLLBACK"},
		{dialect.Standard, sql.TxOptions{ReadOnly: true}, &mysqlite.MySQL{Number: 1235}, "BEGIN READ ONLY; BEGIN; ROLLBACK"},
		{dialect.Standard, sql.TxOptions{ReadOnly: true}, refusedByDatabaseSQL(t), "BEGIN READ ONLY; BEGIN; ROLLBACK"},
		{dialect.Glebarez, sql.TxOptions{ReadOnly: true}, refusedByDatabaseSQL(t), "BEGIN READ ONLY; BEGIN; ROLLBACK"},
		{dialect.Standard, sql.TxOptions{ReadOnly: true}, errPlain, "BEGIN READ ONLY"},
	} {
		w := newWorld(t, kind{engine: row.engine})
		w.opts = &row.opts
		if row.refuse != nil {
			w.at("BEGIN READ ONLY", fails(row.refuse))
		}
		if _, err := w.use(background); err == nil {
			w.End(true)
		}
		if got := strings.Join(w.d.Log(), "; "); got != row.log {
			t.Errorf("%d, %+v, %v: sent %q, want %q", row.engine, row.opts, row.refuse, got, row.log)
		}
	}
}

// A connection of its own goes back to the pool after an end that succeeded, and is
// thrown away after one that did not, and after a begin that did not.
func TestSlotOnAConnectionOfItsOwn(t *testing.T) {
	for _, row := range []struct {
		fault string
		how   func(context.Context) error
		well  bool
		kept  bool
	}{
		{"", nil, true, true},
		{"", nil, false, true},
		{"COMMIT", fails(errRefused), true, false},
		{"ROLLBACK", fails(errRefused), false, false},
		{"BEGIN", fails(errRefused), true, false},
	} {
		w := newWorld(t, kind{engine: dialect.Ncruces})
		w.d.Keeps = true
		if row.how != nil {
			w.at(row.fault, row.how)
		}
		_, err := w.use(background)
		if row.fault != "BEGIN" {
			must(0, err)(t)
			w.End(row.well)
		}
		conns.Range(func(any, any) bool { t.Errorf("%s: a connection is remembered", row.fault); return false })
		if c := w.d.Counts(); c.Opened != 1 || (c.Closed == 0) != row.kept || w.pool.Stats().InUse != 0 {
			t.Errorf("%s, well %t: %+v, %d in use", row.fault, row.well, c, w.pool.Stats().InUse)
		}
	}
	for _, fault := range []string{"BEGIN", "COMMIT"} { // a driver that panics hangs nothing
		w := newWorld(t, kind{engine: dialect.Ncruces})
		w.at(fault, panics)
		if came := called(func() { w.begin(); w.End(true) }); came != "panicked" {
			t.Errorf("%s: it %s", fault, came)
		}
	}
	w := newWorld(t, kind{engine: dialect.Ncruces})
	w.d.Connect = fails(errPlain)
	if _, err := w.use(background); errText(err) != `sqlreq: begin on key "k": plain` {
		t.Errorf("without a connection: got %v", err)
	}
}

// EngineOf looks at the pool, or at that of a test's transaction.
func TestEngineOf(t *testing.T) {
	d := &fakedb.DB{Named: duckdbgo.Driver{}}
	db := d.Open(t)
	tx := must(db.Begin())(t)
	t.Cleanup(func() { tx.Rollback() })
	if a, b, c := EngineOf(db, nil), EngineOf(nil, tx), EngineOf(nil, nil); a != dialect.DuckDB || b != dialect.DuckDB || c != dialect.Standard {
		t.Errorf("got %d, %d, %d", a, b, c)
	}
}

// refusedByDatabaseSQL is the error of a read-only BEGIN where the driver has no BeginTx.
func refusedByDatabaseSQL(t *testing.T) error {
	t.Helper()
	db := sql.OpenDB(withoutBeginTx{})
	defer db.Close()
	_, err := db.BeginTx(background, &sql.TxOptions{ReadOnly: true})
	if err == nil {
		t.Fatal("a driver without BeginTx was not refused the flag")
	}
	return err
}

type withoutBeginTx struct{}

func (withoutBeginTx) Driver() driver.Driver                        { return nil }
func (withoutBeginTx) Connect(context.Context) (driver.Conn, error) { return plainConn{}, nil }

type plainConn struct{ driver.Conn }

func (plainConn) Close() error { return nil }

// Idle connections that have gone stale are replaced, as sql.DB.BeginTx does.
func TestSlotStaleConnections(t *testing.T) {
	w := newWorld(t, kind{engine: dialect.LibSQL})
	w.pool.SetMaxIdleConns(4)
	var idle []*sql.Conn
	for range 4 {
		idle = append(idle, must(w.pool.Conn(background))(t))
	}
	for _, c := range idle {
		must(0, c.Close())(t)
	}
	stale := 4
	w.d.Change(func(d *fakedb.DB) {
		d.Begin = func(context.Context) error {
			if stale--; stale >= 0 {
				return driver.ErrBadConn
			}
			return nil
		}
	})
	w.begin()
	w.End(true)
	w.d.Change(func(d *fakedb.DB) { d.Begin = fails(driver.ErrBadConn) }) // it does not try for ever
	if _, err := w.use(background); errText(err) != `sqlreq: begin on key "k": driver: bad connection` {
		t.Errorf("a server that is gone: got %v", err)
	}
}
