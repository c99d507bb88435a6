package postgres

import (
	"context"
	"database/sql"
	"net/http"

	"github.com/sqlreq/sqlreq/examples/orders/internal/tenant"
)

// setTenant is the AfterBegin: before anybody gets the transaction it takes a role that the policies of
// migrations/0002_tenants.sql hold for, and says for which tenant. The third argument of set_config makes each setting end
// with the transaction, so that the connection goes back to the pool without it.
//
// A context without a tenant works for nobody: it sees no row and cannot insert any.
func setTenant(ctx context.Context, _ *http.Request, tx *sql.Tx) error {
	every := "off"
	if tenant.IsEvery(ctx) {
		every = "on"
	}
	_, err := tx.ExecContext(ctx, "SELECT set_config('role', 'orders_app', true), "+
		"set_config('app.tenant', $1, true), set_config('app.every', $2, true)", tenant.Of(ctx), every)
	return err
}
