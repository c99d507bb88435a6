package guarantees

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"sync"
	"testing"

	duckdbgo "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/duckdb-go"
	gomssqldb "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-mssqldb"
	goora "github.com/sqlreq/sqlreq/internal/sqlreqtest/engines/go-ora"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// An engine answers as a database does by its documentation, and decides by itself
// what is stored. A statement that it does not know is a mistake of the library.
type engine struct {
	name       string
	driver     driver.Driver
	savepoints bool
	guards     bool
	save       string // what a savepoint begins with
	back       string // and what goes back to it
	broken     error  // of the statement BROKEN: a constraint
	conflict   error  // of CONFLICT
	late       error  // of COMMIT after LATE
	answers    func(*engine, string) error

	t       *testing.T
	mu      sync.Mutex
	open    bool // a transaction
	aborted bool // only a ROLLBACK is left
	points  int
	pending []string
	stored  []string
	lateNow bool
}

// engines are three whose servers are not at hand.
func engines() []*engine {
	return []*engine{
		// https://learn.microsoft.com/sql/relational-databases/errors-events/mssqlserver-1205-database-engine-error: the
		// server rolls back, what the driver sends next is no transaction's. XACT_STATE:
		// https://learn.microsoft.com/sql/t-sql/functions/xact-state-transact-sql
		{
			name: "SQL Server", driver: gomssqldb.Driver{}, savepoints: true, guards: true, save: "SAVE TRANSACTION ", back: "ROLLBACK TRANSACTION ",
			broken: gomssqldb.Error{Number: 2627, Class: 14}, conflict: gomssqldb.Error{Number: 1205, Class: 13}, late: gomssqldb.Error{Number: 3960, Class: 16},
			answers: func(e *engine, text string) error {
				switch {
				case text == "CONFLICT":
					e.open, e.pending = false, nil
				case text == "COMMIT" && !e.open:
					return gomssqldb.Error{Number: 3902, Class: 16}
				case strings.HasPrefix(text, "ROLLBACK") && !e.open:
					return gomssqldb.Error{Number: 3903, Class: 16}
				case strings.HasPrefix(text, "SAVE TRANSACTION ") && !e.open:
					return gomssqldb.Error{Number: 628, Class: 16}
				}
				return nil
			},
		},
		// https://docs.oracle.com/en/error-help/db/ora-08177/: the statement is undone, the transaction goes on.
		{
			name: "Oracle", driver: goora.Driver{}, savepoints: true, save: "SAVEPOINT ", back: "ROLLBACK TO SAVEPOINT ",
			broken: &goora.OracleError{ErrCode: 1}, conflict: &goora.OracleError{ErrCode: 8177}, late: &goora.OracleError{ErrCode: 8177},
			answers: func(*engine, string) error { return nil },
		},
		// https://duckdb.org/docs/stable/sql/statements/transactions: an error aborts. That COMMIT then answers with
		// success was seen with duckdb-go v2.10504.
		{
			name: "DuckDB", driver: duckdbgo.Driver{}, guards: true,
			broken:   &duckdbgo.Error{Type: 18, Msg: "Constraint Error: Duplicate key"},
			conflict: &duckdbgo.Error{Type: 10, Msg: "TransactionContext Error: Conflict on update!"},
			late:     &duckdbgo.Error{Type: 10, Msg: "TransactionContext Error: Failed to commit: PRIMARY KEY or UNIQUE constraint violation"},
			answers: func(e *engine, text string) error {
				ends := text == "COMMIT" || text == "ROLLBACK"
				switch {
				case !e.open && ends:
					return &duckdbgo.Error{Type: 10, Msg: "TransactionContext Error: cannot commit - no transaction is active"}
				case e.aborted && !ends:
					return &duckdbgo.Error{Type: 10, Msg: "TransactionContext Error: Current transaction is aborted (please ROLLBACK)"}
				case text == "BROKEN" || text == "CONFLICT":
					e.aborted, e.pending = true, nil
				}
				return nil
			},
		},
	}
}

// db opens a pool of one connection to e.
func (e *engine) db(t *testing.T) *sql.DB {
	e.t = t
	d := &fakedb.DB{Named: e.driver, Step: e.step, Rows: func(q string) [][]driver.Value {
		if q != "SELECT XACT_STATE()" {
			return nil
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		switch {
		case e.aborted:
			return [][]driver.Value{{int64(-1)}}
		case e.open:
			return [][]driver.Value{{int64(1)}}
		}
		return [][]driver.Value{{int64(0)}}
	}}
	db := d.Open(t)
	db.SetMaxOpenConns(1)
	return db
}

func (e *engine) step(_ context.Context, text string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.answers(e, text); err != nil {
		return err
	}
	word, _, _ := strings.Cut(text, " ")
	switch {
	case word == "BEGIN":
		if strings.Contains(text, "READ ONLY") {
			return errors.New("read-only transactions are not supported")
		}
		e.open, e.aborted, e.pending = true, false, nil
	case text == "COMMIT":
		late := e.lateNow
		if e.open, e.aborted = false, false; late {
			e.lateNow, e.pending = false, nil
			return e.late
		}
		e.stored, e.pending = append(e.stored, e.pending...), nil
	case text == "ROLLBACK":
		e.open, e.aborted, e.pending = false, false, nil
	case word == "INSERT" && e.open:
		e.pending = append(e.pending, text)
	case word == "INSERT":
		e.stored = append(e.stored, text) // by itself
	case text == "LATE":
		e.lateNow = true
	case text == "BROKEN":
		return e.broken
	case text == "CONFLICT":
		return e.conflict
	case text == "RAW COMMIT":
		e.open = false
		e.stored, e.pending = append(e.stored, e.pending...), nil
	case e.save != "" && strings.HasPrefix(text, e.save):
		e.points = len(e.pending)
	case e.back != "" && strings.HasPrefix(text, e.back):
		e.pending = e.pending[:min(e.points, len(e.pending))]
	case text == "SELECT XACT_STATE()" && e.name == "SQL Server", text == "SELECT 1" && e.name == "DuckDB":
	default:
		e.t.Errorf("%s was sent %q", e.name, text)
		return errors.New("syntax error at " + text)
	}
	return nil
}

// Stored returns what is stored.
func (e *engine) Stored() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.stored, ", ")
}
