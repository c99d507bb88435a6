package postgres

import (
	"context"
	"database/sql"
	"net/http"

	"github.com/sqlreq/sqlreq/examples/orders/internal/tenant"
)

// setTenant is the AfterBegin: before anybody gets the transaction it takes a role that the policies of
// migrations/0002_tenants.sql hold for, and says for which tenant. The third argument of set_config makes both end with
// the transaction, so that the connection goes back to the pool without them.
//
// A context without a tenant works for nobody: it sees no row and cannot insert any.
func setTenant(ctx context.Context, _ *http.Request, tx *sql.Tx) error {
	role := "orders_app"
	if tenant.IsEvery(ctx) {
		role = "orders_admin"
	}
	_, err := tx.ExecContext(ctx, "SELECT set_config('role', $1, true), set_config('app.tenant', $2, true)", role, tenant.Of(ctx))
	return err
}
