package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq"
)

// tenantKey is the key of a context's tenant.
type tenantKey struct{}

// asTenant is an AfterBegin: for the rest of the transaction the role is one without
// privileges of its own, and the policy knows who asks.
func asTenant(ctx context.Context, _ *http.Request, tx *sql.Tx) error {
	tenant, ok := ctx.Value(tenantKey{}).(string)
	if !ok {
		return errors.New("no tenant")
	}
	_, err := tx.ExecContext(ctx, "SELECT set_config('role', 'sqlreq_app', true), set_config('app.tenant', $1, true)", tenant)
	return err
}

// tenantTable creates a table in which each tenant sees its own rows. It belongs to the
// role itself, so that only FORCE makes the policy hold.
func tenantTable(t *testing.T, db *sql.DB) {
	t.Helper()
	exec(t, db, "DROP ROLE IF EXISTS sqlreq_app", "CREATE ROLE sqlreq_app")
	t.Cleanup(func() { exec(t, db, "DROP ROLE sqlreq_app") })
	tables(t, db, "sqlreq_note (tenant text NOT NULL DEFAULT current_setting('app.tenant'), text text NOT NULL)")
	exec(t, db, "ALTER TABLE sqlreq_note OWNER TO sqlreq_app",
		"ALTER TABLE sqlreq_note ENABLE ROW LEVEL SECURITY",
		"ALTER TABLE sqlreq_note FORCE ROW LEVEL SECURITY",
		"CREATE POLICY tenant ON sqlreq_note USING (tenant = current_setting('app.tenant'))")
}

// notes are the rows that a statement of the key sees, each with its tenant.
func notes(ctx context.Context) (list string, err error) {
	err = key.QueryRowContext(ctx, "SELECT coalesce(string_agg(tenant || ':' || text, ' ' ORDER BY tenant, text), '') FROM sqlreq_note").Scan(&list)
	return list, err
}

func addNote(ctx context.Context, text string) error {
	_, err := key.ExecContext(ctx, "INSERT INTO sqlreq_note (text) VALUES ($1)", text)
	return err
}

// tenantMux has a route for each way to a transaction.
func tenantMux(reg *sqlreq.Registry) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h func(ctx context.Context, attempt int) error) {
		mux.Handle(pattern, sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			attempts, _ := r.Context().Value(attemptsKey{}).(*int)
			*attempts++
			if err := h(r.Context(), *attempts); err != nil {
				return err
			}
			list, err := notes(r.Context())
			if err == nil {
				_, err = io.WriteString(w, list)
			}
			return err
		}))
	}
	handle("/read", func(context.Context, int) error { return nil })
	handle("/add", func(ctx context.Context, _ int) error { return addNote(ctx, "add") })
	handle("/commit", func(ctx context.Context, _ int) error { // the second transaction has it too
		if err := addNote(ctx, "before"); err != nil {
			return err
		}
		return errors.Join(sqlreq.Commit(ctx), addNote(ctx, "after"))
	})
	handle("/rollback", func(ctx context.Context, _ int) error { // and one after a Rollback
		if err := addNote(ctx, "gone"); err != nil {
			return err
		}
		return errors.Join(sqlreq.Rollback(ctx), addNote(ctx, "kept"))
	})
	handle("/retry", func(ctx context.Context, attempt int) error { // and the second attempt
		if attempt == 1 {
			_, err := key.ExecContext(ctx, "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
			return err
		}
		return addNote(ctx, "again")
	})
	handle("/do", func(ctx context.Context, _ int) error { // and a Do under a request
		return reg.Do(ctx, func(ctx context.Context) error { return addNote(ctx, "do") })
	})
	handle("/foreign", func(ctx context.Context, _ int) error {
		_, err := key.ExecContext(ctx, "INSERT INTO sqlreq_note VALUES ('other', 'foreign')")
		return err
	})
	return mux
}

type attemptsKey struct{}

// Row-level security of PostgreSQL by AfterBegin: whatever way a request has to a
// transaction, it sees and writes rows of its own tenant only, and the connection keeps
// nothing of that.
func TestAfterBeginRowLevelSecurity(t *testing.T) {
	for _, d := range append(databases, variants...) {
		if d.driver != "pgx" && d.driver != "postgres" {
			continue
		}
		t.Run(d.name, func(t *testing.T) {
			db := d.open(t)
			tenantTable(t, db)
			db.SetMaxOpenConns(3) // so that connections go from one tenant to another
			reg, err := sqlreq.New(sqlreq.Binding{DB: db, AfterBegin: asTenant})
			if err != nil {
				t.Fatal(err)
			}
			reg.Logger = slog.New(slog.DiscardHandler)
			reg.Retry = sqlreq.Retry{Attempts: 3}
			inner := reg.Middleware(tenantMux(reg))
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ctx := context.WithValue(r.Context(), attemptsKey{}, new(int))
				if tenant := r.Header.Get("X-Tenant"); tenant != "" {
					ctx = context.WithValue(ctx, tenantKey{}, tenant)
				}
				inner.ServeHTTP(w, r.WithContext(ctx))
			}))
			defer srv.Close()
			ask := func(tenant, path string, status int, body string) {
				t.Helper()
				req, err := http.NewRequest(http.MethodPost, srv.URL+path, nil)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("X-Tenant", tenant)
				res, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				defer res.Body.Close()
				got, err := io.ReadAll(res.Body)
				if want := strings.ReplaceAll(body, "T", tenant); res.StatusCode != status || string(got) != want && status < 400 || err != nil {
					t.Errorf("%s of %s: got %d %q, %v, want %d %q", path, tenant, res.StatusCode, got, err, status, want)
				}
			}
			exec(t, db, "INSERT INTO sqlreq_note VALUES ('other', 'theirs')") // by a superuser, whom no policy holds
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					tenant := fmt.Sprint("t", i)
					ask(tenant, "/read", 200, "")
					ask(tenant, "/add", 200, "T:add")
					ask(tenant, "/commit", 200, "T:add T:after T:before")
					ask(tenant, "/rollback", 200, "T:add T:after T:before T:kept")
					ask(tenant, "/retry", 200, "T:add T:after T:again T:before T:kept")
					ask(tenant, "/foreign", 500, "")
					ask(tenant, "/read", 200, "T:add T:after T:again T:before T:kept")
				})
			}
			wg.Wait()
			ask("t1", "/do", 200, "T:add T:after T:again T:before T:do T:kept")
			ask("", "/read", 500, "") // nobody: no transaction
			idle(t, db)
			if n := number(t, db, "SELECT count(*) FROM sqlreq_note"); n != 8*5+1+1 {
				t.Errorf("got %d rows, want %d", n, 8*5+1+1)
			}
			for range 6 {
				if got := text(t, db, "SELECT (current_user = session_user) || coalesce(current_setting('app.tenant', true), '')"); got != "true" {
					t.Errorf("a connection has kept something: %q", got)
				}
			}
		})
	}
}
