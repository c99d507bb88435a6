package benchmarks

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
)

// sites opens each database that there is.
func sites(t *testing.T, f func(t *testing.T, open func(testing.TB) *site)) {
	t.Run("sqlite", func(t *testing.T) { f(t, openSQLite) })
	if dsn := os.Getenv(PostgresEnv); dsn != "" {
		t.Run("postgres", func(t *testing.T) {
			f(t, func(t testing.TB) *site { return openPostgres(t, dsn) })
		})
	}
}

func all() []contender {
	return append(append(contenders[:len(contenders):len(contenders)], imitated...), sqlreqKey)
}

func TestEveryContenderDoesAllOfTheWork(t *testing.T) {
	works := []work{nothing(), headers(), inserts(1), inserts(10), read(), answers(1<<10, nil), answers(64<<10, nil), answers(1<<20, nil)}
	sites(t, func(t *testing.T, open func(testing.TB) *site) {
		s := open(t)
		for _, c := range all() {
			for _, j := range works {
				t.Run(c.name+"/"+j.name, func(t *testing.T) { verify(t, s, j, c.handler(s, j), "/") })
			}
			if c.name == "crdb" {
				continue // of the works below
			}
			for _, percent := range []int{0, 100} {
				j := conflicts(s, percent)
				t.Run(c.name+"/"+j.name, func(t *testing.T) { verify(t, s, j, c.handler(s, j), "/") })
			}
			if c.name == "popmw" {
				continue // one inside another waits for itself
			}
			for _, depth := range []int{1, 3, 10} {
				j := inserts(1)
				t.Run(c.name+"/nested", func(t *testing.T) { verify(t, s, j, c.nest(s, j, depth), nestedPath(depth)) })
			}
		}
	})
}

func TestManyKeys(t *testing.T) {
	for _, c := range named("hand", "eager", "sqlreq") {
		s := openSQLite(t)
		j := inserts(1)
		j.extra = extraPools(t, 9)
		verify(t, s, j, c.handler(s, j), "/")
		for i, db := range j.extra {
			if n := db.Stats().OpenConnections; (n > 0) != (c.name == "eager") {
				t.Errorf("%s: %d connections of database %d, which the handler has not used", c.name, n, i)
			}
		}
	}
}

// failing inserts a row and then fails.
func failing(fail func(ctx context.Context, tx dbtx) error) work {
	j := inserts(1)
	insert := j.use
	j.use = func(ctx context.Context, tx dbtx, w http.ResponseWriter) error {
		if err := insert(ctx, tx, w); err != nil {
			return err
		}
		return fail(ctx, tx)
	}
	return j
}

func TestEveryContenderRollsBack(t *testing.T) {
	cases := map[string]func(context.Context, dbtx) error{
		"error": func(context.Context, dbtx) error { return errors.New("test") },
		"panic": func(context.Context, dbtx) error { panic("test") },
		"statement": func(ctx context.Context, tx dbtx) error {
			_, err := tx.ExecContext(ctx, "INSERT INTO no_such_table VALUES (1)")
			return err
		},
	}
	sites(t, func(t *testing.T, open func(testing.TB) *site) {
		s := open(t)
		for name, fail := range cases {
			for _, c := range all() {
				t.Run(name+"/"+c.name, func(t *testing.T) {
					before := s.done(t)
					rec, r := httptest.NewRecorder(), newRequest(t, "/")
					ctx, cancel := context.WithCancel(r.Context())
					defer cancel()
					v := recovered(func() { c.handler(s, failing(fail)).ServeHTTP(rec, r.WithContext(ctx)) })
					if name == "panic" && c.name == "transactor" {
						// The end of the request rolls back, in a goroutine of database/sql.
						if n := s.db.Stats().InUse; n != 1 {
							t.Errorf("%d connections in use, want that of the transaction", n)
						}
						cancel()
						takeAll(t, s.db)
					}
					switch {
					case name == "panic" && v != "test":
						t.Errorf("panic with %v", v)
					case name != "panic" && (v != nil || rec.Code != http.StatusInternalServerError):
						t.Errorf("panic with %v, answered %d, want 500", v, rec.Code)
					}
					if n := s.done(t) - before; n != 0 {
						t.Errorf("%d rows stayed", n)
					}
					if n := s.db.Stats().InUse; n != 0 {
						t.Errorf("%d connections in use", n)
					}
				})
			}
		}
	})
}

// takeAll waits until nobody has a connection of the pool.
func takeAll(t *testing.T, db *sql.DB) {
	t.Helper()
	var conns [poolSize]*sql.Conn
	for i := range conns {
		var err error
		if conns[i], err = db.Conn(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, conn := range conns {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

func recovered(f func()) (v any) {
	defer func() { v = recover() }()
	f()
	return nil
}

// What is measured is not always the same promise: README.md says who tells
// the client that its work is not there.
func TestWhoTellsOfAFailedCommit(t *testing.T) {
	tells := map[string]bool{"hand": true, "buffered": true, "sqlreq": true, "sqlreq-key": true}
	sites(t, func(t *testing.T, open func(testing.TB) *site) {
		s := open(t)
		for _, c := range all() {
			before := s.done(t)
			rec := httptest.NewRecorder()
			j := failing(func(ctx context.Context, tx dbtx) error {
				_, err := tx.ExecContext(ctx, breakCommit)
				return err
			})
			c.handler(s, j).ServeHTTP(rec, newRequest(t, "/"))
			want := http.StatusOK
			if tells[c.name] {
				want = http.StatusInternalServerError
			}
			if n := s.done(t) - before; rec.Code != want || n != 0 {
				t.Errorf("%s: answered %d, %d rows, want %d and none", c.name, rec.Code, n, want)
			}
		}
	})
}

func TestNamesAreUnique(t *testing.T) {
	seen := make(map[string]bool)
	for _, b := range All("postgres://") {
		if name := b.Group + "/" + b.Name(); seen[name] {
			t.Errorf("%s is there twice", name)
		} else {
			seen[name] = true
		}
	}
}
