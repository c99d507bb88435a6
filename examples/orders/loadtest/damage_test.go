//go:build linux

package loadtest

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

// sale returns what two orders, the second of which was refused, leave behind in a good service.
func sale() (stored, map[string]answer) {
	s := stored{
		orders:   map[string][]row{"7": {{"acme", hot, 2, 600, 1}}},
		payments: map[string][]int64{"7": {600}}, jobs: map[string][]int64{"7": {1}}, outbox: map[string][]int64{"7": {0}},
		left: make(map[shelf]int),
	}
	for _, tenant := range tenants {
		for p := range products {
			s.left[shelf{tenant, p + 1}] = 3
		}
	}
	s.left[shelf{"acme", hot}] = 1
	o := order{Key: "a", Tenant: "acme", Product: hot, Quantity: 2}
	refused := o
	refused.Key = "b"
	return s, map[string]answer{
		"a": {order: o, status: 201, receipt: receipt{"7", hot, 2, 600}},
		"b": {order: refused, status: 409},
	}
}

// check finds each kind of damage, and none where there is none.
func TestCheckFinds(t *testing.T) {
	shelfOf := shelf{"acme", hot}
	for name, c := range map[string]struct {
		damage func(s *stored, answers map[string]answer)
		want   []string
	}{
		"nothing": {func(*stored, map[string]answer) {}, nil},
		"an acknowledged order is lost": {func(s *stored, _ map[string]answer) {
			delete(s.orders, "7")
			s.left[shelfOf] = 3
		}, []string{"job", "lost", "outbox", "payment", "refused"}},
		"an order has other values": {func(s *stored, _ map[string]answer) { s.orders["7"][0].total = 1 }, []string{"other", "received"}},
		"an order is there twice": {func(s *stored, _ map[string]answer) {
			s.orders["8"] = s.orders["7"]
			s.payments["8"], s.jobs["8"], s.outbox["8"] = []int64{0}, s.jobs["7"], s.outbox["7"]
			s.left[shelfOf] = -1
		}, []string{"doubled", "stock"}},
		"two keys have one order": {func(_ *stored, answers map[string]answer) {
			a := answers["a"]
			a.Key = "c"
			answers["c"] = a
		}, []string{"shared"}},
		"a payment is missing":           {func(s *stored, _ map[string]answer) { delete(s.payments, "7") }, []string{"payment"}},
		"a job is missing":               {func(s *stored, _ map[string]answer) { delete(s.jobs, "7") }, []string{"job"}},
		"a job is there twice":           {func(s *stored, _ map[string]answer) { s.jobs["7"] = []int64{1, 0} }, []string{"confirmed", "job"}},
		"a job is for an order of none":  {func(s *stored, _ map[string]answer) { s.jobs["8"] = []int64{0} }, []string{"job"}},
		"a payment was received twice":   {func(s *stored, _ map[string]answer) { s.payments["7"] = []int64{1200} }, []string{"received"}},
		"a payment was not received":     {func(s *stored, _ map[string]answer) { s.payments["7"] = []int64{0} }, []string{"received"}},
		"a job was done twice":           {func(s *stored, _ map[string]answer) { s.orders["7"][0].confirmed = 2 }, []string{"confirmed"}},
		"a job is done without its work": {func(s *stored, _ map[string]answer) { s.orders["7"][0].confirmed = 0 }, []string{"confirmed"}},
		"an outbox row is missing":       {func(s *stored, _ map[string]answer) { delete(s.outbox, "7") }, []string{"outbox"}},
		"more was sold than taken": {func(s *stored, _ map[string]answer) { s.left[shelfOf] = 2 },
			[]string{"refused", "stock"}},
		"a product has no stock": {func(s *stored, _ map[string]answer) { delete(s.left, shelf{"globex", 1}) }, []string{"stock"}},
		"an order was refused in vain": {func(_ *stored, answers map[string]answer) {
			a := answers["b"]
			a.Quantity = 1
			answers["b"] = a
		}, []string{"refused"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, answers := sale()
			c.damage(&s, answers)
			found := check(s, answers, map[string]bool{"pay-a": true}, 3)
			if got := slices.Sorted(maps.Keys(count(found))); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v\n%s", got, c.want, fmt.Sprint(found))
			}
		})
	}
}
