package guarantees

import (
	"database/sql/driver"
	"fmt"
	"sync"

	"modernc.org/sqlite"
)

// cancels are functions that the SQL function test_cancel calls, by number.
var cancels struct {
	sync.Mutex
	all []func()
}

func init() {
	sqlite.MustRegisterScalarFunction("test_cancel", 1, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		cancels.Lock()
		defer cancels.Unlock()
		cancels.all[args[0].(int64)]()
		return "x", nil
	})
}

// endless is a query without end that ends the context by cancel on the way.
func endless(cancel func()) string {
	cancels.Lock()
	defer cancels.Unlock()
	cancels.all = append(cancels.all, cancel)
	return fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "+
		"SELECT CASE WHEN i = 10 THEN test_cancel(%d) ELSE 'x' END AS v FROM n", len(cancels.all)-1)
}
