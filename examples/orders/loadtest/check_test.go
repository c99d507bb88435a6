//go:build linux

package loadtest

import (
	"cmp"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"testing"
)

// shelf is a product of a tenant.
type shelf struct {
	tenant  string
	product int
}

// stored is what a database has when all is over.
type stored struct {
	orders   map[string][]row   // by the id
	payments map[string][]int64 // what was received, by the id of the order
	jobs     map[string][]int64 // 1 for one that is done
	outbox   map[string][]int64
	left     map[shelf]int // of the stock
}

// row is an order.
type row struct {
	tenant            string
	product, quantity int
	total, confirmed  int64
}

// finding is something that must not be.
type finding struct{ kind, text string }

// checker collects what must not be.
type checker struct {
	stored
	answers map[string]answer
	found   []finding
}

func (c *checker) add(kind, format string, args ...any) {
	c.found = append(c.found, finding{kind, fmt.Sprintf(format, args...)})
}

// check compares what is stored with what the clients were told. paid are the keys of the payments that were
// acknowledged, and initial is the stock of each product.
func check(s stored, answers map[string]answer, paid map[string]bool, initial int) []finding {
	c := &checker{stored: s, answers: answers}
	named := c.acknowledged()
	for id, rows := range s.orders {
		if named[id] == "" || len(rows) > 1 {
			c.add("doubled", "order %s is there %d times for key %q", id, len(rows), named[id])
		}
		c.effects(id, rows[0], paid["pay-"+named[id]])
	}
	for kind, of := range map[string]map[string][]int64{"payment": s.payments, "job": s.jobs, "outbox": s.outbox} {
		for id, rows := range of {
			if len(s.orders[id]) == 0 {
				c.add(kind, "%d rows of kind %s are for order %s, which is not there", len(rows), kind, id)
			}
		}
	}
	c.stock(initial)
	return c.found
}

// acknowledged checks the orders that clients know of, and returns their keys by their ids.
func (c *checker) acknowledged() (named map[string]string) {
	named = make(map[string]string)
	for _, a := range sorted(c.answers) {
		if a.status != 201 {
			continue
		}
		id := a.receipt.ID.String()
		if other, ok := named[id]; ok {
			c.add("shared", "orders %s and %s have both the id %s", other, a.Key, id)
			continue
		}
		named[id] = a.Key
		if rows := c.orders[id]; len(rows) == 0 {
			c.add("lost", "order %s was acknowledged with the id %s, and is not there", a.Key, id)
		} else if r := rows[0]; r.tenant != a.Tenant || r.product != a.Product || r.quantity != a.Quantity || r.total != a.receipt.Total {
			c.add("other", "order %s was acknowledged with %s, and is there as %v", a.Key, a.body, r)
		}
	}
	return named
}

// effects checks what belongs to an order: a payment, a job and a row of the outbox, each once; what was paid, once;
// and that a job is done if and only if its work is.
func (c *checker) effects(id string, r row, paid bool) {
	for kind, of := range map[string]map[string][]int64{"payment": c.payments, "job": c.jobs, "outbox": c.outbox} {
		if n := len(of[id]); n != 1 {
			c.add(kind, "order %s has %d rows of kind %s, want 1", id, n, kind)
		}
	}
	want := int64(0)
	if paid {
		want = r.total
	}
	for _, received := range c.payments[id] {
		if received != want {
			c.add("received", "%d was received for order %s, want %d", received, id, want)
		}
	}
	for _, done := range c.jobs[id] {
		if done != r.confirmed {
			c.add("confirmed", "order %s was confirmed %d times, and its job is done %d times", id, r.confirmed, done)
		}
	}
}

// stock checks that what is left and what was sold is what there was, and that nothing was refused that is left.
func (c *checker) stock(initial int) {
	sold := make(map[shelf]int)
	for _, rows := range c.orders {
		for _, r := range rows {
			sold[shelf{r.tenant, r.product}] += r.quantity
		}
	}
	for sh, left := range c.left {
		if left < 0 || left+sold[sh] != initial {
			c.add("stock", "%v: %d are left, %d sold, of %d", sh, left, sold[sh], initial)
		}
		delete(sold, sh)
	}
	if len(sold) > 0 || len(c.left) != len(tenants)*products {
		c.add("stock", "%d products have a stock, and others were sold: %v", len(c.left), sold)
	}
	for _, a := range sorted(c.answers) {
		if left := c.left[shelf{a.Tenant, a.Product}]; a.status == 409 && left >= a.Quantity {
			c.add("refused", "order %s was refused, and %d are left", a.Key, left)
		}
	}
}

// sorted returns the answers by their keys.
func sorted(answers map[string]answer) []answer {
	return slices.SortedFunc(maps.Values(answers), func(a, b answer) int { return cmp.Compare(a.Key, b.Key) })
}

// count counts findings by their kind.
func count(found []finding) map[string]int {
	kinds := make(map[string]int)
	for _, f := range found {
		kinds[f.kind]++
	}
	return kinds
}

// queries read what is stored: the columns of an order; what belongs to one, with a number; and the stock.
type queries struct{ orders, payments, jobs, outbox, stock string }

var (
	postgresQueries = queries{
		orders:   "SELECT id, tenant, product, quantity, total, confirmed FROM orders",
		payments: "SELECT order_id, received FROM payments",
		jobs:     "SELECT args->>'order', CASE state WHEN 'completed' THEN 1 ELSE 0 END FROM river_job WHERE kind = 'confirm'",
		outbox:   "SELECT payload->>'order', 0 FROM outbox WHERE topic = 'order.placed'",
		stock:    "SELECT tenant, id, stock FROM products",
	}
	sqliteQueries = queries{
		orders:   postgresQueries.orders,
		payments: postgresQueries.payments,
		jobs:     "SELECT order_id, state = 'completed' FROM jobs",
		outbox:   "SELECT payload->>'order', 0 FROM outbox WHERE topic = 'order.placed'",
		stock:    postgresQueries.stock,
	}
)

func (q queries) read(t testing.TB, db *sql.DB) stored {
	t.Helper()
	s := stored{orders: make(map[string][]row), left: make(map[shelf]int)}
	each(t, db, q.orders, func(scan func(...any) error) error {
		var id string
		var r row
		err := scan(&id, &r.tenant, &r.product, &r.quantity, &r.total, &r.confirmed)
		s.orders[id] = append(s.orders[id], r)
		return err
	})
	each(t, db, q.stock, func(scan func(...any) error) error {
		var sh shelf
		var left int
		err := scan(&sh.tenant, &sh.product, &left)
		s.left[sh] = left
		return err
	})
	for query, of := range map[string]*map[string][]int64{q.payments: &s.payments, q.jobs: &s.jobs, q.outbox: &s.outbox} {
		rows := make(map[string][]int64)
		each(t, db, query, func(scan func(...any) error) error {
			var id string
			var n int64
			err := scan(&id, &n)
			rows[id] = append(rows[id], n)
			return err
		})
		*of = rows
	}
	return s
}

// each calls fn for each row of a query.
func each(t testing.TB, db *sql.DB, query string, fn func(scan func(...any) error) error) {
	t.Helper()
	rows, err := db.Query(query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := fn(rows.Scan); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}
