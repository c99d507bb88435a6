package integration

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
)

// eachBroken calls fn with a pool of which one call of the driver is broken: the first,
// the second and so on until none is left, before and after it was carried out, with
// each kind of error. What is broken includes the calls named.
func eachBroken(t *testing.T, d database, calls []string, fn func(t *testing.T, db *sql.DB, name string)) {
	t.Helper()
	seen := make(map[string]int)
	cases := 0
	for kind, err := range map[string]error{"bad": driver.ErrBadConn, "eof": io.ErrUnexpectedEOF} {
		for when, after := range map[string]bool{"before": false, "after": true} {
			for n, more := 1, true; more && !t.Failed(); n++ {
				b := &breaking{n: n, after: after, err: err}
				db, err := openTap(d.driver, d.dsn(t), b.call)
				if err != nil {
					t.Fatal(err)
				}
				name := fmt.Sprint(kind, "-", when, "-", n)
				fn(t, db, name)
				idle(t, db)
				db.Close()
				if t.Failed() {
					t.Logf("%s: %s was broken", name, b.broken())
				}
				more = b.broken() != ""
				seen[when+" "+b.broken()]++
				cases++
			}
		}
	}
	for _, call := range calls {
		for _, when := range []string{"before ", "after "} {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(seen)), func(s string) bool { return strings.HasPrefix(s, when+call) }) {
				t.Errorf("never broken: %s%s; they were %v", when, call, seen)
			}
		}
	}
	t.Logf("%d cases", cases)
}

// brokenCalls are broken on every database. Statements are run, or prepared first and then
// executed, as the driver likes.
var brokenCalls = []string{"connect", "begin", "exec", "next", "close of rows", "commit", "reset"}

// Each call of the driver is broken once: each order is there once, and all its answers
// are the same. With Retry for lost connections no client notices anything.
func TestOnceEachCallBroken(t *testing.T) {
	for _, d := range tappable() {
		if d.driver == "sqlite3" {
			continue // no other calls than those of the other driver
		}
		for _, attempts := range []int{1, 100} {
			t.Run(fmt.Sprint(d.name, "/attempts=", attempts), func(t *testing.T) {
				d := d.fixed(t)
				plain := openShop(t, d)
				answers := &answered{answers: make(map[string]reply)}
				client := &shopClient{Client: http.DefaultClient, mayBe: []int{http.StatusServiceUnavailable}}
				eachBroken(t, d, append(brokenCalls, "rollback"), func(t *testing.T, db *sql.DB, name string) {
					h, err := newShop(d, db, attempts)
					if err != nil {
						t.Fatal(err)
					}
					if attempts == 1 && strings.HasSuffix(name, "0") {
						name += large
					}
					srv := httptest.NewServer(h)
					defer srv.Close()
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					for range 3 { // the calls of a repeat are broken too
						if err := answers.ask(ctx, client, srv.URL, name); err != nil {
							t.Error(err)
						}
					}
				})
				checkShop(t, plain, answers.answers)
				t.Logf("other answers: %v", client.others)
				if attempts > 1 && len(client.others) > 0 {
					t.Errorf("with Retry clients have seen %v of it", client.others)
				}
			})
		}
	}
}

func TestOnceDoEachCallBroken(t *testing.T) {
	for _, d := range tappable() {
		if d.driver == "sqlite3" {
			continue
		}
		t.Run(d.name, func(t *testing.T) {
			d := d.fixed(t)
			plain := openShop(t, d)
			eachBroken(t, d, brokenCalls, func(t *testing.T, db *sql.DB, name string) {
				reg, err := sqlreq.New(sqlreq.Binding{DB: db})
				if err != nil {
					t.Fatal(err)
				}
				once, done, firsts := newOnce(d), 0, 0
				for tries := 0; done < 3 && tries < 10; tries++ {
					first, err := once.Do(t.Context(), reg, "orders", name, func(ctx context.Context) error {
						_, err := key.ExecContext(ctx, "INSERT INTO sqlreq_order VALUES ('"+name+"', '')")
						return err
					})
					if err == nil {
						done++
					}
					if first {
						firsts++
					}
				}
				if n := number(t, plain, "SELECT count(*) FROM sqlreq_order WHERE name = '"+name+"'"); n != 1 || done != 3 || firsts > 1 {
					t.Errorf("%s: there %d times, done %d times, first %d times", name, n, done, firsts)
				}
			})
		})
	}
}
