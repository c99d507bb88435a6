package benchmarks

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
)

// openers opens each database that there is.
func openers() map[string]func(testing.TB) *site {
	all := map[string]func(testing.TB) *site{"sqlite": openSQLite}
	if dsn := os.Getenv(PostgresEnv); dsn != "" {
		all["postgres"] = func(t testing.TB) *site { return openPostgres(t, dsn) }
	}
	return all
}

// What play checks is what each request has to do. The largest points are checked by the
// benchmark, which measures nothing that play has not checked.
func TestEveryContenderDoesAllOfTheGrowth(t *testing.T) {
	large := map[string]bool{"clients=512": true, "answer=1GiB": true, "savepoints=10000": true}
	for database, open := range openers() {
		for _, p := range points() {
			for _, c := range p.by {
				if large[p.work] || c.native() && database == "sqlite" {
					continue
				}
				t.Run(database+"/"+p.work+"/"+c.name, func(t *testing.T) {
					const each = 4
					m := p.play(t, open(t), c, each, 0, func() {}, func() {})
					if len(m.took) != each*p.clients {
						t.Errorf("%d requests were timed, want %d", len(m.took), each*p.clients)
					}
					if m.conns < 1 || m.conns > poolSize*10 {
						t.Errorf("%d connections in use at most", m.conns)
					}
				})
			}
		}
	}
}

// Each axis has all contenders that can do its work, and a name for each value.
func TestTheAxes(t *testing.T) {
	got := make(map[string]int)
	for _, p := range points() {
		axis, value, ok := strings.Cut(p.work, "=")
		if !ok || value == "" || len(p.by) < 2 || p.by[0].name != "hand" {
			t.Errorf("%q by %d contenders", p.work, len(p.by))
		}
		got[axis]++
	}
	for axis, want := range map[string]int{"clients": 4, "keys": 3, "headers": 3, "answer": 5, "savepoints": 3, "conflicts": 4, "repeats": 3} {
		if got[axis] != want {
			t.Errorf("%s: %d points, want %d", axis, got[axis], want)
		}
	}
}

// A savepoint that fails takes back its own statements only, whoever makes it.
func TestEverySavepointIsOne(t *testing.T) {
	failed := errors.New("test")
	d := insert(func(ctx context.Context, q querier, _ http.ResponseWriter) error {
		err := q.savepoint(ctx, func(ctx context.Context) error {
			if err := q.exec(ctx, insertWork); err != nil {
				return err
			}
			return failed
		})
		if !errors.Is(err, failed) {
			return errors.Join(errors.New("no savepoint"), err)
		}
		return nil
	})
	for database, open := range openers() {
		for _, c := range append(growers(), natives...) {
			if c.native() && database == "sqlite" {
				continue
			}
			t.Run(database+"/"+c.name, func(t *testing.T) {
				s := open(t)
				if c.native() {
					s.openPgx(t)
				}
				j := work{rows: 1}.answering()
				verify(t, s, j, c.does(s, j, d, func() {}), "/")
			})
		}
	}
}
