// Package admin is an application of its own, mounted into the shops: it has a registry and error pages of its own, and
// does not know where it is mounted. It brings no database: the key that its host has bound is found further out, and a
// request has one transaction there.
package admin

import (
	"embed"
	"net/http"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
	"github.com/sqlreq/sqlreq/examples/orders/internal/tenant"
	"github.com/sqlreq/sqlreq/examples/orders/internal/web"
)

//go:embed *.html
var files embed.FS

var index = web.Parse(files, "index.html")

// latest is how many orders and jobs are shown.
const latest = 50

type app struct{ store shop.Store }

// New returns the application for a host that serves it under prefix.
func New(prefix string, store shop.Store) (http.Handler, error) {
	reg, err := sqlreq.New()
	if err != nil {
		return nil, err
	}
	reg.ErrorHandler = web.Error
	a := app{store}
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", sqlreq.HandlerFunc(a.index))
	mux.Handle("/", sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		return sqlreq.Errorf(http.StatusNotFound, "There is no such page.")
	}))
	return reg.Mount(prefix, every(mux)), nil
}

// every opens all tenants' rows. In a service with users, who may see them is asked here.
func every(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(tenant.Every(r.Context())))
	})
}

func (a app) index(w http.ResponseWriter, r *http.Request) (err error) {
	var page struct {
		Stats  shop.Stats
		Stock  []shop.Product
		Orders []shop.Order
		Jobs   []shop.Job
		Latest int
	}
	page.Latest = latest
	if page.Stats, err = a.store.Stats(r.Context()); err != nil {
		return err
	}
	if page.Stock, err = a.store.Stock(r.Context()); err != nil {
		return err
	}
	if page.Orders, err = a.store.LatestOrders(r.Context(), latest); err != nil {
		return err
	}
	if page.Jobs, err = a.store.LatestJobs(r.Context(), latest); err != nil {
		return err
	}
	return web.Render(w, r, http.StatusOK, index, page)
}
