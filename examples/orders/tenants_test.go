package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/orders/internal/postgres"
	"github.com/sqlreq/sqlreq/examples/orders/internal/tenant"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// key is the key of the service's database.
const key = sqlreq.DefaultKey

// A tenant's orders are there for that tenant only, by every way to them.
func TestTenants(t *testing.T) {
	onBoth(t, 5, func(t *testing.T, s *service) {
		s.order("acme", "k1", `{"product": 1, "quantity": 1}`).is(t, 201)
		id := s.number("SELECT id FROM orders")
		for path, status := range map[string]int{
			"/acme/api/orders/%d": 200, "/globex/api/orders/%d": 404, "/nobody/api/orders/%d": 404,
			"/acme/orders/%d": 200, "/globex/orders/%d": 404, "/nobody/orders/%d": 404,
		} {
			s.get(fmt.Sprintf(path, id)).is(t, status)
		}
		s.get("/globex/api/products").has(t, `"stock":5`)
		if a := s.get("/globex/api/products").body; strings.Contains(a, `"stock":4`) {
			t.Errorf("globex sees acme's stock: %s", a)
		}
		event := fmt.Sprintf(`{"tenant": "globex", "order": %d, "amount": 8900}`, id)
		s.do("POST", "/webhooks/payments", "e1", "application/json", event).is(t, 404)
		equal(t, "received", s.number("SELECT received FROM payments"), 0)
		s.get("/admin/").is(t, 200).has(t, fmt.Sprintf(`<a href="/acme/orders/%d">`, id))
	})
}

// inTransaction runs fn in the transaction of a request, behind the service's registry.
func (s *service) inTransaction(method string, ctx context.Context, fn func(context.Context) error) error {
	s.t.Helper()
	var failed error
	h := s.server.reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		failed = fn(r.Context())
		return failed
	}))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, "/", nil).WithContext(ctx))
	return failed
}

