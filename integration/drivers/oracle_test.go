package drivers

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godror/godror"
	goora "github.com/sijms/go-ora/v2"
	"github.com/sijms/go-ora/v2/network"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// oracle answers as Oracle does by its documentation, with the errors of a real driver; what each case has is named
// there. A statement that it does not know is a mistake of the library.
type oracle struct {
	t    *testing.T
	fail func(code int) error

	mu      sync.Mutex
	open    bool // BEGIN was sent: a transaction begins with its first statement, and again after an end that is not the driver's
	pending []string
	points  []savepoint
	stored  []string
	refused bool // the next COMMIT
	lost    lostCommit
}

// goOra makes the error of github.com/sijms/go-ora.
func goOra(code int) error { return &network.OracleError{ErrCode: code} }

// godrorError makes that of github.com/godror/godror.
func godrorError(code int) *godror.OraErr { return set(&godror.OraErr{}, "code", code) }

// godrorDriver is the driver as it registers itself.
func godrorDriver(t *testing.T) driver.Driver {
	t.Helper()
	db, err := sql.Open("godror", `user="scott" password="tiger" connectString="localhost/x"`)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db.Driver()
}

// db opens a pool whose driver is of the given type.
func (o *oracle) db(t *testing.T, named driver.Driver) *sql.DB {
	o.t = t
	return (&fakedb.DB{Named: named, Step: o.step}).Open(t)
}

func (o *oracle) Stored() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.stored, " ")
}

// keep stores what is pending. Savepoints end with it
// (https://docs.oracle.com/en/database/oracle/oracle-database/19/sqlrf/SAVEPOINT.html).
func (o *oracle) keep() {
	o.stored, o.pending, o.points = append(o.stored, o.pending...), nil, nil
}

func (o *oracle) drop() { o.pending, o.points = nil, nil }

// commit carries COMMIT out: https://docs.oracle.com/en/database/oracle/oracle-database/19/sqlrf/COMMIT.html.
func (o *oracle) commit() error {
	switch {
	case o.refused: // a deferred constraint: https://docs.oracle.com/en/error-help/db/ora-02091/
		o.refused = false
		o.drop()
		return o.fail(2091)
	case o.lost == lostBefore: // https://docs.oracle.com/en/error-help/db/ora-03113/
		o.drop()
		return o.fail(3113)
	case o.lost == lostKilled: // https://docs.oracle.com/en/error-help/db/ora-00028/
		o.drop()
		return o.fail(28)
	case o.lost == lostAfter: // https://docs.oracle.com/en/error-help/db/ora-03135/
		o.keep()
		return o.fail(3135)
	case o.lost == lostInPanic: // https://docs.oracle.com/en/error-help/db/ora-25405/: the transaction's state is not known
		o.keep()
		return o.fail(25405)
	}
	o.keep()
	return nil
}

var (
	// https://docs.oracle.com/en/database/oracle/oracle-database/19/sqlrf/Database-Object-Names-and-Qualifiers.html: a name
	// that is not quoted begins with a letter.
	oracleSavepoint  = regexp.MustCompile(`^SAVEPOINT ([a-z]\w{0,29})$`)
	oracleRollbackTo = regexp.MustCompile(`^ROLLBACK TO SAVEPOINT ([a-z]\w{0,29})$`)
)

func (o *oracle) step(_ context.Context, text string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case text == "BEGIN":
		o.open = true
	case text == "COMMIT":
		o.open = false
		return o.commit()
	case text == "ROLLBACK":
		o.open = false
		o.drop()
	case !o.open:
		o.t.Errorf("Oracle was sent %q outside of a transaction", text)
	case insertInto.MatchString(text):
		o.pending = append(o.pending, insertInto.FindStringSubmatch(text)[1])
	case text == "INSERT INTO parent VALUES (1)": // https://docs.oracle.com/en/error-help/db/ora-00001/
		return o.fail(1)
	case text == "UPDATE serial SET n = 1": // https://docs.oracle.com/en/error-help/db/ora-08177/
		return o.fail(8177)
	case text == "UPDATE deadlock SET n = 1": // https://docs.oracle.com/en/error-help/db/ora-00060/: the statement is undone
		return o.fail(60)
	case text == "INSERT INTO deferred VALUES (1)":
		o.refused = true
	case strings.HasPrefix(text, "CREATE TABLE "): // commits what came before
		o.keep()
	case text == "BEGIN COMMIT; END;":
		o.keep()
	case text == "BEGIN ROLLBACK; END;":
		o.drop()
	case oracleSavepoint.MatchString(text):
		o.points = append(o.points, savepoint{oracleSavepoint.FindStringSubmatch(text)[1], len(o.pending)})
	case oracleRollbackTo.MatchString(text):
		name := oracleRollbackTo.FindStringSubmatch(text)[1]
		i := slices.IndexFunc(o.points, func(p savepoint) bool { return p.name == name })
		if i < 0 { // https://docs.oracle.com/en/error-help/db/ora-01086/
			return o.fail(1086)
		}
		o.pending, o.points = o.pending[:o.points[i].at], o.points[:i+1]
	default:
		o.t.Errorf("Oracle was sent %q", text)
		return o.fail(900)
	}
	return nil
}

// oracleEngine is the type of a real driver, and its errors, before a database of the test's.
func oracleEngine(name string, named func(t *testing.T) driver.Driver, fail func(int) error) engine {
	return engine{name: name, file: "oracle.txt", savepoints: true, cells: 184, lies: map[string]int{
		// COMMIT and ROLLBACK succeed in any case, and no Guard can be had: only a Savepoint that is gone back to tells.
		"DDL and a 422":            4,
		"a raw COMMIT and a 422":   4,
		"a raw ROLLBACK":           8,
		"a raw ROLLBACK and a 422": 4,
	}, open: func(t *testing.T) world {
		o := &oracle{fail: fail}
		lose := func(l lostCommit) func() {
			return func() {
				o.mu.Lock()
				defer o.mu.Unlock()
				o.lost = l
			}
		}
		return world{
			db:     o.db(t, named(t)),
			insert: func(n int) string { return fmt.Sprintf("INSERT INTO work VALUES (%d)", n) },
			stored: o.Stored,
			events: append(common(),
				statement("a constraint", "INSERT INTO parent VALUES (1)", true),
				statement("can't serialize", "UPDATE serial SET n = 1", true),
				statement("a deadlock", "UPDATE deadlock SET n = 1", true),
				statement("a COMMIT that is refused", "INSERT INTO deferred VALUES (1)", false),
				quiet("COMMIT lost before", lose(lostBefore)),
				quiet("COMMIT lost after", lose(lostAfter)),
				quiet("COMMIT killed", lose(lostKilled)),
				quiet("COMMIT, state not known", lose(lostInPanic)),
				statement("DDL", "CREATE TABLE t (n NUMBER)", false),
				statement("a raw COMMIT", "BEGIN COMMIT; END;", false),
				statement("a raw ROLLBACK", "BEGIN ROLLBACK; END;", false),
				event{"DDL and a 422", then422("CREATE TABLE t (n NUMBER)"), true},
				event{"a raw COMMIT and a 422", then422("BEGIN COMMIT; END;"), true},
				event{"a raw ROLLBACK and a 422", then422("BEGIN ROLLBACK; END;"), true},
			),
		}
	}}
}

// goOraDriver is the driver of github.com/sijms/go-ora.
func goOraDriver(*testing.T) driver.Driver { return goora.NewDriver() }