// Row-level security holds for queries that name no tenant, those of the shop and any other.
func TestRowLevelSecurity(t *testing.T) {
	s := onPostgres(t, 5)
	for _, name := range tenant.All {
		s.order(name, "k1", `{"product": 1, "quantity": 1}`).is(t, 201)
	}
	acme := tenant.With(t.Context(), "acme")
	for _, method := range []string{"GET", "POST"} { // read-only ones too
		for _, table := range []string{"products", "orders", "payments", "outbox"} {
			want := int64(1)
			if table == "products" {
				want = 5
			}
			for _, c := range []struct {
				ctx  context.Context
				rows int64
			}{{acme, want}, {tenant.With(t.Context(), "globex"), want}, {t.Context(), 0}, {tenant.With(t.Context(), ""), 0}, {tenant.Every(t.Context()), 2 * want}} {
				var rows int64
				if err := s.inTransaction(method, c.ctx, func(ctx context.Context) error {
					return key.QueryRowContext(ctx, "SELECT count(*) FROM "+table).Scan(&rows)
				}); err != nil {
					t.Fatal(err)
				}
				if rows != c.rows {
					t.Errorf("%s, %s of %q: sees %d rows, want %d", method, table, tenant.Of(c.ctx), rows, c.rows)
				}
			}
		}
	}
	for _, query := range []string{
		"UPDATE products SET stock = 0", "UPDATE orders SET confirmed = 7", "UPDATE payments SET received = 1",
	} {
		if err := s.inTransaction("POST", acme, func(ctx context.Context) error {
			_, err := key.ExecContext(ctx, query)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	equal(t, "globex's stock", s.number("SELECT sum(stock) FROM products WHERE tenant = 'globex'"), 24)
	equal(t, "globex's order", s.number("SELECT confirmed FROM orders WHERE tenant = 'globex'"), 0)
	equal(t, "globex's payment", s.number("SELECT received FROM payments WHERE tenant = 'globex'"), 0)

	for what, c := range map[string]struct {
		ctx   context.Context
		query string
		code  string
	}{
		"a row of another tenant":     {acme, "INSERT INTO outbox (tenant, topic, payload) VALUES ('globex', 'x', '{}')", "42501"},
		"to give a row away":          {acme, "UPDATE orders SET tenant = 'globex'", "42501"},
		"a row, for all tenants":      {tenant.Every(t.Context()), "INSERT INTO outbox (tenant, topic, payload) VALUES ('globex', 'x', '{}')", "42501"},
		"a row without a tenant":      {t.Context(), "INSERT INTO outbox (topic, payload) VALUES ('x', '{}')", "42501"},
		"to turn the policies off":    {acme, "SET row_security = off; SELECT count(*) FROM orders", "42501"},
		"to delete":                   {acme, "DELETE FROM orders", "42501"},
		"to look at other's settings": {acme, "ALTER TABLE orders DISABLE ROW LEVEL SECURITY", "42501"},
	} {
		err := s.inTransaction("POST", c.ctx, func(ctx context.Context) error {
			for _, query := range strings.Split(c.query, "; ") {
				if _, err := key.ExecContext(ctx, query); err != nil {
					return err
				}
			}
			return nil
		})
		if refused := (*pgconn.PgError)(nil); !errors.As(err, &refused) || refused.Code != c.code {
			t.Errorf("%s: got %v, want SQLSTATE %s", what, err, c.code)
		}
	}
}

// What each transaction is: as which role it works, how it is isolated, and whether it may write.
func TestSettings(t *testing.T) {
	s := onPostgres(t, 5)
	read := func(settings map[string]string) func(context.Context) error {
		return func(ctx context.Context) error {
			for name, want := range settings {
				var got string
				if err := key.QueryRowContext(ctx, "SELECT current_setting($1, true)", name).Scan(&got); err != nil {
					return err
				}
				equal(t, name, got, want)
			}
			return nil
		}
	}
	acme := tenant.With(t.Context(), "acme")
	for _, err := range []error{
		s.inTransaction("POST", acme, read(map[string]string{
			"role": "orders_app", "app.tenant": "acme", "app.every": "off", "transaction_isolation": "serializable", "transaction_read_only": "off",
		})),
		s.inTransaction("GET", acme, read(map[string]string{
			"role": "orders_app", "app.tenant": "acme", "app.every": "off", "transaction_isolation": "repeatable read", "transaction_read_only": "on",
		})),
		s.server.reg.Do(tenant.Every(acme), read(map[string]string{
			"role": "orders_app", "app.tenant": "acme", "app.every": "on", "transaction_isolation": "serializable", "transaction_read_only": "off",
		})),
	} {
		if err != nil {
			t.Error(err)
		}
	}
}

// What a transaction was told ends with it: the connection goes back to the pool without role and tenant.
func TestConnectionsKeepNoTenant(t *testing.T) {
	s := onPostgres(t, 5)
	s.order("acme", "k1", `{"product": 1, "quantity": 1}`).is(t, 201)
	s.get("/acme/api/products").is(t, 200)
	db, err := s.server.store.Binding().Route(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var same, role, name sql.NullString
	if err := db.QueryRow("SELECT session_user = current_user, current_user, current_setting('app.tenant', true)").Scan(&same, &role, &name); err != nil {
		t.Fatal(err)
	}
	if same.String != "true" || name.String != "" {
		t.Errorf("the connection has the role %q and the tenant %q", role.String, name.String)
	}
}

// The policies hold for the owner of the tables, who is no superuser, and the roles are theirs to take.
func TestOwnerOfTables(t *testing.T) {
	server := servers.SharedPostgres(t).DSN
	dsn := newDatabase(t, server)
	admin := openDB(t, "pgx", dsn)
	execute(t, admin, "DROP ROLE IF EXISTS orders_owner", "CREATE ROLE orders_owner LOGIN CREATEROLE PASSWORD 'secret'")
	t.Cleanup(func() {
		execute(t, admin, "REASSIGN OWNED BY orders_owner TO CURRENT_USER", "DROP OWNED BY orders_owner", "DROP ROLE orders_owner")
	})
	execute(t, admin, "ALTER SCHEMA public OWNER TO orders_owner")
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("orders_owner", "secret")
	owned := u.String()
	store, err := postgres.Open(t.Context(), owned, "", 5)
	if err != nil {
		t.Fatal(err)
	}
	s := newService(t, store, &service{dsn: owned, postgres: true, judge: admin})
	s.order("acme", "k1", `{"product": 1, "quantity": 1}`).is(t, 201)
	equal(t, "orders of all", s.stats().Orders, 1)
	owner := openDB(t, "pgx", owned)
	var orders int64
	if err := owner.QueryRow("SELECT count(*) FROM orders").Scan(&orders); err != nil {
		t.Fatal(err)
	}
	equal(t, "orders that the owner sees without a tenant", orders, 0)
}

// Processes that start at the same time migrate one after another, and a start changes nothing of what is there.
func TestMigrations(t *testing.T) {
	s := onPostgres(t, 5)
	s.order("acme", "k1", `{"product": 1, "quantity": 1}`).is(t, 201)
	fresh := newDatabase(t, servers.SharedPostgres(t).DSN)
	errs := make(chan error)
	for i := range 6 {
		dsn := []string{s.dsn, fresh}[i%2]
		go func() {
			store, err := postgres.Open(t.Context(), dsn, "", 7)
			errs <- errors.Join(err, store.Close())
		}()
	}
	for range 6 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	equal(t, "stock", s.number("SELECT stock FROM products WHERE tenant = 'acme' AND id = 1"), 4)
	var n int64
	if err := openDB(t, "pgx", fresh).QueryRow("SELECT sum(stock) FROM products").Scan(&n); err != nil || n != 70 {
		t.Errorf("the new database: got %d, %v, want 70", n, err)
	}
}
